//! Nodes: what the graph stacks. A node presents a view, a function from offset to byte.
//!
//! A driver implements [`Node`] and is called by [`crate::graph::EdgeRef`] alone, which has checked
//! range, permission and alignment and emulates what the driver lacks. A driver reaches its children
//! through the [`Cx`] of the call, never by itself: the graph owns the edges.
//!
//! **Invariant**: a driver may assume a valid request and cannot go round the bitmaps.

mod backing_name;
mod bitmap_store;
mod file;
mod identity;
mod image;
mod memory;
mod null;
mod qcow2;
mod raw;
mod reopen;

use std::any::Any;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

pub use backing_name::BackingName;
pub(crate) use backing_name::{chained, name_of, path_of, protocol};
pub(crate) use bitmap_store::create as create_stored;
pub use bitmap_store::{
    Below, BitmapContent, BitmapStore, Keeping, LoadedBitmap, StoreChange, StoredBitmap, Trust,
};
pub(crate) use file::may_be_ahead;
pub use file::{FileNode, FileOptions, ImageLocking};
pub use identity::Identity;
pub use image::{DataFileReport, DiscardCounts, ImageKind, ImageReport, KeptBitmap, Qcow2Report};
pub use memory::MemoryNode;
pub use null::NullNode;
pub(crate) use qcow2::{Access, FileStorage, FreshFile, Place};
pub use qcow2::{Qcow2Node, Qcow2Options};
pub use raw::RawNode;
pub use reopen::{OpenMode, Reopen, Reopened, Reopening};

use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Cx, JobStake, LocalGraph, Tracker};
use crate::io::{Buf, BufMut};
use crate::limits::TRANSFER_MAX_BYTES;

/// A future of one worker.
pub type NodeFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + 'a>>;

/// Who provides an operation of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// The driver itself.
    Native,
    /// The edge, from other operations of the driver.
    Emulated,
    /// Nobody: advisory operations succeed without effect, others fail with `ENOTSUP`.
    None,
}

/// What a driver provides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Writing zeros without data. Emulated by writes.
    pub zero: Support,
    /// Discarding: advisory.
    pub discard: Support,
    /// A write that is durable when it completes. Emulated by a flush after it.
    pub fua: Support,
    /// Making completed writes durable.
    pub flush: Support,
}

impl Caps {
    /// A driver that passes every operation on, so that the edge below decides.
    pub const FILTER: Self = Self {
        zero: Support::Native,
        discard: Support::Native,
        fua: Support::Native,
        flush: Support::Native,
    };
}

/// Shapes of requests that a driver takes; the edge makes them fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Offsets and lengths are multiples of this power of two, bytes (1 to 4096).
    pub request_alignment: u32,
    /// Buffers start at a multiple of this power of two in memory, bytes.
    pub memory_alignment: u32,
    /// Longest read or write, bytes.
    pub transfer_max_bytes: u32,
    /// What a change may touch beside what it writes: whole units of this power of two, bytes (a cluster that
    /// is filled from below when a part of it is written). Any request is taken all the same. If it is more
    /// than one byte, each unit lies in one piece in the driver's container, at a multiple of its size; units
    /// may lie in any order. At most [`FILL_MAX_BYTES`](crate::limits::FILL_MAX_BYTES).
    pub fill_bytes: u32,
    /// Writes may be [compressed](WriteFlags::compressed), each whole unit of this power of two by itself, bytes;
    /// 0 for a driver that compresses nothing. At most
    /// [`COMPRESSED_MAX_BYTES`](crate::limits::COMPRESSED_MAX_BYTES).
    pub compressed_bytes: u32,
}

impl Limits {
    /// Any request up to [`TRANSFER_MAX_BYTES`].
    pub const NONE: Self = Self {
        request_alignment: 1,
        memory_alignment: 1,
        transfer_max_bytes: TRANSFER_MAX_BYTES,
        fill_bytes: 1,
        compressed_bytes: 0,
    };
}

/// What a node is, computed with each graph snapshot from the driver and its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Size of the view, bytes.
    pub size_bytes: u64,
    /// Request shapes.
    pub limits: Limits,
    /// Operations.
    pub caps: Caps,
    /// Refuses changes.
    pub read_only: bool,
    /// Whoever keeps its bytes in it may write behind its end, and the driver makes it longer; from there
    /// on it reads as zeros. Its size stays what it was to everybody else, for as long as it is a container.
    pub growable: bool,
}

