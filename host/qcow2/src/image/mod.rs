//! An image in use: where guest data is, room for what is written, and metadata that stay consistent.
//!
//! The caller does all I/O of guest data. It takes a [`Turn`] for each request and keeps it until the
//! request's I/O has settled, whatever becomes of the future. Then
//!
//! - to read: [`Image::map_cached`], or [`Image::map`] where that has no answer; read what it says;
//! - to write: [`Image::prepare_write_cached`], or [`Image::prepare_write`]; write what the [`Step`] says;
//!   [`Image::commit`] if that was an allocation; go on with the rest of the request;
//! - to discard or zero: one call, no I/O but where the external data file is raw;
//! - [`Image::flush`] makes durable what was committed, [`Image::close`] ends it all.
//!
//! # Order on disk
//!
//! ```text
//! allocate   refcount block → refcount table → [sync: they and the data] → L2 slice, L1 entry → [sync]
//! free       L2 slice, L1 entry → [sync] → (requests in flight end) → refcount
//! ```
//!
//! So after a crash at any point the container has mappings only to clusters that count as used and
//! whose data is there; what was allocated and not yet mapped has leaked, no more. Metadata is written
//! by [`Image::flush`], and when a cache is full, in that order always (`write_back`).
//!
//! With lazy refcounts a flush leaves them out: they are written when the cache of them is full and by
//! [`Image::close`], and until then the image is marked as dirty. That saves writes of refcount blocks, and
//! the sync before the table refers to new ones, but not the sync before L2 slices, which data needs.
//!
//! An image of version 3 says that somebody changes it (`features`): who finds that, and nobody at it, frees
//! what has leaked.
//!
//! # Who excludes whom
//!
//! Lookups take no lock. Changes of a guest cluster's mapping hold it in a first-in first-out range lock,
//! from *prepare* to *commit*; writes in place and reads do not, because no cluster that they may have
//! found is given to somebody else while their turn lasts (`frees`). Mutexes are held for memory
//! accesses only.
//!
//! **Invariant**: a future dropped at any await leaves the image consistent, in memory and on disk.

mod access;
mod allocator;
mod bitmaps;
mod cache;
mod compressed;
mod erase;
mod features;
mod fills;
mod frees;
mod header_fields;
mod map;
mod open;
mod range_lock;
mod refcounts;
mod request;
mod reserved;
mod resize;
mod tables;
mod turn;
mod write;
mod write_back;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use crate::format::{CompressionType, Header, L2Format, Version};
pub use bitmaps::ImageFile;
pub use request::{Allocation, Fill, FillSource, Mapping, MappingKind, Step};

use allocator::Allocator;
use cache::Cache;
use features::Modifying;
use frees::Frees;
use range_lock::{RangeLock, Ticket};
use tables::L1;
use turn::Turns;

/// How an image is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Whether it may be changed. Opening itself never writes.
    pub writable: bool,
    /// Most bytes of L2 tables in memory; at least eight slices of at most 4 KiB.
    pub l2_cache_bytes: u64,
    /// Whether there is a backing to show through; `None`: if the header names one.
    pub has_backing: Option<bool>,
    /// Whether the container is told of clusters that became free.
    pub discard_freed: bool,
    /// The internal snapshot that is shown instead of the image, by id or name; not to be written.
    pub snapshot: Option<Vec<u8>>,
    /// Whether refcounts are written when the image is closed only, and until then it is marked as dirty;
    /// `None`: if the header says so.
    pub lazy_refcounts: Option<bool>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            writable: false,
            l2_cache_bytes: 32 << 20,
            has_backing: None,
            discard_freed: true,
            snapshot: None,
            lazy_refcounts: None,
        }
    }
}

/// What an image says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Bytes of the virtual disk.
    pub size_bytes: u64,
    /// Bytes of a cluster.
    pub cluster_bytes: u64,
    /// Bytes of the smallest part that is mapped by itself: a cluster, or a subcluster.
    pub unit_bytes: u64,
    /// Of the format.
    pub version: Version,
    /// Bits of a reference count.
    pub refcount_bits: u32,
    /// Of compressed clusters.
    pub compression: CompressionType,
    /// Whether L2 entries have subclusters.
    pub extended_l2: bool,
    /// The backing file's name as stored.
    pub backing_name: Option<Vec<u8>>,
    /// The backing file's format as stored.
    pub backing_format: Option<Vec<u8>>,
    /// Whether a backing shows through: see [`OpenOptions::has_backing`].
    pub has_backing: bool,
    /// Whether guest data is in an external data file: host offsets of data are then offsets in that.
    pub external_data: bool,
    /// Whether that is a raw image by itself: zeros then have to be written there too.
    pub raw_external_data: bool,
    /// The external data file's name as stored.
    pub data_file_name: Option<Vec<u8>>,
    /// Whether refcounts have to be rebuilt before the image is changed.
    pub dirty: bool,
    /// Whether who wrote it last did not close it: clusters may have leaked, no more.
    pub left_open: bool,
    /// Whether metadata were found, now or before, to contradict themselves: it cannot be changed.
    pub corrupt: bool,
    /// Whether refcounts are written late.
    pub lazy_refcounts: bool,
    /// Feature bits as stored: incompatible, compatible, autoclear.
    pub features: [u64; 3],
    /// Internal snapshots.
    pub snapshots: u32,
    /// Entries of the bitmap directory, if it is consistent.
    pub bitmaps: u32,
}

