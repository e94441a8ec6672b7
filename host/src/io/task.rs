//! The executor of one worker: single-threaded, first-in first-out, futures never move.
//!
//! A task's slot keeps its waker for the slot's whole life, so spawning costs one box. A waker that
//! outlives its task may wake the slot's next tenant: a spurious wake, which every future allows.
//! Wakes from the worker's own thread go to a plain queue, without an atomic exchange; wakes from
//! elsewhere go through [`RemoteReady`], interrupt the worker's sleep, and are taken over when its next
//! turn begins. A task woken both ways is polled once.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam::queue::SegQueue;

use super::reactor::Waker as SleepWaker;

/// A future of this worker.
pub type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

thread_local! {
    /// The executor that owns the current thread; 0 for none.
    static THREAD_EXECUTOR: Cell<u64> = const { Cell::new(0) };
    static THREAD_READY: RefCell<VecDeque<usize>> = const { RefCell::new(VecDeque::new()) };
}

/// Wakes that come from other threads. Bounded by the number of tasks: each is queued once at most.
pub(super) struct RemoteReady {
    executor: u64,
    queue: SegQueue<usize>,
    sleeper: Arc<SleepWaker>,
}

struct TaskWaker {
    remote: Arc<RemoteReady>,
    index: usize,
    /// In the plain queue. Only the worker's own thread looks at it.
    is_ready: AtomicBool,
    /// In the queue of wakes from other threads.
    is_remote: AtomicBool,
}

impl TaskWaker {
    #[inline]
    fn schedule(&self) {
        if THREAD_EXECUTOR.with(Cell::get) == self.remote.executor {
            self.make_ready();
        } else if !self.is_remote.swap(true, Ordering::AcqRel) {
            self.remote.queue.push(self.index);
            self.remote.sleeper.wake();
        }
    }

    /// On the worker's own thread.
    #[inline]
    fn make_ready(&self) {
        if !self.is_ready.load(Ordering::Relaxed) {
            self.is_ready.store(true, Ordering::Relaxed);
            THREAD_READY.with(|ready| ready.borrow_mut().push_back(self.index));
        }
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.schedule();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.schedule();
    }
}

/// Whether a task of the current thread's executor is ready to be polled.
#[inline]
pub(super) fn has_ready() -> bool {
    THREAD_READY.with(|ready| !ready.borrow().is_empty())
}

struct Slot {
    /// `None` while the task is being polled, and when the slot is free.
    future: Option<LocalFuture>,
    waker: Waker,
    state: Arc<TaskWaker>,
}

/// The tasks of one worker.
pub(super) struct Tasks {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<usize>>,
    live: Cell<usize>,
    remote: Arc<RemoteReady>,
}

impl Tasks {
    /// An executor bound to the current thread.
    pub(super) fn new(sleeper: Arc<SleepWaker>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let executor = NEXT.fetch_add(1, Ordering::Relaxed);
        THREAD_EXECUTOR.with(|current| current.set(executor));
        THREAD_READY.with(|ready| ready.borrow_mut().clear());
        Self {
            slots: RefCell::default(),
            free: RefCell::default(),
            live: Cell::new(0),
            remote: Arc::new(RemoteReady { executor, queue: SegQueue::new(), sleeper }),
        }
    }

    /// Adds a task; it is polled later in this turn.
    pub(super) fn spawn(&self, future: LocalFuture) {
        let mut slots = self.slots.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or(slots.len());
        if index == slots.len() {
            let state = Arc::new(TaskWaker {
                remote: Arc::clone(&self.remote),
                index,
                is_ready: AtomicBool::new(false),
                is_remote: AtomicBool::new(false),
            });
            let waker = Waker::from(Arc::clone(&state));
            slots.push(Slot { future: None, waker, state });
        }
        slots[index].future = Some(future);
        self.live.set(self.live.get() + 1);
        slots[index].state.schedule();
    }

    /// Tasks that have not ended.
    pub(super) fn live(&self) -> usize {
        self.live.get()
    }

    /// Polls ready tasks, at most `limit`, in the order in which they became ready; returns how many.
    pub(super) fn run(&self, limit: usize) -> usize {
        let mut count = 0;
        while count < limit {
            let Some(index) = self.next_ready() else { break };
            self.poll(index);
            count += 1;
        }
        count
    }

    fn next_ready(&self) -> Option<usize> {
        #[cfg(test)]
        if let Some(choice) = super::sim::choose_task(THREAD_READY.with_borrow(VecDeque::len)) {
            return THREAD_READY.with_borrow_mut(|ready| ready.remove(choice?));
        }
        THREAD_READY.with(|ready| ready.borrow_mut().pop_front())
    }

    /// Takes over what other threads have woken.
    pub(super) fn take_remote(&self) {
        let slots = self.slots.borrow();
        while let Some(index) = self.remote.queue.pop() {
            let state = &slots[index].state;
            // A full exchange: what the future reads from now on is not older than the flag.
            state.is_remote.swap(false, Ordering::AcqRel);
            state.make_ready();
        }
    }

    /// Whether a task is ready to be polled. Wakes of other threads are pending at the reactor's waker.
    pub(super) fn has_ready(&self) -> bool {
        has_ready()
    }

    fn poll(&self, index: usize) {
        // The waker is lent out with the future: counting it for each poll would cost two atomics.
        let (mut future, waker) = {
            let slot = &mut self.slots.borrow_mut()[index];
            slot.state.is_ready.store(false, Ordering::Relaxed);
            let Some(future) = slot.future.take() else { return };
            (future, std::mem::replace(&mut slot.waker, Waker::noop().clone()))
        };
        let outcome = future.as_mut().poll(&mut Context::from_waker(&waker));
        if outcome == Poll::Pending {
            let slot = &mut self.slots.borrow_mut()[index];
            (slot.future, slot.waker) = (Some(future), waker);
            return;
        }
        // Dropping may run anything, also `spawn`: no borrow is held meanwhile.
        drop(future);
        self.slots.borrow_mut()[index].waker = waker;
        self.free.borrow_mut().push(index);
        self.live.set(self.live.get() - 1);
    }

    /// Drops all tasks, also those that wait.
    pub(super) fn clear(&self) {
        loop {
            let futures: Vec<LocalFuture> = {
                let mut slots = self.slots.borrow_mut();
                slots.iter_mut().filter_map(|slot| slot.future.take()).collect()
            };
            if futures.is_empty() {
                break;
            }
        }
        self.live.set(0);
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.clear();
        THREAD_EXECUTOR.with(|current| {
            if current.get() == self.remote.executor {
                current.set(0);
            }
        });
    }
}