impl NodeInfo {
    /// What a filter over its first child is: the same view, any request (the edge below sees to
    /// alignment), and compressed writes if the child takes such.
    ///
    /// # Errors
    /// `EINVAL` when it has no child.
    pub fn of_filter(children: &[Self]) -> Result<Self> {
        let missing = || Error::new(ErrorKind::Invalid, "a filter needs a child `file`");
        let child = children.first().ok_or_else(missing)?;
        let compressed_bytes = child.limits.compressed_bytes;
        let limits = Limits { compressed_bytes, ..Limits::NONE };
        Ok(Self { limits, caps: Caps::FILTER, ..*child })
    }
}

/// What a driver does with its containers beside what requests ask for: see
/// [`LocalGraph::call_node`](crate::graph::LocalGraph::call_node).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Upkeep {
    /// Nothing.
    #[default]
    None,
    /// Reads them.
    Reads,
    /// Writes them: what it stores beside the view, and marks of use. Its storage edges use `w` whether
    /// or not somebody above may write.
    Writes,
}

/// How a write or zero is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// Durable when it completes.
    pub fua: bool,
    /// Zero: keep the range allocated.
    pub no_unmap: bool,
    /// Zero: fail with `ENOTSUP` rather than write data.
    pub fast: bool,
    /// Write: store it compressed, as far as it is whole units that get smaller by it. Only for drivers with
    /// [`Limits::compressed_bytes`]. What it does to the view is the same.
    pub compressed: bool,
}

impl WriteFlags {
    /// None of them.
    pub const NONE: Self = Self { fua: false, no_unmap: false, fast: false, compressed: false };
    /// Durable when it completes.
    pub const FUA: Self = Self { fua: true, ..Self::NONE };
    /// Stored compressed.
    pub const COMPRESSED: Self = Self { compressed: true, ..Self::NONE };
}

/// What a range of a view is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Allocated data.
    Data,
    /// Allocated, and known to read as zeros.
    Zero,
    /// Not allocated, and known to read as zeros.
    Hole,
    /// Not allocated here; reads what lies below.
    Unallocated,
    /// Not there: reading it fails. What is kept of a point in time may be a part of it.
    Unreadable,
}

/// A range of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the view.
    pub offset: u64,
    /// Bytes, never 0.
    pub len: u64,
    /// What it is.
    pub kind: ExtentKind,
    /// Where its first byte lies in the protocol node's file, when that is known.
    pub host_offset: Option<u64>,
}

/// A driver. All ranges are within the node's size (or, if it is growable, below
/// [`GROWN_MAX_BYTES`](crate::limits::GROWN_MAX_BYTES)), aligned to its limits and not empty.
///
/// Futures run on the worker that called; the driver itself is shared by all workers. A call that has
/// been made runs to its end or fails; a driver must not rely on its future being dropped.
///
/// Nothing that a driver is asked for goes to its children by itself. One that shows what its child shows says
/// only what it does with what passes: it is a [`Filter`](crate::filter::Filter), and by that a node.
///
/// A driver whose every byte is the low byte of its offset:
///
/// ```
/// use blockloom::graph::Cx;
/// use blockloom::io::{Buf, BufMut};
/// use blockloom::node::{Caps, Extent, ExtentKind, Limits, Node, NodeFuture, NodeInfo, WriteFlags};
/// use blockloom::{Error, ErrorKind, Host, block_on};
///
/// struct Count;
///
/// fn read_only<'a, T>() -> NodeFuture<'a, T> {
///     Box::pin(async { Err(Error::new(ErrorKind::ReadOnly, "it cannot change")) })
/// }
///
/// impl Node for Count {
///     fn driver(&self) -> &'static str {
///         "count"
///     }
///
///     fn info(&self, _children: &[NodeInfo]) -> blockloom::Result<NodeInfo> {
///         let (limits, caps) = (Limits::NONE, Caps::FILTER);
///         let size_bytes = 1 << 20;
///         Ok(NodeInfo { size_bytes, limits, caps, read_only: true, growable: false })
///     }
///
///     fn read<'a>(&'a self, _: Cx<'a>, offset: u64, mut buf: BufMut) -> NodeFuture<'a, BufMut> {
///         for (byte, at) in buf.iter_mut().zip(offset..) {
///             *byte = at as u8;
///         }
///         Box::pin(async { Ok(buf) })
///     }
///
///     fn write<'a>(&'a self, _: Cx<'a>, _: u64, _: Buf, _: WriteFlags) -> NodeFuture<'a, ()> {
///         read_only()
///     }
///
///     fn zero<'a>(&'a self, _: Cx<'a>, _: u64, _: u64, _: WriteFlags) -> NodeFuture<'a, ()> {
///         read_only()
///     }
///
///     fn discard<'a>(&'a self, _: Cx<'a>, _: u64, _: u64) -> NodeFuture<'a, ()> {
///         read_only()
///     }
///
///     fn flush<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
///         Box::pin(async { Ok(()) })
///     }
///
///     fn block_status<'a>(&'a self, _: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
///         let extent = Extent { offset, len, kind: ExtentKind::Data, host_offset: None };
///         Box::pin(async move { Ok(vec![extent]) })
///     }
/// }
///
/// # fn main() -> blockloom::Result<()> {
/// let host = Host::builder().node("count", Count, vec![]).drive("vda", "count", false).start()?;
/// assert_eq!(block_on(host.drive("vda")?.read(254, 4))?[..], [254, 255, 0, 1]);
/// # host.shutdown()
/// # }
/// ```
pub trait Node: Any + Send + Sync {
    /// The driver's name, as in TOML.
    fn driver(&self) -> &'static str;

