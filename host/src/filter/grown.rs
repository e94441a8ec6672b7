//! Points in time of disks that grow afterwards: a view has the size that the disk had, and shows what was there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blockloom_plugin_backup::BackupConfig;

use super::{BackupNode, ViewNode};
use crate::bitmap::{BitmapName, Granularity};
use crate::error::ErrorKind;
use crate::graph::{
    Action, BitmapDecl, BitmapScope, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph,
    NodeDecl, Transaction, Unproven, Which,
};
use crate::io::{BufMut, EngineChoice, EngineKind, run_on_thread, sleep_until, turn_now};
use crate::node::{ExtentKind, MemoryNode, Node};
use crate::plugin::{
    Grants, Instance, OnFault, PluginLimits, PluginModule, PluginNode, PluginRuntime, RestartBudget,
};
use crate::{Host, block_on};

const GRANULE: u64 = 4096;
/// Bytes of the disk at the point in time: its last granule is a part of one.
const SIZE: u64 = 20 * GRANULE + 512;

/// The host's own backup, or the plugin.
#[derive(Clone)]
enum Backup {
    Native(Arc<BackupNode>),
    Plugin(Arc<PluginNode>),
}

/// Scopes and names of bitmaps.
type Changes<'a> = Option<(BitmapScope, &'a str)>;

impl Backup {
    fn native(sync: &str, changes: Changes<'_>) -> Self {
        let config = BackupConfig::from_json(&config(sync)).expect("a configuration");
        let changes = changes.map(|(scope, name)| (scope, name.to_owned()));
        Self::Native(Arc::new(BackupNode::new(config, changes).expect("a backup")))
    }

    fn plugin(sync: &str, changes: Changes<'_>) -> Self {
        let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
        let module = Arc::new(PluginModule::load_bundled(&runtime, "backup").expect("a plugin"));
        let budget = RestartBudget { faults: 100, within: Duration::from_secs(60) };
        let (limits, policy) = (PluginLimits::default(), OnFault::Restart(budget));
        let instance = Instance::with_policy(&module, &config(sync), limits, policy);
        let instance = instance.expect("an instance");
        let children = [("file".to_owned(), Grants::READ), ("target".to_owned(), Grants::WRITE)];
        let node = PluginNode::with_children(&instance, &children).expect("a node");
        let lent = changes.map(|(scope, name)| ("changes".to_owned(), scope, name.to_owned()));
        let lent: Vec<_> = lent.into_iter().collect();
        Self::Plugin(Arc::new(node.with_bitmaps(&lent).expect("bitmaps")))
    }

    fn driver(&self) -> Arc<dyn Node> {
        match self {
            Self::Native(node) => Arc::clone(node) as _,
            Self::Plugin(node) => Arc::clone(node) as _,
        }
    }

    fn view(&self) -> Arc<ViewNode> {
        Arc::new(match self {
            Self::Native(node) => ViewNode::of_backup(node),
            Self::Plugin(node) => ViewNode::of_plugin(node, ViewNode::SNAPSHOT).expect("a view"),
        })
    }

    /// A plugin fails in its next call, and starts again.
    fn fail_once(&self) {
        if let Self::Plugin(node) = self {
            node.instance().confuse();
        }
    }

    fn check_alive(&self) {
        if let Self::Plugin(node) = self {
            assert_eq!(node.instance().failure(), None);
        }
    }
}

fn config(sync: &str) -> String {
    format!("{{\"sync\": \"{sync}\", \"min-cluster-size\": {GRANULE}}}")
}

fn memory() -> MemoryNode {
    MemoryNode::new(SIZE, 512).expect("a size")
}

fn then() -> Vec<u8> {
    (0..SIZE).map(|at| (at / 512 % 250) as u8 + 1).collect()
}

fn view(name: &str, of: &Backup) -> Action {
    let children = ViewNode::children("disk", "kept", "cbw");
    Action::AddNode(NodeDecl { name: name.to_owned(), driver: of.view(), children })
}

fn drive(id: &str, root: &str) -> Action {
    let (id, root) = (id.to_owned(), Some(root.to_owned()));
    Action::AddDrive(DriveDecl { id, root, writable: false, only_shows: false })
}

