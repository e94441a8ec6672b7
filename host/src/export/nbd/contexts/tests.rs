//! Tests: bitmaps as clients see them, whatever becomes of the drive.

use std::rc::Rc;
use std::sync::Arc;

use super::super::served::{Export, ExportBitmap};
use super::*;
use crate::bitmap::{BitmapName, Granularity};
use crate::error::ErrorKind;
use crate::graph::{
    Action, BitmapAction, BitmapDecl, BitmapScope, ChildDecl, DriveDecl, Event, GraphCell,
    GraphDecl, LocalGraph, NodeDecl, Notice, Transaction, Unproven,
};
use crate::io::{Buf, EngineChoice, EngineKind, run_on_thread};
use crate::node::{MemoryNode, WriteFlags};

const BLOCK: u64 = 4096;
const SIZE: u64 = 16 * BLOCK;

struct Stage {
    graph: Rc<LocalGraph>,
    drive: LocalDrive,
    directory: Directory,
    contexts: Vec<(String, Context)>,
}

impl Stage {
    /// Drive `vda` on overlay `top` of `base`, and `copy`; an export of it that shows bitmaps `b` of
    /// the drive and of a node.
    fn new(shown: &str) -> Self {
        let memory = MemoryNode::new(SIZE, 512);
        let copy = MemoryNode::new(SIZE, 512);
        let overlay = MemoryNode::overlay(SIZE, 512);
        let node = |name: &str, driver: crate::Result<MemoryNode>, children| NodeDecl {
            name: name.into(),
            driver: Arc::new(driver.expect("a disk")),
            children,
        };
        let bitmap = |scope, name| BitmapDecl {
            scope,
            name: BitmapName::new(name).expect("a name"),
            granularity: Granularity::from_bytes(BLOCK).expect("a granularity"),
            enabled: true,
        };
        let (id, scope) = ("vda".to_owned(), BitmapScope::Node(shown.into()));
        let own = BitmapScope::Drive("vda".into());
        let decl = GraphDecl {
            nodes: vec![
                node("base", memory, vec![]),
                node("top", overlay, vec![ChildDecl::backing("base")]),
                node("copy", copy, vec![]),
            ],
            drives: vec![DriveDecl {
                id: id.clone(),
                root: Some("top".into()),
                writable: true,
                only_shows: false,
            }],
            bitmaps: vec![bitmap(scope.clone(), "node"), bitmap(own.clone(), "drive")],
        };
        let cell = Arc::new(GraphCell::new(decl.build().expect("a graph")));
        let shown = |scope, name: &str| ExportBitmap { name: name.into(), scope, is_frozen: false };
        let export = Export {
            name: "vda".into(),
            description: String::new(),
            drive: id,
            writable: true,
            writethrough: false,
            allocation_depth: false,
            bitmaps: vec![shown(scope, "node"), shown(own, "drive")],
        };
        let graph = LocalGraph::of(&cell);
        let drive = LocalDrive::open(&graph, "vda").expect("a drive");
        let served = Served::new(&cell, "vda".into(), export).expect("the bitmaps are there");
        let directory = Directory::new(cell);
        directory.add(&served).expect("the only one");
        let stage = Self { graph, drive, directory, contexts: vec![] };
        Self { contexts: stage.connect(), ..stage }
    }

    /// The contexts of another connection.
    fn connect(&self) -> Vec<(String, Context)> {
        let client = self.directory.open("vda").expect("the export");
        self.directory.contexts(client.served())
    }

    async fn write(&self, block: u64) {
        let data = Buf::copy_of(&[7; BLOCK as usize]);
        let written = self.drive.write(block * BLOCK, data, WriteFlags::NONE).await;
        written.expect("a write");
    }

    /// The drive shows another node.
    async fn pivot(&self, node: &str) {
        let root = Action::SetRoot { drive: "vda".into(), node: node.into() };
        let pivot = Transaction::new().with_unproven(root, Unproven::MarkWhole);
        self.graph.cell().transact(pivot).await.expect("a pivot");
    }

