//! `memory`: a sparse view in memory, lost at exit.
//!
//! Memory is taken in chunks when they are first written, and given back when a whole chunk is
//! discarded or zeroed. A chunk has a lock of its own, so that workers meet only on the same 64 KiB.

use std::sync::{OnceLock, RwLock};

use super::{Caps, Extent, ExtentKind, Limits, Node, NodeFuture, NodeInfo, WriteFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Cx;
use crate::io::{Buf, BufMut};
use crate::limits::EXTENTS_MAX;

/// Allocation unit, bytes.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks of one region of the table; a region exists once one of its chunks was written.
const REGION_CHUNKS: usize = 1024;
/// Largest view, bytes: 16,777,216 regions.
const SIZE_MAX_BYTES: u64 = 1 << 50;

type Chunk = RwLock<Option<Box<[u8]>>>;
type Region = Box<[Chunk]>;

/// The `memory` driver.
pub struct MemoryNode {
    size_bytes: u64,
    block_size: u32,
    regions: Box<[OnceLock<Region>]>,
}

/// A part of a request that lies in one chunk.
struct Piece {
    chunk: usize,
    start: usize,
    len: usize,
    /// Where the piece begins in the request's buffer.
    at: usize,
}

impl MemoryNode {
    /// A zero view of `size_bytes` that takes requests aligned to `block_size` (1 to 4096).
    ///
    /// # Errors
    /// `EINVAL` when the size is above 1 PiB or no multiple of the block size.
    pub fn new(size_bytes: u64, block_size: u32) -> Result<Self> {
        let valid_block = block_size.is_power_of_two() && block_size <= 4096;
        if size_bytes > SIZE_MAX_BYTES
            || !valid_block
            || !size_bytes.is_multiple_of(u64::from(block_size))
        {
            let message = format!(
                "a memory node of {size_bytes} bytes with blocks of {block_size}: at most 1 PiB, \
                 a multiple of a block size that is a power of two up to 4096"
            );
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let region_bytes = (CHUNK_BYTES * REGION_CHUNKS) as u64;
        let regions = usize::try_from(size_bytes.div_ceil(region_bytes)).unwrap_or(0);
        Ok(Self {
            size_bytes,
            block_size,
            regions: (0..regions).map(|_| OnceLock::new()).collect(),
        })
    }

    /// The chunk, if its region exists.
    fn chunk(&self, index: usize) -> Option<&Chunk> {
        self.regions[index / REGION_CHUNKS].get().map(|region| &region[index % REGION_CHUNKS])
    }

    fn chunk_or_new(&self, index: usize) -> &Chunk {
        let region = self.regions[index / REGION_CHUNKS]
            .get_or_init(|| (0..REGION_CHUNKS).map(|_| RwLock::new(None)).collect());
        &region[index % REGION_CHUNKS]
    }

    fn copy_out(&self, offset: u64, buf: &mut [u8]) {
        for piece in pieces(offset, buf.len()) {
            let to = &mut buf[piece.at..piece.at + piece.len];
            let chunk = self.chunk(piece.chunk).map(read_lock);
            match chunk.as_ref().and_then(|chunk| chunk.as_deref()) {
                Some(data) => to.copy_from_slice(&data[piece.start..piece.start + piece.len]),
                None => to.fill(0),
            }
        }
    }

    fn copy_in(&self, offset: u64, buf: &[u8]) {
        for piece in pieces(offset, buf.len()) {
            let from = &buf[piece.at..piece.at + piece.len];
            let mut chunk = write_lock(self.chunk_or_new(piece.chunk));
            let data = chunk.get_or_insert_with(|| vec![0; CHUNK_BYTES].into_boxed_slice());
            data[piece.start..piece.start + piece.len].copy_from_slice(from);
        }
    }

    /// Zeros a range; whole chunks are given back if `unmap`, else all of it is allocated.
    fn clear(&self, offset: u64, len: u64, unmap: bool) {
        // Walk by chunks, not by bytes: `len` may be the whole view.
        let mut at = offset;
        let end = offset + len;
        while at < end {
            let (index, start) = locate(at);
            let count = ((CHUNK_BYTES - start) as u64).min(end - at);
            let whole = count == CHUNK_BYTES as u64;
            if unmap && self.regions[index / REGION_CHUNKS].get().is_none() {
                let next_region =
                    ((index / REGION_CHUNKS + 1) * REGION_CHUNKS * CHUNK_BYTES) as u64;
                at = next_region.min(end);
                continue;
            }
            let mut chunk = write_lock(self.chunk_or_new(index));
            if whole && unmap {
                *chunk = None;
            } else if !unmap && chunk.is_none() {
                *chunk = Some(vec![0; CHUNK_BYTES].into_boxed_slice());
            } else if let Some(data) = chunk.as_deref_mut() {
                data[start..start + usize::try_from(count).unwrap_or(0)].fill(0);
            }
            at += count;
        }
    }

    fn extents(&self, offset: u64, len: u64) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (index, start) = locate(at);
            let region_missing = self.regions[index / REGION_CHUNKS].get().is_none();
            let step = if region_missing {
                ((index / REGION_CHUNKS + 1) * REGION_CHUNKS * CHUNK_BYTES) as u64 - at
            } else {
                (CHUNK_BYTES - start) as u64
            };
            let count = step.min(end - at);
            let allocated = self.chunk(index).is_some_and(|chunk| read_lock(chunk).is_some());
            let kind = if allocated { ExtentKind::Data } else { ExtentKind::Hole };
            let full = extents.len() == EXTENTS_MAX;
            match extents.last_mut() {
                Some(last) if last.kind == kind => last.len += count,
                _ if full => break,
                _ => extents.push(Extent { offset: at, len: count, kind, host_offset: None }),
            }
            at += count;
        }
        extents
    }
}

