//! What a change pays: run by hand with `--ignored --nocapture`.

use std::hint::black_box;
use std::time::Instant;

use super::*;

const ROUNDS: u32 = 2_000_000;

fn nanoseconds(mut round: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..ROUNDS).for_each(|_| round());
    start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS)
}

#[test]
#[ignore = "a measurement"]
fn entering_and_leaving() {
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
    for workers in [1, 2, 8] {
        let guards = Guards::new(workers);
        let operation = nanoseconds(|| {
            let op = guards.granted(0, black_box(want(1, 4096..8192, &[2])), TOP);
            assert!(guards.issue(op) && guards.settle(op, || ()));
            guards.release(op);
        });
        println!("acquire, issue, settle, release; {workers} workers: {operation:.1} ns");
    }
}
