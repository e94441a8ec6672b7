//! Bytes of a node that may have a backing: what it has none of is the backing's, or zero.
//!
//! Blocks are allocated whole: requests come aligned to the block size, and the edge above reads,
//! changes and writes back a block that a request covers in part. There is no second copy-on-write.
//!
//! **Invariant**: no lock of a chunk is held while the backing is asked.
//!
//! **Invariant**: without memory, the allocated blocks of a chunk are zeros. The memory of blocks that
//! are not allocated means nothing, and is never read.

use std::ops::Range;

use super::chunks::{CHUNK_BYTES, ChunkPart, Chunks, new_chunk, to_usize};
use super::extents::Extents;
use super::hidden::Hidden;
use super::map::Map;
use crate::error::Result;
use crate::graph::{Cx, EdgeRef};
use crate::io::BufMut;
use crate::node::{Extent, ExtentKind};

/// Bytes that one pass of a read looks at, and most bytes that it asks the backing for at once, unless
/// all of a request is the backing's.
const PASS_BYTES: usize = 1 << 20;
/// Runs that one pass of a read notes: 16 KiB of them.
const RUNS_MAX: usize = 1024;
/// Runs of the backing that are at most this many bytes apart are read together.
const NEAR_BYTES: usize = 4096;

/// A chunk with its allocation.
#[derive(Default)]
struct Chunk {
    map: Map,
    data: Option<Box<[u8]>>,
}

/// Chunks of which each block is, or is not, the overlay's own.
pub(super) struct Overlay {
    /// Bytes of a block: a power of two up to 4096.
    block_bytes: usize,
    chunks: Chunks<Chunk>,
    /// Zeros where no block is allocated.
    hidden: Hidden,
}

/// The backing, as a request sees it.
struct Backing<'g> {
    edge: EdgeRef<'g>,
    size_bytes: u64,
}

impl<'g> Backing<'g> {
    /// None without a child.
    fn of(cx: Cx<'g>) -> Option<Self> {
        let edge = cx.child(0).ok()?;
        Some(Self { edge, size_bytes: edge.node().info().size_bytes })
    }
}

impl Overlay {
    pub(super) fn new(block_bytes: u32) -> Self {
        let (chunks, hidden) = (Chunks::new(), Hidden::default());
        Self { block_bytes: block_bytes as usize, chunks, hidden }
    }

    fn blocks(&self) -> usize {
        CHUNK_BYTES / self.block_bytes
    }

    fn blocks_of(&self, part: &ChunkPart<'_, Chunk>) -> Range<usize> {
        part.start / self.block_bytes..part.end.div_ceil(self.block_bytes)
    }