/// An image in use.
pub struct Image {
    format: L2Format,
    /// Logarithms of the entries of a table and of a slice.
    table_bits: u32,
    slice_bits: u32,
    size: AtomicU64,
    has_backing: AtomicBool,
    discard_freed: bool,
    /// Bytes of the container when it was opened: it is never cut below that, as what counts as free there may
    /// be data that a repair would save.
    opened_bytes: u64,
    /// As the container has it.
    header: Mutex<Header>,
    /// Held by who changes the header.
    header_changes: RangeLock,
    /// The container's may be another: a change of it was cut short.
    header_in_doubt: AtomicBool,
    modifying: Modifying,
    l1: ArcSwap<L1>,
    /// Held by who makes the L2 table of an L1 entry.
    table_changes: RangeLock,
    cache: Cache,
    /// Held by who loads a slice.
    slice_loads: RangeLock,
    /// Held by who changes the mapping of guest clusters.
    clusters: RangeLock,
    allocator: Mutex<Allocator>,
    /// Held by who loads a refcount block.
    block_loads: RangeLock,
    frees: Frees,
    /// Held by who turns ready frees into free clusters.
    reclaims: RangeLock,
    turns: Turns,
    /// Held by who writes metadata.
    write_backs: RangeLock,
    /// Flushes begun and flushes done, so that one serves all that wait for it.
    flushes_begun: AtomicU64,
    flushes_done: AtomicU64,
    /// Of the last change of a slice or L1 entry.
    generation: AtomicU64,
}

/// A request in flight: while it lasts, no host cluster that it may have looked up is used for something
/// else. To be kept until all I/O that it issued has settled.
pub struct Turn<'i> {
    image: &'i Image,
    place: (usize, usize),
    /// Guest clusters of writes that were abandoned and may be in flight.
    abandoned: Mutex<Vec<Ticket>>,
}

impl Image {
    /// Begins a request.
    pub fn enter(&self) -> Turn<'_> {
        Turn { image: self, place: self.turns.enter(), abandoned: Mutex::default() }
    }

    /// What the image says of itself.
    pub fn info(&self) -> ImageInfo {
        use crate::format::header::features::BITMAPS;
        let header = self.header();
        let consistent_bitmaps = header.autoclear & BITMAPS != 0;
        ImageInfo {
            size_bytes: self.size_bytes(),
            cluster_bytes: self.format.cluster_size.bytes(),
            unit_bytes: self.format.unit_bytes(),
            version: header.version,
            refcount_bits: header.refcount_width.bits(),
            compression: header.compression,
            extended_l2: self.format.extended,
            backing_name: header.backing_name.clone(),
            backing_format: header.backing_format().map(<[u8]>::to_vec),
            has_backing: self.has_backing(),
            external_data: self.format.external_data,
            raw_external_data: header.has_raw_external_data(),
            data_file_name: header.data_file_name().map(<[u8]>::to_vec),
            dirty: self.modifying.was_dirty(),
            left_open: self.modifying.was_left_open(),
            corrupt: self.is_corrupt(),
            lazy_refcounts: self.modifying.has_lazy_refcounts(),
            features: [header.incompatible, header.compatible, header.autoclear],
            snapshots: header.snapshots,
            bitmaps: header.bitmaps().filter(|_| consistent_bitmaps).map_or(0, |b| b.bitmaps),
        }
    }

    /// Bytes of the virtual disk.
    pub fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Smallest part of the disk that [`Self::zero`] takes, bytes.
    pub fn zero_unit_bytes(&self) -> u64 {
        self.format.unit_bytes()
    }

    /// Bytes of a cluster.
    pub fn cluster_bytes(&self) -> u64 {
        self.format.cluster_size.bytes()
    }

    /// Whether a backing shows where nothing is allocated.
    pub fn has_backing(&self) -> bool {
        self.has_backing.load(Ordering::Acquire)
    }

    /// Says whether a backing shows where nothing is allocated. To be called with no request in flight.
    pub fn set_has_backing(&self, has_backing: bool) {
        self.has_backing.store(has_backing, Ordering::Release);
    }

    /// Whether [`Self::flush`] has metadata to write, or [`Self::close`] clusters to free.
    pub fn has_pending(&self) -> bool {
        self.cache.is_dirty()
            || self.l1.load().is_dirty()
            || !self.frees.is_empty()
            || !self.allocator().dirty_blocks().is_empty()
            || self.header_in_doubt.load(Ordering::Acquire)
    }

    fn header(&self) -> MutexGuard<'_, Header> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allocator(&self) -> MutexGuard<'_, Allocator> {
        self.allocator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image").field("size_bytes", &self.size_bytes()).finish_non_exhaustive()
    }
}

impl Turn<'_> {
    /// Holds guest clusters until the end of the request.
    fn keep(&self, ticket: Ticket) {
        self.abandoned.lock().unwrap_or_else(PoisonError::into_inner).push(ticket);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.image.turns.leave(self.place);
        let abandoned = self.abandoned.get_mut().unwrap_or_else(PoisonError::into_inner);
        for ticket in abandoned.drain(..) {
            self.image.clusters.release(ticket);
        }
    }
}
