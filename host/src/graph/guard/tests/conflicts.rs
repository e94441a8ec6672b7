//! Who may be there at once, who passes whom, and what becomes stale by it.

use super::*;
use crate::bitmap::{Granularity, Granules};
use crate::limits::{GUARDS_MAX, WATCHES_MAX};

#[test]
fn a_guard_and_a_change_conflict_in_either_order() {
    // Guard of source 1 at 10..20 on worker 0; change on either worker.
    let check = |sources: SourceSet, range: Range<u64>, conflict: bool| {
        for worker in [0, 1] {
            let guards = Guards::new(2);
            let op = guards.granted(0, want(1, 10..20, &[]), TOP);
            let entered = guards.try_enter(worker, &sources, &range, TOP);
            assert_eq!(entered.is_none(), conflict, "guard first: {sources:?} {range:?}");
            if let Some(key) = entered {
                guards.leave(worker, key);
            }
            guards.release(op);
            let key = guards.try_enter(worker, &sources, &range, TOP).unwrap();
            let acquired = guards.try_acquire(0, want(1, 10..20, &[]), TOP).unwrap();
            let is_queued = matches!(acquired, Acquire::Queued(_));
            assert_eq!(is_queued, conflict, "change first: {sources:?} {range:?}");
            guards.leave(worker, key);
        }
    };
    check(set(&[1]), 19..21, true);
    check(set(&[2, 1]), 0..11, true);
    check(set(&[1]), 20..30, false);
    check(set(&[1]), 0..10, false);
    check(set(&[2]), 10..20, false);
    check(whole(1), 100..101, true);
    check(whole(2), 10..20, false);
    check(set(&[2, 3, 4, 5, 6, 7, 8, 1]), 12..13, true);
}

#[test]
fn operations_conflict_where_one_is_exclusive() {
    let check = |first: Want, second: Want, conflict: bool| {
        for (first, second) in [(&first, &second), (&second, &first)] {
            let guards = Guards::new(2);
            let op = guards.granted(0, first.clone(), TOP);
            let acquired = guards.try_acquire(1, second.clone(), TOP).unwrap();
            assert_eq!(matches!(acquired, Acquire::Queued(_)), conflict, "{first:?} {second:?}");
            guards.release(op);
        }
    };
    check(want(1, 0..10, &[]), want(1, 9..20, &[]), true);
    check(want(1, 0..10, &[]), want(1, 10..20, &[]), false);
    check(want(1, 0..10, &[]), want(2, 0..10, &[]), false);
    check(want(1, 0..10, &[]), want(2, 0..10, &[1]), true);
    check(want(1, 0..10, &[2]), want(2, 5..6, &[1]), true);
    check(want(1, 0..10, &[3]), want(2, 0..10, &[3]), false);
    let unguarded = Want { exclusive: None, ..want(1, 0..10, &[1, 2]) };
    check(unguarded.clone(), want(1, 5..6, &[]), true);
    check(unguarded.clone(), unguarded, false);
}

#[test]
fn what_an_operation_writes_does_not_stop_changes() {
    let guards = Guards::new(1);
    let op = guards.granted(0, want(1, 0..10, &[2]), TOP);
    let key = guards.entered(0, 2, 0..10);
    guards.leave(0, key);
    guards.release(op);
}

#[test]
fn what_an_operation_causes_passes_it_and_spoils_it() {
    let guards = Guards::new(2);
    let op = guards.granted(0, want(1, 0..10, &[]), TOP);
    let caused = By { holds: true, ops: &[OpId(77), op] };
    let key = guards.try_enter(1, &set(&[1]), &(5..6), caused).unwrap();
    guards.leave(1, key);
    assert!(!guards.issue(op), "what it read may have changed");
    guards.release(op);

    let op = guards.granted(0, want(1, 0..10, &[]), TOP);
    let caused = By { holds: true, ops: &[op] };
    let key = guards.try_enter(1, &set(&[1]), &(10..20), caused).unwrap();
    assert!(guards.issue(op), "it touched another range");
    guards.leave(1, key);
    assert!(guards.settle(op, || ()));
}

#[test]
fn what_caused_an_operation_does_not_pass_it() {
    let guards = Guards::new(1);
    let op = guards.granted(0, want(1, 0..10, &[]), NESTED);
    assert!(guards.try_enter(0, &set(&[1]), &(0..10), NESTED).is_none());
    assert!(
        guards
            .try_acquire(0, want(1, 0..10, &[]), NESTED)
            .is_ok_and(|acquired| matches!(acquired, Acquire::Queued(_)))
    );
    guards.release(op);
}