    /// The runs of a part: bytes of the chunk, and whether they are allocated.
    fn runs<'a>(
        &'a self,
        chunk: &'a Chunk,
        part: &ChunkPart<'_, Chunk>,
    ) -> impl Iterator<Item = (Range<usize>, bool)> + 'a {
        let (size, start, end) = (self.block_bytes, part.start, part.end);
        let runs = chunk.map.runs(self.blocks_of(part));
        runs.map(move |(run, own)| ((run.start * size).max(start)..(run.end * size).min(end), own))
    }

    /// Keeps `buf` at `offset`: whole blocks.
    pub(super) fn write(&self, offset: u64, buf: &[u8]) {
        for (from, part) in self.chunks.spans_made(offset, buf.len() as u64) {
            let at = to_usize(from - offset);
            let blocks = self.blocks_of(&part);
            let mut chunk = part.write();
            let Chunk { map, data } = &mut *chunk;
            let data = data.get_or_insert_with(new_chunk);
            data[part.start..part.end].copy_from_slice(&buf[at..at + part.end - part.start]);
            map.insert(blocks, self.blocks());
        }
    }

    /// Allocates zeros: whole blocks. Whole chunks take no memory.
    pub(super) fn zero(&self, offset: u64, len: u64) {
        for (_, part) in self.chunks.spans_made(offset, len) {
            let mut chunk = part.write();
            let Chunk { map, data } = &mut *chunk;
            match data {
                Some(_) if part.is_whole() => *data = None,
                Some(data) => data[part.start..part.end].fill(0),
                None => {}
            }
            map.insert(self.blocks_of(&part), self.blocks());
        }
    }

    /// Zeros the allocated blocks of a range; the others go on showing the backing.
    pub(super) fn discard(&self, offset: u64, len: u64) {
        for part in self.chunks.spans(offset, len).filter_map(|span| span.chunk) {
            let mut chunk = part.write();
            if part.is_whole() {
                chunk.data = None;
            } else if let Some(data) = &mut chunk.data {
                // What is not allocated means nothing.
                data[part.start..part.end].fill(0);
            }
        }
    }

    /// Gives up the blocks of a range.
    pub(super) fn deallocate(&self, offset: u64, len: u64) {
        for part in self.chunks.spans(offset, len).filter_map(|span| span.chunk) {
            let mut chunk = part.write();
            chunk.map.remove(self.blocks_of(&part), self.blocks());
            if chunk.map.is_empty() {
                chunk.data = None;
            }
        }
        self.hidden.remove(&(offset..offset.saturating_add(len)));
    }

    /// Hides what of the backing lies in a range, which the view has had no bytes at.
    pub(super) fn hide_backing(&self, cx: Cx<'_>, range: Range<u64>) {
        let end = Backing::of(cx).map_or(0, |backing| backing.size_bytes);
        // The range ends with a block, and so does the rounded end of the backing.
        let end = end.next_multiple_of(self.block_bytes as u64).min(range.end);
        self.hidden.insert(range.start..end);
    }

    /// Fills `buf` from `offset`, from here and from the backing.
    pub(super) async fn read(&self, cx: Cx<'_>, offset: u64, mut buf: BufMut) -> Result<BufMut> {
        let len = buf.len();
        let backing = Backing::of(cx);
        if let Some(backing) = &backing
            && offset.saturating_add(len as u64) <= backing.size_bytes
            && !self.has_any(offset, len as u64)
        {
            return backing.edge.read(offset, buf).await;
        }
        let mut missing = Vec::new();
        let mut at = 0;
        while at < len {
            let pass = at..len.min(at + PASS_BYTES);
            at = self.copy_own(offset, &mut buf, pass, &mut missing);
            fill_missing(backing.as_ref(), offset, &mut buf, &missing).await?;
        }
        Ok(buf)
    }

    /// Whether some of the range is not the backing's.
    fn has_any(&self, offset: u64, len: u64) -> bool {
        if self.hidden.first_in(offset..offset.saturating_add(len)).is_some() {
            return true;
        }
        let mut parts = self.chunks.spans(offset, len).filter_map(|span| span.chunk);
        parts.any(|part| self.runs(&part.read(), &part).any(|(_, own)| own))
    }

    /// Copies what is here of `pass`, a range of `buf`, and notes in `missing` the ranges that are not.
    /// Returns how far it came.
    fn copy_own(
        &self,
        offset: u64,
        buf: &mut [u8],
        pass: Range<usize>,
        missing: &mut Vec<Range<usize>>,
    ) -> usize {
        missing.clear();
        let first = offset + pass.start as u64;
        for span in self.chunks.spans(first, pass.len() as u64) {
            let at = to_usize(span.offset - offset);
            let Some(part) = span.chunk else {
                let run = at..at + to_usize(span.len);
                if let Err(full_at) = self.copy_missing(offset, buf, run, missing) {
                    return full_at;
                }
                continue;
            };
            let chunk = part.read();
            for (run, own) in self.runs(&chunk, &part) {
                let to = at + (run.start - part.start)..at + (run.end - part.start);
                match (own, &chunk.data) {
                    (true, Some(data)) => buf[to].copy_from_slice(&data[run]),
                    (true, None) => buf[to].fill(0),
                    (false, _) => {
                        if let Err(full_at) = self.copy_missing(offset, buf, to, missing) {
                            return full_at;
                        }
                    }
                }
            }
        }
        pass.end
    }

    /// Zeros what of `run`, a range of `buf` without blocks, hides the backing, and notes the rest in
    /// `missing`.
    ///
    /// # Errors
    /// How far it came when the list was full.
    fn copy_missing(
        &self,
        offset: u64,
        buf: &mut [u8],
        run: Range<usize>,
        missing: &mut Vec<Range<usize>>,
    ) -> std::result::Result<(), usize> {
        let mut at = run.start;
        while at < run.end {
            let rest = offset + at as u64..offset + run.end as u64;
            let zeros = self.hidden.first_in(rest);
            let zeros = zeros.map_or(run.end..run.end, |zeros| {
                to_usize(zeros.start - offset)..to_usize(zeros.end - offset)
            });
            if at < zeros.start && !note(missing, at..zeros.start) {
                return Err(at);
            }
            at = zeros.end;
            buf[zeros].fill(0);
        }
        Ok(())
    }

    /// Parts in which the table has a range: few, where nothing was written.
    #[cfg(test)]
    pub(super) fn parts(&self, offset: u64, len: u64) -> usize {
        self.chunks.spans(offset, len).count()
    }

    #[cfg(test)]
    pub(super) fn has_memory(&self, offset: u64) -> bool {
        let mut parts = self.chunks.spans(offset, 1).filter_map(|span| span.chunk);
        parts.any(|part| part.read().data.is_some())
    }

    /// Adds a range without blocks; false when the list is full.
    fn push_missing(&self, extents: &mut Extents, offset: u64, len: u64, shown_bytes: u64) -> bool {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let zeros = self.hidden.first_in(at..end).unwrap_or(end..end);
            let is_kept = push_missing(extents, at, zeros.start - at, shown_bytes)
                && (zeros.is_empty()
                    || extents.push(zeros.start, zeros.end - zeros.start, ExtentKind::Zero));
            if !is_kept {
                return false;
            }
            at = zeros.end;
        }
        true
    }

    /// `Data` or `Zero` where blocks are allocated or the backing is hidden, `Unallocated` where the backing shows, else `Hole`.
    pub(super) fn extents(&self, cx: Cx<'_>, offset: u64, len: u64) -> Vec<Extent> {
        let shown_bytes = Backing::of(cx).map_or(0, |backing| backing.size_bytes);
        let mut extents = Extents::default();
        for span in self.chunks.spans(offset, len) {
            let is_full = match span.chunk {
                None => !self.push_missing(&mut extents, span.offset, span.len, shown_bytes),
                Some(part) => {
                    let chunk = part.read();
                    let kind =
                        if chunk.data.is_some() { ExtentKind::Data } else { ExtentKind::Zero };
                    !self.runs(&chunk, &part).all(|(run, own)| {
                        let at = span.offset + (run.start - part.start) as u64;
                        let len = run.len() as u64;
                        match own {
                            true => extents.push(at, len, kind),
                            false => self.push_missing(&mut extents, at, len, shown_bytes),
                        }
                    })
                }
            };
            if is_full {
                break;
            }
        }
        extents.into_vec()
    }
}

