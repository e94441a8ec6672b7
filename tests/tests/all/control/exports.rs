//! The NBD server and exports by command.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use blockloom_tests::nbd::{Client, Terms};
use blockloom_tests::tools;
use serde_json::{Value, json};

use super::Controlled;
use crate::{KIB, MIB, memory_disk};

/// More than anything here takes.
const LONG: Duration = Duration::from_secs(30);

#[test]
fn exports_come_and_go() {
    let host = Controlled::start(&memory_disk(MIB), &[]);
    let (mut client, mut other) = (host.client(), host.client());
    let socket = |name: &str| host.scratch.path(name).display().to_string();
    let start = |name: &str, most: u32| json!({"addr": {"type": "unix", "data": {"path": socket(name)}}, "max-connections": most});
    client.run("nbd-server-start", start("a.sock", 1));
    let add = |id: &str, of: &str| json!({"type": "nbd", "id": id, "node-name": of, "name": id});
    client.run("block-dirty-bitmap-add", json!({"node": "vda", "name": "daily"}));
    let mut drive = add("e", "vda");
    (drive["bitmaps"], drive["writable"]) = (json!(["daily"]), json!(true));
    client.run("block-export-add", drive);
    client.run("block-export-add", add("f", "disk"));
    let shown = client.run("query-block-exports", json!({}));
    let listen = format!("unix:{}", socket("a.sock"));
    let e = json!({"id": "e", "type": "nbd", "node-name": "disk", "shutting-down": false,
        "drive": "vda", "name": "e", "listen": listen, "writable": true, "bitmaps": ["daily"],
        "clients": 0});
    assert_eq!((&shown[0]["id"], &shown[1]), (&json!("f"), &e));
    assert_eq!(shown[0].get("drive"), None);
    let uri = |name: &str| format!("nbd+unix:///{name}?socket={}", socket("a.sock"));
    let mut nbd = Client::open(&uri("e"));
    assert_eq!(nbd.write(0, 0, b"x"), 0);
    let (_, desc) = client.fail("block-export-del", json!({"id": "e"}));
    assert_eq!(desc, "export 'e' still in use");
    let (_, desc) =
        client.fail("block-dirty-bitmap-remove", json!({"node": "vda", "name": "daily"}));
    assert!(desc.contains("in use by export `e`"), "{desc}");
    client.run("block-export-del", json!({"id": "e", "mode": "hard"}));
    assert_eq!(nbd.stream().read_to_close(), b"");
    assert_eq!(other.event("BLOCK_EXPORT_DELETED")["data"], json!({"id": "e"}));
    client.run("block-dirty-bitmap-remove", json!({"node": "vda", "name": "daily"}));
    client.run("nbd-server-stop", json!({}));
    assert_eq!(other.event("BLOCK_EXPORT_DELETED")["data"], json!({"id": "f"}));
    assert!(!host.scratch.path("a.sock").exists());
    // Those of the file stay, and the server can be elsewhere.
    let left = client.run("query-block-exports", json!({}));
    let ids: Vec<&Value> = left.as_array().expect("a list").iter().map(|it| &it["id"]).collect();
    assert_eq!(ids, ["vda"]);
    client.run("nbd-server-start", start("b.sock", 0));
    client.run("block-export-add", add("f", "disk"));
    let (_, desc) = client.fail("blockdev-del", json!({"node-name": "disk"}));
    assert!(desc.contains("in use by"), "{desc}");
    client.run("nbd-server-stop", json!({}));
    host.finish();
}

