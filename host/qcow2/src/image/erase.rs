//! Zeroing, discarding, deallocating: changes of the mapping alone.

use std::ops::Range;

use super::Image;
use super::allocator::Run;
use crate::error::{Error, Result};
use crate::format::{Cluster, StandardCluster};
use crate::storage::Storage;

/// What becomes of a cluster, or some subclusters of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Erase {
    /// Reads as zeros.
    Zero {
        /// Its host cluster stays reserved.
        keep_allocated: bool,
    },
    /// Reads as zeros; whole clusters only, others are left.
    Discard,
    /// Shows what is below.
    Deallocate,
}

impl Image {
    /// Makes a range read as zeros, as far as the format can say it: gives what is left, ascending, where zeros have
    /// to be written (version 2 with a backing, parts of compressed clusters). It has to consist of whole units
    /// ([`Self::zero_unit_bytes`]), but may end at the disk's end. With `keep_allocated` host clusters stay reserved
    /// for what is written later. In a raw external data file the caller writes the zeros besides, before.
    ///
    /// # Errors
    /// As for [`Self::prepare_write`].
    pub async fn zero<S: Storage>(
        &self,
        s: &S,
        offset: u64,
        len: u64,
        keep_allocated: bool,
    ) -> Result<Vec<Range<u64>>> {
        self.check_units(offset, len, self.format.unit_bytes())?;
        let result = self.erase(s, offset, len, Erase::Zero { keep_allocated }).await;
        self.mark_if_corrupt(s, result).await
    }

    /// A guest's discard: frees the clusters that lie wholly in the range, which then read as zeros.
    /// Does nothing where a backing would show (version 2), and with a raw external data file, which the
    /// caller discards.
    ///
    /// # Errors
    /// As for [`Self::prepare_write`].
    pub async fn discard<S: Storage>(&self, s: &S, offset: u64, len: u64) -> Result<()> {
        self.check_range(offset, len)?;
        if self.header().has_raw_external_data() {
            return self.begin_modifying(s).await;
        }
        let result = self.erase(s, offset, len, Erase::Discard).await;
        self.mark_if_corrupt(s, result.map(drop)).await
    }

    /// Makes whole clusters unallocated, so that what is below shows; for those who know what shows.
    ///
    /// # Errors
    /// As for [`Self::prepare_write`]; `EINVAL` for parts of clusters.
    pub async fn deallocate<S: Storage>(&self, s: &S, offset: u64, len: u64) -> Result<()> {
        self.check_units(offset, len, self.format.cluster_size.bytes())?;
        let result = self.erase(s, offset, len, Erase::Deallocate).await;
        self.mark_if_corrupt(s, result.map(drop)).await
    }

    /// The units that lie in a range, as one: what [`Self::zero`] takes of it. Empty, and at the range's end, if there is
    /// none. The last unit of the disk counts as whole where the disk ends within it.
    pub fn whole_units(&self, offset: u64, len: u64) -> Range<u64> {
        self.whole(self.format.unit_bytes(), offset, len)
    }

    /// The clusters that lie in a range, as one: what [`Self::deallocate`] takes of it; as [`Self::whole_units`].
    pub fn whole_clusters(&self, offset: u64, len: u64) -> Range<u64> {
        self.whole(self.format.cluster_size.bytes(), offset, len)
    }

    fn whole(&self, unit: u64, offset: u64, len: u64) -> Range<u64> {
        let end = offset.saturating_add(len);
        let last = if end == self.size_bytes() { end } else { end / unit * unit };
        match offset.checked_next_multiple_of(unit) {
            Some(first) if first < last => first..last,
            _ => end..end,
        }
    }

    fn check_units(&self, offset: u64, len: u64, unit: u64) -> Result<()> {
        self.check_range(offset, len)?;
        let end = offset + len;
        let aligned = |at: u64| at.is_multiple_of(unit);
        if aligned(offset) && (aligned(end) || end == self.size_bytes()) {
            return Ok(());
        }
        Err(Error::invalid(format!("{len} bytes at {offset}: not in units of {unit} bytes")))
    }

    /// Gives what is left, which the format cannot say: at most two runs, or all as one.
    async fn erase<S: Storage>(
        &self,
        s: &S,
        offset: u64,
        len: u64,
        erase: Erase,
    ) -> Result<Vec<Range<u64>>> {
        self.begin_modifying(s).await?;
        let mut left = Vec::new();
        let end = offset + len;
        let mut offset = offset;
        while offset < end {
            let slot = self.slot(offset);
            let part_end = self.slice_end(slot).min(end);
            let nothing_there = self.slice_offset(slot)?.is_none();
            if nothing_there && (erase == Erase::Deallocate || !self.has_backing()) {
                let span = self.format.table_span_bytes();
                offset = ((slot.l1_index + 1) * span).min(end);
                continue;
            }
            self.erase_in_slice(s, offset..part_end, erase, &mut left).await?;
            self.bound_frees(s).await?;
            offset = part_end;
        }
        Ok(left)
    }

