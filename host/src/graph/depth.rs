//! In which layer the bytes lie that a view shows: its own image, its backing, the backing's own.
//!
//! A layer is a class: filters and raw data files do not count.

use super::align;
use super::edge::EdgeRef;
use super::permission::Role;
use super::shown::backing;
use crate::error::Result;
use crate::limits::EXTENTS_MAX;
use crate::node::{Extent, ExtentKind, NodeFuture};

/// A range of a view, and where its bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layered {
    /// First byte in the view.
    pub offset: u64,
    /// Bytes, never 0.
    pub len: u64,
    /// 1: the view's own layer has them; n: the n-th from there; 0: none has.
    pub depth: u32,
}

/// The layers of a range; may end before `offset + len`.
pub(super) fn layers<'g>(edge: EdgeRef<'g>, offset: u64, len: u64) -> NodeFuture<'g, Vec<Layered>> {
    Box::pin(async move {
        let own = align::block_status(edge, offset, len).await?;
        of_extents(edge, own, 1).await
    })
}

/// What `own`, the extents of the child of `edge`, which is layer number `depth`, come from.
fn of_extents<'g>(edge: EdgeRef<'g>, own: Vec<Extent>, depth: u32) -> NodeFuture<'g, Vec<Layered>> {
    Box::pin(async move {
        let below = backing(&edge);
        let mut layers = Vec::with_capacity(own.len());
        for extent in own {
            if layers.len() >= EXTENTS_MAX {
                break;
            }
            let Extent { offset, len, .. } = extent;
            let is_own = match (extent.kind, below) {
                (ExtentKind::Data | ExtentKind::Zero, _) => true,
                (ExtentKind::Unallocated, Some(below)) => {
                    let reached = extend(below, &extent, depth + 1, &mut layers).await?;
                    if reached < offset + len {
                        break;
                    }
                    continue;
                }
                (ExtentKind::Unallocated | ExtentKind::Unreadable, _) => false,
                // The backing ends before it, so that one says that there are zeros.
                (ExtentKind::Hole, Some(_)) => {
                    layers.push(Layered { offset, len, depth: depth + 1 });
                    continue;
                }
                // A file has all of its bytes, also those that it does not store.
                (ExtentKind::Hole, None) => !is_of_image(edge),
            };
            layers.push(Layered { offset, len, depth: if is_own { depth } else { 0 } });
        }
        Ok(layers)
    })
}

/// Adds the layers of the range of `extent`, of which the child of `edge` is the first; returns how far that goes.
async fn extend(
    edge: EdgeRef<'_>,
    extent: &Extent,
    depth: u32,
    to: &mut Vec<Layered>,
) -> Result<u64> {
    let (mut at, end) = (extent.offset, extent.offset + extent.len);
    while at < end && to.len() < EXTENTS_MAX {
        let own = edge.block_status(at, end - at).await?;
        for part in of_extents(edge, own, depth).await? {
            at = end.min(part.offset + part.len);
            to.push(part);
        }
    }
    to.truncate(EXTENTS_MAX);
    Ok(to.last().map_or(extent.offset, |last| last.offset + last.len))
}

/// Whether it is an image that holds the bytes of a class, which may be without some.
fn is_of_image(edge: EdgeRef<'_>) -> bool {
    let mut node = edge.node();
    loop {
        let same = |role| matches!(role, Role::Filtered | Role::Data);
        match node.edges.iter().find(|edge| same(edge.role)) {
            Some(below) => node = &edge.graph.nodes[below.child],
            None => return node.driver.names_backing(),
        }
    }
}
