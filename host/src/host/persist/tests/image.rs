//! Images in memory that outlive the nodes that have them.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

use super::*;
use crate::bitmap::{BitmapIdentity, BitmapName, Granularity};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Cx;
use crate::io::{Buf, BufMut};
use crate::node::{
    Below, BitmapContent, BitmapStore, Extent, Keeping, LoadedBitmap, MemoryNode, Node, NodeFuture,
    NodeInfo, StoreChange, StoredBitmap, Trust, Upkeep, WriteFlags,
};

/// What is on disk of an image's bitmaps.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) entries: Vec<Entry>,
    /// What has been written, in order, also of other disks.
    pub(super) log: Arc<Mutex<Vec<String>>>,
    pub(super) fails: Option<ErrorKind>,
    /// Changes for which there is room still, if that has an end.
    pub(super) room: Option<usize>,
    /// Changes that are answered still, if that has an end.
    pub(super) answers: Option<usize>,
    /// Those that were not.
    pub(super) unanswered: Vec<String>,
    /// What it says of what is below.
    pub(super) below: Option<Below>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) granularity: u64,
    pub(super) auto: bool,
    pub(super) in_use: bool,
    pub(super) known: bool,
    pub(super) identity: Option<BitmapIdentity>,
    pub(super) words: Vec<u64>,
}

/// A disk that outlives nodes.
#[derive(Clone, Default)]
pub(super) struct Image(pub(super) Arc<Mutex<Disk>>);

impl Image {
    pub(super) fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().expect("no panic")
    }

    pub(super) fn with(self, name: &str, auto: bool, in_use: bool, words: &[u64]) -> Self {
        let words = words.to_vec();
        let (name, granularity, identity) = (name.into(), GRANULE, None);
        let entry = Entry { name, granularity, auto, in_use, known: true, identity, words };
        self.lock().entries.push(entry);
        self
    }

    pub(super) fn entry(&self, name: &str) -> Option<Entry> {
        self.lock().entries.iter().find(|entry| entry.name == name).cloned()
    }

    /// Name and flags: `r`ecords when it is opened, is in `u`se.
    pub(super) fn listed(&self) -> Vec<String> {
        let flag = |is: bool, flag: &'static str| if is { flag } else { "" };
        let disk = self.lock();
        let entries = disk.entries.iter();
        entries
            .map(|it| format!("{}:{}{}", it.name, flag(it.auto, "r"), flag(it.in_use, "u")))
            .collect()
    }

    pub(super) fn node(&self) -> ImageNode {
        let bytes = MemoryNode::new(SIZE, 512).expect("a size");
        ImageNode::new(self, bytes, Upkeep::Writes)
    }

    pub(super) fn overlay(&self) -> ImageNode {
        let bytes = MemoryNode::overlay(SIZE, 512).expect("a size");
        ImageNode::new(self, bytes, Upkeep::Writes)
    }

    pub(super) fn read_only(&self) -> ImageNode {
        let bytes = MemoryNode::new(SIZE, 512).expect("a size");
        ImageNode::new(self, bytes, Upkeep::Reads)
    }
}

pub(super) struct ImageNode {
    pub(super) image: Image,
    pub(super) bytes: MemoryNode,
    pub(super) upkeep: Upkeep,
    pub(super) keeping: Keeping,
    pub(super) marked: AtomicBool,
}

impl ImageNode {
    pub(super) fn new(image: &Image, bytes: MemoryNode, upkeep: Upkeep) -> Self {
        let (keeping, marked) = (Keeping::default(), AtomicBool::new(false));
        Self { image: image.clone(), bytes, upkeep, keeping, marked }
    }

    pub(super) fn mark(&self) {
        if self.upkeep == Upkeep::Writes && !self.marked.swap(true, SeqCst) {
            self.image.lock().entries.iter_mut().for_each(|entry| entry.in_use = true);
        }
    }
}

