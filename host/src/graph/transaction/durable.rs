//! What drives wrote, made durable before they lose the way by which their flushes come to it.
//!
//! A drive's flush goes to the node that it shows, through filters; not to what that node stands on. So a drive
//! that gets an overlay would leave what it has written before to nobody's flush, and a guest that flushes
//! later would be told that all of it is durable.

use super::drain::{Drained, Place, Side};
use super::touched::same_drive;
use crate::error::Result;
use crate::graph::generation::NodeGeneration;
use crate::graph::permission::Role;
use crate::graph::snapshot::Graph;

/// Flushes the nodes that drives write now, and will only stand on.
///
/// # Errors
/// The driver's: then the change must not be made.
pub(super) async fn flush_left(section: &Drained<'_>) -> Result<()> {
    let (before, after) = (section.graph(Side::Before), section.graph(Side::After));
    let mut left: Vec<usize> = Vec::new();
    for drive in before.drives.iter().filter(|drive| drive.writable) {
        let now = same_drive(after, drive).and_then(|drive| drive.root.as_ref());
        let (Some(was), Some(now)) = (&drive.root, now) else { continue };
        let was = flushed(before, was.child);
        let generation = before.nodes[was].generation;
        let is_left = after.nodes[flushed(after, now.child)].generation != generation
            && stands_on(after, now.child, generation);
        if is_left && !left.contains(&was) {
            left.push(was);
        }
    }
    for node in left {
        section.flush(Place { side: Side::Before, node }).await?;
    }
    Ok(())
}

/// The node that a flush of `node` ends at.
fn flushed(graph: &Graph, node: usize) -> usize {
    let below = |node: &usize| {
        let edges = &graph.nodes[*node].edges;
        Some(edges.iter().find(|edge| edge.role == Role::Filtered)?.child)
    };
    std::iter::successors(Some(node), below).last().unwrap_or(node)
}

fn stands_on(graph: &Graph, node: usize, below: NodeGeneration) -> bool {
    let next = |node: &usize| {
        let edges = &graph.nodes[*node].edges;
        Some(edges.iter().find(|edge| edge.role.is_view())?.child)
    };
    std::iter::successors(Some(node), next).any(|at| graph.nodes[at].generation == below)
}
