//! Jobs that never begin, never end, fail, or ask for more than anybody has: requests are served beside them, and
//! the host ends in order.

use std::time::Duration;

use blockloom::ErrorKind;
use blockloom::plugin::{Grants, OnFault, RestartBudget};

use super::disk::BLOCKS;
use super::guest::Guest;
use super::scene::{Scene, Setup, until};

/// With a job, of which `start` is done when the host wants it to begin, and `done` whenever an operation ends.
fn event(start: &str, done: &str) -> String {
    format!(
        "(if (i32.eq (call $tag (local.get $head)) (i32.const 1))
            (then (call $forward (local.get $id)) (return)))
        (if (i32.eq (call $tag (local.get $head)) (i32.const 2)) (then {done} (return)))
        (if (i32.and (i32.eq (call $tag (local.get $head)) (i32.const 4))
                (i32.eq (call $kind (local.get $head)) (i32.const 4)))
            (then {start}))"
    )
}

/// A read, or what else, for the job.
fn ask(head: u64) -> String {
    format!(
        "(call $emit (i64.const {head}) (i64.extend_i32_u (call $next)) (i64.const 4096) (i64.const 512))"
    )
}

const ITEMS: &str = "(global $token (mut i32) (i32.const 0))
    (func $next (result i32)
        (global.set $token (i32.add (global.get $token) (i32.const 1))) (global.get $token))";

const TIMER: &str = "(call $emit (i64.const 10) (i64.const 1)
    (i64.add (local.get $now) (i64.const 1000000)) (i64.const 0))";

fn scene(event: &str, wants: Grants, policy: OnFault) -> Scene {
    let guest = Guest { event, items: ITEMS, has_job: true, wants, ..Guest::PASS };
    Setup { policy, ..Setup::of(guest) }.start()
}

fn check_served(start: &str, done: &str) {
    let scene = scene(&event(start, done), Grants::READ, OnFault::Fail);
    for round in 1..20 {
        scene.write(1, 8, round).expect("served beside the job");
    }
    scene.assert_alive();
    scene.end();
}

#[test]
fn a_job_that_never_begins() {
    check_served("", "");
}

#[test]
fn a_job_that_ends_at_once() {
    check_served(&ask(4), "");
}

#[test]
fn a_job_that_never_ends() {
    check_served(TIMER, TIMER);
    // It reads, lets go of the buffer, and reads again.
    let again = format!(
        "(call $emit (i64.or (i64.const 11) (i64.shl (local.get $id) (i64.const 32)))
            (i64.const 0) (i64.const 0) (i64.const 0)) {}",
        ask(4)
    );
    check_served(&ask(4), &again);
}

/// What is not granted is refused to a job as to everybody.
#[test]
fn a_job_without_grants() {
    let (start, done) = (
        format!("{} {} {}", ask(5), ask(7), ask(8)),
        "(if (i64.eqz (call $errno (local.get $head))) (then unreachable))",
    );
    let scene = scene(&event(&start, done), Grants::READ, OnFault::Fail);
    scene.write(1, 1, 7).expect("served beside the job");
    assert_eq!((scene.disk.books().writes, scene.disk.books().zeros), (1, 0));
    scene.assert_alive();
    scene.end();
}

/// Asks for a thousand operations at once, and for two more for each that ends: what is too much is refused, and
/// a guest that does not stop then is stopped.
#[test]
fn a_job_that_floods() {
    let start = format!(
        "(loop $more {} (br_if $more (i32.lt_u (global.get $count) (i32.const 1000))))",
        ask(7)
    );
    let twice = format!("{} {}", ask(7), ask(7));
    let scene = scene(&event(&start, &twice), Grants::WRITE, OnFault::Fail);
    until("it is stopped", || scene.instance.failure().is_some());
    assert_eq!(scene.instance.counters().faults, 1);
    scene.assert_dead("");
    assert!(scene.disk.byte(2) != 0, "it zeroed what it asked for, and nothing else");
    scene.end();
}

/// Fails whenever its job begins: within the budget it is tried again, and requests wait for that.
#[test]
fn a_job_that_traps() {
    let budget = RestartBudget { faults: 2, within: Duration::from_secs(60) };
    for (policy, faults) in [(OnFault::Fail, 1), (OnFault::Restart(budget), 3)] {
        let scene = scene(&event("unreachable", ""), Grants::READ, policy);
        until("it is out of service", || scene.instance.failure().is_some());
        assert_eq!(scene.write(0, 8, 1).expect_err("it failed").kind(), ErrorKind::Io);
        assert_eq!(scene.ends().len(), 8);
        scene.assert_dead("`unreachable`");
        let counters = scene.instance.counters();
        assert_eq!((counters.faults, counters.violations), (faults, 0));
        assert!(scene.disk.is_untouched());
        scene.end();
    }
}

/// A job is no way to a child of another node's.
#[test]
fn a_job_of_another_node() {
    let start = "(call $emit (i64.const 7) (i64.const 0x500000001) (i64.const 0) (i64.const 512))";
    let scene = scene(&event(start, ""), Grants::WRITE, OnFault::Fail);
    until("it is stopped", || scene.instance.failure().is_some());
    scene.assert_dead("has no job");
    assert_eq!(scene.instance.counters().violations, 1);
    assert!((0..BLOCKS).all(|block| scene.disk.byte(block) != 0));
    scene.end();
}
