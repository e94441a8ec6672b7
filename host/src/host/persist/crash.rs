//! A snapshot takes a drive's bitmap from one image to another, and the host ends in order; power is lost at every
//! write and sync of it, in turn. Whichever of the images is opened then, one form of the bitmap counts, and it
//! is clean nowhere where the image shows a change.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use blockloom_qcow2::create::{Backing, CreateOptions, create};
use blockloom_qcow2::format::ClusterSize;

use super::load::Wanted;
use super::{Keep, Persistence};
use crate::bitmap::{Bitmap, BitmapName, BitmapState, Granularity, Uuid};
use crate::graph::{
    Action, BitmapDecl, BitmapScope, ChildDecl, DriveDecl, GraphCell, GraphDecl, LocalDrive,
    LocalGraph, NodeDecl, OpenDecl, Transaction,
};
use crate::io::sim::{Faults, Simulation, Stop};
use crate::io::{Buf, BufMut, EngineChoice, EngineKind, read_file, run_on_thread};
use crate::node::{
    Access, BackingName, FileNode, FileOptions, FileStorage, ImageLocking, Qcow2Node, Qcow2Options,
    WriteFlags,
};

pub(super) const SIZE: u64 = 1 << 20;
/// A cluster of the images, too.
pub(super) const GRANULE: u64 = 4096;
/// More than anybody tries.
const SEEDS_MAX: u64 = 1 << 32;
/// Of seeds, unless `BLOCKLOOM_CRASH_SEEDS` says otherwise.
const SEEDS: u64 = 2;

/// The bytes of an empty image, with clusters of a granule.
pub(super) fn image(options: CreateOptions) -> Vec<u8> {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("image");
    let made = path.clone();
    let cluster_size = ClusterSize::from_bytes(GRANULE).expect("a size");
    let options = CreateOptions { cluster_size, ..options };
    let make = async move {
        let storage = FileStorage::open(&made, Access::Create).expect("a file");
        create(&storage, &options).await.expect("an image");
    };
    run_on_thread(EngineChoice::Exactly(EngineKind::Threads), make).expect("a worker");
    read_file(&path, 1 << 30).expect("its bytes")
}

/// One over image `base`.
pub(super) fn overlay() -> Vec<u8> {
    let backing = Some(Backing { name: "base".into(), format: Some("qcow2".into()) });
    image(CreateOptions { backing, ..CreateOptions::new(SIZE) })
}

pub(super) fn file(name: &str) -> NodeDecl {
    let options = FileOptions {
        path: name.into(),
        write: true,
        locking: ImageLocking::Off,
        ..FileOptions::default()
    };
    let driver = Arc::new(FileNode::open(&options).expect("a file"));
    NodeDecl { name: format!("{name}.file"), driver, children: vec![] }
}

const OPTIONS: Qcow2Options = Qcow2Options {
    write: true,
    backing: None,
    data_file: None,
    l2_cache_bytes: 1 << 16,
    lazy_refcounts: None,
};

/// The children of an image, and how it is opened.
pub(super) fn of_image(name: &str) -> (Vec<ChildDecl>, Qcow2Options) {
    let storage = ChildDecl::storage(format!("{name}.file"));
    match name {
        "top" => (
            vec![storage, ChildDecl::backing("base")],
            Qcow2Options { backing: Some(1), ..OPTIONS },
        ),
        _ => (vec![storage], OPTIONS),
    }
}

/// The driver of an image that is to be added.
pub(super) async fn opened(name: &str) -> Qcow2Node {
    let storage = FileStorage::open(name.as_ref(), Access::ReadShared).expect("a file");
    Qcow2Node::open(&storage, &of_image(name).1).await.expect("an image")
}

/// A running host without threads.
pub(super) struct Machine {
    cell: Arc<GraphCell>,
    persistence: Persistence,
}

fn vda() -> BitmapScope {
    BitmapScope::Drive("vda".into())
}

