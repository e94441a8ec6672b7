//! E9: points in time under load: what copies before writes comes and goes at one instant with bitmaps and exports.

use blockloom_tests::nbd::Client;
use blockloom_tests::tools::nbd_map;
use serde_json::{Value, json};

use super::super::jobs::scene::{can_start, host, shown_at_first};
use super::{EXPORT, add_bitmaps, dirty, dirty_ranges, has_node, read_all, root, run_job, write};
use crate::{KIB, MIB};

/// E9, E9b, E9c. qemu-storage-daemon: a filter comes below an export only where a parent node is there already, as a
/// `raw` root; what an export shows cannot be led elsewhere; copy-before-write above a node that an export writes is
/// refused.
///
/// Right: filters come and go under any user, and any node takes another's place; bitmaps stay clean, for nothing
/// that is seen has changed.
#[test]
fn filters_come_and_go_under_an_export() {
    if !can_start() {
        return;
    }
    let host = host(EXPORT);
    let (mut client, uri) = (host.client(), host.daemon.uri("vda").to_owned());
    add_bitmaps(&mut client, &["top", "vda"], "b");
    let guest = Client::open(&uri);
    let throttle = json!({"driver": "plugin", "plugin": "throttle", "node-name": "thr",
        "config": {"iops": 100_000}});
    client.run("blockdev-insert-filter", json!({"filter": throttle, "above": "top"}));
    assert_eq!(root(&mut client), "thr");
    let kept = json!({"driver": "memory", "node-name": "kept", "size": 16 * MIB});
    client.run("blockdev-add", kept);
    let before = json!({"driver": "copy-before-write", "node-name": "cbw", "target": "kept"});
    client.run("blockdev-insert-filter", json!({"filter": before, "above": "thr"}));
    assert_eq!(root(&mut client), "cbw");
    write(&uri, MIB, 7, 64 * KIB);
    for filter in ["cbw", "thr"] {
        client.run("blockdev-remove-filter", json!({"node-name": filter}));
    }
    assert_eq!(root(&mut client), "top");
    let count = dirty(&mut client);
    assert_eq!((count["top/b"], count["vda/b"]), (64 * KIB, 64 * KIB), "{count:?}");
    let mut expect = shown_at_first();
    expect[1 << 20..(1 << 20) + (64 << 10)].fill(7);
    assert_eq!(read_all(&uri), expect);
    guest.disconnect();
    host.finish();
}

/// E9c. qemu-storage-daemon: what it takes for a backup that is pulled is four commands, between which a guest goes on;
/// of what the bitmap does not cover it lets nothing be read, and `base:allocation` fails altogether ("Invalid
/// argument").
///
/// Right: one command, one instant. The view shows what there was, and which of it has changed before.
#[test]
fn a_backup_that_is_pulled() {
    if !can_start() {
        return;
    }
    let host = host(EXPORT);
    let (mut client, uri) = (host.client(), host.daemon.uri("vda").to_owned());
    add_bitmaps(&mut client, &["vda"], "b");
    write(&uri, MIB, 7, 64 * KIB);
    let socket = host.scratch.path("then.sock").display().to_string();
    let export = json!({"id": "then", "listen": format!("unix:{socket}")});
    let view = json!({"node": "vda", "node-name": "then", "export": export});
    let bitmaps = json!([{"node": "vda", "name": "b"}]);
    client.run("checkpoint", json!({"id": "c", "bitmaps": bitmaps, "views": [view]}));
    write(&uri, 2 * MIB, 8, 64 * KIB);
    write(&uri, MIB, 9, 64 * KIB);
    let then = format!("nbd+unix:///then?socket={socket}");
    let mut expect = shown_at_first();
    expect[1 << 20..(1 << 20) + (64 << 10)].fill(7);
    assert_eq!(read_all(&then), expect);
    assert_eq!(dirty_ranges(&then, "b"), [(MIB, 64 * KIB)]);
    assert!(!nbd_map(&then, "base:allocation").is_empty());
    client.run("checkpoint-end", json!({"id": "c", "completed": true}));
    assert!(!has_node(&mut client, "then"));
    assert_eq!(root(&mut client), "top");
    assert_eq!(dirty(&mut client)["vda/b"], 128 * KIB, "what came after it");
    host.finish();
}

