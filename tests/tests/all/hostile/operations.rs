//! Operations on children that the plugin may not do, or that make no sense: it is told, and goes on.

use std::time::Duration;

use blockloom::ErrorKind;
use blockloom::plugin::Grants;

use super::disk::BLOCK;
use super::guest::Guest;
use super::scene::{Coming, Scene, Setup, check_fault};

const GLOBALS: &str =
    "(global $request (mut i64) (i64.const 0)) (global $done (mut i32) (i32.const 0))
    (func $ask (param $w0 i64) (param $token i64)
        (call $emit (local.get $w0)
            (i64.or (local.get $token) (i64.shl (global.get $request) (i64.const 32)))
            (i64.const 4096) (i64.const 512)))";

fn scene(event: &str) -> Scene {
    Setup::of(Guest { event, items: GLOBALS, ..Guest::PASS }).start()
}

/// Asks for an operation for a write, and forwards the request once told that it failed with `errno`.
fn check_refused(ask: &str, errno: u32) {
    let event = format!(
        "(if (i32.eq (call $tag (local.get $head)) (i32.const 1))
            (then
                (global.set $request (local.get $id))
                (if (i32.eq (call $kind (local.get $head)) (i32.const 1))
                    (then {ask})
                    (else (call $forward (local.get $id)))))
            (else
                (if (i64.ne (call $errno (local.get $head)) (i64.const {errno})) (then unreachable))
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
fn nothing_is_granted() {
    const EPERM: u32 = 1;
    for head in [
        "0x3",       // copy from child 0 to child 0
        "0x2000003", // the same, claimed
        "0x8000003", // the same, to clear a bitmap
        "0x4",       // read
        "0x7",       // zero
        "0x8",       // discard
    ] {
        check_refused(&format!("(call $ask (i64.const {head}) (i64.const 77))"), EPERM);
    }
}

#[test]
fn what_there_is_not() {
    let cases = [
        ("0x904", 2),      // read a child that there is not: ENOENT
        ("0xff0906", 2),   // its status
        ("0x5", 22),       // write a buffer that there is not: EINVAL
        ("0x2000005", 22), // the same under a claim
        ("0x4000003", 22), // copy to serve a write
    ];
    for (head, errno) in cases {
        check_refused(&format!("(call $ask (i64.const {head}) (i64.const 77))"), errno);
    }
}

#[test]
fn what_needs_no_grant() {
    let emit = |w0, w2| format!("(call $emit (i64.const {w0}) (i64.const 77) {w2} (i64.const 0))");
    check_refused(&emit(10, "(i64.add (local.get $now) (i64.const 1000000))"), 0);
    check_refused(&emit(10, "(i64.const 0)"), 0);
    let ask = "(call $emit (i64.const 9)
        (i64.or (i64.const 77) (i64.shl (local.get $id) (i64.const 32)))
        (i64.const 0) (i64.const 0))";
    check_refused(ask, 0);
}

#[test]
fn an_operation_for_nobody() {
    let event = "(if (i32.eq (call $tag (local.get $head)) (i32.const 1))
        (then (global.set $request (i64.const 0x70063)) (call $ask (i64.const 4) (i64.const 77))))";
    check_fault(Guest { event, items: GLOBALS, ..Guest::PASS }, Coming::Together, "not given");
    // It has gone already.
    let event = "(if (i32.eq (call $tag (local.get $head)) (i32.const 1))
        (then
            (global.set $request (local.get $id))
            (call $forward (local.get $id))
            (call $ask (i64.const 4) (i64.const 77))))";
    let scene = scene(event);
    scene.write(1, 1, 7).expect("forwarded before");
    scene.assert_dead("which it was not given");
    scene.end();
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
fn more_than_may_be_in_flight() {
    let scene = scene(&flood(2000));
    scene.write(1, 1, 7).expect("forwarded in the end: what was too much was refused");
    scene.assert_alive();
    scene.end();
}

/// Keeps itself busy: each answer is another question. It has asked too much in the end, and nobody else
/// waited for it.
#[test]
fn asking_without_end() {
    let event = "(if (i32.eq (call $tag (local.get $head)) (i32.const 1))
            (then (global.set $request (local.get $id))))
        (call $ask (i64.const 0x7) (i64.const 77))";
    let scene = scene(event);
    assert_eq!(scene.write(1, 1, 7).expect_err("it failed").kind(), ErrorKind::Io);
    scene.assert_dead("operations for request");
    assert!(scene.disk.is_untouched());
    scene.end();
}

