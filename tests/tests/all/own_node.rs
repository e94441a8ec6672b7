//! Nodes that an embedder could have written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use blockloom::error::{Error, ErrorKind};
use blockloom::graph::Cx;
use blockloom::io::{Buf, BufMut};
use blockloom::node::{
    Caps, Extent, ExtentKind, Limits, Node, NodeFuture, NodeInfo, Support, WriteFlags,
};

/// Reads of this byte fail.
pub(crate) const FAULTY_BYTE: u64 = 900 << 10;

const BLOCK_BYTES: u32 = 512;

/// Holds writes back while it is closed.
#[derive(Default)]
pub(crate) struct Valve {
    state: Mutex<(bool, Vec<Waker>)>,
    /// Writes that have come.
    pub(crate) arrived: AtomicU64,
}

impl Valve {
    pub(crate) fn close(&self) {
        self.state.lock().expect("valve").0 = true;
    }

    pub(crate) fn open(&self) {
        let mut state = self.state.lock().expect("valve");
        state.0 = false;
        state.1.drain(..).for_each(Waker::wake);
    }

    async fn pass(&self) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        std::future::poll_fn(|cx| {
            let mut state = self.state.lock().expect("valve");
            if !state.0 {
                return Poll::Ready(());
            }
            state.1.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Bytes in memory, with blocks of 512 bytes, no zeroing and no discard, and one faulty byte.
pub(crate) struct OwnNode {
    bytes: Mutex<Vec<u8>>,
    calls: Arc<AtomicU64>,
    valve: Arc<Valve>,
}

impl OwnNode {
    pub(crate) fn new(size_bytes: usize, calls: Arc<AtomicU64>) -> Self {
        Self { bytes: Mutex::new(vec![0; size_bytes]), calls, valve: Arc::default() }
    }

    /// A node whose writes can be held back.
    pub(crate) fn with_valve(size_bytes: usize, valve: &Arc<Valve>) -> Self {
        Self { valve: Arc::clone(valve), ..Self::new(size_bytes, Arc::default()) }
    }

    fn unsupported(&self) -> NodeFuture<'_, ()> {
        Box::pin(async { Err(Error::new(ErrorKind::NotSupported, "it has no such thing")) })
    }

    fn count(&self, offset: u64, len: usize) {
        assert!(offset.is_multiple_of(BLOCK_BYTES.into()) && len.is_multiple_of(512), "unaligned");
        self.calls.fetch_add(1, Ordering::Relaxed);
    }
}

impl Node for OwnNode {
    fn driver(&self) -> &'static str {
        "own"
    }

    fn info(&self, _children: &[NodeInfo]) -> blockloom::Result<NodeInfo> {
        let size_bytes = self.bytes.lock().expect("bytes").len() as u64;
        let limits = Limits { request_alignment: BLOCK_BYTES, ..Limits::NONE };
        let none = Support::None;
        let caps = Caps { zero: none, discard: none, fua: none, flush: Support::Native };
        Ok(NodeInfo { size_bytes, limits, caps, read_only: false, growable: false })
    }

    fn read<'a>(&'a self, _cx: Cx<'a>, offset: u64, mut buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move {
            self.count(offset, buf.len());
            if (offset..offset + buf.len() as u64).contains(&FAULTY_BYTE) {
                return Err(Error::new(ErrorKind::Io, "it is scratched"));
            }
            let (at, len) = (offset as usize, buf.len());
            buf.copy_from_slice(&self.bytes.lock().expect("bytes")[at..at + len]);
            Ok(buf)
        })
    }

    fn write<'a>(&'a self, _: Cx<'a>, offset: u64, buf: Buf, _: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.count(offset, buf.len());
            self.valve.pass().await;
            let at = offset as usize;
            self.bytes.lock().expect("bytes")[at..at + buf.len()].copy_from_slice(&buf);
            Ok(())
        })
    }

    fn zero<'a>(&'a self, _: Cx<'a>, _: u64, _: u64, _: WriteFlags) -> NodeFuture<'a, ()> {
        self.unsupported()
    }

    fn discard<'a>(&'a self, _: Cx<'a>, _: u64, _: u64) -> NodeFuture<'a, ()> {
        self.unsupported()
    }

    fn flush<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn block_status<'a>(&'a self, _: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        let kind = ExtentKind::Data;
        Box::pin(async move { Ok(vec![Extent { offset, len, kind, host_offset: None }]) })
    }
}
