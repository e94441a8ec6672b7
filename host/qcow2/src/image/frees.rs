//! Host clusters on their way from a mapping to the free ones.
//!
//! A cluster that lost its reference is *pending* until the change that took the reference is durable,
//! then *retired* until every request that was in flight at that time has ended; only then its count
//! goes down. So no crash makes two mappings share a cluster, and no request finds another's bytes.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::allocator::Run;
use super::turn::Turns;

/// Of an image.
#[derive(Default)]
pub(super) struct Frees {
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    /// With the number of the free, ascending.
    pending: VecDeque<(u64, Run)>,
    /// With the epoch in which it was retired, ascending.
    retired: VecDeque<(u64, Run)>,
    next_number: u64,
    pending_clusters: u64,
    retired_clusters: u64,
}

/// How much waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parked {
    pub(super) runs: usize,
    pub(super) clusters: u64,
}

impl Frees {
    /// Clusters whose mapping has gone from memory, not yet from the container. To be called after the
    /// change, so that whoever writes after [`Self::mark`] writes the change.
    pub(super) fn push(&self, runs: impl IntoIterator<Item = Run>) {
        let mut queues = self.queues();
        for run in runs.into_iter().filter(|run| run.count > 0) {
            let number = queues.next_number;
            queues.next_number += 1;
            queues.pending_clusters += run.count;
            queues.pending.push_back((number, run));
        }
    }

    /// Clusters that never were mapped, or whose mapping is durably gone.
    pub(super) fn retire(&self, turns: &Turns, run: Run) {
        let mut queues = self.queues();
        queues.retired_clusters += run.count;
        queues.retired.push_back((turns.epoch(), run));
    }

    /// Tells the frees so far from later ones.
    pub(super) fn mark(&self) -> u64 {
        self.queues().next_number
    }

    /// The changes before a mark are durable.
    pub(super) fn durable(&self, mark: u64, turns: &Turns) {
        let mut queues = self.queues();
        let epoch = turns.epoch();
        while let Some((_, run)) = queues.pending.pop_front_if(|(number, _)| *number < mark) {
            queues.pending_clusters -= run.count;
            queues.retired_clusters += run.count;
            queues.retired.push_back((epoch, run));
        }
    }

    /// What is pending, and what is retired.
    pub(super) fn parked(&self) -> (Parked, Parked) {
        let queues = self.queues();
        let parked = |runs: &VecDeque<_>, clusters| Parked { runs: runs.len(), clusters };
        (
            parked(&queues.pending, queues.pending_clusters),
            parked(&queues.retired, queues.retired_clusters),
        )
    }

    /// Whether anything is on its way.
    pub(super) fn is_empty(&self) -> bool {
        let queues = self.queues();
        queues.pending.is_empty() && queues.retired.is_empty()
    }

    /// The first run that no request hinders any more.
    pub(super) fn take_ready(&self, turns: &Turns) -> Option<Run> {
        let mut queues = self.queues();
        let retired_at = queues.retired.front()?.0;
        // One epoch at a time is ended, under this mutex.
        if turns.epoch() < retired_at + 2 && turns.advance() < retired_at + 2 {
            return None;
        }
        let run = queues.retired.pop_front()?.1;
        queues.retired_clusters -= run.count;
        Some(run)
    }

    /// A run that was ready and could not be freed yet.
    pub(super) fn put_back(&self, run: Run) {
        let mut queues = self.queues();
        queues.retired_clusters += run.count;
        queues.retired.push_front((0, run));
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
