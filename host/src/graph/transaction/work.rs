//! What drivers do to nodes with nothing in flight, and what cannot be undone.

use std::cell::Cell;
use std::ops::Range;

use super::draft::{By, Draft, invalid};
use super::drain::Drained;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::class::Cut;
use crate::graph::permission::Role;
use crate::graph::snapshot::{Edge, Graph, GraphNode};

/// An action that reaches beyond the graph.
pub(super) enum Work {
    Resize { node: String, size_bytes: u64 },
    Deallocate { node: String, range: Range<u64>, by: By },
}

impl Work {
    pub(super) fn node(&self) -> &str {
        match self {
            Self::Resize { node, .. } | Self::Deallocate { node, .. } => node,
        }
    }
}

/// A piece of work with its places.
pub(super) struct Step {
    /// Index in the graph that is.
    pub(super) old: usize,
    /// Index in the graph that is to be.
    pub(super) node: usize,
    pub(super) kind: StepKind,
}

pub(super) enum StepKind {
    Resize { from_bytes: u64, to_bytes: u64 },
    Deallocate { range: Range<u64>, by: By },
}

impl Step {
    /// It can be taken back: what a growth has added is in no view yet.
    fn is_growth(&self) -> bool {
        matches!(self.kind, StepKind::Resize { from_bytes, to_bytes } if to_bytes >= from_bytes)
    }
}

/// The work of a draft in the order in which it is to be done: growths, then what cannot be undone, of
/// which there is one piece at most.
///
/// # Errors
/// A range past the end, a parent that relies on the size, more than one piece that cannot be undone.
pub(super) fn steps(draft: &Draft, before: &Graph, after: &Graph) -> Result<Vec<Step>> {
    let mut steps = Vec::with_capacity(draft.works.len());
    if let Some(work) = draft.works.first()
        && let Some(reopened) = draft.nodes.iter().find(|node| node.is_reopened)
    {
        let message = format!(
            "it is to be resized or deallocated, and `{}` to be opened in another way: do so in two \
             transactions",
            reopened.name
        );
        return Err(invalid(message).at_node(work.node()));
    }
    for work in &draft.works {
        // A node with work is neither new nor removed.
        let places = before.find_node(work.node()).zip(after.find_node(work.node()));
        let Some((old, node)) = places else { continue };
        if after.nodes[node].info.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "it is read-only").at_node(work.node()));
        }
        let kind = match work {
            Work::Resize { size_bytes, .. } => {
                check_parents(after, node)?;
                let from_bytes = before.nodes[old].info.size_bytes;
                if *size_bytes < from_bytes {
                    check_keepers(
                        after,
                        node,
                        "a shrink would cut off what it has not copied yet",
                    )?;
                    check_jobs(after, node)?;
                }
                StepKind::Resize { from_bytes, to_bytes: *size_bytes }
            }
            Work::Deallocate { range, by, .. } => {
                check_range(after, node, range)?;
                StepKind::Deallocate { range: range.clone(), by: *by }
            }
        };
        steps.push(Step { old, node, kind });
    }
    steps.sort_by_key(|step| !step.is_growth());
    if steps.iter().filter(|step| !step.is_growth()).count() > 1 {
        let message = "a transaction can shrink or deallocate once, as neither can be undone: \
                       make it several transactions";
        return Err(invalid(message.into()));
    }
    Ok(steps)
}

/// Whoever keeps its bytes in a node counts on the node's size.
fn check_parents(graph: &Graph, node: usize) -> Result<()> {
    for parent in &graph.nodes {
        let relies = |role| matches!(role, Role::Storage | Role::Target);
        let edge = parent.edges.iter().find(|edge| edge.child == node && relies(edge.role));
        if let Some(edge) = edge {
            let message = format!(
                "node `{}` (edge `{}`) does not share `r` (resize): resize that node instead",
                parent.name, edge.name
            );
            return Err(Error::new(ErrorKind::InUse, message).at_node(&graph.nodes[node].name));
        }
    }
    Ok(())
}

