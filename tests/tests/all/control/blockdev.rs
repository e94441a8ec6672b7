//! Nodes by command: they are what a file would have made; transactions of them are all or nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use blockloom_tests::nbd::Client;
use blockloom_tests::pattern;
use blockloom_tests::qmp::Qmp;
use blockloom_tests::tools;
use serde_json::{Value, json};

use super::{Controlled, Over};
use crate::{KIB, MIB, WHOLE_GRAPH};

const NOTHING: &str = "[node.n]\ndriver = \"null\"\nsize = 512\n";

/// What `query-graph` says, in an order of its own, without what differs from host to host.
fn graph(host: &Controlled, client: &mut Qmp) -> Value {
    let text = client.run("query-graph", json!({})).to_string();
    let text = text.replace(&host.scratch.path("").display().to_string(), "DIR/");
    let mut graph: Value = serde_json::from_str(&text).expect("JSON");
    for part in ["drives", "exports", "nodes", "bitmaps", "edges"] {
        let all = graph[part].as_array_mut().expect("a list");
        all.iter_mut().for_each(|it| {
            it.as_object_mut().expect("an object").remove("uuid");
        });
        all.sort_by_key(Value::to_string);
    }
    graph
}

#[test]
fn what_commands_make_is_what_a_file_makes() {
    let first = Controlled::start(WHOLE_GRAPH, &[]);
    let second = Controlled::start(NOTHING, &[]);
    let mut client = second.client();
    client.run("blockdev-del", json!({"node-name": "n"}));
    let image = |name: &str, backing: Value| {
        let file = json!({"driver": "file", "filename": format!("{name}.qcow2")});
        json!({"driver": "qcow2", "node-name": name, "file": file, "backing": backing,
            "create": {"size": 8 * MIB}})
    };
    client.run("blockdev-add", image("base", Value::Null));
    // Nobody is going to write it.
    let read_only = json!({"driver": "qcow2", "node-name": "base", "file": "#base.file",
        "read-only": true});
    client.run("blockdev-reopen", json!({"options": [read_only]}));
    client.run("blockdev-add", image("top", json!("base")));
    client.run(
        "blockdev-add",
        json!({"driver": "throttle", "node-name": "slow", "file": "top",
            "config": {"iops": 1_000_000}}),
    );
    client.run(
        "blockdev-add",
        json!({"driver": "plugin", "plugin": "copy-on-read", "node-name": "filter", "file": "slow",
            "grant": {"file": ["read", "write-unchanged"]}}),
    );
    client.run("drive-add", json!({"id": "vda", "node-name": "filter", "writable": true}));
    client
        .run("block-dirty-bitmap-add", json!({"node": "vda", "name": "daily", "persistent": true}));
    client.run(
        "block-export-add",
        json!({"type": "nbd", "id": "vda", "node-name": "vda", "writable": true,
            "listen": "unix:nbd.sock", "bitmaps": ["daily"]}),
    );
    let expect = graph(&first, &mut first.client());
    assert_eq!(graph(&second, &mut client), expect);
    first.finish();
    second.finish();
}

fn uri(host: &Controlled, name: &str) -> String {
    format!("nbd+unix:///{name}?socket={}", host.scratch.path("nbd.sock").display())
}

/// Begins to listen; gives the export of `disk` as `d`.
fn serve_disk(host: &Controlled, client: &mut Qmp) -> String {
    let path = host.scratch.path("nbd.sock").display().to_string();
    client.run("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": path}}}));
    client.run(
        "block-export-add",
        json!({"type": "nbd", "id": "e", "node-name": "disk", "name": "d", "writable": true}),
    );
    uri(host, "d")
}

const DISK: &str = "[node.disk]\ndriver = \"memory\"\nsize = \"1MiB\"\n";

