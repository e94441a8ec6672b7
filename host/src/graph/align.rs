//! Fitting requests to a driver's limits: alignment of offset, length and memory, and the longest
//! transfer. What fits already goes straight through.
//!
//! A write that does not cover its first or last block reads that block, changes its part and writes it
//! back. Such a cycle must not meet another write of the same block: on nodes with an alignment above
//! one byte every write registers its blocks with the node's [`Serializer`], and a cycle has its
//! blocks to itself.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::task::{Poll, Waker};

use super::edge::EdgeRef;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Buf, BufMut};
use crate::node::{Extent, Limits, WriteFlags};

/// The largest aligned range inside a range (possibly empty).
pub(super) fn inner(offset: u64, len: u64, alignment: u32) -> (u64, u64) {
    let alignment = u64::from(alignment);
    let start = offset.next_multiple_of(alignment);
    let end = (offset + len) / alignment * alignment;
    (start, end.saturating_sub(start))
}

/// The smallest aligned range around a range.
fn outer(offset: u64, len: u64, alignment: u32) -> Range<u64> {
    let alignment = u64::from(alignment);
    offset / alignment * alignment..(offset + len).next_multiple_of(alignment)
}

fn is_aligned(offset: u64, len: u64, alignment: u32) -> bool {
    (offset | len) & (u64::from(alignment) - 1) == 0
}

#[inline]
pub(super) fn fits(limits: &Limits, offset: u64, bytes: &[u8]) -> bool {
    is_aligned(offset, bytes.len() as u64, limits.request_alignment)
        && bytes.len() as u64 <= u64::from(limits.transfer_max_bytes)
        && bytes.as_ptr().addr() & (limits.memory_alignment as usize - 1) == 0
}

/// Whether the driver takes a range as it is.
#[inline]
pub(super) fn is_aligned_to(limits: &Limits, offset: u64, len: u64) -> bool {
    is_aligned(offset, len, limits.request_alignment)
}

