//! Threads for calculations that would hold a worker up. One pool for the process; threads start when there
//! is work for them.
//!
//! What a guest waits for goes before what only jobs wait for, and has a thread: those of jobs take at most one a core,
//! and there is one thread more. They always have one of them. When a guest comes to wait for a job's piece, that is
//! hurried ([`Computed::hurry`]) and goes with what guests wait for; one that runs already ends within some tens of
//! milliseconds.

mod pool;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::limits::ASIDE_MAX;
use pool::Pool;

/// Who waits for a calculation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A guest, or whoever else is to be answered soon.
    Now,
    /// What runs in the background.
    Later,
}

enum State<T> {
    Waiting(Option<Waker>),
    Done(T),
    /// Given up, or taken.
    Gone,
}

struct Shared<T>(Mutex<State<T>>);

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, next: State<T>) {
        let before = std::mem::replace(&mut *self.state(), next);
        if let State::Waiting(Some(waker)) = before {
            waker.wake();
        }
    }
}

/// Whose result is awaited.
struct Calculation<T>(Arc<Shared<T>>);

impl<T> Drop for Calculation<T> {
    fn drop(&mut self) {
        let is_waited_for = matches!(*self.0.state(), State::Waiting(_));
        if is_waited_for {
            self.0.set(State::Gone);
        }
    }
}

/// The result of a calculation, once it is there. Dropped, the calculation goes on for nobody.
pub struct Computed<T> {
    shared: Arc<Shared<T>>,
    /// Its number among those that are for later.
    later: Option<(&'static Pool, u64)>,
}

impl<T> Computed<T> {
    fn new(shared: Arc<Shared<T>>) -> Self {
        Self { shared, later: None }
    }

    /// From now on somebody waits for it who is to be answered soon: if it has not begun, it goes on as one of
    /// [`Urgency::Now`].
    pub fn hurry(&mut self) {
        if let Some((pool, number)) = self.later.take() {
            pool.hurry(number);
        }
    }
}

impl<T> Future for Computed<T> {
    type Output = io::Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.shared.state();
        match &mut *state {
            State::Waiting(waker) => {
                waker.get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
                Poll::Pending
            }
            _ => Poll::Ready(match std::mem::replace(&mut *state, State::Gone) {
                State::Done(value) => Ok(value),
                _ => Err(io::Error::other("a calculation did not come to its end")),
            }),
        }
    }
}

/// Runs `f` on a thread for calculations; where there is none, or too much waits already, at once. In a simulation
/// always at once: nothing there depends on other threads.
pub fn compute<T: Send + 'static>(
    urgency: Urgency,
    f: impl FnOnce() -> T + Send + 'static,
) -> Computed<T> {
    #[cfg(test)]
    if super::sim::is_simulated() {
        return Computed::new(Arc::new(Shared(Mutex::new(State::Done(f())))));
    }
    compute_in(Pool::get(), urgency, f)
}

fn compute_in<T: Send + 'static>(
    pool: &'static Pool,
    urgency: Urgency,
    f: impl FnOnce() -> T + Send + 'static,
) -> Computed<T> {
    let shared = Arc::new(Shared(Mutex::new(State::Waiting(None))));
    let calculation = Calculation(Arc::clone(&shared));
    let job = move || {
        let value = f();
        calculation.0.set(State::Done(value));
    };
    let later = pool.run(urgency, Box::new(job)).map(|number| (pool, number));
    Computed { shared, later }
}

/// Openings under way that nobody may be waiting for any more.
static ASIDE: AtomicUsize = AtomicUsize::new(0);

/// A thread aside, until it has ended.
struct Aside;

impl Drop for Aside {
    fn drop(&mut self) {
        ASIDE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs `f`, which may block for as long as a file system pleases, on a thread of its own; in a simulation at once. Dropped,
/// it goes on for nobody. Control path.
///
/// # Errors
/// `EAGAIN` when [`ASIDE_MAX`] have not ended; when no thread can be started.
pub fn aside<T: Send + 'static>(
    name: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Computed<T>> {
    #[cfg(test)]
    if super::sim::is_simulated() {
        return Ok(Computed::new(Arc::new(Shared(Mutex::new(State::Done(f()))))));
    }
    let next = |count: usize| (count < ASIDE_MAX).then_some(count + 1);
    if ASIDE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_err() {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let (shared, counted) = (Arc::new(Shared(Mutex::new(State::Waiting(None)))), Aside);
    let calculation = Calculation(Arc::clone(&shared));
    super::background(name, move || {
        let _counted = counted;
        let value = f();
        calculation.0.set(State::Done(value));
    })?;
    Ok(Computed::new(shared))
}
