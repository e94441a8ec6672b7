//! Drives in use on a worker: where exports and embedders send requests.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

use super::admit::{NotAdmitted, admit, mark};
use super::align;
use super::cell::LocalGraph;
use super::depth::{Layered, layers};
use super::detach::ToTheEnd;
use super::edge::EdgeRef;
use super::generation::DriveGeneration;
use super::mutation::{Mutation, mutated};
use super::op::{Op, OpKind};
use super::shown::shown;
use super::snapshot::{Graph, GraphDrive};
use super::user::DriveTitle;
use crate::bitmap::Bitmap;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Buf, BufMut};
use crate::limits::TRANSFER_MAX_BYTES;
use crate::node::{Extent, NodeFuture, NodeInfo, WriteFlags};

/// A drive, used by the current worker. Requests run on it; see [`crate::Drive`] for other threads.
#[derive(Clone)]
pub struct LocalDrive {
    graph: Rc<LocalGraph>,
    id: Rc<str>,
    generation: DriveGeneration,
    /// Where the drive was when it was last used: graph changes may move it.
    index: Cell<usize>,
}

impl LocalDrive {
    /// The drive with this id.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn open(graph: &Rc<LocalGraph>, id: &str) -> Result<Self> {
        let snapshot = graph.current();
        let index = snapshot.expect_drive(id)?;
        let (id, generation) = (id.into(), snapshot.drives[index].generation);
        Ok(Self { graph: Rc::clone(graph), id, generation, index: Cell::new(index) })
    }

    /// Index of the drive in a snapshot.
    #[inline]
    fn index(&self, graph: &Graph) -> Result<usize> {
        let is_it = |drive: &GraphDrive| drive.generation == self.generation;
        let index = self.index.get();
        if graph.drives.get(index).is_some_and(is_it) {
            return Ok(index);
        }
        let found = graph.drives.iter().position(is_it).ok_or_else(|| {
            let message = format!("{} has been removed", DriveTitle(&self.id));
            Error::new(ErrorKind::NotFound, message)
        })?;
        self.index.set(found);
        Ok(found)
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What its root node is now.
    ///
    /// # Errors
    /// `ENOMEDIUM`.
    pub fn info(&self) -> Result<NodeInfo> {
        let snapshot = self.graph.current();
        Ok(snapshot.nodes[snapshot.drives[self.index(&snapshot)?].medium()?.child].info)
    }

    /// The first snapshot since which the drive has shown, without a break, the view that `bitmap` records;
    /// `None` if it does not show it.
    pub(crate) fn shown_since(&self, bitmap: &Bitmap) -> Option<u64> {
        let graph = self.graph.current();
        let index = self.index(&graph).ok()?;
        graph.shown_since(&graph.drives[index], bitmap)
    }

    /// Admits `op` in the current snapshot and runs it there. What the future owns is moved into it once.
    #[inline(always)]
    #[allow(clippy::manual_async_fn, reason = "an `async fn` keeps its arguments twice")]
    fn run<T, F>(&self, op: Op, call: F) -> impl Future<Output = Result<T>> + use<'_, T, F>
    where
        F: for<'g> FnOnce(EdgeRef<'g>) -> NodeFuture<'g, T>,
    {
        async move {
            check_transfer(op.transfer_bytes())?;
            let (request, index) = loop {
                let graph = self.graph.current();
                let index = self.index(&graph)?;
                let is_current = |graph: &Graph| self.graph.is_current(graph);
                match admit(graph, index, &op, self.graph.worker(), is_current) {
                    Ok(request) => break (request, index),
                    Err(NotAdmitted::Outdated) => {}
                    // Boxed, so that the path through an open gate keeps a small future.
                    Err(NotAdmitted::Closed(graph)) => {
                        Box::pin(graph.origins[index].gate.opened()).await;
                    }
                    Err(NotAdmitted::Refused(error)) => return Err(error),
                }
            };
            let graph = request.graph();
            let edge = EdgeRef { graph, request: &request, edge: graph.drives[index].medium()? };
            let flight = match edge.try_cross(&op) {
                Some(key) => key.map(|key| edge.flight(key)),
                None => Box::pin(edge.cross(&op)).await,
            };
            edge.begin_admitted(&op);
            let result = call(edge).await;
            let result = edge.settle(edge.end(flight, &op, result));
            if mutated(Mutation::MarksAfterCompletion) {
                mark(edge.edge, &op);
            }
            result
        }
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `EINVAL` past the end or above 64 MiB; the nodes'.
    #[inline(always)]
    pub fn read(&self, offset: u64, buf: BufMut) -> impl Future<Output = Result<BufMut>> + use<'_> {
        let op = Op { kind: OpKind::Read, offset, len: buf.len() as u64 };
        self.run(op, move |edge| edge.read_admitted(offset, buf))
    }

    /// Writes `buf` at `offset`. Once begun it is finished, also if its future is dropped.
    ///
    /// # Errors
    /// `ENOSPC` past the end, `EINVAL` above 64 MiB, `EPERM` or `EROFS`; the nodes'.
    pub async fn write(&self, offset: u64, buf: Buf, flags: WriteFlags) -> Result<()> {
        let drive = self.clone();
        ToTheEnd::new(async move { drive.write_in_task(offset, buf, flags).await }).await
    }

    /// [`LocalDrive::write`] for a caller that nobody drops before its end: spares a box.
    #[inline(always)]
    pub(crate) fn write_in_task(
        &self,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> impl Future<Output = Result<()>> + use<'_> {
        let op = Op { kind: OpKind::Write, offset, len: buf.len() as u64 };
        self.run(op, move |edge| edge.write_admitted(offset, buf, flags))
    }

    /// Makes a range read as zeros. Once begun it is finished, like a write.
    ///
    /// # Errors
    /// As [`LocalDrive::write`]; `ENOTSUP` when `flags.fast` and only writing data would do.
    pub async fn zero(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<()> {
        let (drive, op) = (self.clone(), Op { kind: OpKind::Zero, offset, len });
        ToTheEnd::new(async move {
            drive
                .run(op, |edge| {
                    Box::pin(async move { edge.zero_with_fua(offset, len, flags).await })
                })
                .await
        })
        .await
    }

    /// Tells that a range is not needed: advisory. Once begun it is finished, like a write.
    ///
    /// # Errors
    /// As [`LocalDrive::write`].
    pub async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let (drive, op) = (self.clone(), Op { kind: OpKind::Discard, offset, len });
        ToTheEnd::new(async move {
            drive
                .run(op, |edge| Box::pin(async move { edge.discard_child(offset, len).await }))
                .await
        })
        .await
    }

    /// Makes completed writes durable.
    ///
    /// # Errors
    /// The nodes'.
    pub async fn flush(&self) -> Result<()> {
        let op = Op { kind: OpKind::Flush, offset: 0, len: 0 };
        self.run(op, |edge| Box::pin(async move { edge.flush_child().await })).await
    }

    /// The extents from `offset` on; may end before `offset + len`.
    ///
    /// # Errors
    /// `EINVAL` past the end; the nodes'.
    pub async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        let op = Op { kind: OpKind::Status, offset, len };
        if len == 0 {
            return Ok(Vec::new());
        }
        self.run(op, |edge| Box::pin(align::block_status(edge, offset, len))).await
    }

    /// The extents from `offset` on as a reader sees them: where the root has no bytes of its own, what its
    /// backing is there. May end before `offset + len`.
    ///
    /// # Errors
    /// As [`LocalDrive::block_status`].
    pub async fn block_status_shown(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        let op = Op { kind: OpKind::Status, offset, len };
        if len == 0 {
            return Ok(Vec::new());
        }
        self.run(op, |edge| {
            Box::pin(
                async move { shown(edge, align::block_status(edge, offset, len).await?).await },
            )
        })
        .await
    }

    /// In which layer of images the bytes of a range lie. May end before `offset + len`.
    ///
    /// # Errors
    /// As [`LocalDrive::block_status`].
    pub async fn layers(&self, offset: u64, len: u64) -> Result<Vec<Layered>> {
        let op = Op { kind: OpKind::Status, offset, len };
        if len == 0 {
            return Ok(Vec::new());
        }
        self.run(op, |edge| layers(edge, offset, len)).await
    }
}

/// Refuses a read or write that is longer than any request may be.
#[inline]
pub(crate) fn check_transfer(len: u64) -> Result<()> {
    if len > TRANSFER_MAX_BYTES.into() {
        let message = format!("one request moves at most {TRANSFER_MAX_BYTES} bytes, not {len}");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    Ok(())
}
