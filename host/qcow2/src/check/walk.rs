//! Who uses which cluster: everything that the header leads to, each table read once.

use super::Scan;
use super::regions::Region;
use crate::error::Result;
use crate::format::bitmap::{self, BitmapCluster};
use crate::format::header::features;
use crate::format::{
    Cluster, CompressedData, HostOffset, L1Entry, L2Entry, RefcountTableEntry, StandardCluster,
    Version,
};
use crate::snapshot_table;
use crate::storage::Storage;
use crate::words::{Words, word_at};

/// Bits 9 to 55 of a table entry: an offset, whatever the other bits say.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 62 of an L2 entry.
const COMPRESSED: u64 = 1 << 62;

/// How an L2 table is reached.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct L2Use {
    /// Entries of the active L1 table that refer to it.
    pub(super) active: u64,
    /// Entries of all L1 tables that refer to it.
    pub(super) total: u64,
    /// The first of them.
    pub(super) l1_index: u64,
    /// Whether its entries were read and counted.
    pub(super) walked: bool,
}

impl<S: Storage> Scan<'_, S> {
    /// Counts every use of every cluster.
    pub(super) async fn walk(&mut self) -> Result<()> {
        self.claim("header", HostOffset(0), self.cluster.bytes())?;
        let (l1, entries) = (self.header.l1_offset, self.header.l1_entries.into());
        self.walk_l1("active L1 table", l1, entries, true).await?;
        self.walk_snapshots().await?;
        self.walk_bitmaps().await?;
        self.walk_l2_tables().await?;
        // Last, so that in a conflict it is they that give way: they can be made anew.
        self.walk_refcount_table().await
    }

    /// Takes a range for a table or the like; `false` if it must not be read as one.
    fn claim(&mut self, what: &'static str, offset: HostOffset, len_bytes: u64) -> Result<bool> {
        if len_bytes == 0 {
            return Ok(false);
        }
        let (at, first) = (offset.0, self.cluster.index_of(offset.0));
        let end = at.checked_add(len_bytes).map(|end| self.cluster.clusters_of(end));
        let Some(end) = end.filter(|&end| end <= self.file_clusters) else {
            self.incomplete(|| format!("{what} at {at:#x}, {len_bytes} bytes: past the end"));
            return Ok(false);
        };
        if !self.cluster.is_aligned(at) {
            self.incomplete(|| format!("{what} at {at:#x} does not start at a cluster"));
            return Ok(false);
        }
        self.budget.take_entry()?;
        if let Err(taken) = self.regions.claim(Region { first, end, what }) {
            self.incomplete(|| format!("{what} at {at:#x} overlaps the {}", taken.what));
            return Ok(false);
        }
        self.references.add(first, end - first, 1, &mut self.budget)?;
        Ok(true)
    }

    /// A corruption that hides uses of clusters.
    fn incomplete(&mut self, text: impl FnOnce() -> String) {
        self.complete = false;
        self.report.corruption(text);
    }

    async fn walk_l1(
        &mut self,
        what: &'static str,
        table: HostOffset,
        entries: u64,
        active: bool,
    ) -> Result<()> {
        if !self.claim(what, table, entries * 8)? {
            return Ok(());
        }
        self.active_l1_walked |= active;
        let mut words = Words::new(self.storage, table, entries);
        while let Some((index, word)) = words.next_used().await? {
            let l2 = match L1Entry(word).table(self.cluster) {
                Ok(None) => continue,
                Ok(Some(l2)) => l2,
                Err(error) => {
                    self.incomplete(|| format!("{what}, entry {index}: {error}"));
                    continue;
                }
            };
            let cluster = self.cluster.index_of(l2.0);
            if cluster >= self.file_clusters {
                let at = l2.0;
                self.incomplete(|| {
                    format!("{what}, entry {index}: L2 table at {at:#x}, past the end")
                });
                continue;
            }
            if !self.l2_tables.contains_key(&cluster) {
                self.budget.take_entry()?;
            }
            let first = L2Use { l1_index: index, ..L2Use::default() };
            let l2_use = self.l2_tables.entry(cluster).or_insert(first);
            l2_use.total += 1;
            l2_use.active += u64::from(active);
        }
        Ok(())
    }

    async fn walk_snapshots(&mut self) -> Result<()> {
        let table = match snapshot_table::load(self.storage, self.header).await {
            Ok(table) => table,
            Err(error) if error.kind() == crate::ErrorKind::Corrupt => {
                self.incomplete(|| format!("snapshot table: {error}"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.claim("snapshot table", self.header.snapshots_offset, table.len_bytes)?;
        for snapshot in &table.snapshots {
            if self.header.version >= Version::V3 && !snapshot.is_complete() {
                let name = snapshot.name_lossy();
                self.report.corruption(|| format!("snapshot '{name}' does not tell its size"));
            }
            let entries = snapshot.l1_entries.into();
            self.walk_l1("snapshot's L1 table", snapshot.l1_table, entries, false).await?;
        }
        Ok(())
    }

    /// The bitmaps, unless the header says that they are out of date: then nothing may follow them.
    async fn walk_bitmaps(&mut self) -> Result<()> {
        let consistent = self.header.autoclear & features::BITMAPS != 0;
        let Some(extension) = self.header.bitmaps().filter(|_| consistent) else { return Ok(()) };
        let offset = HostOffset(extension.directory_offset);
        let len = extension.directory_len_bytes;
        if len > crate::limits::BITMAP_DIRECTORY_MAX_BYTES {
            self.incomplete(|| format!("bitmap directory of {len} bytes"));
            return Ok(());
        }
        if !self.claim("bitmap directory", offset, len)? {
            return Ok(());
        }
        self.budget.take(len * 2)?;
        let mut bytes = vec![0; len as usize];
        self.storage.read(offset.0, &mut bytes).await?;
        match bitmap::parse_directory(&bytes, extension.bitmaps, self.cluster) {
            Ok(entries) => {
                for entry in &entries {
                    self.walk_bitmap_table(entry.table, entry.table_entries.into()).await?;
                }
            }
            Err(error) => self.incomplete(|| error.to_string()),
        }
        self.budget.give_back(len * 2);
        Ok(())
    }

    async fn walk_bitmap_table(&mut self, table: HostOffset, entries: u64) -> Result<()> {
        if !self.claim("bitmap table", table, entries * 8)? {
            return Ok(());
        }
        let mut words = Words::new(self.storage, table, entries);
        while let Some((_, word)) = words.next_used().await? {
            match BitmapCluster::decode(word, self.cluster) {
                Ok(BitmapCluster::Stored(host)) => {
                    self.claim("bitmap data", host, self.cluster.bytes())?;
                }
                Ok(BitmapCluster::Zeros | BitmapCluster::Ones) => {}
                Err(error) => self.incomplete(|| error.to_string()),
            }
        }
        Ok(())
    }

    async fn walk_refcount_table(&mut self) -> Result<()> {
        let clusters = u64::from(self.header.refcount_table_clusters);
        let table = self.header.refcount_table_offset;
        let complete = self.complete;
        let usable = self.claim("refcount table", table, clusters << self.cluster.bits())?;
        self.refcounts_usable = usable;
        let entries = (clusters << self.cluster.bits()) / 8;
        let mut words = Words::new(self.storage, table, if usable { entries } else { 0 });
        while let Some((index, word)) = words.next_used().await? {
            match RefcountTableEntry(word).block(self.cluster) {
                Ok(None) => {}
                Ok(Some(block)) => {
                    if self.claim("refcount block", block, self.cluster.bytes())? {
                        self.budget.take_entry()?;
                        self.blocks.insert(index, block);
                    } else {
                        self.refcounts_usable = false;
                    }
                }
                Err(error) => {
                    self.report.corruption(|| format!("refcount table, entry {index}: {error}"));
                    self.refcounts_usable = false;
                }
            }
        }
        // What is wrong with refcounts hides no use of a cluster: they can be made anew.
        self.complete = complete;
        Ok(())
    }

    async fn walk_l2_tables(&mut self) -> Result<()> {
        let mut tables = std::mem::take(&mut self.l2_tables);
        let mut table = vec![0; self.cluster.bytes() as usize];
        for (&cluster, l2_use) in &mut tables {
            self.references.add(cluster, 1, l2_use.total, &mut self.budget)?;
            if let Some(taken) = self.regions.overlapping(cluster, cluster + 1) {
                let at = cluster << self.cluster.bits();
                self.incomplete(|| format!("L2 table at {at:#x} overlaps the {}", taken.what));
                continue;
            }
            self.storage.read(cluster << self.cluster.bits(), &mut table).await?;
            self.walk_l2(&table, l2_use)?;
            l2_use.walked = true;
        }
        self.l2_tables = tables;
        Ok(())
    }

    pub(super) fn walk_l2(&mut self, table: &[u8], l2_use: &L2Use) -> Result<()> {
        let words = self.format.entry_words();
        let guest_first = l2_use.l1_index * self.format.table_entries();
        // Where the next guest cluster would be without fragmentation.
        let mut follows = None;
        for index in 0..self.format.table_entries() {
            let at = index as usize * words;
            let descriptor = word_at(table, at);
            let bitmap = if words == 2 { word_at(table, at + 1) } else { 0 };
            if (descriptor, bitmap) == (0, 0) {
                continue;
            }
            match self.format.decode(L2Entry { descriptor, bitmap }) {
                Ok(Cluster::Standard(StandardCluster { host: None, .. })) => {}
                Ok(Cluster::Standard(StandardCluster { host: Some(host), .. })) => {
                    self.report.allocated_clusters += l2_use.active;
                    if follows.is_some_and(|follows| follows != host.0) {
                        self.report.fragmented_clusters += l2_use.active;
                    }
                    follows = host.0.checked_add(self.cluster.bytes());
                    let guest = (guest_first + index) << self.cluster.bits();
                    self.use_data(host, guest, l2_use.total)?;
                }
                Ok(Cluster::Compressed(CompressedData { host, len_bytes })) => {
                    self.report.allocated_clusters += l2_use.active;
                    self.report.fragmented_clusters += l2_use.active;
                    self.report.compressed_clusters += l2_use.active;
                    if descriptor >> 63 != 0 {
                        let text = || format!("L2 entry {descriptor:#x}: compressed and copied");
                        self.report.corruption(text);
                    }
                    self.use_range(host, len_bytes, l2_use.total)?;
                }
                Err(error) => {
                    self.report.corruption(|| error.to_string());
                    let host = descriptor & OFFSET_MASK;
                    // Nobody else may be given what the entry may have meant.
                    let cluster = self.cluster.index_of(host);
                    let meant = descriptor & COMPRESSED == 0 && host != 0;
                    if meant && !self.format.external_data && cluster < self.file_clusters {
                        self.references.add(cluster, 1, l2_use.total, &mut self.budget)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn use_data(&mut self, host: HostOffset, guest: u64, count: u64) -> Result<()> {
        if !self.format.external_data {
            return self.use_range(host, self.cluster.bytes(), count);
        }
        if host.0 != guest {
            let at = host.0;
            let text = || format!("data file: guest offset {guest:#x} is mapped to {at:#x}");
            self.report.corruption(text);
        }
        Ok(())
    }

    fn use_range(&mut self, host: HostOffset, len_bytes: u64, count: u64) -> Result<()> {
        let first = self.cluster.index_of(host.0);
        let end = self.cluster.clusters_of(host.0.saturating_add(len_bytes));
        if end > self.file_clusters {
            let at = host.0;
            self.report.corruption(|| format!("data at {at:#x}, {len_bytes} bytes: past the end"));
        }
        let end = end.min(self.file_clusters);
        self.references.add(first, end.saturating_sub(first), count, &mut self.budget)
    }

    /// Finds tables that share clusters with data or with each other, where refcounts do not tell.
    pub(super) fn find_overlaps(&mut self) {
        for region in self.regions.iter() {
            for cluster in region.first..region.end {
                let uses = self.references.get(cluster);
                if uses > 1 && self.found.get(cluster) >= uses {
                    let what = region.what;
                    self.report
                        .corruption(|| format!("cluster {cluster}: {what}, and in other use"));
                }
            }
        }
        for (&cluster, l2_use) in &self.l2_tables {
            let uses = self.references.get(cluster);
            if l2_use.walked && uses > l2_use.total && self.found.get(cluster) >= uses {
                self.report.corruption(|| format!("cluster {cluster}: L2 table, and in other use"));
            }
        }
    }
}
