//! Writes: room for them, and the mapping once they have been written.

use std::ops::Range;
use std::sync::atomic::AtomicU64;

use super::allocator::Run;
use super::frees::Parked;
use super::refcounts::Reserved;
use super::tables::Slot;
use super::{Allocation, Image, Step, Turn};
use crate::error::Result;
use crate::format::l2::{ALL_SUBCLUSTERS, SUBCLUSTERS};
use crate::format::{Cluster, HostOffset, L2Entry, StandardCluster};
use crate::limits;
use crate::storage::Storage;

/// How a write reaches a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// All that it touches is data, the host cluster is its own.
    InPlace(HostOffset),
    /// The host cluster is its own, but not all that it touches is data.
    Own(HostOffset),
    /// It takes a new host cluster.
    New,
}

impl Image {
    /// Where the first part of a write may be written in place, and how long it is, if that is known
    /// without I/O. Takes no lock.
    pub fn prepare_write_cached(
        &self,
        _turn: &Turn<'_>,
        offset: u64,
        len: u64,
    ) -> Option<(HostOffset, u64)> {
        if !self.modifying.has_begun() || self.check_range(offset, len).is_err() {
            return None;
        }
        let slot = self.slot(offset);
        let within = self.format.cluster_size.offset_in(offset);
        let is_in_one_cluster = len <= self.format.cluster_size.bytes() - within;
        let find = |words: &[AtomicU64], suspect: bool| {
            if is_in_one_cluster
                && !suspect
                && let Some((host, true)) = self.format.plain_data(self.entry_at(words, slot.index))
            {
                return Some((HostOffset(host.0 + within), len));
            }
            let end = if suspect { slot.index } else { self.slice_entries() as usize };
            let entries = slot.index..end;
            let clusters = entries.map_while(|i| self.format.decode(self.entry_at(words, i)).ok());
            self.in_place(offset, len.min(self.slice_end(slot) - offset), clusters)
        };
        self.cache.read(slot.slice, find)?
    }

