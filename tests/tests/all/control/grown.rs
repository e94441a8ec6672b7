//! Points in time of disks that grow afterwards: their views keep the size that the disks had.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use blockloom_tests::nbd::{Client, Terms};
use blockloom_tests::qmp::Qmp;
use blockloom_tests::{pattern, tools};
use serde_json::{Value, json};

use super::{Controlled, Over};
use crate::backup::{DRIVERS, file, graph};
use crate::{KIB, MIB};

/// No multiple of the granules in which is copied.
const SIZE: u64 = 2 * MIB + 4 * KIB;
const GROWN: u64 = 3 * MIB;
const DIRTY: &str = "qemu:dirty-bitmap:daily";
const TOOLS: [&str; 3] = ["nbdcopy", "nbdinfo", "qemu-img"];

fn resize(client: &mut Qmp, node: &str, size_bytes: u64) {
    client.run("block_resize", json!({"device": node, "size": size_bytes}));
}

fn uri(socket: &Path, name: &str) -> String {
    format!("nbd+unix:///{name}?socket={}", socket.display())
}

/// What `nbdcopy` makes of a view is what was there, and so is its map.
fn check_copy(host: &Controlled, uri: &str, expect: &[u8], what: &str) {
    let copy = host.scratch.path("copy.img");
    let path = copy.display().to_string();
    tools::succeed("nbdcopy", ["--allocated", uri, &path]);
    assert!(fs::read(&copy).expect("the copy") == expect, "{what}: something else is shown");
    fs::remove_file(&copy).expect("the copy");
    let map = tools::nbd_map(uri, "base:allocation");
    assert_eq!(map.iter().map(|(_, len, _)| len).sum::<u64>(), SIZE, "{what}: {map:?}");
}

/// The size of a node as clients of the control socket see it.
fn shown_size(client: &mut Qmp, node: &str) -> Value {
    let nodes = client.run("query-named-block-nodes", json!({}));
    let mut nodes = nodes.as_array().expect("a list").iter();
    let found = nodes.find(|it| it["node-name"] == node);
    found.expect("the node")["image"]["virtual-size"].clone()
}

/// Writes each block of a disk, also behind where it ended, over and over until it is told to stop.
fn guest(uri: &str, size_bytes: u64, over: &AtomicBool) {
    let mut nbd = Client::open(uri);
    assert_eq!(nbd.size_bytes(), size_bytes);
    let blocks = size_bytes / (4 * KIB);
    for number in 0_u64.. {
        // A prime: each block comes once in a round.
        let at = number * 7919 % blocks * 4 * KIB;
        assert_eq!(nbd.write(0, at, &[number as u8 | 1; 4096]), 0, "at {at}");
        if over.load(Ordering::Relaxed) && number > blocks {
            break;
        }
    }
    nbd.disconnect();
}

/// Runs `check` while a guest writes to a disk of this size.
fn under_fire(uri: &str, size_bytes: u64, check: impl FnOnce()) {
    let over = AtomicBool::new(false);
    thread::scope(|threads| {
        threads.spawn(|| guest(uri, size_bytes, &over));
        let _over = Over(&over);
        check();
    });
}

/// A drive on a disk, exported, with a bitmap.
fn drive(id: &str, disk: &str) -> String {
    format!(
        "[node.{id}-disk]\n{disk}\n[drive.{id}]\nroot = \"{id}-disk\"\nwritable = true\n\
         [bitmap.{id}]\ndrive = \"{id}\"\nname = \"daily\"\n\
         [export.{id}]\ntype = \"nbd\"\ndrive = \"{id}\"\nlisten = \"unix:nbd.sock\"\n\
         writable = true\nbitmaps = [\"{id}\"]\n"
    )
}

