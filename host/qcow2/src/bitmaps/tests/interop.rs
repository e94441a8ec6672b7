//! QEMU's tools read what is stored here, and the other way round.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "files for other programs"
)]

use std::path::PathBuf;
use std::process::Command;

use super::super::{BitmapChange, Directory, NewBitmap, Trust};
use super::cases::{change, new, words};
use super::image::{TestImage, run};

const GRANULE: u64 = 1 << 16;

/// An image file, or `None`, said aloud, where QEMU's tools are missing.
struct File {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl File {
    fn new(options: &str) -> Option<Self> {
        let tools = ["qemu-img", "qemu-nbd", "nbdinfo"];
        let missing = |tool: &&&str| Command::new(tool).arg("--version").output().is_err();
        if let Some(tool) = tools.iter().find(missing) {
            assert!(std::env::var_os("CI").is_none(), "`{tool}` is missing");
            eprintln!("SKIPPED: `{tool}` is missing");
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image.qcow2");
        let file = Self { _directory: directory, path };
        file.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "FILE", "1G"]);
        Some(file)
    }

    fn qemu_img(&self, args: &[&str]) -> String {
        let path = self.path.to_str().expect("text");
        let args = args.iter().map(|&arg| if arg == "FILE" { path } else { arg });
        output(Command::new("qemu-img").args(args))
    }

    fn open(&self) -> TestImage {
        TestImage::open(std::fs::read(&self.path).expect("an image"))
    }

