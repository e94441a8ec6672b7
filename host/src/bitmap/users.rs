//! Who uses a bitmap: what stands in the way of taking it, or its content, from under somebody.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Bitmap, BitmapError, BitmapName};

/// How somebody uses a bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Counts on it under its name, and reads it now and then. Nobody may take it away meanwhile; what it
    /// says may change.
    Keep,
    /// Shows or copies what it says. Others may do so beside it; nothing may be hidden from it.
    Read,
    /// Decides what becomes of it (a job that freezes it). Nobody may use or change it beside.
    Exclusive,
}

/// What is gone of a bitmap after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Gone {
    Nothing,
    /// Something that it said.
    Content,
    /// It, or its name.
    Bitmap,
}

impl Use {
    /// Whether it stands in the way of a change.
    fn is_against(self, gone: Gone) -> bool {
        match self {
            Self::Keep => gone >= Gone::Bitmap,
            Self::Read => gone >= Gone::Content,
            Self::Exclusive => true,
        }
    }
}

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
}

impl Users {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let names = self.names(against);
        if names.is_empty() {
            return Ok(());
        }
        let more = names.len().saturating_sub(SHOWN_MAX);
        let mut users = names[..names.len() - more].join(", ");
        if more > 0 {
            users += &format!(" and {more} more");
        }
        Err(BitmapError::InUse { name: name.clone(), users })
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
        if list.changing.is_some_and(|gone| how.is_against(gone)) {
            return Err(BitmapError::Changing { name });
        }
        let number = list.next_number;
        list.next_number += 1;
        list.entries.push(Entry { number, how, user });
        drop(list);
        Ok(Self { bitmap: Arc::clone(bitmap), number, how })
    }

    /// The bitmap.
    pub fn bitmap(&self) -> &Arc<Bitmap> {
        &self.bitmap
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
        list.check(&name, |other| Some(other.number) != own && other.how.is_against(gone))?;
        list.changing = list.changing.max(Some(gone));
        Ok(())
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.bitmap.users.lock().changing = None;
    }
}
