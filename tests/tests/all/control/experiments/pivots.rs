//! E2 to E5, E16a: drives that go over to another node, by mirror, commit or snapshot, and their bitmaps.

use blockloom_tests::Scratch;
use blockloom_tests::nbd::Client;
use blockloom_tests::tools::qemu_io;
use serde_json::{Value, json};

use super::super::Controlled;
use super::super::jobs::scene::{can_start, host, shown_at_first};
use super::{
    EXPORT, add_bitmaps, bitmap_event, check_image, dirty, dirty_ranges, read_all, root, run_job,
    write,
};
use crate::qcow2::bitmaps::listed;
use crate::{KIB, MIB};

/// The drive, and what its export shows of two bitmaps: its own, and that of the node `top`.
const BOTH: &str = "[export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
    writable = true\nbitmaps = [\"of-drive\", \"of-node\"]\n\
    [bitmap.of-drive]\ndrive = \"vda\"\ngranularity = \"64KiB\"\n\
    [bitmap.of-node]\nnode = \"top\"\ngranularity = \"64KiB\"\n";

/// E5, E4b.
///
/// qemu-storage-daemon: the bitmap stays on `top`, and records nothing any more; its export goes over to `tgt`, and
/// goes on to show the bitmap of `top`: what is written after the pivot is called clean. `blockdev-del` of `top`
/// aborts the daemon then.
///
/// Right: the drive's bitmap says what was written, before and after. The node's bitmap, which says nothing of what
/// the export shows any more, is shown as dirty whole, and an event says so; whoever takes it away, or its node, is
/// told who uses it.
#[test]
fn a_mirror_that_is_completed() {
    if !can_start() {
        return;
    }
    let host = host(BOTH);
    let mut watcher = host.client();
    let (mut client, uri) = (host.client(), host.daemon.uri("vda").to_owned());
    let mut expect = shown_at_first();
    let mut put = |offset: u64, value: u8| {
        write(&uri, offset, value, 64 * KIB);
        expect[offset as usize..(offset + 64 * KIB) as usize].fill(value);
    };
    put(12 * MIB, 7);
    run_job(
        &mut client,
        "blockdev-mirror",
        json!({"device": "vda", "target": "tgt", "sync": "full"}),
    );
    assert_eq!(root(&mut client), "tgt");
    put(MIB, 8);
    let count = dirty(&mut client);
    assert_eq!(count["vda/of-drive"], 128 * KIB, "{count:?}");
    assert_eq!(count["top/of-node"], 64 * KIB, "{count:?}");
    let runs = [(MIB, 64 * KIB), (12 * MIB, 64 * KIB)];
    assert_eq!(dirty_ranges(&uri, "of-drive"), runs);
    assert_eq!(dirty_ranges(&uri, "of-node"), [(0, 16 * MIB)]);
    let left = bitmap_event(&mut watcher, "left");
    assert_eq!((&left["name"], &left["drive"]), (&json!("of-node"), &json!("vda")));

    let bitmap = json!({"node": "top", "name": "of-node"});
    let (class, desc) = client.fail("block-dirty-bitmap-remove", bitmap);
    assert_eq!(class, "GenericError");
    assert!(desc.contains("vda"), "it names who uses it: {desc}");
    assert_eq!(read_all(&uri), expect);
    let (_, images) = host.end();
    check_image(&images, "tgt.qcow2", &expect);
}

/// E16a: after a pivot an export shows a bitmap of the node that it has left, and the daemon is told to quit.
///
/// qemu-storage-daemon: it ends well, with status 0, having called clean what was written after the pivot; nobody
/// has recorded that.
///
/// Right: the same end. What the drive's bitmap has recorded is in the image to which the drive has gone.
#[test]
fn an_end_after_a_pivot() {
    if !can_start() {
        return;
    }
    let host = host(BOTH);
    let (mut client, uri) = (host.client(), host.daemon.uri("vda").to_owned());
    let kept = json!({"node": "vda", "name": "kept", "persistent": true, "granularity": 64 * KIB});
    client.run("block-dirty-bitmap-add", kept);
    write(&uri, 12 * MIB, 7, 64 * KIB);
    let mirror = json!({"device": "vda", "target": "tgt", "sync": "full"});
    run_job(&mut client, "blockdev-mirror", mirror);
    write(&uri, MIB, 8, 64 * KIB);
    let guest = Client::open(&uri);
    client.run("quit", json!({}));
    let Controlled { daemon, scratch: images, .. } = host;
    let ended = daemon.wait();
    drop(guest);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    let mut expect = shown_at_first();
    for (at, value) in [(12 << 20, 7), (1 << 20, 8)] {
        expect[at..at + (64 << 10)].fill(value);
    }
    check_image(&images, "tgt.qcow2", &expect);
    assert_eq!(kept_in(&images, "tgt"), ["kept"]);
    assert_eq!(kept_in(&images, "top"), [""; 0]);
    let path = images.image("tgt.qcow2").display().to_string();
    let text = format!(
        "[node.tgt]\ndriver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"{path}\" }}\n\
         [drive.vda]\nroot = \"tgt\"\nwritable = true\n\
         [bitmap.kept]\ndrive = \"vda\"\ngranularity = \"64KiB\"\npersist = \"root\"\n\
         {EXPORT}bitmaps = [\"kept\"]\n"
    );
    let host = Controlled::start_in(images, &text, &[]);
    let runs = [(MIB, 64 * KIB), (12 * MIB, 64 * KIB)];
    assert_eq!(dirty_ranges(host.daemon.uri("vda"), "kept"), runs);
    host.finish();
}

/// The bitmaps that an image keeps.
fn kept_in(images: &Scratch, name: &str) -> Vec<String> {
    let path = images.image(&format!("{name}.qcow2")).display().to_string();
    listed(&path).into_iter().map(|(name, _)| name).collect()
}

/// E5 once more, by a bitmap that says what is copied. qemu-storage-daemon: "Sync mode 'incremental' not supported".
#[test]
fn a_mirror_of_what_a_bitmap_says() {
    if !can_start() {
        return;
    }
    let host = host(EXPORT);
    let (mut client, uri) = (host.client(), host.daemon.uri("vda").to_owned());
    run_job(
        &mut client,
        "blockdev-mirror",
        json!({"device": "vda", "target": "tgt", "sync": "full"}),
    );
    // The former root is what the drive showed; both have this bitmap of what has changed since.
    add_bitmaps(&mut client, &["vda"], "since");
    write(&uri, 2 * MIB, 9, 64 * KIB);
    write(&uri, 12 * MIB + 64 * KIB, 9, 64 * KIB);
    let mut expect = shown_at_first();
    for at in [2 * MIB, 12 * MIB + 64 * KIB] {
        expect[at as usize..(at + 64 * KIB) as usize].fill(9);
    }
    let back = json!({"device": "vda", "target": "top", "sync": "incremental",
        "bitmap": "since", "job-id": "j", "auto-dismiss": false});
    client.run("blockdev-mirror", back);
    let ready = client.event("BLOCK_JOB_READY");
    assert_eq!(ready["data"]["len"], 128 * KIB, "no more than that is copied");
    client.run("job-complete", json!({"id": "j"}));
    let done = client.event("BLOCK_JOB_COMPLETED");
    assert_eq!(done["data"]["error"], Value::Null);
    assert_eq!(root(&mut client), "top");
    assert_eq!(read_all(&uri), expect);
    qemu_io(&uri, &["read -P 9 2M 64k"]);
    host.finish();
}
