//! Metadata to the container, in the one order that a crash cannot spoil.

use std::sync::atomic::Ordering;

use super::Image;
use super::allocator::DirtyTable;
use super::cache::DirtySlice;
use super::tables::{Slot, bytes_of};
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::fields;
use crate::storage::Storage;

/// Longest piece in which adjacent slices are written, bytes.
const WRITE_BYTES_MAX: usize = 1 << 20;

/// Whether refcounts are written with the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refcounts {
    Now,
    /// The image is marked as dirty.
    Later,
}

impl Image {
    /// Makes everything that was committed before durable. One that waits for another one's turn is
    /// served by the next, with all others that wait.
    ///
    /// # Errors
    /// Those of the container: what was not written stays to be written. `EROFS` once metadata were
    /// found to contradict themselves.
    pub async fn flush<S: Storage>(&self, s: &S) -> Result<()> {
        let result = self.flush_all(s).await;
        self.mark_if_corrupt(s, result).await
    }

    async fn flush_all<S: Storage>(&self, s: &S) -> Result<()> {
        if !self.modifying.is_writable() {
            return Ok(());
        }
        let begun_before = self.flushes_begun.load(Ordering::SeqCst);
        {
            let _writing = self.write_backs.lock(0..1).await;
            if self.flushes_done.load(Ordering::SeqCst) > begun_before {
                return Ok(());
            }
            let refcounts = match self.modifying.has_lazy_refcounts() {
                true => Refcounts::Later,
                false => Refcounts::Now,
            };
            self.write_all(s, refcounts).await?;
        }
        self.reclaim(s).await
    }

    /// Writes all that is dirty, to make room in a cache or before somebody relies on it.
    pub(super) async fn write_back<S: Storage>(&self, s: &S) -> Result<()> {
        let _writing = self.write_backs.lock(0..1).await;
        self.write_all(s, Refcounts::Now).await
    }

    /// Flushes, frees what no request uses any more, and cuts what is free at the container's end. No
    /// request may be in flight; the image can be used on, and has to be closed again then.
    ///
    /// # Errors
    /// As for [`Self::flush`].
    pub async fn close<S: Storage>(&self, s: &S) -> Result<()> {
        self.flush(s).await?;
        if !self.modifying.has_begun() {
            return Ok(());
        }
        let result = self.close_modified(s).await;
        self.mark_if_corrupt(s, result).await
    }

    async fn close_modified<S: Storage>(&self, s: &S) -> Result<()> {
        // The flush has freed clusters; their counts are not written yet.
        self.write_back(s).await?;
        let used_end = self.used_end(s).await?;
        let used_bytes = used_end << self.format.cluster_size.bits();
        let end = used_bytes.max(self.opened_bytes);
        if end < s.len_bytes().await? {
            s.set_len(end).await?;
        }
        s.flush().await?;
        self.end_modifying(s).await
    }

    /// The caller holds `write_backs`.
    async fn write_all<S: Storage>(&self, s: &S, refcounts: Refcounts) -> Result<()> {
        if self.is_corrupt() {
            let message = "the image is corrupt: nothing is written any more";
            return Err(Error::new(ErrorKind::ReadOnly, message));
        }
        self.settle_header(s).await?;
        let flush = self.flushes_begun.fetch_add(1, Ordering::SeqCst) + 1;
        // What is copied later may be newer, never older: frees were pushed after their change, a change
        // was made after its clusters had been counted, and a commit came after its data was written.
        let frees = self.frees.mark();
        let l1 = self.l1.load_full();
        let l1_entries = l1.copy_dirty();
        let slices = self.copy_dirty_slices()?;
        let blocks = match refcounts {
            Refcounts::Now => self.write_refcounts(s).await?,
            Refcounts::Later => Vec::new(),
        };
        s.flush().await?;
        for (index, generation) in blocks {
            self.allocator().block_written(index, generation);
        }
        if !slices.is_empty() || !l1_entries.is_empty() {
            self.write_slices(s, &slices).await?;
            for entry in &l1_entries {
                s.write(l1.offset.0 + entry.index * 8, &entry.value.to_be_bytes()).await?;
            }
            s.flush().await?;
        }
        for (_, slice) in &slices {
            self.cache.written(slice.number, slice.generation);
        }
        l1.written(&l1_entries);
        self.frees.durable(frees, &self.turns);
        self.flushes_done.store(flush, Ordering::SeqCst);
        Ok(())
    }

    /// Dirty slices with their places in the container.
    fn copy_dirty_slices(&self) -> Result<Vec<(u64, DirtySlice)>> {
        let mut slices = Vec::new();
        let per_table = self.format.table_entries() / self.slice_entries();
        for number in self.cache.dirty_numbers() {
            let slot = Slot { l1_index: number / per_table, slice: number, index: 0 };
            let Some(slice) = self.cache.copy_dirty(number) else { continue };
            let Some(offset) = self.slice_offset(slot)? else {
                return Err(Error::corrupt("a changed L2 slice has no table"));
            };
            slices.push((offset, slice));
        }
        Ok(slices)
    }

    /// Writes slices, adjacent ones in one piece.
    async fn write_slices<S: Storage>(&self, s: &S, slices: &[(u64, DirtySlice)]) -> Result<()> {
        let mut slices = slices.iter().peekable();
        while let Some((offset, slice)) = slices.next() {
            let mut bytes = bytes_of(slice.words.iter().copied());
            while let Some((_, next)) = slices.next_if(|(next_offset, _)| {
                bytes.len() < WRITE_BYTES_MAX && *next_offset == offset + bytes.len() as u64
            }) {
                bytes.extend(bytes_of(next.words.iter().copied()));
            }
            s.write(*offset, &bytes).await?;
        }
        Ok(())
    }

    /// Writes refcount blocks, then entries of the table that refer to new ones, then the header if the
    /// table has moved. Says which blocks, in which generation, are durable after the next sync.
    async fn write_refcounts<S: Storage>(&self, s: &S) -> Result<Vec<(usize, u64)>> {
        let (table, blocks) = {
            let allocator = self.allocator();
            (allocator.dirty_table(), allocator.dirty_blocks())
        };
        let mut written = Vec::with_capacity(blocks.len());
        for index in blocks {
            let Some(block) = self.allocator().copy_dirty(index) else { continue };
            s.write(block.offset, &block.bytes).await?;
            written.push((index, block.generation));
        }
        if let Some(table) = table {
            self.write_refcount_table(s, &table).await?;
        }
        Ok(written)
    }

    async fn write_refcount_table<S: Storage>(&self, s: &S, table: &DirtyTable) -> Result<()> {
        s.flush().await?;
        if !table.moved {
            for &(index, value) in &table.entries {
                s.write(table.offset + index as u64 * 8, &value.to_be_bytes()).await?;
            }
        } else {
            let bytes = bytes_of(table.entries.iter().map(|&(_, value)| value));
            s.write(table.offset, &bytes).await?;
            s.flush().await?;
            let _changing = self.header_changes.lock(0..1).await;
            let mut header = self.header().clone();
            header.refcount_table_offset.0 = table.offset;
            header.refcount_table_clusters = table.clusters;
            s.write(fields::REFCOUNT_TABLE, &header.refcount_table_field()).await?;
            // The old table is free once nothing on disk names it.
            s.flush().await?;
            *self.header() = header;
        }
        for old in self.allocator().table_written(table) {
            self.frees.retire(&self.turns, old);
        }
        Ok(())
    }
}
