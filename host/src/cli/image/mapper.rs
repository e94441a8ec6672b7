//! Where the bytes of one image are: what its tables say, and, where these cannot tell, the file.

use blockloom_qcow2::format::{CompressedData, Header, HostOffset, RefcountTableEntry};
use blockloom_qcow2::image::{Image, Mapping, MappingKind};
use blockloom_qcow2::{Error, ErrorKind, Result, Storage};

use super::failure::Failure;
use crate::node::FileStorage;

/// How a part of an image is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Bytes, not more than asked for.
    pub len: u64,
    pub kind: RunKind,
    /// Where it is in the file, if it has a place there as it is.
    pub host: Option<u64>,
}

/// What a part of an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunKind {
    Data,
    Zero,
    /// The backing shows, or zeros.
    Unallocated,
    /// Within one cluster.
    Compressed(CompressedData),
    /// Allocated by the tables, a hole of the file: zeros.
    DataHole,
}

/// The tables of one image; of a raw one, the file's holes.
#[derive(Debug)]
pub(super) struct Mapper {
    image: Option<Image>,
    /// Whether mapped clusters may be holes, all at the end of creation: then the file is asked too.
    preallocated: bool,
}

impl Mapper {
    /// Of an image that is open; `None` is raw.
    ///
    /// # Errors
    /// The file's.
    pub(super) async fn new(
        storage: &FileStorage,
        header: Option<&Header>,
        image: Option<Image>,
    ) -> Result<Self> {
        let preallocated = match header.filter(|header| !header.has_external_data()) {
            Some(header) => is_preallocated(storage, header).await?,
            None => false,
        };
        Ok(Self { image, preallocated })
    }

    /// The engine on the metadata of what is no raw image.
    pub(super) fn image(&self) -> Option<&Image> {
        self.image.as_ref()
    }

    /// How the first part of a range, which is not empty, is stored.
    ///
    /// # Errors
    /// `Corrupt` for entries that the format does not allow; the file's.
    pub(super) async fn map(
        &self,
        storage: &FileStorage,
        offset: u64,
        len: u64,
    ) -> super::Result<Run> {
        let fail = |error: Error| {
            let fix = match error.kind() {
                ErrorKind::Corrupt => "; `image check` shows all that is wrong",
                _ => "",
            };
            Failure::of_file(storage.file().path(), format_args!("{error}{fix}"))
        };
        let Some(image) = &self.image else {
            let (len, hole) = storage.extent(offset, len).await?;
            let kind = if hole { RunKind::Zero } else { RunKind::Data };
            return Ok(Run { len, kind, host: Some(offset) });
        };
        let turn = image.enter();
        let Mapping { len, kind } = image.map(&turn, storage, offset, len).await.map_err(fail)?;
        let at = |host: HostOffset| Some(host.0);
        Ok(match kind {
            MappingKind::Data(HostOffset(host)) if self.preallocated => {
                let (len, hole) = storage.extent(host, len).await?;
                let kind = if hole { RunKind::DataHole } else { RunKind::Data };
                Run { len, kind, host: Some(host) }
            }
            MappingKind::Data(host) => Run { len, kind: RunKind::Data, host: at(host) },
            MappingKind::Zero(host) => Run { len, kind: RunKind::Zero, host: host.and_then(at) },
            MappingKind::Compressed(data) => {
                Run { len, kind: RunKind::Compressed(data), host: None }
            }
            MappingKind::Unallocated => {
                let reserved = image.reserved(&turn, storage, offset, len).await;
                let (len, host) = reserved.map_err(fail)?;
                Run { len, kind: RunKind::Unallocated, host: host.and_then(at) }
            }
        })
    }
}

async fn read_words(storage: &FileStorage, offset: u64, len_bytes: u64) -> Result<Vec<u64>> {
    let mut bytes = vec![0; len_bytes as usize];
    storage.read(offset, &mut bytes).await?;
    let (words, _) = bytes.as_chunks();
    Ok(words.iter().map(|word| u64::from_be_bytes(*word)).collect())
}

/// Whether the file has clearly fewer blocks than clusters in use, so that mapped clusters are holes: QEMU's
/// test (a tenth or more, and two or more, are missing).
async fn is_preallocated(storage: &FileStorage, header: &Header) -> Result<bool> {
    let cluster = header.cluster_size;
    let file_clusters = cluster.clusters_of(storage.len_bytes().await?);
    let Ok(allocated) = storage.file().allocated_bytes() else { return Ok(false) };
    let real = allocated / cluster.bytes();
    let threshold = (real * 10 / 9).max(real + 2);
    if threshold > file_clusters {
        return Ok(false);
    }
    let table_bytes = u64::from(header.refcount_table_clusters) << cluster.bits();
    let table = read_words(storage, header.refcount_table_offset.0, table_bytes).await?;
    let per_block = header.refcount_width.block_entries(cluster);
    let mut block = vec![0; cluster.bytes() as usize];
    let mut used = 0;
    for (index, entry) in (0_u64..).zip(table) {
        let first = index * per_block;
        if first >= file_clusters {
            break;
        }
        let Some(HostOffset(at)) = RefcountTableEntry(entry).block(cluster)? else { continue };
        storage.read(at, &mut block).await?;
        let entries = per_block.min(file_clusters - first) as usize;
        used += (0..entries).filter(|i| header.refcount_width.get(&block, *i) != 0).count() as u64;
        if used >= threshold {
            return Ok(true);
        }
    }
    Ok(false)
}
