//! Data that is not granted, not there, or not the plugin's to claim: it gets none, changes none, and proves
//! nothing by what it has changed.

use std::time::Duration;

use blockloom::ErrorKind;
use blockloom::plugin::{ByteAccess, Grants, OnFault, RestartBudget};

use super::disk::{BLOCK, BLOCKS, first_byte};
use super::guest::Guest;
use super::scene::{Scene, Setup, until};

const EPERM: u32 = 1;
const ENOMEM: u32 = 12;
const EBUSY: u32 = 16;
const EINVAL: u32 = 22;

const IMPORTS: &str = r#"(import "blockloom:filter/bytes@0.1.0" "get"
        (func $get (param i32 i32 i32 i32 i32)))
    (import "blockloom:filter/bytes@0.1.0" "put"
        (func $put (param i32 i32 i32 i32 i32 i32)))"#;

/// Calls that have to end so; bytes to be put lie at 0x30000: 0xee each.
const ITEMS: &str = r#"
    (global $request (mut i64) (i64.const 0)) (global $step (mut i32) (i32.const 0))
    (func $ends (param $errno i32)
        (if (i32.ne (local.get $errno)
                (select (i32.load (i32.const 0x804)) (i32.const 0) (i32.load8_u (i32.const 0x800))))
            (then unreachable)))
    (func $get_ends (param $of i32) (param $id i64) (param $at i32) (param $len i32)
            (param $errno i32)
        (call $get (local.get $of) (i32.wrap_i64 (local.get $id)) (local.get $at)
            (local.get $len) (i32.const 0x800))
        (call $ends (local.get $errno)))
    (func $put_ends (param $of i32) (param $id i64) (param $at i32) (param $len i32)
            (param $errno i32)
        (memory.fill (i32.const 0x30000) (i32.const 0xee) (i32.const 0x10000))
        (call $put (local.get $of) (i32.wrap_i64 (local.get $id)) (local.get $at)
            (i32.const 0x30000) (local.get $len) (i32.const 0x800))
        (call $ends (local.get $errno)))
    (func $is_request (param $head i64) (param $kind i32) (result i32)
        (i32.and (i32.eq (call $tag (local.get $head)) (i32.const 1))
            (i32.eq (call $kind (local.get $head)) (local.get $kind))))
    (func $is_done (param $head i64) (result i32)
        (i32.eq (call $tag (local.get $head)) (i32.const 2)))"#;

/// What is done for each request of a kind; others are forwarded.
fn for_kind(kind: u32, act: &str) -> String {
    format!(
        "(if (call $is_request (local.get $head) (i32.const {kind})) (then {act}) (else
            (if (i32.eq (call $tag (local.get $head)) (i32.const 1))
                (then (call $forward (local.get $id))))))"
    )
}

fn get(of: &str, at: u32, len: u32, errno: u32) -> String {
    format!("(call $get_ends {of} (i32.const {at}) (i32.const {len}) (i32.const {errno}))")
}

fn put(of: &str, at: u32, len: u32, errno: u32) -> String {
    format!("(call $put_ends {of} (i32.const {at}) (i32.const {len}) (i32.const {errno}))")
}

const REQUEST: &str = "(i32.const 0) (local.get $id)";
const FORWARD: &str = "(call $forward (local.get $id))";
const COMPLETE: &str = "(call $complete (local.get $id) (i64.const 0))";

fn buffer(token: u32) -> String {
    format!("(i32.const 1) (i64.const {token})")
}

const ALL: Grants = Grants::READ.union(Grants::WRITE_UNCHANGED).union(Grants::WRITE);

fn setup<'a>(event: &'a str, bytes: ByteAccess) -> Setup<'a> {
    let wants_bytes = bytes as u32;
    let guest =
        Guest { event, items: ITEMS, imports: IMPORTS, wants: ALL, wants_bytes, ..Guest::PASS };
    Setup { bytes, ..Setup::of(guest) }
}

fn scene(event: &str, bytes: ByteAccess) -> Scene {
    setup(event, bytes).start()
}

/// The write of block 1 is done as it came, and nothing else.
fn check_write(act: &str, bytes: ByteAccess) {
    let event = for_kind(1, act);
    let scene = scene(&event, bytes);
    scene.write(1, 1, 7).expect("forwarded");
    assert_eq!(scene.instance.failure(), None);
    let expect = |block: usize| if block == 1 { 7 } else { first_byte(block) };
    assert!((0..BLOCKS).all(|block| scene.disk.byte(block) == expect(block)));
    let block = BLOCK as u64;
    assert!(scene.dirty("evil").into_iter().eq(std::iter::once(block..2 * block)));
    scene.assert_alive();
    scene.end();
}

