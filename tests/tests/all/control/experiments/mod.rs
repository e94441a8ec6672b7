//! What qemu-storage-daemon 10.0.2 did in experiments with bitmaps and jobs, named `E1` and so on, and what is
//! right: by commands, on real images. Each says the one and asserts the other.

mod backups;
mod commits;
mod edges;
mod kept;
mod others;
mod pivots;
mod points;
mod streams;

use std::collections::BTreeMap;

use blockloom_tests::Scratch;
use blockloom_tests::nbd::Client;
use blockloom_tests::qmp::Qmp;
use blockloom_tests::tools::{nbd_map, succeed};
use serde_json::{Value, json};

use super::Controlled;
use super::jobs::scene::{SIZE, make_images};
use crate::{KIB, MIB, scratch};

/// The drive `vda`, for guests.
const EXPORT: &str = "[export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
    writable = true\n";

/// A host where `vda` shows the image `top`, and what that stands on is found in the headers; the one next to it keeps
/// a bitmap `bp`.
fn host_of_headers(more: &str) -> Controlled {
    let images = scratch();
    make_images(&images);
    let path = |name: &str| images.image(name).display().to_string();
    succeed("qemu-img", ["bitmap", "--add", "-g", "64k", &path("mid.qcow2"), "bp"]);
    let text = format!(
        "[node.top]\ndriver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"{}\" }}\n\
         [drive.vda]\nroot = \"top\"\n{more}",
        path("top.qcow2")
    );
    Controlled::start_in(images, &text, &[])
}

/// Bytes that are dirty, by node or drive and bitmap: `top/b`.
fn dirty(client: &mut Qmp) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    let mut note = |of: &Value, bitmaps: &Value| {
        for bitmap in bitmaps.as_array().into_iter().flatten() {
            let name = bitmap["name"].as_str().expect("a name");
            let of = of.as_str().expect("a name");
            all.insert(format!("{of}/{name}"), bitmap["count"].as_u64().expect("a number"));
        }
    };
    let nodes = client.run("query-named-block-nodes", json!({"flat": true}));
    for node in nodes.as_array().expect("a list") {
        note(&node["node-name"], &node["dirty-bitmaps"]);
    }
    for drive in client.run("query-block", json!({})).as_array().expect("a list") {
        note(&drive["device"], &drive["dirty-bitmaps"]);
    }
    all
}

fn add_bitmaps(client: &mut Qmp, of: &[&str], name: &str) {
    for node in of {
        let bitmap = json!({"node": node, "name": name, "granularity": 64 * KIB});
        client.run("block-dirty-bitmap-add", bitmap);
    }
}

/// Starts a job `j`, and waits until it has ended well.
fn run_job(client: &mut Qmp, command: &str, arguments: Value) {
    let mut arguments = arguments;
    arguments["job-id"] = json!("j");
    client.run(command, arguments);
    let mut event = client.any_event();
    while event["event"] != "BLOCK_JOB_COMPLETED" {
        if event["event"] == "BLOCK_JOB_READY" {
            client.run("job-complete", json!({"id": "j"}));
        }
        event = client.any_event();
    }
    assert_eq!((&event["data"]["device"], &event["data"]["error"]), (&json!("j"), &Value::Null));
    while client.run("query-jobs", json!({})) != json!([]) {
        client.event("JOB_STATUS_CHANGE");
    }
}

/// The next event of a bitmap that has come to this.
fn bitmap_event(client: &mut Qmp, what: &str) -> Value {
    loop {
        let event = client.event("BLOCK_DIRTY_BITMAP_CHANGED");
        if event["data"]["what"] == what {
            return event["data"].clone();
        }
    }
}

/// What a client reads.
fn read_all(uri: &str) -> Vec<u8> {
    let mut client = Client::open(uri);
    let pieces = (0..SIZE / MIB).map(|at| client.read(at * MIB, MIB as u32).expect("a read"));
    let bytes = pieces.flatten().collect();
    client.disconnect();
    bytes
}

fn write(uri: &str, offset: u64, value: u8, len: u64) {
    let mut client = Client::open(uri);
    assert_eq!(client.write(0, offset, &vec![value; len as usize]), 0);
    client.disconnect();
}

/// The node that the drive shows.
fn root(client: &mut Qmp) -> String {
    let drives = client.run("query-drives", json!({}));
    let mut drives = drives.as_array().expect("a list").iter();
    let drive = drives.find(|drive| drive["id"] == "vda").expect("a drive");
    drive["node-name"].as_str().expect("a medium").to_owned()
}

/// Whether there is a node of this name.
fn has_node(client: &mut Qmp, name: &str) -> bool {
    let nodes = client.run("query-named-block-nodes", json!({"flat": true}));
    nodes.as_array().expect("a list").iter().any(|node| node["node-name"] == name)
}

/// How many images stand below a node.
fn depth(client: &mut Qmp, node: &str) -> u64 {
    let nodes = client.run("query-named-block-nodes", json!({}));
    let mut nodes = nodes.as_array().expect("a list").iter();
    let node = nodes.find(|it| it["node-name"] == node).expect("a node");
    node["backing_file_depth"].as_u64().expect("a number")
}

/// An image is in order, and shows these bytes, in the eyes of QEMU.
fn check_image(images: &Scratch, name: &str, expect: &[u8]) {
    let path = images.image(name).display().to_string();
    let raw = images.image_of("expect.raw", expect).display().to_string();
    succeed("qemu-img", ["check", "-q", "-f", "qcow2", &path]);
    let compared = succeed("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", &raw, &path]);
    assert!(compared.contains("identical"), "{name}: {compared}");
}

/// Bytes that an image has itself.
fn own_bytes(images: &Scratch, name: &str) -> u64 {
    let path = images.image(name).display().to_string();
    let map = succeed("qemu-img", ["map", "--output=json", "-f", "qcow2", &path]);
    let map: Value = serde_json::from_str(&map).expect("JSON");
    let own = map.as_array().expect("a list").iter().filter(|it| it["depth"] == 0);
    own.filter(|it| it["data"] == true).map(|it| it["length"].as_u64().expect("a length")).sum()
}

/// What an export says is dirty, as ranges.
fn dirty_ranges(uri: &str, bitmap: &str) -> Vec<(u64, u64)> {
    let map = nbd_map(uri, &format!("qemu:dirty-bitmap:{bitmap}")).into_iter();
    map.filter(|(.., kind)| kind & 1 != 0).map(|(offset, len, _)| (offset, len)).collect()
}
