//! Backups under load: at the end the target holds what the disk held at one point in time.
//!
//! That point lies between the last moment at which the plugin had not begun and the first at which it had.
//! Of each sector a write is in it that had ended before, unless a later one was, too; one that began afterwards
//! is not; of those between, either is right.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::guest::{bytes_of, some_sectors};
use super::oracle::{WriteId, first_word, word};
use super::plugins;
use super::scene::SECTORS;
use super::world::{fill, words};
use crate::graph::{
    BitmapScope, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph, NodeDecl,
};
use crate::io::sim::{Random, SECTOR, Simulation};
use crate::io::{Buf, BufMut, sleep_until, spawn, turn_now};
use crate::node::{MemoryNode, WriteFlags};

const SIZE: u64 = SECTORS * SECTOR as u64;

/// A write: what it wrote where, and when.
struct Written {
    id: WriteId,
    sectors: Range<u64>,
    is_zero: bool,
    start: u64,
    end: Option<u64>,
}

#[derive(Default)]
struct Books {
    now: Cell<u64>,
    writes: RefCell<Vec<Written>>,
    /// Guests that have not ended.
    guests: Cell<usize>,
    waiting: RefCell<Option<Waker>>,
}

impl Books {
    fn tick(&self) -> u64 {
        self.now.set(self.now.get() + 1);
        self.now.get()
    }

    fn begin(&self, sectors: Range<u64>, is_zero: bool) -> WriteId {
        let start = self.tick();
        let mut writes = self.writes.borrow_mut();
        let id = WriteId(100 + writes.len() as u64);
        writes.push(Written { id, sectors, is_zero, start, end: None });
        id
    }

    fn end(&self, id: WriteId) {
        let end = self.tick();
        let mut writes = self.writes.borrow_mut();
        writes.iter_mut().filter(|write| write.id == id).for_each(|it| it.end = Some(end));
    }

    /// What a sector may have held at some moment of `at`.
    fn possible(&self, sector: u64, at: Range<u64>) -> BTreeSet<u64> {
        let writes = self.writes.borrow();
        let touching: Vec<&Written> =
            writes.iter().filter(|write| write.sectors.contains(&sector)).collect();
        let is_gone = |end: u64| {
            touching.iter().any(|it| it.start > end && it.end.is_some_and(|end| end < at.start))
        };
        let mut possible = BTreeSet::new();
        if !is_gone(0) {
            possible.insert(first_word(0, sector));
        }
        for write in touching.iter().filter(|write| write.start < at.end) {
            if !write.end.is_some_and(is_gone) {
                possible.insert(if write.is_zero { 0 } else { word(write.id, sector) });
            }
        }
        possible
    }

