//! What becomes of a drive whose plugin fails, by policy: its requests are offered again to a new store, go
//! round the plugin, or fail; each of them is done once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blockloom::bitmap::{BitmapName, Granularity};
use blockloom::graph::{BitmapDecl, BitmapScope, ChildDecl, Event, Role};
use blockloom::io::WorkerOptions;
use blockloom::plugin::{
    Grants, Instance, InstanceError, OnFault, PluginModule, PluginNode, PluginRuntime,
    RestartBudget,
};
use blockloom::{ErrorKind, Host};

use super::disk::{BLOCK, BLOCKS, Books, Disk, DiskNode, first_byte};
use super::guest::Guest;
use super::scene::{Scene, Setup, finish, until};

pub(super) const RESTART: OnFault =
    OnFault::Restart(RestartBudget { faults: 3, within: Duration::from_secs(60) });

/// A guest knows by the log of bits that outlives it how often it was there before: a bitmap of the node's own.
/// `$life` counts from 1.
const LIVES: &str = r#"(import "blockloom:filter/host@0.1.0" "bitmap-own"
        (func $own (param i32 i32 i32 i64 i32)))
    (import "blockloom:filter/host@0.1.0" "bitmap-count" (func $marked (param i32) (result i64)))
    (import "blockloom:filter/host@0.1.0" "bitmap-set"
        (func $mark (param i32 i64 i64 i32 i32)))"#;
const LIFE: &str = r#"(data (i32.const 0x400) "lives") (global $life (mut i32) (i32.const 0))
    (func $born (param $node i32)
        (call $own (local.get $node) (i32.const 0x400) (i32.const 5) (i64.const 4096) (i32.const 0x500))
        (global.set $life (i32.wrap_i64 (i64.div_u
            (call $marked (i32.load (i32.const 0x504))) (i64.const 4096))))
        (call $mark (i32.load (i32.const 0x504))
            (i64.mul (i64.extend_i32_u (global.get $life)) (i64.const 4096)) (i64.const 4096)
            (i32.const 1) (i32.const 0x510))
        (global.set $life (i32.add (global.get $life) (i32.const 1))))"#;
const BORN: &str = "(call $born (local.get $index)) (i32.const 0x100)";

/// Counts its lives.
const MORTAL: Guest<'_> = Guest { imports: LIVES, items: LIFE, add_node: BORN, ..Guest::PASS };

/// What fails at the first life and is all right in the next.
fn worst() -> Vec<(&'static str, String)> {
    let first = |worst: &str| {
        format!(
            "(if (i32.eq (global.get $life) (i32.const 1)) (then {worst}))
            (call $forward (local.get $id))"
        )
    };
    vec![
        ("`unreachable`", first("unreachable")),
        ("interrupt", first("(call $forever)")),
        (
            "`unreachable`",
            first(
                "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
                unreachable",
            ),
        ),
        (
            "unknown tag",
            first("(call $emit (i64.const 99) (i64.const 0) (i64.const 0) (i64.const 0))"),
        ),
        ("with success", first("(call $complete (local.get $id) (i64.const 0))")),
    ]
}

/// The events so far, as text; there are as many as that.
pub(super) fn told(scene: &mut Scene, count: usize) -> Vec<String> {
    let text = |event: Event| event.to_string();
    let told = (0..count).map(|_| text(finish(scene.events.next()).expect("one more event").event));
    let told: Vec<_> = told.collect();
    assert!(scene.events.try_next().is_none(), "more than {told:?}");
    told
}

