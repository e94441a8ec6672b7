//! The contestants as processes.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use blockloom_tests::{Daemon, Killed, Scratch, eventually};
use tempfile::TempDir;

use crate::options::Options;

/// Names, as printed.
pub(crate) const BLOCKLOOM: &str = "blockloom";
pub(crate) const WITH_THROTTLE: &str = "blockloom throttle";
pub(crate) const NBDKIT: &str = "nbdkit memory";
pub(crate) const QCOW2: &str = "blockloom qcow2";
pub(crate) const RAW_FILE: &str = "blockloom raw file";
pub(crate) const QSD_QCOW2: [&str; 2] = ["qsd qcow2, io_uring", "qsd qcow2, threads"];
pub(crate) const QSD_CBW: [&str; 2] = ["qsd cbw, io_uring", "qsd cbw, threads"];

/// A running server.
pub(crate) struct Server {
    /// What it is called in tables.
    pub(crate) name: &'static str,
    /// What fio opens.
    pub(crate) uris: Vec<String>,
    process: Process,
}

enum Process {
    Daemon(Daemon),
    Peer(Peer),
}

/// A foreign server; killed when dropped.
struct Peer {
    child: Killed,
    /// A file on tmpfs, if it has one; removed after the process.
    _disk: Option<TempDir>,
}

/// A disk in a file that is there already.
pub(crate) struct ImageServer<'a> {
    /// Of the server.
    pub(crate) name: &'static str,
    /// The file: a qcow2 image for [`QCOW2`] and [`QSD_QCOW2`], raw for [`RAW_FILE`].
    pub(crate) image: &'a Path,
}

impl Server {
    fn pid(&self) -> u32 {
        match &self.process {
            Process::Daemon(daemon) => daemon.pid(),
            Process::Peer(peer) => peer.child.id(),
        }
    }

    /// CPU time that the whole process has used, user and system, in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("/proc");
        // proc(5): the name may hold spaces; after it come fields 3 and on; 14 and 15 are ticks of
        // 10 ms.
        let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
        let ticks = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u32>());
        ticks.map(|ticks| f64::from(ticks.expect("a number of ticks")) / 100.0).sum()
    }
}

/// Starts everything that is installed; says what is not.
pub(crate) fn start_all(options: &Options, scratch: &Scratch) -> Vec<Server> {
    let size = format!("{}MiB", options.size_mib);
    let memory = format!("[node.disk]\ndriver = \"memory\"\nsize = \"{size}\"\n");
    let throttle = "[node.slow]\ndriver = \"plugin\"\nplugin = \"throttle\"\n\
                    child.file = \"disk\"\nconfig = { iops = 0 }\n";
    let mut servers = vec![
        blockloom(options, scratch, BLOCKLOOM, &memory, "disk"),
        blockloom(options, scratch, WITH_THROTTLE, &format!("{memory}{throttle}"), "slow"),
    ];
    let socket = scratch.path("nbdkit.sock");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["--foreground", "--unix"]).arg(&socket);
    nbdkit.args(["memory", &format!("{}M", options.size_mib)]);
    servers.extend(peer(NBDKIT, nbdkit, &socket, "", None));
    for (name, aio) in [("qsd raw, io_uring", "io_uring"), ("qsd raw, threads", "threads")] {
        servers.extend(storage_daemon(name, aio, options, scratch));
    }
    servers
}

fn blockloom(
    options: &Options,
    scratch: &Scratch,
    name: &'static str,
    nodes: &str,
    root: &str,
) -> Server {
    let text = format!(
        "{nodes}\n[drive.vda]\nroot = \"{root}\"\n\n[export.vda]\ntype = \"nbd\"\n\
         drive = \"vda\"\nlisten = \"unix:{root}.sock\"\nwritable = true\n"
    );
    let graph = scratch.graph(&format!("{root}.toml"), &text);
    let daemon = Daemon::start(&options.program, &graph, &[]);
    Server { name, uris: vec![daemon.uri("vda").to_owned()], process: Process::Daemon(daemon) }
}

/// Nodes that the program under test serves.
pub(crate) struct Graph {
    /// Of the server.
    pub(crate) name: &'static str,
    /// In TOML.
    pub(crate) nodes: String,
    /// What is exported; of several drives the beginning of its name, before their numbers.
    pub(crate) root: &'static str,
    pub(crate) drives: usize,
}

/// Starts the program under test.
pub(crate) fn serve_graph(
    options: &Options,
    scratch: &Scratch,
    graph: &Graph,
    arguments: &[&str],
) -> Server {
    let file = graph.name.replace(' ', "-");
    let mut text = graph.nodes.clone();
    let ids: Vec<String> = (0..graph.drives).map(|drive| format!("vd{drive}")).collect();
    for (index, id) in ids.iter().enumerate() {
        let number = if ids.len() > 1 { index.to_string() } else { String::new() };
        text += &format!(
            "[drive.{id}]\nroot = \"{}{number}\"\n[export.{id}]\ntype = \"nbd\"\ndrive = \"{id}\"\n\
             listen = \"unix:{file}.sock\"\nwritable = true\n",
            graph.root
        );
    }
    let daemon =
        Daemon::start(&options.program, &scratch.graph(&format!("{file}.toml"), &text), arguments);
    let uris = ids.iter().map(|id| daemon.uri(id).to_owned()).collect();
    Server { name: graph.name, uris, process: Process::Daemon(daemon) }
}

