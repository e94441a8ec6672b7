//! Nodes, drives and bitmaps for tests, and a graph as text.

use std::cell::Cell;
use std::fmt::Write;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::bitmap::{Bitmap, BitmapName, Change, Granularity};
use crate::error::Result;
use crate::filter::{Filter, PassNode};
use crate::graph::testing::turn;
use crate::graph::transaction::{Action, Applied, Event, Transaction};
use crate::graph::{
    BitmapDecl, BitmapScope, ChildDecl, Cx, DriveDecl, Edge, Graph, GraphCell, GraphDecl,
    LocalDrive, LocalGraph, NodeDecl,
};
use crate::io::{Buf, BufMut, EngineChoice, EngineKind, run_on_thread, sleep_until, turn_now};
use crate::node::{MemoryNode, Node, NodeInfo, WriteFlags};

/// Block of the tests' nodes and granule of their bitmaps.
pub(super) const BLOCK: usize = 512;
/// Size of the tests' nodes.
pub(super) const SIZE: u64 = 64 << 10;

pub(super) fn run<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
    run_on_thread(EngineChoice::Exactly(EngineKind::Threads), future).expect("a worker")
}

pub(super) async fn turns(count: usize) {
    for _ in 0..count {
        turn().await;
    }
}

/// A transparent filter that takes its time, so that requests are in flight whenever a change comes.
pub(super) struct Lag {
    pub(super) time: Duration,
    pub(super) starts: bool,
}

impl Lag {
    pub(super) fn of(micros: u64) -> Self {
        Self { time: Duration::from_micros(micros), starts: true }
    }

    async fn wait(&self) {
        sleep_until(turn_now() + self.time).await;
        turn().await;
    }
}

impl Filter for Lag {
    fn driver(&self) -> &'static str {
        "lag"
    }

    fn start(&self, _: &str, _: &NodeInfo, _: &[NodeInfo]) -> Result<()> {
        let broken = || Err(crate::Error::new(crate::ErrorKind::Io, "its engine does not start"));
        if self.starts { Ok(()) } else { broken() }
    }

    async fn read(&self, cx: Cx<'_>, offset: u64, buf: BufMut) -> Result<BufMut> {
        self.wait().await;
        cx.child(0)?.read(offset, buf).await
    }

    async fn write(&self, cx: Cx<'_>, offset: u64, buf: Buf, flags: WriteFlags) -> Result<()> {
        self.wait().await;
        let done = cx.child(0)?.write(offset, buf, flags).await;
        self.wait().await;
        done
    }
}

pub(super) fn node(name: &str, driver: impl Node, children: Vec<ChildDecl>) -> NodeDecl {
    NodeDecl { name: name.into(), driver: Arc::new(driver), children }
}

pub(super) fn memory(name: &str) -> NodeDecl {
    node(name, MemoryNode::new(SIZE, 512).expect("a size"), vec![])
}

pub(super) fn overlay(name: &str, on: &str) -> NodeDecl {
    let driver = MemoryNode::overlay(SIZE, 512).expect("a size");
    node(name, driver, vec![ChildDecl::backing(on)])
}

pub(super) fn pass(name: &str, on: &str) -> NodeDecl {
    node(name, PassNode, vec![ChildDecl::filtered(on)])
}

pub(super) fn lag(name: &str, on: &str, micros: u64) -> NodeDecl {
    node(name, Lag::of(micros), vec![ChildDecl::filtered(on)])
}

pub(super) fn drive(id: &str, root: &str) -> DriveDecl {
    DriveDecl { id: id.into(), root: Some(root.into()), writable: true, only_shows: false }
}

pub(super) fn bitmap(scope: BitmapScope, name: &str) -> BitmapDecl {
    let granularity = Granularity::from_bytes(BLOCK as u64).expect("a granularity");
    BitmapDecl { scope, name: BitmapName::new(name).expect("a name"), granularity, enabled: true }
}

pub(super) fn of_drive(id: &str) -> BitmapScope {
    BitmapScope::Drive(id.into())
}

pub(super) fn of_node(name: &str) -> BitmapScope {
    BitmapScope::Node(name.into())
}

/// A graph on the current worker.
#[derive(Clone)]
pub(super) struct Scene {
    pub(super) cell: Arc<GraphCell>,
}

impl Scene {
    pub(super) fn new(
        nodes: Vec<NodeDecl>,
        drives: Vec<DriveDecl>,
        bitmaps: Vec<BitmapDecl>,
    ) -> Self {
        let graph = GraphDecl { nodes, drives, bitmaps }.build().expect("a graph");
        Self { cell: Arc::new(GraphCell::new(graph)) }
    }

