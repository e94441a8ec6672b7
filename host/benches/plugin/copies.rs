//! What does a copy cost that a plugin asks for, against one of the native twin?
//!
//! A miss of `copy-on-read`, and a write before which `backup` copies, of 64 KiB each, 32 in a turn: in memory that
//! is there already, where next to nothing but the bytes is moved, and between files in memory, which is the least
//! that images are kept in. Contestants take turns. Before them, what a write of 4 KiB costs when nothing is
//! left to copy: by its rule the plugin is not called there.

use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockloom::ErrorKind;
use blockloom::filter::{BackupNode, CopyOnReadNode};
use blockloom::graph::{ChildDecl, DriveDecl, GraphDecl, LocalDrive, LocalGraph, NodeDecl};
use blockloom::io::{Buf, BufMut, sleep_until, turn_now};
use blockloom::node::{FileNode, FileOptions, ImageLocking, Node, NullNode, WriteFlags};
use blockloom::plugin::measure::{self, Work};
use blockloom::plugin::{Grants, Instance, PluginLimits, PluginModule, PluginNode, PluginRuntime};
use blockloom_plugin_backup::BackupConfig;

use crate::slab::Slab;
use crate::{REQUESTS_PER_SAMPLE, SAMPLES, local, together, verdict};

pub(crate) const BLOCK: usize = 64 << 10;
pub(crate) const BLOCKS: usize = 512;
pub(crate) const SIZE_BYTES: u64 = (BLOCK * BLOCKS) as u64;
const FIRST_BLOCKS: usize = 64;
const BATCH: usize = 32;
const ROUNDS: usize = 10;
const LIMIT: f64 = 1.15;
const BACKUP: &str = r#"{"sync":"none"}"#;

/// A disk that has all its bytes.
async fn filled() -> Arc<Slab> {
    let disk = Arc::new(Slab::new());
    let mut decl = GraphDecl::default();
    decl.nodes.push(node("disk", Arc::clone(&disk) as _, vec![]));
    let graph = open(decl, "disk");
    let drive = LocalDrive::open(&graph, "d").expect("a drive");
    for at in 0..BLOCKS {
        write(&drive, at).await;
    }
    disk
}

fn node(name: &str, driver: Arc<dyn Node>, children: Vec<ChildDecl>) -> NodeDecl {
    NodeDecl { name: name.into(), driver, children }
}

fn open(mut decl: GraphDecl, root: &str) -> Rc<LocalGraph> {
    let root = Some(root.into());
    decl.drives.push(DriveDecl { id: "d".into(), root, writable: true, only_shows: false });
    local(decl)
}

async fn write(drive: &LocalDrive, at: usize) {
    let bytes = Buf::copy_of(&[7; BLOCK]);
    drive.write((at * BLOCK) as u64, bytes, WriteFlags::default()).await.expect("a write");
}

/// Reads every block of `overlay`, empty over `base`, once through `filter`.
async fn misses(base: &Arc<Slab>, overlay: &Arc<Slab>, filter: Arc<dyn Node>) -> Duration {
    overlay.forget();
    let mut decl = GraphDecl::default();
    decl.nodes.push(node("base", Arc::clone(base) as _, vec![]));
    decl.nodes.push(node("overlay", Arc::clone(overlay) as _, vec![ChildDecl::backing("base")]));
    let children = vec![CopyOnReadNode::child("overlay")];
    decl.nodes.push(node("filter", Arc::clone(&filter), children));
    let graph = open(decl, "filter");
    let drive = LocalDrive::open(&graph, "d").expect("a drive");
    let time = timed(|at| {
        let drive = drive.clone();
        async move {
            drive.read((at * BLOCK) as u64, BufMut::new(BLOCK)).await.expect("a read");
        }
    });
    let time = time.await;
    assert!(overlay.is_full(), "all has been copied");
    close(&graph, &filter).await;
    time
}

/// Takes a filter out of a graph that is needed no more: what it was told of goes, and its instance with it.
async fn close(graph: &Rc<LocalGraph>, filter: &Arc<dyn Node>) {
    let filter = Arc::clone(filter);
    let closed = graph.call_node("filter", async move |cx| filter.close(cx).await).await;
    // One that does nothing by itself has nothing to end.
    closed
        .or_else(|error| match error.kind() {
            ErrorKind::NotPermitted => Ok(()),
            _ => Err(error),
        })
        .expect("a filter that goes");
}

