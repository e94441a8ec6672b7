//! Graphs for these tests, and nodes that hold up or fail what passes them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::super::super::{
    BitmapDecl, BitmapScope, ChildDecl, Cx, DriveDecl, GraphCell, GraphDecl, LocalDrive,
    LocalGraph, NodeDecl, PermissionSet, Role,
};
use super::super::{CopyHow, Outcomes, OwnAccord};
use crate::bitmap::{BitmapName, Change, Granularity};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::{Filter, PassNode};
use crate::graph::testing::{JobNode, dirty_blocks, turn};
use crate::io::{Buf, BufMut, EngineChoice, EngineKind, run_on_thread, spawn};
use crate::node::{Extent, MemoryNode, Node, WriteFlags};

pub(super) const SIZE: u64 = 64 << 10;
pub(super) const BLOCK: u64 = 4 << 10;
pub(super) const UNCHANGED: CopyHow = CopyHow { unchanged: true, only_unallocated: false };
pub(super) const CHANGED: CopyHow = CopyHow { unchanged: false, only_unallocated: false };

/// A graph in the making. Every node and drive has a bitmap `b` of 4 KiB granules.
#[derive(Default)]
pub(super) struct Scene(pub(super) GraphDecl);

impl Scene {
    pub(super) fn node(mut self, name: &str, driver: impl Node, children: Vec<ChildDecl>) -> Self {
        self.0.nodes.push(NodeDecl { name: name.into(), driver: Arc::new(driver), children });
        self.bitmap(BitmapScope::Node(name.into()))
    }

    pub(super) fn base(self, name: &str) -> Self {
        self.node(name, MemoryNode::new(SIZE, 512).expect("a disk"), vec![])
    }

    pub(super) fn overlay(self, name: &str, backing: &str) -> Self {
        self.node(name, MemoryNode::overlay(SIZE, 512).expect("a disk"), vec![below(backing)])
    }

    pub(super) fn pass(self, name: &str, child: &str) -> Self {
        self.node(name, PassNode, vec![ChildDecl::filtered(child)])
    }

    /// A node that only acts: copies from its first child to its second, proven for the first.
    pub(super) fn job(self, name: &str, from: &str, to: &str) -> Self {
        self.actor(name, from, to, Some("from"))
    }

    pub(super) fn actor(self, name: &str, from: &str, to: &str, proven_for: Option<&str>) -> Self {
        let edge = |name: &str, node: &str, role, grants| ChildDecl {
            name: name.into(),
            role,
            grants,
            ..ChildDecl::filtered(node)
        };
        let read = edge("from", from, Role::Source, PermissionSet::CONSISTENT_READ);
        let write = edge("to", to, Role::Target, PermissionSet::WRITE);
        let proven_for = proven_for.map(Into::into);
        self.node(name, JobNode, vec![read, ChildDecl { proven_for, ..write }])
    }

    pub(super) fn drive(mut self, id: &str, root: &str) -> Self {
        let root = Some(root.into());
        self.0.drives.push(DriveDecl { id: id.into(), root, writable: true, only_shows: false });
        self.bitmap(BitmapScope::Drive(id.into()))
    }

    pub(super) fn bitmap(mut self, scope: BitmapScope) -> Self {
        let name = BitmapName::new("b").expect("a name");
        let granularity = Granularity::from_bytes(BLOCK).expect("a granularity");
        self.0.bitmaps.push(BitmapDecl { scope, name, granularity, enabled: true });
        self
    }

    pub(super) fn run<F: Future<Output = ()> + 'static>(
        self,
        test: impl FnOnce(Stage) -> F + 'static,
    ) {
        let ended = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), async move {
            let cell = Arc::new(GraphCell::new(self.0.build().expect("a graph")));
            test(Stage { graph: LocalGraph::of(&cell) }).await;
        });
        ended.expect("a worker");
    }
}

pub(super) fn below(node: &str) -> ChildDecl {
    ChildDecl { name: "backing".into(), role: Role::Backing, ..ChildDecl::filtered(node) }
}

#[derive(Clone)]
pub(super) struct Stage {
    pub(super) graph: Rc<LocalGraph>,
}

impl Stage {
    pub(super) fn drive(&self, id: &str) -> LocalDrive {
        LocalDrive::open(&self.graph, id).expect("a drive")
    }

