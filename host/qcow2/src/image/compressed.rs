//! Room for compressed clusters, several in a host cluster.

use super::allocator::Run;
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
    /// # Errors
    /// `EINVAL` for what is no cluster of the disk, for data that are not shorter than a cluster, and with
    /// an external data file; others as for [`Self::prepare_write`].
    pub async fn prepare_compressed_write<'t, S: Storage>(
        &self,
        turn: &'t Turn<'_>,
        s: &S,
        offset: u64,
        len_bytes: u64,
    ) -> Result<Allocation<'t>> {
        let result = self.prepare_compressed(turn, s, offset, len_bytes).await;
        self.mark_if_corrupt(s, result).await
    }

    async fn prepare_compressed<'t, S: Storage>(
        &self,
        turn: &'t Turn<'_>,
        s: &S,
        offset: u64,
        len_bytes: u64,
    ) -> Result<Allocation<'t>> {
        let cluster_size = self.format.cluster_size;
        self.check_range(offset, 1)?;
        let fits = cluster_size.is_aligned(offset)
            && (1..cluster_size.bytes()).contains(&len_bytes)
            && !self.format.external_data;
        if !fits {
            let message = format!("{len_bytes} bytes for the cluster at {offset}: cannot be");
            return Err(Error::invalid(message));
        }
        self.begin_modifying(s).await?;
        let slot = self.slot(offset);
        let guard = self.clusters.lock(self.clusters_of(offset, 1)).await;
        let old = self.load_clusters(s, slot, offset, 1).await?;
        let host = self.with_blocks(s, |allocator| allocator.allocate_bytes(len_bytes)).await?;
        let reserved = Reserved::new(self, Run::new(cluster_size.index_of(host), 1));
        let data = CompressedData { host: HostOffset(host), len_bytes };
        self.format.encode(&Cluster::Compressed(data))?;
        let freed = old.iter().filter_map(|old| self.host_clusters(old)).collect();
        let clusters = vec![Cluster::Compressed(data)];
        Ok(Allocation {
            turn,
            offset,
            len: len_bytes,
            host: HostOffset(host),
            fills: Vec::new(),
            reads_zero: false,
            change: Change { first: offset, clusters, freed },
            reserved: Some(reserved.keep()),
            ticket: guard.into_ticket(),
        })
    }
}
