//! Uses to come: an image that is in order, and refcounts that are raised before anything refers.

use std::collections::BTreeMap;

use super::counts::clusters_of_both;
use super::walk::L2Use;
use super::{CheckOptions, Repair, Scan, set_features};
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::features;
use crate::format::{Cluster, Header, HostOffset, L1Entry, L2Entry, Version};
use crate::storage::Storage;
use crate::words::{Words, word_at};

/// Bit 63 of an entry of an L1 or L2 table.
const COPIED: u64 = 1 << 63;

impl<'a, S: Storage> Scan<'a, S> {
    /// Counts all uses of an image that must be in order, but for leaks.
    ///
    /// # Errors
    /// `EIO` for a damaged image, which has to be repaired first; those of [`super::check`].
    pub(crate) async fn of_sound_image(
        storage: &'a S,
        header: &'a Header,
        options: &CheckOptions,
    ) -> Result<Self> {
        let mut scan = Self::new(storage, header, options).await?;
        scan.analyse().await?;
        scan.check_copied(false).await?;
        if scan.report.is_damaged() || !scan.complete {
            let first = scan.report.findings.first().map_or("", |finding| finding);
            let message = format!("the image is damaged ({first}): repair it first");
            return Err(Error::corrupt(message));
        }
        Ok(scan)
    }

    /// Takes clusters in a row that are free, or behind the end, for a use to come.
    pub(crate) fn place(&mut self, clusters: u64) -> Result<HostOffset> {
        let mut first = 1;
        for cluster in clusters_of_both(&self.references, &self.found) {
            if first + clusters <= cluster {
                break;
            }
            if self.references.get(cluster) > 0 || self.found.get(cluster) > 0 {
                first = first.max(cluster + 1);
            }
        }
        self.references.add(first, clusters, 1, &mut self.budget)?;
        self.file_clusters = self.file_clusters.max(first + clusters);
        Ok(HostOffset(first << self.cluster.bits()))
    }

    /// Adds one more use of everything that an L1 table leads to.
    pub(crate) async fn use_all_of(&mut self, l1: HostOffset, entries: u64) -> Result<()> {
        let mut table = vec![0; self.cluster.bytes() as usize];
        for (cluster, count) in self.l2_tables_of(l1, entries).await? {
            self.references.add(cluster, 1, count, &mut self.budget)?;
            self.storage.read(cluster << self.cluster.bits(), &mut table).await?;
            let l2_use = L2Use { total: count, walked: true, ..L2Use::default() };
            self.walk_l2(&table, &l2_use)?;
        }
        Ok(())
    }

    /// Cluster indices of the L2 tables of an L1 table, and how often each is there.
    async fn l2_tables_of(&mut self, l1: HostOffset, entries: u64) -> Result<BTreeMap<u64, u64>> {
        let mut tables = BTreeMap::new();
        let mut words = Words::new(self.storage, l1, entries);
        while let Some((_, word)) = words.next_used().await? {
            if let Some(table) = L1Entry(word).table(self.cluster)? {
                self.budget.take_entry()?;
                *tables.entry(self.cluster.index_of(table.0)).or_insert(0) += 1;
            }
        }
        Ok(tables)
    }

    /// Whether refcounts are wide enough for all uses, those to come included.
    ///
    /// # Errors
    /// `ENOSPC` if one is not.
    pub(crate) fn check_width(&self) -> Result<()> {
        let (max, bits) = (self.width.max(), self.width.bits());
        let mut used = clusters_of_both(&self.references, &self.references);
        if let Some(cluster) = used.find(|&cluster| self.references.get(cluster) > max) {
            let message = format!("cluster {cluster} would have more uses than {bits} bits count");
            return Err(Error::new(ErrorKind::NoSpace, message));
        }
        Ok(())
    }

    /// Makes durable that the refcounts are those of all uses, those to come included, and that flags do
    /// not say otherwise. What the image is like does not change, but that it is marked as dirty; until
    /// it refers to the new clusters, they are leaks.
    pub(crate) async fn settle(&mut self) -> Result<()> {
        if self.header.version >= Version::V3 {
            let dirty = self.header.incompatible | features::DIRTY;
            let autoclear = self.header.autoclear & features::AUTOCLEAR_KNOWN;
            set_features(self.storage, self.header, dirty, autoclear).await?;
        }
        self.repair(Repair::All).await
    }

    /// Clears the flags in the L2 tables of an L1 table whose clusters have other users as well.
    pub(crate) async fn clear_copied(&mut self, l1: HostOffset, entries: u64) -> Result<()> {
        let mut table = vec![0; self.cluster.bytes() as usize];
        let words = self.format.entry_words();
        for cluster in self.l2_tables_of(l1, entries).await?.into_keys() {
            let at = cluster << self.cluster.bits();
            self.storage.read(at, &mut table).await?;
            let mut changed = false;
            for word in (0..table.len() / 8).step_by(words) {
                let descriptor = word_at(&table, word);
                let entry = L2Entry { descriptor, bitmap: 0 };
                let standard = matches!(self.format.decode(entry), Ok(Cluster::Standard(_)));
                if descriptor & COPIED != 0 && standard {
                    table[word * 8..][..8].copy_from_slice(&(descriptor ^ COPIED).to_be_bytes());
                    changed = true;
                }
            }
            if changed {
                self.storage.write(at, &table).await?;
            }
        }
        Ok(())
    }
}
