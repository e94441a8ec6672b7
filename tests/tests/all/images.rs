//! Images in and out through QEMU's and libnbd's tools, and what they say about allocation.

use std::os::unix::fs::MetadataExt;

use blockloom_tests::tools::{MapRange, compare, have, nbd_map, python, qemu_io, succeed};
use blockloom_tests::{pattern, tools};

use crate::stack::{STACKS, Stack, Storage};
use crate::{ENGINES, KIB, MIB, file_disk, scratch, serve};

/// An image with data at its ends and in between, and holes.
fn source(size_bytes: u64) -> Vec<u8> {
    let mut bytes = vec![0; size_bytes as usize];
    for (seed, at) in [(1, 0), (2, 5 * MIB + 4096), (3, 17 * MIB), (4, size_bytes - 70_000)] {
        let at = at as usize;
        bytes[at..at + 70_000].copy_from_slice(&pattern(seed, 70_000));
    }
    bytes
}

/// An existing image is read as it is, and a fresh one is filled, by `qemu-img` and `nbdcopy`.
#[test]
fn images_are_copied_in_and_out() {
    if !have(&["qemu-img", "nbdcopy"]) {
        return;
    }
    const SIZE: u64 = 32 * MIB;
    for stack in &STACKS {
        let scratch = scratch();
        let from = scratch.image_of("source.img", &source(SIZE));
        let from = from.to_str().expect("UTF-8");
        let daemon = stack.serve(&scratch, SIZE);
        let uri = daemon.uri("vda");
        // -n: the target exists. It is zero, and qemu-img must find that out by itself.
        succeed("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", from, uri]);
        compare(from, uri);
        let back = scratch.image("back.img");
        let back = back.to_str().expect("UTF-8");
        succeed("qemu-img", ["convert", "-f", "raw", "-O", "raw", uri, back]);
        compare(from, back);
        // Now over what is there, in parallel and by another implementation.
        let other = scratch.image_of("other.img", &pattern(9, SIZE as usize));
        let other = other.to_str().expect("UTF-8");
        let four = ["--connections=4", "--requests=16"];
        succeed("nbdcopy", four.into_iter().chain(["--flush", other, uri]));
        compare(other, uri);
        succeed("nbdcopy", four.into_iter().chain([from, uri]));
        succeed("nbdcopy", four.into_iter().chain([uri, back]));
        compare(from, back);
        daemon.finish();
        if stack.storage != Storage::Memory {
            compare(from, scratch.image("disk.img").to_str().expect("UTF-8"));
        }
    }
}

/// An image that existed before is served unchanged, also when its size is no multiple of anything.
#[test]
fn an_existing_image_is_served_as_it_is() {
    if !have(&["qemu-img"]) {
        return;
    }
    for (engine, size) in ENGINES.into_iter().zip([8 * MIB, 8 * MIB + 512]) {
        let scratch = scratch();
        let image = scratch.image_of("disk.img", &pattern(5, size as usize));
        let copy = scratch.image("copy.img");
        let (image, copy) = (image.to_str().expect("UTF-8"), copy.to_str().expect("UTF-8"));
        let daemon = serve(&scratch, &file_disk(image.as_ref(), false), &["--engine", engine]);
        succeed("qemu-img", ["convert", "-f", "raw", "-O", "raw", daemon.uri("vda"), copy]);
        daemon.finish();
        compare(image, copy);
    }
}

/// What is written with qemu-io at given places is what `nbdinfo --map` shows, byte for byte.
fn check_map(stack: &Stack) {
    const SIZE: u64 = 16 * MIB;
    let scratch = scratch();
    let daemon = stack.serve(&scratch, SIZE);
    let uri = daemon.uri("vda");
    qemu_io(
        uri,
        &[
            "write -P 1 0 64k",
            "write -P 2 1M 192k",
            "write -P 3 4M 2M",
            "write -z -u 5M 512k",
            "discard 64k 64k",
            "write -P 4 15M 1M",
            "write -P 5 10485761 1",
            "read -P 3 4M 1M",
            "read -P 0 5M 512k",
            "read -P 0 64k 64k",
            "read -P 5 10485761 1",
        ],
    );
    let data = |offset, len: u64| (offset, len, 0);
    let hole = |offset, len: u64| (offset, len, 3);
    // What one byte allocates is up to the storage: 64 KiB in memory, a block in a file.
    let block = if stack.storage == Storage::Memory { 64 * KIB } else { 4 * KIB };
    let expect: Vec<MapRange> = vec![
        data(0, 64 * KIB),
        hole(64 * KIB, 960 * KIB),
        data(MIB, 192 * KIB),
        hole(MIB + 192 * KIB, 3 * MIB - 192 * KIB),
        data(4 * MIB, MIB),
        hole(5 * MIB, 512 * KIB),
        data(5 * MIB + 512 * KIB, 512 * KIB),
        hole(6 * MIB, 4 * MIB),
        data(10 * MIB, block),
        hole(10 * MIB + block, 5 * MIB - block),
        data(15 * MIB, MIB),
    ];
    assert_eq!(nbd_map(uri, "base:allocation"), expect, "{stack}");
    let clean = |offset, len: u64| (offset, len, 0);
    let dirty = |offset, len: u64| (offset, len, 1);
    let bitmap = |granule: u64| {
        vec![
            dirty(0, 128 * KIB),
            clean(128 * KIB, 896 * KIB),
            dirty(MIB, 192 * KIB),
            clean(MIB + 192 * KIB, 3 * MIB - 192 * KIB),
            dirty(4 * MIB, 2 * MIB),
            clean(6 * MIB, 4 * MIB),
            dirty(10 * MIB, granule),
            clean(10 * MIB + granule, 5 * MIB - granule),
            dirty(15 * MIB, MIB),
        ]
    };
    assert_eq!(nbd_map(uri, "qemu:dirty-bitmap:drive"), bitmap(64 * KIB), "{stack}");
    assert_eq!(nbd_map(uri, "qemu:dirty-bitmap:node"), bitmap(4 * KIB), "{stack}");
    daemon.finish();
}

