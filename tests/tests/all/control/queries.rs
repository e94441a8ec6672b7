//! What there is, as clients are told; drives and media by command.

use blockloom_tests::nbd::Client;
use blockloom_tests::qmp::Qmp;
use blockloom_tests::tools;
use serde_json::json;

use super::Controlled;
use crate::{KIB, MIB};

const TWO_DISKS: &str = "[node.disk]\ndriver = \"memory\"\nsize = \"1MiB\"\n\
    [node.other]\ndriver = \"memory\"\nsize = \"1MiB\"\n\
    [node.filter]\ndriver = \"pass\"\nchild.file = \"disk\"\n\
    [drive.vda]\nroot = \"filter\"\nwritable = true\n\
    [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\nwritable = true\n";

/// Not while somebody has been told something else, or would not share that.
#[test]
fn drives_become_read_only_and_writable() {
    let host = Controlled::start(TWO_DISKS, &[]);
    let mut client = host.client();
    let set = |writable: bool| json!({"id": "vda", "writable": writable});
    let (_, desc) = client.fail("drive-set-writable", set(false));
    assert_eq!(desc, "export `vda` of drive `vda` is writable: remove it first");
    client.run("drive-set-writable", set(true));
    let missing = client.fail("drive-set-writable", json!({"id": "none", "writable": true}));
    assert_eq!(missing, ("DeviceNotFound".into(), "Device 'none' not found".into()));
    let drive_writable =
        |client: &mut Qmp| client.run("query-drives", json!({}))[0]["writable"].clone();
    // The export goes, and the drive is read-only from the same instant on.
    let actions = json!([
        {"type": "block-export-del", "data": {"id": "vda"}},
        {"type": "drive-set-writable", "data": set(false)},
    ]);
    client.run("transaction", json!({"actions": actions}));
    assert_eq!(drive_writable(&mut client), json!(false));
    let export = json!({"type": "nbd", "id": "e", "node-name": "vda", "writable": true,
        "listen": "unix:nbd.sock"});
    let (_, desc) = client.fail("block-export-add", export.clone());
    assert!(desc.contains("drive `vda` is read-only"), "{desc}");
    client.run("drive-add", json!({"id": "reader", "node-name": "disk"}));
    let (_, desc) = client.fail("drive-set-writable", set(true));
    assert!(desc.contains("drive `reader` (edge `root`)"), "{desc}");
    assert_eq!(drive_writable(&mut client), json!(false));
    let actions = json!([
        {"type": "drive-del", "data": {"id": "reader"}},
        {"type": "drive-set-writable", "data": set(true)},
        {"type": "block-export-add", "data": export},
    ]);
    client.run("transaction", json!({"actions": actions}));
    assert_eq!(drive_writable(&mut client), json!(true));
    host.finish();
}