/// A disk with bytes behind the drive `vda`; a filter `cbw` over it keeps in `kept` what is there now, which the
/// drive `then` shows. The target is as long as the disk.
fn host(backup: &Backup) -> Host {
    let host = Host::builder().node("disk", memory(), vec![]).node("kept", memory(), vec![]);
    let host = host.drive("vda", "disk", true).start().expect("a host");
    block_on(host.drive("vda").expect("a drive").write(0, &then())).expect("written");
    let children = BackupNode::children("disk", "kept");
    let filter = NodeDecl { name: "cbw".into(), driver: backup.driver(), children };
    let (node, users) = ("disk".into(), Which::All);
    let add = Transaction::new()
        .with_unproven(Action::InsertAbove { node, filter, users }, Unproven::MarkWhole)
        .with(view("then", backup))
        .with(drive("then", "then"));
    block_on(host.transact(add)).expect("a filter and its view");
    wait_until("the point in time", || shown(&host, "then").is_some());
    host
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what} does not come");
        std::thread::yield_now();
    }
}

/// All of a view; `None` before the point in time.
fn shown(host: &Host, view: &str) -> Option<Vec<u8>> {
    match block_on(host.drive(view).expect("a drive").read(0, SIZE as usize)) {
        Ok(bytes) => Some(bytes.to_vec()),
        Err(error) if error.kind() == ErrorKind::InUse => None,
        Err(error) => panic!("{view}: {error}"),
    }
}

/// The view has the size that the disk had, shows that, and says so in its block status.
fn check_view(host: &Host, view: &str, what: &str) {
    let drive = host.drive(view).expect("a drive");
    assert_eq!(drive.info().expect("a medium").size_bytes, SIZE, "{what}");
    assert!(shown(host, view).as_ref() == Some(&then()), "{what}: {view} shows something else");
    let past = block_on(drive.read(SIZE, 1)).expect_err("there is no more");
    assert_eq!(past.kind(), ErrorKind::Invalid, "{what}: {past}");
    let mut at = 0;
    while at < SIZE {
        for extent in block_on(drive.block_status(at, SIZE - at)).expect("a status") {
            assert_ne!(extent.kind, ExtentKind::Unreadable, "{what}: {extent:?}");
            at = extent.offset + extent.len;
        }
    }
    assert_eq!(at, SIZE, "{what}");
}

/// What a guest does to a disk of so many bytes: also at the former end, and behind it.
fn write(host: &Host, size_bytes: u64, value: u8) {
    let drive = host.drive("vda").expect("a drive");
    let last = size_bytes - 3 * 512;
    for at in [0, 7 * GRANULE + 100, SIZE - 700, last] {
        block_on(drive.write(at, &[value; 1500])).expect("a write");
        let bytes = block_on(drive.read(at, 1500)).expect("a read");
        assert!(bytes.iter().all(|byte| *byte == value), "at {at} of {size_bytes}");
    }
}

fn grow(host: &Host, size_bytes: u64) {
    block_on(host.resize("vda", size_bytes)).expect("a larger disk");
    assert_eq!(
        host.drive("vda").expect("a drive").info().expect("a medium").size_bytes,
        size_bytes
    );
}

/// With a target that ends where the disk did; a plugin that fails after that starts again.
#[test]
fn a_view_keeps_its_size_while_the_disk_grows() {
    for make in [Backup::native, Backup::plugin] {
        for sync in ["none", "full"] {
            let backup = make(sync, None);
            let host = host(&backup);
            check_view(&host, "then", sync);
            for (round, size_bytes) in (1..).zip([SIZE + 1024, 40 * GRANULE, 1 << 20]) {
                grow(&host, size_bytes);
                check_view(&host, "then", sync);
                write(&host, size_bytes, round);
                check_view(&host, "then", sync);
                backup.fail_once();
                write(&host, size_bytes, 100 + round);
                block_on(host.drive("vda").expect("a drive").discard(0, size_bytes))
                    .expect("advice");
                check_view(&host, "then", sync);
            }
            // Whoever opens the view later sees the same.
            let later = Transaction::new().with(view("late", &backup)).with(drive("late", "late"));
            block_on(host.transact(later)).expect("a view");
            check_view(&host, "late", sync);
            backup.check_alive();
            host.shutdown().expect("an end in order");
        }
    }
}

