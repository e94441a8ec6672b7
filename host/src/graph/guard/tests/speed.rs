//! What a change pays, beside two uncontended locks of the same run: by hand with `--ignored
//! --nocapture --test-threads=1`.

use std::hint::black_box;
use std::time::Instant;

use super::*;

const ROUNDS: u32 = 2_000_000;

fn nanoseconds(mut round: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..ROUNDS).for_each(|_| round());
    start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS)
}

fn two_locks() -> f64 {
    let lock = std::sync::Mutex::new(0u64);
    nanoseconds(|| {
        for _ in 0..2 {
            *black_box(&lock).lock().unwrap() += 1;
        }
    })
}

#[test]
#[ignore = "a measurement"]
fn entering_and_leaving() {
    println!("two locks: {:.1} ns", two_locks());
    let sources = set(&[1]);
    let in_and_out = |guards: &Guards| {
        nanoseconds(|| {
            let key = guards.try_enter(0, black_box(&sources), &(4096..8192), TOP);
            if let Some(key) = key {
                guards.leave(0, key);
            }
        })
    };
    let guards = Guards::new(2);
    println!("enter + leave, empty table: {:.1} ns", in_and_out(&guards));
    for index in 0..64 {
        let _flight = guards.entered(0, 1, index * 4096..index * 4096 + 4096);
    }
    println!("enter + leave, 64 flights: {:.1} ns", in_and_out(&guards));
    for index in 100..108 {
        let _op = guards.granted(1, want(1, index * 4096..index * 4096 + 4096, &[]), TOP);
        let _flag = guards.flag(&place(1, index * 4096..index * 4096 + 4096));
    }
    println!("the same, 8 guards and 8 watches: {:.1} ns", in_and_out(&guards));
}

#[test]
#[ignore = "a measurement"]
fn an_operation() {
    println!("two locks: {:.1} ns", two_locks());
    let wanted = want(1, 4096..8192, &[2]);
    for workers in [1, 2, 8] {
        let guards = Guards::new(workers);
        let operation = nanoseconds(|| {
            let op = guards.granted(0, black_box(wanted.clone()), TOP);
            assert!(guards.issue(op) && guards.settle(op, || ()));
        });
        println!("acquire, issue, settle; {workers} workers: {operation:.1} ns");
    }
}
