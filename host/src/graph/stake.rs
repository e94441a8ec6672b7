//! What a job has at stake in the graph.

use std::collections::HashMap;

use super::snapshot::Graph;
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
        let next = |node: &usize| {
            let edges = &self.nodes[*node].edges;
            Some(edges.iter().find(|edge| edge.role.is_view())?.child)
        };
        std::iter::successors(Some(upper), next).any(|at| at == lower)
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
    }
    Ok(())
}