#[test]
fn without_the_grant_there_are_no_bytes() {
    let calls = [
        get(REQUEST, 0, 1, EPERM),
        put(REQUEST, 0, 1, EPERM),
        get(&buffer(1), 0, 1, EPERM),
        put(&buffer(1), 0, 1, EPERM),
    ];
    check_write(&format!("{} {FORWARD}", calls.concat()), ByteAccess::None);
}

#[test]
fn who_may_look_may_not_change_a_write() {
    let calls = [get(REQUEST, 0, 4096, 0), put(REQUEST, 0, 4096, EPERM), get(REQUEST, 4095, 1, 0)];
    check_write(&format!("{} {FORWARD}", calls.concat()), ByteAccess::Read);
}

#[test]
fn who_may_look_may_not_change_a_read() {
    let (looks, changes) = (get(REQUEST, 0, 4096, 0), put(REQUEST, 0, 4096, EPERM));
    let forward = format!("{} (call $forward_notify (local.get $id))", get(REQUEST, 0, 1, EBUSY));
    let event = format!(
        "(if (call $is_done (local.get $head)) (then {looks} {changes} {COMPLETE}) (else {}))",
        for_kind(0, &forward)
    );
    let scene = scene(&event, ByteAccess::Read);
    assert_eq!(scene.read(3).expect("the disk's"), first_byte(3));
    scene.assert_alive();
    scene.end();
}

/// A read that is not forwarded: it ends the plugin which may not make an answer, or has not made one.
#[test]
fn a_read_without_an_answer_is_a_breach() {
    for bytes in [ByteAccess::Read, ByteAccess::Transform] {
        let event = for_kind(0, COMPLETE);
        let scene = scene(&event, bytes);
        assert_eq!(scene.read(3).expect_err("a breach").kind(), ErrorKind::Io);
        scene.assert_dead("completed Read");
        assert_eq!(scene.disk.books().reads, 0);
        scene.end();
    }
}

#[test]
fn what_is_not_there_is_refused() {
    let most = u32::MAX;
    let mut calls = String::new();
    let foreign = "(i32.const 0) (i64.xor (local.get $id) (i64.const 0x10001))";
    for of in [foreign, &buffer(0), &buffer(99), "(i32.const 0) (i64.const 0)"] {
        calls += &(get(of, 0, 1, EINVAL) + &put(of, 0, 1, EINVAL));
    }
    for (at, len) in [(0, 4097), (4096, 1), (4097, 0), (most, 1), (most, 0), (1, 65536)] {
        calls += &(get(REQUEST, at, len, EINVAL) + &put(REQUEST, at, len, EINVAL));
    }
    for len in [65537, 1 << 20, 1 << 31, most] {
        calls += &get(REQUEST, 0, len, EINVAL);
    }
    calls += &(get(REQUEST, 4096, 0, 0) + &put(REQUEST, 4096, 0, 0));
    check_write(&format!("{calls} {FORWARD}"), ByteAccess::Transform);
}

/// What is forwarded is out of its hands.
#[test]
fn an_answered_request_has_no_bytes() {
    let notify = "(global.set $request (local.get $id)) (call $forward_notify (local.get $id))";
    let of = "(i32.const 0) (global.get $request)";
    let [looks, changes] = [get(of, 0, 1, EBUSY), put(of, 0, 1, EBUSY)];
    let event = format!(
        "(if (call $is_done (local.get $head)) (then {looks} {changes} {COMPLETE})
        (else (if (i32.and (global.get $step) (i32.const 1)) (then {} {}))
            (if (call $is_request (local.get $head) (i32.const 1))
                (then (global.set $step (i32.const 1)) {notify})
                (else (call $forward (local.get $id))))))",
        get(of, 0, 1, EINVAL),
        put(of, 0, 1, EINVAL)
    );
    let scene = scene(&event, ByteAccess::Transform);
    scene.write(1, 1, 7).expect("forwarded");
    assert_eq!(scene.read(1).expect("a read"), 7);
    assert_eq!(scene.instance.failure(), None);
    scene.end();
}

