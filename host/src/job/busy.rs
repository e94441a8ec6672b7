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
#[derive(Default)]
pub(super) struct Beginning<'g>(Vec<Busy<'g>>);

impl<'g> Beginning<'g> {
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
        for busy in self.0.iter().filter(|busy| !(busy.is_commit && new.is_commit)) {
            if let Some(node) = common(graph, &new.nodes, busy) {
                return Err(refused(graph, node, busy));
            }
        }
        self.0.push(new);
        Ok(())
    }
}

/// The node of `nodes` that shows what one of a running job shows.
fn common(graph: &Graph, nodes: &[usize], busy: &Busy<'_>) -> Option<usize> {
    let class = |node: &usize| graph.nodes()[*node].class();
    nodes.iter().copied().find(|node| busy.nodes.iter().any(|other| class(other) == class(node)))
}

fn refused(graph: &Graph, node: usize, busy: &Busy<'_>) -> Error {
    let (job, does) = (busy.job, if busy.is_commit { "commits" } else { "mirrors" });
    let message = format!("it is busy: job `{job}` {does} it; wait for its end, or cancel it");
    Error::new(ErrorKind::Busy, message).at_node(graph.nodes()[node].name())
}

/// A mirror of `source` can begin.
///
/// # Errors
/// `EBUSY` beside another mirror of it, or a commit that it has a part in.
pub(super) fn check_mirror(graph: &Graph, source: usize) -> Result<()> {
    let found = running(graph).find(|busy| common(graph, &[source], busy).is_some());
    found.map_or(Ok(()), |busy| Err(refused(graph, source, &busy)))
}

/// A commit of `top` to `base` can begin. Permissions see to others that write that base.
///
/// # Errors
/// `EBUSY` beside a mirror of one of them, or of what lies between.
pub(super) fn check_commit(graph: &Graph, top: usize, base: usize) -> Result<()> {
    let mut nodes: Vec<usize> = down(graph, top).take_while(|node| *node != base).collect();
    nodes.push(base);
    for busy in running(graph).filter(|busy| !busy.is_commit) {
        if let Some(node) = common(graph, &nodes, &busy) {
            return Err(refused(graph, node, &busy));
        }
    }
    Ok(())
}
