//! What Blockloom adds to the bitmaps of an image: which they are, and what lay below the image when they
//! were stored. It is a header extension of a private type, which QEMU keeps as it is.
//!
//! ```text
//!  0  version, 4 bytes: 1; one with another number counts as not there
//!  4  what is said of the files below, 4 bytes: 0 nothing, 1 each of them, 2 all of them by the digest alone
//!  8  number of bitmaps, 4 bytes
//! 12  number of files, 4 bytes
//! 16  digest of the files, 16 bytes; zeros if nothing is said of them
//! 32  bitmaps, 32 bytes each: hash of the name (8), generation (8), UUID (16)
//!     files, 40 bytes each: kind (4), zeros (4), size (8), modified (8), changed (8), inode (8)
//! ```
//!
//! All numbers are big-endian. Hashes are FNV-1a, of 64 bits for names and of 128 for the files.
//!
//! What is said of the files is *current* while the private autoclear bit
//! [`RECORD`](super::header::features::RECORD) is set. Whoever opens the image for writing and does not know
//! the bit clears it; so does this crate, before it changes anything.

use super::extension::Extension;
use super::header::{Header, features};
use crate::limits::{BITMAPS_MAX, RECORD_FILES_MAX};

/// `BLOM`.
const KIND: u32 = 0x424c_4f4d;
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 32;
const BITMAP_BYTES: usize = 32;
const FILE_BYTES: usize = 40;

const NOTHING: u32 = 0;
const EACH: u32 = 1;
const DIGEST: u32 = 2;

/// Which bitmap one is, wherever it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapIdentity {
    /// The same for its whole life.
    pub uuid: [u8; 16],
    /// Grows when it goes to another image.
    pub generation: u64,
}

/// What a file below an image is to the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FileKind {
    /// Not written through the image.
    Below = 0,
    /// The image's data file: who writes the image changes it.
    Data = 1,
    /// No file: numbers that decide what is shown of the next one.
    Shape = 2,
}

/// What tells whether a file has been changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// What it is to the image.
    pub kind: FileKind,
    /// Its length, bytes.
    pub size_bytes: u64,
    /// When its bytes were changed last, nanoseconds.
    pub modified_ns: u64,
    /// When anything of it was changed last, nanoseconds.
    pub changed_ns: u64,
    /// Its number in its file system.
    pub inode: u64,
}

/// What is said of the files below an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Below {
    /// Nothing: no files are what they were.
    Unknown,
    /// Each of them, in an order that follows from the graph.
    Files(Vec<FileIdentity>),
    /// The digest of all of them.
    Digest([u8; 16]),
}

/// How files compare with what was said of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// They are what they were.
    Same,
    /// No file but the data file is another, which has this number.
    DataDiffers(usize),
    /// This one is another; `None` if it cannot be told which, or if there are more or fewer of them.
    Differs(Option<usize>),
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// By the hash of the name, each once.
    bitmaps: Vec<(u64, BitmapIdentity)>,
    /// What is said of the files.
    pub below: Below,
}

impl Record {
    /// One that says nothing.
    pub const EMPTY: Self = Self { bitmaps: Vec::new(), below: Below::Unknown };

    /// The identity of the bitmap of this name.
    pub fn identity(&self, name: &[u8]) -> Option<BitmapIdentity> {
        let hash = hash_of(name);
        self.bitmaps.iter().find(|(other, _)| *other == hash).map(|(_, identity)| *identity)
    }

    /// Sets or takes away the identity of the bitmap of this name.
    pub fn set_identity(&mut self, name: &[u8], identity: Option<BitmapIdentity>) {
        let hash = hash_of(name);
        self.bitmaps.retain(|(other, _)| *other != hash);
        self.bitmaps.extend(identity.map(|identity| (hash, identity)));
    }

