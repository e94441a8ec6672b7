//! What listeners, connections and whoever adds and ends exports have in common.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slab::Slab;

use super::listening::Listening;
use super::served::Served;
use super::server::ListenAddress;
use super::waiters::Waiters;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::GraphCell;
use crate::io::{Stream, WorkerHandle};
use crate::limits::NBD_EXPORTS_MAX;

/// State of all workers.
pub(super) struct Shared {
    pub(super) cell: Arc<GraphCell>,
    pub(super) workers: Vec<WorkerHandle>,
    registry: Mutex<Registry>,
    pub(super) connections: AtomicUsize,
    next_worker: AtomicUsize,
    pub(super) is_stopping: AtomicBool,
    /// Listeners that have not ended.
    pub(super) listeners: AtomicUsize,
    /// Of those who wait for the last connection and listener to end.
    pub(super) idle: Waiters,
}

#[derive(Default)]
pub(super) struct Registry {
    pub(super) listeners: Vec<Arc<Listening>>,
    pub(super) exports: Vec<Registered>,
}

#[derive(Clone)]
pub(super) struct Registered {
    pub(super) served: Arc<Served>,
    pub(super) listening: Arc<Listening>,
}

/// A live connection of this worker.
struct Live {
    /// The server that it belongs to.
    server: usize,
    listening: Arc<Listening>,
    stream: Rc<Stream>,
    /// What it has opened.
    served: RefCell<Option<Arc<Served>>>,
}

thread_local! {
    static LIVE: RefCell<Slab<Rc<Live>>> = RefCell::default();
}

/// Has a connection among the live ones of its worker.
pub(super) struct Connected {
    key: usize,
    live: Rc<Live>,
}

impl Connected {
    pub(super) fn new(
        shared: &Arc<Shared>,
        listening: &Arc<Listening>,
        stream: &Rc<Stream>,
    ) -> Self {
        let live = Rc::new(Live {
            server: shared.key(),
            listening: Arc::clone(listening),
            stream: Rc::clone(stream),
            served: RefCell::default(),
        });
        let key = LIVE.with(|all| all.borrow_mut().insert(Rc::clone(&live)));
        Self { key, live }
    }

    /// It has opened an export.
    pub(super) fn opens(&self, served: &Arc<Served>) {
        *self.live.served.borrow_mut() = Some(Arc::clone(served));
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        LIVE.with(|all| all.borrow_mut().remove(self.key));
    }
}

impl Shared {
    pub(super) fn new(cell: Arc<GraphCell>, workers: Vec<WorkerHandle>) -> Self {
        Self {
            cell,
            workers,
            registry: Mutex::default(),
            connections: AtomicUsize::new(0),
            next_worker: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
            listeners: AtomicUsize::new(0),
            idle: Waiters::default(),
        }
    }

    fn key(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }

    pub(super) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }

    pub(super) fn next_worker(&self) -> &WorkerHandle {
        let next = self.next_worker.fetch_add(1, Ordering::Relaxed);
        &self.workers[next % self.workers.len()]
    }

    /// Does something with those connections that are meant, on their workers.
    pub(super) fn each_stream(
        self: &Arc<Self>,
        is_meant: impl Fn(&Listening, Option<&Arc<Served>>) -> bool + Clone + Send + 'static,
        act: fn(&Stream),
    ) {
        for worker in &self.workers {
            let (server, is_meant) = (self.key(), is_meant.clone());
            // A worker that has ended has no connections either.
            let _ = worker.post(move || {
                LIVE.with(|all| {
                    let all = all.borrow();
                    let ours = all.iter().map(|(_, live)| live).filter(|it| it.server == server);
                    for live in ours {
                        if is_meant(&live.listening, live.served.borrow().as_ref()) {
                            act(&live.stream);
                        }
                    }
                });
            });
        }
    }
}

impl Registry {
    pub(super) fn find(&self, id: &str) -> Result<&Registered> {
        let found = self.exports.iter().find(|export| export.served.id == id);
        found.ok_or_else(|| {
            let known = self.exports.iter().map(|export| format!("`{}`", export.served.id));
            let known: Vec<String> = known.collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let message = format!("there is no export `{id}`; there is: {known}");
            Error::new(ErrorKind::NotFound, message)
        })
    }

    pub(super) fn check_free(&self, id: &str) -> Result<()> {
        if self.exports.iter().any(|export| export.served.id == id) {
            let message = format!("there is an export `{id}` already");
            return Err(Error::new(ErrorKind::Exists, message));
        }
        if self.exports.len() >= NBD_EXPORTS_MAX {
            let message = format!("there are {NBD_EXPORTS_MAX} exports: no more are possible");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        Ok(())
    }

    /// The listener at an address that takes exports.
    pub(super) fn at(&self, address: &ListenAddress) -> Option<&Arc<Listening>> {
        self.listeners.iter().find(|it| it.address == *address && !it.is_stopping())
    }

    pub(super) fn forget(&mut self, listening: &Arc<Listening>) {
        self.listeners.retain(|other| !Arc::ptr_eq(other, listening));
    }

    pub(super) fn add(&mut self, served: Arc<Served>, listening: &Arc<Listening>) -> Result<()> {
        self.check_free(&served.id)?;
        listening.directory.add(&served)?;
        self.exports.push(Registered { served, listening: Arc::clone(listening) });
        Ok(())
    }
}
