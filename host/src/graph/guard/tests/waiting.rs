//! The order in which those that wait are let in, and that none is forgotten.

use super::*;

/// A waiting operation or change that has been polled once and must wait.
fn waiting<'a, T>(future: impl Future<Output = T> + 'a) -> Task<'a, T> {
    let mut task = Task::new(future);
    assert!(task.poll().is_none());
    task
}

#[test]
fn operations_are_granted_in_the_order_they_asked() {
    let guards = Guards::new(2);
    let first = guards.granted(0, want(1, 0..10, &[]), TOP);
    let mut second = waiting(guards.acquire(1, want(1, 5..15, &[]), TOP));
    let mut third = waiting(guards.acquire(0, want(1, 12..20, &[]), TOP));
    assert!(third.poll().is_none(), "only the second, in the queue, stands in its way");
    guards.release(first);
    assert!(third.poll().is_none());
    assert!(second.is_woken());
    let held = second.poll().unwrap().unwrap();
    assert!(third.poll().is_none());
    drop(held);
    assert!(third.is_woken());
    drop(third.poll().unwrap().unwrap());
}

#[test]
fn release_wakes_in_ticket_order() {
    struct Log(usize, Arc<std::sync::Mutex<Vec<usize>>>);
    impl Wake for Log {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().push(self.0);
        }
    }
    let guards = Guards::new(3);
    let op = guards.granted(0, want(1, 0..100, &[]), TOP);
    let log = Arc::default();
    let tickets: Vec<Ticket> = (0..6)
        .map(|index| {
            let waker = Waker::from(Arc::new(Log(index, Arc::clone(&log))));
            let worker = 2 - index % 3;
            if index % 2 == 0 {
                let ticket = guards.park(worker, set(&[1]), 0..10);
                assert!(guards.try_grant_entry(&ticket, TOP, &waker).is_none());
                ticket
            } else {
                let ticket = guards.queued(worker, want(1, 50..60, &[]), TOP);
                assert!(guards.try_grant(&ticket, TOP, &waker).is_none());
                ticket
            }
        })
        .collect();
    guards.release(op);
    assert_eq!(*log.lock().unwrap(), [0, 1, 2, 3, 4, 5]);
    tickets.into_iter().for_each(|ticket| guards.forget(ticket));
}

#[test]
fn release_wakes_only_those_it_concerns() {
    let guards = Guards::new(1);
    let [near, far] = [0..10, 20..30].map(|range| guards.granted(0, want(1, range, &[]), TOP));
    let sources = set(&[1]);
    let (at, past) = (5..6, 25..26);
    let mut near_change = waiting(guards.enter(0, &sources, &at, TOP));
    let far_change = waiting(guards.enter(0, &sources, &past, TOP));
    guards.release(near);
    assert!(near_change.is_woken() && !far_change.is_woken());
    guards.leave(0, near_change.poll().unwrap());
    guards.release(far);
    assert!(far_change.is_woken());
}

#[test]
fn a_queued_guard_is_not_starved_by_changes() {
    let guards = Guards::new(2);
    let early = guards.entered(0, 1, 0..10);
    let mut guard = waiting(guards.acquire(1, want(1, 0..10, &[]), TOP));
    let (sources, range) = (set(&[1]), 0..10);
    let mut late = waiting(guards.enter(0, &sources, &range, TOP));
    assert!(guards.try_enter(1, &sources, &range, TOP).is_none());
    let elsewhere = guards.entered(0, 1, 10..20);
    guards.leave(0, elsewhere);
    assert!(!guard.is_woken());
    guards.leave(0, early);
    assert!(guard.is_woken());
    assert!(late.poll().is_none());
    let held = guard.poll().unwrap().unwrap();
    assert!(late.poll().is_none());
    drop(held);
    assert!(late.is_woken());
    let key = late.poll().unwrap();
    guards.leave(0, key);
}

#[test]
fn a_parked_change_is_not_starved_by_operations() {
    let guards = Guards::new(1);
    let first = guards.granted(0, want(1, 0..10, &[]), TOP);
    let (sources, range) = (set(&[1]), 0..20);
    let mut change = waiting(guards.enter(0, &sources, &range, TOP));
    // Nothing granted is in its way, but the parked change is.
    let mut second = waiting(guards.acquire(0, want(1, 10..20, &[]), TOP));
    guards.release(first);
    assert!(second.poll().is_none());
    let key = change.poll().unwrap();
    assert!(second.poll().is_none());
    guards.leave(0, key);
    assert!(second.is_woken());
    assert!(second.poll().is_some());
}

