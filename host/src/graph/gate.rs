//! The gate of an origin: counts what is in flight and can be closed.
//!
//! Entering costs one atomic add on a line that belongs to the worker. Whoever needs a moment with
//! nothing in flight closes the gate, waits for the counts to reach zero, does its work, and opens it.
//!
//! Ordering. `enter` adds, then looks whether the gate is closed; `close` closes, then looks at the
//! counts; all four are SeqCst, so at least one of two concurrent parties sees the other. `leave`
//! releases what the request did (its marks among it) to whoever then reads a count of zero; opening
//! releases the writer's work to whoever then enters.

use std::cell::Cell;
use std::future::poll_fn;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use crossbeam::utils::CachePadded;

use super::sync::{AtomicU64, AtomicUsize, Mutex};
use crate::limits::WORKERS_MAX;

/// See the module.
pub(super) struct Gate {
    in_flight: Box<[CachePadded<AtomicU64>]>,
    /// How many hold it closed.
    closed: AtomicUsize,
    /// 1 once it is not going to open for what is held back behind it.
    ends: AtomicUsize,
    /// Requests that wait for it to open.
    entrants: Waiters,
    /// Those who wait for nothing to be behind it.
    drainers: Waiters,
    /// Requests that are held back behind it, and let go when it closes.
    holders: Waiters,
}

/// Tasks to wake; each is kept once.
#[derive(Default)]
struct Waiters(Mutex<Vec<Waker>>);

impl Waiters {
    fn register(&self, cx: &Context<'_>) {
        let mut waiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiters.iter().any(|waiter| waiter.will_wake(cx.waker())) {
            waiters.push(cx.waker().clone());
        }
    }

    fn wake(&self) {
        let waiters = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        waiters.into_iter().for_each(Waker::wake);
    }
}

/// Holds a gate closed; opens it when dropped, if it has not been before.
pub(super) struct Closed<'a> {
    gate: &'a Gate,
    is_open: Cell<bool>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            in_flight: (0..WORKERS_MAX).map(|_| CachePadded::default()).collect(),
            closed: AtomicUsize::new(0),
            ends: AtomicUsize::new(0),
            entrants: Waiters::default(),
            drainers: Waiters::default(),
            holders: Waiters::default(),
        }
    }

    /// Enters unless the gate is closed; returns whether it did. Whoever did leaves once.
    #[inline]
    pub(super) fn try_enter(&self, worker: usize) -> bool {
        self.in_flight[worker].fetch_add(1, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) == 0 {
            return true;
        }
        self.leave(worker);
        false
    }

    /// Enters whether it is open or not: for what a request behind the gate causes.
    #[inline]
    pub(super) fn join(&self, worker: usize) {
        self.in_flight[worker].fetch_add(1, Ordering::SeqCst);
    }

    /// Enters as soon as the gate is open.
    pub(super) async fn enter(&self, worker: usize) {
        while !self.try_enter(worker) {
            self.opened().await;
        }
    }

    /// Waits until it is open; by the time the caller tries to enter it may be closed again.
    pub(super) async fn opened(&self) {
        poll_fn(|cx| {
            let is_open = || self.closed.load(Ordering::SeqCst) == 0;
            if is_open() {
                return Poll::Ready(());
            }
            self.entrants.register(cx);
            if is_open() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Ends a presence behind the gate.
    #[inline]
    pub(super) fn leave(&self, worker: usize) {
        self.in_flight[worker].fetch_sub(1, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) != 0 {
            self.drainers.wake();
        }
    }

    /// Closes the gate; those behind it may finish.
    pub(super) fn close(&self) -> Closed<'_> {
        self.closed.fetch_add(1, Ordering::SeqCst);
        self.holders.wake();
        Closed { gate: self, is_open: Cell::new(false) }
    }

    /// Whether the gate is closed; if not, the task is woken when it closes.
    pub(super) fn poll_closed(&self, cx: &Context<'_>) -> bool {
        if self.closed.load(Ordering::SeqCst) != 0 {
            return true;
        }
        self.holders.register(cx);
        self.closed.load(Ordering::SeqCst) != 0
    }

    /// The host ends: nobody behind it is to wait for what may not come.
    pub(super) fn end(&self) {
        self.ends.store(1, Ordering::SeqCst);
        self.holders.wake();
    }

    /// Whether [`Self::end`] was called; if not, the task is woken when it is.
    pub(super) fn poll_ends(&self, cx: &Context<'_>) -> bool {
        if self.ends.load(Ordering::SeqCst) != 0 {
            return true;
        }
        self.holders.register(cx);
        self.ends.load(Ordering::SeqCst) != 0
    }

    /// Requests behind the gate.
    pub(super) fn in_flight(&self) -> u64 {
        // Each request enters and leaves by one worker's count, so none is ever below zero.
        self.in_flight.iter().map(|count| count.load(Ordering::SeqCst)).sum()
    }

    /// Waits until nothing is behind the closed gate.
    pub(super) async fn drained(&self) {
        poll_fn(|cx| {
            if self.in_flight() == 0 {
                return Poll::Ready(());
            }
            self.drainers.register(cx);
            if self.in_flight() == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Closed<'_> {
    /// Opens it, as far as this holds it closed.
    pub(super) fn open(&self) {
        if !self.is_open.replace(true) {
            self.gate.closed.fetch_sub(1, Ordering::SeqCst);
            self.gate.entrants.wake();
        }
    }

    /// Whether it has been opened.
    pub(super) fn is_open(&self) -> bool {
        self.is_open.get()
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.open();
    }
}
