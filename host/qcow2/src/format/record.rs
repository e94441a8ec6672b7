//! What Blockloom adds to the bitmaps of an image: which they are, and what lay below the image when they
//! were stored. These are two header extensions of private types, which QEMU keeps as they are: the second changes
//! with every close, and a crash meanwhile is not to take the first.
//!
//! ```text
//! bitmaps  0  version, 4 bytes: 1; an extension with another number counts as not there
//!          4  number of bitmaps, 4 bytes
//!          8  bitmaps, 32 bytes each: hash of the name (8), generation (8), UUID (16)
//!
//! below    0  version, 4 bytes: 1
//!          4  what is said of the files, 4 bytes: 0 nothing, 1 each of them, 2 all of them by the digest alone
//!          8  number of files, 4 bytes; 4 bytes of zeros
//!         16  digest of the files, 16 bytes; zeros if nothing is said of them
//!         32  files, 40 bytes each: kind (4), zeros (4), size (8), modified (8), changed (8), inode (8)
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

/// `BLOB`.
const BITMAPS: u32 = 0x424c_4f42;
/// `BLOF`.
const BELOW: u32 = 0x424c_4f46;
const VERSION: u32 = 1;
const BITMAPS_HEAD_BYTES: usize = 8;
const BELOW_HEAD_BYTES: usize = 32;
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
}

/// The bitmaps that an extension names; `None` for another version, and for what is malformed.
fn decode_bitmaps(data: &[u8]) -> Option<Vec<(u64, BitmapIdentity)>> {
    let count = (word(data, 0) & u64::from(u32::MAX)) as u32;
    if data.len() < BITMAPS_HEAD_BYTES
        || word(data, 0) >> 32 != u64::from(VERSION)
        || count > BITMAPS_MAX
    {
        return None;
    }
    let (bitmaps, rest) = data[BITMAPS_HEAD_BYTES..].as_chunks::<BITMAP_BYTES>();
    (rest.is_empty() && bitmaps.len() == count as usize)
        .then(|| bitmaps.iter().map(decode_bitmap).collect())
}

fn encode_bitmaps(bitmaps: &[(u64, BitmapIdentity)]) -> Vec<u8> {
    let mut data = VERSION.to_be_bytes().to_vec();
    data.extend((bitmaps.len() as u32).to_be_bytes());
    for (hash, identity) in bitmaps {
        data.extend(hash.to_be_bytes());
        data.extend(identity.generation.to_be_bytes());
        data.extend(identity.uuid);
    }
    data
}

impl Below {
    /// What an extension says; `None` for another version, and for what is malformed.
    fn decode(data: &[u8]) -> Option<Self> {
        let digest: [u8; 16] = *data.get(16..)?.first_chunk()?;
        let (said, count) = ((word(data, 0) & u64::from(u32::MAX)) as u32, word(data, 8));
        let (files, rest) = data[BELOW_HEAD_BYTES..].as_chunks::<FILE_BYTES>();
        let is_whole = rest.is_empty() && count == (files.len() as u64) << 32;
        if word(data, 0) >> 32 != u64::from(VERSION)
            || !is_whole
            || files.len() > RECORD_FILES_MAX as usize
            || said != EACH && !files.is_empty()
        {
            return None;
        }
        let files: Option<Vec<FileIdentity>> = files.iter().map(decode_file).collect();
        match said {
            NOTHING => Some(Self::Unknown),
            EACH => files.filter(|files| digest_of(files) == digest).map(Self::Files),
            DIGEST => Some(Self::Digest(digest)),
            _ => None,
        }
    }

