//! What a report says of a plugin that misbehaves, and what is told of it: each violation, fault and refused claim
//! is counted, and events of claims come at most once a second.

use std::time::{Duration, Instant};

use blockloom::ErrorKind;
use blockloom::graph::Event;
use blockloom::plugin::{Grants, OnFault, PluginCounters, RestartBudget};

use super::disk::{BLOCK, BLOCKS};
use super::guest::Guest;
use super::scene::{Scene, Setup, finish};

const RESTART: OnFault =
    OnFault::Restart(RestartBudget { faults: 9, within: Duration::from_secs(60) });

fn told(scene: &mut Scene) -> Vec<Event> {
    std::iter::from_fn(|| scene.events.try_next()).map(|told| told.event).collect()
}

#[test]
fn violations_faults_and_restarts() {
    // By the block that is written: a breach, a trap, or nothing.
    let event = "(if (i64.eq (local.get $offset) (i64.const 4096))
            (then (call $emit (i64.const 99) (i64.const 0) (i64.const 0) (i64.const 0))))
        (if (i64.eq (local.get $offset) (i64.const 8192)) (then unreachable))
        (call $forward (local.get $id))";
    let mut scene =
        Setup { policy: RESTART, ..Setup::of(Guest { event, kinds: 2, ..Guest::PASS }) };
    scene.limits.hold = Duration::from_millis(200);
    let mut scene = scene.start();
    scene.write(3, 4, 1).expect("nothing");
    assert_eq!(scene.write(2, 1, 1).expect_err("fails again and again").kind(), ErrorKind::Io);
    let traps = scene.instance.counters();
    assert_eq!((traps.violations, traps.stale, traps.not_proven), (0, 0, 0));
    assert!(traps.faults > 0 && traps.restarts > 0 && traps.asked > 4, "{traps:?}");
    let events = told(&mut scene);
    let faults = |events: &[Event], violations: bool| {
        let is_it = |event: &&Event| matches!(event, Event::PluginFault { is_violation, .. } if *is_violation == violations);
        events.iter().filter(is_it).count() as u64
    };
    assert_eq!((faults(&events, false), faults(&events, true)), (traps.faults, 0));
    assert_eq!(scene.write(1, 1, 1).expect_err("breaks the protocol").kind(), ErrorKind::Io);
    let all = scene.instance.counters();
    let events = told(&mut scene);
    assert_eq!(all.violations, faults(&events, true));
    assert_eq!(all.faults - traps.faults, all.violations);
    let broken = events.iter().find(|event| matches!(event, Event::PluginFault { .. }));
    let shown = broken.expect("an event").to_string();
    assert!(
        shown.starts_with("node `evil`: its plugin `evil` failed and broke the protocol: "),
        "{shown}"
    );
    let report = scene.host.report();
    let line = format!("node `evil`: plugin `evil`: {all}");
    assert!(report.lines().any(|it| it == line), "{line}\n{report}");
    scene.end();
}

/// Claims falsely with each write, and forwards it then; the read that a stale claim needs comes first.
#[test]
fn refused_claims_are_counted_and_told_seldom() {
    let event = "(if (i32.eq (call $tag (local.get $head)) (i32.const 2)) (then
            (call $complete (local.get $id) (i64.const 5)) (return)))
        (call $emit (i64.const 0x2000001) (local.get $id) (i64.const 0) (i64.const 0))";
    let mut scene = Setup::of(Guest { event, kinds: 2, ..Guest::PASS }).start();
    let start = Instant::now();
    for _ in 0..40 {
        scene.write(0, 8, 1).expect_err("refused");
    }
    let most = 1 + start.elapsed().as_secs();
    let counters = scene.instance.counters();
    let expect = PluginCounters { asked: 320, not_proven: 320, ..PluginCounters::default() };
    assert_eq!(counters, expect);
    let claims: Vec<(u64, u64)> = told(&mut scene)
        .into_iter()
        .filter_map(|event| match event {
            Event::PluginClaimsRefused { stale, not_proven, .. } => Some((stale, not_proven)),
            _ => None,
        })
        .collect();
    assert!((1..=most).contains(&(claims.len() as u64)), "{claims:?}");
    assert_eq!(claims[0], (0, 1), "the first is told at once");
    assert!(scene.disk.is_untouched());
    scene.end();
}

