//! What block status alone says of two views: where they surely show the same.

use std::ops::Range;

use super::super::edge::EdgeRef;
use super::super::mutation::{Mutation, mutated};
use super::super::permission::Role;
use super::super::shown::backing;
use super::super::snapshot::{Graph, GraphNode};
use crate::error::Result;
use crate::node::ExtentKind;

/// How the views of a source and of a target are alike, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Likeness {
    /// They show the same: zeros, or what one node shows.
    Same,
    /// The source shows zeros.
    Zero,
    /// They may differ.
    Unknown,
}

/// What shows at a range.
struct Shown {
    range: Range<u64>,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// What this node does, whatever that is.
    Node(usize),
    Zero,
    Unknown,
}

/// The first part of a range that is alike; nobody looks below the nodes `stops`.
async fn shown(edge: EdgeRef<'_>, mut range: Range<u64>, stops: &[usize]) -> Result<Shown> {
    let mut at = edge;
    loop {
        let (node, is_plain) = below_filters(at.graph, at.edge.child);
        if stops.contains(&node) {
            return Ok(Shown { range, what: What::Node(node) });
        }
        if !is_plain {
            // It may say anything of its bytes.
            return Ok(Shown { range, what: What::Unknown });
        }
        let extents = at.block_status(range.start, range.end - range.start).await?;
        let kind = extents.first().map_or(ExtentKind::Data, |extent| extent.kind);
        let alike = extents.iter().take_while(|extent| extent.kind == kind);
        if let Some(last) = alike.last() {
            range.end = range.end.min(last.offset.saturating_add(last.len));
        }
        let what = match kind {
            ExtentKind::Data | ExtentKind::Unreadable => What::Unknown,
            ExtentKind::Zero | ExtentKind::Hole => What::Zero,
            ExtentKind::Unallocated if mutated(Mutation::ForgetsTheBacking) => What::Zero,
            ExtentKind::Unallocated => match backing(&at) {
                None => What::Zero,
                Some(below) => {
                    let end = below.node().info.size_bytes;
                    if range.start < end {
                        range.end = range.end.min(end);
                        at = below;
                        continue;
                    }
                    What::Zero
                }
            },
        };
        return Ok(Shown { range, what });
    }
}

/// The nodes of which a view may show the bytes, from its own down.
fn chain(graph: &Graph, node: usize) -> Vec<usize> {
    let mut nodes = Vec::new();
    let mut next = Some(node);
    while let Some(node) = next {
        let (node, is_plain) = below_filters(graph, node);
        nodes.push(node);
        let mut edges = graph.nodes[node].edges.iter();
        let below = edges.find(|edge| edge.role == Role::Backing).filter(|_| is_plain);
        next = below.map(|edge| edge.child);
    }
    nodes
}

/// What a node shows through filters that alter nothing; and whether that is no filter itself.
fn below_filters(graph: &Graph, mut node: usize) -> (usize, bool) {
    loop {
        let GraphNode { edges, driver, .. } = &graph.nodes[node];
        match edges.iter().find(|edge| edge.role == Role::Filtered) {
            Some(edge) if driver.is_transparent() => node = edge.child,
            Some(_) => return (node, false),
            None => return (node, true),
        }
    }
}

/// How alike a source and a target are from the start of `range` on, and as far as that goes.
///
/// # Errors
/// The nodes'.
pub(super) async fn compare(
    source: EdgeRef<'_>,
    target: EdgeRef<'_>,
    range: Range<u64>,
) -> Result<(Range<u64>, Likeness)> {
    let below_target = chain(target.graph, target.edge.child);
    let from = shown(source, range, &below_target).await?;
    match from.what {
        What::Unknown => Ok((from.range, Likeness::Unknown)),
        What::Node(node) => {
            let to = shown(target, from.range, &[node]).await?;
            let is_same = to.what == from.what;
            Ok((to.range, if is_same { Likeness::Same } else { Likeness::Unknown }))
        }
        What::Zero => {
            let to = shown(target, from.range, &[]).await?;
            let is_same = to.what == What::Zero;
            Ok((to.range, if is_same { Likeness::Same } else { Likeness::Zero }))
        }
    }
}

/// The first part of a range of which it is known alike whether it shows zeros, by block status alone.
///
/// # Errors
/// The nodes'.
pub(super) async fn is_zero(edge: EdgeRef<'_>, range: Range<u64>) -> Result<(Range<u64>, bool)> {
    let found = shown(edge, range, &[]).await?;
    Ok((found.range, found.what == What::Zero))
}

/// Whether a view shows zeros in all of a range, by block status alone.
///
/// # Errors
/// The nodes'.
pub(super) async fn is_all_zero(edge: EdgeRef<'_>, range: &Range<u64>) -> Result<bool> {
    is_zero_above(edge, range, &[]).await
}

/// Whether a target shows zeros in all of a range, of which nothing comes from what the source shows: that may
/// change.
///
/// # Errors
/// The nodes'.
pub(super) async fn is_zero_apart(
    target: EdgeRef<'_>,
    source: EdgeRef<'_>,
    range: &Range<u64>,
) -> Result<bool> {
    is_zero_above(target, range, &chain(source.graph, source.edge.child)).await
}

async fn is_zero_above(edge: EdgeRef<'_>, range: &Range<u64>, stops: &[usize]) -> Result<bool> {
    let mut at = range.start;
    while at < range.end {
        let found = shown(edge, at..range.end, stops).await?;
        if found.what != What::Zero {
            return Ok(false);
        }
        at = found.range.end;
    }
    Ok(true)
}
