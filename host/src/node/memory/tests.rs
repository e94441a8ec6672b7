//! The driver against a model of bytes, through a real graph.

mod model;

use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use super::*;
use crate::graph::{
    ChildDecl, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph, NodeDecl, Role,
};
use crate::io::{EngineChoice, EngineKind, run_on_thread};
use crate::limits::EXTENTS_MAX;
use crate::node::ExtentKind;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("a small number")
}

fn on_worker<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
    run_on_thread(EngineChoice::Exactly(EngineKind::Threads), future).expect("a worker")
}

/// What a transaction asks of a driver.
#[derive(Clone, Copy, Debug)]
enum Order {
    Resize(u64),
    Deallocate(u64, u64),
}

/// Stands for a memory node in a graph: with its edges, and a flush that carries out an order.
struct Ordered {
    memory: Arc<MemoryNode>,
    order: Mutex<Option<Order>>,
}

impl Node for Ordered {
    fn driver(&self) -> &'static str {
        self.memory.driver()
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

    fn discard<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, ()> {
        self.memory.discard(cx, at, len)
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        match self.order.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Order::Resize(size_bytes)) => self.memory.resize(cx, size_bytes),
            Some(Order::Deallocate(offset, len)) => self.memory.deallocate(cx, offset, len),
            None => self.memory.flush(cx),
        }
    }

    fn block_status<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        self.memory.block_status(cx, at, len)
    }
}

/// A node, the index of its backing, and how its drive uses it.
type Declared<'a> = (&'a Arc<MemoryNode>, Option<usize>, DriveUse);

#[derive(Clone, Copy, PartialEq)]
enum DriveUse {
    None,
    Writes,
    Shows,
}