/// Adds a range that is the backing's, or behind its end; false when the list is full.
fn push_missing(extents: &mut Extents, offset: u64, len: u64, shown_bytes: u64) -> bool {
    let shown = shown_bytes.saturating_sub(offset).min(len);
    (shown == 0 || extents.push(offset, shown, ExtentKind::Unallocated))
        && (shown == len || extents.push(offset + shown, len - shown, ExtentKind::Hole))
}

/// Adds a run to the list, to the last one if it follows it; false when the list is full.
fn note(missing: &mut Vec<Range<usize>>, run: Range<usize>) -> bool {
    let is_full = missing.len() == RUNS_MAX;
    match missing.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ if is_full => return false,
        _ => missing.push(run),
    }
    true
}

/// Fills the ranges of `buf` that are the backing's, zeros behind its end.
async fn fill_missing(
    backing: Option<&Backing<'_>>,
    offset: u64,
    buf: &mut [u8],
    missing: &[Range<usize>],
) -> Result<()> {
    for near in missing.chunk_by(|run, next| next.start - run.end <= NEAR_BYTES) {
        let (Some(first), Some(last)) = (near.first(), near.last()) else { continue };
        let start = offset + first.start as u64;
        let shown = backing.map_or(0, |backing| backing.size_bytes.saturating_sub(start));
        let shown = to_usize(shown).min(last.end - first.start);
        let bytes = match backing {
            Some(backing) if shown > 0 => backing.edge.read(start, BufMut::new(shown)).await?,
            _ => BufMut::new(0),
        };
        for run in near {
            let from = (run.start - first.start).min(shown)..(run.end - first.start).min(shown);
            let (copied, behind) = buf[run.clone()].split_at_mut(from.len());
            copied.copy_from_slice(&bytes[from]);
            behind.fill(0);
        }
    }
    Ok(())
}
