//! Who uses a bitmap: what stands in the way of taking it, or its content, from under somebody.

use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::read::Words;
use super::{Bitmap, BitmapError, BitmapName, BitmapReader, Granularity, Granules, Ranges};

/// How somebody uses a bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Counts on it under its name, and reads it now and then. Nobody may take it away meanwhile; what it
    /// says may change.
    Keep,
    /// Shows or copies what it says. Others may do so beside it; nothing may be hidden from it.
    Read,
    /// The same, and counts on it to say no less later than it has said before. What a freeze leaves when it ends
    /// is kept for it, up to eight times.
    Show,
    /// Decides what becomes of it (a job that freezes it). Nobody may use or change it beside.
    Exclusive,
}

/// What is gone of a bitmap after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Gone {
    Nothing,
    /// What it would say later.
    Recording,
    /// What stood still.
    Frozen,
    /// Something else that it said.
    Content,
    /// It, or its name.
    Bitmap,
}

impl Use {
    /// Whether it stands in the way of a change when it begins, or has so many sets kept.
    fn is_against(self, gone: Gone, kept: usize) -> bool {
        match self {
            Self::Keep => gone >= Gone::Bitmap,
            Self::Read => gone >= Gone::Frozen,
            Self::Show => match gone {
                Gone::Nothing => false,
                Gone::Frozen => kept >= KEPT_MAX,
                Gone::Recording | Gone::Content | Gone::Bitmap => true,
            },
            Self::Exclusive => true,
        }
    }
}

/// Sets that are kept for one user, beside what the bitmap has. Each has the size of a bitmap. Nothing is frozen
/// without a place for what the end of that may leave behind.
pub(crate) const KEPT_MAX: usize = 8;

/// Users shown in one message; the rest is counted.
const SHOWN_MAX: usize = 4;

/// The users of one bitmap.
#[derive(Debug, Default)]
pub(super) struct Users(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    next_number: u64,
    entries: Vec<Entry>,
    /// A change is prepared; what is gone after it.
    changing: Option<Gone>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    how: Use,
    user: String,
    /// What stood still, and does so no more.
    kept: Vec<Arc<Granules>>,
}

impl Users {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets that are about to go are kept for those who have shown them.
    pub(super) fn keep(&self, sets: &[Arc<Granules>]) {
        let mut list = self.lock();
        for entry in list.entries.iter_mut().filter(|entry| entry.how == Use::Show) {
            entry.kept.extend(sets.iter().cloned());
        }
    }

    /// The users by name, each once, in the order in which they came.
    pub(super) fn names(&self) -> Vec<String> {
        self.lock().names(|_| true)
    }
}

impl List {
    fn names(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for entry in self.entries.iter().filter(|entry| wanted(entry)) {
            if !names.contains(&entry.user) {
                names.push(entry.user.clone());
            }
        }
        names
    }

    /// # Errors
    /// [`BitmapError::InUse`] if there are users that are `against` it.
    fn check(
        &self,
        name: &BitmapName,
        against: impl Fn(&Entry) -> bool,
    ) -> Result<(), BitmapError> {
        let users = self.shown(against);
        let name = name.clone();
        users.map_or(Ok(()), |users| Err(BitmapError::InUse { name, users }))
    }

    /// The names of some users, for people to read.
    fn shown(&self, wanted: impl Fn(&Entry) -> bool) -> Option<String> {
        let names = self.names(wanted);
        if names.is_empty() {
            return None;
        }
        let more = names.len().saturating_sub(SHOWN_MAX);
        let mut users = names[..names.len() - more].join(", ");
        if more > 0 {
            users += &format!(" and {more} more");
        }
        Some(users)
    }
}

/// Somebody's use of a bitmap; ends when it is dropped. Holding it keeps the bitmap readable, as
/// any reference does.
#[derive(Debug)]
pub struct BitmapUse {
    bitmap: Arc<Bitmap>,
    number: u64,
    how: Use,
}

impl BitmapUse {
    pub(super) fn begin(bitmap: &Arc<Bitmap>, user: String, how: Use) -> Result<Self, BitmapError> {
        let name = bitmap.name();
        let mut list = bitmap.users.lock();
        let excludes = |how: Use, other: Use| how == Use::Exclusive && other != Use::Keep;
        list.check(&name, |other| excludes(how, other.how) || excludes(other.how, how))?;
        // A reader that began now could see one half before the change and one after it.
        if list.changing.is_some_and(|gone| how.is_against(gone, 0)) {
            return Err(BitmapError::Changing { name });
        }
        let number = list.next_number;
        list.next_number += 1;
        list.entries.push(Entry { number, how, user, kept: Vec::new() });
        drop(list);
        Ok(Self { bitmap: Arc::clone(bitmap), number, how })
    }

    /// The bitmap.
    pub fn bitmap(&self) -> &Arc<Bitmap> {
        &self.bitmap
    }