#[test]
fn requests_wait_for_a_new_store_and_are_done_once() {
    for count in [1, 8] {
        for (reason, event) in worst() {
            let guest = Guest { event: &event, ..MORTAL };
            let mut scene = Setup { policy: RESTART, ..Setup::of(guest) }.start();
            scene.write(3, count, 7).expect("by the next store");
            let ends: Vec<_> = (3..3 + count).map(|block| (block, None)).collect();
            assert_eq!(scene.ends(), ends, "each ended once");
            assert_eq!(scene.disk.books(), Books { writes: count as u64, ..Books::default() });
            assert!((3..3 + count).all(|block| scene.disk.byte(block) == 7));
            assert_eq!(scene.instance.restarts(), 1);
            scene.assert_alive();
            let told = told(&mut scene, 2);
            let [fault, restarted] = &told[..] else { panic!("{told:?}") };
            assert!(fault.contains("node `evil`: its plugin `evil` failed"), "{fault}");
            assert!(fault.contains(reason), "{fault}");
            assert_eq!(restarted, "node `evil`: its plugin `evil` serves again");
            scene.end();
        }
    }
}

/// The budget is spent by one request, which fails then, and all that follow.
#[test]
fn after_the_budget_requests_fail() {
    let guest = Guest { event: "unreachable", ..MORTAL };
    let mut scene = Setup { policy: RESTART, ..Setup::of(guest) }.start();
    assert_eq!(scene.write(0, 8, 1).expect_err("it failed").kind(), ErrorKind::Io);
    assert_eq!(scene.ends().len(), 8);
    scene.assert_dead("`unreachable`");
    assert_eq!(scene.disk.books().writes, 0);
    let told = told(&mut scene, 3 * 2 + 2);
    assert_eq!(
        told.last().map(String::as_str),
        Some("node `evil`: its plugin `evil` is out of service: it failed too often")
    );
    scene.end();
}

#[test]
fn requests_go_round_a_plugin_that_allows_it() {
    let traps = [
        ("unreachable", "`unreachable`"),
        ("(call $forever)", "interrupt"),
        ("(call $emit (i64.const 99) (i64.const 0) (i64.const 0) (i64.const 0))", "unknown tag"),
    ];
    for count in [1, 8] {
        for (event, reason) in traps {
            let guest = Guest { event, may_bypass: true, ..Guest::PASS };
            let mut scene = Setup { policy: OnFault::Bypass, ..Setup::of(guest) }.start();
            scene.write(3, count, 7).expect("without it");
            assert_eq!(scene.ends().len(), count);
            assert_eq!(scene.disk.books().writes, count as u64);
            assert!(scene.instance.failure().expect("it failed").contains(reason));
            assert_eq!(scene.read(3).expect("read"), 7);
            scene.discard(4).expect("discarded");
            scene.flush().expect("flushed");
            let told = told(&mut scene, 2);
            let [fault, bypassed] = &told[..] else { panic!("{told:?}") };
            assert!(fault.contains(reason), "{fault}");
            assert_eq!(bypassed, "node `evil`: requests go on without its plugin `evil`");
            scene.end();
        }
    }
}

#[test]
fn a_plugin_that_must_not_be_bypassed_is_not() {
    let setup = Setup { policy: OnFault::Bypass, ..Setup::of(Guest::PASS) };
    let Err(InstanceError::Plugin(error)) = setup.instance() else { panic!("it was set up") };
    assert_eq!(error.kind(), ErrorKind::NotPermitted);
    assert!(error.to_string().contains("plugin `evil` may not be bypassed"), "{error}");
    let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
    for (name, may) in
        [("backup", false), ("pass", true), ("throttle", true), ("copy-on-read", true)]
    {
        let module = PluginModule::load_bundled(&runtime, name).expect("a module");
        assert_eq!(module.inspection().may_bypass, may, "{name}");
    }
    let module = Arc::new(PluginModule::load_bundled(&runtime, "backup").expect("a module"));
    let made = Instance::with_policy(&module, "{}", Default::default(), OnFault::Bypass);
    assert!(made.is_err());
}

