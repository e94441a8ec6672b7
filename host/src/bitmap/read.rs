//! Reading a set: one granule, counts, ranges.
//!
//! Nothing here stops marks: see `mark.rs` for what a reader may rely on.

use std::iter::FusedIterator;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use super::popcount::count_ones;
use super::{Granularity, Granules};

/// What can be listed: granules by the word, the same geometry as long as it is held.
pub trait Words {
    /// Where what it shows ends, bytes.
    fn end_bytes(&self) -> u64;
    /// From where on all is dirty up to there.
    fn solid_from(&self) -> u64;
    /// Bytes that one granule stands for.
    fn granularity(&self) -> Granularity;
    /// The granules `64 * index..64 * index + 64`, the first in the lowest bit; zero past the end.
    fn word(&self, index: usize) -> u64;
}

impl Words for &Granules {
    #[inline]
    fn end_bytes(&self) -> u64 {
        Granules::end_bytes(self)
    }

    #[inline]
    fn solid_from(&self) -> u64 {
        self.size_bytes()
    }

    #[inline]
    fn granularity(&self) -> Granularity {
        Granules::granularity(self)
    }

    #[inline]
    fn word(&self, index: usize) -> u64 {
        let word = self.words().get(index).map_or(0, |word| word.load(Relaxed));
        match self.grown() {
            None => word,
            Some(grown) => word | self.grown_word(&grown, index),
        }
    }
}

/// The granules and bytes of a set that has grown: what no words stand for is counted run by run.
pub(super) fn count_runs<S: Words>(source: S) -> (u64, u64) {
    let granularity_bytes = source.granularity().bytes();
    Ranges::of(source, 0..u64::MAX).fold((0, 0), |(granules, bytes), run| {
        let more = run.end.div_ceil(granularity_bytes) - run.start / granularity_bytes;
        (granules + more, bytes + (run.end - run.start))
    })
}

impl Granules {
    /// Whether the granule that holds the byte at `offset` is dirty; false past the end.
    #[inline]
    pub fn test(&self, offset: u64) -> bool {
        if offset < self.size_bytes() && self.bits()[self.granule_at(offset)] {
            return true;
        }
        let granule = self.granule_at(offset);
        self.grown().is_some_and(|it| offset < it.end && granule >= self.granule_at(it.start))
    }

    /// Number of dirty granules.
    pub fn count(&self) -> u64 {
        match self.grown() {
            None => self.count_with(None),
            Some(_) => count_runs(self).0,
        }
    }

    /// Number of bytes in dirty granules; the last granule counts only as far as the view goes.
    pub fn dirty_bytes(&self) -> u64 {
        match self.grown() {
            None => self.dirty_bytes_with(None),
            Some(_) => count_runs(self).1,
        }
    }

    /// What of the granules `64 * index..64 * index + 64` holds a byte of `grown`.
    #[cold]
    fn grown_word(&self, grown: &Range<u64>, index: usize) -> u64 {
        let first = self.granule_at(grown.start).saturating_sub(index.saturating_mul(64));
        let Some(last) = self.granule_at(grown.end - 1).checked_sub(index.saturating_mul(64))
        else {
            return 0;
        };
        match first {
            0..64 => (u64::MAX << first) & (u64::MAX >> (63 - last.min(63))),
            _ => 0,
        }
    }

    /// Number of granules that are dirty here or in `also`, which has the same geometry, but for what has
    /// grown.
    pub(super) fn count_with(&self, also: Option<&Self>) -> u64 {
        count_ones(self.words(), also.map_or(&[], |also| also.words()))
    }

