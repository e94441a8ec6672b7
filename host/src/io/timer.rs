//! The timers of one worker: a heap by time, then by order of registration.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::task::Waker;

use super::time::Time;

/// Identifies one registered timer of a worker.
pub(super) type TimerKey = (Time, u64);

/// Entries of forgotten timers that are kept, beside as many as there are timers.
const FORGOTTEN_MAX: usize = 64;

/// Wakers by time. Bounded by the worker's tasks: each waits for few timers at once.
#[derive(Default)]
pub(super) struct Timers {
    heap: RefCell<BinaryHeap<Reverse<TimerKey>>>,
    wakers: RefCell<HashMap<u64, Waker>>,
    next: Cell<u64>,
}

impl Timers {
    /// Wakes `waker` at `at`.
    pub(super) fn insert(&self, at: Time, waker: Waker) -> TimerKey {
        let sequence = self.next.get();
        self.next.set(sequence + 1);
        self.heap.borrow_mut().push(Reverse((at, sequence)));
        self.wakers.borrow_mut().insert(sequence, waker);
        (at, sequence)
    }

    /// Replaces the waker of a timer that has not fired.
    pub(super) fn update(&self, key: TimerKey, waker: &Waker) {
        if let Some(registered) = self.wakers.borrow_mut().get_mut(&key.1) {
            registered.clone_from(waker);
        }
    }

    /// Forgets a timer. Its heap entry goes when its time comes, or when most of them are of no use.
    pub(super) fn remove(&self, key: TimerKey) {
        let mut wakers = self.wakers.borrow_mut();
        wakers.remove(&key.1);
        let mut heap = self.heap.borrow_mut();
        if heap.len() > 2 * wakers.len() + FORGOTTEN_MAX {
            heap.retain(|Reverse((_, sequence))| wakers.contains_key(sequence));
        }
    }

    /// When the next timer fires.
    pub(super) fn next(&self) -> Option<Time> {
        let mut heap = self.heap.borrow_mut();
        let wakers = self.wakers.borrow();
        while let Some(Reverse((at, sequence))) = heap.peek() {
            if wakers.contains_key(sequence) {
                return Some(*at);
            }
            heap.pop();
        }
        None
    }

    /// Fires every timer that is due; returns how many.
    pub(super) fn fire(&self, now: Time) -> usize {
        let mut count = 0;
        while let Some(at) = self.next() {
            if at > now {
                break;
            }
            let due = self.heap.borrow_mut().pop();
            let waker = due.and_then(|Reverse((_, key))| self.wakers.borrow_mut().remove(&key));
            if let Some(waker) = waker {
                waker.wake();
                count += 1;
            }
        }
        count
    }
}
