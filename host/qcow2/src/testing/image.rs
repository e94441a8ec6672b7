//! Blank images of any geometry.

use crate::format::header::features;
use crate::format::{
    ClusterSize, CompressionType, Header, HostOffset, L1Entry, RefcountWidth, Version,
};

/// What kind of image.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// Of the format.
    pub version: Version,
    /// Bits of an offset in a cluster.
    pub cluster_bits: u32,
    /// Of a reference count.
    pub refcount_bits: u32,
    /// Bytes of the disk.
    pub size_bytes: u64,
    /// Entries with subclusters.
    pub extended_l2: bool,
    /// Guest data elsewhere.
    pub external_data: bool,
    /// Backing file's name.
    pub backing_name: Option<Vec<u8>>,
    /// Refcounts written late.
    pub lazy_refcounts: bool,
}

impl Geometry {
    /// Version 3, 64 KiB, 16 bits.
    pub fn usual(size_bytes: u64) -> Self {
        Self {
            version: Version::V3,
            cluster_bits: 16,
            refcount_bits: 16,
            size_bytes,
            extended_l2: false,
            external_data: false,
            backing_name: None,
            lazy_refcounts: false,
        }
    }
}

/// An image without data: header, refcount table, one refcount block, L1 table.
///
/// # Panics
/// If the geometry is not possible, or so odd that one refcount block does not do.
pub fn blank_image(geometry: &Geometry) -> Vec<u8> {
    let cluster_size = ClusterSize::from_bits(geometry.cluster_bits).expect("9 to 21");
    let width = RefcountWidth::from_bits(geometry.refcount_bits).expect("a power of two to 64");
    let cluster = cluster_size.bytes();
    let mut incompatible = 0;
    if geometry.extended_l2 {
        incompatible |= features::EXTENDED_L2;
    }
    if geometry.external_data {
        incompatible |= features::EXTERNAL_DATA;
    }
    let mut header = Header {
        version: geometry.version,
        cluster_size,
        size_bytes: geometry.size_bytes,
        l1_entries: 0,
        l1_offset: HostOffset(3 * cluster),
        refcount_table_offset: HostOffset(cluster),
        refcount_table_clusters: 1,
        snapshots: 0,
        snapshots_offset: HostOffset(0),
        incompatible,
        compatible: if geometry.lazy_refcounts { features::LAZY_REFCOUNTS } else { 0 },
        autoclear: 0,
        refcount_width: width,
        compression: CompressionType::Deflate,
        unknown_fields: Vec::new(),
        extensions: Vec::new(),
        backing_name: geometry.backing_name.clone(),
    };
    header.l1_entries = header.l2_format().l1_entries_of(geometry.size_bytes) as u32;
    let l1_bytes = u64::from(header.l1_entries) * size_of::<L1Entry>() as u64;
    let used = 3 + cluster_size.clusters_of(l1_bytes);
    assert!(used <= width.block_entries(cluster_size), "one refcount block does not do");
    let mut image = header.encode().expect("a possible header");
    image.resize((used * cluster) as usize, 0);
    image[cluster as usize..][..8].copy_from_slice(&(2 * cluster).to_be_bytes());
    for index in 0..used {
        let block = &mut image[2 * cluster as usize..3 * cluster as usize];
        width.set(block, index as usize, 1).expect("one fits");
    }
    image
}