#[test]
fn an_operation_shares_what_its_ancestor_holds() {
    let guards = Guards::new(2);
    let outer = guards.granted(0, want(1, 0..10, &[2]), TOP);
    let caused = By { holds: true, ops: &[outer] };
    // The same guard, and a guard of what the outer one is going to write.
    for inner in [want(1, 0..10, &[]), want(2, 0..10, &[])] {
        let inner = guards.granted(1, inner, caused);
        assert!(guards.issue(inner));
        assert!(guards.settle(inner, || ()));
    }
    assert!(guards.issue(outer), "the inner writes entered nothing that it guards");
    assert!(guards.settle(outer, || ()));
}

#[test]
fn an_issued_write_spoils_the_guards_it_touches() {
    let guards = Guards::new(2);
    let outer = guards.granted(0, want(1, 0..10, &[]), TOP);
    let inner = guards.granted(1, want(2, 0..10, &[1]), By { holds: true, ops: &[outer] });
    assert!(guards.issue(inner));
    assert!(!guards.issue(outer));
    assert!(guards.settle(inner, || ()));
}

#[test]
fn an_operation_does_not_spoil_itself() {
    let guards = Guards::new(1);
    let op = guards.granted(0, want(1, 0..10, &[1]), TOP);
    assert!(guards.issue(op) && guards.settle(op, || ()));
}

#[test]
fn a_void_proof_no_longer_exempts() {
    let guards = Guards::new(2);
    let proven = Want { exempt: set(&[1, 3]), ..want(1, 0..10, &[2]) };
    let op = guards.granted(0, proven, TOP);
    assert!(guards.issue(op));
    // Source 3 is above the proven class: its guards and watches do not care.
    let above = guards.granted(1, want(3, 0..10, &[]), TOP);
    guards.release(above);
    assert!(!is_set(&guards.flag(&place(3, 0..10))));

    let key = guards.try_enter(1, &set(&[1]), &(0..5), By { holds: true, ops: &[op] }).unwrap();
    guards.leave(1, key);
    assert!(is_set(&guards.flag(&place(3, 0..10))));
    let ticket = guards.queued(1, want(3, 0..10, &[]), TOP);
    let woken = Arc::<Woken>::default();
    assert_eq!(guards.try_grant(&ticket, TOP, &Waker::from(Arc::clone(&woken))), None);
    assert!(!guards.settle(op, || panic!("the proof is void")));
    guards.release(op);
    assert!(woken.take());
    assert!(guards.try_grant(&ticket, TOP, Waker::noop()).is_some());
}

#[test]
fn a_watch_is_staled_by_what_touches_it() {
    let guards = Guards::new(2);
    let [near, far, other] = [place(1, 0..10), place(1, 50..60), place(2, 0..10)];
    let [near, far, other] = [&near, &far, &other].map(|place| guards.flag(place));
    let key = guards.entered(1, 1, 9..20);
    guards.leave(1, key);
    assert!(is_set(&near) && !is_set(&far) && !is_set(&other));
    let key = guards.try_enter(0, &whole(1), &(0..1), TOP).unwrap();
    guards.leave(0, key);
    assert!(is_set(&far) && !is_set(&other));
    guards.stale(&set(&[2]), &(9..10));
    assert!(is_set(&other));
}

#[test]
fn a_watch_is_stale_at_once_over_a_change_in_flight() {
    let guards = Guards::new(2);
    let key = guards.entered(1, 1, 0..10);
    assert!(is_set(&guards.flag(&place(1, 5..6))));
    assert!(!is_set(&guards.flag(&place(1, 10..20))));
    guards.leave(1, key);
    assert!(!is_set(&guards.flag(&place(1, 5..6))));
}

#[test]
fn a_watch_is_staled_when_an_operation_is_issued_not_before() {
    let guards = Guards::new(2);
    let op = guards.granted(1, want(2, 0..10, &[1]), TOP);
    let [written, read] = [place(1, 0..10), place(2, 0..10)].map(|place| guards.flag(&place));
    assert!(!is_set(&written));
    assert!(guards.issue(op));
    assert!(is_set(&written) && !is_set(&read), "its proof exempts what it has read");
    assert!(is_set(&guards.flag(&place(1, 0..10))), "the write is in flight");
    guards.release(op);
    assert!(!is_set(&guards.flag(&place(1, 0..10))));
}

