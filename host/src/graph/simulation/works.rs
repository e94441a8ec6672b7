//! The host's jobs on images: streams, commits, mirrors and backups, one after the other, while guests write, with
//! snapshots between them; paused, cancelled, with errors, and with power that is lost.
//!
//! - *Views*: whatever a job does and however it ends, the drive shows what its guests wrote, or what was there.
//! - *Bitmaps*: a clean sector shows what it showed when the round began, and no guest has written it; where
//!   nothing failed, no other sector is dirty.
//! - *Backups*: one that is complete holds what the drive showed at its instant.
//! - *Crashes*: what was flushed is there, in the chain that the graph had; images have leaks, and nothing worse.
//!
//! A write of a job that fails half-way may damage what shows: that sector is dirty then.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use blockloom_qcow2::testing::MemoryStorage;

use super::guest::{bytes_of, some_sectors};
use super::image::{self, Geometry, file_name};
use super::lag::{self, Lag};
use super::oracle::{WriteId, first_word, is_damage, word};
use super::scene::SECTORS;
use super::world::{fill, words};
use super::{judge, plugins};
use crate::bitmap::Bitmap;
use crate::error::Result as HostResult;
use crate::graph::{
    Action, Applied, BitmapAction, BitmapRef, BitmapScope, ChildDecl, DriveDecl, GraphCell,
    GraphDecl, LocalDrive, LocalGraph, NodeDecl, Transaction,
};
use crate::io::sim::{Faults, Random, SECTOR, Simulation, Stop, note};
use crate::io::{Buf, BufMut, sleep_until, spawn, spawn_boxed, turn_now};
use crate::job::{
    BackupSpec, BackupSync, BitmapMode, Changes, CommitSpec, CopyMode, JobEnd, JobHandle, JobKind,
    JobSpec, JobStatus, Jobs, MirrorSpec, OnError, StreamSpec,
};
use crate::node::WriteFlags;

const SIZE: u64 = SECTORS * SECTOR as u64;
const ROUNDS: u64 = 4;

struct Written {
    id: WriteId,
    sectors: Range<u64>,
    is_zero: bool,
    start: u64,
    /// Once it has succeeded.
    end: Option<u64>,
}

/// What is known of a world, also after its end.
struct World {
    simulation: Simulation,
    cell: Arc<GraphCell>,
    local: Rc<LocalGraph>,
    jobs: Arc<Jobs>,
    changes: Arc<dyn Changes>,
    geometries: RefCell<BTreeMap<String, Geometry>>,
    now: Cell<u64>,
    next_write: Cell<u64>,
    next_name: Cell<u64>,
    /// What the drive showed when the round began, durably.
    first: RefCell<Vec<u64>>,
    writes: RefCell<Vec<Written>>,
    /// When the last flush began that has succeeded.
    flushed: Cell<u64>,
    guests: Cell<usize>,
    /// Jobs that have ended well, been cancelled, and failed.
    ends: Cell<[u64; 3]>,
}

struct CellChanges(Arc<GraphCell>);

impl Changes for CellChanges {
    fn transact<'a>(
        &'a self,
        transaction: Transaction,
    ) -> Pin<Box<dyn Future<Output = HostResult<Applied>> + 'a>> {
        Box::pin(self.0.transact(transaction))
    }

    fn give_back<'a>(&'a self) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        Box::pin(async {})
    }
}

fn lag_over(node: &str) -> NodeDecl {
    let children = vec![ChildDecl::filtered(node)];
    NodeDecl { name: format!("{node}-lag"), driver: Arc::new(Lag), children }
}

