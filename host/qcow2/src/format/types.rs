//! Offsets that only know legal conversions.

use std::fmt;

use crate::error::{Error, Result};

/// A byte offset in what the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestOffset(pub u64);

/// A byte offset in the image file, or in its external data file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostOffset(pub u64);

/// Bytes of a cluster: a power of two, 512 B to 2 MiB.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ClusterSize {
    bits: u32,
}

impl ClusterSize {
    /// Smallest and largest number of bits of an offset within a cluster (specification; QEMU's upper bound).
    pub const BITS: std::ops::RangeInclusive<u32> = 9..=21;

    /// The usual size.
    pub const SIXTY_FOUR_KIB: Self = Self { bits: 16 };

    /// Of clusters of `1 << bits` bytes.
    ///
    /// # Errors
    /// `EINVAL` outside [`Self::BITS`].
    pub fn from_bits(bits: u32) -> Result<Self> {
        if Self::BITS.contains(&bits) {
            return Ok(Self { bits });
        }
        Err(Error::invalid(format!("clusters of 2^{bits} bytes: 512 B to 2 MiB are possible")))
    }

    /// Of clusters of so many bytes.
    ///
    /// # Errors
    /// `EINVAL` for what is no power of two, or outside [`Self::BITS`].
    pub fn from_bytes(bytes: u64) -> Result<Self> {
        if !bytes.is_power_of_two() {
            let message = format!("clusters of {bytes} bytes: a power of two is needed");
            return Err(Error::invalid(message));
        }
        Self::from_bits(bytes.trailing_zeros())
    }

    /// Bits of an offset within a cluster.
    pub fn bits(self) -> u32 {
        self.bits
    }

    /// Bytes of a cluster.
    pub fn bytes(self) -> u64 {
        1 << self.bits
    }

    /// The offset within its cluster.
    pub fn offset_in(self, offset: u64) -> u64 {
        offset & (self.bytes() - 1)
    }

    /// The index of the cluster that holds the offset.
    pub fn index_of(self, offset: u64) -> u64 {
        offset >> self.bits
    }

    /// The start of the cluster that holds the offset.
    pub fn floor(self, offset: u64) -> u64 {
        offset & !(self.bytes() - 1)
    }

    /// Clusters that so many bytes fill, the last one perhaps in part.
    pub fn clusters_of(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.bytes())
    }

    /// Whether a cluster begins there.
    pub fn is_aligned(self, offset: u64) -> bool {
        self.offset_in(offset) == 0
    }
}

impl fmt::Debug for ClusterSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes())
    }
}
