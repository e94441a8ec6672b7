//! What an image says of itself: the format-specific part of `qemu-img info`, and more.

use crate::error::{Error, Result};
use crate::format::bitmap::{BitmapEntry, parse_directory};
use crate::format::header::features;
use crate::format::snapshot::Snapshot;
use crate::format::{CompressionType, Header, Version};
use crate::limits::BITMAP_DIRECTORY_MAX_BYTES;
use crate::storage::Storage;
use crate::{read_header, snapshot_table};

/// A description of an image. Names are bytes, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Bytes that the guest sees.
    pub virtual_size: u64,
    /// Bytes of a cluster.
    pub cluster_bytes: u64,
    /// Of the format; QEMU says `compat` 0.10 or 1.1.
    pub version: Version,
    /// Of compressed clusters.
    pub compression: CompressionType,
    /// Whether refcounts may be written late.
    pub lazy_refcounts: bool,
    /// Bits of a refcount.
    pub refcount_bits: u32,
    /// Whether refcounts are behind: the image was not closed.
    pub dirty: bool,
    /// Whether the image is marked as damaged.
    pub corrupt: bool,
    /// Whether clusters have subclusters.
    pub extended_l2: bool,
    /// What shows where nothing is allocated.
    pub backing_name: Option<Vec<u8>>,
    /// Its format.
    pub backing_format: Option<Vec<u8>>,
    /// Whether guest data are in an external file.
    pub external_data: bool,
    /// Its name, if the image tells it.
    pub data_file: Option<Vec<u8>>,
    /// Whether the external file is what the guest sees.
    pub data_file_raw: bool,
    /// Persistent bitmaps; none if they are out of date as a whole.
    pub bitmaps: Vec<BitmapInfo>,
    /// Internal snapshots, in the table's order.
    pub snapshots: Vec<Snapshot>,
}

/// A persistent bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name.
    pub name: Vec<u8>,
    /// Bytes of the image that a bit stands for; 0 if there are more than 2^63.
    pub granularity_bytes: u64,
    /// Whether it was not stored after its last use.
    pub in_use: bool,
    /// Whether it records from the moment the image is opened.
    pub auto: bool,
}

impl BitmapInfo {
    /// Of an entry of the directory.
    pub fn new(entry: BitmapEntry) -> Self {
        Self {
            granularity_bytes: 1u64.checked_shl(entry.granularity_bits.into()).unwrap_or(0),
            in_use: entry.in_use(),
            auto: entry.auto(),
            name: entry.name,
        }
    }

    /// The names that QEMU has for the flags that are set.
    pub fn flags(&self) -> Vec<&'static str> {
        let flags = [(self.in_use, "in-use"), (self.auto, "auto")];
        flags.into_iter().filter_map(|(set, name)| set.then_some(name)).collect()
    }
}

/// Describes the image in `storage`; changes nothing.
///
/// # Errors
/// `EINVAL` for what is no qcow2 image, `ENOTSUP` for features that are not known, `EIO` for a broken
/// bitmap directory or snapshot table; the container's errors.
pub async fn info<S: Storage>(storage: &S) -> Result<Info> {
    let header = read_header(storage).await?;
    let bitmaps = bitmap_directory(storage, &header).await?;
    let has = |features: u64, bit: u64| features & bit != 0;
    let owned = |name: Option<&[u8]>| name.map(<[u8]>::to_vec);
    Ok(Info {
        virtual_size: header.size_bytes,
        cluster_bytes: header.cluster_size.bytes(),
        version: header.version,
        compression: header.compression,
        lazy_refcounts: has(header.compatible, features::LAZY_REFCOUNTS),
        refcount_bits: header.refcount_width.bits(),
        dirty: has(header.incompatible, features::DIRTY),
        corrupt: has(header.incompatible, features::CORRUPT),
        extended_l2: has(header.incompatible, features::EXTENDED_L2),
        backing_format: owned(header.backing_format()),
        external_data: header.has_external_data(),
        data_file: owned(header.data_file_name()),
        data_file_raw: header.has_raw_external_data(),
        bitmaps: bitmaps.into_iter().map(BitmapInfo::new).collect(),
        snapshots: snapshot_table::load(storage, &header).await?.snapshots,
        backing_name: header.backing_name,
    })
}

