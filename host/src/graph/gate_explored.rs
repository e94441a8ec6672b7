//! Requests against snapshots that are swapped, marks against a freeze: the gate's own source over the
//! atomics and locks of a scheduler that chooses who goes next. A lost wake-up is a deadlock there, and
//! fails. Orders weaker than sequential consistency are not explored; the gate uses none.

use std::sync::Arc;

use shuttle::future::block_on;
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;

mod sync {
    pub(super) use shuttle::sync::Mutex;
    pub(super) use shuttle::sync::atomic::{AtomicU64, AtomicUsize};
}
#[allow(dead_code, clippy::duplicate_mod, reason = "the same source over other atomics")]
#[path = "gate.rs"]
mod gate;

use gate::Gate;

const SCHEDULES: usize = 1_000;

/// Priorities change this often in a schedule.
const DEPTH: usize = 3;

/// Each worker makes so many requests.
const REQUESTS: u64 = 2;

/// A drive in small: a gate, the generation that is published, and the set in which each generation marks.
struct Drive {
    gate: Gate,
    generation: AtomicU64,
    marks: [AtomicU64; 3],
}

impl Drive {
    /// One request, as `LocalDrive::run` and `admit` do it.
    fn request(&self, worker: usize) {
        loop {
            let snapshot = self.generation.load(Ordering::SeqCst);
            if !self.gate.try_enter(worker) {
                block_on(self.gate.opened());
                continue;
            }
            let is_current = self.generation.load(Ordering::SeqCst) == snapshot;
            if is_current {
                self.marks[snapshot as usize].fetch_add(1, Ordering::SeqCst);
            }
            self.gate.leave(worker);
            if is_current {
                return;
            }
        }
    }

    /// A freeze: with nothing in flight the next generation, with a set of its own, is published. Returns
    /// what is frozen.
    fn freeze(&self) -> u64 {
        let closed = self.gate.close();
        block_on(self.gate.drained());
        let generation = self.generation.load(Ordering::SeqCst);
        let frozen = self.marks[generation as usize].load(Ordering::SeqCst);
        self.generation.store(generation + 1, Ordering::SeqCst);
        drop(closed);
        frozen
    }
}

fn requests_against_freezes(workers: usize, freezes: usize) {
    let marks = [(); 3].map(|()| AtomicU64::new(0));
    let drive = Arc::new(Drive { gate: Gate::new(), generation: AtomicU64::new(0), marks });
    let threads: Vec<_> = (0..workers)
        .map(|worker| {
            let drive = Arc::clone(&drive);
            thread::spawn(move || (0..REQUESTS).for_each(|_| drive.request(worker)))
        })
        .collect();
    let frozen: Vec<u64> = (0..freezes).map(|_| drive.freeze()).collect();
    threads.into_iter().for_each(|thread| thread.join().expect("a worker"));
    let marks = drive.marks.each_ref().map(|marks| marks.load(Ordering::SeqCst));
    assert_eq!(frozen, marks[..freezes], "nothing is marked in a set once it is frozen");
    assert_eq!(marks.iter().sum::<u64>(), workers as u64 * REQUESTS, "each request is in one set");
    assert_eq!(drive.gate.in_flight(), 0);
}

fn explore(scenario: fn()) {
    shuttle::check_random(scenario, SCHEDULES);
    shuttle::check_pct(scenario, SCHEDULES, DEPTH);
}

#[test]
fn marks_against_a_freeze() {
    explore(|| requests_against_freezes(2, 1));
}

#[test]
fn requests_against_two_swaps() {
    explore(|| requests_against_freezes(1, 2));
}

/// Two close it at once: it opens when both are done, and whoever waits is woken.
#[test]
fn two_writers_close_it() {
    explore(|| {
        let gate = Arc::new(Gate::new());
        let closes = |gate: Arc<Gate>| {
            thread::spawn(move || {
                let closed = gate.close();
                block_on(gate.drained());
                drop(closed);
            })
        };
        let writers = [closes(Arc::clone(&gate)), closes(Arc::clone(&gate))];
        block_on(gate.enter(0));
        gate.leave(0);
        writers.into_iter().for_each(|writer| writer.join().expect("a writer"));
        assert_eq!(gate.in_flight(), 0);
    });
}
