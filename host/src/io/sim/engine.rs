//! The engine of one run: operations are events in simulated time.
//!
//! An operation *acts* at a moment between its start and its end: a read sees its bytes then, a write comes
//! into sight in part. The rest comes at its end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::super::engine::EngineKind;
use super::super::file::{AllocateMode, File, SeekTarget};
use super::super::ops::{FileOp, OpFuture, OpTable};
use super::super::time::Time;
use super::super::{Drained, Interest, Io, SourceKey, Wait};
use super::faults::{EIO, ENXIO, Fate};
use super::file::SimFile;
use super::media::{Landing, sectors};
use super::random::Random;
use super::record::Recorded;
use super::simulation::{Landed, Shared};

/// See the module.
pub(super) struct SimEngine {
    shared: Rc<Shared>,
    table: Rc<OpTable>,
    running: RefCell<BTreeMap<u64, Running>>,
    /// By time, then in an order by chance, then in that of their making.
    events: RefCell<BTreeMap<(Time, u64), (u64, Phase)>>,
    next_op: Cell<u64>,
    next_event: Cell<u64>,
    /// Number of the last event that there may be.
    last_event: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Acts,
    Ends,
}

struct Running {
    key: usize,
    file: Arc<SimFile>,
    name: Rc<str>,
    fate: Fate,
    what: What,
    /// The result, once it is known.
    count: u64,
}

enum What {
    Read {
        at: u64,
        len: usize,
    },
    /// What it writes is in the medium's keeping.
    Write {
        sectors: Vec<u64>,
        len: usize,
        is_hole: bool,
    },
    Sync {
        mark: u64,
    },
    Seek {
        offset: u64,
        target: SeekTarget,
    },
    SetLen {
        len: u64,
    },
    /// The file ends no earlier.
    Extend {
        end: u64,
    },
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A part of a transfer, up to the end of one of its sectors.
fn shorter(at: u64, len: usize, random: &mut Random) -> usize {
    let end = (at + random.below(len as u64) + 1).next_multiple_of(super::SECTOR as u64);
    to_usize(end - at).min(len)
}

impl SimEngine {
    pub(super) fn new(shared: Rc<Shared>, last_event: u64) -> Self {
        Self {
            shared,
            table: Rc::default(),
            running: RefCell::default(),
            events: RefCell::default(),
            next_op: Cell::new(1),
            next_event: Cell::new(0),
            last_event,
        }
    }

    fn at(&self, time: Time, op: u64, phase: Phase) {
        let number = self.next_event.get();
        self.next_event.set(number + 1);
        self.events.borrow_mut().insert((time, number), (op, phase));
    }

    /// What an operation is going to be, and a name for the trace.
    fn begin(
        &self,
        op: u64,
        (file, name): (&SimFile, &Rc<str>),
        what: &FileOp,
    ) -> (What, Fate, &'static str) {
        let writes = |offset: u64, bytes: &[u8]| {
            let (file, bytes) = (Rc::clone(name), bytes.to_vec());
            self.shared.record(|| Recorded::Writes { op, file, offset, bytes });
        };
        let faults = self.shared.faults();
        let mut random = self.shared.random();
        match what {
            FileOp::Read { offset, buf, done } => {
                let fate = Fate::of_read(&faults, &mut random);
                let mut len = buf.len() - done;
                let at = offset + *done as u64;
                if fate == Fate::Short {
                    len = shorter(at, len, &mut random);
                }
                (What::Read { at, len }, fate, "read")
            }
            FileOp::Write { offset, buf, done } => {
                let fate = Fate::of_write(&faults, &mut random);
                let at = offset + *done as u64;
                let mut len = buf.len() - done;
                if fate == Fate::Short {
                    len = shorter(at, len, &mut random);
                }
                file.media().begin(op, at, &buf[*done..*done + len]);
                writes(at, &buf[*done..*done + len]);
                let sectors = sectors(at, len).collect();
                (What::Write { sectors, len, is_hole: false }, fate, "write")
            }
            FileOp::Allocate { mode, offset, len } => {
                let fate = match Fate::of_write(&faults, &mut random) {
                    Fate::Short => Fate::Whole,
                    fate => fate,
                };
                let end = offset.saturating_add(*len);
                if *mode == AllocateMode::Extend {
                    return (What::Extend { end }, fate, "extend");
                }
                let mut media = file.media();
                let end = match mode {
                    AllocateMode::ZeroAndGrow => end,
                    _ => end.min(media.len()),
                };
                let zeros = vec![0; to_usize(end.saturating_sub(*offset))];
                media.begin(op, *offset, &zeros);
                writes(*offset, &zeros);
                let sectors = sectors(*offset, zeros.len()).collect();
                let is_hole = *mode == AllocateMode::PunchHole;
                (What::Write { sectors, len: 0, is_hole }, fate, "allocate")
            }
            FileOp::Sync { .. } => {
                let fate = Fate::of_sync(&faults, &mut random);
                self.shared.record(|| Recorded::Syncs { op, file: Rc::clone(name) });
                (What::Sync { mark: file.media().sync_mark() }, fate, "sync")
            }
            FileOp::Seek { offset, target } => {
                (What::Seek { offset: *offset, target: *target }, Fate::Whole, "seek")
            }
            FileOp::SetLen { len } => (What::SetLen { len: *len }, Fate::Whole, "set length"),
        }
    }

