//! The flat set of granules: geometry, allocation, copies.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bitvec::order::Lsb0;
use bitvec::slice::BitSlice;

use super::{BitmapError, Granularity};

/// The most granules of one set: 512 MiB of bits, QEMU's own bound on a stored bitmap
/// (`BME_MAX_PHYS_SIZE`). That is 2 TiB at 512 B, 256 TiB at 64 KiB and any 63-bit size at 2 GiB.
pub const MAX_GRANULES: u64 = 512 * 1024 * 1024 * 8;

// A granule's index is a `usize` from here on, and the end of the last granule fits an offset.
const _: () = assert!(usize::BITS == 64 && MAX_GRANULES <= u64::MAX / Granularity::MAX.bytes());

/// The granules of a view of a fixed size, each clean or dirty; all methods may be called from any
/// thread at once.
///
/// A granule is `granularity` bytes, starting at a multiple of it; the last one ends with the view.
/// Offsets, lengths and ranges are in bytes of the view unless a name says `granule`.
pub struct Granules {
    /// Granule i is bit i % 64 of word i / 64. Zeroed by the allocator: pages never marked have no
    /// memory.
    words: Box<[AtomicU64]>,
    size_bytes: u64,
    /// End of what has changed behind the view's end, in views that grow; 0 for nothing. All from the
    /// view's end to there counts as dirty, until another set is made of this one.
    grown_end: AtomicU64,
    granularity: Granularity,
}

/// What a resize does with bytes that a larger view gains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// They count as changed.
    Dirty,
    /// They count as unchanged, unless they share a granule with bytes that have changed.
    Clean,
}

impl Granules {
    /// A clean set for a view of `size_bytes`, which need not be a multiple of the granularity and
    /// may be 0.
    ///
    /// # Errors
    /// [`BitmapError::TooManyGranules`] above [`MAX_GRANULES`], [`BitmapError::OutOfMemory`].
    pub fn new(size_bytes: u64, granularity: Granularity) -> Result<Self, BitmapError> {
        let granules = size_bytes.div_ceil(granularity.bytes());
        if granules > MAX_GRANULES {
            return Err(BitmapError::TooManyGranules { size_bytes, granularity });
        }
        let len_words = granules.div_ceil(64);
        let words = bytemuck::allocation::try_zeroed_slice_box(len_words as usize)
            .map_err(|()| BitmapError::OutOfMemory { len_bytes: len_words * 8 })?;
        Ok(Self { words, size_bytes, grown_end: AtomicU64::new(0), granularity })
    }

    /// Size of the view, as it was when the set was made: see [`Self::end_bytes`].
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes that one granule stands for.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Number of granules, dirty or not.
    pub fn len_granules(&self) -> u64 {
        self.size_bytes.div_ceil(self.granularity.bytes())
    }

    /// An independent set of the same geometry and content.
    ///
    /// # Errors
    /// [`BitmapError::OutOfMemory`].
    pub fn copy(&self) -> Result<Self, BitmapError> {
        self.resized(self.size_bytes, Extension::Clean)
    }

    /// A copy for the view after its resize to `new_size_bytes`. Dirty granules that still exist
    /// stay dirty. With [`Extension::Dirty`] every granule that holds a byte past the old end is
    /// dirty too.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn resized(&self, new_size_bytes: u64, extension: Extension) -> Result<Self, BitmapError> {
        let resized = Self::new(new_size_bytes, self.granularity)?;
        resized.fill_resized(self, extension);
        Ok(resized)
    }

    /// The second half of [`Self::resized`]: fills a clean set of the same granularity, which nobody
    /// else uses yet, with what `old` has.
    pub(super) fn fill_resized(&self, old: &Self, extension: Extension) {
        for (new, old) in self.words.iter().zip(&old.words) {
            let bits = old.load(Relaxed);
            if bits != 0 {
                new.store(bits, Relaxed);
            }
        }
        if let Some(last_word) = self.words.last() {
            last_word.fetch_and(self.last_word_mask(), Relaxed);
        }
        if extension == Extension::Dirty {
            self.mark(old.size_bytes, self.size_bytes.saturating_sub(old.size_bytes));
        }
        self.take_grown(old);
    }

    /// Takes over what has changed behind the end of `old`: as granules, as far as the view goes here.
    pub(super) fn take_grown(&self, old: &Self) {
        if let Some(grown) = old.grown() {
            self.mark(grown.start, grown.end - grown.start);
            self.mark_grown(grown.end);
        }
    }

    /// What has changed behind the view's end.
    #[inline]
    pub(super) fn grown(&self) -> Option<Range<u64>> {
        let end = self.grown_end.load(Relaxed);
        (end > self.size_bytes).then_some(self.size_bytes..end)
    }

    /// Counts what lies between the view's end and `end` as changed, if that is behind it.
    ///
    /// To be called before the change is issued, on the thread that issues it.
    pub fn mark_grown(&self, end: u64) {
        if end > self.size_bytes && self.grown_end.load(Relaxed) < end {
            self.grown_end.fetch_max(end, Relaxed);
        }
    }

    /// Forgets what has changed behind the view's end.
    pub(super) fn clear_grown(&self) {
        self.grown_end.store(0, Relaxed);
    }

    /// Where what it shows ends: the view's end, or that of what has changed behind it.
    pub fn end_bytes(&self) -> u64 {
        self.size_bytes.max(self.grown_end.load(Relaxed))
    }

    /// The set as bits, one a granule; past the last granule they are zero up to a whole word.
    #[inline]
    pub(super) fn bits(&self) -> &BitSlice<AtomicU64, Lsb0> {
        BitSlice::from_slice(&self.words)
    }

    /// The set as words.
    #[inline]
    pub(super) fn words(&self) -> &[AtomicU64] {
        &self.words
    }

    /// The set as it stands, the first granule in the lowest bit of the first word.
    pub(crate) fn to_words(&self) -> Vec<u64> {
        self.words.iter().map(|word| word.load(Relaxed)).collect()
    }

    /// Index of the granule that holds the byte at `offset`; meaningful only for an offset within
    /// the view.
    #[inline]
    pub(super) fn granule_at(&self, offset: u64) -> usize {
        (offset >> self.granularity.shift()) as usize
    }

    /// Bits of the last word that stand for granules.
    pub(super) fn last_word_mask(&self) -> u64 {
        match self.len_granules() % 64 {
            0 => u64::MAX,
            used => (1 << used) - 1,
        }
    }
}

