//! What does the core cost on the way of a write: marks, gate, guards, claims?
//!
//! Writes of 4 KiB to a null node through four native filters, one at a time, each contestant beside the
//! one that lacks just what is asked for; samples of all contestants take turns. `cargo bench --bench
//! core` runs criterion's figures, then prints a table of the best samples against the standing targets;
//! `-- --table` prints the table alone. A missed target is printed, not failed: a shared machine proves
//! nothing.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use blockloom::bitmap::{BitmapName, Granularity};
use blockloom::filter::PassNode;
use blockloom::graph::{
    BitmapDecl, BitmapScope, ChildDecl, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph,
    NodeDecl, OwnAccord, PermissionSet, measure,
};
use blockloom::io::{Buf, EngineChoice, EngineKind, run_on_thread};
use blockloom::node::{NullNode, WriteFlags};

#[global_allocator]
static ALLOCATOR: blockloom::cli::Allocator = blockloom::cli::Allocator;

const SIZE_BYTES: u64 = 1 << 30;
const WRITE_BYTES: u64 = 4096;
const WRITES_PER_SAMPLE: u64 = 20_000;
const SAMPLES: usize = 20;
const FILTERS: usize = 4;
const WORKERS: usize = 2;

/// What stands above the null node `disk`.
#[derive(Clone, Copy, Default)]
struct Shape {
    /// A bitmap of the drive and one of each filter.
    bitmaps: bool,
    /// A node beside the drive's path copies from the disk: it is a source.
    copied_from: bool,
}

fn null() -> Arc<NullNode> {
    Arc::new(NullNode::new(SIZE_BYTES, false, Duration::ZERO))
}

fn bitmap(scope: BitmapScope) -> BitmapDecl {
    let (name, granularity) = (BitmapName::new("b").expect("a name"), Granularity::DEFAULT);
    BitmapDecl { scope, name, granularity, enabled: true }
}

/// Drive `d` on filters `f4` to `f1` on the disk; `claims` is a filter that may write unchanged.
fn graph(shape: Shape) -> Arc<GraphCell> {
    let mut decl = GraphDecl::default();
    let mut node = |name: String, driver: Arc<dyn blockloom::node::Node>, children| {
        decl.nodes.push(NodeDecl { name, driver, children });
    };
    node("disk".into(), null(), vec![]);
    let mut root = "disk".to_owned();
    for filter in 1..=FILTERS {
        let name = format!("f{filter}");
        node(name.clone(), Arc::new(PassNode), vec![ChildDecl::filtered(root)]);
        root = name;
    }
    if shape.copied_from {
        let grants = PermissionSet::CONSISTENT_READ.union(PermissionSet::WRITE_UNCHANGED);
        let child = ChildDecl { grants, ..ChildDecl::filtered("disk") };
        node("claims".into(), Arc::new(PassNode), vec![child]);
    }
    if shape.bitmaps {
        decl.bitmaps.push(bitmap(BitmapScope::Drive("d".into())));
        for filter in 1..=FILTERS {
            decl.bitmaps.push(bitmap(BitmapScope::Node(format!("f{filter}").into())));
        }
    }
    let drive = DriveDecl { id: "d".into(), root: Some(root), writable: true, only_shows: false };
    decl.drives.push(drive);
    let graph = decl.build().expect("a graph");
    for node in graph.nodes() {
        let infos: Vec<_> =
            node.edges().iter().map(|edge| *graph.nodes()[edge.child()].info()).collect();
        node.driver().start(node.name(), node.info(), &infos).expect("a node that starts");
    }
    Arc::new(GraphCell::with_workers(graph, WORKERS))
}

fn open(cell: &Arc<GraphCell>, worker: usize) -> LocalDrive {
    let local = Rc::new(LocalGraph::new(Arc::clone(cell), worker));
    LocalDrive::open(&local, "d").expect("a drive")
}

fn offset(turn: u64) -> u64 {
    turn * WRITE_BYTES % (64 << 20)
}

/// One after the other; the time of one.
async fn writes(drive: &LocalDrive, count: u64) -> f64 {
    let buf = Buf::zeros(WRITE_BYTES as usize);
    let start = Instant::now();
    for turn in 0..count {
        drive.write(offset(turn), buf.clone(), WriteFlags::NONE).await.expect("a write");
    }
    start.elapsed().as_nanos() as f64 / count as f64
}

