//! Which bitmaps a change marks: computed once for each place where changes enter.
//!
//! The rule itself is [`super::class::Views::reached`]; here its classes become sets of granules.

use std::sync::Arc;

use super::class::{Class, Cut, Reached};
use super::snapshot::Graph;
use crate::bitmap::MarkList;
use crate::node::NodeInfo;

/// What is marked before a change is issued.
pub(super) struct Marks {
    /// For the range of the change.
    ranged: MarkList,
    /// What else there is; almost always nothing.
    rare: Option<Box<Rare>>,
}

struct Rare {
    /// Whole, by any change.
    whole: MarkList,
    /// Of those marked for the range, the sets of views that the change may make longer.
    growing: MarkList,
}

impl Marks {
    /// For changes that enter class `from`, and may go behind its end if it `grows`.
    pub(super) fn of(graph: &Graph, from: Class, cut: Cut, grows: bool) -> Self {
        let Reached { ranged, whole } = graph.views.reached(from, cut);
        let of = |classes: &[Class], is_meant: fn(&NodeInfo) -> bool| -> MarkList {
            let bitmaps = graph.bitmaps.iter().filter(|entry| {
                let node = entry.node.map(|node| &graph.nodes[node]);
                node.is_some_and(|node| classes.contains(&node.class) && is_meant(&node.info))
            });
            bitmaps.filter_map(|entry| entry.recording.clone()).collect()
        };
        let growing = if grows { of(&ranged, |info| info.growable) } else { MarkList::default() };
        let (ranged, whole) = (of(&ranged, |_| true), of(&whole, |_| true));
        let is_rare = !whole.is_empty() || !growing.is_empty();
        Self { ranged, rare: is_rare.then(|| Box::new(Rare { whole, growing })) }
    }

    /// What is marked, by address: ranged, whole, and growing. Two snapshots' marks are the same if these
    /// are.
    pub(super) fn addresses(&self) -> [Vec<usize>; 3] {
        let of = |list: &MarkList| {
            let mut all: Vec<usize> = list.iter().map(|set| Arc::as_ptr(set).addr()).collect();
            all.sort_unstable();
            all
        };
        let none = Vec::new;
        let rare = self.rare.as_ref();
        let whole = rare.map_or_else(none, |rare| of(&rare.whole));
        [of(&self.ranged), whole, rare.map_or_else(none, |rare| of(&rare.growing))]
    }

    /// Marks everything that a change of the range affects. Called before the change is issued.
    #[inline]
    pub(super) fn mark(&self, offset: u64, len: u64) {
        self.ranged.mark(offset, len);
        if let Some(rare) = &self.rare {
            rare.mark(offset, len);
        }
    }
}

impl Rare {
    #[cold]
    fn mark(&self, offset: u64, len: u64) {
        self.whole.mark(0, u64::MAX);
        if len > 0 {
            self.growing.mark_grown(offset.saturating_add(len));
        }
    }
}
