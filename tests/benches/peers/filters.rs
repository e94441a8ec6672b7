//! What do filters cost: plugins against the host's own twins, and copying before writes against QEMU?
//!
//! - `filters-steady`: nothing is left to copy, so by its rules a plugin is not called.
//! - `filters-cbw-tmpfs`, `filters-cbw-disk`: writes at random over a filled file, before the first of which to
//!   a cluster of 64 KiB that cluster is copied to an empty file. The offsets are the same for all, and each
//!   run has a new target: all copy the same clusters.
//! - `filters-workers`: two drives, served by one worker and by two.

use std::fs::File;
use std::path::Path;

use blockloom_tests::Scratch;

use crate::load::{CBW_4K_32, COPYING, Figures, READ_4K_32, WORKLOADS, WRITE_4K_32, fill, measure};
use crate::options::Options;
use crate::servers::{Graph, QSD_CBW, Server, serve_graph, serve_qsd_cbw};
use crate::targets::{Bound, Targets};

/// Size of a disk that is copied from, MiB.
const CBW_MIB: u64 = 256;

const COPY_ON_READ: [&str; 2] = ["copy-on-read plugin", "copy-on-read native"];
pub(crate) const BACKUP: [&str; 2] = ["backup plugin", "backup native"];
const WORKERS: [&str; 2] = ["two workers", "one worker"];

/// Node `top`, over `disk` and perhaps `target`.
fn filter(name: &str, config: &str) -> String {
    let driver = match name {
        "copy-on-read plugin" => {
            "driver = \"plugin\"\nplugin = \"copy-on-read\"\ngrant.file = [\"read\", \"write-unchanged\"]"
        }
        "copy-on-read native" => "driver = \"copy-on-read\"",
        "backup plugin" => {
            "driver = \"plugin\"\nplugin = \"backup\"\ngrant.file = [\"read\"]\n\
             grant.target = [\"write\"]\nchild.target = \"target\""
        }
        _ => "driver = \"backup\"\nchild.target = \"target\"",
    };
    format!("[node.top]\n{driver}\nchild.file = \"disk\"\nconfig = {{ {config} }}\n")
}

fn memory(node: &str, size_mib: u64) -> String {
    format!("[node.{node}]\ndriver = \"memory\"\nsize = \"{size_mib}MiB\"\n")
}

fn file(node: &str, path: &Path) -> String {
    format!("[node.{node}]\ndriver = \"file\"\npath = \"{}\"\n", path.display())
}

/// Runs the comparisons that are asked for.
pub(crate) fn compare(options: &Options, scratch: &Scratch, targets: &mut Targets) {
    if options.has("filters-steady") {
        steady(options, scratch, targets);
    }
    if options.has("filters-workers") {
        workers(options, scratch, targets);
    }
    if options.has("filters-cbw-tmpfs") {
        match tempfile::tempdir_in("/dev/shm") {
            Ok(dir) => copies(options, scratch, targets, ("tmpfs", dir.path())),
            Err(_) => println!("SKIPPED: there is no tmpfs at /dev/shm"),
        }
    }
    if options.has("filters-cbw-disk") {
        let dir = scratch.image("cbw");
        std::fs::create_dir(&dir).expect("a directory for images");
        copies(options, scratch, targets, ("disk", &dir));
    }
}

fn steady(options: &Options, scratch: &Scratch, targets: &mut Targets) {
    println!("\nfilters with nothing left to copy");
    let size_mib = options.size_mib;
    let start = |name: &'static str| {
        let is_backup = name.starts_with("backup");
        let target = if is_backup { memory("target", size_mib) } else { String::new() };
        let config = if is_backup { "sync = \"none\"" } else { "" };
        let nodes = memory("disk", size_mib) + &target + &filter(name, config);
        let graph = Graph { name, nodes, root: "top", drives: 1 };
        let server = serve_graph(options, scratch, &graph, &[]);
        // What is to be copied is copied by this.
        fill(&server, size_mib);
        server
    };
    let mut figures = Figures::default();
    for (load, names) in [(READ_4K_32, COPY_ON_READ), (WRITE_4K_32, BACKUP)] {
        let workload = WORKLOADS.iter().find(|it| it.name == load).expect("a workload");
        let servers = names.map(start);
        for round in 0..options.rounds {
            // Whoever is first is not so in each round.
            for index in [round % 2, 1 - round % 2] {
                let figure = measure(&servers[index], workload, options, size_mib);
                figures.add(load, names[index], figure);
            }
        }
        figures.print(load, &names, names[1]);
        let value = figures.ratio(load, (names[0], names[1]), |run| run.cpu);
        let what = format!("CPU of the native twin, {}, {load}, nothing to copy", names[0]);
        targets.add(&what, value, "x", Bound::AtMost(1.05));
    }
}