/// Views of a checkpoint, one of which keeps old bytes in an image that is as long as the disk was.
#[test]
fn views_of_a_checkpoint_keep_their_size() {
    if !tools::have(&TOOLS) {
        return;
    }
    let memory = format!("driver = \"memory\"\nsize = {SIZE}");
    let image = format!(
        "driver = \"qcow2\"\ncreate = {{ size = {SIZE} }}\n\
         file = {{ driver = \"file\", path = \"vdb.qcow2\" }}"
    );
    let text = format!("{}{}", drive("vda", &memory), drive("vdb", &image));
    let host = Controlled::start(&text, &["--workers", "2"]);
    let mut client = host.client();
    let then = pattern(3, SIZE as usize);
    for drive in ["vda", "vdb"] {
        let mut nbd = Client::open(host.daemon.uri(drive));
        for (at, bytes) in (0..).step_by(64 << 10).zip(then.chunks(64 << 10)) {
            assert_eq!(nbd.write(0, at, bytes), 0);
        }
        nbd.disconnect();
    }
    let view = |drive: &str| {
        json!({"node": drive, "node-name": format!("{drive}-then"),
            "export": {"id": format!("{drive}-then"), "listen": "unix:view.sock"}})
    };
    let mut second = view("vdb");
    let kept = host.scratch.path("kept.qcow2").display().to_string();
    second["target"] = json!({"driver": "qcow2", "node-name": "kept", "create": {"size": SIZE},
        "backing": null, "file": {"driver": "file", "filename": kept}});
    let bitmap = |drive: &str| json!({"node": drive, "name": "daily"});
    let checkpoint = json!({"id": "one", "bitmaps": [bitmap("vda"), bitmap("vdb")],
        "views": [view("vda"), second]});
    client.run("checkpoint", checkpoint);
    let socket = host.scratch.path("view.sock");
    let terms = Terms { contexts: &[DIRTY], ..Terms::default() };
    for drive in ["vda", "vdb"] {
        let name = format!("{drive}-then");
        let view = uri(&socket, &name);
        let mut early = Client::with(&view, &terms).expect("the view");
        let dirty = early.flagged(DIRTY);
        let live = host.daemon.uri(drive);
        for size_bytes in [SIZE + 60 * KIB, GROWN] {
            resize(&mut client, drive, size_bytes);
            under_fire(live, size_bytes, || check_copy(&host, &view, &then, &name));
            check_copy(&host, &view, &then, &name);
        }
        let mut late = Client::with(&view, &terms).expect("the view");
        for nbd in [&mut early, &mut late] {
            assert_eq!(nbd.size_bytes(), SIZE);
            assert_eq!(nbd.flagged(DIRTY), dirty, "what is frozen stands still");
            assert!(nbd.read(SIZE - 512, 512) == Ok(then[SIZE as usize - 512..].to_vec()));
            assert!(nbd.read(SIZE, 512).is_err(), "it ends there");
        }
        let map = tools::nbd_map(&view, DIRTY);
        assert_eq!(map.iter().map(|(_, len, _)| len).sum::<u64>(), SIZE, "{map:?}");
        early.disconnect();
        late.disconnect();
        assert_eq!(shown_size(&mut client, &name), SIZE);
        assert_eq!(shown_size(&mut client, &format!("{drive}-disk")), GROWN);
        // All of it has been overwritten, and is kept.
        resize(&mut client, drive, MIB);
        check_copy(&host, &view, &then, &name);
    }
    client.run("checkpoint-end", json!({"id": "one", "completed": true}));
    host.finish();
}

/// What is still needed is not cut off, and who needs it is told.
#[test]
fn a_disk_does_not_shrink_below_a_checkpoint() {
    let host = Controlled::start(&drive("vda", "driver = \"memory\"\nsize = \"2MiB\""), &[]);
    let mut client = host.client();
    let view = json!({"node": "vda", "node-name": "then"});
    client.run("checkpoint", json!({"id": "one", "views": [view]}));
    let shrink = json!({"device": "vda", "size": MIB});
    let (_, desc) = client.fail("block_resize", shrink.clone());
    let expected = "node `then.filter` keeps what was there at one point in time, which node `then` shows, and a \
                    shrink would cut off what it has not copied yet";
    assert!(desc.contains(expected), "{desc}");
    client.run("checkpoint-end", json!({"id": "one", "completed": true}));
    client.run("block_resize", shrink);
    host.finish();
}

/// Both drivers, from a graph file; the plugin starts again in between.
#[test]
fn views_of_backups_keep_their_size() {
    if !tools::have(&TOOLS) {
        return;
    }
    for driver in DRIVERS {
        ["none", "full"].into_iter().for_each(|sync| check_backup(driver, sync));
    }
}

fn check_backup(driver: &str, sync: &str) {
    let scratch = crate::scratch();
    let bytes = pattern(5, SIZE as usize);
    scratch.image_of("disk.img", &bytes);
    scratch.sparse_image("target.img", SIZE);
    let (disk, target) = (file(&scratch, "disk.img"), file(&scratch, "target.img"));
    let view = "[node.then]\ndriver = \"plugin-view\"\nof = \"backup\"\nview = \"snapshot\"\n\
        [export.then]\ntype = \"nbd\"\nnode = \"then\"\nlisten = \"unix:then.sock\"\n";
    let config = format!("sync = \"{sync}\", speed = \"8MiB\"");
    let text = graph(driver, &disk, &target, &config, view);
    let host = Controlled::start_in(scratch, &text, &["--workers", "2"]);
    host.daemon.wait_for_log("the point in time is reached");
    let (mut client, live) = (host.client(), host.daemon.uri("vda").to_owned());
    let view = host.daemon.uri("then").to_owned();
    let what = format!("{driver}, {sync}");
    for size_bytes in [SIZE + 60 * KIB, GROWN] {
        resize(&mut client, "vda", size_bytes);
        under_fire(&live, size_bytes, || check_copy(&host, &view, &bytes, &what));
        check_copy(&host, &view, &bytes, &what);
    }
    assert_eq!(shown_size(&mut client, "then"), SIZE);
    let (log, scratch) = host.end();
    assert!(!log.contains("the backup is broken"), "{what}: {log}");
    // Each granule has been overwritten, so all of it has been copied.
    assert!(fs::read(scratch.image("target.img")).expect("the target") == bytes, "{what}");
}
