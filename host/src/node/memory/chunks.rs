//! The table of chunks: found without a lock, made when first written, never moved.
//!
//! ```text
//!   levels[k] ─ 2^k regions ─ 1024 chunks of 64 KiB, each behind a lock of its own
//! ```
//!
//! Region `r` is number `r + 1 - 2^k` of level `k = ⌊log2(r + 1)⌋`, so that the table grows with the
//! highest offset that was written, and a node that is resized moves nothing.

use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Bytes of a chunk: what memory is taken and given back in.
pub(super) const CHUNK_BYTES: usize = 64 << 10;
/// Chunks of one region; a region exists once one of its chunks was written.
const REGION_CHUNKS: usize = 1024;
const REGION_BYTES: u64 = (CHUNK_BYTES * REGION_CHUNKS) as u64;
/// 2^25 - 1 regions: enough for [`SIZE_MAX_BYTES`].
const LEVELS: usize = 25;
/// Largest view, bytes: 2^24 regions.
pub(super) const SIZE_MAX_BYTES: u64 = REGION_BYTES << (LEVELS - 1);

type Region<T> = Box<[RwLock<T>]>;
type Level<T> = Box<[OnceLock<Region<T>>]>;

/// Chunks by offset; `T::default()` is one that nothing was written to.
pub(super) struct Chunks<T> {
    levels: [OnceLock<Level<T>>; LEVELS],
}

/// A part of a range: in one chunk, or where there are none yet.
pub(super) struct Span<'a, T> {
    /// First byte in the view.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) len: u64,
    /// The chunk, and where the part lies in it.
    pub(super) chunk: Option<ChunkPart<'a, T>>,
}

/// A part of one chunk.
pub(super) struct ChunkPart<'a, T> {
    chunk: &'a RwLock<T>,
    /// First byte in the chunk.
    pub(super) start: usize,
    /// The byte after the last one.
    pub(super) end: usize,
}

impl<T> ChunkPart<'_, T> {
    /// Whether it is all of the chunk.
    pub(super) fn is_whole(&self) -> bool {
        self.end - self.start == CHUNK_BYTES
    }

    // A panic while a chunk is locked leaves bytes that are old or new, as a torn write would: go on.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.chunk.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.chunk.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Default> Chunks<T> {
    pub(super) fn new() -> Self {
        Self { levels: [const { OnceLock::new() }; LEVELS] }
    }

    /// The parts of a range, in order. Where nothing was ever written, one part spans many chunks.
    ///
    /// The range must end at or below [`SIZE_MAX_BYTES`].
    pub(super) fn spans(&self, offset: u64, len: u64) -> impl Iterator<Item = Span<'_, T>> {
        Self::parts(offset, len, |at| self.find(at))
    }

    /// As [`Chunks::spans`], but makes the chunks that there are none of.
    pub(super) fn spans_made(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Iterator<Item = (u64, ChunkPart<'_, T>)> {
        let parts = Self::parts(offset, len, |at| Ok(self.make(at)));
        parts.filter_map(|span| span.chunk.map(|chunk| (span.offset, chunk)))
    }

    fn parts<'a>(
        offset: u64,
        len: u64,
        find: impl Fn(u64) -> Result<&'a RwLock<T>, u64>,
    ) -> impl Iterator<Item = Span<'a, T>>
    where
        T: 'a,
    {
        let (mut at, end) = (offset, offset.saturating_add(len));
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let offset = at;
            let found = find(at);
            let start = offset % CHUNK_BYTES as u64;
            at = match &found {
                Ok(_) => end.min(offset - start + CHUNK_BYTES as u64),
                Err(next) => end.min(*next),
            };
            let len = at - offset;
            let part = |chunk| {
                let (start, len) = (to_usize(start), to_usize(len));
                ChunkPart { chunk, start, end: start + len }
            };
            Some(Span { offset, len, chunk: found.ok().map(part) })
        })
    }

    /// The chunk at `offset`, or where the first one after it may be.
    fn find(&self, offset: u64) -> Result<&RwLock<T>, u64> {
        let at = Place::of(offset);
        let Some(level) = self.levels.get(at.level).and_then(OnceLock::get) else {
            // The next level begins with region 2^(level + 1) - 1.
            let next_region = (2_u64 << at.level) - 1;
            return Err(next_region.saturating_mul(REGION_BYTES));
        };
        match level[at.region].get() {
            Some(region) => Ok(&region[at.chunk]),
            None => Err((offset / REGION_BYTES + 1).saturating_mul(REGION_BYTES)),
        }
    }

    fn make(&self, offset: u64) -> &RwLock<T> {
        let at = Place::of(offset);
        let level = self.levels[at.level]
            .get_or_init(|| (0..1_usize << at.level).map(|_| OnceLock::new()).collect());
        let region = level[at.region]
            .get_or_init(|| (0..REGION_CHUNKS).map(|_| RwLock::new(T::default())).collect());
        &region[at.chunk]
    }
}

/// Where a chunk stands in the table.
struct Place {
    level: usize,
    /// In the level.
    region: usize,
    /// In the region.
    chunk: usize,
}

impl Place {
    #[inline]
    fn of(offset: u64) -> Self {
        let number = offset / REGION_BYTES + 1;
        let level = number.ilog2();
        let region = to_usize(number - (1 << level));
        let chunk = to_usize(offset / CHUNK_BYTES as u64 % REGION_CHUNKS as u64);
        Self { level: level as usize, region, chunk }
    }
}

/// Lengths of buffers and parts of chunks fit; what does not is beyond every view.
pub(super) fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Memory of one chunk, all zeros.
pub(super) fn new_chunk() -> Box<[u8]> {
    vec![0; CHUNK_BYTES].into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_has_one_place() {
        let chunks: Chunks<u64> = Chunks::new();
        let last = SIZE_MAX_BYTES - CHUNK_BYTES as u64;
        let offsets =
            [0, 1, 2, 1023, 1024, 1025, 3 * 1024 - 1, 3 * 1024, 7 * 1024, (1 << 20) - 1, 1 << 20]
                .map(|chunk| chunk * CHUNK_BYTES as u64);
        for offset in offsets {
            for (at, part) in chunks.spans_made(offset + 1, 1) {
                assert_eq!((at, part.start, part.end), (offset + 1, 1, 2));
                *part.write() += offset + 7;
            }
        }
        for offset in offsets {
            let found = chunks.spans(offset, 1).next().expect("a span").chunk.expect("a chunk");
            assert_eq!(*found.read(), offset + 7);
        }
        assert_eq!(Place::of(last).level, LEVELS - 1);
        let empty = chunks.spans(last, CHUNK_BYTES as u64).next().expect("a span");
        assert_eq!((empty.offset, empty.len), (last, CHUNK_BYTES as u64));
    }

    #[test]
    fn spans_cover_a_range_and_step_over_what_is_missing() {
        let chunks: Chunks<u64> = Chunks::new();
        assert_eq!(chunks.spans_made(5 * REGION_BYTES, 1).count(), 1);
        let (mut at, mut count) = (17, 0);
        for span in chunks.spans(17, SIZE_MAX_BYTES - 17) {
            assert_eq!(span.offset, at);
            (at, count) = (at + span.len, count + 1);
        }
        assert_eq!(at, SIZE_MAX_BYTES);
        assert!(count < REGION_CHUNKS + 2 * LEVELS + 8, "{count} parts");
        assert_eq!(chunks.spans(9, 0).count(), 0);
    }
}
