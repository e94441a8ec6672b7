//! Workers: threads that each run an executor, timers and an engine, and the way in from other threads.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;

use super::engine::{self, EngineChoice, EngineKind};
use super::file::File;
use super::ops::{FileOp, OpFuture};
use super::poller::Poller;
use super::reactor::{self, Reactor};
use super::task::{self, LocalFuture, Tasks};
use super::time::Time;
use super::timer::Timers;
use super::{Io, Wait};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{POLL_DEFAULT, TASKS_PER_TURN_MAX, WORKER_INBOX_MAX, WORKERS_MAX};

/// Rounds of tasks and hooks in one turn.
const ROUNDS_PER_TURN_MAX: usize = 16;

type Message = Box<dyn FnOnce() + Send>;

/// Runs between the tasks of a turn and its wait: whatever gathers a turn's work into one batch.
pub trait TurnHook {
    /// Handles the batch; returns whether there was one (tasks may be ready then).
    fn run_turn(&self) -> bool;

    /// The worker ends: what the hook keeps for its thread goes.
    fn end(&self) {}
}

/// How workers are set up.
#[derive(Clone, Copy, Debug)]
pub struct WorkerOptions {
    /// Threads, 1 to [`WORKERS_MAX`].
    pub workers: usize,
    /// Engine of all of them.
    pub engine: EngineChoice,
    /// Longest time to poll before sleeping; zero for never.
    pub poll: Duration,
}

impl Default for WorkerOptions {
    /// One worker a core, any engine, polling for [`POLL_DEFAULT`].
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
        Self { workers, engine: EngineChoice::Auto, poll: POLL_DEFAULT }
    }
}

pub(super) struct Inbox {
    messages: ArrayQueue<Message>,
    pub(super) waker: Arc<reactor::Waker>,
    pub(super) stop: AtomicBool,
}

/// The way to one worker from any thread.
#[derive(Clone)]
pub struct WorkerHandle {
    index: usize,
    pub(super) inbox: Arc<Inbox>,
}

impl WorkerHandle {
    /// The worker's number, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Has the worker run a turn.
    pub fn wake(&self) {
        self.inbox.waker.wake();
    }

    /// Runs `message` on the worker, where it may [`spawn`].
    ///
    /// # Errors
    /// `EAGAIN` when [`WORKER_INBOX_MAX`] messages wait already, `ESHUTDOWN` when the worker has ended.
    pub fn post(&self, message: impl FnOnce() + Send + 'static) -> Result<()> {
        if self.inbox.stop.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::ShuttingDown, "the host is shutting down"));
        }
        let sent = self.inbox.messages.push(Box::new(message));
        if sent.is_err() {
            return Err(Error::new(
                ErrorKind::Busy,
                "the worker's inbox is full: wait for calls to end",
            ));
        }
        self.inbox.waker.wake();
        // A worker that ended meanwhile may have looked before this message came: drop it, which
        // tells whoever waits for it.
        if self.inbox.stop.load(Ordering::SeqCst) {
            while self.inbox.messages.pop().is_some() {}
        }
        Ok(())
    }
}

/// What the code on a worker's thread can reach.
pub struct Local {
    index: usize,
    io: Rc<dyn Io>,
    tasks: Tasks,
    pub(super) timers: Timers,
    inbox: Arc<Inbox>,
    hooks: RefCell<Vec<Rc<dyn TurnHook>>>,
    /// A hook had a batch when the turn's last round ended.
    unfinished: Cell<bool>,
    pub(super) now: Cell<Time>,
}

thread_local! {
    static PLUGS: Cell<u32> = const { Cell::new(0) };
    static CURRENT: RefCell<Option<Rc<Local>>> = const { RefCell::new(None) };
    /// When the turn began, on a worker: beside it, as nearly every request asks.
    static TURN: Cell<Option<Time>> = const { Cell::new(None) };
}

/// The current thread's worker, if it is one.
pub fn current() -> Option<Rc<Local>> {
    CURRENT.with(|current| current.borrow().clone())
}

/// Whether the current thread is a worker. One that is ending is none.
pub(crate) fn is_on_worker() -> bool {
    CURRENT.try_with(|current| current.borrow().is_some()).unwrap_or(false)
}

pub(super) fn expect_current() -> Rc<Local> {
    let Some(local) = current() else {
        panic!("this must run on a worker: use WorkerHandle::post")
    };
    local
}

/// The current worker's engine.
pub(super) fn current_io() -> io::Result<Rc<dyn Io>> {
    current().map(|local| Rc::clone(&local.io)).ok_or_else(|| io::Error::other("not on a worker"))
}