/// Splits an aligned range into transfers.
fn transfers(range: Range<u64>, limits: &Limits) -> impl Iterator<Item = Range<u64>> + use<> {
    let alignment = u64::from(limits.request_alignment);
    let step = (u64::from(limits.transfer_max_bytes) / alignment * alignment).max(alignment);
    let mut at = range.start;
    std::iter::from_fn(move || {
        let next = at..range.end.min(at.saturating_add(step));
        at = next.end;
        (!next.is_empty()).then_some(next)
    })
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Fills `buf` from `offset`.
pub(super) async fn read(edge: EdgeRef<'_>, offset: u64, buf: BufMut) -> Result<BufMut> {
    let node = edge.node();
    if buf.is_empty() {
        return Ok(buf);
    }
    if fits(&node.info.limits, offset, &buf) {
        return node.driver.read(edge.cx(), offset, buf).await;
    }
    // Boxed, so that the path which fits keeps a small future.
    Box::pin(read_bounced(edge, offset, buf)).await
}

async fn read_bounced(edge: EdgeRef<'_>, offset: u64, mut buf: BufMut) -> Result<BufMut> {
    let node = edge.node();
    let end = offset + buf.len() as u64;
    let whole = outer(offset, buf.len() as u64, node.info.limits.request_alignment);
    for part in transfers(whole, &node.info.limits) {
        let bounce = BufMut::new(to_usize(part.end - part.start));
        let bounce = node.driver.read(edge.cx(), part.start, bounce).await?;
        let wanted = part.start.max(offset)..part.end.min(end);
        let from = to_usize(wanted.start - part.start)..to_usize(wanted.end - part.start);
        let to = to_usize(wanted.start - offset)..to_usize(wanted.end - offset);
        buf[to].copy_from_slice(&bounce[from]);
    }
    Ok(buf)
}

/// Writes `buf` at `offset`.
pub(super) async fn write(
    edge: EdgeRef<'_>,
    offset: u64,
    buf: Buf,
    flags: WriteFlags,
) -> Result<()> {
    let node = edge.node();
    if buf.is_empty() {
        return Ok(());
    }
    if node.serializer.is_none() && fits(&node.info.limits, offset, &buf) {
        return node.driver.write(edge.cx(), offset, buf, flags).await;
    }
    // Boxed, so that the path which fits keeps a small future.
    Box::pin(write_serialized(edge, offset, buf, flags)).await
}

async fn write_serialized(
    edge: EdgeRef<'_>,
    offset: u64,
    buf: Buf,
    flags: WriteFlags,
) -> Result<()> {
    let node = edge.node();
    let limits = &node.info.limits;
    let len = buf.len() as u64;
    let blocks = outer(offset, len, limits.request_alignment);
    let cycle = !is_aligned(offset, len, limits.request_alignment);
    let _turn = match &node.serializer {
        Some(serializer) => Some(serializer.enter(blocks.clone(), cycle).await),
        None => None,
    };
    if fits(limits, offset, &buf) {
        return node.driver.write(edge.cx(), offset, buf, flags).await;
    }
    for part in transfers(blocks, limits) {
        let bounce = compose(edge, &part, offset, &buf).await?;
        node.driver.write(edge.cx(), part.start, bounce.freeze(), flags).await?;
    }
    Ok(())
}

/// The bytes of `part` once `buf` has been laid over what is there.
async fn compose(edge: EdgeRef<'_>, part: &Range<u64>, offset: u64, buf: &Buf) -> Result<BufMut> {
    let (driver, block) =
        (&edge.node().driver, u64::from(edge.node().info.limits.request_alignment));
    let end = offset + buf.len() as u64;
    let mut bounce = BufMut::new(to_usize(part.end - part.start));
    let wanted = part.start.max(offset)..part.end.min(end);
    let first = (wanted.start > part.start).then_some(part.start);
    let last = (wanted.end < part.end).then_some(part.end - block);
    for at in first.into_iter().chain(last.filter(|last| Some(*last) != first)) {
        let old = driver.read(edge.cx(), at, BufMut::new(to_usize(block))).await?;
        let start = to_usize(at - part.start);
        bounce[start..start + old.len()].copy_from_slice(&old);
    }
    let to = to_usize(wanted.start - part.start)..to_usize(wanted.end - part.start);
    bounce[to]
        .copy_from_slice(&buf[to_usize(wanted.start - offset)..to_usize(wanted.end - offset)]);
    Ok(bounce)
}

/// Zeros a range by the driver's own means; the parts of blocks at its ends are written.
pub(super) async fn zero(
    edge: EdgeRef<'_>,
    offset: u64,
    len: u64,
    flags: WriteFlags,
) -> Result<()> {
    let node = edge.node();
    let end = offset + len;
    let (start, inner_len) = inner(offset, len, node.info.limits.request_alignment);
    if inner_len == 0 {
        return edge.write_zeros(offset, len, flags).await;
    }
    {
        let _turn = match &node.serializer {
            Some(serializer) => Some(serializer.enter(start..start + inner_len, false).await),
            None => None,
        };
        node.driver.zero(edge.cx(), start, inner_len, flags).await?;
    }
    edge.write_zeros(offset, start - offset, flags).await?;
    edge.write_zeros(start + inner_len, end - start - inner_len, flags).await
}

/// The extents from `offset` on, clipped to the range asked for.
pub(super) async fn block_status(edge: EdgeRef<'_>, offset: u64, len: u64) -> Result<Vec<Extent>> {
    let node = edge.node();
    let end = offset + len;
    let asked = outer(offset, len, node.info.limits.request_alignment);
    let asked = asked.start..asked.end.min(edge.end_bytes());
    let extents = node.driver.block_status(edge.cx(), asked.start, asked.end - asked.start).await?;
    let mut clipped = Vec::with_capacity(extents.len());
    let mut at = asked.start;
    for extent in extents {
        let next = extent.offset.checked_add(extent.len);
        let Some(next) = next.filter(|_| extent.offset == at && extent.len > 0) else {
            return Err(Error::new(ErrorKind::Io, "its block status has gaps"));
        };
        at = next;
        let (from, to) = (extent.offset.max(offset), next.min(end));
        if from < to {
            let host_offset = extent.host_offset.map(|host| host + (from - extent.offset));
            clipped.push(Extent { offset: from, len: to - from, host_offset, ..extent });
        }
    }
    if clipped.is_empty() {
        return Err(Error::new(ErrorKind::Io, "its block status does not cover the range"));
    }
    Ok(clipped)
}

/// Keeps read-modify-write cycles of one node apart from other writes of the same blocks.
#[derive(Default)]
pub(super) struct Serializer {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// In flight, with whether it is a cycle. Bounded by the requests that exports admit.
    active: Vec<(u64, Range<u64>, bool)>,
    waiting: Vec<Waker>,
    next: u64,
}

struct Turn<'a> {
    serializer: &'a Serializer,
    key: u64,
}

impl Serializer {
    async fn enter(&self, blocks: Range<u64>, cycle: bool) -> Turn<'_> {
        poll_fn(|cx| {
            let mut state = self.lock();
            let meets = |(_, other, other_cycle): &(u64, Range<u64>, bool)| {
                (cycle || *other_cycle) && other.start < blocks.end && blocks.start < other.end
            };
            if state.active.iter().any(meets) {
                state.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            let key = state.next;
            state.next += 1;
            state.active.push((key, blocks.clone(), cycle));
            Poll::Ready(Turn { serializer: self, key })
        })
        .await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.serializer.lock();
        state.active.retain(|(key, ..)| *key != self.key);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }
}
