//! Events for whoever wants to know: a bounded ring for each subscriber.
//!
//! The graph's writer waits for nobody. A subscriber that is slow loses the *oldest* events, and is told
//! with the next one how many: what it reads then is the state of things nearest to now, and it knows that
//! it has to look at the graph itself for the rest.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};

use super::event::Event;
use crate::limits::EVENTS_MAX;

/// Where graph changes leave their events.
#[derive(Default)]
pub(in crate::graph) struct EventBus {
    subscribers: Mutex<Subscribers>,
}

#[derive(Default)]
struct Subscribers {
    rings: Vec<Weak<Shared>>,
    ended: bool,
}

/// An event, as a subscriber gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Generation of the graph that the change made; if it failed, of the graph that is.
    pub generation: u64,
    /// What happened.
    pub event: Event,
    /// Events that this subscriber has lost since the one before it.
    pub lost: u64,
}

/// The events of a host from the moment at which this was asked for, in order. At most
/// [`EVENTS_MAX`] wait for being read; the oldest are lost first, and counted.
pub struct Events {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared(Mutex<Ring>);

#[derive(Default)]
struct Ring {
    events: VecDeque<(u64, Event)>,
    /// Lost since the last one was read.
    lost: u64,
    waker: Option<Waker>,
    ended: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EventBus {
    pub(in crate::graph) fn subscribe(&self) -> Events {
        let shared = Arc::<Shared>::default();
        let mut subscribers = lock(&self.subscribers);
        lock(&shared.0).ended = subscribers.ended;
        subscribers.rings.retain(|ring| ring.strong_count() > 0);
        subscribers.rings.push(Arc::downgrade(&shared));
        Events { shared }
    }

    /// Logs events, and gives them to all subscribers.
    pub(in crate::graph) fn publish(&self, generation: u64, events: &[Event]) {
        events.iter().for_each(|event| event.log(generation));
        if events.is_empty() {
            return;
        }
        self.each(|ring| {
            for event in events {
                if ring.events.len() == EVENTS_MAX {
                    ring.events.pop_front();
                    ring.lost += 1;
                }
                ring.events.push_back((generation, event.clone()));
            }
        });
    }

    /// There will be no more.
    pub(in crate::graph) fn end(&self) {
        lock(&self.subscribers).ended = true;
        self.each(|ring| ring.ended = true);
    }

    fn each(&self, f: impl Fn(&mut Ring)) {
        let rings: Vec<Arc<Shared>> = {
            let mut subscribers = lock(&self.subscribers);
            subscribers.rings.retain(|ring| ring.strong_count() > 0);
            subscribers.rings.iter().filter_map(Weak::upgrade).collect()
        };
        for shared in rings {
            let mut ring = lock(&shared.0);
            f(&mut ring);
            let waker = ring.waker.take();
            drop(ring);
            waker.into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for EventBus {
    fn drop(&mut self) {
        self.end();
    }
}

impl Ring {
    fn next(&mut self) -> Option<Notice> {
        let (generation, event) = self.events.pop_front()?;
        Some(Notice { generation, event, lost: std::mem::take(&mut self.lost) })
    }
}

impl Events {
    /// The next event, if there is one by now.
    pub fn try_next(&mut self) -> Option<Notice> {
        lock(&self.shared.0).next()
    }

    /// The next event; `None` once the host has ended and all have been read.
    pub async fn next(&mut self) -> Option<Notice> {
        poll_fn(|cx| {
            let mut ring = lock(&self.shared.0);
            match ring.next() {
                None if !ring.ended => {
                    ring.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                next => Poll::Ready(next),
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::task::{Context, Wake};

    use super::*;
    use crate::block_on;
    use crate::graph::BitmapScope;

    fn event(number: usize) -> Event {
        let (scope, name) = (BitmapScope::Drive("d".into()), number.to_string());
        Event::BitmapMarkedWhole { scope, name, why: "a test".into() }
    }

    fn numbers(events: &mut Events) -> Vec<(usize, u64)> {
        let mut read = Vec::new();
        while let Some(Notice { event: Event::BitmapMarkedWhole { name, .. }, lost, .. }) =
            events.try_next()
        {
            read.push((name.parse().expect("a number"), lost));
        }
        read
    }

    /// The ring is bounded: what is lost is the oldest, and counted once.
    #[test]
    fn a_slow_subscriber_loses_the_oldest_and_is_told_how_many() {
        let bus = EventBus::default();
        let (mut slow, mut quick) = (bus.subscribe(), bus.subscribe());
        let mut seen = Vec::new();
        for number in 0..EVENTS_MAX + 3 {
            bus.publish(number as u64, &[event(number)]);
            seen.extend(numbers(&mut quick));
        }
        let all: Vec<_> = (0..EVENTS_MAX + 3).map(|number| (number, 0)).collect();
        assert_eq!(seen, all, "who keeps up loses nothing");
        let mut expect: Vec<_> = (3..EVENTS_MAX + 3).map(|number| (number, 0)).collect();
        expect[0].1 = 3;
        assert_eq!(numbers(&mut slow), expect);
        bus.publish(0, &[event(7)]);
        assert_eq!(numbers(&mut slow), [(7, 0)]);
        // One transaction with more than fits.
        let many: Vec<Event> = (0..2 * EVENTS_MAX).map(event).collect();
        bus.publish(0, &many);
        let first = slow.try_next().expect("the rest");
        assert_eq!((first.event, first.lost), (event(EVENTS_MAX), EVENTS_MAX as u64));
    }

    #[test]
    fn events_begin_with_the_subscription_and_end_with_the_host() {
        let bus = EventBus::default();
        bus.publish(1, &[event(1)]);
        let (mut events, gone) = (bus.subscribe(), bus.subscribe());
        drop(gone);
        bus.publish(2, &[event(2)]);
        assert_eq!(lock(&bus.subscribers).rings.len(), 1, "who has gone is forgotten");
        bus.end();
        let expect = Notice { generation: 2, event: event(2), lost: 0 };
        assert_eq!(block_on(events.next()), Some(expect));
        assert_eq!(block_on(events.next()), None);
        assert_eq!(block_on(bus.subscribe().next()), None, "one that comes late");
    }

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn whoever_waits_is_woken_by_an_event_and_by_the_end() {
        let bus = EventBus::default();
        let mut events = bus.subscribe();
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let mut poll = |events: &mut Events| std::pin::pin!(events.next()).poll(&mut cx);
        assert!(poll(&mut events).is_pending());
        bus.publish(1, &[event(1)]);
        assert_eq!(count.0.load(SeqCst), 1);
        assert!(poll(&mut events).is_ready());
        assert!(poll(&mut events).is_pending());
        drop(bus);
        assert_eq!(count.0.load(SeqCst), 2);
        assert_eq!(poll(&mut events), Poll::Ready(None));
    }
}