    /// What to do for the first part of a write. Waits for those who change the mapping of the same
    /// clusters.
    ///
    /// # Errors
    /// `EINVAL` for a range that is empty or past the end; `EROFS` for an image that may not be changed;
    /// `ENOSPC` at the format's limits; `Corrupt` for metadata that contradict themselves, which marks
    /// the image; those of the container.
    pub async fn prepare_write<'t, S: Storage>(
        &self,
        turn: &'t Turn<'_>,
        s: &S,
        offset: u64,
        len: u64,
    ) -> Result<Step<'t>> {
        let result = self.prepare(turn, s, offset, len).await;
        self.mark_if_corrupt(s, result).await
    }

    async fn prepare<'t, S: Storage>(
        &self,
        turn: &'t Turn<'_>,
        s: &S,
        offset: u64,
        len: u64,
    ) -> Result<Step<'t>> {
        self.check_range(offset, len)?;
        self.begin_modifying(s).await?;
        let slot = self.slot(offset);
        let len = len.min(self.slice_end(slot) - offset);
        let clusters = self.load_clusters(s, slot, offset, len).await?;
        if let Some((host, len)) = self.in_place(offset, len, clusters.into_iter()) {
            return Ok(Step::InPlace { host, len });
        }
        let guard = self.clusters.lock(self.clusters_of(offset, len)).await;
        // Whoever held them may have changed what is there.
        let clusters = self.load_clusters(s, slot, offset, len).await?;
        if let Some((host, len)) = self.in_place(offset, len, clusters.iter().copied()) {
            return Ok(Step::InPlace { host, len });
        }
        self.ensure_table(s, slot.l1_index).await?;
        let (way, count) = self.reach(offset, len, &clusters);
        let mut reserved = None;
        let mut clusters = &clusters[..count];
        let host = match way {
            Way::InPlace(host) | Way::Own(host) => host,
            Way::New if self.format.external_data => {
                HostOffset(self.format.cluster_size.floor(offset))
            }
            Way::New => {
                let found = self.allocate(s, count as u64).await?;
                clusters = &clusters[..found.count() as usize];
                let host = HostOffset(found.first() << self.format.cluster_size.bits());
                reserved = Some(found);
                host
            }
        };
        let plan = self.plan(offset, len, clusters, host, way == Way::New);
        let within = self.format.cluster_size.offset_in(offset);
        Ok(Step::Allocate(Allocation {
            turn,
            offset,
            len: plan.len,
            spare: 0,
            host: HostOffset(host.0 + within),
            fills: plan.fills,
            reads_zero: reserved.as_ref().is_some_and(|found| found.reads_zero),
            change: plan.change,
            reserved: reserved.map(Reserved::keep).into_iter().collect(),
            ticket: guard.into_ticket(),
        }))
    }

    /// Maps what has been written as the allocation said.
    ///
    /// # Errors
    /// As for [`Self::prepare_write`]; nothing is mapped then, and the allocation counts as dropped.
    pub async fn commit<S: Storage>(&self, s: &S, allocation: Allocation<'_>) -> Result<()> {
        let result = self.commit_change(s, allocation).await;
        self.mark_if_corrupt(s, result).await
    }

    async fn commit_change<S: Storage>(&self, s: &S, mut allocation: Allocation<'_>) -> Result<()> {
        let clusters = allocation.change.clusters.iter();
        let entries = clusters.map(|new| self.format.encode(new)).collect::<Result<Vec<_>>>()?;
        self.store_entries(s, allocation.change.first, &entries).await?;
        allocation.reserved.clear();
        self.frees.push(allocation.change.freed.drain(..));
        if let Some(ticket) = allocation.ticket.take() {
            self.clusters.release(ticket);
        }
        self.bound_frees(s).await
    }

    /// Frees clusters if too many wait for it, which takes that metadata is written back.
    pub(super) async fn bound_frees<S: Storage>(&self, s: &S) -> Result<()> {
        let clusters_max = limits::PENDING_FREES_MAX_BYTES >> self.format.cluster_size.bits();
        let is_much = |parked: Parked| {
            parked.runs >= limits::PENDING_FREES_MAX || parked.clusters >= clusters_max
        };
        let (pending, retired) = self.frees.parked();
        if is_much(pending) {
            self.write_back(s).await?;
        } else if !is_much(retired) {
            return Ok(());
        }
        self.reclaim(s).await
    }

    /// Changes entries of one slice, from that of a guest offset on. The caller holds the clusters.
    pub(super) async fn store_entries<S: Storage>(
        &self,
        s: &S,
        offset: u64,
        entries: &[L2Entry],
    ) -> Result<()> {
        let slot = self.slot(offset);
        loop {
            self.ensure_table(s, slot.l1_index).await?;
            self.load_slice(s, slot).await?;
            self.check_modifiable()?;
            let store = |words: &[AtomicU64]| {
                for (index, &entry) in entries.iter().enumerate() {
                    self.set_entry(words, slot.index + index, entry);
                }
            };
            if self.cache.change(slot.slice, self.next_generation(), store).is_some() {
                return Ok(());
            }
        }
    }

    /// Guest offset at which a slice ends.
    pub(super) fn slice_end(&self, slot: Slot) -> u64 {
        ((slot.slice + 1) * self.slice_entries()) << self.format.cluster_size.bits()
    }

    /// Indices of the clusters of a range.
    pub(super) fn clusters_of(&self, offset: u64, len: u64) -> Range<u64> {
        let cluster_size = self.format.cluster_size;
        cluster_size.index_of(offset)..cluster_size.clusters_of(offset + len)
    }

    /// What the clusters of a range are, which lies in one slice; checked.
    pub(super) async fn load_clusters<S: Storage>(
        &self,
        s: &S,
        slot: Slot,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Cluster>> {
        let clusters = self.clusters_of(offset, len);
        let bits = self.format.cluster_size.bits();
        loop {
            let read = |words: &[AtomicU64], suspect: bool| {
                let entry = |(index, cluster): (usize, u64)| {
                    let entry = self.entry_at(words, slot.index + index);
                    let guest = cluster << bits;
                    if suspect { self.check_entry(guest, entry) } else { self.format.decode(entry) }
                };
                clusters.clone().enumerate().map(|(i, c)| entry((i, c))).collect()
            };
            if let Some(found) = self.cache.read(slot.slice, read) {
                return found;
            }
            if !self.load_slice(s, slot).await? {
                let count = (clusters.end - clusters.start) as usize;
                return Ok(vec![Cluster::Standard(StandardCluster::UNALLOCATED); count]);
            }
        }
    }

    /// How much of a write can be done in place, from its start on.
    fn in_place(
        &self,
        offset: u64,
        len: u64,
        mut clusters: impl Iterator<Item = Cluster>,
    ) -> Option<(HostOffset, u64)> {
        let cluster_bytes = self.format.cluster_size.bytes();
        let within = self.format.cluster_size.offset_in(offset);
        let mut start = None;
        let mut done = 0;
        while done < len {
            let Some(cluster) = clusters.next() else { break };
            let from = if done == 0 { within } else { 0 };
            let part = from..cluster_bytes.min(from + len - done);
            let Way::InPlace(host) = self.way(&cluster, &part) else { break };
            let host = host.0 + from;
            let expected = *start.get_or_insert(host) + done;
            if host != expected {
                break;
            }
            done += part.end - part.start;
        }
        start.map(|host| (HostOffset(host), done))
    }

    /// How the first cluster of a write is reached, and how many are reached in the same way.
    fn reach(&self, offset: u64, len: u64, clusters: &[Cluster]) -> (Way, usize) {
        let cluster_bytes = self.format.cluster_size.bytes();
        let within = self.format.cluster_size.offset_in(offset);
        let way_of = |index: usize| {
            let from = if index == 0 { within } else { 0 };
            let end = within + len - index as u64 * cluster_bytes;
            self.way(&clusters[index], &(from..end.min(cluster_bytes)))
        };
        let first = way_of(0);
        let same = |index: &usize| match (first, way_of(*index)) {
            (Way::New, Way::New) => true,
            (Way::Own(first), Way::Own(host)) => first.0 + *index as u64 * cluster_bytes == host.0,
            _ => false,
        };
        (first, 1 + (1..clusters.len()).take_while(same).count())
    }

    /// How a write to part of a cluster reaches it.
    fn way(&self, cluster: &Cluster, part: &Range<u64>) -> Way {
        let Cluster::Standard(cluster) = cluster else { return Way::New };
        // What an external data file holds is never shared.
        match cluster.host {
            Some(host) if cluster.copied || self.format.external_data => {
                let touched = self.touched(part);
                if cluster.data & touched == touched { Way::InPlace(host) } else { Way::Own(host) }
            }
            _ => Way::New,
        }
    }

    /// Subclusters that part of a cluster touches; all without extended L2 entries.
    pub(super) fn touched(&self, part: &Range<u64>) -> u32 {
        if !self.format.extended {
            return ALL_SUBCLUSTERS;
        }
        let unit = self.format.subcluster_bytes();
        let first = (part.start / unit) as u32;
        let end = part.end.div_ceil(unit) as u32;
        let count = end.saturating_sub(first).clamp(1, SUBCLUSTERS);
        (ALL_SUBCLUSTERS >> (SUBCLUSTERS - count)) << first
    }

    /// Host clusters to which a mapping refers, as far as they are counted.
    pub(super) fn host_clusters(&self, cluster: &Cluster) -> Option<Run> {
        let cluster_size = self.format.cluster_size;
        match cluster {
            Cluster::Compressed(data) => {
                Some(Run::of_bytes(cluster_size, data.host.0, data.len_bytes))
            }
            Cluster::Standard(_) if self.format.external_data => None,
            Cluster::Standard(standard) => {
                standard.host.map(|host| Run::new(cluster_size.index_of(host.0), 1))
            }
        }
    }
}
