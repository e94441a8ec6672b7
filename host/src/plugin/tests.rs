//! Plugins in small graphs, on one worker.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use blockloom_abi::Kinds;

use super::local::LocalPlugin;
use super::{Grants, Instance, PluginLimits, PluginModule, PluginNode, PluginRuntime};
use crate::bitmap::{BitmapName, Granularity};
use crate::error::ErrorKind;
use crate::graph::{
    BitmapDecl, BitmapScope, ChildDecl, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph,
    NodeDecl, PermissionSet, Role,
};
use crate::io::{
    Buf, BufMut, EngineChoice, EngineKind, WorkerOptions, next_turn, run_on_thread, sleep_until,
    turn_now, until,
};
use crate::node::{MemoryNode, Node, NullNode, WriteFlags};
use crate::{Host, block_on};

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

/// What is put in and taken out again while the host runs leaves nothing behind on its workers.
#[test]
fn an_instance_goes_with_its_last_node() {
    let instance = instance("pass", "{}", PluginLimits::default());
    let host = Host::builder()
        .node("disk", MemoryNode::new(1 << 20, 512).expect("a disk"), vec![])
        .node(
            "pass",
            PluginNode::new(&instance).expect("a node"),
            vec![ChildDecl::filtered("disk")],
        )
        .drive("vda", "pass", true)
        .workers(WorkerOptions { workers: 1, ..WorkerOptions::default() })
        .start()
        .expect("a host");
    let drive = host.drive("vda").expect("a drive");
    block_on(drive.read(0, 512)).expect("a read");
    let left = Arc::downgrade(&instance);
    drop(instance);
    block_on(host.remove_filter("pass")).expect("it goes");
    // It lets go of it in the turns that it has.
    let goes = (0..10_000).any(|_| {
        block_on(drive.read(0, 512)).expect("a read");
        left.strong_count() == 0
    });
    assert!(goes, "{} hold it", left.strong_count());
    host.shutdown().expect("an end");
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

/// An instance of a plugin whose version knows all kinds of requests but these.
fn not_knowing(name: &str, config: &str, unknown: Kinds) -> Arc<Instance> {
    let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
    let module = PluginModule::load_bundled(&runtime, name).expect("a plugin");
    let known = Kinds::from_bits(Kinds::ALL.bits() & !unknown.bits()).expect("kinds");
    let module = Arc::new(module.knowing(known));
    Instance::new(&module, config, PluginLimits::default()).expect("an instance")
}

/// Fails writes, and nothing else.
const FAILS_WRITES: &str = r#"{ "kinds": ["write"], "errno": "ENOSPC" }"#;

#[test]
fn zeroing_is_a_write_for_a_plugin_that_does_not_know_it() {
    run(|| async {
        let knows = drive(&[&instance("error", FAILS_WRITES, PluginLimits::default())]);
        knows.zero(0, 512, WriteFlags::NONE).await.expect("it fails writes alone");
        let does_not = drive(&[&not_knowing("error", FAILS_WRITES, Kinds::ZERO)]);
        let error = does_not.zero(0, 512, WriteFlags::NONE).await.expect_err("it is a write");
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        let passes = drive(&[&not_knowing("pass", "{}", Kinds::ZERO)]);
        passes.write(0, Buf::copy_of(&[7; 1024]), WriteFlags::NONE).await.expect("a write");
        passes.zero(0, 512, WriteFlags::NONE).await.expect("zeros");
        let read = passes.read(0, BufMut::new(1024)).await.expect("a read");
        assert!(read[..512] == [0; 512] && read[512..] == [7; 512]);
    });
}

#[test]
fn discarding_is_left_undone_past_a_plugin_that_does_not_know_it() {
    run(|| async {
        for (unknown, is_there) in [(Kinds::NONE, false), (Kinds::DISCARD, true)] {
            let drive = drive(&[&not_knowing("pass", "{}", unknown)]);
            drive.write(0, Buf::copy_of(&[7; 65536]), WriteFlags::NONE).await.expect("a write");
            drive.discard(0, 65536).await.expect("advice");
            let read = drive.read(0, BufMut::new(65536)).await.expect("a read");
            assert_eq!(read[..] == [7; 65536][..], is_there, "{unknown:?}");
        }
    });
}

#[test]
fn what_nothing_else_stands_for_is_refused_past_a_plugin_that_does_not_know_it() {
    run(|| async {
        let unknown = Kinds::FLUSH.with(Kinds::RESIZE);
        let pass = drive(&[&not_knowing("pass", "{}", unknown)]);
        let error = pass.flush().await.expect_err("it would go round the plugin");
        assert_eq!(error.kind(), ErrorKind::NotSupported);
        assert!(error.to_string().contains("knows no such request (Flush)"), "{error}");
        pass.write(0, Buf::copy_of(&[7; 512]), WriteFlags::NONE).await.expect("it is known");
        pass.read(0, BufMut::new(512)).await.expect("it is known");
    });
}
