//! Claims that are false, and copies that make no sense: nothing is written, the plugin is told why, and the
//! bytes and bitmaps are as if it had not asked.

use std::fmt::Write as _;

use blockloom::plugin::Grants;

use super::disk::{BLOCK, BLOCKS, first_byte};
use super::guest::{Guest, Target};
use super::scene::{Scene, Setup};

const EPERM: u32 = 1;
const ENOENT: u32 = 2;
const ENOMEM: u32 = 12;
const EINVAL: u32 = 22;
const ESTALE: u32 = 116;

const CLAIM: u64 = 2 << 24;
const CLEAR: u64 = 8 << 24;

/// One operation, and how it ends. Its token is its number, from 1 on.
#[derive(Clone, Copy)]
struct Step {
    head: u64,
    offset: u64,
    len: u64,
    errno: u32,
}

fn step(head: u64, offset: u64, len: u64, errno: u32) -> Step {
    Step { head, offset, len, errno }
}

fn copy(from: u64, to: u64, flags: u64) -> u64 {
    3 | from << 8 | to << 16 | flags
}

fn read(child: u64) -> u64 {
    4 | child << 8
}

/// To `child`, of the buffer that step number `of` has filled.
fn write(child: u64, of: u64, flags: u64) -> u64 {
    5 | child << 8 | of << 32 | flags
}

/// The step that forwards the request, and awaits its end.
const FORWARDED: Step = Step { head: 0, offset: 0, len: 0, errno: 0 };

/// Does the steps for each write, one after the other, and forwards it in the end; forwards all else.
fn event(steps: &[Step]) -> String {
    let mut text = String::from(
        "(if (i32.eq (call $tag (local.get $head)) (i32.const 1)) (then
            (if (i32.ne (call $kind (local.get $head)) (i32.const 1))
                (then (call $forward (local.get $id)) (return)))
            (global.set $request (local.get $id))
            (global.set $step (i32.const 0)) (global.set $forwarded (i32.const 0)))
        (else
            (if (i32.ne (call $tag (local.get $head)) (i32.const 2)) (then (return)))",
    );
    for (at, step) in steps.iter().enumerate() {
        let errno = step.errno;
        let _ = write!(
            text,
            "(if (i32.eq (global.get $step) (i32.const {at})) (then
                (if (i64.ne (call $errno (local.get $head)) (i64.const {errno}))
                    (then unreachable))))"
        );
    }
    text.push_str("(global.set $step (i32.add (global.get $step) (i32.const 1)))))");
    for (at, step) in steps.iter().enumerate() {
        let Step { head, offset, len, .. } = step;
        let act = match head {
            0 => "(global.set $forwarded (i32.const 1))
                (call $forward_notify (global.get $request))"
                .to_owned(),
            _ => format!(
                "(call $emit (i64.const {head})
                    (i64.or (i64.const {}) (i64.shl (global.get $request) (i64.const 32)))
                    (i64.const {offset}) (i64.const {len}))",
                at + 1
            ),
        };
        let _ =
            write!(text, "(if (i32.eq (global.get $step) (i32.const {at})) (then {act} (return)))");
    }
    text.push_str(
        "(if (global.get $forwarded)
            (then (call $complete (global.get $request) (i64.const 0)))
            (else (call $forward (global.get $request))))",
    );
    text
}

const GLOBALS: &str = "(global $request (mut i64) (i64.const 0))
    (global $step (mut i32) (i32.const 0)) (global $forwarded (mut i32) (i32.const 0))";

const ALL: Grants = Grants::READ.union(Grants::WRITE_UNCHANGED).union(Grants::WRITE);

fn scene(event: &str, items: &str, imports: &str) -> Scene {
    let target = Some(Target { wants: ALL });
    let guest = Guest { event, items, imports, wants: ALL, target, ..Guest::PASS };
    Setup::of(guest).start()
}

/// Does the steps for a write to block 1, which is all that happens.
fn check(steps: &[Step]) {
    let scene = scene(&event(steps), GLOBALS, "");
    assert_only_the_write(&scene);
    scene.end();
}

fn assert_only_the_write(scene: &Scene) {
    scene.write(1, 1, 7).expect("forwarded in the end");
    assert_eq!(scene.instance.failure(), None);
    let expect = |block: usize| if block == 1 { 7 } else { first_byte(block) };
    assert!((0..BLOCKS).all(|block| scene.disk.byte(block) == expect(block)));
    assert!(scene.target.is_untouched());
    let block = BLOCK as u64;
    assert!(scene.dirty("disk").into_iter().eq(std::iter::once(block..2 * block)));
    assert_eq!(scene.dirty("target"), []);
    scene.assert_alive();
}

const AT: u64 = 2 * BLOCK as u64;
const ONE: u64 = BLOCK as u64;

#[test]
fn bytes_are_unchanged_only_where_they_were_read() {
    check(&[step(read(0), AT, ONE, 0), step(write(0, 1, CLAIM), AT + ONE, ONE, EPERM)]);
    check(&[step(read(0), AT, ONE, 0), step(write(0, 1, CLAIM), AT + 512, ONE, EPERM)]);
}