/// Starts a file operation on the current worker.
pub(super) fn start(file: &Arc<File>, op: FileOp) -> OpFuture {
    CURRENT.with(|current| match &*current.borrow() {
        Some(local) => local.io.start(file, op),
        None => panic!("files are used on workers: use WorkerHandle::post"),
    })
}

/// Adds a task to the current worker.
///
/// # Panics
/// When the current thread is no worker.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    spawn_boxed(Box::pin(future));
}

/// Adds a task that is boxed already to the current worker.
///
/// # Panics
/// When the current thread is no worker.
pub fn spawn_boxed(future: LocalFuture) {
    CURRENT.with(|current| match &*current.borrow() {
        Some(local) => local.tasks.spawn(future),
        None => panic!("tasks are spawned on workers: use WorkerHandle::post"),
    });
}

/// Says, for as long as it lives, that the running task is about to start more requests: what gathers
/// the requests of a turn then waits for them. Only a hint; it must not be kept across an `await`.
pub struct Plug(PhantomData<*const ()>);

/// See [`Plug`].
#[must_use = "a plug that is dropped at once says nothing"]
pub fn plug() -> Plug {
    PLUGS.with(|plugs| plugs.set(plugs.get() + 1));
    Plug(PhantomData)
}

impl Drop for Plug {
    fn drop(&mut self) {
        PLUGS.with(|plugs| plugs.set(plugs.get() - 1));
    }
}

/// Whether this turn is going to bring more requests, as far as is known: other tasks are ready, or the
/// running one said so.
#[inline]
pub(crate) fn is_more_to_come() -> bool {
    task::has_ready() || PLUGS.with(Cell::get) > 0
}

/// The time at which the current turn began; the clock itself off workers.
#[inline]
pub fn turn_now() -> Time {
    TURN.get().unwrap_or_else(Time::monotonic)
}

/// The time now: costs a look at the clock.
pub(crate) fn clock_now() -> Time {
    CURRENT.with(|current| {
        current.borrow().as_ref().map_or_else(Time::monotonic, |local| local.io.now())
    })
}

impl Local {
    pub(super) fn new(index: usize, kind: EngineKind) -> io::Result<Rc<Self>> {
        let reactor = Rc::new(Reactor::new()?);
        let waker = Arc::clone(reactor.waker());
        let io = engine::create(kind, reactor)?;
        Ok(Self::on(index, io, waker))
    }

    fn on(index: usize, io: Rc<dyn Io>, waker: Arc<reactor::Waker>) -> Rc<Self> {
        let now = io.now();
        let inbox = Inbox {
            messages: ArrayQueue::new(WORKER_INBOX_MAX),
            waker: Arc::clone(&waker),
            stop: AtomicBool::new(false),
        };
        Rc::new(Self {
            index,
            io,
            tasks: Tasks::new(waker),
            timers: Timers::default(),
            inbox: Arc::new(inbox),
            hooks: RefCell::default(),
            unfinished: Cell::new(false),
            now: Cell::new(now),
        })
    }

    /// The worker's number, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its engine.
    pub fn io(&self) -> &Rc<dyn Io> {
        &self.io
    }

    /// The way to this worker from other threads.
    pub fn handle(&self) -> WorkerHandle {
        WorkerHandle { index: self.index, inbox: Arc::clone(&self.inbox) }
    }

    /// Adds a hook that runs in every turn from now on.
    pub fn add_turn_hook(&self, hook: Rc<dyn TurnHook>) {
        self.hooks.borrow_mut().push(hook);
    }

    /// Tasks that have not ended.
    pub fn tasks(&self) -> usize {
        self.tasks.live()
    }

    fn drain_inbox(&self) {
        while let Some(message) = self.inbox.messages.pop() {
            message();
        }
    }

    fn run_hooks(&self) -> bool {
        let mut index = 0;
        let mut worked = false;
        loop {
            let hook = self.hooks.borrow().get(index).cloned();
            let Some(hook) = hook else { return worked };
            worked |= hook.run_turn();
            index += 1;
        }
    }

    /// Everything that can be done without waiting, within the bounds of a turn.
    fn work(&self) {
        self.now.set(self.io.now());
        TURN.set(Some(self.now.get()));
        if self.inbox.waker.begin_look() {
            self.tasks.take_remote();
            self.drain_inbox();
        }
        self.timers.fire(self.now.get());
        let mut polled = 0;
        for _ in 0..ROUNDS_PER_TURN_MAX {
            polled += self.tasks.run(TASKS_PER_TURN_MAX);
            let batched = self.run_hooks();
            self.unfinished.set(batched);
            if polled >= TASKS_PER_TURN_MAX || !(batched || self.tasks.has_ready()) {
                return;
            }
        }
    }

