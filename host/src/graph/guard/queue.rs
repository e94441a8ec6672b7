//! Who asks, what an operation wants, and the queue of all that wait.

use std::ops::Range;
use std::task::Waker;

use super::{SourceRange, SourceSet};
use crate::limits::WORKERS_MAX;

/// An operation: something that holds a guard, from its request to its release. Never used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OpId(pub(super) u64);

impl OpId {
    /// Number `begun` of a worker, from 1.
    #[inline]
    pub(super) fn of(worker: usize, begun: u64) -> Self {
        Self(begun * WORKERS_MAX as u64 + worker as u64)
    }

    /// Whose it is.
    #[inline]
    pub(super) fn worker(self) -> usize {
        (self.0 % WORKERS_MAX as u64) as usize
    }
}

/// Who asks the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct By<'a> {
    /// Others may wait for it already: it has crossed an edge as a change, or what caused it has.
    pub(crate) holds: bool,
    /// The operations that caused it, in any order.
    pub(crate) ops: &'a [OpId],
}

impl By<'_> {
    /// It waits only for what is granted.
    #[inline]
    pub(super) fn is_nested(&self) -> bool {
        self.holds || !self.ops.is_empty()
    }

    #[inline]
    pub(super) fn is_caused_by(&self, op: OpId) -> bool {
        self.ops.contains(&op)
    }
}

/// What an operation wants, all of it at once.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Want {
    /// The guard: what it reads and must find unchanged.
    pub(crate) exclusive: Option<SourceRange>,
    /// What its write enters, without what the proof exempts.
    pub(crate) shared: SourceSet,
    /// What its write enters but does not change, because of the proof: the sources at and above the
    /// proven class. Counts as shared once the proof is void. Empty for a changed write.
    pub(crate) exempt: SourceSet,
    /// The range of the write.
    pub(crate) range: Range<u64>,
}

impl Want {
    /// Whether two operations may not be granted together.
    pub(super) fn conflicts(&self, other: &Self) -> bool {
        let both_exclusive = match (&self.exclusive, &other.exclusive) {
            (Some(own), Some(others)) => own.overlaps(others),
            _ => false,
        };
        both_exclusive || self.excludes(other) || other.excludes(self)
    }

    /// Whether the write of `other` enters what this one guards.
    fn excludes(&self, other: &Self) -> bool {
        self.is_guarded_from(&other.shared, &other.range)
    }

    pub(super) fn is_guarded_from(&self, sources: &SourceSet, range: &Range<u64>) -> bool {
        self.exclusive.as_ref().is_some_and(|place| sources.touch(range, place))
    }
}

/// All that wait, in the order of their tickets.
#[derive(Default)]
pub(super) struct Queue {
    next_ticket: u64,
    waiting: Vec<Waiting>,
    /// To be woken when something comes to wait for these operations.
    patient: Vec<(OpId, Waker)>,
}

pub(super) struct Waiting {
    pub(super) ticket: u64,
    pub(super) worker: usize,
    pub(super) what: Wanted,
    /// Of the task that asked last, until it is woken.
    waker: Option<Waker>,
}

#[derive(Clone)]
pub(super) enum Wanted {
    Entry { sources: SourceSet, range: Range<u64> },
    Operation { op: OpId, want: Want },
}

impl Queue {
    pub(super) fn push(&mut self, worker: usize, what: Wanted) -> u64 {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.waiting.push(Waiting { ticket, worker, what, waker: None });
        ticket
    }

    pub(super) fn get(&self, ticket: u64) -> Option<&Waiting> {
        self.waiting.get(self.index(ticket)?)
    }

    pub(super) fn remove(&mut self, ticket: u64) -> Option<Waiting> {
        let index = self.index(ticket)?;
        Some(self.waiting.remove(index))
    }

    /// Keeps the waker of who waits; gives back the one it replaces, to be dropped without the lock:
    /// with it may end a task that holds something here.
    pub(super) fn keep_waker(&mut self, ticket: u64, waker: &Waker) -> Option<Waker> {
        let index = self.index(ticket)?;
        let kept = &mut self.waiting[index].waker;
        if kept.as_ref().is_some_and(|kept| kept.will_wake(waker)) {
            return None;
        }
        kept.replace(waker.clone())
    }

    /// Whether anything waits for what an operation holds.
    pub(super) fn is_awaited(&self, want: &Want) -> bool {
        self.waiting.iter().any(|waiting| waiting.what.is_held_up_by(want))
    }

    /// Wakes a task when something comes to wait for an operation; gives back the waker that it had, to be dropped without
    /// the lock.
    pub(super) fn watch(&mut self, op: OpId, waker: &Waker) -> Option<Waker> {
        match self.patient.iter_mut().find(|(other, _)| *other == op) {
            Some((_, kept)) if kept.will_wake(waker) => None,
            Some((_, kept)) => Some(std::mem::replace(kept, waker.clone())),
            None => {
                self.patient.push((op, waker.clone()));
                None
            }
        }
    }

    pub(super) fn has_watched(&self) -> bool {
        !self.patient.is_empty()
    }

    /// Takes the wakers of operations for which that is so.
    pub(super) fn take_watched(&mut self, is_it: impl Fn(OpId) -> bool) -> Vec<Waker> {
        self.patient.extract_if(.., |(op, _)| is_it(*op)).map(|(_, waker)| waker).collect()
    }

    /// Whether an operation must let something with a smaller ticket go first.
    pub(super) fn is_behind_another(&self, want: &Want, ticket: u64) -> bool {
        self.waiting
            .iter()
            .take_while(|waiting| waiting.ticket < ticket)
            .any(|waiting| waiting.what.conflicts(want))
    }

    pub(super) fn operations(&self) -> usize {
        let is_operation = |waiting: &&Waiting| matches!(waiting.what, Wanted::Operation { .. });
        self.waiting.iter().filter(is_operation).count()
    }

    /// The tasks to wake, in the order of their tickets, because `concerns` what they wait for.
    pub(super) fn take_wakers(&mut self, concerns: impl Fn(&Wanted) -> bool) -> Vec<Waker> {
        let concerned = self.waiting.iter_mut().filter(|waiting| concerns(&waiting.what));
        concerned.filter_map(|waiting| waiting.waker.take()).collect()
    }

    fn index(&self, ticket: u64) -> Option<usize> {
        self.waiting.binary_search_by_key(&ticket, |waiting| waiting.ticket).ok()
    }
}

impl Wanted {
    /// Whether it cannot be granted together with an operation.
    pub(super) fn conflicts(&self, want: &Want) -> bool {
        match self {
            Self::Entry { sources, range } => want.is_guarded_from(sources, range),
            Self::Operation { want: own, .. } => own.conflicts(want),
        }
    }

    /// Whether an operation that holds what it wanted may keep it waiting.
    pub(super) fn is_held_up_by(&self, want: &Want) -> bool {
        self.conflicts(want) || self.waits_for(&want.exempt, &want.range)
    }

    /// Whether a change that ends may have kept it waiting.
    pub(super) fn waits_for(&self, sources: &SourceSet, range: &Range<u64>) -> bool {
        match self {
            Self::Entry { .. } => false,
            Self::Operation { want, .. } => want.is_guarded_from(sources, range),
        }
    }
}
