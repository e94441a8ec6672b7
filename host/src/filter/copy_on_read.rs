//! `copy-on-read`: what is read from below the child's own bytes is kept in the child.
//!
//! The copy writes what the child already shows, so it dirties nothing: not the child's bitmaps, not
//! those of anything above. Two readers of one range copy it once: the second finds it allocated, under
//! its guard. A copy that fails costs the reader nothing: the bytes are read where they are.

use std::ops::Range;

use super::native::{FILE, Filter};
use crate::error::Result;
use crate::graph::{ChildDecl, CopyHow, Cx, PermissionSet};
use crate::io::BufMut;
use crate::node::ExtentKind;

/// The native `copy-on-read` filter; its child is the first edge, see [`CopyOnReadNode::child`].
#[derive(Debug, Default)]
pub struct CopyOnReadNode {
    bottom: Option<usize>,
}

impl CopyOnReadNode {
    /// What the child is called below which nothing is copied.
    pub const BOTTOM: &str = "bottom";

    /// With `bottom`, the number of an edge to a node on which the child stands, nothing is copied that is
    /// found below that node.
    pub fn new(bottom: Option<usize>) -> Self {
        Self { bottom }
    }

    /// The child `node` with the grants that the filter needs: to read it and to write it unchanged.
    pub fn child(node: impl Into<String>) -> ChildDecl {
        let grants = PermissionSet::HARMLESS;
        ChildDecl { grants, ..ChildDecl::filtered(node) }
    }
}

impl CopyOnReadNode {
    async fn populate(&self, cx: Cx<'_>, range: Range<u64>) -> Result<()> {
        let how = CopyHow { unchanged: true, only_unallocated: true };
        let Some(bottom) = self.bottom else {
            return cx.copy(FILE, FILE, range, how).await.map(drop);
        };
        let mut at = range.start;
        while at < range.end {
            // What lies above the bottom, or else in it.
            let (run, found) = run_above(cx, Some(bottom), FILE, at..range.end).await?;
            let (run, found) =
                if found { (run, found) } else { run_above(cx, None, bottom, run).await? };
            at = run.end;
            if found {
                cx.copy(FILE, FILE, run, how).await?;
            }
        }
        Ok(())
    }
}

/// The first run of `range`, all of which the child has, above that other one, or has not.
async fn run_above(
    cx: Cx<'_>,
    above: Option<usize>,
    child: usize,
    range: Range<u64>,
) -> Result<(Range<u64>, bool)> {
    // What a view shows beyond an end is nobody's.
    let end = range.end.min(cx.child(child)?.node().info().size_bytes);
    if range.start >= end {
        return Ok((range, false));
    }
    let found = cx.on_behalf().block_status(child, above, range.start..end, 1).await?;
    Ok(match found.first() {
        Some(extent) => {
            let end = end.min(extent.offset.saturating_add(extent.len));
            (range.start..end, extent.kind != ExtentKind::Unallocated)
        }
        None => (range, false),
    })
}

impl Filter for CopyOnReadNode {
    fn driver(&self) -> &'static str {
        "copy-on-read"
    }

    async fn read(&self, cx: Cx<'_>, offset: u64, buf: BufMut) -> Result<BufMut> {
        let (child, range) = (cx.child(FILE)?, offset..offset + buf.len() as u64);
        // A hint: the copy looks again, under its guard.
        if !child.has_all(range.clone()).await
            && let Err(error) = self.populate(cx, range).await
        {
            tracing::debug!("node `{}`: not copied: {error}", cx.node_name());
        }
        child.read(offset, buf).await
    }
}