    /// What matters most of its options, for people: the path of a file, the name of a plugin.
    fn label(&self) -> Option<String> {
        None
    }

    /// What the node is, given its children in the order of its edges.
    ///
    /// # Errors
    /// When the children do not fit (too small, missing).
    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo>;

    /// The limits of a node without children when it is that long, if they depend on that: it may be about to be resized.
    fn limits_at(&self, _size_bytes: u64) -> Option<Limits> {
        None
    }

    /// Called once when the graph stands, before any request.
    ///
    /// # Errors
    /// When the driver cannot serve the node; the host does not start then.
    fn start(&self, _name: &str, _info: &NodeInfo, _children: &[NodeInfo]) -> Result<()> {
        Ok(())
    }

    /// Called once on a worker when the graph stands with all its bitmaps: what the node does of its own accord
    /// begins here.
    fn run(&self, _graph: &Rc<LocalGraph>, _name: &str) {}

    /// Called when a graph was published in which the node, or a child of it, has another size than before, or the
    /// node is read-only and was not or the other way round, with no request in flight.
    fn resized(&self, _info: &NodeInfo, _children: &[NodeInfo]) {}

    /// Called when a graph was published in which the node has a `backing` edge that it did not have before, or none
    /// any more, with no request in flight.
    fn backing_changed(&self, _has_backing: bool) {}

    /// Fills all of `buf` from `offset`.
    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut>;

    /// Writes all of `buf` at `offset`.
    fn write<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()>;

    /// Makes `len` bytes from `offset` read as zeros. `ENOTSUP` lets the edge write them.
    fn zero<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()>;

    /// Tells that `len` bytes from `offset` are not needed: advisory. They read as before or as zeros.
    fn discard<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()>;

    /// Makes every write that has completed durable.
    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()>;