/// A mirror is completed at the very instant at which nothing is in flight: what was acknowledged is there.
#[test]
fn a_job_completes_under_writes() {
    if !can_start() {
        return;
    }
    let host = host(EXPORT);
    let (mut client, uri) = (host.client(), host.daemon.uri("vda").to_owned());
    add_bitmaps(&mut client, &["vda"], "b");
    let mut expect = shown_at_first();
    let written = std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let mut guest = Client::open(&uri);
            for at in 0..256_u64 {
                assert_eq!(guest.write(0, at * 64 * KIB, &[(at % 250) as u8 + 1; 512]), 0);
            }
            guest.disconnect();
        });
        run_job(
            &mut client,
            "blockdev-mirror",
            json!({"device": "vda", "target": "tgt", "sync": "full"}),
        );
        guest.join()
    });
    written.expect("a guest");
    for at in 0..256_usize {
        expect[at << 16..(at << 16) + 512].fill((at % 250) as u8 + 1);
    }
    assert_eq!(root(&mut client), "tgt");
    assert_eq!(dirty(&mut client)["vda/b"], 16 * MIB);
    assert_eq!(read_all(&uri), expect);
    host.finish();
}
/// E12. qemu-storage-daemon, too: bitmaps are added, merged and disabled, and a backup begins, at one instant; `abort`
/// takes all of it back. Right.
#[test]
fn bitmaps_and_a_backup_at_one_instant() {
    if !can_start() {
        return;
    }
    let host = host(EXPORT);
    let (mut client, uri) = (host.client(), host.daemon.uri("vda").to_owned());
    add_bitmaps(&mut client, &["vda"], "old");
    write(&uri, MIB, 7, 64 * KIB);
    let bitmap = |name: &str| json!({"node": "vda", "name": name, "granularity": 64 * KIB});
    let action = |kind: &str, data: Value| json!({"type": kind, "data": data});
    let all = [
        action("block-dirty-bitmap-add", bitmap("new")),
        action("block-dirty-bitmap-disable", json!({"node": "vda", "name": "old"})),
        action("block-dirty-bitmap-add", bitmap("tmp")),
        action(
            "block-dirty-bitmap-merge",
            json!({"node": "vda", "target": "tmp", "bitmaps": ["old"]}),
        ),
        action(
            "blockdev-backup",
            json!({"job-id": "j", "device": "vda", "target": "tgt",
            "sync": "bitmap", "bitmap": "tmp", "bitmap-mode": "on-success"}),
        ),
    ];
    let aborted: Vec<Value> = all.iter().cloned().chain([action("abort", json!({}))]).collect();
    let (_, desc) = client.fail("transaction", json!({"actions": aborted}));
    assert_eq!(desc, "Transaction aborted using Abort action");
    let count = dirty(&mut client);
    assert_eq!(count.into_iter().collect::<Vec<_>>(), [("vda/old".to_owned(), 64 * KIB)]);

    client.run("transaction", json!({"actions": all}));
    write(&uri, 2 * MIB, 8, 64 * KIB);
    let done = client.event("BLOCK_JOB_COMPLETED");
    assert_eq!(done["data"]["error"], Value::Null);
    assert_eq!(done["data"]["offset"], 64 * KIB, "what was dirty, and nothing else");
    let count = dirty(&mut client);
    let seen = ["vda/old", "vda/new", "vda/tmp"].map(|of| count[of]);
    assert_eq!(seen, [64 * KIB; 3], "{count:?}");
    assert_eq!(dirty_ranges_by_query(&mut client, "tmp"), [(2 * MIB, 64 * KIB)]);
    let (_, images) = host.end();
    let path = images.image("tgt.qcow2").display().to_string();
    super::succeed("qemu-io", ["-f", "qcow2", "-c", "read -P 7 1M 64k", &path]);
    assert_eq!(super::own_bytes(&images, "tgt.qcow2"), 64 * KIB);
}

fn dirty_ranges_by_query(client: &mut blockloom_tests::qmp::Qmp, name: &str) -> Vec<(u64, u64)> {
    let shown = client.run("block-dirty-bitmap-query", json!({"node": "vda", "name": name}));
    let number = |of: &Value| of.as_u64().expect("a number");
    let ranges = shown["ranges"].as_array().expect("a list").iter();
    ranges.map(|range| (number(&range["offset"]), number(&range["length"]))).collect()
}
