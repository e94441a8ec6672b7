//! `raw`: a part of another node, or (without offset and size) the whole of it.

use super::{Caps, Extent, Identity, Limits, Node, NodeFuture, NodeInfo, WriteFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Cx;
use crate::io::{Buf, BufMut};

/// The `raw` driver; its only child is the first edge.
#[derive(Debug)]
pub struct RawNode {
    offset: u64,
    size_bytes: Option<u64>,
}

impl RawNode {
    /// The bytes of the child from `offset` on: `size_bytes` of them, or all that follow.
    pub fn new(offset: u64, size_bytes: Option<u64>) -> Self {
        Self { offset, size_bytes }
    }

    /// Whether the child's bytes are shown at the same offset, all of them.
    pub fn is_whole(&self) -> bool {
        self.offset == 0 && self.size_bytes.is_none()
    }
}

impl Node for RawNode {
    fn driver(&self) -> &'static str {
        "raw"
    }

    fn offset_in_child(&self) -> Option<u64> {
        Some(self.offset)
    }

    fn identity(&self) -> NodeFuture<'_, Identity> {
        super::identity::answer(match self.is_whole() {
            true => Identity::OfChildren,
            false => Identity::Shaped([self.offset, self.size_bytes.unwrap_or(u64::MAX)]),
        })
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        let Some(child) = children.first() else {
            return Err(Error::new(ErrorKind::Invalid, "a raw node needs a child `file`"));
        };
        let rest = child.size_bytes.checked_sub(self.offset);
        let size_bytes = match (rest, self.size_bytes) {
            (Some(rest), None) => rest,
            (Some(rest), Some(size)) if size <= rest => size,
            _ => {
                let message = format!(
                    "offset {} + size {} lie outside the child, which has {} bytes",
                    self.offset,
                    self.size_bytes.unwrap_or(0),
                    child.size_bytes
                );
                return Err(Error::new(ErrorKind::Invalid, message));
            }
        };
        let growable = child.growable && self.size_bytes.is_none();
        Ok(NodeInfo { size_bytes, growable, limits: Limits::NONE, caps: Caps::FILTER, ..*child })
    }

    fn set_len<'a>(&'a self, cx: Cx<'a>, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.set_len(self.offset.saturating_add(len)).await })
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move { cx.child(0)?.read(self.offset + offset, buf).await })
    }

    fn write<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.write(self.offset + offset, buf, flags).await })
    }

    fn zero<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.zero(self.offset + offset, len, flags).await })
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.discard(self.offset + offset, len).await })
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
        Box::pin(async move {
            let mut extents = cx.child(0)?.block_status(self.offset + offset, len).await?;
            for extent in &mut extents {
                extent.offset -= self.offset;
            }
            Ok(extents)
        })
    }
}
