//! Threads for calculations that would hold a worker up. One pool for the process; threads start when there
//! is work for them.
//!
//! What a guest waits for goes before what only jobs wait for, and has a thread: those of jobs take at most one a core,
//! and there is one thread more. They always have one of them, as a guest may wait for a job's piece.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::limits::{ASIDE_MAX, COMPUTE_QUEUE_MAX, COMPUTE_THREADS_MAX};

/// Who waits for a calculation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A guest, or whoever else is to be answered soon.
    Now,
    /// What runs in the background.
    Later,
}

type Job = Box<dyn FnOnce() + Send>;

/// What waits, and who works.
#[derive(Default)]
struct Queues {
    now: VecDeque<Job>,
    later: VecDeque<Job>,
    threads: usize,
    idle: usize,
    /// Threads that work at what need not be done now.
    patient: usize,
}

struct Pool {
    queues: Mutex<Queues>,
    has_work: Condvar,
    /// Most threads that work at what need not be done now.
    patient_max: usize,
}

impl Pool {
    fn new(patient_max: usize) -> Self {
        Self { queues: Mutex::default(), has_work: Condvar::new(), patient_max }
    }

    fn get() -> &'static Self {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(|| {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            Self::new(cores.min(COMPUTE_THREADS_MAX))
        })
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a job, here if nobody else can.
    fn run(&'static self, urgency: Urgency, job: Job) {
        match self.enqueue(urgency, job) {
            Ok(()) => self.has_work.notify_one(),
            // Whoever waits for one that has panicked is told.
            Err(job) => drop(catch_unwind(AssertUnwindSafe(job))),
        }
    }

    /// Gives a job back for which there is no thread, or no place.
    fn enqueue(&'static self, urgency: Urgency, job: Job) -> Result<(), Job> {
        let mut queues = self.queues();
        let threads_max = self.patient_max + usize::from(urgency == Urgency::Now);
        if queues.idle <= queues.now.len() + queues.later.len()
            && queues.threads < threads_max
            && super::background("compute", move || self.work()).is_ok()
        {
            queues.threads += 1;
        }
        let is_served = match urgency {
            // Not behind those of jobs alone.
            Urgency::Now => queues.threads > queues.patient,
            Urgency::Later => queues.threads > 0,
        };
        let queue = match urgency {
            Urgency::Now => &mut queues.now,
            Urgency::Later => &mut queues.later,
        };
        if !is_served || queue.len() >= COMPUTE_QUEUE_MAX {
            return Err(job);
        }
        queue.push_back(job);
        Ok(())
    }

    fn work(&self) {
        loop {
            let (urgency, job) = self.next();
            // Whoever waits for one that has panicked is told.
            let _ = catch_unwind(AssertUnwindSafe(job));
            if urgency == Urgency::Later {
                self.queues().patient -= 1;
            }
        }
    }

    /// Waits for a job. Whoever ends a patient one comes here next, so that none is left behind while others are idle.
    fn next(&self) -> (Urgency, Job) {
        let mut queues = self.queues();
        loop {
            let is_jobs_turn = queues.patient == 0 && !queues.later.is_empty();
            if !is_jobs_turn && let Some(job) = queues.now.pop_front() {
                return (Urgency::Now, job);
            }
            if queues.patient < self.patient_max
                && let Some(job) = queues.later.pop_front()
            {
                queues.patient += 1;
                return (Urgency::Later, job);
            }
            queues.idle += 1;
            queues = self.has_work.wait(queues).unwrap_or_else(PoisonError::into_inner);
            queues.idle -= 1;
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
pub fn compute<T: Send + 'static>(
    urgency: Urgency,
    f: impl FnOnce() -> T + Send + 'static,
) -> Computed<T> {
    #[cfg(test)]
    if super::sim::is_simulated() {
        return Computed(Arc::new(Shared(Mutex::new(State::Done(f())))));
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
    pool.run(urgency, Box::new(job));
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
                .map(|number| {
                    let urgency = if number % 2 == 0 { Urgency::Now } else { Urgency::Later };
                    compute(urgency, move || (number, std::thread::current().id()))
                })
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
            let mut failed = true;
            for urgency in [Urgency::Now, Urgency::Later] {
                let panics = compute(urgency, || -> u64 { panic!("on purpose") });
                failed &= panics.await.is_err();
                failed &= compute(urgency, || true).await.expect("the next one is computed");
            }
            failed
        });
        assert!(failed.expect("a worker"));
    }

    /// Blocks a thread until it is let go.
    fn blocks(
        pool: &'static Pool,
        urgency: Urgency,
    ) -> (crossbeam::channel::Sender<()>, Computed<()>) {
        let (begins, begun) = crossbeam::channel::bounded(1);
        let (go_on, wait) = crossbeam::channel::bounded::<()>(1);
        let computed = compute_in(pool, urgency, move || {
            let _ = begins.send(());
            let _ = wait.recv();
        });
        begun.recv().expect("it has begun");
        (go_on, computed)
    }

    /// When a thread of jobs is free again, what a guest waits for has it first, as long as they keep one; what
    /// comes to it alone does not wait for jobs.
    #[test]
    fn what_a_guest_waits_for_goes_first_and_jobs_go_on() {
        let pool: &'static Pool = Box::leak(Box::new(Pool::new(2)));
        let (order, taken) = std::sync::mpsc::channel();
        let done = run_on_thread(EngineChoice::Auto, async move {
            let say = |urgency, word: &'static str| {
                let order = order.clone();
                compute_in(pool, urgency, move || order.send(word).is_ok())
            };
            let (go_first, first) = blocks(pool, Urgency::Later);
            let (go_second, second) = blocks(pool, Urgency::Later);
            assert!(say(Urgency::Now, "a thread more").await.expect("computed"));
            let (go_third, third) = blocks(pool, Urgency::Now);
            // No thread is left.
            let rest = [
                say(Urgency::Later, "a job"),
                say(Urgency::Now, "a guest"),
                say(Urgency::Now, "another guest"),
            ];
            drop(go_first);
            for computed in rest {
                assert!(computed.await.expect("computed"));
            }
            // Guests have all threads but one; jobs get the next.
            drop((go_second, go_third));
            for computed in [first, second, third] {
                computed.await.expect("computed");
            }
        });
        done.expect("a worker");
        let order: Vec<&str> = taken.iter().collect();
        assert_eq!(order, ["a thread more", "a guest", "another guest", "a job"]);
    }

    /// However much guests want, jobs come to an end.
    #[test]
    fn jobs_keep_a_thread() {
        let pool: &'static Pool = Box::leak(Box::new(Pool::new(1)));
        let (order, taken) = std::sync::mpsc::channel();
        let done = run_on_thread(EngineChoice::Auto, async move {
            let (go_first, first) = blocks(pool, Urgency::Now);
            let (go_second, second) = blocks(pool, Urgency::Now);
            let mut rest = Vec::new();
            for (urgency, word) in
                [(Urgency::Now, "a guest"), (Urgency::Now, "another"), (Urgency::Later, "a job")]
            {
                let order = order.clone();
                rest.push(compute_in(pool, urgency, move || order.send(word).is_ok()));
            }
            drop(go_first);
            for computed in rest {
                assert!(computed.await.expect("computed"));
            }
            drop(go_second);
            for computed in [first, second] {
                computed.await.expect("computed");
            }
        });
        done.expect("a worker");
        let order: Vec<&str> = taken.iter().collect();
        assert_eq!(order, ["a job", "a guest", "another"]);
    }
}