#[test]
fn drives_come_and_go_and_change_their_medium() {
    let host = Controlled::start(TWO_DISKS, &[]);
    let mut client = host.client();
    client.run("drive-add", json!({"id": "cdrom"}));
    let taken = client.fail("drive-add", json!({"id": "disk"}));
    assert_eq!(taken.1, "there is a node 'disk' already");
    let taken = client.fail("drive-add", json!({"id": "vda"}));
    assert_eq!(taken.1, "there is a drive 'vda' already");
    let (_, desc) = client.fail("drive-add", json!({"id": "#export.x"}));
    assert!(desc.starts_with("Parameter 'id' expects an identifier"), "{desc}");
    let missing = client.fail("drive-del", json!({"id": "none"}));
    assert_eq!(missing, ("DeviceNotFound".into(), "Device 'none' not found".into()));
    client.run("drive-insert-medium", json!({"id": "cdrom", "node-name": "other"}));
    let drives = client.run("query-drives", json!({}));
    let cdrom = json!({"id": "cdrom", "node-name": "other", "writable": false, "size": MIB,
        "exports": [], "dirty-bitmaps": []});
    assert_eq!(drives[1], cdrom);
    assert_eq!(drives[0]["exports"], json!(["vda"]));
    let block = client.run("query-block", json!({}));
    assert_eq!(block[1]["inserted"]["node-name"], "other");
    client.run("drive-eject-medium", json!({"id": "cdrom"}));
    assert_eq!(client.run("query-block", json!({}))[1].get("inserted"), None);
    let (_, desc) = client.fail("block_resize", json!({"device": "cdrom", "size": 512}));
    assert_eq!(desc, "Device 'cdrom' has no medium");
    client.run("drive-del", json!({"id": "cdrom"}));
    let (_, desc) = client.fail("drive-del", json!({"id": "vda"}));
    assert!(desc.contains("in use by exports `vda`"), "{desc}");

    // In one transaction, names are what the actions before make them.
    let actions = json!([
        {"type": "drive-add", "data": {"id": "vdb", "node-name": "other", "writable": true}},
        {"type": "block-dirty-bitmap-add", "data": {"node": "vdb", "name": "b"}},
        {"type": "blockdev-remove-filter", "data": {"node-name": "filter"}},
    ]);
    client.run("transaction", json!({"actions": actions}));
    let nodes = client.run("query-named-block-nodes", json!({"flat": true}));
    let names: Vec<&str> = nodes
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|it| it["node-name"].as_str())
        .collect();
    assert!(!names.contains(&"filter"), "{names:?}");
    let drives = client.run("query-drives", json!({}));
    assert_eq!(drives[1]["dirty-bitmaps"][0]["name"], "b");
    assert_eq!(drives[1]["dirty-bitmaps"][0]["scope"], "drive");
    host.finish();
}

/// Counters of edges, by drive and by node; a resize is seen by who comes after it.
#[test]
fn counters_and_size() {
    let host = Controlled::start(TWO_DISKS, &[]);
    let mut client = host.client();
    let mut nbd = Client::open(host.daemon.uri("vda"));
    assert_eq!(nbd.write(0, 0, &[1; 4096]), 0);
    assert_eq!(nbd.write(0, 8192, &[1; 512]), 0);
    let stats = client.run("query-blockstats", json!({}));
    let check = |stats: &serde_json::Value| {
        assert_eq!((&stats["wr_operations"], &stats["wr_bytes"]), (&json!(2), &json!(4608)));
    };
    assert_eq!(stats[0]["device"], "vda");
    check(&stats[0]["stats"]);
    assert_eq!(stats[0]["parent"]["node-name"], "disk");
    check(&stats[0]["parent"]["stats"]);
    let nodes = client.run("query-blockstats", json!({"query-nodes": true}));
    let disk = nodes.as_array().expect("a list").iter().find(|it| it["node-name"] == "disk");
    check(&disk.expect("the node")["stats"]);

    client
        .run("block-dirty-bitmap-add", json!({"node": "disk", "name": "b", "granularity": 65536}));
    client.run("block_resize", json!({"device": "vda", "size": 2 * MIB}));
    let block = client.run("query-block", json!({}));
    assert_eq!(block[0]["inserted"]["image"]["virtual-size"], 2 * MIB);
    let event = client.event("BLOCK_DIRTY_BITMAP_CHANGED");
    assert_eq!(event["data"]["what"], "added");
    let event = client.event("BLOCK_DIRTY_BITMAP_CHANGED");
    let data = json!({"node": "disk", "scope": "node", "name": "b", "what": "resized",
        "offset": MIB, "length": MIB});
    assert_eq!(event["data"], data);
    assert!(event["timestamp"]["seconds"].as_u64() > Some(1_700_000_000));
    let shown = client.run("block-dirty-bitmap-query", json!({"node": "disk", "name": "b"}));
    assert_eq!(shown["ranges"], json!([{"offset": MIB, "length": MIB}]));
    let (_, desc) = client.fail("block_resize", json!({"device": "vda", "size": -1}));
    assert_eq!(desc, "Parameter 'size' expects a >0 size");
    host.finish();
}