    pub(super) fn drive(&self, id: &str) -> LocalDrive {
        LocalDrive::open(&LocalGraph::of(&self.cell), id).expect("a drive")
    }

    pub(super) fn bitmap(&self, scope: &BitmapScope, name: &str) -> Arc<Bitmap> {
        let graph = self.cell.load();
        Arc::clone(graph.find_bitmap(scope, name).expect("a bitmap"))
    }

    /// Makes a bitmap clean.
    pub(super) async fn clear(&self, scope: &BitmapScope, name: &str) {
        let bitmap = self.bitmap(scope, name);
        self.cell.change_bitmap(&bitmap, &[Change::Clear]).await.expect("a bitmap to clear");
    }

    /// Dirty blocks of drive `d`'s bitmap `b`.
    pub(super) fn dirty(&self, id: &str) -> Vec<u64> {
        dirty_blocks(&self.bitmap(&of_drive(id), "b"))
    }

    pub(super) async fn act(&self, action: Action) -> Applied {
        self.all(Transaction::new().with(action)).await
    }

    pub(super) async fn all(&self, transaction: Transaction) -> Applied {
        self.cell.transact(transaction).await.expect("a transaction that fits")
    }

    /// The message with which a transaction fails, which is to change nothing at all.
    pub(super) async fn fails(&self, transaction: Transaction) -> String {
        let before = dump(&self.cell.load());
        let error = self.cell.transact(transaction).await.map(|applied| applied.events);
        let error = error.expect_err("a transaction that cannot be");
        assert_eq!(dump(&self.cell.load()), before, "{error}");
        error.to_string()
    }

    pub(super) async fn write(&self, id: &str, block: u64, byte: u8) {
        let (offset, data) = (block * BLOCK as u64, vec![byte; BLOCK]);
        let written = self.drive(id).write(offset, Buf::copy_of(&data), WriteFlags::NONE).await;
        written.expect("a write");
    }

    /// The first byte of a block, which is to be all alike.
    pub(super) async fn read(&self, id: &str, block: u64) -> u8 {
        let read = self.drive(id).read(block * BLOCK as u64, BufMut::new(BLOCK)).await;
        let read = read.expect("a read").freeze();
        assert!(read.iter().all(|byte| *byte == read[0]), "a torn block");
        read[0]
    }
}

pub(super) fn dirty_blocks(bitmap: &Bitmap) -> Vec<u64> {
    let blocks =
        |range: std::ops::Range<u64>| range.start / BLOCK as u64..range.end.div_ceil(BLOCK as u64);
    bitmap.ranges(0..u64::MAX).flat_map(blocks).collect()
}

/// Whether some bitmap was marked whole.
pub(super) fn marked_whole(events: &[Event]) -> bool {
    events.iter().any(|event| matches!(event, Event::BitmapMarkedWhole { .. }))
}

/// Everything that a snapshot is, with the identity of what it shares.
pub(super) fn dump(graph: &Graph) -> String {
    let mut text = format!("generation {}\n", graph.generation);
    let edge = |text: &mut String, edge: &Edge| {
        let child = &graph.nodes[edge.child].name;
        let counters = Arc::as_ptr(&edge.counters);
        let marks = edge.entry.as_ref().map(|marks| marks.addresses());
        let (name, role, uses, shares) = (&edge.name, edge.role, edge.uses, edge.shares);
        let line = writeln!(
            text,
            "  {name} → {child} {role} uses {uses} shares {shares} {counters:?} {marks:?}"
        );
        line.expect("text");
    };
    for node in &graph.nodes {
        let (name, who, class) = (&node.name, node.generation, node.class);
        let driver = Arc::as_ptr(&node.driver).cast::<()>();
        writeln!(text, "{name} {who:?} {class:?} {driver:?} {:?}", node.info).expect("text");
        node.edges.iter().for_each(|it| edge(&mut text, it));
    }
    for (drive, origin) in graph.drives.iter().zip(&graph.origins) {
        let (id, who, origin) = (&drive.id, drive.generation, Arc::as_ptr(origin));
        writeln!(text, "{id} {who:?} {} {origin:?}", drive.writable).expect("text");
        drive.root.iter().for_each(|it| edge(&mut text, it));
    }
    for (scope, bitmap) in graph.bitmaps() {
        let (name, who) = (bitmap.name(), Arc::as_ptr(bitmap));
        let ranges: Vec<_> = bitmap.ranges(0..u64::MAX).collect();
        let size = bitmap.size_bytes();
        writeln!(text, "{name} of {scope} {who:?} {size} {:?} {ranges:?}", bitmap.state())
            .expect("text");
    }
    text
}

/// Set when a task is to end.
pub(super) type Stop = Rc<Cell<bool>>;
