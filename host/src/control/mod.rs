//! The control socket: QMP, the machine protocol of QEMU, on a unix socket.
//!
//! Built on the public interface of [`Host`](crate::Host) alone. A client's thread reads commands and runs them,
//! one after the other; another sends it answers and events.
//!
//! ```text
//!   socket → json (values) → protocol (form, negotiation) → registry → commands → Plan → Host::transact
//!   socket ← output (bounded) ← answers, and clients ← events ← Host::events
//! ```
//!
//! | file | idea |
//! |---|---|
//! | `server.rs`, `clients.rs`, `output.rs` | the socket, who is connected, what waits to be sent |
//! | `protocol.rs`, `error.rs` | one conversation, in QEMU's words |
//! | `json/` | a stream of values, bounded |
//! | `qapi/` | types: from one declaration come reading, writing and the schema |
//! | `registry.rs` | commands, actions and events, each declared once |
//! | `plan.rs` | a transaction while it is put together |
//! | `commands/` | what there is, by subject |
//! | `events.rs`, `job_events.rs` | what the host tells, as events |
//!
//! Invariants:
//! - Nothing that a client sends makes this module panic or hold memory without bound.
//! - Nobody waits for a client that does not read but the threads of that client.
//! - What QEMU has is called, taken, answered and refused as QEMU does it.

mod clients;
mod commands;
mod context;
pub(crate) mod error;
mod events;
mod job_events;
pub(crate) mod json;
mod output;
mod plan;
mod protocol;
pub(crate) mod qapi;
mod registry;
mod server;

pub use server::{Control, ControlOptions};
