//! What tests of several modules stand on.

use std::collections::BTreeMap;

use super::{BitmapScope, Cx, Graph};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Buf, BufMut};
use crate::node::{Extent, Node, NodeFuture, NodeInfo, WriteFlags};

/// Lets every other ready task run once.
pub(super) use crate::io::next_turn as turn;

/// Dirty blocks of every bitmap that has some, by the name of its node or drive.
pub(super) fn dirty_blocks(graph: &Graph, block_size: u64) -> BTreeMap<String, Vec<u64>> {
    let mut dirty = BTreeMap::new();
    for (scope, bitmap) in graph.bitmaps() {
        let (BitmapScope::Node(name) | BitmapScope::Drive(name)) = scope;
        let blocks: Vec<u64> = bitmap
            .ranges(0..u64::MAX)
            .flat_map(|range| range.start / block_size..range.end.div_ceil(block_size))
            .collect();
        if !blocks.is_empty() {
            dirty.insert(name.to_string(), blocks);
        }
    }
    dirty
}

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
