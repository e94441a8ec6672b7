//! New refcount table and blocks, from nothing but the uses.
//!
//! They are written behind everything else; the header then refers to them with one write of one sector.
//! A crash before it leaves the image as it was, with some clusters past its end that nobody refers to.

use std::collections::BTreeSet;

use super::Scan;
use super::counts::clusters_of_both;
use crate::error::{Error, ErrorKind, Result};
use crate::format::HostOffset;
use crate::format::header::fields;
use crate::limits::REFCOUNT_TABLE_MAX_BYTES;
use crate::storage::Storage;

impl<S: Storage> Scan<'_, S> {
    /// Makes all refcounts anew; those of the clusters of the old ones become zero.
    pub(super) async fn rebuild(&mut self) -> Result<()> {
        self.forget_old_refcounts()?;
        let first = self.file_clusters;
        let (indices, table_clusters) = self.plan(first)?;
        let blocks = indices.len() as u64;
        self.references.add(first, table_clusters + blocks, 1, &mut self.budget)?;
        self.file_clusters = first + table_clusters + blocks;

        let bits = self.cluster.bits();
        let block_at = |nth: u64| HostOffset((first + table_clusters + nth) << bits);
        let entries = self.width.block_entries(self.cluster);
        let mut table = vec![0; (table_clusters << bits) as usize];
        for (nth, &index) in indices.iter().enumerate() {
            let at = block_at(nth as u64);
            let mut block = vec![0; self.cluster.bytes() as usize];
            for entry in 0..entries {
                let uses = self.references.get(index * entries + entry);
                self.width.set(&mut block, entry as usize, uses)?;
            }
            self.storage.write(at.0, &block).await?;
            table[index as usize * 8..][..8].copy_from_slice(&at.0.to_be_bytes());
        }
        self.storage.write(first << bits, &table).await?;
        self.storage.flush().await?;

        let mut header = self.header.clone();
        header.refcount_table_offset = HostOffset(first << bits);
        header.refcount_table_clusters = table_clusters as u32;
        self.storage.write(fields::REFCOUNT_TABLE, &header.refcount_table_field()).await?;
        self.storage.flush().await
    }

    /// The old table and blocks are no uses of their clusters any more.
    fn forget_old_refcounts(&mut self) -> Result<()> {
        for region in self.regions.iter() {
            if matches!(region.what, "refcount table" | "refcount block") {
                let clusters = region.end - region.first;
                self.references.remove(region.first, clusters, &mut self.budget)?;
            }
        }
        Ok(())
    }

    /// Indices of the blocks that are needed, their own clusters from `first` on included, and the
    /// clusters of the table.
    fn plan(&mut self, first: u64) -> Result<(BTreeSet<u64>, u64)> {
        let entries = self.width.block_entries(self.cluster);
        let mut indices = BTreeSet::new();
        for cluster in clusters_of_both(&self.references, &self.references) {
            let uses = self.references.get(cluster);
            if uses > self.width.max() {
                let bits = self.width.bits();
                let message =
                    format!("cluster {cluster} has {uses} uses: too many for {bits} bits");
                return Err(Error::corrupt(message));
            }
            if uses > 0 && indices.insert(cluster / entries) {
                self.budget.take_entry()?;
            }
        }
        let mut table_clusters = 1;
        loop {
            let end = first + table_clusters + indices.len() as u64;
            let before = (indices.len(), table_clusters);
            indices.extend(first / entries..end.div_ceil(entries));
            let table_bytes = indices.last().map_or(0, |last| (last + 1) * 8);
            if table_bytes > REFCOUNT_TABLE_MAX_BYTES {
                let message = "the refcount table would be too large for this container";
                return Err(Error::new(ErrorKind::NoSpace, message));
            }
            table_clusters = self.cluster.clusters_of(table_bytes).max(table_clusters);
            if before == (indices.len(), table_clusters) {
                return Ok((indices, table_clusters));
            }
        }
    }
}
