//! Where everything of a fresh image goes.

use super::options::CreateOptions;
use crate::error::{Error, Result};
use crate::format::l2::ALL_SUBCLUSTERS;
use crate::format::{
    Cluster, ClusterSize, HostOffset, L2Format, RefcountWidth, StandardCluster, Version,
};
use crate::limits::{L1_MAX_BYTES, REFCOUNT_TABLE_MAX_BYTES};

/// Past this offset the format cannot refer to clusters (56 bits).
const HOST_END: u64 = 1 << 56;

/// Counts of clusters, one kind after the other in this order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    format: L2Format,
    width: RefcountWidth,
    virtual_size: u64,
    /// Whether the data file is what the guest sees.
    raw: bool,
    refcount_table_clusters: u64,
    refcount_blocks: u64,
    l1_entries: u64,
    l2_tables: u64,
    /// In the container: none with an external data file.
    data_clusters: u64,
}

impl Plan {
    pub(super) fn new(options: &CreateOptions) -> Result<Self> {
        options.validate()?;
        let format = L2Format {
            cluster_size: options.cluster_size,
            extended: options.extended_l2,
            external_data: options.data_file.is_some(),
            zero_flag: options.version >= Version::V3,
        };
        let l1_entries = format.l1_entries_of(options.virtual_size);
        if l1_entries * 8 > L1_MAX_BYTES {
            let message = "size: too large for the L1 table; a larger cluster_size is needed";
            return Err(Error::invalid(message));
        }
        let data_clusters = format.cluster_size.clusters_of(options.virtual_size);
        let maps_all = options.maps_all();
        let mut plan = Self {
            format,
            width: options.refcount_width,
            virtual_size: options.virtual_size,
            raw: options.data_file.as_ref().is_some_and(|file| file.raw),
            refcount_table_clusters: 1,
            refcount_blocks: 1,
            l1_entries,
            l2_tables: if maps_all { l1_entries } else { 0 },
            data_clusters: if maps_all && !format.external_data { data_clusters } else { 0 },
        };
        plan.settle_refcounts()?;
        Ok(plan)
    }

    /// Blocks count themselves and the table: more of them until they cover everything.
    fn settle_refcounts(&mut self) -> Result<()> {
        let cluster = self.cluster();
        loop {
            let blocks = self.clusters().div_ceil(self.width.block_entries(cluster));
            let table_clusters = cluster.clusters_of(blocks * 8);
            if blocks * 8 > REFCOUNT_TABLE_MAX_BYTES || self.clusters() > HOST_END >> cluster.bits()
            {
                let message = "preallocation: too large for the refcount table; a larger \
                               cluster_size or smaller refcount_bits are needed";
                return Err(Error::invalid(message));
            }
            if (blocks, table_clusters) == (self.refcount_blocks, self.refcount_table_clusters) {
                return Ok(());
            }
            (self.refcount_blocks, self.refcount_table_clusters) = (blocks, table_clusters);
        }
    }

    pub(super) fn cluster(&self) -> ClusterSize {
        self.format.cluster_size
    }

    pub(super) fn width(&self) -> RefcountWidth {
        self.width
    }

    pub(super) fn refcount_blocks(&self) -> u64 {
        self.refcount_blocks
    }

    pub(super) fn refcount_table_clusters(&self) -> u64 {
        self.refcount_table_clusters
    }

    pub(super) fn l1_entries(&self) -> u64 {
        self.l1_entries
    }

    pub(super) fn l1_bytes(&self) -> u64 {
        self.l1_entries * 8
    }

    pub(super) fn l2_tables(&self) -> u64 {
        self.l2_tables
    }

    fn metadata_clusters(&self) -> u64 {
        let l1_clusters = self.cluster().clusters_of(self.l1_bytes());
        1 + self.refcount_table_clusters + self.refcount_blocks + l1_clusters + self.l2_tables
    }

    /// Clusters of the container that are used, all of them from its start.
    pub(super) fn clusters(&self) -> u64 {
        self.metadata_clusters() + self.data_clusters
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.clusters() << self.cluster().bits()
    }

    fn at(&self, cluster_index: u64) -> HostOffset {
        HostOffset(cluster_index << self.cluster().bits())
    }

    pub(super) fn refcount_table(&self) -> HostOffset {
        self.at(1)
    }

    pub(super) fn refcount_block(&self, index: u64) -> HostOffset {
        self.at(1 + self.refcount_table_clusters + index)
    }

    /// Nowhere if the disk is empty.
    pub(super) fn l1_table(&self) -> HostOffset {
        if self.l1_entries == 0 {
            return HostOffset(0);
        }
        self.at(1 + self.refcount_table_clusters + self.refcount_blocks)
    }

    pub(super) fn l2_table(&self, index: u64) -> HostOffset {
        self.at(self.metadata_clusters() - self.l2_tables + index)
    }

    /// The data in the container: start and bytes.
    pub(super) fn data(&self) -> Option<(HostOffset, u64)> {
        let len = self.data_clusters << self.cluster().bits();
        (len > 0).then_some((self.at(self.metadata_clusters()), len))
    }

    /// An L2 table that maps its whole span, as far as the disk goes. With subclusters the clusters are
    /// there, but none is in use yet, so that a backing shows; a raw data file shows from the start.
    pub(super) fn l2_bytes(&self, index: u64) -> Result<Vec<u8>> {
        let per_table = self.format.table_entries();
        let first = index * per_table;
        let clusters = self.cluster().clusters_of(self.virtual_size);
        let start = if self.format.external_data { 0 } else { self.metadata_clusters() };
        let data = if self.format.extended && !self.raw { 0 } else { ALL_SUBCLUSTERS };
        let mut bytes = Vec::with_capacity(self.cluster().bytes() as usize);
        for guest in first..clusters.min(first + per_table) {
            let host = Some(self.at(start + guest));
            let cluster = StandardCluster { host, copied: true, data, zero: 0 };
            let entry = self.format.encode(&Cluster::Standard(cluster))?;
            bytes.extend(entry.descriptor.to_be_bytes());
            if self.format.extended {
                bytes.extend(entry.bitmap.to_be_bytes());
            }
        }
        bytes.resize(self.cluster().bytes() as usize, 0);
        Ok(bytes)
    }
}
