//! E7, E10, E14, E15: what a bitmap may be of, what is a change, and what may stand in a transaction.

use blockloom_tests::nbd::{Client, Request, command};
use serde_json::json;

use super::super::Controlled;
use super::super::jobs::scene::{can_start, host, host_of};
use super::{EXPORT, add_bitmaps, dirty, dirty_ranges, write};
use crate::{KIB, MIB};

const THROTTLE: &str = "[node.thr]\ndriver = \"plugin\"\nplugin = \"throttle\"\nchild.file = \"top\"\n\
    config = { iops = 100000 }\n";

/// E7. qemu-storage-daemon: "Can't store persistent bitmaps to thr: Operation not supported"; a bitmap of a filter
/// sees what comes through it, and nothing else. A read-only export shows no enabled bitmap of a writable node, and
/// no two exports show one.
///
/// Right: the first image below a filter keeps its bitmap; a bitmap records what a view shows, whoever changes it;
/// any number of exports may show it.
#[test]
fn bitmaps_of_filters_and_of_several_exports() {
    if !can_start() {
        return;
    }
    let more = format!(
        "{THROTTLE}[export.one]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
         writable = true\nbitmaps = [\"b\"]\n\
         [export.two]\ntype = \"nbd\"\nnode = \"top\"\nlisten = \"unix:two.sock\"\nbitmaps = [\"b\"]\n\
         [bitmap.b]\nnode = \"top\"\ngranularity = \"64KiB\"\n"
    );
    let host = host_of("thr", &more);
    let mut client = host.client();
    let kept = json!({"node": "thr", "name": "kept", "granularity": 64 * KIB, "persistent": true});
    client.run("block-dirty-bitmap-add", kept);
    write(host.daemon.uri("one"), MIB, 7, 64 * KIB);
    let count = dirty(&mut client);
    assert_eq!((count["thr/kept"], count["top/b"]), (64 * KIB, 64 * KIB), "{count:?}");
    for export in ["one", "two"] {
        assert_eq!(dirty_ranges(host.daemon.uri(export), "b"), [(MIB, 64 * KIB)], "{export}");
    }
    let (_, images) = host.end();
    let path = images.image("top.qcow2").display().to_string();
    let info = super::succeed("qemu-img", ["info", &path]);
    assert!(info.contains("name: kept"), "{info}");
}

fn ask(guest: &mut Client, command: u16, offset: u64, len_bytes: u32) -> u32 {
    guest.send(&Request { command, flags: 0, offset, len_bytes, payload: &[] });
    guest.receive(0).errno
}

/// E10. qemu-storage-daemon: a byte makes its granule dirty, a discard and a zeroing what they cover, also where
/// nothing changes: a bitmap may say more. But of what a disk has grown by it says nothing, and an export stands in
/// the way of growing at all.
///
/// Right: the same where it says more; what was added is dirty; and it grows below its clients.
#[test]
fn what_is_a_change() {
    if !can_start() {
        return;
    }
    let host = host(EXPORT);
    let (mut client, uri) = (host.client(), host.daemon.uri("vda").to_owned());
    add_bitmaps(&mut client, &["top", "vda"], "b");
    let mut guest = Client::open(&uri);
    assert_eq!(guest.write(0, 0, &[1]), 0);
    assert_eq!(ask(&mut guest, command::WRITE_ZEROES, 6 * MIB, MIB as u32), 0);
    let count = dirty(&mut client);
    assert_eq!((count["top/b"], count["vda/b"]), (MIB + 64 * KIB, MIB + 64 * KIB), "{count:?}");
    assert_eq!(ask(&mut guest, command::TRIM, 14 * MIB, MIB as u32), 0);
    let discarded = dirty(&mut client)["vda/b"];
    assert!([MIB, 2 * MIB].contains(&(discarded - 64 * KIB)), "{discarded}");
    client.run("block-dirty-bitmap-clear", json!({"node": "vda", "name": "b"}));
    client.run("block_resize", json!({"device": "vda", "size": 32 * MIB}));
    assert_eq!(dirty(&mut client)["vda/b"], 16 * MIB);
    assert_eq!(guest.write(0, 0, &[2]), 0, "a client goes on");
    assert_eq!(guest.size_bytes(), 16 * MIB, "with the size that it knows");
    guest.disconnect();
    let grown = Client::open(&uri);
    assert_eq!(grown.size_bytes(), 32 * MIB);
    grown.disconnect();
    host.finish();
}

/// E10b. qemu-storage-daemon: a write that fails is dirty in the layers that it has come to. Right: in all that it
/// could have altered.
#[test]
fn a_write_that_fails() {
    if !can_start() {
        return;
    }
    let error = "[node.bad]\ndriver = \"plugin\"\nplugin = \"error\"\nchild.file = \"top\"\n\
        config = { kinds = [\"write\"] }\n";
    let host = host_of("bad", &format!("{error}{EXPORT}"));
    let mut client = host.client();
    add_bitmaps(&mut client, &["bad", "vda"], "b");
    let mut guest = Client::open(host.daemon.uri("vda"));
    assert_eq!(guest.write(0, MIB, &[7; 512]), 5, "EIO");
    guest.disconnect();
    let count = dirty(&mut client);
    assert_eq!((count["bad/b"], count["vda/b"]), (64 * KIB, 64 * KIB), "{count:?}");
    host.finish();
}

/// E14. qemu-storage-daemon: whatever is asked of a bitmap that a job uses is refused. Right for what would take away
/// what the job reads; its user is named.
#[test]
fn a_bitmap_that_a_job_uses() {
    if !can_start() {
        return;
    }
    let host = host("");
    let mut client = host.client();
    add_bitmaps(&mut client, &["vda"], "b");
    let mirror = json!({"device": "vda", "target": "tgt", "sync": "bitmap", "bitmap": "b",
        "bitmap-mode": "on-success", "job-id": "j"});
    client.run("blockdev-mirror", mirror);
    client.event("BLOCK_JOB_READY");
    let bitmap = json!({"node": "vda", "name": "b"});
    for command in ["block-dirty-bitmap-clear", "block-dirty-bitmap-remove"] {
        client.fail(command, bitmap.clone());
    }
    client.run("job-cancel", json!({"id": "j"}));
    while client.run("query-jobs", json!({})) != json!([]) {
        client.event("JOB_STATUS_CHANGE");
    }
    client.run("block-dirty-bitmap-clear", bitmap.clone());
    client.run("block-dirty-bitmap-remove", bitmap);
    host.finish();
}

/// E15. qemu-storage-daemon: "Parameter 'type' does not accept value 'block-stream'", and so for mirrors, commits and
/// exports. Right: whatever changes something may be an action; `abort` takes all of it back.
#[test]
fn what_may_stand_in_a_transaction() {
    if !can_start() {
        return;
    }
    let host: Controlled = host("");
    let mut client = host.client();
    let action = |kind: &str, data| json!({"type": kind, "data": data});
    let all = [
        action("block-dirty-bitmap-add", json!({"node": "vda", "name": "b"})),
        action("block-stream", json!({"device": "vda", "base-node": "mid", "job-id": "s"})),
        action(
            "blockdev-mirror",
            json!({"device": "vda", "target": "tgt", "sync": "full", "job-id": "m"}),
        ),
    ];
    let aborted: Vec<_> = all.iter().cloned().chain([action("abort", json!({}))]).collect();
    let (_, desc) = client.fail("transaction", json!({"actions": aborted}));
    assert_eq!(desc, "Transaction aborted using Abort action");
    assert!(dirty(&mut client).is_empty());
    assert_eq!(client.run("query-jobs", json!({})), json!([]));
    client.run("transaction", json!({"actions": all}));
    client.event("BLOCK_JOB_READY");
    assert_eq!(dirty(&mut client)["vda/b"], 0);
    host.finish();
}