    /// The earliest event happens; whether it could.
    fn happen(&self) -> bool {
        let Some(((time, _), (op, phase))) = self.events.borrow_mut().pop_first() else {
            return false;
        };
        if !self.shared.begin_event(self.last_event) {
            return false;
        }
        self.shared.go_to(time);
        match phase {
            Phase::Acts => self.act(op),
            Phase::Ends => self.end(op),
        }
        true
    }

    fn act(&self, op: u64) {
        let mut running = self.running.borrow_mut();
        let Some(running) = running.get_mut(&op) else { return };
        match &running.what {
            What::Read { at, len } => {
                let media = running.file.media();
                let read = |op: &mut FileOp, _: &File| match op {
                    FileOp::Read { buf, done, .. } => media.read(*at, &mut buf[*done..*done + len]),
                    _ => 0,
                };
                running.count = self.table.with(running.key, read).unwrap_or(0) as u64;
            }
            // An interrupted write has written nothing.
            What::Write { sectors, is_hole, .. } if running.fate != Fate::Interrupted => {
                running.file.touch(self.shared.now());
                let mut random = self.shared.random();
                let one_in = random.within(1..4);
                let mut shown = Vec::new();
                running.file.media().apply((op, sectors), *is_hole, |sector| {
                    let is_chosen = random.one_in(one_in);
                    shown.extend(is_chosen.then_some(sector));
                    is_chosen
                });
                drop(random);
                self.tell(running, &shown);
            }
            _ => {}
        }
    }

    fn end(&self, op: u64) {
        let Some(running) = self.running.borrow_mut().remove(&op) else { return };
        let result = self.result(op, &running);
        let outcome = result.as_ref().map_or_else(|error| *error as u64 | 1 << 32, |count| *count);
        self.shared.note("ends", [op, outcome, 0]);
        self.table.finish(running.key, result.map_err(io::Error::from_raw_os_error), None);
    }

    fn result(&self, op: u64, running: &Running) -> Result<u64, i32> {
        let failure = running.fate.errno();
        match &running.what {
            What::Read { .. } => failure.map_or(Ok(running.count), Err),
            What::Write { sectors, len, is_hole } => {
                running.file.touch(self.shared.now());
                match failure {
                    None => {
                        running.file.media().complete(op, sectors, *is_hole);
                        self.shared.record(|| Recorded::HasWritten { op });
                    }
                    Some(errno) => {
                        let is_interrupted = running.fate == Fate::Interrupted;
                        running.file.media().fail(op, sectors, |_| {
                            let mut random = self.shared.random();
                            match random.below(4) {
                                _ if is_interrupted => Landing::Old,
                                0 => Landing::Old,
                                1 if errno == EIO => Landing::Damaged(self.shared.damaged()),
                                _ => Landing::New,
                            }
                        });
                    }
                }
                self.tell(running, sectors);
                failure.map_or(Ok(*len as u64), Err)
            }
            What::Sync { mark } => {
                let mut media = running.file.media();
                match running.fate {
                    Fate::Fails(errno) => {
                        media.sync_failed(*mark, &mut self.shared.random());
                        Err(errno)
                    }
                    Fate::Interrupted => failure.map_or(Ok(0), Err),
                    _ => {
                        media.synced(*mark);
                        self.shared.record(|| Recorded::HasSynced { op });
                        Ok(0)
                    }
                }
            }
            What::Seek { offset, target } => {
                running.file.media().seek(*offset, *target == SeekTarget::Data).ok_or(ENXIO)
            }
            What::SetLen { len } => {
                running.file.touch(self.shared.now());
                running.file.media().set_len(*len);
                let (file, len) = (Rc::clone(&running.name), *len);
                self.shared.record(|| Recorded::SetLen { file, len });
                Ok(0)
            }
            What::Extend { end } => {
                // One that fails may have come to its end all the same.
                let is_done = match failure {
                    None => true,
                    Some(errno) => errno == EIO && self.shared.random().one_in(2),
                };
                if is_done {
                    running.file.touch(self.shared.now());
                    running.file.media().extend(*end);
                    let (file, len) = (Rc::clone(&running.name), *end);
                    self.shared.record(|| Recorded::Extends { file, len });
                }
                failure.map_or(Ok(0), Err)
            }
        }
    }

