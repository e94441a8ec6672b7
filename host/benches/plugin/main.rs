//! What does a filter cost, native against plugin?
//!
//! Requests of 4 KiB on a null node, 1, 8 and 32 in one turn of one worker: without a filter, through
//! the native filter, through the plugin. The difference between the last two is what the sandbox adds.
//! `copy-on-read` is over a child that has all of its bytes: by its rule the plugin is not called there.
//! A table of medians and best samples against the targets follows the criterion figures; then copies that
//! plugins ask for (`copies.rs`), and loading and restarting them (`lives.rs`). `--table` prints these alone.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

mod copies;
mod lives;
mod slab;

use std::future::Future;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use blockloom::error::Result;
use blockloom::filter::{CopyOnReadNode, Filter, PassNode};
use blockloom::graph::{
    ChildDecl, Cx, GraphCell, GraphDecl, LocalDrive, LocalGraph, PermissionSet,
};
use blockloom::io::{BufMut, EngineChoice, EngineKind, run_on_thread, spawn};
use blockloom::node::Node;
use blockloom::plugin::measure::{self, Work, over_null};
use blockloom::plugin::{Grants, Instance, PluginNode, PluginRuntime};
use blockloom_plugin_throttle::ThrottleConfig;

#[global_allocator]
static ALLOCATOR: blockloom::cli::Allocator = blockloom::cli::Allocator;

const SAMPLES: usize = 20;
const REQUESTS_PER_SAMPLE: usize = 32 * 256;

fn drive_over(filter: Option<Arc<dyn Node>>, grants: PermissionSet) -> LocalDrive {
    let filter =
        filter.map(|driver| (driver, vec![ChildDecl { grants, ..ChildDecl::filtered("null") }]));
    over_null(filter).expect("a drive")
}

/// The graph on this worker, with its nodes started.
fn local(decl: GraphDecl) -> Rc<LocalGraph> {
    let graph = decl.build().expect("a graph");
    for node in graph.nodes() {
        let infos: Vec<_> =
            node.edges().iter().map(|edge| *graph.nodes()[edge.child()].info()).collect();
        node.driver().start(node.name(), node.info(), &infos).expect("a node that starts");
    }
    let local = Rc::new(LocalGraph::new(Arc::new(GraphCell::with_workers(graph, 1)), 0));
    for node in local.current().nodes() {
        node.driver().run(&local, node.name());
    }
    local
}

/// Runs `count` reads, `batch` in each turn, and returns the time of one.
async fn run(drive: &LocalDrive, batch: usize, count: usize) -> Duration {
    measure::run(drive, Work::Read, batch, count).await.expect("reads")
}