/// Writes back what was read, claimed to be unchanged.
async fn claims(own: &OwnAccord, count: u64) -> f64 {
    let bytes = own.read_proven(0, 0..WRITE_BYTES).await.expect("bytes");
    let start = Instant::now();
    for _ in 0..count {
        own.write_proven(0, &bytes).await.expect("a proven write");
    }
    start.elapsed().as_nanos() as f64 / count as f64
}

fn on_worker(future: impl Future<Output = ()> + 'static) {
    run_on_thread(EngineChoice::Exactly(EngineKind::Threads), future).expect("a worker");
}

/// Nanoseconds of one of `count` rounds.
fn rounds(count: u32, mut round: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..count).for_each(|_| round());
    start.elapsed().as_nanos() as f64 / f64::from(count)
}

/// Best of all samples, by contestant. They take turns, so that a slow moment of the machine meets all.
struct Best<const N: usize>([f64; N]);

impl<const N: usize> Best<N> {
    fn new() -> Self {
        Self([f64::MAX; N])
    }

    fn add(&mut self, samples: [f64; N]) {
        for (best, sample) in self.0.iter_mut().zip(samples) {
            *best = best.min(sample);
        }
    }
}

fn verdict(what: &str, measured: f64, limit: f64, unit: &str, is_met: bool) {
    let word = if is_met { "PASS" } else { "FAIL" };
    println!("{word}  {what}: {measured:.1} {unit} (to reach: {limit} {unit})");
}

fn at_most(what: &str, measured: f64, limit: f64) {
    verdict(what, measured, limit, "ns", measured <= limit);
}

async fn table() {
    let plain = graph(Shape::default());
    let marked = graph(Shape { bitmaps: true, ..Shape::default() });
    let copied_from = graph(Shape { copied_from: true, ..Shape::default() });
    let drives = [&plain, &marked, &copied_from].map(|cell| open(cell, 0));
    let own = {
        let local = Rc::new(LocalGraph::new(Arc::clone(&copied_from), 0));
        OwnAccord::open(&local, "claims").expect("a node that acts")
    };
    let mut best = Best::new();
    for _ in 0..=SAMPLES {
        let mut samples = [0.0; 4];
        for (sample, drive) in samples.iter_mut().zip(&drives) {
            *sample = writes(drive, WRITES_PER_SAMPLE).await;
        }
        samples[3] = claims(&own, WRITES_PER_SAMPLE).await;
        best.add(samples);
    }
    let [plain_ns, marked_ns, crossing_ns, claim_ns] = best.0;
    println!("\na write through {FILTERS} filters, ns (best of {SAMPLES})");
    println!(
        "  without bitmaps {plain_ns:.0}, with 5 {marked_ns:.0}, into a source {crossing_ns:.0}"
    );
    println!("  a claimed write of a filter's own {claim_ns:.0}");

    let (gate, mut gate_ns) = (measure::gate(), f64::MAX);
    let (guards, mut entry_ns) = (measure::Guards::new(WORKERS), f64::MAX);
    let (mut operation_ns, mut claimed_ns) = (f64::MAX, f64::MAX);
    for _ in 0..SAMPLES {
        gate_ns = gate_ns.min(rounds(200_000, || gate.pass(0)));
        entry_ns = entry_ns.min(rounds(200_000, || guards.enter_and_leave(0, 4096..8192)));
        claimed_ns = claimed_ns.min(rounds(50_000, || guards.claim(0, 4096..8192)));
        operation_ns = operation_ns.min(rounds(50_000, || guards.operate(0, 4096..8192)));
    }
    println!(
        "  gate {gate_ns:.1}, guards in and out {entry_ns:.1}, an operation {operation_ns:.1}"
    );
    at_most("marks of 5 bitmaps, granules dirty", marked_ns - plain_ns, 40.0);
    at_most("gate where nothing copies", gate_ns, 10.0);
    at_most("gate and guards where something copies", gate_ns + entry_ns, 60.0);
    at_most("the same, in the path of a write", gate_ns + crossing_ns - plain_ns, 60.0);
    let plain_ns = to_a_disk().await;
    at_most("a claimed write, over a plain one", claim_ns - plain_ns, 100.0);
}