/// As libvirt takes a snapshot: an image is made, opened without a backing, and put on top. Bitmaps of the drive
/// are as they were; what is written goes to the overlay.
#[test]
fn snapshots() {
    if !tools::have(&["qemu-img"]) {
        return;
    }
    let host = Controlled::start(DISK, &[]);
    let mut client = host.client();
    let uri = serve_disk(&host, &mut client);
    client.run("drive-add", json!({"id": "vda"}));
    let path = host.scratch.path("top.qcow2").display().to_string();
    tools::succeed("qemu-img", ["create", "-q", "-f", "qcow2", &path, "1M"]);
    let mut nbd = Client::open(&uri);
    assert_eq!(nbd.write(0, 0, &pattern(1, 8192)), 0);
    let overlay = json!({"driver": "qcow2", "node-name": "top", "backing": null,
        "file": {"driver": "file", "filename": path}});
    client.run("blockdev-add", overlay.clone());
    let snapshot = json!({"node": "disk", "overlay": "top"});
    let abort = json!({"type": "abort", "data": {}});
    let act = json!({"type": "blockdev-snapshot", "data": snapshot});
    let before = graph(&host, &mut client);
    client.fail("transaction", json!({"actions": [act, abort]}));
    assert_eq!(graph(&host, &mut client), before);
    client.run("blockdev-snapshot", snapshot);
    assert_eq!(nbd.read(0, 8192), Ok(pattern(1, 8192)));
    assert_eq!(nbd.write(0, 4096, &pattern(2, 512)), 0);
    assert_eq!(nbd.read(0, 4096), Ok(pattern(1, 8192)[..4096].to_vec()));
    assert_eq!(nbd.read(4096, 512), Ok(pattern(2, 512)));
    assert_eq!(nbd.read(4608, 512), Ok(pattern(1, 8192)[4608..5120].to_vec()));
    let exports = client.run("query-block-exports", json!({}));
    assert_eq!(exports[0]["node-name"], "top");
    let (_, desc) = client.fail("blockdev-snapshot", json!({"node": "top", "overlay": "disk"}));
    assert_eq!(desc, "The overlay does not support backing images");
    nbd.disconnect();
    host.finish();
}

/// What is to become the top of somebody's disk is seen by nobody else; and if it holds something, that is what is
/// asked about.
#[test]
fn overlays_that_somebody_uses_or_that_hold_something() {
    if !tools::have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let host = Controlled::start(DISK, &[]);
    let mut client = host.client();
    serve_disk(&host, &mut client);
    let bitmap = json!({"node": "disk", "name": "b", "granularity": 65536});
    client.run("block-dirty-bitmap-add", bitmap);
    let path = host.scratch.path("top.qcow2").display().to_string();
    tools::succeed("qemu-img", ["create", "-q", "-f", "qcow2", &path, "1M"]);
    tools::succeed("qemu-io", ["-f", "qcow2", "-c", "write -P 7 0 64k", &path]);
    let overlay = json!({"driver": "qcow2", "node-name": "top", "backing": null,
        "file": {"driver": "file", "filename": path}});
    client.run("blockdev-add", overlay);
    let snapshot = json!({"node": "disk", "overlay": "top"});
    let users = [
        ("drive-add", json!({"id": "vda", "node-name": "top"}), "drive-del", "drive `vda`"),
        (
            "block-export-add",
            json!({"type": "nbd", "id": "x", "node-name": "top"}),
            "block-export-del",
            "export `x`",
        ),
    ];
    for (add, arguments, remove, user) in users {
        client.run(add, arguments.clone());
        let (_, desc) = client.fail("blockdev-snapshot", snapshot.clone());
        assert_eq!(desc, format!("The overlay is already in use by {user}"));
        client.run(remove, json!({"id": arguments["id"]}));
        if remove == "block-export-del" {
            client.event("BLOCK_EXPORT_DELETED");
        }
    }
    client.run("blockdev-add", json!({"driver": "null-co", "node-name": "sink", "size": MIB}));
    let job = json!({"job-id": "j", "device": "top", "target": "sink", "sync": "none",
        "auto-finalize": false});
    client.run("blockdev-mirror", job);
    let (_, desc) = client.fail("blockdev-snapshot", snapshot.clone());
    assert_eq!(desc, "The overlay is already in use by job `j`");
    client.run("job-cancel", json!({"id": "j"}));
    client.event("BLOCK_JOB_CANCELLED");
    let over = json!({"driver": "pass", "node-name": "over", "file": "top"});
    client.run("blockdev-add", over);
    let (_, desc) = client.fail("blockdev-snapshot", snapshot.clone());
    assert_eq!(desc, "The overlay is already in use by node `over`");
    client.run("blockdev-del", json!({"node-name": "over"}));

    let (_, desc) = client.fail("blockdev-snapshot", snapshot);
    assert!(desc.contains("nothing proves that they show the same"), "{desc}");
    let marked = json!({"node": "disk", "overlay": "top", "on-unproven": "mark-whole"});
    client.run("blockdev-snapshot", marked);
    let exports = client.run("query-block-exports", json!({}));
    assert_eq!(exports[0]["node-name"], "top");
    host.finish();
}

