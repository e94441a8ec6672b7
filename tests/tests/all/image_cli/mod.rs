//! `blockloom image …` beside `qemu-img`: the same images, the same answers.

mod bench;
mod bitmaps;
mod convert;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use blockloom_tests::tools::{have, succeed};
use serde_json::Value;

use bench::Bench;

const OPTIONS: [&str; 12] = [
    "compat=1.1",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=2M",
    "refcount_bits=1",
    "refcount_bits=64",
    "extended_l2=on,cluster_size=128k",
    "lazy_refcounts=on",
    "compression_type=zstd",
    "preallocation=metadata",
    "preallocation=falloc,cluster_size=4k",
    "data_file=@data.raw,data_file_raw=on",
];

const WRITES: [&str; 6] = [
    "write -P 1 0 192k",
    "write -P 2 3M 70000",
    "write -P 3 7340032 4096",
    "write -z 1M 256k",
    "discard 64k 64k",
    "write -P 4 8384512 512",
];

/// Images that `qemu-img` makes are described and checked as it does itself.
#[test]
fn images_of_qemu_img_are_described_as_by_it() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    for options in OPTIONS {
        let bench = Bench::new();
        bench.qemu_img(&format!("create -q -f qcow2 -o {options} @disk.qcow2 8M"));
        bench.same_in_all("disk.qcow2");
        bench.qemu_io("disk.qcow2", &WRITES);
        bench.same_in_all("disk.qcow2");
        // A snapshot needs a second reference.
        if !options.contains("data_file") && options != "refcount_bits=1" {
            bench.qemu_img("snapshot -c first @disk.qcow2");
            bench.same_in_all("disk.qcow2");
            bench.qemu_img("convert -c -O qcow2 @disk.qcow2 @compressed.qcow2");
            bench.same_in_all("compressed.qcow2");
        }
    }
}

/// Chains of three, with formats and sizes mixed, bitmaps, and a relative name.
#[test]
fn chains_are_described_as_by_qemu_img() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let bench = Bench::new();
    bench.0.sparse_image("base.img", (1 << 20) + 1000);
    succeed(
        "qemu-io",
        ["-f", "raw", "-c", "write -P 7 64k 4k", bench.path("base.img").to_str().expect("UTF-8")],
    );
    bench.same_in_all("base.img");
    bench.qemu_img("create -q -f qcow2 -b base.img -F raw @middle.qcow2 3M");
    bench.qemu_io("middle.qcow2", &["write -P 1 128k 64k", "write -P 1 2M 64k", "write -z 0 64k"]);
    bench.same_in_all("middle.qcow2");
    let options = "create -q -f qcow2 -o extended_l2=on -b middle.qcow2 -F qcow2";
    bench.qemu_img(&format!("{options} @top.qcow2 4M"));
    bench.qemu_io("top.qcow2", &["write -P 2 4k 2k", "write -z 130k 2k", "write -P 2 3584k 64k"]);
    bench.qemu_img("bitmap --add @top.qcow2 first");
    bench.qemu_img("bitmap --add --disable -g 4k @top.qcow2 second");
    bench.same_in_all("top.qcow2");
    // The compressed part of a chain has no offset.
    bench.qemu_img("convert -c -O qcow2 @middle.qcow2 @compressed.qcow2");
    bench.qemu_img("create -q -f qcow2 -b compressed.qcow2 -F qcow2 @over.qcow2");
    bench.same_in_all("over.qcow2");
}

