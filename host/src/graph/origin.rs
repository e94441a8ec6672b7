//! Who begins requests, and what a request is from admission to settlement.
//!
//! An *origin* has one gate, which lives as long as it. Only requests without an ancestor enter it. What
//! they cause further down carries the [`Request`] along and passes: whoever closes the gate waits for
//! the whole tree of a request, and never stops a part of it half-way.

use std::cell::{Cell, OnceCell};
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Context;
use std::time::Duration;

use super::busy::{Busy, Unended};
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
    /// What drained sections have begun where it comes to: that is behind the gate, too.
    pub(super) unended: Unended,
}

impl Origin {
    pub(super) fn new(name: Arc<str>) -> Self {
        let outcomes = OutcomeCounters::default();
        let (watches, abandoned) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (gate, unended) = (Gate::new(), Unended::default());
        Self { name, gate, outcomes, watches, abandoned, unended }
    }

    /// What is behind the gate, and has not ended in that time.
    pub(super) fn unended(&self, within: Duration) -> String {
        let (count, works) = self.unended.told();
        let requests = self.gate.in_flight().saturating_sub(count);
        let mut told = Vec::new();
        if requests > 0 || works.is_empty() {
            let abandoned = match self.abandoned.load(Ordering::Relaxed) {
                0 => String::new(),
                count => format!(" ({count} of them a driver gave up before they had ended)"),
            };
            let name = &self.name;
            told.push(format!(
                "{requests} requests of `{name}` have not ended in {within:?}{abandoned}"
            ));
        }
        told.extend(works.iter().map(|work| format!("{work} has not ended in {within:?}")));
        told.join("; ")
    }
}

/// A request from admission to settlement: the ground on which everything it causes stands. It stays on
/// its worker and counts as in flight until it is dropped.
pub(super) struct Request {
    graph: Rc<Snapshot>,
    /// The guarded operations that caused it, the innermost first.
    lineage: Option<Rc<Lineage>>,
    /// Index in the snapshot's origins. Small, like all that is here: every request moves it about.
    origin: u32,
    worker: u32,
    presence: Presence,
    holds: Cell<Holds>,
}

/// Whether others may wait for a request. As wide as what stands beside it, like [`Presence`], so that a
/// request is moved by whole words.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Holds {
    Nobody,
    /// It has entered a source, or what caused it has.
    Others,
}

/// How a request is behind its gate.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Presence {
    /// It has entered, and leaves.
    Own,
    /// By the request of which it is a part.
    Shared,
    /// Not at all: it is inside a drained section.
    None,
}

/// A request as a part of another one, which outlives it: it need not enter the gate again.
pub(super) struct Part<'r> {
    request: Request,
    whole: PhantomData<&'r Request>,
}

impl Deref for Part<'_> {
    type Target = Request;

    #[inline]
    fn deref(&self) -> &Request {
        &self.request
    }
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

/// What a request stands on beside its origin, the innermost first.
struct Lineage {
    ground: Ground,
    up: Option<Rc<Lineage>>,
}

enum Ground {
    Operation(Operation),
    /// The drained section in which it is made. Nothing is above it.
    Section {
        marks: Rc<SectionMarks>,
        busy: Option<Busy>,
    },
}

/// A guarded operation.
struct Operation {
    id: OpId,
    /// The view that it is proven not to alter.
    unchanged: Option<Class>,
    /// The proof under which it is issued.
    shield: OnceCell<Shield>,
}

