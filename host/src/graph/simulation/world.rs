//! One seed's world: the real graph, what it owes, and the moments at which all of it is checked.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::bitmaps::Tracked;
use super::changes::KINDS;
use super::image::image_of;
use super::oracle::{Oracle, Tick, WriteId, is_damage, sector_of, write_of};
use super::scene::{SECTORS, Scene, bitmap_name, probe_name};
use super::shape::View;
use super::{changes, guest, jobs, lag, plugins};
use crate::error::{ErrorKind, Result as HostResult};
use crate::graph::{BitmapScope, GraphCell, LocalDrive, LocalGraph};
use crate::host::persist::Persistence;
use crate::io::sim::{Faults, Random, SECTOR, Simulation, note};
use crate::io::{BufMut, current as current_worker, sleep_until, spawn, turn_now};

/// Workers that the tasks of a seed pretend to be on.
const WORKERS: usize = 3;

pub(super) type Verdict = Result<(), String>;

/// See the module.
pub(super) struct World {
    pub(super) simulation: Simulation,
    /// By worker.
    graphs: Vec<Rc<LocalGraph>>,
    pub(super) oracle: RefCell<Oracle>,
    pub(super) bitmaps: RefCell<Vec<Tracked>>,
    pub(super) scene: Scene,
    /// With the images that snapshots have added.
    pub(super) scene_now: RefCell<Scene>,
    /// With the image that a snapshot is adding.
    pub(super) scene_next: RefCell<Option<Scene>>,
    /// Of the bitmaps that images keep.
    pub(super) persistence: Persistence,
    /// From when images say that their bitmaps are in use.
    pub(super) keeps: Cell<bool>,
    /// By name, what those bitmaps hold that are stored when all nodes close: from when that begins.
    pub(super) closed: RefCell<Option<BTreeMap<String, Vec<u64>>>>,
    /// Views' stores that came with changes have probes like the others.
    pub(super) stores: RefCell<Vec<String>>,
    pub(super) removable: RefCell<Vec<String>>,
    damages: RefCell<BTreeSet<u64>>,
    flushed: RefCell<BTreeMap<String, Tick>>,
    wrong: RefCell<Option<String>>,
    tasks: Cell<usize>,
    waiting: RefCell<Option<Waker>>,
    pub(super) counts: Cell<Counts>,
}

/// How often what was tried succeeded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) writes: u64,
    pub(super) reads: u64,
    pub(super) failed: u64,
    pub(super) copies: u64,
    pub(super) claims: u64,
    pub(super) stale: u64,
    pub(super) bitmap_changes: u64,
    pub(super) graph_changes: u64,
    pub(super) settled: u64,
    /// Scenes that are refused: copies could wait for each other in a circle.
    pub(super) circles: u64,
    /// Calls in which plugins failed.
    pub(super) plugin_faults: u64,
    /// Changes of the graph that were tried.
    pub(super) graphs: u64,
    /// By kind of graph change.
    pub(super) kinds: [u64; KINDS],
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.writes += other.writes;
        self.reads += other.reads;
        self.failed += other.failed;
        self.copies += other.copies;
        self.claims += other.claims;
        self.stale += other.stale;
        self.bitmap_changes += other.bitmap_changes;
        self.graph_changes += other.graph_changes;
        self.settled += other.settled;
        self.circles += other.circles;
        self.plugin_faults += other.plugin_faults;
        self.graphs += other.graphs;
        self.kinds.iter_mut().zip(other.kinds).for_each(|(count, more)| *count += more);
    }
}

