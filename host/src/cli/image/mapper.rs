//! Where the bytes of one image are: what its tables say, read one table at a time from the start to the end.

use blockloom_qcow2::format::{
    Cluster, Header, HostOffset, L1Entry, L2Entry, L2Format, RefcountTableEntry, StandardCluster,
};
use blockloom_qcow2::{Result, Storage};

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
    /// Compressed: `len` bytes up to a sector's end, from `host`.
    Compressed {
        host: u64,
        len: u64,
    },
    /// Allocated by the tables, a hole of the file: zeros.
    DataHole,
}

/// The tables of one image; of a raw one, the file's holes.
#[derive(Debug)]
pub(super) struct Mapper {
    tables: Option<Tables>,
}

#[derive(Debug)]
struct Tables {
    format: L2Format,
    l1: Vec<u64>,
    /// The table that was used last, by its L1 index.
    l2: Option<(u64, Vec<u64>)>,
    /// Whether mapped clusters may be holes, all at the end of creation: then the file is asked too.
    preallocated: bool,
}

impl Mapper {
    /// Reads the L1 table.
    ///
    /// # Errors
    /// The file's.
    pub(super) async fn open(storage: &FileStorage, header: Option<&Header>) -> Result<Self> {
        let Some(header) = header else { return Ok(Self { tables: None }) };
        let l1 = read_words(storage, header.l1_offset.0, u64::from(header.l1_entries) * 8).await?;
        let preallocated = !header.has_external_data() && is_preallocated(storage, header).await?;
        let tables = Tables { format: header.l2_format(), l1, l2: None, preallocated };
        Ok(Self { tables: Some(tables) })
    }

    /// How the first part of a range is stored, without looking at more than a cluster's entry.
    ///
    /// # Errors
    /// `Corrupt` for entries that the format does not allow; the file's.
    pub(super) async fn map(
        &mut self,
        storage: &FileStorage,
        offset: u64,
        len: u64,
    ) -> super::Result<Run> {
        let fail = |error| super::Failure::of_file(storage.file().path(), error);
        let Some(tables) = &mut self.tables else {
            let (len, hole) = storage.extent(offset, len).await?;
            let kind = if hole { RunKind::Zero } else { RunKind::Data };
            return Ok(Run { len, kind, host: Some(offset) });
        };
        let mut run = tables.map(storage, offset, len).await.map_err(fail)?;
        if let (true, RunKind::Data, Some(host)) = (tables.preallocated, run.kind, run.host) {
            let (len, hole) = storage.extent(host, run.len).await?;
            run.len = len;
            run.kind = if hole { RunKind::DataHole } else { RunKind::Data };
        }
        Ok(run)
    }
}

impl Tables {
    async fn map(&mut self, storage: &FileStorage, offset: u64, len: u64) -> Result<Run> {
        let span = self.format.table_span_bytes();
        let (index, within) = (offset / span, offset % span);
        let entry = usize::try_from(index).ok().and_then(|index| self.l1.get(index));
        let table = L1Entry(entry.copied().unwrap_or(0)).table(self.format.cluster_size)?;
        let Some(HostOffset(table)) = table else {
            let len = len.min(span - within);
            return Ok(Run { len, kind: RunKind::Unallocated, host: None });
        };
        if !matches!(&self.l2, Some((cached, _)) if *cached == index) {
            let words = read_words(storage, table, self.format.cluster_size.bytes()).await?;
            self.l2 = Some((index, words));
        }
        let words = self.l2.as_ref().map_or(&[][..], |(_, words)| words);
        let cluster = self.format.cluster_size.bytes();
        let at = (within / cluster) as usize * self.format.entry_words();
        let word = |at: usize| words.get(at).copied().unwrap_or(0);
        let bitmap = if self.format.extended { word(at + 1) } else { 0 };
        let entry = L2Entry { descriptor: word(at), bitmap };
        let (within, rest) = (offset % cluster, cluster - offset % cluster);
        Ok(match self.format.decode(entry)? {
            Cluster::Compressed(data) => {
                let kind = RunKind::Compressed { host: data.host.0, len: data.len_bytes };
                Run { len: len.min(rest), kind, host: None }
            }
            Cluster::Standard(entry) => self.standard(&entry, within, len),
        })
    }

    /// The run from `within` a cluster to where its subclusters change.
    fn standard(&self, entry: &StandardCluster, within: u64, len: u64) -> Run {
        let unit = self.format.unit_bytes();
        let units = self.format.cluster_size.bytes() / unit;
        let first = within / unit;
        let bit = |unit: u64, set: u32| set >> unit & 1 != 0;
        let kind = |unit: u64| match () {
            () if bit(unit, entry.data) => RunKind::Data,
            () if bit(unit, entry.zero) => RunKind::Zero,
            () => RunKind::Unallocated,
        };
        let end = (first..units).find(|unit| kind(*unit) != kind(first)).unwrap_or(units) * unit;
        Run {
            len: len.min(end - within),
            kind: kind(first),
            host: entry.host.map(|host| host.0 + within),
        }
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