    /// As [`Self::dirty_bytes`], of granules that are dirty here or in `also`, which has the same
    /// geometry, but for what has grown.
    pub(super) fn dirty_bytes_with(&self, also: Option<&Self>) -> u64 {
        let Some((last_word, full_words)) = self.words().split_last() else { return 0 };
        let (also_last, also_full) = match also.and_then(|also| also.words().split_last()) {
            Some((last_word, full_words)) => (last_word.load(Relaxed), full_words),
            None => (0, &[] as &[_]),
        };
        let last_bits = last_word.load(Relaxed) | also_last;
        let granules = count_ones(full_words, also_full) + u64::from(last_bits.count_ones());
        let granularity_bytes = self.granularity().bytes();
        let (full_bytes, missing_bytes) = match self.size_bytes() % granularity_bytes {
            0 => (granules * granularity_bytes, 0),
            tail_bytes => (granules * granularity_bytes, granularity_bytes - tail_bytes),
        };
        let last_granule = 1 << ((self.len_granules() - 1) % 64);
        if last_bits & last_granule == 0 { full_bytes } else { full_bytes - missing_bytes }
    }

    /// The first run of dirty bytes at or after `from`; it starts at `from` if that byte is dirty.
    pub fn next_dirty(&self, from: u64) -> Option<Range<u64>> {
        self.ranges(from..u64::MAX).next()
    }

    /// The runs of dirty bytes in `within`, clipped to it and to the view, ascending, with clean
    /// bytes between them.
    pub fn ranges(&self, within: Range<u64>) -> Ranges<&Self> {
        Ranges::of(self, within)
    }
}

/// Runs of dirty bytes, as [`Granules::ranges`] gives them. Each word of the set is read once, when
/// it is come to.
#[derive(Debug, Clone)]
pub struct Ranges<S> {
    source: S,
    /// Index after the word that holds the end of `within`.
    end_index: usize,
    /// From this word on all are full, and need not be looked at.
    solid_index: usize,
    /// Index of the word that is being taken apart.
    index: usize,
    /// What of that word has not been given out.
    word: u64,
    granularity: Granularity,
    within: Range<u64>,
}

impl<S: Words> Ranges<S> {
    /// The runs of `source` in `within`.
    pub(super) fn of(source: S, within: Range<u64>) -> Self {
        let within = within.start..within.end.min(source.end_bytes());
        let granularity = source.granularity();
        if within.is_empty() {
            let (end_index, solid_index) = (0, 0);
            return Self { source, end_index, solid_index, index: 0, word: 0, granularity, within };
        }
        let granule_at = |offset: u64| (offset >> granularity.shift()) as usize;
        let (first, last) = (granule_at(within.start), granule_at(within.end - 1));
        let index = first / 64;
        let word = source.word(index) & (u64::MAX << (first % 64));
        let (end_index, solid_index) =
            (last / 64 + 1, granule_at(source.solid_from()).div_ceil(64));
        // The last word of a view that has not grown is not full, and nothing follows it.
        Self { source, end_index, solid_index, index, word, granularity, within }
    }

    /// Goes on to the next word and gives its bits, or `None` after the last.
    #[inline]
    fn load_next(&mut self) -> Option<u64> {
        self.index += 1;
        (self.index < self.end_index).then(|| self.source.word(self.index))
    }

    /// The granule after the run that ends with the current word's top bit; leaves the rest of the
    /// word it ends in.
    fn end_of_long_run(&mut self) -> usize {
        loop {
            match self.load_next() {
                Some(u64::MAX) if self.index < self.solid_index => {}
                Some(u64::MAX) => {
                    (self.word, self.index) = (0, self.end_index);
                    return self.end_index * 64;
                }
                Some(word) => {
                    // Adding one carries through the low ones; what survives the `&` lies above
                    // them.
                    self.word = word & (word + 1);
                    return self.index * 64 + word.trailing_ones() as usize;
                }
                None => {
                    self.word = 0;
                    return self.end_index * 64;
                }
            }
        }
    }
}

impl<S: Words> Iterator for Ranges<S> {
    type Item = Range<u64>;

