//! Marking and clearing.
//!
//! # Memory ordering
//!
//! Every access to a set is `Relaxed`. What soundness needs is that *whoever acts on a clean granule
//! knows of every change issued before*. Three orders give it, none of them made here:
//!
//! 1. **Mark before issue.** The thread that admits a change calls `mark` and then issues the
//!    change, so the mark is sequenced before the issue, and so before the change's completion and
//!    its in-flight count going down.
//! 2. **Decisions are published with a snapshot whose classes were drained.** Freeze, clear, enable,
//!    disable, merge-back and resize give a bitmap other sets, filled and published with no change in
//!    flight on any class whose changes mark it. The count goes down with `Release` and the drain
//!    reads it with `Acquire`: each mark of the old sets happens-before the new ones are filled from
//!    them. Resuming publishes with `Release` what the next `admit` reads with `Acquire`: the new
//!    sets and their words happen-before each mark made in them, and nobody marks the old ones any
//!    more. A job's `copy` clears granules one by one under a range guard, which orders the same
//!    way for its range, but only in sets that do not record ([`BitmapUse::clear_range`]): those that
//!    record are marked at admission, and a change may be admitted and then wait for that guard.
//! 3. **Bits are changed by atomic read-modify-write**, so two threads that change bits of one word
//!    lose none, however they are ordered. (Plain stores occur where a word becomes all ones or all
//!    zeros, in a set that nobody else can see yet, and in [`Granules::merge_from_drained`], whose
//!    caller has drained.)
//!
//! **A bit found set needs no acquire.** Let thread B have set it, A find it set and issue a change
//! without writing. A reader R that drained after A's change has A's load happening before its own.
//! By read-read coherence R's load returns what A's returned, or a later value of that word; and a
//! later value without the bit does not occur in a set that records, nor by order 2 in one that
//! stands still without knowing of A's change. B is not needed in the argument, so nothing has to
//! be synchronised with B.
//!
//! **Readers that do not drain** (block status of a bitmap that is recording, a count for a log
//! line) see each granule as it was at some moment during the call. A write whose reply the client
//! has seen is in their answer: mark, issue, completion, reply, the client's next request and its
//! handling form a chain in which each step happens-before the next.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[cfg(doc)]
use super::BitmapUse;
use super::Granules;

impl Granules {
    /// Makes every granule dirty that holds a byte of `offset..offset + len_bytes`, clipped to the
    /// view.
    ///
    /// To be called before the change is issued, on the thread that issues it.
    #[inline]
    pub fn mark(&self, offset: u64, len_bytes: u64) {
        if len_bytes == 0 || offset >= self.size_bytes() {
            return;
        }
        let last_byte = offset.saturating_add(len_bytes - 1).min(self.size_bytes() - 1);
        let (first, last) = (self.granule_at(offset), self.granule_at(last_byte));
        if first != last {
            return self.mark_granules(first, last);
        }
        let bits = self.bits();
        if !bits[first] {
            bits.set_aliased(first, true);
        }
    }

    /// Makes every granule clean that lies wholly in `offset..offset + len_bytes`; bytes past the
    /// view's end count as covered. A granule that is covered in part stays as it is: its other
    /// bytes may have changed.
    ///
    /// To be called on a set that records with no change in flight on the class, else with none on
    /// the range.
    pub fn clear_range(&self, offset: u64, len_bytes: u64) {
        let end = offset.saturating_add(len_bytes);
        if self.grown().is_some_and(|grown| offset <= grown.start && grown.end <= end) {
            self.clear_grown();
        }
        let first = offset.div_ceil(self.granularity().bytes());
        let end_granule = match end >= self.size_bytes() {
            true => self.len_granules(),
            false => end >> self.granularity().shift(),
        };
        if first < end_granule {
            for_each_word(self.words(), first as usize, end_granule as usize - 1, |word, mask| {
                if word.load(Relaxed) & mask != 0 {
                    word.fetch_and(!mask, Relaxed);
                }
            });
        }
    }

    /// Makes every granule dirty whose bit is set, the first granule in the lowest bit of the first word.
    /// Bits past the last granule do not count.
    pub(crate) fn mark_words(&self, words: &[u64]) {
        let last = self.words().len().saturating_sub(1);
        for (index, (word, bits)) in self.words().iter().zip(words).enumerate() {
            let bits = if index == last { bits & self.last_word_mask() } else { *bits };
            if word.load(Relaxed) & bits != bits {
                word.fetch_or(bits, Relaxed);
            }
        }
    }

    /// Makes every granule dirty.
    pub fn set_all(&self) {
        self.mark(0, self.size_bytes());
    }

    /// Makes every granule clean. To be called with no change in flight on the class.
    pub fn clear_all(&self) {
        for word in self.words() {
            if word.load(Relaxed) != 0 {
                word.store(0, Relaxed);
            }
        }
        self.clear_grown();
    }

