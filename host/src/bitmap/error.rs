//! What can stand against a bitmap or a change of one.

use super::users::KEPT_MAX;
use super::{BitmapName, Granularity};
use crate::error::{Error, ErrorKind};

/// Why a bitmap could not be made, changed or combined with another. Unless a variant says
/// otherwise, an invalid argument (`EINVAL`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BitmapError {
    /// The name is empty.
    #[error("bitmap name is empty: give it at least one character")]
    NameEmpty,
    /// The name is longer than [`BitmapName::MAX_LEN_BYTES`].
    #[error(
        "bitmap name is {len_bytes} bytes long: at most {} bytes of UTF-8 are allowed",
        BitmapName::MAX_LEN_BYTES
    )]
    NameTooLong {
        /// Length of the rejected name.
        len_bytes: usize,
    },
    /// The name holds a NUL character, which no peer or image could carry.
    #[error("bitmap name has a NUL character at byte {index}: remove it")]
    NameNul {
        /// Byte index of the first NUL.
        index: usize,
    },
    /// Not a power of two in [`Granularity::MIN`]..=[`Granularity::MAX`].
    #[error("granularity of {bytes} bytes is not a power of two from 512 to 2147483648 (2 GiB)")]
    Granularity {
        /// The rejected granularity.
        bytes: u64,
    },
    /// More granules than [`MAX_GRANULES`](super::MAX_GRANULES).
    #[error(
        "bitmap of {size_bytes} bytes at granularity {granularity} has more than {} granules: \
         use a granularity of at least {} bytes",
        super::MAX_GRANULES,
        size_bytes.div_ceil(super::MAX_GRANULES).next_power_of_two()
    )]
    TooManyGranules {
        /// Size of the view.
        size_bytes: u64,
        /// The granularity asked for.
        granularity: Granularity,
    },
    /// The memory for the granules could not be had (`ENOMEM`).
    #[error("no memory for a bitmap of {len_bytes} bytes: use a coarser granularity")]
    OutOfMemory {
        /// Memory asked for.
        len_bytes: u64,
    },
    /// Two bitmaps that were to be merged are of views of different size.
    #[error(
        "cannot merge a bitmap of a view of {source_size_bytes} bytes into one of \
         {target_size_bytes} bytes: resize one first"
    )]
    SizeMismatch {
        /// Size of the view of the bitmap to be changed.
        target_size_bytes: u64,
        /// Size of the view of the bitmap to be read.
        source_size_bytes: u64,
    },
    /// Somebody uses it whom the change would disturb (`EBUSY`).
    #[error("bitmap `{name}` is in use by {users}: end that first")]
    InUse {
        /// The bitmap.
        name: BitmapName,
        /// Those who use it, for people to read.
        users: String,
    },
    /// It cannot be frozen: what that leaves behind would be kept too often (`EBUSY`).
    #[error(
        "bitmap `{name}` cannot be frozen: what was frozen before is kept {KEPT_MAX} times already for {users}: \
         have their clients connect again first"
    )]
    KeptTooOften {
        /// The bitmap.
        name: BitmapName,
        /// Those who show it, for people to read.
        users: String,
    },
    /// Another change of it has been prepared and has neither taken effect nor been given up
    /// (`EAGAIN`).
    #[error("another change of bitmap `{name}` is under way: try again")]
    Changing {
        /// The bitmap.
        name: BitmapName,
    },
    /// It is frozen, and this cannot be done to a frozen one (`EBUSY`).
    #[error("bitmap `{name}` is frozen: merge it back or let it abdicate first")]
    Frozen {
        /// The bitmap.
        name: BitmapName,
    },
    /// It does not record, and what changes from now on is to be recorded.
    #[error(
        "bitmap `{name}` is disabled, so nothing would record what changes next: enable it first"
    )]
    Disabled {
        /// The bitmap.
        name: BitmapName,
    },
    /// Only a frozen bitmap can be merged back or abdicate.
    #[error("bitmap `{name}` is not frozen: there is nothing to merge back or to give up")]
    NotFrozen {
        /// The bitmap.
        name: BitmapName,
    },
    /// It is [inconsistent](super::BitmapState::Inconsistent).
    #[error("bitmap `{name}` is inconsistent: remove it, or repair it as all dirty")]
    Inconsistent {
        /// The bitmap.
        name: BitmapName,
    },
    /// It is not inconsistent.
    #[error("bitmap `{name}` is not inconsistent: there is nothing to repair")]
    NotInconsistent {
        /// The bitmap.
        name: BitmapName,
    },
    /// Its granules cannot be cleared one by one: it has none that stand still, or who asks does
    /// not hold it exclusively.
    #[error(
        "granules of bitmap `{name}` can be cleared only where they stand still, by an exclusive \
         user: freeze or disable it first"
    )]
    NotStill {
        /// The bitmap.
        name: BitmapName,
    },
}

impl BitmapError {
    /// The kind of error that it is outside this module.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::OutOfMemory { .. } => ErrorKind::NoMemory,
            Self::InUse { .. } | Self::KeptTooOften { .. } | Self::Frozen { .. } => {
                ErrorKind::InUse
            }
            Self::Changing { .. } => ErrorKind::Busy,
            _ => ErrorKind::Invalid,
        }
    }
}

impl From<BitmapError> for Error {
    fn from(error: BitmapError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}
