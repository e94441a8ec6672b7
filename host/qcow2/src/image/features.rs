//! Whether an image may be changed, and the feature bits that say so to others.
//!
//! Before its first change an image of version 3 is marked as open, durably, and a clean close takes the mark
//! back. So after a crash, and only then, somebody looks for leaked clusters, which takes a walk through all
//! tables. The dirty bit would say the same, but also that refcounts may be too low, which they are not: every
//! reader would have to walk before it writes, QEMU too, and forbid itself to write until it has. An
//! autoclear bit asks nothing of others. It costs a write and a sync at the first change and at the close.
//!
//! Version 2 has no place for it: what leaks there is found by a check.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::{Image, OpenOptions};
use crate::bitmaps::replace_header;
use crate::error::{Error, ErrorKind, Result};
use crate::format::extension::Extension;
use crate::format::header::{features, fields};
use crate::format::{Header, Version};
use crate::storage::Storage;

const UNTOUCHED: u8 = 0;
const MODIFIED: u8 = 1;
const CORRUPT: u8 = 2;

/// Whether an image may be changed.
pub(super) struct Modifying {
    writable: AtomicBool,
    /// As it was opened.
    was_dirty: bool,
    was_left_open: bool,
    /// Something stays behind that a close does not free.
    may_leak: AtomicBool,
    lazy_refcounts: bool,
    state: AtomicU8,
    /// It was told that metadata contradict themselves, which cannot be marked.
    has_told: AtomicBool,
    /// Somebody keeps bitmaps up to date.
    follows_bitmaps: AtomicBool,
}

impl Modifying {
    /// # Errors
    /// `EINVAL` for lazy refcounts in version 2, which has no dirty bit.
    pub(super) fn of(header: &Header, options: &OpenOptions) -> Result<Self> {
        let is_lazy = header.compatible & features::LAZY_REFCOUNTS != 0;
        let lazy_refcounts = options.lazy_refcounts.unwrap_or(is_lazy);
        if lazy_refcounts && header.version < Version::V3 {
            return Err(Error::invalid("lazy refcounts need an image of version 3 (compat 1.1)"));
        }
        let has = |bit| header.incompatible & bit != 0;
        let was_left_open = header.autoclear & features::OPEN != 0;
        let state = if has(features::CORRUPT) { CORRUPT } else { UNTOUCHED };
        Ok(Self {
            writable: AtomicBool::new(options.writable),
            was_dirty: has(features::DIRTY),
            was_left_open,
            may_leak: AtomicBool::new(was_left_open),
            lazy_refcounts,
            state: AtomicU8::new(state),
            has_told: AtomicBool::new(false),
            follows_bitmaps: AtomicBool::new(false),
        })
    }

    pub(super) fn was_dirty(&self) -> bool {
        self.was_dirty
    }

    pub(super) fn was_left_open(&self) -> bool {
        self.was_left_open
    }

    /// Says that something stays behind, to be freed by who opens the image next.
    pub(super) fn leave_leak(&self) {
        self.may_leak.store(true, Ordering::Release);
    }

    pub(super) fn has_lazy_refcounts(&self) -> bool {
        self.lazy_refcounts
    }

    /// Whether changes have begun and are allowed.
    pub(super) fn has_begun(&self) -> bool {
        self.state.load(Ordering::Acquire) == MODIFIED
    }

    pub(super) fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Acquire)
    }

    /// Nobody follows the bitmaps of an image that begins, or ceases, to be changed.
    pub(super) fn set_writable(&self, writable: bool) {
        self.follows_bitmaps.store(false, Ordering::Release);
        self.writable.store(writable, Ordering::Release);
    }
}

impl Image {
    /// Whether metadata were found to contradict themselves.
    pub fn is_corrupt(&self) -> bool {
        self.modifying.state.load(Ordering::Acquire) == CORRUPT
    }

    /// Somebody has loaded the image's bitmaps and marks as in use what is going to change, before it
    /// does. Without this the first change makes all of them inconsistent.
    pub fn follow_bitmaps(&self) {
        self.modifying.follows_bitmaps.store(true, Ordering::Release);
    }

    /// What is recorded of the files below the image is not to be current any more, durably: somebody is going
    /// to take its bitmaps into use.
    ///
    /// # Errors
    /// As for [`Self::begin_modifying`].
    pub async fn outdate_record<S: Storage>(&self, s: &S) -> Result<()> {
        if !self.header().is_record_current() {
            return Ok(());
        }
        self.check_modifiable()?;
        self.update_features(s, |header| header.autoclear &= !features::RECORD).await
    }

