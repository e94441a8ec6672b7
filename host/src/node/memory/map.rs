//! Which blocks of a chunk are the overlay's own.

use std::ops::Range;

const WORD_BITS: usize = u64::BITS as usize;

/// A set of the blocks of one chunk. All and none take no memory: zeroing a large range makes whole
/// chunks.
#[derive(Default)]
pub(super) enum Map {
    #[default]
    Empty,
    /// Neither none nor all of them.
    Partial {
        words: Box<[u64]>,
        /// Bits that are set.
        count: usize,
    },
    Full,
}

impl Map {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// Adds `range` of a chunk of `blocks`.
    pub(super) fn insert(&mut self, range: Range<usize>, blocks: usize) {
        if let Self::Empty = self {
            let words = vec![0; blocks.div_ceil(WORD_BITS)].into_boxed_slice();
            *self = Self::Partial { words, count: 0 };
        }
        let Self::Partial { words, count } = self else { return };
        for (word, mask) in masks(range) {
            *count += (mask & !words[word]).count_ones() as usize;
            words[word] |= mask;
        }
        self.settle(blocks);
    }

    /// Takes `range` of a chunk of `blocks` away.
    pub(super) fn remove(&mut self, range: Range<usize>, blocks: usize) {
        if let Self::Full = self {
            let mut words = vec![0; blocks.div_ceil(WORD_BITS)].into_boxed_slice();
            masks(0..blocks).for_each(|(word, mask)| words[word] = mask);
            *self = Self::Partial { words, count: blocks };
        }
        let Self::Partial { words, count } = self else { return };
        for (word, mask) in masks(range) {
            *count -= (mask & words[word]).count_ones() as usize;
            words[word] &= !mask;
        }
        self.settle(blocks);
    }

    fn settle(&mut self, blocks: usize) {
        match self {
            Self::Partial { count: 0, .. } => *self = Self::Empty,
            Self::Partial { count, .. } if *count == blocks => *self = Self::Full,
            _ => {}
        }
    }

    /// The runs of `range`: blocks, and whether they are in the set. Neighbours differ.
    pub(super) fn runs(&self, range: Range<usize>) -> impl Iterator<Item = (Range<usize>, bool)> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let start = at;
            let is_in = match self {
                Self::Empty | Self::Full => {
                    at = range.end;
                    matches!(self, Self::Full)
                }
                Self::Partial { words, .. } => {
                    let is_in = words[at / WORD_BITS] >> (at % WORD_BITS) & 1 == 1;
                    at = run_end(words, at, is_in).min(range.end);
                    is_in
                }
            };
            Some((start..at, is_in))
        })
    }
}

/// The first bit behind `at` that is not `value`, or the end of the words.
fn run_end(words: &[u64], at: usize, value: bool) -> usize {
    let flip = if value { u64::MAX } else { 0 };
    let first = (words[at / WORD_BITS] ^ flip) & (u64::MAX << (at % WORD_BITS));
    let rest = words.iter().map(|word| word ^ flip).enumerate().skip(at / WORD_BITS + 1);
    let mut others = std::iter::once((at / WORD_BITS, first)).chain(rest);
    match others.find(|(_, word)| *word != 0) {
        Some((index, word)) => index * WORD_BITS + word.trailing_zeros() as usize,
        None => words.len() * WORD_BITS,
    }
}

/// The words that `range` lies in, with its bits of each.
fn masks(range: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let (word, bit) = (at / WORD_BITS, at % WORD_BITS);
        let count = (WORD_BITS - bit).min(range.end - at);
        at += count;
        Some((word, (u64::MAX >> (WORD_BITS - count)) << bit))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn as_a_list_of_booleans(
            blocks in prop::sample::select(vec![16_usize, 64, 128, 200]),
            steps in prop::collection::vec((any::<bool>(), 0_usize..200, 1_usize..200), 1..40),
        ) {
            let (mut map, mut model) = (Map::default(), vec![false; blocks]);
            for (insert, start, len) in steps {
                let start = start % blocks;
                let range = start..(start + len).min(blocks);
                model[range.clone()].fill(insert);
                match insert {
                    true => map.insert(range.clone(), blocks),
                    false => map.remove(range.clone(), blocks),
                }
                let mut at = start;
                let mut last = None;
                for (run, is_in) in map.runs(start..blocks) {
                    prop_assert_eq!(run.start, at);
                    prop_assert!(model[run.clone()].iter().all(|bit| *bit == is_in));
                    prop_assert_ne!(last.replace(is_in), Some(is_in));
                    at = run.end;
                }
                prop_assert_eq!(at, blocks);
                prop_assert_eq!(map.is_empty(), !model.contains(&true));
                prop_assert_eq!(matches!(map, Map::Full), !model.contains(&false));
            }
        }
    }
}
