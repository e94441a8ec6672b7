//! NBD exports (fixed newstyle, structured replies, metadata contexts).
//!
//! [`proto`] is the protocol alone: bytes in, bytes out, no I/O. A [`NbdServer`] owns listeners
//! (`listening`) and exports (`served`), which come and go while it runs; the connections that are accepted
//! are spread over the workers. On its worker a connection is two tasks: one receives and starts requests
//! (`receive`), one sends what has completed (`send`).
//!
//! **Invariant**: nothing that a peer sends makes it panic, hang, leak or allocate without bound; the
//! graph is not touched before an export has been chosen.

mod connection;
mod contexts;
mod directory;
mod listening;
pub mod proto;
mod receive;
mod removal;
mod request;
mod riding;
mod send;
mod served;
mod server;
mod shared;
mod waiters;

pub(crate) use riding::Leaving;
pub use served::{Export, ExportBitmap};
pub(crate) use server::GRACE;
pub use server::{ExportStatus, ListenAddress, NbdServer, RemovalMode};
