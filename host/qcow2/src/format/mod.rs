//! The format to the bit: parsed from bytes and encoded to bytes, no I/O.
//!
//! All numbers are big-endian on disk, native here.

mod types;

pub use types::{ClusterSize, GuestOffset, HostOffset};
