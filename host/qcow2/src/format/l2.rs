//! L1 and L2 table entries: where a guest cluster is (specification, "Cluster mapping", "Extended L2 Entries").
//!
//! An entry of either kind decodes to one shape: a host cluster and two sets of 32 subclusters, those
//! with data and those that read as zeros. Without extended L2 entries a set is full or empty, so that
//! nothing above has to tell the two apart.

use super::{ClusterSize, HostOffset};
use crate::error::{Error, Result};

/// Bits 9–55: an offset in the container.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: nobody else refers to this cluster, it may be written in place.
const COPIED: u64 = 1 << 63;
/// Bit 62: the descriptor is one of compressed data.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard descriptor: the cluster reads as zeros.
const ZERO: u64 = 1;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Compressed data lies below this offset, whatever the width of its field.
const COMPRESSED_END: u64 = 1 << 56;

/// Subclusters of a cluster.
pub const SUBCLUSTERS: u32 = 32;
/// The set of all subclusters.
pub const ALL_SUBCLUSTERS: u32 = u32::MAX;

/// An entry of an L1 table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L1Entry(pub u64);

impl L1Entry {
    /// Refers to a table of which `copied` tells that nobody else does.
    pub fn new(table: HostOffset, copied: bool) -> Self {
        Self(table.0 | if copied { COPIED } else { 0 })
    }

    /// The L2 table; `None` if all clusters it would describe are unallocated.
    ///
    /// # Errors
    /// `Corrupt` for reserved bits, and for a table that does not start at a cluster.
    pub fn table(self, cluster_size: ClusterSize) -> Result<Option<HostOffset>> {
        if self.0 & L1_RESERVED != 0 {
            return Err(Error::corrupt(format!("L1 entry {:#x} has reserved bits set", self.0)));
        }
        let offset = self.0 & OFFSET_MASK;
        if !cluster_size.is_aligned(offset) {
            let message = format!("L2 table at {offset:#x} does not start at a cluster");
            return Err(Error::corrupt(message));
        }
        Ok((offset != 0).then_some(HostOffset(offset)))
    }

    /// Whether nobody else refers to the table.
    pub fn copied(self) -> bool {
        self.0 & COPIED != 0
    }
}

/// An entry of an L2 table as stored; `bitmap` is zero without extended L2 entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2Entry {
    /// The cluster descriptor with its two flags.
    pub descriptor: u64,
    /// The subcluster allocation bitmap.
    pub bitmap: u64,
}

/// Compressed data of one guest cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedData {
    /// Where it begins; any byte.
    pub host: HostOffset,
    /// Bytes up to the end of its last 512-byte sector: the data may be shorter, and the container too.
    pub len_bytes: u64,
}

/// What an L2 entry says of its guest cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// Data, zeros, or nothing, by subcluster.
    Standard(StandardCluster),
    /// One compressed blob.
    Compressed(CompressedData),
}

/// A guest cluster that is not compressed. Subclusters in neither set are unallocated: a backing shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StandardCluster {
    /// Its host cluster, in the container or in the external data file.
    pub host: Option<HostOffset>,
    /// Whether the host cluster is this entry's alone, so that it may be written in place.
    pub copied: bool,
    /// Subclusters whose bytes are in the host cluster; implies `host`.
    pub data: u32,
    /// Subclusters that read as zeros, whatever the host cluster holds; disjoint from `data`.
    pub zero: u32,
}

impl StandardCluster {
    /// A cluster of which nothing is allocated.
    pub const UNALLOCATED: Self = Self { host: None, copied: false, data: 0, zero: 0 };
    /// A cluster that reads as zeros without a host cluster.
    pub const ZERO: Self = Self { host: None, copied: false, data: 0, zero: ALL_SUBCLUSTERS };

    /// A cluster of data that is its own.
    pub fn data(host: HostOffset) -> Self {
        Self { host: Some(host), copied: true, data: ALL_SUBCLUSTERS, zero: 0 }
    }

    /// Subclusters that are neither data nor zero.
    pub fn unallocated(&self) -> u32 {
        !(self.data | self.zero)
    }
}

