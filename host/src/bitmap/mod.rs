//! Dirty bitmaps, in memory.
//!
//! A dirty bitmap remembers which parts of a view have changed since it was last cleared. The
//! request path marks it before it issues a change; exports list its ranges; jobs copy what is
//! dirty; commands clear, merge and resize it. Which bitmaps a change marks is the graph's
//! business: it keeps a [`MarkList`] for each node where changes enter.
//!
//! | file | idea |
//! |---|---|
//! | `types.rs`, `error.rs` | [`Granularity`], [`BitmapName`], [`BitmapError`] |
//! | `granules.rs` | [`Granules`]: the flat set, its geometry, copy and resize |
//! | `mark.rs` | marking and clearing; **why relaxed atomics are enough** |
//! | `read.rs`, `popcount.rs` | test, count, list ranges |
//! | `merge.rs` | union, also across granularities |
//! | `named.rs` | [`Bitmap`]: a named set with a state; [`MarkList`] |
//!
//! Invariants:
//! - **Nothing here locks, waits or panics**, whatever offsets come in: ranges are clipped to the
//!   view.
//! - **A mark of a set bit writes nothing**, and a mark within one granule touches one cache line
//!   of the set.
//! - **Rounding favours dirty**: a mark covers every granule it touches, a clear only those it
//!   covers whole.
//! - **Bits past the last granule are zero**, so that words can be counted and merged without
//!   masks.
//! - **Memory never marked stays unmapped**: no operation writes a zero over a zero.

mod error;
mod granules;
mod mark;
mod merge;
mod named;
mod popcount;
mod read;
#[cfg(test)]
mod tests;
mod types;

pub use self::error::BitmapError;
pub use self::granules::{Extension, Granules, MAX_GRANULES};
pub use self::named::{Bitmap, BitmapState, MarkList};
pub use self::read::Ranges;
pub use self::types::{BitmapName, Granularity};