/// Limits change while somebody waits for them: he goes on.
#[test]
fn throttles_change_while_they_are_used() {
    let host = Controlled::start(DISK, &[]);
    let mut client = host.client();
    let uri = serve_disk(&host, &mut client);
    let throttle = |group: &str, config: Option<serde_json::Value>| {
        let mut node = json!({"driver": "throttle", "node-name": "slow", "throttle-group": group});
        node["file"] = "disk".into();
        node.as_object_mut().expect("an object").extend(config.map(|it| ("config".into(), it)));
        node
    };
    let reopen = |node: serde_json::Value| json!({"options": [node]});
    let insert = |node: &serde_json::Value| {
        let mut filter = node.clone();
        filter.as_object_mut().expect("an object").remove("file");
        json!({"above": "disk", "filter": filter})
    };
    // One byte a second: what waits would wait for hours.
    let slow = json!({"bps": 1});
    client.run("blockdev-insert-filter", insert(&throttle("g", Some(slow.clone()))));
    let changes = [throttle("g", Some(json!({"bps": "1GiB"}))), throttle("other", Some(json!({})))];
    for change in changes {
        let mut nbd = Client::open(&uri);
        assert_eq!(nbd.read(0, 4096), Ok(vec![0; 4096]));
        let waits = std::thread::spawn(move || {
            let read = nbd.read(0, 4096);
            nbd.disconnect();
            read
        });
        let act = json!({"type": "blockdev-reopen", "data": reopen(change.clone())});
        let abort = json!({"type": "abort", "data": {}});
        client.fail("transaction", json!({"actions": [act, abort]}));
        client.run("blockdev-reopen", reopen(change));
        assert_eq!(waits.join().expect("a reader"), Ok(vec![0; 4096]));
        client.run("blockdev-reopen", reopen(throttle("g", Some(slow.clone()))));
    }
    let (_, desc) = client.fail("blockdev-reopen", reopen(throttle("g", Some(json!({"bpz": 1})))));
    assert!(desc.contains("bpz: unknown key"), "{desc}");
    host.finish();
}

/// A filter, an export, a bitmap and a node at once, while a client writes; aborted, nothing is there.
#[test]
fn transactions_of_nodes_and_exports() {
    let host = Controlled::start(DISK, &[]);
    let mut client = host.client();
    let uri = serve_disk(&host, &mut client);
    let over = AtomicBool::new(false);
    thread::scope(|threads| {
        threads.spawn(|| {
            let mut nbd = Client::open(&uri);
            let mut round = 0;
            while !over.load(Ordering::Relaxed) {
                let (at, bytes) = (round % 16 * 64 * KIB, pattern(round, 4096));
                assert_eq!(nbd.write(0, at, &bytes), 0);
                assert_eq!(nbd.read(at, 4096), Ok(bytes));
                round += 1;
            }
            nbd.disconnect();
        });
        let _over = Over(&over);
        for round in 0..10 {
            let name = format!("filter{round}");
            let filter = json!({"driver": "pass", "node-name": name});
            let sink = json!({"driver": "null-co", "node-name": "sink", "size": 4096});
            let actions = vec![
                json!({"type": "blockdev-add", "data": sink}),
                json!({"type": "blockdev-insert-filter", "data": {"filter": filter, "above": "disk"}}),
                json!({"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": "b"}}),
                json!({"type": "block-export-add", "data": {"type": "nbd", "id": "e2",
                    "node-name": name, "name": "second", "bitmaps": ["b"]}}),
                json!({"type": "drive-add", "data": {"id": "vdb", "node-name": "sink"}}),
                json!({"type": "block-export-add", "data": {"type": "nbd", "id": "e3",
                    "node-name": "vdb", "name": "third"}}),
            ];
            let before = graph(&host, &mut client);
            for wrong in [
                json!({"type": "abort", "data": {}}),
                json!({"type": "block-dirty-bitmap-clear", "data": {"node": "disk", "name": "none"}}),
                json!({"type": "block-export-add", "data": {"type": "nbd", "id": "e4",
                    "node-name": name, "name": "second"}}),
            ] {
                let all: Vec<Value> = actions.iter().cloned().chain([wrong]).collect();
                client.fail("transaction", json!({"actions": all}));
                let mut after = graph(&host, &mut client);
                after["bitmaps"] = before["bitmaps"].clone();
                assert_eq!(after, before);
            }
            client.run("transaction", json!({"actions": actions}));
            let mut second = Client::open(&self::uri(&host, "second"));
            assert_eq!(second.read(0, 512).map(|bytes| bytes.len()), Ok(512));
            let end = |mode: &str, id: &str| json!({"type": "block-export-del", "data": {"id": id, "mode": mode}});
            let undo = |mode: &str| {
                vec![
                    end(mode, "e2"),
                    end("safe", "e3"),
                    json!({"type": "drive-del", "data": {"id": "vdb"}}),
                    json!({"type": "blockdev-del", "data": {"node-name": "sink"}}),
                    json!({"type": "blockdev-remove-filter", "data": {"node-name": name}}),
                    json!({"type": "block-dirty-bitmap-remove", "data": {"node": "disk", "name": "b"}}),
                ]
            };
            let (_, desc) = client.fail("transaction", json!({"actions": undo("safe")}));
            assert_eq!(desc, "export 'e2' still in use");
            let mut aborted = undo("hard");
            aborted.push(json!({"type": "abort", "data": {}}));
            client.fail("transaction", json!({"actions": aborted}));
            assert_eq!(second.read(0, 512).map(|bytes| bytes.len()), Ok(512), "it goes on");
            // What the bitmap shows, an export keeps until then.
            let mut all = undo("hard");
            let bitmap = all.pop().expect("the last one");
            client.run("transaction", json!({"actions": all}));
            client.run("transaction", json!({"actions": [bitmap]}));
            assert_eq!(second.stream().read_to_close(), b"");
            let mut after = graph(&host, &mut client);
            after["bitmaps"] = before["bitmaps"].clone();
            assert_eq!(after, before);
        }
    });
    host.finish();
}

