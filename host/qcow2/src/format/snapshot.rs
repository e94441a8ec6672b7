//! Internal snapshots: the snapshot table (specification, "Snapshots").

use super::{ClusterSize, HostOffset};
use crate::error::{Error, Result};
use crate::limits::{L1_MAX_BYTES, SNAPSHOT_EXTRA_MAX_BYTES};

/// Bytes of an entry before extra data, id and name.
pub const ENTRY_FIXED_BYTES: usize = 40;
/// Longest entry, bytes.
pub const ENTRY_MAX_BYTES: usize =
    ENTRY_FIXED_BYTES + SNAPSHOT_EXTRA_MAX_BYTES as usize + 2 * u16::MAX as usize + 7;
/// Bytes of extra data that the specification gives a meaning.
const EXTRA_KNOWN_BYTES: usize = 24;

/// One internal snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Where its L1 table starts.
    pub l1_table: HostOffset,
    /// Entries of its L1 table.
    pub l1_entries: u32,
    /// Unique id, bytes: QEMU's are decimal numbers.
    pub id: Vec<u8>,
    /// Name, bytes: may be empty.
    pub name: Vec<u8>,
    /// When it was taken: seconds since the Epoch.
    pub date_seconds: u32,
    /// And the part of a second, nanoseconds.
    pub date_nanoseconds: u32,
    /// How long the guest had run, nanoseconds.
    pub vm_clock_nanoseconds: u64,
    /// Bytes of VM state; 0 without.
    pub vm_state_bytes: u64,
    /// Virtual size at that time, bytes; `None` in old images, where it is the image's.
    pub virtual_size: Option<u64>,
    /// Instruction count of record/replay; `None` without.
    pub icount: Option<u64>,
    /// Extra data past what the specification names, kept to the byte.
    pub unknown_extra: Vec<u8>,
}

/// What [`Snapshot::parse`] found at the start of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// An entry, and its bytes with padding.
    Entry(Box<Snapshot>, usize),
    /// An entry that needs at least so many bytes.
    Needs(usize),
}

