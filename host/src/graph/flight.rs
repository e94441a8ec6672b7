//! Changes under way beyond an edge: which sources they enter there, what holds them off, and when they leave.

use std::borrow::Cow;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::edge::EdgeRef;
use super::guard::{FlightKey, SourceSet};
use super::mutation::{Mutation, mutated};
use super::op::{Op, OpKind};
use crate::error::Result;
use crate::node::NodeFuture;

/// A read or write under way. What fits the driver goes to it without a future in between.
#[must_use = "a request that is not awaited may not run"]
pub struct EdgeCall<'g, T> {
    edge: EdgeRef<'g>,
    /// A change that has entered a source by this edge.
    flight: Option<FlightKey>,
    /// The driver has been asked for a change, and has not answered.
    changes: bool,
    call: NodeFuture<'g, T>,
}

impl<'g, T> EdgeCall<'g, T> {
    /// Of what sees to its own flight, or needs none.
    #[inline]
    pub(super) fn new(edge: EdgeRef<'g>, call: NodeFuture<'g, T>) -> Self {
        Self { edge, flight: None, changes: false, call }
    }

    /// Of a change that the driver has been asked for, after it has entered what lies beyond the edge.
    #[inline]
    pub(super) fn of_change(
        edge: EdgeRef<'g>,
        flight: Option<FlightKey>,
        call: NodeFuture<'g, T>,
    ) -> Self {
        Self { edge, flight, changes: true, call }
    }
}

impl<T> Future for EdgeCall<'_, T> {
    type Output = Result<T>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let result = std::task::ready!(self.call.as_mut().poll(cx));
        self.changes = false;
        if let Some(flight) = self.flight.take() {
            self.edge.graph.guards.leave(self.edge.request.worker(), flight);
        }
        Poll::Ready(self.edge.settle(result))
    }
}

impl<T> Drop for EdgeCall<'_, T> {
    fn drop(&mut self) {
        if self.changes {
            self.edge.abandoned();
        }
    }
}

/// A change under way beyond an edge. The sources that it has entered by it, it leaves at its end, and only
/// then.
#[must_use = "a change that has entered must leave"]
pub(super) struct Flight<'g> {
    edge: EdgeRef<'g>,
    /// Until it has left.
    key: Option<FlightKey>,
    has_ended: bool,
}

impl<'g> Flight<'g> {
    /// Of what has been entered by an edge, if that is anything.
    #[inline]
    pub(super) fn new(edge: EdgeRef<'g>, key: Option<FlightKey>) -> Self {
        Self { edge, key, has_ended: false }
    }

    /// The change has ended, whatever its result.
    #[inline]
    pub(super) fn end(mut self) {
        self.leave();
    }

    #[inline]
    fn leave(&mut self) {
        self.has_ended = true;
        if let Some(key) = self.key.take() {
            self.edge.graph.guards.leave(self.edge.request.worker(), key);
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if mutated(Mutation::GuardsEndWithFutures) {
            self.leave();
        }
        if !self.has_ended {
            self.edge.abandoned();
        }
    }
}

impl<'g> EdgeRef<'g> {
    /// The sources beyond this edge that a change enters, and at which range: what its driver may touch
    /// around it. `None` for what enters none.
    #[inline]
    fn entered(&self, op: &Op) -> Option<(Cow<'g, SourceSet>, Range<u64>)> {
        let sources = self.edge.crossing.as_ref()?;
        let is_forgotten = mutated(Mutation::DiscardsStaleNothing) && op.kind == OpKind::Discard;
        if !op.kind.is_change() || op.len == 0 || is_forgotten {
            return None;
        }
        let range = op.offset..op.offset.saturating_add(op.len);
        let sources = match self.request.shield() {
            None => Cow::Borrowed(sources),
            Some(shield) => Cow::Owned(shield.left_of(self.graph, sources, &range)?),
        };
        Some((sources, self.node().fill.around(&range)))
    }

    /// Enters the sources that lie beyond this edge, if that can be done at once; `None` if a guard holds
    /// the change off.
    #[inline]
    #[allow(clippy::option_option, reason = "whether, and what there is to leave")]
    pub(super) fn try_cross(&self, op: &Op) -> Option<Option<FlightKey>> {
        // Looked at here, so that where nothing copies there is nothing else to do.
        if self.edge.crossing.is_none() { Some(None) } else { self.try_enter(op) }
    }

    #[allow(clippy::option_option, reason = "whether, and what there is to leave")]
    fn try_enter(&self, op: &Op) -> Option<Option<FlightKey>> {
        let Some((sources, range)) = self.entered(op) else { return Some(None) };
        let operations = self.request.operations();
        let (worker, by) = (self.request.worker(), self.request.by(&operations));
        let flight = self.graph.guards.try_enter(worker, &sources, &range, by)?;
        self.request.set_holds();
        Some(Some(flight))
    }

    /// Enters the sources that lie beyond this edge, as soon as no guard holds the change off.
    pub(super) async fn cross(&self, op: &Op) -> Option<Flight<'g>> {
        let (sources, range) = self.entered(op)?;
        let operations = self.request.operations();
        let (worker, by) = (self.request.worker(), self.request.by(&operations));
        let key = self.graph.guards.enter(worker, &sources, &range, by).await;
        self.request.set_holds();
        Some(self.flight(key))
    }

    /// What has been entered by this edge, until its end.
    pub(super) fn flight(&self, key: FlightKey) -> Flight<'g> {
        Flight::new(*self, Some(key))
    }

    /// A change was dropped before its end. It may still be under way, for as long as the host runs: nothing
    /// may rely on its range again, and its origin never stands still.
    #[cold]
    fn abandoned(&self) {
        if mutated(Mutation::GuardsEndWithFutures) {
            return;
        }
        self.request.abandon();
        tracing::warn!(
            "node `{}`: a change was abandoned by its user; copies of its range, and changes of the graph \
             above it, will wait",
            self.node().name
        );
    }
}
