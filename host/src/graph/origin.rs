//! Who begins requests, and what a request is from admission to settlement.
//!
//! An *origin* has one gate, which lives as long as it. Only requests without an ancestor enter it. What
//! they cause further down carries the [`Request`] along and passes: whoever closes the gate waits for
//! the whole tree of a request, and never stops a part of it half-way.

use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;

use super::cell::Snapshot;
use super::gate::Gate;
use super::snapshot::Graph;
use super::transaction::Drained;

/// A drive, as the beginning of requests. Snapshots share it.
pub(super) struct Origin {
    pub(super) name: Arc<str>,
    pub(super) gate: Gate,
}

impl Origin {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self { name, gate: Gate::new() }
    }
}

/// A request from admission to settlement: the ground on which everything it causes stands. It stays on
/// its worker and counts as in flight until it is dropped.
pub(super) struct Request {
    graph: Rc<Snapshot>,
    /// Index in the snapshot's origins.
    origin: usize,
    worker: usize,
    /// It is behind the gate, and leaves it. Not so inside a drained section.
    is_counted: bool,
}

impl Request {
    /// Enters the gate of `origin` on `worker`, waiting while it is closed. The snapshot may be out of
    /// date by then: see [`super::admit`].
    #[inline]
    pub(super) async fn begin(graph: Rc<Snapshot>, origin: usize, worker: usize) -> Self {
        let gate = &graph.origins[origin].gate;
        if !gate.try_enter(worker) {
            // Boxed, so that the path through an open gate keeps a small future.
            Box::pin(gate.enter(worker)).await;
        }
        Self { graph, origin, worker, is_counted: true }
    }

    /// On behalf of a graph change, in one of the two snapshots of its drained section: passes the gates
    /// that the section holds closed.
    pub(super) fn inside(_section: &Drained<'_>, graph: Rc<Snapshot>, worker: usize) -> Self {
        Self { graph, origin: usize::MAX, worker, is_counted: false }
    }

    /// The snapshot in which it runs.
    #[inline]
    pub(super) fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The gate behind which it is.
    fn gate(&self) -> &Gate {
        &self.graph.origins[self.origin].gate
    }

    /// Whether whoever holds it back is to let it go; if not, the task is woken when that begins.
    pub(super) fn poll_drained(&self, cx: &Context<'_>) -> bool {
        !self.is_counted || self.gate().poll_closed(cx)
    }

    /// Number of the worker that runs it.
    #[inline]
    pub(super) fn worker(&self) -> usize {
        self.worker
    }
}

impl Drop for Request {
    #[inline]
    fn drop(&mut self) {
        if self.is_counted {
            self.gate().leave(self.worker);
        }
    }
}