    /// Dirty blocks as a client sees them.
    fn dirty(&self, name: &str) -> Vec<Range<u64>> {
        let name = format!("{DIRTY_BITMAP}{name}");
        let context = self.contexts.iter().find(|(known, _)| *known == name);
        let Some((_, Context::Dirty(shown))) = context else { panic!("no context `{name}`") };
        let ranges = shown.dirty(&self.drive, 0..SIZE);
        ranges.map(|range| range.start / BLOCK..range.end / BLOCK).collect()
    }
}

fn run(test: impl Future<Output = ()> + 'static) {
    run_on_thread(EngineChoice::Exactly(EngineKind::Threads), test).expect("a worker");
}

/// E4, E4b of experiments with qemu-storage-daemon 10.0.2. There the client goes on to read the old
/// node's bitmap after a commit or mirror: what the guest writes from then on is reported clean, and
/// the next incremental backup lacks it. To remove the old node then aborts the daemon.
#[test]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one run are meant")]
fn e4_a_bitmap_that_the_drive_has_left_reads_dirty() {
    run(async {
        let stage = Stage::new("top");
        stage.write(1).await;
        assert_eq!((stage.dirty("node"), stage.dirty("drive")), (vec![1..2], vec![1..2]));
        stage.pivot("copy").await;
        stage.write(2).await;
        assert_eq!((stage.dirty("node"), stage.dirty("drive")), (vec![0..16], vec![0..16]));
        // It comes back, but the client has seen another view in between.
        stage.pivot("top").await;
        assert_eq!(stage.dirty("node"), [0..16]);
        let remove = BitmapAction::Remove.of(&bitmap(&stage, "node"));
        let error = stage.graph.cell().transact(Transaction::new().with(remove)).await;
        let message = error.expect_err("a client reads it").to_string();
        assert!(message.contains("export `vda`"), "{message}");
    });
}

/// The node's bitmap has missed what the drive showed in between, and the client cannot know: it asks
/// before and after.
#[test]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one run are meant")]
fn a_drive_that_goes_and_comes_back_between_two_questions_has_left() {
    run(async {
        let mut stage = Stage::new("top");
        stage.write(1).await;
        assert_eq!(stage.dirty("node"), [1..2]);
        stage.pivot("copy").await;
        stage.pivot("top").await;
        assert_eq!(stage.dirty("node"), [0..16]);
        // A client that comes now has seen nothing else.
        stage.contexts = stage.connect();
        stage.write(2).await;
        let other = Action::AddNode(NodeDecl {
            name: "other".into(),
            driver: Arc::new(MemoryNode::new(SIZE, 512).expect("a disk")),
            children: vec![],
        });
        stage.graph.cell().transact(Transaction::new().with(other)).await.expect("a node");
        assert_eq!(stage.dirty("node"), [1..3], "other changes of the graph are no matter");
    });
}

/// The export holds its bitmaps whether a client is there or not.
#[test]
fn an_export_keeps_its_bitmaps_between_clients() {
    run(async {
        let mut stage = Stage::new("top");
        stage.contexts.clear();
        let cell = Arc::clone(stage.graph.cell());
        let rename = BitmapAction::Rename(BitmapName::new("x").expect("a name"));
        for action in [BitmapAction::Remove, rename] {
            let action = action.of(&bitmap(&stage, "drive"));
            let error = cell.transact(Transaction::new().with(action)).await;
            let message = error.expect_err("the export shows it").to_string();
            let expect = "bitmap `drive` is in use by export `vda`: end that first";
            assert!(message.ends_with(expect), "{message}");
        }
        // Nobody reads what would be hidden.
        stage.write(1).await;
        let clear = BitmapAction::Clear.of(&bitmap(&stage, "drive"));
        cell.transact(Transaction::new().with(clear)).await.expect("a clear");
        stage.contexts = stage.connect();
        assert_eq!(stage.dirty("drive"), []);
        stage.contexts.clear();
        let removed = bitmap(&stage, "drive");
        let served = Arc::clone(&stage.directory.served()[0]);
        let export = served.export.clone();
        stage.directory.remove(&served, true).expect("no client is there");
        assert!(served.is_ending() && stage.directory.open("vda").is_none());
        served.end();
        let remove = Transaction::new().with(BitmapAction::Remove.of(&removed));
        cell.transact(remove).await.expect("the export has ended");
        let served = Served::new(&cell, "vda".into(), export);
        let error = served.err().expect("it is not there");
        let expect = "export `vda` is to show bitmap `drive` of drive `vda`, which is not there";
        assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::NotFound, expect));
    });
}

