//! The timers of one worker: a heap by time, then by order of registration.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::task::Waker;

use super::time::Time;

/// Identifies one registered timer of a worker.
pub(super) type TimerKey = (Time, u64);

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

    /// Forgets a timer; its heap entry goes when its time comes.
    pub(super) fn remove(&self, key: TimerKey) {
        self.wakers.borrow_mut().remove(&key.1);
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
