//! Who uses a bitmap: what stands in the way of taking it, or its content, from under somebody.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Bitmap, BitmapError, BitmapName};

/// How somebody uses a bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Shows or copies what it says. Others may do so beside it; nothing may be hidden from it.
    Read,
    /// Decides what becomes of it (a job that freezes it). Nobody may use or change it beside.
    Exclusive,
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
    /// A change is prepared; whether it hides something.
    changing: Option<bool>,
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
        list.check(&name, |other| how == Use::Exclusive || other.how == Use::Exclusive)?;
        // A reader that began now could see one half before the change and one after it.
        if list.changing == Some(true) || (list.changing.is_some() && how == Use::Exclusive) {
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
        list.changing = Some(false);
        drop(list);
        Ok(Self { bitmap: Arc::clone(bitmap) })
    }

    /// Asks for one more change; `hides`: something that readers rely on would be gone. The use
    /// `own` is no hindrance: its holder asks.
    ///
    /// # Errors
    /// [`BitmapError::InUse`].
    pub(super) fn admit(&self, own: Option<&BitmapUse>, hides: bool) -> Result<(), BitmapError> {
        let name = self.bitmap.name();
        let mut list = self.bitmap.users.lock();
        let own = own.map(|own| own.number);
        list.check(&name, |other| {
            Some(other.number) != own && (hides || other.how == Use::Exclusive)
        })?;
        list.changing = Some(list.changing == Some(true) || hides);
        Ok(())
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.bitmap.users.lock().changing = None;
    }
}
