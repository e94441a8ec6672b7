//! The view of a backup's point in time: what a client pulls from it while the disk goes on changing.

use std::thread;

use blockloom_tests::tools::{compare, fio, have, nbd_map, qemu_io, run, succeed};
use blockloom_tests::{Daemon, Scratch};

use crate::backup::{DRIVERS, SIZE, file, graph, images, text};
use crate::{scratch, serve, try_serve};

const TOOLS: [&str; 5] = ["qemu-img", "qemu-io", "nbdinfo", "nbdcopy", "fio"];

/// The view, and an export of it.
const VIEW: &str = "[node.then]\ndriver = \"plugin-view\"\nof = \"backup\"\nview = \"snapshot\"\n\
     [export.then]\ntype = \"nbd\"\nnode = \"then\"\nlisten = \"unix:then.sock\"\n";

fn serve_view(scratch: &Scratch, driver: &str, config: &str, arguments: &[&str]) -> Daemon {
    let (disk, target) = (file(scratch, "disk.img"), file(scratch, "target.img"));
    let daemon = serve(scratch, &graph(driver, &disk, &target, config, VIEW), arguments);
    daemon.wait_for_log("the point in time is reached");
    daemon
}

/// What a guest does all the time: it writes, and finds what it has written.
fn load(uri: &str, seed: &str) {
    let (uri, seed) = (format!("uri={uri}"), format!("randseed={seed}"));
    fio(&[
        "name=load",
        "ioengine=nbd",
        &uri,
        "rw=randwrite",
        "bsrange=4k-40k",
        "blockalign=4k",
        "iodepth=16",
        "size=48M",
        "io_size=40M",
        &seed,
        "verify=crc32c",
        "verify_state_save=0",
    ]);
}

/// Why a read fails.
fn read_error(uri: &str) -> String {
    let read = run("qemu-io", ["-r", "-f", "raw", "-c", "read 5M 64k", uri]);
    let said = String::from_utf8_lossy(&read.stdout).into_owned();
    said.trim().strip_prefix("read failed: ").unwrap_or_else(|| panic!("{read:?}")).to_owned()
}

#[test]
fn a_pull_under_load_is_of_one_moment() {
    if !have(&TOOLS) {
        return;
    }
    for (driver, workers) in DRIVERS.into_iter().flat_map(|it| [(it, "1"), (it, "2")]) {
        let scratch = images();
        let config = "sync = \"none\", min-cluster-size = \"16KiB\"";
        let daemon = serve_view(&scratch, driver, config, &["--workers", workers]);
        let (uri, view) = (daemon.uri("vda").to_owned(), daemon.uri("then").to_owned());
        let writing = thread::spawn(move || (0..2).for_each(|seed| load(&uri, &seed.to_string())));
        let pulled = text(&scratch, "pulled.img");
        let mut rounds = 0;
        while rounds < 3 || !writing.is_finished() {
            rounds += 1;
            if rounds % 2 == 1 {
                succeed("qemu-img", ["convert", "-f", "raw", "-O", "raw", &view, &pulled]);
            } else {
                succeed("nbdcopy", ["--allocated", &view, &pulled]);
            }
            compare(&text(&scratch, "then.img"), &pulled);
        }
        writing.join().expect("the guest finds what it has written");
        daemon.finish();
    }
}

#[test]
fn a_complete_backup_shows_its_point_in_time() {
    if !have(&TOOLS) {
        return;
    }
    for driver in DRIVERS {
        let scratch = images();
        let daemon = serve_view(&scratch, driver, "", &[]);
        qemu_io(daemon.uri("vda"), &["write -P 9 5M 1M", "discard 8M 1M"]);
        daemon.wait_for_log("the backup is complete");
        qemu_io(daemon.uri("vda"), &["write -P 8 4M 8M", "write -z 20M 64k"]);
        let pulled = text(&scratch, "pulled.img");
        succeed("nbdcopy", [daemon.uri("then"), &pulled]);
        compare(&text(&scratch, "then.img"), &pulled);
        daemon.finish();
    }
}

#[test]
fn what_an_incremental_backup_does_not_cover_cannot_be_read() {
    if !have(&TOOLS) {
        return;
    }
    for driver in DRIVERS {
        let scratch = images();
        let (disk, target) = (file(&scratch, "disk.img"), file(&scratch, "target.img"));
        let more = format!("[bitmap.daily]\ndrive = \"vda\"\n{VIEW}");
        let graph = graph(driver, &disk, &target, "sync = \"incremental\"", &more);
        let graph = graph.replace("child.file", "bitmap.changes = \"daily\"\nchild.file");
        // Nothing has changed: there is nothing to show.
        let daemon = serve(&scratch, &graph, &[]);
        daemon.wait_for_log("the backup is complete");
        let view = daemon.uri("then").to_owned();
        assert_eq!(nbd_map(&view, "base:allocation"), [(0, SIZE, 1)], "one answer for all");
        assert_eq!(read_error(&view), "Input/output error");
        daemon.finish();
    }
}

