//! What does a copy cost that a plugin asks for, against one of the native twin?
//!
//! A miss of `copy-on-read`, and a write before which `backup` copies, of 64 KiB each, 32 in a turn, in memory.
//! Every round has fresh disks; contestants take turns.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockloom::filter::{BackupNode, CopyOnReadNode};
use blockloom::graph::{ChildDecl, DriveDecl, GraphDecl, LocalDrive, LocalGraph, NodeDecl};
use blockloom::io::{Buf, BufMut, sleep_until, turn_now};
use blockloom::node::{ExtentKind, MemoryNode, Node, WriteFlags};
use blockloom::plugin::{Grants, Instance, PluginLimits, PluginModule, PluginNode, PluginRuntime};
use blockloom_plugin_backup::BackupConfig;

use crate::{local, together, verdict};

const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 512;
const SIZE_BYTES: u64 = (BLOCK * BLOCKS) as u64;
const ROUNDS: usize = 10;
const LIMIT: f64 = 1.15;
const BACKUP: &str = r#"{"sync":"none"}"#;

/// A disk all of whose bytes are there.
async fn filled() -> Arc<dyn Node> {
    let disk: Arc<dyn Node> = Arc::new(MemoryNode::new(SIZE_BYTES, 512).expect("a disk"));
    let mut decl = GraphDecl::default();
    decl.nodes.push(node("disk", Arc::clone(&disk), vec![]));
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

/// Reads every block of an overlay of `base` once through `filter`.
async fn misses(base: &Arc<dyn Node>, filter: Arc<dyn Node>) -> Duration {
    let overlay = Arc::new(MemoryNode::overlay(SIZE_BYTES, 512).expect("an overlay"));
    let mut decl = GraphDecl::default();
    decl.nodes.push(node("base", Arc::clone(base), vec![]));
    decl.nodes.push(node("overlay", overlay, vec![ChildDecl::backing("base")]));
    decl.nodes.push(node("filter", filter, vec![CopyOnReadNode::child("overlay")]));
    let graph = open(decl, "filter");
    let drive = LocalDrive::open(&graph, "d").expect("a drive");
    let start = Instant::now();
    together(32, BLOCKS, |at| {
        let drive = drive.clone();
        async move {
            drive.read((at * BLOCK) as u64, BufMut::new(BLOCK)).await.expect("a read");
        }
    })
    .await;
    let time = start.elapsed() / BLOCKS as u32;
    let status = drive.block_status(0, SIZE_BYTES).await.expect("a status");
    let own = status.iter().filter(|extent| extent.kind != ExtentKind::Unallocated);
    assert_eq!(own.map(|extent| extent.len).sum::<u64>(), SIZE_BYTES, "all has been copied");
    time
}

/// Writes every block of `disk` once through `filter`, which copies it before.
async fn copies(disk: &Arc<dyn Node>, filter: Arc<dyn Node>) -> Duration {
    let target = Arc::new(MemoryNode::new(SIZE_BYTES, 512).expect("a disk"));
    let mut decl = GraphDecl::default();
    decl.nodes.push(node("disk", Arc::clone(disk), vec![]));
    decl.nodes.push(node("target", target, vec![]));
    decl.nodes.push(node("filter", filter, BackupNode::children("disk", "target")));
    let graph = open(decl, "filter");
    // Its point in time is reached before the first write.
    sleep_until(turn_now() + Duration::from_millis(2)).await;
    let drive = LocalDrive::open(&graph, "d").expect("a drive");
    let start = Instant::now();
    together(32, BLOCKS, |at| {
        let drive = drive.clone();
        async move { write(&drive, at).await }
    })
    .await;
    start.elapsed() / BLOCKS as u32
}

struct Plugins {
    copy_on_read: Arc<PluginModule>,
    backup: Arc<PluginModule>,
}

impl Plugins {
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

/// Prints both comparisons.
pub(crate) async fn table(runtime: &Arc<PluginRuntime>) {
    let load = |name| Arc::new(PluginModule::load_bundled(runtime, name).expect("a plugin"));
    let plugins = Plugins { copy_on_read: load("copy-on-read"), backup: load("backup") };
    let disk = filled().await;
    let config = || BackupConfig::from_json(BACKUP).expect("valid");
    let mut times: [Vec<Duration>; 4] = Default::default();
    for round in 0..2 * ROUNDS {
        // Whoever is first is not so in each round.
        for which in [round % 2, 1 - round % 2] {
            let (reader, backup): (Arc<dyn Node>, Arc<dyn Node>) = if which == 0 {
                let backup = BackupNode::new(config(), None).expect("a backup");
                (Arc::new(CopyOnReadNode::default()), Arc::new(backup))
            } else {
                (plugins.copy_on_read(), plugins.backup())
            };
            times[which].push(misses(&disk, reader).await);
            times[2 + which].push(copies(&disk, backup).await);
        }
    }
    println!();
    for (what, at) in [("copy-on-read miss", 0), ("copy before write", 2)] {
        let median = |times: &[Duration]| {
            let mut times = times[1..].to_vec();
            times.sort();
            times[times.len() / 2].as_nanos() as f64
        };
        let (native, plugin) = (median(&times[at]), median(&times[at + 1]));
        println!("{what} of 64 KiB: native {native:.0} ns, plugin {plugin:.0} ns");
        verdict(&format!("{what} of 64 KiB, plugin over native"), plugin / native, LIMIT, "x");
    }
}
