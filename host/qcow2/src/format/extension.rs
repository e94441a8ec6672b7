//! Header extensions (specification, "Header extensions").

use crate::error::{Error, Result};

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const ENCRYPTION: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;
/// Type and length, before the data.
const HEAD_BYTES: usize = 8;
const FEATURE_NAME_BYTES: usize = 48;

/// A header extension; names are bytes, as paths are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extension {
    /// The backing file's format, such as `qcow2`.
    BackingFormat(Vec<u8>),
    /// Names of feature bits.
    FeatureNames(Vec<FeatureName>),
    /// Where the bitmap directory is.
    Bitmaps(BitmapsExtension),
    /// Where the encryption header is.
    Encryption(Vec<u8>),
    /// The external data file.
    DataFile(Vec<u8>),
    /// Kept as it is.
    Unknown {
        /// Its type.
        kind: u32,
        /// Its data.
        data: Vec<u8>,
    },
}

/// Which set of feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FeatureSet {
    /// An image with an unknown one cannot be opened.
    Incompatible = 0,
    /// An unknown one is ignored.
    Compatible = 1,
    /// An unknown one is cleared before the image is modified.
    Autoclear = 2,
}

/// An entry of the feature name table, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureName {
    /// A [`FeatureSet`], or a value that later versions may give a meaning.
    pub set: u8,
    /// The bit's number.
    pub bit: u8,
    /// Padded with zeros.
    pub name: [u8; 46],
}

impl FeatureName {
    /// The name of a bit; cut at 46 bytes.
    pub fn new(set: FeatureSet, bit: u8, name: &str) -> Self {
        let mut bytes = [0; 46];
        let len = name.len().min(bytes.len());
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self { set: set as u8, bit, name: bytes }
    }

    /// The name without its padding, what is no text replaced.
    pub fn text(&self) -> String {
        let len = self.name.iter().position(|&byte| byte == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..len]).into_owned()
    }
}

/// Where the bitmap directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Entries of the directory, at least one.
    pub bitmaps: u32,
    /// Bytes of all entries together.
    pub directory_len_bytes: u64,
    /// Where the directory begins, at a cluster.
    pub directory_offset: u64,
}

impl Extension {
    fn kind(&self) -> u32 {
        match self {
            Self::BackingFormat(_) => BACKING_FORMAT,
            Self::FeatureNames(_) => FEATURE_NAMES,
            Self::Bitmaps(_) => BITMAPS,
            Self::Encryption(_) => ENCRYPTION,
            Self::DataFile(_) => DATA_FILE,
            Self::Unknown { kind, .. } => *kind,
        }
    }

    fn parse(kind: u32, data: &[u8]) -> Result<Self> {
        Ok(match kind {
            BACKING_FORMAT => Self::BackingFormat(data.to_vec()),
            FEATURE_NAMES => Self::FeatureNames(parse_feature_names(data)),
            BITMAPS => Self::Bitmaps(parse_bitmaps(data)?),
            ENCRYPTION => Self::Encryption(data.to_vec()),
            DATA_FILE => Self::DataFile(data.to_vec()),
            _ => Self::Unknown { kind, data: data.to_vec() },
        })
    }

    fn data(&self) -> Vec<u8> {
        match self {
            Self::BackingFormat(data) | Self::DataFile(data) | Self::Encryption(data) => {
                data.clone()
            }
            Self::Unknown { data, .. } => data.clone(),
            Self::FeatureNames(names) => {
                let entry = |name: &FeatureName| [&[name.set, name.bit][..], &name.name].concat();
                names.iter().flat_map(entry).collect()
            }
            Self::Bitmaps(bitmaps) => {
                let mut data = bitmaps.bitmaps.to_be_bytes().to_vec();
                data.extend([0; 4]);
                data.extend(bitmaps.directory_len_bytes.to_be_bytes());
                data.extend(bitmaps.directory_offset.to_be_bytes());
                data
            }
        }
    }
}

