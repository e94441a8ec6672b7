//! The native throttle against the plugin: the same requests start at the same times.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blockloom_abi::Kind;
use blockloom_plugin_throttle::ThrottleConfig;

use super::{PassNode, ThrottleGroup, ThrottleNode};
use crate::error::Result;
use crate::graph::{
    ChildDecl, Cx, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph, NodeDecl,
};
use crate::io::sim::{Faults, Random, Simulation};
use crate::io::{Buf, BufMut, Time, sleep_until, spawn, turn_now};
use crate::node::{Caps, Extent, Node, NodeFuture, NodeInfo, NullNode, WriteFlags};
use crate::plugin::{Instance, PluginLimits, PluginModule, PluginNode, PluginRuntime};

const BLOCK: u64 = 64 << 10;
const REQUESTS: u64 = 400;
const DRIVES: usize = 3;
/// Seeds in a usual run.
const SEEDS: u64 = 12;

/// By the block that a request is for: when it started.
type Starts = Arc<Mutex<BTreeMap<u64, Time>>>;

/// A disk that notes when its requests start.
struct NotingNode(Starts);

impl NotingNode {
    fn note(&self, offset: u64) {
        let mut starts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let former = starts.insert(offset / BLOCK, turn_now());
        assert_eq!(former, None, "it started twice");
    }
}

impl Node for NotingNode {
    fn driver(&self) -> &'static str {
        "noting"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        let null = NullNode::new(REQUESTS * BLOCK, false, Duration::ZERO).info(children)?;
        Ok(NodeInfo { caps: Caps::FILTER, ..null })
    }

    fn read<'a>(&'a self, _: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        self.note(offset);
        Box::pin(async { Ok(buf) })
    }

    fn write<'a>(&'a self, _: Cx<'a>, offset: u64, _: Buf, _: WriteFlags) -> NodeFuture<'a, ()> {
        self.note(offset);
        Box::pin(async { Ok(()) })
    }

    fn zero<'a>(&'a self, _: Cx<'a>, offset: u64, _: u64, _: WriteFlags) -> NodeFuture<'a, ()> {
        self.note(offset);
        Box::pin(async { Ok(()) })
    }

    fn discard<'a>(&'a self, _: Cx<'a>, offset: u64, _: u64) -> NodeFuture<'a, ()> {
        self.note(offset);
        Box::pin(async { Ok(()) })
    }

    fn flush<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn block_status<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        PassNode.block_status(cx, at, len)
    }
}

/// A request: how long after the one before it, on which drive.
#[derive(Clone, Copy)]
struct Arrival {
    after_ns: u64,
    drive: usize,
    kind: Kind,
    len: u64,
}

fn arrivals(random: &mut Random) -> Vec<Arrival> {
    let kinds = [Kind::Read, Kind::Read, Kind::Write, Kind::Write, Kind::Zero, Kind::Discard];
    let mut arrival = |_| Arrival {
        after_ns: if random.one_in(20) { random.below(200_000_000) } else { random.below(400_000) },
        // The first is busier.
        drive: (random.below(DRIVES as u64 + 2) as usize).saturating_sub(2),
        kind: random.pick(&kinds).unwrap_or(Kind::Read),
        len: 512 * random.within(1..BLOCK / 512 + 1),
    };
    (0..REQUESTS).map(&mut arrival).collect()
}

fn config(random: &mut Random) -> String {
    let mut config = Vec::new();
    for (quantity, rate) in [("iops", 1000), ("bps", 30 << 20)] {
        let directions: &[&str] = match random.below(4) {
            0 => continue,
            1 => &["-read", "-write"],
            2 => &["-write"],
            _ => &[""],
        };
        for direction in directions {
            let rate = random.within(rate / 2..2 * rate);
            config.push(format!("\"{quantity}{direction}\":{rate}"));
            if random.one_in(3) {
                config.push(format!("\"{quantity}{direction}-max\":{}", rate * 3 / 2));
                if random.one_in(2) {
                    config.push(format!("\"{quantity}{direction}-max-length\":\"2s\""));
                }
            }
        }
    }
    config.push(format!("\"burst\":\"{}ms\"", random.below(20)));
    format!("{{{}}}", config.join(","))
}