    async fn all_guests_ended(&self) {
        poll_fn(|cx| {
            if self.guests.get() == 0 {
                return Poll::Ready(());
            }
            *self.waiting.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

async fn guest(books: Rc<Books>, drive: LocalDrive, mut random: Random) {
    for _ in 0..random.within(4..24) {
        let sectors = some_sectors(&mut random);
        let (range, kind) = (bytes_of(&sectors), random.below(8));
        let result = match kind {
            0..=5 => {
                let id = books.begin(sectors.clone(), false);
                let bytes: Vec<u8> = sectors.flat_map(|at| fill(word(id, at))).collect();
                let written =
                    drive.write(range.start, Buf::copy_of(&bytes), WriteFlags::NONE).await;
                books.end(id);
                written
            }
            6 => {
                let id = books.begin(sectors, true);
                let len = range.end - range.start;
                let zeroed = drive.zero(range.start, len, WriteFlags::NONE).await;
                books.end(id);
                zeroed
            }
            _ => {
                let len = (range.end - range.start) as usize;
                drive.read(range.start, BufMut::new(len)).await.map(drop)
            }
        };
        result.expect("nothing fails here");
        if random.one_in(2) {
            sleep_until(turn_now() + Duration::from_micros(random.below(2000))).await;
        }
    }
    books.guests.set(books.guests.get() - 1);
    if let Some(waker) = books.waiting.borrow_mut().take() {
        waker.wake();
    }
}

/// The disk, in a file or in memory, and the backup of it.
fn graph(simulation: &Simulation, random: &mut Random) -> (Arc<GraphCell>, plugins::Backup) {
    let first = || (0..SECTORS).flat_map(|sector| fill(first_word(0, sector))).collect();
    simulation.file_or("disk", first);
    let disk = plugins::file("disk").expect("a file");
    let target = MemoryNode::new(SIZE, SECTOR as u32).expect("a size");
    let granularity = 512 << random.below(4);
    let config = format!(
        "{{ \"min-cluster-size\": {granularity}, \"max-workers\": {} }}",
        random.within(1..5)
    );
    let backup = plugins::backup(&config).expect("a plugin");
    let node = |name: &str, driver, children| NodeDecl { name: name.into(), driver, children };
    let nodes = vec![
        node("disk", disk, vec![]),
        node("target", Arc::new(target), vec![]),
        node("backup", backup.driver(), plugins::Backup::children("disk", "target")),
    ];
    let drive = |id: &str, root: &str, writable| {
        let root = Some(root.to_owned());
        DriveDecl { id: id.to_owned(), root, writable, only_shows: !writable }
    };
    let drives = vec![drive("d", "backup", true), drive("copy", "target", false)];
    let bitmap = plugins::bitmap(BitmapScope::Drive("d".into())).expect("a bitmap");
    let graph = GraphDecl { nodes, drives, bitmaps: vec![bitmap] }.build().expect("a graph");
    graph.start_drivers(None).expect("drivers that start");
    (Arc::new(GraphCell::new(graph)), backup)
}

async fn run(simulation: Simulation, mut random: Random) -> Result<(), String> {
    let (cell, backup) = graph(&simulation, &mut random);
    let local = LocalGraph::of(&cell);
    let books = Rc::new(Books::default());
    books.tick();
    for _ in 0..random.within(1..5) {
        books.guests.set(books.guests.get() + 1);
        let drive = LocalDrive::open(&local, "d").expect("a drive");
        spawn(guest(Rc::clone(&books), drive, Random::new(random.next())));
    }
    sleep_until(turn_now() + Duration::from_micros(random.below(8000))).await;
    let graph = cell.load();
    let at = graph.find_node("backup").expect("the backup");
    graph.nodes()[at].driver().run(&local, "backup");
    drop(graph);
    let mut before = books.tick();
    while backup.bytes("begun") == 0 {
        before = books.tick();
        sleep_until(turn_now() + Duration::from_nanos(1)).await;
    }
    let point = before..books.tick();
    while backup.bytes("todo") > 0 {
        sleep_until(turn_now() + Duration::from_micros(50)).await;
        if random.one_in(8) {
            backup.reload().await?;
        }
    }
    books.all_guests_ended().await;
    let copy = LocalDrive::open(&local, "copy").expect("a drive");
    let bytes =
        copy.read(0, BufMut::new(SIZE as usize)).await.map_err(|error| error.to_string())?;
    for (sector, word) in (0..).zip(words(&bytes)?) {
        let possible = books.possible(sector, point.clone());
        if !possible.contains(&word) {
            return Err(format!("sector {sector} holds {word:#x}, not one of {possible:x?}"));
        }
    }
    let drive = LocalDrive::open(&local, "d").expect("a drive");
    let bytes =
        drive.read(0, BufMut::new(SIZE as usize)).await.map_err(|error| error.to_string())?;
    let end = books.tick()..books.tick();
    for (sector, word) in (0..).zip(words(&bytes)?) {
        let possible = books.possible(sector, end.clone());
        if !possible.contains(&word) {
            return Err(format!("the disk shows {word:#x} at {sector}, not one of {possible:x?}"));
        }
    }
    match backup.failure() {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

#[test]
fn a_backup_under_load_is_one_point_in_time() {
    for seed in super::seeds(300) {
        let simulation = Simulation::new(seed);
        let (inner, random) = (simulation.clone(), simulation.random());
        let ran = simulation.run(run(inner, random));
        let verdict = ran.unwrap_or_else(|stop| Err(stop.to_string()));
        if let Err(wrong) = verdict {
            panic!(
                "seed {seed}: {wrong}\n{}\nagain: BLOCKLOOM_SIM_SEED={seed} cargo test -p blockloom \
                 --lib a_backup_under_load",
                simulation.trace().tail(60)
            );
        }
    }
}
