//! A disk whose memory is there before anything is written: what fresh memory costs is the system's affair, some
//! 35 µs for 64 KiB, and far more where it clears huge pages, which hides what a copy costs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use blockloom::graph::Cx;
use blockloom::io::{Buf, BufMut};
use blockloom::node::{Caps, Extent, ExtentKind, Limits, Node, NodeFuture, NodeInfo, WriteFlags};
use blockloom::{Error, ErrorKind};

use crate::copies::{BLOCK, BLOCKS, SIZE_BYTES};

/// See the module. Requests must lie in one block; it has a block once that was written. Where it has none,
/// it shows its backing.
pub(crate) struct Slab {
    blocks: Vec<Block>,
}

struct Block {
    bytes: Mutex<Box<[u8]>>,
    is_there: AtomicBool,
}

impl Slab {
    pub(crate) fn new() -> Self {
        let block = |_| {
            let bytes = Mutex::new(vec![1; BLOCK].into_boxed_slice());
            Block { bytes, is_there: AtomicBool::new(false) }
        };
        Self { blocks: (0..BLOCKS).map(block).collect() }
    }

    /// Has no block any more, and keeps the memory.
    pub(crate) fn forget(&self) {
        self.blocks.iter().for_each(|block| block.is_there.store(false, Ordering::Relaxed));
    }

    /// Whether it has all blocks.
    pub(crate) fn is_full(&self) -> bool {
        self.blocks.iter().all(|block| block.is_there.load(Ordering::Relaxed))
    }
}

fn only_reads_and_writes<'a>() -> NodeFuture<'a, ()> {
    let error = Error::new(ErrorKind::NotSupported, "it is there to be read and written");
    Box::pin(async { Err(error) })
}

impl Node for Slab {
    fn driver(&self) -> &'static str {
        "slab"
    }

    fn info(&self, _: &[NodeInfo]) -> blockloom::Result<NodeInfo> {
        let limits = Limits { request_alignment: 512, ..Limits::NONE };
        let (size_bytes, caps) = (SIZE_BYTES, Caps::FILTER);
        Ok(NodeInfo { size_bytes, limits, caps, read_only: false, growable: false })
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, mut buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move {
            let (block, start) = (&self.blocks[offset as usize / BLOCK], offset as usize % BLOCK);
            if !block.is_there.load(Ordering::Relaxed) {
                return cx.child(0)?.read(offset, buf).await;
            }
            let bytes = block.bytes.lock().unwrap_or_else(PoisonError::into_inner);
            let len = buf.len();
            buf.copy_from_slice(&bytes[start..start + len]);
            drop(bytes);
            Ok(buf)
        })
    }

    fn write<'a>(&'a self, _: Cx<'a>, offset: u64, buf: Buf, _: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let (block, start) = (&self.blocks[offset as usize / BLOCK], offset as usize % BLOCK);
            let mut bytes = block.bytes.lock().unwrap_or_else(PoisonError::into_inner);
            bytes[start..start + buf.len()].copy_from_slice(&buf);
            block.is_there.store(true, Ordering::Relaxed);
            Ok(())
        })
    }

    fn zero<'a>(&'a self, _: Cx<'a>, _: u64, _: u64, _: WriteFlags) -> NodeFuture<'a, ()> {
        only_reads_and_writes()
    }

    fn discard<'a>(&'a self, _: Cx<'a>, _: u64, _: u64) -> NodeFuture<'a, ()> {
        only_reads_and_writes()
    }

    fn flush<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn block_status<'a>(&'a self, _: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        let first = offset as usize / BLOCK;
        let is_there = |block: &Block| block.is_there.load(Ordering::Relaxed);
        let is = is_there(&self.blocks[first]);
        let same = self.blocks[first..].iter().take_while(|block| is_there(block) == is).count();
        let len = len.min(((first + same) * BLOCK) as u64 - offset);
        let kind = if is { ExtentKind::Data } else { ExtentKind::Unallocated };
        Box::pin(async move { Ok(vec![Extent { offset, len, kind, host_offset: None }]) })
    }
}
