//! Graphs for cases, and what a test does with them.

use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use crate::bitmap::{Bitmap, BitmapName, Change, Granularity};
use crate::error::{Error, Result};
use crate::filter::{CopyOnReadNode, PassNode};
use crate::graph::testing::{JobNode, dirty_blocks};
use crate::graph::{
    Action, Applied, BitmapDecl, BitmapScope, ChildDecl, CopyHow, DriveDecl, Graph, GraphCell,
    GraphDecl, GraphNode, LocalDrive, LocalGraph, NodeDecl, OwnAccord, PermissionSet, Role,
    Transaction,
};
use crate::io::{Buf, BufMut, EngineChoice, EngineKind, run_on_thread};
use crate::node::{MemoryNode, Node, RawNode, WriteFlags};

/// Size of every node.
pub(super) const SIZE: u64 = 64 << 10;
/// Granule of every bitmap.
pub(super) const BLOCK: u64 = 4 << 10;
/// Blocks of every node.
pub(super) const BLOCKS: u64 = SIZE / BLOCK;

pub(super) const UNCHANGED: CopyHow = CopyHow { unchanged: true, only_unallocated: false };
pub(super) const CHANGED: CopyHow = CopyHow { unchanged: false, only_unallocated: false };
/// What is not the target's own yet.
pub(super) const UP: CopyHow = CopyHow { unchanged: true, only_unallocated: true };

/// A graph in the making. Every node and drive has a bitmap `b`.
#[derive(Default)]
pub(super) struct Scene(pub(super) GraphDecl);

impl Scene {
    pub(super) fn node(self, name: &str, driver: impl Node, children: Vec<ChildDecl>) -> Self {
        self.shared_node(name, Arc::new(driver), children)
    }

    /// One whose driver the test keeps, too.
    pub(super) fn shared_node(
        mut self,
        name: &str,
        driver: Arc<dyn Node>,
        children: Vec<ChildDecl>,
    ) -> Self {
        self.0.nodes.push(NodeDecl { name: name.into(), driver, children });
        self.bitmap(BitmapScope::Node(name.into()))
    }

    pub(super) fn disk(self, name: &str) -> Self {
        self.node(name, MemoryNode::new(SIZE, 512).expect("a disk"), vec![])
    }

    pub(super) fn overlay(self, name: &str, backing: &str) -> Self {
        let overlay = MemoryNode::overlay(SIZE, 512).expect("a disk");
        self.node(name, overlay, vec![ChildDecl::backing(backing)])
    }

    pub(super) fn pass(self, name: &str, child: &str) -> Self {
        self.node(name, PassNode, vec![ChildDecl::filtered(child)])
    }

    pub(super) fn copy_on_read(self, name: &str, child: &str) -> Self {
        self.node(name, CopyOnReadNode::default(), vec![CopyOnReadNode::child(child)])
    }

    /// An opaque node: its bytes are stored in its child.
    pub(super) fn stored(self, name: &str, child: &str) -> Self {
        self.node(name, RawNode::new(0, Some(SIZE)), vec![ChildDecl::storage(child)])
    }

    /// A node that only acts, and has no bitmap.
    pub(super) fn actor(mut self, name: &str, children: Vec<ChildDecl>) -> Self {
        let driver = Arc::new(JobNode);
        self.0.nodes.push(NodeDecl { name: name.into(), driver, children });
        self
    }

    /// A job that copies from its first child to its second, both ways of saying so.
    pub(super) fn job(self, name: &str, from: &str, to: &str) -> Self {
        self.actor(name, vec![source(from), target(to, PermissionSet::WRITE)])
    }

    /// A job that may write what is proven for its first child, and nothing else.
    pub(super) fn proven_job(self, name: &str, from: &str, to: &str) -> Self {
        let to = ChildDecl { proven_for: Some("from".into()), ..target(to, PermissionSet::WRITE) };
        self.actor(name, vec![source(from), to])
    }

    /// A job that copies a node's view up into it, beside all who use it: what a stream does.
    pub(super) fn stream(self, name: &str, node: &str) -> Self {
        self.actor(name, vec![CopyOnReadNode::child(node)])
    }

    /// Somebody who can fill a node before there are drives: see [`Stage::fill`].
    pub(super) fn filled(self, node: &str) -> Self {
        let grants = PermissionSet::WRITE;
        self.actor(&filler(node), vec![ChildDecl { grants, ..ChildDecl::filtered(node) }])
    }

    pub(super) fn drive(self, id: &str, root: &str) -> Self {
        self.drive_that(id, root, true, false)
    }

    /// A drive that shows whatever is there.
    pub(super) fn showing(self, id: &str, root: &str) -> Self {
        self.drive_that(id, root, false, true)
    }

    pub(super) fn drive_that(
        mut self,
        id: &str,
        root: &str,
        writable: bool,
        only_shows: bool,
    ) -> Self {
        self.0.drives.push(DriveDecl {
            id: id.into(),
            root: Some(root.into()),
            writable,
            only_shows,
        });
        self.bitmap(BitmapScope::Drive(id.into()))
    }

    fn bitmap(mut self, scope: BitmapScope) -> Self {
        let name = BitmapName::new("b").expect("a name");
        let granularity = Granularity::from_bytes(BLOCK).expect("a granularity");
        self.0.bitmaps.push(BitmapDecl { scope, name, granularity, enabled: true });
        self
    }