/// What is still to be copied is not cut off; what has been copied is shown whatever becomes of the disk.
#[test]
fn a_view_keeps_its_size_while_the_disk_shrinks() {
    for make in [Backup::native, Backup::plugin] {
        let backup = make("none", None);
        let host = host(&backup);
        let shrink = |size_bytes| block_on(host.resize("vda", size_bytes));
        let error = shrink(4 * GRANULE).expect_err("it is needed");
        assert_eq!(error.kind(), ErrorKind::InUse);
        let expected = "node `cbw` keeps what was there at one point in time, which node `then` shows, and a shrink \
                        would cut off what it has not copied yet: remove that view and that node first";
        assert!(error.to_string().contains(expected), "{error}");
        block_on(host.drive("vda").expect("a drive").write(0, &[9; SIZE as usize]))
            .expect("written");
        shrink(4 * GRANULE).expect("all has been kept");
        check_view(&host, "then", "after a shrink");
        grow(&host, 1 << 20);
        write(&host, 1 << 20, 5);
        check_view(&host, "then", "after a shrink and a growth");
        backup.check_alive();
        host.shutdown().expect("an end in order");
    }
}

/// A backup of what a bitmap says, of a disk that grows before it begins: the bitmap has grown with the disk, and
/// what was added is none of the backup's.
#[test]
fn a_disk_grows_before_its_backup_begins() {
    for make in [Backup::native, Backup::plugin] {
        let ran = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), check_early(make));
        ran.expect("a worker");
    }
}

async fn check_early(make: fn(&str, Changes<'_>) -> Backup) {
    let of_drive = || BitmapScope::Drive("d".into());
    let backup = make("incremental", Some((of_drive(), "b")));
    let node = |name: &str, driver, children| NodeDecl { name: name.into(), driver, children };
    let nodes = vec![
        node("disk", Arc::new(memory()) as Arc<dyn Node>, vec![]),
        node("kept", Arc::new(memory()), vec![]),
        node("cbw", backup.driver(), BackupNode::children("disk", "kept")),
        node("then", backup.view(), ViewNode::children("disk", "kept", "cbw")),
    ];
    let drive = |id: &str, root: &str, writable| {
        let (id, root) = (id.to_owned(), Some(root.to_owned()));
        DriveDecl { id, root, writable, only_shows: !writable }
    };
    let drives = vec![drive("d", "cbw", true), drive("then", "then", false)];
    let (name, granularity) = (BitmapName::new("b").expect("a name"), Granularity::MIN);
    let bitmap = BitmapDecl { scope: of_drive(), name, granularity, enabled: true };
    let graph = GraphDecl { nodes, drives, bitmaps: vec![bitmap] }.build().expect("a graph");
    graph.start_drivers(None).expect("drivers that start");
    let bitmap = Arc::clone(graph.find_bitmap(&of_drive(), "b").expect("a bitmap"));
    bitmap.recording().expect("it records").mark(5 * GRANULE, 1);
    let cell = Arc::new(GraphCell::new(graph));
    let resize = Action::Resize { node: "disk".into(), size_bytes: 1 << 20 };
    cell.transact(Transaction::new().with(resize)).await.expect("a larger disk");
    assert_eq!(bitmap.size_bytes(), 1 << 20);
    let local = LocalGraph::of(&cell);
    backup.driver().run(&local, "cbw");
    let view = LocalDrive::open(&local, "then").expect("a drive");
    assert_eq!(view.info().expect("a medium").size_bytes, SIZE);
    let mut read = view.read(5 * GRANULE, BufMut::new(GRANULE as usize)).await;
    while read.as_ref().is_err_and(|error| error.kind() == ErrorKind::InUse) {
        sleep_until(turn_now() + Duration::from_micros(100)).await;
        read = view.read(5 * GRANULE, BufMut::new(GRANULE as usize)).await;
    }
    assert!(read.expect("it is covered").iter().all(|byte| *byte == 0));
    while backup.driver().keeps_old_bytes() {
        sleep_until(turn_now() + Duration::from_micros(100)).await;
    }
    let outside = view.read(6 * GRANULE, BufMut::new(512)).await.map(drop);
    assert_eq!(outside.expect_err("it is not covered").kind(), ErrorKind::Io);
    backup.check_alive();
    view.read(5 * GRANULE, BufMut::new(GRANULE as usize)).await.expect("it is not broken");
}
