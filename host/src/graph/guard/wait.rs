//! Waiting for the table. A future dropped while it waits leaves the queue.

use std::cell::Cell;
use std::future::poll_fn;
use std::ops::Range;
use std::task::Poll;

use crate::graph::mutation::{Mutation, mutated};

use super::table::{Acquire, Full, Guards, Ticket};
use super::{By, FlightKey, OpId, SourceSet, Want};

/// What an operation holds: its guard and its shared part. Released when dropped, unless its write was
/// issued and not settled.
pub(crate) struct Held<'g> {
    guards: &'g Guards,
    op: OpId,
    phase: Cell<Phase>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Granted,
    Issued,
    Settled,
    /// Released before its time: no rule of the core does so.
    Expired,
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
        self.phase.set(Phase::Expired);
    }

    /// The write has completed; see [`Guards::settle`] for one that succeeded.
    #[must_use = "a void proof must be marked"]
    pub(crate) fn settle(&self, succeeded: bool, intact: impl FnOnce()) -> bool {
        let is_intact = succeeded && self.guards.settle(self.op, intact);
        if self.phase.get() != Phase::Expired {
            self.phase.set(Phase::Settled);
        }
        is_intact
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.phase.get() == Phase::Expired {
            return;
        }
        if self.phase.get() == Phase::Issued && !mutated(Mutation::GuardsEndWithFutures) {
            // The write may still land, so nothing may rely on this place again.
            tracing::warn!(operation = ?self.op, "a write under a guard was abandoned; its range stays guarded");
            return;
        }
        self.guards.release(self.op);
    }
}
