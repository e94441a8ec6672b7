//! What the runs of one seed share, and how to run something on it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::super::time::Time;
use super::super::worker;
use super::engine::SimEngine;
use super::faults::Faults;
use super::file::SimFile;
use super::random::Random;
use super::record::Recorded;
use super::trace::Trace;

/// Events of one run, at most: more is a run that does not end.
const EVENTS_MAX: u64 = 1_000_000;
/// Turns of the worker without an event, at most: more is a task that wakes itself for ever.
const IDLE_TURNS_MAX: u64 = 100_000;

/// Why a run ended before its future did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// As was asked for.
    Crashed,
    /// Something waits, and nothing is left that could happen.
    Deadlock,
    /// Too much happens.
    Endless,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crashed => "it has crashed, as was asked for",
            Self::Deadlock => "deadlock: tasks wait, and nothing is left that could happen",
            Self::Endless => "it does not end",
        })
    }
}

/// Bytes that come into sight of reads.
pub(crate) struct Landed<'a> {
    pub(crate) file: &'a str,
    pub(crate) offset: u64,
    pub(crate) bytes: &'a [u8],
}

type Observer = Rc<dyn Fn(&Landed<'_>)>;

/// See the module of the simulator.
#[derive(Clone)]
pub(crate) struct Simulation(Rc<Shared>);

pub(super) struct Shared {
    random: RefCell<Random>,
    trace: RefCell<Trace>,
    now: Cell<Time>,
    faults: Cell<Faults>,
    files: RefCell<BTreeMap<String, Arc<SimFile>>>,
    observer: RefCell<Option<Observer>>,
    recorded: RefCell<Option<Vec<Recorded>>>,
    /// Bytes that nobody wrote have a number each.
    damages: Cell<u64>,
    /// Numbers that have been drawn, each once.
    uniques: Cell<u128>,
    /// No task is next before the worker's next turn.
    is_paused: Cell<bool>,
    events: Cell<u64>,
    idle_turns: Cell<u64>,
    crash_at: Cell<Option<u64>>,
    stop: Cell<Option<Stop>>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Shared>>> = const { RefCell::new(None) };
}

pub(super) fn current() -> Option<Rc<Shared>> {
    CURRENT.with(|current| current.borrow().clone())
}

/// Adds to the trace of the current simulation.
pub(crate) fn note(what: &'static str, numbers: [u64; 3]) {
    if let Some(shared) = current() {
        shared.note(what, numbers);
    }
}

/// Adds to the record of the current simulation.
pub(crate) fn say(what: u64) {
    if let Some(shared) = current() {
        shared.record(|| Recorded::Says(what));
    }
}

/// A number of the current simulation, below `limit`; 0 outside of one.
pub(crate) fn chance(limit: u64) -> u64 {
    current().map_or(0, |shared| shared.random.borrow_mut().below(limit))
}

/// A number that neither this seed nor another one has drawn before; `None` outside of a simulation.
pub(in crate::io) fn unique() -> Option<u128> {
    let shared = current()?;
    shared.uniques.set(shared.uniques.get() + 1);
    Some(shared.uniques.get())
}

/// Whether this thread runs one.
pub(in crate::io) fn is_simulated() -> bool {
    current().is_some()
}

/// Which of `ready` tasks is next: `None` outside of a simulation, where the first is;
/// `Some(None)` if none is, for now.
#[allow(clippy::option_option, reason = "whether it is simulated, and the choice")]
pub(crate) fn choose_task(ready: usize) -> Option<Option<usize>> {
    CURRENT.with(|current| {
        let current = current.borrow();
        let shared = current.as_ref()?;
        Some(shared.choose_task(ready))
    })
}

impl Simulation {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Rc::new(Shared {
            random: RefCell::new(Random::new(seed)),
            trace: RefCell::default(),
            now: Cell::new(Time::from_nanos(1_000_000_000)),
            faults: Cell::new(Faults::NONE),
            files: RefCell::default(),
            observer: RefCell::default(),
            recorded: RefCell::default(),
            damages: Cell::new(0),
            uniques: Cell::new(u128::from(seed) << 64),
            is_paused: Cell::new(false),
            events: Cell::new(0),
            idle_turns: Cell::new(0),
            crash_at: Cell::new(None),
            stop: Cell::new(None),
        }))
    }

    /// A stream of choices for the scenario, apart from the simulation's own.
    pub(crate) fn random(&self) -> Random {
        Random::new(self.0.random.borrow_mut().next())
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.0.faults.set(faults);
    }

    /// A file with these bytes, all of them durable.
    pub(crate) fn add_file(&self, name: &str, bytes: Vec<u8>) {
        self.0.add_file(name, bytes);
    }

    /// The same, unless there is such a file.
    pub(crate) fn file_or(&self, name: &str, bytes: impl FnOnce() -> Vec<u8>) {
        if self.0.find_file(name).is_none() {
            self.0.add_file(name, bytes());
        }
    }

    /// The bytes of a file as reads see them.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        self.0.find_file(name).map_or_else(Vec::new, |file| file.media().bytes().to_vec())
    }

    /// Tells `observer` of all bytes of all files, whenever reads can see them first.
    pub(crate) fn observe(&self, observer: impl Fn(&Landed<'_>) + 'static) {
        *self.0.observer.borrow_mut() = Some(Rc::new(observer));
    }

    /// From now on what is written is recorded.
    pub(crate) fn record(&self) {
        *self.0.recorded.borrow_mut() = Some(Vec::new());
    }

    /// What was recorded.
    pub(crate) fn take_record(&self) -> Vec<Recorded> {
        self.0.recorded.borrow_mut().take().unwrap_or_default()
    }

    /// The next run crashes after so many events, if it has not ended by then.
    pub(crate) fn crash_after(&self, events: u64) {
        self.0.crash_at.set(Some(self.0.events.get() + events));
    }

    /// Runs `future` on a worker of its own.
    ///
    /// # Errors
    /// Why it did not end. After a crash files hold what it left.
    pub(crate) fn run<T: 'static>(
        &self,
        future: impl Future<Output = T> + 'static,
    ) -> Result<T, Stop> {
        let shared = &self.0;
        let before = CURRENT.with(|current| current.borrow_mut().replace(Rc::clone(shared)));
        assert!(before.is_none(), "one simulation at a time");
        let _end = EndOfRun;
        shared.stop.set(None);
        let end = shared.events.get() + EVENTS_MAX;
        shared.idle_turns.set(0);
        let engine = Rc::new(SimEngine::new(Rc::clone(shared), end));
        let ended = worker::run_simulated(engine, future);
        shared.crash_at.set(None);
        if shared.stop.get() == Some(Stop::Crashed) {
            let mut random = shared.random.borrow_mut();
            for file in shared.files.borrow().values() {
                file.media().crash(&mut random);
            }
        }
        ended.map_err(|_| shared.stop.get().unwrap_or(Stop::Endless))
    }

    /// What has happened so far.
    pub(crate) fn trace(&self) -> Trace {
        self.0.trace.borrow().clone()
    }
}

