//! Nodes that act of their own accord: copies, and claims on what they have read.

use std::rc::Rc;
use std::time::Duration;

use super::guest::{bytes_of, some_sectors};
use super::oracle::{By, Leaves, WriteId};
use super::scene::Actor;
use super::shape::View;
use super::world::{World, words};
use crate::error::ErrorKind;
use crate::graph::{CopyHow, OwnAccord};
use crate::io::sim::{Random, SECTOR, note};
use crate::io::{sleep_until, turn_now};

/// Starts a phase's jobs.
pub(super) fn start(world: &Rc<World>, random: &mut Random) {
    for (number, actor) in world.scene.actors().into_iter().enumerate() {
        for _ in 0..random.within(1..3) {
            let own = OwnAccord::open(world.graph(random), &actor.name).expect("a node that acts");
            let job = Job {
                world: Rc::clone(world),
                number: number as u64,
                actor: actor.clone(),
                own,
                random: Random::new(random.next()),
            };
            let count = random.within(3..10);
            world.task(job.run(count));
        }
    }
}

struct Job {
    world: Rc<World>,
    number: u64,
    actor: Actor,
    own: OwnAccord,
    random: Random,
}

/// Claims end so when the view has changed since.
const REFUSED: [ErrorKind; 2] = [ErrorKind::Stale, ErrorKind::NotPermitted];

impl Job {
    async fn run(mut self, count: u64) {
        for _ in 0..count {
            match (self.actor.is_proven, self.random.below(4)) {
                (true, 0 | 1) => self.claim().await,
                (true, 2) => self.zero().await,
                _ => self.copy().await,
            }
            let pause = Duration::from_micros(self.random.below(2000));
            sleep_until(turn_now() + pause).await;
        }
    }

    /// What the job is about to write; `None` if nobody is to see it.
    fn begin(&self, sectors: &std::ops::Range<u64>) -> Option<WriteId> {
        let mut oracle = self.world.oracle.borrow_mut();
        if self.actor.from == self.actor.to {
            return None;
        }
        let from = View::Node(self.actor.from.clone());
        let (source, to) = (self.actor.from.clone(), self.actor.to.clone());
        let by = match self.actor.is_proven {
            true => By::Proven { from: source, to },
            false => By::Node(to),
        };
        Some(oracle.begin(by, sectors.clone(), Leaves::CopyOf(from)))
    }

    fn end(&self, id: Option<WriteId>, is_certain: bool) {
        if let Some(id) = id {
            self.world.end_write(id, is_certain);
        }
    }

    async fn copy(&mut self) {
        let sectors = some_sectors(&mut self.random);
        let unchanged = self.actor.is_proven;
        let only_unallocated = self.random.one_in(2);
        let how = CopyHow { unchanged, only_unallocated };
        note("job copies", [self.number, sectors.start, sectors.end]);
        let id = self.begin(&sectors);
        let copied = self.own.copy(0, self.actor.to_edge, bytes_of(&sectors), how).await;
        // A read below may have copied by itself, and failed.
        let is_done = self.world.expect("a copy", &copied, &[ErrorKind::Stale]);
        note("job copied", [self.number, u64::from(is_done), 0]);
        self.world.count(|counts| counts.copies += u64::from(is_done));
        self.end(id, is_done && !only_unallocated);
    }

    async fn claim(&mut self) {
        let sectors = some_sectors(&mut self.random);
        let since = self.world.oracle.borrow_mut().tick();
        note("job reads", [self.number, sectors.start, sectors.end]);
        let read = self.own.read_proven(0, bytes_of(&sectors)).await;
        self.world.expect("a proven read", &read, &[]);
        let Ok(mut bytes) = read else { return };
        let view = View::Node(self.actor.from.clone());
        let verdict = words(bytes.bytes()).and_then(|words| {
            self.world.oracle.borrow().check(&view, sectors.start, &words, since)
        });
        self.world.judge(verdict);
        if self.random.one_in(2) {
            let pause = Duration::from_micros(self.random.below(5000));
            sleep_until(turn_now() + pause).await;
        }
        if self.random.one_in(4)
            && let Some(part) = bytes.slice(0..SECTOR)
        {
            bytes = part;
        }
        let range = bytes.range();
        let written = range.start / SECTOR as u64..range.end / SECTOR as u64;
        let id = self.begin(&written);
        let claimed = self.own.write_proven(self.actor.to_edge, &bytes).await;
        let is_done = self.world.expect("a claim", &claimed, &REFUSED);
        let is_stale = claimed.is_err_and(|error| error.kind() == ErrorKind::Stale);
        note("job claimed", [self.number, u64::from(is_done), u64::from(is_stale)]);
        self.world.count(|counts| {
            counts.claims += u64::from(is_done);
            counts.stale += u64::from(is_stale);
        });
        self.end(id, is_done);
    }

    async fn zero(&mut self) {
        let sectors = some_sectors(&mut self.random);
        note("job zeroes", [self.number, sectors.start, sectors.end]);
        let id = self.begin(&sectors);
        let range = bytes_of(&sectors);
        let zeroed = self.own.zero_proven(0, self.actor.to_edge, range).await;
        let is_done = self.world.expect("a zero claim", &zeroed, &REFUSED);
        self.world.count(|counts| counts.claims += u64::from(is_done));
        self.end(id, is_done);
    }
}
