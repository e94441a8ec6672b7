//! Room for compressed clusters, several in a host cluster.
//!
//! Each has its blocks for itself. A write that is torn, or fails, may leave anything in the blocks that it touches,
//! and those who are beside it there are other guest clusters, which nobody takes for changed. So only who makes an image
//! as a whole packs them byte by byte, as QEMU always does.

use super::allocator::{Allocator, Run};
use super::refcounts::Reserved;
use super::request::Change;
use super::{Allocation, Image, Turn};
use crate::error::{Error, Result};
use crate::format::{Cluster, CompressedData, HostOffset};
use crate::storage::Storage;

impl Image {
    /// Room for one cluster compressed to `len_bytes`, which are then to be written at
    /// [`Allocation::host`], without fills; then [`Self::commit`]. It takes the place of whatever the
    /// cluster at `offset` was, as one change: QEMU fails where something is allocated.
    ///
    /// A write that fails may spoil blocks of `block_bytes`, a power of two; nobody else has anything in those of
    /// [`Allocation::span`]. `None` if that are all blocks of a cluster, or lie too high for the format: the cluster is to
    /// be written as it is then.
    ///
    /// # Errors
    /// `EINVAL` for what is no cluster of the disk, for data that are not shorter than a cluster, and with
    /// an external data file; others as for [`Self::prepare_write`].
    pub async fn prepare_compressed_write<'t, S: Storage>(
        &self,
        turn: &'t Turn<'_>,
        s: &S,
        offset: u64,
        len_bytes: u64,
        block_bytes: u64,
    ) -> Result<Option<Allocation<'t>>> {
        let result = self.prepare_compressed(turn, s, offset, len_bytes, block_bytes).await;
        self.mark_if_corrupt(s, result).await
    }

    async fn prepare_compressed<'t, S: Storage>(
        &self,
        turn: &'t Turn<'_>,
        s: &S,
        offset: u64,
        len_bytes: u64,
        block_bytes: u64,
    ) -> Result<Option<Allocation<'t>>> {
        let cluster_size = self.format.cluster_size;
        self.check_range(offset, 1)?;
        let fits = cluster_size.is_aligned(offset)
            && (1..cluster_size.bytes()).contains(&len_bytes)
            && block_bytes.is_power_of_two()
            && !self.format.external_data;
        if !fits {
            let message = format!(
                "{len_bytes} bytes for the cluster at {offset}: compressed data take the place of a whole cluster \
                 of an image without data file, and are shorter"
            );
            return Err(Error::invalid(message));
        }
        let block_bytes = block_bytes.min(cluster_size.bytes());
        let spare = len_bytes.next_multiple_of(block_bytes) - len_bytes;
        if len_bytes + spare == cluster_size.bytes() {
            return Ok(None);
        }
        self.begin_modifying(s).await?;
        let slot = self.slot(offset);
        let guard = self.clusters.lock(self.clusters_of(offset, 1)).await;
        let old = self.load_clusters(s, slot, offset, 1).await?;
        let find = |allocator: &mut Allocator| allocator.allocate_bytes(len_bytes, block_bytes);
        let host = self.with_blocks(s, find).await?;
        let reserved = Reserved::new(self, Run::new(cluster_size.index_of(host), 1));
        let data = CompressedData { host: HostOffset(host), len_bytes };
        if self.format.encode(&Cluster::Compressed(data)).is_err() {
            return Ok(None);
        }
        let freed = old.iter().filter_map(|old| self.host_clusters(old)).collect();
        let clusters = vec![Cluster::Compressed(data)];
        Ok(Some(Allocation {
            turn,
            offset,
            len: len_bytes,
            spare,
            host: HostOffset(host),
            fills: Vec::new(),
            reads_zero: false,
            change: Change { first: offset, clusters, freed },
            reserved: Some(reserved.keep()),
            ticket: guard.into_ticket(),
        }))
    }
}