#[test]
fn a_buffer_is_written_whole() {
    check(&[step(read(0), AT, ONE, 0), step(write(0, 1, CLAIM), AT, 512, EINVAL)]);
    check(&[step(read(0), AT, ONE, 0), step(write(0, 1, 0), AT, 512, EINVAL)]);
}

#[test]
fn bytes_that_a_guest_has_changed_since_are_stale() {
    let claim = step(write(0, 1, CLAIM), ONE, ONE, ESTALE);
    let scene = scene(&event(&[step(read(0), ONE, ONE, 0), FORWARDED, claim]), GLOBALS, "");
    scene.write(1, 1, 7).expect("forwarded");
    assert_eq!(scene.instance.failure(), None);
    assert_eq!((scene.disk.byte(1), scene.disk.books().writes), (7, 1), "the guest's bytes stay");
    scene.end();
}

#[test]
fn bytes_of_one_child_prove_nothing_of_another() {
    check(&[step(read(1), AT, ONE, 0), step(write(0, 1, CLAIM), AT, ONE, EPERM)]);
    check(&[step(read(0), AT, ONE, 0), step(write(1, 1, CLAIM), AT, ONE, EPERM)]);
    check(&[step(copy(0, 1, CLAIM), AT, ONE, EPERM)]);
    check(&[step(copy(1, 0, CLAIM), AT, ONE, EPERM)]);
}

/// What is true is done, and dirties nothing.
#[test]
fn a_claim_that_holds() {
    check(&[step(read(0), AT, ONE, 0), step(write(0, 1, CLAIM), AT, ONE, 0)]);
}

#[test]
fn copies_past_the_end_copy_nothing() {
    let end = BLOCKS as u64 * ONE;
    for (offset, len) in [(end, ONE), (u64::MAX - ONE, ONE), (end, 1 << 20)] {
        check(&[step(copy(0, 1, 0), offset, len, 0)]);
        check(&[step(read(0), offset, len, EINVAL)]);
    }
}

#[test]
fn copies_of_no_length_or_too_much_are_breaches() {
    for (offset, len) in [(0, 0), (0, (1 << 20) + 1), (u64::MAX, 2), (0, u64::MAX)] {
        for head in [copy(0, 1, 0), read(0)] {
            let scene = scene(&event(&[step(head, offset, len, 0)]), GLOBALS, "");
            scene.write(1, 1, 7).expect_err("a breach");
            scene.assert_dead("");
            assert!(scene.disk.is_untouched() && scene.target.is_untouched());
            assert_eq!(scene.dirty("target"), []);
            scene.end();
        }
    }
}

#[test]
fn a_bitmap_that_there_is_not_is_not_cleared() {
    for bitmap in [0, 7, u64::from(u32::MAX)] {
        check(&[step(copy(0, 1, CLEAR) | bitmap << 32, AT, ONE, ENOENT)]);
    }
}

#[test]
fn a_request_cannot_use_what_was_read_for_another() {
    // The first write reads, and ends; the second one writes its buffer.
    let event = "(if (i32.eq (call $tag (local.get $head)) (i32.const 2)) (then
            (if (global.get $step)
                (then (if (i64.ne (call $errno (local.get $head)) (i64.const 22)) (then unreachable)))
                (else (if (i64.ne (call $errno (local.get $head)) (i64.const 0)) (then unreachable))))
            (global.set $step (i32.const 1))
            (call $forward (global.get $request)) (return)))
        (if (i32.ne (call $kind (local.get $head)) (i32.const 1))
            (then (call $forward (local.get $id)) (return)))
        (global.set $request (local.get $id))
        (if (global.get $step)
            (then (call $emit (i64.const 0x102000005)
                (i64.or (i64.const 9) (i64.shl (local.get $id) (i64.const 32)))
                (i64.const 8192) (i64.const 4096)))
            (else (call $emit (i64.const 4)
                (i64.or (i64.const 1) (i64.shl (local.get $id) (i64.const 32)))
                (i64.const 8192) (i64.const 4096))))";
    let scene = scene(event, GLOBALS, "");
    scene.write(5, 1, first_byte(5)).expect("forwarded");
    scene.write(1, 1, 7).expect("forwarded");
    assert_eq!(scene.instance.failure(), None);
    assert_eq!(scene.disk.byte(2), first_byte(2));
    scene.assert_alive();
    scene.end();
}

/// What is read and never let go of is bounded, and ends with its request.
#[test]
fn buffers_that_are_never_dropped_are_bounded() {
    let all = BLOCKS as u64 * ONE;
    let fits = (64 << 20) / all;
    let mut steps: Vec<Step> = (0..fits).map(|_| step(read(0), 0, all, 0)).collect();
    steps.push(step(read(0), 0, 1, ENOMEM));
    check(&steps);
}

