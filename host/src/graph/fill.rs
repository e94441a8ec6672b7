//! What a change may touch beside what it writes.
//!
//! A driver with an alignment reads a block, lays the write over it and writes it back ([`super::align`]);
//! in an overlay the rest of the block comes from the backing and is the overlay's own afterwards. A
//! driver may do the same in larger units of its own ([`Limits::fill_bytes`]). Two things follow for the
//! neighbours in that block:
//!
//! - While the cycle runs, the backing may change there. Whoever reads that meanwhile must not rely on
//!   it, as the cycle may put back what was there before. So guards and watches are told the range around
//!   a change, not its own.
//! - A change that fails may have torn the block. So what is marked then is the range around it, too.
//!
//! Neither is so for a change that succeeds: its neighbours show what they showed.

use std::ops::Range;

use super::mutation::{Mutation, mutated};
use super::permission::Role;
use super::snapshot::{Edge, GraphNode};
#[cfg(doc)]
use crate::node::Limits;
use crate::node::{Node, NodeInfo};

/// How far changes of a node reach beyond what they write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fill {
    /// Whole units of so many bytes, a power of two.
    unit: u64,
    /// Then so many bytes more at either end: an opaque node may show what is below it at other offsets,
    /// where the blocks do not begin at multiples of their size.
    slack: u64,
    /// Where the node ends, and what it touches; nowhere if it grows.
    size_bytes: u64,
}

impl Fill {
    /// Of a node with these edges to what lies below it.
    pub(super) fn of(
        driver: &dyn Node,
        info: &NodeInfo,
        edges: &[Edge],
        below: &[GraphNode],
    ) -> Self {
        let mut fill = Self {
            unit: u64::from(info.limits.request_alignment.max(info.limits.fill_bytes)),
            slack: 0,
            size_bytes: if info.growable { u64::MAX } else { info.size_bytes },
        };
        for edge in edges {
            let child = below[edge.child].fill;
            match edge.role {
                Role::Filtered | Role::Data => {
                    fill.unit = fill.unit.max(child.unit);
                    fill.slack = fill.slack.max(child.slack);
                }
                // A block below lies in one unit, or touches units that are anywhere.
                Role::Storage if info.limits.fill_bytes > 1 => {
                    if child.slack > 0 || child.unit > info.limits.fill_bytes.into() {
                        fill.slack = u64::MAX;
                    }
                }
                Role::Storage => {
                    // What divides its offset as well as the block size divides where blocks begin.
                    let offset = driver.offset_in_child().unwrap_or(1) | child.unit;
                    let unit = 1 << offset.trailing_zeros();
                    fill.unit = fill.unit.max(unit);
                    fill.slack = fill.slack.max(child.slack.saturating_add(child.unit - unit));
                }
                Role::Root | Role::Backing | Role::Source | Role::Target => {}
            }
        }
        fill
    }

    /// What a change of `range` may touch.
    #[inline]
    pub(super) fn around(&self, range: &Range<u64>) -> Range<u64> {
        if mutated(Mutation::ForgetsFills) {
            return range.clone();
        }
        let start = range.start & !(self.unit - 1);
        let end = range.end.checked_next_multiple_of(self.unit).unwrap_or(u64::MAX);
        start.saturating_sub(self.slack)..end.saturating_add(self.slack).min(self.size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_grows_to_blocks() {
        let check = |unit, slack, range: Range<u64>, expect| {
            assert_eq!(Fill { unit, slack, size_bytes: 1000 }.around(&range), expect);
        };
        check(1, 0, 3..5, 3..5);
        check(4, 0, 3..5, 0..8);
        check(4, 0, 4..8, 4..8);
        check(1, 3, 4..8, 1..11);
        check(4, 4, 9..12, 4..16);
        check(4, 2, 997..999, 994..1000);
        check(4, u64::MAX, 5..6, 0..1000);
    }
}
