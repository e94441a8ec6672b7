//! What one kind of job is to the others: a plan, work, and changes of the graph at its end.

use std::sync::Arc;

use super::context::{JobCx, JobFuture, Step};
use super::node::JobNode;
use super::record::Record;
use super::spec::CopyMode;
use crate::bitmap::BitmapUse;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Action, ChildDecl, Graph, OwnAccord, Role, Unproven};

/// How a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It has done its work.
    Done,
    /// It was asked to end in order, without effect on who uses the nodes.
    Stopped,
    /// It failed, or was cancelled.
    Broken,
}

/// Actions of a transaction, each with what becomes of it without proof.
pub(super) type Actions = Vec<(Action, Unproven)>;

/// The work of a job. It may be asked from any thread; what runs stays on one worker.
pub(super) trait Work: Send + Sync {
    /// A context for [`Self::run`].
    ///
    /// # Errors
    /// When the node that stands for the job is not as it was planned.
    fn open(&self, opening: Opening<'_>) -> Result<JobCx>;

    /// Works until nothing is left to do.
    fn run<'a>(&'a self, cx: &'a JobCx) -> JobFuture<'a, Step<Ending>>;

    /// Keeps what has been done as it is while the job waits for its end to take effect.
    fn keep_up<'a>(&'a self, _cx: &'a JobCx) -> JobFuture<'a, Step<()>> {
        Box::pin(std::future::pending())
    }

    /// Whether its node tracks what it copies: then the target catches up before all else, if it does not end
    /// broken.
    fn tracks(&self) -> bool {
        false
    }

    /// Copies in another way from now on; returns what has to be changed for that, of the node with this name.
    ///
    /// # Errors
    /// `ENOTSUP` when it cannot.
    fn change(&self, _copy_mode: CopyMode, _node: &str) -> Result<Actions> {
        let message = "only a mirror copies in one way or another";
        Err(Error::new(ErrorKind::NotSupported, message))
    }

    /// The bitmap that is its own until it has ended.
    fn held(&self) -> Option<Arc<BitmapUse>> {
        None
    }

    /// It has ended: lets go of what it holds.
    fn ended(&self) {}

    /// What is left to do at this very moment, bytes, where others give it more to do.
    fn left_bytes(&self) -> Option<u64> {
        None
    }

    /// Whether nothing is acknowledged that has not been copied, if that is what it is about.
    fn is_in_step(&self) -> Option<bool> {
        None
    }

    /// The nodes whose images have to name another backing at its end.
    fn named(&self, _graph: &Graph) -> Vec<String> {
        Vec::new()
    }

    /// Whether images that cannot be opened for writing may go on naming what they name.
    fn leaves_names(&self) -> bool {
        false
    }

    /// What changes when it ends, beside the removal of its node, which comes first.
    ///
    /// # Errors
    /// When the graph is not what it was to be.
    fn end(&self, graph: &Graph, how: Ending) -> Result<Actions>;
}

/// What a context is made of.
pub(super) struct Opening<'a> {
    pub(super) record: &'a Arc<Record>,
    pub(super) own: &'a OwnAccord,
}

/// A job as it comes into the graph.
pub(super) struct Planned {
    pub(super) node: Arc<JobNode>,
    pub(super) children: Vec<ChildDecl>,
    pub(super) place: Place,
    /// What is to be longer before anything else is done.
    pub(super) growth: Option<Action>,
    /// What comes before it.
    pub(super) before: Actions,
    pub(super) work: Arc<dyn Work>,
}

/// Where its node comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nobody uses it.
    Beside,
    /// It is a filter of that node, for all who use that.
    Above(String),
}

/// The node that a name means: its own, or that which a drive of that name shows, below the filters that stand
/// for jobs.
///
/// # Errors
/// `ENOENT`, `ENOMEDIUM`.
pub(super) fn find(graph: &Graph, name: &str) -> Result<usize> {
    let mut at = match graph.find_drive(name) {
        Some(drive) => graph.drives()[drive].medium()?.child(),
        None => graph.find_node(name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no node or drive `{name}`"))
        })?,
    };
    while let Some(below) = below_job(graph, at) {
        at = below;
    }
    Ok(at)
}

/// What a node filters, if it stands for a job.
fn below_job(graph: &Graph, node: usize) -> Option<usize> {
    let node = &graph.nodes()[node];
    let mut edges = node.edges().iter().filter(|edge| edge.role() == Role::Filtered);
    node.driver().job().and_then(|_| edges.next()).map(|edge| edge.child())
}

/// The node over which another job can put a filter, so that all come through that who come to `node`: above the
/// filters of jobs that go on with what they have been told.
pub(super) fn below_followers(graph: &Graph, node: usize) -> usize {
    let keeps = |at: usize| {
        let tracks = graph.nodes()[at].driver().job().is_some_and(|job| job.tracks.is_some());
        tracks.then(|| below_job(graph, at)).flatten()
    };
    let mut at = node;
    while let Some(above) = (0..graph.nodes().len()).find(|above| keeps(*above) == Some(at)) {
        at = above;
    }
    at
}

/// What `node` shows where it has no bytes of its own, and the overlay that has that backing: `node` itself, or
/// what it is a filter of.
pub(super) fn backing(graph: &Graph, node: usize) -> Option<(usize, usize)> {
    let mut at = node;
    loop {
        let view = graph.nodes()[at].edges().iter().find(|edge| edge.role().is_view())?;
        if view.role() == Role::Backing {
            return Some((at, view.child()));
        }
        at = view.child();
    }
}

/// The nodes that `node` shows, by view edges, from itself down.
pub(super) fn down(graph: &Graph, node: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(node), |at| {
        let edges = graph.nodes()[*at].edges();
        Some(edges.iter().find(|edge| edge.role().is_view())?.child())
    })
}

/// Makes a node longer, or what it is a filter of.
pub(super) fn grow(graph: &Graph, node: usize, size_bytes: u64) -> Action {
    Action::Resize { node: graph.unfiltered(&graph.nodes()[node]).name().to_owned(), size_bytes }
}

pub(super) fn name_of(graph: &Graph, node: usize) -> String {
    graph.nodes()[node].name().to_owned()
}

/// Actions, each as it goes without saying.
pub(super) fn proven(actions: Vec<Action>) -> Actions {
    let of = |action: Action| {
        let unproven = action.default_unproven();
        (action, unproven)
    };
    actions.into_iter().map(of).collect()
}

/// Removes those of these nodes that were never named, with what only they stand on, if nobody uses them any more:
/// below the filters that stand for jobs.
pub(super) fn remove_unused(graph: &Graph, nodes: &[usize]) -> Option<Action> {
    let shown = |at: &usize| std::iter::successors(Some(*at), |at| below_job(graph, *at)).last();
    let names = nodes.iter().filter_map(shown).map(|at| name_of(graph, at));
    let nodes: Vec<String> = names.filter(|name| name.starts_with('#')).collect();
    (!nodes.is_empty()).then_some(Action::RemoveUnused { nodes })
}
