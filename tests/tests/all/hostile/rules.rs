//! Rules that a guest tightens while requests are in flight: it is told that they are armed when whatever passed
//! before has ended, be it by the guest's own word, and not a moment earlier.

use std::time::Duration;

use super::disk::{BLOCK, Books};
use super::guest::Guest;
use super::scene::{Setup, finish, until};

const IMPORTS: &str = r#"(import "blockloom:filter/host@0.1.0" "set-rules"
    (func $rules (param i32 i32 i32 i32 i32)))"#;

/// Forwards block 1 by `answer`. A write of block 2 has it set rules, and fails once they are armed, after what
/// it does `$then`.
fn guest(answer: &str, then: &str) -> (String, String) {
    let items = format!(
        "(global $second (mut i64) (i64.const 0)) (global $third (mut i64) (i64.const 0))
        (data (i32.const 0xa00) \"\\02\")
        (func $tighten (call $rules (i32.const 0) (i32.const 0xa00) (i32.const 1) (i32.const 1)
            (i32.const 0x800)))
        (func $then {then})"
    );
    let event = format!(
        "(if (i32.eq (call $tag (local.get $head)) (i32.const 4)) (then
            (if (i32.eqz (call $kind (local.get $head))) (then
                (call $then) (call $complete (global.get $second) (i64.const 5))))
            (return)))
        (if (i32.eq (call $tag (local.get $head)) (i32.const 2)) (then
            (call $complete (local.get $id) (call $errno (local.get $head))) (return)))
        (if (i64.eq (local.get $offset) (i64.const 8192)) (then
            (global.set $second (local.get $id)) (call $tighten) (return)))
        (if (i64.eq (local.get $offset) (i64.const 12288)) (then
            (global.set $third (local.get $id)) (return)))
        {answer}"
    );
    (items, event)
}

/// What comes before is in flight when the rules change.
#[test]
fn armed_comes_after_what_the_guest_has_forwarded() {
    let answers = [
        "(call $forward (local.get $id))",
        "(call $forward_notify (local.get $id))",
        "(call $forward_at (local.get $id) (i64.add (local.get $now) (i64.const 50000000)))",
    ];
    for answer in answers {
        let (items, event) = guest(answer, "");
        let guest = Guest { event: &event, items: &items, imports: IMPORTS, ..Guest::PASS };
        for workers in [1, 2] {
            let scene = Setup { workers, ..Setup::of(guest) }.start();
            scene.disk.slow_down(Duration::from_millis(120));
            let first = scene.beside(|drive| finish(drive.write(BLOCK as u64, &[7; BLOCK])));
            until("it is offered", || scene.offered() == 1);
            scene.write(2, 1, 9).expect_err("failed by the plugin");
            assert_eq!(scene.disk.byte(1), 7, "{answer}: armed before it was written");
            first.join().expect("a result").expect("written");
            assert_eq!(scene.instance.failure(), None);
            assert_eq!(scene.disk.books(), Books { writes: 1, ..Books::default() });
            scene.end();
        }
    }
}

/// What the guest itself keeps has not passed: nobody waits for it, and it goes on when the rules are armed.
#[test]
fn a_request_can_be_kept_until_rules_are_armed() {
    let (items, event) =
        guest("(call $forward (local.get $id))", "(call $forward (global.get $third))");
    let guest = Guest { event: &event, items: &items, imports: IMPORTS, ..Guest::PASS };
    for workers in [1, 2] {
        let scene = Setup { workers, ..Setup::of(guest) }.start();
        let kept = scene.beside(|drive| finish(drive.write(3 * BLOCK as u64, &[7; BLOCK])));
        until("it is offered", || scene.offered() == 1);
        scene.write(2, 1, 9).expect_err("failed by the plugin");
        kept.join().expect("a result").expect("written");
        assert_eq!((scene.disk.byte(3), scene.disk.books().writes), (7, 1));
        assert_eq!(scene.instance.failure(), None);
        scene.end();
    }
}
