//! Listeners, and the spreading of their connections over the workers.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use slab::Slab;

use super::connection;
use super::directory::{Directory, Export};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{GraphCell, LocalGraph};
use crate::io::{Listener, Stream, WorkerHandle, sleep_until, spawn, turn_now};
use crate::limits::NBD_CONNECTIONS_MAX;

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP address; port 0 takes a free one.
    Tcp(SocketAddr),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// State of all workers.
struct Shared {
    cell: Arc<GraphCell>,
    workers: Vec<WorkerHandle>,
    connections: AtomicUsize,
    next_worker: AtomicUsize,
    stopping: AtomicBool,
    idle: Mutex<Vec<Waker>>,
}

/// The NBD side of a host.
pub struct NbdServer {
    shared: Arc<Shared>,
}

thread_local! {
    /// Live connections of this worker, with the server they belong to.
    static STREAMS: RefCell<Slab<(usize, Rc<Stream>)>> = RefCell::default();
}

impl Shared {
    fn key(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }
}

impl NbdServer {
    /// A server without listeners.
    pub fn new(cell: Arc<GraphCell>, workers: Vec<WorkerHandle>) -> Self {
        let shared = Shared {
            cell,
            workers,
            connections: AtomicUsize::new(0),
            next_worker: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            idle: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Begins to serve `exports` at `address`; returns where it listens (a port 0 is replaced).
    ///
    /// # Errors
    /// When the address is taken or cannot be used.
    pub fn listen(&self, address: &ListenAddress, exports: Vec<Export>) -> Result<ListenAddress> {
        let listener = match address {
            ListenAddress::Unix(path) => Listener::unix(path),
            ListenAddress::Tcp(address) => Listener::tcp(*address),
        };
        let listener =
            listener.map_err(|error| Error::os(format!("cannot listen on {address}"), &error))?;
        let bound = listener.tcp_address().map_or_else(|| address.clone(), ListenAddress::Tcp);
        let directory = Arc::new(Directory { cell: Arc::clone(&self.shared.cell), exports });
        let shared = Arc::clone(&self.shared);
        let Some(worker) = self.shared.workers.first() else {
            return Err(Error::new(ErrorKind::ShuttingDown, "the host has no workers"));
        };
        worker.post(move || spawn(accept_all(listener, shared, directory)))?;
        Ok(bound)
    }

    /// Clients connected now.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Stops accepting and receiving; requests in progress end and are answered.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.each_stream(|stream| stream.shutdown_receive());
    }

    /// Waits until every connection has ended. After [`NbdServer::stop`].
    pub async fn stopped(&self) {
        std::future::poll_fn(|cx| {
            let mut idle = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if self.connections() == 0 {
                return Poll::Ready(());
            }
            idle.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn each_stream(&self, act: fn(&Stream)) {
        for worker in &self.shared.workers {
            let key = self.shared.key();
            // A worker that has ended has no connections either.
            let _ = worker.post(move || {
                STREAMS.with(|streams| {
                    for (_, (of, stream)) in &*streams.borrow() {
                        if *of == key {
                            act(stream);
                        }
                    }
                });
            });
        }
    }
}

async fn accept_all(listener: Listener, shared: Arc<Shared>, directory: Arc<Directory>) {
    let listener = match listener.attach() {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("cannot watch a listener: {error}");
            return;
        }
    };
    loop {
        let fd = match listener.accept().await {
            Ok(fd) => fd,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                sleep_until(turn_now() + ACCEPT_PAUSE).await;
                continue;
            }
        };
        let full = shared.connections.load(Ordering::Relaxed) >= NBD_CONNECTIONS_MAX;
        if full || shared.stopping.load(Ordering::SeqCst) {
            tracing::warn!("refused a connection: {NBD_CONNECTIONS_MAX} clients are connected");
            continue;
        }
        dispatch(fd, &shared, &directory);
    }
}

/// Hands a connection to the next worker.
fn dispatch(fd: OwnedFd, shared: &Arc<Shared>, directory: &Arc<Directory>) {
    let next = shared.next_worker.fetch_add(1, Ordering::Relaxed) % shared.workers.len();
    let counted = Counted::new(Arc::clone(shared));
    let directory = Arc::clone(directory);
    let posted = shared.workers[next].post(move || spawn(serve(fd, counted, directory)));
    if let Err(error) = posted {
        tracing::warn!("dropped a connection: {error}");
    }
}

async fn serve(fd: OwnedFd, counted: Counted, directory: Arc<Directory>) {
    let stream = match Stream::attach(fd) {
        Ok(stream) => Rc::new(stream),
        Err(error) => {
            tracing::warn!("cannot watch a connection: {error}");
            return;
        }
    };
    let shared = &counted.shared;
    let entry = (shared.key(), Rc::clone(&stream));
    let key = STREAMS.with(|streams| streams.borrow_mut().insert(entry));
    if shared.stopping.load(Ordering::SeqCst) {
        stream.shutdown();
    }
    connection::serve(stream, &directory, &LocalGraph::of(&shared.cell)).await;
    STREAMS.with(|streams| streams.borrow_mut().remove(key));
}

/// Counts a connection from accept to its end.
struct Counted {
    shared: Arc<Shared>,
}

impl Counted {
    fn new(shared: Arc<Shared>) -> Self {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        Self { shared }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        let idle =
            std::mem::take(&mut *self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner));
        idle.into_iter().for_each(Waker::wake);
    }
}
