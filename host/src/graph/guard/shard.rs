//! What one worker's requests have in the table, and a copy of every guard and watch. Plain data: the
//! table holds the lock.

use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use slab::Slab;

use super::{By, OpId, SourceRange, SourceSet, Want};
use crate::bitmap::Granules;

/// Flat lists: a worker has few of each.
#[derive(Default)]
pub(super) struct Shard {
    /// Changes in flight of this worker.
    pub(super) flights: Slab<Flight>,
    /// Granted operations of this worker, with the shared part of what they hold.
    pub(super) operations: Vec<Operation>,
    /// The guard of every operation of the host, queued or granted.
    pub(super) guards: Vec<Guard>,
    /// Every watch of the host.
    pub(super) watches: Vec<Watch>,
    /// Requests of this worker that wait.
    pub(super) waiting: usize,
    /// Operations of this worker so far.
    pub(super) begun: u64,
}

/// A change from the edge by which it enters its sources to its completion.
pub(super) struct Flight {
    pub(super) sources: SourceSet,
    pub(super) range: Range<u64>,
}

pub(super) struct Operation {
    pub(super) op: OpId,
    pub(super) want: Want,
    /// The range of its write, once that is under way: all of what it wanted, or a part.
    pub(super) issued: Option<Range<u64>>,
}

pub(super) struct Guard {
    pub(super) op: OpId,
    pub(super) place: SourceRange,
    pub(super) ticket: u64,
    pub(super) granted: bool,
    /// Something that it let pass on this worker has touched its place since it was granted.
    pub(super) spoiled: bool,
}

pub(super) struct Watch {
    pub(super) key: WatchKey,
    pub(super) place: SourceRange,
    pub(super) stale: Stale,
}

/// What a change does to a watch that it touches.
#[derive(Clone, Debug)]
pub(crate) enum Stale {
    /// Sets the flag. Only who holds the guard of the watched place may rely on a flag that is not set.
    Flag(Arc<AtomicBool>),
    /// Marks the granules touched. Cleared only in [`Guards::settle`](super::Guards::settle).
    Set(Arc<Granules>),
}

/// A change in flight; names it on its worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a change that entered must leave"]
pub(crate) struct FlightKey(NonZeroU32);

/// A registered watch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a watch costs every change until it is taken back"]
pub(crate) struct WatchKey(pub(super) u64);

impl Shard {
    /// Lets a change in, unless a guard stops it. `ticket`: the change's own place in the queue;
    /// guards queued behind it do not stop it.
    #[inline]
    pub(super) fn enter(
        &mut self,
        sources: &SourceSet,
        range: &Range<u64>,
        by: By<'_>,
        ticket: u64,
    ) -> Option<FlightKey> {
        let stops = |guard: &Guard| {
            let may_stop = if guard.granted {
                !by.is_caused_by(guard.op)
            } else {
                !by.is_nested() && guard.ticket < ticket
            };
            may_stop && sources.touch(range, &guard.place)
        };
        if self.guards.iter().any(stops) {
            return None;
        }
        self.touch(sources, range, None);
        let index = self.flights.insert(Flight { sources: sources.clone(), range: range.clone() });
        // A worker has far fewer than 2^32 requests.
        Some(FlightKey(NonZeroU32::MIN.saturating_add(index as u32)))
    }

    /// Ends a change; whether an operation may have waited for it.
    #[inline]
    pub(super) fn leave(&mut self, key: FlightKey) -> Option<(Flight, bool)> {
        let flight = self.flights.try_remove(key.0.get() as usize - 1);
        debug_assert!(flight.is_some(), "a change leaves once, on its own worker");
        let flight = flight?;
        // A waiting operation has its queued guard in every shard.
        let is_waited_for = self
            .guards
            .iter()
            .any(|guard| !guard.granted && flight.sources.touch(&flight.range, &guard.place));
        Some((flight, is_waited_for))
    }

    /// Stales the watches and spoils the granted guards that something at `range` touches, but not
    /// those of `own`.
    #[inline]
    pub(super) fn touch(&mut self, sources: &SourceSet, range: &Range<u64>, own: Option<OpId>) {
        for guard in &mut self.guards {
            if guard.granted && Some(guard.op) != own && sources.touch(range, &guard.place) {
                guard.spoiled = true;
            }
        }
        for watch in &self.watches {
            if sources.touch(range, &watch.place) {
                watch.stale.touched(&watch.place, sources, range);
            }
        }
    }

    /// Stales what has been read of these sources: not what is tracked of them.
    pub(super) fn forget_read(&mut self, sources: &SourceSet) {
        let all = 0..u64::MAX;
        for guard in &mut self.guards {
            guard.spoiled |= guard.granted && sources.touch(&all, &guard.place);
        }
        let flags = self.watches.iter().filter(|watch| matches!(watch.stale, Stale::Flag(_)));
        for watch in flags.filter(|watch| sources.touch(&all, &watch.place)) {
            watch.stale.touched(&watch.place, sources, &all);
        }
    }

    pub(super) fn remove_guard(&mut self, op: OpId) {
        if let Some(index) = self.guards.iter().position(|guard| guard.op == op) {
            self.guards.swap_remove(index);
        }
    }

    /// Takes an operation out; returns it if somebody `wants` to know what it was.
    pub(super) fn remove_operation(&mut self, op: OpId, wants: bool) -> Option<Operation> {
        let index = self.operations.iter().position(|other| other.op == op);
        debug_assert!(index.is_some(), "an operation is released once");
        let (index, last) = (index?, self.operations.len() - 1);
        if wants {
            return Some(self.operations.swap_remove(index));
        }
        // Dropped where it is: it is large, and the last one more often than not.
        if index != last {
            self.operations.swap(index, last);
        }
        self.operations.truncate(last);
        None
    }

    pub(super) fn guard_of(&mut self, op: OpId) -> Option<&mut Guard> {
        self.guards.iter_mut().find(|guard| guard.op == op)
    }

    pub(super) fn is_spoiled(&self, op: OpId) -> bool {
        self.guards.iter().any(|guard| guard.op == op && guard.spoiled)
    }
}

impl Stale {
    /// Something that entered `sources` at `range` touched `place`. Relaxed: the shard's lock orders it.
    pub(super) fn touched(&self, place: &SourceRange, sources: &SourceSet, range: &Range<u64>) {
        match self {
            Self::Flag(flag) => flag.store(true, Ordering::Relaxed),
            Self::Set(granules) => {
                let part = sources.touched_part(range, place);
                granules.mark(part.start, part.end.saturating_sub(part.start));
            }
        }
    }
}