/// Those that were forwarded end with the child's result, and are not issued again; the others are.
#[test]
fn what_was_forwarded_is_never_issued_again() {
    let usual = [
        "(call $forward (local.get $id))",
        "(call $forward_notify (local.get $id))",
        "(call $forward_at (local.get $id) (i64.add (local.get $now) (i64.const 20000000)))",
    ];
    for usual in usual {
        let event = format!(
            "(if (i32.eq (call $tag (local.get $head)) (i32.const 2))
                (then (call $complete (local.get $id) (call $errno (local.get $head))) (return)))
            (global.set $seen (i32.add (global.get $seen) (i32.const 1)))
            (if (i32.and (i32.eq (global.get $life) (i32.const 1))
                    (i32.eq (global.get $seen) (i32.const 4)))
                (then (call $emit (i64.const 99) (i64.const 0) (i64.const 0) (i64.const 0))))
            {usual}"
        );
        let items = format!("(global $seen (mut i32) (i32.const 0)) {LIFE}");
        let guest = Guest { event: &event, items: &items, ..MORTAL };
        let scene = Setup { policy: RESTART, ..Setup::of(guest) }.start();
        scene.disk.slow_down(Duration::from_millis(30));
        scene.disk.fail_next(1);
        scene.write(0, 8, 5).expect_err("one of them, by the disk");
        let failed: Vec<_> = scene.ends().into_iter().filter_map(|(_, kind)| kind).collect();
        assert_eq!(failed, [ErrorKind::NoSpace]);
        assert_eq!(scene.disk.books().writes, 8, "each went to the disk once");
        assert_eq!(scene.instance.restarts(), 1);
        scene.assert_alive();
        scene.end();
    }
}

/// Several workers, several faults: nothing is lost, nothing is done twice.
#[test]
fn no_request_is_lost_or_done_twice_over_restarts() {
    const CLIENTS: u64 = 8;
    const ROUNDS: u64 = 60;
    let event = "(if (i32.eq (call $tag (local.get $head)) (i32.const 2))
            (then (call $complete (local.get $id) (call $errno (local.get $head))) (return)))
        (global.set $seen (i32.add (global.get $seen) (i32.const 1)))
        (if (i32.and (i32.lt_u (global.get $life) (i32.const 4))
                (i32.eq (global.get $seen) (i32.const 200)))
            (then unreachable))
        (if (i32.and (global.get $seen) (i32.const 1))
            (then (call $forward (local.get $id)))
            (else (call $forward_notify (local.get $id))))";
    let items = format!("(global $seen (mut i32) (i32.const 0)) {LIFE}");
    let guest = Guest { event, items: &items, ..MORTAL };
    let scene = Setup { policy: RESTART, workers: 4, ..Setup::of(guest) }.start();
    std::thread::scope(|threads| {
        for client in 0..CLIENTS {
            let drive = scene.victim();
            threads.spawn(move || {
                for round in 0..ROUNDS {
                    let data = vec![round as u8; 4 * BLOCK];
                    finish(drive.write(client * 4 * BLOCK as u64, &data)).expect("written");
                    let read = finish(drive.read(client * 4 * BLOCK as u64, 4 * BLOCK));
                    assert!(read.expect("read")[..] == data[..]);
                }
            });
        }
    });
    let (count, books) = (CLIENTS * ROUNDS * 4, scene.disk.books());
    assert_eq!((books.writes, books.reads), (count, count));
    assert_eq!(scene.ends().len() as u64, 2 * count);
    assert_eq!(scene.instance.restarts(), 3);
    scene.assert_alive();
    scene.end();
}

