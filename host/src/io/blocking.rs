//! Threads for calls that block: all file operations of the thread engine, and those without a ring
//! opcode. One pool for the process; threads start when there is more work than idle threads.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use super::file::File;
use super::ops::{Completions, FileOp, OpOutput};
use crate::limits::{BLOCKING_QUEUE_MAX, BLOCKING_THREADS_MAX};

struct Job {
    file: Arc<File>,
    op: FileOp,
    key: usize,
    completions: Arc<Completions>,
}

struct BlockingPool {
    jobs: Sender<Job>,
    incoming: Receiver<Job>,
    threads: AtomicUsize,
    idle: AtomicUsize,
}

impl BlockingPool {
    fn get() -> &'static Self {
        static POOL: OnceLock<BlockingPool> = OnceLock::new();
        POOL.get_or_init(|| {
            let (jobs, incoming) = bounded(BLOCKING_QUEUE_MAX);
            Self { jobs, incoming, threads: AtomicUsize::new(0), idle: AtomicUsize::new(0) }
        })
    }

    fn grow(&'static self) -> io::Result<()> {
        let threads = self.threads.load(Ordering::Relaxed);
        let enough = self.idle.load(Ordering::Relaxed) > self.jobs.len();
        if threads > 0 && (enough || threads >= BLOCKING_THREADS_MAX) {
            return Ok(());
        }
        self.threads.fetch_add(1, Ordering::Relaxed);
        let started = std::thread::Builder::new()
            .name(format!("blocking-{threads}"))
            .spawn(move || self.work());
        if let Err(error) = started {
            self.threads.fetch_sub(1, Ordering::Relaxed);
            // With at least one thread running, the job is only slower.
            return if threads > 0 { Ok(()) } else { Err(error) };
        }
        Ok(())
    }

    fn work(&self) {
        loop {
            self.idle.fetch_add(1, Ordering::Relaxed);
            let job = self.incoming.recv();
            self.idle.fetch_sub(1, Ordering::Relaxed);
            let Ok(mut job) = job else { return };
            let result = job.file.run(&mut job.op);
            job.completions.push(job.key, OpOutput { result, op: job.op });
        }
    }
}

/// Runs `op` on a blocking thread; its end arrives at `completions`. A full queue ends it with `EAGAIN`.
pub(super) fn start(file: &Arc<File>, op: FileOp, key: usize, completions: &Arc<Completions>) {
    let pool = BlockingPool::get();
    let job = Job { file: Arc::clone(file), op, key, completions: Arc::clone(completions) };
    let refused = match pool.grow() {
        Ok(()) => pool.jobs.try_send(job).map_err(|error| {
            let error_kind = io::Error::from(io::ErrorKind::WouldBlock);
            match error {
                TrySendError::Full(job) | TrySendError::Disconnected(job) => (job, error_kind),
            }
        }),
        Err(error) => Err((job, error)),
    };
    if let Err((job, error)) = refused {
        job.completions.push(job.key, OpOutput { result: Err(error), op: job.op });
    }
}

/// Runs `f` for each item at once, one thread each, and waits for all of them. Control path.
pub fn in_parallel<T: Send>(items: Vec<T>, f: impl Fn(T) + Sync) {
    if items.len() <= 1 {
        return items.into_iter().for_each(f);
    }
    std::thread::scope(|scope| {
        for item in items {
            let f = &f;
            scope.spawn(move || f(item));
        }
    });
}

/// Runs `f` on a thread of its own that nobody waits for. Control path.
///
/// # Errors
/// When no thread can be started.
pub fn background(name: &str, f: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(f).map(drop)
}
