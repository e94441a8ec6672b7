//! The header: the fixed fields, the extensions and the name of the backing file.

use super::extension::{self, BitmapsExtension, Extension, FeatureName, FeatureSet};
use super::{ClusterSize, HostOffset, L2Format, RefcountWidth};
use crate::error::{Error, ErrorKind, Result};
use crate::limits;

/// `QFI\xfb`.
const MAGIC: u32 = 0x5146_49fb;
const V2_BYTES: usize = 72;
/// Without additional fields, and with those known here.
const V3_MIN_BYTES: usize = 104;
const V3_BYTES: usize = 112;
/// Smallest clusters of images with extended L2 entries.
const EXTENDED_L2_MIN_CLUSTER_BITS: u32 = 14;

/// Feature bits by set (specification, "Header").
pub mod features {
    /// Incompatible: refcounts may be wrong.
    pub const DIRTY: u64 = 1;
    /// Incompatible: anything may be wrong; not to be written.
    pub const CORRUPT: u64 = 1 << 1;
    /// Incompatible: guest data is in an external data file.
    pub const EXTERNAL_DATA: u64 = 1 << 2;
    /// Incompatible: compressed clusters are not deflate.
    pub const COMPRESSION_TYPE: u64 = 1 << 3;
    /// Incompatible: L2 entries have subclusters.
    pub const EXTENDED_L2: u64 = 1 << 4;
    /// Incompatible bits that this crate knows.
    pub const INCOMPATIBLE_KNOWN: u64 =
        DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;
    /// Compatible: refcounts may be updated late, under the dirty bit.
    pub const LAZY_REFCOUNTS: u64 = 1;
    /// Autoclear: the bitmaps extension is consistent.
    pub const BITMAPS: u64 = 1;
    /// Autoclear: the external data file is a raw image by itself.
    pub const RAW_EXTERNAL_DATA: u64 = 1 << 1;
    /// Autoclear, of this program's own: it has the image open and has begun to change it, so that clusters
    /// may have leaked if nobody has it open. Others take the bit back before they write, as bits that they
    /// do not know; the leaks are then as after a crash of theirs.
    pub const OPEN: u64 = 1 << 62;
    /// Autoclear, private: what is recorded of the files below is current ([`record`](crate::format::record)).
    /// The highest bit: as far as can be from those that the specification gives away.
    pub const RECORD: u64 = 1 << 63;
    /// Autoclear bits that this crate keeps right through a change. [`RECORD`] is none: it goes with the first
    /// change of guest data.
    pub const AUTOCLEAR_KNOWN: u64 = BITMAPS | RAW_EXTERNAL_DATA | OPEN;
}

/// Where fields are that are changed by themselves: each group lies within one 512-byte sector, so that
/// writing it is atomic.
pub mod fields {
    /// `size`, 8 bytes.
    pub const SIZE: u64 = 24;
    /// `l1_size` and `l1_table_offset`, 12 bytes.
    pub const L1: u64 = 36;
    /// `refcount_table_offset` and `refcount_table_clusters`, 12 bytes.
    pub const REFCOUNT_TABLE: u64 = 48;
    /// `nb_snapshots` and `snapshots_offset`, 12 bytes.
    pub const SNAPSHOTS: u64 = 60;
    /// `incompatible_features`, `compatible_features` and `autoclear_features`, 24 bytes; version 3.
    pub const FEATURES: u64 = 72;
}

/// The format's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `compat=0.10`.
    V2 = 2,
    /// `compat=1.1`.
    V3 = 3,
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionType {
    /// Raw deflate, a window of 4 KiB.
    Deflate = 0,
    /// Zstandard.
    Zstd = 1,
}

/// The header of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of the format.
    pub version: Version,
    /// Of the image.
    pub cluster_size: ClusterSize,
    /// Bytes of the virtual disk.
    pub size_bytes: u64,
    /// Entries of the active L1 table.
    pub l1_entries: u32,
    /// The active L1 table.
    pub l1_offset: HostOffset,
    /// The refcount table.
    pub refcount_table_offset: HostOffset,
    /// Its length.
    pub refcount_table_clusters: u32,
    /// Internal snapshots.
    pub snapshots: u32,
    /// The snapshot table; without meaning if there are none.
    pub snapshots_offset: HostOffset,
    /// See [`features`].
    pub incompatible: u64,
    /// See [`features`].
    pub compatible: u64,
    /// See [`features`].
    pub autoclear: u64,
    /// Of reference counts.
    pub refcount_width: RefcountWidth,
    /// Of compressed clusters.
    pub compression: CompressionType,
    /// Additional fields that this crate does not know, from byte 112 on.
    pub unknown_fields: Vec<u8>,
    /// In their order.
    pub extensions: Vec<Extension>,
    /// The backing file's name, as stored.
    pub backing_name: Option<Vec<u8>>,
}