/// What `create` makes is what `qemu-img create` makes, as far as `qemu-img` can tell, and works.
#[test]
fn images_are_made_as_by_qemu_img() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    // The length of the file is not compared: tables may lie elsewhere, and so are the blocks of it.
    let describe = |bench: &Bench, name: &str| -> Value {
        let text = bench.qemu_img(&format!("info --output=json @{name}"));
        let mut info: Value = serde_json::from_str(&text).expect("JSON");
        let object = info.as_object_mut().expect("an object");
        for key in ["children", "filename", "actual-size"] {
            object.remove(key);
        }
        info
    };
    for options in OPTIONS {
        let (ours, theirs) = (Bench::new(), Bench::new());
        ours.succeed(&format!("create -o {options} @disk.qcow2 8MiB"));
        theirs.qemu_img(&format!("create -q -f qcow2 -o {options} @disk.qcow2 8M"));
        if !options.contains("data_file") {
            assert_eq!(describe(&ours, "disk.qcow2"), describe(&theirs, "disk.qcow2"), "{options}");
        }
        ours.qemu_img("check @disk.qcow2");
        ours.same_in_all("disk.qcow2");
        ours.qemu_io("disk.qcow2", &WRITES);
        ours.qemu_img("check @disk.qcow2");
        theirs.qemu_io("disk.qcow2", &WRITES);
        let [ours, theirs] = [&ours, &theirs].map(|bench| bench.path("disk.qcow2"));
        let output = succeed("qemu-img", [Path::new("compare"), &ours, &theirs]);
        assert!(output.contains("identical"), "{options}: {output}");
    }
    let bench = Bench::new();
    bench.succeed("create @base.qcow2 3M");
    bench.qemu_io("base.qcow2", &["write -P 5 1M 64k"]);
    bench.succeed("create --backing base.qcow2 --backing-format qcow2 @top.qcow2");
    bench.qemu_io("top.qcow2", &["read -P 5 1M 64k"]);
    bench.same_in_all("top.qcow2");
}

/// What is wrong is named; nothing is half-made, and nothing that is there is touched.
#[test]
fn failed_creations_leave_nothing_behind() {
    let bench = Bench::new();
    bench.0.image_of("there.img", b"precious");
    let check = |line: &str, code, words: &[&str]| {
        bench.fail(line, code, words);
        assert_eq!(bench.names(), ["there.img"], "{line}");
        assert_eq!(bench.0.peek("there.img", 0, 8), b"precious", "{line}");
    };
    check("create @there.img 1M", 1, &["there.img", "--force"]);
    check("create --data-file there.img @new.qcow2 1M", 1, &["there.img", "--force"]);
    check("create --data-file new.qcow2 @new.qcow2 1M", 2, &["new.qcow2"]);
    check("create @new.qcow2", 2, &["SIZE"]);
    check("create @new.qcow2 1Q", 2, &["1Q", "KiB"]);
    check("create @new.qcow2 9E", 2, &["9E"]);
    check("create @no/new.qcow2 1M", 1, &["no/new.qcow2"]);
    check("create @ 1M", 1, &["directory"]);
    check("create -o cluster_size=3k @new.qcow2 1M", 2, &["cluster_size=3k"]);
    check("create -o cluster-size=64k @new.qcow2 1M", 2, &["cluster-size", "cluster_size"]);
    check("create -o compat=0.10,lazy_refcounts=on @new.qcow2 1M", 2, &["compat", "lazy"]);
    check("create -o encryption=on @new.qcow2 1M", 2, &["encryption"]);
    check("create -o cluster_size=512 @new.qcow2 1T", 2, &["cluster"]);
    check("create --backing there.img @new.qcow2", 2, &["there.img", "--backing-format"]);
    check("create --backing gone.img --backing-format raw @new.qcow2", 1, &["gone.img"]);
    check("create --backing there.img --backing-format vmdk @new.qcow2", 2, &["vmdk", "qcow2"]);
    check("create --backing there.img --backing-format qcow2 @new.qcow2", 1, &["there.img"]);
    check("create --backing nbd://x/y --backing-format raw @new.qcow2 1M", 2, &["nbd://x/y"]);
    check("create @new.qcow2 1M --wrong", 2, &["--wrong"]);
    bench.succeed("create --force @there.img 1M");
    assert_eq!(bench.names(), ["there.img"]);
    assert_eq!(bench.0.peek("there.img", 0, 4), b"QFI\xfb");
}