/// A step of the new store fails: that is a fault more.
#[test]
fn a_new_store_that_does_not_come_to_be() {
    // Its second life ends while it is told of its node, with the configuration, or at once.
    let second = |worst: &str| {
        format!(
            "(call $born (local.get $index))
            (if (i32.eq (global.get $life) (i32.const 2)) (then {worst})) (i32.const 0x100)"
        )
    };
    let event = "(if (i32.eq (global.get $life) (i32.const 1)) (then unreachable))
        (call $forward (local.get $id))";
    for worst in ["unreachable", "(call $forever)", "(return (i32.const -4))"] {
        let add_node = second(worst);
        let guest = Guest { add_node: &add_node, event, ..MORTAL };
        let mut scene = Setup { policy: RESTART, ..Setup::of(guest) }.start();
        scene.write(0, 8, 9).expect("by the third store");
        assert_eq!(scene.disk.books().writes, 8);
        scene.assert_alive();
        let told = told(&mut scene, 3);
        let faults = told.iter().filter(|event| event.contains("failed: ")).count();
        assert_eq!(faults, 2, "{told:?}");
        assert!(told[1].contains("failed in `add-node`"), "{told:?}");
        scene.end();
    }
}

/// The configuration is taken once, and never again: the budget ends it.
#[test]
fn a_configuration_that_is_not_taken_again() {
    // A store is configured before it has a node, and so before it can know of its lives: node 0's bitmap
    // is there only in a later one.
    let configure = r#"(if (i64.ne (call $marked (i32.const 0)) (i64.const 0)) (then unreachable))
        (i32.const 0x100)"#;
    let guest = Guest { configure, event: "unreachable", ..MORTAL };
    let mut scene = Setup { policy: RESTART, ..Setup::of(guest) }.start();
    assert_eq!(scene.write(0, 1, 1).expect_err("it failed").kind(), ErrorKind::Io);
    scene.assert_dead("failed in `configure`");
    let told = told(&mut scene, 5);
    let again = told.iter().filter(|event| event.contains("serves again")).count();
    assert_eq!(again, 0, "{told:?}");
    scene.end();
}

/// A change of the graph waits for the restart, and the request that does so is not failed for it.
#[test]
fn a_drain_while_the_plugin_is_down_fails_no_request() {
    let policy = OnFault::Restart(RestartBudget { faults: 100, within: Duration::from_secs(60) });
    let event = "(if (i32.lt_u (global.get $life) (i32.const 6)) (then unreachable))
        (call $forward (local.get $id))";
    let scene = Setup { policy, ..Setup::of(Guest { event, ..MORTAL }) }.start();
    let held = scene.beside(|drive| finish(drive.write(0, &[1; BLOCK])));
    // The fifth store is gone, or is to be soon: the next one takes longer than anything else here.
    until("several faults", || scene.instance.restarts() >= 4);
    let bitmap = BitmapDecl {
        scope: BitmapScope::Node("disk".into()),
        name: BitmapName::new("b").expect("a name"),
        granularity: Granularity::from_bytes(65536).expect("a granularity"),
        enabled: true,
    };
    finish(scene.host.add_bitmap(bitmap)).expect("a moment without requests");
    held.join().expect("a result").expect("by the sixth store");
    assert_eq!(scene.disk.byte(0), 1);
    assert_eq!(scene.instance.restarts(), 5);
    scene.assert_alive();
    scene.end();
}

/// The end of the host and a flush wait for no plugin, nor for its restart.
#[test]
fn nobody_waits_for_a_plugin_that_is_down() {
    let policy = OnFault::Restart(RestartBudget { faults: 100, within: Duration::from_secs(60) });
    let guest = Guest { event: "unreachable", kinds: 0b10_1111, ..MORTAL };
    let mut setup = Setup { policy, ..Setup::of(guest) };
    setup.limits.hold = Duration::from_secs(3600);
    let scene = setup.start();
    let held = scene.beside(|drive| finish(drive.write(0, &[1; BLOCK])));
    until("several faults", || scene.instance.restarts() >= 5);
    scene.flush().expect("flushed");
    let disk = Arc::clone(&scene.disk);
    scene.end();
    let error = held.join().expect("a result").expect_err("the end of the host fails it");
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(disk.books().writes, 0);
}

