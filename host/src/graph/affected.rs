//! Which bitmaps a change marks: computed once for each place where changes enter.
//!
//! A change that enters at node N affects [N] and every class above it along view edges, with their
//! drives. Bitmaps of those views are marked for the range. A class above an *opaque* node (one that
//! shows its child's bytes at other offsets) cannot know which of its bytes changed: its bitmaps are
//! marked whole, unless the change came down through that very edge and was marked above already.

use std::sync::Arc;

use super::gate::Gate;
use super::permission::Role;
use super::snapshot::{BitmapScope, Graph};
use crate::bitmap::MarkList;

/// A place where changes enter the graph.
pub(super) struct Entry {
    /// Gate of the class in which they enter.
    pub(super) gate: Arc<Gate>,
    /// Marked for the range of a change.
    pub(super) ranged: MarkList,
    /// Marked whole by any change; almost always empty.
    pub(super) whole: MarkList,
}

/// An edge by its parent's index and its position there.
pub(super) type EdgeId = (usize, usize);

impl Entry {
    /// The entry at node `node`, for changes that come down edge `through` (`None`: a drive's).
    pub(super) fn at(graph: &Graph, node: usize, through: Option<EdgeId>) -> Self {
        let class = graph.nodes[node].class;
        let mut opaque_above = vec![false; graph.gates.len()];
        let mut pending = vec![class];
        let mut seen = vec![false; graph.gates.len()];
        while let Some(below) = pending.pop() {
            for (parent, parent_node) in graph.nodes.iter().enumerate() {
                for (position, edge) in parent_node.edges.iter().enumerate() {
                    let other = graph.nodes[edge.child].class == below
                        && edge.role == Role::Storage
                        && through != Some((parent, position));
                    if other && !std::mem::replace(&mut seen[parent_node.class], true) {
                        opaque_above[parent_node.class] = true;
                        pending.push(parent_node.class);
                    }
                }
            }
        }
        opaque_above[class] = false;
        let of = |wanted: &dyn Fn(usize) -> bool| -> MarkList {
            let in_scope = |scope: &BitmapScope| {
                graph.scope_node(scope).is_some_and(|node| wanted(graph.nodes[node].class))
            };
            let bitmaps = graph.bitmaps.iter().filter(|entry| in_scope(&entry.scope));
            bitmaps.filter_map(|entry| entry.bitmap.recording()).collect()
        };
        Self {
            gate: Arc::clone(&graph.gates[class]),
            ranged: of(&|other| other == class),
            whole: of(&|other| opaque_above[other]),
        }
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