    /// The runs of dirty bytes in `within` of what the bitmap says, and of what is kept for this use.
    pub(crate) fn ranges_shown(
        &self,
        within: Range<u64>,
    ) -> impl Iterator<Item = Range<u64>> + use<> {
        // What is about to go is kept before it goes.
        let reader = self.bitmap.read();
        let list = self.bitmap.users.lock();
        let own = list.entries.iter().find(|entry| entry.number == self.number);
        let kept = own.map_or_else(Vec::new, |own| own.kept.clone());
        drop(list);
        Ranges::of(WithKept { reader, kept }, within)
    }

    /// Makes every granule of what stands still clean that lies wholly in the range, at once.
    ///
    /// To be called under a guard that covers the range, or with no change in flight on the class.
    /// A set that records is never cleared so: a change that was marked when it was admitted may
    /// have waited for that guard, and would go on without its mark.
    ///
    /// # Errors
    /// [`BitmapError::NotStill`] if nothing stands still, or this use is not exclusive;
    /// [`BitmapError::Inconsistent`].
    pub fn clear_range(&self, offset: u64, len_bytes: u64) -> Result<(), BitmapError> {
        let content = self.bitmap.content();
        let name = content.name.clone();
        if content.state == super::BitmapState::Inconsistent {
            return Err(BitmapError::Inconsistent { name });
        }
        match &content.still {
            Some(still) if self.how == Use::Exclusive => {
                still.clear_range(offset, len_bytes);
                Ok(())
            }
            _ => Err(BitmapError::NotStill { name }),
        }
    }
}

impl Deref for BitmapUse {
    type Target = Bitmap;

    fn deref(&self) -> &Bitmap {
        &self.bitmap
    }
}

impl Drop for BitmapUse {
    fn drop(&mut self) {
        self.bitmap.users.lock().entries.retain(|entry| entry.number != self.number);
    }
}

/// What a bitmap says, and sets of it that are kept.
struct WithKept {
    reader: BitmapReader,
    kept: Vec<Arc<Granules>>,
}

impl WithKept {
    fn of_all(&self, first: u64, of: impl Fn(&Granules) -> u64) -> u64 {
        self.kept.iter().map(|set| of(set)).fold(first, u64::max)
    }
}

impl Words for WithKept {
    fn end_bytes(&self) -> u64 {
        self.of_all(Words::end_bytes(&self.reader), Granules::end_bytes)
    }

    fn solid_from(&self) -> u64 {
        self.of_all(self.reader.solid_from(), |set| set.solid_from())
    }

    fn granularity(&self) -> Granularity {
        self.reader.granularity()
    }

    fn word(&self, index: usize) -> u64 {
        let kept = self.kept.iter().map(|set| Words::word(&&**set, index));
        kept.fold(Words::word(&self.reader, index), |all, word| all | word)
    }
}

/// A change of a bitmap from its preparation to its end: keeps others from beginning what it would
/// disturb.
#[derive(Debug)]
pub(super) struct Changing {
    bitmap: Arc<Bitmap>,
}

impl Changing {
    /// # Errors
    /// [`BitmapError::Changing`] if another is prepared.
    pub(super) fn begin(bitmap: &Arc<Bitmap>) -> Result<Self, BitmapError> {
        let name = bitmap.name();
        let mut list = bitmap.users.lock();
        if list.changing.is_some() {
            return Err(BitmapError::Changing { name });
        }
        list.changing = Some(Gone::Nothing);
        drop(list);
        Ok(Self { bitmap: Arc::clone(bitmap) })
    }

    /// Asks for one more change, after which `gone` is so. The use `own` is no hindrance: its holder asks.
    ///
    /// # Errors
    /// [`BitmapError::InUse`].
    pub(super) fn admit(&self, own: Option<&BitmapUse>, gone: Gone) -> Result<(), BitmapError> {
        let name = self.bitmap.name();
        let mut list = self.bitmap.users.lock();
        let own = own.map(|own| own.number);
        let is_against = |other: &Entry| other.how.is_against(gone, other.kept.len());
        list.check(&name, |other| Some(other.number) != own && is_against(other))?;
        list.changing = list.changing.max(Some(gone));
        Ok(())
    }

    /// Asks whether there is a place for what a freeze leaves behind for its users when it ends, beside so many of
    /// this change. As one freeze at a time is under way, and who begins to show it later has nothing kept, that
    /// place is there at its end.
    ///
    /// # Errors
    /// [`BitmapError::KeptTooOften`].
    pub(super) fn check_place(
        &self,
        own: Option<&BitmapUse>,
        let_go: usize,
    ) -> Result<(), BitmapError> {
        let own = own.map(|own| own.number);
        let has_none = |other: &Entry| {
            other.how.is_against(Gone::Frozen, other.kept.len() + let_go)
                && !other.how.is_against(Gone::Frozen, 0)
                && Some(other.number) != own
        };
        let users = self.bitmap.users.lock().shown(has_none);
        let name = self.bitmap.name();
        users.map_or(Ok(()), |users| Err(BitmapError::KeptTooOften { name, users }))
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.bitmap.users.lock().changing = None;
    }
}