    /// The extents from `offset` on: contiguous, at least one, at most
    /// [`EXTENTS_MAX`](crate::limits::EXTENTS_MAX), possibly fewer than cover `len`.
    fn block_status<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64)
    -> NodeFuture<'a, Vec<Extent>>;

    /// Called once when the node leaves the graph, or the host ends, after the last request, after what it shows
    /// by its view edges has closed, and before its containers do: what is to be found when it is opened again is
    /// written now, to containers alone. It must not alter what the node shows. A failure is told and changes nothing else.
    fn close<'a>(&'a self, _cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    /// What it does with its containers of its own accord. Always the same.
    fn upkeep(&self) -> Upkeep {
        Upkeep::None
    }

    /// Whether the node needs its child number `edge` for what it is, not for what it shows: then nothing else takes
    /// that child's place. Always the same.
    fn needs_itself(&self, edge: usize) -> bool {
        let _ = edge;
        false
    }

    /// Whether nobody but those who come through the node may change what its child number `edge` shows: it keeps
    /// old bytes before they are changed. Always the same.
    fn is_exclusive(&self, edge: usize) -> bool {
        let _ = edge;
        false
    }

    /// Whether nobody writes what it shows, who may change it: they give parts of it up, by discards, and nobody reads
    /// those any more. Always the same.
    fn is_only_given_up(&self) -> bool {
        false
    }

    /// What it has counted beside what its edges count, for reports: one line.
    fn report(&self) -> Option<String> {
        None
    }

    /// What the image, or the file, that it is says of itself. It waits for nobody.
    fn image(&self) -> Option<ImageReport> {
        None
    }

    /// Bytes that it takes where it is stored, without its children; `None` if all of it is in those, or that is not
    /// known. Control path: may block.
    fn allocated_bytes(&self) -> Option<u64> {
        None
    }

    /// The discards that it was asked for, if it counts them.
    fn discards(&self) -> Option<DiscardCounts> {
        None
    }

    /// The bitmaps that it keeps beside its bytes, if it can.
    fn bitmap_store(&self) -> Option<&dyn BitmapStore> {
        None
    }

    /// What opens it in another way, if it can be.
    fn reopening(&self) -> Option<&dyn Reopening> {
        None
    }

    /// What tells whether what it shows by itself was changed while nobody here had it open: it has been
    /// flushed. A node that has a `filtered` edge shows what its child shows, and is not asked.
    fn identity(&self) -> NodeFuture<'_, Identity> {
        identity::answer(Identity::Unknown)
    }

    /// From which byte of its storage child on the node shows that child's bytes, if it does just that.
    fn offset_in_child(&self) -> Option<u64> {
        None
    }

    /// Whether the node shows, at every offset, its view edge's child. Only then may it be put in or taken
    /// out without a doubt about the view.
    fn is_transparent(&self) -> bool {
        false
    }

    /// The file that holds all that the node shows, by the name under which it was opened, if that is a file of this
    /// host.
    fn file_path(&self) -> Option<PathBuf> {
        None
    }

    /// How its image names its backing, whatever it stands on.
    fn backing_name(&self) -> Option<String> {
        None
    }

    /// Whether it is in an image that can name another backing.
    fn names_backing(&self) -> bool {
        false
    }

    /// Names another backing in its image, or none, durably: what it shows is no matter of that. No request is in
    /// flight.
    fn name_backing<'a>(&'a self, _cx: Cx<'a>, _name: Option<BackingName>) -> NodeFuture<'a, ()> {
        let driver = self.driver();
        Box::pin(async move {
            let message = format!("driver `{driver}` names no backing");
            Err(Error::new(ErrorKind::NotSupported, message))
        })
    }

    /// What it tracks, if it copies from one child to another: see [`Tracker`].
    fn tracker(&self) -> Option<Arc<Tracker>> {
        None
    }

    /// The job for which the node stands, if it stands for one. Always the same.
    fn job(&self) -> Option<&JobStake> {
        None
    }

    /// Whether it makes other bytes of those of its children: then no edge of it may be one of view.
    fn is_opaque(&self) -> bool {
        false
    }

    /// Whether it relies on bytes of its view that are to be kept elsewhere before they change: none may change
    /// unless the change has passed the node. Where that cannot be, the change is refused.
    fn keeps_old_bytes(&self) -> bool {
        false
    }

    /// The length of a growable node without children, now: at least what has been written, bytes.
    fn len_bytes(&self) -> Option<u64> {
        None
    }

    /// Makes a growable node this long, on behalf of whoever keeps its bytes in it; of a container, a multiple of the
    /// alignment of its requests. A filter passes it on.
    fn set_len<'a>(&'a self, _cx: Cx<'a>, _len: u64) -> NodeFuture<'a, ()> {
        let driver = self.driver();
        Box::pin(async move {
            let message = format!("driver `{driver}` cannot set its length");
            Err(Error::new(ErrorKind::NotSupported, message))
        })
    }

    /// Changes the size of the node's own bytes. No request is in flight.
    fn resize<'a>(&'a self, _cx: Cx<'a>, _size_bytes: u64) -> NodeFuture<'a, ()> {
        let driver = self.driver();
        Box::pin(async move {
            let message = format!("driver `{driver}` cannot change its size");
            Err(Error::new(ErrorKind::NotSupported, message))
        })
    }

    /// Gives up the node's own bytes of a range, so that its backing shows there. No request is in flight.
    fn deallocate<'a>(&'a self, _cx: Cx<'a>, _offset: u64, _len: u64) -> NodeFuture<'a, ()> {
        let driver = self.driver();
        Box::pin(async move {
            let message = format!("driver `{driver}` keeps all its bytes");
            Err(Error::new(ErrorKind::NotSupported, message))
        })
    }
}
