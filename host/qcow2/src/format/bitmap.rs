//! Persistent bitmaps: directory and tables (specification, "Bitmaps").

use super::{ClusterSize, HostOffset};
use crate::error::{Error, Result};
use crate::limits::{BITMAP_DIRECTORY_MAX_BYTES, BITMAP_MAX_BYTES, BITMAPS_MAX};

/// Bytes of a directory entry before extra data and name.
const ENTRY_FIXED_BYTES: usize = 24;
/// Bits 9 to 55 of a table entry.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// Bits of [`BitmapEntry::flags`].
pub mod flag {
    /// Was not stored after its last use: its bits mean nothing.
    pub const IN_USE: u32 = 1 << 0;
    /// Records every change of the image from the moment it is opened.
    pub const AUTO: u32 = 1 << 1;
    /// May be used by who does not know the extra data.
    pub const EXTRA_DATA_COMPATIBLE: u32 = 1 << 2;
    /// Every bit that the specification defines.
    pub const KNOWN: u32 = IN_USE | AUTO | EXTRA_DATA_COMPATIBLE;
}

/// One entry of the bitmap directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapEntry {
    /// Where the bitmap's table starts.
    pub table: HostOffset,
    /// Entries of the table: one a cluster of bits.
    pub table_entries: u32,
    /// See [`flag`].
    pub flags: u32,
    /// 1: dirty tracking. Others are reserved; they are kept.
    pub kind: u8,
    /// A bit stands for `1 << granularity_bits` bytes of the image.
    pub granularity_bits: u8,
    /// Extra data, kept to the byte.
    pub extra: Vec<u8>,
    /// The name: bytes, not empty, unique in the image.
    pub name: Vec<u8>,
}

impl BitmapEntry {
    /// The only type that the specification has: dirty tracking.
    pub const DIRTY_TRACKING: u8 = 1;
    /// Granularities that QEMU accepts, as bits: 512 B to 2 GiB.
    pub const GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;
    /// Longest name that QEMU accepts, bytes.
    pub const NAME_MAX_BYTES: usize = 1023;

    /// Whether the bitmap was not stored after its last use.
    pub fn in_use(&self) -> bool {
        self.flags & flag::IN_USE != 0
    }

    /// Whether the bitmap records from the moment the image is opened.
    pub fn auto(&self) -> bool {
        self.flags & flag::AUTO != 0
    }