impl World {
    fn new(simulation: &Simulation) -> Rc<Self> {
        lag::begin();
        let first: Vec<u64> = (0..SECTORS).map(|sector| first_word(0, sector)).collect();
        simulation.file_or("base", || first.iter().flat_map(|word| fill(*word)).collect());
        let driver = plugins::file("base").expect("a file");
        let base = NodeDecl { name: "base".into(), driver, children: vec![] };
        let root = Some("base-lag".to_owned());
        let drive = DriveDecl { id: "d".into(), root, writable: true, only_shows: false };
        let bitmap = plugins::bitmap(BitmapScope::Drive("d".into())).expect("a bitmap");
        let nodes = vec![base, lag_over("base")];
        let decl = GraphDecl { nodes, drives: vec![drive], bitmaps: vec![bitmap] };
        let graph = decl.build().expect("a graph");
        graph.start_drivers(None).expect("drivers that start");
        let cell = Arc::new(GraphCell::new(graph));
        Rc::new(Self {
            simulation: simulation.clone(),
            local: Rc::new(LocalGraph::new(Arc::clone(&cell), 0)),
            jobs: Jobs::new(&cell),
            changes: Arc::new(CellChanges(Arc::clone(&cell))),
            cell,
            geometries: RefCell::default(),
            now: Cell::new(0),
            next_write: Cell::new(100),
            next_name: Cell::new(0),
            first: RefCell::new(first),
            writes: RefCell::default(),
            flushed: Cell::new(0),
            guests: Cell::new(0),
            ends: Cell::default(),
        })
    }

    fn tick(&self) -> u64 {
        self.now.set(self.now.get() + 1);
        self.now.get()
    }

    fn drive(&self) -> LocalDrive {
        LocalDrive::open(&self.local, "d").expect("a drive")
    }

    fn bitmap(&self) -> Arc<Bitmap> {
        let scope = BitmapScope::Drive("d".into());
        Arc::clone(self.cell.load().find_bitmap(&scope, "b").expect("a bitmap"))
    }

    /// What a sector may show at some moment of `at`.
    fn possible(&self, sector: u64, at: Range<u64>) -> BTreeSet<u64> {
        let writes = self.writes.borrow();
        let touching: Vec<&Written> =
            writes.iter().filter(|write| write.sectors.contains(&sector)).collect();
        let is_gone = |end: u64| {
            touching.iter().any(|it| it.start > end && it.end.is_some_and(|end| end < at.start))
        };
        let mut possible = BTreeSet::new();
        if !is_gone(0) {
            possible.insert(self.first.borrow()[sector as usize]);
        }
        for write in touching.iter().filter(|write| write.start < at.end) {
            if !write.end.is_some_and(is_gone) {
                possible.insert(if write.is_zero { 0 } else { word(write.id, sector) });
            }
        }
        possible
    }

    async fn guest(self: Rc<Self>, mut random: Random) {
        let drive = self.drive();
        for _ in 0..random.within(4..20) {
            let sectors = some_sectors(&mut random);
            let (range, kind) = (bytes_of(&sectors), random.below(8));
            match kind {
                0..=5 => {
                    let (id, is_zero) = (WriteId(self.next_write.get()), kind == 5);
                    self.next_write.set(id.0 + 1);
                    let start = self.tick();
                    let of = sectors.clone();
                    let written = Written { id, sectors: of, is_zero, start, end: None };
                    self.writes.borrow_mut().push(written);
                    let done = if is_zero {
                        let len = range.end - range.start;
                        drive.zero(range.start, len, WriteFlags::NONE).await
                    } else {
                        let bytes: Vec<u8> = sectors.flat_map(|at| fill(word(id, at))).collect();
                        drive.write(range.start, Buf::copy_of(&bytes), WriteFlags::NONE).await
                    };
                    let end = self.tick();
                    let mut writes = self.writes.borrow_mut();
                    let write = writes.iter_mut().find(|write| write.id == id);
                    if let Some(write) = write.filter(|_| done.is_ok()) {
                        write.end = Some(end);
                    }
                }
                6 => {
                    let began = self.tick();
                    if drive.flush().await.is_ok() {
                        self.flushed.set(self.flushed.get().max(began));
                    }
                }
                _ => drop(drive.read(range.start, BufMut::new(SECTOR)).await),
            }
            sleep_until(turn_now() + Duration::from_micros(random.below(3000))).await;
        }
        self.guests.set(self.guests.get() - 1);
    }

