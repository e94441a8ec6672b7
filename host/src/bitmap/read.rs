//! Reading a set: one granule, counts, ranges.
//!
//! Nothing here stops marks: see `mark.rs` for what a reader may rely on.

use std::iter::FusedIterator;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::popcount::count_ones;
use super::{Granularity, Granules};

impl Granules {
    /// Whether the granule that holds the byte at `offset` is dirty; false past the view's end.
    #[inline]
    pub fn test(&self, offset: u64) -> bool {
        offset < self.size_bytes() && self.bits()[self.granule_at(offset)]
    }

    /// Number of dirty granules.
    pub fn count(&self) -> u64 {
        count_ones(self.words())
    }

    /// Number of bytes in dirty granules; the last granule counts only as far as the view goes.
    pub fn dirty_bytes(&self) -> u64 {
        let Some((last_word, full_words)) = self.words().split_last() else { return 0 };
        let last_bits = last_word.load(Relaxed);
        let granules = count_ones(full_words) + u64::from(last_bits.count_ones());
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
        self.ranges(from..self.size_bytes()).next()
    }

    /// The runs of dirty bytes in `within`, clipped to it and to the view, ascending, with clean
    /// bytes between them.
    pub fn ranges(&self, within: Range<u64>) -> Ranges<'_> {
        let within = within.start..within.end.min(self.size_bytes());
        if within.is_empty() {
            return Ranges {
                words: &[],
                index: 0,
                word: 0,
                granularity: self.granularity(),
                within,
            };
        }
        let (first, last) = (self.granule_at(within.start), self.granule_at(within.end - 1));
        let words = &self.words()[..=last / 64];
        let index = first / 64;
        let word = words[index].load(Relaxed) & (u64::MAX << (first % 64));
        Ranges { words, index, word, granularity: self.granularity(), within }
    }
}

/// Runs of dirty bytes, as [`Granules::ranges`] gives them. Each word of the set is read once, when
/// it is come to.
#[derive(Debug, Clone)]
pub struct Ranges<'a> {
    /// From the view's start to the word that holds the end of `within`.
    words: &'a [AtomicU64],
    /// Index of the word that is being taken apart.
    index: usize,
    /// What of that word has not been given out.
    word: u64,
    granularity: Granularity,
    within: Range<u64>,
}

impl Ranges<'_> {
    /// Goes on to the next word and gives its bits, or `None` after the last.
    #[inline]
    fn load_next(&mut self) -> Option<u64> {
        self.index += 1;
        self.words.get(self.index).map(|word| word.load(Relaxed))
    }

    /// The granule after the run that ends with the current word's top bit; leaves the rest of the
    /// word it ends in.
    fn end_of_long_run(&mut self) -> usize {
        loop {
            match self.load_next() {
                Some(u64::MAX) => {}
                Some(word) => {
                    // Adding one carries through the low ones; what survives the `&` lies above
                    // them.
                    self.word = word & (word + 1);
                    return self.index * 64 + word.trailing_ones() as usize;
                }
                None => {
                    self.word = 0;
                    return self.words.len() * 64;
                }
            }
        }
    }
}

impl Iterator for Ranges<'_> {
    type Item = Range<u64>;

    #[inline]
    fn next(&mut self) -> Option<Range<u64>> {
        while self.word == 0 {
            if self.index >= self.words.len() {
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
            (self.word, self.words) = (0, &[]);
            return None;
        }
        Some(start..end)
    }
}

impl FusedIterator for Ranges<'_> {}

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
