//! Another plugin in the place of one that runs: nothing is lost or done twice, and whatever stands against it
//! leaves the former as it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blockloom::graph::{Action, ChildDecl, NodeDecl, Transaction, Which};
use blockloom::node::MemoryNode;
use blockloom::plugin::{
    Grants, Instance, InstanceError, OnFault, PluginNode, PluginRuntime, bundled,
};
use blockloom::{Drive, ErrorKind, Host, PluginBinary};

use super::disk::{BLOCK, Books, first_byte};
use super::guest::{Guest, Target};
use super::policies::{RESTART, backup, told};
use super::scene::{Scene, Setup, finish, until};

/// Hands over four bytes, and takes nothing else.
const STATEFUL: Guest<'static> = Guest {
    save:
        "(i32.store (i32.const 0x20) (i32.const 0x300)) (i32.store (i32.const 0x24) (i32.const 4))
        (i32.const 0x20)",
    restore: "(if (i32.ne (local.get $bytes) (i32.const 4)) (then unreachable))
        (if (i32.ne (i32.load (local.get $state)) (i32.load (i32.const 0x300))) (then unreachable))
        (i32.const 0x100)",
    ..Guest::PASS
};

impl Scene {
    fn reload(&self, next: Guest<'_>) -> Result<(), InstanceError> {
        finish(self.host.reload_plugin("evil", next.module().into(), None))
    }
}

#[test]
fn the_state_goes_over() {
    let mut scene = Setup::of(STATEFUL).start();
    scene.write(0, 8, 3).expect("written");
    for count in 1..=3 {
        scene.reload(STATEFUL).expect("replaced");
        assert_eq!((scene.instance.reloads(), scene.instance.restarts()), (count, 0));
        scene.assert_alive();
    }
    assert!(told(&mut scene, 3)[0].contains("node `evil`: its plugin `evil` was replaced"));
    scene.end();
}

