//! What a mirror and a commit may not have in common, as both have users go over to another node at their end.
//!
//! QEMU refuses every job on a node of another one, and on the overlay that a commit is asked of (blockers of all
//! operations). Here a commit below what is mirrored is no matter: it alters nothing that a mirror copies.

use super::work::down;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Graph, Role};

/// A mirror or commit that runs.
struct Busy<'g> {
    job: &'g str,
    is_commit: bool,
    /// What a mirror copies; of a commit the overlay, its base, and what lies between.
    nodes: Vec<usize>,
}

fn running(graph: &Graph) -> impl Iterator<Item = Busy<'_>> {
    graph.nodes().iter().filter_map(|node| {
        let job = node.driver().job()?;
        let (from, to) = job.tracks?;
        let (from, to) = (node.edges().get(from)?, node.edges().get(to)?);
        // A comparison writes nothing.
        if to.role() != Role::Target {
            return None;
        }
        let mut nodes: Vec<usize> = down(graph, from.child()).collect();
        let base = nodes.iter().position(|node| *node == to.child());
        nodes.truncate(base.map_or(1, |base| base + 1));
        Some(Busy { job: &job.id, is_commit: base.is_some(), nodes })
    })
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