    fn has_work(&self) -> bool {
        self.tasks.has_ready()
            || self.unfinished.get()
            || self.inbox.waker.is_pending()
            || self.inbox.stop.load(Ordering::Acquire)
    }

    fn run(&self, poll_max: Duration) -> io::Result<()> {
        let mut poller = Poller::new(poll_max);
        while !self.inbox.stop.load(Ordering::Acquire) {
            self.work();
            if self.has_work() {
                self.io.turn(Wait::No)?;
                continue;
            }
            self.idle(&mut poller)?;
        }
        Ok(())
    }

    /// Waits for something to do: submits, polls as long as that has paid lately, then sleeps.
    fn idle(&self, poller: &mut Poller) -> io::Result<()> {
        let timer = self.timers.next();
        let since = self.now.get();
        let (mut now, mut count) = (since, self.io.turn(Wait::No)?);
        let window = if count == 0 { poller.window() } else { Duration::ZERO };
        let waits = |count, now| count == 0 && !self.has_work() && timer.is_none_or(|at| at > now);
        while waits(count, now) && now.since(since) < window {
            // Whoever we wait for may share this core.
            std::thread::yield_now();
            count = self.io.turn(Wait::No)?;
            now = self.io.now();
        }
        let sleeps = waits(count, now);
        if sleeps {
            self.io.turn(timer.map_or(Wait::Forever, Wait::Until))?;
            now = self.io.now();
        }
        poller.learn(!sleeps, window, now.since(since));
        Ok(())
    }
}

/// Closes the inbox when the worker ends, also by a panic of a driver: calls then fail instead of
/// waiting for an answer that never comes.
struct CloseInbox(Arc<Inbox>);

impl Drop for CloseInbox {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
        while self.0.messages.pop().is_some() {}
    }
}

/// The current thread is this worker's, or nobody's any more.
fn belong(local: Option<&Rc<Local>>) {
    TURN.set(local.map(|local| local.now.get()));
    let former = CURRENT.with(|current| current.replace(local.map(Rc::clone)));
    drop(former);
}

pub(super) fn run(local: &Rc<Local>, poll: Duration) {
    let _close = CloseInbox(Arc::clone(&local.inbox));
    belong(Some(local));
    if let Err(error) = local.run(poll) {
        tracing::error!("worker {} stops: {error}", local.index);
        local.inbox.stop.store(true, Ordering::Release);
    }
    local.tasks.clear();
    let hooks = std::mem::take(&mut *local.hooks.borrow_mut());
    hooks.iter().for_each(|hook| hook.end());
    belong(None);
    super::trim_pool();
}

/// Makes the current thread a worker until `future` ends: for tests, benchmarks and tools.
///
/// # Errors
/// When the engine does not work here.
///
/// # Panics
/// When the thread is a worker already.
pub fn run_on_thread<T: 'static>(
    engine: EngineChoice,
    future: impl Future<Output = T> + 'static,
) -> io::Result<T> {
    assert!(current().is_none(), "the thread is a worker already");
    run_until(&Local::new(0, engine.resolve()?)?, POLL_DEFAULT, future)
}

/// The same on an engine of a simulation, which may stop the worker.
#[cfg(test)]
pub(super) fn run_simulated<T: 'static>(
    engine: Rc<dyn Io>,
    future: impl Future<Output = T> + 'static,
) -> io::Result<T> {
    assert!(current().is_none(), "the thread is a worker already");
    let waker = Arc::new(reactor::Waker::new()?);
    run_until(&Local::on(0, engine, waker), Duration::ZERO, future)
}

fn run_until<T: 'static>(
    local: &Rc<Local>,
    poll: Duration,
    future: impl Future<Output = T> + 'static,
) -> io::Result<T> {
    belong(Some(local));
    let output = Rc::new(RefCell::new(None));
    let (slot, inbox) = (Rc::clone(&output), Arc::clone(&local.inbox));
    local.tasks.spawn(Box::pin(async move {
        let value = future.await;
        *slot.borrow_mut() = Some(value);
        inbox.stop.store(true, Ordering::Release);
    }));
    run(local, poll);
    let value = output.borrow_mut().take();
    value.ok_or_else(|| io::Error::other("the worker stopped before its task ended"))
}
