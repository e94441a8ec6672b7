//! Changes of the graph and its bitmaps under load: transactions that apply wholly or not at all.
//!
//! ```text
//!   writer lock → Draft: actions in turn (draft, structure, bitmap_steps)
//!     → assemble, check: the next snapshot; contents of bitmaps are prepared
//!     → claims: which views were re-pointed, and what could prove that they are the same
//!     → touched: what differs between the snapshots → the origins that reach it
//!     → new drivers start
//!   ── until here an error costs nobody anything ──
//!     → drain: those origins' gates close; nothing of theirs is in flight
//!     → claims are verified here, where nothing can change what they say
//!     → what drives wrote to nodes that get an overlay is flushed
//!     → drivers whose places others take hand over to them (back, if anything fails)
//!     → marks, then work that cannot be undone: resize, deallocate (late: a driver that does not answer)
//!     → nodes that leave the graph close
//!     → bitmaps are committed and the snapshot is published, which cannot fail; the gates open; who waited
//!       begins again in the new snapshot
//! ```
//!
//! A transaction is one instant: all that it touches stands still at once. So a checkpoint of any number of
//! bitmaps cuts every change the same way, and a write that a client issued after the reply to another one
//! is in nothing frozen that misses the first.
//!
//! **Invariant**: `assemble` is the one way in which graphs are made.
//!
//! **Invariant**: what is drained and what is marked is found by comparing two snapshots, never told by an
//! action: no action can forget anything.

mod action;
mod apply;
mod assemble;
mod bitmap_action;
mod bitmap_steps;
mod bitmaps;
mod bus;
mod check;
mod claims;
mod close;
mod close_order;
mod draft;
mod drain;
mod durable;
mod event;
mod foreseen;
mod late;
mod naming;
mod reopen;
mod section_marks;
mod stored;
mod structure;
#[cfg(test)]
mod tests;
mod time_limit;
mod touched;
mod unused;
mod work;

pub(crate) use action::Rider;
pub use action::{Action, Applied, Transaction, Unproven, User, Which};
pub use bitmap_action::{BitmapAction, BitmapRef};
pub(in crate::graph) use bus::EventBus;
pub use bus::{Events, Notice};
pub(in crate::graph) use draft::Draft;
pub(in crate::graph) use drain::{Drained, Place, Side, close};
pub use event::{BitmapChange, Event};
pub(in crate::graph) use late::LateWork;
pub(crate) use reopen::Opened;
pub(in crate::graph) use section_marks::SectionMarks;
pub(in crate::graph) use time_limit::TimeLimit;
