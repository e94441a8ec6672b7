//! Plugins that keep requests: for ever, for long, until later; and how many they may have.

use std::time::{Duration, Instant};

use blockloom::ErrorKind;
use blockloom::bitmap::{BitmapName, Granularity};
use blockloom::graph::{BitmapDecl, BitmapScope};

use super::disk::{BLOCK, Books};
use super::guest::Guest;
use super::scene::{Coming, Scene, Setup, finish, until};

const GLOBALS: &str =
    "(global $kept (mut i64) (i64.const 0)) (global $number (mut i32) (i32.const 0))";

/// Holds every request until the end of time.
const FOR_EVER: &str = "(call $forward_at (local.get $id) (i64.const -1))";

/// Without flushes, so that the end of the host waits for nothing that such a guest keeps.
fn setup(event: &str) -> Setup<'_> {
    Setup::of(Guest { event, items: GLOBALS, kinds: 0b10_1111, ..Guest::PASS })
}

/// A flush is not held, not even one that comes after the host's other requests have ended.
#[test]
fn a_flush_is_not_held() {
    for guest in for_ever() {
        let scene = Setup::of(guest).start();
        let start = Instant::now();
        scene.flush().expect("flushed");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert_eq!(scene.disk.books().flushes, 1);
        scene.end();
    }
}

#[test]
fn never_answering() {
    for coming in [Coming::Alone, Coming::Together] {
        let mut setup = setup("");
        setup.limits.hold = Duration::from_millis(60);
        let (scene, start) = (setup.start(), Instant::now());
        let count = if coming == Coming::Alone { 1 } else { 8 };
        let error = scene.write(0, count, 1).expect_err("it failed");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(scene.ends().len(), count);
        assert_eq!(scene.disk.books(), Books::default());
        scene.assert_dead("it kept a request for more than 60ms without an answer");
        scene.end();
    }
}

/// The first request is answered when the second comes.
#[test]
fn answering_in_a_later_call() {
    let setup = setup(
        "(if (i64.eqz (global.get $kept))
            (then (global.set $kept (local.get $id)))
            (else
                (call $forward (local.get $id)) (call $forward (global.get $kept))
                (global.set $kept (i64.const 0))))",
    );
    let scene = setup.start();
    let first = scene.beside(|drive| finish(drive.write(0, &[1; BLOCK])));
    until("the plugin has it", || scene.offered() == 1);
    assert_eq!(scene.disk.books(), Books::default());
    scene.write(1, 1, 2).expect("the second");
    first.join().expect("a result").expect("the first");
    assert_eq!((scene.disk.byte(0), scene.disk.byte(1)), (1, 2));
    assert_eq!(scene.instance.failure(), None);
    scene.end();
}

/// Three requests that the plugin holds for ever.
fn held(scene: &Scene) -> Vec<std::thread::JoinHandle<blockloom::Result<()>>> {
    let held = (0..3_u64)
        .map(|at| scene.beside(move |drive| finish(drive.write(at * BLOCK as u64, &[5; BLOCK]))))
        .collect();
    until("the plugin has them", || scene.offered() == 3);
    assert_eq!(scene.disk.books(), Books::default());
    held
}

fn check_released(scene: &Scene, held: Vec<std::thread::JoinHandle<blockloom::Result<()>>>) {
    for request in held {
        request.join().expect("a result").expect("the child's result");
    }
    assert_eq!(scene.disk.books().writes, 3);
    assert!((0..3).all(|block| scene.disk.byte(block) == 5));
}

/// Both ways to say it: an action, and a verdict of `poll-one`, which carries some 2.28 years.
fn for_ever() -> [Guest<'static>; 2] {
    let event = FOR_EVER;
    [Guest { event, ..Guest::PASS }, Guest { event, poll_one: "(i64.const -255)", ..Guest::PASS }]
}