impl Node for ImageNode {
    fn driver(&self) -> &'static str {
        "image"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        let read_only = self.upkeep == Upkeep::Reads;
        Ok(NodeInfo { read_only, growable: false, ..self.bytes.info(children)? })
    }

    fn start(&self, name: &str, info: &NodeInfo, children: &[NodeInfo]) -> Result<()> {
        self.bytes.start(name, info, children)
    }

    fn read<'a>(&'a self, cx: Cx<'a>, at: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        self.bytes.read(cx, at, buf)
    }

    fn write<'a>(&'a self, cx: Cx<'a>, at: u64, buf: Buf, how: WriteFlags) -> NodeFuture<'a, ()> {
        self.mark();
        self.bytes.write(cx, at, buf, how)
    }

    fn zero<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64, how: WriteFlags) -> NodeFuture<'a, ()> {
        self.mark();
        self.bytes.zero(cx, at, len, how)
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, ()> {
        self.mark();
        self.bytes.discard(cx, at, len)
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        self.bytes.flush(cx)
    }

    fn block_status<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        self.bytes.block_status(cx, at, len)
    }

    fn upkeep(&self) -> Upkeep {
        self.upkeep
    }

    fn bitmap_store(&self) -> Option<&dyn BitmapStore> {
        Some(self)
    }

    fn close<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(self.keeping.store(self, cx, false))
    }
}

impl BitmapStore for ImageNode {
    fn stored<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, Vec<StoredBitmap>> {
        let stored = |entry: &Entry| StoredBitmap {
            name: name(&entry.name),
            granularity: Granularity::from_bytes(entry.granularity).expect("a granularity"),
            auto: entry.auto,
            trust: match (entry.known, entry.in_use && !self.marked.load(SeqCst)) {
                (false, _) => Trust::Unknown,
                (true, true) => Trust::Inconsistent,
                (true, false) => Trust::Stored,
            },
            identity: entry.identity,
        };
        let stored = self.image.lock().entries.iter().map(stored).collect();
        Box::pin(async move { Ok(stored) })
    }

    fn begin_use<'a>(
        &'a self,
        _: Cx<'a>,
        wanted: Vec<(BitmapName, u64)>,
    ) -> NodeFuture<'a, Vec<LoadedBitmap>> {
        let load = |(name, size_bytes): (BitmapName, u64)| {
            assert_eq!(size_bytes, SIZE);
            let entry = self.image.entry(name.as_str()).filter(|entry| !entry.in_use);
            let lost = || Error::new(ErrorKind::Io, "it is in use");
            let below = self.image.lock().below.clone().unwrap_or(Below::Same);
            LoadedBitmap { name, words: entry.map(|entry| entry.words).ok_or_else(lost), below }
        };
        let loaded = wanted.into_iter().map(load).collect();
        self.mark();
        Box::pin(async move { Ok(loaded) })
    }

    fn change<'a>(&'a self, cx: Cx<'a>, changes: Vec<StoreChange>) -> NodeFuture<'a, ()> {
        let mut disk = self.image.lock();
        let node = cx.node_name();
        if let Some(kind) = disk.fails {
            return Box::pin(async move { Err(Error::new(kind, "the image is full")) });
        }
        match &mut disk.answers {
            None => {}
            Some(0) => {
                disk.unanswered.extend(changes.into_iter().map(|change| match change {
                    StoreChange::Store(content) => format!("store {}", content.name),
                    StoreChange::Remove(name) => format!("remove {name}"),
                    StoreChange::Rename { from, .. } => format!("rename {from}"),
                }));
                return Box::pin(std::future::pending());
            }
            Some(left) => *left -= 1,
        }
        match &mut disk.room {
            None => {}
            Some(0) => {
                let full = Error::new(ErrorKind::NoSpace, "the image is full");
                return Box::pin(async move { Err(full) });
            }
            Some(left) => *left -= 1,
        }
        for change in changes {
            let entries = &mut disk.entries;
            let find = |entries: &[Entry], name: &BitmapName| {
                entries.iter().position(|entry| entry.name == name.as_str())
            };
            let line = match change {
                StoreChange::Store(content) => {
                    let BitmapContent { name, granularity, auto, in_use, words, identity, .. } =
                        content;
                    if let Some(at) = find(entries, &name) {
                        entries.remove(at);
                    }
                    let (granularity, text) = (granularity.bytes(), name.to_string());
                    entries.push(Entry {
                        name: text,
                        granularity,
                        auto,
                        in_use,
                        known: true,
                        identity: Some(identity),
                        words,
                    });
                    format!("{node}: store {name}{}", if in_use { ", in use" } else { "" })
                }
                StoreChange::Remove(name) => {
                    entries.remove(find(entries, &name).expect("it is there"));
                    format!("{node}: remove {name}")
                }
                StoreChange::Rename { from, to } => {
                    let at = find(entries, &from).expect("it is there");
                    entries[at].name = to.to_string();
                    format!("{node}: rename {from} to {to}")
                }
            };
            disk.log.lock().expect("no panic").push(line);
        }
        Box::pin(async { Ok(()) })
    }

    fn keeping(&self) -> &Keeping {
        &self.keeping
    }
}
