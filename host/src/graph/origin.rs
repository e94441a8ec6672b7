//! Who begins requests, and what a request is from admission to settlement.
//!
//! An *origin* has one gate, which lives as long as it. Only requests without an ancestor enter it. What
//! they cause further down carries the [`Request`] along and passes: whoever closes the gate waits for
//! the whole tree of a request, and never stops a part of it half-way.

use std::cell::{Cell, OnceCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Context;

use super::cell::Snapshot;
use super::class::Class;
use super::evidence::OutcomeCounters;
use super::gate::Gate;
use super::guard::{By, OpId, SourceSet};
use super::snapshot::Graph;
use super::transaction::{Drained, SectionMarks};

/// A drive, or a node that acts of its own accord, as the beginning of requests. Snapshots share it.
pub(super) struct Origin {
    pub(super) name: Arc<str>,
    pub(super) gate: Gate,
    /// Of what it writes of its own accord.
    pub(super) outcomes: OutcomeCounters,
    /// Ranges that it watches: at most [`WATCHES_OF_NODE_MAX`](crate::limits::WATCHES_OF_NODE_MAX).
    pub(super) watches: AtomicUsize,
    /// Changes that their users gave up before a driver had answered: they stay behind the gate.
    pub(super) abandoned: AtomicUsize,
}

impl Origin {
    pub(super) fn new(name: Arc<str>) -> Self {
        let outcomes = OutcomeCounters::default();
        let (watches, abandoned) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { name, gate: Gate::new(), outcomes, watches, abandoned }
    }
}

/// A request from admission to settlement: the ground on which everything it causes stands. It stays on
/// its worker and counts as in flight until it is dropped.
pub(super) struct Request {
    graph: Rc<Snapshot>,
    /// The guarded operations that caused it, the innermost first.
    lineage: Option<Rc<Lineage>>,
    /// What it stands on beside its origin.
    ground: OnceCell<Rc<Ground>>,
    /// Index in the snapshot's origins. Small, like all that is here: every request moves it about.
    origin: u32,
    worker: u32,
    /// The view that it is proven not to alter.
    unchanged: Option<Class>,
    /// It is behind the gate, and leaves it. Not so inside a drained section.
    is_counted: bool,
    /// Others may wait for it: it has entered a source, or what caused it has.
    holds: Cell<bool>,
}

/// What a request may stand on beside its origin.
enum Ground {
    /// The proof under which it is issued.
    Proof(Shield),
    /// The drained section in which it is made.
    Section(Rc<SectionMarks>),
}

/// A proven write on its way: where the snapshot has what its proof leaves alone.
pub(super) struct Shield {
    /// The node that writes.
    pub(super) node: usize,
    /// Its edge to the node written.
    pub(super) to: usize,
    /// Its edge to the view for which that is proven.
    pub(super) from: usize,
    /// What it touches.
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Shield {
    /// What of `sources` a change of `range` enters: without those left alone, if it is a part of the write.
    /// `None` for nothing.
    pub(super) fn left_of(
        &self,
        graph: &Graph,
        sources: &SourceSet,
        range: &Range<u64>,
    ) -> Option<SourceSet> {
        let own = graph.nodes[self.node].edges[self.to].own.as_ref();
        let effect = own.and_then(|own| own.proven(self.from));
        let effect = effect.filter(|_| self.start <= range.start && range.end <= self.end);
        effect.map_or_else(|| Some(sources.clone()), |effect| sources.without(&effect.exempt))
    }
}

struct Lineage {
    operation: OpId,
    up: Option<Rc<Lineage>>,
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
        Self::new(graph, origin, worker, true)
    }

    /// Enters the gate of `origin` on `worker` if it is open; gives the snapshot back if it is closed.
    #[inline(always)]
    pub(super) fn try_begin(
        graph: Rc<Snapshot>,
        origin: usize,
        worker: usize,
    ) -> Result<Self, Rc<Snapshot>> {
        if graph.origins[origin].gate.try_enter(worker) {
            return Ok(Self::new(graph, origin, worker, true));
        }
        Err(graph)
    }

    /// On behalf of a graph change, in one of the two snapshots of its drained section: passes the gates
    /// that the section holds closed.
    pub(super) fn inside(section: &Drained<'_>, graph: Rc<Snapshot>, worker: usize) -> Self {
        let mut request = Self::new(graph, usize::MAX, worker, false);
        request.ground = Rc::new(Ground::Section(Rc::clone(section.marks()))).into();
        request
    }

    #[inline(always)]
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a graph has few origins, a host few workers"
    )]
    fn new(graph: Rc<Snapshot>, origin: usize, worker: usize, is_counted: bool) -> Self {
        let (origin, worker) = (origin as u32, worker as u32);
        let (lineage, unchanged) = (None, None);
        let (holds, ground) = (Cell::new(false), OnceCell::new());
        Self { graph, lineage, ground, origin, worker, unchanged, is_counted, holds }
    }

    /// A request that this one causes: it passes the gate, and holds up a drain by itself.
    pub(super) fn cause(&self) -> Self {
        if self.is_counted {
            self.gate().join(self.worker());
        }
        Self {
            graph: Rc::clone(&self.graph),
            lineage: self.lineage.clone(),
            holds: self.holds.clone(),
            ground: self.ground.clone(),
            ..*self
        }
    }

    /// The same, as a part of a guarded operation.
    pub(super) fn cause_under(&self, operation: OpId, unchanged: Option<Class>) -> Self {
        let mut request = self.cause();
        request.lineage = Some(Rc::new(Lineage { operation, up: request.lineage.take() }));
        request.unchanged = unchanged;
        request.ground = OnceCell::new();
        request
    }

    /// The operations that caused it.
    pub(super) fn operations(&self) -> Vec<OpId> {
        let mut operations = Vec::new();
        let mut next = self.lineage.as_ref();
        while let Some(lineage) = next {
            operations.push(lineage.operation);
            next = lineage.up.as_ref();
        }
        operations
    }

    /// Who asks the guards.
    #[inline]
    pub(super) fn by<'a>(&self, operations: &'a [OpId]) -> By<'a> {
        By { holds: self.holds.get(), ops: operations }
    }

    /// From now on others may wait for it.
    #[inline]
    pub(super) fn set_holds(&self) {
        self.holds.set(true);
    }

    /// From now on it is a proven write: it does not enter what the proof leaves alone.
    pub(super) fn set_shield(&self, shield: Shield) {
        let fresh = self.ground.set(Rc::new(Ground::Proof(shield))).is_ok();
        debug_assert!(fresh, "a request is issued under one proof");
    }

    /// The proof under which it is issued.
    #[inline]
    pub(super) fn shield(&self) -> Option<&Shield> {
        match &**self.ground.get()? {
            Ground::Proof(shield) => Some(shield),
            Ground::Section(_) => None,
        }
    }

    /// Where its changes are marked, if it is made in a drained section.
    #[inline]
    pub(super) fn section(&self) -> Option<&SectionMarks> {
        match &**self.ground.get()? {
            Ground::Section(marks) => Some(marks),
            Ground::Proof(_) => None,
        }
    }

    /// The view that it is proven not to alter.
    #[inline]
    pub(super) fn unchanged(&self) -> Option<Class> {
        self.unchanged
    }

    /// The snapshot in which it runs.
    #[inline]
    pub(super) fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The gate behind which it is.
    #[inline]
    fn gate(&self) -> &Gate {
        &self.graph.origins[self.origin as usize].gate
    }

    /// A change that it has caused was given up before its driver had answered. Nobody will learn of its
    /// end, so it stays behind the gate.
    #[cold]
    pub(super) fn abandon(&self) {
        if self.is_counted {
            self.gate().join(self.worker());
            self.graph.origins[self.origin as usize].abandoned.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether whoever holds it back is to let it go; if not, the task is woken when that begins.
    pub(super) fn poll_drained(&self, cx: &Context<'_>) -> bool {
        !self.is_counted || self.gate().poll_closed(cx)
    }

    /// Number of the worker that runs it.
    #[inline]
    pub(super) fn worker(&self) -> usize {
        self.worker as usize
    }
}

impl Drop for Request {
    #[inline]
    fn drop(&mut self) {
        if self.is_counted {
            self.gate().leave(self.worker());
        }
    }
}