#[test]
fn nested_requests_wait_only_for_what_is_granted() {
    let guards = Guards::new(2);
    let early = guards.entered(0, 1, 0..10);
    let mut queued = waiting(guards.acquire(0, want(1, 0..10, &[2]), TOP));
    let nested = guards.try_enter(0, &set(&[1]), &(0..10), NESTED).unwrap();
    let inner = guards.granted(1, want(2, 0..10, &[]), NESTED);
    guards.leave(0, early);
    assert!(queued.is_woken() && queued.poll().is_none(), "the nested change is in flight");
    guards.leave(0, nested);
    assert!(queued.is_woken() && queued.poll().is_none(), "the nested guard is granted");
    guards.release(inner);
    assert!(queued.is_woken());
    let held = queued.poll().unwrap().unwrap();
    assert!(guards.try_enter(1, &set(&[1]), &(0..10), NESTED).is_none());
    let mut inner = waiting(guards.acquire(1, want(2, 0..10, &[]), NESTED));
    drop(held);
    assert!(inner.is_woken() && inner.poll().is_some());
}

#[test]
fn a_dropped_waiter_wakes_those_behind_it() {
    let guards = Guards::new(2);
    let early = guards.entered(0, 1, 0..10);
    let queued = waiting(guards.acquire(0, want(1, 0..20, &[]), TOP));
    let (sources, range) = (set(&[1]), 15..16);
    let mut change = waiting(guards.enter(1, &sources, &range, TOP));
    let mut behind = waiting(guards.acquire(1, want(1, 15..16, &[]), TOP));
    drop(queued);
    assert!(change.is_woken() && behind.is_woken());
    assert!(behind.poll().is_none());
    let key = change.poll().unwrap();
    guards.leave(1, key);
    assert!(behind.is_woken());
    drop(behind.poll().unwrap().unwrap());

    let mut operation = waiting(guards.acquire(0, want(1, 0..10, &[]), TOP));
    let other = guards.granted(0, want(1, 50..60, &[]), TOP);
    let range = 9..51;
    let parked = waiting(guards.enter(1, &sources, &range, TOP));
    let mut last = waiting(guards.acquire(1, want(1, 20..30, &[]), TOP));
    drop(parked);
    assert!(last.is_woken() && last.poll().is_some());
    guards.leave(0, early);
    drop(operation.poll().unwrap().unwrap());
    guards.release(other);
}

#[test]
fn a_dropped_hold_is_released_unless_its_write_is_under_way() {
    let guards = Guards::new(1);
    let acquire = || Task::new(guards.acquire(0, want(1, 0..10, &[]), TOP)).poll();
    drop(acquire().unwrap().unwrap());
    let held = acquire().unwrap().unwrap();
    assert!(held.issue());
    assert!(!held.settle(false, || panic!("it failed")));
    drop(held);
    let held = acquire().unwrap().unwrap();
    assert!(held.issue() && held.settle(true, || ()));
    drop(held);
    let held = acquire().unwrap().unwrap();
    assert!(held.issue());
    drop(held);
    assert!(acquire().is_none(), "the write may still land");
}

#[test]
fn a_guard_of_a_worker_is_seen_by_all() {
    let guards = Guards::new(8);
    let op = guards.granted(7, want(1, 0..10, &[]), TOP);
    for worker in 0..8 {
        assert!(guards.try_enter(worker, &set(&[1]), &(0..10), TOP).is_none());
    }
    guards.release(op);
    for worker in 0..8 {
        let key = guards.entered(worker, 1, 0..10);
        let mut guard = waiting(guards.acquire(3, want(1, 0..10, &[]), TOP));
        guards.leave(worker, key);
        assert!(guard.is_woken());
        drop(guard.poll().unwrap().unwrap());
    }
}

/// Who holds something is woken when somebody comes to wait for it: a change, or another operation; for that alone, and
/// until it does not care any more.
#[test]
fn who_is_waited_for_may_know() {
    let guards = Guards::new(2);
    let woken = Arc::<Woken>::default();
    let waker = Waker::from(Arc::clone(&woken));
    let op = guards.granted(0, want(1, 0..10, &[]), TOP);
    let other = guards.granted(1, want(1, 20..30, &[]), TOP);
    assert!(!guards.poll_awaited(&[op], &waker));
    let far = guards.park(1, set(&[1]), 25..26);
    assert!(!woken.take() && !guards.poll_awaited(&[op], &waker));
    let change = guards.park(1, set(&[1]), 5..6);
    assert!(woken.take() && guards.poll_awaited(&[op], &waker));
    assert!(guards.poll_awaited(&[OpId::of(1, 77), op], &waker), "one of them is");
    guards.forget(change);
    assert!(!guards.poll_awaited(&[op], &waker));
    let operation = guards.queued(1, want(1, 8..12, &[]), TOP);
    assert!(woken.take() && guards.poll_awaited(&[op], &waker));
    guards.forget(operation);
    assert!(!guards.poll_awaited(&[op], &waker) && !guards.poll_awaited(&[], &waker));
    guards.ignore_awaited(&[op]);
    let change = guards.park(0, set(&[1]), 5..6);
    assert!(!woken.take(), "it has been told to leave that");
    [far, change].into_iter().for_each(|ticket| guards.forget(ticket));
    [op, other].into_iter().for_each(|op| guards.release(op));
    assert!(!guards.poll_awaited(&[op], &waker), "nothing is held any more");
    guards.ignore_awaited(&[op]);
    drop(waker);
    assert_eq!(Arc::strong_count(&woken), 1, "nobody is remembered");
}