    /// Makes everything behind a cluster unallocated, the end of the disk notwithstanding.
    pub(super) async fn deallocate_behind<S: Storage>(&self, s: &S, offset: u64) -> Result<()> {
        let end = self.l1.load().len() * self.format.table_span_bytes();
        match offset < end {
            true => self.erase(s, offset, end - offset, Erase::Deallocate).await.map(drop),
            false => Ok(()),
        }
    }

    async fn erase_in_slice<S: Storage>(
        &self,
        s: &S,
        range: Range<u64>,
        erase: Erase,
        left: &mut Vec<Range<u64>>,
    ) -> Result<()> {
        let (offset, len) = (range.start, range.end - range.start);
        let slot = self.slot(offset);
        let cluster_bytes = self.format.cluster_size.bytes();
        let first = self.format.cluster_size.floor(offset);
        let _guard = self.clusters.lock(self.clusters_of(offset, len)).await;
        let old = self.load_clusters(s, slot, offset, len).await?;
        let mut entries = Vec::with_capacity(old.len());
        let mut freed: Vec<Run> = Vec::new();
        let mut changed = false;
        for (index, cluster) in (0..).zip(&old) {
            let guest = first + index * cluster_bytes;
            let touched = offset.max(guest)..range.end.min(guest + cluster_bytes);
            // What lies past the disk's end goes with the last cluster.
            let end = match touched.end == self.size_bytes() {
                true => cluster_bytes,
                false => touched.end - guest,
            };
            let new = self.erased(cluster, &(touched.start - guest..end), erase);
            let new = new.unwrap_or_else(|| {
                push_range(left, touched);
                *cluster
            });
            changed |= new != *cluster;
            let before = self.host_clusters(cluster);
            if before != self.host_clusters(&new) {
                push_run(&mut freed, before);
            }
            entries.push(self.format.encode(&new)?);
        }
        if changed {
            self.store_entries(s, first, &entries).await?;
            self.frees.push(freed);
        }
        Ok(())
    }

    /// What becomes of a cluster of which `part` is erased; `None` for zeros that the format cannot say.
    fn erased(&self, cluster: &Cluster, part: &Range<u64>, erase: Erase) -> Option<Cluster> {
        let whole = *part == (0..self.format.cluster_size.bytes());
        let below_shows = self.has_backing();
        let zero = if self.format.zero_flag { Some(StandardCluster::ZERO) } else { None };
        let unallocated = Cluster::Standard(StandardCluster::UNALLOCATED);
        match erase {
            Erase::Deallocate => Some(unallocated),
            Erase::Discard if !whole => Some(*cluster),
            Erase::Discard if !below_shows => Some(unallocated),
            Erase::Discard => Some(zero.map_or(*cluster, Cluster::Standard)),
            Erase::Zero { keep_allocated } => {
                let keeps = keep_allocated && self.format.zero_flag;
                if whole && !keeps && !below_shows {
                    return Some(unallocated);
                }
                match (cluster, zero) {
                    (Cluster::Standard(old), Some(_)) => {
                        Some(Cluster::Standard(self.zeroed(old, part, keep_allocated)))
                    }
                    (Cluster::Compressed(_), Some(zero)) if whole => Some(Cluster::Standard(zero)),
                    _ => None,
                }
            }
        }
    }

    fn zeroed(&self, old: &StandardCluster, part: &Range<u64>, keep: bool) -> StandardCluster {
        let touched = self.touched(part);
        let data = old.data & !touched;
        let zero = if self.has_backing() || old.host.is_some() && keep {
            old.zero | touched
        } else {
            // Without a backing what is not allocated reads as zeros by itself.
            old.zero | touched & old.data
        };
        let is_own = old.copied || self.format.external_data;
        let host = old.host.filter(|_| data != 0 || keep && is_own);
        StandardCluster { host, copied: host.is_some() && is_own, data, zero }
    }
}

/// Adds to the last run what follows it.
fn push_run(runs: &mut Vec<Run>, next: Option<Run>) {
    let Some(next) = next else { return };
    match runs.last_mut() {
        Some(last) if last.first + last.count == next.first => last.count += next.count,
        _ => runs.push(next),
    }
}

/// Adds to the last range what follows it.
fn push_range(ranges: &mut Vec<Range<u64>>, next: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == next.start => last.end = next.end,
        _ => ranges.push(next),
    }
}
