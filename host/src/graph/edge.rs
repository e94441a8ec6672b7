//! Edges in use: the only way to call a node.
//!
//! [`EdgeRef`] checks the range, fits requests to the driver's limits ([`super::align`]), emulates what
//! the driver lacks, and counts. A driver sees valid, aligned requests only.

use std::borrow::Cow;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::admit::{check, mark};
use super::align;
use super::guard::{FlightKey, SourceSet};
use super::mutation::{Mutation, mutated};
use super::op::{Op, OpKind};
use super::origin::Request;
use super::snapshot::{Cx, Edge, Graph, GraphNode};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Buf, BufMut};
use crate::limits::ZERO_CHUNK_BYTES;
use crate::node::{Extent, ExtentKind, NodeFuture, Support, WriteFlags};

/// An edge of a snapshot, used by one worker.
#[derive(Clone, Copy)]
pub struct EdgeRef<'g> {
    pub(super) graph: &'g Graph,
    pub(super) request: &'g Request,
    pub(super) edge: &'g Edge,
}

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

impl Flight<'_> {
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
    /// The child.
    pub fn node(&self) -> &'g GraphNode {
        &self.graph.nodes[self.edge.child]
    }

    pub(super) fn cx(&self) -> Cx<'g> {
        Cx { graph: self.graph, request: self.request, node: self.edge.child }
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `EINVAL` past the end; the driver's.
    pub fn read(self, offset: u64, buf: BufMut) -> EdgeCall<'g, BufMut> {
        let op = Op { kind: OpKind::Read, offset, len: buf.len() as u64 };
        if self.is_in_range(&op) {
            self.edge.counters.begin(self.request.worker(), &op);
            let call = self.read_admitted(offset, buf);
            return EdgeCall { edge: self, flight: None, changes: false, call };
        }
        let call = Box::pin(async move {
            self.begin(&op).await?;
            align::read(self, offset, buf).await
        });
        EdgeCall { edge: self, flight: None, changes: false, call }
    }

    /// Writes `buf` at `offset`.
    ///
    /// # Errors
    /// `ENOSPC` past the end, `EROFS`, `EPERM`; `ENOTSUP` when `flags.compressed` and the driver does not do that;
    /// the driver's.
    pub fn write(self, offset: u64, buf: Buf, flags: WriteFlags) -> EdgeCall<'g, ()> {
        let op = Op { kind: OpKind::Write, offset, len: buf.len() as u64 };
        if self.edge.role.forwards_changes()
            && self.is_in_range(&op)
            && let Some(flight) = self.try_cross(&op)
        {
            self.edge.counters.begin(self.request.worker(), &op);
            let call = self.write_admitted(offset, buf, flags);
            return EdgeCall { edge: self, flight, changes: true, call };
        }
        let call = Box::pin(async move {
            let flight = self.begin(&op).await?;
            let result = self.write_with_fua(offset, buf, flags).await;
            self.end(flight, &op, result)
        });
        EdgeCall { edge: self, flight: None, changes: false, call }
    }

    /// A read that has been admitted and counted. What fits the driver goes to it without a future in
    /// between.
    #[inline]
    pub(super) fn read_admitted(self, offset: u64, buf: BufMut) -> NodeFuture<'g, BufMut> {
        let node = self.node();
        if !buf.is_empty() && align::fits(&node.info.limits, offset, &buf) {
            return node.driver.read(self.cx(), offset, buf);
        }
        Box::pin(align::read(self, offset, buf))
    }

    /// A write that has been admitted and counted, like [`EdgeRef::read_admitted`].
    #[inline]
    pub(super) fn write_admitted(
        self,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> NodeFuture<'g, ()> {
        let node = self.node();
        let direct = !buf.is_empty()
            && node.serializer.is_none()
            && !(flags.compressed && node.info.limits.compressed_bytes == 0)
            && (!flags.fua || node.info.caps.fua == Support::Native)
            && align::fits(&node.info.limits, offset, &buf);
        if direct {
            return node.driver.write(self.cx(), offset, buf, flags);
        }
        Box::pin(async move { self.write_with_fua(offset, buf, flags).await })
    }

    /// Where requests by this edge must end.
    #[inline]
    pub(super) fn end_bytes(&self) -> u64 {
        self.edge.end_bytes(self.node())
    }

    /// Whether there is something to do, all of it within the child.
    #[inline]
    fn is_in_range(&self, op: &Op) -> bool {
        op.len > 0 && op.offset.checked_add(op.len).is_some_and(|end| end <= self.end_bytes())
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// As [`EdgeRef::write`]; `ENOTSUP` when `flags.fast` and only writing data would do.
    pub async fn zero(self, offset: u64, len: u64, flags: WriteFlags) -> Result<()> {
        let op = Op { kind: OpKind::Zero, offset, len };
        let flight = self.begin(&op).await?;
        let result = self.zero_with_fua(offset, len, flags).await;
        self.settle(self.end(flight, &op, result))
    }

    /// Tells that a range is not needed: advisory.
    ///
    /// # Errors
    /// As [`EdgeRef::write`].
    pub async fn discard(self, offset: u64, len: u64) -> Result<()> {
        let op = Op { kind: OpKind::Discard, offset, len };
        let flight = self.begin(&op).await?;
        let result = self.discard_child(offset, len).await;
        self.settle(self.end(flight, &op, result))
    }

    /// Makes completed writes durable.
    ///
    /// # Errors
    /// The driver's.
    pub async fn flush(self) -> Result<()> {
        let op = Op { kind: OpKind::Flush, offset: 0, len: 0 };
        self.begin(&op).await?;
        self.settle(self.flush_child().await)
    }

    /// The extents from `offset` on; may end before `offset + len`.
    ///
    /// # Errors
    /// `EINVAL` past the end; the driver's; `EIO` when the driver's answer does not cover `offset`.
    pub async fn block_status(self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        let op = Op { kind: OpKind::Status, offset, len };
        self.begin(&op).await?;
        if len == 0 {
            return Ok(Vec::new());
        }
        self.settle(align::block_status(self, offset, len).await)
    }

    /// The same for a hint: what fits the driver goes to it without a future in between, and its answer is
    /// not checked.
    #[inline]
    pub(super) fn hinted_status(self, offset: u64, len: u64) -> NodeFuture<'g, Vec<Extent>> {
        let op = Op { kind: OpKind::Status, offset, len };
        let node = self.node();
        if self.is_in_range(&op) && align::is_aligned_to(&node.info.limits, offset, len) {
            self.edge.counters.begin(self.request.worker(), &op);
            return node.driver.block_status(self.cx(), offset, len);
        }
        Box::pin(self.block_status(offset, len))
    }

    /// The child's length now, bytes: of one that grows, at least what has been written. Its size in the
    /// graph is what it had before somebody kept bytes in it.
    pub fn len_bytes(&self) -> u64 {
        let node = self.node();
        if !node.info.growable {
            return node.info.size_bytes;
        }
        if let Some(len) = node.driver.len_bytes() {
            return len;
        }
        let Some(below) = node.edges.first().filter(|edge| edge.grows) else {
            return node.info.size_bytes;
        };
        let len = EdgeRef { edge: below, ..*self }.len_bytes();
        len.saturating_sub(node.driver.offset_in_child().unwrap_or(0))
    }

    /// Makes the child this long, rounded up to the alignment of its driver: cuts it off, or adds zeros. For
    /// who keeps its bytes there, and filters that pass that on.
    ///
    /// # Errors
    /// `ENOTSUP` for a child that does not grow, or whose driver cannot; `EROFS`, `EPERM`; the driver's.
    pub async fn set_len(self, len: u64) -> Result<()> {
        let node = self.node();
        if !self.edge.grows {
            let message = "only a container that can grow has a length to set";
            return Err(Error::new(ErrorKind::NotSupported, message).at_node(&node.name));
        }
        // All behind the new end shows zeros from now on.
        let end = self.len_bytes().max(node.info.size_bytes).max(len);
        let op = Op { kind: OpKind::Zero, offset: len, len: end - len };
        let flight = self.begin(&op).await?;
        let result = node.driver.set_len(self.cx(), len).await;
        self.settle(self.end(flight, &op, result))
    }

    /// The first part of `range` where the child has no bytes of its own.
    pub(crate) async fn first_unallocated(self, range: Range<u64>) -> Result<Option<Range<u64>>> {
        let mut at = range.start;
        while at < range.end {
            for extent in self.block_status(at, range.end - at).await? {
                let run = extent.offset..range.end.min(extent.offset + extent.len);
                if extent.kind == ExtentKind::Unallocated {
                    return Ok(Some(run));
                }
                at = run.end;
            }
        }
        Ok(None)
    }

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
        Flight { edge: *self, key: Some(key), has_ended: false }
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

    /// What comes before every call: range and permission, the guards beyond the edge, marks where changes
    /// enter; counting.
    async fn begin(&self, op: &Op) -> Result<Option<Flight<'g>>> {
        let child = self.node();
        let flight;
        if self.edge.entry.is_some() {
            check(self.graph, self.edge, op)?;
            flight = self.cross(op).await;
            self.mark(op);
        } else {
            op.check_range(self.edge.end_bytes(child))
                .map_err(|error| error.at_node(&child.name))?;
            if op.kind.is_change() && !self.edge.role.forwards_changes() {
                let (user, role) = (self.graph.user_of(self.edge), self.edge.role);
                let message = format!(
                    "{user} only reads it, as its `{role}`: changes go by an edge that is `filtered`, \
                     `data`, `storage` or `target`"
                );
                return Err(Error::new(ErrorKind::NotPermitted, message).at_node(&child.name));
            }
            flight = self.cross(op).await;
        }
        self.edge.counters.begin(self.request.worker(), op);
        let under_way = || Flight { edge: *self, key: None, has_ended: false };
        Ok(flight.or_else(|| op.kind.is_change().then(under_way)))
    }

    /// Marks what a change affects, where it enters.
    #[inline]
    fn mark(&self, op: &Op) {
        match self.request.section() {
            None => mark(self.edge, op),
            Some(section) if op.kind.is_change() => section.mark(self.graph, self.edge, op),
            Some(_) => {}
        }
    }

    /// The end of a call. A change that fails may have torn more than it was to write: that is marked where
    /// it has entered, before anybody learns of it.
    #[inline]
    pub(super) fn end<T>(
        &self,
        flight: Option<Flight<'_>>,
        op: &Op,
        result: Result<T>,
    ) -> Result<T> {
        if result.is_err() && op.kind.is_change() {
            let around = self.node().fill.around(&(op.offset..op.offset.saturating_add(op.len)));
            self.mark(&Op { offset: around.start, len: around.end - around.start, ..*op });
        }
        if let Some(flight) = flight {
            flight.end();
        }
        result
    }

    /// Calls of a drive, which has been admitted by itself: counts and goes on.
    #[inline]
    pub(super) fn begin_admitted(&self, op: &Op) {
        self.edge.counters.begin(self.request.worker(), op);
    }

    #[inline]
    pub(super) fn settle<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| self.failed(error))
    }

    #[cold]
    fn failed(&self, error: Error) -> Error {
        self.edge.counters.failed(self.request.worker());
        error.at_node(&self.node().name)
    }

    pub(super) async fn flush_child(&self) -> Result<()> {
        match self.node().info.caps.flush {
            Support::None => Ok(()),
            _ => self.node().driver.flush(self.cx()).await,
        }
    }

    pub(super) async fn discard_child(&self, offset: u64, len: u64) -> Result<()> {
        let node = self.node();
        let (offset, len) = align::inner(offset, len, node.info.limits.request_alignment);
        if node.info.caps.discard == Support::None || len == 0 {
            return Ok(());
        }
        node.driver.discard(self.cx(), offset, len).await
    }

    pub(super) async fn write_with_fua(
        &self,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> Result<()> {
        let node = self.node();
        if flags.compressed && node.info.limits.compressed_bytes == 0 {
            let message = format!("driver `{}` writes nothing compressed", node.driver.driver());
            return Err(Error::new(ErrorKind::NotSupported, message));
        }
        let emulate = flags.fua && node.info.caps.fua != Support::Native;
        let flags = WriteFlags { fua: flags.fua && !emulate, ..flags };
        align::write(*self, offset, buf, flags).await?;
        if emulate { self.flush_child().await } else { Ok(()) }
    }

    pub(super) async fn zero_with_fua(
        &self,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let caps = self.node().info.caps;
        let emulate = flags.fua && caps.fua != Support::Native;
        let flags = WriteFlags { fua: flags.fua && !emulate, compressed: false, ..flags };
        let mut result = match caps.zero {
            Support::Native => align::zero(*self, offset, len, flags).await,
            _ => Err(Error::new(ErrorKind::NotSupported, "it cannot zero without writing")),
        };
        let by_writing =
            result.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotSupported);
        if by_writing && !flags.fast {
            result = self.write_zeros(offset, len, flags).await;
        }
        result?;
        if emulate { self.flush_child().await } else { Ok(()) }
    }

    /// Zeroing by bounded writes.
    pub(super) async fn write_zeros(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<()> {
        let max = (ZERO_CHUNK_BYTES as u64).min(self.node().info.limits.transfer_max_bytes.into());
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let count = max.min(end - at);
            let zeros = Buf::zeros(usize::try_from(count).unwrap_or(ZERO_CHUNK_BYTES));
            align::write(*self, at, zeros, flags).await?;
            at += count;
        }
        Ok(())
    }
}