/// A panic of the scenario ends its simulation, too.
struct EndOfRun;

impl Drop for EndOfRun {
    fn drop(&mut self) {
        CURRENT.with(|current| current.borrow_mut().take());
    }
}

impl Shared {
    pub(super) fn note(&self, what: &'static str, numbers: [u64; 3]) {
        self.trace.borrow_mut().note(self.now.get().as_nanos(), what, numbers);
    }

    pub(super) fn record(&self, what: impl FnOnce() -> Recorded) {
        if let Some(recorded) = &mut *self.recorded.borrow_mut() {
            recorded.push(what());
        }
    }

    pub(super) fn random(&self) -> std::cell::RefMut<'_, Random> {
        self.random.borrow_mut()
    }

    pub(super) fn faults(&self) -> Faults {
        self.faults.get()
    }

    pub(super) fn now(&self) -> Time {
        self.now.get()
    }

    pub(super) fn go_to(&self, time: Time) {
        self.now.set(self.now.get().max(time));
    }

    pub(super) fn add_file(&self, name: &str, bytes: Vec<u8>) -> Arc<SimFile> {
        let mut files = self.files.borrow_mut();
        let file = SimFile::new(files.len() as u64, bytes);
        files.insert(name.to_owned(), Arc::clone(&file));
        file
    }

    pub(super) fn find_file(&self, name: &str) -> Option<Arc<SimFile>> {
        self.files.borrow().get(name).map(Arc::clone)
    }

    pub(super) fn has_observer(&self) -> bool {
        self.observer.borrow().is_some()
    }

    pub(super) fn tell(&self, landed: &Landed<'_>) {
        let observer = self.observer.borrow().clone();
        if let Some(observer) = observer {
            observer(landed);
        }
    }

    /// A sector that nobody wrote.
    pub(super) fn damaged(&self) -> Box<[u8]> {
        let number = self.damages.get() + 1;
        self.damages.set(number);
        let word = (0xdead << 48 | number).to_le_bytes();
        word.iter().copied().cycle().take(super::SECTOR).collect()
    }

    fn choose_task(&self, ready: usize) -> Option<usize> {
        if ready == 0 || self.is_paused.get() {
            return None;
        }
        let mut random = self.random.borrow_mut();
        if random.one_in(24) {
            // The machine is busy with something else.
            self.is_paused.set(true);
            return None;
        }
        Some(random.below(ready as u64) as usize)
    }

    /// The worker comes for events; whether tasks were left ready.
    pub(super) fn begin_turn(&self) -> bool {
        self.idle_turns.set(self.idle_turns.get() + 1);
        if self.idle_turns.get() > IDLE_TURNS_MAX {
            self.stop.set(Some(Stop::Endless));
        }
        self.is_paused.replace(false)
    }

    /// An event is to happen, the last of the run being number `end`; whether it may.
    pub(super) fn begin_event(&self, end: u64) -> bool {
        let number = self.events.get() + 1;
        if self.crash_at.get().is_some_and(|at| number > at) {
            self.stop.set(Some(Stop::Crashed));
        } else if number > end {
            self.stop.set(Some(Stop::Endless));
        }
        if self.stop.get().is_some() {
            return false;
        }
        self.events.set(number);
        self.idle_turns.set(0);
        true
    }

    pub(super) fn deadlock(&self) {
        self.stop.set(Some(Stop::Deadlock));
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.get().is_some()
    }

    /// How long something takes, below 0.1 s.
    pub(super) fn latency(&self) -> Duration {
        let mut random = self.random.borrow_mut();
        let micros = match random.below(64) {
            0 => random.within(5_000..99_000),
            1..=7 => random.within(200..5_000),
            _ => random.within(1..200),
        };
        Duration::from_nanos(micros * 1000 + random.below(1000))
    }
}
