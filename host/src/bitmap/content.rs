//! What a bitmap holds between two changes, and how it is read.

use std::ops::Range;
use std::sync::Arc;

use super::read::{Words, count_runs};
use super::{BitmapError, BitmapName, BitmapState, Granularity, Granules, Ranges};

/// Everything of a bitmap that a change can alter. Replaced whole, never altered; only the bits of
/// its sets change.
///
/// | state | `recording` | `still` |
/// |---|---|---|
/// | recording | the content | – |
/// | disabled | – | the content |
/// | frozen | what has changed since the freeze; – if it was disabled | the content at the freeze |
/// | inconsistent | – | all dirty |
///
/// So one of them is there at least, and what the bitmap shows is always their union. Both have the
/// bitmap's granularity and size.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub(super) name: BitmapName,
    pub(super) state: BitmapState,
    pub(super) size_bytes: u64,
    /// What changes mark, by way of a snapshot's [`MarkList`](super::MarkList)s.
    pub(super) recording: Option<Arc<Granules>>,
    /// What no change marks.
    pub(super) still: Option<Arc<Granules>>,
}

impl Content {
    /// One set in a state. In [`BitmapState::Frozen`] it is of a disabled bitmap; of an inconsistent
    /// one all becomes dirty.
    pub(super) fn of(name: BitmapName, granules: Arc<Granules>, state: BitmapState) -> Self {
        if state == BitmapState::Inconsistent {
            granules.set_all();
        }
        let size_bytes = granules.size_bytes();
        let empty = Self { name, state, size_bytes, recording: None, still: None };
        match state {
            BitmapState::Recording => Self { recording: Some(granules), ..empty },
            _ => Self { still: Some(granules), ..empty },
        }
    }

    /// The sets whose union it shows: one or two.
    pub(super) fn sets(&self) -> impl Iterator<Item = &Arc<Granules>> {
        self.still.iter().chain(&self.recording)
    }
}

/// A bitmap as it stood when the reader was made: name, state, size and sets stay, whatever is done
/// to the bitmap. Bits of a set that records go on to be added.
///
/// It shows the union of what stands still and what records, so that a freeze hides nothing;
/// [`Self::still`] is what was frozen alone.
#[derive(Debug, Clone)]
pub struct BitmapReader {
    content: Arc<Content>,
    granularity: Granularity,
    /// Reads `content.still` alone.
    only_still: bool,
}

impl BitmapReader {
    pub(super) fn new(content: Arc<Content>, granularity: Granularity) -> Self {
        Self { content, granularity, only_still: false }
    }

    /// The bitmap's name.
    pub fn name(&self) -> &str {
        self.content.name.as_str()
    }

    /// The bitmap's state.
    pub fn state(&self) -> BitmapState {
        self.content.state
    }

    /// Whether changes are recorded: also while it is frozen.
    pub fn is_recording(&self) -> bool {
        self.content.recording.is_some()
    }

    /// Size of the view, bytes, with what has been added to it since the reader was made.
    pub fn size_bytes(&self) -> u64 {
        self.grown_end().max(self.content.size_bytes)
    }

    /// Where what has changed behind the view's end ends; 0 for nothing.
    fn grown_end(&self) -> u64 {
        let (first, second) = self.sets();
        let end = |set: Option<&Granules>| set.and_then(Granules::grown).map_or(0, |it| it.end);
        end(first).max(end(second))
    }

    /// Bytes that one granule stands for.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// What stands still alone: of a frozen bitmap its content at the freeze, without what has
    /// changed since. `None` if all of it records.
    pub fn still(&self) -> Option<Self> {
        self.content.still.as_ref()?;
        Some(Self { only_still: true, ..self.clone() })
    }

    /// The set that is read, and the one that is read with it.
    #[inline]
    fn sets(&self) -> (Option<&Granules>, Option<&Granules>) {
        let (still, recording) = (self.content.still.as_deref(), self.content.recording.as_deref());
        match still {
            None => (recording, None),
            Some(_) if self.only_still => (still, None),
            Some(_) => (still, recording),
        }
    }

    /// Whether the granule that holds the byte at `offset` is dirty; false past the view's end.
    pub fn test(&self, offset: u64) -> bool {
        let (first, second) = self.sets();
        [first, second].into_iter().flatten().any(|set| set.test(offset))
    }

    /// Number of dirty granules.
    pub fn count(&self) -> u64 {
        let (first, second) = self.sets();
        if self.grown_end() > 0 {
            return count_runs(self).0;
        }
        first.map_or(0, |first| first.count_with(second))
    }

    /// Number of bytes in dirty granules, within the view.
    pub fn dirty_bytes(&self) -> u64 {
        let (first, second) = self.sets();
        if self.grown_end() > 0 {
            return count_runs(self).1;
        }
        first.map_or(0, |first| first.dirty_bytes_with(second))
    }

    /// Makes dirty in `into` what is dirty here: [`Granules::merge_from`].
    ///
    /// # Errors
    /// As there.
    pub fn merge_into(&self, into: &Granules) -> Result<(), BitmapError> {
        let (first, second) = self.sets();
        [first, second].into_iter().flatten().try_for_each(|set| into.merge_from(set))
    }

    /// The granules by the word, the first in the lowest bit; zero past the last one.
    pub fn to_words(&self) -> Vec<u64> {
        let granules = self.size_bytes().div_ceil(self.granularity.bytes());
        let granules = granules.min(super::MAX_GRANULES);
        (0..granules.div_ceil(64) as usize).map(|index| self.word(index)).collect()
    }

    /// The first run of dirty bytes at or after `from`: [`Granules::next_dirty`].
    pub fn next_dirty(&self, from: u64) -> Option<Range<u64>> {
        Ranges::of(self, from..self.size_bytes()).next()
    }

    /// The runs of dirty bytes in `within`: [`Granules::ranges`].
    pub fn ranges(&self, within: Range<u64>) -> Ranges<Self> {
        Ranges::of(self.clone(), within)
    }
}

impl Words for BitmapReader {
    fn end_bytes(&self) -> u64 {
        self.size_bytes()
    }

    fn solid_from(&self) -> u64 {
        self.content.size_bytes
    }

    fn granularity(&self) -> Granularity {
        self.granularity
    }

    #[inline]
    fn word(&self, index: usize) -> u64 {
        let word_of = |set: Option<&Granules>| set.map_or(0, |set| Words::word(&set, index));
        let (first, second) = self.sets();
        word_of(first) | word_of(second)
    }
}

impl Words for &BitmapReader {
    fn end_bytes(&self) -> u64 {
        self.size_bytes()
    }

    fn solid_from(&self) -> u64 {
        self.content.size_bytes
    }

    fn granularity(&self) -> Granularity {
        self.granularity
    }

    #[inline]
    fn word(&self, index: usize) -> u64 {
        BitmapReader::word(self, index)
    }
}
