//! `qcow2`: an image in another node, perhaps with an external data file and a backing.
//!
//! The image's metadata are the business of the crate `blockloom-qcow2`; here its answers are carried
//! out: guest data go straight between the caller's buffer and the child that holds them.
//!
//! | file | holds |
//! |---|---|
//! | `open` | opening an image over a node that stands already |
//! | `alarm` | an image that is found to be corrupt |
//! | `storage`, `under_way` | the image's container: child `file`, by the edges of a request; what is to land there |
//! | `bitmaps` | the bitmaps that the image keeps |
//! | `report` | what the image says of itself |
//! | `below` | what lies below the image, as it is recorded with them |
//! | `plain_file` | a container without a graph |
//! | `reopen` | an image that is opened in another way while it runs |
//! | `fresh` | a file that becomes an image, or goes |
//! | `read`, `write`, `zero`, `status` | the node's operations |
//! | `compress` | writes that are stored compressed |
//! | `apart` | calculations on threads of their own |
//!
//! **Invariant**: a request holds an image's `Turn` from before it looks where its bytes lie until they
//! have been moved, so no cluster is given to somebody else under it.
//!
//! **Invariant**: what is in a new cluster beside the bytes written is what showed there before; the
//! image maps it after it has been written, and keeps that mapping back until it is durable.

mod alarm;
mod apart;
mod below;
mod bitmaps;
mod compress;
mod fresh;
mod open;
mod plain_file;
mod read;
mod reopen;
mod report;
mod status;
mod storage;
#[cfg(test)]
mod test_disk;
mod under_way;
mod write;
mod zero;

pub(crate) use fresh::{FreshFile, Place};
pub use open::Qcow2Options;
pub(crate) use plain_file::{Access, FileStorage};

use std::rc::Rc;
use std::sync::Arc;

use blockloom_qcow2::image::{Image, ImageInfo};

use super::{
    BackingName, BitmapStore, Caps, Extent, Identity, ImageReport, Limits, Node, NodeFuture,
    NodeInfo, OpenMode, Reopening, Support, Upkeep, WriteFlags,
};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Cx, EdgeRef, LocalGraph};
use crate::io::{Buf, BufMut};
use alarm::Alarm;
use bitmaps::Bitmaps;
use storage::{Container, from_engine};
use under_way::UnderWay;

/// Position of child `file`, which holds the image.
const FILE: usize = 0;

/// The `qcow2` driver. Its first child is `file` (role `storage`); if it was opened with one, another is
/// `data-file` (role `data` if it is raw, else `storage`). A `backing` comes and goes while it runs.
pub struct Qcow2Node {
    image: Arc<Image>,
    /// As it was opened: what never changes is taken from here.
    info: ImageInfo,
    mode: OpenMode,
    /// Position of an external data file.
    data: Option<usize>,
    /// Position of the backing, if there is one.
    backing: usize,
    bitmaps: Arc<Bitmaps>,
    under_way: Arc<UnderWay>,
    alarm: Arc<Alarm>,
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl Qcow2Node {
    /// Where guest data lie.
    fn data<'g>(&self, cx: Cx<'g>) -> Result<EdgeRef<'g>> {
        cx.child(self.data.unwrap_or(FILE))
    }

    fn container<'g>(&'g self, cx: Cx<'g>) -> Result<Container<'g>> {
        Container::new(cx, self.data, &self.under_way, &self.alarm)
    }

    /// What a change touches at least, bytes: a whole unit, and as many as lie in one block of who holds them,
    /// as far as that is one cluster.
    fn fill_bytes(&self, children: &[NodeInfo]) -> u64 {
        let holder = children.get(self.data.unwrap_or(FILE));
        let block = holder.map_or(1, |holder| u64::from(holder.limits.request_alignment));
        self.info.unit_bytes.max(block.min(self.info.cluster_bytes))
    }

    /// How much of the backing there is to show, bytes; 0 without one.
    fn shown_bytes(&self, cx: Cx<'_>) -> Result<u64> {
        let Some(backing) = self.backing(cx) else { return Ok(0) };
        Ok(cx.child(backing)?.node().info().size_bytes)
    }

    /// Position of the backing, as long as it has one.
    fn backing(&self, cx: Cx<'_>) -> Option<usize> {
        Some(self.backing).filter(|position| cx.has_child(*position))
    }
}

