//! `image bitmap` and `qemu-img bitmap`: what one does the other sees.

use std::fs;

use blockloom_tests::tools::{have, run, succeed};
use serde_json::{Value, json};

use super::bench::Bench;

const TOOLS: [&str; 4] = ["qemu-img", "qemu-io", "qemu-nbd", "nbdinfo"];

impl Bench {
    /// Name, granularity, flags of each bitmap, as `qemu-img` has them, by name.
    fn described(&self, image: &str) -> Vec<Value> {
        let text = self.qemu_img(&format!("info --output=json @{image}"));
        let info: Value = serde_json::from_str(&text).expect("JSON");
        let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().cloned();
        sorted(bitmaps.unwrap_or_default())
    }

    /// What `image bitmap --list` says, by name.
    fn listed(&self, image: &str) -> Vec<Value> {
        let text = self.succeed(&format!("bitmap --list --output json @{image}"));
        sorted(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    /// Dirty ranges as `qemu-nbd` exports them.
    fn exported(&self, image: &str, name: &str) -> Value {
        let (context, path) = (format!("--map=qemu:dirty-bitmap:{name}"), self.path(image));
        let path = path.to_str().expect("UTF-8");
        let server = ["--", "[", "qemu-nbd", "-r", "-f", "qcow2", "-B", name, path, "]"];
        let map = succeed("nbdinfo", ["--json", &context].into_iter().chain(server));
        let map: Vec<Value> = serde_json::from_str(&map).expect("JSON");
        let dirty = map.iter().filter(|run| run["type"] == 1);
        dirty.map(|run| json!({ "start": run["offset"], "length": run["length"] })).collect()
    }

    /// Both programs, and an export, agree about the bitmaps of an image. Returns them.
    pub(super) fn agreed(&self, image: &str, context: &str) -> Vec<Value> {
        let (described, listed) = (self.described(image), self.listed(image));
        assert_eq!(described.len(), listed.len(), "{context}: {described:?} {listed:?}");
        for (theirs, ours) in described.iter().zip(&listed) {
            for key in ["name", "granularity", "flags"] {
                assert_eq!(theirs[key], ours[key], "{context}");
            }
            let name = ours["name"].as_str().expect("a name");
            assert_eq!(self.exported(image, name), ours["ranges"], "{context}: {name}");
            let lengths = ours["ranges"].as_array().expect("ranges").iter();
            let bytes: u64 = lengths.map(|it| it["length"].as_u64().expect("a number")).sum();
            assert_eq!(ours["count"], bytes, "{context}: {name}");
        }
        listed
    }

    fn copy(&self, from: &str, to: &str) {
        fs::copy(self.path(from), self.path(to)).expect("copy an image");
    }

    /// Where the bitmap directory is, by the header's extension (specification, "Bitmaps extension").
    pub(super) fn directory_offset(&self, image: &str) -> u64 {
        const BITMAPS: u32 = 0x2385_2875;
        let word = |at: u64| {
            let bytes = self.0.peek(image, at, 4);
            u32::from_be_bytes(bytes.try_into().expect("four bytes"))
        };
        let mut at = u64::from(word(100));
        while word(at) != BITMAPS {
            assert_ne!(word(at), 0, "the image has no bitmaps");
            at += 8 + u64::from(word(at + 4)).next_multiple_of(8);
        }
        u64::from(word(at + 24)) << 32 | u64::from(word(at + 28))
    }
}

fn sorted(mut bitmaps: Vec<Value>) -> Vec<Value> {
    bitmaps.sort_by_key(|bitmap| bitmap["name"].as_str().map(str::to_owned));
    bitmaps
}

fn ranges(list: &[(u64, u64)]) -> Value {
    list.iter().map(|(start, length)| json!({ "start": start, "length": length })).collect()
}

/// The same commands, in turn, on two copies; writes of QEMU in between.
#[test]
fn bitmaps_are_changed_as_by_qemu_img() {
    if !have(&TOOLS) {
        return;
    }
    let steps = [
        "--add NAME a",
        "--add -g 4k NAME b",
        "--add --disable -g 1M NAME täglich",
        "WRITE write 3M 100k",
        "WRITE write 6291456 512",
        "--disable NAME b",
        "WRITE write 1M 4k",
        "--merge b NAME täglich",
        "--merge täglich NAME b",
        "--add --merge a --merge b --disable -g 512 NAME all",
        "--enable NAME all",
        "WRITE discard 9M 1M",
        "--clear NAME a",
        "--merge all NAME a",
        "--add NAME a",
        "--remove NAME nobody",
        "--clear NAME nobody",
        "--merge nobody NAME a",
        "--remove --add NAME b",
        "--clear --enable NAME täglich",
        "WRITE write 12284k 4608",
        "--merge a -b @other.qcow2 -F qcow2 NAME b",
        "--merge a -b @small.qcow2 -F qcow2 NAME b",
        "--add --remove NAME c",
        "--remove NAME all",
        "--remove NAME a",
        "--remove NAME b",
        "--remove NAME täglich",
    ];
    for options in ["cluster_size=64k", "cluster_size=512", "cluster_size=2M,extended_l2=on"] {
        let bench = Bench::new();
        for (name, size) in [("ours", "12583424"), ("other", "12583424"), ("small", "1M")] {
            bench.qemu_img(&format!("create -q -f qcow2 -o {options} @{name}.qcow2 {size}"));
        }
        bench.copy("ours.qcow2", "theirs.qcow2");
        bench.qemu_img("bitmap --add -g 32k @other.qcow2 a");
        bench.qemu_img("bitmap --add -g 32k @small.qcow2 a");
        bench.qemu_io("other.qcow2", &["write 5M 1M"]);
        for step in steps {
            let context = format!("{options}: {step}");
            let mut codes = [Some(0); 2];
            for (image, code) in ["ours.qcow2", "theirs.qcow2"].iter().zip(&mut codes) {
                if let Some(command) = step.strip_prefix("WRITE ") {
                    bench.qemu_io(image, &[command]);
                    continue;
                }
                let line = format!("bitmap {}", step.replace("NAME", &format!("@{image}")));
                let output = match *image {
                    "ours.qcow2" => bench.run(&line),
                    _ => run("qemu-img", bench.arguments(&line)),
                };
                *code = output.status.code();
            }
            assert_eq!(codes[0], codes[1], "{context}");
            let ours = bench.agreed("ours.qcow2", &context);
            assert_eq!(ours, bench.agreed("theirs.qcow2", &context), "{context}");
            bench.qemu_img("check -q @ours.qcow2");
        }
        assert_eq!(bench.listed("ours.qcow2").len(), 0, "{options}");
    }
}

/// What `qemu-img` has not: other names, and lists.
#[test]
fn bitmaps_are_renamed_and_listed() {
    if !have(&TOOLS) {
        return;
    }
    let bench = Bench::new();
    // Small clusters, whose header has little room.
    bench.succeed("create -o cluster_size=512 @disk.qcow2 8M");
    assert_eq!(bench.succeed("bitmap --list @disk.qcow2"), "No bitmaps.\n");
    assert_eq!(bench.succeed("bitmap --list --output json @disk.qcow2"), "[]\n");
    bench.succeed("bitmap --add -g 64k @disk.qcow2 daily");
    bench.succeed("bitmap --add @disk.qcow2 weekly");
    bench.qemu_io("disk.qcow2", &["write 1M 100k", "write 8387584 1k"]);
    bench.succeed("bitmap --rename monday --disable @disk.qcow2 daily");
    let listed = bench.agreed("disk.qcow2", "renamed");
    assert_eq!(listed[0]["name"], "monday");
    assert_eq!(listed[0]["ranges"], ranges(&[(1 << 20, 128 << 10), (8_323_072, 64 << 10)]));
    assert_eq!(listed[1]["ranges"], ranges(&[(1 << 20, 100 << 10), (8_384_512, 4 << 10)]));
    let text = bench.succeed("bitmap --list @disk.qcow2 monday");
    let expect = "monday: granularity 64 KiB, disabled, 3 of 128 granules dirty (196608 bytes)\n    \
                  0x100000-0x120000 (131072 bytes)\n    0x7f0000-0x800000 (65536 bytes)\n";
    assert_eq!(text, expect);
    // Names given and taken in one command.
    bench.succeed("bitmap --rename a --rename b --clear --rename monday @disk.qcow2 monday");
    assert_eq!(bench.agreed("disk.qcow2", "back")[0]["count"], 0);
    bench.succeed("bitmap --rename tuesday --remove --add -g 512 @disk.qcow2 monday");
    let listed = bench.agreed("disk.qcow2", "new");
    assert_eq!((&listed[0]["name"], &listed[0]["granularity"]), (&json!("tuesday"), &json!(512)));
    bench.qemu_img("check -q @disk.qcow2");
}

/// A command that fails at its end has changed nothing, and says what would be right.
#[test]
fn refused_changes_of_bitmaps_change_nothing() {
    let bench = Bench::new();
    bench.0.sparse_image("raw.img", 1 << 20);
    bench.succeed("create -o compat=0.10 @old.qcow2 1M");
    bench.succeed("create @disk.qcow2 8M");
    bench.succeed("bitmap --add @disk.qcow2 a");
    bench.succeed("bitmap --add @disk.qcow2 b");
    let before = fs::read(bench.path("disk.qcow2")).expect("read");
    let check = |line: &str, code, words: &[&str]| {
        bench.fail(&format!("bitmap {line}"), code, words);
        let now = fs::read(bench.path("disk.qcow2")).expect("read");
        assert!(now == before, "{line} has changed the image");
    };
    check("--add --merge gone @disk.qcow2 c", 1, &["disk.qcow2", "gone"]);
    check("--remove --remove @disk.qcow2 a", 1, &["`a`", "--add"]);
    check("--clear --add @disk.qcow2 a", 1, &["`a`", "there already"]);
    check("--rename b @disk.qcow2 a", 1, &["`b`", "there already"]);
    check("--add --rename b @disk.qcow2 c", 1, &["`b`", "there already"]);
    check("--repair @disk.qcow2 a", 1, &["`a`", "nothing to repair"]);
    check("--list @disk.qcow2 gone", 1, &["disk.qcow2", "gone"]);
    check("--add -g 1000 @disk.qcow2 c", 2, &["--granularity 1000", "power of two"]);
    check("--add -g 4Q @disk.qcow2 c", 2, &["--granularity 4Q", "KiB"]);
    check("--clear -g 4k @disk.qcow2 a", 2, &["--granularity", "--add"]);
    check("--add -b @old.qcow2 @disk.qcow2 c", 2, &["--source-file", "--merge"]);
    check("--merge a -F qcow2 @disk.qcow2 b", 2, &["--source-format", "--source-file"]);
    check("--merge a -b @raw.img @disk.qcow2 b", 1, &["raw.img", "qcow2"]);
    check("--merge a -b @gone.qcow2 @disk.qcow2 b", 1, &["gone.qcow2"]);
    check("@disk.qcow2 a", 2, &["--add", "--list"]);
    check("--add @disk.qcow2", 2, &["BITMAP"]);
    check("--list --add @disk.qcow2 a", 2, &["--list"]);
    check("--add -U @disk.qcow2 c", 2, &["--force-share"]);
    check("--add @raw.img c", 1, &["raw.img", "qcow2"]);
    check("--add @old.qcow2 c", 1, &["old.qcow2", "version 2", "amend"]);
}

/// Bitmaps that a killed server leaves can be removed and repaired, nothing else.
#[test]
fn inconsistent_bitmaps_are_repaired() {
    if !have(&TOOLS) {
        return;
    }
    let bench = Bench::new();
    bench.succeed("create @disk.qcow2 8M");
    bench.succeed("bitmap --add @disk.qcow2 daily");
    bench.succeed("bitmap --add --disable -g 1MiB @disk.qcow2 still");
    bench.succeed("bitmap --add @disk.qcow2 weekly");
    let path = bench.path("disk.qcow2");
    let graph = crate::file_disk(&path, true).replace(
        &format!("driver = \"file\"\npath = \"{}\"", path.display()),
        &format!(
            "driver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"{}\" }}",
            path.display()
        ),
    );
    let daemon = crate::serve(&bench.0, &graph, &[]);
    bench.fail("bitmap --clear @disk.qcow2 daily", 1, &["disk.qcow2", "another process"]);
    bench.succeed("bitmap --list -U @disk.qcow2");
    daemon.kill();
    let flags = |bench: &Bench| -> Vec<Value> {
        bench.described("disk.qcow2").iter().map(|bitmap| bitmap["flags"].clone()).collect()
    };
    assert_eq!(
        flags(&bench),
        [json!(["in-use", "auto"]), json!(["in-use"]), json!(["in-use", "auto"])]
    );
    let listed = bench.listed("disk.qcow2");
    assert!(listed.iter().all(|it| it["inconsistent"] == true && it.get("ranges").is_none()));
    assert!(bench.succeed("bitmap --list @disk.qcow2").contains("--repair"));
    for line in ["--clear", "--enable", "--disable", "--merge still", "--rename other"] {
        let words = ["daily", "inconsistent", "--repair", "--remove"];
        let words = if line.contains("still") { &words[1..] } else { &words };
        bench.fail(&format!("bitmap {line} @disk.qcow2 daily"), 1, words);
    }
    bench.fail("bitmap --add @disk.qcow2 daily", 1, &["there already"]);
    bench.fail("bitmap --add --merge daily @disk.qcow2 new", 1, &["daily", "inconsistent"]);
    bench.succeed("bitmap --repair @disk.qcow2 daily");
    bench.succeed("bitmap --repair --clear --merge daily @disk.qcow2 still");
    assert_eq!(flags(&bench), [json!(["auto"]), json!([]), json!(["in-use", "auto"])]);
    bench.succeed("bitmap --remove @disk.qcow2 weekly");
    let listed = bench.agreed("disk.qcow2", "repaired");
    let all = ranges(&[(0, 8 << 20)]);
    assert_eq!((&listed[0]["ranges"], &listed[1]["ranges"]), (&all, &all));
    bench.succeed("check --repair=leaks @disk.qcow2");
    bench.qemu_img("check -q @disk.qcow2");
    // Somebody who knows of no bitmaps has written: the bit that calls them consistent is gone.
    bench.succeed("bitmap --clear @disk.qcow2 still");
    bench.0.poke("disk.qcow2", 95, &[0]);
    assert_eq!(bench.described("disk.qcow2").len(), 0);
    assert!(bench.listed("disk.qcow2").iter().all(|it| it["inconsistent"] == true));
    bench.fail("bitmap --clear @disk.qcow2 still", 1, &["still", "inconsistent"]);
    bench.succeed("bitmap --repair @disk.qcow2 still");
    bench.succeed("bitmap --remove @disk.qcow2 daily");
    assert_eq!(bench.agreed("disk.qcow2", "one is left")[0]["ranges"], all);
}

/// What nobody here knows is kept to the byte, and can be removed.
#[test]
fn unknown_bitmaps_are_kept_and_removed() {
    if !have(&["qemu-img"]) {
        return;
    }
    let bench = Bench::new();
    bench.succeed("create @disk.qcow2 8M");
    bench.succeed("bitmap --add @disk.qcow2 later");
    let directory = bench.directory_offset("disk.qcow2");
    // Its type.
    bench.0.poke("disk.qcow2", directory + 16, &[7]);
    let entry = bench.0.peek("disk.qcow2", directory, 32);
    bench.succeed("bitmap --add @disk.qcow2 daily");
    let moved = bench.directory_offset("disk.qcow2");
    assert_ne!(moved, directory);
    assert_eq!(bench.0.peek("disk.qcow2", moved, 32), entry);
    let listed = bench.listed("disk.qcow2");
    assert_eq!((&listed[1]["name"], &listed[1]["known"]), (&json!("later"), &json!(false)));
    for line in ["--clear", "--repair", "--rename other", "--add"] {
        bench.fail(&format!("bitmap {line} @disk.qcow2 later"), 1, &["later"]);
    }
    bench.fail("bitmap --enable @disk.qcow2 later", 1, &["kind", "--remove"]);
    bench.succeed("bitmap --remove @disk.qcow2 later");
    bench.qemu_img("check -q @disk.qcow2");
    assert_eq!(bench.described("disk.qcow2").len(), 1);
}

/// Bitmaps go with the size of the disk: what is added has changed.
#[test]
fn bitmaps_are_resized_with_the_disk() {
    if !have(&TOOLS) {
        return;
    }
    for options in ["cluster_size=64k", "cluster_size=512", "extended_l2=on"] {
        let bench = Bench::new();
        bench.qemu_img(&format!("create -q -f qcow2 -o {options} @disk.qcow2 4M"));
        bench.qemu_img("bitmap --add -g 64k @disk.qcow2 a");
        bench.qemu_img("bitmap --add --disable -g 1M @disk.qcow2 b");
        bench.qemu_io("disk.qcow2", &["write 64k 64k", "write 3900k 1k"]);
        bench.succeed("resize @disk.qcow2 +4100k");
        let (old, new) = (4_u64 << 20, 4100_u64 << 10);
        let listed = bench.agreed("disk.qcow2", options);
        let tail = (3_932_160, 64 << 10);
        assert_eq!(listed[0]["ranges"], ranges(&[(64 << 10, 64 << 10), tail, (old, new)]));
        assert_eq!(listed[1]["ranges"], ranges(&[(old, new)]));
        bench.succeed("resize --shrink @disk.qcow2 3M");
        let listed = bench.agreed("disk.qcow2", options);
        assert_eq!(listed[0]["ranges"], ranges(&[(64 << 10, 64 << 10)]));
        assert_eq!(listed[1]["ranges"], ranges(&[]));
        bench.qemu_io("disk.qcow2", &["write 2M 1k"]);
        let listed = bench.agreed("disk.qcow2", options);
        assert_eq!(listed[0]["ranges"], ranges(&[(64 << 10, 64 << 10), (2 << 20, 64 << 10)]));
        // One that is inconsistent stays so, and does not stand in the way.
        let directory = bench.directory_offset("disk.qcow2");
        bench.0.poke("disk.qcow2", directory + 15, &[3]);
        bench.succeed("resize @disk.qcow2 5M");
        let inconsistent: Vec<_> =
            bench.listed("disk.qcow2").iter().map(|it| it["inconsistent"] == true).collect();
        assert_eq!(inconsistent.iter().filter(|it| **it).count(), 1, "{options}");
        bench.qemu_img("check -q @disk.qcow2");
        bench.0.poke("disk.qcow2", bench.directory_offset("disk.qcow2") + 16, &[7]);
        bench.fail("resize @disk.qcow2 6M", 1, &["disk.qcow2", "kind"]);
    }
}
