//! The NBD server and exports by command.

use blockloom_tests::nbd::Client;
use serde_json::{Value, json};

use super::Controlled;
use crate::memory_disk;

#[test]
fn exports_come_and_go() {
    let host = Controlled::start(&memory_disk(crate::MIB), &[]);
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
