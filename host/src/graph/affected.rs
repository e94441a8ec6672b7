//! Which bitmaps a change marks: computed once for each place where changes enter.
//!
//! The rule itself is [`super::class::Views::reached`]; here its classes become sets of granules.

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
                let node = graph.scope_node(&entry.scope);
                node.is_some_and(|node| classes.contains(&graph.nodes[node].class))
            });
            bitmaps.filter_map(|entry| entry.bitmap.recording()).collect()
        };
        Self { ranged: of(&ranged), whole: of(&whole) }
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
