//! `memory`: a sparse view in memory, lost at exit; alone, or as an overlay over a backing.
//!
//! Memory is taken in chunks when they are first written, and given back when a whole chunk is
//! discarded or zeroed. A chunk has a lock of its own, so that workers meet only on the same 64 KiB.
//!
//! | file | holds |
//! |---|---|
//! | `chunks` | the table of chunks |
//! | `plain` | bytes of a node without backing |
//! | `overlay`, `map` | bytes of a node over a backing, and which they are |
//! | `hidden` | where such a node hides its backing without bytes |
//! | `extents` | lists of extents |

mod chunks;
mod extents;
mod hidden;
mod map;
mod overlay;
mod plain;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};

use chunks::SIZE_MAX_BYTES;
use overlay::Overlay;
use plain::Plain;

use super::{Caps, Extent, Limits, Node, NodeFuture, NodeInfo, WriteFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Cx;
use crate::io::{Buf, BufMut};

/// The `memory` driver.
///
/// An overlay shows its backing, the first child (role `backing`), where it has no bytes of its own, and
/// zeros behind the backing's end. Its unit of allocation is its block size:
///
/// ```
/// use std::sync::Arc;
///
/// use blockloom::graph::{ChildDecl, GraphDecl, NodeDecl, Role};
/// use blockloom::node::MemoryNode;
///
/// # fn main() -> blockloom::Result<()> {
/// let base = Arc::new(MemoryNode::new(1 << 20, 512)?);
/// let overlay = Arc::new(MemoryNode::overlay(2 << 20, 4096)?);
/// let backing =
///     ChildDecl { name: "backing".into(), role: Role::Backing, ..ChildDecl::filtered("base") };
/// let decl = GraphDecl {
///     nodes: vec![
///         NodeDecl { name: "base".into(), driver: base, children: vec![] },
///         NodeDecl { name: "overlay".into(), driver: overlay, children: vec![backing] },
///     ],
///     ..GraphDecl::default()
/// };
/// let graph = decl.build()?;
/// assert_eq!(graph.nodes()[1].info().size_bytes, 2 << 20);
/// # Ok(())
/// # }
/// ```
pub struct MemoryNode {
    size_bytes: AtomicU64,
    block_size: u32,
    bytes: Bytes,
}

enum Bytes {
    Plain(Plain),
    Overlay(Overlay),
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

fn check_size(size_bytes: u64, block_size: u32) -> Result<()> {
    let valid_block = block_size.is_power_of_two() && block_size <= 4096;
    if size_bytes > SIZE_MAX_BYTES
        || !valid_block
        || !size_bytes.is_multiple_of(u64::from(block_size))
    {
        return Err(invalid(format!(
            "a memory node of {size_bytes} bytes with blocks of {block_size}: at most 1 PiB, \
             a multiple of a block size that is a power of two up to 4096"
        )));
    }
    Ok(())
}

impl MemoryNode {
    /// A zero view of `size_bytes` that takes requests aligned to `block_size` (bytes, 1 to 4096).
    ///
    /// # Errors
    /// `EINVAL` when the size is above 1 PiB or no multiple of the block size.
    pub fn new(size_bytes: u64, block_size: u32) -> Result<Self> {
        Self::with_bytes(size_bytes, block_size, Bytes::Plain(Plain::new()))
    }

    /// A view of `size_bytes` over the backing that it is declared with, if any, with no bytes of its own
    /// yet. It takes requests aligned to `block_size` (bytes, 1 to 4096), and allocates such blocks.
    ///
    /// # Errors
    /// As [`MemoryNode::new`].
    pub fn overlay(size_bytes: u64, block_size: u32) -> Result<Self> {
        Self::with_bytes(size_bytes, block_size, Bytes::Overlay(Overlay::new(block_size)))
    }

    fn with_bytes(size_bytes: u64, block_size: u32, bytes: Bytes) -> Result<Self> {
        check_size(size_bytes, block_size)?;
        Ok(Self { size_bytes: AtomicU64::new(size_bytes), block_size, bytes })
    }

    fn size_bytes(&self) -> u64 {
        // To others it changes when no request is in flight, and a new snapshot tells them.
        self.size_bytes.load(Ordering::Relaxed)
    }

    fn set_size(&self, cx: Cx<'_>, size_bytes: u64) -> Result<()> {
        check_size(size_bytes, self.block_size)?;
        let old_bytes = self.size_bytes();
        match (&self.bytes, size_bytes.checked_sub(old_bytes)) {
            (Bytes::Plain(_), Some(_)) => {}
            (Bytes::Plain(plain), None) => plain.unmap(size_bytes, old_bytes - size_bytes),
            (Bytes::Overlay(overlay), Some(_)) => {
                overlay.hide_backing(cx, old_bytes..size_bytes);
            }
            (Bytes::Overlay(overlay), None) => {
                overlay.deallocate(size_bytes, old_bytes - size_bytes);
            }
        }
        self.size_bytes.store(size_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Makes room for a change that may go behind the end of a node without backing.
    fn grow_to(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.saturating_add(len);
        if end > SIZE_MAX_BYTES {
            let message =
                format!("it cannot grow to {end} bytes: it holds {SIZE_MAX_BYTES} at most");
            return Err(Error::new(ErrorKind::NoSpace, message));
        }
        if end > self.size_bytes() {
            self.size_bytes.fetch_max(end, Ordering::Relaxed);
        }
        Ok(())
    }

    fn give_up(&self, offset: u64, len: u64) -> Result<()> {
        let Bytes::Overlay(overlay) = &self.bytes else {
            let message = "a memory node without backing keeps all its bytes";
            return Err(Error::new(ErrorKind::NotSupported, message));
        };
        let block = u64::from(self.block_size);
        let is_inside = offset.checked_add(len).is_some_and(|end| end <= self.size_bytes());
        if !is_inside || !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
            return Err(invalid(format!(
                "{len} bytes from {offset} are not whole blocks of {block} bytes in the node"
            )));
        }
        overlay.deallocate(offset, len);
        Ok(())
    }
}

impl Node for MemoryNode {
    fn driver(&self) -> &'static str {
        "memory"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        match (&self.bytes, children) {
            (_, []) | (Bytes::Overlay(_), [_]) => {}
            (Bytes::Plain(_), _) => {
                let message = "a memory node has a child only if it was made as an overlay";
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            (Bytes::Overlay(_), more) => {
                let count = more.len();
                return Err(invalid(format!("it has {count} children, not one: `backing`")));
            }
        }
        let limits = Limits { request_alignment: self.block_size, ..Limits::NONE };
        let (size_bytes, growable) = (self.size_bytes(), matches!(self.bytes, Bytes::Plain(_)));
        Ok(NodeInfo { size_bytes, limits, caps: Caps::FILTER, read_only: false, growable })
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, mut buf: BufMut) -> NodeFuture<'a, BufMut> {
        match &self.bytes {
            Bytes::Plain(plain) => Box::pin(async move {
                plain.copy_out(offset, &mut buf);
                Ok(buf)
            }),
            Bytes::Overlay(overlay) => Box::pin(overlay.read(cx, offset, buf)),
        }
    }

    fn write<'a>(&'a self, _: Cx<'a>, offset: u64, buf: Buf, _: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            match &self.bytes {
                Bytes::Plain(plain) => {
                    self.grow_to(offset, buf.len() as u64)?;
                    plain.copy_in(offset, &buf);
                }
                Bytes::Overlay(overlay) => overlay.write(offset, &buf),
            }
            Ok(())
        })
    }

    fn zero<'a>(
        &'a self,
        _: Cx<'a>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            if let Bytes::Plain(_) = &self.bytes {
                self.grow_to(offset, len)?;
            }
            match &self.bytes {
                Bytes::Plain(plain) if flags.no_unmap => plain.zero(offset, len),
                Bytes::Plain(plain) => plain.unmap(offset, len),
                // To unmap would show the backing.
                Bytes::Overlay(overlay) => overlay.zero(offset, len),
            }
            Ok(())
        })
    }

    fn discard<'a>(&'a self, _cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            match &self.bytes {
                Bytes::Plain(plain) => plain.unmap(offset, len),
                Bytes::Overlay(overlay) => overlay.discard(offset, len),
            }
            Ok(())
        })
    }

    fn flush<'a>(&'a self, _cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn block_status<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
    ) -> NodeFuture<'a, Vec<Extent>> {
        Box::pin(async move {
            Ok(match &self.bytes {
                Bytes::Plain(plain) => plain.extents(offset, len),
                Bytes::Overlay(overlay) => overlay.extents(cx, offset, len),
            })
        })
    }

    fn len_bytes(&self) -> Option<u64> {
        matches!(self.bytes, Bytes::Plain(_)).then(|| self.size_bytes())
    }

    fn set_len<'a>(&'a self, cx: Cx<'a>, len: u64) -> NodeFuture<'a, ()> {
        let len = len.checked_next_multiple_of(self.block_size.into()).unwrap_or(u64::MAX);
        Box::pin(async move { self.set_size(cx, len) })
    }

    fn resize<'a>(&'a self, cx: Cx<'a>, size_bytes: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move { self.set_size(cx, size_bytes) })
    }

    fn deallocate<'a>(&'a self, _cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move { self.give_up(offset, len) })
    }
}
