//! What a workload's drive may show after a crash: the steps of the workload, and what they owe.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::graph::simulation::oracle::{WriteId, word};

/// Something that is asked of the drive, one after the other. Ranges and sizes in sectors.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Write(Range<u64>),
    /// The same, stored compressed.
    Compress(Range<u64>),
    Zero(Range<u64>),
    Discard(Range<u64>),
    Flush,
    Resize(u64),
    /// An image of this name on top.
    Snapshot(&'static str),
    /// The last one: everything ends in order.
    Close,
}

/// The word that a step writes.
pub(super) fn word_of(step: usize, sector: u64) -> u64 {
    word(WriteId(100 + step as u64), sector)
}

/// How far a workload had come: steps that had begun, and steps that had been answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) begun: usize,
    pub(super) answered: usize,
}

/// See the module.
pub(super) struct History {
    pub(super) steps: Vec<Step>,
    /// By sector, before the first step; behind its end everything is zero.
    pub(super) first: Vec<u64>,
}

impl History {
    /// Sizes that the disk may have.
    pub(super) fn sizes(&self, progress: Progress) -> BTreeSet<u64> {
        let mut sizes = BTreeSet::from([self.first.len() as u64]);
        for (at, step) in self.steps[..progress.begun].iter().enumerate() {
            if let Step::Resize(sectors) = step {
                // Once it is answered, it is so for good.
                if at < progress.answered {
                    sizes.clear();
                }
                sizes.insert(*sectors);
            }
        }
        sizes
    }

    /// What a sector may show in a disk of `size` sectors.
    fn possible(&self, sector: u64, size: u64, progress: Progress) -> BTreeSet<u64> {
        let is_flush = |step: &Step| matches!(step, Step::Flush | Step::Close);
        let flushed = self.steps[..progress.answered].iter().rposition(is_flush).unwrap_or(0);
        let mut words = BTreeSet::from([self.first.get(sector as usize).copied().unwrap_or(0)]);
        for (at, step) in self.steps[..progress.begun].iter().enumerate() {
            let is_durable = at < flushed;
            let change = match step {
                Step::Write(range) | Step::Compress(range) if range.contains(&sector) => {
                    (word_of(at, sector), is_durable)
                }
                Step::Zero(range) if range.contains(&sector) => (0, is_durable),
                Step::Discard(range) if range.contains(&sector) => (0, false),
                // What is cut off is gone when the new size is told, and not before.
                Step::Resize(sectors) if sector >= *sectors => match at < progress.answered {
                    true => (0, true),
                    false if size > *sectors => continue,
                    false => (0, false),
                },
                _ => continue,
            };
            if change.1 {
                words.clear();
            }
            words.insert(change.0);
        }
        words
    }

    /// # Errors
    /// The disk shows what it may not.
    pub(super) fn check(&self, shown: &[u64], progress: Progress) -> Result<(), String> {
        let size = shown.len() as u64;
        if !self.sizes(progress).contains(&size) {
            return Err(format!("the disk has {size} sectors, not {:?}", self.sizes(progress)));
        }
        for (sector, word) in (0..).zip(shown) {
            let possible = self.possible(sector, size, progress);
            if !possible.contains(word) {
                return Err(format!(
                    "sector {sector} of {size} shows {word:#x}, not one of {possible:x?}"
                ));
            }
        }
        Ok(())
    }
}
