//! What does a job cost, against QEMU's?
//!
//! Images of which every second MiB is there, on tmpfs and, past the page cache, on a disk: a full backup, a mirror to
//! its completion, a stream and an active commit, each on images of its own, new for every run. Then how long a guest
//! waits for 4 KiB meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use blockloom_tests::qmp::Qmp;
use blockloom_tests::{Scratch, tools};
use serde_json::{Value, json};

use crate::load::{Figure, Figures, median, wait_99_us};
use crate::options::Options;
use crate::servers::{Graph, QCOW2, QSD_QCOW2, Server, peer, serve_graph};
use crate::targets::{Bound, Targets};

/// A job, and where the data is at first: in `base`, or in `top`, which stands on it.
struct Job {
    name: &'static str,
    command: &'static str,
    arguments: fn() -> Value,
    data_in: &'static str,
    /// It waits to be told to complete.
    gets_ready: bool,
}

const BACKUP: &str = "backup, full";
const MIRROR: &str = "mirror, full";

const JOBS: [Job; 4] = [
    Job {
        name: BACKUP,
        command: "blockdev-backup",
        arguments: || json!({"job-id": "job", "device": "top", "target": "tgt", "sync": "full"}),
        data_in: "top",
        gets_ready: false,
    },
    Job {
        name: MIRROR,
        command: "blockdev-mirror",
        arguments: || json!({"job-id": "job", "device": "top", "target": "tgt", "sync": "full"}),
        data_in: "top",
        gets_ready: true,
    },
    Job {
        name: "stream",
        command: "block-stream",
        arguments: || json!({"job-id": "job", "device": "top"}),
        data_in: "base",
        gets_ready: false,
    },
    Job {
        name: "commit, active",
        command: "block-commit",
        arguments: || json!({"job-id": "job", "device": "top", "base-node": "base"}),
        data_in: "top",
        gets_ready: true,
    },
];

const NAMES: [&str; 3] = [QCOW2, QSD_QCOW2[0], QSD_QCOW2[1]];

/// Where the images are.
#[derive(Clone, Copy)]
enum Storage {
    Tmpfs,
    /// Past the page cache.
    Disk,
}

impl Storage {
    fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Disk => "a disk, direct",
        }
    }
}

/// Runs the comparison if it is asked for.
pub(crate) fn compare(options: &Options, scratch: &Scratch, targets: &mut Targets) {
    if !options.has("jobs") || !tools::have(&["qemu-img", "qemu-io", "qemu-storage-daemon"]) {
        return;
    }
    match tempfile::tempdir_in("/dev/shm") {
        Ok(dir) => compare_on(Storage::Tmpfs, dir.path(), options, scratch, targets),
        Err(_) => println!("SKIPPED: there is no tmpfs at /dev/shm"),
    }
    compare_on(Storage::Disk, &scratch.path("."), options, scratch, targets);
}

fn compare_on(
    storage: Storage,
    dir: &Path,
    options: &Options,
    scratch: &Scratch,
    targets: &mut Targets,
) {
    let images = Images::make(storage, dir, options.size_mib);
    let on = storage.name();
    println!("\njobs on {on}, {} MiB, half of it there", options.size_mib);
    println!("{:16} {:20} {:>8} {:>8}", "job", "server", "wall s", "CPU s");
    let (mut figures, mut waits) = (Figures::default(), Figures::default());
    for job in &JOBS {
        for _ in 0..options.rounds {
            for name in NAMES {
                let server = start(options, scratch, &images, name, job.data_in);
                let Some((server, mut client)) = server else { continue };
                figures.add(job.name, name, run(&server, &mut client, job));
            }
        }
        print(job.name, &figures);
        of_job(targets, (job.name, on), &figures);
    }
    for job in JOBS.iter().filter(|job| [BACKUP, MIRROR].contains(&job.name)) {
        for _ in 0..options.rounds {
            for name in NAMES {
                let server = start(options, scratch, &images, name, job.data_in);
                let Some((server, mut client)) = server else { continue };
                let wait = std::thread::scope(|scope| {
                    let guest = scope.spawn(|| wait_99_us(&server, options.size_mib));
                    run(&server, &mut client, job);
                    guest.join().expect("a guest")
                });
                waits.add(job.name, name, Figure { iops: wait, cpu: 0.0 });
            }
        }
        for name in NAMES {
            if let Some(wait) = waits.median(job.name, name, |run| run.iops) {
                println!("{:16} {name:20} a guest waits {wait:8.0} us for 4 KiB at p99", job.name);
            }
        }
        let of = |run: &Figure| run.iops;
        let value = waits.ratio_to_best(job.name, QCOW2, &QSD_QCOW2, of, f64::min);
        let what = format!("wait of a guest at p99, of qsd's best, {}, {on}", job.name);
        targets.add(&what, value, "x", Bound::AtMost(1.0));
    }
}