/// Once for each export and bitmap, with the change that makes it so: nobody need ask, or be there.
#[test]
fn a_bitmap_that_the_drive_has_left_is_an_event() {
    run(async {
        let mut stage = Stage::new("top");
        stage.contexts.clear();
        let cell = Arc::clone(stage.graph.cell());
        stage.directory.served()[0].watch(&cell);
        let mut events = cell.events();
        let mut left = move || {
            let mut told = Vec::new();
            while let Some(Notice { generation, event, .. }) = events.try_next() {
                if matches!(event, Event::BitmapLeft { .. }) {
                    told.push((generation, event));
                }
            }
            told
        };
        let expect = Event::BitmapLeft {
            scope: Some(BitmapScope::Node("top".into())),
            name: "node".into(),
            drive: "vda".into(),
            export: "vda".into(),
        };
        stage.pivot("copy").await;
        assert_eq!(left(), [(cell.load().generation(), expect.clone())]);
        stage.contexts = stage.connect();
        assert_eq!(stage.dirty("node"), std::iter::once(0..16).collect::<Vec<_>>());
        stage.pivot("base").await;
        assert_eq!(left(), [], "it is known already");
        // It is back, and leaves once more.
        stage.pivot("top").await;
        assert_eq!(left(), []);
        stage.pivot("copy").await;
        assert_eq!(left(), [(cell.load().generation(), expect.clone())]);
        let words = "bitmap `node` of node `top` does not record what export `vda` shows: clients see it \
                     all dirty";
        assert_eq!(expect.to_string(), words);
        // An export that ends is no matter.
        stage.contexts.clear();
        stage.pivot("top").await;
        stage.directory.served()[0].end();
        stage.pivot("copy").await;
        assert_eq!(left(), []);
    });
}

/// What an export shows that begins on another view than its bitmap records.
#[test]
fn an_export_that_begins_with_what_is_not_its_own_tells_so() {
    run(async {
        let stage = Stage::new("base");
        let cell = Arc::clone(stage.graph.cell());
        let mut events = cell.events();
        stage.directory.served()[0].watch(&cell);
        let told = events.try_next().map(|notice| notice.event);
        assert!(matches!(told, Some(Event::BitmapLeft { name, .. }) if name == "node"));
        assert_eq!(events.try_next(), None, "the drive's own records what it shows");
    });
}

fn bitmap(stage: &Stage, name: &str) -> Arc<crate::bitmap::Bitmap> {
    let graph = stage.graph.cell().load();
    let mut all = graph.bitmaps();
    let found = all.find(|(_, bitmap)| bitmap.name().as_str() == name);
    Arc::clone(found.expect("a bitmap").1)
}

/// E16b: there the bitmap of a backing file is found through the overlay and shown as if it were
/// about the overlay; a stream that cuts the backing off then aborts the daemon.
#[test]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one run are meant")]
fn e16b_a_backings_bitmap_says_nothing_about_the_overlay() {
    run(async {
        let stage = Stage::new("base");
        stage.write(3).await;
        assert_eq!((stage.dirty("node"), stage.dirty("drive")), (vec![0..16], vec![3..4]));
        for block in 0..16 {
            stage.write(block).await;
        }
        let (node, edge) = ("top".into(), "backing".into());
        let cut = Action::SetChild { node, edge, child: None };
        let cell = stage.graph.cell();
        cell.transact(Transaction::new().with(cut)).await.expect("the overlay has all");
        let remove = Transaction::new().with(Action::RemoveNode { node: "base".into() });
        let message = cell.transact(remove).await.expect_err("a bitmap is in use").to_string();
        assert!(message.contains("has the bitmaps `node`: remove them first"), "{message}");
        assert_eq!(stage.dirty("node"), [0..16]);
    });
}
