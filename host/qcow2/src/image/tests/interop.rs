//! Images of `qemu-img`, written here, seen by `qemu-img` again.

use std::path::Path;

use super::{SECTOR, options};
use crate::format::header::features::OPEN;
use crate::image::{Image, OpenOptions};
use crate::read_header;
use crate::testing::tools::{have, qemu_check, run, succeed};
use crate::testing::{Container, Disk, MemoryStorage, Random, block_on};

const SIZE: u64 = 8 << 20;

pub(super) fn load(path: &Path) -> MemoryStorage {
    MemoryStorage::new(std::fs::read(path).expect("a file"))
}

pub(super) fn open(path: &Path, backing: Option<Vec<u8>>) -> Disk {
    let container = Container { file: load(path), data: None };
    let image = block_on(Image::open(&container, &options())).expect("opens");
    Disk { image, container, backing }
}

pub(super) fn save(disk: &Disk, path: &Path) {
    block_on(disk.image.close(&disk.container)).expect("closes");
    std::fs::write(path, disk.container.file.content()).expect("a file");
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// Random writes, zeros and discards; returns what the disk reads.
fn change(disk: &Disk, seed: u64, count: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    for round in 0..count {
        let offset = random.below(SIZE - SECTOR);
        let len = 1 + random.below((SIZE - offset).min(200_000));
        match random.below(4) {
            0 => block_on(disk.image.discard(&disk.container, offset, len)).expect("discards"),
            _ => {
                let bytes = vec![(round + seed * 50) as u8 | 1; len as usize];
                block_on(disk.write(offset, &bytes)).expect("writes");
            }
        }
        if random.one_in(10) {
            block_on(disk.image.flush(&disk.container)).expect("flushes");
        }
    }
    contents(disk)
}

pub(super) fn contents(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.image.size_bytes() as usize];
    block_on(disk.read(0, &mut bytes)).expect("reads");
    bytes
}

/// `qemu-img` finds nothing wrong and reads the same.
pub(super) fn check_seen_by_qemu(path: &Path, arguments: &[&str], expect: &[u8]) {
    let report = qemu_check(text(path));
    for finding in ["corruptions", "leaks"] {
        assert!(report.get(finding).is_none(), "{}: {report}", path.display());
    }
    let raw = path.with_extension("raw");
    let convert = ["convert", "-f", "qcow2", "-O", "raw"];
    succeed("qemu-img", &[&convert, arguments, &[text(path), text(&raw)]].concat());
    assert!(std::fs::read(raw).expect("a file") == expect, "{}", path.display());
}

