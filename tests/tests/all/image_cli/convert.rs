//! `image convert` beside `qemu-img convert`: the same disks in the same formats.

use std::fs;

use blockloom_tests::tools::{have, run, succeed};
use serde_json::Value;

use super::bench::Bench;

const TOOLS: [&str; 2] = ["qemu-img", "qemu-io"];

/// What a disk of 9 MiB and a bit is written with: data, zeros, noise, across clusters.
const WRITES: [&str; 8] = [
    "write -P 1 0 192k",
    "write -P 2 3M 70000",
    "write -P 3 7340032 4096",
    "write -z 1M 256k",
    "discard 64k 64k",
    "write -P 4 9437184 512",
    "write -P 5 5243392 3k",
    "write -P 6 6M 2M",
];
const SIZE: u64 = 9 * 1024 * 1024 + 37 * 512;

impl Bench {
    /// The two disks are equal, as QEMU sees them, and the second image is in order.
    fn equal(&self, left: &str, right: &str, context: &str) {
        let formats = [left, right].map(|it| if it.ends_with(".img") { "raw" } else { "qcow2" });
        let line = format!("compare -f {} -F {} @{left} @{right}", formats[0], formats[1]);
        let output = run("qemu-img", self.arguments(&line));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("identical"), "{context}: {text} {output:?}");
        if formats[1] == "qcow2" {
            let checked = run("qemu-img", self.arguments(&format!("check @{right}")));
            assert_eq!(checked.status.code(), Some(0), "{context}: {checked:?}");
        }
    }

    fn info(&self, image: &str) -> Value {
        let text = self.qemu_img(&format!("info --output=json @{image}"));
        serde_json::from_str(&text).expect("JSON")
    }

    /// Blocks of the file, bytes.
    fn allocated(&self, image: &str) -> u64 {
        self.info(image)["actual-size"].as_u64().expect("a number")
    }

    /// A chain of three images, `top.qcow2` over `middle.qcow2` over `base.img`, each shorter than the next.
    fn chain(&self, options: &str) {
        self.0.sparse_image("base.img", (3 << 20) + 512);
        let base = self.path("base.img");
        let base = base.to_str().expect("UTF-8");
        succeed("qemu-io", ["-f", "raw", "-c", "write -P 9 0 3145728", base]);
        self.qemu_img("create -q -f qcow2 -b base.img -F raw @middle.qcow2 7M");
        self.qemu_io(
            "middle.qcow2",
            &["write -P 8 1M 1M", "write -z 512k 128k", "write -P 7 6M 1M"],
        );
        let create = format!("create -q -f qcow2 -o {options} -b middle.qcow2 -F qcow2");
        self.qemu_img(&format!("{create} @top.qcow2 {SIZE}"));
        self.qemu_io(
            "top.qcow2",
            &["write -P 6 1500k 100k", "write -z 6M 64k", "write -P 5 8M 3k"],
        );
    }
}

