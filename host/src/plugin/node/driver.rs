//! The node as a driver.

use std::rc::Rc;

use blockloom_abi::{Kind, RequestFlags};

use super::super::bytes::{ByteAccess, Handed, TRANSFORM_MAX_BYTES, is_lowered};
use super::super::local::LocalPlugin;
use super::super::version::OfferedAs;
use super::judging::{Shape, Without};
use super::passing::Passing;
use super::{LEAVE_TIME, PluginNode};
use crate::bitmap::Use;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::ViewNode;
use crate::graph::{Cx, EdgeRef, LocalGraph, OwnAccord};
use crate::io::{Buf, BufMut, spawn, turn_now, until};
use crate::node::{
    Caps, Extent, ExtentKind, Limits, Node, NodeFuture, NodeInfo, Support, WriteFlags,
};

fn write_flags(cx: Cx<'_>, flags: WriteFlags) -> RequestFlags {
    let mut wire = RequestFlags::NONE;
    let parts = [
        (flags.fua, RequestFlags::FUA),
        (flags.no_unmap, RequestFlags::NO_UNMAP),
        (cx.is_unchanged(), RequestFlags::UNCHANGED),
    ];
    for (_, flag) in parts.into_iter().filter(|(is, _)| *is) {
        wire = wire.with(flag);
    }
    wire
}

impl Node for PluginNode {
    fn driver(&self) -> &'static str {
        "plugin"
    }

    fn label(&self) -> Option<String> {
        Some(self.instance.plugin().to_string())
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        let info = NodeInfo::of_filter(children.get(self.file..).unwrap_or_default())?;
        if self.access != ByteAccess::Transform {
            return Ok(info);
        }
        // What it is not offered is made of what it is: zeros of the child are none of the node.
        let support = |kind| match is_lowered(self.access, kind) && !self.instance.wants(kind) {
            true => Support::None,
            false => Support::Native,
        };
        let (zero, discard) = (support(Kind::Zero), support(Kind::Discard));
        let caps = Caps { zero, discard, ..info.caps };
        // Whoever compresses wants whole units.
        let compressed_bytes =
            Some(info.limits.compressed_bytes).filter(|unit| *unit <= TRANSFORM_MAX_BYTES);
        let limits = Limits {
            transfer_max_bytes: TRANSFORM_MAX_BYTES,
            compressed_bytes: compressed_bytes.unwrap_or(0),
            ..info.limits
        };
        Ok(NodeInfo { caps, limits, growable: false, ..info })
    }

    fn is_transparent(&self) -> bool {
        !self.is_opaque()
    }

    fn is_opaque(&self) -> bool {
        self.access == ByteAccess::Transform
    }

    fn report(&self) -> Option<String> {
        Some(format!("plugin `{}`: {}", self.instance.plugin(), self.counters()))
    }

    fn is_exclusive(&self, edge: usize) -> bool {
        self.children.load().iter().any(|child| child.edge == edge && child.exclusive)
    }

    fn keeps_old_bytes(&self) -> bool {
        let module = self.instance.module();
        let makes_one = module.inspection().views.iter().any(|view| view == ViewNode::SNAPSHOT);
        let sets = || self.instance.lasting().bitmaps.point_in_time(self.index);
        makes_one && sets().is_ok_and(|sets| sets.is_none_or(|sets| sets.is_unfinished()))
    }

    fn start(&self, name: &str, info: &NodeInfo, children: &[NodeInfo]) -> Result<()> {
        self.instance.check_bytes(self.access)?;
        self.instance.add_node(self.index, name, info, (children, self.access))
    }

    fn resized(&self, info: &NodeInfo, children: &[NodeInfo]) {
        self.instance.resize_node(self.index, info, children);
    }

    fn run(&self, graph: &Rc<LocalGraph>, name: &str) {
        let snapshot = graph.current();
        self.instance.watch_by(graph.cell());
        for (index, scope, bitmap) in &self.lent {
            let found = snapshot.find_bitmap(scope, bitmap);
            let missing = || Error::new(ErrorKind::NotFound, format!("there is no `{bitmap}`"));
            let lent = found.ok_or_else(missing).and_then(|found| {
                let user = format!("plugin `{}` of node `{name}`", self.instance.plugin());
                Ok(found.use_by(user, Use::Keep)?)
            });
            let bitmaps = &self.instance.lasting().bitmaps;
            let too_large = |error| Error::new(ErrorKind::Invalid, error);
            match lent.and_then(|lent| bitmaps.attach(*index, lent).map_err(too_large)) {
                Ok(()) => {}
                Err(error) => tracing::error!("node `{name}`: a bitmap cannot be lent: {error}"),
            }
        }
        // There may be a job only in what replaces the plugin.
        spawn(self.job(OwnAccord::open(graph, name)));
    }

    fn close<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.instance.leave(self.index);
            let plugin = LocalPlugin::of(&self.instance);
            plugin.queue();
            if until(turn_now() + LEAVE_TIME, self.departure.is_over()).await.is_none() {
                self.instance.end_leaving(self.index, &plugin);
            }
            Ok(())
        })
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        let (kind, flags, len) = (Kind::Read, RequestFlags::NONE, buf.len() as u64);
        let shape = Shape { kind, flags, offset, len };
        if self.shows_data_of(kind) {
            return Box::pin(self.read_seen(cx, shape, buf));
        }
        let without = Without::Shown(Buf::into_mut);
        Passing::boxed((self, cx), shape, without, move |child| child.read(offset, buf))
    }

    fn write<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        let len = buf.len() as u64;
        let shape = Shape { kind: Kind::Write, flags: write_flags(cx, flags), offset, len };
        if self.shows_data_of(Kind::Write) {
            return Box::pin(self.write_seen(cx, shape, buf, flags));
        }
        Passing::boxed((self, cx), shape, Without::Nothing, move |child| {
            self.change_passes(&shape);
            child.write(offset, buf, flags)
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
            let Some(kind) = self.offered_as(Kind::Zero)? else { return Ok(()) };
            let shape = Shape { kind, flags: write_flags(cx, flags), offset, len };
            let call = async move |child: EdgeRef<'_>| {
                self.change_passes(&shape);
                child.zero(offset, len, flags).await
            };
            if self.access == ByteAccess::None {
                return self.judge(cx, (shape, None), Without::Nothing, call).await;
            }
            let handed = Handed::of_none(self.instance.lasting(), self.access);
            let without = self.unforwarded();
            self.judge(cx, (shape, Some(&handed)), without, call).await
        })
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let Some(kind) = self.offered_as(Kind::Discard)? else { return Ok(()) };
            let shape = Shape { kind, flags: RequestFlags::NONE, offset, len };
            let call = async move |child: EdgeRef<'_>| {
                self.change_passes(&shape);
                child.discard(offset, len).await
            };
            self.judge(cx, (shape, None), Without::Success(()), call).await
        })
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let Some(kind) = self.offered_as(Kind::Flush)? else { return Ok(()) };
            let shape = Shape { kind, flags: RequestFlags::NONE, offset: 0, len: 0 };
            let call = async move |child: EdgeRef<'_>| child.flush().await;
            self.judge(cx, (shape, None), Without::Nothing, call).await
        })
    }

    fn set_len<'a>(&'a self, cx: Cx<'a>, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let Some(kind) = self.offered_as(Kind::Resize)? else { return Ok(()) };
            let shape = Shape { kind, flags: RequestFlags::NONE, offset: 0, len };
            let call = async move |child: EdgeRef<'_>| {
                // What is cut off.
                self.change_passes(&Shape { offset: len, len: u64::MAX - len, ..shape });
                child.set_len(len).await
            };
            self.judge(cx, (shape, None), Without::Nothing, call).await
        })
    }

    fn block_status<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
    ) -> NodeFuture<'a, Vec<Extent>> {
        if self.is_opaque() {
            // Zeros of the child are not zeros here.
            let data = Extent { offset, len, kind: ExtentKind::Data, host_offset: None };
            return Box::pin(async move { Ok(vec![data]) });
        }
        // A transparent filter's block status is its child's.
        Box::pin(async move { cx.child(self.file)?.block_status(offset, len).await })
    }
}

