//! Waiting for the table. A future dropped while it waits leaves the queue.

use std::cell::Cell;
use std::future::poll_fn;
use std::ops::Range;
use std::task::Poll;

use super::table::{Acquire, Full, Guards, Ticket};
use super::{By, FlightKey, OpId, SourceSet, Want};
use crate::graph::mutation::{Mutation, mutated};

/// What an operation holds: its guard and its shared part. Released when dropped, unless its write was
/// issued and not settled.
pub(crate) struct Held<'g> {
    guards: &'g Guards,
    op: OpId,
    phase: Cell<Phase>,
}

/// As wide as what stands beside it, so that all of it is moved by whole words.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Phase {
    Granted,
    Issued,
    /// The write has ended, with what it holds still held.
    Settled,
    /// Nothing is held any more.
    Released,
}

/// A place in the queue.
struct Waiter<'g> {
    guards: &'g Guards,
    ticket: Option<Ticket>,
}

impl Guards {
    /// A change enters, as soon as no guard stops it. Whoever gets the key calls [`Self::leave`].
    pub(crate) async fn enter(
        &self,
        worker: usize,
        sources: &SourceSet,
        range: &Range<u64>,
        by: By<'_>,
    ) -> FlightKey {
        if let Some(key) = self.try_enter(worker, sources, range, by) {
            return key;
        }
        let ticket = self.park(worker, sources.clone(), range.clone());
        let mut waiter = Waiter { guards: self, ticket: Some(ticket) };
        poll_fn(|cx| waiter.poll(|ticket| self.try_grant_entry(ticket, by, cx.waker()))).await
    }

    /// An operation gets all it wants. The caller bounds the wait.
    ///
    /// # Errors
    /// [`Full`].
    pub(crate) async fn acquire(
        &self,
        worker: usize,
        want: Want,
        by: By<'_>,
    ) -> Result<Held<'_>, Full> {
        let op = match self.try_acquire(worker, want, by)? {
            Acquire::Granted(op) => op,
            Acquire::Queued(ticket) => {
                let mut waiter = Waiter { guards: self, ticket: Some(ticket) };
                poll_fn(|cx| waiter.poll(|ticket| self.try_grant(ticket, by, cx.waker()))).await
            }
        };
        Ok(Held { guards: self, op, phase: Cell::new(Phase::Granted) })
    }
}

impl Waiter<'_> {
    fn poll<T>(&mut self, try_grant: impl FnOnce(&Ticket) -> Option<T>) -> Poll<T> {
        let Some(granted) = self.ticket.as_ref().and_then(try_grant) else {
            return Poll::Pending;
        };
        self.ticket = None;
        Poll::Ready(granted)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.guards.forget(ticket);
        }
    }
}

impl<'g> Held<'g> {
    /// What [`Guards::try_issue`] has issued.
    #[inline]
    pub(crate) fn of_issued(guards: &'g Guards, op: OpId) -> Self {
        Self { guards, op, phase: Cell::new(Phase::Issued) }
    }
}

impl Held<'_> {
    /// What requests that it causes carry in their lineage.
    pub(crate) fn op(&self) -> OpId {
        self.op
    }

    /// It is about to write all that it wanted to.
    #[cfg(test)]
    pub(crate) fn issue(&self) -> bool {
        let is_fresh = self.guards.issue(self.op);
        if is_fresh {
            self.phase.set(Phase::Issued);
        }
        is_fresh
    }

    /// Whether the write is under way.
    pub(crate) fn is_issued(&self) -> bool {
        self.phase.get() == Phase::Issued
    }

    /// See [`Guards::issue_part`].
    #[must_use = "a stale operation must not write"]
    pub(crate) fn issue_part(&self, part: &Range<u64>) -> bool {
        let is_fresh = self.guards.issue_part(self.op, part);
        if is_fresh {
            self.phase.set(Phase::Issued);
        }
        is_fresh
    }

    /// Breaks a rule: others pass while the write is under way.
    #[cfg(test)]
    pub(crate) fn expire(&self) {
        self.guards.release(self.op);
        self.phase.set(Phase::Released);
    }

    /// The write has completed; see [`Guards::settle`] for one that succeeded.
    #[must_use = "a void proof must be marked"]
    pub(crate) fn settle(&self, succeeded: bool, intact: impl FnOnce()) -> bool {
        if self.phase.get() == Phase::Released {
            // A broken rule has released it before its time.
            return succeeded;
        }
        let is_intact = succeeded && self.guards.settle(self.op, intact);
        self.phase.set(if is_intact { Phase::Released } else { Phase::Settled });
        is_intact
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        match self.phase.get() {
            Phase::Granted | Phase::Settled => self.guards.release(self.op),
            Phase::Released => {}
            Phase::Issued if mutated(Mutation::GuardsEndWithFutures) => {
                self.guards.release(self.op);
            }
            // The write may still land, so nothing may rely on this place again.
            Phase::Issued => tracing::warn!(
                operation = ?self.op,
                "a write under a guard was abandoned; its range stays guarded"
            ),
        }
    }
}