/// Bytes that were read before a guest's write are claimed after it.
#[test]
fn stale_claims_are_counted_apart() {
    let items = "(global $step (mut i32) (i32.const 0)) (global $request (mut i64) (i64.const 0))
        (func $token (param $token i64) (result i64)
            (i64.or (local.get $token) (i64.shl (global.get $request) (i64.const 32))))";
    let event = "(if (i32.eq (call $tag (local.get $head)) (i32.const 1)) (then
            (global.set $request (local.get $id)) (global.set $step (i32.const 0))
            (call $emit (i64.const 4) (call $token (i64.const 1)) (i64.const 4096) (i64.const 4096))
            (return)))
        (global.set $step (i32.add (global.get $step) (i32.const 1)))
        (if (i32.eq (global.get $step) (i32.const 1)) (then
            (call $forward_notify (global.get $request)) (return)))
        (if (i32.eq (global.get $step) (i32.const 2)) (then
            (call $emit (i64.const 0x102000005) (call $token (i64.const 2)) (i64.const 4096)
                (i64.const 4096)) (return)))
        (if (i64.ne (call $errno (local.get $head)) (i64.const 116)) (then unreachable))
        (call $emit (i64.const 0x10000000b) (i64.const 0) (i64.const 0) (i64.const 0))
        (call $complete (global.get $request) (i64.const 0))";
    let wants = Grants::READ.union(Grants::WRITE_UNCHANGED);
    let scene = Setup::of(Guest { event, items, wants, kinds: 2, ..Guest::PASS }).start();
    for byte in 1..=5 {
        scene.write(1, 1, byte).expect("written");
        assert_eq!(scene.disk.byte(1), byte, "the guest's bytes stay");
    }
    let counters = scene.instance.counters();
    assert_eq!(counters, PluginCounters { asked: 5, stale: 5, ..PluginCounters::default() });
    scene.end();
}

/// What the rules let pass is counted as such, and nobody is called for it.
#[test]
fn requests_that_pass_by_rule() {
    let imports = r#"(import "blockloom:filter/host@0.1.0" "set-rules"
        (func $rules (param i32 i32 i32 i32 i32)))"#;
    let event = "(if (i32.ne (call $tag (local.get $head)) (i32.const 1)) (then (return)))
        (call $rules (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0x800))
        (call $forward (local.get $id))";
    let scene = Setup::of(Guest { event, imports, ..Guest::PASS }).start();
    scene.write(0, 1, 1).expect("asked");
    for _ in 0..10 {
        scene.write(0, BLOCKS / 2, 2).expect("passed");
    }
    let counters = scene.instance.counters();
    let passed = 10 * BLOCKS as u64 / 2;
    assert_eq!(counters, PluginCounters { asked: 1, passed, ..PluginCounters::default() });
    scene.end();
}

