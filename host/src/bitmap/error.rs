//! What can be wrong with a bitmap's parameters.

use super::{BitmapName, Granularity};

/// Why a bitmap could not be made or combined with another. All but [`BitmapError::OutOfMemory`]
/// (`ENOMEM`) are invalid arguments (`EINVAL`).
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
    /// The memory for the granules could not be had.
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
}
