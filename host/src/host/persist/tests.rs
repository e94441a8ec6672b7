//! Images in memory that outlive their hosts, and what becomes of their bitmaps.

mod failed;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

use super::Keep;
use crate::bitmap::{BitmapIdentity, BitmapName, BitmapState, Granularity};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::PassNode;
use crate::graph::{
    Action, BitmapAction, BitmapScope, ChildDecl, Cx, Event, NodeDecl, Transaction, Which,
};
use crate::host::{DirtyBitmap, Host, HostBuilder, block_on};
use crate::io::{Buf, BufMut};
use crate::node::{
    Below, BitmapContent, BitmapStore, Extent, Keeping, LoadedBitmap, MemoryNode, Node, NodeFuture,
    NodeInfo, StoreChange, StoredBitmap, Trust, Upkeep, WriteFlags,
};

const SIZE: u64 = 1 << 20;
/// Bytes of a granule.
const GRANULE: u64 = 4096;
const BITS: u32 = 12;

/// What is on disk of an image's bitmaps.
#[derive(Default)]
struct Disk {
    entries: Vec<Entry>,
    /// What has been written, in order, also of other disks.
    log: Arc<Mutex<Vec<String>>>,
    fails: Option<ErrorKind>,
    /// Changes for which there is room still, if that has an end.
    room: Option<usize>,
    /// Changes that are answered still, if that has an end.
    answers: Option<usize>,
    /// Those that were not.
    unanswered: Vec<String>,
    /// What it says of what is below.
    below: Option<Below>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    granularity: u64,
    auto: bool,
    in_use: bool,
    known: bool,
    identity: Option<BitmapIdentity>,
    words: Vec<u64>,
}

/// A disk that outlives nodes.
#[derive(Clone, Default)]
struct Image(Arc<Mutex<Disk>>);

impl Image {
    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().expect("no panic")
    }

    fn with(self, name: &str, auto: bool, in_use: bool, words: &[u64]) -> Self {
        let words = words.to_vec();
        let (name, granularity, identity) = (name.into(), GRANULE, None);
        let entry = Entry { name, granularity, auto, in_use, known: true, identity, words };
        self.lock().entries.push(entry);
        self
    }

    fn entry(&self, name: &str) -> Option<Entry> {
        self.lock().entries.iter().find(|entry| entry.name == name).cloned()
    }

    /// Name and flags: `r`ecords when it is opened, is in `u`se.
    fn listed(&self) -> Vec<String> {
        let flag = |is: bool, flag: &'static str| if is { flag } else { "" };
        let disk = self.lock();
        let entries = disk.entries.iter();
        entries
            .map(|it| format!("{}:{}{}", it.name, flag(it.auto, "r"), flag(it.in_use, "u")))
            .collect()
    }

    fn node(&self) -> ImageNode {
        let bytes = MemoryNode::new(SIZE, 512).expect("a size");
        ImageNode::new(self, bytes, Upkeep::Writes)
    }

    fn overlay(&self) -> ImageNode {
        let bytes = MemoryNode::overlay(SIZE, 512).expect("a size");
        ImageNode::new(self, bytes, Upkeep::Writes)
    }

    fn read_only(&self) -> ImageNode {
        let bytes = MemoryNode::new(SIZE, 512).expect("a size");
        ImageNode::new(self, bytes, Upkeep::Reads)
    }
}

struct ImageNode {
    image: Image,
    bytes: MemoryNode,
    upkeep: Upkeep,
    keeping: Keeping,
    marked: AtomicBool,
}

impl ImageNode {
    fn new(image: &Image, bytes: MemoryNode, upkeep: Upkeep) -> Self {
        let (keeping, marked) = (Keeping::default(), AtomicBool::new(false));
        Self { image: image.clone(), bytes, upkeep, keeping, marked }
    }