#[test]
fn a_watch_ends_when_it_is_taken_back() {
    let guards = Guards::new(2);
    let flag = Arc::default();
    let key = guards.watch(&place(1, 0..10), Stale::Flag(Arc::clone(&flag))).unwrap();
    guards.unwatch(key);
    let key = guards.entered(1, 1, 0..10);
    guards.leave(1, key);
    assert!(!is_set(&flag));
    assert_eq!(Arc::strong_count(&flag), 1);
}

#[test]
fn a_watch_of_a_set_marks_the_part_touched() {
    let guards = Guards::new(2);
    let granules = Arc::new(Granules::new(8192, Granularity::MIN).unwrap());
    let count = || granules.count();
    let key = guards.entered(0, 1, 0..512);
    let _watch = guards.watch(&place(1, 0..8192), Stale::Set(Arc::clone(&granules))).unwrap();
    assert_eq!(count(), 1, "in flight at registration");
    guards.leave(0, key);
    let key = guards.entered(1, 1, 1000..1025);
    guards.leave(1, key);
    assert_eq!(count(), 3);
    guards.stale(&whole(1), &(0..1));
    assert_eq!(count(), 16);
}

#[test]
fn settling_runs_the_closure_only_if_nothing_passed() {
    let guards = Guards::new(1);
    let op = guards.granted(0, want(1, 0..10, &[]), TOP);
    assert!(guards.issue(op));
    let mut ran = false;
    assert!(guards.settle(op, || ran = true));
    assert!(ran);
    let op = guards.granted(0, want(1, 0..10, &[]), TOP);
    assert!(guards.issue(op));
    guards.stale(&set(&[1]), &(0..1));
    assert!(!guards.settle(op, || panic!("spoiled")));
    guards.release(op);
}

#[test]
fn what_need_not_wait_is_issued_at_once() {
    let guards = Guards::new(2);
    let flag = guards.flag(&place(2, 0..10));
    let want_of_1 = || want(1, 0..10, &[2]);
    assert_eq!(guards.try_issue(0, &mut want_of_1(), TOP, || false), Ok(AtOnce::Stale));
    assert!(!is_set(&flag), "nothing is written");
    let Ok(AtOnce::Issued(op)) = guards.try_issue(0, &mut want_of_1(), TOP, || true) else {
        panic!("nothing is in its way");
    };
    assert!(is_set(&flag), "its write enters source 2");
    assert_eq!(guards.try_issue(1, &mut want_of_1(), TOP, || true), Ok(AtOnce::MustWait));
    assert_eq!(guards.try_issue(1, &mut want_of_1(), TOP, || false), Ok(AtOnce::Stale));
    assert!(guards.try_enter(1, &set(&[1]), &(0..1), TOP).is_none());
    assert!(guards.settle(op, || ()));
    guards.leave(1, guards.entered(1, 1, 0..1));
}

#[test]
fn a_graph_change_spoils_what_is_not_issued() {
    let guards = Guards::new(2);
    let op = guards.granted(1, want(1, 0..10, &[]), TOP);
    guards.stale(&set(&[1]), &(0..1));
    assert!(!guards.issue(op));
    assert!(!guards.issue(OpId(1000)), "an operation that does not exist");
}

#[test]
fn guards_and_watches_are_bounded() {
    let guards = Guards::new(1);
    let at = |index: usize| index as u64 * 10..index as u64 * 10 + 10;
    let ops: Vec<OpId> =
        (0..GUARDS_MAX - 1).map(|index| guards.granted(0, want(1, at(index), &[]), TOP)).collect();
    let ticket = guards.queued(0, want(1, at(0), &[]), TOP);
    assert_eq!(guards.try_acquire(0, want(2, 0..1, &[]), TOP), Err(Full));
    guards.forget(ticket);
    let op = guards.granted(0, want(2, 0..1, &[]), TOP);
    assert_eq!(guards.try_acquire(0, want(3, 0..1, &[]), TOP), Err(Full));
    ops.into_iter().chain([op]).for_each(|op| guards.release(op));
    guards.release(guards.granted(0, want(3, 0..1, &[]), TOP));

    let stale = || Stale::Flag(Arc::default());
    let keys: Vec<_> =
        (0..WATCHES_MAX).map(|_| guards.watch(&place(1, 0..1), stale()).unwrap()).collect();
    assert_eq!(guards.watch(&place(1, 0..1), stale()), Err(Full));
    guards.unwatch(keys[7]);
    assert!(guards.watch(&place(1, 0..1), stale()).is_ok());
}
