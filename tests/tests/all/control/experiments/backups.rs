//! E6: what becomes of a bitmap by which a backup copies.

use blockloom_tests::qmp::Qmp;
use blockloom_tests::{eventually, tools};
use serde_json::{Value, json};

use super::super::jobs::scene::{SIZE, can_start, host};
use super::{EXPORT, add_bitmaps, dirty, write};
use crate::{KIB, MIB};

/// What is dirty before each backup.
const BEFORE: u64 = 256 * KIB;

/// A target that cannot be written.
const BROKEN: &str = "[node.broken]\ndriver = \"plugin\"\nplugin = \"error\"\nchild.file = \"tgt\"\n\
    config = { kinds = [\"write\", \"zero\"] }\n";

fn begin(client: &mut Qmp, backup: Value) {
    let mut backup = backup;
    (backup["job-id"], backup["device"]) = (json!("j"), json!("vda"));
    client.run("blockdev-backup", backup);
}

/// Waits until the job is gone; whether it has ended well.
fn end(client: &mut Qmp, event: &str) -> bool {
    let end = client.event(event);
    // Its last event may come a moment before it has gone.
    is_gone(client);
    end["data"]["error"].is_null()
}

fn is_gone(client: &mut Qmp) {
    eventually("the job has gone", || {
        (client.run("query-jobs", json!({})) == json!([])).then_some(())
    });
}

/// E6. qemu-storage-daemon, of 256 KiB that are dirty: a backup that ends well clears them, unless `never` keeps them;
/// one that fails keeps them, and with `always` says what it has not copied: of `full`, all.
///
/// Right. (Which modes make sense at all: `jobs/backups.rs`.)
#[test]
fn what_becomes_of_the_bitmap() {
    if !can_start() {
        return;
    }
    let host = host(&format!("{BROKEN}{EXPORT}"));
    let (mut client, uri) = (host.client(), host.daemon.uri("vda").to_owned());
    for (sync, mode, well, failed) in [
        ("incremental", "on-success", 0, BEFORE),
        ("bitmap", "on-success", 0, BEFORE),
        ("bitmap", "never", BEFORE, BEFORE),
        ("bitmap", "always", 0, BEFORE),
        ("full", "on-success", 0, BEFORE),
        ("full", "always", 0, SIZE),
        ("top", "on-success", 0, BEFORE),
        // What the image has itself: 64 KiB, and what has been written.
        ("top", "always", 0, BEFORE + 64 * KIB),
    ] {
        for (target, expect) in [("tgt", well), ("broken", failed)] {
            add_bitmaps(&mut client, &["vda"], "b");
            write(&uri, 2 * MIB, 7, BEFORE);
            let backup =
                json!({"target": target, "sync": sync, "bitmap": "b", "bitmap-mode": mode});
            begin(&mut client, backup);
            assert_eq!(end(&mut client, "BLOCK_JOB_COMPLETED"), target == "tgt", "{sync}, {mode}");
            assert_eq!(dirty(&mut client)["vda/b"], expect, "{sync}, {mode}, to `{target}`");
            client.run("block-dirty-bitmap-remove", json!({"node": "vda", "name": "b"}));
        }
    }
    host.finish();
}

/// E6b. qemu-storage-daemon: while the job runs the bitmap is busy, and what is written goes to a second one without a
/// name; when the job is cancelled both are one again.
///
/// Right: nobody is to see the second one.
#[test]
fn what_is_written_while_it_runs() {
    if !can_start() {
        return;
    }
    let host = host(EXPORT);
    let (mut client, uri) = (host.client(), host.daemon.uri("vda").to_owned());
    add_bitmaps(&mut client, &["vda"], "b");
    // More than the job copies at once.
    let before = 3 * MIB;
    write(&uri, 2 * MIB, 7, before);
    begin(&mut client, json!({"target": "tgt", "sync": "incremental", "bitmap": "b", "speed": 1}));
    write(&uri, 6 * MIB, 8, 64 * KIB);
    let drives = client.run("query-block", json!({}));
    let bitmaps = drives[0]["dirty-bitmaps"].as_array().expect("a list");
    assert_eq!(bitmaps.len(), 1, "{bitmaps:?}");
    assert_eq!(bitmaps[0]["busy"], true, "{bitmaps:?}");
    client.run("block-job-cancel", json!({"device": "j", "force": true}));
    assert!(end(&mut client, "BLOCK_JOB_CANCELLED"));
    assert_eq!(dirty(&mut client)["vda/b"], before + 64 * KIB);
    host.finish();
}

/// A pull by an overlay that keeps what the disk had, as libvirt does it. qemu-storage-daemon shows the bitmap as it
/// is, also once the job has gone and the overlay shows the disk as it goes on. Right: what has not been recorded of
/// what is shown is dirty.
#[test]
fn what_an_overlay_is_pulled_by() {
    if !can_start() {
        return;
    }
    let host = host(EXPORT);
    let (mut client, uri) = (host.client(), host.daemon.uri("vda").to_owned());
    add_bitmaps(&mut client, &["top"], "b");
    write(&uri, 2 * MIB, 7, BEFORE);
    let path = host.scratch.image("scratch.qcow2").display().to_string();
    tools::succeed("qemu-img", ["create", "-q", "-f", "qcow2", &path, &SIZE.to_string()]);
    let socket = host.scratch.path("pull.sock").display().to_string();
    client.run("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": socket}}}));
    let file = json!({"driver": "file", "filename": path, "node-name": "within"});
    let overlay =
        json!({"driver": "qcow2", "node-name": "scratch", "file": file, "backing": "top"});
    client.run("blockdev-add", overlay.clone());
    let add = json!({"node": "top", "name": "bk", "granularity": 64 * KIB, "disabled": true});
    client.run(
        "transaction",
        json!({"actions": [
            {"type": "block-dirty-bitmap-add", "data": add},
            {"type": "block-dirty-bitmap-merge",
             "data": {"node": "top", "target": "bk", "bitmaps": ["b"]}},
            {"type": "block-dirty-bitmap-disable", "data": {"node": "top", "name": "b"}},
            {"type": "blockdev-backup",
             "data": {"job-id": "j", "device": "top", "target": "scratch", "sync": "none"}},
        ]}),
    );
    let export = |id: &str, bitmap: &str| {
        let bitmaps = json!([{"node": "top", "name": bitmap}]);
        json!({"type": "nbd", "id": id, "name": id, "node-name": "scratch", "bitmaps": bitmaps})
    };
    client.run("block-export-add", export("pull", "bk"));
    add_bitmaps(&mut client, &["top"], "live");
    client.run("block-export-add", export("other", "live"));
    write(&uri, 4 * MIB, 8, MIB);
    let shown = |name: &str, bitmap: &str| {
        let uri = format!("nbd+unix:///{name}?socket={socket}");
        tools::nbd_map(&uri, &format!("qemu:dirty-bitmap:{bitmap}"))
    };
    assert_eq!(shown("pull", "bk"), [(0, SIZE, 1)]);
    assert_eq!(shown("other", "live"), [(0, SIZE, 1)]);
    for id in ["pull", "other"] {
        client.run("block-export-del", json!({"id": id, "mode": "hard"}));
        client.event("BLOCK_EXPORT_DELETED");
    }
    client.run("job-cancel", json!({"id": "j"}));
    is_gone(&mut client);
    // What was given within a node goes with it.
    client.run("blockdev-del", json!({"node-name": "scratch"}));
    assert!(!super::has_node(&mut client, "within"));
    client.run("blockdev-add", overlay);
    host.finish();
}
