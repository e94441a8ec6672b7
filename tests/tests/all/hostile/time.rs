//! Plugins that do not come back, in each export; and those whom somebody else keeps from coming back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blockloom::ErrorKind;
use blockloom::plugin::InstanceError;

use super::guest::Guest;
use super::scene::{Coming, Setup, check_fault};

const LOOP: &str = "(loop $again (br $again)) unreachable";
const INTERRUPT: &str = "wasm trap: interrupt";

#[test]
fn an_endless_poll() {
    check_fault(Guest { poll: LOOP, ..Guest::PASS }, Coming::Together, INTERRUPT);
    check_fault(Guest { poll: LOOP, ..Guest::PASS }, Coming::Alone, INTERRUPT);
    check_fault(Guest { event: "(call $forever)", ..Guest::PASS }, Coming::Together, INTERRUPT);
}

#[test]
fn an_endless_poll_one() {
    check_fault(Guest { poll_one: LOOP, ..Guest::PASS }, Coming::Alone, INTERRUPT);
}

#[test]
fn an_endless_wait_for_memory() {
    let realloc = "(if (i32.ge_u (local.get $bytes) (i32.const 256)) (then (call $forever)))
        (i32.const 0x40000)";
    check_fault(Guest { realloc, ..Guest::PASS }, Coming::Together, INTERRUPT);
}

#[test]
fn an_endless_afterwards() {
    let guest = Guest { post_poll: "(call $forever)", ..Guest::PASS };
    check_fault(guest, Coming::Together, INTERRUPT);
    check_fault(guest, Coming::Alone, INTERRUPT);
}

/// A thread calls itself for ever, with a stack that never grows.
#[test]
fn an_endless_chain_of_calls() {
    let items =
        "(func $hop (param $n i32) (if (i32.gt_u (local.get $n) (i32.const 100)) (then return))
            (call $hop (i32.add (local.get $n) (i32.const 1))))
        (func $hops (loop $again (call $hop (i32.const 0)) (br $again)))";
    let guest = Guest { event: "(call $hops)", items, ..Guest::PASS };
    check_fault(guest, Coming::Together, INTERRUPT);
}

#[test]
fn endless_before_the_first_request() {
    let items = "(func $first (call $forever)) (start $first)";
    let cases = [
        (Guest { items, ..Guest::PASS }, "failed in `instantiate`"),
        (Guest { describe: LOOP, ..Guest::PASS }, "failed in `describe`"),
        (Guest { configure: LOOP, ..Guest::PASS }, "failed in `configure`"),
        (Guest { realloc: LOOP, ..Guest::PASS }, "failed in `configure`"),
    ];
    for (guest, reason) in cases {
        let start = Instant::now();
        let Err(InstanceError::Plugin(error)) = Setup::of(guest).instance() else {
            panic!("it was set up");
        };
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        let text = error.to_string();
        assert!(text.contains(reason) && text.contains(INTERRUPT), "{text}");
    }
}

#[test]
fn an_endless_welcome_to_a_node() {
    let setup = Setup::of(Guest { add_node: LOOP, ..Guest::PASS });
    let instance = setup.instance().unwrap_or_else(|error| panic!("{error:?}"));
    let text = setup.start_with(&instance).err().expect("no start").to_string();
    assert!(text.contains("failed in `add-node`") && text.contains(INTERRUPT), "{text}");
}

/// A call may take long where the user says so; the clock that ends it must still be running by then.
#[test]
fn a_long_limit_is_a_limit() {
    let mut setup = Setup::of(Guest { poll_one: LOOP, ..Guest::PASS });
    setup.limits.call = Duration::from_millis(400);
    // No other plugin that keeps a clock of this process going.
    let instance = setup.instance().unwrap_or_else(|error| panic!("{error:?}"));
    let (scene, start) = (setup.start_with(&instance).expect("a host"), Instant::now());
    assert_eq!(scene.write(0, 1, 1).expect_err("it failed").kind(), ErrorKind::Io);
    let elapsed = start.elapsed();
    assert!(elapsed > Duration::from_millis(100), "it had {elapsed:?} only");
    assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
    scene.assert_dead(INTERRUPT);
    scene.end();
}

/// Some work for each request.
const BUSY: Guest<'_> = Guest {
    items: "(func $work (local $n i32) (local.set $n (i32.const 5000000))
        (loop $again (local.set $n (i32.sub (local.get $n) (i32.const 1)))
            (br_if $again (local.get $n))))",
    event: "(call $work) (call $forward (local.get $id))",
    ..Guest::PASS
};

/// How long a request takes when nothing else goes on.
fn undisturbed() -> Duration {
    let mut setup = Setup::of(BUSY);
    setup.limits.call = Duration::from_secs(10);
    let scene = setup.start();
    let one = || {
        let start = Instant::now();
        scene.write(0, 1, 1).expect("written");
        start.elapsed()
    };
    let least = (0..10).map(|_| one()).min().expect("one of ten");
    scene.end();
    least
}

/// The limit is of the plugin's own time: a machine that is busy elsewhere is no fault of it.
#[test]
fn a_busy_machine_fails_no_plugin() {
    let mut setup = Setup::of(BUSY);
    setup.limits.call = undisturbed() * 3;
    let scene = setup.start();
    let done = AtomicBool::new(false);
    let results: Vec<_> = std::thread::scope(|threads| {
        for _ in 0..16 {
            threads.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let results = (0..10).map(|_| scene.write(0, 1, 1)).collect();
        done.store(true, Ordering::Relaxed);
        results
    });
    for result in results {
        result.expect("the plugin does its work");
    }
    scene.assert_alive();
    // The neighbour was late, as everybody was.
    scene.end_without_neighbour();
}
