//! Tests: answers in turn and out of it.

use std::num::NonZeroU64;

use super::*;

fn ticket(waiter: u32) -> Ticket {
    Ticket::new(0, waiter, NonZeroU64::MIN)
}

fn complete(id: RequestId, result: Result<(), Errno>) -> Complete {
    Complete { id, result }
}

#[test]
fn a_forwarded_request_is_gone_and_its_id_is_not_reused_at_once() {
    let mut table = Table::new(2);
    let id = table.offer((NodeIndex(0), Kind::Read, false), ticket(1), 0).expect("a slot");
    let answer = table.forward(Forward::now(id), 5).expect("in turn");
    let expect = Answer::Forward { not_before_ns: 0, notify: false, known: None };
    assert_eq!(answer, Some((ticket(1), expect)));
    let next = table.offer((NodeIndex(0), Kind::Read, false), ticket(2), 0).expect("a slot");
    assert_eq!(next.slot(), id.slot());
    assert_ne!(next, id);
    assert_eq!(table.forward(Forward::now(id), 5), Ok(None), "it cannot know that it has gone");
    let stale = table.complete(complete(id, Err(Errno::EIO)), false);
    assert_eq!(stale, Err(Breach::UnknownRequest(id.bits())));
    let future = RequestId::new(id.slot(), 9).expect("a generation");
    let forged = table.forward(Forward::now(future), 5);
    assert_eq!(forged, Err(Breach::UnknownRequest(future.bits())));
}

#[test]
fn answers_out_of_turn_are_breaches() {
    let mut table = Table::new(8);
    let id = table.offer((NodeIndex(0), Kind::Write, false), ticket(1), 0).expect("a slot");
    let unserved = table.complete(complete(id, Ok(())), false);
    assert_eq!(unserved, Err(Breach::Unserved { id: id.bits(), kind: Kind::Write }));
    let forward = Forward { notify: true, ..Forward::now(id) };
    table.forward(forward, 0).expect("in turn");
    table.complete(complete(id, Ok(())), false).expect_err("the child has not answered");
    assert!(table.done(id, true, 0));
    table.complete(complete(id, Ok(())), false).expect_err("the child failed");
    assert!(table.complete(complete(id, Err(Errno::EIO)), false).is_ok());
    table.complete(complete(id, Err(Errno::EIO)), false).expect_err("twice");
    let discard = table.offer((NodeIndex(0), Kind::Discard, false), ticket(2), 0).expect("a slot");
    assert!(table.complete(complete(discard, Ok(())), false).is_ok(), "discard is advisory");
}

#[test]
fn held_requests_can_be_retimed_and_count_until_they_go() {
    let mut table = Table::new(1);
    let id = table.offer((NodeIndex(0), Kind::Read, false), ticket(1), 0).expect("a slot");
    let at = |not_before_ns| Forward { not_before_ns, ..Forward::now(id) };
    table.forward(at(100), 10).expect("held");
    assert!(
        table.offer((NodeIndex(0), Kind::Read, false), ticket(2), 0).is_none(),
        "the limit is reached"
    );
    table.forward(at(200), 20).expect("held longer");
    table.let_go(id);
    assert_eq!(table.forward(at(300), 30), Ok(None), "it has gone: nothing to re-time");
    assert!(table.offer((NodeIndex(0), Kind::Read, false), ticket(2), 0).is_some());
}

#[test]
fn while_the_host_works_no_answer_is_owed() {
    let mut table = Table::new(8);
    let id = table.offer((NodeIndex(0), Kind::Read, false), ticket(1), 10).expect("a slot");
    assert_eq!(table.operate(id, 12), Ok(ticket(1)));
    assert_eq!(table.operate(id, 13), Ok(ticket(1)));
    table.operated(id, false, 500);
    assert!(!table.is_overdue(1000, 5), "one is left");
    table.operated(id, true, 1000);
    assert!(!table.is_overdue(1003, 5));
    assert!(table.is_overdue(1004, 5), "2 before, 4 after");
    assert_eq!(
        table.complete(complete(id, Ok(())), false),
        Ok((ticket(1), Answer::Served)),
        "served"
    );
    assert_eq!(table.operate(id, 1005), Err(Breach::UnknownRequest(id.bits())));
    table.operated(id, true, 1006);
}

#[test]
fn what_is_forgotten_is_named_in_the_order_of_its_arrival() {
    let mut table = Table::new(4);
    let ticket = |at| Ticket::new(0, 0, NonZeroU64::MIN.saturating_add(at));
    let first = table.offer((NodeIndex(0), Kind::Read, false), ticket(1), 0).expect("a slot");
    let held = table.offer((NodeIndex(0), Kind::Read, false), ticket(2), 0).expect("a slot");
    table.forward(Forward::now(first), 0).expect("gone");
    table.offer((NodeIndex(0), Kind::Read, false), ticket(3), 0).expect("a slot");
    let until = Forward { not_before_ns: 9, ..Forward::now(held) };
    table.forward(until, 0).expect("held");
    assert_eq!(table.clear(), [ticket(2), ticket(3)]);
    table.let_go(held);
    assert!(!table.done(held, false, 0), "it is named no more");
    for sequence in 4..8 {
        let id =
            table.offer((NodeIndex(0), Kind::Read, false), ticket(sequence), 0).expect("a slot");
        assert_ne!(id, held);
    }
    assert!(!table.has_room());
}

#[test]
fn operations_for_one_request_are_bounded() {
    let mut table = Table::new(8);
    let id = table.offer((NodeIndex(0), Kind::Read, false), ticket(1), 0).expect("a slot");
    for _ in 0..OPERATIONS_OF_REQUEST_MAX {
        table.operate(id, 0).expect("one more");
        table.operated(id, false, 0);
    }
    assert_eq!(table.operate(id, 0), Err(Breach::TooManyOperations(id.bits())));
}

#[test]
fn an_answer_is_owed_from_the_offer_and_from_the_end() {
    let mut table = Table::new(8);
    let id = table.offer((NodeIndex(0), Kind::Write, false), ticket(1), 10).expect("a slot");
    assert!(!table.is_overdue(15, 5));
    assert!(table.is_overdue(16, 5));
    let forward = Forward { notify: true, ..Forward::now(id) };
    table.forward(forward, 16).expect("in turn");
    assert!(!table.is_overdue(1000, 5), "the child works on it");
    assert!(table.done(id, false, 1000));
    assert!(!table.is_overdue(1005, 5));
    assert!(table.is_overdue(1006, 5));
    table.complete(complete(id, Ok(())), false).expect("in turn");
    assert!(!table.is_overdue(2000, 5));
}
