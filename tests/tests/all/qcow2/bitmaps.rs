//! Bitmaps that an image keeps: QEMU sees those of a server that has ended, and a server goes on with QEMU's.

use blockloom_tests::tools::{have, nbd_map, qemu_io, run, succeed};
use blockloom_tests::{Daemon, Scratch};

use crate::{ENGINES, scratch, serve};

pub(super) const GRANULE: u64 = 64 << 10;
const SIZE: &str = "64M";

/// Serves `disk.qcow2` with the drive's own bitmap `daily` and the image's bitmap `theirs`.
fn serve_image(scratch: &Scratch, engine: &str) -> Daemon {
    let graph = "
        [node.disk]
        driver = \"qcow2\"
        file = { driver = \"file\", path = \"DISK\" }
        [drive.vda]
        root = \"disk\"
        [bitmap.daily]
        drive = \"vda\"
        persist = \"root\"
        [export.vda]
        type = \"nbd\"
        drive = \"vda\"
        listen = \"unix:nbd.sock\"
        writable = true
        bitmaps = [\"daily\", \"theirs\"]
    ";
    let disk = scratch.image("disk.qcow2");
    let graph = graph.replace("DISK", disk.to_str().expect("UTF-8"));
    serve(scratch, &graph, &["--engine", engine])
}

/// Granules that are dirty in an export.
pub(super) fn dirty(uri: &str, name: &str) -> Vec<u64> {
    let map = nbd_map(uri, &format!("qemu:dirty-bitmap:{name}"));
    let runs = map.into_iter().filter(|(.., kind)| kind & 1 != 0);
    runs.flat_map(|(offset, len, _)| offset / GRANULE..(offset + len) / GRANULE).collect()
}

/// Granules that are dirty in the image, as QEMU shows it.
pub(super) fn dirty_in_image(disk: &str, name: &str) -> Vec<u64> {
    let context = format!("--map=qemu:dirty-bitmap:{name}");
    let server = ["--", "[", "qemu-nbd", "-r", "-f", "qcow2", "-B", name, disk, "]"];
    let map = succeed("nbdinfo", [context.as_str()].into_iter().chain(server));
    let field = |line: &str, at: usize| -> u64 {
        line.split_whitespace().nth(at).and_then(|it| it.parse().ok()).expect("a number")
    };
    let runs = map.lines().filter(|line| field(line, 2) == 1);
    runs.flat_map(|line| {
        let offset = field(line, 0);
        offset / GRANULE..(offset + field(line, 1)) / GRANULE
    })
    .collect()
}

/// The flags of each of the image's bitmaps, by name.
pub(crate) fn listed(disk: &str) -> Vec<(String, Vec<String>)> {
    // Also while a server has it.
    let json = succeed("qemu-img", ["info", "-U", "--output=json", "-f", "qcow2", disk]);
    let info: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let text = |it: &serde_json::Value| it.as_str().expect("text").to_owned();
    let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().cloned();
    let flags =
        |it: &serde_json::Value| it["flags"].as_array().expect("flags").iter().map(text).collect();
    let mut listed: Vec<_> =
        bitmaps.unwrap_or_default().iter().map(|it| (text(&it["name"]), flags(it))).collect();
    listed.sort();
    listed
}

fn flags_of(disk: &str, flags: &[&str]) {
    let flags: Vec<String> = flags.iter().map(|&flag| flag.into()).collect();
    let expect = ["daily", "theirs"].map(|name| (name.to_owned(), flags.clone()));
    assert_eq!(listed(disk), expect);
}

#[test]
fn a_server_and_qemu_take_turns() {
    if !have(&["qemu-img", "qemu-io", "qemu-nbd", "nbdinfo"]) {
        return;
    }
    for (options, engine) in ["cluster_size=64k", "cluster_size=512"].into_iter().zip(ENGINES) {
        let scratch = scratch();
        let path = scratch.image("disk.qcow2");
        let disk = path.to_str().expect("UTF-8");
        succeed("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, disk, SIZE]);
        succeed("qemu-img", ["bitmap", "--add", "-g", "64k", disk, "theirs"]);
        let write = |granule: u64| {
            let command = format!("write {}k 1k", granule * 64 + 3);
            succeed("qemu-io", ["-f", "qcow2", "-c", &command, disk]);
        };
        write(7);
        let mut daily = Vec::new();
        let mut theirs = vec![7];
        for round in 0..3 {
            let daemon = serve_image(&scratch, engine);
            flags_of(disk, &["in-use", "auto"]);
            let uri = daemon.uri("vda").to_owned();
            assert_eq!(dirty(&uri, "daily"), daily, "{options}, round {round}");
            assert_eq!(dirty(&uri, "theirs"), theirs, "{options}, round {round}");
            let granule = 100 + 2 * round;
            qemu_io(&uri, &[&format!("write {}k 64k", granule * 64)]);
            daemon.finish();
            daily.push(granule);
            theirs.push(granule);
            flags_of(disk, &["auto"]);
            assert_eq!(dirty_in_image(disk, "daily"), daily, "{options}, round {round}");
            assert_eq!(dirty_in_image(disk, "theirs"), theirs, "{options}, round {round}");
            let checked = succeed("qemu-img", ["check", "-f", "qcow2", disk]);
            assert!(checked.contains("No errors were found"), "{options}: {checked}");
            write(granule + 1);
            daily.push(granule + 1);
            theirs.push(granule + 1);
        }
    }
}

#[test]
fn a_server_that_is_killed_leaves_nothing_that_is_trusted() {
    if !have(&["qemu-img", "qemu-nbd", "nbdinfo"]) {
        return;
    }
    let scratch = scratch();
    let path = scratch.image("disk.qcow2");
    let disk = path.to_str().expect("UTF-8");
    succeed("qemu-img", ["create", "-q", "-f", "qcow2", disk, SIZE]);
    succeed("qemu-img", ["bitmap", "--add", "-g", "64k", disk, "theirs"]);
    let daemon = serve_image(&scratch, ENGINES[0]);
    qemu_io(daemon.uri("vda"), &["write 0 64k", "flush"]);
    daemon.kill();
    flags_of(disk, &["in-use", "auto"]);
    let checked = run("qemu-img", ["check", "-f", "qcow2", disk]);
    // 3: clusters have leaked, which is allowed.
    assert!(matches!(checked.status.code(), Some(0 | 3)), "{checked:?}");
    let daemon = serve_image(&scratch, ENGINES[0]);
    let uri = daemon.uri("vda");
    let all: Vec<u64> = (0..(64 << 20) / GRANULE).collect();
    assert_eq!((dirty(uri, "daily"), dirty(uri, "theirs")), (all.clone(), all));
    let log = daemon.finish();
    assert!(log.contains("`theirs`") && log.contains("inconsistent"), "{log}");
    flags_of(disk, &["in-use", "auto"]);
}