/// Writes every block of a disk once through `filter`, which copies it to `target` before.
async fn copies(disk: Arc<dyn Node>, target: Arc<dyn Node>, filter: Arc<dyn Node>) -> Duration {
    let mut decl = GraphDecl::default();
    decl.nodes.push(node("disk", disk, vec![]));
    decl.nodes.push(node("target", target, vec![]));
    decl.nodes.push(node("filter", Arc::clone(&filter), BackupNode::children("disk", "target")));
    let graph = open(decl, "filter");
    // Its point in time is reached before the first write.
    sleep_until(turn_now() + Duration::from_millis(2)).await;
    let drive = LocalDrive::open(&graph, "d").expect("a drive");
    let time = timed(|at| {
        let drive = drive.clone();
        async move { write(&drive, at).await }
    });
    let time = time.await;
    close(&graph, &filter).await;
    time
}

/// The time that a request of every block takes, without the first ones: they find fresh instances.
async fn timed<F: Future<Output = ()> + 'static>(request: impl Fn(usize) -> F) -> Duration {
    together(BATCH, FIRST_BLOCKS, &request).await;
    let (start, rest) = (Instant::now(), BLOCKS - FIRST_BLOCKS);
    together(BATCH, rest, |at| request(FIRST_BLOCKS + at)).await;
    start.elapsed() / rest as u32
}

/// A drive over `backup`, with nothing left to copy.
async fn copied(filter: Arc<dyn Node>) -> LocalDrive {
    const SIZE_BYTES: usize = 1 << 30;
    let mut decl = GraphDecl::default();
    for name in ["disk", "target"] {
        let null = NullNode::new(SIZE_BYTES as u64, false, Duration::ZERO);
        decl.nodes.push(node(name, Arc::new(null), vec![]));
    }
    decl.nodes.push(node("filter", filter, BackupNode::children("disk", "target")));
    let graph = open(decl, "filter");
    sleep_until(turn_now() + Duration::from_millis(2)).await;
    let drive = LocalDrive::open(&graph, "d").expect("a drive");
    measure::run(&drive, Work::Write, 32, SIZE_BYTES / 4096).await.expect("writes");
    drive
}

/// What the plugin adds to a write that it lets pass by its rule.
async fn steady(native: Arc<dyn Node>, plugin: Arc<dyn Node>) {
    let drives = [copied(native).await, copied(plugin).await];
    for batch in [1, 32] {
        let mut best = [f64::MAX; 2];
        for _ in 0..=SAMPLES {
            for (drive, best) in drives.iter().zip(&mut best) {
                let run = measure::run(drive, Work::Write, batch, REQUESTS_PER_SAMPLE).await;
                *best = best.min(run.expect("writes").as_nanos() as f64);
            }
        }
        let [native, plugin] = best;
        println!(
            "write, nothing to copy, {batch} a turn: native {native:.0}, plugin {plugin:.0} ns"
        );
        let what = format!("backup plugin, not called, adds at {batch} a turn");
        verdict(&what, plugin - native, 30.0, "ns");
    }
}

/// Where the bytes are.
enum Disks {
    /// In memory that is there: the disk, and the target.
    Slabs(Arc<Slab>, Arc<Slab>),
    /// In files of a file system in memory.
    Files(PathBuf),
}

impl Disks {
    /// A full disk, and a new target.
    fn open(&self) -> [Arc<dyn Node>; 2] {
        match self {
            Self::Slabs(disk, target) => {
                target.forget();
                [Arc::clone(disk) as _, Arc::clone(target) as _]
            }
            Self::Files(folder) => {
                std::fs::write(folder.join("disk"), vec![7; SIZE_BYTES as usize]).expect("room");
                let _ = std::fs::remove_file(folder.join("target"));
                ["disk", "target"].map(|name| {
                    let options = FileOptions {
                        path: folder.join(name),
                        create_bytes: Some(SIZE_BYTES),
                        write: true,
                        locking: ImageLocking::Off,
                        ..FileOptions::default()
                    };
                    Arc::new(FileNode::open(&options).expect("a file")) as Arc<dyn Node>
                })
            }
        }
    }

    /// All has been copied.
    fn check(&self) {
        match self {
            Self::Slabs(_, target) => assert!(target.is_full(), "all has been copied"),
            Self::Files(folder) => {
                let target = std::fs::metadata(folder.join("target")).expect("a target");
                assert_eq!(target.blocks() * 512, SIZE_BYTES, "all has been copied");
            }
        }
    }

    async fn copies(&self, filter: Arc<dyn Node>) -> Duration {
        let [disk, target] = self.open();
        let time = copies(disk, target, filter).await;
        self.check();
        time
    }
}

