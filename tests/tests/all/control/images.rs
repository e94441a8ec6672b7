//! What is said of images and files: as qemu-storage-daemon says it.

use std::path::Path;
use std::process::Command;

use blockloom_tests::nbd::Client;
use blockloom_tests::nbd::command::TRIM;
use blockloom_tests::qmp::Qmp;
use blockloom_tests::{Scratch, tools};
use serde_json::{Value, json};

use super::Controlled;
use super::differential::Peer;
use crate::{KIB, file_disk, scratch};

/// A chain, with a bitmap that records and one that does not; images with all that can be told; a file that ends
/// within a sector.
fn make_images(dir: &Path) {
    let path = |name: &str| dir.join(name).display().to_string();
    let make = |name: &str, options: &[&str]| {
        let path = path(name);
        let last = [path.as_str(), "4M"];
        let all = [&["create", "-q", "-f", "qcow2"][..], options, &last].concat();
        tools::succeed("qemu-img", all);
    };
    let add = |image: &str, options: &[&str], name: &str| {
        let path = path(image);
        let last = [path.as_str(), name];
        tools::succeed("qemu-img", [&["bitmap", "--add"][..], options, &last].concat());
    };
    make("base.qcow2", &[]);
    add("base.qcow2", &[], "records");
    add("base.qcow2", &["--disable", "-g", "4096"], "rests");
    make("mid.qcow2", &["-u", "-b", "base.qcow2", "-F", "qcow2"]);
    add("mid.qcow2", &[], "top");
    make("alone.qcow2", &["-u", "-b", "base.qcow2", "-F", "qcow2"]);
    let features = "lazy_refcounts=on,extended_l2=on,cluster_size=16k,refcount_bits=8";
    make("more.qcow2", &["-o", features]);
    make("zstd.qcow2", &["-o", "compression_type=zstd"]);
    make("v2.qcow2", &["-o", "compat=0.10"]);
    std::fs::write(dir.join("odd.raw"), vec![7; 1_000_000]).expect("a file");
}

fn nodes(dir: &Path) -> [Value; 9] {
    let file = |name: &str| json!({"driver": "file", "filename": dir.join(name)});
    let image = |name: &str, more: Value| {
        let node_name = name.split('.').next();
        let file = file(name);
        let mut options = json!({"driver": "qcow2", "node-name": node_name, "file": file});
        let more = more.as_object().expect("members").clone();
        options.as_object_mut().expect("an object").extend(more);
        options
    };
    let direct = json!({"direct": true});
    let mut direct_file = file("mid.qcow2");
    direct_file["cache"] = direct.clone();
    let mut odd = file("odd.raw");
    odd["node-name"] = "odd".into();
    [
        image("mid.qcow2", json!({"cache": direct, "file": direct_file})),
        json!({"driver": "copy-on-read", "node-name": "filter", "file": "mid"}),
        image("alone.qcow2", json!({"backing": null})),
        image("more.qcow2", json!({})),
        image("zstd.qcow2", json!({"read-only": true})),
        image("v2.qcow2", json!({})),
        odd,
        json!({"driver": "raw", "node-name": "shown", "file": "odd"}),
        json!({"driver": "null-co", "node-name": "nothing", "size": 1000, "read-zeroes": true}),
    ]
}

/// The host and qemu-storage-daemon, each with images of its own and all of these nodes.
struct Both {
    host: Controlled,
    /// Ours, then theirs.
    clients: [Qmp; 2],
    _peer: Peer,
    _images: Scratch,
}

impl Both {
    fn start() -> Option<Self> {
        if !tools::have(&["qemu-storage-daemon", "qemu-img"]) {
            return None;
        }
        let (ours, theirs) = (scratch(), scratch());
        let dirs = [&ours, &theirs].map(|scratch| {
            let place = scratch.image("x");
            place.parent().expect("a directory").to_owned()
        });
        let host = Controlled::start_in(ours, "[host]\nworkers = 1\n", &[]);
        let command = Command::new("qemu-storage-daemon");
        let peer = Peer::start(command, theirs.path("peer.sock"));
        let mut clients = [host.client(), Qmp::open_peer(&peer.socket)];
        for (client, dir) in clients.iter_mut().zip(&dirs) {
            make_images(dir);
            for node in nodes(dir) {
                client.run("blockdev-add", node);
            }
        }
        Some(Self { host, clients, _peer: peer, _images: theirs })
    }

    /// What both answer.
    fn run(&mut self, command: &str, arguments: &Value) -> [Value; 2] {
        self.clients.each_mut().map(|client| client.run(command, arguments.clone()))
    }
}

/// The last part of a name of a file: they stand in different directories.
fn last_part(name: &mut Value) {
    if let Some(text) = name.as_str() {
        *name = text.rsplit('/').next().into();
    }
}

/// What both are to say of an image alike.
fn comparable(image: &mut Value) {
    let members = image.as_object_mut().expect("an object");
    // They name nodes without a file in other words; and have other bytes to keep in an image.
    members.remove("filename");
    let size = members.get_mut("actual-size").expect("the size of what is stored");
    assert!(size.is_u64());
    *size = "there".into();
    members.entry("full-backing-filename").and_modify(last_part);
    if members["format"] == "null-co" {
        members.insert("format".into(), "null".into());
    }
    if let Some(backing) = members.get_mut("backing-image") {
        comparable(backing);
    }
}

