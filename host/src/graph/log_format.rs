//! A small format for tests: guest clusters, in the order in which they were first written, at the end of
//! its container.
//!
//! ```text
//!   container:  words of 8 bytes, one a guest cluster (its place, 0 for none); at byte 512 a note that it
//!               was closed; at 4088 the size of the view, once it has changed | clusters as they came
//! ```
//!
//! Its first child is the container (`file`). The second, if there is one, is its backing, an external data
//! file whose bytes are the view's (`data`), or a second container that has the clusters (`storage`). It is
//! for requests one after the other: two that fill one cluster at a time would meet.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Cx, EdgeRef, Role};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Buf, BufMut};
use crate::node::{
    Caps, Extent, ExtentKind, Limits, Node, NodeFuture, NodeInfo, Support, Upkeep, WriteFlags,
};

/// Bytes of a cluster.
pub(super) const CLUSTER: u64 = 4096;
/// Most clusters of a view.
pub(super) const CLUSTERS_MAX: u64 = CLOSED_AT / WORD;
/// Where its container has the size of the view.
const SIZE_AT: u64 = CLUSTER - WORD;
/// Where its container says that it was closed.
pub(super) const CLOSED_AT: u64 = 512;
/// Bytes of an entry.
const WORD: u64 = 8;

/// See the module.
pub(super) struct LogFormat {
    size_bytes: AtomicU64,
    /// Role of the second child.
    second: Option<Role>,
    state: Mutex<State>,
    /// Who has closed, in turn: its name, when it has.
    closed: Arc<Mutex<Vec<String>>>,
}

struct State {
    /// Places by guest cluster.
    places: BTreeMap<u64, u64>,
    /// Where the next cluster goes.
    next: u64,
}

impl LogFormat {
    /// A view of `size_bytes` without bytes of its own.
    pub(super) fn new(size_bytes: u64, second: Option<Role>) -> Self {
        let next = match second {
            Some(Role::Storage) => 0,
            _ => (size_bytes / CLUSTER * WORD).next_multiple_of(CLUSTER),
        };
        let state = Mutex::new(State { places: BTreeMap::new(), next });
        Self { size_bytes: AtomicU64::new(size_bytes), second, state, closed: Arc::default() }
    }

