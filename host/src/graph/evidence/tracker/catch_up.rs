//! What is left, copied in a drained section.
//!
//! The section may end before the last write does, which comes to the target all the same. So each copy is one of
//! the node's, as any other: under the guard of its range, and run to its end. No later section begins before that,
//! and no later copy of the range is overtaken.

use std::ops::Range;
use std::sync::Arc;

use super::super::operations::Actor;
use super::Tracker;
use crate::error::Result;
use crate::graph::detach::ToTheEnd;
use crate::graph::mutation::{Mutation, mutated};
use crate::graph::permission::PermissionSet;
use crate::graph::transaction::{Drained, Place, Side};
use crate::limits::COPY_MAX_BYTES;

impl Tracker {
    /// Copies what is left to be copied, with nothing in flight. Whether the two show the same then, as far as is
    /// known; `None` if somebody may still come to them.
    ///
    /// # Errors
    /// The nodes'.
    pub(in crate::graph) async fn catch_up(
        self: &Arc<Self>,
        section: &Drained<'_>,
    ) -> Result<Option<bool>> {
        let graph = section.graph(Side::Before);
        let Some(node) = self.place(graph) else { return Ok(None) };
        let edges = &graph.nodes[node].edges;
        let (source, target) = (edges[self.from.0].child, edges[self.to.0].child);
        let is_still = |node: usize| section.is_still(graph.nodes[node].generation);
        let may_write = edges[self.to.0].grants.contains(PermissionSet::WRITE);
        if !may_write || !graph.below(source).chain(graph.below(target)).all(is_still) {
            return Ok(None);
        }
        let class = |node: usize| graph.nodes[node].class;
        // What is written shows above the source already.
        let view = graph.views.is_at_or_above(class(source), class(target)).then_some(source);
        if mutated(Mutation::EndsWithoutCatchingUp) {
            self.differs.clear_all();
            self.wanted.iter().for_each(|wanted| wanted.clear_all());
        }
        let left: Vec<Range<u64>> = self.todo().ranges(0..u64::MAX).collect();
        for range in left.into_iter().flat_map(pieces) {
            section.marks().mark_proven(range.clone(), target, view);
            let actor = Actor { request: section.before(), node };
            ToTheEnd::new(actor.copy_tracked(Arc::clone(self), range)).await?;
        }
        if !mutated(Mutation::PivotsUnflushed) {
            section.flush(Place { side: Side::Before, node: target }).await?;
        }
        Ok(Some(self.is_all_same()))
    }
}

/// A run in pieces, each of which a section can end after: of whole granules, and no longer than a copy moves.
fn pieces(run: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let starts = run.clone().step_by(COPY_MAX_BYTES);
    starts.map(move |start| start..run.end.min(start + COPY_MAX_BYTES as u64))
}