    /// Changes the file as `changes` say; checks that no cluster is leaked or miscounted.
    fn change(&self, changes: &[BitmapChange<'_>]) {
        let image = self.open();
        change(&image, changes).expect("stored");
        self.close(&image);
    }

    fn close(&self, image: &TestImage) {
        std::fs::write(&self.path, image.bytes()).expect("a file");
        let checked = self.qemu_img(&["check", "-q", "FILE"]);
        assert_eq!(checked, "");
    }

    /// Name, granularity and flags of each, as `qemu-img info` has them.
    fn listed(&self) -> Vec<(String, u64, Vec<String>)> {
        let info = self.qemu_img(&["info", "FILE"]);
        let mut lines = info.lines().map(str::trim).skip_while(|line| *line != "bitmaps:").skip(1);
        let (mut found, mut flags) = (Vec::new(), Vec::new());
        let mut name = String::new();
        while let Some(line) = lines.next().filter(|line| !line.starts_with("refcount")) {
            match line.split_once(": ") {
                Some(("name", text)) => name = text.to_owned(),
                Some(("granularity", bytes)) => {
                    let bytes = bytes.parse().expect("a number");
                    found.push((std::mem::take(&mut name), bytes, std::mem::take(&mut flags)));
                }
                Some((_, flag)) => flags.push(flag.to_owned()),
                None => {}
            }
        }
        found
    }

    /// Dirty granules, as `qemu-nbd` exports them.
    fn dirty(&self, name: &str) -> Vec<u64> {
        let context = format!("--map=qemu:dirty-bitmap:{name}");
        let served = ["qemu-nbd", "-r", "-f", "qcow2", "-B", name];
        let map = output(
            Command::new("nbdinfo")
                .args([&context, "--", "["])
                .args(served)
                .args([self.path.to_str().expect("text"), "]"]),
        );
        let mut dirty = Vec::new();
        for line in map.lines() {
            let fields: Vec<u64> =
                line.split_whitespace().take(3).map(|it| it.parse().expect("a number")).collect();
            if fields[2] == 1 {
                dirty.extend(fields[0] / GRANULE..(fields[0] + fields[1]) / GRANULE);
            }
        }
        dirty
    }
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("a command");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

fn bits(words: &[u64]) -> Vec<u64> {
    (0..words.len() as u64 * 64)
        .filter(|bit| words[*bit as usize / 64] >> (bit % 64) & 1 == 1)
        .collect()
}

fn pattern() -> Vec<u64> {
    (0..256).map(|at| [0, u64::MAX, 0x8000_0000_0000_0001, at][at as usize / 64]).collect()
}

/// Both ways, with small and large clusters, with a backing file and other things in the header.
#[test]
fn qemu_sees_what_is_stored() {
    for options in [
        "cluster_size=512",
        "cluster_size=4k",
        "cluster_size=64k",
        "cluster_size=2M,extended_l2=on",
    ] {
        let Some(file) = File::new(options) else { return };
        let pattern = pattern();
        let small = [1];
        let coarse = NewBitmap { granularity_bits: 20, auto: false, ..new("coarse", &small) };
        file.change(&[new("täglich", &pattern), coarse].map(BitmapChange::Store));
        let expect = [
            ("täglich".to_owned(), GRANULE, vec!["auto".to_owned()]),
            ("coarse".to_owned(), 1 << 20, vec![]),
        ];
        assert_eq!(file.listed(), expect, "{options}");
        assert_eq!(file.dirty("täglich"), bits(&pattern), "{options}");
        assert_eq!(file.dirty("coarse"), (0..16).collect::<Vec<_>>(), "{options}");
        // And over again.
        file.change(&[BitmapChange::Store(new("täglich", &[6])), BitmapChange::Remove(b"coarse")]);
        assert_eq!(file.dirty("täglich"), [1, 2], "{options}");
        file.change(&[BitmapChange::Rename { from: "täglich".as_bytes(), to: b"weekly" }]);
        assert_eq!(file.listed().len(), 1);
        assert_eq!(file.dirty("weekly"), [1, 2], "{options}");
        file.change(&[BitmapChange::Remove(b"weekly")]);
        assert_eq!(file.listed(), [], "{options}");
    }
}

#[test]
fn what_qemu_stores_is_read() {
    let Some(file) = File::new("cluster_size=4k") else { return };
    let pattern = pattern();
    file.change(&[BitmapChange::Store(new("ours", &pattern))]);
    file.qemu_img(&["bitmap", "--add", "-g", "64k", "FILE", "theirs"]);
    file.qemu_img(&["bitmap", "--merge", "ours", "FILE", "theirs"]);
    file.qemu_img(&["bitmap", "--disable", "FILE", "ours"]);
    let image = file.open();
    assert_eq!(words(&image, "theirs").expect("stored"), pattern);
    assert_eq!(words(&image, "ours").expect("stored"), pattern);
    let directory = run(Directory::load(&image)).expect("a directory");
    let auto = |name: &str| directory.entry(name.as_bytes()).expect("it is there").auto();
    assert_eq!((auto("theirs"), auto("ours")), (true, false));
    file.qemu_img(&["bitmap", "--enable", "FILE", "ours"]);
    file.qemu_img(&["bitmap", "--clear", "FILE", "theirs"]);
    file.qemu_img(&["bitmap", "--remove", "FILE", "theirs"]);
    let image = file.open();
    let directory = run(Directory::load(&image)).expect("a directory");
    assert!(directory.entry(b"theirs").is_err());
    assert!(directory.entry(b"ours").expect("it is there").auto());
    // QEMU records in it, and in granules that it has recorded before.
    let write = ["-c", "write 1M 128k", "-c", "write 1023M 1", "-f", "qcow2"];
    output(Command::new("qemu-io").args(write).arg(&file.path));
    let mut expect = pattern;
    expect[0] |= 3 << 16;
    expect[255] |= 1 << 48;
    assert_eq!(words(&file.open(), "ours").expect("stored"), expect);
}

#[test]
fn what_is_in_use_is_inconsistent_for_qemu_too() {
    let Some(file) = File::new("cluster_size=64k") else { return };
    file.change(&[new("a", &[1]), new("b", &[2])].map(BitmapChange::Store));
    let image = file.open();
    let mut directory = run(Directory::load(&image)).expect("a directory");
    run(directory.begin_use(&image, |entry| entry.name == b"a")).expect("marked");
    file.close(&image);
    let flags = |file: &File| -> Vec<Vec<String>> {
        file.listed().into_iter().map(|(_, _, flags)| flags).collect()
    };
    assert_eq!(flags(&file), [vec!["in-use", "auto"], vec!["auto"]]);
    assert_eq!(file.dirty("b"), [1]);
    // It stays as it is when QEMU writes, and can be removed.
    output(Command::new("qemu-io").args(["-c", "write 0 64k", "-f", "qcow2"]).arg(&file.path));
    let image = file.open();
    let directory = run(Directory::load(&image)).expect("a directory");
    let a = directory.entry(b"a").expect("it is there");
    assert_eq!(directory.trust(a), Trust::Inconsistent);
    assert_eq!(words(&image, "b").expect("stored")[0], 3);
    file.change(&[BitmapChange::Remove(b"a")]);
    assert_eq!(flags(&file), [["auto"]]);
}

/// QEMU's own program that knows of no bitmaps is none at hand: the bit is cleared by hand.
#[test]
fn qemu_accepts_what_follows_an_inconsistent_directory() {
    let Some(file) = File::new("cluster_size=64k") else { return };
    file.change(&[BitmapChange::Store(new("a", &[1]))]);
    let mut bytes = std::fs::read(&file.path).expect("an image");
    bytes[95] &= !1;
    let image = TestImage::open(bytes);
    change(&image, &[BitmapChange::Store(new("b", &[2]))]).expect("stored");
    std::fs::write(&file.path, image.bytes()).expect("a file");
    let listed = file.listed();
    assert_eq!(listed[0].2, ["in-use", "auto"]);
    assert_eq!(file.dirty("b"), [1]);
    // What the old directory had is leaked.
    let repaired = file.qemu_img(&["check", "-r", "leaks", "FILE"]);
    assert!(repaired.contains("No errors were found"), "{repaired}");
    assert_eq!(file.dirty("b"), [1]);
}