#[test]
fn images_of_every_kind() {
    if !have(&["qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let kinds = [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2M",
        "refcount_bits=1",
        "refcount_bits=64,cluster_size=4k",
        "lazy_refcounts=on",
        "extended_l2=on,cluster_size=128k",
        "preallocation=metadata",
        "preallocation=metadata,extended_l2=on",
    ];
    for (seed, kind) in (1..).zip(kinds) {
        let path = folder.path().join("image.qcow2");
        succeed("qemu-img", &["create", "-q", "-f", "qcow2", "-o", kind, text(&path), "8M"]);
        let disk = open(&path, None);
        let expect = change(&disk, seed, 40);
        save(&disk, &path);
        check_seen_by_qemu(&path, &[], &expect);
    }
}

#[test]
fn backing_files() {
    if !have(&["qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let base = folder.path().join("base.raw");
    let bytes: Vec<u8> = (0..SIZE / 2).map(|i| (i / 512) as u8 | 1).collect();
    std::fs::write(&base, &bytes).expect("a file");
    for kind in ["compat=1.1", "compat=0.10", "extended_l2=on,cluster_size=64k"] {
        let path = folder.path().join("overlay.qcow2");
        let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", text(&base), "-o", kind];
        succeed("qemu-img", &[&create[..], &[text(&path), "8M"]].concat());
        let disk = open(&path, Some(bytes.clone()));
        let expect = change(&disk, 3, 40);
        save(&disk, &path);
        check_seen_by_qemu(&path, &[], &expect);
    }
}

/// Guest data in a file of its own, which is a raw image by itself or not.
#[test]
fn external_data_files() {
    if !have(&["qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data.raw");
    for raw in ["on", "off"] {
        for kind in ["cluster_size=64k", "cluster_size=64k,extended_l2=on"] {
            let path = folder.path().join("image.qcow2");
            let kind = format!("{kind},data_file={},data_file_raw={raw}", text(&data));
            let create = ["create", "-q", "-f", "qcow2", "-o", &kind, text(&path), "8M"];
            succeed("qemu-img", &create);
            let container = Container { file: load(&path), data: Some(load(&data)) };
            let image = block_on(Image::open(&container, &options())).expect("opens");
            assert_eq!(image.info().raw_external_data, raw == "on");
            let disk = Disk { image, container, backing: None };
            let expect = change(&disk, 4, 40);
            save(&disk, &path);
            std::fs::write(&data, disk.container.data().content()).expect("a file");
            check_seen_by_qemu(&path, &[], &expect);
            if raw == "on" {
                assert!(std::fs::read(&data).expect("a file") == expect);
            }
        }
    }
}

/// `qemu-img` sees the name, and what is below.
#[test]
fn another_backing_file() {
    if !have(&["qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image.qcow2");
    let base = folder.path().join("a base with a longer name.raw");
    std::fs::write(&base, vec![5; SIZE as usize]).expect("a file");
    succeed("qemu-img", &["create", "-q", "-f", "qcow2", text(&path), "8M"]);
    let mut disk = open(&path, Some(vec![5; SIZE as usize]));
    let name = Some(text(&base).as_bytes());
    let set = disk.image.set_backing_file(&disk.container, name, Some(b"raw"));
    block_on(set).expect("there is room");
    disk.image.set_has_backing(true);
    assert_eq!(disk.image.info().backing_format.as_deref(), Some(&b"raw"[..]));
    let expect = change(&disk, 8, 20);
    save(&disk, &path);
    check_seen_by_qemu(&path, &[], &expect);
    block_on(disk.image.deallocate(&disk.container, 0, SIZE)).expect("deallocates");
    assert!(contents(&disk) == vec![5; SIZE as usize]);
    block_on(disk.image.set_backing_file(&disk.container, None, None)).expect("there is room");
    disk.image.set_has_backing(false);
    disk.backing = None;
    save(&disk, &path);
    check_seen_by_qemu(&path, &[], &vec![0; SIZE as usize]);
}

/// Clusters shared with snapshots are copied before they are written; snapshots stay as they were.
#[test]
fn internal_snapshots() {
    if !have(&["qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for kind in ["compat=1.1", "compat=0.10", "extended_l2=on,cluster_size=64k", "cluster_size=4k"]
    {
        let path = folder.path().join("image.qcow2");
        succeed("qemu-img", &["create", "-q", "-f", "qcow2", "-o", kind, text(&path), "8M"]);
        let mut expect = Vec::new();
        for (seed, name) in [(1, "one"), (2, "two")] {
            let disk = open(&path, None);
            expect.push((name, change(&disk, seed, 20)));
            save(&disk, &path);
            succeed("qemu-img", &["snapshot", "-c", name, text(&path)]);
        }
        let disk = open(&path, None);
        let last = change(&disk, 3, 20);
        save(&disk, &path);
        check_seen_by_qemu(&path, &[], &last);
        for (name, expect) in &expect {
            check_seen_by_qemu(&path, &["-l", name], expect);
            let container = Container { file: load(&path), data: None };
            let snapshot = Some(name.as_bytes().to_vec());
            let options = OpenOptions { snapshot, ..OpenOptions::default() };
            let image = block_on(Image::open(&container, &options)).expect("opens");
            let disk = Disk { image, container, backing: None };
            assert!(contents(&disk) == *expect, "snapshot {name}");
        }
    }
}

/// Compressed clusters give way to written ones, and are freed.
#[test]
fn compressed_clusters() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let raw = folder.path().join("source.raw");
    // What the tests' disk takes compressed clusters to hold.
    std::fs::write(&raw, vec![crate::testing::COMPRESSED; SIZE as usize]).expect("a file");
    for kind in ["compat=1.1", "compression_type=zstd", "extended_l2=on,cluster_size=64k"] {
        let path = folder.path().join("image.qcow2");
        let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", kind];
        succeed("qemu-img", &[&convert[..], &[text(&raw), text(&path)]].concat());
        let disk = open(&path, None);
        let expect = change(&disk, 5, 40);
        save(&disk, &path);
        check_seen_by_qemu(&path, &[], &expect);
    }
}

#[test]
fn resized_images() {
    if !have(&["qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for kind in ["cluster_size=512", "cluster_size=64k", "extended_l2=on,cluster_size=16k"] {
        let path = folder.path().join("image.qcow2");
        succeed("qemu-img", &["create", "-q", "-f", "qcow2", "-o", kind, text(&path), "8M"]);
        let disk = open(&path, None);
        let mut expect = change(&disk, 6, 20);
        for size in [64 << 20, 3 << 20, 40 << 20] {
            block_on(disk.image.resize(&disk.container, size)).expect("resizes");
            expect.resize(size as usize, 0);
            assert!(contents(&disk) == expect, "{kind}, {size}");
            block_on(disk.write(size - 700, &[9; 700])).expect("writes");
            expect[size as usize - 700..].fill(9);
        }
        save(&disk, &path);
        check_seen_by_qemu(&path, &[], &expect);
    }
}

/// After a crash `qemu-img` finds leaks at most.
#[test]
fn crashes_seen_by_qemu() {
    if !have(&["qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image.qcow2");
    for seed in 0..12 {
        let mut random = Random::new(seed);
        succeed(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", text(&path), "8M"],
        );
        let disk = open(&path, None);
        disk.container.file.die_after(20 + random.below(300));
        for _ in 0..200 {
            let offset = random.below(SIZE - 9000);
            let bytes = vec![7; 1 + random.below(9000) as usize];
            if block_on(disk.write(offset, &bytes)).is_err() {
                break;
            }
            if random.one_in(8) && block_on(disk.image.flush(&disk.container)).is_err() {
                break;
            }
        }
        let crashed = disk.container.file.crash(&mut random);
        std::fs::write(&path, crashed.content()).expect("a file");
        let output = run("qemu-img", &["check", "-q", text(&path)]);
        // 3: leaks, and nothing else.
        assert!(matches!(output.status.code(), Some(0 | 3)), "seed {seed}: {output:?}");
    }
}

/// QEMU writes to an image that was left open, and takes the mark back, as it asks for nothing.
#[test]
fn qemu_does_not_mind_the_mark_of_an_open_image() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    succeed("qemu-img", &["create", "-q", "-f", "qcow2", text(&path), &SIZE.to_string()]);
    let disk = open(&path, None);
    block_on(disk.write(0, &[7; 4096])).expect("writes");
    block_on(disk.image.flush(&disk.container)).expect("flushes");
    let left = disk.container.file.content();
    std::fs::write(&path, &left).expect("a file");
    let mark = |path: &Path| block_on(read_header(&load(path))).expect("valid").autoclear & OPEN;
    assert_eq!(mark(&path), OPEN);
    succeed("qemu-img", &["check", "-q", "-f", "qcow2", text(&path)]);
    succeed("qemu-io", &["-f", "qcow2", "-r", "-c", "read -P 7 0 4k", text(&path)]);
    assert_eq!(mark(&path), OPEN, "who reads changes nothing");
    succeed("qemu-io", &["-f", "qcow2", "-c", "write -P 8 4k 4k", text(&path)]);
    assert_eq!(mark(&path), 0);
    succeed("qemu-img", &["check", "-q", "-f", "qcow2", text(&path)]);
}
