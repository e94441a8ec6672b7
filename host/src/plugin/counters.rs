//! What is counted of an instance and its nodes, for reports.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use blockloom_abi::NodeIndex;
use crossbeam::utils::CachePadded;

use crate::limits::WORKERS_MAX;

/// Of one worker, the only one that writes it.
#[derive(Default)]
struct Line {
    asked: AtomicU64,
    passed: AtomicU64,
}

/// The counters of one node.
pub(super) struct NodeCounters {
    node: NodeIndex,
    lines: Box<[CachePadded<Line>]>,
    stale: AtomicU64,
    not_proven: AtomicU64,
}

/// Why a claim was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The bytes may have changed since they were read.
    Stale,
    /// They were never proven.
    NotProven,
}

/// The counters of an instance.
#[derive(Default)]
pub(super) struct InstanceCounters {
    pub(super) violations: AtomicU64,
    pub(super) faults: AtomicU64,
    pub(super) dropped_messages: AtomicU64,
    pub(super) put_off: AtomicU64,
    nodes: Mutex<Vec<Arc<NodeCounters>>>,
}

/// What has been counted so far: of one node, and of the instance that serves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PluginCounters {
    /// Requests that the guest was asked about.
    pub asked: u64,
    /// Requests that went on by its rules, without a call.
    pub passed: u64,
    /// Claims refused, as the bytes may have changed since they were read.
    pub stale: u64,
    /// Claims refused without a proof.
    pub not_proven: u64,
    /// Faults that were breaches of the protocol.
    pub violations: u64,
    /// Faults of the instance, violations among them.
    pub faults: u64,
    /// Stores that came after a fault.
    pub restarts: u64,
    /// Messages that were not logged, as there were too many.
    pub dropped_messages: u64,
    /// Times that calls were put off, as it had used up its processor time.
    pub put_off: u64,
}

/// Only one thread writes it.
#[inline]
fn add(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

impl NodeCounters {
    fn new(node: NodeIndex) -> Self {
        let lines = (0..WORKERS_MAX).map(|_| CachePadded::default()).collect();
        Self { node, lines, stale: AtomicU64::new(0), not_proven: AtomicU64::new(0) }
    }

    #[inline]
    pub(super) fn asked(&self, worker: u32) {
        add(&self.lines[worker as usize].asked);
    }

    #[inline]
    pub(super) fn passed(&self, worker: u32) {
        add(&self.lines[worker as usize].passed);
    }

    /// Counts a claim that was refused.
    pub(super) fn refused(&self, why: Refused) {
        let counter = match why {
            Refused::Stale => &self.stale,
            Refused::NotProven => &self.not_proven,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl InstanceCounters {
    /// Those of a node; they begin with it.
    pub(super) fn of_node(&self, node: NodeIndex) -> Arc<NodeCounters> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = nodes.iter().find(|known| known.node == node) {
            return Arc::clone(known);
        }
        let new = Arc::new(NodeCounters::new(node));
        nodes.push(Arc::clone(&new));
        new
    }

    /// What has been counted, of one node or of all.
    pub(super) fn sum(&self, node: Option<NodeIndex>, restarts: u64) -> PluginCounters {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut sum = PluginCounters {
            violations: load(&self.violations),
            faults: load(&self.faults),
            dropped_messages: load(&self.dropped_messages),
            put_off: load(&self.put_off),
            restarts,
            ..PluginCounters::default()
        };
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        for counters in nodes.iter().filter(|it| node.is_none_or(|node| it.node == node)) {
            sum.stale += load(&counters.stale);
            sum.not_proven += load(&counters.not_proven);
            for line in &counters.lines {
                sum.asked += load(&line.asked);
                sum.passed += load(&line.passed);
            }
        }
        sum
    }
}

/// As reports show it.
impl fmt::Display for PluginCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { asked, passed, stale, not_proven, violations, faults, restarts, .. } = self;
        write!(
            f,
            "{asked} asked, {passed} passed by rule; claims refused: {stale} stale, {not_proven} not \
             proven; {violations} violations, {faults} faults, {restarts} restarts, {} messages \
             dropped, {} times put off",
            self.dropped_messages, self.put_off
        )
    }
}
