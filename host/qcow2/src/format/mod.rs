//! The format to the bit: parsed from bytes and encoded to bytes, no I/O.
//!
//! All numbers are big-endian on disk, native here.

pub mod bitmap;
pub mod compressed;
pub mod snapshot;
mod types;

pub use types::{ClusterSize, GuestOffset, HostOffset};