    /// The name for messages.
    pub fn name_lossy(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.name)
    }

    /// Whether this crate knows how to use the bitmap: type, granularity, flags and extra data. One that
    /// it does not is kept as it is.
    pub fn is_usable(&self) -> bool {
        let extra_ok = self.extra.is_empty() || self.flags & flag::EXTRA_DATA_COMPATIBLE != 0;
        self.kind == Self::DIRTY_TRACKING
            && self.flags & !flag::KNOWN == 0
            && Self::GRANULARITY_BITS.contains(&self.granularity_bits)
            && extra_ok
    }

    /// Bytes of the entry on disk, padding included.
    pub fn len_bytes(&self) -> usize {
        (ENTRY_FIXED_BYTES + self.extra.len() + self.name.len()).next_multiple_of(8)
    }

    /// Table entries that a bitmap over `virtual_size` bytes needs.
    ///
    /// # Errors
    /// `EINVAL` for a bitmap of more than [`BITMAP_MAX_BYTES`].
    pub fn table_entries_for(
        virtual_size: u64,
        granularity_bits: u8,
        cluster: ClusterSize,
    ) -> Result<u32> {
        let bits =
            virtual_size.div_ceil(1u64.checked_shl(granularity_bits.into()).unwrap_or(0).max(1));
        let bytes = bits.div_ceil(8);
        if bytes > BITMAP_MAX_BYTES {
            let message = format!(
                "a bitmap of {bytes} bytes: at most {BITMAP_MAX_BYTES}; a larger granularity is needed"
            );
            return Err(Error::invalid(message));
        }
        // At most 2^29 bytes in clusters of at least 2^9.
        Ok(cluster.clusters_of(bytes) as u32)
    }

    fn encode_into(&self, out: &mut Vec<u8>) -> Result<()> {
        let name_len = u16::try_from(self.name.len()).ok().filter(|&len| len > 0);
        let (Some(name_len), Ok(extra_len)) = (name_len, u32::try_from(self.extra.len())) else {
            return Err(Error::invalid("bitmap: a name of 1 to 65535 bytes is needed"));
        };
        let start = out.len();
        out.extend(self.table.0.to_be_bytes());
        out.extend(self.table_entries.to_be_bytes());
        out.extend(self.flags.to_be_bytes());
        out.extend([self.kind, self.granularity_bits]);
        out.extend(name_len.to_be_bytes());
        out.extend(extra_len.to_be_bytes());
        out.extend(&self.extra);
        out.extend(&self.name);
        out.resize(start + self.len_bytes(), 0);
        Ok(())
    }

    /// The entry at the start of `bytes`, and its length with padding.
    fn parse(bytes: &[u8], cluster: ClusterSize) -> Result<(Self, usize)> {
        let cut = || Error::corrupt("bitmap directory: an entry goes past its end");
        let (fixed, rest) = bytes.split_first_chunk::<ENTRY_FIXED_BYTES>().ok_or_else(cut)?;
        let word = |at: usize| {
            u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]])
        };
        let table = HostOffset(u64::from(word(0)) << 32 | u64::from(word(4)));
        let name_len = usize::from(u16::from_be_bytes([fixed[18], fixed[19]]));
        let (extra, rest) = rest.split_at_checked(word(20) as usize).ok_or_else(cut)?;
        let name = rest.get(..name_len).ok_or_else(cut)?;
        let entry = Self {
            table,
            table_entries: word(8),
            flags: word(12),
            kind: fixed[16],
            granularity_bits: fixed[17],
            extra: extra.to_vec(),
            name: name.to_vec(),
        };
        let len = entry.len_bytes();
        if len > bytes.len() {
            return Err(cut());
        }
        entry.validate(cluster)?;
        Ok((entry, len))
    }

    fn validate(&self, cluster: ClusterSize) -> Result<()> {
        let name = self.name_lossy();
        if self.name.is_empty() {
            return Err(Error::corrupt("bitmap directory: an entry without a name"));
        }
        if !cluster.is_aligned(self.table.0) || self.table.0 == 0 && self.table_entries != 0 {
            let at = self.table.0;
            return Err(Error::corrupt(format!("bitmap '{name}': its table cannot be at {at:#x}")));
        }
        let bits_bytes = u64::from(self.table_entries) << cluster.bits();
        if bits_bytes > BITMAP_MAX_BYTES.next_multiple_of(cluster.bytes()) {
            return Err(Error::corrupt(format!("bitmap '{name}': {bits_bytes} bytes of bits")));
        }
        if self.granularity_bits > 63 {
            return Err(Error::corrupt(format!("bitmap '{name}': granularity out of range")));
        }
        Ok(())
    }
}

/// The directory: `count` entries in exactly `bytes`.
///
/// # Errors
/// `EIO` for a directory that does not hold exactly so many valid entries with different names.
pub fn parse_directory(bytes: &[u8], count: u32, cluster: ClusterSize) -> Result<Vec<BitmapEntry>> {
    if count > BITMAPS_MAX || bytes.len() as u64 > BITMAP_DIRECTORY_MAX_BYTES {
        let message =
            format!("bitmap directory of {count} entries, {} bytes: too large", bytes.len());
        return Err(Error::corrupt(message));
    }
    let mut entries = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (entry, len) = BitmapEntry::parse(rest, cluster)?;
        entries.push(entry);
        rest = &rest[len..];
    }
    if entries.len() as u64 != u64::from(count) {
        let found = entries.len();
        return Err(Error::corrupt(format!(
            "bitmap directory: {found} entries instead of {count}"
        )));
    }
    let mut names: Vec<&[u8]> = entries.iter().map(|entry| &entry.name[..]).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let name = String::from_utf8_lossy(pair[0]);
        return Err(Error::corrupt(format!("bitmap directory: two bitmaps '{name}'")));
    }
    Ok(entries)
}

/// The directory's bytes.
///
/// # Errors
/// `EINVAL` for a name that is empty or too long, `ENOSPC` past the bounds of [`crate::limits`].
pub fn encode_directory(entries: &[BitmapEntry]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for entry in entries {
        entry.encode_into(&mut out)?;
    }
    if entries.len() as u64 > BITMAPS_MAX.into() || out.len() as u64 > BITMAP_DIRECTORY_MAX_BYTES {
        return Err(Error::new(crate::ErrorKind::NoSpace, "bitmap directory: it is full"));
    }
    Ok(out)
}

/// One entry of a bitmap's table: a cluster of its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapCluster {
    /// Every bit is clear; nothing is stored.
    Zeros,
    /// Every bit is set; nothing is stored.
    Ones,
    /// The bits are there.
    Stored(HostOffset),
}