    /// The extension's data.
    fn encode(&self) -> Vec<u8> {
        let none = Vec::new();
        let (said, files, digest) = match self {
            Self::Unknown => (NOTHING, &none, [0; 16]),
            Self::Files(files) if files.len() > RECORD_FILES_MAX as usize => {
                (DIGEST, &none, digest_of(files))
            }
            Self::Files(files) => (EACH, files, digest_of(files)),
            Self::Digest(digest) => (DIGEST, &none, *digest),
        };
        let mut data = Vec::new();
        for word in [VERSION, said, files.len() as u32, 0] {
            data.extend(word.to_be_bytes());
        }
        data.extend(digest);
        data.extend(files.iter().flat_map(encode_file));
        data
    }

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
        let bitmaps = decode_bitmaps(self.private(BITMAPS)?)?;
        let below = self.private(BELOW).and_then(Below::decode).unwrap_or(Below::Unknown);
        Some(Record { bitmaps, below })
    }

    /// The data of a private extension; `None` if it is there twice, too.
    fn private(&self, kind: u32) -> Option<&[u8]> {
        let data = |extension| match extension {
            &Extension::Unknown { kind: other, ref data } if other == kind => Some(&data[..]),
            _ => None,
        };
        let mut found = self.extensions.iter().filter_map(data);
        let data = found.next()?;
        found.next().is_none().then_some(data)
    }

    /// Whether nobody who does not know the record has opened the image for writing since it was made.
    pub fn is_record_current(&self) -> bool {
        self.autoclear & features::RECORD != 0
    }

    /// Replaces what is recorded.
    pub fn set_record(&mut self, record: Option<&Record>, is_current: bool) {
        self.set_private(BITMAPS, record.map(|record| encode_bitmaps(&record.bitmaps)));
        self.set_private(BELOW, record.map(|record| record.below.encode()));
        self.autoclear &= !features::RECORD;
        self.autoclear |= if record.is_some() && is_current { features::RECORD } else { 0 };
    }

    fn set_private(&mut self, kind: u32, data: Option<Vec<u8>>) {
        let is_it = |extension: &Extension| matches!(extension, Extension::Unknown { kind: other, .. } if *other == kind);
        let at = self.extensions.iter().position(is_it).unwrap_or(self.extensions.len());
        self.extensions.retain(|extension| !is_it(extension));
        let new = data.map(|data| Extension::Unknown { kind, data });
        self.extensions.splice(at..at, new);
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
    use crate::testing::{Geometry, blank_image};

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
            assert_eq!(Below::decode(&record.below.encode()).as_ref(), Some(&record.below));
            assert_eq!(
                decode_bitmaps(&encode_bitmaps(&record.bitmaps)).as_ref(),
                Some(&record.bitmaps)
            );
        };
        check(&Record::EMPTY);
        let full = record(Below::Files(files()));
        for record in [record(Below::Unknown), record(Below::Files(vec![])), full.clone()] {
            check(&record);
            check(&record.folded());
        }
        let len = |record: &Record| record.below.encode().len();
        assert!(len(&full.folded()) < len(&full));
        // There is room for the digest from the beginning.
        assert_eq!(len(&full.folded()), len(&Record::EMPTY));
        let many = Below::Files(vec![file(FileKind::Below, 1); RECORD_FILES_MAX as usize + 1]);
        assert!(matches!(Below::decode(&many.encode()), Some(Below::Digest(_))));
        let mut fewer = full;
        assert_eq!(fewer.identity("täglich".as_bytes()).map(|it| it.generation), Some(u64::MAX));
        fewer.retain([&b"a"[..], b"other"].into_iter());
        assert_eq!(fewer.identity("täglich".as_bytes()), None);
        assert_eq!(fewer.identity(b"a").map(|it| it.uuid), Some([1; 16]));
    }

    #[test]
    fn what_is_malformed_counts_as_not_there() {
        let (bitmaps, below) = {
            let record = record(Below::Files(files()));
            (encode_bitmaps(&record.bitmaps), record.below.encode())
        };
        for len in 0..bitmaps.len() {
            assert_eq!(decode_bitmaps(&bitmaps[..len]), None, "{len} bytes");
        }
        for len in 0..below.len() {
            assert_eq!(Below::decode(&below[..len]), None, "{len} bytes");
        }
        assert_eq!(decode_bitmaps(&[&bitmaps[..], &[0]].concat()), None);
        assert_eq!(Below::decode(&[&below[..], &[0]].concat()), None);
        let mut random = fastrand::Rng::with_seed(7);
        for at in 0..BITMAPS_HEAD_BYTES {
            let mut damaged = bitmaps.clone();
            damaged[at] ^= random.u8(1..);
            assert_eq!(decode_bitmaps(&damaged), None, "byte {at}");
        }
        for at in 0..below.len() {
            let mut damaged = below.clone();
            damaged[at] ^= random.u8(1..);
            // Padding does not count.
            let place = at.checked_sub(BELOW_HEAD_BYTES).map(|at| at % FILE_BYTES);
            let is_padding = place.is_some_and(|place| (4..8).contains(&place));
            assert_eq!(Below::decode(&damaged).is_none(), !is_padding, "byte {at}");
        }
        for _ in 0..10_000 {
            let mut noise = vec![0; random.usize(0..200)];
            noise.fill_with(|| random.u8(..4));
            let _ = (Below::decode(&noise), decode_bitmaps(&noise));
        }
    }

    /// As in any image: what another version wrote, and what is there twice, is nothing; it can be replaced.
    #[test]
    fn a_header_has_one_record_or_none() {
        let image = blank_image(&Geometry::usual(1 << 20));
        let mut header = Header::parse(&image).expect("a header");
        assert_eq!(header.record(), None);
        let full = record(Below::Files(files()));
        header.set_record(Some(&full), true);
        assert_eq!((header.record().as_ref(), header.is_record_current()), (Some(&full), true));
        let mut cluster = header.encode().expect("room");
        cluster.resize(header.cluster_size.bytes() as usize, 0);
        let again = Header::parse(&cluster).expect("a header");
        assert_eq!(again, header);
        let twice =
            header.extensions.iter().find(|it| matches!(it, Extension::Unknown { .. })).cloned();
        header.extensions.extend(twice);
        assert_eq!(header.record(), None);
        header.set_record(Some(&full), false);
        assert_eq!((header.record().as_ref(), header.is_record_current()), (Some(&full), false));
        if let Some(Extension::Unknown { data, .. }) = header.extensions.first_mut() {
            data[3] = 2;
        }
        assert_eq!(header.record(), None);
        header.set_record(None, true);
        assert!(header.extensions.is_empty() && !header.is_record_current());
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
