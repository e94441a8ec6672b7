//! Answers that the layout does not allow.

use std::time::Duration;

use blockloom::ErrorKind;
use blockloom::plugin::PluginLimits;

use super::guest::Guest;
use super::scene::{Coming, Setup, check_fault};

/// The body of a `poll` that returns this list, whatever it was given.
fn list(pointer: &str, words: u32) -> String {
    format!(
        "(i32.store (i32.const 0x10) (i32.const {pointer}))
        (i32.store (i32.const 0x14) (i32.const {words})) (i32.const 0x10)"
    )
}

fn check_list(pointer: &str, words: u32, reason: &str) {
    let poll = list(pointer, words);
    let guest = Guest { poll: &poll, ..Guest::PASS };
    check_fault(guest, Coming::Together, reason);
    check_fault(guest, Coming::Alone, reason);
}

#[test]
fn lists_that_end_inside_an_entry() {
    check_list("0x10000", 1, "1 words are not a whole number of entries");
    check_list("0x10000", 3, "3 words are not a whole number of entries");
    check_list("0x10000", 5, "5 words are not a whole number of entries");
}

#[test]
fn lists_that_are_not_in_memory() {
    check_list("-32", 4, "failed in `poll`: ");
    check_list("0x5fff8", 4, "failed in `poll`: ");
    check_list("0x7ffffff8", 0x1fff_fffc, "failed in `poll`: ");
    check_list("0x10000", 0xffff_fffc, "failed in `poll`: ");
    check_list("0x10001", 4, "failed in `poll`: ");
}

#[test]
fn pointers_to_lists_that_are_not_in_memory() {
    for pointer in ["-8", "0x5fffc", "0x11"] {
        let poll = format!("(i32.const {pointer})");
        let guest = Guest { poll: &poll, ..Guest::PASS };
        check_fault(guest, Coming::Together, "failed in `poll`: ");
    }
}

#[test]
fn more_answers_than_fit() {
    // 2,049 entries; a million of them, which do lie in the guest's memory.
    check_list("0x10000", 8196, "failed in `poll`: ");
    let poll = list("0x10000", 4_000_000);
    let guest = Guest { poll: &poll, pages: 600, ..Guest::PASS };
    let limits = PluginLimits { memory_bytes: 64 << 20, ..PluginLimits::default() };
    // A module is described under the default limits: this one grows only afterwards.
    let grows = "(drop (memory.grow (i32.const 594))) (i32.const 0x100)";
    let guest = Guest { pages: 6, configure: grows, ..guest };
    let scene = Setup { limits, ..Setup::of(guest) }.start();
    let error = scene.write(0, 8, 1).expect_err("a fault");
    assert_eq!(error.kind(), ErrorKind::Io);
    scene.assert_dead("failed in `poll`: ");
    assert!(scene.disk.is_untouched());
    scene.end();
}

/// Lets go of 2,040 buffers that it never had, which is no offence, and answers eight requests.
#[test]
fn as_many_answers_as_fit() {
    let items = "(func $fill (loop $more (call $emit
            (i64.const 0x50000000b) (i64.const 0) (i64.const 0) (i64.const 0))
        (br_if $more (i32.lt_u (global.get $count) (i32.const 2040)))))";
    let poll = "(call $fill)
        (call $each (local.get $now) (local.get $events) (local.get $words)) (call $take)";
    let scene = Setup::of(Guest { poll, items, ..Guest::PASS }).start();
    scene.write(8, 8, 1).expect("written");
    assert_eq!(scene.disk.books().writes, 8);
    scene.assert_alive();
    scene.end();
}

/// The plugin answers every request with this entry.
fn check_entry(w0: &str, w1: &str, w2: &str, w3: &str, reason: &str) {
    let event = format!("(call $emit (i64.const {w0}) {w1} (i64.const {w2}) (i64.const {w3}))");
    let guest = Guest { event: &event, ..Guest::PASS };
    check_fault(guest, Coming::Together, reason);
}

