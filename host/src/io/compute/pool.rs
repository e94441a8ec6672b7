//! The threads, and what waits for one.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use super::Urgency;
use crate::limits::{COMPUTE_QUEUE_MAX, COMPUTE_THREADS_MAX};

type Job = Box<dyn FnOnce() + Send>;

/// What waits, and who works.
#[derive(Default)]
struct Queues {
    now: VecDeque<Job>,
    /// With their numbers, ascending.
    later: VecDeque<(u64, Job)>,
    next_number: u64,
    threads: usize,
    idle: usize,
    /// Threads that work at what need not be done now.
    patient: usize,
}

/// See the module above.
pub(super) struct Pool {
    queues: Mutex<Queues>,
    has_work: Condvar,
    /// Most threads that work at what need not be done now.
    patient_max: usize,
}

impl Pool {
    pub(super) fn new(patient_max: usize) -> Self {
        Self { queues: Mutex::default(), has_work: Condvar::new(), patient_max }
    }

    pub(super) fn get() -> &'static Self {
        #[cfg(test)]
        if let Some(own) = super::testing::own_pool() {
            return own;
        }
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(|| {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            Self::new(cores.min(COMPUTE_THREADS_MAX))
        })
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a job, here if nobody else can. Returns its number, if it may be hurried.
    pub(super) fn run(&'static self, urgency: Urgency, job: Job) -> Option<u64> {
        match self.enqueue(urgency, job) {
            Ok(number) => {
                self.has_work.notify_one();
                number
            }
            // Whoever waits for one that has panicked is told.
            Err(job) => {
                drop(catch_unwind(AssertUnwindSafe(job)));
                None
            }
        }
    }

    /// Gives a job back for which there is no thread, or no place.
    fn enqueue(&'static self, urgency: Urgency, job: Job) -> Result<Option<u64>, Job> {
        let mut queues = self.queues();
        if !self.has_place(&mut queues, urgency) {
            return Err(job);
        }
        match urgency {
            Urgency::Now => {
                queues.now.push_back(job);
                Ok(None)
            }
            Urgency::Later => {
                let number = queues.next_number;
                queues.next_number += 1;
                queues.later.push_back((number, job));
                Ok(Some(number))
            }
        }
    }

    /// Whether there is a place for one more, and a thread that comes to it, which starts if there is to be one more.
    fn has_place(&'static self, queues: &mut Queues, urgency: Urgency) -> bool {
        let threads_max = self.patient_max + usize::from(urgency == Urgency::Now);
        if queues.idle <= queues.now.len() + queues.later.len()
            && queues.threads < threads_max
            && crate::io::background("compute", move || self.work()).is_ok()
        {
            queues.threads += 1;
        }
        match urgency {
            // Not behind those of jobs alone.
            Urgency::Now => queues.threads > queues.patient && queues.now.len() < COMPUTE_QUEUE_MAX,
            Urgency::Later => queues.threads > 0 && queues.later.len() < COMPUTE_QUEUE_MAX,
        }
    }

    /// A job that was for later is for now, unless it has begun, or there is no place for it: then it stays.
    pub(super) fn hurry(&'static self, number: u64) {
        let mut queues = self.queues();
        let Ok(index) = queues.later.binary_search_by_key(&number, |(number, _)| *number) else {
            return;
        };
        if !self.has_place(&mut queues, Urgency::Now) {
            return;
        }
        if let Some((_, job)) = queues.later.remove(index) {
            queues.now.push_back(job);
        }
        drop(queues);
        self.has_work.notify_one();
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
                && let Some((_, job)) = queues.later.pop_front()
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
