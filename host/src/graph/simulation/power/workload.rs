//! A recorded run of a workload, by the real core and driver, on images in simulated files.

use std::sync::Arc;
use std::time::Duration;

use super::history::{History, Step, word_of};
use super::replay::Files;
use crate::bitmap::{BitmapName, Granularity};
use crate::error::Result as HostResult;
use crate::graph::simulation::image::{self, Geometry};
use crate::graph::simulation::world::fill;
use crate::graph::{
    Action, BitmapDecl, BitmapScope, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph,
    Transaction,
};
use crate::host::Keep;
use crate::host::persist::{Persistence, Wanted};
use crate::io::Buf;
use crate::io::sim::{Recorded, SECTOR, Simulation, say};
use crate::node::WriteFlags;

/// Sectors that a bit of a bitmap stands for.
pub(super) const GRANULE_SECTORS: u64 = 2;

/// An image of a workload.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) geometry: Geometry,
}

/// See the module.
pub(super) struct Recording {
    /// From the top down; snapshots come on top.
    pub(super) parts: Vec<Part>,
    pub(super) history: History,
    pub(super) files: Files,
    pub(super) log: Vec<Recorded>,
    /// What the drive's bitmap holds in the end, if one is kept.
    pub(super) bitmap: Option<Vec<u64>>,
    /// Of the image that a step puts on top.
    pub(super) overlay: Geometry,
}

/// The files that are there of images.
pub(super) fn files_of(simulation: &Simulation, names: impl Iterator<Item = String>) -> Files {
    let bytes = names.map(|name| (name.clone(), simulation.bytes(&name)));
    bytes.filter(|(_, bytes)| !bytes.is_empty()).collect()
}

fn names(parts: &[Part]) -> impl Iterator<Item = String> {
    parts.iter().flat_map(|part| [image::file_name(part.name), image::data_name(part.name)])
}

struct Run {
    cell: Arc<GraphCell>,
    drive: LocalDrive,
    simulation: Simulation,
    overlay: Geometry,
    root: &'static str,
    persistence: Persistence,
}

const BITMAP: &str = "b";

impl Run {
    fn new(simulation: &Simulation, parts: &[Part], overlay: Geometry) -> HostResult<Self> {
        let mut decl = GraphDecl::default();
        let mut below = None;
        for part in parts.iter().rev() {
            decl.nodes.extend(image::nodes(simulation, part.name, &part.geometry, below)?);
            below = Some(part.name);
        }
        let root = below.unwrap_or_default();
        let (id, writable) = ("d".to_owned(), true);
        decl.drives.push(DriveDecl { id, root: Some(root.into()), writable, only_shows: false });
        let cell = Arc::new(GraphCell::new(decl.build()?));
        let drive = LocalDrive::open(&LocalGraph::of(&cell), "d")?;
        let (simulation, persistence) = (simulation.clone(), Persistence::default());
        Ok(Self { cell, drive, simulation, overlay, root, persistence })
    }

    async fn keep_bitmap(&self) -> HostResult<()> {
        let (scope, name) = (BitmapScope::Drive("d".into()), BitmapName::new(BITMAP)?);
        let granularity = Granularity::from_bytes(GRANULE_SECTORS * SECTOR as u64)?;
        let decl =
            BitmapDecl { scope: scope.clone(), name: name.clone(), granularity, enabled: true };
        self.cell.add_bitmap(decl).await?;
        let wanted = Wanted { scope, name, keep: Keep::Root, uuid: None };
        self.persistence.load(&self.cell, &[wanted]).await.map_err(|not| not.error)
    }

    fn bitmap(&self) -> Option<Vec<u64>> {
        let graph = self.cell.load();
        let bitmap = graph.find_bitmap(&BitmapScope::Drive("d".into()), BITMAP)?;
        Some(bitmap.read().to_words())
    }

