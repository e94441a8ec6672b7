//! NBD exports (fixed newstyle, structured replies, metadata contexts).
//!
//! [`proto`] is the protocol alone: bytes in, bytes out, no I/O. A [`NbdServer`] owns listeners; the
//! connections they accept are spread over the workers. On its worker a connection is two tasks: one
//! receives and starts requests (`receive`), one sends what has completed (`send`).
//!
//! **Invariant**: nothing that a peer sends makes it panic, hang, leak or allocate without bound; the
//! graph is not touched before an export has been chosen.

mod connection;
mod directory;
pub mod proto;
mod receive;
mod request;
mod send;
mod server;

pub use directory::{Export, ExportBitmap};
pub use server::{ListenAddress, NbdServer, ServedExport};