    /// The nodes that the drive shows, from its root down, without filters.
    fn chain(&self) -> Vec<String> {
        let graph = self.cell.load();
        let root = graph.drives()[0].root().expect("a medium").child();
        let below = |at: &usize| {
            let edges = graph.nodes()[*at].edges();
            Some(edges.iter().find(|edge| edge.role().is_view())?.child())
        };
        let nodes = std::iter::successors(Some(root), below).map(|at| graph.nodes()[at].name());
        let is_beside = |name: &str| name.ends_with("-lag") || name.ends_with(".dat");
        let is_store = |name: &&str| !is_beside(name) && !name.starts_with('#');
        nodes.filter(is_store).map(str::to_owned).collect()
    }

    /// The nodes of a new image, the last of which is a filter over it.
    fn image(&self, random: &mut Random, backing: Option<&str>) -> (String, Vec<NodeDecl>) {
        let name = format!("image{}", self.next_name.get());
        self.next_name.set(self.next_name.get() + 1);
        let geometry = Geometry::by_chance(random, backing.is_some(), false);
        self.geometries.borrow_mut().insert(name.clone(), geometry);
        let make = || image::fresh(&name, &geometry, SIZE, backing, &[]);
        image::add(&self.simulation, &name, make);
        let nodes = image::nodes(&self.simulation, &name, &geometry, backing);
        let mut nodes = nodes.expect("an image");
        nodes.push(lag_over(&name));
        (name, nodes)
    }

    /// An empty image on what the drive shows.
    async fn snapshot(&self, random: &mut Random) {
        let root = {
            let graph = self.cell.load();
            let root = graph.drives()[0].root().expect("a medium").child();
            graph.nodes()[root].name().to_owned()
        };
        let (_, mut nodes) = self.image(random, Some(&root));
        let (over, overlay) = (nodes.pop(), nodes.pop());
        let add = nodes.into_iter().map(Action::AddNode);
        let transaction = add.fold(Transaction::new(), Transaction::with);
        let (overlay, over) = overlay.zip(over).expect("an image and its filter");
        let (node, drive) = (overlay.name.clone(), "d".to_owned());
        let filter = Action::InsertAbove { node, filter: over, users: crate::graph::Which::All };
        let transaction = transaction.with(Action::Snapshot { drive, overlay }).with(filter);
        // Where something fails, there is none.
        let _ = self.cell.transact(transaction).await;
    }

    /// A node to copy to; its name, and that of its image.
    async fn target(&self, random: &mut Random) -> Option<(String, String)> {
        let (name, nodes) = self.image(random, None);
        let add = nodes.into_iter().map(Action::AddNode);
        let transaction = add.fold(Transaction::new(), Transaction::with);
        self.cell.transact(transaction).await.ok()?;
        Some((format!("{name}-lag"), name))
    }

    async fn kind(&self, random: &mut Random) -> Option<(JobKind, Option<String>)> {
        let chain = self.chain();
        let lower = random.pick(&chain).filter(|_| random.one_in(2));
        Some(match random.below(5) {
            0 => (JobKind::Stream(StreamSpec { base: lower, ..StreamSpec::of("d") }), None),
            1 => {
                let base = random.pick(&chain)?;
                let commit = CommitSpec { top: lower, ..CommitSpec::of("d", base) };
                (JobKind::Commit(commit), None)
            }
            2 => {
                let (target, _) = self.target(random).await?;
                let copy_mode = match random.one_in(2) {
                    true => CopyMode::WriteBlocking,
                    false => CopyMode::Background,
                };
                (JobKind::Mirror(MirrorSpec { copy_mode, ..MirrorSpec::of("d", target) }), None)
            }
            _ => {
                let (target, image) = self.target(random).await?;
                let is_full = random.one_in(2);
                let spec = match is_full {
                    true => BackupSpec::of("d", target),
                    false => BackupSpec {
                        sync: BackupSync::Bitmap,
                        bitmap: Some(BitmapRef::of_drive("d", "b")),
                        bitmap_mode: Some(BitmapMode::Never),
                        ..BackupSpec::of("d", target)
                    },
                };
                (JobKind::Backup(spec), is_full.then_some(image))
            }
        })
    }

