//! How a node's own writes ended.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one acting node.
#[derive(Default)]
pub(in crate::graph) struct OutcomeCounters {
    proven: AtomicU64,
    stale: AtomicU64,
    not_proven: AtomicU64,
    changed: AtomicU64,
    voided: AtomicU64,
}

/// What became of the writes that a node made of its own accord, and of what it claimed of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Claims proven.
    pub proven: u64,
    /// Claims refused: the view had changed since it was read.
    pub stale: u64,
    /// Claims refused: nothing proves them.
    pub not_proven: u64,
    /// Writes declared changed.
    pub changed: u64,
    /// Proven writes that failed or were overtaken: what they exempted was marked.
    pub voided: u64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl OutcomeCounters {
    pub(super) fn proven(&self) {
        count(&self.proven);
    }

    pub(super) fn stale(&self) {
        count(&self.stale);
    }

    pub(super) fn not_proven(&self) {
        count(&self.not_proven);
    }

    pub(super) fn changed(&self) {
        count(&self.changed);
    }

    pub(super) fn voided(&self) {
        count(&self.voided);
    }

    /// The counts now.
    pub(in crate::graph) fn snapshot(&self) -> Outcomes {
        Outcomes {
            proven: self.proven.load(Ordering::Relaxed),
            stale: self.stale.load(Ordering::Relaxed),
            not_proven: self.not_proven.load(Ordering::Relaxed),
            changed: self.changed.load(Ordering::Relaxed),
            voided: self.voided.load(Ordering::Relaxed),
        }
    }
}
