//! Where an overlay hides its backing without a block of its own.
//!
//! A node that grows over a longer backing shows zeros where it had no bytes. As blocks they would take a
//! place in the table for every 64 KiB of that; here they take one entry.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A set of ranges, bytes of the view. It changes when no request is in flight. Each change adds one range
/// at most.
#[derive(Default)]
pub(super) struct Hidden {
    /// Whether there is one: most overlays have none, and look no further.
    has_any: AtomicBool,
    /// Ascending, not empty; neighbours do not touch.
    ranges: RwLock<Vec<Range<u64>>>,
}

impl Hidden {
    /// The first part of `range` that is in the set.
    pub(super) fn first_in(&self, range: Range<u64>) -> Option<Range<u64>> {
        // Who is told of a new size, or that bytes were given up, has been told of this.
        if !self.has_any.load(Ordering::Relaxed) {
            return None;
        }
        let ranges = self.read();
        let found = ranges.get(ranges.partition_point(|other| other.end <= range.start))?;
        let part = found.start.max(range.start)..found.end.min(range.end);
        (!part.is_empty()).then_some(part)
    }

    pub(super) fn insert(&self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut ranges = self.write();
        let from = ranges.partition_point(|other| other.end < range.start);
        let to = ranges.partition_point(|other| other.start <= range.end);
        let joined = &ranges[from..to];
        let start = joined.first().map_or(range.start, |first| first.start.min(range.start));
        let end = joined.last().map_or(range.end, |last| last.end.max(range.end));
        ranges.splice(from..to, std::iter::once(start..end));
        self.has_any.store(true, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, range: &Range<u64>) {
        if range.is_empty() || !self.has_any.load(Ordering::Relaxed) {
            return;
        }
        let mut ranges = self.write();
        let from = ranges.partition_point(|other| other.end <= range.start);
        let to = ranges.partition_point(|other| other.start < range.end);
        let cut = &ranges[from..to];
        let before = cut.first().map(|first| first.start..range.start);
        let behind = cut.last().map(|last| range.end..last.end);
        let left = before.into_iter().chain(behind).filter(|rest| !rest.is_empty());
        let left: Vec<Range<u64>> = left.collect();
        ranges.splice(from..to, left);
        self.has_any.store(!ranges.is_empty(), Ordering::Relaxed);
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Range<u64>>> {
        self.ranges.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<Range<u64>>> {
        self.ranges.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn as_a_list_of_booleans(
            steps in prop::collection::vec((any::<bool>(), 0_u64..64, 0_u64..20), 1..40),
        ) {
            let (hidden, mut model) = (Hidden::default(), [false; 100]);
            for (insert, start, len) in steps {
                let range = start..start + len;
                model[start as usize..(start + len) as usize].fill(insert);
                match insert {
                    true => hidden.insert(range),
                    false => hidden.remove(&range),
                }
                let mut at = 0;
                let mut shown = [false; 100];
                while let Some(part) = hidden.first_in(at..100) {
                    prop_assert!(part.start >= at && part.end > part.start);
                    prop_assert!(at == 0 || part.start > at, "neighbours are one range");
                    shown[part.start as usize..part.end as usize].fill(true);
                    at = part.end;
                }
                prop_assert_eq!(shown, model);
                prop_assert_eq!(hidden.first_in(start..start), None);
            }
        }
    }
}