struct Plugins {
    copy_on_read: Arc<PluginModule>,
    backup: Arc<PluginModule>,
}

impl Plugins {
    fn load(runtime: &Arc<PluginRuntime>) -> Self {
        let load = |name| Arc::new(PluginModule::load_bundled(runtime, name).expect("a plugin"));
        Self { copy_on_read: load("copy-on-read"), backup: load("backup") }
    }

    fn node(
        module: &Arc<PluginModule>,
        config: &str,
        children: &[(&str, Grants)],
    ) -> Arc<dyn Node> {
        let instance = Instance::new(module, config, PluginLimits::default()).expect("an instance");
        let children: Vec<_> =
            children.iter().map(|(name, grants)| ((*name).to_owned(), *grants)).collect();
        Arc::new(PluginNode::with_children(&instance, &children).expect("a node"))
    }

    fn copy_on_read(&self) -> Arc<dyn Node> {
        let grants = Grants::READ.union(Grants::WRITE_UNCHANGED);
        Self::node(&self.copy_on_read, "{}", &[("file", grants)])
    }

    fn backup(&self) -> Arc<dyn Node> {
        let children = [("file", Grants::READ), ("target", Grants::WRITE)];
        Self::node(&self.backup, BACKUP, &children)
    }
}

fn native_backup() -> Arc<dyn Node> {
    let config = BackupConfig::from_json(BACKUP).expect("valid");
    Arc::new(BackupNode::new(config, None).expect("a backup"))
}

/// Has one contestant copy before writes, for a profiler.
pub(crate) async fn profile(is_plugin: bool, rounds: usize) {
    let plugins = Plugins::load(&Arc::new(PluginRuntime::new().expect("a runtime")));
    let disks = Disks::Slabs(filled().await, Arc::new(Slab::new()));
    let mut times = Vec::new();
    for _ in 0..rounds {
        let backup = if is_plugin { plugins.backup() } else { native_backup() };
        times.push(disks.copies(backup).await);
    }
    times.sort();
    println!("copy before write of 64 KiB: {} ns", times[rounds / 2].as_nanos());
}

/// Prints the comparisons in memory.
pub(crate) async fn table(runtime: &Arc<PluginRuntime>) {
    let plugins = Plugins::load(runtime);
    let (disk, other) = (filled().await, Arc::new(Slab::new()));
    let disks = Disks::Slabs(Arc::clone(&disk), Arc::clone(&other));
    println!();
    steady(native_backup(), plugins.backup()).await;
    let mut times: [Vec<Duration>; 4] = Default::default();
    for round in 0..2 * ROUNDS {
        // Whoever is first is not so in each round.
        for which in [round % 2, 1 - round % 2] {
            let (reader, backup): (Arc<dyn Node>, _) = match which {
                0 => (Arc::new(CopyOnReadNode::default()), native_backup()),
                _ => (plugins.copy_on_read(), plugins.backup()),
            };
            times[which].push(misses(&disk, &other, reader).await);
            times[2 + which].push(disks.copies(backup).await);
        }
    }
    println!();
    let [native, plugin, native_copy, plugin_copy] = times;
    compare("copy-on-read miss of 64 KiB", native, plugin);
    compare("copy before write of 64 KiB", native_copy, plugin_copy);
}

/// The same between files of a file system in memory.
pub(crate) async fn files() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else {
        println!("copy before write between files: skipped, there is no /dev/shm");
        return;
    };
    let plugins = Plugins::load(&Arc::new(PluginRuntime::new().expect("a runtime")));
    let disks = Disks::Files(folder.path().to_owned());
    let mut times: [Vec<Duration>; 2] = Default::default();
    for round in 0..2 * ROUNDS {
        for which in [round % 2, 1 - round % 2] {
            let backup = if which == 0 { native_backup() } else { plugins.backup() };
            times[which].push(disks.copies(backup).await);
        }
    }
    let [native, plugin] = times;
    compare("copy before write of 64 KiB between files in memory", native, plugin);
}

/// By the medians, without the first round.
fn compare(what: &str, native: Vec<Duration>, plugin: Vec<Duration>) {
    let [native, plugin] = [native, plugin].map(|mut times| {
        times.remove(0);
        times.sort();
        times[times.len() / 2].as_nanos() as f64
    });
    println!("{what}: native {native:.0} ns, plugin {plugin:.0} ns");
    verdict(&format!("{what}, plugin over native"), plugin / native, LIMIT, "x");
}
