//! `backup`, the plugin and the host's own: a target that holds what the disk held at one point in time.

use std::fs;

use blockloom_tests::tools::{compare, fio, have, nbd_map, qemu_io, succeed};
use blockloom_tests::{Daemon, Scratch, pattern};

use crate::{KIB, MIB, scratch, serve, try_serve};

pub(crate) const SIZE: u64 = 48 * MIB;
const TOOLS: [&str; 4] = ["qemu-img", "qemu-io", "nbdinfo", "fio"];

/// The plugin, with its grants, and the host's own.
pub(crate) const DRIVERS: [&str; 2] = [
    "driver = \"plugin\"\nplugin = \"backup\"\ngrant.file = [\"read\"]\n\
     grant.target = [\"write\"]",
    "driver = \"backup\"",
];

/// A disk behind a backup, with what else there is.
pub(crate) fn graph(driver: &str, disk: &str, target: &str, config: &str, more: &str) -> String {
    format!(
        "[node.disk]\n{disk}\n\
         [node.target]\n{target}\n\
         [node.backup]\n{driver}\nchild.file = \"disk\"\nchild.target = \"target\"\n\
         config = {{ {config} }}\n\
         {more}\n\
         [drive.vda]\nroot = \"backup\"\n\
         [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
         writable = true\n"
    )
}

pub(crate) fn file(scratch: &Scratch, name: &str) -> String {
    format!("driver = \"file\"\npath = \"{}\"", scratch.image(name).display())
}

pub(crate) fn text(scratch: &Scratch, name: &str) -> String {
    scratch.image(name).to_str().expect("UTF-8").to_owned()
}

/// `disk.img` with data, `then.img` with the same, and an empty `target.img`.
pub(crate) fn images() -> Scratch {
    let scratch = scratch();
    let data = pattern(7, (SIZE / 2) as usize);
    for name in ["disk.img", "then.img"] {
        scratch.sparse_image(name, SIZE);
        scratch.poke(name, 5 * MIB, &data);
    }
    scratch.sparse_image("target.img", SIZE);
    scratch
}

fn serve_raw(scratch: &Scratch, driver: &str, config: &str, arguments: &[&str]) -> Daemon {
    let (disk, target) = (file(scratch, "disk.img"), file(scratch, "target.img"));
    serve(scratch, &graph(driver, &disk, &target, config, ""), arguments)
}

#[test]
fn a_full_backup_under_load_holds_what_was_there() {
    if !have(&TOOLS) {
        return;
    }
    for (driver, workers) in DRIVERS.into_iter().flat_map(|it| [(it, "1"), (it, "2")]) {
        let scratch = images();
        let config = "speed = \"64MiB\", min-cluster-size = \"16KiB\"";
        let daemon = serve_raw(&scratch, driver, config, &["--workers", workers]);
        daemon.wait_for_log("the point in time is reached");
        let uri = format!("uri={}", daemon.uri("vda"));
        fio(&[
            "name=load",
            "ioengine=nbd",
            &uri,
            "rw=randwrite",
            "bsrange=512-40k",
            "bs_unaligned=0",
            "iodepth=16",
            "size=48M",
            "io_size=32M",
            "randseed=5",
        ]);
        daemon.wait_for_log("the backup is complete");
        qemu_io(daemon.uri("vda"), &["write -P 9 0 1M", "discard 6M 1M", "write -z 8M 3M"]);
        daemon.finish();
        compare(&text(&scratch, "then.img"), &text(&scratch, "target.img"));
        let disk = fs::read(scratch.image("disk.img")).expect("the disk");
        assert!(disk[..MIB as usize].iter().all(|byte| *byte == 9), "writes go on");
    }
}

#[test]
fn without_a_background_copy_only_what_is_overwritten_is_kept() {
    if !have(&TOOLS) {
        return;
    }
    DRIVERS.into_iter().for_each(check_what_is_kept);
}

fn check_what_is_kept(driver: &str) {
    let scratch = images();
    let daemon = serve_raw(&scratch, driver, "sync = \"none\"", &[]);
    daemon.wait_for_log("the point in time is reached");
    let uri = daemon.uri("vda").to_owned();
    qemu_io(&uri, &["write -P 9 6M 1k", "write -P 8 6M 64k", "write -z 7170k 2k", "read 9M 1M"]);
    qemu_io(&uri, &["write -P 7 6145k 512", "discard 10M 64k", "read -P 8 6146k 62k"]);
    daemon.finish();
    let then = fs::read(scratch.image("then.img")).expect("the disk as it was");
    let target = fs::read(scratch.image("target.img")).expect("the target");
    for granule in 0..(SIZE / (64 * KIB)) as usize {
        let range = granule * (64 << 10)..(granule + 1) * (64 << 10);
        let is_kept = [96, 112, 160].contains(&granule);
        let expect: &[u8] = if is_kept { &then[range.clone()] } else { &[0; 64 << 10] };
        assert!(target[range] == *expect, "granule {granule}");
    }
}