/// Exit codes and counts of a damaged image are `qemu-img`'s, and a repair leaves nothing for it to say.
#[test]
fn damaged_images_are_repaired() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let check = |code, poke: &dyn Fn(&Bench), repair: &str| {
        let bench = Bench::new();
        bench.qemu_img("create -q -f qcow2 @disk.qcow2 8M");
        bench.qemu_io("disk.qcow2", &WRITES);
        poke(&bench);
        bench.same("check @disk.qcow2");
        assert_eq!(bench.run("check @disk.qcow2").status.code(), Some(code));
        let before = fs::read(bench.path("disk.qcow2")).expect("read");
        assert_eq!(bench.run("check @disk.qcow2").status.code(), Some(code));
        assert_eq!(
            fs::read(bench.path("disk.qcow2")).expect("read"),
            before,
            "a check changes nothing"
        );
        bench.succeed(&format!("check --repair={repair} @disk.qcow2"));
        bench.qemu_img("check @disk.qcow2");
        bench.same("check @disk.qcow2");
        bench.qemu_io("disk.qcow2", &["read -P 2 3M 70000", "read -P 3 7340032 4096"]);
    };
    // The first refcount block of a small image is its third cluster.
    let refcount = |cluster: u64, count: u8| {
        move |bench: &Bench| bench.0.poke("disk.qcow2", 0x20000 + 2 * cluster, &[0, count])
    };
    let leak = |bench: &Bench| {
        bench.0.poke("disk.qcow2", (61 << 16) - 1, &[0]);
        refcount(60, 1)(bench);
    };
    check(3, &leak, "leaks");
    check(3, &leak, "all");
    check(2, &refcount(5, 2), "all");
    check(2, &refcount(5, 0), "all");
    let bench = Bench::new();
    bench.0.sparse_image("raw.img", 1 << 20);
    bench.fail("check @raw.img", 63, &["raw.img", "nothing to check"]);
    bench.fail("check @gone.qcow2", 1, &["gone.qcow2"]);
    bench.fail("check --repair=some @raw.img", 2, &["leaks", "all"]);
}

/// Disks grow and shrink; what was cut does not come back, and a longer backing does not show.
#[test]
fn disks_are_resized() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    for options in OPTIONS {
        let bench = Bench::new();
        bench.qemu_img(&format!("create -q -f qcow2 -o {options} @disk.qcow2 8M"));
        bench.qemu_io("disk.qcow2", &WRITES);
        bench.fail("resize @disk.qcow2 4M", 1, &["disk.qcow2", "--shrink"]);
        bench.succeed("resize --shrink @disk.qcow2 3180544");
        bench.qemu_img("check @disk.qcow2");
        bench.qemu_io("disk.qcow2", &["read -P 2 3M 34816", "read -P 1 0 64k"]);
        bench.succeed("resize @disk.qcow2 +100M");
        bench.qemu_img("check @disk.qcow2");
        bench.same("map @disk.qcow2");
        bench.qemu_io("disk.qcow2", &["read -P 2 3M 34816", "read -P 0 3180544 100M"]);
        bench.succeed("resize --shrink @disk.qcow2 -1M");
        bench.qemu_img("check @disk.qcow2");
    }
    let bench = Bench::new();
    bench.qemu_img("create -q -f raw @base.img 4M");
    succeed(
        "qemu-io",
        ["-f", "raw", "-c", "write -P 9 0 4M", bench.path("base.img").to_str().expect("UTF-8")],
    );
    bench.qemu_img("create -q -f qcow2 -b base.img -F raw @top.qcow2 1M");
    bench.succeed("resize @top.qcow2 5M");
    bench.qemu_io("top.qcow2", &["read -P 9 0 1M", "read -P 0 1M 4M"]);
    bench.qemu_img("check @top.qcow2");
    bench.succeed("resize @base.img 8M");
    assert_eq!(fs::metadata(bench.path("base.img")).expect("there").len(), 8 << 20);
    bench.fail("resize @top.qcow2 -6M", 2, &["-6M"]);
    bench.fail("resize @top.qcow2 many", 2, &["many", "KiB"]);
    bench.fail("resize @top.qcow2 6M --preallocation full", 1, &["top.qcow2", "backing"]);
    bench.fail("resize @top.qcow2 5M --preallocation full", 2, &["--preallocation"]);
    bench.fail("resize @base.img 9M --preallocation metadata", 2, &["raw", "falloc"]);
    bench.succeed("resize @base.img 9M --preallocation full");
    assert_eq!(fs::metadata(bench.path("base.img")).expect("there").blocks() * 512, 5 << 20);
}