/// Runs `count` requests, `batch` in each turn.
async fn together<F>(batch: usize, count: usize, request: impl Fn(usize) -> F)
where
    F: Future<Output = ()> + 'static,
{
    for round in 0..count / batch {
        let done = Rc::new(std::cell::Cell::new(0));
        let waker: Rc<std::cell::Cell<Option<std::task::Waker>>> = Rc::default();
        for slot in 0..batch {
            let (done, waker) = (Rc::clone(&done), Rc::clone(&waker));
            let request = request(round * batch + slot);
            spawn(async move {
                request.await;
                done.set(done.get() + 1);
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
            });
        }
        std::future::poll_fn(|cx| {
            if done.get() == batch {
                return Poll::Ready(());
            }
            waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

struct Contestant {
    name: &'static str,
    drive: LocalDrive,
}

/// A native filter that lets the turn end before it forwards: what any filter costs that judges by turn.
struct YieldNode;

impl Filter for YieldNode {
    fn driver(&self) -> &'static str {
        "yield"
    }

    async fn read(&self, cx: Cx<'_>, offset: u64, buf: BufMut) -> Result<BufMut> {
        let mut yielded = false;
        std::future::poll_fn(|task| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            task.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        cx.child(0)?.read(offset, buf).await
    }
}

fn contestants() -> Vec<Contestant> {
    let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
    let plugin = |name: &str, config: &str| -> Option<Arc<dyn Node>> {
        let instance = Instance::bundled(&runtime, name, config).expect("a bundled plugin");
        Some(Arc::new(PluginNode::new(&instance).expect("a node")))
    };
    let limited = r#"{"iops":16000000000,"burst":"1s"}"#;
    let group = || {
        blockloom::filter::ThrottleGroup::new(&ThrottleConfig::from_json(limited).expect("limits"))
    };
    let drive = |filter| drive_over(filter, PermissionSet::NONE);
    let copies = |filter| drive_over(Some(filter), PermissionSet::HARMLESS);
    let copy_on_read: Arc<dyn Node> = {
        let instance = Instance::bundled(&runtime, "copy-on-read", "{}").expect("a bundled plugin");
        let granted = Grants::READ.union(Grants::WRITE_UNCHANGED);
        let children = [("file".to_owned(), granted)];
        Arc::new(PluginNode::with_children(&instance, &children).expect("a node"))
    };
    vec![
        Contestant { name: "no filter", drive: drive(None) },
        Contestant { name: "pass native", drive: drive(Some(Arc::new(PassNode))) },
        Contestant { name: "yield native", drive: drive(Some(Arc::new(YieldNode))) },
        Contestant { name: "pass plugin", drive: drive(plugin("pass", "{}")) },
        Contestant {
            name: "throttle native",
            drive: drive(Some(Arc::new(blockloom::filter::ThrottleNode::new(group())))),
        },
        Contestant { name: "throttle plugin", drive: drive(plugin("throttle", limited)) },
        Contestant {
            name: "copy-on-read native",
            drive: copies(Arc::new(CopyOnReadNode::default())),
        },
        Contestant { name: "copy-on-read plugin", drive: copies(copy_on_read) },
    ]
}

fn on_worker(future: impl Future<Output = ()> + 'static) {
    run_on_thread(EngineChoice::Exactly(EngineKind::Threads), future).expect("a worker");
}

async fn table() {
    hops().await;
    let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
    copies::table(&runtime).await;
    lives::table(&runtime).await;
}

async fn hops() {
    let contestants = contestants();
    println!("\n{:<22}{:>8}{:>12}{:>12}   (ns a request)", "filter", "a turn", "best", "median");
    let mut nop = NopCall::new();
    let mut nop_ns = f64::MAX;
    let mut best = std::collections::BTreeMap::new();
    for batch in [1, 8, 32] {
        let mut samples = vec![Vec::new(); contestants.len()];
        for _ in 0..=SAMPLES {
            for (at, contestant) in contestants.iter().enumerate() {
                samples[at].push(run(&contestant.drive, batch, REQUESTS_PER_SAMPLE).await);
            }
            nop_ns = nop_ns.min(nop.sample_ns());
        }
        for (contestant, samples) in contestants.iter().zip(&mut samples) {
            // The first sample warms up.
            samples.remove(0);
            samples.sort();
            let (least, median) = (samples[0].as_nanos(), samples[SAMPLES / 2].as_nanos());
            best.insert((contestant.name, batch), least);
            println!("{:<22}{batch:>8}{least:>12}{median:>12}", contestant.name);
        }
    }
    let added = |name: &str, batch| {
        let of = |kind: &str| {
            let key = best.iter().find(|((n, b), _)| *n == format!("{name} {kind}") && *b == batch);
            key.map_or(0.0, |(_, ns)| *ns as f64)
        };
        of("plugin") - of("native")
    };
    println!("\na nop component call (best): {nop_ns:.0} ns");
    for batch in [1, 32] {
        let what = format!("copy-on-read plugin, not called, adds at {batch} a turn");
        verdict(&what, added("copy-on-read", batch), 30.0, "ns");
    }
    for name in ["pass", "throttle"] {
        verdict(&format!("{name} plugin adds at 32 a turn"), added(name, 32), 90.0, "ns");
        let (what, limit) = (format!("{name} plugin adds at 1 a turn"), 1.6 * nop_ns);
        verdict(&what, added(name, 1), limit, "ns");
    }
}

fn verdict(what: &str, measured: f64, limit: f64, unit: &str) {
    let word = if measured <= limit { "PASS  " } else { "MISSED" };
    let digits = if unit == "ns" { 0 } else { 2 };
    println!("{word}  {what}: {measured:.digits$} {unit} (limit {limit:.digits$})");
}

/// The least that any component call costs here: a flat export that does nothing.
struct NopCall {
    store: wasmtime::Store<()>,
    nop: wasmtime::component::TypedFunc<(u64, u64, u64, u64, u64), (u64,)>,
}

impl NopCall {
    fn new() -> Self {
        // A call takes longer the more functions a module has: as many as `pass`.
        let others: String = (0..141).map(|at| format!("(func (export \"f{at}\"))")).collect();
        let wat = format!(
            r#"(component
            (core module $m {others}
                (func (export "nop") (param i64 i64 i64 i64 i64) (result i64) i64.const 1))
            (core instance $i (instantiate $m))
            (func (export "nop") (param "a" u64) (param "b" u64) (param "c" u64) (param "d" u64)
                (param "e" u64) (result u64) (canon lift (core func $i "nop"))))"#
        );
        let mut config = wasmtime::Config::new();
        config.concurrency_support(false).epoch_interruption(true);
        let engine = wasmtime::Engine::new(&config).expect("an engine");
        let binary = wat::parse_str(&wat).expect("valid text");
        let component = wasmtime::component::Component::new(&engine, binary).expect("a component");
        let mut store = wasmtime::Store::new(&engine, ());
        store.set_epoch_deadline(u64::MAX / 2);
        let linker = wasmtime::component::Linker::new(&engine);
        let instance = linker.instantiate(&mut store, &component).expect("an instance");
        let nop = instance.get_typed_func(&mut store, "nop").expect("the export");
        Self { store, nop }
    }

    fn sample_ns(&mut self) -> f64 {
        const CALLS: u32 = 8192;
        let start = Instant::now();
        for call in 0..CALLS {
            let arguments = (call.into(), 1, 2, 3, 4);
            black_box(self.nop.call(&mut self.store, arguments).expect("a call"));
        }
        start.elapsed().as_nanos() as f64 / f64::from(CALLS)
    }
}

fn criterion_figures(c: &mut criterion::Criterion) {
    for batch in [1_usize, 8, 32] {
        let mut group = c.benchmark_group(format!("read-4k-null/{batch}-a-turn"));
        group.throughput(criterion::Throughput::Elements(1));
        for at in 0..contestants().len() {
            let name = contestants()[at].name;
            group.bench_function(name, |b| {
                b.iter_custom(|iterations| {
                    let (send, receive) = std::sync::mpsc::channel();
                    on_worker(async move {
                        let contestant = contestants().swap_remove(at);
                        let count = usize::try_from(iterations).expect("few").max(batch);
                        run(&contestant.drive, batch, 32 * batch).await;
                        let one = run(&contestant.drive, batch, count).await;
                        send.send(one).expect("a receiver");
                    });
                    receive.recv().expect("a figure") * u32::try_from(iterations).expect("few")
                });
            });
        }
        group.finish();
    }
}

/// Runs one contestant for a profiler: `--profile NAME BATCH COUNT`, or `--profile copies native|plugin ROUNDS`.
async fn profile(arguments: Vec<String>) {
    if let [what, name, rounds] = arguments.as_slice()
        && what == "copies"
    {
        if name == "nop" {
            let mut nop = NopCall::new();
            let best = (0..20).map(|_| nop.sample_ns()).fold(f64::MAX, f64::min);
            println!("nop: {best} ns");
            return;
        }
        return copies::profile(name == "plugin", rounds.parse().expect("a number")).await;
    }
    let [name, batch, count] = arguments.as_slice() else { panic!("--profile NAME BATCH COUNT") };
    let (batch, count) = (batch.parse().expect("a number"), count.parse().expect("a number"));
    let contestant = contestants().into_iter().find(|it| it.name == name).expect("a contestant");
    println!("{name}: {} ns", run(&contestant.drive, batch, count).await.as_nanos());
}

fn main() {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--profile");
    if arguments.next().is_some() {
        let rest: Vec<String> = arguments.take_while(|argument| argument != "--bench").collect();
        return on_worker(profile(rest));
    }
    let table_only = std::env::args().any(|argument| argument == "--table");
    if !table_only {
        let mut criterion = criterion::Criterion::default().configure_from_args();
        criterion_figures(&mut criterion);
        criterion.final_summary();
    }
    on_worker(table());
    // As hosts do their I/O.
    run_on_thread(EngineChoice::default(), copies::files()).expect("a worker");
}