    /// Called before anything in the container changes: the first time, the image is marked as open, and what
    /// is not known here and would be wrong after a change is invalidated. For a caller who changes guest data
    /// by itself, too: in a raw external data file.
    ///
    /// # Errors
    /// `EROFS` for an image that may not be changed; those of the container.
    pub async fn begin_modifying<S: Storage>(&self, s: &S) -> Result<()> {
        if self.modifying.has_begun() {
            return Ok(());
        }
        self.check_modifiable()?;
        let follows = self.modifying.follows_bitmaps.load(Ordering::Acquire);
        let keep = features::RAW_EXTERNAL_DATA | if follows { features::BITMAPS } else { 0 };
        let lazy_refcounts = self.modifying.lazy_refcounts;
        self.update_features(s, |header| {
            header.autoclear &= keep;
            if header.version >= Version::V3 {
                header.autoclear |= features::OPEN;
            }
            if lazy_refcounts {
                header.incompatible |= features::DIRTY;
            }
        })
        .await?;
        let _ = self.modifying.state.compare_exchange(
            UNTOUCHED,
            MODIFIED,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        Ok(())
    }

    /// All changes are durable, refcounts too: the marks are taken back, until the next change. That as open
    /// stays if clusters may have leaked.
    pub(super) async fn end_modifying<S: Storage>(&self, s: &S) -> Result<()> {
        let may_leak = self.modifying.may_leak.load(Ordering::Acquire) || !self.frees.is_empty();
        // Whatever becomes of the marks: the next change sets them again.
        let _ = self.modifying.state.compare_exchange(
            MODIFIED,
            UNTOUCHED,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        self.update_features(s, |header| {
            header.incompatible &= !features::DIRTY;
            if !may_leak {
                header.autoclear &= !features::OPEN;
            }
        })
        .await
    }

    /// # Errors
    /// `EROFS` for an image that is not writable, or corrupt, or was dirty.
    pub(super) fn check_modifiable(&self) -> Result<()> {
        let refuse = |why| Err(Error::new(ErrorKind::ReadOnly, why));
        if !self.modifying.is_writable() {
            return refuse("the image is open read-only");
        }
        if self.is_corrupt() {
            return refuse("the image is marked as corrupt: check and repair it first");
        }
        if self.modifying.was_dirty {
            return refuse("the image was not closed: its refcounts have to be rebuilt first");
        }
        Ok(())
    }

    /// Marks the image as corrupt, in the container too if that can be, when metadata contradict
    /// themselves, and tells who holds the container; the error is the one given.
    pub(super) async fn mark_if_corrupt<S: Storage, T>(
        &self,
        s: &S,
        result: Result<T>,
    ) -> Result<T> {
        if let Err(error) = &result
            && error.kind() == ErrorKind::Corrupt
        {
            self.found_corrupt(s, error).await;
        }
        result
    }

    #[cold]
    async fn found_corrupt<S: Storage>(&self, s: &S, error: &Error) {
        let is_fatal = self.modifying.is_writable();
        if !is_fatal {
            if !self.modifying.has_told.swap(true, Ordering::AcqRel) {
                s.found_corrupt(error, is_fatal);
            }
            return;
        }
        if self.modifying.state.swap(CORRUPT, Ordering::AcqRel) == CORRUPT {
            return;
        }
        s.found_corrupt(error, is_fatal);
        if self.header().version >= Version::V3 {
            // What matters is that nothing is written any more; to tell others is tried once.
            let set = |header: &mut Header| header.incompatible |= features::CORRUPT;
            let _ = self.update_features(s, set).await;
        }
    }

    /// Names another backing file, or none, in the header; durable afterwards, and at a crash the old or the
    /// new one. What shows changes by [`Self::set_has_backing`] alone.
    ///
    /// # Errors
    /// `ENOSPC` if the names do not fit the header; `EINVAL` with a raw external data file; others as for
    /// [`Self::prepare_write`].
    pub async fn set_backing_file<S: Storage>(
        &self,
        s: &S,
        name: Option<&[u8]>,
        format: Option<&[u8]>,
    ) -> Result<()> {
        self.begin_modifying(s).await?;
        let _changing = self.header_changes.lock(0..1).await;
        let mut header = self.header().clone();
        header.backing_name = name.map(<[u8]>::to_vec);
        header.extensions.retain(|known| !matches!(known, Extension::BackingFormat(_)));
        if let Some(format) = format.filter(|_| name.is_some()) {
            header.extensions.insert(0, Extension::BackingFormat(format.to_vec()));
        }
        header.encode()?;
        // While the header is laid out anew a crash may leave no consistent bitmaps: nobody is to call them
        // consistent again if this fails.
        self.header().autoclear &= !(features::BITMAPS | features::RECORD);
        header.autoclear &= !features::RECORD;
        replace_header(s, &header).await?;
        *self.header() = header;
        Ok(())
    }

    /// Changes feature bits, durably, if that changes any.
    pub(super) async fn update_features<S: Storage>(
        &self,
        s: &S,
        change: impl FnOnce(&mut Header),
    ) -> Result<()> {
        let _changing = self.header_changes.lock(0..1).await;
        let mut header = self.header().clone();
        change(&mut header);
        let in_doubt = self.header_in_doubt.load(Ordering::Acquire);
        let is_there = header.features_field() == self.header().features_field() && !in_doubt;
        if is_there || header.version < Version::V3 {
            return Ok(());
        }
        self.write_header_field(s, fields::FEATURES, &header.features_field()).await?;
        *self.header() = header;
        Ok(())
    }
}
