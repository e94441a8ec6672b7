//! Persistent bitmaps of an image: loaded, marked as in use, stored (specification, "Bitmaps extension").
//!
//! | file | idea |
//! |---|---|
//! | `directory.rs` | [`Directory`]: what there is, and what of it may be trusted; marks in place |
//! | `load.rs` | the bits of one |
//! | `store.rs` | new bits, a new directory, and the switch to it |
//! | `header.rs` | [`replace_header`]: a header over another one, durable, whole after a crash |
//!
//! An image is asked for little: [`BitmapImage`]. Who opens it for writing
//! 1. loads the [`Directory`] and the bits,
//! 2. marks as in use what it is going to change, before it changes anything
//!    ([`Directory::begin_use`]),
//! 3. stores in the end ([`Directory::change`]).
//!
//! **Invariants**
//! - A bitmap that is not marked as in use, in a directory that the header calls consistent, is what it
//!   was when it was stored – at any moment at which power can be lost.
//! - What the directory refers to is durable before the directory, and the directory before the header
//!   refers to it; what is no longer referred to is freed last. A crash leaks, no more.
//! - What is recorded of the files below is current only while nothing has changed since it was written, which
//!   comes after all that it speaks of is durable.
//! - Entries of types and with extra data that nobody here knows stay as they are, to the byte.

mod directory;
mod header;
mod load;
mod store;
#[cfg(test)]
mod tests;

use std::future::Future;

pub use directory::{Directory, Trust};
pub use header::{replace_header, with_bitmaps};
pub use store::{BitmapChange, NewBitmap};

use crate::error::Result;
use crate::format::extension::BitmapsExtension;
use crate::format::record::Record;
use crate::format::{Header, HostOffset};
use crate::storage::Storage;

/// What the bitmaps of an image need of it. All offsets are of the image file, also when guest data are in
/// an external data file.
pub trait BitmapImage {
    /// The image file.
    type Storage: Storage;

    /// The image file.
    fn storage(&self) -> &Self::Storage;

    /// The header as it is now.
    fn header(&self) -> Header;

    /// Makes [`with_bitmaps`] of the header by [`replace_header`], while nobody else changes it; with the
    /// record, which is or is not current.
    ///
    /// # Errors
    /// `ENOSPC` if the header with its extensions does not fit the first cluster.
    fn set_bitmaps(
        &self,
        bitmaps: Option<BitmapsExtension>,
        record: Option<&Record>,
        is_current: bool,
    ) -> impl Future<Output = Result<()>>;

    /// So many clusters in a row, with a reference count of one; durable after [`Self::flush`].
    fn allocate(&self, clusters: u64) -> impl Future<Output = Result<HostOffset>>;

    /// Gives back clusters, of which nothing durable refers to any more. An image refuses to give up what
    /// it knows to be its own metadata.
    fn free(&self, offset: HostOffset, clusters: u64) -> impl Future<Output = Result<()>>;

    /// Makes durable what has been allocated, and all that has been written.
    fn flush(&self) -> impl Future<Output = Result<()>>;
}
