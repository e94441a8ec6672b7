//! Locks of byte ranges between a filter's own bodies.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Ranges that bodies hold against each other, first come, first served.
///
/// They order the bodies of one instance only. What other writers do is held off by the guard of
/// a copy, on the host.
///
/// ```
/// use blockloom_sdk::RangeLocks;
///
/// let locks = RangeLocks::new();
/// # let mut lock = std::pin::pin!(locks.lock(0..4096));
/// # let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
/// # let std::task::Poll::Ready(held) = std::future::Future::poll(lock.as_mut(), &mut cx) else {
/// #     unreachable!()
/// # };
/// // let held = locks.lock(0..4096).await;
/// drop(held);
/// ```
#[derive(Debug, Default)]
pub struct RangeLocks {
    /// Holders and waiters, in the order of their arrival.
    entries: RefCell<VecDeque<Entry>>,
    next: std::cell::Cell<u64>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    range: Range<u64>,
    waiter: Option<Waker>,
}

impl RangeLocks {
    /// No range is held.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until no earlier comer wants a byte of the range; holds it until the guard is dropped.
    pub fn lock(&self, range: Range<u64>) -> impl Future<Output = RangeGuard<'_>> {
        let number = self.next.get();
        self.next.set(number + 1);
        self.entries.borrow_mut().push_back(Entry { number, range, waiter: None });
        Waiting { guard: Some(RangeGuard { locks: self, number }) }
    }

    fn is_first(&self, number: u64, waker: &Waker) -> bool {
        let mut entries = self.entries.borrow_mut();
        let Some(place) = entries.iter().position(|entry| entry.number == number) else {
            return true;
        };
        let range = entries[place].range.clone();
        let blocked = entries.iter().take(place).any(|earlier| overlap(&earlier.range, &range));
        entries[place].waiter = blocked.then(|| waker.clone());
        !blocked
    }

    fn release(&self, number: u64) {
        let mut entries = self.entries.borrow_mut();
        let Some(place) = entries.iter().position(|entry| entry.number == number) else { return };
        if let Some(released) = entries.remove(place) {
            let later = entries.iter_mut().skip(place);
            later
                .filter(|entry| overlap(&entry.range, &released.range))
                .filter_map(|entry| entry.waiter.take())
                .for_each(Waker::wake);
        }
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// A range that is held, until it is dropped.
#[derive(Debug)]
pub struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    number: u64,
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        self.locks.release(self.number);
    }
}

struct Waiting<'a> {
    guard: Option<RangeGuard<'a>>,
}

impl<'a> Future for Waiting<'a> {
    type Output = RangeGuard<'a>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<RangeGuard<'a>> {
        let first = self
            .guard
            .as_ref()
            .is_some_and(|guard| guard.locks.is_first(guard.number, context.waker()));
        match self.guard.take_if(|_| first) {
            Some(guard) => Poll::Ready(guard),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[test]
    fn overlapping_ranges_come_one_after_the_other_in_order() {
        let locks = RangeLocks::new();
        let mut cx = Context::from_waker(Waker::noop());
        let (mut a, mut b) = (pin!(locks.lock(0..10)), pin!(locks.lock(5..15)));
        let (mut c, mut d) = (pin!(locks.lock(12..20)), pin!(locks.lock(20..30)));
        let Poll::Ready(first) = a.as_mut().poll(&mut cx) else { panic!("free") };
        assert!(b.as_mut().poll(&mut cx).is_pending());
        assert!(c.as_mut().poll(&mut cx).is_pending(), "b came first");
        assert!(d.as_mut().poll(&mut cx).is_ready(), "nothing overlaps");
        drop(first);
        assert!(c.as_mut().poll(&mut cx).is_pending());
        let Poll::Ready(second) = b.as_mut().poll(&mut cx) else { panic!("free") };
        drop(second);
        assert!(c.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn a_waiter_that_gives_up_blocks_nobody() {
        let locks = RangeLocks::new();
        let mut cx = Context::from_waker(Waker::noop());
        let mut held = Box::pin(locks.lock(0..10));
        let mut waiting = Box::pin(locks.lock(0..10));
        let mut last = Box::pin(locks.lock(0..10));
        let guard = held.as_mut().poll(&mut cx);
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        assert!(last.as_mut().poll(&mut cx).is_pending());
        drop((guard, waiting));
        assert!(last.as_mut().poll(&mut cx).is_ready());
    }
}
