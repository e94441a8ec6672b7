//! What Blockloom adds to the bitmaps of an image: which they are, and what lay below the image when they
//! were stored. These are two header extensions of private types, which QEMU keeps as they are: the second changes
//! with every close, and a crash meanwhile is not to take the first.
//!
//! `bytes.rs` draws them.
//!
//! What is said of the files is *current* while the private autoclear bit
//! [`RECORD`](super::header::features::RECORD) is set. Whoever opens the image for writing and does not know
//! the bit clears it; so does this crate, before it changes guest data.

mod bytes;
#[cfg(test)]
mod tests;

use super::extension::Extension;
use super::header::{Header, features};
use bytes::{decode_bitmaps, digest_of, encode_bitmaps, hash_of};

/// `BLOB`.
const BITMAPS: u32 = 0x424c_4f42;
/// `BLOF`.
const BELOW: u32 = 0x424c_4f46;

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