    async fn start(&self, spec: JobSpec) -> Option<JobHandle> {
        let graph = self.cell.load();
        let (transaction, changes) = (Transaction::new(), &self.changes);
        let prepared = self.jobs.prepare(&graph, &[(0, spec)], false, changes, transaction);
        let (starting, transaction) = prepared.ok()?;
        self.cell.transact(transaction).await.ok()?;
        starting.iter().for_each(|group| group.are_created());
        let spawn = |job: Box<dyn FnOnce(_) -> _ + Send>| spawn_boxed(job(Rc::clone(&self.local)));
        starting.into_iter().flat_map(|group| group.begin(spawn)).next()
    }

    async fn bother(&self, job: &JobHandle, random: &mut Random) {
        let pause = Duration::from_micros(random.below(20_000));
        sleep_until(turn_now() + pause).await;
        match random.below(6) {
            0 => drop(job.pause()),
            1 => drop(job.set_speed(random.below(4) * SIZE)),
            2 if random.one_in(2) => drop(job.cancel(random.one_in(2))),
            3 => drop(job.change(CopyMode::WriteBlocking).await),
            _ => drop(job.resume()),
        }
    }

    async fn end_of(&self, job: &JobHandle) -> JobEnd {
        use JobStatus as S;
        loop {
            let _ = job.set_speed(0);
            let rests = |at: S| matches!(at, S::Paused | S::Standby | S::Ready) || at.is_over();
            match job.comes_to(rests).await {
                at if at.is_over() => return job.wait().await,
                S::Ready => drop(job.complete()),
                _ => drop(job.resume()),
            }
            // It learns of that when its turn comes.
            sleep_until(turn_now() + Duration::from_millis(1)).await;
        }
    }

    /// A job beside guests. Whether something may have failed.
    async fn round(self: &Rc<Self>, random: &mut Random, may_fail: bool) -> Result<(), String> {
        if random.one_in(2) || self.chain().len() == 1 {
            self.snapshot(random).await;
        }
        let Some((what, image)) = self.kind(random).await else { return Ok(()) };
        for _ in 0..random.within(1..4) {
            self.guests.set(self.guests.get() + 1);
            spawn(Rc::clone(self).guest(Random::new(random.next())));
        }
        sleep_until(turn_now() + Duration::from_micros(random.below(8000))).await;
        let fails = may_fail && random.one_in(2);
        lag::set_failures(if fails { random.within(4..20) } else { 0 });
        let errors = [OnError::Report, OnError::Ignore, OnError::Stop];
        let spec = JobSpec {
            on_error: random.pick(&errors).unwrap_or_default(),
            speed: random.below(3) * SIZE,
            ..JobSpec::new("job", what)
        };
        let before = self.tick();
        let job = self.start(spec).await;
        let point = before..self.tick();
        let mut end = None;
        if let Some(job) = &job {
            for _ in 0..random.below(4) {
                self.bother(job, random).await;
            }
            let ended = self.end_of(job).await;
            let at = match ended {
                JobEnd::Completed => 0,
                JobEnd::Cancelled => 1,
                JobEnd::Failed(_) => 2,
            };
            let mut ends = self.ends.get();
            ends[at] += 1;
            self.ends.set(ends);
            note("job ended", [at as u64, 0, 0]);
            end = Some(ended);
        }
        while self.guests.get() > 0 {
            sleep_until(turn_now() + Duration::from_millis(1)).await;
        }
        lag::set_failures(0);
        if let (Some(JobEnd::Completed), Some(image)) = (end, image) {
            self.check_backup(&image, point).await?;
        }
        self.settle(fails).await
    }

