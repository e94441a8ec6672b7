//! Dirty bitmaps, in memory.
//!
//! A dirty bitmap remembers which parts of a view have changed since it was last cleared. The
//! request path marks it before it issues a change; exports list its ranges; jobs copy what is
//! dirty; commands clear, merge and resize it. Which bitmaps a change marks is the graph's
//! business: it keeps a [`MarkList`] for each node where changes enter.
//!
//! | file | idea |
//! |---|---|
//! | `types.rs`, `error.rs` | [`Granularity`], [`BitmapName`], [`BitmapState`], [`BitmapError`] |
//! | `identity.rs` | [`Uuid`], [`BitmapIdentity`]: which bitmap it is, wherever it is stored |
//! | `granules.rs` | [`Granules`]: the flat set, its geometry, copy and resize |
//! | `mark.rs` | marking and clearing; **why relaxed atomics are enough** |
//! | `mark_list.rs` | [`MarkList`]: sets that are marked together |
//! | `read.rs`, `popcount.rs` | test, count, list ranges |
//! | `merge.rs` | union, also across granularities |
//! | `named.rs` | [`Bitmap`]: the identity, whose content is replaced |
//! | `content.rs` | what it holds between two changes; [`BitmapReader`] |
//! | `change.rs` | changes as values: prepared, committed |
//! | `users.rs` | [`BitmapUse`]: who uses it, and what that stands in the way of |
//!
//! Invariants:
//! - **Nothing here waits or panics**, whatever offsets come in: ranges are clipped to the view. Only
//!   the list of users has a lock.
//! - **What records is a property of the snapshot**: a mark asks for no state; another content takes
//!   effect with the next snapshot, while no change is in flight.
//! - **A mark of a set bit writes nothing**, and a mark within one granule touches one cache line
//!   of the set.
//! - **Rounding favours dirty**: a mark covers every granule it touches, a clear only those it
//!   covers whole.
//! - **Nothing clears on the way back**: a change that is given up has altered no set, and a freeze
//!   that is undone yields what was frozen and what was recorded since.
//! - **Bits past the last granule are zero**, so that words can be counted and merged without
//!   masks.
//! - **Memory never marked stays unmapped**: no operation writes a zero over a zero.

mod change;
mod content;
mod error;
mod granules;
mod identity;
mod mark;
mod mark_list;
mod merge;
mod named;
mod popcount;
mod read;
#[cfg(test)]
mod tests;
mod types;
mod users;

#[cfg(test)]
pub(crate) use self::change::prepare;
pub(crate) use self::change::{Change, Prepared};
pub use self::content::BitmapReader;
pub use self::error::BitmapError;
pub use self::granules::{Extension, Granules, MAX_GRANULES};
pub use self::identity::{BitmapIdentity, NoUuid, Uuid};
pub use self::mark_list::MarkList;
pub use self::named::Bitmap;
pub use self::read::Ranges;
pub use self::types::{BitmapName, BitmapState, Granularity};
pub use self::users::{BitmapUse, Use};
