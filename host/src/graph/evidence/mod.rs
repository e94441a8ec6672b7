//! Evidence: what lets the host say that a write, or a change of the graph, does not alter certain views.
//!
//! A [`ViewProof`](proof) says: *these bytes are what A shows at R, and stay so until this write has
//! settled.* Writing them at R to N, where A is at or above N, leaves A and everything above it as it was;
//! so nothing there is marked. Whoever writes does not matter, and what a filter claims is only a
//! question: the host answers it from what it has seen itself.
//!
//! | file | idea |
//! |---|---|
//! | `buffer.rs` | bytes with their origin, and the watch since they were read |
//! | `proof.rs` | the checks that make a proof, and what happens when it turns out void |
//! | `own_accord.rs` | who asks for what a node does of its own accord |
//! | `operations.rs` | what it holds meanwhile; reads and writes |
//! | `copies.rs`, `copy_out.rs`, `zeros.rs` | copies, for a view that stays or one that is to be kept; zeros |
//! | `on_behalf.rs` | the same apart from the request on whose ground they stand; changes without a claim |
//! | `claim.rs` | the write of what was read before, claimed to be unchanged |
//! | `outcome.rs` | how claims ended, counted |
//! | `same_view.rs` | that two nodes show the same, for changes of the graph |
//! | `tracker/`, `compare.rs` | where two nodes may differ while one is copied to the other; what block status says |
//!
//! # Why a proof cannot be forged, kept or widened
//!
//! - It is made in one function, after its checks. Its fields are private to its file, it is not cloned, and it
//!   borrows the guard that protects it: it ends before the guard does.
//! - What it exempts comes from the snapshot in which the write is issued, not from the caller.
//! - The bytes come from [`ProvenBuf`], which only a read of the host's makes, which nobody may write, and
//!   which goes where it came from: `write` takes no offset.
//!
//! [`SameView`] is made in the drained section of a transaction, after its checks, and borrows it: what it
//! says is true for as long as it can be held.
//!
//! A refused claim writes nothing. It is never turned into a plain write: stale bytes would overwrite
//! newer data.

mod buffer;
mod claim;
mod compare;
mod copies;
mod copy_out;
mod on_behalf;
mod operations;
mod outcome;
mod own_accord;
mod proof;
mod same_view;
#[cfg(test)]
mod tests;
mod tracker;
mod zeros;

pub use buffer::ProvenBuf;
pub use copies::{Copied, CopyHow};
pub use on_behalf::OnBehalf;
pub(super) use outcome::OutcomeCounters;
pub use outcome::Outcomes;
pub use own_accord::OwnAccord;
pub(super) use same_view::SameView;
pub use tracker::{Tracked, Tracker};
