//! What the real graph stands on: memory disks that tell what was written, and fail or hold on demand.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::Cx;
use super::SECTOR;
use super::world::{NodeId, Span};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::Filter;
use crate::graph::testing::turn;
use crate::io::{Buf, BufMut};
use crate::node::{Extent, ExtentKind, Node, NodeFuture, NodeInfo, Upkeep, WriteFlags};

/// What a disk was asked to change, and what of it has landed.
#[derive(Clone, Debug)]
pub(super) struct Landed {
    pub(super) disk: NodeId,
    /// In sectors of the disk: what was asked.
    pub(super) span: Span,
    /// The sectors from the start on that have landed; of a discard, all that are its own.
    pub(super) bytes: Vec<u8>,
    pub(super) is_discard: bool,
    /// Of a discard: which sectors show zeros now, if that is not just those that are its own.
    pub(super) zeroed: Option<Vec<bool>>,
    pub(super) has_failed: bool,
    /// How many guarded operations caused it.
    pub(super) depth: usize,
}

/// What a case does to the requests of its disks, and learns of them.
#[derive(Default)]
pub(super) struct Control {
    log: Mutex<Vec<Landed>>,
    /// The next change fails after so many quarters of its blocks have landed.
    fail: Mutex<Option<usize>>,
    /// The next shrink or deallocation does, too.
    fail_work: Mutex<Option<usize>>,
    pub(super) writes: Switch,
    /// Changes wait in filters.
    pub(super) filters: Switch,
    /// Reads wait with their bytes in hand.
    pub(super) reads: Switch,
    /// Requests that wait.
    pub(super) held: AtomicUsize,
}

/// Holds what comes to it.
#[derive(Default)]
pub(super) struct Switch {
    is_catching: AtomicBool,
    is_holding: AtomicBool,
}

impl Switch {
    /// From now on requests wait.
    pub(super) fn close(&self) {
        self.is_catching.store(true, Ordering::Relaxed);
        self.is_holding.store(true, Ordering::Relaxed);
    }

    /// Those that wait go on waiting; others pass.
    pub(super) fn let_others_pass(&self) {
        self.is_catching.store(false, Ordering::Relaxed);
    }

    /// All go on.
    pub(super) fn open(&self) {
        self.is_catching.store(false, Ordering::Relaxed);
        self.is_holding.store(false, Ordering::Relaxed);
    }
}

impl Control {
    pub(super) fn take_log(&self) -> Vec<Landed> {
        std::mem::take(&mut *self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Arms or disarms the next failure.
    pub(super) fn set_fail(&self, quarters: Option<usize>) {
        *self.fail.lock().unwrap_or_else(PoisonError::into_inner) = quarters;
    }

    /// Arms or disarms the next failure of what is done with nothing in flight; returns what was armed.
    pub(super) fn set_fail_work(&self, quarters: Option<usize>) -> Option<usize> {
        let mut armed = self.fail_work.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *armed, quarters)
    }

    async fn hold(&self, switch: &Switch) {
        if switch.is_catching.load(Ordering::Relaxed) {
            self.held.fetch_add(1, Ordering::Relaxed);
            while switch.is_holding.load(Ordering::Relaxed) {
                turn().await;
            }
            self.held.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn note(&self, landed: Landed) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(landed);
    }
}

/// A disk under [`Control`].
pub(super) struct TestDisk {
    pub(super) id: NodeId,
    /// In memory, or an image: that one has a container as its first child.
    pub(super) inner: Box<dyn Node>,
    pub(super) is_image: bool,
    pub(super) block_bytes: u64,
    pub(super) control: Arc<Control>,
}

/// The model byte of each sector; `None` if a sector is not of one byte.
pub(super) fn sectors(bytes: &[u8]) -> Option<Vec<u8>> {
    let sector = |sector: &[u8]| sector.iter().all(|byte| *byte == sector[0]).then_some(sector[0]);
    bytes.chunks(SECTOR as usize).map(sector).collect()
}

impl TestDisk {
    /// How much of a change of `len` bytes lands if it fails now.
    fn fail(&self, len: u64) -> Option<u64> {
        let quarters = self.control.fail.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        // Around what is written, an image fills by itself.
        let block_bytes = if self.is_image { SECTOR } else { self.block_bytes };
        Some(landing(len, quarters, block_bytes))
    }

    /// Gives up a part of a range, and fails. A disk without backing keeps what it has.
    async fn fail_half_way(&self, cx: Cx<'_>, at: u64, len: u64, quarters: usize) -> Result<()> {
        let landing = landing(len, quarters, self.block_bytes);
        if landing > 0 && cx.child(usize::from(self.is_image)).is_ok() {
            self.inner.deallocate(cx, at, landing).await?;
        }
        Err(failure())
    }

    /// By sector, whether the disk itself says that it shows zeros.
    async fn zeroed(&self, cx: Cx<'_>, offset: u64, len: u64) -> Result<Vec<bool>> {
        let mut zeroed = vec![false; (len / SECTOR) as usize];
        for extent in self.inner.block_status(cx, offset, len).await? {
            let first = ((extent.offset - offset) / SECTOR) as usize;
            let count = (extent.len / SECTOR) as usize;
            zeroed[first..first + count].fill(extent.kind == ExtentKind::Zero);
        }
        Ok(zeroed)
    }

    fn note(&self, cx: Cx<'_>, (offset, asked): (u64, u64), bytes: Vec<u8>, has_failed: bool) {
        self.control.note(Landed {
            disk: self.id,
            span: Span::at((offset / SECTOR) as usize, (asked / SECTOR) as usize),
            bytes,
            is_discard: false,
            zeroed: None,
            has_failed,
            depth: cx.request.operations().len(),
        });
    }
}

/// How much of `len` bytes lands, in whole blocks.
pub(super) fn landing(len: u64, quarters: usize, block_bytes: u64) -> u64 {
    (len / block_bytes * quarters as u64).div_ceil(4) * block_bytes
}

fn failure() -> Error {
    Error::new(ErrorKind::Io, "the case wants it so")
}

impl Node for TestDisk {
    fn driver(&self) -> &'static str {
        "test-disk"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        self.inner.info(children)
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move {
            let read = self.inner.read(cx, offset, buf).await;
            self.control.hold(&self.control.reads).await;
            read
        })
    }

