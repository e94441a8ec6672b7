//! Plugins of released versions of the contract, as binaries: this host serves them as they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockloom::block_on;
use blockloom::host::{Overrides, start};
use blockloom::node::WriteFlags;
use blockloom::plugin::{PluginModule, PluginRuntime, bundled, bundled_names};
use blockloom_tests::Random;

use crate::scratch;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 256;
/// What each is configured with, so that nothing fails; and its further children.
const PLUGINS: &[(&str, &str, &str)] = &[
    (
        "backup",
        "config = { min-cluster-size = \"64KiB\" }",
        "child.target = \"other\"\ngrant.file = [\"read\"]\ngrant.target = [\"write\"]",
    ),
    ("copy-on-read", "", "grant.file = [\"read\", \"write-unchanged\"]"),
    ("delay", "config = { write = \"100us\" }", ""),
    ("error", "config = { kinds = [\"write\"], after = 1000000 }", ""),
    ("log", "config = { kinds = [\"write\"], rate = 1 }", ""),
    ("pass", "", ""),
    ("protect", "config = { ranges = [{ offset = \"1MiB\", length = \"64KiB\" }] }", ""),
    ("stats", "", ""),
    ("throttle", "config = { iops = 100000 }", ""),
    ("xor", "config = { key = \"frozen\" }", "grant.bytes = \"transform\""),
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/abi-0.1")
}

fn fixture(name: &str) -> PathBuf {
    fixtures().join(format!("{name}.wasm"))
}

#[test]
fn each_bundled_plugin_is_kept() {
    for name in bundled_names() {
        let path = fixture(name);
        if std::env::var_os("BLOCKLOOM_REGENERATE").is_some() && !path.exists() {
            fs::write(&path, bundled(name).expect("a bundled plugin")).expect("written");
        }
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
        let module = PluginModule::load(&runtime, name, &bytes).expect("it is served");
        let inspection = module.inspection();
        assert_eq!((inspection.abi, inspection.layout), ("blockloom:filter@0.1.0", 1));
        assert_eq!(inspection.name, name);
        assert!(PLUGINS.iter().any(|(known, ..)| *known == name), "{name} is not tried below");
    }
}

/// Random requests come back as from a disk without a filter.
#[test]
fn they_serve_as_they_did() {
    for (name, config, more) in PLUGINS {
        let scratch = scratch();
        let plugin = fixture(name);
        let graph = scratch.path("graph.toml");
        let disk = match *name {
            "copy-on-read" => "driver = \"memory\"\nsize = \"2MiB\"\nchild.backing = \"other\"",
            _ => "driver = \"memory\"\nsize = \"2MiB\"",
        };
        let text = format!(
            "[node.other]\ndriver = \"memory\"\nsize = \"2MiB\"\n[node.disk]\n{disk}\n\
             [node.filter]\ndriver = \"plugin\"\nplugin = \"{}\"\nchild.file = \"disk\"\n{config}\n{more}\n\
             [drive.vda]\nroot = \"filter\"\n\
             [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\nwritable = true\n",
            plugin.display()
        );
        fs::write(&graph, text).expect("a graph file");
        let (host, _) =
            start(&graph, Overrides::default()).unwrap_or_else(|it| panic!("{name}: {it}"));
        let drive = host.drive("vda").expect("a drive");
        // An overlay shows zeros of its backing; what is XORed shows its key.
        let mut shown = vec![0_u8; BLOCK * BLOCKS as usize];
        for block in 0..BLOCKS {
            block_on(drive.write(block * BLOCK as u64, &[0; BLOCK])).expect("a write");
        }
        let mut random = Random::new(7);
        for step in 0..400 {
            let block = random.below(BLOCKS) as usize;
            let (at, range) = ((block * BLOCK) as u64, block * BLOCK..(block + 1) * BLOCK);
            match random.below(4) {
                0 => {
                    let read = block_on(drive.read(at, BLOCK)).expect("a read");
                    assert!(read[..] == shown[range], "{name}: step {step}, block {block}");
                }
                1 => {
                    block_on(drive.zero(at, BLOCK as u64, WriteFlags::NONE)).expect("zeros");
                    shown[range].fill(0);
                }
                2 => block_on(drive.flush()).expect("a flush"),
                _ => {
                    let byte = random.below(256) as u8;
                    block_on(drive.write(at, &[byte; BLOCK])).expect("a write");
                    shown[range].fill(byte);
                }
            }
        }
        let read = block_on(drive.read(0, shown.len())).expect("a read");
        assert!(read[..] == shown, "{name}: in the end");
        host.shutdown().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// What is frozen is what the present version is made from, until there is another one; nobody edits it after that.
#[test]
fn the_frozen_files_stay_as_they_are() {
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
    let read = |path: &str| fs::read_to_string(wit.join(path)).expect("a file");
    let (present, frozen) = (read("filter.wit"), read("frozen/0.1/filter.wit"));
    assert!(frozen.contains("\npackage blockloom:filter@0.1.0;\n"));
    if present.contains("\npackage blockloom:filter@0.1.0;\n") {
        assert_eq!(present, frozen, "a change needs a new version: `wit/filter.wit` is of 0.1");
    }
    assert_eq!(fnv(frozen.as_bytes()), FROZEN_WIT, "wit/frozen/0.1/filter.wit was changed");
}

/// Of `wit/frozen/0.1/filter.wit`.
const FROZEN_WIT: u64 = 0x519a_1eef_a741_5956;

/// The 64-bit FNV-1a hash.
fn fnv(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The sources of a plugin, copied elsewhere, make the same bytes.
#[test]
fn a_build_does_not_depend_on_where_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let scratch = scratch();
    let copy = scratch.path("elsewhere");
    for name in files_below(&root) {
        let (from, to) = (root.join(&name), copy.join(&name));
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        fs::copy(&from, &to).expect("a copy");
    }
    let made = blockloom_plugin_build::compile(&copy, &scratch.path("target"), "pass");
    assert!(made.expect("it builds") == bundled("pass").expect("it is bundled"));
}

fn files_below(root: &Path) -> Vec<String> {
    let mut pending = vec![root.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            let is_made = path.file_name().is_some_and(|name| name == "target" || name == ".git");
            match path.is_dir() {
                true if is_made => {}
                true => pending.push(path),
                false => files.push(path.strip_prefix(root).expect("below").display().to_string()),
            }
        }
    }
    files
}