    fn mark(&self) {
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

fn name(name: &str) -> BitmapName {
    BitmapName::new(name).expect("a name")
}

fn of_drive() -> BitmapScope {
    BitmapScope::Drive("vda".into())
}

fn of_node(node: &str) -> BitmapScope {
    BitmapScope::Node(node.into())
}

fn granularity() -> Granularity {
    Granularity::from_bytes(GRANULE).expect("a granularity")
}

/// A host with drive `vda` on the image `disk`.
fn host(image: &Image) -> HostBuilder {
    Host::builder().node("disk", image.node(), vec![]).drive("vda", "disk", true)
}

/// The same with the drive's bitmap `daily`, kept at its root.
fn host_with_daily(image: &Image) -> Result<Host> {
    host(image).kept_bitmap(of_drive(), name("daily"), granularity(), Keep::Root).start()
}

fn write(host: &Host, granule: u64) {
    let drive = host.drive("vda").expect("a drive");
    block_on(drive.write(granule * GRANULE, &[1])).expect("a write");
}

/// Granules that are dirty.
fn dirty(bitmap: &DirtyBitmap) -> Vec<u64> {
    bitmap.ranges(0..SIZE).flat_map(|it| it.start >> BITS..it.end.div_ceil(GRANULE)).collect()
}

fn all() -> Vec<u64> {
    (0..SIZE / GRANULE).collect()
}

fn transact(host: &Host, actions: Vec<Action>) -> Result<()> {
    block_on(host.transact(actions.into_iter().fold(Transaction::new(), Transaction::with)))
        .map(drop)
}

fn snapshot(name: &str, driver: impl Node, below: &str) -> Action {
    let children = vec![ChildDecl::backing(below)];
    let overlay = NodeDecl { name: name.into(), driver: Arc::new(driver), children };
    Action::Snapshot { drive: "vda".into(), overlay }
}

#[test]
fn what_images_hold_goes_on() {
    let image = Image::default().with("on", true, false, &[0b101]).with("off", false, false, &[2]);
    let image = image.with("broken", true, true, &[7]).with("strange", true, false, &[9]);
    image.lock().entries[3].known = false;
    let host = host(&image).start().expect("a host");
    assert_eq!(image.listed(), ["on:ru", "off:u", "broken:ru", "strange:ru"]);
    let find = |bitmap: &str| host.bitmap(&of_node("disk"), bitmap);
    let (on, off, broken) =
        (find("on").expect("it"), find("off").expect("it"), find("broken").expect("it"));
    assert!(find("strange").is_err());
    write(&host, 8);
    assert_eq!((on.state(), dirty(&on)), (BitmapState::Recording, vec![0, 2, 8]));
    assert_eq!((off.state(), dirty(&off)), (BitmapState::Disabled, vec![1]));
    assert_eq!((broken.state(), dirty(&broken)), (BitmapState::Inconsistent, all()));
    assert_eq!(on.kept_in().as_deref(), Some("disk"));
    assert!(block_on(broken.clear()).is_err());
    host.shutdown().expect("an end in order");
    assert_eq!(image.listed(), ["broken:ru", "strange:ru", "on:r", "off:"]);
    let words = |name: &str| image.entry(name).expect("it is there").words;
    assert_eq!((words("on"), words("off")), (vec![0x105, 0, 0, 0], vec![2, 0, 0, 0]));
    assert_eq!((words("broken"), words("strange")), (vec![7], vec![9]));
}

#[test]
fn a_read_only_image_is_left_as_it_is() {
    let image = Image::default().with("on", true, false, &[1]).with("broken", true, true, &[7]);
    let builder = Host::builder().node("disk", image.read_only(), vec![]);
    let host = builder.drive("vda", "disk", false).start().expect("a host");
    let on = host.bitmap(&of_node("disk"), "on").expect("it is loaded");
    assert_eq!((on.state(), dirty(&on)), (BitmapState::Disabled, vec![0]));
    let refused = block_on(on.remove()).expect_err("read-only");
    assert_eq!(refused.kind(), ErrorKind::ReadOnly);
    assert_eq!(
        block_on(on.rename(name("other"))).expect_err("read-only").kind(),
        ErrorKind::ReadOnly
    );
    let broken = host.bitmap(&of_node("disk"), "broken").expect("it is listed");
    assert_eq!(broken.state(), BitmapState::Inconsistent);
    transact(&host, vec![Action::RemoveDrive { drive: "vda".into() }]).expect("no bitmaps");
    transact(&host, vec![Action::RemoveNode { node: "disk".into() }]).expect("they go with it");
    host.shutdown().expect("an end in order");
    assert_eq!(image.listed(), ["on:r", "broken:ru"]);
    assert!(image.lock().log.lock().expect("no panic").is_empty());
}

#[test]
fn a_drives_bitmap_is_kept_at_its_root() {
    let image = Image::default();
    for round in 0..3 {
        let host = host_with_daily(&image).expect("a host");
        assert_eq!(image.listed(), ["daily:ru"]);
        let daily = host.bitmap(&of_drive(), "daily").expect("a bitmap");
        assert_eq!((daily.state(), daily.count()), (BitmapState::Recording, round));
        write(&host, round);
        block_on(host.store_bitmaps()).expect("stored");
        let stored = image.entry("daily").expect("it is there");
        assert!(stored.in_use && stored.words[0] == (2 << round) - 1);
        host.shutdown().expect("an end in order");
        assert_eq!(image.listed(), ["daily:r"]);
    }
    // Disabled, it stays so; renamed, it is another one.
    let host = host_with_daily(&image).expect("a host");
    let daily = host.bitmap(&of_drive(), "daily").expect("a bitmap");
    block_on(daily.disable()).expect("disabled");
    write(&host, 9);
    block_on(daily.rename(name("weekly"))).expect("renamed");
    assert_eq!(image.listed(), ["weekly:ru"]);
    host.shutdown().expect("an end in order");
    assert_eq!(image.listed(), ["weekly:"]);
    let host = super::tests::host(&image).start().expect("a host");
    let weekly = host.bitmap(&of_node("disk"), "weekly").expect("the node's now");
    assert_eq!((weekly.state(), dirty(&weekly)), (BitmapState::Disabled, vec![0, 1, 2]));
    block_on(weekly.remove()).expect("removed");
    assert!(image.listed().is_empty());
    host.shutdown().expect("an end in order");
    assert!(image.listed().is_empty());
}

#[test]
fn what_cannot_be_kept_is_refused_at_once() {
    let check = |host: Result<Host>, kind: ErrorKind, message: &str| {
        let Err(error) = host else { panic!("{message}") };
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(error.kind(), kind, "{error}");
    };
    let kept = |builder: HostBuilder, keep: Keep| {
        let builder = builder.drive("vda", "disk", false);
        builder.kept_bitmap(of_drive(), name("daily"), granularity(), keep).start()
    };
    let memory = || {
        let node = MemoryNode::new(SIZE, 512).expect("a size");
        Host::builder().node("disk", node, vec![])
    };
    check(kept(memory(), Keep::Root), ErrorKind::NotSupported, "no image that keeps bitmaps");
    check(kept(memory(), Keep::Node("disk".into())), ErrorKind::NotSupported, "driver `memory`");
    check(kept(memory(), Keep::Node("none".into())), ErrorKind::NotFound, "no node `none`");
    let image = Image::default();
    let other = || memory().node("other", image.node(), vec![]);
    check(kept(other(), Keep::Node("other".into())), ErrorKind::Invalid, "not below drive `vda`");
    let read_only = || Host::builder().node("disk", image.read_only(), vec![]);
    check(kept(read_only(), Keep::Root), ErrorKind::ReadOnly, "read-only");
    check(kept(read_only(), Keep::Node("disk".into())), ErrorKind::ReadOnly, "read-only");
    let writable = || Host::builder().node("disk", image.node(), vec![]);
    check(kept(writable(), Keep::Meta), ErrorKind::NotSupported, "external data file");
    image.lock().fails = Some(ErrorKind::NoSpace);
    check(kept(writable(), Keep::Root), ErrorKind::NoSpace, "the image is full");

    let image = Image::default().with("daily", true, false, &[1]);
    image.lock().entries[0].granularity = 512;
    check(host_with_daily(&image), ErrorKind::Exists, "a granularity of 512 bytes, not 4096");
    image.lock().entries[0].known = false;
    check(host_with_daily(&image), ErrorKind::Exists, "of a kind that is not known");

    let host = host(&Image::default().with("daily", true, false, &[1])).start().expect("a host");
    let mine = host.bitmap(&of_node("disk"), "daily").expect("a bitmap");
    let again = block_on(mine.keep(Keep::Node("disk".into()))).expect_err("kept");
    assert_eq!(again.kind(), ErrorKind::Exists);
    let decl = crate::graph::BitmapDecl {
        scope: of_drive(),
        name: name("daily"),
        granularity: granularity(),
        enabled: true,
    };
    let drives = block_on(host.add_bitmap(decl)).expect("another one");
    let taken = block_on(drives.keep(Keep::Root)).expect_err("the name is taken");
    assert_eq!(taken.kind(), ErrorKind::Exists);
    assert_eq!(drives.kept_in(), None);
    host.shutdown().expect("an end in order");
}

#[test]
fn a_host_that_is_killed_leaves_nothing_that_is_trusted() {
    let image = Image::default().with("own", true, false, &[1]);
    let host = host_with_daily(&image).expect("a host");
    write(&host, 1);
    drop(host);
    assert_eq!(image.listed(), ["own:ru", "daily:ru"]);
    let host = host_with_daily(&image).expect("a host");
    let daily = host.bitmap(&of_drive(), "daily").expect("a bitmap");
    assert_eq!((daily.state(), dirty(&daily)), (BitmapState::Inconsistent, all()));
    block_on(daily.repair()).expect("repaired");
    assert_eq!((daily.state(), dirty(&daily)), (BitmapState::Recording, all()));
    block_on(daily.clear()).expect("cleared");
    write(&host, 3);
    let own = host.bitmap(&of_node("disk"), "own").expect("a bitmap");
    block_on(own.remove()).expect("removed");
    assert_eq!(image.listed(), ["daily:ru"]);
    host.shutdown().expect("an end in order");
    assert_eq!(image.entry("daily").expect("stored").words[0], 8);
}

#[test]
fn a_store_that_fails_is_told_and_leaves_it_in_use() {
    let image = Image::default();
    let host = host_with_daily(&image).expect("a host");
    image.lock().fails = Some(ErrorKind::Io);
    assert!(block_on(host.store_bitmaps()).is_err());
    let error = host.shutdown().expect_err("not stored");
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(image.listed(), ["daily:ru"]);
}

#[test]
fn a_snapshot_takes_the_bitmap_along() {
    let (base, top) = (Image::default(), Image::default());
    let log = Arc::clone(&base.lock().log);
    top.lock().log = Arc::clone(&log);
    let host = host_with_daily(&base).expect("a host");
    let daily = host.bitmap(&of_drive(), "daily").expect("a bitmap");
    write(&host, 1);
    // Memory keeps nothing: it stays where it is.
    let memory = MemoryNode::overlay(SIZE, 512).expect("a size");
    transact(&host, vec![snapshot("memory", memory, "disk")]).expect("a snapshot");
    assert_eq!(daily.kept_in().as_deref(), Some("disk"));
    write(&host, 2);
    log.lock().expect("no panic").clear();
    // It cannot go where its name is taken, and then neither does the drive.
    let taken = Image::default().with("daily", true, false, &[]);
    let error = transact(&host, vec![snapshot("taken", taken.overlay(), "memory")]);
    assert_eq!(error.expect_err("taken").kind(), ErrorKind::Exists);
    assert_eq!(taken.listed(), ["daily:r"]);
    assert!(host.graph().find_node("taken").is_none());
    let full = Image::default();
    full.lock().fails = Some(ErrorKind::NoSpace);
    let error = transact(&host, vec![snapshot("full", full.overlay(), "memory")]);
    assert_eq!(error.expect_err("full").kind(), ErrorKind::NoSpace);
    write(&host, 3);
    assert!(log.lock().expect("no panic").is_empty());

    transact(&host, vec![snapshot("top", top.overlay(), "memory")]).expect("a snapshot");
    assert_eq!(*log.lock().expect("no panic"), ["top: store daily, in use", "disk: remove daily"]);
    assert_eq!(daily.kept_in().as_deref(), Some("top"));
    assert!(host.bitmap(&of_node("top"), "daily").is_err(), "it is the drive's");
    write(&host, 4);
    assert_eq!(dirty(&daily), [1, 2, 3, 4]);
    host.shutdown().expect("an end in order");
    assert_eq!((top.listed(), base.listed()), (vec!["daily:r".to_owned()], vec![]));
    assert_eq!(top.entry("daily").expect("stored").words[0], 0b11110);
}

/// A node's own goes to another node, and so to another image: the later form is there before the former one goes.
#[test]
fn a_bitmap_that_is_moved_goes_to_its_new_image() {
    let (base, top) = (Image::default().with("own", true, false, &[1]), Image::default());
    let log = Arc::clone(&base.lock().log);
    top.lock().log = Arc::clone(&log);
    let host = host_with_daily(&base).expect("a host");
    transact(&host, vec![snapshot("top", top.overlay(), "disk")]).expect("a snapshot");
    let own = host.bitmap(&of_node("disk"), "own").expect("loaded");
    let move_to = |scope| BitmapAction::MoveTo(scope).of(&own);
    log.lock().expect("no panic").clear();
    // It cannot go where its name is taken, and stays what and where it is.
    top.lock().entries.push(Entry { known: false, ..base.entry("own").expect("stored") });
    let error = transact(&host, vec![move_to(of_node("top"))]).expect_err("taken");
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert_eq!((own.kept_in().as_deref(), own.scope()), (Some("disk"), of_node("disk")));
    top.lock().entries.retain(|entry| entry.name != "own");
    assert!(log.lock().expect("no panic").is_empty());

    transact(&host, vec![move_to(of_node("top"))]).expect("both show the same");
    assert_eq!(*log.lock().expect("no panic"), ["top: store own, in use", "disk: remove own"]);
    assert_eq!(own.kept_in().as_deref(), Some("top"));
    assert!(top.entry("own").is_some_and(|entry| entry.identity.is_some()));
    write(&host, 4);
    // It is the node's still when what is below it changes.
    let filter = node("filter", PassNode, ChildDecl::filtered("top"));
    let insert = Action::InsertAbove { node: "top".into(), filter, users: Which::All };
    transact(&host, vec![insert]).expect("a filter");
    assert_eq!((own.kept_in().as_deref(), dirty(&own)), (Some("top"), vec![0, 4]));
    host.shutdown().expect("an end in order");
    assert_eq!(base.listed(), Vec::<String>::new());
    assert_eq!(top.listed(), ["daily:r", "own:r"]);
    assert_eq!(top.entry("own").expect("stored").words[0], 0b10001);
}

/// With a snapshot, and where nothing keeps it.
#[test]
fn a_bitmap_that_is_moved_with_a_change_of_the_graph() {
    let (base, top) = (Image::default().with("own", true, false, &[1]), Image::default());
    let host = host_with_daily(&base).expect("a host");
    let own = host.bitmap(&of_node("disk"), "own").expect("loaded");
    let move_to = |scope| BitmapAction::MoveTo(scope).of(&own);
    let actions = vec![snapshot("top", top.overlay(), "disk"), move_to(of_node("top"))];
    transact(&host, actions).expect("a snapshot");
    assert_eq!(own.kept_in().as_deref(), Some("top"));
    assert_eq!((top.listed(), base.listed()), (vec!["daily:ru".into(), "own:ru".into()], vec![]));
    // Memory keeps nothing, and what is below it is not its own.
    let memory = MemoryNode::overlay(SIZE, 512).expect("a size");
    let actions = vec![snapshot("memory", memory, "top"), move_to(of_node("memory"))];
    let mut events = host.events();
    transact(&host, actions).expect("a snapshot");
    let mut told = std::iter::from_fn(|| events.try_next());
    let is_it = |event: &Event| matches!(event, Event::BitmapNotKept { .. });
    assert!(told.any(|notice| is_it(&notice.event)));
    assert_eq!((own.kept_in(), top.listed()), (None, vec!["daily:ru".into(), "own:ru".into()]));
    transact(&host, vec![Action::AddNode(bare_node("other"))]).expect("a node");
    assert_eq!(own.kept_in(), None, "another change is no matter");
    // A drive keeps it in its first image.
    transact(&host, vec![move_to(of_drive())]).expect("the drive's");
    assert_eq!(own.kept_in().as_deref(), Some("top"));
    host.shutdown().expect("an end in order");
    assert_eq!(top.listed(), ["daily:r", "own:r"]);
}

/// A transaction that goes on from where it has moved a bitmap to leaves nothing of it there.
#[test]
fn a_bitmap_that_is_moved_on_is_kept_where_it_ends() {
    let (base, top) = (Image::default().with("own", true, false, &[1]), Image::default());
    let host = host_with_daily(&base).expect("a host");
    let own = host.bitmap(&of_node("disk"), "own").expect("loaded");
    let move_to = |scope| BitmapAction::MoveTo(scope).of(&own);
    let actions = vec![move_to(of_drive()), snapshot("top", top.overlay(), "disk")];
    transact(&host, actions).expect("a snapshot");
    assert_eq!(own.kept_in().as_deref(), Some("top"));
    assert_eq!((top.listed(), base.listed()), (vec!["daily:ru".into(), "own:ru".into()], vec![]));
    let removed = vec![move_to(of_node("top")), BitmapAction::Remove.of(&own)];
    transact(&host, removed).expect("moved, and removed");
    host.shutdown().expect("an end in order");
    assert_eq!((top.listed(), base.listed()), (vec!["daily:r".into()], vec![]));
}

#[test]
fn a_bitmap_gains_nothing_as_its_image_is_closed() {
    let image = Image::default().with("own", true, false, &[1]);
    let host = host_with_daily(&image).expect("a host");
    let (own, daily) = (host.bitmap(&of_node("disk"), "own"), host.bitmap(&of_drive(), "daily"));
    let merge = BitmapAction::Merge(vec![(&daily.expect("a bitmap")).into()]);
    let merge = || merge.clone().of(own.as_ref().expect("loaded"));
    write(&host, 5);
    let eject = || Action::EjectMedium { drive: "vda".into() };
    let remove = || Action::RemoveNode { node: "disk".into() };
    let error = transact(&host, vec![merge(), eject(), remove()]).expect_err("not stored");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("do so in two transactions"), "{error}");
    // What goes by itself goes no less; and what is not to go as long as it is used, stays.
    let unused = || Action::RemoveUnused { nodes: vec!["disk".into()] };
    transact(&host, vec![merge(), unused()]).expect("it is used");
    assert_eq!(host.graph().nodes().len(), 1);
    transact(&host, vec![eject(), remove()]).expect("removed");
    assert_eq!(image.entry("own").expect("stored").words[0], 0x21);
}

/// A bitmap that its drive takes along gains what it is to gain, whatever becomes of the image that it leaves.
#[test]
fn a_bitmap_gains_where_it_goes_on() {
    let (base, top) = (Image::default().with("own", true, false, &[1]), Image::default());
    let host = host_with_daily(&base).expect("a host");
    transact(&host, vec![snapshot("top", top.overlay(), "disk")]).expect("a snapshot");
    let (own, daily) = (host.bitmap(&of_node("disk"), "own"), host.bitmap(&of_drive(), "daily"));
    let (own, daily) = (own.expect("loaded"), daily.expect("a bitmap"));
    assert_eq!(daily.kept_in().as_deref(), Some("top"));
    let merge = BitmapAction::Merge(vec![(&own).into()]).of(&daily);
    let back = Action::SetRoot { drive: "vda".into(), node: "disk".into() };
    let gone = Action::RemoveNode { node: "top".into() };
    transact(&host, vec![merge, back, gone]).expect("moved to the base");
    assert_eq!(daily.kept_in().as_deref(), Some("disk"));
    host.shutdown().expect("an end in order");
    assert_eq!(base.entry("daily").expect("stored").words[0], 0x1);
}

fn node(name: &str, driver: impl Node, child: ChildDecl) -> NodeDecl {
    NodeDecl { name: name.into(), driver: Arc::new(driver), children: vec![child] }
}

fn bare_node(name: &str) -> NodeDecl {
    let driver = Arc::new(MemoryNode::new(SIZE, 512).expect("a size"));
    NodeDecl { name: name.into(), driver, children: vec![] }
}

#[test]
fn bitmaps_go_with_their_node_and_come_with_it() {
    let image = Image::default().with("own", true, false, &[1]);
    let host = host_with_daily(&image).expect("a host");
    let daily = host.bitmap(&of_drive(), "daily").expect("a bitmap");
    write(&host, 5);
    let mut events = host.events();
    transact(&host, vec![Action::EjectMedium { drive: "vda".into() }]).expect("ejected");
    let mut told = std::iter::from_fn(|| events.try_next());
    let is_it = |event: &Event| matches!(event, Event::BitmapNotKept { .. });
    assert!(told.any(|notice| is_it(&notice.event)), "no image has room for it");
    assert_eq!(daily.kept_in(), None);
    transact(&host, vec![Action::RemoveNode { node: "disk".into() }]).expect("removed");
    // What the drive went on without is not trusted.
    assert_eq!(image.listed(), ["daily:ru", "own:r"]);
    assert_eq!(image.entry("own").expect("stored").words[0], 0x21);

    let other = Image::default().with("theirs", true, false, &[4]);
    let node = NodeDecl { name: "other".into(), driver: Arc::new(other.node()), children: vec![] };
    let insert = Action::InsertMedium { drive: "vda".into(), node: "other".into() };
    transact(&host, vec![Action::AddNode(node), insert]).expect("inserted");
    assert_eq!(daily.kept_in().as_deref(), Some("other"));
    assert_eq!(other.listed(), ["theirs:ru", "daily:ru"]);
    write(&host, 0);
    let theirs = host.bitmap(&of_node("other"), "theirs").expect("loaded");
    assert_eq!(dirty(&theirs), [0, 2]);
    assert_eq!(dirty(&daily), all());
    assert!(host.bitmap(&of_node("other"), "daily").is_err(), "it is the drive's");
    host.shutdown().expect("an end in order");
    assert_eq!(other.listed(), ["theirs:r", "daily:r"]);
}

/// It comes home to the image that it had, whose entry has stayed.
#[test]
fn a_bitmap_comes_home_to_the_same_image() {
    let image = Image::default();
    let host = host_with_daily(&image).expect("a host");
    let daily = host.bitmap(&of_drive(), "daily").expect("a bitmap");
    write(&host, 5);
    let first = image.entry("daily").and_then(|entry| entry.identity).expect("an identity");
    transact(&host, vec![Action::EjectMedium { drive: "vda".into() }]).expect("ejected");
    assert_eq!((daily.kept_in(), image.listed()), (None, vec!["daily:ru".to_owned()]));
    let insert = Action::InsertMedium { drive: "vda".into(), node: "disk".into() };
    transact(&host, vec![insert]).expect("inserted");
    assert_eq!(daily.kept_in().as_deref(), Some("disk"));
    assert!(host.bitmap(&of_node("disk"), "daily").is_err(), "it is the drive's");
    let now = image.entry("daily").and_then(|entry| entry.identity).expect("an identity");
    assert_eq!((now.uuid, now.generation > first.generation), (first.uuid, true));
    // Nobody has recorded what was changed without the drive.
    assert_eq!(dirty(&daily), all());
    host.shutdown().expect("an end in order");
    assert_eq!(image.listed(), ["daily:r"]);
    let host = host_with_daily(&image).expect("a host");
    let daily = host.bitmap(&of_drive(), "daily").expect("a bitmap");
    assert_eq!((daily.state(), dirty(&daily)), (BitmapState::Recording, all()));
    host.shutdown().expect("an end in order");
}