/// Sources of both formats, targets with all options, with and without compression.
#[test]
fn disks_are_converted_as_by_qemu_img() {
    if !have(&TOOLS) {
        return;
    }
    let sources =
        ["compat=1.1", "cluster_size=512", "extended_l2=on,cluster_size=128k", "compat=0.10"];
    let targets = [
        "-O raw",
        "-O raw -S 0",
        "-O qcow2",
        "-O qcow2 -W -m 3",
        "-O qcow2 -o cluster_size=512",
        "-O qcow2 -o cluster_size=2M -S 64k",
        "-O qcow2 -o extended_l2=on,cluster_size=64k",
        "-O qcow2 -o compat=0.10,cluster_size=4k",
        "-O qcow2 -o preallocation=metadata",
        "-O qcow2 -o data_file=@data.raw,data_file_raw=on",
        "-O qcow2 -c",
        "-O qcow2 -c -W",
        "-O qcow2 -c -o compression_type=zstd",
        "-O qcow2 -c -o compression_type=zstd,cluster_size=2M",
        "-O qcow2 -c -o cluster_size=512,refcount_bits=1",
        "-O qcow2 -c -o extended_l2=on",
        "-O qcow2 -c -S 0",
    ];
    for options in sources {
        let bench = Bench::new();
        bench.qemu_img(&format!("create -q -f qcow2 -o {options} @source.qcow2 {SIZE}"));
        bench.qemu_io("source.qcow2", &WRITES);
        bench.qemu_img("convert -f qcow2 -O raw @source.qcow2 @source.img");
        bench.qemu_img("convert -c -f qcow2 -O qcow2 @source.qcow2 @packed.qcow2");
        for target in targets {
            // The other kinds of sources are read in one way whatever the options are.
            let others: &[&str] =
                if options == sources[0] { &["source.img", "packed.qcow2"] } else { &[] };
            for source in ["source.qcow2"].iter().chain(others) {
                let context = format!("{options}: {source}: {target}");
                let result = if target.contains("-O raw") { "result.img" } else { "result.qcow2" };
                bench.succeed(&format!("convert {target} --force @{source} @{result}"));
                bench.equal("source.img", result, &context);
                if target.contains(" -c") {
                    let checked = bench.qemu_img(&format!("check @{result}"));
                    assert!(!checked.contains(" 0.00% compressed"), "{context}: {checked}");
                }
            }
            if options == sources[0] {
                bench.same_in_all(if target.contains("-O raw") {
                    "result.img"
                } else {
                    "result.qcow2"
                });
            }
        }
        assert!(!bench.names().iter().any(|name| name.ends_with(".new")), "{:?}", bench.names());
    }
}

/// A chain becomes one image, or an image over the same backing.
#[test]
fn chains_are_flattened_or_kept() {
    if !have(&TOOLS) {
        return;
    }
    for options in ["compat=1.1", "extended_l2=on,cluster_size=16k"] {
        let bench = Bench::new();
        bench.chain(options);
        for target in ["-O raw", "-O qcow2", "-O qcow2 -c -o cluster_size=512", "-O qcow2 -c -W"] {
            let result = if target.contains("raw") { "flat.img" } else { "flat.qcow2" };
            bench.succeed(&format!("convert {target} --force @top.qcow2 @{result}"));
            bench.equal("top.qcow2", result, &format!("{options}: {target}"));
            assert!(bench.info(result).get("backing-filename").is_none());
        }
        for target in
            ["", "-c", "-o cluster_size=512", "-c -o cluster_size=2M", "-o extended_l2=on"]
        {
            let context = format!("{options}: kept: {target}");
            let kept = "-O qcow2 -B middle.qcow2 -F qcow2 --force";
            bench.succeed(&format!("convert {kept} {target} @top.qcow2 @kept.qcow2"));
            bench.equal("top.qcow2", "kept.qcow2", &context);
            assert_eq!(bench.info("kept.qcow2")["backing-filename"], "middle.qcow2");
            // Of large clusters the tables alone take more.
            let is_smaller = bench.allocated("kept.qcow2") < bench.allocated("flat.img");
            assert!(is_smaller || target.contains("2M"), "{context}");
        }
        // A source with nothing behind it hides all that the backing has.
        bench.succeed("convert -O qcow2 -B base.img -F raw @flat.img @over.qcow2");
        bench.equal("flat.img", "over.qcow2", options);
    }
}