impl Node for Qcow2Node {
    fn driver(&self) -> &'static str {
        "qcow2"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        let own = 1 + usize::from(self.data.is_some());
        let has_backing = children.len() == own + 1;
        if children.len() != own && !has_backing {
            let message = format!(
                "it has {} children, not the {own} that its image was opened with, and a backing",
                children.len()
            );
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        if has_backing && self.info.raw_external_data {
            let message = "its data file is raw, which shows all of it: it can have no backing";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let caps = Caps {
            zero: Support::Native,
            discard: Support::Native,
            fua: Support::Emulated,
            flush: Support::Native,
        };
        let fill_bytes = u32::try_from(self.fill_bytes(children)).unwrap_or(u32::MAX);
        let compressed_bytes = match self.info.external_data {
            // Such a file holds each cluster at its place.
            true => 0,
            false => u32::try_from(self.info.cluster_bytes).unwrap_or(0),
        };
        Ok(NodeInfo {
            size_bytes: self.image.size_bytes(),
            limits: Limits { fill_bytes, compressed_bytes, ..Limits::NONE },
            caps,
            read_only: !self.mode.write || self.image.is_corrupt(),
            growable: false,
        })
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        self.read_runs(cx, offset, buf)
    }

    fn write<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        match flags.compressed {
            true => Box::pin(self.write_compressed(cx, offset, buf)),
            false => self.write_runs(cx, offset, buf),
        }
    }

    fn zero<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        Box::pin(self.zero_range(cx, offset, len, flags))
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(self.discard_range(cx, offset, len))
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async move { self.image.flush(&self.container(cx)?).await.map_err(from_engine) })
    }

    fn close<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            match self.mode.write {
                true => {
                    let stored = self.bitmaps.keeping.store(self, cx, false).await;
                    let closed = self.image.close(&self.container(cx)?).await.map_err(from_engine);
                    stored.and(closed)
                }
                false => Ok(()),
            }
        })
    }

    fn run(&self, graph: &Rc<LocalGraph>, name: &str) {
        self.alarm.goes_to(graph.cell(), name);
    }

    fn identity(&self) -> NodeFuture<'_, Identity> {
        super::identity::answer(Identity::OfChildren)
    }

    fn reopening(&self) -> Option<&dyn Reopening> {
        Some(self)
    }

    fn backing_changed(&self, has_backing: bool) {
        self.image.set_has_backing(has_backing);
    }

    fn image(&self) -> Option<ImageReport> {
        Some(self.report_image())
    }

    fn bitmap_store(&self) -> Option<&dyn BitmapStore> {
        Some(self)
    }

    fn upkeep(&self) -> Upkeep {
        if self.mode.write { Upkeep::Writes } else { Upkeep::Reads }
    }

    fn block_status<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
    ) -> NodeFuture<'a, Vec<Extent>> {
        Box::pin(self.extents(cx, offset, len))
    }

    fn backing_name(&self) -> Option<String> {
        String::from_utf8(self.image.info().backing_name?).ok()
    }

    fn names_backing(&self) -> bool {
        !self.info.raw_external_data
    }

    fn name_backing<'a>(&'a self, cx: Cx<'a>, name: Option<BackingName>) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let container = self.container(cx)?;
            let format = name.as_ref().and_then(|name| name.format.as_deref());
            let name = name.as_ref().map(|name| name.name.as_bytes());
            let named = self.image.set_backing_file(&container, name, format.map(str::as_bytes));
            named.await.map_err(from_engine)
        })
    }

    fn resize<'a>(&'a self, cx: Cx<'a>, size_bytes: u64) -> NodeFuture<'a, ()> {
        Box::pin(self.set_size(cx, size_bytes))
    }

    fn deallocate<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(self.give_up(cx, offset, len))
    }
}
