//! Block status as a reader sees it: where a node has no bytes of its own, what its backing is there.

use super::edge::EdgeRef;
use super::permission::Role;
use crate::error::Result;
use crate::limits::EXTENTS_MAX;
use crate::node::{Extent, ExtentKind, NodeFuture};

/// The edge to what shows through the child of `edge`: the backing of its class.
pub(super) fn backing<'g>(edge: &EdgeRef<'g>) -> Option<EdgeRef<'g>> {
    let mut node = edge.node();
    loop {
        let view = node.edges.iter().find(|edge| edge.role.is_view())?;
        if view.role == Role::Backing {
            return Some(EdgeRef { edge: view, ..*edge });
        }
        node = &edge.graph.nodes[view.child];
    }
}

/// The extents from `offset` on, with those of backings in place of what is theirs; may end before
/// `offset + len`. What is unallocated all the way down shows as such. `own` are those of the child.
pub(super) fn shown<'g>(edge: EdgeRef<'g>, own: Vec<Extent>) -> NodeFuture<'g, Vec<Extent>> {
    Box::pin(async move {
        let Some(below) = backing(&edge) else { return Ok(own) };
        let mut extents = Vec::with_capacity(own.len());
        for extent in own {
            if extents.len() >= EXTENTS_MAX {
                break;
            }
            if extent.kind != ExtentKind::Unallocated {
                extents.push(extent);
                continue;
            }
            let end = extent.offset + extent.len;
            let reached = extend(below, &extent, &mut extents).await?;
            if reached < end {
                break;
            }
        }
        Ok(extents)
    })
}

/// Adds what the backing has in the range of `extent`; returns how far that goes.
async fn extend(below: EdgeRef<'_>, extent: &Extent, to: &mut Vec<Extent>) -> Result<u64> {
    let (mut at, end) = (extent.offset, extent.offset + extent.len);
    while at < end && to.len() < EXTENTS_MAX {
        let own = below.block_status(at, end - at).await?;
        for part in shown(below, own).await? {
            at = end.min(part.offset + part.len);
            to.push(part);
        }
    }
    to.truncate(EXTENTS_MAX);
    Ok(to.last().map_or(extent.offset, |last| last.offset + last.len))
}
