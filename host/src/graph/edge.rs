//! Edges in use: the only way to call a node.
//!
//! [`EdgeRef`] checks the range, keeps to the guards ([`super::flight`]), fits requests to the driver's limits
//! ([`super::align`]), emulates what the driver lacks ([`super::emulate`]), and counts. A driver sees valid, aligned
//! requests only.

use std::ops::Range;

use super::admit::{check, mark};
use super::align;
use super::flight::{EdgeCall, Flight};
use super::op::{Op, OpKind};
use super::origin::Request;
use super::snapshot::{Cx, Edge, Graph, GraphNode};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Buf, BufMut};
use crate::node::{Extent, ExtentKind, NodeFuture, Support, WriteFlags};

/// An edge of a snapshot, used by one worker.
#[derive(Clone, Copy)]
pub struct EdgeRef<'g> {
    pub(super) graph: &'g Graph,
    pub(super) request: &'g Request,
    pub(super) edge: &'g Edge,
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
            return EdgeCall::new(self, call);
        }
        let call = Box::pin(async move {
            self.begin(&op).await?;
            align::read(self, offset, buf).await
        });
        EdgeCall::new(self, call)
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
            return EdgeCall::of_change(self, flight, call);
        }
        let call = Box::pin(async move {
            let flight = self.begin(&op).await?;
            let result = self.write_with_fua(offset, buf, flags).await;
            self.end(flight, &op, result)
        });
        EdgeCall::new(self, call)
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

    /// Makes the child this long: cuts it off, or adds zeros. A container's length is rounded up to the alignment of its
    /// requests; what is of a view is as long as that. For who keeps its bytes there, and filters that pass that on.
    ///
    /// # Errors
    /// `ENOTSUP` for a child that does not grow, or whose driver cannot; `EROFS`, `EPERM`; the driver's.
    pub async fn set_len(self, len: u64) -> Result<()> {
        let node = self.node();
        if !self.edge.grows {
            let message = "only a container that can grow has a length to set";
            return Err(Error::new(ErrorKind::NotSupported, message).at_node(&node.name));
        }
        let len = match node.is_container {
            true => len.checked_next_multiple_of(node.info.limits.request_alignment.into()),
            false => Some(len),
        };
        let len = len.unwrap_or(u64::MAX);
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
        let under_way = || Flight::new(*self, None);
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
}
