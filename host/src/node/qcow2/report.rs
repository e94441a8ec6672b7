//! What an image says of itself, from memory.

use blockloom_qcow2::format::header::features;
use blockloom_qcow2::format::{CompressionType, Version};

use super::Qcow2Node;
use crate::node::{BackingName, DataFileReport, ImageKind, ImageReport, Qcow2Report};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Qcow2Node {
    /// As its header is now, and its bitmap directory was when it was used last.
    pub(super) fn report_image(&self) -> ImageReport {
        let info = self.image.info();
        let [incompatible, compatible, _] = info.features;
        let backing = info.backing_name.as_deref().map(|name| BackingName {
            name: text(name),
            format: info.backing_format.as_deref().map(text),
        });
        let data_file = info.external_data.then(|| DataFileReport {
            name: info.data_file_name.as_deref().map(text),
            is_raw: info.raw_external_data,
        });
        ImageReport {
            cluster_bytes: Some(info.cluster_bytes),
            is_dirty: incompatible & features::DIRTY != 0,
            is_direct: false,
            backing,
            kind: ImageKind::Qcow2(Qcow2Report {
                is_v3: info.version >= Version::V3,
                is_zstd: info.compression == CompressionType::Zstd,
                refcount_bits: info.refcount_bits,
                lazy_refcounts: compatible & features::LAZY_REFCOUNTS != 0,
                corrupt: info.corrupt,
                extended_l2: info.extended_l2,
                data_file,
                bitmaps: self.bitmaps.listed(),
            }),
        }
    }
}