#[test]
fn filters_go_where_they_are_told() {
    let text = format!("{DISK}[drive.vda]\nroot = \"disk\"\nwritable = true\n");
    let host = Controlled::start(&text, &[]);
    let mut client = host.client();
    let insert = |name: &str, place: (&str, &str)| {
        let mut arguments = json!({"filter": {"driver": "pass", "node-name": name}});
        arguments[place.0] = place.1.into();
        arguments
    };
    let edges = |client: &mut Qmp| {
        let graph = client.run("query-graph", json!({}));
        let all = graph["edges"].as_array().expect("a list").iter();
        let mut all: Vec<String> =
            all.map(|it| format!("{} {}", it["parent"], it["child"]).replace('"', "")).collect();
        all.sort();
        all
    };
    client.run("blockdev-add", json!({"driver": "pass", "node-name": "p", "file": "disk"}));
    client.run("blockdev-insert-filter", insert("a", ("above", "vda")));
    client.run("blockdev-insert-filter", insert("b", ("above", "disk")));
    client.run("blockdev-insert-filter", insert("c", ("below", "a")));
    assert_eq!(edges(&mut client), ["a c", "b disk", "c b", "p b", "vda a"]);
    let (_, desc) = client.fail("blockdev-insert-filter", insert("a", ("above", "disk")));
    assert_eq!(desc, "Duplicate nodes with node-name='a'");
    let (_, desc) = client.fail("blockdev-insert-filter", insert("d", ("below", "none")));
    assert_eq!(desc, "Failed to find node with node-name='none'");
    let (_, desc) = client.fail("blockdev-insert-filter", insert("d", ("edge", "file")));
    assert!(desc.starts_with("either 'above'"), "{desc}");
    for filter in ["a", "b", "c"] {
        client.run("blockdev-remove-filter", json!({"node-name": filter}));
    }
    assert_eq!(edges(&mut client), ["p disk", "vda disk"]);
    // Two in one transaction, the second over the first, and a node that is put under both.
    let actions = json!([
        {"type": "blockdev-insert-filter", "data": insert("a", ("above", "disk"))},
        {"type": "blockdev-insert-filter", "data": insert("b", ("above", "a"))},
    ]);
    client.run("transaction", json!({"actions": actions}));
    assert_eq!(edges(&mut client), ["a disk", "b a", "p b", "vda b"]);
    let reopen = |child: &str| json!({"driver": "pass", "node-name": "b", "file": child});
    client.run("blockdev-reopen", json!({"options": [reopen("disk")]}));
    assert_eq!(edges(&mut client), ["a disk", "b disk", "p b", "vda b"]);
    let actions = json!([
        {"type": "blockdev-reopen", "data": {"options": [reopen("a")]}},
        {"type": "blockdev-remove-filter", "data": {"node-name": "a"}},
    ]);
    client.run("transaction", json!({"actions": actions}));
    assert_eq!(edges(&mut client), ["b disk", "p b", "vda b"]);
    host.finish();
}