impl PluginNode {
    /// A read of which the guest may see what the child gives, and perhaps answer with other bytes. One whose
    /// answer was lost with the guest is done again.
    async fn read_seen(&self, cx: Cx<'_>, shape: Shape, buf: BufMut) -> Result<BufMut> {
        let (offset, len) = (shape.offset, buf.len());
        let handed = Handed::of_read(self.instance.lasting(), self.access, len);
        let mut buf = Some(buf);
        loop {
            let buf = buf.take().unwrap_or_else(|| BufMut::new(len));
            let call = async |child: EdgeRef<'_>| {
                handed.give(child.read(offset, buf).await?);
                Ok(())
            };
            self.judge(cx, (shape, Some(&handed)), Without::Success(()), call).await?;
            if !handed.is_lost() {
                return Ok(handed.answer());
            }
        }
    }

    /// A write of which the guest may see the data, and perhaps have other bytes written.
    async fn write_seen(
        &self,
        cx: Cx<'_>,
        shape: Shape,
        buf: Buf,
        flags: WriteFlags,
    ) -> Result<()> {
        let handed = Handed::of_write(self.instance.lasting(), self.access, buf);
        let call = async |child: EdgeRef<'_>| {
            self.change_passes(&shape);
            child.write(shape.offset, handed.payload(), flags).await
        };
        let without = self.unforwarded();
        self.judge(cx, (shape, Some(&handed)), without, call).await
    }

    /// As a request of which kind the guest is offered one of a kind; none if it is not to be done at all.
    fn offered_as(&self, kind: Kind) -> Result<Option<Kind>> {
        match self.instance.offers_as(kind) {
            // Whoever sees data is not shown what it takes for some and is none.
            OfferedAs::Kind(other) if other == kind || self.access == ByteAccess::None => {
                Ok(Some(other))
            }
            OfferedAs::Nothing => Ok(None),
            OfferedAs::Kind(_) | OfferedAs::Refused => {
                let message = format!(
                    "plugin `{}` is of a version that knows no such request ({kind:?}): it may not go past \
                     it; rebuild the plugin",
                    self.instance.plugin()
                );
                Err(Error::new(ErrorKind::NotSupported, message))
            }
        }
    }

    /// Whether the guest is offered requests of a kind with their data.
    #[inline]
    fn shows_data_of(&self, kind: Kind) -> bool {
        self.access != ByteAccess::None && self.instance.wants(kind)
    }
}