impl Machine {
    /// With drive `vda` on image `root`, and its bitmap `daily`, which is to have this UUID.
    async fn start(root: &str, uuid: Option<Uuid>) -> Self {
        let images = if root == "top" { &["base", "top"][..] } else { &["base"] };
        let parts = images.iter().map(|name| (*name, of_image(name))).collect();
        Self::of(parts, root, Keep::Root, uuid).await
    }

    /// With these images, in files of their names.
    pub(super) async fn of(
        parts: Vec<(&str, (Vec<ChildDecl>, Qcow2Options))>,
        root: &str,
        keep: Keep,
        uuid: Option<Uuid>,
    ) -> Self {
        let files = parts.iter().map(|(name, _)| file(name)).collect();
        let decl = GraphDecl { nodes: files, ..GraphDecl::default() };
        let graph = decl.build().expect("a graph");
        graph.start_drivers(None).expect("they start");
        let machine =
            Self { cell: Arc::new(GraphCell::new(graph)), persistence: Persistence::default() };
        for (name, (children, options)) in parts {
            let (name, driver) = (name.to_owned(), Box::new(options));
            let opened = machine.cell.open_node(OpenDecl { name, driver, children }).await;
            opened.expect("an image");
        }
        let (id, root) = ("vda".into(), Some(root.into()));
        let drive = DriveDecl { id, root, writable: true, only_shows: false };
        let name = BitmapName::new("daily").expect("a name");
        let bitmap = BitmapDecl {
            scope: vda(),
            name: name.clone(),
            granularity: Granularity::from_bytes(GRANULE).expect("a granularity"),
            enabled: true,
        };
        let add = Transaction::new().with(Action::AddDrive(drive)).with(Action::AddBitmap(bitmap));
        machine.cell.transact(add).await.expect("a drive");
        let wanted = Wanted { scope: vda(), name, keep, uuid };
        let loaded = machine.persistence.load(&machine.cell, &[wanted]).await;
        loaded.map_err(|failed| failed.error).expect("bitmaps");
        machine
    }

    pub(super) fn kept_in(&self) -> Option<Arc<str>> {
        self.persistence.kept_in(&self.bitmap())
    }

    fn bitmap(&self) -> Arc<Bitmap> {
        Arc::clone(self.cell.load().find_bitmap(&vda(), "daily").expect("a bitmap"))
    }

    fn drive(&self) -> LocalDrive {
        LocalDrive::open(&Rc::new(LocalGraph::new(Arc::clone(&self.cell), 0)), "vda")
            .expect("a drive")
    }

    pub(super) async fn write(&self, granule: u64) {
        let buf = Buf::copy_of(&[7; GRANULE as usize]);
        let written = self.drive().write(granule * GRANULE, buf, WriteFlags::NONE).await;
        written.expect("a write");
    }

    async fn snapshot(&self) {
        self.transact(to_top().await).await;
    }

    /// The same, but the upper image cannot name its backing so, which comes out when it has the bitmap's entry.
    async fn snapshot_that_fails(&self) {
        let name = Some(BackingName { name: "x".repeat(2000), format: None });
        let transaction = to_top().await.with(Action::NameBacking { node: "top".into(), name });
        let prepared = self.persistence.prepare(&self.cell.load(), transaction);
        let (transaction, entered) = prepared.expect("allowed");
        assert_eq!(entered.len(), 1);
        self.cell.transact(transaction).await.expect_err("too long");
    }

    /// As a host makes it.
    pub(super) async fn transact(&self, transaction: Transaction) {
        let prepared = self.persistence.prepare(&self.cell.load(), transaction);
        let (transaction, entered) = prepared.expect("allowed");
        self.cell.transact(transaction).await.expect("a change");
        self.persistence.follow(&self.cell, entered).await;
    }

    pub(super) async fn end(self) {
        self.cell.close_nodes(Duration::ZERO).await.expect("an end in order");
    }