/// The last cluster is shared with a snapshot, or compressed: what it holds behind the old end is hidden, and
/// neither the snapshot nor the disk loses anything.
#[test]
fn what_is_behind_an_odd_end_is_hidden() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    for options in ["compat=1.1", "extended_l2=on", "cluster_size=2M"] {
        let bench = Bench::new();
        bench.qemu_img(&format!("create -q -f qcow2 -o {options} @disk.qcow2 4M"));
        bench.qemu_io("disk.qcow2", &["write -P 1 0 4M"]);
        bench.qemu_img("snapshot -c full @disk.qcow2");
        bench.succeed("resize --shrink @disk.qcow2 3150336");
        bench.succeed("resize @disk.qcow2 4M");
        bench.qemu_img("check -q @disk.qcow2");
        bench.qemu_io("disk.qcow2", &["read -P 1 0 3150336", "read -P 0 3150336 1043968"]);
        bench.qemu_img("snapshot -a full @disk.qcow2");
        bench.qemu_io("disk.qcow2", &["read -P 1 0 4M"]);
        bench.qemu_img(&format!("convert -c -O qcow2 -o {options} @disk.qcow2 @packed.qcow2"));
        bench.succeed("resize --shrink @packed.qcow2 3150336");
        bench.succeed("resize @packed.qcow2 5M");
        bench.qemu_img("check -q @packed.qcow2");
        bench.qemu_io("packed.qcow2", &["read -P 1 0 3150336", "read -P 0 3150336 2092544"]);
    }
}

/// Room for a longer disk is taken as asked, and reads as zeros.
#[test]
fn longer_disks_are_allocated() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    for options in ["compat=1.1", "compat=0.10,cluster_size=4k", "extended_l2=on"] {
        for how in ["metadata", "falloc", "full"] {
            let bench = Bench::new();
            bench.qemu_img(&format!("create -q -f qcow2 -o {options} @disk.qcow2 1000448"));
            bench.qemu_io("disk.qcow2", &["write -P 1 0 1000448"]);
            bench.succeed(&format!("resize --preallocation {how} @disk.qcow2 6M"));
            bench.qemu_img("check -q @disk.qcow2");
            bench.qemu_io("disk.qcow2", &["read -P 1 0 1000448", "read -P 0 1000448 5291008"]);
            let allocated = fs::metadata(bench.path("disk.qcow2")).expect("there").blocks() * 512;
            assert_eq!(allocated > 6 << 20, how != "metadata", "{options}: {how}: {allocated}");
            let length = fs::metadata(bench.path("disk.qcow2")).expect("there").len();
            assert!(length > 6 << 20, "{options}: {how}");
            bench.same_in_all("disk.qcow2");
        }
    }
}

/// Broken chains and images are refused by name.
#[test]
fn what_cannot_be_opened_is_named() {
    let bench = Bench::new();
    bench.0.sparse_image("base.img", 1 << 20);
    bench.succeed("create --backing base.img --backing-format raw @top.qcow2");
    fs::remove_file(bench.path("base.img")).expect("remove");
    bench.succeed("info @top.qcow2");
    bench.fail("info --backing-chain @top.qcow2", 1, &["top.qcow2", "base.img"]);
    bench.fail("map @top.qcow2", 1, &["top.qcow2", "base.img"]);
    bench.0.sparse_image("base.img", 1 << 20);
    bench.succeed("create @loop.qcow2 1M");
    bench.succeed("create --backing loop.qcow2 --backing-format qcow2 @a.qcow2 1M");
    bench.succeed("create --backing a.qcow2 --backing-format qcow2 @b.qcow2 1M");
    fs::rename(bench.path("b.qcow2"), bench.path("loop.qcow2")).expect("rename");
    bench.fail("map @a.qcow2", 1, &["loop.qcow2", "a.qcow2", "comes back to itself"]);
    bench.0.image_of("bad.qcow2", b"QFI\xfb\0\0\0\x09garbage");
    bench.fail("info @bad.qcow2", 1, &["bad.qcow2"]);
    bench.fail("snapshot -l @base.img", 1, &["base.img", "qcow2"]);
    bench.fail("snapshot @base.img", 2, &["--list"]);
}