/// As with qemu-storage-daemon, it is not even accepted until there is room for it.
#[test]
fn a_client_too_many_waits_for_its_turn() {
    let host = Controlled::start(&memory_disk(MIB), &[]);
    let mut client = host.client();
    let socket = host.scratch.path("few.sock");
    let addr = json!({"type": "unix", "data": {"path": socket}});
    client.run("nbd-server-start", json!({"addr": addr, "max-connections": 1}));
    let add = json!({"type": "nbd", "id": "e", "node-name": "disk", "name": "e"});
    client.run("block-export-add", add);
    let first = Client::open(&format!("nbd+unix:///e?socket={}", socket.display()));
    let connect = || UnixStream::connect(&socket).expect("a place among those who wait");
    let greeting = |stream: &mut UnixStream, time: Duration| {
        stream.set_read_timeout(Some(time)).expect("a time");
        let mut greeting = [0; 8];
        stream.read_exact(&mut greeting).map(|()| greeting).map_err(|error| error.kind())
    };
    let mut second = connect();
    let nothing = greeting(&mut second, Duration::from_millis(200));
    assert_eq!(nothing, Err(ErrorKind::WouldBlock));
    drop(first);
    assert_eq!(greeting(&mut second, LONG), Ok(*b"NBDMAGIC"));
    let (mut third, mut fourth) = (connect(), connect());
    drop(second);
    assert_eq!(greeting(&mut third, LONG), Ok(*b"NBDMAGIC"));
    // Nobody is left to wait for.
    client.run("nbd-server-stop", json!({}));
    let end = greeting(&mut fourth, LONG).expect_err("the server has gone");
    assert!(matches!(end, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{end:?}");
    host.finish();
}

/// The drive that an export of a node has for itself is told by the export's id.
#[test]
fn exports_of_nodes_are_told_by_their_ids() {
    let host = Controlled::start(&memory_disk(MIB), &[]);
    let mut client = host.client();
    let socket = host.scratch.path("e.sock").display().to_string();
    client.run("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": socket}}}));
    client.run("block-export-add", json!({"type": "nbd", "id": "e", "node-name": "disk"}));
    let drives = client.run("query-drives", json!({}));
    let of = |key: &str, value: &str| {
        let mut drives = drives.as_array().expect("a list").iter();
        drives.find(|drive| drive[key] == value).expect("a drive")
    };
    assert_eq!(of("export", "e")["node-name"], "disk");
    assert_eq!(of("id", "vda").get("export"), None);
    let mut other = host.client();
    client.run("block-dirty-bitmap-add", json!({"node": "disk", "name": "b"}));
    let paused = other.event("BLOCK_DRIVES_PAUSED");
    let who = (&paused["data"]["drives"], &paused["data"]["exports"]);
    assert_eq!(who, (&json!(["vda"]), &json!(["e"])));
    host.finish();
}

/// By the commands that were for NBD alone, answered as by qemu-storage-daemon 10.0.2.
#[test]
fn exports_by_the_former_commands() {
    let host = Controlled::memory();
    let mut client = host.client();
    let path = host.scratch.sparse_image("ro.img", MIB).display().to_string();
    let read_only = json!({"driver": "file", "node-name": "ro", "filename": path,
        "read-only": true});
    client.run("blockdev-add", read_only);
    let (_, desc) = client.fail("nbd-server-add", json!({"device": "disk"}));
    assert_eq!(desc, "NBD server not running");
    let socket = host.scratch.path("a.sock").display().to_string();
    let addr = json!({"type": "unix", "data": {"path": socket}});
    client.run("nbd-server-start", json!({"addr": addr}));
    client.run("block-dirty-bitmap-add", json!({"node": "vda", "name": "daily"}));
    client.run("nbd-server-add", json!({"device": "disk", "name": "x", "description": "hi"}));
    client.run("nbd-server-add", json!({"device": "ro", "writable": true}));
    let mut fail = |arguments: Value, expect: &str| {
        let (class, desc) = client.fail("nbd-server-add", arguments);
        assert_eq!((class.as_str(), desc.as_str()), ("GenericError", expect));
    };
    fail(json!({"device": "disk", "name": "x"}), "Block export id 'x' is already in use");
    let none = "Cannot find device='zz' nor node-name='zz'";
    fail(json!({"device": "zz", "name": "y"}), none);
    let bitmap = json!({"device": "vda", "name": "y", "bitmap": "none"});
    fail(bitmap, "Bitmap 'none' is not found");
    fail(json!({"device": "disk", "name": "x y"}), "Invalid block export id");
    client.run("nbd-server-add", json!({"device": "vda", "name": "y", "bitmap": "daily"}));
    let exports = client.run("query-block-exports", json!({}));
    let of = |at: usize| {
        let it = &exports[at];
        ["id", "name", "node-name", "writable", "bitmaps"].map(|key| it[key].clone())
    };
    assert_eq!(of(0), [json!("y"), json!("y"), json!("disk"), json!(false), json!(["daily"])]);
    assert_eq!(of(1), [json!("ro"), json!("ro"), json!("ro"), json!(false), json!([])]);
    assert_eq!(of(2), [json!("x"), json!("x"), json!("disk"), json!(false), json!([])]);
    let (_, desc) = client.fail("nbd-server-remove", json!({"name": "zz"}));
    assert_eq!(desc, "Export 'zz' is not found");
    let nbd = Client::open(&format!("nbd+unix:///x?socket={socket}"));
    let (_, desc) = client.fail("nbd-server-remove", json!({"name": "x", "mode": "safe"}));
    assert_eq!(desc, "export 'x' still in use");
    client.run("nbd-server-remove", json!({"name": "x", "mode": "hard"}));
    assert_eq!(client.event("BLOCK_EXPORT_DELETED")["data"], json!({"id": "x"}));
    drop(nbd);
    client.run("nbd-server-remove", json!({"name": "y"}));
    let schema = client.run("query-qmp-schema", json!({}));
    let is_deprecated = |name: &str| {
        let found = schema.as_array().expect("a list").iter().find(|it| it["name"] == name);
        found.expect("a command")["features"] == json!(["deprecated"])
    };
    assert!(is_deprecated("nbd-server-add") && is_deprecated("nbd-server-remove"));
    assert!(!is_deprecated("block-export-add"));
    client.run("nbd-server-stop", json!({}));
    host.finish();
}

