//! What a node says of the image, or the file, that it shows: for reports.

use super::BackingName;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReport {
    /// Bytes of a cluster, if it has such.
    pub cluster_bytes: Option<u64>,
    /// Whether it counts its clusters late, and has not caught up.
    pub is_dirty: bool,
    /// Whether its bytes by-pass the page cache.
    pub is_direct: bool,
    /// The backing that it names, as it is stored, whether or not that is there.
    pub backing: Option<BackingName>,
    /// What is so of its kind alone.
    pub kind: ImageKind,
}

/// The kind of an image, with what is so of that alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// Bytes as they are.
    File,
    /// A qcow2 image.
    Qcow2(Qcow2Report),
}

/// What is so of qcow2 images (specification, header and its extensions).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Report {
    /// Whether it is of version 3: else it has none of the features below but compression.
    pub is_v3: bool,
    /// Whether compressed clusters are zstd's, not deflate's.
    pub is_zstd: bool,
    /// Bits of a reference count.
    pub refcount_bits: u32,
    /// Whether it allows reference counts to be written late.
    pub lazy_refcounts: bool,
    /// Whether it is marked as damaged.
    pub corrupt: bool,
    /// Whether clusters have subclusters.
    pub extended_l2: bool,
    /// The file beside it that holds its data, if one does.
    pub data_file: Option<DataFileReport>,
    /// The bitmaps that it keeps, as they were when the host used them last.
    pub bitmaps: Vec<KeptBitmap>,
}

/// An external data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFileReport {
    /// Its name as it is stored, if it is.
    pub name: Option<String>,
    /// Whether it is what the guest sees.
    pub is_raw: bool,
}

/// A bitmap as an image's directory has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptBitmap {
    /// Its name.
    pub name: String,
    /// Bytes that a bit stands for.
    pub granularity_bytes: u64,
    /// Whether it was not stored since it was taken into use.
    pub in_use: bool,
    /// Whether it records as soon as the image is opened for writing.
    pub auto: bool,
}

/// Discards that a node was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscardCounts {
    /// How many it has carried out.
    pub done: u64,
    /// How many it could not.
    pub failed: u64,
    /// Bytes of those that it has carried out.
    pub bytes: u64,
}
