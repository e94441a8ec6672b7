//! Greeting, negotiation, bitmaps by command, the end.

use std::os::unix::fs::PermissionsExt;

use blockloom_tests::nbd::Client;
use blockloom_tests::qmp::Qmp;
use serde_json::json;

use super::Controlled;

#[test]
fn a_client_is_greeted_negotiates_and_asks() {
    let host = Controlled::memory();
    let mode = std::fs::metadata(&host.socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut client = Qmp::connect(&host.socket);
    assert_eq!(client.greeting()["QMP"]["capabilities"], json!([]));
    let (class, desc) = client.fail("query-version", json!({}));
    assert_eq!(class, "CommandNotFound");
    assert_eq!(desc, "Expecting capabilities negotiation with 'qmp_capabilities'");
    client.run("qmp_capabilities", json!({}));
    client.send("{\"execute\": \"query-version\",\n \"id\": [1, {\"a\": null}]}");
    let answer = client.answer();
    assert_eq!(answer["id"], json!([1, {"a": null}]));
    assert_eq!(answer["return"]["qemu"]["major"], 10);
    let commands = client.run("query-commands", json!({}));
    let names: Vec<&str> = commands
        .as_array()
        .expect("a list")
        .iter()
        .map(|command| command["name"].as_str().expect("a name"))
        .collect();
    let schema = client.run("query-qmp-schema", json!({}));
    let described = schema.as_array().expect("a list").iter();
    let mut described: Vec<&str> = described
        .filter(|entry| entry["meta-type"] == "command")
        .map(|entry| entry["name"].as_str().expect("a name"))
        .collect();
    described.sort_unstable();
    assert_eq!(names, described);
    host.finish();
}

/// What is written through NBD is in a bitmap that a command added; its changes are told to another client.
#[test]
fn bitmaps_by_command() {
    let host = Controlled::memory();
    let (mut client, mut other) = (host.client(), host.client());
    let bitmap = json!({"node": "vda", "name": "daily"});
    let add = json!({"node": "vda", "name": "daily", "granularity": 4096});
    client.run("block-dirty-bitmap-add", add.clone());
    let (class, desc) = client.fail("block-dirty-bitmap-add", add);
    assert_eq!((class.as_str(), desc.as_str()), ("GenericError", "Bitmap already exists: daily"));
    let mut nbd = Client::open(host.daemon.uri("vda"));
    assert_eq!(nbd.write(0, 10_000, b"x"), 0);
    assert_eq!(nbd.write(0, 100_000, b"x"), 0);
    let shown = client.run("block-dirty-bitmap-query", bitmap.clone());
    let ranges = json!([{"offset": 8192, "length": 4096}, {"offset": 98304, "length": 4096}]);
    assert_eq!((&shown["ranges"], &shown["more"]), (&ranges, &json!(false)));
    let mut page = bitmap.clone();
    page["limit"] = 1.into();
    let shown = client.run("block-dirty-bitmap-query", page.clone());
    assert_eq!((&shown["more"], &shown["next"]), (&json!(true), &json!(98304)));
    page["offset"] = 98304.into();
    let shown = client.run("block-dirty-bitmap-query", page);
    assert_eq!(
        (&shown["more"], shown["ranges"][0]["offset"].as_u64()),
        (&json!(false), Some(98304))
    );

    let actions = json!([
        {"type": "block-dirty-bitmap-add", "data": {"node": "vda", "name": "copy"}},
        {"type": "block-dirty-bitmap-merge",
         "data": {"node": "vda", "target": "copy", "bitmaps": ["daily"]}},
        {"type": "block-dirty-bitmap-clear", "data": bitmap},
        {"type": "block-dirty-bitmap-rename",
         "data": {"node": "vda", "name": "copy", "new-name": "weekly"}},
    ]);
    let mut aborted = actions.as_array().expect("a list").clone();
    aborted.push(json!({"type": "abort", "data": {}}));
    let (_, desc) = client.fail("transaction", json!({"actions": aborted}));
    assert_eq!(desc, "Transaction aborted using Abort action");
    client.run("transaction", json!({"actions": actions}));
    let count = |client: &mut Qmp, name: &str| {
        client.run("block-dirty-bitmap-query", json!({"node": "vda", "name": name}))["count"]
            .clone()
    };
    assert_eq!(count(&mut client, "daily"), 0);
    assert_eq!(count(&mut client, "weekly"), 131_072);
    let (_, desc) = client.fail("block-dirty-bitmap-query", json!({"node": "vda", "name": "copy"}));
    assert_eq!(desc, "Dirty bitmap 'copy' not found");

    let mut fate = || {
        let data = other.event("BLOCK_DIRTY_BITMAP_CHANGED")["data"].clone();
        assert_eq!((&data["node"], &data["scope"]), (&json!("vda"), &json!("drive")));
        format!("{} {}", data["name"], data["what"]).replace('"', "")
    };
    let fates = [fate(), fate(), fate(), fate(), fate()];
    let expect = ["daily added", "copy added", "copy merged", "daily cleared", "weekly renamed"];
    assert_eq!(fates, expect);
    host.finish();
}

#[test]
fn quit_ends_the_host_as_a_signal_does() {
    let host = Controlled::memory();
    let (mut client, mut other) = (host.client(), host.client());
    client.send("{\"execute\": \"quit\", \"id\": 7}\n");
    assert_eq!(client.answer(), json!({"return": {}, "id": 7}));
    assert_eq!((client.line(), other.line()), (None, None));
    let ended = host.daemon.wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    assert!(!host.socket.exists());
}