    pub(super) fn own(&self, node: &str) -> OwnAccord {
        OwnAccord::open(&self.graph, node).expect("a node that acts")
    }

    pub(super) async fn write(&self, id: &str, block: u64, byte: u8) -> Result<()> {
        let data = Buf::copy_of(&[byte; BLOCK as usize]);
        self.drive(id).write(block * BLOCK, data, WriteFlags::NONE).await
    }

    pub(super) async fn byte(&self, id: &str, block: u64) -> u8 {
        let read = self.drive(id).read(block * BLOCK, BufMut::new(BLOCK as usize)).await;
        let bytes = read.expect("a read");
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a block is of one write");
        bytes[0]
    }

    /// Dirty blocks of every bitmap that has some, by the name of its node or drive.
    pub(super) fn dirty(&self) -> BTreeMap<String, Vec<u64>> {
        dirty_blocks(&self.graph.current(), BLOCK)
    }

    pub(super) async fn clear(&self) {
        let graph = self.graph.current();
        for (_, bitmap) in graph.bitmaps() {
            self.graph.cell().change_bitmap(bitmap, &[Change::Clear]).await.expect("a clear");
        }
    }

    pub(super) fn outcomes(&self, node: &str) -> Outcomes {
        self.own(node).outcomes().expect("an acting node")
    }
}

pub(super) fn dirty(expect: &[(&str, &[u64])]) -> BTreeMap<String, Vec<u64>> {
    expect.iter().map(|(name, blocks)| ((*name).to_owned(), blocks.to_vec())).collect()
}

pub(super) fn at(block: u64) -> std::ops::Range<u64> {
    block * BLOCK..(block + 1) * BLOCK
}

/// What a test does to the requests that pass a [`Turnstile`].
#[derive(Default)]
pub(super) struct Control {
    /// Writes wait while this is set.
    pub(super) holds_writes: AtomicBool,
    /// Answers to questions for block status wait while this is set.
    pub(super) holds_status: AtomicBool,
    /// So many writes reach the child, then fail.
    pub(super) fail_writes: AtomicU32,
    /// So many writes fail before they reach the child.
    pub(super) lose_writes: AtomicU32,
    /// Writes that have come.
    pub(super) writes: AtomicU32,
}

/// Whether one more of them is to fail.
pub(super) fn takes_one(left: &AtomicU32) -> bool {
    let less = |left: u32| left.checked_sub(1);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
}

/// A filter that holds or fails writes.
pub(super) struct Turnstile(pub(super) Arc<Control>);

impl Filter for Turnstile {
    fn driver(&self) -> &'static str {
        "turnstile"
    }

    async fn write(&self, cx: Cx<'_>, offset: u64, buf: Buf, flags: WriteFlags) -> Result<()> {
        self.0.writes.fetch_add(1, Ordering::Relaxed);
        while self.0.holds_writes.load(Ordering::Relaxed) {
            turn().await;
        }
        let failure = || Err(Error::new(ErrorKind::Io, "the test wants it so"));
        if takes_one(&self.0.lose_writes) {
            return failure();
        }
        cx.child(0)?.write(offset, buf, flags).await?;
        if takes_one(&self.0.fail_writes) { failure() } else { Ok(()) }
    }

    async fn block_status(&self, cx: Cx<'_>, at: u64, len: u64) -> Result<Vec<Extent>> {
        let extents = cx.child(0)?.block_status(at, len).await;
        while self.0.holds_status.load(Ordering::Relaxed) {
            turn().await;
        }
        extents
    }
}

/// Lets every task run as far as it can.
pub(super) async fn quiet() {
    for _ in 0..64 {
        turn().await;
    }
}

/// A task and whether it has ended.
pub(super) fn start(task: impl Future<Output = ()> + 'static) -> Rc<Cell<bool>> {
    let ended = Rc::new(Cell::new(false));
    let end = Rc::clone(&ended);
    spawn(async move {
        task.await;
        end.set(true);
    });
    ended
}

/// base ← mid ← top, and another overlay of the base: commit from top into base.
pub(super) fn chain() -> Scene {
    Scene::default()
        .base("base")
        .overlay("mid", "base")
        .overlay("top", "mid")
        .overlay("other", "base")
        .job("commit", "top", "base")
}
