//! Threads for calculations that would hold a worker up. One pool for the process; threads start when there
//! is work for them, at most one a core.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::limits::{ASIDE_MAX, COMPUTE_QUEUE_MAX, COMPUTE_THREADS_MAX};

type Job = Box<dyn FnOnce() + Send>;

struct Pool {
    jobs: Sender<Job>,
    incoming: Receiver<Job>,
    threads: AtomicUsize,
    threads_max: usize,
}

impl Pool {
    fn get() -> &'static Self {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(|| {
            let (jobs, incoming) = bounded(COMPUTE_QUEUE_MAX);
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let threads_max = cores.min(COMPUTE_THREADS_MAX);
            Self { jobs, incoming, threads: AtomicUsize::new(0), threads_max }
        })
    }

    /// Runs a job, here if nobody else can.
    fn run(&'static self, job: Job) {
        if self.threads.fetch_add(1, Ordering::Relaxed) >= self.threads_max
            || super::background("compute", || self.work()).is_err()
        {
            self.threads.fetch_sub(1, Ordering::Relaxed);
        }
        if self.threads.load(Ordering::Relaxed) == 0 {
            return job();
        }
        if let Err(refused) = self.jobs.try_send(job) {
            refused.into_inner()();
        }
    }

    fn work(&self) {
        while let Ok(job) = self.incoming.recv() {
            // Whoever waits for one that has panicked is told.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }
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
pub struct Computed<T>(Arc<Shared<T>>);

impl<T> Future for Computed<T> {
    type Output = io::Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.state();
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
pub fn compute<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Computed<T> {
    #[cfg(test)]
    if super::sim::is_simulated() {
        return Computed(Arc::new(Shared(Mutex::new(State::Done(f())))));
    }
    let shared = Arc::new(Shared(Mutex::new(State::Waiting(None))));
    let calculation = Calculation(Arc::clone(&shared));
    Pool::get().run(Box::new(move || {
        let value = f();
        calculation.0.set(State::Done(value));
    }));
    Computed(shared)
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
        return Ok(Computed(Arc::new(Shared(Mutex::new(State::Done(f()))))));
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
    Ok(Computed(shared))
}

#[cfg(test)]
mod tests {
    use super::super::{EngineChoice, run_on_thread};
    use super::*;

    #[test]
    fn results_come_from_other_threads() {
        let sum = run_on_thread(EngineChoice::Auto, async {
            let here = std::thread::current().id();
            let all: Vec<_> = (0..100_u64)
                .map(|number| compute(move || (number, std::thread::current().id())))
                .collect();
            let mut sum = 0;
            for computed in all {
                let (number, thread) = computed.await.expect("computed");
                assert_ne!(thread, here);
                sum += number;
            }
            sum
        });
        assert_eq!(sum.expect("a worker"), 4950);
    }

    #[test]
    fn a_panic_is_an_error_for_who_waits() {
        let failed = run_on_thread(EngineChoice::Auto, async {
            let panics = compute(|| -> u64 { panic!("on purpose") });
            let failed = panics.await.is_err();
            failed && compute(|| true).await.expect("the next one is computed")
        });
        assert!(failed.expect("a worker"));
    }
}