/// Starts QEMU's filter that copies before writes, in clusters of 64 KiB.
pub(crate) fn serve_qsd_cbw(
    name: &'static str,
    disk: &Path,
    target: &Path,
    scratch: &Scratch,
) -> Option<Server> {
    let aio = if name == QSD_CBW[0] { "io_uring" } else { "threads" };
    let socket = scratch.path(&format!("qsd-cbw-{aio}.sock"));
    let mut command = Command::new("qemu-storage-daemon");
    for (node, path) in [("disk", disk), ("target", target)] {
        let path = path.display();
        command.arg("--blockdev");
        command.arg(format!("driver=file,node-name={node}-file,filename={path},aio={aio}"));
        command.arg("--blockdev");
        command.arg(format!("driver=raw,node-name={node},file={node}-file"));
    }
    command.args(["--blockdev", "driver=copy-before-write,node-name=top,file=disk,target=target"]);
    command.arg("--nbd-server");
    command.arg(format!("addr.type=unix,addr.path={}", socket.display()));
    command.args(["--export", "nbd,id=top,node-name=top,writable=on"]);
    peer(name, command, &socket, "top", None)
}

/// Starts what serves an image.
pub(crate) fn serve_image(
    options: &Options,
    scratch: &Scratch,
    wanted: &ImageServer<'_>,
) -> Option<Server> {
    let ImageServer { name, image } = *wanted;
    let path = image.display();
    let stem = image.file_stem().and_then(|stem| stem.to_str()).unwrap_or("image");
    if let Some(index) = QSD_QCOW2.iter().position(|qsd| *qsd == name) {
        let socket = scratch.path(&format!("{stem}.sock"));
        let aio = ["io_uring", "threads"][index];
        let file = format!("driver=file,node-name=file,filename={path},aio={aio}");
        let command = qsd(&file, "qcow2", &socket);
        return peer(name, command, &socket, "disk", None);
    }
    let driver = if name == QCOW2 { "qcow2" } else { "raw" };
    let text = format!(
        "[node.disk]\ndriver = \"{driver}\"\nfile = {{ driver = \"file\", path = \"{path}\" }}\n\
         [drive.vda]\nroot = \"disk\"\n\n[export.vda]\ntype = \"nbd\"\n\
         drive = \"vda\"\nlisten = \"unix:{stem}.sock\"\nwritable = true\n"
    );
    let graph = scratch.graph(&format!("{stem}.toml"), &text);
    let daemon = Daemon::start(&options.program, &graph, &[]);
    let uris = vec![daemon.uri("vda").to_owned()];
    Some(Server { name, uris, process: Process::Daemon(daemon) })
}

/// A storage daemon with node `file` below one of `driver`.
fn qsd(file: &str, driver: &str, socket: &Path) -> Command {
    let mut command = Command::new("qemu-storage-daemon");
    command.args(["--blockdev", file, "--blockdev"]);
    command.arg(format!("driver={driver},node-name=disk,file=file"));
    command.arg("--nbd-server");
    command.arg(format!("addr.type=unix,addr.path={}", socket.display()));
    command.args(["--export", "nbd,id=disk,node-name=disk,writable=on"]);
    command
}

/// A raw file on tmpfs: QEMU has no disk in memory that keeps what is written.
fn storage_daemon(
    name: &'static str,
    aio: &str,
    options: &Options,
    scratch: &Scratch,
) -> Option<Server> {
    let Ok(disk) = tempfile::tempdir_in("/dev/shm") else {
        println!("SKIPPED: {name}: there is no tmpfs at /dev/shm");
        return None;
    };
    let image = disk.path().join("disk.img");
    let file = fs::File::create(&image).expect("create an image");
    file.set_len(options.size_mib << 20).expect("set the length of an image");
    let socket = scratch.path(&format!("qsd-{aio}.sock"));
    let file = format!("driver=file,node-name=file,filename={},aio={aio}", image.display());
    let command = qsd(&file, "raw", &socket);
    peer(name, command, &socket, "disk", Some(disk))
}

/// Starts a foreign server and waits for its socket; `None`, said aloud, if it does not run here.
pub(crate) fn peer(
    name: &'static str,
    mut command: Command,
    socket: &Path,
    export: &str,
    disk: Option<TempDir>,
) -> Option<Server> {
    let child =
        match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                println!("SKIPPED: {name}: {:?} is not installed", command.get_program());
                return None;
            }
            Err(error) => panic!("{name}: {error}"),
        };
    let mut peer = Peer { child: child.into(), _disk: disk };
    let is_up = eventually(&format!("{name} listens"), || {
        if UnixStream::connect(socket).is_ok() {
            return Some(true);
        }
        peer.child.try_wait().expect("wait").map(|_| false)
    });
    if !is_up {
        println!("SKIPPED: {name}: it does not start here");
        return None;
    }
    let uris = vec![format!("nbd+unix:///{export}?socket={}", socket.display())];
    Some(Server { name, uris, process: Process::Peer(peer) })
}
