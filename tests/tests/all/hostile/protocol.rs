//! Answers that are well formed, and wrong: ids that are not the plugin's, successes that nobody earned.

use std::time::Duration;

use blockloom::ErrorKind;

use super::disk::{BLOCK, Books};
use super::guest::Guest;
use super::scene::{Coming, Scene, Setup, check_fault, finish, until};

/// Kinds without flush: a guest that fails those fails the end of the host.
const NOT_FLUSH: u32 = 0b10_1111;

fn scene(event: &str) -> Scene {
    let items = "(global $first (mut i64) (i64.const 0))";
    Setup::of(Guest { event, items, kinds: NOT_FLUSH, ..Guest::PASS }).start()
}

#[test]
fn forged_ids() {
    // Slots that there are not, and a generation that is long to come.
    for id in ["0x10063", "0x1ffff", "0xffffffff", "0x70000000"] {
        for answer in ["(call $forward ID)", "(call $complete ID (i64.const 5))"] {
            let event = answer.replace("ID", &format!("(i64.const {id})"));
            let guest = Guest { event: &event, ..Guest::PASS };
            check_fault(guest, Coming::Together, "which it was not given");
        }
    }
}

/// The first request is forwarded; with the second, the first is completed.
#[test]
fn a_stale_id() {
    let scene = scene(
        "(if (i64.eqz (global.get $first))
            (then (global.set $first (local.get $id)) (call $forward (local.get $id)))
            (else (call $complete (global.get $first) (i64.const 5))))",
    );
    scene.write(1, 1, 1).expect("the first");
    let error = scene.write(2, 1, 1).expect_err("the second");
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(scene.disk.books().writes, 1);
    scene.assert_dead("which it was not given");
    scene.end();
}

#[test]
fn completing_twice() {
    let scene = scene(
        "(call $complete (local.get $id) (i64.const 28))
        (call $complete (local.get $id) (i64.const 1))",
    );
    let error = scene.write(1, 1, 1).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "the first answer stands");
    assert_eq!(scene.ends(), [(1, Some(ErrorKind::NoSpace))]);
    scene.assert_dead("which it was not given");
    assert!(scene.disk.is_untouched());
    scene.end();
}

#[test]
fn a_success_that_the_child_did_not_give() {
    let event = "(call $complete (local.get $id) (i64.const 0))";
    let of =
        |kind: &str| format!("it completed {kind} 0x10000 with success, but did not forward it");
    check_fault(Guest { event, ..Guest::PASS }, Coming::Alone, &of("Write"));

    let scene = self::scene(event);
    assert_eq!(scene.read(1).expect_err("no bytes").kind(), ErrorKind::Io);
    scene.assert_dead(&of("Read"));
    scene.end();

    let scene = self::scene(event);
    let zeroed = finish(scene.victim().zero(0, BLOCK as u64, Default::default()));
    assert_eq!(zeroed.expect_err("not zeroed").kind(), ErrorKind::Io);
    scene.assert_dead(&of("Zero"));
    assert!(scene.disk.is_untouched());
    scene.end();

    let scene = Setup::of(Guest { event, ..Guest::PASS }).start();
    scene.flush().expect("a flush never depends on the plugin");
    assert_eq!(scene.disk.books().flushes, 1);
    scene.assert_dead(&of("Flush"));
    scene.end();
}

#[test]
fn a_discard_may_be_left_undone() {
    let scene = scene(
        "(if (i32.eq (call $kind (local.get $head)) (i32.const 3))
            (then (call $complete (local.get $id) (i64.const 0)))
            (else (call $forward (local.get $id))))",
    );
    scene.discard(1).expect("advisory");
    assert_eq!(scene.disk.books(), Books::default());
    scene.assert_alive();
    scene.end();
}

#[test]
fn a_refusal_is_the_plugins_right() {
    let cases = [
        (1, ErrorKind::NotPermitted),
        (5, ErrorKind::Io),
        (28, ErrorKind::NoSpace),
        (30, ErrorKind::ReadOnly),
        (4095, ErrorKind::Io),
    ];
    for (errno, kind) in cases {
        let scene = scene(&format!("(call $complete (local.get $id) (i64.const {errno}))"));
        assert_eq!(scene.write(1, 1, 1).expect_err("refused").kind(), kind);
        scene.write(1, 8, 1).expect_err("refused");
        assert_eq!(scene.ends().len(), 9);
        assert_eq!(scene.instance.failure(), None);
        assert!(scene.disk.is_untouched());
        scene.end();
    }
}

#[test]
fn completing_what_was_forwarded() {
    for forward in ["(call $forward ID)", "(call $forward_at ID (i64.const -1))"] {
        let forward = forward.replace("ID", "(local.get $id)");
        for errno in [0, 5] {
            let complete = format!("(call $complete (local.get $id) (i64.const {errno}))");
            let scene = scene(&(forward.clone() + &complete));
            scene.write(1, 1, 7).expect("the child's result");
            assert_eq!((scene.disk.books().writes, scene.disk.byte(1)), (1, 7));
            assert_eq!(scene.ends(), [(1, None)]);
            scene.assert_dead("it ");
            scene.end();
        }
    }
}

