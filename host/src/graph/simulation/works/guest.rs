//! Guests of the drives.

use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use super::super::guest::bytes_of;
use super::super::oracle::{WriteId, word};
use super::super::world::{fill, words};
use super::world::{Disk, World};
use crate::error::Error;
use crate::graph::LocalDrive;
use crate::io::sim::{Random, note};
use crate::io::{Buf, BufMut, sleep_until, turn_now, until};
use crate::node::WriteFlags;

/// A guest that runs.
pub(super) type Living = Pin<Box<dyn Future<Output = ()>>>;

/// Starts some, of all drives.
pub(super) fn start(world: &Rc<World>, random: &mut Random, spawn: &mut dyn FnMut(Living)) {
    for at in 0..world.disks.len() {
        for _ in 0..random.within(1..4) {
            let disk = &world.disks[at];
            disk.guests.set(disk.guests.get() + 1);
            let guest = Guest {
                drive: LocalDrive::open(world.worker(random), &disk.id).expect("a drive"),
                world: Rc::clone(world),
                at,
                random: Random::new(random.next()),
            };
            let requests = random.within(4..20);
            spawn(Box::pin(guest.run(requests)));
        }
    }
}

struct Guest {
    world: Rc<World>,
    at: usize,
    drive: LocalDrive,
    random: Random,
}

impl Guest {
    fn disk(&self) -> &Disk {
        &self.world.disks[self.at]
    }

    async fn run(mut self, requests: u64) {
        for _ in 0..requests {
            let sectors = self.some_sectors();
            match self.random.below(12) {
                0..=5 => self.write(sectors).await,
                6 => self.zero(sectors).await,
                7 => self.discard(sectors).await,
                8 => self.flush().await,
                _ => self.read(sectors).await,
            }
            let pause = Duration::from_micros(self.random.below(3000));
            sleep_until(turn_now() + pause).await;
        }
        let guests = &self.disk().guests;
        guests.set(guests.get() - 1);
    }

    /// A range of sectors, mostly short.
    fn some_sectors(&mut self) -> Range<u64> {
        let all = self.world.past.sectors;
        let most = if self.random.one_in(6) { all } else { 6 };
        let count = self.random.within(1..most + 1);
        let first = self.random.below(all - count + 1);
        first..first + count
    }

    fn begin(&self, sectors: &Range<u64>, is_zero: bool) -> WriteId {
        let past = &self.world.past;
        let (id, start) = (past.next_write(), past.tick());
        self.disk().ledger.borrow_mut().begin(id, sectors.clone(), is_zero, start);
        id
    }

    /// It has ended; if well, surely so unless `is_durable` is `None`.
    fn end<T>(
        &self,
        id: WriteId,
        (what, result): (&str, &Result<T, Error>),
        is_durable: Option<bool>,
    ) {
        let end = self.world.past.tick();
        match (self.has_succeeded(what, result), is_durable) {
            (true, Some(is_durable)) => self.disk().ledger.borrow_mut().end(id, end, is_durable),
            (true, None) => {}
            (false, _) => self.disk().ledger.borrow_mut().fail(id),
        }
    }

    async fn write(&mut self, sectors: Range<u64>) {
        let id = self.begin(&sectors, false);
        note("guest writes", [id.0, sectors.start, sectors.end]);
        let bytes: Vec<u8> = sectors.clone().flat_map(|at| fill(word(id, at))).collect();
        let flags = if self.random.one_in(8) { WriteFlags::FUA } else { WriteFlags::NONE };
        let write = self.drive.write(bytes_of(&sectors).start, Buf::copy_of(&bytes), flags);
        let written = match self.random.one_in(16) {
            // Its caller loses patience; it goes on all the same.
            true => {
                let patience = Duration::from_micros(self.random.below(300));
                until(turn_now() + patience, write).await
            }
            false => Some(write.await),
        };
        if let Some(written) = written {
            self.end(id, ("a write", &written), Some(flags.fua));
        }
    }

    async fn zero(&mut self, sectors: Range<u64>) {
        let id = self.begin(&sectors, true);
        note("guest zeroes", [id.0, sectors.start, sectors.end]);
        let range = bytes_of(&sectors);
        let flags = WriteFlags { no_unmap: self.random.one_in(2), ..WriteFlags::NONE };
        let zeroed = self.drive.zero(range.start, range.end - range.start, flags).await;
        self.end(id, ("a zero", &zeroed), Some(false));
    }

    /// It is advisory: it may have no effect.
    async fn discard(&mut self, sectors: Range<u64>) {
        let id = self.begin(&sectors, true);
        note("guest discards", [id.0, sectors.start, sectors.end]);
        let range = bytes_of(&sectors);
        let discarded = self.drive.discard(range.start, range.end - range.start).await;
        self.end(id, ("a discard", &discarded), None);
    }

    async fn flush(&mut self) {
        let began = self.world.past.tick();
        let flushed = self.drive.flush().await;
        if self.has_succeeded("a flush", &flushed) {
            note("guest flushed", [began, 0, 0]);
            self.disk().ledger.borrow_mut().flush_succeeded(began);
        }
    }

    async fn read(&mut self, sectors: Range<u64>) {
        let (began, range) = (self.world.past.tick(), bytes_of(&sectors));
        let buf = BufMut::new((range.end - range.start) as usize);
        let read = self.drive.read(range.start, buf).await;
        if !self.has_succeeded("a read", &read) {
            return;
        }
        let at = began..self.world.past.tick();
        let may_be_damaged = self.world.fails.get();
        let checked = read.map_err(|error| error.to_string()).and_then(|bytes| {
            let (ledger, words) = (self.disk().ledger.borrow(), words(&bytes)?);
            ledger.check((sectors.start, &words), &at, may_be_damaged)
        });
        self.world.judge(checked.map_err(|wrong| format!("a guest's read: {wrong}")));
    }

    fn has_succeeded<T>(&self, what: &str, result: &Result<T, Error>) -> bool {
        if let Err(error) = result {
            self.world.expect(what, error, &[]);
        }
        result.is_ok()
    }
}