/// The same with a timer, which is for no request.
#[test]
fn waiting_without_end() {
    let event = "(if (i32.eq (call $tag (local.get $head)) (i32.const 1))
            (then (global.set $request (local.get $id))))
        (call $emit (i64.const 10) (i64.const 77)
            (i64.add (local.get $now) (i64.const 1000)) (i64.const 0))";
    let mut setup = Setup::of(Guest { event, items: GLOBALS, ..Guest::PASS });
    setup.limits.hold = Duration::from_millis(300);
    let scene = setup.start();
    assert_eq!(scene.write(1, 1, 7).expect_err("it failed").kind(), ErrorKind::Io);
    scene.assert_dead("without an answer");
    assert!(scene.disk.is_untouched());
    scene.end();
}

/// For a write of block 8: reads block 0 and drops that before it has it; once it is over, reads block 1 under the
/// same token, and writes what that token names to block 2.
fn drop_and_read_again(second_read: &str) -> String {
    format!(
        "(if (i32.eq (call $tag (local.get $head)) (i32.const 1))
            (then
                (if (i64.ne (local.get $offset) (i64.const {eighth}))
                    (then (call $forward (local.get $id)))
                    (else
                        (global.set $request (local.get $id))
                        (call $move (i64.const 4) (i64.const 77) (i64.const 0))
                        (call $emit (i64.const {drop}) (i64.const 0) (i64.const 0) (i64.const 0))
                        {second_read})))
            (else
                (if (i64.ne (call $errno (local.get $head)) (i64.const 0)) (then unreachable))
                (global.set $done (i32.add (global.get $done) (i32.const 1)))
                (if (i32.eq (global.get $done) (i32.const 1))
                    (then (call $move (i64.const 4) (i64.const 77) (i64.const {BLOCK}))))
                (if (i32.eq (global.get $done) (i32.const 2))
                    (then (call $move (i64.const {write}) (i64.const 78) (i64.const {third}))))
                (if (i32.eq (global.get $done) (i32.const 3))
                    (then (call $forward (global.get $request))))))",
        eighth = 8 * BLOCK,
        third = 2 * BLOCK,
        drop = 11 | 77_u64 << 32,
        write = 5 | 77_u64 << 32,
    )
}

const MOVE: &str = "(func $move (param $w0 i64) (param $token i64) (param $offset i64)
    (call $emit (local.get $w0)
        (i64.or (local.get $token) (i64.shl (global.get $request) (i64.const 32)))
        (local.get $offset) (i64.const BLOCK)))";

fn dropping(second_read: &str) -> Scene {
    let items = format!("{GLOBALS} {}", MOVE.replace("BLOCK", &BLOCK.to_string()));
    let event = drop_and_read_again(second_read);
    let wants = Grants::READ.union(Grants::WRITE);
    let guest = Guest { event: &event, items: &items, wants, ..Guest::PASS };
    let scene = Setup::of(guest).start();
    scene.write(0, 1, 5).expect("forwarded");
    scene.write(1, 1, 6).expect("forwarded");
    scene
}

#[test]
fn a_buffer_that_is_dropped_while_it_is_filled_is_gone() {
    let scene = dropping("");
    scene.write(8, 1, 9).expect("forwarded in the end");
    let bytes = [2, 8].map(|block| scene.disk.byte(block));
    assert_eq!(bytes, [6, 9], "what was read under the token last");
    scene.assert_alive();
    scene.end();
}

#[test]
fn a_buffer_has_its_name_until_its_read_has_ended() {
    let scene = dropping("(call $move (i64.const 4) (i64.const 77) (i64.const 0))");
    scene.write(8, 1, 9).expect_err("not forwarded");
    scene.assert_dead("which it had not dropped");
    scene.end();
}

/// A timer that is dropped has no DONE, and counts no more: many more than may be in flight at once.
#[test]
fn timers_that_are_dropped_count_no_more() {
    let event = format!(
        "(if (i32.ne (call $tag (local.get $head)) (i32.const 1)) (then unreachable))
        (call $emit (i64.const 10) (i64.const 77)
            (i64.add (local.get $now) (i64.const 3600000000000)) (i64.const 0))
        (call $emit (i64.const {drop}) (i64.const 0) (i64.const 0) (i64.const 0))
        (call $forward (local.get $id))",
        drop = 11 | 77_u64 << 32,
    );
    let mut setup = Setup::of(Guest { event: &event, ..Guest::PASS });
    setup.limits.in_flight = 2;
    let scene = setup.start();
    for _ in 0..10 {
        scene.write(0, 8, 1).expect("forwarded");
    }
    scene.assert_alive();
    scene.end();
}