/// Chunk index and offset in the chunk. The view is below 2^50 bytes, so both fit.
fn locate(offset: u64) -> (usize, usize) {
    let chunk = offset / CHUNK_BYTES as u64;
    (usize::try_from(chunk).unwrap_or(usize::MAX), (offset % CHUNK_BYTES as u64) as usize)
}

fn pieces(offset: u64, len: usize) -> impl Iterator<Item = Piece> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == len {
            return None;
        }
        let (chunk, start) = locate(offset + at as u64);
        let piece = Piece { chunk, start, len: (CHUNK_BYTES - start).min(len - at), at };
        at += piece.len;
        Some(piece)
    })
}

// A panic while a chunk is locked leaves bytes that are old or new, as a torn write would: go on.
fn read_lock(chunk: &Chunk) -> std::sync::RwLockReadGuard<'_, Option<Box<[u8]>>> {
    chunk.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write_lock(chunk: &Chunk) -> std::sync::RwLockWriteGuard<'_, Option<Box<[u8]>>> {
    chunk.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Node for MemoryNode {
    fn driver(&self) -> &'static str {
        "memory"
    }

    fn info(&self, _children: &[NodeInfo]) -> Result<NodeInfo> {
        let limits = Limits { request_alignment: self.block_size, ..Limits::NONE };
        Ok(NodeInfo { size_bytes: self.size_bytes, limits, caps: Caps::FILTER, read_only: false })
    }

    fn read<'a>(&'a self, _cx: Cx<'a>, offset: u64, mut buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move {
            self.copy_out(offset, &mut buf);
            Ok(buf)
        })
    }

    fn write<'a>(&'a self, _: Cx<'a>, offset: u64, buf: Buf, _: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.copy_in(offset, &buf);
            Ok(())
        })
    }

    fn zero<'a>(
        &'a self,
        _: Cx<'a>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.clear(offset, len, !flags.no_unmap);
            Ok(())
        })
    }

    fn discard<'a>(&'a self, _cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.clear(offset, len, true);
            Ok(())
        })
    }

    fn flush<'a>(&'a self, _cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn block_status<'a>(&'a self, _: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        Box::pin(async move { Ok(self.extents(offset, len)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_extents_and_holes_across_chunks() {
        let node = MemoryNode::new(1 << 40, 1).expect("a sparse terabyte");
        let at = CHUNK_BYTES as u64 - 3;
        node.copy_in(at, b"abcdef");
        let mut got = [9; 8];
        node.copy_out(at - 1, &mut got);
        assert_eq!(&got, b"\0abcdef\0");
        let extents = node.extents(0, 1 << 40);
        let summary: Vec<_> = extents.iter().map(|e| (e.offset, e.len, e.kind)).collect();
        let data = 2 * CHUNK_BYTES as u64;
        assert_eq!(
            summary,
            [(0, data, ExtentKind::Data), (data, (1 << 40) - data, ExtentKind::Hole)]
        );
        node.clear(at, (1 << 40) - at, true);
        node.copy_out(at - 1, &mut got);
        assert_eq!(got, [0; 8]);
        assert_eq!(node.extents(0, 1 << 40).len(), 2, "the first chunk was cleared in part only");
        node.clear(0, CHUNK_BYTES as u64, true);
        assert_eq!(node.extents(0, 1 << 40)[0].kind, ExtentKind::Hole);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        assert!(MemoryNode::new(u64::MAX, 1).is_err());
        assert!(MemoryNode::new(1000, 512).is_err());
        assert!(MemoryNode::new(1024, 3).is_err());
    }
}