/// A node's bitmaps stay in its way, go with it, or are merged into those of another one.
#[test]
fn a_node_goes_with_its_bitmaps() {
    let host = Controlled::start(DISK, &[]);
    let mut client = host.client();
    let node = json!({"driver": "null-co", "node-name": "n", "size": MIB});
    let add = |client: &mut Qmp| {
        client.run("blockdev-add", node.clone());
        client.run("block-dirty-bitmap-add", json!({"node": "n", "name": "b"}));
    };
    add(&mut client);
    let (_, desc) = client.fail("blockdev-del", json!({"node-name": "n"}));
    assert!(desc.contains("has the bitmaps `b`: remove them first"), "{desc}");
    client.run("blockdev-del", json!({"node-name": "n", "bitmaps": "remove"}));
    add(&mut client);
    let (_, desc) = client.fail("blockdev-del", json!({"node-name": "n", "bitmaps": "merge"}));
    assert_eq!(desc, "Parameter 'bitmaps-to' is missing");
    let merge = json!({"node-name": "n", "bitmaps": "merge", "bitmaps-to": "disk"});
    client.run("blockdev-del", merge);
    let nodes = client.run("query-named-block-nodes", json!({}));
    assert_eq!(nodes.as_array().map(Vec::len), Some(1));
    assert_eq!(nodes[0]["dirty-bitmaps"][0]["name"], "b");
    host.finish();
}

/// Nodes within nodes are bounded; what is refused is nowhere.
#[test]
fn nesting_is_bounded() {
    let host = Controlled::start(DISK, &[]);
    let mut client = host.client();
    for (depth, is_good) in [(20, true), (60, true), (70, false), (240, false)] {
        let nested =
            (0..depth).fold(json!("disk"), |file, _| json!({"driver": "raw", "file": file}));
        let mut top = nested;
        top["node-name"] = "top".into();
        if is_good {
            client.run("blockdev-add", top);
            client.run("blockdev-del", json!({"node-name": "top"}));
        } else {
            let (_, desc) = client.fail("blockdev-add", top);
            assert_eq!(desc, "arguments are nested more than 64 deep: give nodes names");
        }
        let nodes = client.run("query-named-block-nodes", json!({"flat": true}));
        assert_eq!(nodes.as_array().map(Vec::len), Some(1));
    }
    host.finish();
}

/// QSD: a node of the command line can be written unless it says `read-only`.
#[test]
fn a_node_of_the_file_that_nobody_uses_yet_can_be_written() {
    let scratch = crate::scratch();
    let image = |name: &str, more: &str| {
        format!(
            "[node.{name}]\ndriver = \"qcow2\"\ncreate = {{ size = \"1MiB\" }}\nbacking = false\n{more}\
             file = {{ driver = \"file\", path = \"{name}.qcow2\" }}\n"
        )
    };
    let text = crate::memory_disk(crate::MIB)
        + &["mirrored", "kept", "served", "overlay"].map(|name| image(name, "")).concat()
        + "[node.plain]\ndriver = \"file\"\npath = \"plain.raw\"\ncreate = \"1MiB\"\n\
           [node.through]\ndriver = \"pass\"\nchild.file = \"plain\"\n\
           [drive.empty]\nwritable = true\n"
        // Said to be writable, it is open for that beside who only reads.
        + &image("shown", "read-only = false\n")
        + "[export.reader]\ntype = \"nbd\"\nnode = \"shown\"\nlisten = \"unix:nbd.sock\"\n";
    let host = Controlled::start_in(scratch, &text, &[]);
    let mut client = host.client();
    let path = host.scratch.path("added.sock").display().to_string();
    client.run("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": path}}}));
    let job =
        |target: &str| json!({"job-id": target, "device": "vda", "target": target, "sync": "full"});
    client.run("blockdev-mirror", job("mirrored"));
    client.event("BLOCK_JOB_READY");
    client.run("job-cancel", json!({"id": "mirrored"}));
    client.run("blockdev-backup", job("kept"));
    client.event("BLOCK_JOB_COMPLETED");
    for node in ["served", "shown", "through"] {
        let export = json!({"type": "nbd", "id": node, "node-name": node, "writable": true});
        client.run("block-export-add", export);
        let mut guest = Client::open(&format!("nbd+unix:///{node}?socket={path}"));
        assert_eq!(guest.write(0, 0, &[7; 4096]), 0, "{node}");
        client.run("block_resize", json!({"node-name": node, "size": 2 * crate::MIB}));
    }
    let bitmap = json!({"node": "kept", "name": "daily", "persistent": true});
    client.run("block-dirty-bitmap-add", bitmap);
    client.run("drive-insert-medium", json!({"id": "empty", "node-name": "kept"}));
    client.run("blockdev-snapshot", json!({"node": "empty", "overlay": "overlay"}));
    host.finish();
}
