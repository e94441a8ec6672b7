//! What an image needs of its container.

use std::future::Future;

use crate::error::{Error, Result};

/// The container of an image: a file, a node of a graph, memory.
///
/// Offsets may lie past the end: such bytes read as zeros, and a write there makes the container longer
/// (`ENOSPC` if it cannot be). Completed writes are durable after the next [`Storage::flush`] only;
/// until then each may be lost, or torn at 512-byte sectors, and in any order.
///
/// A future dropped before its end leaves open whether its operation happens, in whole or in part. But
/// no operation on the same bytes that is issued later is overtaken by it.
pub trait Storage {
    /// Fills `buf` from `offset`.
    fn read(&self, offset: u64, buf: &mut [u8]) -> impl Future<Output = Result<()>>;

    /// Writes `bytes` at `offset`.
    fn write(&self, offset: u64, bytes: &[u8]) -> impl Future<Output = Result<()>>;

    /// Makes a range read as zeros.
    fn zero(&self, offset: u64, len: u64) -> impl Future<Output = Result<()>>;

    /// Tells that a range is not needed: advisory; what it reads afterwards is not known.
    fn discard(&self, offset: u64, len: u64) -> impl Future<Output = Result<()>>;

    /// Makes completed writes durable; with an external data file, also those of guest data in it.
    fn flush(&self) -> impl Future<Output = Result<()>>;

    /// Where the container ends for good, bytes, as a block device does; `None` if it can grow. Nothing is
    /// allocated behind that.
    fn end_bytes(&self) -> Option<u64> {
        None
    }

    /// The length now, bytes.
    fn len_bytes(&self) -> impl Future<Output = Result<u64>>;

    /// Metadata were found that contradict themselves, for the first time since the image was opened, or the first
    /// time that it cannot be changed any more for it (`is_fatal`).
    fn found_corrupt(&self, _what: &Error, _is_fatal: bool) {}

    /// Makes the container this long, bytes: cuts it, or adds zeros. A container that cannot be cut
    /// (a block device) succeeds without effect.
    fn set_len(&self, len_bytes: u64) -> impl Future<Output = Result<()>>;
}