/// What is refused leaves the plugin that runs.
#[test]
fn what_cannot_take_the_place_does_not() {
    let target = Some(Target { wants: Grants::NONE });
    let cases: [(Guest<'_>, &str); 8] = [
        (
            Guest { wants: Grants::WRITE.union(Grants::READ), ..STATEFUL },
            "`grant.file = [\"read\", \"write\"]`",
        ),
        (Guest { target, ..STATEFUL }, "needs a child `target`"),
        (Guest { layout: 7, ..STATEFUL }, "it speaks layout 7"),
        (Guest { configure: "unreachable", ..STATEFUL }, "failed in `configure`"),
        (Guest { add_node: "(call $forever) (i32.const 0)", ..STATEFUL }, "failed in `add-node`"),
        (Guest { add_node: "unreachable", ..STATEFUL }, "failed in `add-node`"),
        (Guest { restore: "unreachable", ..STATEFUL }, "failed in `restore`"),
        (
            // An error without a text.
            Guest {
                restore: "(i32.store8 (i32.const 0x30) (i32.const 1)) (i32.const 0x30)",
                ..STATEFUL
            },
            "does not take over the state",
        ),
    ];
    let scene = Setup::of(STATEFUL).start();
    for (next, reason) in cases {
        let error = scene.reload(next).expect_err("refused").to_string();
        assert!(error.contains(reason), "`{error}` does not say `{reason}`");
        assert_eq!((scene.instance.reloads(), scene.instance.restarts()), (0, 0));
        scene.assert_alive();
    }
    let error = finish(scene.host.reload_plugin("evil", vec![1, 2, 3].into(), None));
    assert!(error.expect_err("no plugin").to_string().contains("no WebAssembly file"));
    let error = finish(scene.host.reload_plugin("disk", STATEFUL.module().into(), None));
    assert!(error.expect_err("no plugin").to_string().contains("no node of a plugin"));
    let error = finish(scene.host.reload_plugin("none", STATEFUL.module().into(), None));
    let Err(InstanceError::Plugin(error)) = error else { panic!("there is none") };
    assert_eq!(error.kind(), ErrorKind::NotFound);
    scene.reload(STATEFUL).expect("replaced");
    scene.end();
}

#[test]
fn one_that_must_not_be_bypassed_does_not_take_the_place_of_one_that_may() {
    let may = Guest { may_bypass: true, ..Guest::PASS };
    let scene = Setup { policy: OnFault::Bypass, ..Setup::of(may) }.start();
    let error = scene.reload(Guest::PASS).expect_err("refused").to_string();
    assert!(error.contains("may not be bypassed"), "{error}");
    scene.reload(may).expect("replaced");
    scene.assert_alive();
    scene.end();
}

/// A guest that fails while it hands over its state has failed: its policy says what follows.
#[test]
fn a_guest_that_fails_in_save() {
    let worst = Guest { save: "unreachable", ..Guest::PASS };
    let mut scene = Setup { policy: RESTART, ..Setup::of(worst) }.start();
    let error = scene.reload(STATEFUL).expect_err("not replaced").to_string();
    assert!(error.contains("failed in `save`"), "{error}");
    scene.write(0, 8, 1).expect("by the next store of the same plugin");
    assert_eq!((scene.instance.reloads(), scene.instance.restarts()), (0, 1));
    let told = told(&mut scene, 2);
    assert!(told[1].contains("serves again"), "{told:?}");
    scene.end();

    let scene = Setup::of(worst).start();
    scene.reload(STATEFUL).expect_err("not replaced");
    scene.assert_dead("failed in `save`");
    // Out of service, it has nothing to hand over.
    scene.reload(Guest::PASS).expect("replaced");
    scene.assert_alive();
    scene.end();
}

/// While it is down, and for good, a plugin is replaced by one that serves.
#[test]
fn a_plugin_that_has_failed_is_replaced() {
    let scene =
        Setup { policy: RESTART, ..Setup::of(Guest { event: "unreachable", ..Guest::PASS }) };
    let scene = scene.start();
    let write = scene.beside(|drive| finish(drive.write(0, &[7; BLOCK])));
    until("it is down", || scene.instance.restarts() >= 2);
    scene.reload(Guest::PASS).expect("replaced");
    // It waited, or has failed before by the budget.
    let _ = write.join().expect("a result");
    scene.assert_alive();
    scene.end();
}

/// One that is asked about more takes the place with nothing in flight; one that is asked about less is not asked.
#[test]
fn kinds_may_be_others() {
    let reads = Guest { kinds: 1, ..Guest::PASS };
    let scene = Setup::of(reads).start();
    for _ in 0..3 {
        scene.reload(Guest::PASS).expect("replaced");
        scene.write(0, 8, 1).expect("written");
        scene.assert_alive();
        let picky = "(if (call $kind (local.get $head)) (then unreachable)) (call $forward (local.get $id))";
        scene.reload(Guest { event: picky, ..reads }).expect("replaced");
        scene.write(0, 8, 2).expect("written");
        scene.assert_alive();
    }
    scene.end();
}

/// A request that is not answered in time keeps the plugin in its place.
#[test]
fn what_does_not_end_keeps_its_plugin() {
    let event =
        "(if (i64.ne (local.get $offset) (i64.const 0)) (then (call $forward (local.get $id))))";
    let mut setup = Setup { policy: RESTART, ..Setup::of(Guest { event, ..Guest::PASS }) };
    setup.limits.hold = Duration::from_secs(3);
    let scene = setup.start();
    let kept = scene.beside(|drive| finish(drive.write(0, &[7; BLOCK])));
    until("it is offered", || scene.offered() == 1);
    let error = scene.reload(Guest::PASS).expect_err("not replaced").to_string();
    assert!(error.contains("a request that it has not answered"), "{error}");
    scene.write(1, 8, 2).expect("written");
    kept.join().expect("a result").expect_err("it was kept for too long");
    scene.end();
}

/// Fifty plugins one after the other, under load from four threads: each request ends once, with its bytes.
#[test]
fn nothing_is_lost_or_done_twice() {
    const CLIENTS: usize = 4;
    let notify = "(if (i32.eq (call $tag (local.get $head)) (i32.const 2))
            (then (call $complete (local.get $id) (call $errno (local.get $head))) (return)))
        (call $forward_notify (local.get $id))";
    let later = "(call $forward_at (local.get $id) (i64.add (local.get $now) (i64.const 300000)))";
    let guests = [
        STATEFUL,
        Guest { event: notify, ..STATEFUL },
        Guest { event: later, ..STATEFUL },
        Guest { kinds: 1, ..STATEFUL },
    ];
    let scene = Setup { workers: 4, ..Setup::of(STATEFUL) }.start();
    let over = AtomicBool::new(false);
    let rounds: u64 = std::thread::scope(|threads| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (drive, over) = (scene.victim(), &over);
                threads.spawn(move || {
                    let (at, mut round) = ((client * 4 * BLOCK) as u64, 0_u64);
                    while !over.load(Ordering::Relaxed) {
                        let data = vec![round as u8; 4 * BLOCK];
                        finish(drive.write(at, &data)).expect("written");
                        let read = finish(drive.read(at, data.len())).expect("read");
                        assert!(read[..] == data[..], "the bytes of client {client}");
                        round += 1;
                    }
                    round
                })
            })
            .collect();
        for round in 0..50 {
            scene.reload(guests[round % guests.len()]).unwrap_or_else(|error| panic!("{error}"));
        }
        over.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().expect("a client")).sum()
    });
    let count = rounds * 4;
    let books = Books { reads: count, writes: count, ..Books::default() };
    assert_eq!(scene.disk.books(), books);
    let ends = scene.ends();
    assert_eq!(ends.len() as u64, 2 * count);
    assert!(ends.iter().all(|(_, error)| error.is_none()), "{ends:?}");
    let dirty = (CLIENTS * 4 * BLOCK) as u64;
    assert_eq!(scene.dirty("disk"), std::slice::from_ref(&(0..dirty)));
    assert_eq!((scene.instance.reloads(), scene.instance.restarts()), (50, 0));
    scene.end();
}