    /// Tells the observer what these sectors show.
    fn tell(&self, running: &Running, sectors: &[u64]) {
        if sectors.is_empty() || !self.shared.has_observer() {
            return;
        }
        for sector in sectors {
            let offset = sector * super::SECTOR as u64;
            let mut bytes = [0; super::SECTOR];
            let count = running.file.media().read(offset, &mut bytes);
            self.shared.tell(&Landed { file: &running.name, offset, bytes: &bytes[..count] });
        }
    }

    fn stopped(&self) -> io::Result<usize> {
        if !self.shared.is_stopped() {
            self.shared.deadlock();
        }
        Err(io::Error::other("the simulation has stopped"))
    }
}

impl Io for SimEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Simulated
    }

    fn now(&self) -> Time {
        self.shared.now()
    }

    fn start(&self, file: &Arc<File>, op: FileOp) -> OpFuture {
        let sim = file.simulated().expect("a simulation runs simulated files alone");
        let number = self.next_op.get();
        self.next_op.set(number + 1);
        let file_name: Rc<str> = file.path().to_string_lossy().into();
        let (what, fate, name) = self.begin(number, (sim, &file_name), &op);
        let place = match &op {
            FileOp::Read { offset, .. }
            | FileOp::Write { offset, .. }
            | FileOp::Allocate { offset, .. }
            | FileOp::Seek { offset, .. } => *offset,
            FileOp::Sync { .. } | FileOp::SetLen { .. } => 0,
        };
        self.shared.note(name, [number, sim.number, place]);
        let (key, future) = self.table.insert(file, Some(op));
        let running = Running { key, file: Arc::clone(sim), name: file_name, fate, what, count: 0 };
        self.running.borrow_mut().insert(number, running);
        let acts = self.shared.now() + self.shared.latency();
        self.at(acts, number, Phase::Acts);
        self.at(acts + self.shared.latency(), number, Phase::Ends);
        future
    }

    fn turn(&self, wait: Wait) -> io::Result<usize> {
        let tasks_wait = self.shared.begin_turn();
        if self.shared.is_stopped() {
            return self.stopped();
        }
        let next = self.events.borrow().first_key_value().map(|((time, _), _)| *time);
        let happens = match (wait, next) {
            (Wait::No, None) => return Ok(0),
            (Wait::No, Some(time)) => tasks_wait || time <= self.shared.now(),
            (Wait::Until(until), next) if next.is_none_or(|time| time > until) => {
                self.shared.go_to(until);
                return Ok(0);
            }
            (Wait::Until(_), _) => true,
            (Wait::Forever, Some(_)) => true,
            (Wait::Forever, None) => return self.stopped(),
        };
        if !happens {
            return Ok(0);
        }
        if self.happen() { Ok(1) } else { self.stopped() }
    }

    fn watch(&self, _fd: BorrowedFd<'_>) -> io::Result<SourceKey> {
        Err(io::Error::other("sockets are not simulated"))
    }

    fn unwatch(&self, _fd: BorrowedFd<'_>, _key: SourceKey) {}

    fn poll_ready(&self, _: SourceKey, _: Interest, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn clear_ready(&self, _: SourceKey, _: Interest, _: Drained) {}
}