impl Snapshot {
    /// The name for messages.
    pub fn name_lossy(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.name)
    }

    /// The entry at the start of `bytes`, which may go on.
    ///
    /// # Errors
    /// `EIO` for a table that is not aligned or of absurd size, and for too much extra data.
    pub fn parse(bytes: &[u8], cluster: ClusterSize) -> Result<Parsed> {
        let Some((fixed, rest)) = bytes.split_first_chunk::<ENTRY_FIXED_BYTES>() else {
            return Ok(Parsed::Needs(ENTRY_FIXED_BYTES));
        };
        let word = |at: usize| {
            u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]])
        };
        let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        let (id_len, name_len) = ((word(12) >> 16) as usize, (word(12) & 0xffff) as usize);
        if word(36) > SNAPSHOT_EXTRA_MAX_BYTES {
            return Err(Error::corrupt(format!("snapshot with {} bytes of extra data", word(36))));
        }
        let extra_len = word(36) as usize;
        let len = (ENTRY_FIXED_BYTES + extra_len + id_len + name_len).next_multiple_of(8);
        if bytes.len() < len {
            return Ok(Parsed::Needs(len));
        }
        let (extra, rest) = rest.split_at(extra_len);
        let (id, rest) = rest.split_at(id_len);
        let extra_long = |at: usize| {
            let field = extra.get(at..at + 8)?;
            field.try_into().ok().map(u64::from_be_bytes)
        };
        let snapshot = Self {
            l1_table: HostOffset(long(0)),
            l1_entries: word(8),
            id: id.to_vec(),
            name: rest[..name_len].to_vec(),
            date_seconds: word(16),
            date_nanoseconds: word(20),
            vm_clock_nanoseconds: long(24),
            vm_state_bytes: extra_long(0).unwrap_or_else(|| word(32).into()),
            virtual_size: extra_long(8),
            icount: extra_long(16).filter(|&icount| icount != u64::MAX),
            unknown_extra: extra.get(EXTRA_KNOWN_BYTES..).unwrap_or_default().to_vec(),
        };
        snapshot.validate(cluster)?;
        Ok(Parsed::Entry(Box::new(snapshot), len))
    }

    fn validate(&self, cluster: ClusterSize) -> Result<()> {
        let (at, name) = (self.l1_table.0, self.name_lossy());
        if !cluster.is_aligned(at) || at == 0 && self.l1_entries != 0 {
            return Err(Error::corrupt(format!(
                "snapshot '{name}': L1 table cannot be at {at:#x}"
            )));
        }
        if u64::from(self.l1_entries) * 8 > L1_MAX_BYTES {
            let entries = self.l1_entries;
            return Err(Error::corrupt(format!(
                "snapshot '{name}': L1 table of {entries} entries"
            )));
        }
        Ok(())
    }

    /// Whether version 3 allows the entry: it demands the virtual size.
    pub fn is_complete(&self) -> bool {
        self.virtual_size.is_some()
    }

    /// Bytes of extra data as [`Snapshot::encode_into`] writes them.
    fn extra_len(&self) -> usize {
        if self.virtual_size.is_none() && self.icount.is_none() && self.unknown_extra.is_empty() {
            return 0;
        }
        EXTRA_KNOWN_BYTES + self.unknown_extra.len()
    }

    /// Appends the entry with its padding. An entry without virtual size stays one without extra data.
    ///
    /// # Errors
    /// `EINVAL` for an id or a name of more than 65535 bytes, or extra data of more than
    /// [`SNAPSHOT_EXTRA_MAX_BYTES`].
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<()> {
        let (start, extra_len) = (out.len(), self.extra_len());
        let (Ok(id_len), Ok(name_len)) =
            (u16::try_from(self.id.len()), u16::try_from(self.name.len()))
        else {
            return Err(Error::invalid("snapshot: id and name have at most 65535 bytes"));
        };
        if extra_len > SNAPSHOT_EXTRA_MAX_BYTES as usize {
            return Err(Error::invalid(format!("snapshot: {extra_len} bytes of extra data")));
        }
        out.extend(self.l1_table.0.to_be_bytes());
        out.extend(self.l1_entries.to_be_bytes());
        out.extend(id_len.to_be_bytes());
        out.extend(name_len.to_be_bytes());
        out.extend(self.date_seconds.to_be_bytes());
        out.extend(self.date_nanoseconds.to_be_bytes());
        out.extend(self.vm_clock_nanoseconds.to_be_bytes());
        // The whole number is in the extra data; without them it came from this field.
        out.extend((self.vm_state_bytes as u32).to_be_bytes());
        out.extend((extra_len as u32).to_be_bytes());
        if extra_len > 0 {
            out.extend(self.vm_state_bytes.to_be_bytes());
            out.extend(self.virtual_size.unwrap_or(0).to_be_bytes());
            out.extend(self.icount.unwrap_or(u64::MAX).to_be_bytes());
            out.extend(&self.unknown_extra);
        }
        out.extend(&self.id);
        out.extend(&self.name);
        out.resize(start + (out.len() - start).next_multiple_of(8), 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterSize {
        ClusterSize::from_bits(16).unwrap()
    }

    fn snapshot() -> Snapshot {
        Snapshot {
            l1_table: HostOffset(0x8_0000),
            l1_entries: 2,
            id: b"1".to_vec(),
            name: b"before".to_vec(),
            date_seconds: 1_700_000_000,
            date_nanoseconds: 5,
            vm_clock_nanoseconds: 1 << 40,
            vm_state_bytes: 1 << 33,
            virtual_size: Some(1 << 30),
            icount: Some(77),
            unknown_extra: vec![],
        }
    }

    #[test]
    fn an_entry_comes_back_and_tells_what_it_needs() {
        #[track_caller]
        fn check(snapshot: Snapshot) {
            let mut bytes = Vec::new();
            snapshot.encode_into(&mut bytes).unwrap();
            let len = bytes.len();
            assert_eq!(len % 8, 0);
            bytes.extend([0xff; 50]);
            let parsed = Snapshot::parse(&bytes, cluster()).unwrap();
            assert_eq!(parsed, Parsed::Entry(Box::new(snapshot), len));
            for cut in [0, 39, 40, len - 1] {
                let needs = if cut < 40 { 40 } else { len };
                assert_eq!(
                    Snapshot::parse(&bytes[..cut], cluster()).unwrap(),
                    Parsed::Needs(needs)
                );
            }
        }
        check(snapshot());
        check(Snapshot { icount: None, unknown_extra: vec![3; 21], ..snapshot() });
        check(Snapshot { name: vec![], id: vec![b'i'; 65535], ..snapshot() });
        // Version 2 without extra data: the state's size has 32 bits.
        check(Snapshot { vm_state_bytes: 9, virtual_size: None, icount: None, ..snapshot() });
    }

    #[test]
    fn a_broken_entry_is_an_error() {
        #[track_caller]
        fn check(at: usize, value: u8, message: &str) {
            let mut bytes = Vec::new();
            snapshot().encode_into(&mut bytes).unwrap();
            bytes[at] = value;
            let error = Snapshot::parse(&bytes, cluster()).unwrap_err();
            assert_eq!(error.errno(), 5);
            assert!(error.to_string().contains(message), "{error}");
        }
        check(6, 2, "'before': L1 table cannot be at 0x80200");
        check(5, 0, "L1 table cannot be at 0x0");
        check(8, 1, "entries");
        check(38, 5, "bytes of extra data");
    }
}