#[test]
fn maps_agree_with_what_was_written() {
    if !have(&["qemu-io", "nbdinfo"]) {
        return;
    }
    STACKS.iter().for_each(check_map);
}

/// qemu-io: every way to write and to zero, at sizes and offsets that fit no block.
#[test]
fn qemu_io_reads_what_it_writes() {
    if !have(&["qemu-io"]) {
        return;
    }
    for stack in &STACKS {
        let scratch = scratch();
        let daemon = stack.serve(&scratch, 16 * MIB);
        qemu_io(
            daemon.uri("vda"),
            &[
                "write -P 17 1 1",
                "write -P 18 4095 4098",
                "write -f -P 19 1048577 131071",
                "write -z 1050000 5000",
                "write -z -u 1060000 70000",
                "write -P 20 8M 4M",
                "discard 8390000 70001",
                "aio_write -P 21 3M 1M",
                "aio_write -P 22 4M 1M",
                "aio_flush",
                "flush",
                "read -P 0 0 1",
                "read -P 17 1 1",
                "read -P 0 2 4093",
                "read -P 18 4095 4098",
                "read -P 0 8193 1000",
                "read -P 19 1048577 1423",
                "read -P 0 1050000 5000",
                "read -P 19 1055000 5000",
                "read -P 0 1060000 70000",
                "read -P 19 1130000 49648",
                "read -P 20 8M 1392",
                "read -P 20 8460001 1000",
                "read -P 21 3M 1M",
                "read -P 22 4M 1M",
            ],
        );
        daemon.finish();
    }
}

/// Discards and zeroes give disk space back, and `create` makes a file without any.
#[test]
fn space_is_given_back() {
    if !have(&["qemu-io"]) {
        return;
    }
    for engine in ENGINES {
        let scratch = scratch();
        let stack = Stack { engine, ..STACKS[0] };
        let daemon = stack.serve(&scratch, 64 * MIB);
        let used = || scratch.image("disk.img").metadata().expect("metadata").blocks() * 512;
        assert_eq!(used(), 0, "{engine}");
        qemu_io(daemon.uri("vda"), &["write -P 1 0 16M", "flush"]);
        assert!(used() >= 16 * MIB, "{engine}: {}", used());
        qemu_io(daemon.uri("vda"), &["discard 0 8M", "write -z -u 8M 4M", "flush"]);
        // The file system may need some blocks to describe what is left.
        assert!((4 * MIB..5 * MIB).contains(&used()), "{engine}: {}", used());
        qemu_io(daemon.uri("vda"), &["write -z 16M 4M", "flush"]);
        assert!(used() >= 8 * MIB, "{engine}: zeroes that keep their space: {}", used());
        daemon.finish();
    }
}

/// libnbd's own idea of the protocol: structured reads, flags, contexts and errors.
#[test]
fn libnbd_agrees() {
    if !have(&["python-nbd"]) {
        return;
    }
    for stack in &STACKS[..6] {
        let scratch = scratch();
        let daemon = stack.serve(&scratch, 200 * MIB);
        let script = include_str!("libnbd.py");
        assert_eq!(tools::python(script, &[daemon.uri("vda")]), "agreed\n", "{stack}");
        daemon.finish();
    }
    // And with the plainest of clients.
    let scratch = scratch();
    let daemon = STACKS[0].serve(&scratch, 200 * MIB);
    let plain = "import nbd, sys\nh = nbd.NBD()\nh.set_request_structured_replies(False)\n\
                 h.connect_uri(sys.argv[1])\nassert not h.get_structured_replies_negotiated()\n\
                 b = bytes(range(256)) * 4096\nh.pwrite(b, 12345)\nassert h.pread(len(b), 12345) == b\n\
                 h.shutdown()\nprint('agreed')\n";
    assert_eq!(python(plain, &[daemon.uri("vda")]), "agreed\n");
    daemon.finish();
}