/// What decides how entries are read: constant for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L2Format {
    /// Of the image.
    pub cluster_size: ClusterSize,
    /// Whether entries have 16 bytes and a subcluster bitmap.
    pub extended: bool,
    /// Whether host offsets are those of an external data file.
    pub external_data: bool,
    /// Whether the version knows clusters that read as zeros (3 and up).
    pub zero_flag: bool,
}

impl L2Format {
    /// 64-bit words of an entry.
    pub fn entry_words(&self) -> usize {
        if self.extended { 2 } else { 1 }
    }

    /// Bytes of an entry.
    pub fn entry_bytes(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Entries of a table.
    pub fn table_entries(&self) -> u64 {
        self.cluster_size.bytes() / self.entry_bytes()
    }

    /// Guest bytes that a table describes; at most 2^40.
    pub fn table_span_bytes(&self) -> u64 {
        self.table_entries() << self.cluster_size.bits()
    }

    /// L1 entries that a virtual disk of this size needs.
    pub fn l1_entries_of(&self, size_bytes: u64) -> u64 {
        size_bytes.div_ceil(self.table_span_bytes())
    }

    /// Bytes of a 32nd of a cluster.
    pub fn subcluster_bytes(&self) -> u64 {
        self.cluster_size.bytes() / u64::from(SUBCLUSTERS)
    }

    /// Smallest part of a cluster that is mapped by itself, bytes.
    pub fn unit_bytes(&self) -> u64 {
        if self.extended { self.subcluster_bytes() } else { self.cluster_size.bytes() }
    }

    /// The host cluster of an entry that has been checked and is plain data, and whether it is its own:
    /// the common case, for those who are in a hurry. Others are for [`Self::decode`].
    #[inline]
    pub fn plain_data(&self, entry: L2Entry) -> Option<(HostOffset, bool)> {
        let offset = entry.descriptor & OFFSET_MASK;
        let is_plain = entry.descriptor & !(OFFSET_MASK | COPIED) == 0
            && offset != 0
            && (!self.extended || entry.bitmap == u64::from(ALL_SUBCLUSTERS));
        is_plain.then_some((HostOffset(offset), entry.descriptor & COPIED != 0))
    }

    /// What the entry says.
    ///
    /// # Errors
    /// `Corrupt` for what the specification does not allow.
    pub fn decode(&self, entry: L2Entry) -> Result<Cluster> {
        if entry.descriptor & COMPRESSED != 0 {
            return self.decode_compressed(entry).map(Cluster::Compressed);
        }
        self.decode_standard(entry).map(Cluster::Standard)
    }

    fn decode_standard(&self, entry: L2Entry) -> Result<StandardCluster> {
        let has_zero_flag = self.zero_flag && !self.extended;
        let reserved = L2_RESERVED | if has_zero_flag { 0 } else { ZERO };
        if entry.descriptor & reserved != 0 {
            return Err(bad(entry, "has reserved bits set"));
        }
        let offset = entry.descriptor & OFFSET_MASK;
        if !self.cluster_size.is_aligned(offset) {
            return Err(bad(entry, "refers to data that does not start at a cluster"));
        }
        let copied = entry.descriptor & COPIED != 0;
        if copied && offset == 0 && !self.external_data {
            return Err(bad(entry, "refers to the header as data"));
        }
        let host = (offset != 0 || copied).then_some(HostOffset(offset));
        let (data, zero) = if self.extended {
            (entry.bitmap as u32, (entry.bitmap >> 32) as u32)
        } else if entry.descriptor & ZERO != 0 {
            (0, ALL_SUBCLUSTERS)
        } else if host.is_some() {
            (ALL_SUBCLUSTERS, 0)
        } else {
            (0, 0)
        };
        if data & zero != 0 {
            return Err(bad(entry, "has subclusters that are data and zeros at once"));
        }
        if data != 0 && host.is_none() {
            return Err(bad(entry, "has subclusters of data and no host cluster"));
        }
        Ok(StandardCluster { host, copied, data, zero })
    }

    fn decode_compressed(&self, entry: L2Entry) -> Result<CompressedData> {
        if self.external_data {
            return Err(bad(entry, "is compressed, in an image with an external data file"));
        }
        if entry.bitmap != 0 {
            return Err(bad(entry, "is compressed and has subclusters"));
        }
        let offset_bits = 62 - (self.cluster_size.bits() - 8);
        let host = entry.descriptor & ((1 << offset_bits) - 1);
        if host >= COMPRESSED_END {
            return Err(bad(entry, "has reserved bits set"));
        }
        let sectors = ((entry.descriptor & !(COPIED | COMPRESSED)) >> offset_bits) + 1;
        let len_bytes = sectors * 512 - host % 512;
        Ok(CompressedData { host: HostOffset(host), len_bytes })
    }

    /// The entry that says this.
    ///
    /// # Errors
    /// `EINVAL` for what the format cannot say: compressed data that lie too high or are too long, zeros
    /// in version 2, part of a cluster without extended L2 entries.
    pub fn encode(&self, cluster: &Cluster) -> Result<L2Entry> {
        match cluster {
            Cluster::Standard(cluster) => self.encode_standard(cluster),
            Cluster::Compressed(data) => self.encode_compressed(data),
        }
    }

    fn encode_standard(&self, cluster: &StandardCluster) -> Result<L2Entry> {
        let host = cluster.host.map_or(0, |host| host.0);
        let copied = if cluster.copied { COPIED } else { 0 };
        let bitmap =
            if self.extended { u64::from(cluster.zero) << 32 | u64::from(cluster.data) } else { 0 };
        let zero = if self.extended || cluster.zero == 0 { 0 } else { ZERO };
        let entry = L2Entry { descriptor: host | copied | zero, bitmap };
        match self.decode_standard(entry) {
            Ok(read_back) if read_back == *cluster => Ok(entry),
            _ => Err(Error::invalid(format!("no L2 entry of this image can say {cluster:?}"))),
        }
    }

    fn encode_compressed(&self, data: &CompressedData) -> Result<L2Entry> {
        let offset_bits = 62 - (self.cluster_size.bits() - 8);
        let sectors = (data.host.0 % 512 + data.len_bytes).div_ceil(512);
        let fits = data.len_bytes > 0
            && data.host.0 < COMPRESSED_END.min(1 << offset_bits)
            && sectors <= 1 << (62 - offset_bits)
            && !self.external_data;
        if !fits {
            return Err(Error::invalid(format!("no L2 entry of this image can say {data:?}")));
        }
        let descriptor = COMPRESSED | (sectors - 1) << offset_bits | data.host.0;
        Ok(L2Entry { descriptor, bitmap: 0 })
    }
}

fn bad(entry: L2Entry, what: &str) -> Error {
    let L2Entry { descriptor, bitmap } = entry;
    Error::corrupt(format!("L2 entry {descriptor:#x} (subclusters {bitmap:#x}) {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDARD: L2Format = L2Format {
        cluster_size: ClusterSize::SIXTY_FOUR_KIB,
        extended: false,
        external_data: false,
        zero_flag: true,
    };
    const V2: L2Format = L2Format { zero_flag: false, ..STANDARD };
    const EXTENDED: L2Format = L2Format { extended: true, ..STANDARD };
    const EXTERNAL: L2Format = L2Format { external_data: true, ..STANDARD };

    fn standard(host: Option<u64>, copied: bool, data: u32, zero: u32) -> Cluster {
        Cluster::Standard(StandardCluster { host: host.map(HostOffset), copied, data, zero })
    }

    /// Decodes; what decodes must encode to the same entry.
    fn check(format: L2Format, descriptor: u64, bitmap: u64, expect: Option<Cluster>) {
        let entry = L2Entry { descriptor, bitmap };
        let cluster = format.decode(entry).ok();
        assert_eq!(cluster, expect, "{format:?} {entry:?}");
        if let Some(cluster) = cluster {
            assert_eq!(format.encode(&cluster).expect("what was read can be written"), entry);
            if let Some((host, copied)) = format.plain_data(entry) {
                assert_eq!(cluster, standard(Some(host.0), copied, ALL_SUBCLUSTERS, 0));
            }
        }
    }

    #[test]
    fn standard_entries() {
        check(STANDARD, 0, 0, Some(standard(None, false, 0, 0)));
        check(STANDARD, 1, 0, Some(standard(None, false, 0, ALL_SUBCLUSTERS)));
        check(STANDARD, 0x50000, 0, Some(standard(Some(0x50000), false, ALL_SUBCLUSTERS, 0)));
        check(STANDARD, COPIED | 0x50000, 0, Some(standard(Some(0x50000), true, u32::MAX, 0)));
        check(STANDARD, COPIED | 0x50001, 0, Some(standard(Some(0x50000), true, 0, u32::MAX)));
        check(STANDARD, 0x50200, 0, None);
        check(STANDARD, 0x50002, 0, None);
        check(STANDARD, 1 << 56 | 0x50000, 0, None);
        check(STANDARD, COPIED, 0, None);
        check(V2, 1, 0, None);
        check(V2, COPIED | 0x50000, 0, Some(standard(Some(0x50000), true, u32::MAX, 0)));
        check(EXTERNAL, COPIED, 0, Some(standard(Some(0), true, u32::MAX, 0)));
        check(EXTERNAL, 0, 0, Some(standard(None, false, 0, 0)));
    }

    #[test]
    fn extended_entries() {
        check(EXTENDED, 0, 0, Some(standard(None, false, 0, 0)));
        check(EXTENDED, 0, 3 << 32, Some(standard(None, false, 0, 3)));
        let mixed = standard(Some(0x50000), true, 5, 0xa);
        check(EXTENDED, COPIED | 0x50000, 0xa << 32 | 5, Some(mixed));
        check(EXTENDED, COPIED | 0x50000, 0, Some(standard(Some(0x50000), true, 0, 0)));
        check(EXTENDED, 0, 1, None);
        check(EXTENDED, 0x50000, 1 << 32 | 1, None);
        check(EXTENDED, 0x50001, 0, None);
        check(EXTENDED, COMPRESSED | 0x50001, 1, None);
    }

    #[test]
    fn compressed_entries() {
        let compressed = |host, len_bytes| {
            Some(Cluster::Compressed(CompressedData { host: HostOffset(host), len_bytes }))
        };
        check(STANDARD, COMPRESSED | 0x50001, 0, compressed(0x50001, 511));
        check(STANDARD, COMPRESSED | 2 << 54 | 0x50200, 0, compressed(0x50200, 1536));
        check(EXTERNAL, COMPRESSED | 0x50001, 0, None);
        let small = L2Format { cluster_size: ClusterSize::from_bits(9).expect("512"), ..STANDARD };
        check(small, COMPRESSED | 1 << 61 | 0x200, 0, compressed(0x200, 1024));
        check(small, COMPRESSED | 1 << 56 | 0x200, 0, None);
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        let refuse = |format: L2Format, cluster| {
            assert!(format.encode(&cluster).is_err(), "{format:?} {cluster:?}");
        };
        refuse(V2, standard(None, false, 0, ALL_SUBCLUSTERS));
        refuse(STANDARD, standard(Some(0x50000), true, 1, 0));
        refuse(STANDARD, standard(Some(0x50100), true, ALL_SUBCLUSTERS, 0));
        let far = CompressedData { host: HostOffset(1 << 56), len_bytes: 1 };
        refuse(STANDARD, Cluster::Compressed(far));
        let long = CompressedData { host: HostOffset(512), len_bytes: 129 << 10 };
        refuse(STANDARD, Cluster::Compressed(long));
    }

    #[test]
    fn l1_entries() {
        let check = |word: u64, expect: Option<Option<u64>>| {
            let table = L1Entry(word).table(ClusterSize::SIXTY_FOUR_KIB).ok();
            assert_eq!(table, expect.map(|offset| offset.map(HostOffset)), "{word:#x}");
        };
        check(0, Some(None));
        check(COPIED | 0x30000, Some(Some(0x30000)));
        check(0x30200, None);
        check(0x30001, None);
        check(1 << 60, None);
        assert_eq!(L1Entry::new(HostOffset(0x30000), true), L1Entry(COPIED | 0x30000));
        assert!(!L1Entry(0x30000).copied());
    }
}