    /// Granules that do not show zeros.
    async fn changed(&self) -> Vec<u64> {
        let read = self.drive().read(0, BufMut::new(SIZE as usize)).await.expect("a read");
        let granules = read.chunks(GRANULE as usize).zip(0..);
        granules.filter(|(bytes, _)| bytes.iter().any(|byte| *byte != 0)).map(|it| it.1).collect()
    }

    pub(super) fn dirty(&self) -> Vec<u64> {
        let ranges = self.bitmap().ranges(0..SIZE);
        ranges.flat_map(|range| range.start / GRANULE..range.end.div_ceil(GRANULE)).collect()
    }

    /// What holds whatever came before.
    async fn check(&self, uuid: Uuid, what: &str) {
        let graph = self.cell.load();
        let forms = graph.bitmaps().filter(|(_, bitmap)| bitmap.identity().uuid == uuid).count();
        assert_eq!(forms, 1, "{what}: forms that count");
        let (dirty, changed) = (self.dirty(), self.changed().await);
        let lost: Vec<&u64> = changed.iter().filter(|granule| !dirty.contains(granule)).collect();
        assert!(lost.is_empty(), "{what}: {lost:?} of {changed:?} are changed and clean");
    }
}

/// What power leaves of both images, for another machine.
fn left(of: &Simulation, seed: u64) -> Simulation {
    let next = Simulation::new(seed);
    ["base", "top"].iter().for_each(|name| next.add_file(name, of.bytes(name)));
    next
}

/// A snapshot into image `top`.
async fn to_top() -> Transaction {
    let driver = Arc::new(opened("top").await);
    let overlay = NodeDecl { name: "top".into(), driver, children: of_image("top").0 };
    let snapshot = Action::Snapshot { drive: "vda".into(), overlay };
    Transaction::new().with(Action::AddNode(file("top"))).with(snapshot)
}

/// The moment up to which a run has come.
async fn live(uuid: Uuid) {
    let machine = Machine::start("base", Some(uuid)).await;
    machine.write(1).await;
    machine.snapshot().await;
    machine.write(2).await;
    machine.end().await;
}

/// Opens what is left at either root, twice, with an end in order between.
fn look(crashed: &Simulation, seed: u64, uuid: Uuid, what: &str) {
    for root in ["top", "base"] {
        let simulation = left(crashed, seed);
        let what = format!("{what}, opened at {root}");
        for round in 0..2 {
            let what = format!("{what}, round {round}");
            let ran = simulation.run(async move {
                let machine = Machine::start(root, Some(uuid)).await;
                machine.check(uuid, &what).await;
                let before = (machine.bitmap().state(), machine.dirty());
                machine.end().await;
                let machine = Machine::start(root, Some(uuid)).await;
                machine.check(uuid, &what).await;
                assert_eq!((machine.bitmap().state(), machine.dirty()), before, "{what}: again");
                machine.write(9).await;
                machine.end().await;
            });
            ran.expect("an end");
        }
    }
}

/// The same for somebody who knows the bitmap by its name alone: it is there, in whichever image, as long as the
/// upper one is opened. One that has not come there yet is not taken for clean.
fn look_by_name(crashed: &Simulation, seed: u64, uuid: Uuid, what: &str) {
    let what = format!("{what}, by name");
    // Another seed, another UUID for what is new.
    let ran = left(crashed, seed + SEEDS_MAX).run(async move {
        let machine = Machine::start("top", None).await;
        let graph = machine.cell.load();
        let forms = graph.bitmaps().filter(|(_, bitmap)| bitmap.identity().uuid == uuid).count();
        let known =
            || graph.bitmaps().map(|(scope, it)| (scope.clone(), it.state(), it.identity()));
        assert_eq!(forms, 1, "{what}: forms that count: {:?}", known().collect::<Vec<_>>());
        machine.check(uuid, &what).await;
        if machine.bitmap().identity().uuid != uuid {
            let all: Vec<u64> = (0..SIZE / GRANULE).collect();
            assert_eq!(machine.dirty(), all, "{what}: it begins anew, and something was changed");
        }
    });
    ran.expect("an end");
}

