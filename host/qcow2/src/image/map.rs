//! From guest ranges to where they are stored.

use std::sync::atomic::AtomicU64;

use super::tables::Slot;
use super::{Image, Mapping, MappingKind, Turn};
use crate::error::{Error, Result};
use crate::format::l2::SUBCLUSTERS;
use crate::format::{Cluster, HostOffset, StandardCluster};
use crate::storage::Storage;

impl Image {
    /// How the first part of a range is stored, if that is known without I/O. Takes no lock.
    pub fn map_cached(&self, _turn: &Turn<'_>, offset: u64, len: u64) -> Option<Mapping> {
        self.check_range(offset, len).ok()?;
        let slot = self.slot(offset);
        let within = self.format.cluster_size.offset_in(offset);
        let is_in_one_cluster = len <= self.format.cluster_size.bytes() - within;
        if let Some(mapping) = self.cache.read(slot.slice, |words, suspect| {
            if suspect {
                return None;
            }
            if is_in_one_cluster
                && let Some((host, _)) = self.format.plain_data(self.entry_at(words, slot.index))
            {
                let kind = MappingKind::Data(HostOffset(host.0 + within));
                return Some(Mapping { len, kind });
            }
            self.scan(words, slot, offset, len, false).ok()
        }) {
            return mapping;
        }
        self.map_without_table(slot, offset, len).ok()?
    }

    /// How the first part of a range is stored.
    ///
    /// # Errors
    /// `EINVAL` for a range that is empty or past the end; `Corrupt` for metadata that are not valid;
    /// those of the container.
    pub async fn map<S: Storage>(
        &self,
        _turn: &Turn<'_>,
        s: &S,
        offset: u64,
        len: u64,
    ) -> Result<Mapping> {
        let result = self.map_loading(s, offset, len).await;
        self.mark_if_corrupt(s, result).await
    }

    async fn map_loading<S: Storage>(&self, s: &S, offset: u64, len: u64) -> Result<Mapping> {
        self.check_range(offset, len)?;
        let slot = self.slot(offset);
        loop {
            let scan = |words: &[AtomicU64], suspect| self.scan(words, slot, offset, len, suspect);
            if let Some(mapping) = self.cache.read(slot.slice, scan) {
                return mapping;
            }
            if let Some(mapping) = self.map_without_table(slot, offset, len)? {
                return Ok(mapping);
            }
            self.load_slice(s, slot).await?;
        }
    }

    /// # Errors
    /// `EINVAL` for a range that is empty or past the end of the disk.
    pub(super) fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        let size = self.size_bytes();
        if len > 0 && offset.checked_add(len).is_some_and(|end| end <= size) {
            return Ok(());
        }
        let message = format!("{len} bytes at {offset}: not within the disk's {size} bytes");
        Err(Error::invalid(message))
    }

    /// The answer where there is no L2 table.
    fn map_without_table(&self, slot: Slot, offset: u64, len: u64) -> Result<Option<Mapping>> {
        if self.slice_offset(slot)?.is_some() {
            return Ok(None);
        }
        let span = self.format.table_span_bytes();
        let rest = (slot.l1_index + 1) * span - offset;
        Ok(Some(Mapping { len: len.min(rest), kind: MappingKind::Unallocated }))
    }

    /// The first part of a range, as far as the slice tells; checks entries one by one if asked to.
    fn scan(
        &self,
        words: &[AtomicU64],
        slot: Slot,
        offset: u64,
        len: u64,
        check: bool,
    ) -> Result<Mapping> {
        let cluster_bytes = self.format.cluster_size.bytes();
        let decode = |index: usize, guest: u64| {
            let entry = self.entry_at(words, index);
            if check { self.check_entry(guest, entry) } else { self.format.decode(entry) }
        };
        let within = self.format.cluster_size.offset_in(offset);
        let first = decode(slot.index, offset)?;
        let mut mapping = self.part(&first, within, len.min(cluster_bytes - within));
        if matches!(mapping.kind, MappingKind::Compressed(_)) {
            return Ok(mapping);
        }
        let entries = self.slice_entries() as usize;
        let mut reached = within + mapping.len;
        for index in slot.index + 1..entries {
            if mapping.len == len || !reached.is_multiple_of(cluster_bytes) {
                break;
            }
            let rest = (len - mapping.len).min(cluster_bytes);
            // An entry that is not valid is for whoever asks for it.
            let Ok(next) = decode(index, offset + mapping.len) else { break };
            let next = self.part(&next, 0, rest);
            if !continues(&mapping, &next) {
                break;
            }
            mapping.len += next.len;
            reached += next.len;
        }
        Ok(mapping)
    }

    /// The first part of a range in one cluster.
    fn part(&self, cluster: &Cluster, within: u64, len: u64) -> Mapping {
        let cluster = match cluster {
            Cluster::Standard(cluster) => cluster,
            Cluster::Compressed(data) => {
                return Mapping { len, kind: MappingKind::Compressed(*data) };
            }
        };
        if !self.format.extended {
            return Mapping { len, kind: kind_of(cluster, 0, within) };
        }
        let unit = self.format.subcluster_bytes();
        let first = (within / unit) as u32;
        let kind = kind_of(cluster, first, within);
        let same = |set: u32| (!(set >> first)).trailing_zeros();
        let units = match kind {
            MappingKind::Data(_) => same(cluster.data),
            MappingKind::Zero(_) => same(cluster.zero),
            _ => same(cluster.unallocated()),
        };
        let end = u64::from(first + units.min(SUBCLUSTERS - first)) * unit;
        Mapping { len: len.min(end - within), kind }
    }
}

/// How a byte of a subcluster is stored.
fn kind_of(cluster: &StandardCluster, subcluster: u32, within: u64) -> MappingKind {
    let bit = 1 << subcluster;
    let host = cluster.host.map(|host| HostOffset(host.0 + within));
    match host {
        Some(host) if cluster.data & bit != 0 => MappingKind::Data(host),
        _ if cluster.zero & bit != 0 => MappingKind::Zero(host),
        _ => MappingKind::Unallocated,
    }
}

/// Whether the second part goes on as the first one ends.
fn continues(first: &Mapping, next: &Mapping) -> bool {
    let follows = |a: HostOffset, b: HostOffset| a.0 + first.len == b.0;
    match (first.kind, next.kind) {
        (MappingKind::Data(a), MappingKind::Data(b)) => follows(a, b),
        (MappingKind::Zero(Some(a)), MappingKind::Zero(Some(b))) => follows(a, b),
        (MappingKind::Zero(None), MappingKind::Zero(None)) => true,
        (MappingKind::Unallocated, MappingKind::Unallocated) => true,
        _ => false,
    }
}
