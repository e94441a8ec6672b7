//! E2 to E4, E16: commits, snapshots and what is committed again; exports of bitmaps over a pivot, and nodes that go
//! while somebody shows their bitmaps.

use serde_json::{Value, json};

use super::super::Controlled;
use super::super::jobs::scene::{can_start, host, shown_at_first};
use super::{
    EXPORT, add_bitmaps, bitmap_event, check_image, dirty, dirty_ranges, has_node, host_of_headers,
    own_bytes, read_all, root, run_job, succeed, write,
};
use crate::{KIB, MIB};

/// E2a. qemu-storage-daemon: `base` 1048576, which was really written, `mid` and `top` 0; all bitmaps stay. Right;
/// and the drive's is clean, for it shows what it has shown.
#[test]
fn the_middle_of_a_chain_is_committed() {
    if !can_start() {
        return;
    }
    let host = host(EXPORT);
    let mut client = host.client();
    add_bitmaps(&mut client, &["base", "mid", "top", "vda"], "b");
    let commit = json!({"device": "top", "top-node": "mid", "base-node": "base"});
    run_job(&mut client, "block-commit", commit);
    let count = dirty(&mut client);
    let expect = [("base/b", MIB), ("mid/b", 0), ("top/b", 0), ("vda/b", 0)];
    assert_eq!(count, expect.map(|(of, bytes)| (of.to_owned(), bytes)).into());
    assert_eq!(read_all(host.daemon.uri("vda")), shown_at_first());
    let (_, images) = host.end();
    check_image(&images, "top.qcow2", &shown_at_first());
    assert_eq!(own_bytes(&images, "base.qcow2"), 6 * MIB);
}

/// E2b. qemu-storage-daemon: after the pivot the bitmap of `top` is frozen at what it was, and a write of the guest is
/// in that of `base` alone. Right: the drive's bitmap has what the guest wrote, before, while and after; that of
/// `base` what was written there; those of `mid` and `top`, which nobody uses any more, what they show otherwise than
/// before: they still stand on `base`.
#[test]
fn the_active_image_is_committed() {
    if !can_start() {
        return;
    }
    let host = host(EXPORT);
    let (mut client, uri) = (host.client(), host.daemon.uri("vda").to_owned());
    add_bitmaps(&mut client, &["base", "mid", "top", "vda"], "b");
    let mut expect = shown_at_first();
    let mut put = |offset: u64, value: u8| {
        write(&uri, offset, value, 64 * KIB);
        expect[offset as usize..(offset + 64 * KIB) as usize].fill(value);
    };
    put(12 * MIB, 7);
    let commit = json!({"device": "vda", "base-node": "base", "job-id": "j"});
    client.run("block-commit", commit);
    client.event("BLOCK_JOB_READY");
    put(13 * MIB, 8);
    assert_eq!(dirty(&mut client)["vda/b"], 128 * KIB);
    client.run("job-complete", json!({"id": "j"}));
    let done = client.event("BLOCK_JOB_COMPLETED");
    assert_eq!(done["data"]["error"], Value::Null);
    assert_eq!(root(&mut client), "base");
    put(14 * MIB, 9);
    let count = dirty(&mut client);
    assert_eq!(count["vda/b"], 3 * 64 * KIB, "{count:?}");
    assert_eq!(count["top/b"], 3 * 64 * KIB, "{count:?}");
    // 1 MiB of `mid`, and what the guest wrote.
    assert_eq!(count["base/b"], MIB + 3 * 64 * KIB, "{count:?}");
    assert_eq!(read_all(&uri), expect);
    let (_, images) = host.end();
    check_image(&images, "base.qcow2", &expect);
}

/// Without a base: qemu-storage-daemon commits to the lowest image of all. An error that names the candidates.
#[test]
fn a_commit_wants_to_be_told_where_to() {
    if !can_start() {
        return;
    }
    let host = host("");
    let (class, desc) = host.client().fail("block-commit", json!({"device": "vda"}));
    assert_eq!(class, "GenericError");
    assert_eq!(desc, "Parameter 'base-node' is missing: one of 'mid', 'base'");
    host.finish();
}

