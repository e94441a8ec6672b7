//! What a mirror and a commit may not have in common, as both have users go over to another node at their end.
//!
//! QEMU refuses every job on a node of another one, and on the overlay that a commit is asked of (blockers of all
//! operations). Here a commit below what is mirrored is no matter: it alters nothing that a mirror copies.

use super::work::down;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{ChildDecl, Graph, Role};

/// A mirror or commit that runs.
struct Busy<'g> {
    job: &'g str,
    is_commit: bool,
    /// What a mirror copies; of a commit the overlay, its base, and what lies between.
    nodes: Vec<usize>,
}

impl<'g> Busy<'g> {
    fn of(graph: &Graph, job: &'g str, (from, to): (usize, usize)) -> Self {
        let mut nodes: Vec<usize> = down(graph, from).collect();
        let base = nodes.iter().position(|node| *node == to);
        nodes.truncate(base.map_or(1, |base| base + 1));
        Self { job, is_commit: base.is_some(), nodes }
    }
}

fn running(graph: &Graph) -> impl Iterator<Item = Busy<'_>> {
    graph.nodes().iter().filter_map(|node| {
        let job = node.driver().job()?;
        let (from, to) = job.tracks?;
        let (from, to) = (node.edges().get(from)?, node.edges().get(to)?);
        // A comparison writes nothing.
        let writes = to.role() == Role::Target;
        writes.then(|| Busy::of(graph, &job.id, (from.child(), to.child())))
    })
}

/// Those that begin together in one transaction.
pub(super) struct Beginning<'g> {
    jobs: Vec<Busy<'g>>,
    /// They end together, too.
    are_grouped: bool,
}

impl<'g> Beginning<'g> {
    pub(super) fn new(are_grouped: bool) -> Self {
        Self { jobs: Vec::new(), are_grouped }
    }

    /// Another one, with its children.
    ///
    /// # Errors
    /// `EBUSY` beside one that has a node in common with it, as if that ran already.
    pub(super) fn add(
        &mut self,
        graph: &Graph,
        id: &'g str,
        tracks: Option<(usize, usize)>,
        children: &[ChildDecl],
    ) -> Result<()> {
        let child = |edge: usize| children.get(edge);
        let Some((from, to)) = tracks.and_then(|(from, to)| child(from).zip(child(to))) else {
            return Ok(());
        };
        let (from, to, role) = (graph.find_node(&from.node), graph.find_node(&to.node), to.role);
        let Some(tracks) = from.zip(to).filter(|_| role == Role::Target) else { return Ok(()) };
        let new = Busy::of(graph, id, tracks);
        // Down a chain commits can go together: none of them ends first.
        let goes_with = |busy: &&Busy<'_>| self.are_grouped && new.is_commit && busy.is_commit;
        let mut others = self.jobs.iter().filter(|busy| !goes_with(busy));
        others.try_for_each(|busy| check(graph, (&new.nodes, new.is_commit), busy))?;
        self.jobs.push(new);
        Ok(())
    }
}

/// A job can begin beside another one: nothing that it works on shows what something of the other's does.
fn check(graph: &Graph, (nodes, is_commit): (&[usize], bool), busy: &Busy<'_>) -> Result<()> {
    if is_commit && busy.is_commit {
        return check_commits(graph, nodes, busy);
    }
    let mut nodes = nodes.iter();
    let common = nodes.find(|at| busy.nodes.iter().any(|other| is_same(graph, **at, *other)));
    let does = if busy.is_commit { "commits" } else { "mirrors" };
    common.map_or(Ok(()), |node| Err(refused(graph, *node, busy, does)))
}

/// Neither of two commits takes away, when it ends first, what the other one copies to. To one base, or to what another one
/// leaves out, none can copy: the graph itself sees to that.
fn check_commits(graph: &Graph, nodes: &[usize], busy: &Busy<'_>) -> Result<()> {
    let (Some((top, base)), Some((busy_top, busy_base))) = (ends(nodes), ends(&busy.nodes)) else {
        return Ok(());
    };
    match () {
        () if is_same(graph, base, busy_top) => Err(refused(graph, base, busy, "commits")),
        () if is_same(graph, top, busy_base) => Err(refused(graph, top, busy, "commits to")),
        () => Ok(()),
    }
}

fn ends(nodes: &[usize]) -> Option<(usize, usize)> {
    nodes.first().copied().zip(nodes.last().copied())
}

fn is_same(graph: &Graph, one: usize, other: usize) -> bool {
    graph.nodes()[one].class() == graph.nodes()[other].class()
}

fn refused(graph: &Graph, node: usize, busy: &Busy<'_>, does: &str) -> Error {
    let job = busy.job;
    let message = format!("it is busy: job `{job}` {does} it; wait for its end, or cancel it");
    Error::new(ErrorKind::Busy, message).at_node(graph.nodes()[node].name())
}

/// A mirror of `source` can begin.
///
/// # Errors
/// `EBUSY` beside another mirror of it, or a commit that it has a part in.
pub(super) fn check_mirror(graph: &Graph, source: usize) -> Result<()> {
    running(graph).try_for_each(|busy| check(graph, (&[source], false), &busy))
}

/// A commit of `top` to `base` can begin. Permissions see to others that write that base.
///
/// # Errors
/// `EBUSY` beside a mirror of one of them, or of what lies between; beside a commit of that base, or to that top.
pub(super) fn check_commit(graph: &Graph, top: usize, base: usize) -> Result<()> {
    let mut nodes: Vec<usize> = down(graph, top).take_while(|node| *node != base).collect();
    nodes.push(base);
    running(graph).try_for_each(|busy| check(graph, (&nodes, true), &busy))
}
