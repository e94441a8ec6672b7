//! `read-only` of nodes whose drivers hold nothing open: the same steps for us and for qemu-storage-daemon.

use std::path::PathBuf;

use blockloom_tests::nbd::Client;
use blockloom_tests::pattern;
use blockloom_tests::qmp::Qmp;
use serde_json::{Value, json};

use super::Controlled;
use super::differential::{Peer, both};
use crate::{MIB, WHOLE_GRAPH};

const EPERM: u32 = 1;

/// Both ends of a comparison: us first.
struct Pair {
    clients: [Qmp; 2],
    sockets: [PathBuf; 2],
    /// The node of the filter, and what it stands on.
    chain: [&'static str; 2],
}

impl Pair {
    /// Runs a command on both: it succeeds on both, or on neither. What we say if it does not.
    fn step(&mut self, command: &str, arguments: &Value, is_good: bool) -> String {
        let answers = self.clients.each_mut().map(|client| client.ask(command, arguments.clone()));
        for answer in &answers {
            assert_eq!(answer.get("return").is_some(), is_good, "{command} {arguments}: {answer}");
        }
        self.compare();
        answers[0]["error"]["desc"].as_str().unwrap_or_default().to_owned()
    }

    fn reopen(&mut self, nodes: &[Value], is_good: bool) -> String {
        self.step("blockdev-reopen", &json!({ "options": nodes }), is_good)
    }

    /// What a node says of itself there, it says here, if what it stands on does not say it for it.
    fn compare(&mut self) {
        let chain = self.chain;
        let [ours, theirs] = self.clients.each_mut().map(|client| {
            let nodes = client.run("query-named-block-nodes", json!({ "flat": true }));
            let all = nodes.as_array().expect("a list");
            let is_read_only = |name: &str| {
                let node = all.iter().find(|node| node["node-name"] == name);
                node.is_some_and(|node| node["ro"] == true)
            };
            let is_there = all.iter().any(|node| node["node-name"] == chain[0]);
            (is_there, chain.map(is_read_only))
        });
        let (is_there, [filter, below]) = theirs;
        assert_eq!(ours, (is_there, [filter || (is_there && below), below]));
    }

    fn serve(&mut self) {
        for (client, socket) in self.clients.iter_mut().zip(&self.sockets) {
            let data = json!({ "path": socket.display().to_string() });
            client.run("nbd-server-start", json!({ "addr": { "type": "unix", "data": data } }));
        }
    }

    fn export(&mut self, of: &str, writable: bool, is_good: bool) -> String {
        let export = json!({ "type": "nbd", "id": "e", "node-name": of, "writable": writable });
        self.step("block-export-add", &export, is_good)
    }

