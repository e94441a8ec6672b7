//! Changes that a driver is asked for in a drained section and that are dropped with it, when the time is over: they may
//! still be under way, and nobody learns of their end.

use std::time::Duration;

use super::scene::*;
use crate::error::{ErrorKind, Result};
use crate::graph::mutation::{Mutation, set};
use crate::graph::transaction::{Action, BitmapAction, BitmapRef, Transaction};
use crate::graph::{ChildDecl, Cx, Role};
use crate::io::{Buf, BufMut};
use crate::node::{Extent, Node, NodeFuture, NodeInfo, WriteFlags};

/// Keeps its bytes in its child as they are, and writes there when it is flushed.
struct Restless;

impl Node for Restless {
    fn driver(&self) -> &'static str {
        "restless"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        NodeInfo::of_filter(children)
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move { cx.child(0)?.read(offset, buf).await })
    }

    fn write<'a>(&'a self, cx: Cx<'a>, at: u64, buf: Buf, flags: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.write(at, buf, flags).await })
    }

    fn zero<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64, flags: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.zero(at, len, flags).await })
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.discard(at, len).await })
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        self.write(cx, 0, Buf::zeros(BLOCK), WriteFlags::NONE)
    }

    fn block_status<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        Box::pin(async move { cx.child(0)?.block_status(at, len).await })
    }
}

/// What a clear of the container's bitmap says, after a snapshot whose flush was given up.
fn clear_after_a_flush_that_was_given_up() -> Result<()> {
    run(async {
        let edge = ChildDecl { role: Role::Storage, ..ChildDecl::filtered("slow") };
        let nodes = vec![
            node("n", Restless, vec![edge]),
            // Longer than this test takes.
            lag("slow", "disk", 600_000_000),
            memory("disk"),
            memory("other"),
        ];
        let bitmaps = vec![bitmap(of_node("slow"), "b"), bitmap(of_drive("e"), "b")];
        let scene = Scene::new(nodes, vec![drive("d", "n"), drive("e", "other")], bitmaps);
        let soon =
            |action: Action| Transaction::new().with(action).within(Duration::from_millis(20));
        let clear = |of: BitmapRef| soon(BitmapAction::Clear.of(of));
        let snapshot = Action::Snapshot { drive: "d".into(), overlay: overlay("o", "n") };
        let both = soon(snapshot).with(BitmapAction::Clear.of(BitmapRef::of_drive("e", "b")));
        let error = scene.cell.transact(both).await.expect_err("its flush does not end");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        // Who has only stood still beside it goes on.
        scene.all(clear(BitmapRef::of_drive("e", "b"))).await;
        scene.cell.transact(clear(BitmapRef::of_node("slow", "b"))).await.map(drop)
    })
}

/// Cleared before the write lands, a bitmap would never learn of it.
#[test]
fn a_change_of_a_section_that_was_given_up_is_waited_for() {
    let error = clear_after_a_flush_that_was_given_up().expect_err("it may be under way");
    let expect = "what a change asked node `n` has not ended in 20ms: nothing was changed";
    assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::TimedOut, expect));
    set(Some(Mutation::GuardsEndWithFutures));
    let cleared = clear_after_a_flush_that_was_given_up();
    set(None);
    cleared.expect("the broken rule is noticed");
}
