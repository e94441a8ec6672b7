//! A longer or shorter virtual disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Image;
use super::allocator::Run;
use super::tables::{L1, bytes_of};
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::fields;
use crate::format::{Cluster, HostOffset, StandardCluster, Version};
use crate::limits;
use crate::storage::Storage;

impl Image {
    /// Makes the virtual disk so many bytes long, durably. No request may be in flight.
    ///
    /// What is cut is freed, after the new size is durable. What is added is unallocated, and the rest of the last cluster as it was: a
    /// caller that grows a disk first [extends](Self::extend) it, and zeroes what would show.
    ///
    /// # Errors
    /// `ENOSPC` for a disk that the format cannot describe; `ENOTSUP` with internal snapshots in version
    /// 2, which does not store their size; others as for [`Self::prepare_write`].
    pub async fn resize<S: Storage>(&self, s: &S, size_bytes: u64) -> Result<()> {
        let result = self.resize_disk(s, size_bytes).await;
        self.mark_if_corrupt(s, result).await
    }

    /// Lets requests reach a disk that is so many bytes long, and longer than before, while the container
    /// still tells the former size: so a crash never shows what a longer backing has behind it, or the last
    /// cluster, before that is zeroed. [`Self::resize`] to this size ends it, to the former size takes it
    /// back. No other request may be in flight.
    ///
    /// # Errors
    /// As for [`Self::resize`].
    pub async fn extend<S: Storage>(&self, s: &S, size_bytes: u64) -> Result<()> {
        let result = self.extend_disk(s, size_bytes).await;
        self.mark_if_corrupt(s, result).await
    }

    async fn extend_disk<S: Storage>(&self, s: &S, size_bytes: u64) -> Result<()> {
        let needed = self.check_size(size_bytes)?;
        self.begin_modifying(s).await?;
        self.make_room(s, size_bytes, needed).await?;
        self.size.fetch_max(size_bytes, Ordering::AcqRel);
        Ok(())
    }

    /// Lets the tables reach a new end of the disk, and empties them behind the old one: a shrink that a crash
    /// cut short has left mappings there.
    async fn make_room<S: Storage>(&self, s: &S, size_bytes: u64, entries: u64) -> Result<()> {
        let now = self.size_bytes();
        if size_bytes > now {
            self.deallocate_behind(s, self.cluster_end(now)).await?;
        }
        if entries > self.l1.load().len() {
            self.move_l1(s, entries).await?;
        }
        Ok(())
    }

    /// Takes away what a shrink that was cut short has left mapped behind the disk's end; `false`: there was nothing,
    /// and nothing has changed. No request may be in flight.
    ///
    /// # Errors
    /// As for [`Self::resize`].
    pub async fn finish_shrink<S: Storage>(&self, s: &S) -> Result<bool> {
        let end = self.cluster_end(self.size_bytes());
        if !self.is_mapped_behind(s, end).await? {
            return Ok(false);
        }
        let freed = self.deallocate_behind(s, end).await;
        self.mark_if_corrupt(s, freed).await.map(|()| true)
    }

    async fn is_mapped_behind<S: Storage>(&self, s: &S, offset: u64) -> Result<bool> {
        let span = self.format.table_span_bytes();
        let end = self.l1.load().len() * span;
        let mut at = offset;
        while at < end {
            let slot = self.slot(at);
            if self.slice_offset(slot)?.is_none() {
                at = (slot.l1_index + 1) * span;
                continue;
            }
            let slice_end = self.slice_end(slot);
            let clusters = self.load_clusters(s, slot, at, slice_end - at).await?;
            let unallocated = Cluster::Standard(StandardCluster::UNALLOCATED);
            if clusters.iter().any(|cluster| *cluster != unallocated) {
                return Ok(true);
            }
            at = slice_end;
        }
        Ok(false)
    }

    fn cluster_end(&self, offset: u64) -> u64 {
        offset.next_multiple_of(self.format.cluster_size.bytes())
    }

    /// Entries that the L1 table needs for a disk of so many bytes, if the image can have that size.
    fn check_size(&self, size_bytes: u64) -> Result<u64> {
        self.check_modifiable()?;
        let needed = self.format.l1_entries_of(size_bytes);
        if size_bytes > i64::MAX as u64 || needed * 8 > limits::L1_MAX_BYTES {
            let message =
                format!("a disk of {size_bytes} bytes needs a longer L1 table than can be");
            return Err(Error::new(ErrorKind::NoSpace, message));
        }
        if self.header().snapshots > 0 && self.header().version < Version::V3 {
            let message = "an image of version 2 with internal snapshots cannot be resized";
            return Err(Error::new(ErrorKind::NotSupported, message));
        }
        Ok(needed)
    }

    async fn resize_disk<S: Storage>(&self, s: &S, size_bytes: u64) -> Result<()> {
        let needed = self.check_size(size_bytes)?;
        self.begin_modifying(s).await?;
        let old_size = self.size_bytes();
        self.make_room(s, size_bytes, needed).await?;
        self.write_back(s).await?;
        {
            let _changing = self.header_changes.lock(0..1).await;
            self.write_header_field(s, fields::SIZE, &size_bytes.to_be_bytes()).await?;
            self.header().size_bytes = size_bytes;
            self.size.store(size_bytes, Ordering::Release);
        }
        if size_bytes >= old_size {
            return Ok(());
        }
        // Only now that nobody sees it any more: until the size was told, a crash was to lose nothing. What
        // cannot be freed takes room until the disk grows again, and then is freed first.
        match self.deallocate_behind(s, self.cluster_end(size_bytes)).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => Err(error),
            Err(_) => {
                self.modifying.leave_leak();
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Makes the L1 table longer, at a new place.
    async fn move_l1<S: Storage>(&self, s: &S, entries: u64) -> Result<()> {
        self.write_back(s).await?;
        let cluster_size = self.format.cluster_size;
        let old = self.l1.load_full();
        let values = || old.values().chain(std::iter::repeat(0)).take(entries as usize);
        let reserved = self.allocate_contiguous(s, cluster_size.clusters_of(entries * 8)).await?;
        let offset = reserved.first() << cluster_size.bits();
        let mut bytes = bytes_of(values());
        bytes.resize(bytes.len().next_multiple_of(cluster_size.bytes() as usize), 0);
        s.write(offset, &bytes).await?;
        self.write_back(s).await?;
        let old_run = Run::of_bytes(cluster_size, old.offset.0, old.len() * 8);
        {
            let _changing = self.header_changes.lock(0..1).await;
            let mut header = self.header().clone();
            header.l1_offset = HostOffset(offset);
            header.l1_entries = entries as u32;
            // From here on the new table may be what the container names: nobody else gets its place.
            let run = reserved.keep();
            let named = self.write_header_field(s, fields::L1, &header.l1_field()).await;
            if let Err(error) = named {
                self.modifying.leave_leak();
                return Err(error);
            }
            *self.header() = header;
            self.l1.store(Arc::new(L1::new(HostOffset(offset), values())));
            let mut allocator = self.allocator();
            allocator.protect(&run);
            allocator.unprotect(&old_run);
        }
        self.frees.retire(&self.turns, old_run);
        Ok(())
    }
}
