//! The threads of a host.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use super::engine::EngineKind;
use super::worker::{Local, WorkerHandle, WorkerOptions, run};
use crate::limits::WORKERS_MAX;

/// The workers of one host.
pub struct Workers {
    handles: Vec<WorkerHandle>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    kind: EngineKind,
}

impl Workers {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the engine asked for does not work here, or a thread cannot be started.
    pub fn start(options: &WorkerOptions) -> io::Result<Self> {
        let kind = options.engine.resolve()?;
        let mut workers = Self { handles: Vec::new(), threads: Mutex::default(), kind };
        for index in 0..options.workers.clamp(1, WORKERS_MAX) {
            let (ready, started) = crossbeam::channel::bounded(1);
            let poll = options.poll;
            let thread =
                std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                    match Local::new(index, kind) {
                        Ok(local) => {
                            let _ = ready.send(Ok(local.handle()));
                            run(&local, poll);
                        }
                        Err(error) => drop(ready.send(Err(error))),
                    }
                })?;
            workers.threads.get_mut().unwrap_or_else(PoisonError::into_inner).push(thread);
            let handle =
                started.recv().map_err(|_| io::Error::other("a worker died at start"))??;
            workers.handles.push(handle);
        }
        Ok(workers)
    }

    /// The ways to the workers, by number.
    pub fn handles(&self) -> &[WorkerHandle] {
        &self.handles
    }

    /// The engine that was chosen.
    pub fn engine(&self) -> EngineKind {
        self.kind
    }
}

impl Workers {
    /// Ends the workers; tasks that still wait are dropped, and posts fail from now on.
    pub fn stop(&self) {
        for handle in &self.handles {
            handle.inbox.stop.store(true, Ordering::SeqCst);
            handle.inbox.waker.wake();
        }
        let this = std::thread::current().id();
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A worker that stops all of them ends by itself, after this.
            if thread.thread().id() != this {
                // A worker that panicked has said so already.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}
