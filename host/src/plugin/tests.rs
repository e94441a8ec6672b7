//! Plugins in small graphs, on one worker.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::local::LocalPlugin;
use super::{Grants, Instance, PluginLimits, PluginModule, PluginNode, PluginRuntime};
use crate::bitmap::{BitmapName, Granularity};
use crate::graph::{
    BitmapDecl, BitmapScope, ChildDecl, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph,
    NodeDecl, PermissionSet, Role,
};
use crate::io::{
    BufMut, EngineChoice, EngineKind, next_turn, run_on_thread, sleep_until, turn_now, until,
};
use crate::node::{MemoryNode, Node, NullNode};

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

const TIB: u64 = 1 << 40;
const GRANULE: u64 = 64 << 10;

/// What an incremental backup has to go through before it begins: a bitmap of many little runs.
#[test]
fn a_backup_of_many_runs_begins_within_the_time_of_a_call() {
    const RUNS: u64 = 250_000;
    run(|| async {
        let config = r#"{ "sync": "incremental", "speed": 1 }"#;
        // Four times the default: this is no optimised build, and not alone on its machine. Run by run it would
        // take many times as long.
        let limits = PluginLimits { call: Duration::from_millis(20), ..PluginLimits::default() };
        let instance = instance("backup", config, limits);
        let scope = BitmapScope::Node("disk".into());
        let children = [("file".to_owned(), Grants::READ), ("target".to_owned(), Grants::WRITE)];
        let backup = PluginNode::with_children(&instance, &children).expect("a node");
        let lent = [("changes".to_owned(), scope.clone(), "b".to_owned())];
        let backup = Arc::new(backup.with_bitmaps(&lent).expect("a bitmap that it reads"));
        let node = |name: &str, driver: Arc<dyn Node>, children| NodeDecl {
            name: name.into(),
            driver,
            children,
        };
        let null = || Arc::new(NullNode::new(TIB, true, Duration::ZERO));
        let edge = |name: &str, role, node: &str, grants| ChildDecl {
            name: name.into(),
            role,
            grants,
            ..ChildDecl::filtered(node)
        };
        let edges = vec![
            edge("file", Role::Filtered, "disk", PermissionSet::CONSISTENT_READ),
            edge("target", Role::Target, "target", PermissionSet::WRITE),
        ];
        let nodes = vec![
            node("disk", null(), vec![]),
            node("target", null(), vec![]),
            node("backup", Arc::clone(&backup) as _, edges),
        ];
        let granularity = Granularity::from_bytes(GRANULE).expect("one");
        let name = BitmapName::new("b").expect("a name");
        let bitmap = BitmapDecl { scope: scope.clone(), name, granularity, enabled: true };
        let graph = GraphDecl { nodes, drives: vec![], bitmaps: vec![bitmap] };
        let graph = graph.build().expect("a graph");
        let changes = graph.find_bitmap(&scope, "b").and_then(|it| it.recording()).expect("it");
        (0..RUNS).for_each(|run| changes.mark(run * 64 * GRANULE, 1));
        graph.start_drivers(None).expect("drivers that start");
        let local = LocalGraph::of(&Arc::new(GraphCell::new(graph)));
        backup.run(&local, "backup");
        let end = turn_now() + Duration::from_secs(20);
        while backup.own_bitmap_bytes("begun") == 0 && turn_now() < end {
            assert_eq!(instance.failure(), None);
            sleep_until(turn_now() + Duration::from_millis(1)).await;
        }
        assert_eq!(instance.failure(), None);
        assert_eq!(backup.own_bitmap_bytes("covered"), RUNS * GRANULE);
    });
}