/// `disk.qcow2`, whose bitmap `daily` is kept, served with or without a backup.
fn serve_image(scratch: &Scratch, driver: &str, sync: Option<&str>) -> Daemon {
    let disk = format!(
        "driver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"{}\" }}",
        text(scratch, "disk.qcow2")
    );
    let bitmap = "[bitmap.daily]\ndrive = \"vda\"\npersist = \"root\"";
    let text = match sync {
        None => format!(
            "[node.disk]\n{disk}\n[drive.vda]\nroot = \"disk\"\n{bitmap}\n\
             [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
             writable = true\nbitmaps = [\"daily\"]\n"
        ),
        Some(lent) => {
            let graph = graph(
                driver,
                &disk,
                &file(scratch, "target.img"),
                "sync = \"incremental\"",
                bitmap,
            );
            graph.replace("child.target", &format!("{lent}\nchild.target"))
        }
    };
    serve(scratch, &text, &[])
}

#[test]
fn an_incremental_backup_copies_what_a_bitmap_says() {
    if !have(&TOOLS) {
        return;
    }
    DRIVERS.into_iter().for_each(check_incremental);
}

fn check_incremental(driver: &str) {
    let scratch = scratch();
    scratch.sparse_image("target.img", SIZE);
    let (disk, then) = (text(&scratch, "disk.qcow2"), text(&scratch, "then.img"));
    succeed("qemu-img", ["create", "-q", "-f", "qcow2", &disk, &SIZE.to_string()]);
    succeed("qemu-io", ["-f", "qcow2", "-c", "write -P 1 20M 1M", &disk]);
    let daemon = serve_image(&scratch, driver, None);
    let uri = daemon.uri("vda").to_owned();
    qemu_io(&uri, &["write -P 2 1M 100k", "write -P 3 30M 2M", "write -z 31M 64k"]);
    let dirty = nbd_map(&uri, "qemu:dirty-bitmap:daily");
    let dirty: u64 = dirty.iter().filter(|(.., kind)| kind & 1 != 0).map(|(_, len, _)| len).sum();
    assert_eq!(dirty, 128 * KIB + 2 * MIB);
    daemon.finish();
    succeed("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", &disk, &then]);
    let daemon = serve_image(&scratch, driver, Some("bitmap.changes = \"daily\""));
    daemon.wait_for_log("the point in time is reached");
    qemu_io(daemon.uri("vda"), &["write -P 4 1M 64k", "write -P 5 40M 64k"]);
    daemon.wait_for_log("the backup is complete");
    daemon.finish();
    let then = fs::read(&then).expect("the disk as it was");
    let target = fs::read(scratch.image("target.img")).expect("the target");
    for (start, len) in [(MIB, 128 * KIB), (30 * MIB, 2 * MIB)] {
        let range = start as usize..(start + len) as usize;
        assert!(target[range.clone()] == then[range], "what has changed is there");
    }
    let copied = target.iter().filter(|byte| **byte != 0).count() as u64;
    assert_eq!(copied, 100 * KIB + 2 * MIB - 64 * KIB, "and nothing else");
}

#[test]
fn what_cannot_be_a_backup_is_refused() {
    let scratch = images();
    let (disk, small) = (file(&scratch, "disk.img"), "driver = \"memory\"\nsize = \"1MiB\"");
    let target = file(&scratch, "target.img");
    let check = |graph: &str, expect: &str| {
        let refused = try_serve(&scratch, graph, &[]).err().expect("a refusal");
        assert!(refused.stderr.contains(expect), "{expect}: {}", refused.stderr);
    };
    for driver in DRIVERS {
        let graph = |target, config| graph(driver, &disk, target, config, "");
        check(&graph(small, ""), "the target is smaller than what is to be copied to it");
        check(&graph(&target, "sync = \"incremental\""), "`bitmap.changes = \"…\"`");
        check(&graph(&target, "sync = \"top\""), "is `full`, `incremental` or `none`");
        let lent = graph(&target, "").replace("child.file", "bitmap.changes = \"b\"\nchild.file");
        let lent = format!("{lent}[bitmap.b]\ndrive = \"vda\"\n");
        check(&lent, "only with `sync = \"incremental\"`");
    }
    let [plugin, native] = DRIVERS.map(|driver| graph(driver, &disk, &target, "", ""));
    let ungranted = plugin.replace("grant.target = [\"write\"]\n", "");
    check(&ungranted, "write `grant.target = [\"write\"]`");
    let alone = ungranted.replace("child.target = \"target\"\n", "");
    check(&alone, "needs a child `target`: add `child.target = \"…\"`");
    let alone = native.replace("child.target = \"target\"\n", "");
    check(&alone, "add `child.target = \"NODE\"`");
}