/// A request goes on when it has been held for as long as it may be; that is no fault of the plugin.
#[test]
fn a_request_is_held_no_longer_than_it_may_be() {
    for guest in for_ever() {
        let mut setup = Setup::of(guest);
        setup.limits.hold = Duration::from_millis(60);
        let (scene, start) = (setup.start(), Instant::now());
        scene.write(0, 3, 5).expect("the child's result");
        assert!(start.elapsed() >= Duration::from_millis(60), "{:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(scene.disk.books().writes, 3);
        assert_eq!(scene.instance.failure(), None);
        scene.end();
    }
}

#[test]
fn the_end_of_the_host_releases_what_is_held() {
    for guest in for_ever() {
        let scene = Setup::of(guest).start();
        let held = held(&scene);
        let (disk, start) = (std::sync::Arc::clone(&scene.disk), Instant::now());
        scene.end();
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        for request in held {
            request.join().expect("a result").expect("the child's result");
        }
        assert_eq!(disk.books().writes, 3);
    }
}

#[test]
fn a_drain_releases_what_is_held() {
    for guest in for_ever() {
        let scene = Setup::of(guest).start();
        let held = held(&scene);
        let bitmap = BitmapDecl {
            scope: BitmapScope::Node("disk".into()),
            name: BitmapName::new("b").expect("a name"),
            granularity: Granularity::from_bytes(65536).expect("a granularity"),
            enabled: true,
        };
        finish(scene.host.add_bitmap(bitmap)).expect("a moment without requests");
        check_released(&scene, held);
        assert_eq!(scene.instance.failure(), None);
        scene.end();
    }
}

/// The fourth request has the plugin trap: those held are its no more.
#[test]
fn a_fault_releases_what_is_held() {
    let event = "(global.set $number (i32.add (global.get $number) (i32.const 1)))
        (if (i32.eq (global.get $number) (i32.const 4)) (then unreachable))
        (call $forward_at (local.get $id) (i64.const -1))";
    let scene = setup(event).start();
    let held = held(&scene);
    assert_eq!(scene.write(9, 1, 9).expect_err("not forwarded").kind(), ErrorKind::Io);
    check_released(&scene, held);
    scene.assert_dead("`unreachable`");
    scene.end();
}

#[test]
fn a_held_request_is_given_another_time() {
    // The second request brings the first one forward, to now and to a time that has passed.
    for time in ["(i64.const 0)", "(i64.const 1)", "(local.get $now)"] {
        let event = format!(
            "(if (i64.eqz (global.get $kept))
                (then
                    (global.set $kept (local.get $id))
                    (call $forward_at (local.get $id) (i64.const -1)))
                (else
                    (call $forward_at (global.get $kept) {time}) (call $forward (local.get $id))))"
        );
        let scene = setup(&event).start();
        let first = scene.beside(|drive| finish(drive.write(0, &[1; BLOCK])));
        until("the plugin has it", || scene.offered() == 1);
        scene.write(1, 1, 2).expect("the second");
        first.join().expect("a result").expect("the first");
        assert_eq!(scene.disk.books().writes, 2);
        assert_eq!(scene.instance.failure(), None);
        scene.end();
    }
}

/// The plugin cannot know when the host lets a held request go: to name it once more is no offence, be
/// its place taken by another request or not.
#[test]
fn a_request_that_has_gone_is_given_another_time() {
    let event = "(if (i64.ne (global.get $kept) (i64.const 0))
            (then (call $forward_at (global.get $kept) (i64.const -1))))
        (global.set $kept (local.get $id))
        (call $forward_at (local.get $id) (i64.add (local.get $now) (i64.const 200000)))";
    let scene = setup(event).start();
    for number in 1..=20 {
        scene.write(0, 1, number).expect("written, a fifth of a millisecond late");
    }
    assert_eq!(scene.disk.books().writes, 20);
    assert_eq!(scene.instance.failure(), None);
    scene.end();
}

/// Keeps two requests, then answers both; a third before that would be one too many.
#[test]
fn no_more_requests_than_the_limit_are_in_hand() {
    let event = "(global.set $number (i32.add (global.get $number) (i32.const 1)))
        (if (i32.gt_u (global.get $number) (i32.const 2)) (then unreachable))
        (if (i32.eq (global.get $number) (i32.const 1))
            (then (global.set $kept (local.get $id)))
            (else
                (call $forward (global.get $kept)) (call $forward (local.get $id))
                (global.set $number (i32.const 0))))";
    let mut setup = setup(event);
    setup.limits.in_flight = 2;
    let scene = setup.start();
    scene.write(0, 32, 1).expect("two by two");
    assert_eq!((scene.ends().len(), scene.disk.books().writes), (32, 32));
    assert_eq!(scene.instance.failure(), None);
    scene.end();
}

/// Held requests count as well: the next ones wait for a place, and that is no fault of the plugin, which
/// has not seen them.
#[test]
fn waiting_for_a_place_is_not_the_plugins_time() {
    let event =
        "(call $forward_at (local.get $id) (i64.add (local.get $now) (i64.const 40000000)))";
    let mut setup = setup(event);
    setup.limits.in_flight = 1;
    setup.limits.hold = Duration::from_millis(120);
    let (scene, start) = (setup.start(), Instant::now());
    scene.write(0, 8, 1).expect("one by one");
    assert!(start.elapsed() >= Duration::from_millis(8 * 40), "{:?}", start.elapsed());
    assert_eq!((scene.ends().len(), scene.disk.books().writes), (8, 8));
    assert_eq!(scene.instance.failure(), None);
    scene.end();
}

#[test]
fn a_plugin_that_keeps_one_request_fails_those_that_wait_for_a_place() {
    let mut setup = setup("");
    setup.limits.in_flight = 1;
    setup.limits.hold = Duration::from_millis(60);
    let scene = setup.start();
    assert_eq!(scene.write(0, 8, 1).expect_err("it failed").kind(), ErrorKind::Io);
    assert_eq!(scene.ends().len(), 8);
    scene.assert_dead("without an answer");
    scene.end();
}