/// The two images, and the UUID of the bitmap that the lower one has.
fn prepared(seed: u64) -> (Simulation, Uuid) {
    let simulation = Simulation::new(seed);
    simulation.add_file("base", image(CreateOptions::new(SIZE)));
    simulation.add_file("top", overlay());
    let uuid = simulation.run(async {
        let machine = Machine::start("base", None).await;
        let uuid = machine.bitmap().identity().uuid;
        machine.end().await;
        uuid
    });
    (simulation, uuid.expect("an end"))
}

#[test]
fn a_move_survives_a_crash_at_any_point() {
    let seeds = std::env::var("BLOCKLOOM_CRASH_SEEDS").ok().and_then(|text| text.parse().ok());
    for seed in 0..seeds.unwrap_or(SEEDS).min(SEEDS_MAX) {
        let (start, uuid) = prepared(seed);
        let mut events = 0;
        loop {
            let simulation = left(&start, seed);
            simulation.set_faults(Faults::HARMLESS);
            simulation.crash_after(events);
            match simulation.run(live(uuid)) {
                Err(Stop::Crashed) => {
                    let what = format!("seed {seed}, event {events}");
                    look(&simulation, seed, uuid, &what);
                    look_by_name(&simulation, seed, uuid, &what);
                }
                Ok(()) => {
                    look(&simulation, seed, uuid, &format!("seed {seed}, at the end"));
                    break;
                }
                Err(stop) => panic!("seed {seed}, event {events}: {stop}"),
            }
            events += 1;
        }
        assert!(events > 100, "a crash at every one of {events} events");
        let simulation = left(&start, seed);
        let ran = simulation.run(async move {
            live(uuid).await;
            let machine = Machine::start("top", Some(uuid)).await;
            machine.check(uuid, "without a crash").await;
            let generation = machine.bitmap().identity().generation;
            (machine.bitmap().state(), machine.dirty(), generation)
        });
        assert_eq!(ran, Ok((BitmapState::Recording, vec![1, 2], 2)));
    }
}

/// A move that comes to nothing, cut short or not, leaves a bitmap that is believed if the machine ended in order.
#[test]
fn a_move_that_fails_survives_a_crash_at_any_point() {
    let live = async |uuid| {
        let machine = Machine::start("base", Some(uuid)).await;
        machine.write(1).await;
        machine.snapshot_that_fails().await;
        machine.write(2).await;
        machine.end().await;
    };
    let (start, uuid) = prepared(1);
    let mut events = 0;
    loop {
        let simulation = left(&start, 1);
        simulation.set_faults(Faults::HARMLESS);
        simulation.crash_after(events);
        let what = format!("event {events}");
        let ran = simulation.run(live(uuid));
        look(&simulation, 1, uuid, &what);
        match ran {
            Err(Stop::Crashed) => events += 1,
            Err(stop) => panic!("{what}: {stop}"),
            Ok(()) => break,
        }
    }
    assert!(events > 100, "a crash at every one of {events} events");
    let simulation = left(&start, 1);
    let ran = simulation.run(async move {
        live(uuid).await;
        let machine = Machine::start("base", Some(uuid)).await;
        let below = (machine.bitmap().state(), machine.dirty());
        machine.end().await;
        // The upper image has nothing of it: it begins there with what is below.
        let machine = Machine::start("top", None).await;
        let graph = machine.cell.load();
        let forms = graph.bitmaps().filter(|(_, bitmap)| bitmap.identity().uuid == uuid);
        let forms: Vec<_> = forms.map(|(scope, it)| (scope.clone(), it.state())).collect();
        (below, forms)
    });
    let of_base = (BitmapScope::Node("base".into()), BitmapState::Recording);
    assert_eq!(ran, Ok(((BitmapState::Recording, vec![1, 2]), vec![of_base])));
}
