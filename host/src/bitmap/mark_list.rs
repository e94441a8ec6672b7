//! Sets that are marked together.

use std::sync::Arc;

use super::Granules;

/// The sets that one kind of change marks: what records, and nothing else. Fixed when the graph
/// snapshot is built; a change of a bitmap's content reaches it with the next snapshot.
#[derive(Debug, Clone, Default)]
pub struct MarkList(Box<[Arc<Granules>]>);

impl MarkList {
    /// Marks the range in every set.
    ///
    /// To be called before the change is issued, on the thread that issues it.
    #[inline]
    pub fn mark(&self, offset: u64, len_bytes: u64) {
        for set in &self.0 {
            set.mark(offset, len_bytes);
        }
    }

    /// In every set, counts what lies between its end and `end` as changed: [`Granules::mark_grown`].
    #[cold]
    pub fn mark_grown(&self, end: u64) {
        for set in &self.0 {
            set.mark_grown(end);
        }
    }

    /// The sets, in the order given.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<Granules>> {
        self.0.iter()
    }

    /// Number of sets.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing to mark.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Arc<Granules>> for MarkList {
    fn from_iter<I: IntoIterator<Item = Arc<Granules>>>(sets: I) -> Self {
        Self(sets.into_iter().collect())
    }
}

impl<'a> IntoIterator for &'a MarkList {
    type Item = &'a Arc<Granules>;
    type IntoIter = std::slice::Iter<'a, Arc<Granules>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Bitmap, BitmapName, BitmapState, Granularity};
    use super::*;

    #[test]
    fn a_list_marks_all_that_record() {
        MarkList::default().mark(0, 1);
        let states = [BitmapState::Recording, BitmapState::Disabled, BitmapState::Recording];
        let bitmaps = states.map(|state| {
            let name = BitmapName::new("b").unwrap();
            Bitmap::new(name, 4096, Granularity::MIN, state).unwrap()
        });
        let list: MarkList = bitmaps.iter().filter_map(Bitmap::recording).collect();
        list.mark(600, 1);
        assert_eq!(bitmaps.each_ref().map(Bitmap::count), [1, 0, 1]);
        assert_eq!((list.len(), list.is_empty(), list.iter().count()), (2, false, 2));
    }
}
