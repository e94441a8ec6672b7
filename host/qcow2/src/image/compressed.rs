//! Room for compressed clusters, several in a host cluster.
//!
//! A write that is torn, or fails, may leave anything in the blocks that it touches, and what is in them beside it
//! are other guest clusters, which nobody takes for changed. So those of one write lie byte by byte behind each other,
//! as they fail together, and each write has its blocks for itself. Only who makes an image as a whole packs all of it
//! byte by byte, as QEMU always does.

use super::allocator::{Allocator, Run};
use super::refcounts::Reserved;
use super::request::Change;
use super::{Allocation, Image, Turn};
use crate::error::{Error, Result};
use crate::format::{Cluster, CompressedData, HostOffset};
use crate::storage::Storage;

impl Image {
    /// Room for the clusters from `offset` on, each compressed to so many of `lens` bytes: for
    /// [`Allocation::clusters`] of them, from the first on. They are to be written at [`Allocation::host`], each right
    /// behind the one before, without fills; then [`Self::commit`]. They take the place of whatever the
    /// clusters were, as one change: QEMU fails where something is allocated.
    ///
    /// A write that fails may spoil blocks of `block_bytes`, a power of two; nobody else has anything in those of
    /// [`Allocation::span`]. `None` if the first would take all blocks of a cluster, or lie too high for the format: it is
    /// to be written as it is then.
    ///
    /// # Errors
    /// `EINVAL` for what are no clusters of the disk, for data that are not shorter than a cluster, and with
    /// an external data file; others as for [`Self::prepare_write`].
    pub async fn prepare_compressed_write<'t, S: Storage>(
        &self,
        turn: &'t Turn<'_>,
        s: &S,
        offset: u64,
        lens: &[u64],
        block_bytes: u64,
    ) -> Result<Option<Allocation<'t>>> {
        let result = self.prepare_compressed(turn, s, offset, lens, block_bytes).await;
        self.mark_if_corrupt(s, result).await
    }

    async fn prepare_compressed<'t, S: Storage>(
        &self,
        turn: &'t Turn<'_>,
        s: &S,
        offset: u64,
        lens: &[u64],
        block_bytes: u64,
    ) -> Result<Option<Allocation<'t>>> {
        let cluster_size = self.format.cluster_size;
        self.check_compressed(offset, lens, block_bytes)?;
        let block_bytes = block_bytes.min(cluster_size.bytes());
        let slot = self.slot(offset);
        // As many as one change can map, and one cluster can hold.
        let in_slice = cluster_size.index_of(self.slice_end(slot) - offset) as usize;
        let lens = &lens[..lens.len().min(in_slice)];
        let lens = &lens[..self.allocator().fitting(lens)];
        let takes_all = |len: &u64| len.next_multiple_of(block_bytes) == cluster_size.bytes();
        if lens.len() < 2 && lens.first().is_none_or(takes_all) {
            return Ok(None);
        }
        self.begin_modifying(s).await?;
        let len = cluster_size.bytes() * lens.len() as u64;
        let guard = self.clusters.lock(self.clusters_of(offset, len)).await;
        let old = self.load_clusters(s, slot, offset, len).await?;
        let find = |allocator: &mut Allocator| allocator.allocate_bytes(lens, block_bytes);
        let (host, parts) = self.with_blocks(s, find).await?;
        let run = Run::new(cluster_size.index_of(host), 1);
        let reserved: Vec<_> = (0..parts).map(|_| Reserved::new(self, run.clone())).collect();
        let mut end = host;
        let clusters: Vec<_> = lens[..parts]
            .iter()
            .map(|&len_bytes| {
                let data = CompressedData { host: HostOffset(end), len_bytes };
                end += len_bytes;
                Cluster::Compressed(data)
            })
            .collect();
        if clusters.iter().any(|cluster| self.format.encode(cluster).is_err()) {
            return Ok(None);
        }
        let freed = old[..parts].iter().filter_map(|old| self.host_clusters(old)).collect();
        Ok(Some(Allocation {
            turn,
            offset,
            len: end - host,
            spare: end.next_multiple_of(block_bytes) - end,
            host: HostOffset(host),
            fills: Vec::new(),
            reads_zero: false,
            change: Change { first: offset, clusters, freed },
            reserved: reserved.into_iter().map(Reserved::keep).collect(),
            ticket: guard.into_ticket(),
        }))
    }

    fn check_compressed(&self, offset: u64, lens: &[u64], block_bytes: u64) -> Result<()> {
        let cluster_size = self.format.cluster_size;
        let before_last = cluster_size.bytes().checked_mul((lens.len() as u64).saturating_sub(1));
        let last = before_last.and_then(|len| offset.checked_add(len)).unwrap_or(u64::MAX);
        self.check_range(last, 1)?;
        let fits = cluster_size.is_aligned(offset)
            && !lens.is_empty()
            && lens.iter().all(|len| (1..cluster_size.bytes()).contains(len))
            && block_bytes.is_power_of_two()
            && !self.format.external_data;
        if fits {
            return Ok(());
        }
        let message = format!(
            "{} clusters at {offset}, compressed: such data take the place of whole clusters of an image without \
             data file, and are shorter",
            lens.len()
        );
        Err(Error::invalid(message))
    }
}