    async fn check_backup(&self, image: &str, point: Range<u64>) -> Result<(), String> {
        let (id, root) = ("look".to_owned(), Some(image.to_owned()));
        let look = DriveDecl { id, root, writable: false, only_shows: true };
        let look = Transaction::new().with(Action::AddDrive(look));
        self.cell.transact(look).await.map_err(|error| error.to_string())?;
        let drive = LocalDrive::open(&self.local, "look").map_err(|error| error.to_string())?;
        let bytes = drive.read(0, BufMut::new(SIZE as usize)).await;
        let bytes = bytes.map_err(|error| error.to_string())?;
        let gone = Action::RemoveDrive { drive: "look".into() };
        let gone = self.cell.transact(Transaction::new().with(gone)).await;
        gone.map_err(|error| error.to_string())?;
        for (sector, word) in (0..).zip(words(&bytes)?) {
            let possible = self.possible(sector, point.clone());
            // What the drive shows may have been damaged before.
            if !possible.contains(&word) && !is_damage(word) {
                return Err(format!("sector {sector} of a backup holds {word:#x}: {possible:x?}"));
            }
        }
        Ok(())
    }

    /// Nothing is in flight: reads everything, checks it, and begins anew.
    async fn settle(&self, has_failed: bool) -> Result<(), String> {
        let told = |error: crate::error::Error| error.to_string();
        let bytes = self.drive().read(0, BufMut::new(SIZE as usize)).await.map_err(told)?;
        let (end, shown, bitmap) = (self.tick()..self.tick(), words(&bytes)?, self.bitmap());
        for (sector, word) in (0..).zip(&shown) {
            let (possible, is_dirty) =
                (self.possible(sector, end.clone()), bitmap.test(sector * SECTOR as u64));
            let is_known = possible.contains(word) || (has_failed && is_damage(*word) && is_dirty);
            if !is_known {
                return Err(format!("the drive shows {word:#x} at {sector}: {possible:x?}"));
            }
            let writes = self.writes.borrow();
            let mut touching = writes.iter().filter(|write| write.sectors.contains(&sector));
            let is_written = touching.clone().any(|write| write.end.is_some());
            if !is_dirty && (is_written || *word != self.first.borrow()[sector as usize]) {
                return Err(format!("sector {sector} has changed, and is clean"));
            }
            if is_dirty && touching.next().is_none() && !has_failed {
                return Err(format!("nobody has written sector {sector}, and it is dirty"));
            }
        }
        self.drive().flush().await.map_err(told)?;
        let clear = BitmapAction::Clear.of(BitmapRef::of_drive("d", "b"));
        self.cell.transact(Transaction::new().with(clear)).await.map_err(told)?;
        *self.first.borrow_mut() = shown;
        self.writes.borrow_mut().clear();
        self.flushed.set(self.tick());
        Ok(())
    }

    /// Opens what a crash has left, and checks it.
    fn look(self: &Rc<Self>) -> Result<(), String> {
        let chain = self.chain();
        let is_image = |name: &&String| **name != "base";
        for name in chain.iter().filter(is_image) {
            let storage = MemoryStorage::new(self.simulation.bytes(&file_name(name)));
            judge::leaks(&storage).map_err(|wrong| format!("image {name}: {wrong}"))?;
        }
        let (world, simulation) = (Rc::clone(self), self.simulation.clone());
        let ran = self.simulation.run(async move {
            let told = |error: crate::error::Error| error.to_string();
            let mut decl = GraphDecl::default();
            for (at, name) in chain.iter().enumerate().rev() {
                let below = chain.get(at + 1).map(String::as_str);
                match world.geometries.borrow().get(name) {
                    None => {
                        let driver = plugins::file(name).map_err(told)?;
                        decl.nodes.push(NodeDecl { name: name.clone(), driver, children: vec![] });
                    }
                    Some(geometry) => {
                        let nodes = image::nodes(&simulation, name, geometry, below);
                        decl.nodes.extend(nodes.map_err(told)?);
                    }
                }
            }
            let root = chain.first().cloned();
            decl.drives.push(DriveDecl { id: "d".into(), root, writable: true, only_shows: false });
            let graph = decl.build().map_err(told)?;
            graph.start_drivers(None).map_err(told)?;
            let local = Rc::new(LocalGraph::new(Arc::new(GraphCell::new(graph)), 0));
            let drive = LocalDrive::open(&local, "d").map_err(told)?;
            let bytes = drive.read(0, BufMut::new(SIZE as usize)).await.map_err(told)?;
            let at = world.flushed.get()..u64::MAX;
            for (sector, word) in (0..).zip(words(&bytes)?) {
                let possible = world.possible(sector, at.clone());
                if !possible.contains(&word) {
                    return Err(format!(
                        "after a crash, sector {sector} shows {word:#x}: {possible:x?}, in {chain:?}"
                    ));
                }
            }
            Ok::<(), String>(())
        });
        ran.unwrap_or_else(|stop| Err(stop.to_string()))
    }
}