    /// One that adds its name there when it closes.
    pub(super) fn telling(self, closed: &Arc<Mutex<Vec<String>>>) -> Self {
        Self { closed: Arc::clone(closed), ..self }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that its clusters take where they are.
    pub(super) fn end(&self) -> u64 {
        self.state().next
    }

    fn forget_last(&self, cluster: u64) {
        let mut state = self.state();
        state.places.remove(&cluster);
        state.next -= CLUSTER;
    }

    fn place(&self, cluster: u64) -> Option<u64> {
        self.state().places.get(&cluster).copied()
    }

    /// Where clusters are.
    fn clusters<'a>(&self, cx: Cx<'a>) -> Result<EdgeRef<'a>> {
        cx.child(usize::from(self.second == Some(Role::Storage)))
    }

    /// What a cluster without a place shows.
    async fn below(&self, cx: Cx<'_>, offset: u64, len: u64) -> Result<BufMut> {
        let mut bytes = BufMut::zeroed(len as usize);
        if self.second == Some(Role::Backing) {
            let backing = cx.child(1)?;
            let size = backing.node().info().size_bytes;
            let len = size.saturating_sub(offset).min(len) as usize;
            if len > 0 {
                let read = backing.read(offset, BufMut::new(len)).await?;
                bytes[..len].copy_from_slice(&read);
            }
        }
        Ok(bytes)
    }

    async fn note(&self, cx: Cx<'_>, cluster: u64, place: u64) -> Result<()> {
        let word = Buf::copy_of(&place.to_le_bytes());
        cx.child(0)?.write(cluster * WORD, word, WriteFlags::NONE).await
    }

    async fn read_all(&self, cx: Cx<'_>, offset: u64, mut buf: BufMut) -> Result<BufMut> {
        for (part, at) in parts(offset, buf.len() as u64) {
            let place = self.place(part.start / CLUSTER);
            let len = part.end - part.start;
            let bytes = match place {
                Some(place) => {
                    let read = BufMut::new(len as usize);
                    self.clusters(cx)?.read(place + part.start % CLUSTER, read).await?
                }
                None => self.below(cx, part.start, len).await?,
            };
            buf[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(buf)
    }

    async fn write_all(&self, cx: Cx<'_>, offset: u64, buf: Buf) -> Result<()> {
        for (part, at) in parts(offset, buf.len() as u64) {
            let (cluster, inside) = (part.start / CLUSTER, part.start % CLUSTER);
            let bytes = &buf[at..at + (part.end - part.start) as usize];
            if let Some(place) = self.place(cluster) {
                let bytes = Buf::copy_of(bytes);
                self.clusters(cx)?.write(place + inside, bytes, WriteFlags::NONE).await?;
                continue;
            }
            let mut whole = self.below(cx, cluster * CLUSTER, CLUSTER).await?;
            whole[inside as usize..inside as usize + bytes.len()].copy_from_slice(bytes);
            let place = {
                let mut state = self.state();
                state.next += CLUSTER;
                state.next - CLUSTER
            };
            self.clusters(cx)?.write(place, whole.freeze(), WriteFlags::NONE).await?;
            self.note(cx, cluster, place).await?;
            self.state().places.insert(cluster, place);
        }
        Ok(())
    }

    async fn extents(&self, cx: Cx<'_>, offset: u64, len: u64) -> Vec<Extent> {
        let end = offset + len;
        let part = offset..end.min((offset / CLUSTER + 1) * CLUSTER);
        let kind = match (self.place(part.start / CLUSTER), self.second) {
            (Some(_), _) => ExtentKind::Data,
            (None, Some(Role::Backing)) => ExtentKind::Unallocated,
            (None, _) => ExtentKind::Hole,
        };
        let _ = cx;
        vec![Extent { offset: part.start, len: part.end - part.start, kind, host_offset: None }]
    }
}

/// The parts of a range by clusters, each with its place in the range.
fn parts(offset: u64, len: u64) -> impl Iterator<Item = (std::ops::Range<u64>, usize)> {
    let end = offset + len;
    let first = offset / CLUSTER;
    (first..end.div_ceil(CLUSTER)).map(move |cluster| {
        let part = offset.max(cluster * CLUSTER)..end.min((cluster + 1) * CLUSTER);
        let at = (part.start - offset) as usize;
        (part, at)
    })
}

impl Node for LogFormat {
    fn driver(&self) -> &'static str {
        "log"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        let Some(file) = children.first() else {
            return Err(Error::new(ErrorKind::Invalid, "it needs a child `file`"));
        };
        let caps = Caps { zero: Support::Emulated, fua: Support::Emulated, ..Caps::FILTER };
        let size_bytes = self.size_bytes.load(Relaxed);
        let limits = Limits { fill_bytes: CLUSTER as u32, ..Limits::NONE };
        let read_only = file.read_only;
        Ok(NodeInfo { size_bytes, limits, caps, read_only, growable: false })
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move {
            match self.second {
                Some(Role::Data) => cx.child(1)?.read(offset, buf).await,
                _ => self.read_all(cx, offset, buf).await,
            }
        })
    }

    fn write<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: Buf, _: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            if self.second != Some(Role::Data) {
                return self.write_all(cx, offset, buf).await;
            }
            let len = buf.len() as u64;
            cx.child(1)?.write(offset, buf, WriteFlags::NONE).await?;
            for (part, _) in parts(offset, len) {
                let cluster = part.start / CLUSTER;
                self.note(cx, cluster, cluster * CLUSTER).await?;
                self.state().places.insert(cluster, cluster * CLUSTER);
            }
            Ok(())
        })
    }

    fn zero<'a>(&'a self, _: Cx<'a>, _: u64, _: u64, _: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async { Err(Error::new(ErrorKind::NotSupported, "it has no zeros")) })
    }

    /// Gives up the cluster at the end of the container, and cuts it off, if it is that of `offset`.
    fn discard<'a>(&'a self, cx: Cx<'a>, offset: u64, _: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let (cluster, end) = (offset / CLUSTER, self.end());
            if self.place(cluster).is_none_or(|place| place + CLUSTER != end) {
                return Ok(());
            }
            self.note(cx, cluster, 0).await?;
            self.forget_last(cluster);
            self.clusters(cx)?.set_len(end - CLUSTER).await
        })
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.flush().await })
    }

    /// More than [`CLUSTERS_MAX`] fail when the new size has been noted.
    fn resize<'a>(&'a self, cx: Cx<'a>, size_bytes: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let note = Buf::copy_of(&size_bytes.to_le_bytes());
            cx.child(0)?.write(SIZE_AT, note, WriteFlags::NONE).await?;
            if size_bytes > CLUSTERS_MAX * CLUSTER {
                return Err(Error::new(ErrorKind::NoSpace, "it has no more entries"));
            }
            if self.second == Some(Role::Data) {
                cx.child(1)?.set_len(size_bytes).await?;
            }
            self.size_bytes.store(size_bytes, Relaxed);
            self.state().places.retain(|cluster, _| cluster * CLUSTER < size_bytes);
            Ok(())
        })
    }

    fn deallocate<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            for cluster in offset.div_ceil(CLUSTER)..(offset + len) / CLUSTER {
                self.note(cx, cluster, 0).await?;
                self.state().places.remove(&cluster);
            }
            Ok(())
        })
    }

    fn upkeep(&self) -> Upkeep {
        Upkeep::Writes
    }

    fn close<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let note = Buf::copy_of(b"closed");
            cx.child(0)?.write(CLOSED_AT, note, WriteFlags::FUA).await?;
            let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
            closed.push(cx.node_name().to_owned());
            Ok(())
        })
    }

    fn block_status<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        Box::pin(async move { Ok(self.extents(cx, at, len).await) })
    }
}
