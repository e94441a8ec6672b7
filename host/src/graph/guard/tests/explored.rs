//! Schedules that real threads rarely show: the table's own source over the locks of a scheduler that
//! chooses who goes next. A lost wake-up is a deadlock there, and fails.

use shuttle::future::block_on;
use shuttle::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use shuttle::thread;

use super::super::{By, FlightKey, OpId, SourceRange, SourceSet, Stale, Want, WatchKey};
use super::super::{queue, shard};
use super::{NESTED, TOP, place, set, want};
use std::sync::Arc;

mod sync {
    pub(super) use shuttle::sync::{Mutex, MutexGuard};
}
#[allow(dead_code, clippy::duplicate_mod, reason = "the same source over other locks")]
#[path = "../table.rs"]
mod table;
#[allow(dead_code, clippy::duplicate_mod, reason = "the same source over other locks")]
#[path = "../wait.rs"]
mod wait;

use table::Guards;

const SCHEDULES: usize = 3_000;

/// Priorities change this often in a schedule; most bugs need two or three changes.
const DEPTH: usize = 3;

fn explore(scenario: impl Fn() + Send + Sync + 'static) {
    let scenario = Arc::new(scenario);
    let again = Arc::clone(&scenario);
    shuttle::check_random(move || scenario(), SCHEDULES);
    shuttle::check_pct(move || again(), SCHEDULES, DEPTH);
}

/// Runs each on its own thread and waits for all.
fn together(bodies: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = bodies.into_iter().map(thread::spawn).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// A change of source 1 at 0..10 that must not be beside a guard.
fn change(guards: &Guards, worker: usize, is_guarded: &AtomicBool, changes: &AtomicU32) {
    let key = block_on(guards.enter(worker, &set(&[1]), &(0..10), TOP));
    changes.fetch_add(1, Ordering::SeqCst);
    assert!(!is_guarded.load(Ordering::SeqCst));
    changes.fetch_sub(1, Ordering::SeqCst);
    guards.leave(worker, key);
}

/// An operation that guards source 1 at 0..10 and must be there alone.
fn operation(guards: &Guards, worker: usize, is_guarded: &AtomicBool, changes: &AtomicU32) {
    let held = block_on(guards.acquire(worker, want(1, 0..10, &[2]), TOP)).unwrap();
    assert!(!is_guarded.swap(true, Ordering::SeqCst));
    assert_eq!(changes.load(Ordering::SeqCst), 0);
    let intact = || is_guarded.store(false, Ordering::SeqCst);
    assert!(held.issue() && held.settle(true, intact));
}

#[test]
fn changes_against_operations() {
    explore(|| {
        let shared = Arc::new((Guards::new(2), AtomicBool::new(false), AtomicU32::new(0)));
        let body = |worker, is_operation| -> Box<dyn FnOnce() + Send> {
            let shared = Arc::clone(&shared);
            Box::new(move || {
                let (guards, is_guarded, changes) = &*shared;
                let run = if is_operation { operation } else { change };
                run(guards, worker, is_guarded, changes);
            })
        };
        together(vec![body(0, false), body(1, true), body(1, false), body(0, true)]);
    });
}

#[test]
fn waiters_that_give_up() {
    explore(|| {
        let shared = Arc::new((Guards::new(2), AtomicBool::new(false), AtomicU32::new(0)));
        let body = |kind: u32| -> Box<dyn FnOnce() + Send> {
            let shared = Arc::clone(&shared);
            Box::new(move || {
                let (guards, is_guarded, changes) = &*shared;
                match kind {
                    0 => operation(guards, 0, is_guarded, changes),
                    1 => change(guards, 1, is_guarded, changes),
                    2 => drop(super::Task::new(guards.acquire(1, want(1, 5..20, &[]), TOP)).poll()),
                    _ => {
                        let (sources, range) = (set(&[1]), 5..6);
                        let mut task = super::Task::new(guards.enter(0, &sources, &range, TOP));
                        let entered = task.poll();
                        drop(task);
                        if let Some(key) = entered {
                            guards.leave(0, key);
                        }
                    }
                }
            })
        };
        together((0..4).map(body).collect());
    });
}

#[test]
fn nested_requests_end() {
    explore(|| {
        let guards = Arc::new(Guards::new(2));
        // A change of source 1 that causes a guard of source 2, beside operations on both.
        let own = Arc::clone(&guards);
        let nesting = move || {
            let key = block_on(own.enter(0, &set(&[1]), &(0..10), TOP));
            drop(block_on(own.acquire(0, want(2, 0..10, &[]), NESTED)).unwrap());
            own.leave(0, key);
        };
        let own = Arc::clone(&guards);
        let outer = move || {
            let held = block_on(own.acquire(1, want(1, 0..10, &[]), TOP)).unwrap();
            let caused = By { holds: true, ops: &[held.op()] };
            drop(block_on(own.acquire(1, want(2, 5..6, &[1]), caused)).unwrap());
        };
        let own = Arc::clone(&guards);
        let both = move || drop(block_on(own.acquire(0, want(2, 0..10, &[1]), TOP)).unwrap());
        together(vec![Box::new(nesting), Box::new(outer), Box::new(both)]);
    });
}

#[test]
fn a_fresh_watch_means_that_nothing_has_changed() {
    explore(|| {
        let shared = Arc::new((Guards::new(2), AtomicU32::new(0)));
        let own = Arc::clone(&shared);
        let reader = move || {
            let (guards, value) = &*own;
            let flag = Arc::new(std::sync::atomic::AtomicBool::new(false));
            let stale = Stale::Flag(Arc::clone(&flag));
            let key = guards.watch(&place(1, 0..10), stale).unwrap();
            let read = value.load(Ordering::SeqCst);
            let held = block_on(guards.acquire(0, want(1, 0..10, &[]), TOP)).unwrap();
            if !super::is_set(&flag) {
                assert_eq!(value.load(Ordering::SeqCst), read);
                assert!(held.issue() && held.settle(true, || ()));
            }
            drop(held);
            guards.unwatch(key);
        };
        let own = Arc::clone(&shared);
        let writer = move || {
            let (guards, value) = &*own;
            let key = block_on(guards.enter(1, &set(&[1]), &(3..4), TOP));
            value.fetch_add(1, Ordering::SeqCst);
            guards.leave(1, key);
        };
        together(vec![Box::new(reader), Box::new(writer)]);
    });
}
