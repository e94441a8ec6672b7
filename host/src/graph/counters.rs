//! Statistics of an edge: one line of plain counters for each worker, added up when asked.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use super::op::{Op, OpKind};
use crate::limits::WORKERS_MAX;

const KINDS: usize = OpKind::ALL.len();

#[derive(Default)]
struct Line {
    requests: [AtomicU64; KINDS],
    bytes: [AtomicU64; KINDS],
    errors: AtomicU64,
}

/// The counters of one edge.
pub struct Counters {
    lines: Box<[CachePadded<Line>]>,
}

/// A sum over all workers. Arrays are indexed by [`OpKind::index`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountersSnapshot {
    /// Requests begun.
    pub requests: [u64; KINDS],
    /// Their bytes.
    pub bytes: [u64; KINDS],
    /// Requests that failed.
    pub errors: u64,
}

/// Only the line's own worker writes, so load and store need not be one operation.
#[inline]
fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(value), Ordering::Relaxed);
}

impl Counters {
    pub(super) fn new() -> Self {
        Self { lines: (0..WORKERS_MAX).map(|_| CachePadded::default()).collect() }
    }

    #[inline]
    pub(super) fn begin(&self, worker: usize, op: &Op) {
        let line = &self.lines[worker];
        add(&line.requests[op.kind.index()], 1);
        add(&line.bytes[op.kind.index()], op.len);
    }

    #[inline]
    pub(super) fn failed(&self, worker: usize) {
        add(&self.lines[worker].errors, 1);
    }

    /// The sums now.
    pub fn snapshot(&self) -> CountersSnapshot {
        let mut sum = CountersSnapshot::default();
        for line in &self.lines {
            for kind in 0..KINDS {
                sum.requests[kind] += line.requests[kind].load(Ordering::Relaxed);
                sum.bytes[kind] += line.bytes[kind].load(Ordering::Relaxed);
            }
            sum.errors += line.errors.load(Ordering::Relaxed);
        }
        sum
    }
}
