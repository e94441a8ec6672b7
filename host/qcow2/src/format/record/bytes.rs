//! A record to the byte:
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

use super::{Below, BitmapIdentity, FileIdentity, FileKind};
use crate::limits::{BITMAPS_MAX, RECORD_FILES_MAX};

const VERSION: u32 = 1;
pub(super) const BITMAPS_HEAD_BYTES: usize = 8;
pub(super) const BELOW_HEAD_BYTES: usize = 32;
const BITMAP_BYTES: usize = 32;
pub(super) const FILE_BYTES: usize = 40;

const NOTHING: u32 = 0;
const EACH: u32 = 1;
const DIGEST: u32 = 2;

/// The bitmaps that an extension names; `None` for another version, and for what is malformed.
pub(super) fn decode_bitmaps(data: &[u8]) -> Option<Vec<(u64, BitmapIdentity)>> {
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

pub(super) fn encode_bitmaps(bitmaps: &[(u64, BitmapIdentity)]) -> Vec<u8> {
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
    pub(super) fn decode(data: &[u8]) -> Option<Self> {
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
    pub(super) fn encode(&self) -> Vec<u8> {
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

pub(super) fn hash_of(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

pub(super) fn digest_of(files: &[FileIdentity]) -> [u8; 16] {
    let bytes = files.iter().flat_map(encode_file);
    let hash = bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash: u128, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    hash.to_be_bytes()
}