/// What another overlay stands on is not written, unless it is forced; then what that shows may have changed.
#[test]
fn a_base_that_others_stand_on() {
    if !can_start() {
        return;
    }
    let host = host(
        "[node.fother]\ndriver = \"file\"\npath = \"other.qcow2\"\n\
         [node.other]\ndriver = \"qcow2\"\nfile = \"fother\"\nbacking = \"base\"\n\
         create = { size = \"16MiB\" }\n[drive.vdb]\nroot = \"other\"\n",
    );
    let mut client = host.client();
    add_bitmaps(&mut client, &["vda", "vdb"], "b");
    let mut commit =
        json!({"device": "vda", "top-node": "mid", "base-node": "base", "job-id": "j"});
    let (_, desc) = client.fail("block-commit", commit.clone());
    assert!(desc.contains("vdb") || desc.contains("other"), "it names who would see it: {desc}");
    assert_eq!(client.run("query-jobs", json!({})), json!([]));
    commit["force"] = json!(true);
    run_job(&mut client, "block-commit", commit);
    let count = dirty(&mut client);
    assert_eq!((count["vda/b"], count["vdb/b"]), (0, MIB), "{count:?}");
    host.finish();
}

/// Puts an overlay on what the drive shows.
fn snapshot(host: &Controlled, client: &mut blockloom_tests::qmp::Qmp) {
    let path = host.scratch.image("snap.qcow2").display().to_string();
    let create = ["create", "-q", "-f", "qcow2", &path, "16M"];
    succeed("qemu-img", create);
    let file = json!({"driver": "file", "filename": path});
    let overlay = json!({"driver": "qcow2", "node-name": "snap", "file": file, "backing": null});
    client.run("blockdev-add", overlay);
    client.run("blockdev-snapshot", json!({"node": "top", "overlay": "snap"}));
}

/// E3. qemu-storage-daemon: the overlay has no bitmap; what is written from then on is recorded nowhere.
///
/// Right: the drive's bitmap goes on. E3c, a commit of the overlay back: `top` has what was really written to it;
/// a bitmap of the overlay itself goes with that only if whoever removes it says so.
#[test]
fn a_snapshot_and_back() {
    if !can_start() {
        return;
    }
    let host = host(EXPORT);
    let (mut client, uri) = (host.client(), host.daemon.uri("vda").to_owned());
    add_bitmaps(&mut client, &["top", "vda"], "b");
    write(&uri, 0, 7, 64 * KIB);
    snapshot(&host, &mut client);
    assert_eq!(root(&mut client), "snap");
    add_bitmaps(&mut client, &["snap"], "b2");
    write(&uri, MIB, 8, 64 * KIB);
    let count = dirty(&mut client);
    let seen = ["top/b", "snap/b2", "vda/b"].map(|of| count[of]);
    assert_eq!(seen, [64 * KIB, 64 * KIB, 128 * KIB], "{count:?}");

    run_job(&mut client, "block-commit", json!({"device": "vda", "base-node": "top"}));
    assert_eq!(root(&mut client), "top");
    let count = dirty(&mut client);
    let seen = ["top/b", "vda/b"].map(|of| count[of]);
    assert_eq!(seen, [128 * KIB, 128 * KIB], "{count:?}");
    let (_, desc) = client.fail("blockdev-del", json!({"node-name": "snap"}));
    assert!(desc.contains("b2"), "it names the bitmap: {desc}");
    client.run("blockdev-del", json!({"node-name": "snap", "bitmaps": "remove"}));
    let mut expect = shown_at_first();
    expect[..64 << 10].fill(7);
    expect[1 << 20..(1 << 20) + (64 << 10)].fill(8);
    assert_eq!(read_all(&uri), expect);
    host.finish();
}

