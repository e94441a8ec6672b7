//! Options of driver `qcow2`.

use super::diagnostic::{Span, Spanned};

/// Bytes of cached L2 tables where the file does not say.
pub(super) const DEFAULT_L2_CACHE_BYTES: u64 = 32 << 20;
/// Bytes of a cluster of a new image where the file does not say, as in QEMU.
pub(super) const DEFAULT_CLUSTER_BYTES: u32 = 64 << 10;
/// Bits of a refcount of a new image where the file does not say, as in QEMU.
pub(super) const DEFAULT_REFCOUNT_BITS: u32 = 16;

/// Options of driver `qcow2`. Its children are `file`, and where there are any `backing` and `data-file`.
#[derive(Clone, Debug)]
pub struct Qcow2Spec {
    /// What shows where the image has no bytes of its own.
    pub backing: Spanned<BackingSpec>,
    /// How to make the image if its file is new or empty; absent: such a file is an error.
    pub create: Option<Box<Qcow2CreateSpec>>,
    /// Most bytes of L2 tables in memory; 32 MiB by default.
    pub l2_cache_bytes: Spanned<u64>,
    /// Whether refcounts are written when the image is closed only; absent: as the image says.
    pub lazy_refcounts: Option<Spanned<bool>>,
    /// Directories, as written, of which files may be opened because an image names them, beside that of
    /// the image and that of the configuration file.
    pub backing_dirs: Vec<Spanned<String>>,
    /// What the image says; `None`: nobody has looked, or its file is not one that can be looked into
    /// before the start.
    pub image: Option<ImageSpec>,
}

impl Qcow2Spec {
    /// Whether the external data file, if there is one, shows the node's bytes at the same offsets; what the
    /// driver finds when it opens an image that could not be looked into must agree.
    pub fn data_file_is_raw(&self) -> bool {
        let create = self.create.as_deref();
        let as_made = || create.is_some_and(|create| create.data_file_raw.value);
        match &self.image {
            Some(ImageSpec::There(image)) => image.data_file == DataFileSpec::Raw,
            Some(ImageSpec::New) | None => as_made(),
        }
    }

    /// The size of what the node shows in bytes, as far as it is known.
    pub fn size_bytes(&self) -> Option<u64> {
        match &self.image {
            Some(ImageSpec::There(image)) => Some(image.size_bytes),
            Some(ImageSpec::New) => Some(self.create.as_ref()?.size_bytes.as_ref()?.value),
            None => None,
        }
    }
}

/// What shows where an image has no bytes of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackingSpec {
    /// What the image names. Where it could be looked into, that is the child `backing` now; an image
    /// without that child has none.
    #[default]
    AsImage,
    /// The child `backing`, whatever the image names.
    Node,
    /// Nothing, whatever the image names: zeroes.
    None,
}

/// What is known of an image before it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSpec {
    /// Its file is to be made, or is empty: the image is to be made in it.
    New,
    /// It is there.
    There(ImageFacts),
}

/// What the header of an image says, as far as the graph depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFacts {
    /// Size of what it shows, bytes.
    pub size_bytes: u64,
    /// The file that it names as its backing.
    pub backing: Option<BackingReference>,
    /// Whether it has an external data file.
    pub data_file: DataFileSpec,
    /// The external data file that it names.
    pub data_file_name: Option<String>,
    /// Whether its clusters have to be counted again before it is written.
    pub is_dirty: bool,
    /// Whether who wrote it last did not close it, so that clusters may have leaked.
    pub is_left_open: bool,
}

/// A backing file as the header of an image names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingReference {
    /// The file name, which may have a prefix such as `file:` or `json:`.
    pub name: String,
    /// The format; absent: not said.
    pub format: Option<String>,
}

/// Whether, and how, an image keeps its bytes in another file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataFileSpec {
    /// It keeps them itself.
    #[default]
    None,
    /// In a data file, in any order.
    Mapped,
    /// In a data file, at the same offsets.
    Raw,
}

/// How to make an image: qemu-img's options of the same names.
#[derive(Clone, Debug)]
pub struct Qcow2CreateSpec {
    /// Where the file says so.
    pub span: Span,
    /// Size of what it shows, bytes: a multiple of 512; absent: that of the backing.
    pub size_bytes: Option<Spanned<u64>>,
    /// Bytes of a cluster: a power of two, 512 B to 2 MiB; 64 KiB by default.
    pub cluster_size_bytes: Spanned<u32>,
    /// Bits of a refcount: a power of two, 1 to 64; 16 by default.
    pub refcount_bits: Spanned<u32>,
    /// The version of the format; 1.1 by default.
    pub compat: Spanned<Qcow2Compat>,
    /// Whether clusters are allocated in 32 parts; false by default.
    pub extended_l2: Spanned<bool>,
    /// Whether refcounts may be written late, and are repaired after a crash; false by default.
    pub lazy_refcounts: Spanned<bool>,
    /// How compressed clusters are packed; zlib by default.
    pub compression_type: Spanned<Compression>,
    /// What is allocated at once; nothing by default.
    pub preallocation: Spanned<Preallocation>,
    /// Whether the child `data-file` keeps the bytes at the same offsets; false by default.
    pub data_file_raw: Spanned<bool>,
    /// The name of the backing file that the image gets; absent: see
    /// [`GraphSpec::backing_reference`](super::GraphSpec::backing_reference).
    pub backing_file: Option<Spanned<String>>,
    /// The format of the backing file that the image gets; absent: as `backing_file`.
    pub backing_format: Option<Spanned<BackingFormat>>,
}

/// A version of the qcow2 format, by the first QEMU that had it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Qcow2Compat {
    /// Version 2.
    V0_10,
    /// Version 3.
    #[default]
    V1_1,
}

/// How compressed clusters are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Deflate streams, which QEMU calls zlib.
    #[default]
    Zlib,
    /// Zstandard frames.
    Zstd,
}

/// What of a new image is allocated at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// Metadata of all clusters.
    Metadata,
    /// Metadata, and space of the file system.
    Falloc,
    /// Metadata, and zeroes that are written.
    Full,
}

impl Preallocation {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metadata => "metadata",
            Self::Falloc => "falloc",
            Self::Full => "full",
        }
    }
}

/// The format of a backing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackingFormat {
    /// Its bytes are what it shows.
    Raw,
    /// A qcow2 image.
    Qcow2,
}

impl BackingFormat {
    /// The word for it, in the header of an image too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}