    /// Forgets all bitmaps but those of these names.
    pub fn retain<'a>(&mut self, names: impl Iterator<Item = &'a [u8]>) {
        let hashes: Vec<u64> = names.map(hash_of).collect();
        self.bitmaps.retain(|(hash, _)| hashes.contains(hash));
    }

    /// The same with the digest of the files alone, which needs less room.
    pub fn folded(&self) -> Self {
        let below = match &self.below {
            Below::Files(files) => Below::Digest(digest_of(files)),
            other => other.clone(),
        };
        Self { below, ..self.clone() }
    }

    /// What an extension says; `None` for another version, and for what is malformed.
    pub fn decode(data: &[u8]) -> Option<Self> {
        let words: Vec<u32> =
            data.get(..16)?.as_chunks().0.iter().map(|word| u32::from_be_bytes(*word)).collect();
        let [VERSION, said, bitmaps, files] = words[..] else { return None };
        let digest: [u8; 16] = *data.get(16..)?.first_chunk()?;
        let is_bounded = bitmaps <= BITMAPS_MAX && files <= RECORD_FILES_MAX;
        if !is_bounded || said != EACH && files != 0 {
            return None;
        }
        let files_at = HEAD_BYTES.checked_add(bitmaps as usize * BITMAP_BYTES)?;
        let end = files_at.checked_add(files as usize * FILE_BYTES)?;
        if end != data.len() {
            return None;
        }
        let bitmaps = data[HEAD_BYTES..files_at].as_chunks::<BITMAP_BYTES>().0;
        let files: Option<Vec<FileIdentity>> =
            data[files_at..].as_chunks::<FILE_BYTES>().0.iter().map(decode_file).collect();
        let below = match said {
            NOTHING => Below::Unknown,
            EACH => Below::Files(files.filter(|files| digest_of(files) == digest)?),
            DIGEST => Below::Digest(digest),
            _ => return None,
        };
        let bitmaps = bitmaps.iter().map(decode_bitmap).collect();
        Some(Self { bitmaps, below })
    }

    /// The extension's data.
    fn encode(&self) -> Vec<u8> {
        let none = Vec::new();
        let (said, files, digest) = match &self.below {
            Below::Unknown => (NOTHING, &none, [0; 16]),
            Below::Files(files) => (EACH, files, digest_of(files)),
            Below::Digest(digest) => (DIGEST, &none, *digest),
        };
        let mut data = Vec::new();
        for word in [VERSION, said, self.bitmaps.len() as u32, files.len() as u32] {
            data.extend(word.to_be_bytes());
        }
        data.extend(digest);
        for (hash, identity) in &self.bitmaps {
            data.extend(hash.to_be_bytes());
            data.extend(identity.generation.to_be_bytes());
            data.extend(identity.uuid);
        }
        data.extend(files.iter().flat_map(encode_file));
        data
    }
}

impl Below {
    /// Compares what was said with the files as they are now.
    pub fn fit(&self, now: &[FileIdentity]) -> Fit {
        let then = match self {
            Self::Unknown => return Fit::Differs(None),
            Self::Digest(digest) if *digest == digest_of(now) => return Fit::Same,
            Self::Digest(_) => return Fit::Differs(None),
            Self::Files(files) => files,
        };
        let mut fit = Fit::Same;
        for (at, (then, now)) in then.iter().zip(now).enumerate() {
            match (then == now, then.kind == FileKind::Data && now.kind == FileKind::Data) {
                (true, _) => {}
                (false, true) => fit = Fit::DataDiffers(at),
                (false, false) => return Fit::Differs(Some(at)),
            }
        }
        if then.len() == now.len() { fit } else { Fit::Differs(None) }
    }
}

impl Header {
    /// What is recorded of the bitmaps, if it can be read.
    pub fn record(&self) -> Option<Record> {
        let mut found = self.extensions.iter().filter_map(record_data);
        let record = Record::decode(found.next()?)?;
        found.next().is_none().then_some(record)
    }

    /// Whether nobody who does not know the record has opened the image for writing since it was made.
    pub fn is_record_current(&self) -> bool {
        self.autoclear & features::RECORD != 0
    }

    /// Replaces what is recorded.
    pub fn set_record(&mut self, record: Option<&Record>, is_current: bool) {
        let new = record.map(|record| Extension::Unknown { kind: KIND, data: record.encode() });
        let at = self.extensions.iter().position(|extension| record_data(extension).is_some());
        match (at, new) {
            (Some(at), Some(new)) => self.extensions[at] = new,
            (Some(at), None) => drop(self.extensions.remove(at)),
            (None, Some(new)) => self.extensions.push(new),
            (None, None) => {}
        }
        self.autoclear &= !features::RECORD;
        self.autoclear |= if record.is_some() && is_current { features::RECORD } else { 0 };
    }
}

fn record_data(extension: &Extension) -> Option<&[u8]> {
    match extension {
        Extension::Unknown { kind: KIND, data } => Some(data),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    word.map_or(0, |word| u64::from_be_bytes(*word))
}

fn decode_bitmap(bytes: &[u8; BITMAP_BYTES]) -> (u64, BitmapIdentity) {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&bytes[16..]);
    (word(bytes, 0), BitmapIdentity { generation: word(bytes, 8), uuid })
}