impl Header {
    /// Bytes that [`Self::cluster_size_in`] needs.
    pub const PREFIX_BYTES: usize = 24;

    /// The cluster size, from the first bytes of an image: what [`Self::parse`] needs is a cluster.
    ///
    /// # Errors
    /// `EINVAL` if this is no qcow2 image.
    pub fn cluster_size_in(prefix: &[u8; Self::PREFIX_BYTES]) -> Result<ClusterSize> {
        let fields = Fields(prefix);
        if fields.u32(0) != MAGIC {
            return Err(Error::invalid("not a qcow2 image: the magic number is missing"));
        }
        ClusterSize::from_bits(fields.u32(20))
    }

    /// Parses the first cluster. What it says of features is not judged: see [`Self::check_supported`].
    ///
    /// # Errors
    /// `EINVAL` for what is no well-formed header; `ENOTSUP` for other versions, and encryption.
    pub fn parse(cluster: &[u8]) -> Result<Self> {
        let Some(prefix) = cluster.first_chunk() else {
            return Err(Error::invalid("not a qcow2 image: too short"));
        };
        let cluster_size = Self::cluster_size_in(prefix)?;
        if (cluster.len() as u64) < cluster_size.bytes() {
            return Err(Error::invalid("the header is cut"));
        }
        let cluster = &cluster[..cluster_size.bytes() as usize];
        let fields = Fields(cluster);
        let version = match fields.u32(4) {
            2 => Version::V2,
            3 => Version::V3,
            other => return Err(not_supported(format!("version {other} of qcow2"))),
        };
        if fields.u32(32) != 0 {
            let method = match fields.u32(32) {
                1 => "AES".into(),
                2 => "LUKS".into(),
                other => format!("method {other}"),
            };
            return Err(not_supported(format!("an encrypted image ({method})")));
        }
        let len = match version {
            Version::V2 => V2_BYTES,
            Version::V3 => fields.u32(100) as usize,
        };
        if version == Version::V3
            && (len < V3_MIN_BYTES || !len.is_multiple_of(8) || len > cluster.len())
        {
            return Err(Error::invalid(format!("a header of {len} bytes")));
        }
        // A field past the header's end is as good as zero.
        let mut known = [0; V3_BYTES];
        let known_len = len.min(V3_BYTES);
        known[..known_len].copy_from_slice(&cluster[..known_len]);
        let backing = backing_range(cluster_size, &fields)?;
        let extensions_end = backing.as_ref().map_or(cluster.len(), |range| range.start);
        let extensions = cluster.get(len..extensions_end).unwrap_or_default();
        let header = Self {
            unknown_fields: cluster[known_len..len].to_vec(),
            extensions: extension::parse(extensions)?,
            backing_name: backing.map(|range| cluster[range].to_vec()),
            ..Self::from_fields(version, cluster_size, &Fields(&known))?
        };
        header.check()?;
        Ok(header)
    }

    fn from_fields(
        version: Version,
        cluster_size: ClusterSize,
        fields: &Fields<'_>,
    ) -> Result<Self> {
        let v3 = version >= Version::V3;
        let refcount_width =
            if v3 { RefcountWidth::from_order(fields.u32(96))? } else { RefcountWidth::SIXTEEN };
        let compression = match fields.0[104] {
            0 => CompressionType::Deflate,
            1 => CompressionType::Zstd,
            other => return Err(not_supported(format!("compression type {other}"))),
        };
        Ok(Self {
            version,
            cluster_size,
            size_bytes: fields.u64(24),
            l1_entries: fields.u32(36),
            l1_offset: HostOffset(fields.u64(40)),
            refcount_table_offset: HostOffset(fields.u64(48)),
            refcount_table_clusters: fields.u32(56),
            snapshots: fields.u32(60),
            snapshots_offset: HostOffset(fields.u64(64)),
            incompatible: fields.u64(72),
            compatible: fields.u64(80),
            autoclear: fields.u64(88),
            refcount_width,
            compression,
            unknown_fields: Vec::new(),
            extensions: Vec::new(),
            backing_name: None,
        })
    }