const ID: &str = "(local.get $id)";

#[test]
fn tags_without_a_meaning() {
    for tag in [0, 13, 14, 15, 99, 255] {
        check_entry(&tag.to_string(), ID, "0", "0", &format!("unknown tag {tag}"));
    }
}

#[test]
fn reserved_bits() {
    check_entry("0x101", ID, "0", "0", "reserved bits 0x100 set in word 0");
    check_entry("0x4000001", ID, "0", "0", "reserved bits 0x4000000 set in word 0");
    check_entry("0x500000001", ID, "0", "0", "reserved bits 0x500000000 set in word 0");
    check_entry("1", ID, "0", "1", "reserved bits 0x1 set in word 3");
    check_entry("2", ID, "7", "0", "reserved bits 0x7 set in word 2");
    let with_parent = "(i64.or (local.get $id) (i64.const 0x100000000))";
    check_entry("1", with_parent, "0", "0", "reserved bits 0x100000000 set in word 1");
}

#[test]
fn values_without_a_meaning() {
    let no_generation = "(i64.and (local.get $id) (i64.const 0xffff))";
    check_entry("1", no_generation, "0", "0", "is not the id of a request");
    check_entry("2", "(i64.const 0)", "0", "0", "0x0 is not the id of a request");
    check_entry("0x100000000002", ID, "0", "0", "4096 is not an error number");
    check_entry("4", "(i64.const 1)", "0", "0x100001", "a length of 1048577 bytes");
    check_entry("4", "(i64.const 1)", "-1", "512", "pass the end of all offsets");
}

#[test]
fn verdicts_without_a_meaning() {
    for verdict in ["2", "255", "256", "-1", "0x8000000000000000"] {
        let poll_one = format!("(i64.const {verdict})");
        let guest = Guest { poll_one: &poll_one, ..Guest::PASS };
        check_fault(guest, Coming::Alone, "is not a verdict of poll-one");
    }
}

/// The first three of eight are forwarded, then comes something that is no answer.
const THREE_OF_EIGHT: Guest<'_> = Guest {
    event: "(if (i32.lt_u (global.get $count) (i32.const 3)) (then (call $forward (local.get $id)))
        (else (call $emit (i64.const 99) (local.get $id) (i64.const 0) (i64.const 0))))",
    ..Guest::PASS
};

#[test]
fn answers_count_up_to_the_first_that_is_none() {
    let scene = Setup::of(THREE_OF_EIGHT).start();
    scene.disk.slow_down(Duration::from_millis(20));
    scene.write(8, 8, 1).expect_err("five of them fail");
    let eio = Some(ErrorKind::Io);
    let ends = [None, None, None, eio, eio, eio, eio, eio];
    let ends: Vec<_> = ends.into_iter().enumerate().map(|(at, end)| (8 + at, end)).collect();
    assert_eq!(scene.ends(), ends);
    assert_eq!(scene.disk.books().writes, 3);
    for block in 8..16 {
        let changed = scene.disk.byte(block) == 1;
        assert_eq!(changed, block < 11, "block {block}");
    }
    scene.assert_dead("unknown tag 99");
    scene.end();
}

#[test]
fn a_forwarded_request_keeps_the_childs_error() {
    let scene = Setup::of(THREE_OF_EIGHT).start();
    scene.disk.slow_down(Duration::from_millis(20));
    scene.disk.fail_next(2);
    scene.write(8, 8, 1).expect_err("all but one of them fail");
    let kinds: Vec<_> = scene.ends().into_iter().map(|(_, kind)| kind).collect();
    let count = |kind| kinds.iter().filter(|it| **it == kind).count();
    assert_eq!(count(Some(ErrorKind::NoSpace)), 2);
    assert_eq!(count(Some(ErrorKind::Io)), 5);
    assert_eq!(count(None), 1);
    scene.assert_dead("unknown tag 99");
    scene.end();
}