    /// Makes the granules `first..=last` dirty, which exist.
    pub(super) fn mark_granules(&self, first: usize, last: usize) {
        for_each_word(self.words(), first, last, |word, mask| {
            if word.load(Relaxed) & mask == mask {
                return;
            }
            if mask == u64::MAX {
                word.store(mask, Relaxed);
            } else {
                word.fetch_or(mask, Relaxed);
            }
        });
    }
}

/// Visits the words that hold granules `first..=last`, each with the mask of those granules.
#[inline]
fn for_each_word(words: &[AtomicU64], first: usize, last: usize, visit: impl Fn(&AtomicU64, u64)) {
    let head_mask = u64::MAX << (first % 64);
    let tail_mask = u64::MAX >> (63 - last % 64);
    match &words[first / 64..=last / 64] {
        [] => {}
        [only] => visit(only, head_mask & tail_mask),
        [head, body @ .., tail] => {
            visit(head, head_mask);
            body.iter().for_each(|word| visit(word, u64::MAX));
            visit(tail, tail_mask);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Granularity;
    use super::*;

    /// The granules that hold a byte of the range, found byte by byte.
    fn touched(size_bytes: u64, offset: u64, len_bytes: u64) -> Vec<u64> {
        (0..size_bytes.div_ceil(512))
            .filter(|granule| {
                (granule * 512..(granule * 512 + 512).min(size_bytes))
                    .any(|byte| byte >= offset && byte - offset < len_bytes)
            })
            .collect()
    }

    fn dirty(granules: &Granules) -> Vec<u64> {
        (0..granules.len_granules()).filter(|granule| granules.test(granule * 512)).collect()
    }

    #[test]
    fn mark_touches_exactly_the_granules_of_its_bytes() {
        let sizes: Vec<u64> =
            if cfg!(miri) { vec![1100] } else { vec![1, 511, 512, 513, 1100, 2048] };
        for size_bytes in sizes {
            let edges: Vec<u64> = (0..=size_bytes.div_ceil(512) + 1)
                .flat_map(|granule| {
                    [(granule * 512).saturating_sub(1), granule * 512, granule * 512 + 1]
                })
                .chain([size_bytes - 1, size_bytes, size_bytes + 1])
                .collect();
            for &offset in &edges {
                for len_bytes in edges.iter().copied().chain([u64::MAX - 1, u64::MAX]) {
                    let granules = Granules::new(size_bytes, Granularity::MIN).unwrap();
                    granules.mark(offset, len_bytes);
                    assert_eq!(
                        dirty(&granules),
                        touched(size_bytes, offset, len_bytes),
                        "size {size_bytes}, mark {offset}+{len_bytes}"
                    );
                }
            }
        }
    }

    #[test]
    fn ranges_across_words_mark_and_clear_every_granule_once() {
        let step = if cfg!(miri) { 21 } else { 1 };
        for first in (0..200_u64).step_by(step) {
            for last in (first..200).step_by(step) {
                let granules = Granules::new(200 * 512, Granularity::MIN).unwrap();
                let (offset, len_bytes) = (first * 512, (last - first + 1) * 512);
                granules.mark(offset, len_bytes);
                assert_eq!(granules.count(), last - first + 1);
                assert_eq!(granules.next_dirty(0), Some(offset..offset + len_bytes));
                granules.set_all();
                granules.clear_range(offset, len_bytes);
                assert_eq!(granules.count(), 200 - (last - first + 1));
                assert!(!granules.test(offset) && !granules.test(offset + len_bytes - 1));
            }
        }
    }

    #[test]
    fn clear_leaves_granules_that_it_covers_in_part() {
        let check = |offset, len_bytes, expect: &[u64]| {
            let granules = Granules::new(3 * 512 + 100, Granularity::MIN).unwrap();
            granules.set_all();
            granules.clear_range(offset, len_bytes);
            assert_eq!(dirty(&granules), expect, "clear {offset}+{len_bytes}");
        };
        check(0, 0, &[0, 1, 2, 3]);
        check(0, 511, &[0, 1, 2, 3]);
        check(0, 512, &[1, 2, 3]);
        check(1, 1023, &[0, 2, 3]);
        check(1, 1022, &[0, 1, 2, 3]);
        check(1536, 99, &[0, 1, 2, 3]);
        check(1536, 100, &[0, 1, 2]);
        check(1535, u64::MAX, &[0, 1, 2]);
        check(u64::MAX, u64::MAX, &[0, 1, 2, 3]);
        check(0, u64::MAX, &[]);
    }

    #[test]
    fn offsets_beyond_any_view_are_ignored() {
        let granules = Granules::new(700, Granularity::MIN).unwrap();
        for offset in [700, 1024, 1 << 62, u64::MAX] {
            granules.mark(offset, 1);
            granules.mark(offset, u64::MAX);
        }
        assert_eq!(granules.count(), 0);
    }
}
