//! The server side of the NBD protocol, without any I/O: bytes in, bytes and decisions out.
//!
//! The connection loop of the export is the only caller. A session has two phases:
//!
//! 1. [`Handshake`] eats what the client sends and writes answers, until it hands over a [`Session`]
//!    or asks to close. It sees the exports through an [`ExportDirectory`] and opens nothing.
//! 2. [`decode_header`] and [`check`] turn each request header into a [`Request`] that a block node
//!    may trust, or into a refusal; the functions of [`reply`] and [`push_block_status`] encode
//!    answers into the caller's buffer.
//!
//! Invariants:
//! - No input makes this module panic, and none makes it hold or write more than [`limits`] allows.
//! - How the input is cut into pieces never changes what happens.
//! - A [`Request`] lies within the export, respects its block sizes and uses only what the session
//!   agreed on: read-only, structured replies and metadata contexts are settled here.
//! - A context that the client selected is either served in this session or the session isn't
//!   entered: an extent is never reported from another bitmap than the one that was asked for.
//!
//! The source is the specification, `doc/proto.md` of the NetworkBlockDevice/nbd repository. Absent
//! on purpose: oldstyle negotiation, TLS (the option is answered as unsupported), extended headers.

mod context;
mod errno;
mod export_info;
mod fuzz;
mod handshake;
mod option;
mod request;
mod session;
mod specimen;
mod status;
#[cfg(test)]
mod transcript;

pub mod limits;
pub mod reply;
pub mod wire;

pub use errno::NbdErrno;
pub use export_info::{
    BlockSizes, ExportDirectory, ExportInfo, ExportSummary, Features, InvalidBlockSizes,
};
pub use fuzz::fuzz_one;
pub use handshake::{Handshake, Progress, Step};
pub use request::{Header, Malformed, Request, Verdict, check, decode_header};
pub use session::{SelectedContext, Session};
pub use status::{NoExtents, StatusExtent, StatusQuery, push_block_status};
