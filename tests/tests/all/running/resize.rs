//! Sizes that change under exports.

use blockloom::export::nbd::RemovalMode;
use blockloom::graph::BitmapScope;
use blockloom::host::{NewExport, ShownBitmap};
use blockloom::{DirtyBitmap, Host, block_on};
use blockloom_tests::nbd::{Client, Terms, command, errno};
use blockloom_tests::tools::{have, qemu_io, succeed};
use serde_json::{Value, json};

use super::{add, empty, export};
use crate::embed_bitmaps::decl;
use crate::{MIB, scratch};

const DIRTY: &str = "qemu:dirty-bitmap:daily";
const ALLOCATION: &str = "base:allocation";

fn open(uri: &str) -> Client {
    let terms = Terms { contexts: &[ALLOCATION, DIRTY], ..Terms::default() };
    Client::with(uri, &terms).expect("open")
}

fn dirty(bitmap: &DirtyBitmap) -> Vec<(u64, u64)> {
    bitmap.ranges(0..u64::MAX).map(|it| (it.start / MIB, it.end / MIB)).collect()
}

/// Grows and shrinks what is below `top` (a node that shows `size` MiB), with clients that stay.
fn check(host: &Host, top: &str, bitmaps_of: &[&str]) {
    let scratch = scratch();
    block_on(host.add_drive("vda", Some(top), true)).expect("a drive");
    let drive = BitmapScope::Drive("vda".into());
    let nodes = bitmaps_of.iter().map(|node| BitmapScope::Node((*node).into()));
    let scopes: Vec<BitmapScope> = std::iter::once(drive).chain(nodes).collect();
    let add_bitmap =
        |scope: &BitmapScope| block_on(host.add_bitmap(decl(scope, "daily", 65_536))).expect("one");
    let bitmaps: Vec<DirtyBitmap> = scopes.iter().map(add_bitmap).collect();
    let shown = vec![ShownBitmap::Named("daily".into())];
    let vda = NewExport { bitmaps: shown, writable: true, ..NewExport::of_drive("vda", "vda") };
    let uri = export(host, &scratch, vda);
    let mut old = open(&uri);
    assert_eq!((old.size_bytes(), old.write(0, MIB, &[7; 4096])), (4 * MIB, 0));

    block_on(host.resize("vda", 8 * MIB)).expect("it grows");
    assert_eq!(old.write(0, 4 * MIB, b"x"), errno::NOSPC, "the client keeps its size");
    let mut new = open(&uri);
    assert_eq!(new.size_bytes(), 8 * MIB);
    assert_eq!(new.read(4 * MIB, 4096), Ok(vec![0; 4096]), "what was added is zero");
    assert_eq!(new.write(0, 7 * MIB, &[9; 4096]), 0);
    for bitmap in &bitmaps {
        let [(1, 2), (4, 8)] = dirty_mib(bitmap)[..] else {
            panic!("{top}: {:?} of {}", dirty(bitmap), bitmap.scope());
        };
    }
    assert_eq!(old.read(MIB, 4096), Ok(vec![7; 4096]));

    block_on(host.resize("vda", 2 * MIB)).expect("it shrinks");
    let newest = open(&uri);
    assert_eq!(newest.size_bytes(), 2 * MIB);
    for client in [&mut old, &mut new] {
        assert_eq!(client.read(MIB, 4096), Ok(vec![7; 4096]), "what is there is there");
        assert_eq!(client.read(2 * MIB - 512, 1024), Err(errno::IO));
        assert_eq!(client.write(0, 3 * MIB, b"x"), errno::NOSPC);
        let zeroes = client.plain(command::WRITE_ZEROES, 0, 3 * MIB, 4096);
        assert_eq!(zeroes, errno::NOSPC);
        // Neither context fails as a whole: what was cut off is dirty, and cannot be read.
        let mut at = 0;
        while at < client.size_bytes() {
            let len = u32::try_from(client.size_bytes() - at).expect("small");
            let extents = client.block_status(ALLOCATION, 0, at, len).expect("an answer");
            for (len, flags) in extents {
                assert!(at + u64::from(len) <= 2 * MIB || (at >= 2 * MIB && flags == 1), "{flags}");
                at += u64::from(len);
            }
        }
        let all = client.flagged(DIRTY);
        let last = *all.last().expect("dirty ranges");
        assert_eq!(last.0 + last.1, client.size_bytes(), "what was cut off is dirty: {all:?}");
        assert!(last.0 <= 2 * MIB, "{all:?}");
    }
    block_on(host.resize("vda", 4 * MIB)).expect("it grows again");
    assert_eq!(old.read(3 * MIB, 4096), Ok(vec![0; 4096]), "what was cut off is gone");
    block_on(host.remove_export("vda", RemovalMode::Hard)).expect("an end");
}