impl fmt::Debug for Granules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Granules")
            .field("size_bytes", &self.size_bytes)
            .field("granularity", &self.granularity.bytes())
            .field("count", &self.count())
            .finish()
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one run are meant")]
mod tests {
    use super::*;

    #[test]
    fn size_is_bounded() {
        let limit_bytes = MAX_GRANULES * 512;
        let error = Granules::new(limit_bytes + 1, Granularity::MIN).unwrap_err();
        assert_eq!(
            error,
            BitmapError::TooManyGranules {
                size_bytes: limit_bytes + 1,
                granularity: Granularity::MIN
            }
        );
        assert!(error.to_string().ends_with("use a granularity of at least 1024 bytes"), "{error}");
        assert!(Granules::new(u64::MAX, Granularity::MAX).is_err());
    }

    #[test]
    #[cfg(not(miri))]
    fn the_largest_view_is_cheap_until_marked() {
        let granules = Granules::new(i64::MAX as u64, Granularity::MAX).unwrap();
        granules.mark(i64::MAX as u64 - 1, 1);
        assert_eq!(
            granules.next_dirty(i64::MAX as u64 - 5),
            Some(i64::MAX as u64 - 5..i64::MAX as u64)
        );
    }

    #[test]
    fn an_empty_view_has_nothing_to_mark() {
        let granules = Granules::new(0, Granularity::MIN).unwrap();
        granules.mark(0, u64::MAX);
        granules.set_all();
        granules.clear_all();
        granules.clear_range(0, 1);
        assert_eq!(
            (granules.count(), granules.dirty_bytes(), granules.next_dirty(0)),
            (0, 0, None)
        );
        assert!(!granules.test(0));
        assert_eq!(granules.resized(1, Extension::Dirty).unwrap().count(), 1);
        assert_eq!(granules.resized(1, Extension::Clean).unwrap().count(), 0);
    }

    #[test]
    fn what_has_grown_is_dirty_until_it_is_cleared() {
        let check = |set: &Granules, runs: &[Range<u64>], granules: u64| {
            assert_eq!(set.ranges(0..u64::MAX).collect::<Vec<_>>(), runs);
            let bytes = runs.iter().map(|run| run.end - run.start).sum();
            assert_eq!((set.count(), set.dirty_bytes()), (granules, bytes), "{runs:?}");
            let ends = runs.iter().flat_map(|run| [(run.end - 1, true), (run.end, false)]);
            ends.for_each(|(at, expect)| assert_eq!(set.test(at), expect, "byte {at}"));
            assert_eq!(set.next_dirty(0).as_ref(), runs.first());
        };
        for size_bytes in [0, 512, 700, 64 * 512, 65 * 512 + 1] {
            let set = Granules::new(size_bytes, Granularity::MIN).unwrap();
            set.mark_grown(size_bytes);
            check(&set, &[], 0);
            let whole = size_bytes / 512 * 512;
            set.mark_grown(size_bytes + 1);
            check(&set, &[whole..size_bytes + 1], 1);
            let end = whole + 200 * 512;
            set.mark_grown(end);
            set.mark_grown(end - 512);
            check(&set, &[whole..end], 200);
            assert_eq!(set.ranges(end - 1..end).next(), Some(end - 1..end));
            // Far away: nobody counts to there.
            let far = Granules::new(size_bytes, Granularity::MIN).unwrap();
            far.mark_grown(1 << 60);
            check(&far, &[whole..1 << 60], (1 << 51) - whole / 512);

            let other = Granules::new(size_bytes, Granularity::DEFAULT).unwrap();
            other.merge_from(&set).unwrap();
            check(&other, &[whole / 65536 * 65536..end], end.div_ceil(65536) - whole / 65536);
            let copy = set.copy().unwrap();
            check(&copy, &[whole..end], 200);
            check(&set.resized(end + 512, Extension::Clean).unwrap(), &[whole..end], 200);
            let part = set.resized(end - 512, Extension::Clean).unwrap();
            check(&part, &[whole..end], 200);
            set.clear_range(0, u64::MAX);
            part.clear_all();
            [&set, &part].into_iter().for_each(|set| check(set, &[], 0));
        }
    }
}
