//! A bitmap as the graph, exports and jobs know it: an identity whose content is replaced.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::content::Content;
use super::users::Users;
use super::{
    BitmapError, BitmapIdentity, BitmapName, BitmapReader, BitmapState, BitmapUse, Granularity,
    Granules, Ranges, Use,
};

/// A dirty bitmap, shared by the graph, exports and jobs; it is the same one (by address) through
/// all that is done to it.
///
/// Changes of its view never touch it: they mark the set that records, by way of a snapshot's
/// [`MarkList`](super::MarkList)s. What is *decided* about it (clear, freeze, resize …) is prepared,
/// and committed by the graph's writer with no such change in flight (`change.rs`), and gives
/// it another content. Reading is free at any time.
#[derive(Debug)]
pub struct Bitmap {
    granularity: Granularity,
    content: ArcSwap<Content>,
    identity: Mutex<BitmapIdentity>,
    pub(super) users: Users,
}

impl Bitmap {
    /// A clean bitmap of a view of `size_bytes` (of an inconsistent one all is dirty).
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

    /// A bitmap with content from elsewhere: a file, a merge of others. A frozen one has been
    /// frozen while it was disabled; of an inconsistent one all becomes dirty.
    pub fn from_granules(name: BitmapName, granules: Granules, state: BitmapState) -> Self {
        let granularity = granules.granularity();
        let content = Content::of(name, Arc::new(granules), state);
        let (content, users) = (ArcSwap::from_pointee(content), Users::default());
        Self { granularity, content, identity: Mutex::new(BitmapIdentity::new()), users }
    }

    pub(super) fn content(&self) -> Arc<Content> {
        self.content.load_full()
    }

    pub(super) fn replace_content(&self, next: Content) {
        self.content.store(Arc::new(next));
    }

    /// Its name.
    pub fn name(&self) -> BitmapName {
        self.content.load().name.clone()
    }

    /// Which bitmap it is, and how many images it has been stored in.
    pub fn identity(&self) -> BitmapIdentity {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is, from now on, the bitmap that was stored as this one.
    pub(crate) fn set_identity(&self, identity: BitmapIdentity) {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    /// Its state.
    pub fn state(&self) -> BitmapState {
        self.content.load().state
    }

    /// Size of the view it describes, bytes: as it was when its content was last decided about, if the view
    /// grows by itself.
    pub fn size_bytes(&self) -> u64 {
        self.content.load().size_bytes
    }

    /// Bytes that one granule stands for.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// The set that changes mark, for a snapshot's mark lists; `None` while nothing is recorded.
    pub fn recording(&self) -> Option<Arc<Granules>> {
        self.content.load().recording.clone()
    }

    /// Makes dirty what was dirty when the bitmap was stored, the first granule in the lowest bit of the
    /// first word. It adds bits alone, as marks do, also where nothing is recorded.
    pub(crate) fn add_words(&self, words: &[u64]) {
        let content = self.content.load();
        if let Some(set) = content.recording.as_ref().or(content.still.as_ref()) {
            set.mark_words(words);
        }
    }

    /// Makes all of it dirty, as [`Self::add_words`].
    pub(crate) fn add_all(&self) {
        let content = self.content.load();
        if let Some(set) = content.recording.as_ref().or(content.still.as_ref()) {
            set.set_all();
        }
    }

    /// All of it, as it stands now.
    pub fn read(&self) -> BitmapReader {
        BitmapReader::new(self.content(), self.granularity)
    }

    /// Registers a user, until the result is dropped. `user` says who it is, as `` export `vda` ``.
    ///
    /// # Errors
    /// [`BitmapError::InUse`] if somebody has it exclusively, or anybody has it and this use is to
    /// be exclusive; [`BitmapError::Changing`].
    pub fn use_by(self: &Arc<Self>, user: String, how: Use) -> Result<BitmapUse, BitmapError> {
        BitmapUse::begin(self, user, how)
    }

    /// Its users by name, each once.
    pub fn users(&self) -> Vec<String> {
        self.users.names()
    }

    /// Whether the granule that holds the byte at `offset` is dirty; false past the view's end.
    pub fn test(&self, offset: u64) -> bool {
        self.read().test(offset)
    }

    /// Number of dirty granules.
    pub fn count(&self) -> u64 {
        self.read().count()
    }

    /// Number of bytes in dirty granules, within the view.
    pub fn dirty_bytes(&self) -> u64 {
        self.read().dirty_bytes()
    }

    /// The first run of dirty bytes at or after `from`: [`Granules::next_dirty`].
    pub fn next_dirty(&self, from: u64) -> Option<Range<u64>> {
        self.read().next_dirty(from)
    }

    /// The runs of dirty bytes in `within`: [`Granules::ranges`].
    pub fn ranges(&self, within: Range<u64>) -> Ranges<BitmapReader> {
        self.read().ranges(within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_shows_its_content() {
        let check = |state, dirty_bytes, records: bool| {
            let name = BitmapName::new("b").unwrap();
            let granules = Granules::new(1000, Granularity::MIN).unwrap();
            granules.mark(600, 1);
            let bitmap = Bitmap::from_granules(name, granules, state);
            assert_eq!((bitmap.state(), bitmap.dirty_bytes()), (state, dirty_bytes), "{state}");
            assert_eq!(bitmap.recording().is_some(), records, "{state}");
            assert_eq!(bitmap.read().still().is_some(), !records, "{state}");
            assert_eq!(bitmap.next_dirty(700), Some(700..1000), "{state}");
            assert!(bitmap.test(999) && !bitmap.test(1000), "{state}");
        };
        check(BitmapState::Recording, 488, true);
        check(BitmapState::Disabled, 488, false);
        check(BitmapState::Frozen, 488, false);
        check(BitmapState::Inconsistent, 1000, false);
    }
}
