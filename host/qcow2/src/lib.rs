//! The qcow2 image format (QEMU project, `docs/interop/qcow2.txt`), as far as it is metadata.
//!
//! An [`Image`] says where the bytes of a guest range are, finds room for what is written
//! and keeps the image consistent. It never touches guest data: its user reads and writes that once,
//! straight from and to its own buffers, between *prepare* and *commit*. Metadata goes through
//! [`Storage`], a few asynchronous operations on the container, so that the same code serves a block
//! graph, a plain file and a simulation that loses power.
//!
//! | module | idea |
//! |---|---|
//! | [`create`] | fresh images |
//! | [`check`] | what is wrong with an image, and its repair |
//! | [`bitmaps`] | persistent bitmaps: directory, bits, and the switch to new ones |
//! | [`mod@format`] | the format to the bit, parsed and encoded; no I/O, nothing allocated on trust |
//! | [`image`] | an image in use: lookups, allocation, the order in which metadata is written |
//! | [`info`] | what an image says of itself |
//! | [`snapshots`] | internal snapshots of an image that nobody has open |
//! | [`storage`] | what an image needs of its container |
//!
//! **Invariant**: nothing that an image contains makes this crate panic, loop without end, recurse, or
//! allocate more than a bound that has a name in [`limits`].
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "tests show files to foreign tools"
    )
)]

pub mod bitmaps;
pub mod check;
pub mod create;
pub mod error;
pub mod format;
mod header_io;
pub mod image;
pub mod info;
pub mod limits;
pub mod snapshot_table;
pub mod snapshots;
pub mod storage;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod words;

pub use error::{Error, ErrorKind, Result};
pub use header_io::read_header;
pub use image::Image;
pub use storage::Storage;
