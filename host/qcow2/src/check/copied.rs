//! The flags that say "refcount is one": a write in place trusts them.

use super::Scan;
use super::walk::L2Use;
use crate::error::Result;
use crate::format::{Cluster, HostOffset, L1Entry, L2Entry};
use crate::storage::Storage;
use crate::words::{Words, word_at};

/// The flag in entries of L1 and L2 tables.
const COPIED: u64 = 1 << 63;

impl<S: Storage> Scan<'_, S> {
    /// Compares the flags of the active tables with the refcounts, and corrects them if `repair`.
    pub(super) async fn check_copied(&mut self, repair: bool) -> Result<()> {
        if !self.active_l1_walked {
            return Ok(());
        }
        self.check_copied_l1(repair).await?;
        let tables: Vec<(u64, L2Use)> = self
            .l2_tables
            .iter()
            .filter(|(_, l2_use)| l2_use.active > 0 && l2_use.walked)
            .map(|(&cluster, &l2_use)| (cluster, l2_use))
            .collect();
        let mut table = vec![0; self.cluster.bytes() as usize];
        for (cluster, l2_use) in tables {
            let at = cluster << self.cluster.bits();
            self.storage.read(at, &mut table).await?;
            // A table that is also something else is not written.
            let repair = repair && self.references.get(cluster) == l2_use.total;
            if self.check_copied_l2(&mut table, l2_use.active, repair) {
                self.storage.write(at, &table).await?;
            }
        }
        Ok(())
    }

    async fn check_copied_l1(&mut self, repair: bool) -> Result<()> {
        let table = self.header.l1_offset;
        let mut words = Words::new(self.storage, table, self.header.l1_entries.into());
        while let Some((index, word)) = words.next_used().await? {
            let Ok(Some(l2)) = L1Entry(word).table(self.cluster) else { continue };
            let count = self.refcount(self.cluster.index_of(l2.0));
            if (count == 1) == (word & COPIED != 0) {
                continue;
            }
            if repair {
                self.fixed.corruptions += 1;
                let entry = (word ^ COPIED).to_be_bytes();
                self.storage.write(table.0 + index * 8, &entry).await?;
            } else {
                let text = || format!("L1 entry {index}: {word:#x} at refcount {count}");
                self.report.corruption(text);
            }
        }
        Ok(())
    }

    /// Whether the table was changed.
    fn check_copied_l2(&mut self, table: &mut [u8], active: u64, repair: bool) -> bool {
        let mut changed = false;
        for index in 0..self.format.table_entries() as usize {
            let at = index * self.format.entry_words();
            let descriptor = word_at(table, at);
            let bitmap = if self.format.extended { word_at(table, at + 1) } else { 0 };
            let Ok(Cluster::Standard(cluster)) = self.format.decode(L2Entry { descriptor, bitmap })
            else {
                continue;
            };
            let Some(HostOffset(host)) = cluster.host else { continue };
            // Nobody shares the clusters of a data file.
            let external = self.format.external_data;
            let count = if external { 1 } else { self.refcount(self.cluster.index_of(host)) };
            if (count == 1) == cluster.copied {
                continue;
            }
            if repair {
                self.fixed.corruptions += 1;
                table[at * 8..][..8].copy_from_slice(&(descriptor ^ COPIED).to_be_bytes());
                changed = true;
            } else {
                self.report.corruptions += active - 1;
                let text = || format!("L2 entry {descriptor:#x} at refcount {count}");
                self.report.corruption(text);
            }
        }
        changed
    }
}
