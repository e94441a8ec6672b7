//! The node that stands for a job.

use super::super::filter::PassNode;
use crate::error::Result;
use crate::graph::{Cx, JobStake};
use crate::io::{Buf, BufMut};
use crate::node::{Extent, Node, NodeFuture, NodeInfo, WriteFlags};

/// Nobody uses it: it has the job's edges, with what the job may do. Where its first child is filtered, it
/// lets requests pass.
pub(super) struct JobNode {
    stake: JobStake,
}

impl JobNode {
    pub(super) fn new(stake: JobStake) -> Self {
        Self { stake }
    }
}

impl Node for JobNode {
    fn driver(&self) -> &'static str {
        "job"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        PassNode.info(children)
    }

    fn is_transparent(&self) -> bool {
        true
    }

    fn job(&self) -> Option<&JobStake> {
        Some(&self.stake)
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        PassNode.read(cx, offset, buf)
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