/// An incremental backup of two places: each can be read, all else fails by itself, and block status tells them
/// apart without ever failing.
#[test]
fn a_view_of_what_a_bitmap_says() {
    if !have(&TOOLS) {
        return;
    }
    DRIVERS.into_iter().for_each(check_partly_covered);
}

fn check_partly_covered(driver: &str) {
    const MIB: u64 = 1 << 20;
    const KIB: u64 = 1 << 10;
    let scratch = images();
    let disk = text(&scratch, "disk.qcow2");
    succeed("qemu-img", ["create", "-q", "-f", "qcow2", &disk, &SIZE.to_string()]);
    let image = format!("driver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"{disk}\" }}\n");
    let keep = "[bitmap.daily]\ndrive = \"vda\"\npersist = \"root\"\n";
    let alone = format!(
        "[node.disk]\n{image}[drive.vda]\nroot = \"disk\"\n{keep}\
         [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
         writable = true\n"
    );
    let daemon = serve(&scratch, &alone, &[]);
    qemu_io(daemon.uri("vda"), &["write -P 7 5M 64k", "write -P 8 20M 128k"]);
    daemon.finish();

    let target = file(&scratch, "target.img");
    let graph = graph(driver, &image, &target, "sync = \"incremental\"", &format!("{keep}{VIEW}"));
    let graph = graph.replace("child.file", "bitmap.changes = \"daily\"\nchild.file");
    let daemon = serve(&scratch, &graph, &[]);
    daemon.wait_for_log("the point in time is reached");
    let view = daemon.uri("then").to_owned();
    let expect = [
        (0, 5 * MIB, 1),
        (5 * MIB, 64 * KIB, 0),
        (5 * MIB + 64 * KIB, 15 * MIB - 64 * KIB, 1),
        (20 * MIB, 128 * KIB, 0),
        (20 * MIB + 128 * KIB, SIZE - 20 * MIB - 128 * KIB, 1),
    ];
    for round in 0..2 {
        assert_eq!(nbd_map(&view, "base:allocation"), expect, "{driver} {round}");
        let commands = [
            "read -P 7 5M 64k",
            "read 0 64k",
            "read -P 8 20M 128k",
            "read 5160960 4k",
            "read -P 7 5239808 68k",
            "read -P 8 20M 4k",
        ];
        let arguments = commands.iter().flat_map(|command| ["-c", command]);
        let read = run("qemu-io", ["-r", "-f", "raw"].into_iter().chain(arguments).chain([&*view]));
        let said = String::from_utf8_lossy(&read.stdout).into_owned();
        let lines = said.lines().filter(|line| line.starts_with("read"));
        let failed: Vec<bool> =
            lines.map(|line| line == "read failed: Input/output error").collect();
        assert_eq!(failed, [false, true, false, true, true, false], "{driver}: {said}");
        assert!(!said.contains("Pattern verification failed"), "{driver}: {said}");
        // What changes now shows in no part of it.
        qemu_io(daemon.uri("vda"), &["write -P 1 5M 64k", "write -P 2 0 64k", "discard 20M 128k"]);
        daemon.wait_for_log("the backup is complete");
    }
    daemon.finish();
}

#[test]
fn a_broken_backup_has_no_view() {
    if !have(&TOOLS) {
        return;
    }
    for driver in DRIVERS {
        let scratch = images();
        let config = "sync = \"none\", on-cbw-error = \"break-snapshot\", cbw-timeout = \"1ns\"";
        let daemon = serve_view(&scratch, driver, config, &[]);
        let view = daemon.uri("then").to_owned();
        succeed("qemu-io", ["-r", "-f", "raw", "-c", "read 5M 64k", &view]);
        qemu_io(daemon.uri("vda"), &["write -P 9 5M 64k"]);
        assert_eq!(read_error(&view), "Input/output error");
        assert_eq!(nbd_map(&view, "base:allocation"), [(0, SIZE, 1)]);
        daemon.wait_for_log("the backup is broken");
        daemon.finish();
    }
}

