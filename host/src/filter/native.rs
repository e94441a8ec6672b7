//! What a native filter says: what it does when something passes it, and nothing of what just passes.

use std::any::Any;
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use crate::error::Result;
use crate::graph::{Cx, JobStake, LocalGraph, Tracker};
use crate::io::{Buf, BufMut};
use crate::node::{Extent, Node, NodeFuture, NodeInfo, WriteFlags};

/// Number of the edge to what a filter shows.
pub(super) const FILE: usize = 0;

/// How a change alters what it comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It writes data.
    Write,
    /// It makes all read as zeros.
    Zero,
    /// It may make all read as zeros.
    Discard,
    /// It gives a container another length: what lies behind that is cut off, or is zeros that were not there.
    SetLen,
}

/// A change on its way through a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it does.
    pub kind: ChangeKind,
    /// The bytes that it may alter; of another length, all behind it.
    pub range: Range<u64>,
    /// How it is to be done, of writes and zeros.
    pub flags: WriteFlags,
}

impl Change {
    /// Of `len` bytes.
    fn at(kind: ChangeKind, offset: u64, len: u64, flags: WriteFlags) -> Self {
        Self { kind, range: offset..offset.saturating_add(len), flags }
    }

    /// Bytes that it may alter.
    pub fn len_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// A driver that shows what its first child shows, and passes on what it has nothing to do with. Every one is a
/// [`Node`], transparent, with the block status of its child.
///
/// All that alters bytes comes to [`Filter::change`]: who looks at changes misses none. A driver that shows
/// other bytes, or keeps bytes of its own, is no filter: it implements [`Node`], all of it.
///
/// A filter that adds up what has been changed:
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// use blockloom::filter::{Change, Filter};
/// use blockloom::graph::{ChildDecl, Cx};
/// use blockloom::node::{MemoryNode, WriteFlags};
/// use blockloom::{Host, Result, block_on};
///
/// struct Meter(Arc<AtomicU64>);
///
/// impl Filter for Meter {
///     fn driver(&self) -> &'static str {
///         "meter"
///     }
///
///     async fn change(
///         &self,
///         _: Cx<'_>,
///         change: Change,
///         pass: impl AsyncFnOnce() -> Result<()>,
///     ) -> Result<()> {
///         pass().await?;
///         self.0.fetch_add(change.len_bytes(), Ordering::Relaxed);
///         Ok(())
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let changed = Arc::new(AtomicU64::new(0));
/// let host = Host::builder()
///     .node("disk", MemoryNode::new(1 << 20, 512)?, vec![])
///     .node("meter", Meter(Arc::clone(&changed)), vec![ChildDecl::filtered("disk")])
///     .drive("vda", "meter", true)
///     .start()?;
/// let drive = host.drive("vda")?;
/// block_on(drive.write(0, &[1; 4096]))?;
/// block_on(drive.zero(4096, 512, WriteFlags::NONE))?;
/// assert_eq!(changed.load(Ordering::Relaxed), 4608);
/// # host.shutdown()
/// # }
/// ```
pub trait Filter: Any + Send + Sync {
    /// As [`Node::driver`].
    fn driver(&self) -> &'static str;

    /// As [`Node::info`]: the child's view, and any request.
    ///
    /// # Errors
    /// `EINVAL` when it has no child.
    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        NodeInfo::of_filter(children)
    }

    /// As [`Node::start`].
    ///
    /// # Errors
    /// When it cannot serve the node.
    fn start(&self, _name: &str, _info: &NodeInfo, _children: &[NodeInfo]) -> Result<()> {
        Ok(())
    }

    /// As [`Node::run`].
    fn run(&self, _graph: &Rc<LocalGraph>, _name: &str) {}

    /// As [`Node::is_exclusive`].
    fn is_exclusive(&self, _edge: usize) -> bool {
        false
    }

    /// As [`Node::keeps_old_bytes`].
    fn keeps_old_bytes(&self) -> bool {
        false
    }

    /// As [`Node::tracker`].
    fn tracker(&self) -> Option<Arc<Tracker>> {
        None
    }

    /// As [`Node::job`].
    fn job(&self) -> Option<&JobStake> {
        None
    }

    /// A read: gives the child's bytes.
    fn read(&self, cx: Cx<'_>, offset: u64, buf: BufMut) -> impl Future<Output = Result<BufMut>> {
        async move { cx.child(FILE)?.read(offset, buf).await }
    }

    /// Anything that may alter what the child shows; `pass` has the child do it. What has not passed must fail.
    fn change(
        &self,
        _cx: Cx<'_>,
        _change: Change,
        pass: impl AsyncFnOnce() -> Result<()>,
    ) -> impl Future<Output = Result<()>> {
        pass()
    }

    /// A write, for who needs its data. By itself, a [change](Filter::change).
    fn write(
        &self,
        cx: Cx<'_>,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> impl Future<Output = Result<()>> {
        let change = Change::at(ChangeKind::Write, offset, buf.len() as u64, flags);
        self.change(cx, change, async move || cx.child(FILE)?.write(offset, buf, flags).await)
    }

    /// A flush: the child's.
    fn flush(&self, cx: Cx<'_>) -> impl Future<Output = Result<()>> {
        async move { cx.child(FILE)?.flush().await }
    }

    /// Block status: the child's.
    fn block_status(
        &self,
        cx: Cx<'_>,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<Vec<Extent>>> {
        async move { cx.child(FILE)?.block_status(offset, len).await }
    }
}

impl<F: Filter> Node for F {
    fn driver(&self) -> &'static str {
        Filter::driver(self)
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        Filter::info(self, children)
    }

    fn start(&self, name: &str, info: &NodeInfo, children: &[NodeInfo]) -> Result<()> {
        Filter::start(self, name, info, children)
    }

    fn run(&self, graph: &Rc<LocalGraph>, name: &str) {
        Filter::run(self, graph, name);
    }

    fn is_transparent(&self) -> bool {
        true
    }

    fn is_exclusive(&self, edge: usize) -> bool {
        Filter::is_exclusive(self, edge)
    }

    fn keeps_old_bytes(&self) -> bool {
        Filter::keeps_old_bytes(self)
    }

    fn tracker(&self) -> Option<Arc<Tracker>> {
        Filter::tracker(self)
    }

    fn job(&self) -> Option<&JobStake> {
        Filter::job(self)
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(Filter::read(self, cx, offset, buf))
    }

    fn write<'a>(&'a self, cx: Cx<'a>, at: u64, buf: Buf, flags: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(Filter::write(self, cx, at, buf, flags))
    }

    fn zero<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64, flags: WriteFlags) -> NodeFuture<'a, ()> {
        let change = Change::at(ChangeKind::Zero, at, len, flags);
        let pass = async move || cx.child(FILE)?.zero(at, len, flags).await;
        Box::pin(self.change(cx, change, pass))
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, ()> {
        let change = Change::at(ChangeKind::Discard, at, len, WriteFlags::NONE);
        Box::pin(self.change(cx, change, async move || cx.child(FILE)?.discard(at, len).await))
    }

    fn set_len<'a>(&'a self, cx: Cx<'a>, len: u64) -> NodeFuture<'a, ()> {
        let change = Change::at(ChangeKind::SetLen, len, u64::MAX, WriteFlags::NONE);
        Box::pin(self.change(cx, change, async move || cx.child(FILE)?.set_len(len).await))
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(Filter::flush(self, cx))
    }

    fn block_status<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        Box::pin(Filter::block_status(self, cx, at, len))
    }
}