/// Snapshots are taken, applied and deleted; QEMU sees the same, and finds nothing wrong.
#[test]
fn snapshots_come_and_go() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    for options in ["compat=1.1", "compat=0.10,cluster_size=4k", "extended_l2=on"] {
        let bench = Bench::new();
        bench.qemu_img(&format!("create -q -f qcow2 -o {options} @disk.qcow2 8M"));
        bench.qemu_io("disk.qcow2", &["write -P 1 0 3M"]);
        bench.succeed("snapshot -c first @disk.qcow2");
        bench.qemu_io("disk.qcow2", &["write -P 2 1M 3M"]);
        bench.succeed("snapshot --create second @disk.qcow2");
        bench.fail("snapshot -c first @disk.qcow2", 1, &["disk.qcow2", "first"]);
        let theirs = bench.qemu_img("snapshot -l @disk.qcow2");
        for list in [&theirs, &bench.succeed("snapshot -l @disk.qcow2")] {
            assert!(list.contains("first") && list.contains("second"), "{options}: {list}");
        }
        bench.succeed("snapshot --apply first @disk.qcow2");
        bench.qemu_io("disk.qcow2", &["read -P 1 0 3M", "read -P 0 3M 5M"]);
        bench.qemu_img("check -q @disk.qcow2");
        bench.succeed("snapshot -a second @disk.qcow2");
        bench.succeed("snapshot -d first @disk.qcow2");
        bench.qemu_io("disk.qcow2", &["read -P 1 0 1M", "read -P 2 1M 3M"]);
        bench.succeed("snapshot --delete second @disk.qcow2");
        bench.fail("snapshot -d second @disk.qcow2", 1, &["second"]);
        bench.fail("snapshot -d a -a b @disk.qcow2", 2, &["--apply"]);
        bench.qemu_img("check -q @disk.qcow2");
        assert!(!bench.qemu_img("snapshot -l @disk.qcow2").contains("second"), "{options}");
    }
}

/// An image that is being written is left alone, by all but those who are told to read it nevertheless.
#[test]
fn locks_are_heeded() {
    let bench = Bench::new();
    bench.succeed("create @disk.qcow2 1M");
    let path = bench.path("disk.qcow2");
    let daemon = crate::serve(&bench.0, &crate::file_disk(&path, true), &[]);
    for line in [
        "info @disk.qcow2",
        "map @disk.qcow2",
        "check @disk.qcow2",
        "check --repair @disk.qcow2",
        "resize @disk.qcow2 2M",
        "create --force @disk.qcow2 2M",
    ] {
        bench.fail(line, 1, &["disk.qcow2", "another process"]);
    }
    bench.succeed("info -U @disk.qcow2");
    daemon.finish();
    bench.succeed("info @disk.qcow2");
    assert_eq!(bench.names(), ["disk.qcow2"]);
}

/// What is no image, or a part of one, is named, whatever is to be done with it; nothing waits for a pipe.
#[test]
fn what_is_no_image_is_named() {
    let bench = Bench::new();
    bench.succeed("create @whole.qcow2 8M");
    let whole = fs::read(bench.path("whole.qcow2")).expect("read");
    bench.0.image_of("short.qcow2", &whole[..100]);
    bench.0.image_of("cut.qcow2", &whole[..70_000]);
    bench.0.image_of("disk.vmdk", b"KDMV\x01\0\0\0");
    fs::create_dir(bench.path("directory")).expect("a directory");
    succeed("mkfifo", [bench.path("pipe")]);
    for command in ["info", "check", "map", "bitmap --list", "snapshot -l", "convert"] {
        let check = |name: &str, words: &[&str]| {
            let target = if command == "convert" { " @new.img" } else { "" };
            bench.fail(&format!("{command} @{name}{target}"), 1, words);
        };
        check("directory", &["directory`", "is a directory"]);
        check("pipe", &["pipe`", "neither a file nor a block device"]);
        check("gone", &["gone`", "No such file"]);
        check("short.qcow2", &["short.qcow2`", "cut off", "100 bytes"]);
        check("disk.vmdk", &["disk.vmdk`", "vmdk", "-f raw"]);
        if !matches!(command, "info" | "check" | "snapshot -l") {
            check("cut.qcow2", &["cut.qcow2`", "cut off", "image check"]);
        }
    }
    bench.fail("convert @whole.qcow2 @no/such.img", 1, &["no/such.img`", "directory is not there"]);
    bench.succeed("convert -f raw @disk.vmdk @bytes.img");
    assert_eq!(bench.0.peek("bytes.img", 0, 4), b"KDMV");
    assert!(!bench.names().contains(&"new.img".to_owned()));
}
