//! The header of a fresh image.

use super::options::CreateOptions;
use super::plan::Plan;
use crate::error::{ErrorKind, Result};
use crate::format::extension::{Extension, FeatureName, FeatureSet};
use crate::format::header::features;
use crate::format::{CompressionType, Header, HostOffset, Version};

/// Names for readers that do not know a feature: number of its bit, name. QEMU's.
const NAMES: [(FeatureSet, u8, &str); 8] = [
    (FeatureSet::Incompatible, 0, "dirty bit"),
    (FeatureSet::Incompatible, 1, "corrupt bit"),
    (FeatureSet::Incompatible, 2, "external data file"),
    (FeatureSet::Incompatible, 3, "compression type"),
    (FeatureSet::Incompatible, 4, "extended L2 entries"),
    (FeatureSet::Compatible, 0, "lazy refcounts"),
    (FeatureSet::Autoclear, 0, "bitmaps"),
    (FeatureSet::Autoclear, 1, "raw external data"),
];

/// Bytes of the smallest cluster that has room for the names and for what else may come, as bitmaps or the
/// name of a backing file: QEMU's bound.
const NAMES_MIN_CLUSTER_BYTES: u64 = 4096;

/// The first cluster. The table of feature names is left out where it would leave no room.
pub(super) fn encode(plan: &Plan, options: &CreateOptions) -> Result<Vec<u8>> {
    let header = header(plan, options);
    let mut named = header.clone();
    if options.version >= Version::V3 && plan.cluster().bytes() >= NAMES_MIN_CLUSTER_BYTES {
        let names = NAMES.iter().map(|&(set, bit, name)| FeatureName::new(set, bit, name));
        named.extensions.push(Extension::FeatureNames(names.collect()));
    }
    let mut bytes = match named.encode() {
        Err(error) if error.kind() == ErrorKind::NoSpace => header.encode()?,
        other => other?,
    };
    bytes.resize(plan.cluster().bytes() as usize, 0);
    Ok(bytes)
}

fn header(plan: &Plan, options: &CreateOptions) -> Header {
    let bit = |feature: u64, wanted: bool| if wanted { feature } else { 0 };
    let raw = options.data_file.as_ref().is_some_and(|file| file.raw);
    let deflate = options.compression == CompressionType::Deflate;
    let mut extensions = Vec::new();
    let backing = options.backing.as_ref();
    if let Some(format) = backing.and_then(|backing| backing.format.as_ref()) {
        extensions.push(Extension::BackingFormat(format.clone().into_bytes()));
    }
    if let Some(name) = options.data_file.as_ref().and_then(|file| file.name.as_ref()) {
        extensions.push(Extension::DataFile(name.clone().into_bytes()));
    }
    Header {
        version: options.version,
        cluster_size: plan.cluster(),
        size_bytes: options.virtual_size,
        l1_entries: plan.l1_entries() as u32,
        l1_offset: plan.l1_table(),
        refcount_table_offset: plan.refcount_table(),
        refcount_table_clusters: plan.refcount_table_clusters() as u32,
        snapshots: 0,
        snapshots_offset: HostOffset(0),
        incompatible: bit(features::EXTERNAL_DATA, options.data_file.is_some())
            | bit(features::COMPRESSION_TYPE, !deflate)
            | bit(features::EXTENDED_L2, options.extended_l2),
        compatible: bit(features::LAZY_REFCOUNTS, options.lazy_refcounts),
        autoclear: bit(features::RAW_EXTERNAL_DATA, raw),
        refcount_width: plan.width(),
        compression: options.compression,
        unknown_fields: vec![],
        extensions,
        backing_name: backing.map(|backing| backing.name.clone().into_bytes()),
    }
}