impl Lineage {
    #[inline]
    fn operation(&self) -> Option<&Operation> {
        match &self.ground {
            Ground::Operation(operation) => Some(operation),
            Ground::Section { .. } => None,
        }
    }
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
        Self::new(graph, origin, worker, Presence::Own)
    }

    /// Enters the gate of `origin` on `worker` if it is open; gives the snapshot back if it is closed.
    #[inline(always)]
    pub(super) fn try_begin(
        graph: Rc<Snapshot>,
        origin: usize,
        worker: usize,
    ) -> Result<Self, Rc<Snapshot>> {
        if graph.origins[origin].gate.try_enter(worker) {
            return Ok(Self::new(graph, origin, worker, Presence::Own));
        }
        Err(graph)
    }

    /// On behalf of a graph change, in one of the two snapshots of its drained section: passes the gates
    /// that the section holds closed. It is `busy` for as long as it goes on, with all that it causes.
    pub(super) fn inside(
        section: &Drained<'_>,
        graph: Rc<Snapshot>,
        worker: usize,
        busy: Option<Busy>,
    ) -> Self {
        let mut request = Self::new(graph, usize::MAX, worker, Presence::None);
        let ground = Ground::Section { marks: Rc::clone(section.marks()), busy };
        request.lineage = Some(Rc::new(Lineage { ground, up: None }));
        request
    }

    #[inline(always)]
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a graph has few origins, a host few workers"
    )]
    fn new(graph: Rc<Snapshot>, origin: usize, worker: usize, presence: Presence) -> Self {
        let (origin, worker) = (origin as u32, worker as u32);
        Self { graph, lineage: None, origin, worker, presence, holds: Cell::new(Holds::Nobody) }
    }

    /// A request that this one causes: it passes the gate, and holds up a drain by itself.
    pub(super) fn cause(&self) -> Self {
        let presence = match self.presence {
            Presence::None => Presence::None,
            Presence::Own | Presence::Shared => {
                self.gate().join(self.worker());
                Presence::Own
            }
        };
        self.again(self.lineage.clone(), presence)
    }

    /// What it issues as a part of itself, under a guarded operation.
    pub(super) fn part(&self, operation: OpId, unchanged: Option<Class>) -> Part<'_> {
        let operation = Operation { id: operation, unchanged, shield: OnceCell::new() };
        let (ground, up) = (Ground::Operation(operation), self.lineage.clone());
        let lineage = Some(Rc::new(Lineage { ground, up }));
        let presence = match self.presence {
            Presence::None => Presence::None,
            Presence::Own | Presence::Shared => Presence::Shared,
        };
        Part { request: self.again(lineage, presence), whole: PhantomData }
    }

    #[inline]
    fn again(&self, lineage: Option<Rc<Lineage>>, presence: Presence) -> Self {
        let (graph, holds) = (Rc::clone(&self.graph), self.holds.clone());
        Self { graph, lineage, origin: self.origin, worker: self.worker, presence, holds }
    }

    /// The guarded operation of which it is a part.
    #[inline]
    fn operation(&self) -> Option<&Operation> {
        self.lineage.as_ref()?.operation()
    }

    /// The operations that caused it.
    pub(super) fn operations(&self) -> Vec<OpId> {
        let grounds = std::iter::successors(self.lineage.as_ref(), |lineage| lineage.up.as_ref());
        grounds.filter_map(|lineage| Some(lineage.operation()?.id)).collect()
    }

    /// Who asks the guards.
    #[inline]
    pub(super) fn by<'a>(&self, operations: &'a [OpId]) -> By<'a> {
        By { holds: self.holds.get() == Holds::Others, ops: operations }
    }

    /// From now on others may wait for it.
    #[inline]
    pub(super) fn set_holds(&self) {
        self.holds.set(Holds::Others);
    }

    /// From now on it is a proven write: it does not enter what the proof leaves alone.
    pub(super) fn set_shield(&self, shield: Shield) {
        let operation = self.operation();
        let fresh = operation.is_some_and(|operation| operation.shield.set(shield).is_ok());
        debug_assert!(fresh, "a part of an operation is issued under one proof");
    }

    /// The proof under which it is issued.
    #[inline]
    pub(super) fn shield(&self) -> Option<&Shield> {
        self.operation()?.shield.get()
    }

    /// The drained section in which it is made: where its changes are marked, and for whom it is under way.
    #[inline]
    fn ground(&self) -> Option<(&SectionMarks, Option<&Busy>)> {
        let lineage = self.lineage.as_ref()?;
        std::iter::successors(Some(lineage), |lineage| lineage.up.as_ref()).find_map(|lineage| {
            match &lineage.ground {
                Ground::Section { marks, busy } => Some((&**marks, busy.as_ref())),
                Ground::Operation(_) => None,
            }
        })
    }

    /// Where its changes are marked, if it is made in a drained section.
    #[inline]
    pub(super) fn section(&self) -> Option<&SectionMarks> {
        self.ground().map(|(marks, _)| marks)
    }

    /// The view that it is proven not to alter.
    #[inline]
    pub(super) fn unchanged(&self) -> Option<Class> {
        self.operation()?.unchanged
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
    /// end, so it stays behind the gate, or behind those of whom its section's work concerns.
    #[cold]
    pub(super) fn abandon(&self) {
        if self.presence != Presence::None {
            self.gate().join(self.worker());
            self.graph.origins[self.origin as usize].abandoned.fetch_add(1, Ordering::Relaxed);
        } else if let Some((_, Some(busy))) = self.ground() {
            busy.abandon();
        }
    }

    /// Whether whoever holds it back is to let it go; if not, the task is woken when that begins.
    pub(super) fn poll_drained(&self, cx: &Context<'_>) -> bool {
        self.presence == Presence::None || self.gate().poll_closed(cx)
    }

    /// Whether it is to wait for nothing that may not come; if not, the task is woken when that begins.
    pub(super) fn poll_ends(&self, cx: &Context<'_>) -> bool {
        self.presence == Presence::None || self.gate().poll_ends(cx)
    }

    /// Whether a node has begun it of its own accord, as a job's does, and no drive, nor a change of the graph.
    pub(super) fn is_of_own_accord(&self) -> bool {
        self.origin != u32::MAX && self.origin as usize >= self.graph.drives.len()
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
        if self.presence == Presence::Own {
            self.gate().leave(self.worker());
        }
    }
}
