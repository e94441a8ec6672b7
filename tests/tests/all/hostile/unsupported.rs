//! Actions that this host does not offer yet: the plugin is told, and goes on.

use std::time::Duration;

use blockloom::ErrorKind;

use super::guest::Guest;
use super::scene::{Scene, Setup};

const GLOBALS: &str =
    "(global $request (mut i64) (i64.const 0)) (global $done (mut i32) (i32.const 0))
    (func $ask (param $w0 i64) (param $token i64)
        (call $emit (local.get $w0)
            (i64.or (local.get $token) (i64.shl (global.get $request) (i64.const 32)))
            (i64.const 4096) (i64.const 512)))";

fn scene(event: &str) -> Scene {
    Setup::of(Guest { event, items: GLOBALS, ..Guest::PASS }).start()
}

/// Asks for an operation, and forwards the request once told that there is no such thing.
fn check_refused(ask: &str) {
    let event = format!(
        "(if (i32.eq (call $tag (local.get $head)) (i32.const 1))
            (then (global.set $request (local.get $id)) {ask})
            (else
                (if (i64.ne (call $errno (local.get $head)) (i64.const 95)) (then unreachable))
                (if (i64.ne (local.get $id) (i64.const 77)) (then unreachable))
                (if (i32.ne (call $kind (local.get $head)) (i32.const 0)) (then unreachable))
                (call $forward (global.get $request))))"
    );
    let scene = scene(&event);
    scene.write(1, 1, 7).expect("forwarded in the end");
    assert_eq!((scene.disk.books().writes, scene.disk.byte(1)), (1, 7));
    scene.assert_alive();
    scene.end();
}

#[test]
fn every_action_to_come() {
    for head in [
        "0x3",         // copy from child 0 to child 0
        "0x4000003",   // copy and serve
        "0x708000003", // copy, and clear bitmap 7
        "0x4",         // read
        "0x904",       // read a child that there is not
        "0x5",         // write
        "0x2000005",   // write under a claim
        "0xff0006",    // status
        "0x7",         // zero
        "0x8",         // discard
    ] {
        check_refused(&format!("(call $ask (i64.const {head}) (i64.const 77))"));
    }
    let emit = |w0, w2| format!("(call $emit (i64.const {w0}) (i64.const 77) {w2} (i64.const 0))");
    check_refused(&emit(9, "(i64.const 0)"));
    check_refused(&emit(10, "(i64.add (local.get $now) (i64.const 1000))"));
}

/// Asks for `count` operations at once, and forwards the request when all are refused.
fn flood(count: u32) -> String {
    format!(
        "(if (i32.eq (call $tag (local.get $head)) (i32.const 1))
            (then
                (global.set $request (local.get $id)) (global.set $done (i32.const 0))
                (loop $more (call $ask (i64.const 0x7) (i64.const 77))
                    (br_if $more (i32.lt_u (global.get $count) (i32.const {count})))))
            (else
                (global.set $done (i32.add (global.get $done) (i32.const 1)))
                (if (i32.eq (global.get $done) (i32.const {count}))
                    (then (call $forward (global.get $request))))))"
    )
}

#[test]
fn as_many_as_fit_one_call() {
    let scene = scene(&flood(1024));
    scene.write(1, 1, 7).expect("forwarded in the end");
    scene.assert_alive();
    scene.end();
}

#[test]
fn more_than_fit_one_call() {
    let scene = scene(&flood(1025));
    assert_eq!(scene.write(1, 1, 7).expect_err("it failed").kind(), ErrorKind::Io);
    scene.assert_dead("it asked for more than 1024 operations at once");
    assert!(scene.disk.is_untouched());
    scene.end();
}

/// Keeps itself busy: each answer is another question. Its request is overdue in the end, and nobody else
/// waited for it.
#[test]
fn asking_without_end() {
    let event = "(if (i32.eq (call $tag (local.get $head)) (i32.const 1))
            (then (global.set $request (local.get $id))))
        (call $ask (i64.const 0x7) (i64.const 77))";
    let mut setup = Setup::of(Guest { event, items: GLOBALS, ..Guest::PASS });
    setup.limits.hold = Duration::from_millis(300);
    let scene = setup.start();
    assert_eq!(scene.write(1, 1, 7).expect_err("it failed").kind(), ErrorKind::Io);
    scene.assert_dead("without an answer");
    assert!(scene.disk.is_untouched());
    scene.end();
}