/// Drives on nodes: a graph of its own for each call, over drivers that live on.
fn drives(declared: &[Declared<'_>], order: Option<Order>) -> Vec<Option<LocalDrive>> {
    let mut decl = GraphDecl::default();
    for (at, (memory, backing, drive)) in declared.iter().enumerate() {
        let children = backing.map(|below| ChildDecl {
            name: "backing".into(),
            role: Role::Backing,
            ..ChildDecl::filtered(format!("node{below}"))
        });
        let driver = Ordered { memory: Arc::clone(memory), order: Mutex::new(order) };
        let (driver, children) = (Arc::new(driver), children.into_iter().collect());
        let name = format!("node{at}");
        decl.nodes.push(NodeDecl { name: name.clone(), driver, children });
        if *drive != DriveUse::None {
            decl.drives.push(DriveDecl {
                id: format!("drive{at}"),
                root: Some(name),
                writable: *drive == DriveUse::Writes,
                only_shows: *drive == DriveUse::Shows,
            });
        }
    }
    let cell = Arc::new(GraphCell::new(decl.build().expect("a graph")));
    let graph = Rc::new(LocalGraph::new(cell, 0));
    (0..declared.len()).map(|at| LocalDrive::open(&graph, &format!("drive{at}")).ok()).collect()
}

async fn read(drive: &Option<LocalDrive>, offset: u64, len: usize) -> Vec<u8> {
    let drive = drive.as_ref().expect("a drive");
    drive.read(offset, BufMut::new(len)).await.expect("a read").to_vec()
}

async fn write(drive: &Option<LocalDrive>, offset: u64, bytes: &[u8]) {
    let drive = drive.as_ref().expect("a drive");
    drive.write(offset, Buf::copy_of(bytes), WriteFlags::NONE).await.expect("a write");
}

fn base_and_overlays() -> [Arc<MemoryNode>; 3] {
    let base = MemoryNode::new(64 * KIB, 1).expect("a base");
    let overlay = || MemoryNode::overlay(64 * KIB, 512).expect("an overlay");
    [base, overlay(), overlay()].map(Arc::new)
}

#[test]
fn overlays_of_two_drives_on_one_base() {
    on_worker(async {
        let [base, left, right] = base_and_overlays();
        let below = drives(&[(&base, None, DriveUse::Writes)], None);
        write(&below[0], 0, &[1; 2048]).await;
        let above = drives(
            &[
                (&base, None, DriveUse::None),
                (&left, Some(0), DriveUse::Writes),
                (&right, Some(0), DriveUse::Writes),
            ],
            None,
        );
        write(&above[1], 500, &[2; 20]).await;
        write(&above[2], 1020, &[3; 8]).await;
        assert_eq!(read(&above[1], 496, 8).await, [1, 1, 1, 1, 2, 2, 2, 2]);
        assert_eq!(read(&above[1], 1020, 8).await, [1; 8]);
        assert_eq!(read(&above[2], 1016, 8).await, [1, 1, 1, 1, 3, 3, 3, 3]);
        assert_eq!(read(&above[2], 500, 20).await, [1; 20]);
        assert_eq!(read(&below[0], 0, 2048).await, [1; 2048]);
    });
}

#[test]
fn a_base_that_is_written_shows_where_nothing_is_allocated() {
    on_worker(async {
        let [base, overlay, _] = base_and_overlays();
        let writes = [(&base, None, DriveUse::None), (&overlay, Some(0), DriveUse::Writes)];
        write(&drives(&writes, None)[1], 512, &[9]).await;
        let shows = [(&base, None, DriveUse::Writes), (&overlay, Some(0), DriveUse::Shows)];
        let both = drives(&shows, None);
        write(&both[0], 0, &[7; 4096]).await;
        let got = read(&both[1], 0, 4096).await;
        // The block around the one byte was filled before the base changed.
        assert_eq!((got[511], got[512], got[513], got[1023], got[1024]), (7, 9, 0, 0, 7));
    });
}

#[test]
fn many_runs_and_long_reads() {
    on_worker(async {
        let base = Arc::new(MemoryNode::new(5 * MIB / 2 + 1, 1).expect("a base"));
        let overlay = Arc::new(MemoryNode::overlay(3 * MIB, 1).expect("an overlay"));
        let bottom = drives(&[(&base, None, DriveUse::Writes)], None);
        let pattern: Vec<u8> = (0..5 * MIB / 2 + 1).map(|byte| ((byte * 31) >> 7) as u8).collect();
        write(&bottom[0], 0, &pattern).await;
        let writes = [(&base, None, DriveUse::None), (&overlay, Some(0), DriveUse::Writes)];
        let top = drives(&writes, None);
        let mut expected = pattern.clone();
        expected.resize(to_usize(3 * MIB), 0);
        assert_eq!(read(&top[1], 0, expected.len()).await, expected, "all of it is the backing's");
        // Single bytes: densely, then further apart than runs that are read together.
        let dense = (0..3000).map(|number| 100 + 2 * number);
        let sparse = (1..280).map(|number| MIB + 5000 * number);
        for byte in dense.chain(sparse) {
            write(&top[1], byte, &[0xEE]).await;
            expected[to_usize(byte)] = 0xEE;
        }
        assert_eq!(read(&top[1], 0, expected.len()).await, expected);
        assert_eq!(read(&top[1], 99, 70_000).await, expected[99..70_099]);
        let top = top[1].as_ref().expect("a drive");
        let extents = top.block_status(0, 3 * MIB).await.expect("extents");
        assert_eq!(extents.len(), EXTENTS_MAX);
        let kinds: Vec<_> = extents[..3].iter().map(|it| (it.offset, it.len, it.kind)).collect();
        let unallocated = ExtentKind::Unallocated;
        assert_eq!(
            kinds,
            [(0, 100, unallocated), (100, 1, ExtentKind::Data), (101, 1, unallocated)]
        );
        let extents = top.block_status(2 * MIB + 500_000, MIB - 500_000).await.expect("extents");
        let last = extents.last().expect("an extent");
        assert_eq!((last.offset, last.kind), (5 * MIB / 2 + 1, ExtentKind::Hole));
    });
}

#[test]
fn zeros_of_whole_chunks_hide_the_backing_and_take_no_memory() {
    on_worker(async {
        let [base, overlay, _] = base_and_overlays();
        let declared = [(&base, None, DriveUse::None), (&overlay, Some(0), DriveUse::Writes)];
        let all = drives(&declared, None);
        let drive = all[1].as_ref().expect("a drive");
        drive.zero(0, 64 * KIB, WriteFlags::NONE).await.expect("zeroed");
        let status = drive.block_status(0, 64 * KIB).await.expect("extents");
        assert_eq!((status.len(), status[0].kind), (1, ExtentKind::Zero));
        let Bytes::Overlay(bytes) = &overlay.bytes else { panic!("an overlay") };
        assert!(!bytes.has_memory(0));
        write(&all[1], 0, &[1]).await;
        assert!(bytes.has_memory(0));
        drive.discard(0, 64 * KIB).await.expect("discarded");
        assert!(!bytes.has_memory(0));
        write(&all[1], 0, &[2]).await;
        drive.zero(0, 64 * KIB, WriteFlags::NONE).await.expect("zeroed");
        assert!(!bytes.has_memory(0));
        assert_eq!(read(&all[1], 0, 2).await, [0, 0]);
    });
}

/// A place in the table for each 64 KiB of a PiB would be a terabyte.
#[test]
fn growing_over_a_huge_backing_takes_no_memory() {
    const HUGE: u64 = 1 << 50;
    let base = Arc::new(MemoryNode::new(HUGE, 512).expect("a node"));
    let overlay = Arc::new(MemoryNode::overlay(512, 512).expect("a node"));
    on_worker(async move {
        let below = drives(&[(&base, None, DriveUse::Writes)], None);
        for at in [0, MIB, HUGE - 512] {
            write(&below[0], at, &[7; 512]).await;
        }
        let declared = [(&base, None, DriveUse::None), (&overlay, Some(0), DriveUse::Writes)];
        let grow = Some(Order::Resize(HUGE));
        drives(&declared, grow)[1].as_ref().expect("a drive").flush().await.expect("a new size");
        let Bytes::Overlay(bytes) = &overlay.bytes else { panic!("an overlay") };
        assert!(bytes.parts(0, HUGE) < 64, "no chunk was made");

        let grown = drives(&declared, None);
        let drive = grown[1].as_ref().expect("a drive");
        assert_eq!(read(&grown[1], 0, 512).await, [7; 512]);
        assert_eq!(read(&grown[1], MIB, 512).await, [0; 512]);
        write(&grown[1], MIB + 512, &[9; 512]).await;
        let mut expect = [0; 1536];
        expect[512..1024].fill(9);
        assert_eq!(read(&grown[1], MIB, 1536).await, expect);
        let first = drive.block_status(0, HUGE).await.expect("a status");
        let kinds = [ExtentKind::Unallocated, ExtentKind::Zero, ExtentKind::Data, ExtentKind::Zero];
        assert_eq!(first[..4].iter().map(|extent| extent.kind).collect::<Vec<_>>(), kinds);
        let last = drive.block_status(HUGE - 512, 512).await.expect("a status");
        assert_eq!(last[0].kind, ExtentKind::Zero);

        let give_up = Some(Order::Deallocate(HUGE - 512, 512));
        drives(&declared, give_up)[1].as_ref().expect("a drive").flush().await.expect("given up");
        assert_eq!(read(&grown[1], HUGE - 512, 512).await, [7; 512], "its backing shows");
        assert_eq!(read(&grown[1], MIB, 512).await, [0; 512]);
    });
}

#[test]
fn what_cannot_be_is_refused() {
    let kind = |made: Result<MemoryNode>| made.err().map(|error| error.kind());
    for make in [MemoryNode::new, MemoryNode::overlay] {
        for (size_bytes, block_size) in
            [(u64::MAX, 1), (SIZE_MAX_BYTES + 1, 1), (1000, 512), (1024, 3), (0, 0), (0, 8192)]
        {
            assert_eq!(kind(make(size_bytes, block_size)), Some(ErrorKind::Invalid));
        }
    }
    let plain = MemoryNode::new(1024, 512).expect("a node");
    let overlay = MemoryNode::overlay(1024, 512).expect("a node");
    let below = plain.info(&[]).expect("alone");
    assert!(overlay.info(&[]).is_ok() && overlay.info(&[below]).is_ok());
    assert!(plain.info(&[below]).is_err() && overlay.info(&[below; 2]).is_err());
    let overlay = Arc::new(overlay);
    on_worker(async move {
        for order in [
            Order::Resize(1025),
            Order::Resize(u64::MAX / 512 * 512),
            Order::Deallocate(0, 511),
            Order::Deallocate(256, 512),
            Order::Deallocate(512, 1024),
            Order::Deallocate(u64::MAX - 511, 512),
        ] {
            let drive = &drives(&[(&overlay, None, DriveUse::Writes)], Some(order))[0];
            let found = drive.as_ref().expect("a drive").flush().await;
            assert!(found.is_err_and(|error| error.kind() == ErrorKind::Invalid), "{order:?}");
        }
    });
}
