//! `pass`: does nothing. What it costs is what any filter costs at least.

use crate::error::Result;
use crate::graph::Cx;
use crate::io::{Buf, BufMut};
use crate::node::{Extent, Node, NodeFuture, NodeInfo, WriteFlags};

/// The native `pass` filter; its child is the first edge.
#[derive(Debug, Default)]
pub struct PassNode;

impl Node for PassNode {
    fn driver(&self) -> &'static str {
        "pass"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        NodeInfo::of_filter(children)
    }

    fn is_transparent(&self) -> bool {
        true
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move { cx.child(0)?.read(offset, buf).await })
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

    fn set_len<'a>(&'a self, cx: Cx<'a>, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.set_len(len).await })
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
