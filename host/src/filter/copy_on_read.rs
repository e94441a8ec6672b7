//! `copy-on-read`: what is read from below the child's own bytes is kept in the child.
//!
//! The copy writes what the child already shows, so it dirties nothing: not the child's bitmaps, not
//! those of anything above. Two readers of one range copy it once: the second finds it allocated, under
//! its guard. A copy that fails costs the reader nothing: the bytes are read where they are.

use super::PassNode;
use crate::error::Result;
use crate::graph::{ChildDecl, CopyHow, Cx, PermissionSet};
use crate::io::{Buf, BufMut};
use crate::node::{Extent, Node, NodeFuture, NodeInfo, WriteFlags};

/// The native `copy-on-read` filter; its child is the first edge, see [`CopyOnReadNode::child`].
#[derive(Debug, Default)]
pub struct CopyOnReadNode;

impl CopyOnReadNode {
    /// The child `node` with the grants that the filter needs: to read it and to write it unchanged.
    pub fn child(node: impl Into<String>) -> ChildDecl {
        let grants = PermissionSet::HARMLESS;
        ChildDecl { grants, ..ChildDecl::filtered(node) }
    }
}

impl Node for CopyOnReadNode {
    fn driver(&self) -> &'static str {
        "copy-on-read"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        PassNode.info(children)
    }

    fn is_transparent(&self) -> bool {
        true
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move {
            let (child, range) = (cx.child(0)?, offset..offset + buf.len() as u64);
            // A hint: the copy looks again, under its guard.
            if child.first_unallocated(range.clone()).await?.is_some() {
                let how = CopyHow { unchanged: true, only_unallocated: true };
                if let Err(error) = cx.copy(0, 0, range, how).await {
                    tracing::debug!("node `{}`: not copied: {error}", cx.node_name());
                }
            }
            child.read(offset, buf).await
        })
    }

    fn write<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        PassNode.write(cx, offset, buf, flags)
    }

    fn zero<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        PassNode.zero(cx, offset, len, flags)
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        PassNode.discard(cx, offset, len)
    }

    fn set_len<'a>(&'a self, cx: Cx<'a>, len: u64) -> NodeFuture<'a, ()> {
        PassNode.set_len(cx, len)
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        PassNode.flush(cx)
    }

    fn block_status<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
    ) -> NodeFuture<'a, Vec<Extent>> {
        PassNode.block_status(cx, offset, len)
    }
}
