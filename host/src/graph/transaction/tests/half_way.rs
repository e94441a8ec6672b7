//! Drivers that fail half-way through what cannot be undone: what they may have spoiled is marked.

use super::scene::*;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::transaction::{Action, BitmapAction, BitmapRef, Event, Transaction, Unproven};
use crate::graph::{ChildDecl, Cx, LocalGraph, NodeDecl, OwnAccord, PermissionSet};
use crate::io::{Buf, BufMut};
use crate::node::{Extent, MemoryNode, Node, NodeFuture, NodeInfo, WriteFlags};

const BLOCKS: u64 = SIZE / BLOCK as u64;

/// An overlay that loses half of what it is to give up, and fails.
struct HalfWay(MemoryNode);

fn broken() -> Error {
    Error::new(ErrorKind::Io, "the medium has failed")
}

impl Node for HalfWay {
    fn driver(&self) -> &'static str {
        "half-way"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        self.0.info(children)
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        self.0.read(cx, offset, buf)
    }

    fn write<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        self.0.write(cx, offset, buf, flags)
    }

    fn zero<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64, flags: WriteFlags) -> NodeFuture<'a, ()> {
        self.0.zero(cx, at, len, flags)
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        self.0.discard(cx, offset, len)
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        self.0.flush(cx)
    }

    fn block_status<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        self.0.block_status(cx, at, len)
    }

    fn resize<'a>(&'a self, cx: Cx<'a>, size_bytes: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.0.deallocate(cx, size_bytes, (SIZE - size_bytes) / 2).await?;
            Err(broken())
        })
    }

    fn deallocate<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.0.deallocate(cx, offset, len / 2).await?;
            Err(broken())
        })
    }
}

fn scene() -> Scene {
    let driver = HalfWay(MemoryNode::overlay(SIZE, 512).expect("a size"));
    let nodes = vec![
        node("n", driver, vec![ChildDecl::backing("base")]),
        memory("base"),
        memory("other"),
        pass("f", "n"),
    ];
    let bitmaps = vec![bitmap(of_drive("d"), "b"), bitmap(of_node("n"), "b")];
    Scene::new(nodes, vec![drive("d", "f")], bitmaps)
}

fn shrink() -> Action {
    Action::Resize { node: "n".into(), size_bytes: 100 * BLOCK as u64 }
}

fn give_up() -> Action {
    Action::Deallocate { node: "n".into(), range: 10 * BLOCK as u64..20 * BLOCK as u64 }
}

fn leave() -> Action {
    Action::SetRoot { drive: "d".into(), node: "other".into() }
}

/// Fills the drive, tries `actions`, and checks that it shows what it showed, but for the granules that are
/// dirty.
fn check(actions: Vec<Action>, expect: std::ops::Range<u64>) {
    run(async move {
        let scene = scene();
        for block in 0..BLOCKS {
            scene.write("d", block, 7).await;
        }
        let both = [BitmapRef::of_drive("d", "b"), BitmapRef::of_node("n", "b")];
        let clear = |all: Transaction, it: &BitmapRef| all.with(BitmapAction::Clear.of(it));
        scene.all(both.iter().fold(Transaction::new(), clear)).await;
        let mut events = scene.cell.events();
        let generation = scene.cell.load().generation();
        let all = actions
            .into_iter()
            .fold(Transaction::new(), |all, action| all.with_unproven(action, Unproven::MarkWhole));
        let error = scene.cell.transact(all).await.expect_err("the medium fails");
        assert_eq!(error.kind(), ErrorKind::Io);

        let (dirty, mut spoiled) = (scene.dirty("d"), 0);
        for block in 0..BLOCKS {
            let is_spoiled = scene.read("d", block).await != 7;
            assert!(!is_spoiled || dirty.contains(&block), "block {block} is another and clean");
            spoiled += u64::from(is_spoiled);
        }
        assert_eq!(spoiled, (expect.end - expect.start) / 2);
        assert_eq!(dirty, expect.collect::<Vec<u64>>());
        assert_eq!(dirty_blocks(&scene.bitmap(&of_node("n"), "b")), dirty);
        assert_eq!(scene.cell.load().generation(), generation, "nothing else has changed");
        // Nobody but the bitmaps would know otherwise.
        for _ in 0..2 {
            let notice = events.try_next().expect("an event for each bitmap");
            assert_eq!(notice.generation, generation);
            assert!(matches!(notice.event, Event::BitmapMarked { .. }), "{}", notice.event);
            assert!(notice.event.to_string().contains("failed half-way"), "{}", notice.event);
        }
        assert_eq!(events.try_next(), None);
    });
}

#[test]
fn a_failed_shrink_is_marked() {
    check(vec![shrink()], 100..BLOCKS);
}

#[test]
fn a_failed_deallocation_is_marked() {
    check(vec![give_up()], 10..20);
}

/// The drive was to show another node: it goes on with the spoiled one.
#[test]
fn whoever_was_to_leave_is_marked_too() {
    check(vec![leave(), shrink()], 100..BLOCKS);
    check(vec![leave(), give_up()], 10..20);
}

/// A clear that does not come about hides nothing.
#[test]
fn a_clear_in_the_same_transaction_hides_nothing() {
    let clear = || BitmapAction::Clear.of(BitmapRef::of_drive("d", "b"));
    check(vec![clear(), give_up()], 10..20);
    check(vec![give_up(), clear()], 10..20);
}

/// Bytes that were read before are not what is there now: to write them back would be a change.
#[test]
fn what_was_read_before_proves_nothing() {
    run(async {
        let driver = HalfWay(MemoryNode::overlay(SIZE, 512).expect("a size"));
        let grants = PermissionSet::HARMLESS;
        let child = ChildDecl { grants, ..ChildDecl::filtered("n") };
        let nodes = vec![
            memory("base"),
            node("n", driver, vec![ChildDecl::backing("base")]),
            NodeDecl { children: vec![child], ..pass("f", "n") },
        ];
        let scene = Scene::new(nodes, vec![drive("d", "f")], vec![bitmap(of_drive("d"), "b")]);
        scene.write("d", 10, 7).await;
        let own = OwnAccord::open(&LocalGraph::of(&scene.cell), "f").expect("a node that acts");
        let range = 10 * BLOCK as u64..11 * BLOCK as u64;
        let read = own.read_proven(0, range).await.expect("a read");
        let fails = Transaction::new().with_unproven(give_up(), Unproven::MarkWhole);
        scene.cell.transact(fails).await.expect_err("the medium fails");
        assert_eq!(scene.read("d", 10).await, 0, "the block has gone");
        scene.clear(&of_drive("d"), "b").await;
        let refused = own.write_proven(0, &read).await.expect_err("it shows something else now");
        assert_eq!(refused.kind(), ErrorKind::Stale);
        assert_eq!(scene.read("d", 10).await, 0);
    });
}
