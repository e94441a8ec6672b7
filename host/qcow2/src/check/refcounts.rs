//! What the refcount blocks say, compared with the uses, and repaired in place.

use super::counts::clusters_of_both;
use super::{Repair, Scan};
use crate::error::Result;
use crate::format::HostOffset;
use crate::storage::Storage;

impl<S: Storage> Scan<'_, S> {
    /// The refcount that the image has for a cluster now.
    pub(super) fn refcount(&self, cluster: u64) -> u64 {
        if self.rebuilt { self.references.get(cluster) } else { self.found.get(cluster) }
    }

    /// Reads all refcounts, also of clusters behind the container's end: a crash may have kept the count of a
    /// cluster and lost the write that would have made the container longer.
    pub(super) async fn read_refcounts(&mut self) -> Result<()> {
        let (width, entries) = (self.width, self.width.block_entries(self.cluster));
        let mut block = vec![0; self.cluster.bytes() as usize];
        for (&index, &HostOffset(at)) in &self.blocks {
            let first = index.saturating_mul(entries);
            self.storage.read(at, &mut block).await?;
            for entry in 0..entries {
                let count = width.get(&block, entry as usize);
                if count > 0 {
                    self.found.set(first + entry, count, &mut self.budget)?;
                }
            }
        }
        Ok(())
    }

    /// Counts leaks and clusters with more uses than their refcount says, and finds the last cluster.
    pub(super) fn compare(&mut self) {
        let mut clusters = 0;
        for cluster in clusters_of_both(&self.found, &self.references) {
            let (found, uses) = (self.found.get(cluster), self.references.get(cluster));
            if (found > 0 || uses > 0) && cluster < self.file_clusters {
                clusters = cluster + 1;
            }
            if found > uses {
                self.report.leaks += 1;
                let text = || format!("cluster {cluster}: refcount {found}, {uses} uses: leaked");
                self.report.note(text);
            } else if found < uses {
                self.report
                    .corruption(|| format!("cluster {cluster}: refcount {found}, {uses} uses"));
            }
        }
        self.report.image_end_offset = clusters << self.cluster.bits();
    }

    /// Whether a used cluster has no place for its refcount, or the places contradict themselves.
    pub(super) fn needs_rebuild(&self) -> bool {
        let entries = self.width.block_entries(self.cluster);
        let without_block = |cluster: u64| {
            self.references.get(cluster) > 0 && !self.blocks.contains_key(&(cluster / entries))
        };
        let shared = |at: &HostOffset| self.references.get(self.cluster.index_of(at.0)) != 1;
        !self.refcounts_usable
            || self.blocks.values().any(shared)
            || clusters_of_both(&self.references, &self.references).any(without_block)
    }

    /// Writes the number of uses over wrong refcounts: smaller ones always, larger ones if asked.
    pub(super) async fn repair_in_place(&mut self, repair: Repair) -> Result<()> {
        let (width, entries) = (self.width, self.width.block_entries(self.cluster));
        let mut block = vec![0; self.cluster.bytes() as usize];
        for (&index, &HostOffset(at)) in &self.blocks {
            let first = index.saturating_mul(entries);
            // A block that is also something else is not written.
            let shared = self.references.get(self.cluster.index_of(at)) != 1;
            if shared {
                continue;
            }
            let mut changed = false;
            for entry in 0..entries {
                let cluster = first + entry;
                let (found, uses) = (self.found.get(cluster), self.references.get(cluster));
                let leak = found > uses && self.complete;
                let corrupt = found < uses && repair == Repair::All && uses <= width.max();
                if !leak && !corrupt {
                    continue;
                }
                if !changed {
                    self.storage.read(at, &mut block).await?;
                    changed = true;
                }
                width.set(&mut block, entry as usize, uses)?;
                self.found.set(cluster, uses, &mut self.budget)?;
                self.fixed.leaks += u64::from(leak);
                self.fixed.corruptions += u64::from(corrupt);
            }
            if changed {
                self.storage.write(at, &block).await?;
            }
        }
        Ok(())
    }
}