/// Reads the bitmap directory; nothing if the header says that it is out of date.
async fn bitmap_directory<S: Storage>(storage: &S, header: &Header) -> Result<Vec<BitmapEntry>> {
    let consistent = header.autoclear & features::BITMAPS != 0;
    let Some(extension) = header.bitmaps().filter(|_| consistent) else { return Ok(Vec::new()) };
    let len = extension.directory_len_bytes;
    let end = extension.directory_offset.checked_add(len);
    let container = storage.len_bytes().await?.saturating_add(header.cluster_size.bytes());
    if len > BITMAP_DIRECTORY_MAX_BYTES || end.is_none_or(|end| end > container) {
        return Err(Error::corrupt(format!("bitmap directory of {len} bytes: past the end")));
    }
    let mut bytes = vec![0; len as usize];
    storage.read(extension.directory_offset, &mut bytes).await?;
    parse_directory(&bytes, extension.bitmaps, header.cluster_size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FileStorage, block_on, tools};
    use serde_json::{Value, json};

    /// The description as `qemu-img info` words it.
    fn as_json(info: &Info) -> Value {
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let second = info.version == Version::V2;
        let mut data = json!({
            "compat": if second { "0.10" } else { "1.1" },
            "compression-type": info.compression.name(),
            "refcount-bits": info.refcount_bits,
        });
        if !second {
            data["lazy-refcounts"] = json!(info.lazy_refcounts);
            data["corrupt"] = json!(info.corrupt);
            data["extended-l2"] = json!(info.extended_l2);
        }
        if let Some(name) = &info.data_file {
            data["data-file"] = json!(text(name));
            data["data-file-raw"] = json!(info.data_file_raw);
        }
        if !info.bitmaps.is_empty() {
            let bitmap = |bitmap: &BitmapInfo| {
                json!({
                    "flags": bitmap.flags(),
                    "name": text(&bitmap.name),
                    "granularity": bitmap.granularity_bytes,
                })
            };
            data["bitmaps"] = info.bitmaps.iter().map(bitmap).collect();
        }
        data
    }

    #[test]
    fn qemu_img_says_the_same() {
        if !tools::have(&["qemu-img", "qemu-io"]) {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let data_file = format!("data_file={}", dir.path().join("data").display());
        let cases = [
            "compat=0.10",
            "compat=1.1,lazy_refcounts=on,refcount_bits=4,cluster_size=4k",
            "extended_l2=on,compression_type=zstd",
            &data_file,
            &format!("{data_file},data_file_raw=on"),
        ];
        for options in cases {
            let path = dir.path().join("image.qcow2");
            let file = path.to_str().unwrap();
            let qemu_img = |arguments: &[&str]| tools::succeed("qemu-img", arguments);
            qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, file, "10M"]);
            if !options.contains("0.10") {
                qemu_img(&["bitmap", "-f", "qcow2", "--add", "-g", "128k", file, "one"]);
                qemu_img(&["bitmap", "-f", "qcow2", "--add", "--disable", file, "zwei"]);
            }
            if !options.contains("data_file") {
                qemu_img(&["snapshot", "-c", "early", file]);
                tools::succeed("qemu-io", &["-f", "qcow2", "-c", "write 0 1M", file]);
                qemu_img(&["snapshot", "-c", "späte", file]);
            }
            let expect = tools::qemu_info(file);
            let info = block_on(info(&FileStorage::open(&path).unwrap())).unwrap();
            assert_eq!(as_json(&info), expect["format-specific"]["data"], "{options}");
            assert_eq!(expect["virtual-size"], info.virtual_size);
            assert_eq!(expect["cluster-size"], info.cluster_bytes);
            let snapshots = info.snapshots.iter().map(|snapshot| {
                json!({
                    "id": String::from_utf8_lossy(&snapshot.id),
                    "name": snapshot.name_lossy(),
                    "vm-state-size": snapshot.vm_state_bytes,
                    "date-sec": snapshot.date_seconds,
                    "date-nsec": snapshot.date_nanoseconds,
                    "vm-clock-sec": snapshot.vm_clock_nanoseconds / 1_000_000_000,
                    "vm-clock-nsec": snapshot.vm_clock_nanoseconds % 1_000_000_000,
                })
            });
            let mut found = expect["snapshots"].as_array().cloned().unwrap_or_default();
            for snapshot in &mut found {
                snapshot.as_object_mut().unwrap().remove("icount");
            }
            assert_eq!(snapshots.collect::<Vec<_>>(), found, "{options}");
        }
    }
}
