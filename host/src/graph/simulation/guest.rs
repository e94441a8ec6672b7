//! Guests: requests on drives, several at once.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::oracle::{By, Leaves, WriteId, word};
use super::scene::SECTORS;
use super::shape::View;
use super::world::{World, fill, words};
use crate::graph::LocalDrive;
use crate::io::sim::{Random, SECTOR, note};
use crate::io::{Buf, BufMut, sleep_until, turn_now, until};
use crate::node::{ExtentKind, WriteFlags};

/// Starts a phase's guests.
pub(super) fn start(world: &Rc<World>, random: &mut Random) {
    for (number, drive) in world.scene.drives.iter().enumerate() {
        for _ in 0..random.within(1..4) {
            let guest = Guest {
                world: Rc::clone(world),
                id: drive.id.clone(),
                number: number as u64,
                is_writer: drive.is_writable,
                drive: LocalDrive::open(world.graph(random), &drive.id).expect("a drive"),
                random: Random::new(random.next()),
            };
            let count = random.within(4..16);
            world.task(guest.run(count));
        }
    }
}

struct Guest {
    world: Rc<World>,
    id: String,
    number: u64,
    is_writer: bool,
    drive: LocalDrive,
    random: Random,
}

/// A range of sectors, mostly short.
pub(super) fn some_sectors(random: &mut Random) -> Range<u64> {
    let most = if random.one_in(6) { SECTORS } else { 6 };
    let count = random.within(1..most + 1);
    let first = random.below(SECTORS - count + 1);
    first..first + count
}

pub(super) fn bytes_of(sectors: &Range<u64>) -> Range<u64> {
    sectors.start * SECTOR as u64..sectors.end * SECTOR as u64
}

impl Guest {
    async fn run(mut self, count: u64) {
        for _ in 0..count {
            let sectors = some_sectors(&mut self.random);
            match (self.is_writer, self.random.below(20)) {
                (true, 0..=8) => self.write(sectors).await,
                (true, 9 | 10) => self.zero(sectors).await,
                (true, 11) => self.discard(sectors).await,
                (_, 12) => self.flush().await,
                (_, 13) => self.status(sectors).await,
                _ => self.read(sectors).await,
            }
            if self.random.one_in(2) {
                let pause = Duration::from_micros(self.random.below(3000));
                sleep_until(turn_now() + pause).await;
            }
        }
    }

    fn begin(&self, sectors: &Range<u64>, leaves: Leaves) -> WriteId {
        let by = By::Drive(self.id.clone());
        self.world.oracle.borrow_mut().begin(by, sectors.clone(), leaves)
    }

    async fn write(&mut self, sectors: Range<u64>) {
        let id = self.begin(&sectors, Leaves::Words);
        note("guest writes", [id.0, sectors.start, sectors.end]);
        let bytes: Vec<u8> = sectors.clone().flat_map(|at| fill(word(id, at))).collect();
        let flags = if self.random.one_in(8) { WriteFlags::FUA } else { WriteFlags::NONE };
        let write = self.drive.write(bytes_of(&sectors).start, Buf::copy_of(&bytes), flags);
        if self.random.one_in(16) {
            // Its caller loses patience; it goes on all the same, and nobody learns of its end.
            let patience = Duration::from_micros(self.random.below(300));
            if until(turn_now() + patience, write).await.is_none() {
                return;
            }
            return self.world.end_write(id, false);
        }
        let result = write.await;
        let is_done = self.world.expect("a write", &result, &[]);
        self.world.count(|counts| counts.writes += u64::from(is_done));
        note("guest wrote", [self.number, id.0, u64::from(is_done)]);
        self.world.end_write(id, is_done);
        if is_done && flags.fua {
            self.world.oracle.borrow_mut().set_durable(id);
        }
    }

    async fn zero(&mut self, sectors: Range<u64>) {
        let id = self.begin(&sectors, Leaves::Zeros);
        note("guest zeroes", [id.0, sectors.start, sectors.end]);
        let range = bytes_of(&sectors);
        let flags = WriteFlags { no_unmap: self.random.one_in(2), ..WriteFlags::NONE };
        let result = self.drive.zero(range.start, range.end - range.start, flags).await;
        let is_done = self.world.expect("a zero", &result, &[]);
        note("guest zeroed", [self.number, id.0, u64::from(is_done)]);
        self.world.end_write(id, is_done);
    }

    async fn discard(&mut self, sectors: Range<u64>) {
        let id = self.begin(&sectors, Leaves::Zeros);
        note("guest discards", [id.0, sectors.start, sectors.end]);
        let range = bytes_of(&sectors);
        let result = self.drive.discard(range.start, range.end - range.start).await;
        self.world.expect("a discard", &result, &[]);
        // It is advisory: what it leaves is settled later.
        self.world.end_write(id, false);
    }

    async fn flush(&mut self) {
        let began = self.world.oracle.borrow_mut().tick();
        note("guest flushes", [self.number, began, 0]);
        let result = self.drive.flush().await;
        if self.world.expect("a flush", &result, &[]) {
            note("guest flushed", [self.number, began, 0]);
            self.world.flush_succeeded(&self.id, began);
        }
    }

    async fn read(&mut self, sectors: Range<u64>) {
        let since = self.world.oracle.borrow_mut().tick();
        note("guest reads", [self.number, sectors.start, sectors.end]);
        let range = bytes_of(&sectors);
        let buf = BufMut::new((range.end - range.start) as usize);
        let result = self.drive.read(range.start, buf).await;
        self.world.expect("a read", &result, &[]);
        let Ok(bytes) = result else { return };
        self.world.count(|counts| counts.reads += 1);
        let view = View::Drive(self.id.clone());
        let verdict = words(&bytes).and_then(|words| {
            note("guest read", [self.number, sectors.start, words[0]]);
            self.world.oracle.borrow().check(&view, sectors.start, &words, since)
        });
        self.world.judge(verdict);
    }

    async fn status(&mut self, sectors: Range<u64>) {
        let since = self.world.oracle.borrow_mut().tick();
        let range = bytes_of(&sectors);
        let result = self.drive.block_status(range.start, range.end - range.start).await;
        self.world.expect("block status", &result, &[]);
        let oracle = self.world.oracle.borrow();
        let view = View::Drive(self.id.clone());
        for extent in result.into_iter().flatten() {
            if matches!(extent.kind, ExtentKind::Zero | ExtentKind::Hole) {
                let first = extent.offset / SECTOR as u64;
                let zeros = vec![0; (extent.len / SECTOR as u64) as usize];
                self.world.judge(oracle.check(&view, first, &zeros, since));
            }
        }
    }
}