/// The command sequences that end in an assertion of qemu-storage-daemon: an export of a node with its bitmap, a
/// pivot, a write, and then the former node is removed (E4 by commit, E4b by mirror); E16a, where it is only told to
/// quit, ends well there, too.
///
/// It shows the write as clean, refuses to remove the bitmap ("in use by another operation"), and aborts
/// (`!bdrv_dirty_bitmap_busy(bitmap)`) at `blockdev-del`.
///
/// Right: the write is dirty in every way in which it can be seen; the bitmap and its node are refused to go with the
/// name of the export that shows it, and go once that is gone.
#[test]
fn a_bitmap_of_a_former_root_that_an_export_shows() {
    if !can_start() {
        return;
    }
    for command in ["block-commit", "blockdev-mirror"] {
        let host = host("");
        let mut client = host.client();
        client.run("drive-del", json!({"id": "vda"}));
        let socket = host.scratch.path("nbd.sock").display().to_string();
        let at = json!({"type": "unix", "data": {"path": socket}});
        client.run("nbd-server-start", json!({"addr": at}));
        add_bitmaps(&mut client, &["top"], "b");
        let export = json!({"id": "e", "type": "nbd", "node-name": "top", "writable": true,
            "name": "e", "bitmaps": ["b"]});
        client.run("block-export-add", export);
        let uri = format!("nbd+unix:///e?socket={socket}");
        write(&uri, 0, 7, 64 * KIB);
        assert_eq!(dirty_ranges(&uri, "b"), [(0, 64 * KIB)]);
        let arguments = match command {
            "block-commit" => json!({"device": "top", "base-node": "base"}),
            _ => json!({"device": "top", "target": "tgt", "sync": "full"}),
        };
        let mut watcher = host.client();
        run_job(&mut client, command, arguments);
        write(&uri, 2 * MIB, 8, 64 * KIB);
        // That says nothing any more: whoever asks is told all, and whoever listens why.
        assert_eq!(dirty_ranges(&uri, "b"), [(0, 16 * MIB)], "{command}");
        bitmap_event(&mut watcher, "left");
        let exports = client.run("query-block-exports", json!({}));
        let root = if command == "block-commit" { "base" } else { "tgt" };
        assert_eq!(exports[0]["node-name"], root, "{command}");

        let bitmap = json!({"node": "top", "name": "b"});
        let (_, desc) = client.fail("block-dirty-bitmap-remove", bitmap);
        assert!(desc.contains("`e`") || desc.contains("'e'"), "{command}: {desc}");
        let (_, desc) = client.fail("blockdev-del", json!({"node-name": "top"}));
        assert!(desc.contains("`b`") || desc.contains("'b'"), "{command}: {desc}");
        let remove = json!({"node-name": "top", "bitmaps": "remove"});
        let (_, desc) = client.fail("blockdev-del", remove.clone());
        assert!(desc.contains("`e`"), "{command}: {desc}");
        client.run("block-export-del", json!({"id": "e", "mode": "hard"}));
        client.run("blockdev-del", remove);
        assert!(!has_node(&mut client, "top"));
        host.finish();
    }
}

/// E16b: an export shows a bitmap that it found in the backing image; a stream ends, and nobody uses that image any
/// more. qemu-storage-daemon aborts at the end of the stream, with every export that it serves.
///
/// Right: the image that has the bitmap stays, the export goes on to show it, and says all dirty: what it records is
/// not what the export shows.
#[test]
fn a_bitmap_of_a_backing_that_an_export_shows() {
    if !can_start() {
        return;
    }
    let host = host_of_headers(
        "[export.e]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\nwritable = true\n\
         bitmaps = [\"bp\"]\n",
    );
    let (mut client, uri) = (host.client(), host.daemon.uri("e").to_owned());
    run_job(&mut client, "block-stream", json!({"device": "vda"}));
    let count = dirty(&mut client);
    assert!(count.len() == 1 && count.values().all(|bytes| *bytes == 0), "{count:?}");
    write(&uri, 2 * MIB, 8, 64 * KIB);
    let shown = dirty_ranges(&uri, "bp");
    assert!(shown.iter().any(|(at, len)| (*at..at + len).contains(&(2 * MIB))), "{shown:?}");
    let mut expect = shown_at_first();
    expect[2 << 20..(2 << 20) + (64 << 10)].fill(8);
    assert_eq!(read_all(&uri), expect);
    host.finish();
}