    pub(super) fn stage(self) -> Stage {
        Stage::of(self.0.build().expect("a graph"))
    }

    pub(super) fn refused(self) -> Error {
        self.0.build().err().expect("a graph that cannot be")
    }

    pub(super) fn run<F: Future<Output = ()> + 'static>(
        self,
        test: impl FnOnce(Stage) -> F + 'static,
    ) {
        on_a_worker(async move { test(self.stage()).await });
    }
}

pub(super) fn on_a_worker<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
    run_on_thread(EngineChoice::Exactly(EngineKind::Threads), future).expect("a worker")
}

pub(super) fn source(node: &str) -> ChildDecl {
    let grants = PermissionSet::CONSISTENT_READ;
    ChildDecl { name: "from".into(), role: Role::Source, grants, ..ChildDecl::filtered(node) }
}

pub(super) fn target(node: &str, grants: PermissionSet) -> ChildDecl {
    ChildDecl { name: "to".into(), role: Role::Target, grants, ..ChildDecl::filtered(node) }
}

/// A filter's child which the filter may read of its own accord.
pub(super) fn readable(node: &str) -> ChildDecl {
    let grants = PermissionSet::CONSISTENT_READ;
    ChildDecl { grants, ..ChildDecl::filtered(node) }
}

const FILLER: &str = "fill-";

fn filler(node: &str) -> String {
    format!("{FILLER}{node}")
}

pub(super) fn at(block: u64) -> std::ops::Range<u64> {
    block * BLOCK..(block + 1) * BLOCK
}

/// A graph in use, by any worker.
#[derive(Clone)]
pub(super) struct Stage {
    pub(super) cell: Arc<GraphCell>,
}

impl Stage {
    pub(super) fn of(graph: Graph) -> Self {
        Self { cell: Arc::new(GraphCell::with_workers(graph, 2)) }
    }

    fn local(&self) -> Rc<LocalGraph> {
        LocalGraph::of(&self.cell)
    }

    pub(super) fn drive(&self, id: &str) -> LocalDrive {
        LocalDrive::open(&self.local(), id).expect("a drive")
    }

    pub(super) fn own(&self, node: &str) -> OwnAccord {
        OwnAccord::open(&self.local(), node).expect("a node that acts")
    }

    pub(super) async fn write(&self, id: &str, block: u64, byte: u8) {
        let data = Buf::copy_of(&[byte; BLOCK as usize]);
        let written = self.drive(id).write(block * BLOCK, data, WriteFlags::NONE).await;
        written.expect("a write");
    }

    /// The byte that fills a block.
    pub(super) async fn byte(&self, id: &str, block: u64) -> u8 {
        let read = self.drive(id).read(block * BLOCK, BufMut::new(BLOCK as usize)).await;
        let bytes = read.expect("a read");
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a block is of one write");
        bytes[0]
    }

    /// Gives a block of a node bytes of its own.
    pub(super) async fn fill(&self, node: &str, block: u64, byte: u8) {
        let bytes = Buf::copy_of(&[byte; BLOCK as usize]);
        let filled = self.own(&filler(node)).write_changed(0, block * BLOCK, bytes).await;
        filled.expect("a node to fill");
    }

    /// Sends those who fill nodes away and brings in a drive with a bitmap; all bitmaps are clean.
    pub(super) async fn open(&self, id: &str, root: &str, writable: bool) {
        let graph = self.cell.load();
        let fillers = graph.nodes().iter().filter(|node| node.name().starts_with(FILLER));
        let remove = |node: &GraphNode| Action::RemoveNode { node: node.name().into() };
        let removed = fillers.map(remove).fold(Transaction::new(), Transaction::with);
        let drive = Scene::default().drive_that(id, root, writable, !writable);
        let GraphDecl { drives, bitmaps, .. } = drive.0;
        let transaction = drives.into_iter().map(Action::AddDrive).fold(removed, Transaction::with);
        self.cell.transact(transaction).await.expect("a drive");
        for bitmap in bitmaps {
            self.cell.add_bitmap(bitmap).await.expect("a bitmap");
        }
        self.clear().await;
    }

    pub(super) async fn act(&self, action: Action) -> Result<Applied> {
        self.cell.transact(Transaction::new().with(action)).await
    }

    pub(super) fn bitmap(&self, scope: &BitmapScope) -> Arc<Bitmap> {
        Arc::clone(self.cell.load().find_bitmap(scope, "b").expect("a bitmap"))
    }

    /// Dirty blocks of every bitmap that has some, by the name of its node or drive.
    pub(super) fn dirty(&self) -> BTreeMap<String, Vec<u64>> {
        dirty_blocks(&self.cell.load(), BLOCK)
    }

    pub(super) async fn clear(&self) {
        let graph = self.cell.load();
        for (_, bitmap) in graph.bitmaps() {
            self.cell.change_bitmap(bitmap, &[Change::Clear]).await.expect("a clear");
        }
    }
}

/// The same blocks for all these bitmaps.
pub(super) fn dirty(names: &[&str], blocks: &[u64]) -> BTreeMap<String, Vec<u64>> {
    names.iter().map(|name| ((*name).to_owned(), blocks.to_vec())).collect()
}