    /// The header's bytes, to be written at offset 0.
    ///
    /// # Errors
    /// `EINVAL` for a header that would not be read again; `ENOSPC` if it does not fit the first cluster.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check()?;
        let mut bytes = vec![0; if self.version >= Version::V3 { V3_BYTES } else { V2_BYTES }];
        let mut put = |offset: usize, field: &[u8]| {
            if let Some(place) = bytes.get_mut(offset..offset + field.len()) {
                place.copy_from_slice(field);
            }
        };
        put(0, &MAGIC.to_be_bytes());
        put(4, &(self.version as u32).to_be_bytes());
        put(20, &self.cluster_size.bits().to_be_bytes());
        put(24, &self.size_bytes.to_be_bytes());
        put(36, &self.l1_field());
        put(48, &self.refcount_table_field());
        put(60, &self.snapshots_field());
        put(72, &self.features_field());
        put(96, &self.refcount_width.order().to_be_bytes());
        put(100, &((V3_BYTES + self.unknown_fields.len()) as u32).to_be_bytes());
        put(104, &[self.compression as u8]);
        bytes.extend(&self.unknown_fields);
        bytes.extend(extension::encode(&self.extensions));
        if let Some(name) = &self.backing_name {
            let offset = (bytes.len() as u64).to_be_bytes();
            bytes[8..16].copy_from_slice(&offset);
            bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
            bytes.extend(name);
        }
        if bytes.len() as u64 > self.cluster_size.bytes() {
            let message = "the header with its extensions does not fit the first cluster";
            return Err(Error::new(ErrorKind::NoSpace, message));
        }
        Ok(bytes)
    }

    /// The bytes at [`fields::L1`].
    pub fn l1_field(&self) -> [u8; 12] {
        joined(self.l1_entries.to_be_bytes(), self.l1_offset.0.to_be_bytes())
    }

    /// The bytes at [`fields::REFCOUNT_TABLE`].
    pub fn refcount_table_field(&self) -> [u8; 12] {
        let offset = self.refcount_table_offset.0.to_be_bytes();
        joined(offset, self.refcount_table_clusters.to_be_bytes())
    }

    /// The bytes at [`fields::SNAPSHOTS`].
    pub fn snapshots_field(&self) -> [u8; 12] {
        joined(self.snapshots.to_be_bytes(), self.snapshots_offset.0.to_be_bytes())
    }

    /// The bytes at [`fields::FEATURES`].
    pub fn features_field(&self) -> [u8; 24] {
        let mut field = [0; 24];
        let sets = [self.incompatible, self.compatible, self.autoclear];
        for (place, set) in field.chunks_exact_mut(8).zip(sets) {
            place.copy_from_slice(&set.to_be_bytes());
        }
        field
    }

    /// How L2 entries are read.
    pub fn l2_format(&self) -> L2Format {
        L2Format {
            cluster_size: self.cluster_size,
            extended: self.incompatible & features::EXTENDED_L2 != 0,
            external_data: self.has_external_data(),
            zero_flag: self.version >= Version::V3,
        }
    }

    /// Whether guest data is in an external data file.
    pub fn has_external_data(&self) -> bool {
        self.incompatible & features::EXTERNAL_DATA != 0
    }

    /// Whether the external data file is a raw image by itself.
    pub fn has_raw_external_data(&self) -> bool {
        self.has_external_data() && self.autoclear & features::RAW_EXTERNAL_DATA != 0
    }

    /// The backing file's format, if the image names it.
    pub fn backing_format(&self) -> Option<&[u8]> {
        self.extensions.iter().find_map(|extension| match extension {
            Extension::BackingFormat(name) => Some(&name[..]),
            _ => None,
        })
    }

    /// The external data file's name, if the image has it.
    pub fn data_file_name(&self) -> Option<&[u8]> {
        self.extensions.iter().find_map(|extension| match extension {
            Extension::DataFile(name) => Some(&name[..]),
            _ => None,
        })
    }

    /// Where the bitmap directory is, whether or not it is consistent.
    pub fn bitmaps(&self) -> Option<BitmapsExtension> {
        self.extensions.iter().find_map(|extension| match extension {
            Extension::Bitmaps(bitmaps) => Some(*bitmaps),
            _ => None,
        })
    }

    /// Whether the image may be opened by this crate.
    ///
    /// # Errors
    /// `ENOTSUP` for unknown incompatible features, by their names if the image has them.
    pub fn check_supported(&self) -> Result<()> {
        let unknown = self.incompatible & !features::INCOMPATIBLE_KNOWN;
        if unknown == 0 {
            return Ok(());
        }
        let names: Vec<_> = (0..64)
            .filter(|bit| unknown & 1 << bit != 0)
            .map(|bit| self.feature_name(FeatureSet::Incompatible, bit))
            .collect();
        Err(not_supported(format!("an image with incompatible features: {}", names.join(", "))))
    }

    fn feature_name(&self, set: FeatureSet, bit: u8) -> String {
        let named = |name: &&FeatureName| name.set == set as u8 && name.bit == bit;
        let names = self.extensions.iter().filter_map(|extension| match extension {
            Extension::FeatureNames(names) => Some(names),
            _ => None,
        });
        let name = names.flatten().find(named);
        name.map_or_else(|| format!("bit {bit}"), |name| format!("{} (bit {bit})", name.text()))
    }

    /// What holds for every header: alignment, bounds, features that need or exclude each other.
    fn check(&self) -> Result<()> {
        let require = |holds: bool, what: &str| {
            if holds { Ok(()) } else { Err(Error::invalid(format!("header: {what}"))) }
        };
        let format = self.l2_format();
        let aligned = |offset: HostOffset| {
            self.cluster_size.is_aligned(offset.0) && offset.0 <= i64::MAX as u64
        };
        let v3 = self.version >= Version::V3;
        let features = self.incompatible | self.compatible | self.autoclear;
        require(v3 || features == 0, "version 2 has no feature bits")?;
        require(
            v3 || self.refcount_width == RefcountWidth::SIXTEEN,
            "version 2 has 16-bit refcounts",
        )?;
        require(self.size_bytes <= i64::MAX as u64, "the virtual size is out of range")?;
        let l1_bytes = u64::from(self.l1_entries) * 8;
        require(l1_bytes <= limits::L1_MAX_BYTES, "the L1 table is too long")?;
        let needed = format.l1_entries_of(self.size_bytes);
        require(needed <= u64::from(self.l1_entries), "the L1 table is too short")?;
        require(aligned(self.l1_offset), "the L1 table is not aligned")?;
        require(aligned(self.refcount_table_offset), "the refcount table is not aligned")?;
        let clusters = u64::from(self.refcount_table_clusters);
        let table_bytes = clusters << self.cluster_size.bits();
        require(table_bytes <= limits::REFCOUNT_TABLE_MAX_BYTES, "the refcount table is too long")?;
        require(self.snapshots <= limits::SNAPSHOTS_MAX, "there are too many snapshots")?;
        let snapshots_aligned = self.snapshots == 0 || aligned(self.snapshots_offset);
        require(snapshots_aligned, "the snapshot table is not aligned")?;
        let extended_fits = self.cluster_size.bits() >= EXTENDED_L2_MIN_CLUSTER_BITS;
        require(!format.extended || extended_fits, "extended L2 entries need clusters of 16 KiB")?;
        let named = self.incompatible & features::COMPRESSION_TYPE != 0;
        let compression_fits = named == (self.compression != CompressionType::Deflate);
        require(compression_fits, "compression type and its feature bit contradict each other")?;
        let raw_with_backing = self.has_raw_external_data() && self.backing_name.is_some();
        require(!raw_with_backing, "a raw external data file excludes a backing file")?;
        let external_snapshots = format.external_data && self.snapshots > 0;
        require(!external_snapshots, "an external data file excludes internal snapshots")?;
        let name_len = self.backing_name.as_ref().map_or(1, Vec::len);
        let name_fits = (1..=limits::BACKING_NAME_MAX_BYTES as usize).contains(&name_len);
        require(name_fits, "the backing file's name has 1 to 1023 bytes")
    }
}