#[test]
fn views_that_there_are_not_are_refused() {
    let scratch = scratch();
    let memory = "driver = \"memory\"\nsize = \"1MiB\"";
    let check = |graph: &str, expect: &str| {
        let refused = try_serve(&scratch, graph, &[]).err().expect("a refusal");
        assert!(refused.stderr.contains(expect), "{expect}: {}", refused.stderr);
    };
    for driver in DRIVERS {
        let graph = |more: &str| graph(driver, memory, memory, "", more);
        let view = |from: &str, to: &str| graph(&VIEW.replace(from, to));
        check(&view("of = \"backup\"", "of = \"nobody\""), "refers to node `nobody`");
        check(&view("of = \"backup\"", "of = \"disk\""), "its driver is `memory`");
        check(&view("of = \"backup\"\n", ""), "add `of = \"NODE\"`");
        check(&view("\"snapshot\"", "\"past\""), "no view `past`");
        let node = "node = \"then\"";
        check(&view(node, &format!("{node}\nwritable = true")), "shows a point in time");
    }
    let pass = "driver = \"plugin\"\nplugin = \"pass\"\ngrant.file = [\"read\"]";
    check(&graph(pass, memory, memory, "", VIEW), "offers no view `snapshot`");
    let alone = graph(DRIVERS[0], memory, memory, "", VIEW);
    let alone = alone.replace("child.target = \"target\"\n", "");
    check(&alone, "has no child `target`: it has no view");
}

#[test]
fn full_and_incremental_backups_under_load_are_each_of_their_moment() {
    if !have(&TOOLS) {
        return;
    }
    DRIVERS.into_iter().for_each(check_chain);
}

/// One backup of `disk.qcow2` to `backup-N.qcow2`, an overlay of the one before; what is changed from its
/// moment on is in the bitmap `day-N`, which the next one copies.
fn serve_day(scratch: &Scratch, driver: &str, day: usize) -> Daemon {
    let image = |name: &str, more: &str| {
        let path = text(scratch, name);
        format!("driver = \"qcow2\"\n{more}file = {{ driver = \"file\", path = \"{path}\" }}\n")
    };
    let keep = |day: usize| format!("[bitmap.day-{day}]\ndrive = \"vda\"\npersist = \"root\"\n");
    let (disk, target) = (image("disk.qcow2", ""), image(&format!("backup-{day}.qcow2"), ""));
    let config = "speed = \"200MiB\"";
    let text = match day {
        0 => graph(driver, &disk, &target, config, &keep(0)),
        _ => {
            let more = format!("{}{}", keep(day - 1), keep(day));
            let config = format!("sync = \"incremental\", {config}");
            let graph = graph(driver, &disk, &target, &config, &more);
            let lent = format!("bitmap.changes = \"day-{}\"\nchild.file", day - 1);
            graph.replace("child.file", &lent)
        }
    };
    serve(scratch, &text, &[])
}

fn check_chain(driver: &str) {
    const DAYS: usize = 6;
    let scratch = scratch();
    let path = |name: &str| text(&scratch, name);
    let disk = path("disk.qcow2");
    succeed("qemu-img", ["create", "-q", "-f", "qcow2", &disk, &SIZE.to_string()]);
    succeed("qemu-io", ["-f", "qcow2", "-c", "write -P 1 20M 8M", &disk]);
    for day in 0..DAYS {
        let (target, then) = (path(&format!("backup-{day}.qcow2")), path(&format!("then-{day}")));
        let below = format!("backup-{}.qcow2", day.wrapping_sub(1));
        let mut create = vec!["create", "-q", "-f", "qcow2"];
        if day > 0 {
            create.extend(["-b", &below, "-F", "qcow2"]);
        }
        let size = SIZE.to_string();
        succeed("qemu-img", create.into_iter().chain([target.as_str(), &size]));
        succeed("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", &disk, &then]);
        let daemon = serve_day(&scratch, driver, day);
        fio(&[
            "name=load",
            "ioengine=nbd",
            &format!("uri={}", daemon.uri("vda")),
            "rw=randwrite",
            "bsrange=512-40k",
            "bs_unaligned=0",
            "iodepth=8",
            "size=48M",
            "io_size=4M",
            &format!("randseed={day}"),
        ]);
        daemon.wait_for_log("the backup is complete");
        qemu_io(daemon.uri("vda"), &["write -P 9 1M 64k", "write -z 2M 200k", "discard 30M 1M"]);
        daemon.finish();
    }
    for day in 0..DAYS {
        let (target, then) = (path(&format!("backup-{day}.qcow2")), path(&format!("then-{day}")));
        let compared = ["compare", "-f", "raw", "-F", "qcow2", &then, &target];
        succeed("qemu-img", compared);
    }
    let allocated = succeed("qemu-img", ["map", "--output=json", &path("backup-5.qcow2")]);
    assert!(allocated.contains("\"depth\": 1"), "the last one is a part of the disk: {allocated}");
}