async fn run(drive: LocalDrive, at: u64, it: Arrival) -> Result<()> {
    let flags = WriteFlags::default();
    match it.kind {
        Kind::Read => drive.read(at, BufMut::new(it.len as usize)).await.map(drop),
        Kind::Write => drive.write(at, Buf::zeros(it.len as usize), flags).await,
        Kind::Zero => drive.zero(at, it.len, flags).await,
        _ => drive.discard(at, it.len).await,
    }
}

/// When each request starts behind throttles of one group.
fn starts(seed: u64, arrivals: &[Arrival], throttles: Vec<Arc<dyn Node>>) -> BTreeMap<u64, Time> {
    let starts = Starts::default();
    let mut decl = GraphDecl::default();
    for (index, driver) in throttles.into_iter().enumerate() {
        let (disk, slow) = (format!("disk{index}"), format!("slow{index}"));
        let noting = Arc::new(NotingNode(Arc::clone(&starts)));
        decl.nodes.push(NodeDecl { name: disk.clone(), driver: noting, children: vec![] });
        let children = vec![ChildDecl::filtered(disk)];
        decl.nodes.push(NodeDecl { name: slow.clone(), driver, children });
        let (id, root) = (format!("d{index}"), Some(slow));
        decl.drives.push(DriveDecl { id, root, writable: true, only_shows: false });
    }
    let simulation = Simulation::new(seed);
    simulation.set_faults(Faults::HARMLESS);
    let (graph, arrivals) = (decl.build().expect("a graph"), arrivals.to_vec());
    let done = simulation.run(async move {
        for node in graph.nodes() {
            let infos: Vec<_> =
                node.edges().iter().map(|edge| *graph.nodes()[edge.child()].info()).collect();
            node.driver().start(node.name(), node.info(), &infos).expect("a node that starts");
        }
        let graph = Rc::new(LocalGraph::new(Arc::new(GraphCell::new(graph)), 0));
        let left = Rc::new(Cell::new(arrivals.len()));
        for (block, arrival) in arrivals.into_iter().enumerate() {
            sleep_until(turn_now() + Duration::from_nanos(arrival.after_ns)).await;
            let drive = LocalDrive::open(&graph, &format!("d{}", arrival.drive)).expect("a drive");
            let left = Rc::clone(&left);
            spawn(async move {
                run(drive, block as u64 * BLOCK, arrival).await.expect("a request");
                left.set(left.get() - 1);
            });
        }
        while left.get() > 0 {
            sleep_until(turn_now() + Duration::from_millis(10)).await;
        }
    });
    assert_eq!(done, Ok(()), "seed {seed}");
    let starts = std::mem::take(&mut *starts.lock().unwrap_or_else(PoisonError::into_inner));
    assert_eq!(starts.len(), arrivals_len(), "seed {seed}");
    starts
}

fn arrivals_len() -> usize {
    usize::try_from(REQUESTS).expect("few")
}

/// More seeds with `BLOCKLOOM_SEEDS=N`.
#[test]
fn the_twins_decide_alike() {
    let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
    let module = Arc::new(PluginModule::load_bundled(&runtime, "throttle").expect("a plugin"));
    let seeds = std::env::var("BLOCKLOOM_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    let mut waited = 0;
    for seed in 0..seeds.unwrap_or(SEEDS) {
        let mut random = Random::new(seed);
        let (arrivals, config) = (arrivals(&mut random), config(&mut random));
        let group = ThrottleGroup::new(&ThrottleConfig::from_json(&config).expect("valid"));
        let native = (0..DRIVES).map(|_| Arc::new(ThrottleNode::new(group.clone())) as _);
        let native = starts(seed, &arrivals, native.collect());
        let instance = Instance::new(&module, &config, PluginLimits::default()).expect("valid");
        let plugin = |_| Arc::new(PluginNode::new(&instance).expect("a node")) as Arc<dyn Node>;
        let plugin = starts(seed, &arrivals, (0..DRIVES).map(plugin).collect());
        let begin = |starts: &BTreeMap<u64, Time>| starts[&0];
        for (block, native_at) in &native {
            let (native, plugin) =
                (native_at.since(begin(&native)), plugin[block].since(begin(&plugin)));
            assert_eq!(native, plugin, "seed {seed}, {config}: request {block}");
        }
        let mut arrived = Duration::ZERO;
        for (block, arrival) in arrivals.iter().enumerate().skip(1) {
            arrived += Duration::from_nanos(arrival.after_ns);
            waited += usize::from(native[&(block as u64)].since(begin(&native)) > arrived);
        }
    }
    assert!(waited > 1000, "{waited} requests waited");
}
