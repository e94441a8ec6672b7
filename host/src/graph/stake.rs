//! What a job has at stake in the graph.

use std::collections::HashMap;

use super::class::Class;
use super::permission::Role;
use super::snapshot::{Graph, GraphNode};
use crate::error::{Error, ErrorKind, Result};

/// A job, as the graph sees the node that stands for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStake {
    /// The job's id: what messages call the node.
    pub id: String,
    /// Pairs of the node's edges: as long as it is there, the child of the first shows, by view edges, what the
    /// child of the second does.
    pub stands_on: Vec<(usize, usize)>,
    /// Its edges to what it copies, and to what it copies that to, if it tracks where they differ.
    pub tracks: Option<(usize, usize)>,
    /// Its edges to an overlay, and to a node below that, if there is one: what lies between is left out in the end, as
    /// one of the two has got what the overlay shows of that.
    pub leaves_out: Option<(usize, Option<usize>)>,
    /// Its writes may alter the views of those who stand on what it writes, beside the view for which they are
    /// proven.
    pub alters_others: bool,
}

impl Graph {
    /// By node: how messages call it.
    pub(super) fn title(&self, node: usize) -> String {
        let node = &self.nodes[node];
        match node.driver.job() {
            Some(job) => format!("job `{}`", job.id),
            None => format!("node `{}`", node.name),
        }
    }

    /// Whether `lower` is `upper`, or lies below it along view edges.
    pub(super) fn stands_on(&self, upper: usize, lower: usize) -> bool {
        self.down(upper).any(|at| at == lower)
    }

    /// The node of which one is a filter, through others; itself, if it is none.
    pub(crate) fn unfiltered<'g>(&'g self, node: &'g GraphNode) -> &'g GraphNode {
        let below = node.edges.iter().find(|edge| edge.role == Role::Filtered);
        below.map_or(node, |edge| &self.nodes[self.unfiltered_at(edge.child)])
    }

    /// The same, by index.
    pub(super) fn unfiltered_at(&self, node: usize) -> usize {
        let below = |at: &usize| {
            let edges = &self.nodes[*at].edges;
            Some(edges.iter().find(|edge| edge.role == Role::Filtered)?.child)
        };
        std::iter::successors(Some(node), below).last().unwrap_or(node)
    }

    /// The nodes that one shows, by view edges, from itself down.
    fn down(&self, node: usize) -> impl Iterator<Item = usize> {
        let next = |node: &usize| {
            let edges = &self.nodes[*node].edges;
            Some(edges.iter().find(|edge| edge.role.is_view())?.child)
        };
        std::iter::successors(Some(node), next)
    }
}

/// Refuses a graph in which a job has lost its ground.
///
/// # Errors
/// `EBUSY`, with the job and both nodes.
pub(super) fn check(graph: &Graph) -> Result<()> {
    let mut ids = HashMap::new();
    for (at, node) in graph.nodes.iter().enumerate() {
        let Some(job) = node.driver.job() else { continue };
        if ids.insert(&job.id, at).is_some() {
            let message = format!("two nodes stand for job `{}`", job.id);
            return Err(Error::new(ErrorKind::Exists, message));
        }
        for (upper, lower) in &job.stands_on {
            let (Some(upper), Some(lower)) = (node.edges.get(*upper), node.edges.get(*lower))
            else {
                continue;
            };
            if !graph.stands_on(upper.child, lower.child) {
                let (upper, lower) = (&graph.nodes[upper.child], &graph.nodes[lower.child]);
                let message = format!(
                    "job `{}` needs node `{}` below it: wait for the job's end, or cancel it",
                    job.id, lower.name
                );
                return Err(Error::new(ErrorKind::InUse, message).at_node(&upper.name));
            }
        }
        check_left_out(graph, (job, node))?;
    }
    Ok(())
}

/// What a job leaves out in the end, no other one fills, replaces or needs: it would do all its work for nothing.
///
/// # Errors
/// `EBUSY`, with both jobs and the node.
fn check_left_out(graph: &Graph, (job, node): (&JobStake, &GraphNode)) -> Result<()> {
    let Some((upper, lower)) = job.leaves_out else { return Ok(()) };
    let Some(top) = node.edges.get(upper).map(|edge| edge.child) else { return Ok(()) };
    let class = |at: usize| graph.nodes[at].class;
    let lower = lower.and_then(|lower| node.edges.get(lower)).map(|edge| class(edge.child));
    let left_out: Vec<Class> = graph
        .down(top)
        .map(class)
        .take_while(|at| Some(*at) != lower)
        .filter(|at| *at != class(top))
        .collect();
    for other in graph.nodes.iter().filter(|other| other.generation != node.generation) {
        let Some(stake) = other.driver.job() else { continue };
        let needed = stake.works_on(graph, other, class(top));
        if let Some(at) = needed.into_iter().find(|at| left_out.contains(&class(*at))) {
            let message = format!(
                "job `{}` is to leave it out from below `{}`, and job `{}` works with it: wait for the end of one \
                 of them, or cancel it",
                job.id, graph.nodes[top].name, stake.id
            );
            return Err(Error::new(ErrorKind::InUse, message).at_node(&graph.nodes[at].name));
        }
    }
    Ok(())
}

impl JobStake {
    /// The nodes that the job of a node fills or replaces, or needs below what shows `class`.
    fn works_on(&self, graph: &Graph, node: &GraphNode, class: Class) -> Vec<usize> {
        let child = |edge: usize| node.edges.get(edge).map(|edge| edge.child);
        let fills = self.leaves_out.and_then(|(upper, _)| child(upper));
        let writes = |to: &usize| node.edges.get(*to).is_some_and(|to| to.role == Role::Target);
        let copies = self.tracks.filter(|(_, to)| writes(to));
        let copies = copies.into_iter().flat_map(|(from, to)| [child(from), child(to)]);
        let is_above = |upper: usize| {
            let mut down = child(upper).into_iter().flat_map(|upper| graph.down(upper));
            down.any(|at| graph.nodes[at].class == class)
        };
        let needs = self.stands_on.iter().filter(|(upper, _)| is_above(*upper));
        let needs = needs.map(|(_, lower)| child(*lower));
        fills.into_iter().chain(copies.flatten()).chain(needs.flatten()).collect()
    }
}
