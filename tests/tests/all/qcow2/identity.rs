//! What happens to stored bitmaps when something below their image is changed while no server has it open.

use std::collections::BTreeSet;

use blockloom_tests::tools::{fail, have, nbd_map, qemu_io, run, succeed};
use blockloom_tests::{Daemon, Scratch};

use super::bitmaps::{GRANULE, dirty, dirty_in_image, listed};
use crate::{ENGINES, program, scratch, serve, try_serve};

const SIZE: &str = "64M";
const TOOLS: [&str; 4] = ["qemu-img", "qemu-io", "qemu-nbd", "nbdinfo"];

fn all() -> Vec<u64> {
    (0..(64 << 20) / GRANULE).collect()
}

/// A place with images of which each stands on the one before.
fn chain(names: &[&str]) -> Scratch {
    let scratch = scratch();
    let mut below: Option<&str> = None;
    for name in names {
        let path = scratch.image(name);
        let path = path.to_str().expect("UTF-8");
        match below {
            None => succeed("qemu-img", ["create", "-q", "-f", "qcow2", path, SIZE]),
            Some(base) => succeed(
                "qemu-img",
                ["create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path],
            ),
        };
        below = Some(name);
    }
    scratch
}

fn text(scratch: &Scratch, name: &str) -> String {
    scratch.image(name).to_str().expect("UTF-8").to_owned()
}

/// Changes an image behind a server's back.
fn change(scratch: &Scratch, name: &str, format: &str, granule: u64) {
    let command = format!("write {}k 4k", granule * 64);
    succeed("qemu-io", ["-f", format, "-c", &command, &text(scratch, name)]);
}

/// A graph whose drive has the bitmap `daily`, with these nodes; `PATH/` is where the images are.
fn graph(scratch: &Scratch, nodes: &str, daily: &str) -> String {
    let place = text(scratch, "x");
    let place = place.strip_suffix('x').expect("a directory");
    let nodes = nodes.replace("PATH/", place);
    format!(
        "{nodes}
         [drive.vda]
         root = \"root\"
         [bitmap.daily]
         drive = \"vda\"
         {daily}
         [export.vda]
         type = \"nbd\"
         drive = \"vda\"
         listen = \"unix:nbd.sock\"
         writable = true
         bitmaps = [\"daily\"]"
    )
}

const OVERLAY: &str = "
    [node.root]
    driver = \"qcow2\"
    file = { driver = \"file\", path = \"PATH/top.qcow2\" }";

/// Metadata over a filter over a chain of images.
const META: &str = "
    [node.lower]
    driver = \"qcow2\"
    file = { driver = \"file\", path = \"PATH/lower.qcow2\" }
    [node.slow]
    driver = \"throttle\"
    child.file = \"lower\"
    config.iops = 100000
    [node.root]
    driver = \"qcow2\"
    file = { driver = \"file\", path = \"PATH/meta.qcow2\" }
    data-file = \"slow\"";

fn marked_whole(log: &str, names: &[&str]) {
    let line = log.lines().find(|line| line.contains("was marked whole"));
    let line = line.unwrap_or_else(|| panic!("no event: {log}"));
    let all = names.iter().chain(&["bitmap `daily`", "image of node `root`"]);
    all.for_each(|name| assert!(line.contains(name), "{name}: {line}"));
}

fn unmarked(log: &str) {
    assert!(!log.contains("was marked whole"), "{log}");
}

#[test]
fn metadata_alone_keep_the_bitmap_of_any_graph() {
    if !have(&TOOLS) {
        return;
    }
    for engine in ENGINES {
        let scratch = chain(&["base.qcow2", "lower.qcow2"]);
        change(&scratch, "base.qcow2", "qcow2", 40);
        let (meta, lower) = (text(&scratch, "meta.qcow2"), text(&scratch, "lower.qcow2"));
        let program = program().to_str().expect("UTF-8");
        succeed(program, ["image", "create", "--data-node", "--size-of", &lower, &meta]);
        // Nobody has it with other bytes by mistake.
        let refused = fail("qemu-io", ["-f", "qcow2", "-c", "read 0 4k", &meta]);
        assert!(refused.contains("'data-file' is required"), "{refused}");
        let text = graph(&scratch, META, "persist = \"meta\"");
        let serve = || serve(&scratch, &text, &["--engine", engine]);
        let mut expect = BTreeSet::new();
        for round in 0..3 {
            let daemon = serve();
            let uri = daemon.uri("vda").to_owned();
            let before: Vec<u64> = expect.iter().copied().collect();
            assert_eq!(dirty(&uri, "daily"), before, "{engine}, round {round}");
            let (first, second) = (100 * round + 1, 100 * round + 51);
            let far = format!("write {}k 1k", second * 64 + 9);
            qemu_io(&uri, &[&format!("write {}k 128k", first * 64), &far]);
            expect.extend([first, first + 1, second]);
            let data = nbd_map(&uri, "base:allocation").into_iter().filter(|it| it.2 & 1 == 0);
            let data: BTreeSet<u64> = data.map(|(offset, ..)| offset / GRANULE).collect();
            assert!(data.contains(&first) && data.contains(&40), "{data:?}");
            assert!(!data.contains(&30), "{data:?}");
            unmarked(&daemon.finish());
            assert_eq!(listed(&meta), [("daily".to_owned(), vec!["auto".to_owned()])]);
        }
        for (name, granule) in [("base.qcow2", 700), ("lower.qcow2", 701)] {
            change(&scratch, name, "qcow2", granule);
            let daemon = serve();
            assert_eq!(dirty(daemon.uri("vda"), "daily"), all(), "{engine}, {name}");
            marked_whole(&daemon.finish(), &[name]);
            // It goes on from there.
            unmarked(&serve().finish());
        }
    }
}

fn precise(daemon: Daemon, expect: &[u64]) {
    assert_eq!(dirty(daemon.uri("vda"), "daily"), expect);
    unmarked(&daemon.finish());
}

#[test]
fn a_base_that_was_changed_makes_all_dirty() {
    if !have(&TOOLS) {
        return;
    }
    let scratch = chain(&["base.qcow2", "middle.qcow2", "top.qcow2"]);
    let serve = || serve(&scratch, &graph(&scratch, OVERLAY, "persist = \"root\""), &[]);
    let daemon = serve();
    qemu_io(daemon.uri("vda"), &["write 0 64k", "write 640k 64k"]);
    daemon.finish();
    precise(serve(), &[0, 10]);
    // QEMU keeps the bitmap of what it writes itself, and what is below has not been changed.
    change(&scratch, "top.qcow2", "qcow2", 20);
    assert_eq!(dirty_in_image(&text(&scratch, "top.qcow2"), "daily"), [0, 10, 20]);
    precise(serve(), &[0, 10, 20]);
    change(&scratch, "base.qcow2", "qcow2", 30);
    let daemon = serve();
    assert_eq!(dirty(daemon.uri("vda"), "daily"), all());
    marked_whole(&daemon.finish(), &["base.qcow2"]);
    precise(serve(), &all());
    for name in ["top.qcow2", "middle.qcow2", "base.qcow2"] {
        let checked = run("qemu-img", ["check", "-f", "qcow2", &text(&scratch, name)]);
        assert_eq!(checked.status.code(), Some(0), "{name}: {checked:?}");
    }
}

/// Made by QEMU, over something that nobody has spoken of.
#[test]
fn a_bitmap_of_qemu_is_believed_as_qemu_does_unless_it_is_a_drives() {
    if !have(&TOOLS) {
        return;
    }
    let scratch = chain(&["base.qcow2", "top.qcow2"]);
    let top = text(&scratch, "top.qcow2");
    for name in ["daily", "theirs"] {
        succeed("qemu-img", ["bitmap", "--add", "-g", "64k", &top, name]);
    }
    change(&scratch, "top.qcow2", "qcow2", 5);
    let text = graph(&scratch, OVERLAY, "persist = \"root\"");
    let text = text.replace("\"daily\"]", "\"daily\", \"theirs\"]");
    let daemon = serve(&scratch, &text, &[]);
    assert_eq!(dirty(daemon.uri("vda"), "theirs"), [5]);
    assert_eq!(dirty(daemon.uri("vda"), "daily"), all());
    marked_whole(&daemon.finish(), &["nobody has said what was below"]);
    let daemon = serve(&scratch, &text, &[]);
    assert_eq!(dirty(daemon.uri("vda"), "theirs"), [5]);
    unmarked(&daemon.finish());
}

#[test]
fn a_data_file_may_be_written_through_the_image_alone() {
    if !have(&TOOLS) {
        return;
    }
    let scratch = scratch();
    let (disk, raw) = (text(&scratch, "top.qcow2"), text(&scratch, "top.raw"));
    let options = format!("data_file={raw},data_file_raw=on");
    succeed("qemu-img", ["create", "-q", "-f", "qcow2", "-o", &options, &disk, SIZE]);
    succeed("qemu-img", ["bitmap", "--add", "-g", "64k", &disk, "theirs"]);
    // What is written is not for the image to choose.
    let data = "driver = \"qcow2\"\ndata-file = { driver = \"file\", path = \"PATH/top.raw\" }";
    let nodes = OVERLAY.replace("driver = \"qcow2\"", data);
    let text = graph(&scratch, &nodes, "persist = \"root\"");
    let text = text.replace("\"daily\"]", "\"daily\", \"theirs\"]");
    let serve = || serve(&scratch, &text, &[]);
    let daemon = serve();
    // What has been made by QEMU, over a file of which nobody has said anything, is a node's.
    assert_eq!(dirty(daemon.uri("vda"), "theirs"), [0_u64; 0]);
    qemu_io(daemon.uri("vda"), &["write 0 64k"]);
    daemon.finish();
    precise(serve(), &[0]);
    change(&scratch, "top.qcow2", "qcow2", 7);
    let daemon = serve();
    assert_eq!(dirty(daemon.uri("vda"), "theirs"), [0, 7]);
    assert_eq!(dirty(daemon.uri("vda"), "daily"), all());
    marked_whole(&daemon.finish(), &["data file", "top.raw"]);
    // Not through the image: nobody has followed it.
    change(&scratch, "top.raw", "raw", 9);
    let daemon = serve();
    assert_eq!(dirty(daemon.uri("vda"), "theirs"), all());
    assert!(daemon.finish().contains("bitmap `theirs` of node `root` was marked whole"));
}

#[test]
fn a_uuid_that_is_asked_for_is_that_of_the_stored_bitmap() {
    if !have(&["qemu-img"]) {
        return;
    }
    let scratch = chain(&["top.qcow2"]);
    let daily = |uuid: &str| format!("persist = \"root\"\nuuid = \"{uuid}\"");
    let mine = "123e4567-e89b-42d3-a456-426614174000";
    for _ in 0..2 {
        serve(&scratch, &graph(&scratch, OVERLAY, &daily(mine)), &[]).finish();
    }
    let other = mine.replace('1', "9");
    let refused = try_serve(&scratch, &graph(&scratch, OVERLAY, &daily(&other)), &[]);
    let Err(refused) = refused else { panic!("another bitmap was taken") };
    let said = refused.stderr;
    assert!(said.contains(mine) && said.contains(&other), "{said}");
    assert!(said.contains("the UUID that it is to have"), "{said}");
    serve(&scratch, &graph(&scratch, OVERLAY, "persist = \"root\""), &[]).finish();
}
