//! What is left, copied in a drained section.
//!
//! The section may end before the last write does, which comes to the target all the same. So each copy is one of
//! the node's, as any other: behind its gate, under the guard of its range, and run to its end. No later section that
//! comes to either begins before that, and no later copy of the range is overtaken.

use std::ops::Range;
use std::sync::Arc;

use super::super::operations::Actor;
use super::Tracker;
use crate::error::Result;
use crate::graph::detach::ToTheEnd;
use crate::graph::mutation::{Mutation, mutated};
use crate::graph::permission::PermissionSet;
use crate::graph::snapshot::Graph;
use crate::graph::transaction::{Drained, Place, Side};
use crate::graph::user::DriveTitle;
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
        if mutated(Mutation::EndsWithoutCatchingUp) {
            self.differs.clear_all();
            self.wanted.iter().for_each(|wanted| wanted.clear_all());
        }
        let left: Vec<Range<u64>> = self.todo().ranges(0..u64::MAX).collect();
        let work = work(graph, node, (source, target));
        for range in left.into_iter().flat_map(pieces) {
            let actor = Actor { request: section.request_of(node, &work), node };
            ToTheEnd::new(actor.copy_tracked(Arc::clone(self), range)).await?;
        }
        if !mutated(Mutation::PivotsUnflushed) {
            section.flush(Place { side: Side::Before, node: target }).await?;
        }
        Ok(Some(self.is_all_same()))
    }
}

/// What messages call these copies.
fn work(graph: &Graph, node: usize, (source, target): (usize, usize)) -> String {
    let mut places = vec![false; graph.nodes.len()];
    places[source] = true;
    let drives = graph.origins_reaching(places).into_iter().filter_map(|at| graph.drives.get(at));
    let drives: Vec<String> = drives.map(|drive| DriveTitle(&drive.id).to_string()).collect();
    let whose = match drives.is_empty() {
        true => String::new(),
        false => format!(" ({})", drives.join(", ")),
    };
    let (source, target) = (&graph.nodes[source].name, &graph.nodes[target].name);
    format!("what {} copies from node `{source}`{whose} to node `{target}`", graph.title(node))
}

/// A run in pieces, each of which a section can end after: of whole granules, and no longer than a copy moves.
fn pieces(run: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let starts = run.clone().step_by(COPY_MAX_BYTES);
    starts.map(move |start| start..run.end.min(start + COPY_MAX_BYTES as u64))
}
