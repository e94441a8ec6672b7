//! `copy-on-read`: what is read from below the child's own bytes is kept in the child.
//!
//! The copy writes what the child already shows, so it dirties nothing: not the child's bitmaps, not
//! those of anything above. Two readers of one range copy it once: the second finds it allocated, under
//! its guard. A copy that fails costs the reader nothing: the bytes are read where they are.

use crate::error::Result;
use crate::graph::{ChildDecl, CopyHow, Cx, PermissionSet};
use crate::io::{Buf, BufMut};
use crate::node::{Extent, ExtentKind, Node, NodeFuture, NodeInfo, WriteFlags};

/// The native `copy-on-read` filter; its child is the first edge, see [`CopyOnReadNode::child`].
#[derive(Debug, Default)]
pub struct CopyOnReadNode;

impl CopyOnReadNode {
    /// The child `node` with the grants that the filter needs: to read it and to write it unchanged.
    pub fn child(node: impl Into<String>) -> ChildDecl {
        let grants = PermissionSet::HARMLESS;
        ChildDecl { grants, ..ChildDecl::filtered(node) }
    }

    /// Whether a part of the range has no bytes in the child: a hint, the copy looks again.
    async fn is_missing(cx: Cx<'_>, offset: u64, len: u64) -> Result<bool> {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            for extent in cx.child(0)?.block_status(at, end - at).await? {
                if extent.kind == ExtentKind::Unallocated {
                    return Ok(true);
                }
                at = extent.offset + extent.len;
            }
        }
        Ok(false)
    }
}

impl Node for CopyOnReadNode {
    fn driver(&self) -> &'static str {
        "copy-on-read"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        NodeInfo::of_filter(children)
    }

    fn is_transparent(&self) -> bool {
        true
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move {
            let len = buf.len() as u64;
            if Self::is_missing(cx, offset, len).await? {
                let how = CopyHow { unchanged: true, only_unallocated: true };
                if let Err(error) = cx.copy(0, 0, offset..offset + len, how).await {
                    tracing::debug!("node `{}`: not copied: {error}", cx.node_name());
                }
            }
            cx.child(0)?.read(offset, buf).await
        })
    }

    fn write<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.write(offset, buf, flags).await })
    }

    fn zero<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.zero(offset, len, flags).await })
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.discard(offset, len).await })
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.flush().await })
    }

    fn block_status<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
    ) -> NodeFuture<'a, Vec<Extent>> {
        Box::pin(async move { cx.child(0)?.block_status(offset, len).await })
    }
}
