//! Places of guest bytes that are not stored there.

use super::{Image, Turn};
use crate::error::Result;
use crate::format::{Cluster, HostOffset};
use crate::storage::Storage;

impl Image {
    /// The place that the container reserves for the first part of a range that [`Self::map`] calls
    /// unallocated, and the length of that part, bytes. Only subclusters have such places.
    ///
    /// # Errors
    /// As for [`Self::map`].
    pub async fn reserved<S: Storage>(
        &self,
        _turn: &Turn<'_>,
        s: &S,
        offset: u64,
        len: u64,
    ) -> Result<(u64, Option<HostOffset>)> {
        self.check_range(offset, len)?;
        if !self.format.extended {
            return Ok((len, None));
        }
        let slot = self.slot(offset);
        let len = len.min(self.slice_end(slot) - offset);
        let clusters = self.load_clusters(s, slot, offset, len).await?;
        let place = |cluster: &Cluster| match cluster {
            Cluster::Standard(cluster) => cluster.host,
            Cluster::Compressed(_) => None,
        };
        let (cluster_bytes, within) =
            (self.format.cluster_size.bytes(), self.format.cluster_size.offset_in(offset));
        Ok(match clusters.first().and_then(place) {
            Some(host) => (len.min(cluster_bytes - within), Some(HostOffset(host.0 + within))),
            None => {
                let without = clusters.iter().take_while(|it| place(it).is_none()).count() as u64;
                (len.min(without * cluster_bytes - within), None)
            }
        })
    }
}
