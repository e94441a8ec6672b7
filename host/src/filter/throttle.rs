//! `throttle`: limits requests and bytes a second by delaying requests; fails none.
//!
//! The arithmetic is the plugin's own (`blockloom-plugin-throttle`): what differs is who calls it.

use std::sync::{Arc, Mutex, PoisonError};

use blockloom_abi::Kind;
use blockloom_plugin_throttle::{Throttle, ThrottleConfig};

use super::{PassNode, hold_until};
use crate::error::Result;
use crate::graph::Cx;
use crate::io::{Buf, BufMut, Time, turn_now};
use crate::node::{Extent, Node, NodeFuture, NodeInfo, WriteFlags};

/// Limits shared by the nodes that are made from clones of it.
#[derive(Clone)]
pub struct ThrottleGroup {
    throttle: Arc<Mutex<Throttle>>,
}

impl ThrottleGroup {
    /// A group with its own limits.
    pub fn new(config: &ThrottleConfig) -> Self {
        Self { throttle: Arc::new(Mutex::new(Throttle::new(config))) }
    }

    /// When a request that arrives now may start.
    fn admit(&self, kind: Kind, len: u64) -> Time {
        let mut throttle = self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
        Time::from_nanos(throttle.admit(kind, len, turn_now().as_nanos()))
    }
}

/// The native `throttle` filter; its child is the first edge.
pub struct ThrottleNode {
    group: ThrottleGroup,
}

impl ThrottleNode {
    /// A node of `group`.
    pub fn new(group: ThrottleGroup) -> Self {
        Self { group }
    }

    async fn wait(&self, cx: Cx<'_>, kind: Kind, len: u64) {
        hold_until(cx, self.group.admit(kind, len)).await;
    }
}

impl Node for ThrottleNode {
    fn driver(&self) -> &'static str {
        "throttle"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        PassNode.info(children)
    }

    fn is_transparent(&self) -> bool {
        true
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move {
            self.wait(cx, Kind::Read, buf.len() as u64).await;
            cx.child(0)?.read(offset, buf).await
        })
    }

    fn write<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.wait(cx, Kind::Write, buf.len() as u64).await;
            cx.child(0)?.write(offset, buf, flags).await
        })
    }

    fn zero<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.wait(cx, Kind::Zero, len).await;
            cx.child(0)?.zero(offset, len, flags).await
        })
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.wait(cx, Kind::Discard, len).await;
            cx.child(0)?.discard(offset, len).await
        })
    }

    fn set_len<'a>(&'a self, cx: Cx<'a>, len: u64) -> NodeFuture<'a, ()> {
        PassNode.set_len(cx, len)
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
