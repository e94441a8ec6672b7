//! A server that is killed while it writes: the image is in order, and what was flushed is there.

use std::os::unix::fs::MetadataExt;

use blockloom_tests::tools::{have, qemu_io, run, succeed};
use blockloom_tests::{Daemon, eventually};

use super::scene::{SIZE, Scene, Shape};
use crate::{ENGINES, KIB, MIB};

/// Where the load begins that runs when the server is killed; what is before was flushed.
const LOADED: u64 = 6 * MIB;

/// Kills the server when the image has grown by some clusters under fio.
fn kill_under_load(daemon: Daemon, scene: &Scene) {
    // Its length may be ahead of what is written.
    let taken = || std::fs::metadata(scene.path("disk.qcow2")).expect("the image").blocks() * 512;
    let before = taken();
    let options = [
        "--name=load",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=16",
        "--fsync=7",
        "--time_based",
        "--runtime=60",
        &format!("--uri={}", daemon.uri("vda")),
        &format!("--offset={LOADED}"),
        &format!("--size={}", (SIZE - LOADED) / (64 * KIB) * 64 * KIB),
    ]
    .map(str::to_owned);
    let load = std::thread::spawn(move || run("fio", options));
    eventually("the image grows", || (taken() >= before + 256 * KIB).then_some(()));
    daemon.kill();
    let ended = load.join().expect("a thread that ran fio");
    assert!(!ended.status.success(), "fio outlived the server");
}

#[test]
fn what_was_flushed_survives_the_server() {
    if !have(&["qemu-img", "qemu-io", "fio"]) {
        return;
    }
    let shapes = [
        ("", false),
        ("cluster_size=4k,refcount_bits=1", false),
        ("extended_l2=on", false),
        ("cluster_size=16k", false),
        ("lazy_refcounts=on", false),
        ("", true),
    ];
    for (seed, (options, is_direct)) in (301..).zip(shapes) {
        let shape = Shape { options, backing: seed % 2 == 0 };
        let mut scene = Scene::new(shape, seed);
        let mut commands = scene.workload(60);
        commands.retain(|command| {
            let mut numbers = command.split(' ').filter_map(|word| word.parse::<u64>().ok()).rev();
            let (len, offset) = (numbers.next().expect("a length"), numbers.next());
            offset.expect("an offset") + len <= LOADED
        });
        scene.expect(&commands);
        let engine = ENGINES[seed as usize % 2];
        let daemon = if is_direct { scene.serve_direct(engine) } else { scene.serve(true, engine) };
        commands.push("flush".to_owned());
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        qemu_io(daemon.uri("vda"), &commands);
        kill_under_load(daemon, &scene);
        let disk = scene.path("disk.qcow2");
        let checked = run("qemu-img", ["check", "-f", "qcow2", &disk]);
        // 3: clusters have leaked, which is allowed. 2: refcounts are late, and the image says so.
        let is_lazy = options == "lazy_refcounts=on";
        let allowed: &[i32] = if is_lazy { &[0, 2, 3] } else { &[0, 3] };
        let code = checked.status.code().unwrap_or(-1);
        assert!(allowed.contains(&code), "{shape:?}: {checked:?}");
        let dirty =
            succeed("qemu-img", ["info", "--output=json", &disk]).contains("\"dirty-flag\": true");
        assert_eq!(dirty, is_lazy, "{shape:?}");
        if is_lazy {
            let copy = scene.path("copy.qcow2");
            std::fs::copy(&disk, &copy).expect("a copy");
            succeed("qemu-img", ["check", "-q", "-r", "all", "-f", "qcow2", &copy]);
            succeed("qemu-img", ["check", "-q", "-f", "qcow2", &copy]);
        }
        succeed("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", &disk, &scene.path("a.raw")]);
        let bytes = |name: &str| {
            let mut bytes = std::fs::read(scene.path(name)).expect("read an image");
            bytes.truncate(LOADED as usize);
            bytes
        };
        assert!(bytes("a.raw") == bytes("expect.raw"), "{shape:?}, seed {seed}: bytes are lost");
        // The next server takes it as it is, and repairs it.
        scene.serve(true, ENGINES[0]).finish();
        let checked = succeed("qemu-img", ["check", "-f", "qcow2", &disk]);
        assert!(checked.contains("No errors were found"), "{shape:?}: {checked}");
        // What it was longer ahead is gone.
        let end = checked.lines().find_map(|line| line.strip_prefix("Image end offset: "));
        let end: u64 = end.and_then(|end| end.parse().ok()).expect("where it ends");
        let len = std::fs::metadata(&disk).expect("the image").len();
        assert!(len < end + 8 * MIB, "{shape:?}: {len} bytes, of which {end} are used");
    }
}