#[test]
fn a_claim_on_a_request_that_is_not_proven() {
    let event = "(if (i32.eq (call $tag (local.get $head)) (i32.const 2)) (then
            (if (i64.ne (call $errno (local.get $head)) (i64.const 1)) (then unreachable))
            (call $complete (local.get $id) (i64.const 5)) (return)))
        (if (i64.eq (local.get $offset) (i64.const 8192))
            (then (call $emit (i64.const 0x2000001) (local.get $id) (i64.const 0) (i64.const 0)))
            (else (call $forward (local.get $id))))";
    let scene = scene(event, GLOBALS, "");
    scene.write(2, 1, 9).expect_err("refused");
    assert_eq!(scene.disk.byte(2), first_byte(2));
    assert_eq!(scene.disk.books().writes, 0);
    scene.write(1, 1, 7).expect("forwarded");
    assert_eq!((scene.disk.byte(1), scene.disk.books().writes), (7, 1));
    scene.assert_alive();
    scene.end();
}

/// Asks for bitmaps without end, and for rules that make no sense, in one call.
#[test]
fn floods_of_bitmaps_and_rules_are_refused() {
    let imports = r#"(import "blockloom:filter/host@0.1.0" "bitmap-own"
            (func $own (param i32 i32 i32 i64 i32)))
        (import "blockloom:filter/host@0.1.0" "bitmap-set"
            (func $set (param i32 i64 i64 i32 i32)))
        (import "blockloom:filter/host@0.1.0" "set-rules"
            (func $rules (param i32 i32 i32 i32 i32)))"#;
    // The names are one byte each; the result is at 0x800: 0 for a bitmap, 1 for a refusal.
    let items = format!(
        "{GLOBALS} (global $made (mut i32) (i32.const 0))
        (func $flood (local $n i32)
            (loop $more
                (i32.store8 (i32.const 0x900) (i32.add (local.get $n) (i32.const 33)))
                (call $own (i32.const 0) (i32.const 0x900) (i32.const 1) (i64.const 4096)
                    (i32.const 0x800))
                (if (i32.eqz (i32.load8_u (i32.const 0x800)))
                    (then (global.set $made (i32.add (global.get $made) (i32.const 1)))))
                (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (br_if $more (i32.lt_u (local.get $n) (i32.const 90))))
            (if (i32.ne (global.get $made) (i32.const 16)) (then unreachable))
            (call $refused_own (i32.const 0) (i64.const 4095))
            (call $refused_own (i32.const 9) (i64.const 4096))
            (call $set (i32.const 77) (i64.const 0) (i64.const 1) (i32.const 1) (i32.const 0x800))
            (call $refused)
            (call $set (i32.const 0) (i64.const -1) (i64.const -1) (i32.const 1) (i32.const 0x800))
            (if (i32.load8_u (i32.const 0x800)) (then unreachable))
            (i32.store (i32.const 0xa00) (i32.const -1))
            (call $rules (i32.const 0) (i32.const 0xa00) (i32.const 1) (i32.const 1)
                (i32.const 0x800))
            (call $refused)
            (call $rules (i32.const 0) (i32.const 0x20000) (i32.const 33) (i32.const 1)
                (i32.const 0x800))
            (call $refused)
            (call $rules (i32.const 5) (i32.const 0xa00) (i32.const 0) (i32.const 1)
                (i32.const 0x800))
            (call $refused))
        (func $refused (if (i32.ne (i32.load8_u (i32.const 0x800)) (i32.const 1)) (then unreachable)))
        (func $refused_own (param $node i32) (param $granularity i64)
            (call $own (local.get $node) (i32.const 0x900) (i32.const 1) (local.get $granularity)
                (i32.const 0x800))
            (call $refused))"
    );
    let event = "(if (i32.eq (call $tag (local.get $head)) (i32.const 1)) (then
        (if (i32.and (i32.eq (call $kind (local.get $head)) (i32.const 1))
                (i32.eqz (global.get $made)))
            (then (call $flood)))
        (call $forward (local.get $id))))";
    let scene = scene(event, &items, imports);
    assert_only_the_write(&scene);
    scene.end();
}

/// Fills the list of a call with rules until there is no memory for them.
#[test]
fn a_list_that_does_not_fit_a_call_is_a_fault() {
    let imports = r#"(import "blockloom:filter/host@0.1.0" "set-rules"
            (func $rules (param i32 i32 i32 i32 i32)))"#;
    let event = "(drop (memory.grow (i32.const 64)))
        (call $rules (i32.const 0) (i32.const 0x20000) (i32.const 60000) (i32.const 1)
            (i32.const 0x800))
        (call $forward (local.get $id))";
    let scene = scene(event, GLOBALS, imports);
    scene.write(1, 1, 7).expect_err("a fault");
    scene.assert_dead("failed in `poll");
    assert!(scene.disk.is_untouched());
    scene.end();
}

/// Operations of a job that was never begun, and of a node that there is not.
#[test]
fn work_of_nobody_ends_the_plugin() {
    for node in [0, 3] {
        let event = format!(
            "(call $emit (i64.const 4) (i64.or (i64.const 1) (i64.shl (i64.const {node})
                (i64.const 32))) (i64.const 0) (i64.const 4096))
            (call $forward (local.get $id))"
        );
        let scene = scene(&event, GLOBALS, "");
        scene.write(1, 1, 7).expect_err("a breach");
        scene.assert_dead("has no job");
        assert!(scene.disk.is_untouched());
        scene.end();
    }
}