    async fn step(&mut self, at: usize, step: &Step) -> HostResult<()> {
        let bytes = |sectors: u64| sectors * SECTOR as u64;
        match step {
            Step::Write(range) | Step::Compress(range) => {
                let words = range.clone().flat_map(|sector| fill(word_of(at, sector)));
                let buf = Buf::copy_of(&words.collect::<Vec<u8>>());
                let flags = match step {
                    Step::Compress(_) => WriteFlags::COMPRESSED,
                    _ => WriteFlags::NONE,
                };
                self.drive.write(bytes(range.start), buf, flags).await
            }
            Step::Zero(range) => {
                let (offset, len) = (bytes(range.start), bytes(range.end - range.start));
                self.drive.zero(offset, len, WriteFlags::NONE).await
            }
            Step::Discard(range) => {
                let (offset, len) = (bytes(range.start), bytes(range.end - range.start));
                self.drive.discard(offset, len).await
            }
            Step::Flush => self.drive.flush().await,
            Step::Resize(sectors) => {
                let (node, size_bytes) = (self.root.to_owned(), bytes(*sectors));
                self.transact(Transaction::new().with(Action::Resize { node, size_bytes })).await
            }
            Step::Snapshot(name) => self.snapshot(name).await,
            Step::Close => self.cell.close_nodes(Duration::from_secs(5)).await,
        }
    }

    async fn transact(&self, transaction: Transaction) -> HostResult<()> {
        let (transaction, entered) = self.persistence.prepare(&self.cell.load(), transaction)?;
        self.cell.transact(transaction).await?;
        self.persistence.follow(&self.cell, entered).await;
        Ok(())
    }

    async fn snapshot(&mut self, name: &'static str) -> HostResult<()> {
        let mut nodes = image::nodes(&self.simulation, name, &self.overlay, Some(self.root))?;
        let mut transaction = Transaction::new();
        if let Some(overlay) = nodes.pop() {
            for node in nodes {
                transaction = transaction.with(Action::AddNode(node));
            }
            let drive = "d".to_owned();
            transaction = transaction.with(Action::Snapshot { drive, overlay });
        }
        self.transact(transaction).await?;
        self.root = name;
        Ok(())
    }
}

/// Runs the steps, one after the other. What is put on top by a snapshot is there from the start.
pub(super) fn record(
    parts: Vec<Part>,
    containers: Vec<blockloom_qcow2::testing::Container>,
    (steps, overlay): (Vec<Step>, Geometry),
    keeps_bitmap: bool,
) -> Recording {
    let simulation = Simulation::new(1);
    for (part, container) in parts.iter().zip(containers) {
        image::add(&simulation, part.name, || container);
    }
    let first = super::judge::show(&files_of(&simulation, names(&parts)), &parts);
    let first = first.expect("images in order");
    let mut size = first.len() as u64;
    let mut all = parts.clone();
    for step in &steps {
        match step {
            Step::Resize(sectors) => size = *sectors,
            Step::Snapshot(name) => {
                let (below, size_bytes) = (all[0].name, size * SECTOR as u64);
                let make = || image::fresh(name, &overlay, size_bytes, Some(below), &[]);
                image::add(&simulation, name, make);
                all.insert(0, Part { name, geometry: overlay });
            }
            _ => {}
        }
    }
    let files = files_of(&simulation, names(&all));
    simulation.record();
    let (inner, parts_of, steps_of) = (simulation.clone(), parts.clone(), steps.clone());
    let ran = simulation.run(async move {
        let mut run = Run::new(&inner, &parts_of, overlay)?;
        if keeps_bitmap {
            run.keep_bitmap().await?;
        }
        let mut bitmap = None;
        for (at, step) in steps_of.iter().enumerate() {
            bitmap = run.bitmap();
            say(2 * at as u64);
            run.step(at, step).await?;
            say(2 * at as u64 + 1);
        }
        Ok::<_, crate::error::Error>(bitmap)
    });
    let bitmap = ran.expect("it ends").expect("nothing fails");
    let log = simulation.take_record();
    Recording { parts, history: History { steps, first }, files, log, bitmap, overlay }
}