/// A plain write straight to a disk: as many nodes as a claimed write of a filter passes.
async fn to_a_disk() -> f64 {
    let mut decl = GraphDecl::default();
    decl.nodes.push(NodeDecl { name: "disk".into(), driver: null(), children: vec![] });
    let drive =
        DriveDecl { id: "d".into(), root: Some("disk".into()), writable: true, only_shows: false };
    decl.drives.push(drive);
    let cell = Arc::new(GraphCell::with_workers(decl.build().expect("a graph"), WORKERS));
    let drive = open(&cell, 0);
    let mut best = f64::MAX;
    for _ in 0..SAMPLES {
        best = best.min(writes(&drive, WRITES_PER_SAMPLE).await);
    }
    best
}

/// Writes a second by one worker on each of `cells`, which may be one and the same.
fn throughput(cells: &[&Arc<GraphCell>]) -> f64 {
    let start = Arc::new(Barrier::new(cells.len()));
    let threads: Vec<_> = cells
        .iter()
        .enumerate()
        .map(|(worker, cell)| {
            let (cell, start) = (Arc::clone(cell), Arc::clone(&start));
            std::thread::spawn(move || {
                let (send, receive) = std::sync::mpsc::channel();
                on_worker(async move {
                    let drive = open(&cell, worker);
                    writes(&drive, 1000).await;
                    start.wait();
                    let one = writes(&drive, 5 * WRITES_PER_SAMPLE).await;
                    send.send(one).expect("a receiver");
                });
                receive.recv().expect("a figure")
            })
        })
        .collect();
    threads.into_iter().map(|thread| 1e9 / thread.join().expect("a worker")).sum()
}

/// Do two workers on one drive get in each other's way? The control is what the machine gives to two
/// workers that share nothing: two processors may be one core.
fn scaling() {
    for copied_from in [false, true] {
        let [cell, other] = [(); 2].map(|()| graph(Shape { bitmaps: true, copied_from }));
        let mut ratios: Vec<[f64; 2]> = (0..SAMPLES)
            .map(|_| {
                let one = throughput(&[&cell]);
                [throughput(&[&cell, &cell]) / one, throughput(&[&cell, &other]) / one]
            })
            .collect();
        let mut median = |which: usize| {
            ratios.sort_by(|a, b| a[which].total_cmp(&b[which]));
            ratios[SAMPLES / 2][which]
        };
        let (shared, apart) = (median(0), median(1));
        let what = if copied_from { ", into a source" } else { "" };
        println!("two workers over one{what}: {shared:.2}; on a drive each: {apart:.2} (medians)");
        verdict(&format!("two workers on one drive{what}"), shared, 1.8, "x", shared >= 1.8);
    }
}

fn criterion_figures(c: &mut criterion::Criterion) {
    let shapes = [
        ("plain", Shape::default()),
        ("5 bitmaps", Shape { bitmaps: true, ..Shape::default() }),
        ("into a source", Shape { copied_from: true, ..Shape::default() }),
    ];
    let mut group = c.benchmark_group("write-4k-null-4-filters");
    for (name, shape) in shapes {
        group.bench_function(name, |b| {
            b.iter_custom(|count| {
                let (send, receive) = std::sync::mpsc::channel();
                on_worker(async move {
                    let drive = open(&graph(shape), 0);
                    send.send(writes(&drive, count).await).expect("a receiver");
                });
                let one_ns = receive.recv().expect("a figure");
                Duration::from_nanos((one_ns * count as f64) as u64)
            });
        });
    }
    group.finish();
}

/// Claims alone, for a profiler: `--profile COUNT`.
async fn profile(count: u64) {
    let cell = graph(Shape { copied_from: true, ..Shape::default() });
    let own = OwnAccord::open(&Rc::new(LocalGraph::new(cell, 0)), "claims").expect("a node");
    println!("a claimed write: {:.0} ns", claims(&own, count).await);
}

fn main() {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--profile");
    if arguments.next().is_some() {
        let count = arguments.next().and_then(|count| count.parse().ok());
        return on_worker(profile(count.expect("--profile COUNT")));
    }
    if !std::env::args().any(|argument| argument == "--table") {
        let mut criterion = criterion::Criterion::default().configure_from_args();
        criterion_figures(&mut criterion);
        criterion.final_summary();
    }
    on_worker(table());
    scaling();
}