/// Nobody else may write what a backup keeps, past it: not even where the backup has no user that writes.
#[test]
fn nobody_writes_past_a_backup() {
    let scratch = scratch();
    let memory = "driver = \"memory\"\nsize = \"1MiB\"";
    let past = "[drive.past]\nroot = \"disk\"\n\
        [export.past]\ntype = \"nbd\"\ndrive = \"past\"\nlisten = \"unix:past.sock\"\n\
        writable = true\n";
    for driver in DRIVERS {
        let graph = graph(driver, memory, memory, "", past);
        let graph = graph
            .replace("listen = \"unix:nbd.sock\"\nwritable = true", "listen = \"unix:nbd.sock\"");
        let refused = try_serve(&scratch, &graph, &[]).err().expect("a refusal");
        for expect in [
            "cannot share node `disk` with drive `past` (edge `root`), which writes it",
            "node `backup` (edge `file`)",
            "make export `past` `writable = false`",
        ] {
            assert!(refused.stderr.contains(expect), "{expect}: {}", refused.stderr);
        }
        // Who only shows it is welcome.
        let shown = "[export.past]\ntype = \"nbd\"\nnode = \"disk\"\nlisten = \"unix:past.sock\"\n";
        let daemon = serve(&scratch, &self::graph(driver, memory, memory, "", shown), &[]);
        daemon.finish();
    }
}

/// What is only copied up below or above a backup is no change: nothing gets dirty, and the backup has what was
/// there. (QEMU's marks what copy-on-read writes above its node's filters, and copies it before the write.)
#[test]
fn copies_on_read_beside_a_backup_change_nothing() {
    if !have(&TOOLS) {
        return;
    }
    let readers = [
        "driver = \"plugin\"\nplugin = \"copy-on-read\"\n\
         grant.file = [\"read\", \"write-unchanged\"]",
        "driver = \"copy-on-read\"",
    ];
    let both = DRIVERS.into_iter().flat_map(|driver| readers.map(|reader| (driver, reader)));
    for ((driver, reader), is_above) in both.flat_map(|both| [(both, true), (both, false)]) {
        check_beside(driver, reader, is_above);
    }
}

fn check_beside(driver: &str, reader: &str, is_above: bool) {
    let scratch = images();
    let overlay = text(&scratch, "top.qcow2");
    let create = ["create", "-q", "-f", "qcow2", "-b", "disk.img", "-F", "raw", &overlay];
    succeed("qemu-img", create);
    let (below, above, root) = match is_above {
        true => ("top", "backup", "cor"),
        false => ("cor", "top", "backup"),
    };
    let image = format!("driver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"{overlay}\" }}");
    let graph = format!(
        "[node.top]\n{image}\n[node.target]\n{}\n\
         [node.backup]\n{driver}\nchild.file = \"{below}\"\nchild.target = \"target\"\n\
         config = {{ sync = \"none\" }}\n\
         [node.cor]\n{reader}\nchild.file = \"{above}\"\n\
         [drive.vda]\nroot = \"{root}\"\n\
         [bitmap.drive]\ndrive = \"vda\"\n[bitmap.node]\nnode = \"top\"\n\
         [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
         writable = true\nbitmaps = [\"drive\", \"node\"]\n",
        file(&scratch, "target.img")
    );
    let daemon = serve(&scratch, &graph, &[]);
    daemon.wait_for_log("the point in time is reached");
    let uri = daemon.uri("vda").to_owned();
    let dirty = |bitmap: &str| {
        let map = nbd_map(&uri, &format!("qemu:dirty-bitmap:{bitmap}"));
        let runs = map.into_iter().filter(|(.., kind)| kind & 1 != 0);
        runs.map(|(at, len, _)| (at, len)).collect::<Vec<_>>()
    };
    qemu_io(&uri, &["read 5M 1M"]);
    for bitmap in ["drive", "node"] {
        assert_eq!(dirty(bitmap), [], "{driver} {reader} {is_above}: `{bitmap}`");
    }
    qemu_io(&uri, &["write -P 9 5M 64k", "write -P 9 6M 64k"]);
    let expect = [(5 * MIB, 64 * KIB), (6 * MIB, 64 * KIB)];
    for bitmap in ["drive", "node"] {
        assert_eq!(dirty(bitmap), expect, "{driver} {reader} {is_above}: `{bitmap}`");
    }
    daemon.finish();
    let map = succeed("qemu-img", ["map", "-f", "qcow2", &overlay]);
    assert!(map.contains("0x110000"), "1 MiB was copied up, 64 KiB written: {map}");
    let then = fs::read(scratch.image("then.img")).expect("the disk as it was");
    let target = fs::read(scratch.image("target.img")).expect("the target");
    for (at, byte) in target.iter().enumerate() {
        let is_kept =
            expect.iter().any(|(start, len)| (*start..start + len).contains(&(at as u64)));
        assert_eq!(*byte, if is_kept { then[at] } else { 0 }, "byte {at}");
    }
}