    fn end_export(&mut self) {
        for client in &mut self.clients {
            client.run("block-export-del", json!({ "id": "e", "mode": "hard" }));
            let ended = client.event("BLOCK_EXPORT_DELETED");
            assert_eq!(ended["data"]["id"], "e");
        }
    }
}

fn pair() -> Option<(Pair, Controlled, Peer)> {
    let (host, peer) = both()?;
    let clients = [host.client(), Qmp::open_peer(&peer.socket)];
    let sockets = [host.scratch.path("a.nbd"), host.scratch.path("b.nbd")];
    let mut pair = Pair { clients, sockets, chain: ["f", "n0"] };
    pair.serve();
    Some((pair, host, peer))
}

fn null(read_only: bool) -> Value {
    json!({ "driver": "null-co", "node-name": "n0", "size": MIB, "read-zeroes": true,
        "read-only": read_only })
}

fn filter(driver: &str, read_only: bool) -> Value {
    let mut filter =
        json!({ "driver": driver, "node-name": "f", "file": "n0", "read-only": read_only });
    if driver == "throttle" {
        filter["throttle-group"] = "g".into();
    }
    filter
}

#[test]
fn a_node_alone() {
    let Some((mut pair, host, _peer)) = pair() else { return };
    for _ in 0..2 {
        pair.reopen(&[null(true)], true);
        pair.export("n0", true, false);
        pair.export("n0", false, true);
        // Whoever reads does not mind.
        pair.reopen(&[null(false)], true);
        pair.reopen(&[null(true)], true);
        pair.end_export();
        pair.step("block_resize", &json!({ "node-name": "n0", "size": 2 * MIB }), false);
        pair.reopen(&[null(false)], true);
        pair.export("n0", true, true);
        let desc = pair.reopen(&[null(true)], false);
        assert!(desc.contains("node `n0`: it is read-only, and export `e`"), "{desc}");
        pair.end_export();
    }
    // Bitmaps do not mind.
    pair.reopen(&[null(true)], true);
    pair.step("block-dirty-bitmap-add", &json!({ "node": "n0", "name": "b" }), true);
    host.finish();
}

#[test]
fn filters() {
    let Some((mut pair, host, _peer)) = pair() else { return };
    pair.clients[1].run("object-add", json!({ "qom-type": "throttle-group", "id": "g" }));
    for driver in ["raw", "throttle"] {
        let filter = |read_only| filter(driver, read_only);
        pair.reopen(&[null(true)], true);
        pair.step("blockdev-add", &filter(false), true);
        let desc = pair.export("f", true, false);
        assert!(desc.contains("node `n0`: it is read-only"), "{desc}");
        assert!(desc.contains("changes node `f`, which stands on it"), "{desc}");
        for read_only in [true, false, true] {
            pair.reopen(&[filter(read_only)], true);
        }
        // What it says of itself comes to count again.
        pair.reopen(&[null(false)], true);
        pair.export("f", true, false);
        pair.export("f", false, true);
        pair.reopen(&[filter(false)], true);
        pair.end_export();
        pair.export("f", true, true);
        let desc = pair.reopen(&[null(true)], false);
        assert!(desc.contains("node `n0`: it is read-only, and export `e`"), "{desc}");
        let desc = pair.reopen(&[filter(true)], false);
        assert!(desc.contains("node `f`: it is read-only, and export `e`"), "{desc}");
        pair.reopen(&[filter(true), null(true)], false);
        pair.end_export();
        pair.reopen(&[null(true), filter(true)], true);
        pair.export("f", true, false);
        pair.reopen(&[filter(false), null(false)], true);
        // It is of no consequence for what opens no file.
        let mut auto = filter(false);
        auto["auto-read-only"] = true.into();
        pair.reopen(&[auto], true);
        pair.export("f", true, true);
        pair.end_export();
        pair.step("blockdev-del", &json!({ "node-name": "f" }), true);
        // A description of it counts from the beginning.
        pair.step("blockdev-add", &filter(true), true);
        pair.export("f", true, false);
        pair.step("blockdev-del", &json!({ "node-name": "f" }), true);
        let child = json!({ "driver": "null-co", "size": MIB, "read-only": true });
        let over = json!({ "driver": "raw", "node-name": "over", "file": child });
        pair.step("blockdev-add", &over, true);
        pair.export("over", true, false);
        pair.step("blockdev-del", &json!({ "node-name": "over" }), true);
    }
    host.finish();
}

/// qemu-storage-daemon knows no other way for `copy-on-read` than that in which it was opened: "Block format
/// 'copy-on-read' used by node 'f' does not support reopening files". What it writes of its own accord, it writes
/// whoever may write through it; so neither lets its child be read-only.
#[test]
fn copy_on_read() {
    let Some((mut pair, host, _peer)) = pair() else { return };
    pair.reopen(&[null(true)], true);
    for read_only in [false, true] {
        let desc = pair.step("blockdev-add", &filter("copy-on-read", read_only), false);
        assert!(desc.contains("node `n0`: it is read-only, and node `f` (edge `file`)"), "{desc}");
    }
    pair.reopen(&[null(false)], true);
    pair.step("blockdev-add", &filter("copy-on-read", true), true);
    pair.export("f", true, false);
    pair.reopen(&[null(true)], false);
    pair.export("f", false, true);
    pair.end_export();
    let [ours, theirs] = &mut pair.clients;
    let rewrite = json!({ "options": [filter("copy-on-read", false)] });
    theirs.fail("blockdev-reopen", rewrite.clone());
    ours.run("blockdev-reopen", rewrite);
    let export = json!({ "type": "nbd", "id": "e", "node-name": "f", "writable": true });
    ours.run("block-export-add", export);
    let (_, desc) =
        ours.fail("blockdev-reopen", json!({ "options": [filter("copy-on-read", true)] }));
    assert!(desc.contains("node `f`: it is read-only, and export `e`"), "{desc}");
    host.finish();
}

#[test]
fn jobs() {
    let Some((mut pair, host, _peer)) = pair() else { return };
    let target = json!({ "driver": "null-co", "node-name": "t", "size": MIB, "read-only": true });
    pair.step("blockdev-add", &target, true);
    pair.step("blockdev-add", &json!({ "driver": "raw", "node-name": "r", "file": "t" }), true);
    let copy = |target| json!({ "job-id": "j", "device": "n0", "target": target, "sync": "full" });
    for (command, target) in
        [("blockdev-mirror", "t"), ("blockdev-backup", "t"), ("blockdev-backup", "r")]
    {
        let desc = pair.step(command, &copy(target), false);
        assert!(desc.contains("node `t`: it is read-only, and job `j`"), "{command}: {desc}");
    }
    // What is read may be read-only.
    pair.reopen(&[null(true)], true);
    let target = json!({ "driver": "null-co", "node-name": "w", "size": MIB });
    pair.step("blockdev-add", &target, true);
    pair.step("blockdev-backup", &copy("w"), true);
    for client in &mut pair.clients {
        let ended = client.event("BLOCK_JOB_COMPLETED");
        assert_eq!(ended["data"].get("error"), None, "{ended}");
    }
    host.finish();
}

const DISK: &str = "[node.disk]\ndriver = \"memory\"\nsize = \"1MiB\"\nread-only = true\n\
    [node.slow]\ndriver = \"plugin\"\nplugin = \"throttle\"\nchild.file = \"disk\"\nread-only = true\n";

fn named(name: &str, read_only: bool) -> Value {
    match name {
        "disk" => json!({ "driver": "memory", "node-name": "disk", "size": "1MiB",
            "read-only": read_only }),
        _ => json!({ "driver": "plugin", "plugin": "throttle", "node-name": "slow", "file": "disk",
            "read-only": read_only }),
    }
}

/// Clients are told, and nobody writes past it; all that shows nodes shows it.
#[test]
fn clients_and_drawings() {
    let host = Controlled::start(DISK, &[]);
    let mut client = host.client();
    let path = host.scratch.path("nbd.sock").display().to_string();
    client.run("nbd-server-start", json!({ "addr": { "type": "unix", "data": { "path": path } } }));
    let uri = format!("nbd+unix:///slow?socket={path}");
    let export = |writable| json!({ "type": "nbd", "id": "e", "node-name": "slow", "name": "slow", "writable": writable });
    let (_, desc) = client.fail("block-export-add", export(true));
    assert!(desc.contains("node `slow`: it is read-only, and export `e`"), "{desc}");
    assert!(desc.contains("reopen it with `read-only` false"), "{desc}");
    client.run("block-export-add", export(false));
    let mut nbd = Client::open(&uri);
    assert!(nbd.is_read_only());
    assert_eq!(nbd.write(0, 0, &pattern(1, 512)), EPERM);
    assert_eq!(nbd.read(0, 512), Ok(vec![0; 512]));
    // What is read-only is exported so, with no complaint.
    client.run("nbd-server-add", json!({ "device": "slow", "name": "again", "writable": true }));
    let again = Client::open(&uri.replace("/slow?", "/again?"));
    assert!(again.is_read_only());
    again.disconnect();
    client.run("nbd-server-remove", json!({ "name": "again", "mode": "hard" }));

    let shown = |client: &mut Qmp| {
        let graph = client.run("query-graph", json!({}));
        let named = client.run("query-named-block-nodes", json!({ "flat": true }));
        ["disk", "slow"].map(|name| {
            let of = |all: &Value, key: &str, flag: &str| {
                let mut all = all.as_array().expect("a list").iter();
                all.find(|node| node[key] == name).expect("a node")[flag].clone()
            };
            let drawn = of(&graph["nodes"], "name", "read-only");
            assert_eq!(drawn, of(&named, "node-name", "ro"), "{name}");
            drawn == true
        })
    };
    assert_eq!(shown(&mut client), [true, true]);
    client.run("blockdev-reopen", json!({ "options": [named("slow", false)] }));
    assert_eq!(shown(&mut client), [true, true]);

    // All of a transaction, or nothing.
    let both = json!({ "type": "blockdev-reopen",
        "data": { "options": [named("slow", true), named("disk", false)] } });
    let abort = json!({ "type": "abort", "data": {} });
    client.fail("transaction", json!({ "actions": [both, abort] }));
    assert_eq!(shown(&mut client), [true, true]);
    client.run("transaction", json!({ "actions": [both] }));
    assert_eq!(shown(&mut client), [false, true]);
    client.run("blockdev-reopen", json!({ "options": [named("slow", false)] }));
    assert_eq!(shown(&mut client), [false, false]);
    // Those who are there go on as they were told.
    assert_eq!(nbd.write(0, 0, &pattern(1, 512)), EPERM);
    nbd.disconnect();
    client.run("block-export-del", json!({ "id": "e", "mode": "hard" }));
    client.run("block-export-add", export(true));
    let mut nbd = Client::open(&uri);
    assert!(!nbd.is_read_only());
    assert_eq!(nbd.write(0, 0, &pattern(1, 512)), 0);
    let (_, desc) = client.fail("blockdev-reopen", json!({ "options": [named("disk", true)] }));
    assert!(desc.contains("node `disk`: it is read-only, and export `e`"), "{desc}");
    assert_eq!(nbd.read(0, 512), Ok(pattern(1, 512)));
    nbd.disconnect();
    host.finish();
}

/// What is between a client that writes and its bytes stays writable.
#[test]
fn filters_between() {
    let host = Controlled::start(WHOLE_GRAPH, &[]);
    let mut client = host.client();
    let uri = host.daemon.uri("vda").to_owned();
    let mut nbd = Client::open(&uri);
    assert_eq!(nbd.write(0, 0, &pattern(3, 4096)), 0);
    let throttle = |read_only: bool| json!({ "driver": "throttle", "node-name": "slow", "file": "top", "read-only": read_only });
    let options = |read_only| json!({ "options": [throttle(read_only)] });
    let (_, desc) = client.fail("blockdev-reopen", options(true));
    assert!(desc.contains("node `slow`: it is read-only, and "), "{desc}");
    let put = |read_only: bool| {
        json!({ "above": "filter", "filter":
            { "driver": "pass", "node-name": "over", "read-only": read_only } })
    };
    let (_, desc) = client.fail("blockdev-insert-filter", put(true));
    assert!(desc.contains("node `over`: it is read-only, and drive `vda`"), "{desc}");
    client.run("blockdev-insert-filter", put(false));
    assert_eq!(nbd.write(0, 0, &pattern(4, 4096)), 0);
    assert_eq!(nbd.read(0, 4096), Ok(pattern(4, 4096)));
    nbd.disconnect();
    host.finish();
}