fn named<'a>(all: &'a Value, name: &str) -> &'a Value {
    let found = all.as_array().expect("a list").iter().find(|it| it["node-name"] == name);
    found.unwrap_or_else(|| panic!("no `{name}` in {all}"))
}

const NAMES: [&str; 9] =
    ["mid", "filter", "alone", "more", "zstd", "v2", "odd", "shown", "nothing"];

#[test]
fn what_is_said_of_images_is_qemus() {
    let Some(mut both) = Both::start() else { return };
    for flat in [false, true] {
        let all = both.run("query-named-block-nodes", &json!({"flat": flat}));
        for name in NAMES {
            let [ours, theirs] = all.each_ref().map(|all| {
                let mut node = named(all, name).clone();
                comparable(&mut node["image"]);
                last_part(&mut node["backing_file"]);
                if name == "filter" {
                    // It tells how its file is open; QEMU, what was said of the filter itself.
                    node["cache"]["direct"].take();
                }
                let keys = ["ro", "backing_file", "backing_file_depth", "cache", "image"];
                let bitmaps = node["dirty-bitmaps"].as_array().into_iter().flatten();
                let bitmaps: Vec<Value> = bitmaps.map(bitmap).collect();
                (keys.map(|key| node[key].clone()), bitmaps)
            });
            assert_eq!(ours, theirs, "{name}, flat: {flat}");
        }
    }
    both.host.finish();
}

/// What both say of a bitmap.
fn bitmap(bitmap: &Value) -> Value {
    let keys = ["name", "count", "granularity", "recording", "busy", "persistent"];
    json!(keys.map(|key| bitmap[key].clone()))
}

/// The bitmaps of a read-only image are said to record, as their image says, though they stand still.
#[test]
fn bitmaps_that_wait_for_their_image() {
    let Some(mut both) = Both::start() else { return };
    let [ours, theirs] = both.run("query-named-block-nodes", &json!({"flat": true})).map(|all| {
        let below = all.as_array().expect("a list").iter().find(|it| {
            let file = it["file"].as_str().unwrap_or_default();
            it["drv"] == "qcow2" && file.ends_with("base.qcow2")
        });
        below.expect("the backing")["dirty-bitmaps"].as_array().expect("its bitmaps").clone()
    });
    let sorted = |all: &[Value]| {
        let mut all: Vec<Value> = all.iter().map(bitmap).collect();
        all.sort_by_key(|it| it[0].to_string());
        all
    };
    assert_eq!(sorted(&ours), sorted(&theirs));
    let of = |name: &str| ours.iter().find(|it| it["name"] == name).expect("the bitmap");
    assert_eq!(
        (&of("records")["recording"], &of("rests")["recording"]),
        (&true.into(), &false.into())
    );
    assert_eq!(
        (&of("records")["state"], &of("rests")["state"]),
        (&json!("disabled"), &json!("disabled"))
    );
    both.host.finish();
}

/// A node with all that it is kept in, each with what its driver counts.
#[test]
fn counters_of_nodes_are_those_of_qemu() {
    fn shape(stats: &Value) -> Value {
        let driver = stats["driver-specific"]["driver"].clone();
        let below = |key: &str| stats.get(key).map(shape);
        let keys = stats["driver-specific"].as_object().into_iter().flat_map(|it| it.keys());
        let mut keys: Vec<&String> = keys.collect();
        keys.sort();
        json!([driver, keys, below("parent"), below("backing")])
    }
    let Some(mut both) = Both::start() else { return };
    let all = both.run("query-blockstats", &json!({"query-nodes": true}));
    for name in NAMES {
        let [ours, theirs] = all.each_ref().map(|all| shape(named(all, name)));
        assert_eq!(ours, theirs, "{name}");
    }
    both.host.finish();
}

/// A file counts the discards that it was asked for, and says what it takes on the disk.
#[test]
fn discards_and_size_on_the_disk() {
    use std::os::unix::fs::MetadataExt;
    let scratch = scratch();
    let path = scratch.image_of("disk.img", &[7; 256 << 10]);
    let host = Controlled::start_in(scratch, &file_disk(&path, true), &[]);
    let mut client = host.client();
    let mut nbd = Client::open(host.daemon.uri("vda"));
    assert_eq!(nbd.plain(TRIM, 0, 64 * KIB, 128 * 1024), 0);
    let stats = client.run("query-blockstats", json!({"query-nodes": true}));
    let expect = json!({"driver": "file", "discard-nb-ok": 1, "discard-nb-failed": 0,
        "discard-bytes-ok": 128 * KIB});
    assert_eq!(named(&stats, "disk")["driver-specific"], expect);
    let drives = client.run("query-blockstats", json!({}));
    assert_eq!(drives[0]["driver-specific"], expect);
    let nodes = client.run("query-named-block-nodes", json!({}));
    let blocks = std::fs::metadata(&path).expect("the file").blocks();
    assert_eq!(named(&nodes, "disk")["image"]["actual-size"], blocks * 512);
    host.finish();
}
