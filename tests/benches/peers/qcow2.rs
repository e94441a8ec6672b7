//! What does a qcow2 image cost, against QEMU's driver and against a raw file?
//!
//! Images of 64 KiB clusters, made by `qemu-img` for all contestants alike, on tmpfs and on a disk, with
//! the page cache in between. Allocated ones are filled first; those for allocating writes are large and
//! new for each run, so that nearly every write meets a cluster that is not there.

use std::path::{Path, PathBuf};

use blockloom_tests::{Daemon, Scratch, tools};

use crate::load::{ALLOCATE_4K_32, ALLOCATING, Figures, WORKLOADS, fill, measure, median};
use crate::options::Options;
use crate::servers::{ImageServer, QCOW2, QSD_QCOW2, RAW_FILE, Server, serve_image};
use crate::targets::{Bound, Targets};

/// Size of a disk that stays nearly empty, MiB.
const LARGE_MIB: u64 = 64 << 10;
/// Starts of which the median counts.
const STARTS: usize = 9;
/// Most milliseconds to open 1 TiB with four bitmaps.
const OPEN_MS: f64 = 50.0;

/// Runs the comparisons that are asked for.
pub(crate) fn compare(options: &Options, scratch: &Scratch, targets: &mut Targets) {
    if !["qcow2-tmpfs", "qcow2-disk"].iter().any(|place| options.has(place)) {
        return;
    }
    if !tools::have(&["qemu-img"]) {
        return;
    }
    match tempfile::tempdir_in("/dev/shm") {
        Ok(dir) if options.has("qcow2-tmpfs") => {
            compare_in(options, scratch, targets, "tmpfs", dir.path());
        }
        Ok(_) => {}
        Err(_) => println!("SKIPPED: there is no tmpfs at /dev/shm"),
    }
    if options.has("qcow2-disk") {
        let dir = scratch.image("qcow2");
        std::fs::create_dir(&dir).expect("a directory for images");
        compare_in(options, scratch, targets, "disk", &dir);
    }
}

fn compare_in(
    options: &Options,
    scratch: &Scratch,
    targets: &mut Targets,
    place: &str,
    dir: &Path,
) {
    println!("\nimages on {place}");
    println!("{:24} {:20} {:>10} {:>14}", "workload", "server", "IOPS", "CPU s / M I/Os");
    let names = [QCOW2, RAW_FILE, QSD_QCOW2[0], QSD_QCOW2[1]];
    let start = |index: usize, size_mib| {
        let name = names[index];
        let image = make(&dir.join(format!("{place}-{index}.img")), name, size_mib);
        serve_image(options, scratch, &ImageServer { name, image: &image })
    };
    let mut figures = Figures::default();
    let servers: Vec<Server> =
        (0..names.len()).filter_map(|index| start(index, options.size_mib)).collect();
    for server in &servers {
        fill(server, options.size_mib);
    }
    for workload in &WORKLOADS {
        for _ in 0..options.rounds {
            for server in &servers {
                let figure = measure(server, workload, options, options.size_mib);
                figures.add(workload.name, server.name, figure);
            }
        }
        figures.print(workload.name, &names, QSD_QCOW2[0]);
    }
    drop(servers);
    for _ in 0..options.rounds {
        for index in (0..names.len()).filter(|&index| names[index] != RAW_FILE) {
            let Some(server) = start(index, LARGE_MIB) else { continue };
            let figure = measure(&server, &ALLOCATING, options, LARGE_MIB);
            figures.add(ALLOCATE_4K_32, server.name, figure);
        }
    }
    figures.print(ALLOCATE_4K_32, &names, QSD_QCOW2[0]);
    targets.of_images(place, &figures);
}

/// A new disk for a contestant, in the place of an old one.
fn make(path: &Path, name: &str, size_mib: u64) -> PathBuf {
    let format = if name == RAW_FILE { "raw" } else { "qcow2" };
    let (path, size) = (path.display().to_string(), format!("{size_mib}M"));
    let _ = std::fs::remove_file(&path);
    tools::succeed("qemu-img", ["create", "-q", "-f", format, &path, &size]);
    path.into()
}

/// From the start of the process to `ready`, with a large image that holds four bitmaps, no part of which
/// is empty.
pub(crate) fn open(options: &Options, scratch: &Scratch, targets: &mut Targets) {
    if !tools::have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let path = scratch.image("large.qcow2").display().to_string();
    tools::succeed("qemu-img", ["create", "-q", "-f", "qcow2", &path, "1T"]);
    for name in ["a", "b", "c", "d"] {
        tools::succeed("qemu-img", ["bitmap", "--add", "-g", "64K", &path, name]);
    }
    // A cluster of a bitmap covers 32 GiB.
    let writes = (0..32).map(|index| format!("write -z {}G 64k", index * 32));
    let commands = writes.flat_map(|write| ["-c".to_owned(), write]);
    let arguments = ["-f", "qcow2", &path].map(str::to_owned).into_iter();
    tools::succeed("qemu-io", arguments.chain(commands));
    let text = format!(
        "[node.disk]\ndriver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"{path}\" }}\n\
         [drive.vda]\nroot = \"disk\"\n\n[export.vda]\ntype = \"nbd\"\n\
         drive = \"vda\"\nlisten = \"unix:large.sock\"\n"
    );
    let graph = scratch.graph("large.toml", &text);
    let start = || {
        let daemon = Daemon::start(&options.program, &graph, &[]);
        let time = daemon.start_time();
        daemon.finish();
        time.as_secs_f64() * 1e3
    };
    let value = median((0..STARTS).map(|_| start()));
    let what = "from start to ready, qcow2 of 1 TiB with four bitmaps";
    targets.add(what, Some(value), "ms", Bound::AtMost(OPEN_MS));
}