/// A request is held as long as it may be, over all stores.
#[test]
fn a_request_waits_no_longer_than_it_may_be_held() {
    let policy = OnFault::Restart(RestartBudget { faults: 100, within: Duration::from_secs(60) });
    let guest = Guest { event: "unreachable", ..MORTAL };
    let mut setup = Setup { policy, ..Setup::of(guest) };
    setup.limits.hold = Duration::from_millis(100);
    let scene = setup.start();
    assert_eq!(scene.write(0, 8, 1).expect_err("it is over").kind(), ErrorKind::Io);
    assert_eq!(scene.disk.books().writes, 0);
    assert!(scene.instance.restarts() >= 3, "{}", scene.instance.restarts());
    assert_eq!(scene.instance.failure(), None);
    scene.end();
}

/// One that keeps a request for too long is given up, and the request with it.
#[test]
fn a_request_that_is_kept_for_too_long_is_not_tried_again() {
    let event =
        "(if (i32.ne (global.get $life) (i32.const 1)) (then (call $forward (local.get $id))))";
    let mut setup = Setup { policy: RESTART, ..Setup::of(Guest { event, ..MORTAL }) };
    setup.limits.hold = Duration::from_millis(60);
    let scene = setup.start();
    assert_eq!(scene.write(0, 1, 1).expect_err("it is over").kind(), ErrorKind::Io);
    until("it is there again", || scene.instance.restarts() == 1 && scene.write(1, 1, 2).is_ok());
    assert_eq!(scene.disk.byte(1), 2);
    scene.end();
}

#[test]
fn faults_are_events() {
    let guest = Guest { event: "unreachable", ..Guest::PASS };
    let mut scene = Setup::of(guest).start();
    scene.write(0, 1, 1).expect_err("it fails");
    let first = scene.events.try_next().expect("an event").event;
    assert!(matches!(first, Event::PluginFault { plugin, node, .. }
        if &*plugin == "evil" && &*node == "evil"));
    let second = scene.events.try_next().expect("an event").event;
    assert!(matches!(second, Event::PluginFailed { is_spent: false, .. }));
    scene.end();
}

/// Asks for a zeroing of block 20 on behalf of a write of block 3, and does its worst at some point of that.
fn zeroing(before: &str, after: &str, done: &str) -> String {
    format!(
        "(if (i32.eq (global.get $life) (i32.const 1))
            (then
                (if (i32.eq (call $tag (local.get $head)) (i32.const 2)) (then {done} (return)))
                (if (i64.ne (local.get $offset) (i64.const 12288)) (then {after} (return)))
                {before}
                (call $emit (i64.const 7)
                    (i64.or (i64.const 77) (i64.shl (local.get $id) (i64.const 32)))
                    (i64.const 81920) (i64.const 4096)))
            (else (call $forward (local.get $id))))"
    )
}

/// A request is offered again when all that was done for it is over, not before; and what was done is not
/// told to the next store, which knows nothing of it.
#[test]
fn a_request_begins_anew_when_its_operations_are_over() {
    let trap = "unreachable";
    let forward = "(call $forward (local.get $id))";
    for (before, after, done, zeros) in
        [(trap, forward, trap, 0), ("", trap, trap, 1), ("", forward, trap, 1)]
    {
        let event = zeroing(before, after, done);
        let guest = Guest { event: &event, ..MORTAL };
        let grants = Grants::WRITE;
        let scene = Setup { policy: RESTART, grants, ..Setup::of(guest) }.start();
        let took = Duration::from_millis(60);
        scene.disk.slow_down(took);
        let start = Instant::now();
        let first = scene.beside(|drive| finish(drive.write(3 * BLOCK as u64, &[7; BLOCK])));
        until("it is being done", || scene.disk.books().zeros == zeros && scene.offered() == 1);
        scene.write(5, 1, 8).expect("written");
        first.join().expect("a result").expect("written");
        let operations = u32::try_from(zeros).expect("few") + 1;
        assert!(start.elapsed() >= took * operations, "one after the other");
        assert_eq!(scene.disk.books(), Books { writes: 2, zeros, ..Books::default() });
        assert_eq!((scene.disk.byte(3), scene.disk.byte(5)), (7, 8));
        assert_eq!(scene.instance.restarts(), 1);
        scene.disk.slow_down(Duration::ZERO);
        scene.assert_alive();
        scene.end();
    }
}

