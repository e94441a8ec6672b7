//! What becomes of a drive whose plugin fails, by policy: its requests are offered again to a new store, go
//! round the plugin, or fail; each of them is done once.

use std::time::Duration;

use blockloom::ErrorKind;
use blockloom::graph::Event;
use blockloom::plugin::{
    Instance, InstanceError, OnFault, PluginModule, PluginRuntime, RestartBudget,
};
use std::sync::Arc;

use super::disk::{BLOCK, Books};
use super::guest::Guest;
use super::scene::{Scene, Setup, finish, until};

const RESTART: OnFault =
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

/// The events so far, as text.
fn told(scene: &mut Scene) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(notice) = scene.events.try_next() {
        told.push(notice.event.to_string());
    }
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
            until("the restart is told", || scene.instance.failure().is_none());
            let told = told(&mut scene);
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
    let told = told(&mut scene);
    assert_eq!(told.len(), 3 * 2 + 2, "{told:?}");
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
            let told = told(&mut scene);
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
        let told = told(&mut scene);
        let faults = told.iter().filter(|event| event.contains("failed: ")).count();
        assert_eq!((faults, told.len()), (2, 3), "{told:?}");
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
    let told = told(&mut scene);
    let again = told.iter().filter(|event| event.contains("serves again")).count();
    assert_eq!((again, told.len()), (0, 5), "{told:?}");
    scene.end();
}

/// A drain and a flush wait for no plugin, nor for its restart.
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
    let error = held.join().expect("a result").expect_err("the drain fails it");
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
