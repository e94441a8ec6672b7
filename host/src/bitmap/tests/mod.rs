//! Sets and bitmaps against naive models, and under threads.

use std::collections::BTreeSet;
use std::ops::Range;

use super::{Extension, Granularity};

mod cases;
mod publish;
mod set;
mod state;
mod users;

/// What a bitmap says, as plainly as it can be put: the indices of its dirty granules.
#[derive(Debug, Clone)]
struct Model {
    dirty: BTreeSet<u64>,
    size_bytes: u64,
    granularity_bytes: u64,
}

impl Model {
    fn new(size_bytes: u64, granularity: Granularity) -> Self {
        Self { dirty: BTreeSet::new(), size_bytes, granularity_bytes: granularity.bytes() }
    }

    /// The bytes of granule `index`.
    fn bytes_of(&self, index: u64) -> Range<u64> {
        let start = index * self.granularity_bytes;
        start..(start + self.granularity_bytes).min(self.size_bytes)
    }

    fn all(&self) -> Range<u64> {
        0..self.size_bytes.div_ceil(self.granularity_bytes)
    }

    fn mark(&mut self, bytes: Range<u64>) {
        for index in self.all() {
            let granule = self.bytes_of(index);
            if granule.start < bytes.end && bytes.start < granule.end && !bytes.is_empty() {
                self.dirty.insert(index);
            }
        }
    }

    fn clear(&mut self, bytes: Range<u64>) {
        let covered =
            |granule: Range<u64>| granule.start >= bytes.start && granule.end <= bytes.end;
        let granules: Vec<u64> =
            self.all().filter(|&index| covered(self.bytes_of(index))).collect();
        for index in granules {
            self.dirty.remove(&index);
        }
    }

    fn merge(&mut self, source: &Self) {
        for &index in &source.dirty {
            self.mark(source.bytes_of(index));
        }
    }

    fn resize(&mut self, size_bytes: u64, extension: Extension) {
        let old_size_bytes = std::mem::replace(&mut self.size_bytes, size_bytes);
        let all = self.all();
        self.dirty.retain(|index| all.contains(index));
        if extension == Extension::Dirty {
            self.mark(old_size_bytes..size_bytes);
        }
    }

    /// Runs of dirty bytes in `within`.
    fn ranges(&self, within: Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for bytes in self.dirty.iter().map(|&index| self.bytes_of(index)) {
            let bytes = bytes.start.max(within.start)..bytes.end.min(within.end);
            match runs.last_mut() {
                _ if bytes.is_empty() => {}
                Some(run) if run.end == bytes.start => run.end = bytes.end,
                _ => runs.push(bytes),
            }
        }
        runs
    }
}