/// Dirty ranges in whole MiB, as granules of a cluster may be more than was written.
fn dirty_mib(bitmap: &DirtyBitmap) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for range in bitmap.ranges(0..u64::MAX) {
        let (start, end) = (range.start / MIB, range.end.div_ceil(MIB));
        match ranges.last_mut() {
            Some(last) if last.1 >= start => last.1 = last.1.max(end),
            _ => ranges.push((start, end)),
        }
    }
    ranges
}

fn qcow2(path: &str, name: &str, backing: Value) -> Value {
    json!({
        "driver": "qcow2",
        "node-name": name,
        "file": { "driver": "file", "filename": path },
        "backing": backing,
        "create": { "size": "4MiB" },
    })
}

#[test]
fn images_files_and_memory_change_their_size() {
    let scratch = scratch();
    let image = scratch.image("image.qcow2");
    let file = scratch.sparse_image("disk.img", 4 * MIB);
    let host = empty();
    add(&host, qcow2(image.to_str().expect("text"), "image", Value::Null));
    check(&host, "image", &["image"]);
    let options = json!({ "driver": "file", "node-name": "file", "filename": file });
    block_on(host.remove_export("vda", RemovalMode::Hard)).expect_err("it has ended");
    clear(&host);
    add(&host, json!({ "driver": "raw", "node-name": "raw", "file": options }));
    check(&host, "raw", &["raw", "file"]);
    host.shutdown().expect("an end in order");
    if have(&["qemu-img"]) {
        succeed("qemu-img", ["check", image.to_str().expect("text")]);
    }
    assert_eq!(std::fs::metadata(file).expect("the file").len(), 4 * MIB);
}

fn clear(host: &Host) {
    for (scope, bitmap) in host.graph().bitmaps() {
        let bitmap = host.bitmap(scope, bitmap.name().as_str()).expect("a bitmap");
        block_on(bitmap.remove()).expect("nobody uses it");
    }
    block_on(host.remove_drive("vda")).expect("nobody uses it");
}

#[test]
fn filters_are_no_matter() {
    let scratch = scratch();
    let host = empty();
    add(&host, qcow2(scratch.image("image.qcow2").to_str().expect("text"), "image", Value::Null));
    add(&host, json!({ "driver": "pass", "node-name": "low", "file": "image" }));
    let throttle = json!({
        "driver": "plugin",
        "plugin": "throttle",
        "node-name": "slow",
        "file": "low",
        "config": { "iops": 1_000_000 },
    });
    add(&host, throttle);
    add(&host, json!({ "driver": "plugin", "plugin": "pass", "node-name": "top", "file": "slow" }));
    check(&host, "top", &["top", "image"]);
    host.shutdown().expect("an end in order");
}

/// The base of a chain grows and shrinks below an overlay, whose own size stays.
#[test]
fn what_an_overlay_shows_of_its_base_is_dirty() {
    let host = empty();
    let scratch = scratch();
    add(&host, json!({ "driver": "memory", "node-name": "base", "size": "4MiB" }));
    let top = scratch.image("top.qcow2");
    let mut options = qcow2(top.to_str().expect("text"), "top", json!("base"));
    options["create"]["size"] = json!("8MiB");
    add(&host, options);
    add(&host, json!({ "driver": "pass", "node-name": "filter", "file": "top" }));
    block_on(host.add_drive("vda", Some("filter"), true)).expect("a drive");
    let scopes = [BitmapScope::Drive("vda".into()), BitmapScope::Node("base".into())];
    let bitmaps = scopes
        .each_ref()
        .map(|scope| block_on(host.add_bitmap(decl(scope, "daily", 65_536))).expect("a bitmap"));
    let shown = vec![ShownBitmap::Named("daily".into())];
    let vda = NewExport { bitmaps: shown, writable: true, ..NewExport::of_drive("vda", "vda") };
    let uri = export(&host, &scratch, vda);
    let mut client = open(&uri);
    block_on(host.resize("base", 6 * MIB)).expect("the base grows");
    for bitmap in &bitmaps {
        assert_eq!(dirty(bitmap), [(4, 6)], "{}", bitmap.scope());
    }
    assert_eq!((client.size_bytes(), client.read(5 * MIB, 512)), (8 * MIB, Ok(vec![0; 512])));
    block_on(host.resize("top", 4 * MIB)).expect("the overlay shrinks");
    assert_eq!(client.read(5 * MIB, 512), Err(errno::IO));
    block_on(host.resize("vda", 16 * MIB)).expect("the overlay grows");
    assert_eq!(client.read(5 * MIB, 512), Ok(vec![0; 512]));
    if have(&["qemu-io"]) {
        qemu_io(&uri, &["read -P 0 4M 12M", "write -P 5 15M 1M", "read -P 5 15M 1M"]);
    }
    let error = block_on(host.resize("#top.file", MIB)).expect_err("a container").to_string();
    assert!(error.contains("resize that node instead"), "{error}");
    host.shutdown().expect("an end in order");
}
