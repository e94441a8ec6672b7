//! Union of two sets, also across granularities.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{BitmapError, Granules};

impl Granules {
    /// Makes every granule dirty that holds a byte of a dirty granule of `source`, which is of a
    /// view of the same size.
    ///
    /// From a coarse source all that its granules cover becomes dirty; into a coarse target a
    /// granule becomes dirty if any part of it is. Marks may go on meanwhile in both; those made in
    /// `source` after the call began may be missed.
    ///
    /// # Errors
    /// [`BitmapError::SizeMismatch`], and nothing is changed.
    pub fn merge_from(&self, source: &Self) -> Result<(), BitmapError> {
        self.merge_words_from(source, |word, missing| {
            word.fetch_or(missing, Relaxed);
        })
    }

    /// As [`Self::merge_from`], several times as fast where many words differ, for a target that
    /// **nothing else changes meanwhile**: one that is not in use yet, or whose class is drained. A
    /// concurrent mark could be lost.
    ///
    /// # Errors
    /// [`BitmapError::SizeMismatch`], and nothing is changed.
    pub fn merge_from_drained(&self, source: &Self) -> Result<(), BitmapError> {
        self.merge_words_from(source, |word, missing| {
            word.store(word.load(Relaxed) | missing, Relaxed);
        })
    }

    /// Merges word by word where the granularities are equal, adding with `add` the bits a word
    /// lacks.
    #[inline]
    fn merge_words_from(
        &self,
        source: &Self,
        add: impl Fn(&AtomicU64, u64),
    ) -> Result<(), BitmapError> {
        if self.size_bytes() != source.size_bytes() {
            return Err(BitmapError::SizeMismatch {
                target_size_bytes: self.size_bytes(),
                source_size_bytes: source.size_bytes(),
            });
        }
        self.take_grown(source);
        if self.granularity() > source.granularity() {
            self.merge_finer(source, add);
            return Ok(());
        }
        if self.granularity() < source.granularity() {
            self.merge_coarser(source);
            return Ok(());
        }
        for (target, source) in self.words().iter().zip(source.words()) {
            let bits = source.load(Relaxed);
            if bits == 0 {
                continue;
            }
            let missing = bits & !target.load(Relaxed);
            if missing != 0 {
                add(target, missing);
            }
        }
        Ok(())
    }

    /// Merges a set of finer granules: each word of it is looked at once, and each granule of this one is added
    /// once a word.
    fn merge_finer(&self, source: &Self, add: impl Fn(&AtomicU64, u64)) {
        let shift = self.granularity().shift() - source.granularity().shift();
        for (index, word) in source.words().iter().enumerate() {
            let mut bits = word.load(Relaxed);
            while bits != 0 {
                let granule = (index * 64 + bits.trailing_zeros() as usize) >> shift;
                let target = &self.words()[granule / 64];
                let missing = (1 << (granule % 64)) & !target.load(Relaxed);
                if missing != 0 {
                    add(target, missing);
                }
                // Those that the granule covers, too.
                let next = ((granule + 1) << shift) - index * 64;
                bits = if next < 64 { bits & (u64::MAX << next) } else { 0 };
            }
        }
    }

    /// Merges a set of coarser granules: each word of it is looked at once.
    fn merge_coarser(&self, source: &Self) {
        let granularity_bytes = source.granularity().bytes();
        for (index, word) in source.words().iter().enumerate() {
            let mut bits = word.load(Relaxed);
            while bits != 0 {
                let first = bits.trailing_zeros();
                let count = (bits >> first).trailing_ones();
                let granule = index as u64 * 64 + u64::from(first);
                self.mark(granule * granularity_bytes, u64::from(count) * granularity_bytes);
                let next = first + count;
                bits = if next < 64 { bits & (u64::MAX << next) } else { 0 };
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one run are meant")]
mod tests {
    use super::super::Granularity;
    use super::*;

    fn set(granularity_bytes: u64, marks: &[u64]) -> Granules {
        let granules =
            Granules::new(20_000, Granularity::from_bytes(granularity_bytes).unwrap()).unwrap();
        for &offset in marks {
            granules.mark(offset, 1);
        }
        granules
    }

    #[test]
    fn merges_across_granularities() {
        let check = |target: Granules, source: Granules, expect: &[std::ops::Range<u64>]| {
            let drained = target.copy().unwrap();
            target.merge_from(&source).unwrap();
            drained.merge_from_drained(&source).unwrap();
            for merged in [target, drained] {
                assert_eq!(merged.ranges(0..u64::MAX).collect::<Vec<_>>(), expect);
            }
        };
        check(set(512, &[0]), set(512, &[1024, 19_999]), &[0..512, 1024..1536, 19_968..20_000]);
        check(set(512, &[0]), set(4096, &[4096, 19_999]), &[0..512, 4096..8192, 16_384..20_000]);
        check(
            set(4096, &[0]),
            set(512, &[511, 9000, 9999, 19_999]),
            &[0..4096, 8192..12_288, 16_384..20_000],
        );
        check(set(65536, &[]), set(512, &[19_999]), &[0..20_000]);
        check(set(512, &[]), set(65536, &[0]), &[0..20_000]);
    }

    #[test]
    fn merging_with_itself_changes_nothing() {
        let granules = set(512, &[0, 5000]);
        granules.merge_from(&granules).unwrap();
        assert_eq!(granules.count(), 2);
    }

    #[test]
    fn sizes_must_be_equal() {
        let other = Granules::new(20_001, Granularity::MIN).unwrap();
        other.set_all();
        let granules = set(512, &[]);
        let expect =
            BitmapError::SizeMismatch { target_size_bytes: 20_000, source_size_bytes: 20_001 };
        assert_eq!(granules.merge_from(&other), Err(expect.clone()));
        assert_eq!(granules.merge_from_drained(&other), Err(expect));
        assert_eq!(granules.count(), 0);
    }
}
