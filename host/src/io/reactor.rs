//! The one place where a worker waits: an epoll over its sockets, its engine's completions and a
//! wake-up that other threads can ring.
//!
//! Sockets are watched edge-triggered: readiness is remembered until a call finds it used up.

use std::cell::RefCell;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker as TaskWaker};
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use slab::Slab;

use super::time::Time;
use super::{Drained, Interest, SourceKey, Wait};

/// Key of the wake-up eventfd.
const KEY_WAKE: u64 = u64::MAX;
/// Key of a completion source (the ring); it stays readable until the engine has looked.
const KEY_COMPLETIONS: u64 = u64::MAX - 1;
/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 256;

/// Interrupts a worker's sleep from any thread, at the cost of a flag when it does not sleep.
pub(super) struct Waker {
    /// Work may have been queued since the worker last began to look.
    pending: AtomicBool,
    sleeping: AtomicBool,
    eventfd: OwnedFd,
}

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { pending: AtomicBool::new(false), sleeping: AtomicBool::new(false), eventfd })
    }

    /// Called after the work has been queued. SeqCst pairs with [`Reactor::wait`]: either this call
    /// sees `sleeping`, or the worker's last look before it sleeps sees `pending`.
    pub(super) fn wake(&self) {
        self.pending.store(true, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst) {
            // A full counter is a wake-up that is pending already.
            let _ = rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes());
        }
    }
}

impl Waker {
    /// Called before looking for queued work: what is queued later is pending again. Returns whether
    /// there may be any.
    pub(super) fn begin_look(&self) -> bool {
        self.pending.load(Ordering::Relaxed) && self.pending.swap(false, Ordering::SeqCst)
    }

    /// Whether work may have been queued since the last look began.
    pub(super) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst)
    }
}

#[derive(Default)]
struct Direction {
    ready: bool,
    /// The peer has ended this direction: no further edge will come, so readiness stays.
    ended: bool,
    waker: Option<TaskWaker>,
}

impl Direction {
    fn signal(&mut self) {
        self.ready = true;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[derive(Default)]
struct Source {
    read: Direction,
    write: Direction,
}

/// Sockets and wake-ups of one worker.
pub(super) struct Reactor {
    epoll: OwnedFd,
    sources: RefCell<Slab<Source>>,
    events: RefCell<Vec<epoll::Event>>,
    waker: Arc<Waker>,
}

impl Reactor {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = Arc::new(Waker::new()?);
        epoll::add(&epoll, &waker.eventfd, EventData::new_u64(KEY_WAKE), EventFlags::IN)?;
        Ok(Self {
            epoll,
            sources: RefCell::default(),
            events: RefCell::new(Vec::with_capacity(EVENTS_MAX)),
            waker,
        })
    }

    pub(super) fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    /// Ends sleeps when `fd` (an engine's completion queue) becomes readable.
    pub(super) fn watch_completions(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let key = EventData::new_u64(KEY_COMPLETIONS);
        Ok(epoll::add(&self.epoll, fd, key, EventFlags::IN)?)
    }

    pub(super) fn watch(&self, fd: BorrowedFd<'_>) -> io::Result<SourceKey> {
        let key = self.sources.borrow_mut().insert(Source::default());
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        if let Err(error) = epoll::add(&self.epoll, fd, EventData::new_u64(key as u64), flags) {
            self.sources.borrow_mut().remove(key);
            return Err(error.into());
        }
        Ok(SourceKey(key))
    }

    pub(super) fn unwatch(&self, fd: BorrowedFd<'_>, key: SourceKey) {
        // The kernel forgets a closed descriptor by itself; an error here has no consequence.
        let _ = epoll::delete(&self.epoll, fd);
        self.sources.borrow_mut().try_remove(key.0);
    }

    pub(super) fn poll_ready(
        &self,
        key: SourceKey,
        interest: Interest,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let mut sources = self.sources.borrow_mut();
        let Some(source) = sources.get_mut(key.0) else { return Poll::Ready(()) };
        let direction = direction(source, interest);
        if direction.ready {
            return Poll::Ready(());
        }
        direction.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(super) fn clear_ready(&self, key: SourceKey, interest: Interest, drained: Drained) {
        if let Some(source) = self.sources.borrow_mut().get_mut(key.0) {
            let direction = direction(source, interest);
            direction.ready = drained == Drained::Likely && direction.ended;
        }
    }

    /// Whether anything is watched beside the engine's own descriptors.
    pub(super) fn has_sources(&self) -> bool {
        !self.sources.borrow().is_empty()
    }

    /// Gathers readiness, waiting as told. Returns the number of events.
    pub(super) fn wait(&self, wait: Wait, now: Time) -> io::Result<usize> {
        let timeout = match wait {
            Wait::No => Some(Duration::ZERO),
            Wait::Until(at) => Some(at.since(now)),
            Wait::Forever => None,
        };
        if timeout == Some(Duration::ZERO) {
            return self.poll(Some(Duration::ZERO));
        }
        self.waker.sleeping.store(true, Ordering::SeqCst);
        let timeout = if self.waker.is_pending() { Some(Duration::ZERO) } else { timeout };
        let count = self.poll(timeout);
        self.waker.sleeping.store(false, Ordering::SeqCst);
        count
    }

    fn poll(&self, timeout: Option<Duration>) -> io::Result<usize> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut events = self.events.borrow_mut();
        events.clear();
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut *events),
            timeout.as_ref(),
        ) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(0),
            Err(error) => return Err(error.into()),
        }
        for event in events.iter() {
            match event.data.u64() {
                KEY_WAKE => {
                    let mut count = [0; 8];
                    let _ = rustix::io::read(&self.waker.eventfd, &mut count);
                }
                KEY_COMPLETIONS => {}
                key => self.signal(key, event.flags),
            }
        }
        Ok(events.len())
    }

    fn signal(&self, key: u64, flags: EventFlags) {
        let mut sources = self.sources.borrow_mut();
        let source = usize::try_from(key).ok().and_then(|key| sources.get_mut(key));
        let Some(source) = source else { return };
        let ended = EventFlags::HUP | EventFlags::ERR;
        source.read.ended |= flags.intersects(EventFlags::RDHUP | ended);
        source.write.ended |= flags.intersects(ended);
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | ended) {
            source.read.signal();
        }
        if flags.intersects(EventFlags::OUT | ended) {
            source.write.signal();
        }
    }
}

fn direction(source: &mut Source, interest: Interest) -> &mut Direction {
    match interest {
        Interest::Read => &mut source.read,
        Interest::Write => &mut source.write,
    }
}