/// Where the backing file's name is in the first cluster.
fn backing_range(
    cluster_size: ClusterSize,
    fields: &Fields<'_>,
) -> Result<Option<std::ops::Range<usize>>> {
    let (offset, len) = (fields.u64(8), fields.u32(16));
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    let end = offset.saturating_add(u64::from(len));
    if len > limits::BACKING_NAME_MAX_BYTES || end > cluster_size.bytes() {
        let message = format!("a backing file name of {len} bytes at {offset:#x}");
        return Err(Error::invalid(message));
    }
    Ok(Some(offset as usize..end as usize))
}

fn not_supported(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::NotSupported, format!("{what} is not supported"))
}

fn joined<const A: usize, const B: usize>(first: [u8; A], second: [u8; B]) -> [u8; 12] {
    let mut field = [0; 12];
    field[..A].copy_from_slice(&first);
    field[A..].copy_from_slice(&second);
    field
}

/// Big-endian fields by offset; the callers know the length.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[offset..offset + 4]);
        u32::from_be_bytes(bytes)
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from(self.u32(offset)) << 32 | u64::from(self.u32(offset + 4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: Version) -> Header {
        Header {
            version,
            cluster_size: ClusterSize::SIXTY_FOUR_KIB,
            size_bytes: 1 << 30,
            l1_entries: 2,
            l1_offset: HostOffset(0x30000),
            refcount_table_offset: HostOffset(0x10000),
            refcount_table_clusters: 1,
            snapshots: 0,
            snapshots_offset: HostOffset(0),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_width: RefcountWidth::SIXTEEN,
            compression: CompressionType::Deflate,
            unknown_fields: vec![],
            extensions: vec![],
            backing_name: None,
        }
    }

    fn cluster_of(header: &Header) -> Vec<u8> {
        let mut bytes = header.encode().expect("valid");
        bytes.resize(header.cluster_size.bytes() as usize, 0);
        bytes
    }

    fn check_round_trip(header: &Header) {
        assert_eq!(Header::parse(&cluster_of(header)).as_ref().ok(), Some(header));
    }

    #[test]
    fn what_is_written_is_read() {
        check_round_trip(&header(Version::V2));
        check_round_trip(&Header {
            backing_name: Some(b"base.qcow2".to_vec()),
            extensions: vec![Extension::BackingFormat(b"qcow2".to_vec())],
            ..header(Version::V2)
        });
        check_round_trip(&Header {
            incompatible: features::COMPRESSION_TYPE | features::EXTENDED_L2 | 1 << 40,
            compatible: 7,
            autoclear: 1 << 63,
            refcount_width: RefcountWidth::from_bits(1).expect("a width"),
            compression: CompressionType::Zstd,
            unknown_fields: vec![0, 0, 0, 0, 0, 0, 0, 9],
            snapshots: 3,
            snapshots_offset: HostOffset(0x40000),
            l1_entries: 5,
            ..header(Version::V3)
        });
    }

    /// A byte of a valid header is changed: who must notice?
    #[test]
    fn malformed_headers_are_refused() {
        let check = |offset: usize, bytes: &[u8], expect: &str| {
            let mut cluster = cluster_of(&header(Version::V3));
            cluster[offset..offset + bytes.len()].copy_from_slice(bytes);
            let message = Header::parse(&cluster).expect_err(expect).to_string();
            assert!(message.contains(expect), "{message}, not {expect}");
        };
        check(0, b"X", "not a qcow2 image");
        check(4, &[0, 0, 0, 4], "version 4");
        check(20, &[0, 0, 0, 22], "2^22");
        check(32, &[0, 0, 0, 2], "LUKS");
        check(24, &[0x80], "virtual size");
        check(36, &[0, 0, 0, 1], "too short");
        check(36, &[0xff, 0, 0, 0], "L1 table is too long");
        check(46, &[2, 1], "L1 table is not aligned");
        check(54, &[2, 1], "refcount table is not aligned");
        check(56, &[0, 1], "refcount table is too long");
        check(60, &[0, 1, 0, 1], "too many snapshots");
        check(99, &[7], "2^7");
        check(100, &[0, 0, 0, 96], "96 bytes");
        check(100, &[0, 0, 0, 105], "105 bytes");
        check(100, &[0, 1, 0, 8], "65544 bytes");
        check(104, &[1], "contradict");
        check(104, &[2], "compression type 2");
        check(14, &[0xff, 0xff, 0, 0, 0, 9], "backing file name of 9");
    }

    #[test]
    fn unknown_features_are_refused_by_name() {
        let name = FeatureName::new(FeatureSet::Incompatible, 9, "teleportation");
        let header = Header {
            incompatible: 1 << 9 | 1 << 10,
            extensions: vec![Extension::FeatureNames(vec![name])],
            ..header(Version::V3)
        };
        let error = header.check_supported().expect_err("unknown");
        assert_eq!(error.kind(), ErrorKind::NotSupported);
        let message = error.to_string();
        assert!(message.contains("teleportation (bit 9), bit 10"), "{message}");
    }

    #[test]
    fn a_header_has_to_fit() {
        let data = vec![1; 65_000];
        let mut header = header(Version::V3);
        header.extensions = vec![Extension::Unknown { kind: 9, data }];
        assert!(header.encode().is_ok());
        header.backing_name = Some(vec![b'a'; 1000]);
        let kind = header.encode().expect_err("too long").kind();
        assert_eq!(kind, ErrorKind::NoSpace);
    }
}
