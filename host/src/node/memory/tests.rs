//! The driver against a model of bytes, through a real graph.

use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use proptest::prelude::*;

use super::*;
use crate::graph::{
    ChildDecl, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph, NodeDecl, Role,
};
use crate::io::{EngineChoice, EngineKind, run_on_thread};
use crate::limits::EXTENTS_MAX;
use crate::node::ExtentKind;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

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

/// A node of a chain, and what it is to hold.
struct Layer {
    memory: Arc<MemoryNode>,
    block_size: u64,
    is_overlay: bool,
    /// By byte; `None` where it has none of its own.
    own: Vec<Option<u8>>,
}

impl Layer {
    fn new(block_size: u32, size_bytes: u64, is_overlay: bool) -> Self {
        let make = if is_overlay { MemoryNode::overlay } else { MemoryNode::new };
        let size_bytes = size_bytes.next_multiple_of(block_size.into());
        let memory = Arc::new(make(size_bytes, block_size).expect("a node"));
        let own = vec![None; to_usize(size_bytes)];
        Self { memory, block_size: block_size.into(), is_overlay, own }
    }

    fn size_bytes(&self) -> u64 {
        self.own.len() as u64
    }

    /// Whole blocks around a range, or inside it.
    fn outer(&self, offset: u64, len: u64) -> std::ops::Range<usize> {
        let end = (offset + len).next_multiple_of(self.block_size);
        to_usize(offset / self.block_size * self.block_size)..to_usize(end)
    }

    fn inner(&self, offset: u64, len: u64) -> std::ops::Range<usize> {
        let start = offset.next_multiple_of(self.block_size);
        let end = (offset + len) / self.block_size * self.block_size;
        to_usize(start)..to_usize(end.max(start))
    }
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("a small number")
}

/// Layers from the base up.
struct Chain(Vec<Layer>);

impl Chain {
    /// A drive on the layer `at`, with what stands under it.
    fn drive(&self, at: usize, order: Option<Order>) -> LocalDrive {
        let declared: Vec<Declared<'_>> = (0..=at)
            .map(|layer| {
                let drive = if layer == at { DriveUse::Writes } else { DriveUse::None };
                (&self.0[layer].memory, layer.checked_sub(1), drive)
            })
            .collect();
        drives(&declared, order).pop().flatten().expect("a drive")
    }

    fn view(&self, at: usize) -> Vec<u8> {
        let below = at.checked_sub(1).map(|below| self.view(below)).unwrap_or_default();
        let own = self.0[at].own.iter().enumerate();
        own.map(|(at, own)| own.or_else(|| below.get(at).copied()).unwrap_or(0)).collect()
    }

    fn size_below(&self, at: usize) -> u64 {
        at.checked_sub(1).map_or(0, |below| self.0[below].size_bytes())
    }

    /// Allocates whole blocks around a range, as a write of it does, and puts `bytes` there.
    fn put(&mut self, at: usize, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let view = self.view(at);
        let layer = &mut self.0[at];
        for block in layer.outer(offset, bytes.len() as u64) {
            layer.own[block].get_or_insert(view[block]);
        }
        for (own, byte) in layer.own[to_usize(offset)..].iter_mut().zip(bytes) {
            *own = Some(*byte);
        }
    }

    async fn step(&mut self, step: &Step, number: usize) -> Result<()> {
        let at = step.layer % self.0.len();
        let (size_bytes, block_size) = (self.0[at].size_bytes(), self.0[at].block_size);
        let (offset, len) = step.range(size_bytes, self.size_below(at));
        let drive = self.drive(at, None);
        match step.kind {
            Kind::Write => {
                let bytes: Vec<u8> =
                    (offset..offset + len).map(|byte| (byte * 7) as u8 ^ number as u8).collect();
                drive.write(offset, Buf::copy_of(&bytes), WriteFlags::NONE).await?;
                self.put(at, offset, &bytes);
            }
            Kind::Zero | Kind::ZeroKept => {
                let no_unmap = step.kind == Kind::ZeroKept;
                drive.zero(offset, len, WriteFlags { no_unmap, ..WriteFlags::NONE }).await?;
                self.put(at, offset, &vec![0; to_usize(len)]);
            }
            Kind::Discard => {
                drive.discard(offset, len).await?;
                let range = self.0[at].inner(offset, len);
                let own = self.0[at].own[range].iter_mut();
                own.filter(|own| own.is_some()).for_each(|own| *own = Some(0));
            }
            Kind::Deallocate => {
                let range = self.0[at].inner(offset, len);
                let order = Order::Deallocate(range.start as u64, range.len() as u64);
                let done = self.drive(at, Some(order)).flush().await;
                if !self.0[at].is_overlay {
                    assert!(done.is_err_and(|error| error.kind() == ErrorKind::NotSupported));
                    return Ok(());
                }
                done?;
                self.0[at].own[range].fill(None);
            }
            Kind::Resize => {
                let next_bytes = (offset + step.len).next_multiple_of(block_size).min(300 * KIB);
                let next_bytes = next_bytes / block_size * block_size;
                self.drive(at, Some(Order::Resize(next_bytes))).flush().await?;
                let shown = self.size_below(at).next_multiple_of(block_size);
                let own = &mut self.0[at].own;
                own.resize(to_usize(next_bytes), None);
                for byte in size_bytes..shown.min(next_bytes) {
                    own[to_usize(byte)] = Some(0);
                }
            }
        }
        Ok(())
    }