/// Parses the extension area, which ends where `bytes` ends or at its end marker.
///
/// # Errors
/// `EINVAL` for an extension that is longer than the area, malformed, or there twice.
pub(super) fn parse(mut bytes: &[u8]) -> Result<Vec<Extension>> {
    let mut extensions: Vec<Extension> = Vec::new();
    while let Some((kind, rest)) = bytes.split_first_chunk() {
        let kind = u32::from_be_bytes(*kind);
        if kind == END {
            break;
        }
        let too_long = || Error::invalid(format!("header extension {kind:#x} is too long"));
        let (len, rest) = rest.split_first_chunk().ok_or_else(too_long)?;
        let len = u32::from_be_bytes(*len) as usize;
        let data = rest.get(..len).ok_or_else(too_long)?;
        // Of kinds that we do not know we do not know that they appear once only.
        let known = |ext: &Extension| !matches!(ext, Extension::Unknown { .. });
        if extensions.iter().any(|ext| known(ext) && ext.kind() == kind) {
            return Err(Error::invalid(format!("header extension {kind:#x} is there twice")));
        }
        extensions.push(Extension::parse(kind, data)?);
        bytes = rest.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(extensions)
}

/// The extension area, its end marker included.
pub(super) fn encode(extensions: &[Extension]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for extension in extensions {
        let data = extension.data();
        bytes.extend(extension.kind().to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(&data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes.resize(bytes.len() + HEAD_BYTES, 0);
    bytes
}

fn parse_feature_names(data: &[u8]) -> Vec<FeatureName> {
    let entry = |bytes: &[u8]| {
        let mut name = [0; 46];
        name.copy_from_slice(&bytes[2..]);
        FeatureName { set: bytes[0], bit: bytes[1], name }
    };
    data.chunks_exact(FEATURE_NAME_BYTES).map(entry).collect()
}

fn parse_bitmaps(data: &[u8]) -> Result<BitmapsExtension> {
    let word = |from: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&data[from..from + 8]);
        u64::from_be_bytes(bytes)
    };
    if data.len() != 24 || word(0) as u32 != 0 {
        return Err(Error::invalid("the header's bitmaps extension is malformed"));
    }
    Ok(BitmapsExtension {
        bitmaps: (word(0) >> 32) as u32,
        directory_len_bytes: word(8),
        directory_offset: word(16),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown(kind: u32, data: &[u8]) -> Extension {
        Extension::Unknown { kind, data: data.to_vec() }
    }

    #[test]
    fn what_is_written_is_read() {
        let check = |extensions: Vec<Extension>| {
            let bytes = encode(&extensions);
            assert_eq!(bytes.len() % 8, 0);
            assert_eq!(parse(&bytes).expect("well-formed"), extensions);
        };
        check(vec![]);
        check(vec![Extension::BackingFormat(b"qcow2".to_vec()), unknown(0x77, b"12345678")]);
        check(vec![unknown(1, b""), unknown(1, b"x")]);
        let name = FeatureName::new(FeatureSet::Incompatible, 3, "compression type");
        assert_eq!(name.text(), "compression type");
        check(vec![Extension::FeatureNames(vec![name]), Extension::DataFile(b"d.raw".to_vec())]);
        let bitmaps =
            BitmapsExtension { bitmaps: 2, directory_len_bytes: 64, directory_offset: 1 << 16 };
        check(vec![Extension::Bitmaps(bitmaps)]);
    }

    #[test]
    fn malformed_areas_are_refused() {
        let check = |bytes: &[u8]| assert!(parse(bytes).is_err(), "{bytes:x?}");
        check(&[0, 0, 0, 7, 0, 0, 0, 1]);
        check(&[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        check(&[0, 0, 0, 7, 0]);
        let twice = vec![Extension::DataFile(vec![b'a']), Extension::DataFile(vec![b'b'])];
        check(&encode(&twice));
        check(&[0x23, 0x85, 0x28, 0x75, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn an_area_may_end_without_a_marker() {
        assert_eq!(parse(&[0, 0, 0, 7, 0, 0, 0, 1, 9]).expect("fits"), [unknown(7, &[9])]);
        assert_eq!(parse(&[]).expect("empty"), []);
    }
}