/// A job has been told how much there is to do: what it goes over is not cut off.
fn check_jobs(graph: &Graph, node: usize) -> Result<()> {
    let jobs = graph.nodes.iter().filter_map(|above| Some((above.driver.job()?, &above.edges)));
    for (job, edges) in jobs {
        let mut read = edges.iter().filter(|edge| edge.role != Role::Target);
        if read.any(|edge| graph.below(edge.child).any(|below| below == node)) {
            let message = format!(
                "job `{}` goes over what is there, and a shrink would cut it off: wait for the job's \
                 end, or cancel it",
                job.id
            );
            return Err(Error::new(ErrorKind::InUse, message).at_node(&graph.nodes[node].name));
        }
    }
    Ok(())
}

/// Refuses what would alter bytes on which a node at or above this one relies, without asking it first.
pub(super) fn check_keepers(graph: &Graph, node: usize, why: &str) -> Result<()> {
    let reached = graph.views.reached(graph.nodes[node].class, Cut::default());
    let is_reached = |class| reached.ranged.contains(&class) || reached.whole.contains(&class);
    let mut above = graph.nodes.iter().filter(|above| is_reached(above.class));
    match above.find(|above| above.driver.keeps_old_bytes()) {
        None => Ok(()),
        Some(keeper) => {
            let (who, fix) = keeper_and_fix(graph, keeper);
            let message = format!("{who}, and {why}: {fix}");
            Err(Error::new(ErrorKind::InUse, message).at_node(&graph.nodes[node].name))
        }
    }
}

/// Who keeps old bytes, and for whom; and what is to be done about that.
fn keeper_and_fix(graph: &Graph, keeper: &GraphNode) -> (String, String) {
    let keeps = "keeps what was there at one point in time";
    if let Some(job) = keeper.driver.job() {
        let fix = "wait for the job's end, or cancel it".to_owned();
        return (format!("job `{}` {keeps}", job.id), fix);
    }
    let name = &keeper.name;
    let is_view = |node: &&GraphNode| {
        let mut edges = node.edges.iter().enumerate();
        let is_it = |edge: &Edge| graph.nodes[edge.child].generation == keeper.generation;
        edges.any(|(at, edge)| is_it(edge) && node.driver.needs_itself(at))
    };
    match graph.nodes.iter().find(is_view) {
        None => (format!("node `{name}` {keeps}"), "remove that node first".to_owned()),
        Some(view) => {
            let who = format!("node `{name}` {keeps}, which node `{}` shows", view.name);
            (who, "remove that view and that node first, or end their checkpoint".to_owned())
        }
    }
}

fn check_range(graph: &Graph, node: usize, range: &Range<u64>) -> Result<()> {
    let node = &graph.nodes[node];
    let (size, unit) = (node.info.size_bytes, u64::from(node.info.limits.request_alignment));
    let is_aligned = range.start.is_multiple_of(unit) && range.end.is_multiple_of(unit);
    if range.end > size || !is_aligned {
        let message = format!(
            "range {}..{} is to lie within {size} bytes, at multiples of {unit}",
            range.start, range.end
        );
        return Err(invalid(message).at_node(&node.name));
    }
    Ok(())
}

/// Does the work; `current` is the piece that is under way. If one fails, the growths before it are taken
/// back.
///
/// # Errors
/// The driver's.
pub(super) async fn run(
    section: &Drained<'_>,
    steps: &[Step],
    current: &Cell<usize>,
) -> Result<()> {
    for (at, step) in steps.iter().enumerate() {
        current.set(at);
        let done = match &step.kind {
            StepKind::Resize { to_bytes, .. } => section.resize(step.node, *to_bytes).await,
            StepKind::Deallocate { range, .. } => {
                section.deallocate(step.node, range.start, range.end - range.start).await
            }
        };
        if let Err(error) = done {
            take_back(section, &steps[..at]).await;
            return Err(error);
        }
    }
    Ok(())
}

/// Puts sizes back. What a shrink has cut off is lost.
pub(super) async fn take_back(section: &Drained<'_>, steps: &[Step]) {
    for step in steps.iter().rev() {
        if let StepKind::Resize { from_bytes, .. } = step.kind
            && let Err(error) = section.resize(step.node, from_bytes).await
        {
            // Its view keeps the old size: what lies behind it is not reached, or fails.
            tracing::warn!("a resize could not be taken back: {error}");
        }
    }
}