/// Into an image that is there: nothing of what it held is left.
#[test]
fn images_that_are_there_take_what_they_show() {
    if !have(&TOOLS) {
        return;
    }
    let bench = Bench::new();
    bench.qemu_img(&format!("create -q -f qcow2 @source.qcow2 {SIZE}"));
    bench.qemu_io("source.qcow2", &WRITES);
    bench.qemu_img("convert -O raw @source.qcow2 @source.img");
    bench.0.sparse_image("base.img", 20 << 20);
    let base = bench.path("base.img");
    succeed("qemu-io", ["-f", "raw", "-c", "write -P 99 0 20M", base.to_str().expect("UTF-8")]);
    for options in ["compat=1.1", "compat=0.10", "extended_l2=on", "cluster_size=512"] {
        for how in ["", "-c", "-W -m 16"] {
            let create = format!("create -q -f qcow2 -o {options} -b base.img -F raw @there.qcow2");
            bench.qemu_img(&format!("{create} {SIZE}"));
            bench.qemu_io("there.qcow2", &["write -P 98 0 9M"]);
            bench.qemu_img("snapshot -c before @there.qcow2");
            bench.succeed(&format!("convert -n -O qcow2 {how} @source.qcow2 @there.qcow2"));
            bench.equal("source.img", "there.qcow2", &format!("{options}: {how}"));
        }
    }
    fs::copy(&base, bench.path("there.img")).expect("copy");
    bench.succeed("resize --shrink @there.img 9456128");
    bench.succeed("convert -n -O raw @source.qcow2 @there.img");
    bench.equal("source.img", "there.img", "raw");
    bench.qemu_img("create -q -f qcow2 @short.qcow2 1M");
    bench.fail("convert -n -O qcow2 @source.qcow2 @short.qcow2", 1, &["short.qcow2", "resize"]);
    bench.qemu_img("bitmap --add @there.qcow2 daily");
    bench.fail("convert -n -O qcow2 @source.qcow2 @there.qcow2", 1, &["there.qcow2", "--remove"]);
    bench.fail("convert -n -O qcow2 @source.qcow2 @gone.qcow2", 1, &["gone.qcow2"]);
}

/// What is zero is not written, and an image is not larger than the one that QEMU makes.
#[test]
fn zeros_take_no_room() {
    if !have(&TOOLS) {
        return;
    }
    let bench = Bench::new();
    let mut bytes = vec![0_u8; 8 << 20];
    for start in (0..8 << 20).step_by(1 << 20) {
        bytes[start + 5000..start + 6000].fill(1);
    }
    bench.0.image_of("zeros.img", &bytes);
    for (format, result) in [("raw", "img"), ("qcow2", "qcow2")] {
        bench.succeed(&format!("convert -O {format} @zeros.img @ours.{result}"));
        bench.qemu_img(&format!("convert -f raw -O {format} @zeros.img @theirs.{result}"));
        let [ours, theirs] =
            ["ours", "theirs"].map(|it| bench.allocated(&format!("{it}.{result}")));
        assert!(ours <= theirs + (64 << 10), "{format}: {ours} {theirs}");
        bench.equal("zeros.img", &format!("ours.{result}"), format);
    }
    bench.succeed("convert -O raw -S 0 @zeros.img @full.img");
    assert_eq!(bench.allocated("full.img"), 8 << 20);
    let text = bench.succeed("convert -p -O raw --force @zeros.img @full.img");
    assert!(text.ends_with("    (100.00/100%)\r\n"), "{text:?}");
}

/// Bitmaps go with the disk, as QEMU copies them.
#[test]
fn bitmaps_are_copied() {
    if !have(&["qemu-img", "qemu-io", "qemu-nbd", "nbdinfo"]) {
        return;
    }
    let bench = Bench::new();
    bench.qemu_img(&format!("create -q -f qcow2 @source.qcow2 {SIZE}"));
    bench.qemu_img("bitmap --add @source.qcow2 a");
    bench.qemu_img("bitmap --add -g 4k @source.qcow2 b");
    bench.qemu_io("source.qcow2", &WRITES);
    bench.qemu_img("bitmap --disable @source.qcow2 b");
    for how in ["", "-c", "-o cluster_size=512"] {
        bench.succeed(&format!(
            "convert --force --bitmaps -O qcow2 {how} @source.qcow2 @ours.qcow2"
        ));
        let copied = bench.agreed("ours.qcow2", how);
        assert_eq!(copied, bench.agreed("source.qcow2", how), "{how}");
        bench.equal("source.qcow2", "ours.qcow2", how);
    }
    bench.succeed("convert --force -O qcow2 @source.qcow2 @ours.qcow2");
    assert_eq!(bench.agreed("ours.qcow2", "without").len(), 0);
    // One that is broken.
    let directory = bench.directory_offset("source.qcow2");
    bench.0.poke("source.qcow2", directory + 15, &[1]);
    let broken = "convert --force --bitmaps -O qcow2 @source.qcow2 @ours.qcow2";
    bench.fail(broken, 1, &["source.qcow2", "inconsistent", "--skip-broken-bitmaps"]);
    bench.succeed(&format!("{broken} --skip-broken-bitmaps"));
    assert_eq!(bench.agreed("ours.qcow2", "skipped").len(), 1);
    let old = "convert --force --bitmaps -O qcow2 -o compat=0.10 --skip-broken-bitmaps";
    bench.fail(&format!("{old} @source.qcow2 @ours.qcow2"), 2, &["--bitmaps", "1.1"]);
    assert_eq!(bench.agreed("ours.qcow2", "kept").len(), 1);
}

