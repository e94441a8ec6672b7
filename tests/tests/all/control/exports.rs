//! The NBD server and exports by command.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use blockloom_tests::nbd::command::WRITE_ZEROES;
use blockloom_tests::nbd::{Client, Terms};
use blockloom_tests::qmp::Qmp;
use blockloom_tests::{Killed, eventually, tools};
use serde_json::{Value, json};

use super::Controlled;
use crate::{KIB, MIB, memory_disk, scratch};

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

/// Each write is durable when it is answered, though the client asks for nothing: what is below is flushed.
#[test]
fn writes_through() {
    let graph = "[node.disk]\ndriver = \"qcow2\"\n\
        file = { driver = \"file\", path = \"disk.qcow2\" }\ncreate = { size = \"4MiB\" }\n\
        [export.toml]\ntype = \"nbd\"\nnode = \"disk\"\nlisten = \"unix:t.sock\"\nwritable = true\n\
        writethrough = true\n";
    let host = Controlled::start(graph, &[]);
    let mut client = host.client();
    let flushes = |client: &mut Qmp| {
        let all = client.run("query-blockstats", json!({"query-nodes": true}));
        let file =
            all.as_array().expect("a list").iter().find(|it| it["node-name"] == "#disk.file");
        file.expect("the file")["stats"]["flush_operations"].as_u64().expect("a number")
    };
    let mut check = |uri: &str, expect: bool| {
        let mut nbd = Client::open(uri);
        let before = flushes(&mut client);
        assert_eq!(nbd.write(0, 0, &[1; 4096]), 0);
        assert_eq!(flushes(&mut client) > before, expect, "{uri}");
        let before = flushes(&mut client);
        assert_eq!(nbd.plain(WRITE_ZEROES, 0, MIB, 4096), 0);
        assert_eq!(flushes(&mut client) > before, expect, "zeros, {uri}");
    };
    check(host.daemon.uri("toml"), true);
    let mut other = host.client();
    other.run("block-export-del", json!({"id": "toml", "mode": "hard"}));
    for writethrough in [true, false] {
        other.run(
            "block-export-add",
            json!({"type": "nbd", "id": "e", "node-name": "disk", "name": "e", "writable": true,
                "listen": "unix:e.sock", "writethrough": writethrough}),
        );
        let socket = host.scratch.path("e.sock");
        check(&format!("nbd+unix:///e?socket={}", socket.display()), writethrough);
        other.run("block-export-del", json!({"id": "e", "mode": "hard"}));
    }
    host.finish();
}

/// In which image of a chain bytes lie, as qemu-nbd says it: filters do not count, and what no image has is 0.
#[test]
fn allocation_depth_is_qemus() {
    const CONTEXT: &str = "qemu:allocation-depth";
    if !tools::have(&["qemu-img", "qemu-io", "qemu-nbd", "nbdinfo"]) {
        return;
    }
    let scratch = scratch();
    let path = |name: &str| scratch.path(name).display().to_string();
    // Each is longer than the one below, and shows zeros there.
    for (name, size, written, below) in [
        ("base.qcow2", "4M", "write 0 1M", None),
        ("mid.qcow2", "6M", "write 512k 1M", Some("base.qcow2")),
        ("top.qcow2", "8M", "write 2M 192k", Some("mid.qcow2")),
    ] {
        let path = path(name);
        let backing = below.map_or(Vec::new(), |below| vec!["-b", below, "-F", "qcow2"]);
        let create = [&["create", "-q", "-f", "qcow2"][..], &backing, &[path.as_str(), size]];
        tools::succeed("qemu-img", create.concat());
        tools::succeed("qemu-io", ["-f", "qcow2", "-c", written, "-c", "write -z 3M 64k", &path]);
    }
    let export = "type = \"nbd\"\nallocation-depth = true\n";
    let graph = format!(
        "[node.top]\ndriver = \"qcow2\"\nread-only = true\n\
         file = {{ driver = \"file\", path = \"top.qcow2\" }}\n\
         [node.filter]\ndriver = \"pass\"\nchild.file = \"top\"\n\
         [node.raw]\ndriver = \"file\"\npath = \"hole.raw\"\n\
         [export.top]\n{export}node = \"top\"\nlisten = \"unix:t.sock\"\n\
         [export.filter]\n{export}node = \"filter\"\nlisten = \"unix:t.sock\"\n\
         [export.raw]\n{export}node = \"raw\"\nlisten = \"unix:r.sock\"\n"
    );
    std::fs::File::create(path("hole.raw")).and_then(|file| file.set_len(MIB)).expect("a file");
    let (top, raw) = (path("top.qcow2"), path("hole.raw"));
    let host = Controlled::start_in(scratch, &graph, &[]);
    let theirs = |format: &str, image: &str| {
        let socket = host.scratch.path("peer.sock");
        let mut command = std::process::Command::new("qemu-nbd");
        let peer = command.args(["-A", "-r", "-f", format, "-k"]).arg(&socket).arg(image);
        let peer = Killed::from(peer.spawn().expect("start qemu-nbd"));
        eventually("qemu-nbd listens", || socket.exists().then_some(()));
        let map = tools::nbd_map(&format!("nbd+unix:///?socket={}", socket.display()), CONTEXT);
        drop(peer);
        let _ = std::fs::remove_file(socket);
        map
    };
    let map = theirs("qcow2", &top);
    assert_eq!(map.iter().map(|range| range.2).max(), Some(3), "{map:?}");
    assert!(map.iter().any(|range| range.2 == 0), "{map:?}");
    for export in ["top", "filter"] {
        assert_eq!(tools::nbd_map(host.daemon.uri(export), CONTEXT), map, "{export}");
    }
    assert_eq!(tools::nbd_map(host.daemon.uri("raw"), CONTEXT), theirs("raw", &raw));
    let described = tools::succeed("nbdinfo", ["--json", host.daemon.uri("top")]);
    assert!(described.contains(CONTEXT), "{described}");
    let mut client = host.client();
    let export = json!({"type": "nbd", "id": "e", "node-name": "filter", "name": "e",
        "listen": "unix:e.sock", "allocation-depth": true});
    client.run("block-export-add", export);
    let uri = format!("nbd+unix:///e?socket={}", host.scratch.path("e.sock").display());
    assert_eq!(tools::nbd_map(&uri, CONTEXT), map);
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
