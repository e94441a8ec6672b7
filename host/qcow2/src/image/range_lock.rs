//! An asynchronous lock of ranges: first-in first-out, and safe to abandon at any await.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Holders and waiters, in the order in which they came.
#[derive(Default)]
pub(super) struct RangeLock {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    next_ticket: u64,
    entries: BTreeMap<u64, Entry>,
}

struct Entry {
    range: Range<u64>,
    waker: Option<Waker>,
}

/// A place in the queue, to be given up by [`RangeLock::release`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// A range held, or waited for; given up when it is dropped.
pub(super) struct RangeGuard<'l> {
    lock: &'l RangeLock,
    ticket: Option<Ticket>,
}

impl RangeLock {
    /// Waits until every earlier holder or waiter of an overlapping range is gone.
    ///
    /// Who holds a range must not ask for another one of the same lock: a waiter between the two would
    /// wait for the first and keep the second waiting.
    pub(super) async fn lock(&self, range: Range<u64>) -> RangeGuard<'_> {
        let guard = self.enqueue(range);
        poll_fn(|context| {
            let mut queue = self.queue();
            let Some(ticket) = &guard.ticket else { return Poll::Ready(()) };
            if queue.may_enter(ticket.0) {
                return Poll::Ready(());
            }
            if let Some(entry) = queue.entries.get_mut(&ticket.0) {
                entry.waker = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
        guard
    }

    fn enqueue(&self, range: Range<u64>) -> RangeGuard<'_> {
        let mut queue = self.queue();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        queue.entries.insert(ticket, Entry { range, waker: None });
        RangeGuard { lock: self, ticket: Some(Ticket(ticket)) }
    }

    /// Gives a place up and wakes who may have waited for it.
    pub(super) fn release(&self, ticket: Ticket) {
        let woken: Vec<Waker> = {
            let mut queue = self.queue();
            let Some(gone) = queue.entries.remove(&ticket.0) else { return };
            let later = queue.entries.range_mut(ticket.0..);
            later
                .filter(|(_, entry)| overlap(&entry.range, &gone.range))
                .filter_map(|(_, entry)| entry.waker.take())
                .collect()
        };
        woken.into_iter().for_each(Waker::wake);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn may_enter(&self, ticket: u64) -> bool {
        let Some(entry) = self.entries.get(&ticket) else { return true };
        let mut earlier = self.entries.range(..ticket);
        !earlier.any(|(_, other)| overlap(&other.range, &entry.range))
    }
}

impl RangeGuard<'_> {
    /// The place itself: the range stays held until it is released.
    pub(super) fn into_ticket(mut self) -> Option<Ticket> {
        self.ticket.take()
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.lock.release(ticket);
        }
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn overlapping_ranges_are_entered_in_the_order_of_arrival() {
        let lock = RangeLock::default();
        let mut context = Context::from_waker(Waker::noop());
        let mut first = pin!(lock.lock(0..4));
        let mut second = pin!(lock.lock(2..6));
        let mut third = pin!(lock.lock(5..8));
        let mut apart = pin!(lock.lock(8..9));
        let Poll::Ready(held) = first.as_mut().poll(&mut context) else { panic!("free") };
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(third.as_mut().poll(&mut context).is_pending(), "behind the second");
        assert!(apart.as_mut().poll(&mut context).is_ready());
        drop(held);
        assert!(third.as_mut().poll(&mut context).is_pending());
        let Poll::Ready(held) = second.as_mut().poll(&mut context) else { panic!("its turn") };
        drop(held);
        assert!(third.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn a_waiter_that_is_dropped_passes_its_turn_on() {
        let lock = RangeLock::default();
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut context = Context::from_waker(&waker);
        let mut first = pin!(lock.lock(0..1));
        let Poll::Ready(held) = first.as_mut().poll(&mut context) else { panic!("free") };
        let mut second = Box::pin(lock.lock(0..2));
        assert!(second.as_mut().poll(&mut context).is_pending());
        let mut third = pin!(lock.lock(1..2));
        assert!(third.as_mut().poll(&mut context).is_pending());
        drop(second);
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "the third was woken");
        assert!(third.as_mut().poll(&mut context).is_ready());
        drop(held);
        assert!(lock.queue().entries.len() <= 1);
    }

    #[test]
    fn a_ticket_holds_the_range() {
        let lock = RangeLock::default();
        let mut context = Context::from_waker(Waker::noop());
        let mut first = pin!(lock.lock(0..1));
        let Poll::Ready(held) = first.as_mut().poll(&mut context) else { panic!("free") };
        let ticket = held.into_ticket().expect("held");
        let mut second = pin!(lock.lock(0..1));
        assert!(second.as_mut().poll(&mut context).is_pending());
        lock.release(ticket);
        assert!(second.as_mut().poll(&mut context).is_ready());
    }
}