thread_local! {
    static WORLD: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

/// A sector of one word.
pub(super) fn fill(word: u64) -> impl Iterator<Item = u8> {
    word.to_le_bytes().into_iter().cycle().take(SECTOR)
}

/// The word of each sector.
///
/// # Errors
/// A sector is not of one word.
pub(super) fn words(bytes: &[u8]) -> Result<Vec<u64>, String> {
    let word = |sector: &[u8]| {
        let (first, _) = sector.split_first_chunk::<8>().ok_or("a part of a sector")?;
        let is_one = sector.chunks(8).all(|part| part == first);
        is_one.then(|| u64::from_le_bytes(*first)).ok_or("a torn sector")
    };
    bytes.chunks(SECTOR).map(word).collect::<Result<_, _>>().map_err(str::to_owned)
}

/// Bytes are about to be, or have come, in a disk.
pub(super) fn landed(node: &str, offset: u64, bytes: &[u8]) {
    let Some(world) = current() else { return };
    if node.ends_with(".map") {
        return;
    }
    let image = image_of(node);
    let node = node.trim_end_matches(".data");
    let sectors = offset / SECTOR as u64..;
    for (sector, word) in sectors.zip(words(bytes).unwrap_or_default()) {
        if is_damage(word) {
            // Where it may come to light in an image, nobody knows.
            let damaged = if image.is_some() { 0..SECTORS } else { sector..sector + 1 };
            end_damage(world.begin_damage(image.unwrap_or(node), damaged, word));
        } else if let Some(write) = write_of(word) {
            let sector = sector_of(word);
            let (oracle, bitmaps) = (world.oracle.borrow(), world.bitmaps.borrow());
            let all = bitmaps.iter().try_for_each(|it| it.landed(&oracle, write, sector));
            drop((oracle, bitmaps));
            world.judge(all);
        }
    }
}

/// A failed write is about to damage a sector.
pub(super) fn begin_damage(node: &str, sector: u64, word: u64) -> Option<WriteId> {
    current()?.begin_damage(node, sector..sector + 1, word)
}

/// It has done so.
pub(super) fn end_damage(damage: Option<WriteId>) {
    if let (Some(world), Some(damage)) = (current(), damage) {
        world.end_write(damage, false);
    }
}

pub(super) fn current() -> Option<Rc<World>> {
    WORLD.with_borrow(Clone::clone)
}

/// Ends the world of this thread, also after a panic.
pub(super) struct EndOfWorld;

impl Drop for EndOfWorld {
    fn drop(&mut self) {
        WORLD.with_borrow_mut(Option::take);
    }
}

impl World {
    /// # Errors
    /// The scene cannot be built.
    pub(super) fn of(simulation: &Simulation, scene: Scene) -> Result<Rc<Self>, String> {
        lag::begin();
        let (scene, graph) = scene.build(simulation)?;
        let cell = Arc::new(GraphCell::with_workers(graph, WORKERS));
        let shape = scene.shape();
        let mut oracle = Oracle::new(shape.clone());
        let nodes = scene.stores().into_iter().map(View::Node);
        let drives = scene.drives.iter().map(|drive| View::Drive(drive.id.clone()));
        for view in nodes.chain(drives) {
            oracle.add_view(view.clone(), scene.first_words(&shape, &view));
        }
        let graph = cell.load();
        let tracked = oracle.views().into_iter().filter_map(|view| {
            let scope = match &view {
                View::Drive(id) => BitmapScope::Drive(id.as_str().into()),
                View::Node(node) => BitmapScope::Node(node.as_str().into()),
            };
            let bitmap = Arc::clone(graph.find_bitmap(&scope, &bitmap_name(&view))?);
            Some(Tracked::new(&oracle, view, bitmap))
        });
        let bitmaps = RefCell::new(tracked.collect());
        let counts = Counts { circles: scene.circles, ..Counts::default() };
        let graphs = (0..WORKERS).map(|worker| Rc::new(LocalGraph::new(Arc::clone(&cell), worker)));
        let world = Rc::new(Self {
            simulation: simulation.clone(),
            graphs: graphs.collect(),
            oracle: RefCell::new(oracle),
            bitmaps,
            stores: RefCell::new(scene.stores()),
            removable: RefCell::new(scene.filters_to_remove()),
            scene_now: RefCell::new(scene.clone()),
            scene_next: RefCell::default(),
            persistence: Persistence::default(),
            keeps: Cell::new(false),
            closed: RefCell::default(),
            scene,
            damages: RefCell::default(),
            flushed: RefCell::default(),
            wrong: RefCell::default(),
            tasks: Cell::new(0),
            waiting: RefCell::default(),
            counts: Cell::new(counts),
        });
        WORLD.with_borrow_mut(|current| *current = Some(Rc::clone(&world)));
        simulation.observe(|landed_bytes| {
            landed(landed_bytes.file, landed_bytes.offset, landed_bytes.bytes);
        });
        Ok(world)
    }

    pub(super) fn cell(&self) -> &Arc<GraphCell> {
        self.graphs[0].cell()
    }

    pub(super) fn graph(&self, random: &mut Random) -> &Rc<LocalGraph> {
        &self.graphs[random.below(WORKERS as u64) as usize]
    }

    pub(super) fn count(&self, f: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        f(&mut counts);
        self.counts.set(counts);
    }

    fn begin_damage(&self, node: &str, sectors: Range<u64>, word: u64) -> Option<WriteId> {
        let is_new = self.damages.borrow_mut().insert(word);
        is_new.then(|| self.oracle.borrow_mut().damage(node, sectors, word))
    }

    /// A flush of a drive that began at `began` has succeeded.
    pub(super) fn flush_succeeded(&self, drive: &str, began: Tick) {
        let mut flushed = self.flushed.borrow_mut();
        let last = flushed.entry(drive.to_owned()).or_default();
        *last = (*last).max(began);
    }

    /// When the last flush of a drive that succeeded began.
    pub(super) fn flushed(&self, drive: &str) -> Tick {
        self.flushed.borrow().get(drive).copied().unwrap_or_default()
    }

    /// Nobody knows any more what was damaged where.
    pub(super) fn is_damaged(&self) -> bool {
        !self.damages.borrow().is_empty()
    }

    /// # Errors
    /// The first thing that was wrong.
    pub(super) fn verdict(&self) -> Verdict {
        self.wrong.borrow().clone().map_or(Ok(()), Err)
    }

    /// Keeps the first thing that is wrong.
    pub(super) fn judge(&self, verdict: Verdict) {
        if let Err(wrong) = verdict {
            self.wrong.borrow_mut().get_or_insert(wrong);
        }
    }

    /// Judges how something ended; whether it succeeded. Nothing takes so long that it may time out.
    pub(super) fn expect<T>(&self, what: &str, result: &HostResult<T>, also: &[ErrorKind]) -> bool {
        let Err(error) = result else { return true };
        self.count(|counts| counts.failed += 1);
        let faults = [ErrorKind::Io, ErrorKind::NoSpace];
        if !faults.contains(&error.kind()) && !also.contains(&error.kind()) {
            self.judge(Err(format!("{what} ended with: {error} ({:?})", error.kind())));
        }
        false
    }

    /// A write has ended.
    pub(super) fn end_write(&self, id: WriteId, is_certain: bool) {
        let mut oracle = self.oracle.borrow_mut();
        oracle.end(id, is_certain);
        if is_certain {
            self.bitmaps.borrow_mut().iter_mut().for_each(|it| it.write_ended(&oracle, id));
        }
    }

    /// A task that the phase waits for.
    pub(super) fn task(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        self.tasks.set(self.tasks.get() + 1);
        let world = Rc::clone(self);
        spawn(async move {
            task.await;
            world.tasks.set(world.tasks.get() - 1);
            if world.tasks.get() == 0
                && let Some(waker) = world.waiting.take()
            {
                waker.wake();
            }
        });
    }

    /// Waits for the tasks. It waits for nothing else, so a task that does not end is a deadlock.
    pub(super) async fn all_ended(&self) {
        poll_fn(|cx| {
            if self.tasks.get() == 0 {
                return Poll::Ready(());
            }
            *self.waiting.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Phases of copies and reads without faults or changes of any view: nothing may be dirty.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) async fn only_copy(self: Rc<Self>, mut random: Random) -> Verdict {
        for _ in 0..2 {
            self.simulation.set_faults(Faults::HARMLESS);
            guest::start(&self, &mut random);
            jobs::start(&self, &mut random);
            changes::start_harmless(&self, &mut random);
            self.all_ended().await;
            self.settle().await?;
        }
        let bitmaps = self.bitmaps.borrow();
        let dirty = bitmaps.iter().find(|tracked| tracked.bitmap.dirty_bytes() > 0);
        dirty.map_or(Ok(()), |it| Err(format!("only copies, and {:?} is dirty", it.view)))
    }

    /// As [`Self::only_copy`], with plugins that fail.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) async fn only_copy_with_faults(self: Rc<Self>, mut random: Random) -> Verdict {
        self.start_faults(&mut random);
        self.only_copy(random).await
    }

    /// As [`Self::live`], with plugins that fail.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) async fn live_with_faults(self: Rc<Self>, mut random: Random) -> Verdict {
        self.start_faults(&mut random);
        self.live(random).await
    }

    /// Has plugins fail in some of their calls, in the first phase.
    fn start_faults(self: &Rc<Self>, random: &mut Random) {
        let mut random = Random::new(random.next());
        let world = Rc::clone(self);
        self.task(async move {
            for _ in 0..random.within(1..6) {
                sleep_until(turn_now() + Duration::from_micros(random.below(8000))).await;
                plugins::confuse_one(&mut random);
            }
            // The last one has its next call behind it, or nobody calls it.
            sleep_until(turn_now() + Duration::from_secs(1)).await;
            world.count(|counts| counts.plugin_faults += plugins::faults());
        });
    }

    /// Some phases of everything at once, each settled and checked.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) async fn live(self: Rc<Self>, mut random: Random) -> Verdict {
        for phase in 0..random.within(2..4) {
            note("phase", [phase, 0, 0]);
            self.simulation.set_faults(Faults::by_chance(&mut random));
            lag::set_failures(if random.one_in(3) { 0 } else { random.within(8..40) });
            guest::start(&self, &mut random);
            jobs::start(&self, &mut random);
            changes::start(&self, &mut random);
            self.all_ended().await;
            self.settle().await?;
        }
        Ok(())
    }

    /// Nothing is in flight: reads everything, and checks it.
    pub(super) async fn settle(&self) -> Verdict {
        self.simulation.set_faults(Faults::HARMLESS);
        lag::set_failures(0);
        // Requests that nobody waits for any more may have to begin yet, behind a gate that was closed.
        while current_worker().is_some_and(|worker| worker.tasks() > 1) {
            sleep_until(turn_now() + Duration::from_millis(1)).await;
        }
        if !self.cell().settle().await {
            return Err("requests do not end".to_owned());
        }
        self.verdict()?;
        note("settle", [0; 3]);
        let mut shown = BTreeMap::new();
        let views = self.oracle.borrow().views();
        for view in views {
            let id = match &view {
                View::Drive(id) => id.clone(),
                View::Node(node) => probe_name(node),
            };
            shown.insert(view, self.read_all(&id).await?);
        }
        self.oracle.borrow_mut().settle(&shown)?;
        self.verdict()?;
        for tracked in self.bitmaps.borrow().iter() {
            tracked.check(&shown[&tracked.view])?;
        }
        self.count(|counts| counts.settled += 1);
        Ok(())
    }

    pub(super) async fn read_all(&self, id: &str) -> Result<Vec<u64>, String> {
        let drive = LocalDrive::open(&self.graphs[0], id).map_err(|error| error.to_string())?;
        let size = drive.info().map_err(|error| error.to_string())?.size_bytes as usize;
        let read = drive.read(0, BufMut::new(size)).await;
        let read = read.map_err(|error| format!("a read with nothing that fails: {error}"))?;
        let mut words = words(&read)?;
        // Nobody writes to what resizes have added.
        match words.split_off(SECTORS as usize).into_iter().any(|word| word != 0) {
            true => Err(format!("what was added to `{id}` shows something")),
            false => Ok(words),
        }
    }
}
