//! Graph changes under load: transactions that apply wholly or not at all.
//!
//! ```text
//!   writer lock → Draft: actions in turn (draft, structure) → assemble, check: the next snapshot
//!     → claims: which views were re-pointed, and what could prove that they are the same
//!     → touched: what differs between the snapshots → the origins that reach it
//!     → new drivers start
//!   ── until here an error costs nobody anything ──
//!     → drain: those origins' gates close; nothing of theirs is in flight
//!     → claims are verified here, where nothing can change what they say
//!     → work that cannot be undone: resize, deallocate
//!     → publish, which cannot fail; the gates open; who waited begins again in the new snapshot
//! ```
//!
//! **Invariant**: `assemble` is the one way in which graphs are made.
//!
//! **Invariant**: what is drained and what is marked is found by comparing two snapshots, never told by an
//! action: no action can forget anything.

mod action;
mod apply;
mod assemble;
mod bitmaps;
mod check;
mod claims;
mod draft;
mod drain;
mod event;
mod structure;
#[cfg(test)]
mod tests;
mod touched;
mod work;

pub use action::{Action, Applied, Transaction, Unproven, User, Which};
pub(in crate::graph) use apply::apply;
pub(in crate::graph) use draft::Draft;
pub(in crate::graph) use drain::{Drained, Place, close};
pub use event::Event;
