//! Several workers on one instance while it faults: no request is lost, none ends twice.

use std::thread;

use blockloom::ErrorKind;

use super::disk::BLOCK;
use super::guest::Guest;
use super::scene::{Scene, Setup, finish};

const WORKERS: usize = 4;
const CLIENTS: u64 = 8;
const ROUNDS: u64 = 40;
/// Blocks of one client's request, which come to the plugin together.
const BLOCKS_EACH: u64 = 4;
/// Requests after which the plugin does its worst.
const GOOD: u64 = 400;

/// Does `usual` with the first requests, and `worst` with the next one.
fn scene(usual: &str, worst: &str) -> Scene {
    let event = format!(
        "(if (i32.eq (call $tag (local.get $head)) (i32.const 2))
            (then (call $complete (local.get $id) (call $errno (local.get $head))) (return)))
        (global.set $number (i32.add (global.get $number) (i32.const 1)))
        (if (i32.gt_u (global.get $number) (i32.const {GOOD}))
            (then {worst}) (else {usual}))"
    );
    let items = "(global $number (mut i32) (i32.const 0))";
    let setup = Setup::of(Guest { event: &event, items, ..Guest::PASS });
    Setup { workers: WORKERS, ..setup }.start()
}

/// All clients write at once, from all workers.
fn hammer(scene: &Scene) {
    thread::scope(|threads| {
        for client in 0..CLIENTS {
            let drive = scene.victim();
            threads.spawn(move || {
                let (offset, len) =
                    (client * BLOCKS_EACH * BLOCK as u64, BLOCKS_EACH as usize * BLOCK);
                for round in 0..ROUNDS {
                    let data = vec![round as u8; len];
                    if let Err(error) = finish(drive.write(offset, &data)) {
                        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
                    }
                }
            });
        }
    });
}

/// Every request ended once; those that were forwarded with success, the others with `EIO` and unwritten.
fn check_ends(scene: &Scene) -> u64 {
    let ends = scene.ends();
    assert_eq!(ends.len() as u64, CLIENTS * ROUNDS * BLOCKS_EACH);
    let written = ends.iter().filter(|(_, kind)| kind.is_none()).count() as u64;
    assert!(ends.iter().all(|(_, kind)| kind.is_none_or(|kind| kind == ErrorKind::Io)));
    assert_eq!(scene.disk.books().writes, written, "what was written is what succeeded");
    written
}

const USUAL: [&str; 3] = [
    "(call $forward (local.get $id))",
    "(call $forward_notify (local.get $id))",
    "(call $forward_at (local.get $id) (i64.add (local.get $now) (i64.const 50000)))",
];

#[test]
fn no_request_is_lost_without_a_fault() {
    for usual in USUAL {
        let scene = scene(usual, usual);
        hammer(&scene);
        assert_eq!(check_ends(&scene), CLIENTS * ROUNDS * BLOCKS_EACH);
        assert_eq!(scene.instance.failure(), None);
        scene.end();
    }
}

#[test]
fn no_request_is_lost_over_a_fault() {
    let worst = [
        ("unreachable", "`unreachable`"),
        ("(call $forever)", "interrupt"),
        ("(call $emit (i64.const 99) (i64.const 0) (i64.const 0) (i64.const 0))", "unknown tag"),
        ("(call $complete (local.get $id) (i64.const 0))", "with success"),
    ];
    for usual in USUAL {
        for (worst, reason) in worst {
            let scene = scene(usual, worst);
            hammer(&scene);
            let written = check_ends(&scene);
            assert!(written <= GOOD, "{written} were written");
            scene.assert_dead(reason);
            scene.end();
        }
    }
}

/// What one answer says before its breach counts, on whatever worker the requests wait.
#[test]
fn answers_before_a_breach_count_on_every_worker() {
    let breach = "(call $forward (local.get $id))
        (if (i32.eq (global.get $number) (i32.const 401)) (then
            (call $emit (i64.const 99) (i64.const 0) (i64.const 0) (i64.const 0))))";
    for _ in 0..10 {
        let scene = scene(USUAL[0], breach);
        hammer(&scene);
        let written = check_ends(&scene);
        assert_eq!(written, GOOD + 1, "each of the first {GOOD} was forwarded, and the last one");
        scene.assert_dead("unknown tag");
        scene.end();
    }
}

/// Refuses from then on, with an errno that nobody else uses.
#[test]
fn each_answer_reaches_its_own_request() {
    let event =
        "(if (i64.eqz (i64.and (i64.div_u (local.get $offset) (i64.const 4096)) (i64.const 1)))
        (then (call $forward (local.get $id)))
        (else (call $complete (local.get $id) (i64.const 30))))";
    let setup = Setup::of(Guest { event, ..Guest::PASS });
    let scene = Setup { workers: WORKERS, ..setup }.start();
    thread::scope(|threads| {
        for client in 0..CLIENTS {
            let (drive, round) = (scene.victim(), [client as u8; 2 * BLOCK]);
            threads.spawn(move || {
                for _ in 0..ROUNDS {
                    let error = finish(drive.write(client * 2 * BLOCK as u64, &round));
                    assert_eq!(error.expect_err("one of two").kind(), ErrorKind::ReadOnly);
                }
            });
        }
    });
    let ends = scene.ends();
    assert_eq!(ends.len() as u64, CLIENTS * ROUNDS * 2);
    let right = |block: usize| (block % 2 == 1).then_some(ErrorKind::ReadOnly);
    assert!(ends.iter().all(|(block, kind)| *kind == right(*block)));
    scene.end();
}