/// A bitmap that is lent is read, and neither cleared by a copy nor set by the guest.
#[test]
fn a_lent_bitmap_is_not_cleared() {
    let imports = r#"(import "blockloom:filter/host@0.1.0" "bitmap-set"
        (func $set (param i32 i64 i64 i32 i32)))
        (import "blockloom:filter/host@0.1.0" "bitmap-merge"
            (func $merge (param i32 i32 i32)))
        (import "blockloom:filter/host@0.1.0" "bitmap-count" (func $marked (param i32) (result i64)))"#;
    let items = "(global $request (mut i64) (i64.const 0))
        (func $refused (if (i32.ne (i32.load8_u (i32.const 0x800)) (i32.const 1)) (then unreachable)))";
    let event = "(if (i32.eq (call $tag (local.get $head)) (i32.const 2)) (then
            (if (i64.ne (call $errno (local.get $head)) (i64.const 2)) (then unreachable))
            (call $forward (global.get $request)) (return)))
        (if (i32.ne (call $tag (local.get $head)) (i32.const 1)) (then (return)))
        (if (i64.ne (local.get $offset) (i64.const 8192)) (then
            (call $forward (local.get $id)) (return)))
        (if (i64.eqz (call $marked (i32.const 0))) (then unreachable))
        (call $set (i32.const 0) (i64.const 0) (i64.const 262144) (i32.const 0) (i32.const 0x800))
        (call $refused)
        (call $set (i32.const 0) (i64.const 0) (i64.const 4096) (i32.const 1) (i32.const 0x800))
        (call $refused)
        (call $merge (i32.const 0) (i32.const 0) (i32.const 0x800))
        (call $refused)
        (global.set $request (local.get $id))
        (call $emit (i64.const 0x8010003)
            (i64.or (i64.const 1) (i64.shl (local.get $id) (i64.const 32)))
            (i64.const 4096) (i64.const 4096))";
    let target = Some(super::guest::Target { wants: Grants::WRITE });
    let guest = Guest {
        event,
        items,
        imports,
        target,
        wants: Grants::READ,
        lent: Some("map"),
        kinds: 2,
        ..Guest::PASS
    };
    let scene = Setup::of(guest).start();
    scene.write(1, 1, 7).expect("forwarded");
    scene.write(2, 1, 7).expect("forwarded in the end");
    assert_eq!(scene.instance.failure(), None);
    let block = BLOCK as u64;
    assert!(scene.dirty("disk").into_iter().eq(std::iter::once(block..3 * block)));
    assert!(scene.target.is_untouched(), "nothing was copied");
    scene.end();
}

/// Each call is well below its limit, and there are many: they are put off, and in the end the plugin is out of
/// service. Nobody else waits for more than one of them.
#[test]
fn many_calls_each_just_below_the_limit() {
    let event = "(local $n i32)
        (loop $more (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br_if $more (i32.lt_u (local.get $n) (i32.const 6000000))))
        (call $forward (local.get $id))";
    let mut setup = Setup::of(Guest { event, kinds: 2, ..Guest::PASS });
    setup.limits.cpu = Duration::from_millis(20);
    setup.limits.hold = Duration::from_millis(300);
    let scene = setup.start();
    let mut served = 0;
    let error = loop {
        match scene.write(1, 1, 7) {
            Ok(()) => served += 1,
            Err(error) => break error,
        }
        assert!(served < 2000, "nothing bounds it: {:?}", scene.instance.counters());
    };
    assert_eq!(error.kind(), ErrorKind::Io);
    let counters = scene.instance.counters();
    assert!(counters.put_off > 0, "{counters:?}");
    assert_eq!((counters.faults, counters.violations), (1, 0));
    assert_eq!(scene.disk.books().writes, served);
    scene.assert_dead("it has wanted more processor time than 20ms a second");
    scene.end();
}

/// While a guest that does not come back is stopped, a neighbour on the same worker waits for the limit of one
/// call and two milliseconds, and one of its own: of the worker's processor time, so that other work on this machine
/// does not count, but where it holds up who watches the limit; so the best of some faults counts.
#[test]
fn a_neighbour_waits_for_one_call() {
    let guest = Guest { event: "(call $forever)", kinds: 2, ..Guest::PASS };
    let call = Setup::of(guest).limits.call;
    let bound = call + Duration::from_millis(2) + Duration::from_millis(1);
    let mut best = Duration::MAX;
    for _ in 0..50 {
        if best <= bound {
            break;
        }
        let scene = Setup::of(guest).start();
        let calm = scene.host.drive("calm").expect("the neighbour");
        let read = || finish(calm.read(1 << 19, 512)).expect("the neighbour reads");
        read();
        scene.meter.take_most();
        read();
        let victim = scene.beside(|drive| finish(drive.write(0, &[1; BLOCK])));
        while !victim.is_finished() {
            read();
        }
        read();
        victim.join().expect("a result").expect_err("it is stopped");
        assert_eq!(scene.instance.counters().faults, 1);
        let most = scene.meter.take_most();
        assert!(most > Duration::from_millis(1), "{most:?}: the call is not in it");
        best = best.min(most);
        scene.end();
    }
    assert!(best <= bound, "{best:?} with calls of {call:?}");
}
