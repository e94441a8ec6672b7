//! An NBD client that does as it is told: every command and flag, many requests at once, and half of
//! anything. Numbers are those of the NBD protocol document (`doc/proto.md`).
//!
//! [`connect`] gives a bare stream, for those who break off anywhere; [`Client`] has agreed on an
//! export and sends requests.

mod client;
mod handshake;
mod stream;

pub use client::{Chunk, Client, Reply, Request};
pub use handshake::{OptionRefused, Terms, collect_replies, list, send_option};
pub use stream::{Stream, connect};

/// Commands.
#[expect(missing_docs, reason = "the protocol's names")]
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISCONNECT: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Command flags.
#[expect(missing_docs, reason = "the protocol's names")]
pub mod flag {
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 2;
    pub const DF: u16 = 4;
    pub const REQ_ONE: u16 = 8;
    pub const FAST_ZERO: u16 = 16;
}

/// Error numbers.
#[expect(missing_docs, reason = "the protocol's names")]
pub mod errno {
    pub const PERM: u32 = 1;
    pub const IO: u32 = 5;
    pub const INVAL: u32 = 22;
    pub const NOSPC: u32 = 28;
    pub const NOTSUP: u32 = 95;
}

/// Options of the handshake.
#[expect(missing_docs, reason = "the protocol's names")]
pub mod option {
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const SET_META_CONTEXT: u32 = 10;
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"))
}
