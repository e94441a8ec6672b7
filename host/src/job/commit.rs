//! `commit`: what an overlay, and what lies between, have over a base goes to the base, and who uses the overlay
//! uses the base then.
//!
//! Each write is of what the overlay shows already, and so proven for it: the bitmaps of the base and of what lies
//! between are marked, those of the overlay and of all above it are not. Another overlay on the base would see
//! these writes: that is refused, unless it is forced, and then marked. When the host finds that base and overlay
//! show the same, with nothing in flight, the one takes the other's place, and no bitmap above is marked for that.

use std::sync::{Arc, OnceLock};

use super::busy::check_commit;
use super::context::{JobCx, JobFuture, Step};
use super::copying::{Copying, SOURCE, TARGET};
use super::flow::Bounds;
use super::node::JobNode;
use super::spec::CommitSpec;
use super::work::{
    Actions, Ending, Opening, Place, Planned, Work, backing, down, find, grow, name_of, proven,
    remove_unused,
};
use crate::bitmap::Granularity;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    Action, ChildDecl, Graph, JobStake, NodeGeneration, PermissionSet, Role, Tracker,
};
use crate::node::BackingName;

struct Commit {
    top: NodeGeneration,
    base: NodeGeneration,
    backing_name: Option<BackingName>,
    copying: Copying,
    tracker: OnceLock<Arc<Tracker>>,
}

pub(super) fn plan(graph: &Graph, id: &str, spec: &CommitSpec) -> Result<Planned> {
    let invalid = |message: String| Error::new(ErrorKind::Invalid, message);
    let name = |node: usize| graph.nodes()[node].name();
    let device = find(graph, &spec.device)?;
    let start = spec.top.as_ref().map_or(Ok(device), |top| find(graph, top))?;
    if !down(graph, device).any(|at| at == start) {
        let message = format!("node `{}` is not below it", name(start));
        return Err(invalid(message).at_node(name(device)));
    }
    let (top, below) = backing(graph, start).ok_or_else(|| {
        let message = "it has no backing to which it could be committed";
        invalid(message.to_owned()).at_node(name(start))
    })?;
    let Some(base) = &spec.base else {
        let candidates: Vec<String> =
            down(graph, below).map(|node| format!("`{}`", name(node))).collect();
        let message = format!("it needs a `base`: one of {}", candidates.join(", "));
        return Err(invalid(message).at_node(name(top)));
    };
    let base = find(graph, base)?;
    if !down(graph, below).any(|at| at == base) {
        let message = format!("the base `{}` is not below it", name(base));
        return Err(invalid(message).at_node(name(top)));
    }
    check_commit(graph, top, base)?;
    let size = |node: usize| graph.nodes()[node].info().size_bytes;
    if size(base) > size(top) {
        let message = format!(
            "the base `{}` has {} bytes, and it has {}: resize one of them first",
            name(base),
            size(base),
            size(top)
        );
        return Err(invalid(message).at_node(name(top)));
    }
    let growth = (size(base) < size(top)).then(|| grow(graph, base, size(top)));
    let edge = |edge: &str, node: usize, role, grants| ChildDecl {
        name: edge.to_owned(),
        role,
        grants,
        ..ChildDecl::filtered(name(node))
    };
    let source = edge("source", top, Role::Source, PermissionSet::CONSISTENT_READ);
    let target = edge("target", base, Role::Target, PermissionSet::WRITE);
    let target = ChildDecl { proven_for: Some("source".to_owned()), ..target };
    let stake = JobStake {
        id: id.to_owned(),
        stands_on: vec![(SOURCE, TARGET)],
        tracks: Some((SOURCE, TARGET)),
        leaves_out: Some((SOURCE, Some(TARGET))),
        alters_others: spec.is_forced,
    };
    let is_active = graph.nodes()[top].class() == graph.nodes()[device].class();
    let node = Arc::new(JobNode::new(stake));
    let copying = Copying {
        node: Arc::clone(&node),
        copies_all: true,
        granularity: Granularity::DEFAULT,
        bounds: Bounds::default(),
        completes: spec.completes,
        is_silent: !is_active,
        is_above_target: true,
    };
    let generation = |node: usize| graph.nodes()[node].generation();
    let work = Arc::new(Commit {
        top: generation(top),
        base: generation(base),
        backing_name: spec.backing_name.clone(),
        copying,
        tracker: OnceLock::new(),
    });
    Ok(Planned {
        node,
        children: vec![source, target],
        place: Place::Beside,
        growth,
        before: Actions::new(),
        work,
    })
}

impl Work for Commit {
    fn open(&self, opening: Opening<'_>) -> Result<JobCx> {
        let (cx, tracker) = self.copying.open(&opening)?;
        self.tracker.get_or_init(|| tracker);
        Ok(cx)
    }

    fn run<'a>(&'a self, cx: &'a JobCx) -> JobFuture<'a, Step<Ending>> {
        Box::pin(async move {
            let Some(tracker) = self.tracker.get() else { return Ok(Ending::Done) };
            self.copying.run(cx, tracker).await
        })
    }

    fn keep_up<'a>(&'a self, cx: &'a JobCx) -> JobFuture<'a, Step<()>> {
        Box::pin(async move {
            let Some(tracker) = self.tracker.get() else { return std::future::pending().await };
            self.copying.keep_up(cx, tracker).await
        })
    }

    fn tracks(&self) -> bool {
        true
    }

    fn left_bytes(&self) -> Option<u64> {
        self.tracker.get().map(|tracker| tracker.left_bytes())
    }

    // What they go on naming may be given up, once it has been committed.
    fn named(&self, graph: &Graph) -> Vec<String> {
        find_by(graph, self.top).map_or_else(|_| Vec::new(), |top| naming_overlays(graph, top))
    }

    fn end(&self, graph: &Graph, how: Ending) -> Result<Actions> {
        if how != Ending::Done {
            return Ok(Actions::new());
        }
        let (top, base) = (find_by(graph, self.top)?, find_by(graph, self.base)?);
        let (node, by) = (name_of(graph, top), name_of(graph, base));
        let mut actions = vec![Action::Replace { node, by }];
        let image = graph.unfiltered(&graph.nodes()[base]).name();
        let said = self.backing_name.clone().map(|name| (image.to_owned(), name));
        let naming = |node| Action::NameOwnBacking { node, said: said.clone() };
        actions.extend(naming_overlays(graph, top).into_iter().map(naming));
        actions.extend(remove_unused(graph, &[top]));
        Ok(proven(actions))
    }
}

pub(super) fn find_by(graph: &Graph, generation: NodeGeneration) -> Result<usize> {
    let found = graph.nodes().iter().position(|node| node.generation() == generation);
    found.ok_or_else(|| Error::new(ErrorKind::NotFound, "a node of the job has gone"))
}

/// The overlays that stand on a node, through filters, and whose images name it.
pub(super) fn naming_overlays(graph: &Graph, node: usize) -> Vec<String> {
    let is_over = |overlay: &usize| {
        let edges = graph.nodes()[*overlay].edges();
        let below = edges.iter().find(|edge| edge.role() == Role::Backing);
        below.is_some_and(|edge| graph.nodes()[edge.child()].class() == graph.nodes()[node].class())
    };
    let overlays = (0..graph.nodes().len()).filter(is_over);
    let naming = overlays.filter(|at| graph.nodes()[*at].driver().names_backing());
    naming.map(|at| name_of(graph, at)).collect()
}