impl BitmapCluster {
    /// From the native value of a table entry.
    ///
    /// # Errors
    /// `EIO` for reserved bits and offsets that are not aligned.
    pub fn decode(entry: u64, cluster: ClusterSize) -> Result<Self> {
        let offset = entry & OFFSET_MASK;
        match entry {
            0 => Ok(Self::Zeros),
            1 => Ok(Self::Ones),
            _ if entry == offset && cluster.is_aligned(offset) => {
                Ok(Self::Stored(HostOffset(offset)))
            }
            _ => Err(Error::corrupt(format!(
                "bitmap table entry {entry:#x}: bits that are reserved"
            ))),
        }
    }

    /// The native value of the table entry.
    pub fn encode(self) -> u64 {
        match self {
            Self::Zeros => 0,
            Self::Ones => 1,
            Self::Stored(host) => host.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterSize {
        ClusterSize::from_bits(16).unwrap()
    }

    fn entry(name: &str) -> BitmapEntry {
        BitmapEntry {
            table: HostOffset(0x5_0000),
            table_entries: 3,
            flags: flag::AUTO,
            kind: 1,
            granularity_bits: 16,
            extra: vec![],
            name: name.into(),
        }
    }

    #[test]
    fn a_directory_comes_back() {
        let with_extra = BitmapEntry {
            extra: vec![9; 13],
            flags: flag::IN_USE | flag::EXTRA_DATA_COMPATIBLE,
            ..entry("zweite")
        };
        let entries = [entry("a"), with_extra, BitmapEntry { kind: 7, ..entry("later type") }];
        let bytes = encode_directory(&entries).unwrap();
        assert_eq!(bytes.len() % 8, 0);
        assert_eq!(parse_directory(&bytes, 3, cluster()).unwrap(), entries);
        assert_eq!(entries.each_ref().map(|entry| entry.is_usable()), [true, true, false]);
        assert_eq!((entries[1].in_use(), entries[1].auto()), (true, false));
    }

    #[test]
    fn an_entry_is_as_the_specification_draws_it() {
        let mut expect =
            vec![0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2, 1, 16, 0, 3, 0, 0, 0, 0];
        expect.extend(b"bit\0\0\0\0\0");
        assert_eq!(encode_directory(&[entry("bit")]).unwrap(), expect);
    }

    #[test]
    fn a_broken_directory_is_an_error() {
        #[track_caller]
        fn check(bytes: &[u8], count: u32, message: &str) {
            let error = parse_directory(bytes, count, cluster()).unwrap_err();
            assert_eq!(error.errno(), 5);
            assert!(error.to_string().contains(message), "{error}");
        }
        let good = encode_directory(&[entry("a")]).unwrap();
        let poke = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        check(&good, 2, "1 entries instead of 2");
        check(&good[..31], 1, "past its end");
        check(&good[..20], 1, "past its end");
        check(&[&good[..], &good].concat(), 2, "two bitmaps 'a'");
        check(&poke(6, 1), 1, "table cannot be at 0x50100");
        check(&poke(5, 0), 1, "table cannot be at 0x0");
        check(&poke(8, 1), 1, "bytes of bits");
        check(&poke(17, 64), 1, "granularity");
        check(&poke(19, 0), 1, "without a name");
        check(&poke(20, 255), 1, "past its end");
        check(&[], BITMAPS_MAX + 1, "too large");
    }

    #[test]
    fn table_entries_are_zeros_ones_or_a_place() {
        #[track_caller]
        fn check(entry: u64, expect: Option<BitmapCluster>) {
            let decoded = BitmapCluster::decode(entry, cluster()).ok();
            assert_eq!(decoded, expect);
            assert!(decoded.is_none_or(|decoded| decoded.encode() == entry));
        }
        check(0, Some(BitmapCluster::Zeros));
        check(1, Some(BitmapCluster::Ones));
        check(0x7_0000, Some(BitmapCluster::Stored(HostOffset(0x7_0000))));
        check(0x7_0001, None);
        check(0x7_0200, None);
        check(2, None);
        check(1 << 56, None);
    }

    #[test]
    fn a_table_covers_the_virtual_size() {
        #[track_caller]
        fn check(size: u64, granularity_bits: u8, expect: Option<u32>) {
            let entries = BitmapEntry::table_entries_for(size, granularity_bits, cluster());
            assert_eq!(entries.ok(), expect);
        }
        check(0, 16, Some(0));
        check(1, 16, Some(1));
        check(1 << 35, 16, Some(1));
        check((1 << 35) + 1, 16, Some(2));
        check(1 << 41, 9, Some(1 << 13));
        check((1 << 41) + 1, 9, None);
        check(u64::MAX, 63, Some(1));
    }
}
