//! What tests of several modules stand on.

use super::Cx;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Buf, BufMut};
use crate::node::{Extent, Node, NodeFuture, NodeInfo, WriteFlags};

/// Lets every other ready task run once.
pub(super) use crate::io::next_turn as turn;

/// Shows nothing, serves nobody: it only acts.
pub(super) struct JobNode;

fn cannot<'a, T>() -> NodeFuture<'a, T> {
    Box::pin(async { Err(Error::new(ErrorKind::NotSupported, "a job serves nobody")) })
}

impl Node for JobNode {
    fn driver(&self) -> &'static str {
        "job"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        NodeInfo::of_filter(children)
    }

    fn read<'a>(&'a self, _: Cx<'a>, _: u64, _: BufMut) -> NodeFuture<'a, BufMut> {
        cannot()
    }

    fn write<'a>(&'a self, _: Cx<'a>, _: u64, _: Buf, _: WriteFlags) -> NodeFuture<'a, ()> {
        cannot()
    }

    fn zero<'a>(&'a self, _: Cx<'a>, _: u64, _: u64, _: WriteFlags) -> NodeFuture<'a, ()> {
        cannot()
    }

    fn discard<'a>(&'a self, _: Cx<'a>, _: u64, _: u64) -> NodeFuture<'a, ()> {
        cannot()
    }

    fn flush<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
        cannot()
    }

    fn block_status<'a>(&'a self, _: Cx<'a>, _: u64, _: u64) -> NodeFuture<'a, Vec<Extent>> {
        cannot()
    }
}
