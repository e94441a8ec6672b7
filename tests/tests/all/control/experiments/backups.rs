//! E6: what becomes of a bitmap by which a backup copies.

use blockloom_tests::eventually;
use blockloom_tests::qmp::Qmp;
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
    eventually("the job has gone", || {
        (client.run("query-jobs", json!({})) == json!([])).then_some(())
    });
    end["data"]["error"].is_null()
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
