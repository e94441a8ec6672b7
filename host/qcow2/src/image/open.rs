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
use crate::error::{Error, ErrorKind, Result};
use crate::format::snapshot::Snapshot;
use crate::format::{ClusterSize, Header, HostOffset, L1Entry, RefcountTableEntry};
use crate::header_io::read_header;
use crate::limits;
use crate::snapshot_table;
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
        let (l1_offset, l1_entries, size_bytes) = match &options.snapshot {
            None => (header.l1_offset, header.l1_entries, header.size_bytes),
            Some(_) if options.writable => {
                return Err(Error::invalid("a snapshot of an image cannot be written"));
            }
            Some(name) => {
                let snapshot = find_snapshot(s, &header, name).await?;
                let size_bytes = snapshot.virtual_size.unwrap_or(header.size_bytes);
                check_snapshot(&snapshot, &header, size_bytes)?;
                (snapshot.l1_table, snapshot.l1_entries, size_bytes)
            }
        };
        let l1 = read_table(s, l1_offset.0, u64::from(l1_entries) * 8, len_bytes).await?;
        let l1 = L1::new(l1_offset, words_of(&l1));
        let allocator = open_allocator(s, &header, &l1, options.writable, len_bytes).await?;
        let modifying = Modifying::of(&header, options)?;
        let has_backing = options.has_backing.unwrap_or_else(|| header.backing_name.is_some());
        let cache = Cache::new(options.l2_cache_bytes, format.cluster_size.bytes());
        let slice_entries = (cache.slice_words() / format.entry_words()) as u64;
        Ok(Self {
            format,
            table_bits: format.table_entries().trailing_zeros(),
            slice_bits: slice_entries.trailing_zeros(),
            size: AtomicU64::new(size_bytes),
            has_backing: AtomicBool::new(has_backing),
            discard_freed: options.discard_freed,
            opened_bytes: len_bytes,
            header: Mutex::new(header),
            header_changes: RangeLock::default(),
            header_in_doubt: AtomicBool::new(false),
            modifying,
            l1: ArcSwap::from_pointee(l1),
            table_changes: RangeLock::default(),
            cache,
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

/// The snapshot of this id, else of this name.
async fn find_snapshot<S: Storage>(s: &S, header: &Header, wanted: &[u8]) -> Result<Snapshot> {
    let mut snapshots = snapshot_table::load(s, header).await?.snapshots;
    let by_id = snapshots.iter().position(|snapshot| snapshot.id == wanted);
    let found = by_id.or_else(|| snapshots.iter().position(|snapshot| snapshot.name == wanted));
    let Some(found) = found else {
        let wanted = String::from_utf8_lossy(wanted);
        let message = format!("the image has no snapshot '{wanted}'");
        return Err(Error::new(ErrorKind::NotFound, message));
    };
    Ok(snapshots.swap_remove(found))
}

fn check_snapshot(snapshot: &Snapshot, header: &Header, size_bytes: u64) -> Result<()> {
    let fits = size_bytes <= i64::MAX as u64
        && u64::from(snapshot.l1_entries) * 8 <= limits::L1_MAX_BYTES
        && header.l2_format().l1_entries_of(size_bytes) <= u64::from(snapshot.l1_entries)
        && header.cluster_size.is_aligned(snapshot.l1_table.0);
    if fits {
        return Ok(());
    }
    let name = snapshot.name_lossy();
    Err(Error::corrupt(format!("snapshot '{name}': its L1 table cannot be right")))
}

/// Reads a table that has to lie in the container, but for its last cluster's end; its length has been
/// checked against a limit.
pub(super) async fn read_table<S: Storage>(
    s: &S,
    offset: u64,
    len: u64,
    container: u64,
) -> Result<Vec<u8>> {
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
pub(super) async fn open_allocator<S: Storage>(
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
    if header.snapshots > 0 {
        let table = snapshot_table::load(s, header).await?;
        protect("snapshot table", header.snapshots_offset.0, table.len_bytes)?;
        for snapshot in &table.snapshots {
            let len_bytes = u64::from(snapshot.l1_entries) * 8;
            protect("L1 table of a snapshot", snapshot.l1_table.0, len_bytes)?;
        }
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
