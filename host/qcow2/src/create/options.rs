//! What an image can be made with, and which of it goes together: `qemu-img`'s rules.

use crate::error::{Error, Result};
use crate::format::{ClusterSize, CompressionType, RefcountWidth, Version};
use crate::limits::BACKING_NAME_MAX_BYTES;

/// Unit of the virtual size, bytes.
const SECTOR_BYTES: u64 = 512;
/// Bits of the smallest cluster that extended L2 entries divide.
const EXTENDED_L2_CLUSTER_BITS: u32 = 14;

/// The file behind an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its name as the header keeps it: relative ones are to be seen from the image.
    pub name: String,
    /// Its format, such as `raw` or `qcow2`; without one a reader has to guess.
    pub format: Option<String>,
}

/// The file that holds an image's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// Its name as the header keeps it; `None` if whoever opens the image has to know what holds its data.
    pub name: Option<String>,
    /// Whether the file is, byte by byte, what the guest sees.
    pub raw: bool,
}

/// What is allocated beforehand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// L2 tables that map every cluster; the container is made longer.
    Metadata,
    /// The data as well, by [`Storage::zero`](crate::Storage::zero).
    Falloc,
    /// The data as well, by writing zeros.
    Full,
}

/// What a new image is like. [`CreateOptions::new`] has the defaults of `qemu-img create`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes that the guest sees: a multiple of 512.
    pub virtual_size: u64,
    /// Of the format.
    pub version: Version,
    /// Bytes of a cluster.
    pub cluster_size: ClusterSize,
    /// Bits of a reference count.
    pub refcount_width: RefcountWidth,
    /// What shows where nothing is allocated.
    pub backing: Option<Backing>,
    /// Whether clusters have 32 subclusters.
    pub extended_l2: bool,
    /// Where the data go, if not into the container.
    pub data_file: Option<DataFile>,
    /// Whether refcounts may be written late.
    pub lazy_refcounts: bool,
    /// What is allocated beforehand.
    pub preallocation: Preallocation,
    /// How clusters will be compressed.
    pub compression: CompressionType,
}

impl CreateOptions {
    /// An image of so many bytes: version 3, clusters of 64 KiB, refcounts of 16 bits, nothing else.
    pub fn new(virtual_size: u64) -> Self {
        Self {
            virtual_size,
            version: Version::V3,
            cluster_size: ClusterSize::SIXTY_FOUR_KIB,
            refcount_width: RefcountWidth::SIXTEEN,
            backing: None,
            extended_l2: false,
            data_file: None,
            lazy_refcounts: false,
            preallocation: Preallocation::Off,
            compression: CompressionType::Deflate,
        }
    }

    /// Whether the options go together.
    ///
    /// # Errors
    /// `EINVAL`; the message names the option and what would be right.
    pub fn validate(&self) -> Result<()> {
        self.validate_version()?;
        let fail = |message: &'static str| Err(Error::invalid(message));
        if !self.virtual_size.is_multiple_of(SECTOR_BYTES) {
            let size = self.virtual_size;
            return Err(Error::invalid(format!("size {size}: a multiple of 512 bytes is needed")));
        }
        if self.extended_l2 && self.cluster_size.bits() < EXTENDED_L2_CLUSTER_BITS {
            return fail("extended_l2 needs cluster_size=16k or more");
        }
        if let Some(backing) = &self.backing {
            if self.data_file.as_ref().is_some_and(|file| file.raw) {
                return fail(
                    "data_file_raw=on and a backing file exclude each other: leave one out",
                );
            }
            if self.preallocation != Preallocation::Off && !self.extended_l2 {
                return fail("preallocation over a backing file needs extended_l2=on");
            }
            if backing.name.is_empty() || backing.name.len() > BACKING_NAME_MAX_BYTES as usize {
                return fail("backing_file: a name of 1 to 1023 bytes is needed");
            }
        }
        let name = self.data_file.as_ref().and_then(|file| file.name.as_ref());
        if name.is_some_and(String::is_empty) {
            return fail("data_file: a name is needed");
        }
        Ok(())
    }

    fn validate_version(&self) -> Result<()> {
        if self.version >= Version::V3 {
            return Ok(());
        }
        let options = [
            (self.lazy_refcounts, "lazy_refcounts=on"),
            (self.refcount_width != RefcountWidth::SIXTEEN, "refcount_bits other than 16"),
            (self.extended_l2, "extended_l2=on"),
            (self.data_file.is_some(), "data_file"),
            (self.compression != CompressionType::Deflate, "compression_type other than zlib"),
        ];
        match options.iter().find(|(wanted, _)| *wanted) {
            None => Ok(()),
            Some((_, option)) => {
                Err(Error::invalid(format!("compat=0.10: 1.1 is needed for {option}")))
            }
        }
    }

    /// What is preallocated: a raw data file is to be read without the metadata, so these map it whole.
    pub(super) fn maps_all(&self) -> bool {
        let raw = self.data_file.as_ref().is_some_and(|file| file.raw);
        raw || self.preallocation != Preallocation::Off
    }
}
