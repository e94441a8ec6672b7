//! A bitmap as the graph knows it: a named set of granules with a state; and lists of them to be
//! marked together.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::{BitmapError, BitmapName, Extension, Granularity, Granules, Ranges};

/// What a bitmap does with changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BitmapState {
    /// Changes are recorded.
    Recording,
    /// Changes pass unrecorded; the content stays until it is cleared, merged into or enabled
    /// again.
    Disabled,
}

/// A named dirty bitmap, shared by the graph that marks it and by the exports and jobs that read
/// it.
///
/// Methods that *decide* (enable, disable, clear, merge-back, resize) are for the graph's writer,
/// which calls them with no change in flight on the class; `mark.rs` says why relaxed atomics then
/// suffice. Reading is free at any time.
#[derive(Debug)]
pub struct Bitmap {
    name: BitmapName,
    /// Apart from the words it is only ever read on the request path, so its cache line stays
    /// shared.
    recording: AtomicBool,
    granules: Granules,
}

impl Bitmap {
    /// A clean bitmap of a view of `size_bytes`.
    ///
    /// # Errors
    /// As [`Granules::new`].
    pub fn new(
        name: BitmapName,
        size_bytes: u64,
        granularity: Granularity,
        state: BitmapState,
    ) -> Result<Self, BitmapError> {
        Ok(Self::from_granules(name, Granules::new(size_bytes, granularity)?, state))
    }

    /// A bitmap with content from elsewhere: a file, a merge of others.
    pub fn from_granules(name: BitmapName, granules: Granules, state: BitmapState) -> Self {
        Self { name, recording: AtomicBool::new(state == BitmapState::Recording), granules }
    }

    /// Its name.
    pub fn name(&self) -> &BitmapName {
        &self.name
    }

    /// Whether it records.
    pub fn state(&self) -> BitmapState {
        if self.recording.load(Relaxed) { BitmapState::Recording } else { BitmapState::Disabled }
    }

    /// Size of the view it describes.
    pub fn size_bytes(&self) -> u64 {
        self.granules.size_bytes()
    }

    /// Bytes that one granule stands for.
    pub fn granularity(&self) -> Granularity {
        self.granules.granularity()
    }

    /// Records a change of `offset..offset + len_bytes`, clipped to the view, if the bitmap is
    /// recording.
    ///
    /// To be called before the change is issued, on the thread that issues it.
    #[inline]
    pub fn mark(&self, offset: u64, len_bytes: u64) {
        if self.recording.load(Relaxed) {
            self.granules.mark(offset, len_bytes);
        }
    }

    /// Records from now on. Needs the class drained.
    pub fn enable(&self) {
        self.recording.store(true, Relaxed);
    }

    /// Records no more. Needs the class drained.
    pub fn disable(&self) {
        self.recording.store(false, Relaxed);
    }

    /// Makes all of the view dirty, recording or not: for content that cannot be trusted.
    pub fn set_all(&self) {
        self.granules.set_all();
    }

    /// Makes all of the view clean. Needs the class drained.
    pub fn clear(&self) {
        self.granules.clear_all();
    }

    /// Makes every granule clean that lies wholly in the range. Needs the range guarded, or the
    /// class drained.
    pub fn clear_range(&self, offset: u64, len_bytes: u64) {
        self.granules.clear_range(offset, len_bytes);
    }

    /// Adds what `source` has dirty, recording or not: [`Granules::merge_from`].
    ///
    /// # Errors
    /// [`BitmapError::SizeMismatch`], and nothing is changed.
    pub fn merge_from(&self, source: &Self) -> Result<(), BitmapError> {
        self.granules.merge_from(&source.granules)
    }

    /// The faster merge for a drained class: [`Granules::merge_from_drained`]. A concurrent mark
    /// could be lost.
    ///
    /// # Errors
    /// [`BitmapError::SizeMismatch`], and nothing is changed.
    pub fn merge_from_drained(&self, source: &Self) -> Result<(), BitmapError> {
        self.granules.merge_from_drained(&source.granules)
    }

    /// A bitmap of its own with this one's content and state: [`Granules::copy`].
    ///
    /// # Errors
    /// [`BitmapError::OutOfMemory`].
    pub fn copy(&self, name: BitmapName) -> Result<Self, BitmapError> {
        Ok(Self::from_granules(name, self.granules.copy()?, self.state()))
    }