    fn write<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.control.hold(&self.control.writes).await;
            let len = buf.len() as u64;
            let failed = self.fail(len);
            let landing = failed.unwrap_or(len);
            let buf = buf.slice(0..landing as usize);
            let bytes = sectors(&buf).unwrap_or_default();
            self.note(cx, (offset, len), bytes, failed.is_some());
            if landing > 0 {
                self.inner.write(cx, offset, buf, flags).await?;
            }
            failed.map_or(Ok(()), |_| Err(failure()))
        })
    }

    fn zero<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64, flags: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.control.hold(&self.control.writes).await;
            let failed = self.fail(len);
            let landing = failed.unwrap_or(len);
            let bytes = vec![0; (landing / SECTOR) as usize];
            self.note(cx, (at, len), bytes, failed.is_some());
            if landing > 0 {
                self.inner.zero(cx, at, landing, flags).await?;
            }
            failed.map_or(Ok(()), |_| Err(failure()))
        })
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.control.hold(&self.control.writes).await;
            let span = Span::at((offset / SECTOR) as usize, (len / SECTOR) as usize);
            let depth = cx.request.operations().len();
            let bytes = vec![0; span.len()];
            let (disk, is_discard, has_failed) = (self.id, true, false);
            let note = |zeroed| {
                let landed = Landed { disk, span, bytes, is_discard, zeroed, has_failed, depth };
                self.control.note(landed);
            };
            if !self.is_image {
                note(None);
                return self.inner.discard(cx, offset, len).await;
            }
            self.inner.discard(cx, offset, len).await?;
            note(Some(self.zeroed(cx, offset, len).await?));
            Ok(())
        })
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        self.inner.flush(cx)
    }

    fn resize<'a>(&'a self, cx: Cx<'a>, size_bytes: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let children: Vec<NodeInfo> =
                (0..).map_while(|at| Some(*cx.child(at).ok()?.node().info())).collect();
            let old_bytes = self.inner.info(&children)?.size_bytes;
            if size_bytes < old_bytes
                && let Some(quarters) = self.control.set_fail_work(None)
            {
                let len = old_bytes - size_bytes;
                return self.fail_half_way(cx, size_bytes, len, quarters).await;
            }
            self.inner.resize(cx, size_bytes).await
        })
    }

    fn deallocate<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            match self.control.set_fail_work(None) {
                Some(quarters) => self.fail_half_way(cx, offset, len, quarters).await,
                None => self.inner.deallocate(cx, offset, len).await,
            }
        })
    }

    fn upkeep(&self) -> Upkeep {
        self.inner.upkeep()
    }

    fn close<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        self.inner.close(cx)
    }

    fn block_status<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        self.inner.block_status(cx, at, len)
    }
}

/// A filter that does nothing but hold changes on their way.
pub(super) struct Stop {
    pub(super) control: Arc<Control>,
}

impl Filter for Stop {
    fn driver(&self) -> &'static str {
        "stop"
    }

    async fn write(&self, cx: Cx<'_>, offset: u64, buf: Buf, flags: WriteFlags) -> Result<()> {
        self.control.hold(&self.control.filters).await;
        cx.child(0)?.write(offset, buf, flags).await
    }
}