/// What does not go together is named; nothing is half-made, and nothing that is there is touched.
#[test]
fn failed_conversions_leave_nothing_behind() {
    let bench = Bench::new();
    bench.0.image_of("there.img", &[7; 4096]);
    bench.succeed("create @source.qcow2 1M");
    bench.succeed("create --backing source.qcow2 --backing-format qcow2 @top.qcow2");
    let names = bench.names();
    let check = |line: &str, code, words: &[&str]| {
        bench.fail(&format!("convert {line}"), code, words);
        assert_eq!(bench.names(), names, "{line}");
        assert_eq!(bench.0.peek("there.img", 0, 4096), [7; 4096], "{line}");
    };
    check("@source.qcow2 @there.img", 1, &["there.img", "--force"]);
    check("@source.qcow2 @source.qcow2 --force", 1, &["source.qcow2", "images that are read"]);
    check("@top.qcow2 @source.qcow2 --force", 1, &["source.qcow2", "images that are read"]);
    check("@gone.qcow2 @new.img", 1, &["gone.qcow2"]);
    check("@source.qcow2 @", 1, &["directory"]);
    check("@source.qcow2 @no/new.img", 1, &["no/new.img"]);
    check("-f qcow2 @there.img @new.img", 1, &["there.img", "qcow2"]);
    check("-c @source.qcow2 @new.img", 2, &["-c", "-O qcow2"]);
    check("--bitmaps @source.qcow2 @new.img", 2, &["--bitmaps", "-O qcow2"]);
    check("--skip-broken-bitmaps -O qcow2 @source.qcow2 @new.qcow2", 2, &["--bitmaps"]);
    check("--bitmaps -O qcow2 @there.img @new.qcow2", 1, &["there.img", "bitmaps"]);
    check("-o cluster_size=64k @source.qcow2 @new.img", 2, &["raw", "-O qcow2"]);
    check("-o size=2M -O qcow2 @source.qcow2 @new.qcow2", 2, &["size", "resize"]);
    check("-o preallocation=metadata @source.qcow2 @new.img", 2, &["preallocation", "falloc"]);
    check("-c -O qcow2 -o preallocation=full @source.qcow2 @new.qcow2", 2, &["-c"]);
    check("-c -O qcow2 -o data_file=x @source.qcow2 @new.qcow2", 2, &["data_file", "-c"]);
    check("-O qcow2 -B source.qcow2 @top.qcow2 @new.qcow2", 2, &["--backing-format"]);
    check("-O qcow2 -B gone -F raw @top.qcow2 @new.qcow2", 1, &["gone"]);
    check("-S 100 @source.qcow2 @new.img", 2, &["--sparse 100", "512"]);
    check("-S 4Q @source.qcow2 @new.img", 2, &["--sparse 4Q", "KiB"]);
    check("-m 99 @source.qcow2 @new.img", 2, &["99"]);
    check("-t never @source.qcow2 @new.img", 2, &["never", "unsafe"]);
    check("-n -o cluster_size=64k @source.qcow2 @there.img", 2, &["-n", "-o"]);
    bench.0.image_of("new.img.new", b"left");
    let names = bench.names();
    bench.fail("convert @source.qcow2 @new.img", 1, &["new.img.new", "remove it"]);
    assert_eq!(bench.names(), names);
    bench.succeed("convert -t unsafe --force @source.qcow2 @there.img");
    assert_eq!(fs::metadata(bench.path("there.img")).expect("there").len(), 1 << 20);
}