/// A persistent bitmap is in the image when the host has ended, and only then if the transaction was one.
#[test]
fn persistent_bitmaps() {
    if !tools::have(&["qemu-img"]) {
        return;
    }
    let graph = "[node.image]\ndriver = \"qcow2\"\n\
        file = { driver = \"file\", path = \"disk.qcow2\" }\n\
        create = { size = \"1MiB\" }\n\
        [drive.vda]\nroot = \"image\"\nwritable = true\n\
        [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\nwritable = true\n";
    let host = Controlled::start(graph, &[]);
    let mut client = host.client();
    let add = |name: &str| json!({"node": "vda", "name": name, "persistent": true});
    client.run("block-dirty-bitmap-add", add("kept"));
    let mut nbd = Client::open(host.daemon.uri("vda"));
    assert_eq!(nbd.write(0, 64 * KIB, b"x"), 0);
    let actions = |end: serde_json::Value| json!({"actions": [{"type": "block-dirty-bitmap-add", "data": add("second")}, end]});
    client.fail("transaction", actions(json!({"type": "abort", "data": {}})));
    let clear = |name: &str| json!({"type": "block-dirty-bitmap-clear", "data": {"node": "vda", "name": name}});
    client.fail("transaction", actions(clear("none")));
    let drives = client.run("query-drives", json!({}));
    let names: Vec<_> = drives[0]["dirty-bitmaps"].as_array().expect("a list").iter().collect();
    assert_eq!(names.len(), 1, "{drives}");
    assert_eq!((&names[0]["persistent"], &names[0]["kept-in"]), (&json!(true), &json!("image")));
    let nodes = client.run("query-named-block-nodes", json!({}));
    let path = nodes[0]["file"].as_str().expect("a path");
    assert!(path.ends_with("disk.qcow2"), "{nodes}");
    client.run(
        "transaction",
        actions(json!({"type": "block-dirty-bitmap-add",
        "data": {"node": "image", "name": "passing"}})),
    );
    let image = host.scratch.path("disk.qcow2");
    host.daemon.finish();
    let info = tools::succeed("qemu-img", ["info", "--output=json", &image.display().to_string()]);
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().expect("bitmaps").clone();
    let mut names: Vec<&str> = bitmaps.iter().filter_map(|it| it["name"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["kept", "second"]);
}

/// What a checkpoint has frozen is shown apart, and ends either way.
#[test]
fn checkpoints() {
    let host = Controlled::memory();
    let mut client = host.client();
    let mut nbd = Client::open(host.daemon.uri("vda"));
    let bitmap = json!({"node": "vda", "name": "b"});
    client.run("block-dirty-bitmap-add", json!({"node": "vda", "name": "b", "granularity": 4096}));
    let starts = |shown: &serde_json::Value| -> Vec<u64> {
        let ranges = shown["ranges"].as_array().expect("a list").iter();
        ranges.filter_map(|range| range["offset"].as_u64()).collect()
    };
    for (completed, rest) in [(false, vec![0, 8192]), (true, vec![8192])] {
        client.run("block-dirty-bitmap-clear", bitmap.clone());
        assert_eq!(nbd.write(0, 0, b"x"), 0);
        client.run("checkpoint", json!({"bitmaps": [bitmap]}));
        assert_eq!(nbd.write(0, 8192, b"x"), 0);
        let mut query = bitmap.clone();
        query["frozen"] = true.into();
        assert_eq!(starts(&client.run("block-dirty-bitmap-query", query)), [0]);
        let info = &client.run("query-block", json!({}))[0]["dirty-bitmaps"][0].clone();
        assert_eq!((&info["state"], &info["busy"]), (&json!("frozen"), &json!(true)));
        client.run("checkpoint-end", json!({"bitmaps": [bitmap], "completed": completed}));
        assert_eq!(starts(&client.run("block-dirty-bitmap-query", bitmap.clone())), rest);
    }
    let (_, desc) = client.fail("checkpoint", json!({"bitmaps": []}));
    assert_eq!(desc, "Parameter 'bitmaps' names none");
    host.finish();
}
