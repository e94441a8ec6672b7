//! Opening: everything that is read is checked before it is used.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use arc_swap::ArcSwap;

use super::allocator::{Allocator, Outcome, Run};
use super::cache::Cache;
use super::features::Modifying;
use super::frees::Frees;
use super::range_lock::RangeLock;
use super::tables::{L1, words_of};
use super::turn::Turns;
use super::{Image, OpenOptions};
use crate::error::{Error, Result};
use crate::format::header::features;
use crate::format::{ClusterSize, Header, HostOffset, L1Entry, RefcountTableEntry};
use crate::header_io::read_header;
use crate::limits;
use crate::storage::Storage;

impl Image {
    /// Opens an image; reads its header, L1 table and, to be written, refcount table. Never writes.
    ///
    /// A dirty image, or a corrupt one, can be opened and read; changes are refused until it has been
    /// repaired (and opened again).
    ///
    /// # Errors
    /// `EINVAL` for what is no qcow2 image, `ENOTSUP` for features that are not known, by name; `Corrupt`
    /// for tables that contradict themselves, if it is to be written.
    pub async fn open<S: Storage>(s: &S, options: &OpenOptions) -> Result<Self> {
        let header = read_header(s).await?;
        let format = header.l2_format();
        let len_bytes = s.len_bytes().await?;
        let l1 = read_table(s, header.l1_offset.0, u64::from(header.l1_entries) * 8, len_bytes);
        let l1 = L1::new(header.l1_offset, words_of(&l1.await?));
        let allocator = open_allocator(s, &header, &l1, options.writable, len_bytes).await?;
        let corrupt = header.incompatible & features::CORRUPT != 0;
        let has_backing = options.has_backing.unwrap_or_else(|| header.backing_name.is_some());
        Ok(Self {
            format,
            size: AtomicU64::new(header.size_bytes),
            has_backing: AtomicBool::new(has_backing),
            discard_freed: options.discard_freed,
            header: Mutex::new(header),
            header_changes: RangeLock::default(),
            modifying: Modifying::new(options.writable, corrupt),
            l1: ArcSwap::from_pointee(l1),
            table_changes: RangeLock::default(),
            cache: Cache::new(options.l2_cache_bytes, format.cluster_size.bytes()),
            slice_loads: RangeLock::default(),
            clusters: RangeLock::default(),
            allocator: Mutex::new(allocator),
            block_loads: RangeLock::default(),
            frees: Frees::default(),
            reclaims: RangeLock::default(),
            turns: Turns::default(),
            write_backs: RangeLock::default(),
            flushes_begun: AtomicU64::new(0),
            flushes_done: AtomicU64::new(0),
            generation: AtomicU64::new(0),
        })
    }
}

/// Reads a table that has to lie in the container, but for its last cluster's end; its length has been
/// checked against a limit.
async fn read_table<S: Storage>(s: &S, offset: u64, len: u64, container: u64) -> Result<Vec<u8>> {
    let end = container.saturating_add(limits::CLUSTER_MAX_BYTES);
    if offset.checked_add(len).is_none_or(|table_end| len > 0 && table_end > end) {
        return Err(Error::corrupt(format!(
            "the table at {offset:#x} lies past the container's end"
        )));
    }
    let mut bytes = vec![0; len as usize];
    s.read(offset, &mut bytes).await?;
    Ok(bytes)
}

/// The allocator; without refcounts if nothing is to be written.
async fn open_allocator<S: Storage>(
    s: &S,
    header: &Header,
    l1: &L1,
    writable: bool,
    len_bytes: u64,
) -> Result<Allocator> {
    let cluster_size = header.cluster_size;
    let offset = header.refcount_table_offset.0;
    let table_bytes = u64::from(header.refcount_table_clusters) << cluster_size.bits();
    let table = if writable {
        words_of(&read_table(s, offset, table_bytes, len_bytes).await?).collect()
    } else {
        Vec::new()
    };
    let blocks = table.clone();
    let mut allocator =
        Allocator::new(cluster_size, header.refcount_width, offset, table, len_bytes);
    let mut protect = |what: &str, offset: u64, len: u64| {
        let run = Run::of_bytes(cluster_size, offset, len);
        if allocator.is_metadata(&run) {
            let message = format!("the {what} at {offset:#x} overlaps other metadata");
            return Err(Error::corrupt(message));
        }
        allocator.protect(&run);
        Ok(())
    };
    protect("header", 0, 1)?;
    protect("L1 table", header.l1_offset.0, u64::from(header.l1_entries) * 8)?;
    protect("refcount table", offset, table_bytes)?;
    if !writable {
        return Ok(allocator);
    }
    for entry in blocks {
        if let Some(HostOffset(offset)) = RefcountTableEntry(entry).block(cluster_size)? {
            protect("refcount block", offset, 1)?;
        }
    }
    for entry in l1.values() {
        if let Some(HostOffset(offset)) = L1Entry(entry).table(cluster_size)? {
            protect("L2 table", offset, 1)?;
        }
    }
    if let Some(end_bytes) = s.end_bytes() {
        allocator.limit_to(end_bytes);
        find_used_end(s, &mut allocator, cluster_size).await?;
    }
    Ok(allocator)
}

/// In a container that cannot grow, room for tables is found behind the last cluster in use.
async fn find_used_end<S: Storage>(
    s: &S,
    allocator: &mut Allocator,
    cluster_size: ClusterSize,
) -> Result<()> {
    while let Outcome::NeedsBlock(index) = allocator.used_end() {
        let Some(offset) = allocator.block_offset(index)? else { break };
        let mut bytes = vec![0; cluster_size.bytes() as usize];
        s.read(offset.0, &mut bytes).await?;
        allocator.insert_block(index, bytes);
    }
    Ok(())
}
