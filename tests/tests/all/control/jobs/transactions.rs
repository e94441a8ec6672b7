//! Jobs as actions: they begin with the rest of a transaction, or not at all, and end together if asked to.
//!
//! E15: qemu-storage-daemon knows no stream, commit or mirror there ("Parameter 'type' does not accept value
//! 'block-stream'").

use blockloom_tests::qmp::Qmp;
use serde_json::{Value, json};

use super::super::Controlled;
use super::scene::{can_start, event, host, life, status};
use crate::KIB;

/// A second drive, and something to copy it to.
const MORE: &str = "[node.disk]\ndriver = \"memory\"\nsize = \"4MiB\"\n\
    [node.copy]\ndriver = \"memory\"\nsize = \"4MiB\"\n[drive.vdb]\nroot = \"disk\"\n";

fn mirrors() -> [Value; 2] {
    let of = |id: &str, target: &str| {
        json!({"type": "blockdev-mirror", "data": {
            "job-id": id, "device": id, "target": target, "sync": "full"}})
    };
    [of("vda", "tgt"), of("vdb", "copy")]
}

fn start(client: &mut Qmp, mode: &str) {
    let properties = json!({"completion-mode": mode});
    let actions = json!({"actions": mirrors(), "properties": properties});
    client.run("transaction", actions);
}

/// Two clients of a host: each follows one of the jobs.
fn two(host: &Controlled) -> [Qmp; 2] {
    [host.client(), host.client()]
}

fn roots(client: &mut Qmp) -> [String; 2] {
    let drives = client.run("query-drives", json!({}));
    ["vda", "vdb"].map(|id| {
        let mut drives = drives.as_array().expect("a list").iter();
        let drive = drives.find(|drive| drive["id"] == id).expect("a drive");
        drive["node-name"].as_str().expect("a medium").to_owned()
    })
}

#[test]
fn jobs_begin_with_all_the_rest_or_not_at_all() {
    if !can_start() {
        return;
    }
    let host = host(MORE);
    let mut client = host.client();
    let [one, other] = mirrors();
    let abort = json!({"type": "abort", "data": {}});
    let (_, desc) = client.fail("transaction", json!({"actions": [one, other, abort]}));
    assert_eq!(desc, "Transaction aborted using Abort action");
    // What fails when all of it is put together leaves nothing either.
    let [one, mut other] = mirrors();
    other["data"]["target"] = json!("tgt");
    let (_, desc) = client.fail("transaction", json!({"actions": [one, other]}));
    assert!(desc.contains("tgt"), "{desc}");
    let [one, mut other] = mirrors();
    other["data"]["job-id"] = json!("vda");
    let (_, desc) = client.fail("transaction", json!({"actions": [one, other]}));
    assert_eq!(desc, "Job ID 'vda' already in use");
    assert_eq!(client.run("query-jobs", json!({})), json!([]));
    let nodes = client.run("query-named-block-nodes", json!({"flat": true}));
    let names = nodes.as_array().expect("a list").iter().map(|node| &node["node-name"]);
    assert!(names.clone().all(|name| !name.as_str().expect("a name").starts_with("#job")));

    // Where it would begin on something else than its user has seen, it does not.
    let eject = json!({"type": "drive-eject-medium", "data": {"id": "vdb"}});
    let [one, _] = mirrors();
    let (_, desc) = client.fail("transaction", json!({"actions": [eject, one]}));
    let expect =
        "job 'vda': an action before it changes the graph: start the job when that has been done";
    assert_eq!(desc, expect);
    assert_eq!(roots(&mut client), ["top", "disk"]);
    host.finish();
}