#[test]
fn a_list_that_does_not_fit_a_call_is_a_fault() {
    let act = format!(
        "(drop (memory.grow (i32.const 64)))
        (call $put (i32.const 0) (i32.wrap_i64 (local.get $id)) (i32.const 0) (i32.const 0x30000)
            (i32.const 0x10001) (i32.const 0x800)) {FORWARD}"
    );
    let event = for_kind(1, &act);
    let scene = scene(&event, ByteAccess::Transform);
    scene.write(1, 1, 7).expect_err("a fault");
    scene.assert_dead("failed in `poll");
    assert!(scene.disk.is_untouched());
    scene.end();
}

/// Reads what block 2 holds, alters it and claims that the disk shows that.
#[test]
fn what_is_altered_proves_nothing() {
    let read = "(global.set $request (local.get $id)) (global.set $step (i32.const 0))
        (call $emit (i64.const 4) (i64.or (i64.const 1) (i64.shl (local.get $id) (i64.const 32)))
            (i64.const 8192) (i64.const 4096))";
    let claim = format!(
        "{} {}
        (call $emit (i64.const 0x102000005)
            (i64.or (i64.const 2) (i64.shl (global.get $request) (i64.const 32)))
            (i64.const 8192) (i64.const 4096))",
        get(&buffer(1), 0, 4096, 0),
        put(&buffer(1), 5, 1, 0)
    );
    let event = format!(
        "(if (call $is_done (local.get $head)) (then
            (if (global.get $step)
                (then (if (i64.ne (call $errno (local.get $head)) (i64.const {EPERM}))
                        (then unreachable))
                    (call $forward (global.get $request)))
                (else (global.set $step (i32.const 1)) {claim})))
        (else {}))",
        for_kind(1, read)
    );
    let scene = scene(&event, ByteAccess::Transform);
    scene.write(1, 1, 7).expect("forwarded in the end");
    let counters = scene.instance.counters();
    assert_eq!((scene.instance.failure(), counters.stale, counters.not_proven), (None, 0, 1));
    assert_eq!((scene.disk.byte(1), scene.disk.byte(2)), (7, first_byte(2)));
    assert_eq!(scene.disk.books().writes, 1);
    let block = BLOCK as u64;
    assert!(scene.dirty("disk").into_iter().eq(std::iter::once(block..2 * block)));
    scene.end();
}

/// Makes buffers until there is no room, and one without the grant.
#[test]
fn buffers_of_its_own_are_bounded_and_need_the_grant() {
    for (bytes, fits, errno) in [(ByteAccess::Transform, 64, ENOMEM), (ByteAccess::Read, 0, EPERM)]
    {
        let make = "(call $emit (i64.const 12)
            (i64.or (i64.extend_i32_u (global.get $step))
                (i64.shl (global.get $request) (i64.const 32)))
            (i64.const 0) (i64.const 0x100000))";
        let event = format!(
            "(if (call $is_done (local.get $head)) (then
                (if (i32.eq (global.get $step) (i32.const {fits}))
                    (then (if (i64.ne (call $errno (local.get $head)) (i64.const {errno}))
                            (then unreachable))
                        (call $forward (global.get $request)) (return)))
                (if (i64.ne (call $errno (local.get $head)) (i64.const 0)) (then unreachable))
                (global.set $step (i32.add (global.get $step) (i32.const 1))) {make})
            (else {}))",
            for_kind(
                1,
                &format!(
                    "(global.set $step (i32.const 0)) (global.set $request (local.get $id)) {make}"
                )
            )
        );
        let scene = scene(&event, bytes);
        scene.write(1, 1, 7).expect("forwarded in the end");
        scene.write(1, 1, 8).expect("there is room again");
        assert_eq!((scene.instance.failure(), scene.disk.byte(1)), (None, 8));
        scene.end();
    }
}