/// A backup over a disk, and its target, which is empty.
pub(super) fn backup(config: &str) -> (Host, Arc<Instance>, Arc<Disk>, Arc<Disk>) {
    let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
    let module = Arc::new(PluginModule::load_bundled(&runtime, "backup").expect("a module"));
    let instance = Instance::with_policy(&module, config, Default::default(), RESTART);
    let instance = instance.unwrap_or_else(|error| panic!("{error:?}"));
    let (disk, target) = (Disk::new(), Disk::new());
    target.fill(0, (BLOCKS * BLOCK) as u64, 0);
    target.slow_down(Duration::from_millis(20));
    let children = [("file".to_owned(), Grants::READ), ("target".to_owned(), Grants::WRITE)];
    let child = |name: &str, node: &str, role, grants: Grants| ChildDecl {
        name: name.into(),
        role,
        grants: grants.permissions(),
        ..ChildDecl::filtered(node)
    };
    // One worker: the job has begun before the first request comes.
    let workers = WorkerOptions { workers: 1, ..WorkerOptions::default() };
    let host = Host::builder()
        .workers(workers)
        .node("disk", DiskNode(Arc::clone(&disk)), vec![])
        .node("target", DiskNode(Arc::clone(&target)), vec![])
        .node(
            "backup",
            PluginNode::with_children(&instance, &children).expect("a node"),
            vec![
                child("file", "disk", Role::Filtered, Grants::READ),
                child("target", "target", Role::Target, Grants::WRITE),
            ],
        )
        .drive("vda", "backup", true)
        .start()
        .expect("a host");
    (host, instance, disk, target)
}

/// A backup goes on from its bitmaps when its store is lost while it copies: the target has the bytes of its
/// point in time in the end.
#[test]
fn a_backup_is_right_after_a_fault() {
    let (host, instance, disk, target) = backup(r#"{ "min-cluster-size": "4KiB" }"#);
    let drive = host.drive("vda").expect("the drive");
    until("it copies", || target.books().writes > 0);
    instance.confuse();
    finish(drive.write(9 * BLOCK as u64, &[0x11; BLOCK])).expect("written, and copied before");
    until("all is copied", || target.is_untouched());
    until("a restart", || instance.restarts() == 1 && instance.failure().is_none());
    assert_eq!(disk.byte(9), 0x11);
    host.shutdown().expect("an end in order");
}

/// What was copied before a fault is not copied again after it, and what was not is.
#[test]
fn a_backup_knows_what_it_has_copied() {
    let config = r#"{ "min-cluster-size": "4KiB", "sync": "none" }"#;
    let (host, instance, disk, target) = backup(config);
    let drive = host.drive("vda").expect("the drive");
    let write = |block: u64, byte| finish(drive.write(block * BLOCK as u64, &[byte; BLOCK]));
    for fault in 0..3_u32 {
        let block = u64::from(fault);
        write(block, 1).expect("written");
        write(0, 2).expect("written");
        instance.confuse();
        write(40 + block, 3).expect("written by the next store");
        until("a restart", || instance.restarts() == fault + 1);
    }
    assert_eq!(instance.failure(), None);
    for block in (0..3).chain(40..43) {
        assert_eq!(target.byte(block), first_byte(block), "block {block}");
    }
    assert_eq!(target.books().writes, 6, "each was copied once");
    assert_eq!((target.byte(3), disk.byte(0), disk.byte(41)), (0, 2, 3));
    host.shutdown().expect("an end in order");
}
