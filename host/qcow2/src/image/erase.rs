//! Zeroing, discarding, deallocating: changes of the mapping alone.

use std::ops::Range;

use super::Image;
use super::allocator::Run;
use crate::error::{Error, ErrorKind, Result};
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
    /// Makes a range read as zeros. It has to consist of whole units ([`Self::zero_unit_bytes`]), but may
    /// end at the disk's end. With `keep_allocated` host clusters stay reserved for what is written
    /// later. In a raw external data file the caller writes the zeros besides, before.
    ///
    /// # Errors
    /// `ENOTSUP` where the format cannot say it (version 2 with a backing, a part of a compressed
    /// cluster): zeros have to be written; part of the range may be done. Others as for
    /// [`Self::prepare_write`].
    pub async fn zero<S: Storage>(
        &self,
        s: &S,
        offset: u64,
        len: u64,
        keep_allocated: bool,
    ) -> Result<()> {
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
        self.mark_if_corrupt(s, result).await
    }

    /// Makes whole clusters unallocated, so that what is below shows; for those who know what shows.
    ///
    /// # Errors
    /// As for [`Self::prepare_write`]; `EINVAL` for parts of clusters.
    pub async fn deallocate<S: Storage>(&self, s: &S, offset: u64, len: u64) -> Result<()> {
        self.check_units(offset, len, self.format.cluster_size.bytes())?;
        let result = self.erase(s, offset, len, Erase::Deallocate).await;
        self.mark_if_corrupt(s, result).await
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

    async fn erase<S: Storage>(&self, s: &S, offset: u64, len: u64, erase: Erase) -> Result<()> {
        self.begin_modifying(s).await?;
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
            self.erase_in_slice(s, offset, part_end - offset, erase).await?;
            self.bound_frees(s).await?;
            offset = part_end;
        }
        Ok(())
    }

    /// Makes everything behind a cluster unallocated, the end of the disk notwithstanding.
    pub(super) async fn deallocate_behind<S: Storage>(&self, s: &S, offset: u64) -> Result<()> {
        let end = self.l1.load().len() * self.format.table_span_bytes();
        match offset < end {
            true => self.erase(s, offset, end - offset, Erase::Deallocate).await,
            false => Ok(()),
        }
    }

    async fn erase_in_slice<S: Storage>(
        &self,
        s: &S,
        offset: u64,
        len: u64,
        erase: Erase,
    ) -> Result<()> {
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
            let end = (offset + len - guest).min(cluster_bytes);
            // What lies past the disk's end goes with the last cluster.
            let end = if offset + len == self.size_bytes() && end < cluster_bytes {
                cluster_bytes
            } else {
                end
            };
            let part = offset.max(guest) - guest..end;
            let new = self.erased(cluster, &part, erase)?;
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

    /// What becomes of a cluster of which `part` is erased.
    fn erased(&self, cluster: &Cluster, part: &Range<u64>, erase: Erase) -> Result<Cluster> {
        let whole = *part == (0..self.format.cluster_size.bytes());
        let below_shows = self.has_backing();
        let zero = if self.format.zero_flag { Some(StandardCluster::ZERO) } else { None };
        let unallocated = Cluster::Standard(StandardCluster::UNALLOCATED);
        match erase {
            Erase::Deallocate => Ok(unallocated),
            Erase::Discard if !whole => Ok(*cluster),
            Erase::Discard if !below_shows => Ok(unallocated),
            Erase::Discard => Ok(zero.map_or(*cluster, Cluster::Standard)),
            Erase::Zero { keep_allocated } => {
                let keeps = keep_allocated && self.format.zero_flag;
                if whole && !keeps && !below_shows {
                    return Ok(unallocated);
                }
                match (cluster, zero) {
                    (Cluster::Standard(old), Some(_)) => {
                        Ok(Cluster::Standard(self.zeroed(old, part, keep_allocated)))
                    }
                    (Cluster::Compressed(_), Some(zero)) if whole => Ok(Cluster::Standard(zero)),
                    _ => Err(cannot_say_zero()),
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

fn cannot_say_zero() -> Error {
    let message = "zeros cannot be mapped here: they have to be written";
    Error::new(ErrorKind::NotSupported, message)
}