#[test]
fn forwarding_twice_runs_once() {
    let event = "(call $forward (local.get $id)) (call $forward_at (local.get $id) (i64.const 9))";
    let scene = scene(event);
    scene.write(8, 8, 1).expect("written");
    assert_eq!(scene.ends().len(), 8);
    assert_eq!(scene.disk.books().writes, 8);
    scene.assert_alive();
    scene.end();
}

/// Forwards with notify; answers the DONE as given.
fn when_done(answer: &str) -> String {
    format!(
        "(if (i32.eq (call $tag (local.get $head)) (i32.const 1))
            (then (call $forward_notify (local.get $id))) (else {answer}))"
    )
}

#[test]
fn a_completion_after_notify() {
    let pass_on = when_done("(call $complete (local.get $id) (call $errno (local.get $head)))");
    let scene = scene(&pass_on);
    scene.write(8, 8, 1).expect("written");
    scene.disk.fail_next(1);
    assert_eq!(scene.write(8, 1, 2).expect_err("full").kind(), ErrorKind::NoSpace);
    scene.ends();
    scene.assert_alive();
    assert_eq!(scene.disk.books().writes, 10);
    scene.end();
}

#[test]
fn an_error_after_a_success() {
    let scene = scene(&when_done("(call $complete (local.get $id) (i64.const 1))"));
    assert_eq!(scene.write(1, 1, 7).expect_err("refused").kind(), ErrorKind::NotPermitted);
    assert_eq!((scene.disk.books().writes, scene.disk.byte(1)), (1, 7));
    assert_eq!(scene.instance.failure(), None);
    scene.end();
}

#[test]
fn a_success_after_an_error() {
    let scene = scene(&when_done("(call $complete (local.get $id) (i64.const 0))"));
    scene.disk.fail_next(1);
    let error = scene.write(1, 1, 7).expect_err("the disk is full");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "the child's result stands");
    assert_eq!(scene.disk.books().writes, 1);
    scene.assert_dead("with success");
    scene.end();
}

#[test]
fn a_trap_when_told_that_it_is_done() {
    let scene = scene(&when_done("unreachable"));
    scene.write(1, 1, 7).expect("the child's result stands");
    assert_eq!((scene.disk.books().writes, scene.disk.byte(1)), (1, 7));
    scene.assert_dead("`unreachable`");
    scene.end();
}

#[test]
fn never_completing_what_is_done() {
    let guest = when_done("");
    let mut setup = Setup::of(Guest { event: &guest, ..Guest::PASS });
    setup.limits.hold = Duration::from_millis(60);
    let scene = setup.start();
    scene.write(1, 1, 7).expect("the child's result stands");
    assert_eq!((scene.disk.books().writes, scene.disk.byte(1)), (1, 7));
    scene.assert_dead("without an answer");
    scene.end();
}

/// The first request, forwarded with notify, is forwarded again while the child works on it: that must not
/// take the plugin's last word from it.
#[test]
fn a_refusal_stands_when_the_request_was_forwarded_again() {
    let scene = scene(
        "(if (i32.eq (call $tag (local.get $head)) (i32.const 1))
            (then
                (if (i64.eqz (global.get $first))
                    (then
                        (global.set $first (local.get $id)) (call $forward_notify (local.get $id)))
                    (else (call $forward (global.get $first)) (call $forward (local.get $id)))))
            (else (call $complete (local.get $id) (i64.const 1))))",
    );
    scene.disk.slow_down(Duration::from_millis(100));
    let first = scene.beside(|drive| finish(drive.write(0, &[7; BLOCK])));
    until("the child works on it", || scene.disk.books().writes == 1);
    scene.write(1, 1, 7).expect("the second");
    let refused = first.join().expect("a result").expect_err("the plugin refuses it");
    assert_eq!(refused.kind(), ErrorKind::NotPermitted);
    assert_eq!(scene.instance.failure(), None);
    assert_eq!(scene.disk.books().writes, 2);
    scene.end();
}

const CLAIM: &str =
    "(call $emit (i64.const 0x2000001) (local.get $id) (i64.const 0) (i64.const 0))";

#[test]
fn a_claim_is_refused_and_nothing_is_written() {
    let event = format!(
        "(if (i32.eq (call $tag (local.get $head)) (i32.const 1)) (then {CLAIM})
            (else (call $complete (local.get $id) (call $errno (local.get $head)))))"
    );
    let scene = scene(&event);
    assert_eq!(scene.write(1, 1, 7).expect_err("refused").kind(), ErrorKind::NotPermitted);
    scene.write(8, 8, 7).expect_err("refused");
    assert_eq!(scene.ends().len(), 9);
    assert!(scene.disk.is_untouched());
    assert_eq!(scene.instance.failure(), None);
    scene.end();
}

#[test]
fn a_refused_claim_is_no_way_round() {
    let cases = [
        ("(call $complete (local.get $id) (i64.const 0))", "with success"),
        ("(call $forward (local.get $id))", "tried to forward request"),
        (CLAIM, "tried to forward request"),
    ];
    for (answer, reason) in cases {
        let event = format!(
            "(if (i32.eq (call $tag (local.get $head)) (i32.const 1))
                (then {CLAIM}) (else {answer}))"
        );
        check_fault(Guest { event: &event, ..Guest::PASS }, Coming::Alone, reason);
        check_fault(Guest { event: &event, ..Guest::PASS }, Coming::Together, reason);
    }
}