fn decode_file(bytes: &[u8; FILE_BYTES]) -> Option<FileIdentity> {
    let kind = match word(bytes, 0) >> 32 {
        0 => FileKind::Below,
        1 => FileKind::Data,
        2 => FileKind::Shape,
        _ => return None,
    };
    let [size_bytes, modified_ns, changed_ns, inode] = [8, 16, 24, 32].map(|at| word(bytes, at));
    Some(FileIdentity { kind, size_bytes, modified_ns, changed_ns, inode })
}

fn encode_file(file: &FileIdentity) -> [u8; FILE_BYTES] {
    let words = [file.size_bytes, file.modified_ns, file.changed_ns, file.inode];
    let mut bytes = [0; FILE_BYTES];
    bytes[..4].copy_from_slice(&(file.kind as u32).to_be_bytes());
    for (place, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

fn hash_of(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn digest_of(files: &[FileIdentity]) -> [u8; 16] {
    let bytes = files.iter().flat_map(encode_file);
    let hash = bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash: u128, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    hash.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(kind: FileKind, inode: u64) -> FileIdentity {
        FileIdentity { kind, size_bytes: 1 << 40, modified_ns: 7, changed_ns: u64::MAX, inode }
    }

    fn record(below: Below) -> Record {
        let mut record = Record { below, ..Record::EMPTY };
        for (name, generation) in [("a", 1), ("täglich", u64::MAX)] {
            let identity = BitmapIdentity { uuid: [generation as u8; 16], generation };
            record.set_identity(name.as_bytes(), Some(identity));
        }
        record
    }

    fn files() -> Vec<FileIdentity> {
        vec![file(FileKind::Shape, 1), file(FileKind::Below, 2), file(FileKind::Data, 3)]
    }

    #[test]
    fn what_is_written_is_read() {
        let check = |record: &Record| {
            assert_eq!(Record::decode(&record.encode()).as_ref(), Some(record));
        };
        check(&Record::EMPTY);
        let full = record(Below::Files(files()));
        for record in [record(Below::Unknown), record(Below::Files(vec![])), full.clone()] {
            check(&record);
            check(&record.folded());
        }
        assert!(full.folded().encode().len() < full.encode().len());
        // There is room for the digest from the beginning.
        assert_eq!(full.folded().encode().len(), record(Below::Unknown).encode().len());
        let mut fewer = full;
        assert_eq!(fewer.identity("täglich".as_bytes()).map(|it| it.generation), Some(u64::MAX));
        fewer.retain([&b"a"[..], b"other"].into_iter());
        assert_eq!(fewer.identity("täglich".as_bytes()), None);
        assert_eq!(fewer.identity(b"a").map(|it| it.uuid), Some([1; 16]));
    }

    #[test]
    fn what_is_malformed_counts_as_not_there() {
        let whole = record(Below::Files(files())).encode();
        for len in 0..whole.len() {
            assert_eq!(Record::decode(&whole[..len]), None, "{len} bytes");
        }
        assert_eq!(Record::decode(&[&whole[..], &[0]].concat()), None);
        let files_at = whole.len() - 3 * FILE_BYTES;
        let mut random = fastrand::Rng::with_seed(7);
        for at in (0..32).chain(files_at..whole.len()) {
            let mut damaged = whole.clone();
            damaged[at] ^= random.u8(1..);
            // Padding does not count.
            let is_padding = at >= files_at && (4..8).contains(&((at - files_at) % FILE_BYTES));
            assert_eq!(Record::decode(&damaged).is_none(), !is_padding, "byte {at}");
        }
        for _ in 0..10_000 {
            let mut noise = vec![0; random.usize(0..200)];
            noise.fill_with(|| random.u8(..4));
            let _ = Record::decode(&noise);
        }
    }

    #[test]
    fn files_are_compared_one_by_one() {
        let mut now = files();
        let then = [Below::Files(files()), record(Below::Files(files())).folded().below];
        let check = |now: &[FileIdentity], expect: [Fit; 2]| {
            assert_eq!(then.each_ref().map(|then| then.fit(now)), expect);
        };
        check(&now, [Fit::Same; 2]);
        now[2].modified_ns += 1;
        check(&now, [Fit::DataDiffers(2), Fit::Differs(None)]);
        now[1].inode += 1;
        check(&now, [Fit::Differs(Some(1)), Fit::Differs(None)]);
        check(&files()[..2], [Fit::Differs(None); 2]);
        now = files();
        now[2].kind = FileKind::Below;
        check(&now, [Fit::Differs(Some(2)), Fit::Differs(None)]);
        assert_eq!(Below::Unknown.fit(&[]), Fit::Differs(None));
        assert_eq!(Below::Files(vec![]).fit(&[]), Fit::Same);
    }
}
