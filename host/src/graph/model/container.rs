//! What an image of the model is in: memory that grows.

use blockloom_qcow2::Storage;
use blockloom_qcow2::testing::{MemoryStorage, block_on};

use super::super::Cx;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Buf, BufMut};
use crate::node::{
    Caps, Extent, ExtentKind, Limits, Node, NodeFuture, NodeInfo, Support, WriteFlags,
};

/// See the module. It never waits, and nothing of it fails.
pub(super) struct Container(pub(super) MemoryStorage);

fn done<'a, T: Send + 'a>(result: blockloom_qcow2::Result<T>) -> NodeFuture<'a, T> {
    let result = result.map_err(|error| Error::new(ErrorKind::Io, error.to_string()));
    Box::pin(async move { result })
}

impl Node for Container {
    fn driver(&self) -> &'static str {
        "container"
    }

    fn info(&self, _: &[NodeInfo]) -> Result<NodeInfo> {
        let caps = Caps {
            zero: Support::Native,
            discard: Support::Native,
            fua: Support::Emulated,
            flush: Support::Native,
        };
        let size_bytes = self.len_bytes().unwrap_or_default();
        Ok(NodeInfo { size_bytes, limits: Limits::NONE, caps, read_only: false, growable: true })
    }

    fn read<'a>(&'a self, _: Cx<'a>, offset: u64, mut buf: BufMut) -> NodeFuture<'a, BufMut> {
        let read = block_on(self.0.read(offset, &mut buf));
        done(read.map(|()| buf))
    }

    fn write<'a>(&'a self, _: Cx<'a>, offset: u64, buf: Buf, _: WriteFlags) -> NodeFuture<'a, ()> {
        done(block_on(self.0.write(offset, &buf)))
    }

    fn zero<'a>(&'a self, _: Cx<'a>, at: u64, len: u64, _: WriteFlags) -> NodeFuture<'a, ()> {
        done(block_on(self.0.zero(at, len)))
    }

    fn discard<'a>(&'a self, _: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        done(block_on(self.0.discard(offset, len)))
    }

    fn flush<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
        done(block_on(self.0.flush()))
    }

    fn len_bytes(&self) -> Option<u64> {
        block_on(self.0.len_bytes()).ok()
    }

    fn set_len<'a>(&'a self, _: Cx<'a>, len: u64) -> NodeFuture<'a, ()> {
        done(block_on(self.0.set_len(len)))
    }

    fn block_status<'a>(&'a self, _: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        let kind = ExtentKind::Data;
        Box::pin(async move { Ok(vec![Extent { offset, len, kind, host_offset: None }]) })
    }
}
