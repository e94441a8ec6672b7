//! What a guest was told is durable stays so, whatever the graph becomes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::stage::*;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::PassNode;
use crate::graph::{Action, ChildDecl, Cx, NodeDecl, Which};
use crate::io::{Buf, BufMut};
use crate::node::{Extent, MemoryNode, Node, NodeFuture, NodeInfo, WriteFlags};

/// Counts its flushes, which fail from number `fails_at` on.
struct Counting {
    memory: MemoryNode,
    flushes: Arc<AtomicU64>,
    fails_at: u64,
}

impl Node for Counting {
    fn driver(&self) -> &'static str {
        "counting"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        self.memory.info(children)
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        self.memory.read(cx, offset, buf)
    }

    fn write<'a>(&'a self, cx: Cx<'a>, at: u64, buf: Buf, flags: WriteFlags) -> NodeFuture<'a, ()> {
        self.memory.write(cx, at, buf, flags)
    }

    fn zero<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64, flags: WriteFlags) -> NodeFuture<'a, ()> {
        self.memory.zero(cx, at, len, flags)
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        self.memory.discard(cx, offset, len)
    }

    fn flush<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
        let number = self.flushes.fetch_add(1, Relaxed) + 1;
        let failed = || Err(Error::new(ErrorKind::Io, "it cannot"));
        let result = if number >= self.fails_at { failed() } else { Ok(()) };
        Box::pin(async move { result })
    }

    fn block_status<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        self.memory.block_status(cx, at, len)
    }
}

fn snapshot(name: &str, below: &str) -> Action {
    let driver = Arc::new(MemoryNode::overlay(SIZE, 512).expect("a size"));
    let children = vec![ChildDecl::backing(below)];
    let overlay = NodeDecl { name: name.into(), driver, children };
    Action::Snapshot { drive: "vda".into(), overlay }
}

fn pass(above: &str) -> Action {
    let children = vec![ChildDecl::filtered(above)];
    let filter = NodeDecl { name: "filter".into(), driver: Arc::new(PassNode), children };
    Action::InsertAbove { node: above.into(), filter, users: Which::All }
}

/// A drive's flush goes to its overlay alone: what it wrote before a snapshot is flushed by that.
#[test]
fn a_snapshot_flushes_what_the_drive_wrote() {
    let flushes = Arc::new(AtomicU64::new(0));
    let memory = MemoryNode::new(SIZE, 512).expect("a size");
    let disk = Counting { memory, flushes: Arc::clone(&flushes), fails_at: 3 };
    let scene = Scene::default().node("disk", disk, vec![]).drive("vda", "disk");
    scene.run(async move |stage| {
        stage.write("vda", 1, 1).await;
        stage.act(pass("disk")).await.expect("a filter");
        assert_eq!(flushes.load(Relaxed), 0, "its flush comes there as before");
        stage.act(snapshot("top", "filter")).await.expect("a snapshot");
        assert_eq!(flushes.load(Relaxed), 1);
        stage.act(snapshot("next", "top")).await.expect("a snapshot");
        assert_eq!(flushes.load(Relaxed), 1, "the drive has not written there");
    });
}

#[test]
fn a_snapshot_is_not_taken_of_what_cannot_be_flushed() {
    let memory = MemoryNode::new(SIZE, 512).expect("a size");
    let disk = Counting { memory, flushes: Arc::default(), fails_at: 1 };
    let scene = Scene::default().node("disk", disk, vec![]).drive("vda", "disk");
    scene.run(async move |stage| {
        let error = stage.act(snapshot("top", "disk")).await.expect_err("it cannot be flushed");
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(stage.cell.load().nodes().len(), 1);
    });
}