    /// What is wrong with the layer `at`, if anything is.
    async fn check(&self, at: usize, step: &Step) -> std::result::Result<(), String> {
        let (layer, view, drive) = (&self.0[at], self.view(at), self.drive(at, None));
        let size_bytes = layer.size_bytes();
        let wrong = |error: Error| format!("layer {at}: {error}");
        let info = drive.info().map_err(wrong)?;
        if info.size_bytes != size_bytes {
            return Err(format!("layer {at} has {} bytes, not {size_bytes}", info.size_bytes));
        }
        for (offset, len) in [(0, size_bytes), step.range(size_bytes, self.size_below(at))] {
            let got = drive.read(offset, BufMut::new(to_usize(len))).await.map_err(wrong)?;
            let expected = view[to_usize(offset)..].iter();
            if let Some(byte) = got.iter().zip(expected).position(|(got, byte)| got != byte) {
                return Err(format!("layer {at} differs at {}", offset + byte as u64));
            }
        }
        let mut from = 0;
        while from < size_bytes {
            for extent in drive.block_status(from, size_bytes - from).await.map_err(wrong)? {
                for byte in from..from + extent.len {
                    self.check_kind(at, byte, extent.kind, view[to_usize(byte)])?;
                }
                from += extent.len;
            }
        }
        Ok(())
    }

    fn check_kind(
        &self,
        at: usize,
        byte: u64,
        kind: ExtentKind,
        shown: u8,
    ) -> std::result::Result<(), String> {
        let own = self.0[at].own[to_usize(byte)].is_some();
        let is_right = match (self.0[at].is_overlay, kind) {
            // It knows of chunks alone.
            (false, kind) => kind == ExtentKind::Data || kind == ExtentKind::Hole && shown == 0,
            (true, ExtentKind::Data) => own,
            (true, ExtentKind::Zero) => own && shown == 0,
            (true, ExtentKind::Unallocated) => !own && byte < self.size_below(at),
            (true, ExtentKind::Hole) => !own && byte >= self.size_below(at) && shown == 0,
            (true, ExtentKind::Unreadable) => false,
        };
        if is_right { Ok(()) } else { Err(format!("layer {at}: byte {byte} is no {kind:?}")) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Write,
    Zero,
    ZeroKept,
    Discard,
    Deallocate,
    Resize,
}

#[derive(Clone, Debug)]
struct Step {
    layer: usize,
    kind: Kind,
    /// What the range is near to: chunks, ends.
    near: usize,
    delta: i64,
    len: u64,
}

impl Step {
    fn range(&self, size_bytes: u64, size_below: u64) -> (u64, u64) {
        let chunk = chunks::CHUNK_BYTES as u64;
        let near = [0, chunk, 2 * chunk, size_bytes / 2, size_bytes, size_below][self.near];
        let offset = near.saturating_add_signed(self.delta).min(size_bytes);
        (offset, self.len.min(size_bytes - offset))
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![
        6 => Just(Kind::Write),
        2 => Just(Kind::Zero),
        1 => Just(Kind::ZeroKept),
        3 => Just(Kind::Discard),
        3 => Just(Kind::Deallocate),
        2 => Just(Kind::Resize),
    ];
    let delta = prop_oneof![Just(0_i64), -40..40_i64, -9000..9000_i64];
    let len = prop_oneof![3 => 0..40_u64, 3 => 0..12_000_u64, 1 => 0..200_000_u64];
    let step = (0..3_usize, kind, 0..6_usize, delta, len)
        .prop_map(|(layer, kind, near, delta, len)| Step { layer, kind, near, delta, len });
    prop::collection::vec(step, 1..24)
}

fn layers() -> impl Strategy<Value = Vec<(u32, u64)>> {
    let size = prop_oneof![Just(150 * KIB), 0..40 * KIB, 120 * KIB..200 * KIB];
    let layer = (prop::sample::select(vec![1_u32, 512, 4096]), size);
    prop::collection::vec(layer, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    /// Chains of one to three nodes of any block sizes, each shorter or longer than the one below; every
    /// step changes any of them, and each is looked at after it.
    #[test]
    fn chains_are_as_the_model(
        base_is_overlay: bool,
        layers in layers(),
        steps in steps(),
    ) {
        let found: std::result::Result<(), String> = on_worker(async move {
            let layer = |(at, (block_size, size_bytes)): (usize, &(u32, u64))| {
                Layer::new(*block_size, *size_bytes, at > 0 || base_is_overlay)
            };
            let mut chain = Chain(layers.iter().enumerate().map(layer).collect());
            for (number, step) in steps.iter().enumerate() {
                let done = chain.step(step, number).await;
                done.map_err(|error| format!("step {number}: {error}"))?;
                for at in 0..chain.0.len() {
                    let found = chain.check(at, step).await;
                    found.map_err(|wrong| format!("after step {number}: {wrong}"))?;
                }
            }
            Ok(())
        });
        prop_assert_eq!(found, Ok(()));
    }
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
