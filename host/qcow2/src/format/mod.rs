//! The format to the bit: parsed from bytes and encoded to bytes, no I/O.
//!
//! All numbers are big-endian on disk, native here.

pub mod bitmap;
pub mod compressed;
pub mod extension;
pub mod header;
pub mod l2;
pub mod record;
mod refcount;
pub mod snapshot;
mod types;

pub use header::{CompressionType, Header, Version};
pub use l2::{Cluster, CompressedData, L1Entry, L2Entry, L2Format, StandardCluster};
pub use refcount::{RefcountTableEntry, RefcountWidth};
pub use types::{ClusterSize, GuestOffset, HostOffset};