fn workers(options: &Options, scratch: &Scratch, targets: &mut Targets) {
    println!("\ntwo drives, one load each");
    let size_mib = options.size_mib;
    let servers = WORKERS.map(|name| {
        let nodes = memory("disk0", size_mib) + &memory("disk1", size_mib);
        let graph = Graph { name, nodes, root: "disk", drives: 2 };
        let number = if name == WORKERS[0] { "2" } else { "1" };
        let server = serve_graph(options, scratch, &graph, &["--workers", number]);
        fill(&server, size_mib);
        server
    });
    let mut figures = Figures::default();
    for workload in WORKLOADS.iter().filter(|it| [READ_4K_32, WRITE_4K_32].contains(&it.name)) {
        for _ in 0..options.rounds {
            for server in &servers {
                figures.add(
                    workload.name,
                    server.name,
                    measure(server, workload, options, size_mib),
                );
            }
        }
        figures.print(workload.name, &WORKERS, WORKERS[1]);
        let value = figures.ratio(workload.name, (WORKERS[0], WORKERS[1]), |run| run.iops);
        let what = format!("IOPS of one worker, two workers, {} on two drives", workload.name);
        targets.add(&what, value, "x", Bound::AtLeast(1.0));
    }
}

fn copies(
    options: &Options,
    scratch: &Scratch,
    targets: &mut Targets,
    (place, dir): (&str, &Path),
) {
    println!("\ncopying before writes on {place}");
    let names = [BACKUP[0], BACKUP[1], QSD_CBW[0], QSD_CBW[1]];
    let disks: Vec<_> = (0..names.len()).map(|index| dir.join(format!("{place}{index}"))).collect();
    for disk in &disks {
        let mut random =
            File::open("/dev/urandom").map(|file| std::io::Read::take(file, CBW_MIB << 20));
        let mut file = File::create(disk).expect("create a disk");
        std::io::copy(random.as_mut().expect("random bytes"), &mut file).expect("fill a disk");
    }
    let start = |index: usize| -> Option<Server> {
        let (name, disk, target) =
            (names[index], &disks[index], dir.join(format!("target{index}")));
        let empty = File::create(&target).expect("create a target");
        empty.set_len(CBW_MIB << 20).expect("set the length of a target");
        if QSD_CBW.contains(&name) {
            return serve_qsd_cbw(name, disk, &target, scratch);
        }
        let nodes =
            file("disk", disk) + &file("target", &target) + &filter(name, "sync = \"none\"");
        Some(serve_graph(options, scratch, &Graph { name, nodes, root: "top", drives: 1 }, &[]))
    };
    let mut figures = Figures::default();
    for _ in 0..options.rounds {
        for (index, name) in names.iter().enumerate() {
            let Some(server) = start(index) else { continue };
            figures.add(CBW_4K_32, server.name, measure(&server, &COPYING, options, CBW_MIB));
            drop(server);
            let copied = std::os::unix::fs::MetadataExt::blocks(
                &std::fs::metadata(dir.join(format!("target{index}"))).expect("a target"),
            );
            println!("{:20} {} MiB copied", name, copied / 2048);
        }
    }
    figures.print(CBW_4K_32, &names, QSD_CBW[0]);
    let (cpu, most_iops) = if place == "tmpfs" { (Some(0.7), 1.3) } else { (None, 1.0) };
    let of = |what: fn(&crate::load::Figure) -> f64, best: fn(f64, f64) -> f64| {
        figures.ratio_to_best(CBW_4K_32, BACKUP[0], &QSD_CBW, what, best)
    };
    if let Some(limit) = cpu {
        let what = format!("CPU of qsd's best, {CBW_4K_32}, plugin, {place}");
        targets.add(&what, of(|run| run.cpu, f64::min), "x", Bound::AtMost(limit));
    }
    let what = format!("IOPS of qsd's best, {CBW_4K_32}, plugin, {place}");
    targets.add(&what, of(|run| run.iops, f64::max), "x", Bound::AtLeast(most_iops));
    let twin = figures.ratio(CBW_4K_32, (BACKUP[0], BACKUP[1]), |run| run.cpu);
    targets.add(
        &format!("CPU of the native twin, {CBW_4K_32}, {place}"),
        twin,
        "x",
        Bound::AtMost(1.15),
    );
}
