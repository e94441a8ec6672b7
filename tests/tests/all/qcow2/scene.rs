//! One image, a raw file that holds what it should show, and a random workload for both.

use std::ops::Range;
use std::path::PathBuf;

use blockloom_tests::Random;
use blockloom_tests::tools::{nbd_map, succeed};
use blockloom_tests::{Daemon, Scratch};
use serde_json::Value;

use crate::{KIB, MIB, scratch, serve};

/// Size of the images' views, bytes; no multiple of a large cluster.
pub(super) const SIZE: u64 = 9 * MIB + 37 * KIB;
/// Bytes that the backing is shorter.
const SHORTER: u64 = 700 * KIB;

/// How an image is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// `-o` of `qemu-img create`.
    pub(super) options: &'static str,
    /// On a backing image with data of its own.
    pub(super) backing: bool,
}

/// An image `disk.qcow2`, and what it shows as `expect.raw`.
pub(super) struct Scene {
    pub(super) scratch: Scratch,
    shape: Shape,
    random: Random,
}

impl Scene {
    /// Both are empty, or show the backing.
    pub(super) fn new(shape: Shape, seed: u64) -> Self {
        let this = Self { scratch: scratch(), shape, random: Random::new(seed) };
        let (disk, expect) = (this.path("disk.qcow2"), this.path("expect.raw"));
        this.scratch.sparse_image("expect.raw", SIZE);
        let size = SIZE.to_string();
        let mut create = vec!["create", "-q", "-f", "qcow2"];
        let options = shape.options.replace("DATA", &this.path("data.raw"));
        if !options.is_empty() {
            create.extend(["-o", &options]);
        }
        if shape.backing {
            let (backing, shorter) = (this.path("base.qcow2"), (SIZE - SHORTER).to_string());
            succeed("qemu-img", ["create", "-q", "-f", "qcow2", &backing, &shorter]);
            let commands = ["write -P 81 0 3M", "write -P 82 5001k 1777k", "write -P 83 8M 300k"];
            qemu_io("qcow2", &backing, &commands.map(str::to_owned));
            qemu_io("raw", &expect, &commands.map(str::to_owned));
            create.extend(["-b", "base.qcow2", "-F", "qcow2"]);
        }
        succeed("qemu-img", create.into_iter().chain([disk.as_str(), &size]));
        this
    }

    /// The path of one of the scene's images.
    pub(super) fn path(&self, name: &str) -> String {
        self.image(name).to_str().expect("UTF-8").to_owned()
    }

    fn image(&self, name: &str) -> PathBuf {
        self.scratch.image(name)
    }

    /// Serves the image as drive `vda`.
    pub(super) fn serve(&self, writable: bool, engine: &str) -> Daemon {
        self.serve_file(writable, engine, "")
    }

    /// By-passing the page cache.
    pub(super) fn serve_direct(&self, engine: &str) -> Daemon {
        self.serve_file(true, engine, ", direct = true")
    }

    fn serve_file(&self, writable: bool, engine: &str, options: &str) -> Daemon {
        let graph = format!(
            "[node.disk]\ndriver = \"qcow2\"\n\
             file = {{ driver = \"file\", path = \"{}\"{options} }}\n\
             backing-dirs = [\"{}\"]\n[drive.vda]\nroot = \"disk\"\n\
             [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
             writable = {writable}\n",
            self.path("disk.qcow2"),
            self.path(".")
        );
        serve(&self.scratch, &graph, &["--engine", engine])
    }

    /// Commands of qemu-io that write and zero, at random: short and long, aligned and not.
    pub(super) fn workload(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.command()).collect()
    }

    fn command(&mut self) -> String {
        let random = &mut self.random;
        let unit = [512, 512, 4 * KIB, 64 * KIB][random.below(4) as usize];
        let longest = [2 * unit, 16 * unit, MIB][random.below(3) as usize];
        let offset = random.below(SIZE / unit) * unit;
        let len = (random.below(longest / unit) + 1) * unit;
        let len = len.min((SIZE - offset) / 512 * 512);
        match random.below(8) {
            0 => format!("write -z {offset} {len}"),
            1 => format!("write -z -u {offset} {len}"),
            _ => format!("write -P {} {offset} {len}", random.below(255) + 1),
        }
    }

    /// Does the same to the raw file.
    pub(super) fn expect(&self, commands: &[String]) {
        qemu_io("raw", &self.path("expect.raw"), commands);
    }

    /// The image is in order, and shows what it should, in the eyes of QEMU.
    pub(super) fn check(&self) {
        let (disk, expect) = (self.path("disk.qcow2"), self.path("expect.raw"));
        let shape = self.shape;
        let checked = succeed("qemu-img", ["check", "-f", "qcow2", &disk]);
        assert!(checked.contains("No errors were found"), "{shape:?}: {checked}");
        let compared = succeed("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", &expect, &disk]);
        assert!(compared.contains("identical"), "{shape:?}: {compared}");
    }

    /// `qemu-img map`: what is known to be zero.
    pub(super) fn zeros(&self) -> Vec<Range<u64>> {
        let disk = self.path("disk.qcow2");
        let json = succeed("qemu-img", ["map", "--output=json", "-f", "qcow2", &disk]);
        let list: Value = serde_json::from_str(&json).expect("JSON");
        let is_zero = |range: &&Value| range["zero"].as_bool().expect("a bool");
        joined(list.as_array().expect("a list").iter().filter(is_zero).map(|range| {
            let field = |name: &str| range[name].as_u64().expect("a number");
            field("start")..field("start") + field("length")
        }))
    }
}

/// What an export says is zero.
pub(super) fn zeros_of(uri: &str) -> Vec<Range<u64>> {
    let map = nbd_map(uri, "base:allocation").into_iter();
    joined(map.filter(|(.., kind)| kind & 2 != 0).map(|(offset, len, _)| offset..offset + len))
}

/// Whether all bytes of the first list of ranges are in the second.
pub(super) fn is_within(inner: &[Range<u64>], outer: &[Range<u64>]) -> bool {
    let holds = |range: &Range<u64>, outer: &Range<u64>| {
        outer.start <= range.start && range.end <= outer.end
    };
    inner.iter().all(|range| outer.iter().any(|outer| holds(range, outer)))
}

fn joined(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

/// Runs commands of qemu-io, all of which must succeed.
pub(super) fn qemu_io(format: &str, target: &str, commands: &[String]) {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let output = succeed("qemu-io", ["-f", format].into_iter().chain(commands).chain([target]));
    assert!(!output.contains("failed") && !output.contains("rror"), "{output}");
}