#[test]
fn a_group_ends_together() {
    if !can_start() {
        return;
    }
    let host = host(MORE);
    let [mut one, mut other] = two(&host);
    start(&mut one, "grouped");
    life(&mut one, "vda", event("BLOCK_JOB_READY"));
    life(&mut other, "vdb", event("BLOCK_JOB_READY"));
    one.run("job-complete", json!({"id": "vda"}));
    assert_eq!(life(&mut one, "vda", status("waiting")), ["JOB_STATUS_CHANGE waiting"]);
    assert_eq!(roots(&mut one), ["top", "disk"], "it waits for the other one");
    other.run("job-complete", json!({"id": "vdb"}));
    life(&mut one, "vda", status("null"));
    life(&mut other, "vdb", status("null"));
    assert_eq!(roots(&mut one), ["tgt", "copy"]);
    host.finish();
}

#[test]
fn a_group_is_cancelled_together() {
    if !can_start() {
        return;
    }
    for mode in ["grouped", "individual"] {
        let host = host(MORE);
        let [mut one, mut other] = two(&host);
        start(&mut one, mode);
        life(&mut one, "vda", event("BLOCK_JOB_READY"));
        life(&mut other, "vdb", event("BLOCK_JOB_READY"));
        one.run("job-cancel", json!({"id": "vda"}));
        let lived = life(&mut one, "vda", status("null"));
        assert_eq!(lived[1], "BLOCK_JOB_CANCELLED mirror speed 0", "{lived:?}");
        if mode == "grouped" {
            let lived = life(&mut other, "vdb", status("null"));
            assert_eq!(lived[1], "BLOCK_JOB_CANCELLED mirror speed 0", "{lived:?}");
            assert_eq!(roots(&mut one), ["top", "disk"]);
        } else {
            other.run("job-complete", json!({"id": "vdb"}));
            life(&mut other, "vdb", status("null"));
            assert_eq!(roots(&mut one), ["top", "copy"]);
        }
        host.finish();
    }
}

/// What an action does to a bitmap before a job it does before the job takes it, and what one does after it does
/// to what comes then.
#[test]
fn bitmaps_and_jobs_in_their_order() {
    if !can_start() {
        return;
    }
    let export = "[export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
        writable = true\n";
    let host = host(export);
    let (mut client, uri) = (host.client(), host.daemon.uri("vda").to_owned());
    let bitmap = |name: &str| json!({"node": "vda", "name": name, "granularity": 64 * KIB});
    client.run("block-dirty-bitmap-add", bitmap("a"));
    let mut guest = blockloom_tests::nbd::Client::open(&uri);
    assert_eq!(guest.write(0, 64 * KIB, &vec![5; 64 << 10]), 0);
    guest.disconnect();
    let merge = json!({"node": "vda", "target": "b", "bitmaps": ["a"]});
    let mut persistent = bitmap("b");
    persistent["persistent"] = json!(true);
    let mirror = json!({"job-id": "j", "device": "vda", "target": "tgt", "sync": "bitmap",
        "bitmap": "b", "bitmap-mode": "never"});
    let of = |kind: &str, data: &Value| json!({"type": kind, "data": data});
    let actions = json!({"actions": [
        of("block-dirty-bitmap-add", &persistent),
        of("block-dirty-bitmap-merge", &merge),
        of("blockdev-mirror", &mirror),
        of("block-dirty-bitmap-clear", &json!({"node": "vda", "name": "a"})),
        of("block-dirty-bitmap-add", &bitmap("c")),
    ]});
    client.run("transaction", actions);
    let ready = client.event("BLOCK_JOB_READY");
    assert_eq!(ready["data"]["len"], 64 * KIB, "what was merged before it");
    let query = |client: &mut Qmp, name: &str| {
        let shown = client.run("block-dirty-bitmap-query", json!({"node": "vda", "name": name}));
        shown["count"].as_u64().expect("a number")
    };
    assert_eq!(["a", "b", "c"].map(|name| query(&mut client, name)), [0, 64 * KIB, 0]);
    client.run("block-job-cancel", json!({"device": "j", "force": true}));
    client.event("BLOCK_JOB_CANCELLED");
    host.finish();
}