fn of_job(targets: &mut Targets, (job, on): (&'static str, &str), figures: &Figures) {
    let wall = figures.ratio_to_best(job, QCOW2, &QSD_QCOW2, |run| 1.0 / run.iops, f64::min);
    targets.add(&format!("wall time of qsd's best, {job}, {on}"), wall, "x", Bound::AtMost(0.8));
    let cpu = figures.ratio_to_best(job, QCOW2, &QSD_QCOW2, |run| run.cpu, f64::min);
    targets.add(&format!("CPU of qsd's best, {job}, {on}"), cpu, "x", Bound::AtMost(0.6));
}

fn print(job: &'static str, figures: &Figures) {
    for name in NAMES {
        let of = |of: fn(&Figure) -> f64| figures.median(job, name, of);
        if let (Some(wall), Some(cpu)) = (of(|run| 1.0 / run.iops), of(|run| run.cpu)) {
            println!("{job:16} {name:20} {wall:8.2} {cpu:8.2}");
        }
    }
}

/// Runs a job to its end: jobs a second, and CPU seconds of one.
fn run(server: &Server, client: &mut Qmp, job: &Job) -> Figure {
    let (before, start) = (server.cpu_seconds(), Instant::now());
    client.run(job.command, (job.arguments)());
    if job.gets_ready {
        client.event("BLOCK_JOB_READY");
        client.run("block-job-complete", json!({"device": "job"}));
    }
    let ended = client.event("BLOCK_JOB_COMPLETED");
    let wall = start.elapsed().as_secs_f64();
    assert!(ended["data"]["error"].is_null(), "{ended}");
    Figure { iops: 1.0 / wall, cpu: server.cpu_seconds() - before }
}

/// The images, and what they are copied from before each run.
struct Images<'a> {
    storage: Storage,
    dir: &'a Path,
}

impl<'a> Images<'a> {
    fn make(storage: Storage, dir: &'a Path, size_mib: u64) -> Self {
        let images = Self { storage, dir };
        let size = format!("{size_mib}M");
        for name in ["empty", "filled"] {
            let path = images.path(name).display().to_string();
            tools::succeed("qemu-img", ["create", "-q", "-f", "qcow2", &path, &size]);
        }
        let filled = images.path("filled").display().to_string();
        let writes = (0..size_mib).step_by(2);
        let writes = writes.map(|mib| format!("write -P {} {mib}M 1M", 1 + mib % 255));
        let commands = writes.flat_map(|write| ["-c".to_owned(), write]);
        let arguments = ["-f", "qcow2", &filled].map(str::to_owned).into_iter();
        tools::succeed("qemu-io", arguments.chain(commands));
        images
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.qcow2"))
    }

    /// New ones, of which one has the data.
    fn renew(&self, data_in: &str) {
        for name in ["base", "top", "tgt"] {
            let from = if name == data_in { "filled" } else { "empty" };
            let _ = fs::remove_file(self.path(name));
            fs::copy(self.path(from), self.path(name)).expect("copy an image");
            let written = fs::File::open(self.path(name)).and_then(|file| file.sync_all());
            written.expect("an image on its storage");
        }
    }
}

/// Starts a server of `top`, which stands on `base`, with a node `tgt` beside.
fn start(
    options: &Options,
    scratch: &Scratch,
    images: &Images<'_>,
    name: &'static str,
    data_in: &str,
) -> Option<(Server, Qmp)> {
    images.renew(data_in);
    let control = scratch.path("jobs-control.sock");
    let _ = fs::remove_file(&control);
    let chain = [("base", ""), ("top", "base"), ("tgt", "")];
    if let Some(index) = QSD_QCOW2.iter().position(|qsd| *qsd == name) {
        let aio = ["io_uring", "threads"][index];
        let socket = scratch.path("jobs-qsd.sock");
        let _ = fs::remove_file(&socket);
        let mut command = std::process::Command::new("qemu-storage-daemon");
        for (node, below) in chain {
            let path = images.path(node);
            let path = path.display();
            let direct = match images.storage {
                Storage::Tmpfs => "",
                Storage::Disk => ",cache.direct=on",
            };
            let file = format!("driver=file,node-name=f{node},filename={path},aio={aio}{direct}");
            let below = if below.is_empty() { String::new() } else { format!(",backing={below}") };
            let image = format!("driver=qcow2,node-name={node},file=f{node}{below}");
            command.args(["--blockdev", &file, "--blockdev", &image]);
        }
        let path = control.display();
        command.arg("--chardev").arg(format!("socket,id=c,path={path},server=on,wait=off"));
        command.args(["--monitor", "chardev=c", "--nbd-server"]);
        command.arg(format!("addr.type=unix,addr.path={}", socket.display()));
        command.args(["--export", "nbd,id=top,node-name=top,writable=on"]);
        let server = peer(name, command, &socket, "top", None)?;
        return Some((server, Qmp::open(&control)));
    }
    let mut nodes = String::new();
    for (node, below) in chain {
        let path = images.path(node);
        nodes += &format!("[node.f{node}]\ndriver = \"file\"\npath = \"{}\"\n", path.display());
        nodes += &format!("direct = {}\n", matches!(images.storage, Storage::Disk));
        nodes += &format!("[node.{node}]\ndriver = \"qcow2\"\nfile = \"f{node}\"\n");
        if !below.is_empty() {
            nodes += &format!("backing = \"{below}\"\n");
        }
    }
    // Who nobody writes at first would be opened for reading.
    nodes += "[drive.opened]\nroot = \"tgt\"\nwritable = true\n";
    let graph = Graph { name, nodes, root: "top", drives: 1 };
    let server =
        serve_graph(options, scratch, &graph, &["--control", &control.display().to_string()]);
    let mut client = Qmp::open(&control);
    client.run("drive-del", json!({"id": "opened"}));
    Some((server, client))
}

/// The median of all runs of a contestant.
impl Figures {
    fn median(
        &self,
        job: &'static str,
        name: &'static str,
        of: impl Fn(&Figure) -> f64,
    ) -> Option<f64> {
        Some(median(self.runs(job, name)?.iter().map(of)))
    }
}