#[test]
fn what_is_not_supported_is_said() {
    let host = Controlled::memory();
    let mut client = host.client();
    let mut check = |key: &str, value: Value, expect: &str| {
        let mut export = json!({"type": "nbd", "id": "e", "node-name": "disk", "name": "e",
            "listen": "unix:e.sock"});
        export[key] = value;
        let (_, desc) = client.fail("block-export-add", export);
        assert!(desc.contains(expect), "{desc}");
    };
    check("writethrough", json!(true), "'writethrough' is not supported");
    check("allocation-depth", json!(true), "'allocation-depth' is not supported");
    check("name", json!("x".repeat(5000)), "too long");
    check("description", json!("x".repeat(5000)), "too long");
    check("listen", json!("pigeon:post"), "Parameter 'listen'");
    check("bitmaps", json!([{"node": "vda", "name": "b"}]), "Dirty bitmap 'b' not found");
    client.run("block-dirty-bitmap-add", json!({"node": "vda", "name": "b"}));
    let frozen = json!({"type": "nbd", "id": "e", "node-name": "vda", "listen": "unix:e.sock",
        "bitmaps": ["b"], "frozen": true});
    client.run("checkpoint", json!({"bitmaps": [{"node": "vda", "name": "b"}]}));
    client.run("block-export-add", frozen);
    client.run("block-export-del", json!({"id": "e"}));
    host.finish();
}

/// A node's bitmap is left behind when its export goes on to an overlay: a client that reads it sees all dirty, and
/// so does one that comes later; an event says so. QEMU goes on to show what is written there as clean (E4).
#[test]
fn a_bitmap_that_an_export_leaves_reads_dirty() {
    const CONTEXT: &str = "qemu:dirty-bitmap:b";
    if !tools::have(&["qemu-img"]) {
        return;
    }
    let host = Controlled::start("[node.disk]\ndriver = \"memory\"\nsize = \"1MiB\"\n", &[]);
    let mut client = host.client();
    client.run("block-dirty-bitmap-add", json!({"node": "disk", "name": "b"}));
    client.run(
        "block-export-add",
        json!({"type": "nbd", "id": "e", "node-name": "disk", "name": "e", "writable": true,
            "listen": "unix:e.sock", "bitmaps": ["b"]}),
    );
    let uri = format!("nbd+unix:///e?socket={}", host.scratch.path("e.sock").display());
    let terms = Terms { contexts: &[CONTEXT], ..Terms::default() };
    let open = || Client::with(&uri, &terms).expect("the export");
    let mut nbd = open();
    assert_eq!(nbd.write(0, 0, b"x"), 0);
    assert_eq!(nbd.flagged(CONTEXT), [(0, 64 * KIB)]);
    let path = host.scratch.path("top.qcow2").display().to_string();
    tools::succeed("qemu-img", ["create", "-q", "-f", "qcow2", &path, "1M"]);
    let overlay = json!({"driver": "qcow2", "node-name": "top", "backing": null,
        "file": {"driver": "file", "filename": path}});
    client.run("blockdev-add", overlay);
    client.run("blockdev-snapshot", json!({"node": "disk", "overlay": "top"}));
    // The change tells it, whoever asks or does not.
    let left = loop {
        let event = client.event("BLOCK_DIRTY_BITMAP_CHANGED");
        if event["data"]["what"] == "left" {
            break event["data"].clone();
        }
    };
    assert_eq!((&left["node"], &left["name"]), (&json!("disk"), &json!("b")));
    assert_eq!((&left["export"], &left["drive"]), (&json!("e"), &Value::Null));
    assert_eq!(nbd.flagged(CONTEXT), [(0, MIB)]);
    assert_eq!(nbd.write(0, 512 * KIB, b"x"), 0);
    assert_eq!(open().flagged(CONTEXT), [(0, MIB)]);
    let (_, desc) = client.fail("blockdev-del", json!({"node-name": "top"}));
    assert!(desc.contains("node `top`: it is in use by export `e`: "), "{desc}");
    host.finish();
}
