//! Images in memory that outlive their hosts, and what becomes of their bitmaps.

mod failed;
mod image;
mod moved;

use std::sync::Arc;

use image::{Entry, Image};

use super::Keep;
use crate::bitmap::{BitmapName, BitmapState, Granularity};
use crate::error::{ErrorKind, Result};
use crate::filter::PassNode;
use crate::graph::{
    Action, BitmapAction, BitmapChange, BitmapScope, ChildDecl, Event, NodeDecl, Transaction, Which,
};
use crate::host::{DirtyBitmap, Host, HostBuilder, block_on};
use crate::node::{MemoryNode, Node};

const SIZE: u64 = 1 << 20;

/// Bytes of a granule.
const GRANULE: u64 = 4096;

const BITS: u32 = 12;

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
    let gone = Event::BitmapChanged {
        scope: Some(of_node("disk")),
        name: "own".into(),
        change: BitmapChange::Removed,
    };
    assert!(std::iter::from_fn(|| events.try_next()).any(|notice| notice.event == gone));
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
