//! Every shape of image, written by one side and read by the other.

use blockloom_tests::tools::{compare, have, succeed};

use super::scene::{SIZE, Scene, Shape, is_within, qemu_io, zeros_of};
use crate::ENGINES;

const fn plain(options: &'static str) -> Shape {
    Shape { options, backing: false }
}

const fn overlay(options: &'static str) -> Shape {
    Shape { options, backing: true }
}

const SHAPES: [Shape; 20] = [
    plain(""),
    plain("cluster_size=512"),
    plain("cluster_size=4k,refcount_bits=1"),
    plain("cluster_size=2M"),
    plain("compat=0.10"),
    plain("compat=0.10,cluster_size=4k"),
    plain("refcount_bits=8"),
    plain("refcount_bits=64,cluster_size=1k"),
    plain("lazy_refcounts=on"),
    plain("extended_l2=on"),
    plain("extended_l2=on,cluster_size=16k"),
    plain("preallocation=metadata"),
    plain("preallocation=falloc,cluster_size=8k"),
    plain("data_file=DATA"),
    plain("data_file=DATA,data_file_raw=on"),
    plain("compression_type=zstd"),
    overlay(""),
    overlay("cluster_size=2k"),
    overlay("extended_l2=on,cluster_size=128k"),
    overlay("compat=0.10"),
];

const COMMANDS: usize = 40;

#[test]
fn what_qemu_has_written_is_read() {
    if !have(&["qemu-img", "qemu-io", "nbdinfo"]) {
        return;
    }
    for (seed, shape) in (1..).zip(SHAPES) {
        let mut scene = Scene::new(shape, seed);
        let commands = scene.workload(COMMANDS);
        qemu_io("qcow2", &scene.path("disk.qcow2"), &commands);
        scene.expect(&commands);
        let before = std::fs::read(scene.path("disk.qcow2")).expect("read the image");
        let daemon = scene.serve(false, ENGINES[seed as usize % 2]);
        compare(&scene.path("expect.raw"), daemon.uri("vda"));
        let (ours, theirs) = (zeros_of(daemon.uri("vda")), scene.zeros());
        assert!(
            is_within(&theirs, &ours),
            "{shape:?}, seed {seed}: {theirs:?} are zeros, not {ours:?}"
        );
        let expect = std::fs::read(scene.path("expect.raw")).expect("read a file");
        for range in ours {
            let bytes = &expect[range.start as usize..range.end as usize];
            assert!(bytes.iter().all(|byte| *byte == 0), "{shape:?}, seed {seed}: {range:?}");
        }
        daemon.finish();
        let after = std::fs::read(scene.path("disk.qcow2")).expect("read the image");
        assert!(before == after, "{shape:?}: an image that is only read must stay as it is");
    }
}

#[test]
fn what_is_written_is_read_by_qemu() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    for (seed, shape) in (101..).zip(SHAPES) {
        let mut scene = Scene::new(shape, seed);
        for round in 0..3 {
            // QEMU and Blockloom take turns.
            let commands = scene.workload(COMMANDS);
            match round {
                1 => qemu_io("qcow2", &scene.path("disk.qcow2"), &commands),
                _ => {
                    let daemon = scene.serve(true, ENGINES[seed as usize % 2]);
                    qemu_io("raw", daemon.uri("vda"), &commands);
                    daemon.finish();
                }
            }
            scene.expect(&commands);
            scene.check();
        }
    }
}

/// An image that `qemu-img` has made ends within a sector.
#[test]
fn images_are_written_past_the_page_cache() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    for (seed, options) in (301..).zip(["", "cluster_size=512", "extended_l2=on"]) {
        let mut scene = Scene::new(plain(options), seed);
        for engine in ENGINES {
            let commands = scene.workload(COMMANDS);
            let daemon = scene.serve_direct(engine);
            qemu_io("raw", daemon.uri("vda"), &commands);
            daemon.finish();
            scene.expect(&commands);
            scene.check();
            // It was made longer ahead of what was written.
            let length = std::fs::metadata(scene.path("disk.qcow2")).expect("the image").len();
            assert!(length < 4 * SIZE, "{options}: it has still {length} bytes");
        }
    }
}

/// Compressed clusters, deflate and zstd, also where they are partly overwritten.
#[test]
fn compressed_clusters_are_read_and_overwritten() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let options =
        ["", "cluster_size=4k", "compression_type=zstd", "cluster_size=2M", "compat=0.10"];
    for (seed, options) in (201..).zip(options) {
        let mut scene = Scene::new(plain(options), seed);
        let commands = scene.workload(COMMANDS);
        scene.expect(&commands);
        let (disk, expect) = (scene.path("disk.qcow2"), scene.path("expect.raw"));
        let mut convert = vec!["convert", "-c", "-f", "raw", "-O", "qcow2"];
        if !options.is_empty() {
            convert.extend(["-o", options]);
        }
        succeed("qemu-img", convert.into_iter().chain([expect.as_str(), &disk]));
        let daemon = scene.serve(true, ENGINES[seed as usize % 2]);
        compare(&expect, daemon.uri("vda"));
        let commands = scene.workload(COMMANDS);
        qemu_io("raw", daemon.uri("vda"), &commands);
        scene.expect(&commands);
        daemon.finish();
        scene.check();
    }
}