    /// What takes this bitmap's place when its view is resized: [`Granules::resized`]. Needs the
    /// class drained until it has done so; what is marked here in between is lost.
    ///
    /// # Errors
    /// As [`Granules::new`].
    pub fn resized(&self, new_size_bytes: u64, extension: Extension) -> Result<Self, BitmapError> {
        let granules = self.granules.resized(new_size_bytes, extension)?;
        Ok(Self::from_granules(self.name.clone(), granules, self.state()))
    }

    /// Whether the granule that holds the byte at `offset` is dirty; false past the view's end.
    pub fn test(&self, offset: u64) -> bool {
        self.granules.test(offset)
    }

    /// Number of dirty granules.
    pub fn count(&self) -> u64 {
        self.granules.count()
    }

    /// Number of bytes in dirty granules, within the view.
    pub fn dirty_bytes(&self) -> u64 {
        self.granules.dirty_bytes()
    }

    /// The first run of dirty bytes at or after `from`: [`Granules::next_dirty`].
    pub fn next_dirty(&self, from: u64) -> Option<Range<u64>> {
        self.granules.next_dirty(from)
    }

    /// The runs of dirty bytes in `within`: [`Granules::ranges`].
    pub fn ranges(&self, within: Range<u64>) -> Ranges<'_> {
        self.granules.ranges(within)
    }
}

/// The bitmaps that one kind of change marks; fixed when the graph snapshot is built.
#[derive(Debug, Clone, Default)]
pub struct MarkList(Box<[Arc<Bitmap>]>);

impl MarkList {
    /// Marks the range in every bitmap that is recording.
    ///
    /// To be called before the change is issued, on the thread that issues it.
    #[inline]
    pub fn mark(&self, offset: u64, len_bytes: u64) {
        for bitmap in &self.0 {
            bitmap.mark(offset, len_bytes);
        }
    }

    /// The bitmaps, in the order given.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<Bitmap>> {
        self.0.iter()
    }

    /// Number of bitmaps.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing to mark.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Arc<Bitmap>> for MarkList {
    fn from_iter<I: IntoIterator<Item = Arc<Bitmap>>>(bitmaps: I) -> Self {
        Self(bitmaps.into_iter().collect())
    }
}

impl<'a> IntoIterator for &'a MarkList {
    type Item = &'a Arc<Bitmap>;
    type IntoIter = std::slice::Iter<'a, Arc<Bitmap>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitmap(name: &str, state: BitmapState) -> Arc<Bitmap> {
        let name = BitmapName::new(name).unwrap();
        Arc::new(Bitmap::new(name, 4096, Granularity::MIN, state).unwrap())
    }

    #[test]
    fn only_a_recording_bitmap_is_marked() {
        let bitmap = bitmap("b", BitmapState::Disabled);
        bitmap.mark(0, 512);
        assert_eq!((bitmap.state(), bitmap.count()), (BitmapState::Disabled, 0));
        bitmap.enable();
        bitmap.mark(0, 513);
        assert_eq!((bitmap.state(), bitmap.count()), (BitmapState::Recording, 2));
        bitmap.disable();
        bitmap.mark(4095, 1);
        assert_eq!(bitmap.count(), 2);
        bitmap.clear_range(0, 512);
        assert_eq!(bitmap.next_dirty(0), Some(512..1024));
        bitmap.clear();
        assert_eq!(bitmap.dirty_bytes(), 0);
    }

    #[test]
    fn a_copy_and_a_resized_bitmap_keep_name_and_state() {
        let original = bitmap("b", BitmapState::Disabled);
        original.set_all();
        let copy = original.copy(BitmapName::new("c").unwrap()).unwrap();
        original.clear();
        assert_eq!(
            (copy.name().as_str(), copy.state(), copy.count()),
            ("c", BitmapState::Disabled, 8)
        );
        let grown = original.resized(5000, Extension::Dirty).unwrap();
        assert_eq!((grown.name().as_str(), grown.state()), ("b", BitmapState::Disabled));
        assert_eq!(grown.ranges(0..u64::MAX).collect::<Vec<_>>(), vec![4096..5000]);
        assert_eq!((grown.size_bytes(), grown.granularity()), (5000, Granularity::MIN));
    }

    #[test]
    fn a_list_marks_all_that_record() {
        MarkList::default().mark(0, 1);
        let list: MarkList = [
            bitmap("a", BitmapState::Recording),
            bitmap("b", BitmapState::Disabled),
            bitmap("c", BitmapState::Recording),
        ]
        .into_iter()
        .collect();
        list.mark(600, 1);
        assert_eq!(list.iter().map(|bitmap| bitmap.count()).collect::<Vec<_>>(), [1, 0, 1]);
        assert_eq!((list.len(), list.is_empty()), (3, false));
    }
}