/// What is wrong with a seed, if anything; how its jobs have ended.
fn run_seed(seed: u64, crashes: bool) -> (Result<(), String>, Simulation, [u64; 3], bool) {
    let simulation = Simulation::new(seed);
    let mut random = simulation.random();
    simulation.set_faults(Faults::HARMLESS);
    if crashes {
        simulation.crash_after(random.within(50..3000));
    }
    let kept: Rc<RefCell<Option<Rc<World>>>> = Rc::default();
    let (inner, keep) = (simulation.clone(), Rc::clone(&kept));
    let ran = simulation.run(async move {
        let world = World::new(&inner);
        *keep.borrow_mut() = Some(Rc::clone(&world));
        for _ in 0..ROUNDS {
            world.round(&mut random, !crashes).await?;
        }
        Ok::<(), String>(())
    });
    let world = kept.borrow_mut().take();
    let ends = world.as_ref().map(|world| world.ends.get()).unwrap_or_default();
    let (verdict, has_crashed) = match (ran, &world) {
        (Ok(verdict), _) => (verdict, false),
        (Err(Stop::Crashed), Some(world)) => (world.look(), true),
        (Err(stop), _) => (Err(stop.to_string()), false),
    };
    (verdict, simulation, ends, has_crashed)
}

/// How the jobs of all seeds have ended, and how many seeds have crashed.
fn check(name: &str, crashes: bool, count: u64) -> ([u64; 3], u64) {
    let (mut ends, mut crashed) = ([0; 3], 0);
    for seed in super::seeds(count) {
        let (verdict, simulation, of_seed, has_crashed) = run_seed(seed, crashes);
        ends.iter_mut().zip(of_seed).for_each(|(sum, more)| *sum += more);
        crashed += u64::from(has_crashed);
        if let Err(wrong) = verdict {
            panic!(
                "seed {seed}: {wrong}\n{}\nagain: BLOCKLOOM_SIM_SEED={seed} cargo test -p blockloom \
                 --lib {name}",
                simulation.trace().tail(60)
            );
        }
    }
    println!("{name}: completed, cancelled, failed: {ends:?}; {crashed} crashed");
    (ends, crashed)
}

#[test]
fn jobs_on_images_alter_nothing_that_is_seen() {
    let (ends, _) = check("jobs_on_images_alter_nothing", false, 500);
    if super::number("BLOCKLOOM_SIM_SEED").is_none() {
        assert!(ends.iter().all(|count| *count > 10), "{ends:?}");
    }
}

#[test]
fn a_crash_beside_jobs_loses_nothing_that_was_flushed() {
    let (_, crashed) = check("a_crash_beside_jobs", true, 500);
    if super::number("BLOCKLOOM_SIM_SEED").is_none() {
        assert!(crashed > 30, "{crashed}");
    }
}

#[test]
fn a_seed_of_jobs_is_the_same_run_every_time() {
    for (seed, crashes) in (0..40).flat_map(|seed| [(seed, false), (seed, true)]) {
        let (first, again) = (run_seed(seed, crashes), run_seed(seed, crashes));
        let difference = first.1.trace().first_difference(&again.1.trace());
        assert_eq!(difference, None, "seed {seed}");
        assert_eq!(first.0, again.0, "seed {seed}");
    }
}