fn plugin(name: &str) -> PluginBinary {
    bundled(name).expect("a plugin").to_vec().into()
}

/// A backup whose plugin is replaced while it copies goes on from its bitmaps.
#[test]
fn a_backup_goes_on() {
    let (host, instance, disk, target) = backup(r#"{ "min-cluster-size": "4KiB" }"#);
    let drive = host.drive("vda").expect("the drive");
    until("it copies", || target.books().writes > 0);
    for round in 0..3_u8 {
        finish(host.reload_plugin("backup", plugin("backup"), None)).expect("replaced");
        let block = usize::from(round) + 9;
        finish(drive.write((block * BLOCK) as u64, &[0x11; BLOCK])).expect("written");
        assert_eq!(disk.byte(block), 0x11);
    }
    until("all is copied", || target.is_untouched());
    assert_eq!((instance.reloads(), instance.restarts()), (3, 0));
    let change = |config| finish(host.reconfigure_plugin("backup", config));
    let error = change(r#"{ "min-cluster-size": "8KiB" }"#).expect_err("not now");
    assert!(matches!(error, InstanceError::Config(error) if error.path == "min-cluster-size"));
    change(r#"{ "min-cluster-size": "4KiB", "speed": "1MiB" }"#).expect("taken");
    host.shutdown().expect("an end in order");
}

/// What was copied before a write is not copied again by the next version.
#[test]
fn a_backup_knows_what_the_one_before_has_copied() {
    let (host, instance, _, target) = backup(r#"{ "min-cluster-size": "4KiB", "sync": "none" }"#);
    let drive = host.drive("vda").expect("the drive");
    let write = |block: usize, byte| {
        finish(drive.write((block * BLOCK) as u64, &[byte; BLOCK])).expect("written");
    };
    for round in 0..3 {
        write(round, 1);
        finish(host.reload_plugin("backup", plugin("backup"), None)).expect("replaced");
        write(round, 2);
        write(40 + round, 3);
    }
    for block in (0..3).chain(40..43) {
        assert_eq!(target.byte(block), first_byte(block), "block {block}");
    }
    assert_eq!(target.books().writes, 6, "each was copied once");
    assert_eq!((instance.reloads(), instance.restarts()), (3, 0));
    host.shutdown().expect("an end in order");
}

/// Nodes come and go on one instance: their numbers are used again, and it is told that they have gone.
#[test]
fn nodes_that_have_gone_leave_room() {
    let host = Host::builder()
        .node("memory", MemoryNode::new(1 << 20, 512).expect("a disk"), vec![])
        .drive("vda", "memory", true)
        .start()
        .expect("a host");
    let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
    let shared = Instance::bundled(&runtime, "protect", "{}").expect("an instance");
    shared.call_it("shared");
    let transact = |action| {
        finish(host.transact(Transaction::new().with(action))).expect("a transaction");
    };
    for _ in 0..1100 {
        let filter = NodeDecl {
            name: "filter".into(),
            driver: Arc::new(PluginNode::new(&shared).expect("a node")),
            children: vec![ChildDecl::filtered("memory")],
        };
        transact(Action::InsertAbove { node: "memory".into(), filter, users: Which::All });
        transact(Action::RemoveFilter { node: "filter".into() });
    }
    let filter = NodeDecl {
        name: "filter".into(),
        driver: Arc::new(PluginNode::new(&shared).expect("a node")),
        children: vec![ChildDecl::filtered("memory")],
    };
    transact(Action::InsertAbove { node: "memory".into(), filter, users: Which::All });
    finish(host.reload_plugin("shared", plugin("protect"), None)).expect("replaced");
    assert_eq!((shared.reloads(), shared.restarts()), (1, 0));
    let config = r#"{ "ranges": [{ "length": "4KiB" }] }"#;
    finish(host.reconfigure_plugin("shared", config)).expect("taken");
    let vda = host.drive("vda").expect("a drive");
    assert!(finish(vda.write(0, &[1; 512])).is_err(), "it is protected now");
    finish(host.reconfigure_plugin("shared", "{}")).expect("taken");
    finish(vda.write(0, &[1; 512])).expect("no more");
    host.shutdown().expect("an end in order");
}

/// A guest that fails when it is told that a node has gone has failed like any other.
#[test]
fn a_guest_that_fails_in_remove_node() {
    let worst = Guest { remove_node: "unreachable", ..Guest::PASS };
    let scene = Setup { policy: RESTART, ..Setup::of(worst) }.start();
    scene.assert_alive();
    scene.end();
}

/// What a throttle holds is given other times when its limits change, and its level goes over.
#[test]
fn a_throttle_is_changed_while_it_holds_requests() {
    let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
    let config = r#"{ "iops": 1, "burst": "0s" }"#;
    let slow = Instance::bundled(&runtime, "throttle", config).expect("an instance");
    let host = Host::builder()
        .node("disk", MemoryNode::new(1 << 20, 512).expect("a disk"), vec![])
        .node("slow", PluginNode::new(&slow).expect("a node"), vec![ChildDecl::filtered("disk")])
        .drive("vda", "slow", true)
        .start()
        .expect("a host");
    let drive = host.drive("vda").expect("a drive");
    let write = |drive: Drive| move || finish(drive.write(0, &[7; 512]));
    finish(drive.write(0, &[7; 512])).expect("at once");
    // The level goes over: this one has to wait for a second.
    finish(host.reload_plugin("slow", plugin("throttle"), None)).expect("replaced");
    let start = std::time::Instant::now();
    finish(drive.write(0, &[7; 512])).expect("after a second");
    assert!(start.elapsed() > Duration::from_millis(500), "{:?}", start.elapsed());
    let change = |config| finish(host.reconfigure_plugin("slow", config));
    let error = change(r#"{ "iops": "fast" }"#).expect_err("no number");
    assert!(matches!(error, InstanceError::Config(error) if error.path == "iops"));
    // An hour's worth of writes, of which nobody waits.
    change(r#"{ "iops-read": 1, "bps-write": 1 }"#).expect("taken");
    let first = std::thread::spawn(write(host.drive("vda").expect("a drive")));
    let held = std::thread::spawn(write(host.drive("vda").expect("a drive")));
    until("one is held", || first.is_finished() || held.is_finished());
    change("{}").expect("taken");
    for write in [first, held] {
        write.join().expect("a result").expect("written");
    }
    host.shutdown().expect("an end in order");
}
