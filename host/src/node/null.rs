//! `null`: a view without bytes, for measuring everything else. Writes vanish.

use std::time::Duration;

use super::{
    Caps, Extent, ExtentKind, Identity, Limits, Node, NodeFuture, NodeInfo, Support, WriteFlags,
};
use crate::error::Result;
use crate::graph::Cx;
use crate::io::{Buf, BufMut, sleep_until, turn_now};

/// The `null` driver.
#[derive(Debug)]
pub struct NullNode {
    size_bytes: u64,
    read_zeroes: bool,
    latency: Duration,
}

impl NullNode {
    /// A view of `size_bytes`. Reads give zeros if `read_zeroes`, else whatever the buffer held
    /// (bytes of earlier requests: for measurements only). Every request takes `latency`.
    pub fn new(size_bytes: u64, read_zeroes: bool, latency: Duration) -> Self {
        Self { size_bytes, read_zeroes, latency }
    }

    async fn wait(&self) {
        if !self.latency.is_zero() {
            sleep_until(turn_now() + self.latency).await;
        }
    }

    fn nothing(&self) -> NodeFuture<'_, ()> {
        Box::pin(async {
            self.wait().await;
            Ok(())
        })
    }
}

impl Node for NullNode {
    fn driver(&self) -> &'static str {
        "null"
    }

    fn allocated_bytes(&self) -> Option<u64> {
        Some(0)
    }

    fn info(&self, _children: &[NodeInfo]) -> Result<NodeInfo> {
        let caps = Caps { discard: Support::None, ..Caps::FILTER };
        Ok(NodeInfo {
            size_bytes: self.size_bytes,
            limits: Limits::NONE,
            caps,
            read_only: false,
            growable: false,
        })
    }

    fn read<'a>(&'a self, _cx: Cx<'a>, _offset: u64, mut buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move {
            self.wait().await;
            if self.read_zeroes {
                buf.fill(0);
            }
            Ok(buf)
        })
    }

    fn write<'a>(&'a self, _: Cx<'a>, _: u64, _: Buf, _: WriteFlags) -> NodeFuture<'a, ()> {
        self.nothing()
    }

    fn zero<'a>(&'a self, _: Cx<'a>, _: u64, _: u64, _: WriteFlags) -> NodeFuture<'a, ()> {
        self.nothing()
    }

    fn discard<'a>(&'a self, _: Cx<'a>, _: u64, _: u64) -> NodeFuture<'a, ()> {
        self.nothing()
    }

    fn identity(&self) -> NodeFuture<'_, Identity> {
        let identity = if self.read_zeroes { Identity::Constant } else { Identity::Unknown };
        super::identity::answer(identity)
    }

    fn flush<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
        self.nothing()
    }

    fn block_status<'a>(&'a self, _: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        let kind = if self.read_zeroes { ExtentKind::Zero } else { ExtentKind::Data };
        Box::pin(async move { Ok(vec![Extent { offset, len, kind, host_offset: None }]) })
    }
}