    #[inline]
    fn next(&mut self) -> Option<Range<u64>> {
        while self.word == 0 {
            if self.index >= self.end_index {
                return None;
            }
            self.word = self.load_next()?;
        }
        let lowest_bit = self.word & self.word.wrapping_neg();
        let first = self.index * 64 + self.word.trailing_zeros() as usize;
        let (above_run, overflowed) = self.word.overflowing_add(lowest_bit);
        let end = if overflowed {
            self.end_of_long_run()
        } else {
            let end = self.index * 64 + above_run.trailing_zeros() as usize;
            self.word &= above_run;
            end
        };
        let shift = self.granularity.shift();
        let start = ((first as u64) << shift).max(self.within.start);
        let end = ((end as u64) << shift).min(self.within.end);
        if start >= end {
            // Only bits past `within` are left.
            (self.word, self.end_index) = (0, 0);
            return None;
        }
        Some(start..end)
    }
}

impl<S: Words> FusedIterator for Ranges<S> {}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one run are meant")]
mod tests {
    use super::*;

    fn granules(size_bytes: u64, marks: &[Range<u64>]) -> Granules {
        let granules = Granules::new(size_bytes, Granularity::MIN).unwrap();
        for mark in marks {
            granules.mark(mark.start, mark.end - mark.start);
        }
        granules
    }

    #[test]
    fn ranges_are_coalesced_and_clipped() {
        let set = granules(
            200 * 512 + 7,
            &[0..1, 512..513, 63 * 512..130 * 512, 200 * 512..200 * 512 + 1],
        );
        let check = |within: Range<u64>, expect: &[Range<u64>]| {
            assert_eq!(set.ranges(within.clone()).collect::<Vec<_>>(), expect, "within {within:?}");
        };
        let end = 200 * 512 + 7;
        check(0..u64::MAX, &[0..1024, 63 * 512..130 * 512, 200 * 512..end]);
        check(5..1000, &[5..1000]);
        check(1023..1024, &[1023..1024]);
        check(1024..63 * 512, &[]);
        check(1024..63 * 512 + 1, &[63 * 512..63 * 512 + 1]);
        check(64 * 512..65 * 512, &[64 * 512..65 * 512]);
        check(129 * 512 + 1..200 * 512, &[129 * 512 + 1..130 * 512]);
        check(200 * 512 + 6..end, &[end - 1..end]);
        check(end..u64::MAX, &[]);
        check(u64::MAX..u64::MAX, &[]);
        check(700..700, &[]);
        #[expect(clippy::reversed_empty_ranges, reason = "what a careless caller may pass")]
        check(700..600, &[]);
    }

    #[test]
    fn the_iterator_stays_ended() {
        let set = granules(64 * 512, &[0..512, 63 * 512..64 * 512]);
        for within in [0..512, 0..64 * 512] {
            let mut ranges = set.ranges(within);
            assert!(ranges.by_ref().count() > 0);
            assert_eq!((ranges.next(), ranges.next()), (None, None));
        }
    }

    #[test]
    fn counts_know_the_short_last_granule() {
        let check = |size_bytes: u64, marks: &[Range<u64>], granules_expected, bytes_expected| {
            let set = granules(size_bytes, marks);
            assert_eq!((set.count(), set.dirty_bytes()), (granules_expected, bytes_expected));
        };
        check(1000, &[], 0, 0);
        check(1000, &[0..1], 1, 512);
        check(1000, &[999..1000], 1, 488);
        check(1024, &[0..1024], 2, 1024);
        check(1025, &[0..1025], 3, 1025);
        check(64 * 512, &[0..64 * 512], 64, 64 * 512);
        check(64 * 512 + 1, &[63 * 512..64 * 512 + 1], 2, 513);
    }

    #[test]
    fn next_dirty_walks_the_set() {
        let set = granules(130 * 512, &[512..1024, 128 * 512..130 * 512]);
        assert_eq!(set.next_dirty(0), Some(512..1024));
        assert_eq!(set.next_dirty(600), Some(600..1024));
        assert_eq!(set.next_dirty(1024), Some(128 * 512..130 * 512));
        assert_eq!(set.next_dirty(130 * 512), None);
        assert!(set.test(600) && !set.test(1024) && !set.test(u64::MAX));
    }
}
