//! Plugins in small graphs, on one worker.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::local::LocalPlugin;
use super::{Instance, PluginLimits, PluginModule, PluginNode, PluginRuntime};
use crate::graph::{ChildDecl, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph, NodeDecl};
use crate::io::{BufMut, EngineChoice, EngineKind, next_turn, run_on_thread, turn_now, until};
use crate::node::{MemoryNode, Node};

fn instance(name: &str, config: &str, limits: PluginLimits) -> Arc<Instance> {
    let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
    let module = Arc::new(PluginModule::load_bundled(&runtime, name).expect("a plugin"));
    Instance::new(&module, config, limits).expect("an instance")
}

/// A drive over these instances, the first at the top, over memory.
fn drive(instances: &[&Arc<Instance>]) -> LocalDrive {
    let node = |at: usize, driver: Arc<dyn Node>, children| NodeDecl {
        name: format!("node{at}"),
        driver,
        children,
    };
    let disk = MemoryNode::new(1 << 20, 512).expect("a disk");
    let mut nodes = vec![node(instances.len(), Arc::new(disk), vec![])];
    for (at, instance) in instances.iter().enumerate() {
        let driver = Arc::new(PluginNode::new(instance).expect("a node"));
        nodes.push(node(at, driver, vec![ChildDecl::filtered(format!("node{}", at + 1))]));
    }
    let (id, root) = ("d".to_owned(), Some("node0".to_owned()));
    let drives = vec![DriveDecl { id, root, writable: true, only_shows: false }];
    let graph = GraphDecl { nodes, drives, bitmaps: vec![] }.build().expect("a graph");
    graph.start_drivers(None).expect("drivers that start");
    let graph = LocalGraph::of(&Arc::new(GraphCell::new(graph)));
    LocalDrive::open(&graph, "d").expect("a drive")
}

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + 'static) {
    let ended = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), async move {
        test().await;
    });
    ended.expect("a worker");
}

/// Begins a read, lets it go as far as it can in some turns, and drops it.
async fn begin_and_drop(drive: &LocalDrive, turns: usize) {
    let mut read = pin!(drive.read(0, BufMut::new(512)));
    for _ in 0..turns {
        let ended = poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx).is_ready())).await;
        assert!(!ended, "it takes its time");
        next_turn().await;
    }
}

async fn read_in_time(drive: &LocalDrive) {
    let read = until(turn_now() + Duration::from_secs(20), drive.read(0, BufMut::new(512))).await;
    read.expect("there is a place for it").expect("a read");
}

/// One request at a time: the place of one whose caller has lost patience is free again, whether the host held
/// it, the child had it, or the guest had yet to answer.
#[test]
fn a_request_that_is_dropped_gives_up_its_place() {
    let one = PluginLimits { in_flight: 1, ..PluginLimits::default() };
    run(move || async move {
        let held = instance("delay", r#"{ "read": "20ms" }"#, one);
        let drive = drive(&[&held]);
        for _ in 0..3 {
            begin_and_drop(&drive, 2).await;
            read_in_time(&drive).await;
        }
        let local: Rc<LocalPlugin> = LocalPlugin::of(&held);
        let inside = held.go_in(Some(&local));
        begin_and_drop(&drive, 2).await;
        drop(inside);
        read_in_time(&drive).await;
    });
    run(move || async move {
        let told = instance("stats", "{}", one);
        let slow = instance("delay", r#"{ "read": "20ms" }"#, PluginLimits::default());
        let drive = drive(&[&told, &slow]);
        for _ in 0..3 {
            begin_and_drop(&drive, 2).await;
            read_in_time(&drive).await;
        }
    });
}