/// Answers reads and does writes itself, by buffers that it makes: its node shows what it likes.
#[test]
fn who_may_transform_may_do_all_of_it() {
    let make = "(global.set $request (local.get $id)) (global.set $step (i32.const 0))
        (call $emit (i64.const 12) (i64.or (i64.const 1) (i64.shl (local.get $id) (i64.const 32)))
            (i64.const 0) (i64.const 4096))";
    let write = format!(
        "{} {} (call $emit (i64.const 0x100000005)
            (i64.or (i64.const 2) (i64.shl (global.get $request) (i64.const 32)))
            (i64.const 20480) (i64.const 4096))",
        put(&buffer(1), 0, 4096, 0),
        get(&buffer(1), 4095, 1, 0)
    );
    let answer = format!("{} {COMPLETE}", put(REQUEST, 0, 4096, 0));
    let event = format!(
        "(if (call $is_done (local.get $head)) (then
            (if (i64.ne (call $errno (local.get $head)) (i64.const 0)) (then unreachable))
            (if (global.get $step)
                (then (call $complete (global.get $request) (i64.const 0)))
                (else (global.set $step (i32.const 1)) {write})))
        (else (if (call $is_request (local.get $head) (i32.const 0)) (then {answer}) (else {}))))",
        for_kind(1, make)
    );
    let scene = scene(&event, ByteAccess::Transform);
    scene.write(1, 1, 7).expect("done by the plugin");
    assert_eq!((scene.disk.byte(1), scene.disk.byte(5)), (first_byte(1), 0xee));
    // What it changes below of its own accord may show anywhere.
    let (block, all) = (BLOCK as u64, (BLOCKS * BLOCK) as u64);
    assert!(scene.dirty("disk").into_iter().eq(std::iter::once(5 * block..6 * block)));
    assert!(scene.dirty("evil").into_iter().eq(std::iter::once(0..all)));
    assert_eq!(scene.read(9).expect("answered by the plugin"), 0xee);
    assert_eq!((scene.disk.books().reads, scene.instance.failure()), (0, None));
    scene.flush().expect("a flush");
    scene.end();
}

/// A call that traps has put nothing.
#[test]
fn what_a_trapped_call_has_put_is_not_written() {
    let event = for_kind(1, &format!("{} unreachable", put(REQUEST, 0, 4096, 0)));
    let scene = scene(&event, ByteAccess::Transform);
    scene.write(1, 1, 7).expect_err("a fault");
    scene.assert_dead("");
    assert!(scene.disk.is_untouched());
    scene.end();
}

/// Fails over what the child has given to a read: the next store gets to see what it gives then.
#[test]
fn a_read_whose_answer_is_lost_is_done_again() {
    let look = format!(
        "{} (if (i32.eq (i32.load8_u (i32.load (i32.const 0x804))) (i32.const {})) (then unreachable))",
        get(REQUEST, 0, 1, 0),
        first_byte(2)
    );
    let change = put(REQUEST, 0, 4096, 0);
    let event = format!(
        "(if (call $is_done (local.get $head)) (then {look} {change} {COMPLETE}) (else {}))",
        for_kind(0, "(call $forward_notify (local.get $id))")
    );
    let budget = RestartBudget { faults: 20, within: Duration::from_secs(3600) };
    let policy = OnFault::Restart(budget);
    let scene = Setup { policy, ..setup(&event, ByteAccess::Transform) }.start();
    let read = scene.beside(|drive| {
        let data = super::scene::finish(drive.read(2 * BLOCK as u64, BLOCK)).expect("in the end");
        data.to_vec()
    });
    until("the plugin fails", || scene.instance.restarts() > 0);
    scene.disk.fill(2 * BLOCK as u64, BLOCK as u64, 9);
    assert_eq!(read.join().expect("a read"), [0xee; BLOCK]);
    assert_eq!(scene.instance.failure(), None);
    scene.end();
}

#[test]
fn what_is_wanted_has_to_be_granted_and_may_not_be_bypassed() {
    for (wants, granted, expect) in [
        (ByteAccess::Read, ByteAccess::None, "write `grant.bytes = \"read\"`"),
        (ByteAccess::Transform, ByteAccess::Read, "write `grant.bytes = \"transform\"`"),
    ] {
        let setup = Setup { bytes: granted, ..setup("", wants) };
        let instance = setup.instance().unwrap_or_else(|error| panic!("{error:?}"));
        let error = setup.start_with(&instance).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::NotPermitted);
        assert!(error.to_string().contains(expect), "{error}");
    }
    let guest = Guest { may_bypass: true, ..setup("", ByteAccess::Transform).guest };
    let setup = Setup { guest, policy: OnFault::Bypass, ..setup("", ByteAccess::Transform) };
    let instance = setup.instance().unwrap_or_else(|error| panic!("{error:?}"));
    let error = setup.start_with(&instance).err().expect("refused");
    assert!(error.to_string().contains("may not be bypassed"), "{error}");
}
