//! Which bitmaps a change marks: computed once for each place where changes enter.
//!
//! The rule itself is [`super::class::Views::reached`]; here its classes become sets of granules.

use std::sync::Arc;

use super::class::{Class, Cut, Reached};
use super::snapshot::Graph;
use crate::bitmap::MarkList;

/// What is marked before a change is issued.
pub(super) struct Marks {
    /// For the range of the change.
    ranged: MarkList,
    /// Whole, by any change; almost always empty.
    whole: MarkList,
}

impl Marks {
    /// For changes that enter class `from`.
    pub(super) fn of(graph: &Graph, from: Class, cut: Cut) -> Self {
        let Reached { ranged, whole } = graph.views.reached(from, cut);
        let of = |classes: &[Class]| -> MarkList {
            let bitmaps = graph.bitmaps.iter().filter(|entry| {
                entry.node.is_some_and(|node| classes.contains(&graph.nodes[node].class))
            });
            bitmaps.filter_map(|entry| entry.recording.clone()).collect()
        };
        Self { ranged: of(&ranged), whole: of(&whole) }
    }

    /// What is marked, by address: ranged, and whole. Two snapshots' marks are the same if these are.
    pub(super) fn addresses(&self) -> (Vec<usize>, Vec<usize>) {
        let of = |list: &MarkList| {
            let mut all: Vec<usize> = list.iter().map(|set| Arc::as_ptr(set).addr()).collect();
            all.sort_unstable();
            all
        };
        (of(&self.ranged), of(&self.whole))
    }

    /// Marks everything that a change of the range affects. Called before the change is issued.
    #[inline]
    pub(super) fn mark(&self, offset: u64, len: u64) {
        self.ranged.mark(offset, len);
        if !self.whole.is_empty() {
            self.whole.mark(0, u64::MAX);
        }
    }
}
