//! Listeners, and the spreading of their connections over the workers.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::pin;
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
use crate::io::{AttachedListener, Listener, Stream, WorkerHandle, sleep_until, spawn, turn_now};
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

/// An export that is served.
#[derive(Clone, Debug)]
pub struct ServedExport {
    /// The name that clients ask for.
    pub name: String,
    /// The drive's id.
    pub drive: String,
    /// Where it is served.
    pub listen: ListenAddress,
    /// Whether clients may change it.
    pub writable: bool,
    /// The names of the bitmaps that it shows.
    pub bitmaps: Vec<String>,
}

impl ServedExport {
    fn of(export: &Export, listen: &ListenAddress) -> Self {
        Self {
            name: export.name.clone(),
            drive: export.drive.clone(),
            listen: listen.clone(),
            writable: export.writable,
            bitmaps: export.bitmaps.iter().map(|bitmap| bitmap.name.clone()).collect(),
        }
    }
}

/// State of all workers.
struct Shared {
    cell: Arc<GraphCell>,
    workers: Vec<WorkerHandle>,
    /// What is served. Listeners last as long as the server.
    served: Mutex<Vec<ServedExport>>,
    connections: AtomicUsize,
    next_worker: AtomicUsize,
    stopping: AtomicBool,
    /// Of listeners, which end when the server stops.
    acceptors: Mutex<Vec<Waker>>,
    /// Listeners that have not ended.
    listeners: AtomicUsize,
    /// Of those who wait for the last connection and listener to end.
    idle: Mutex<Vec<Waker>>,
}

fn wake_all(wakers: &Mutex<Vec<Waker>>) {
    let wakers = std::mem::take(&mut *wakers.lock().unwrap_or_else(PoisonError::into_inner));
    wakers.into_iter().for_each(Waker::wake);
}

/// The NBD side of a host.
#[derive(Clone)]
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
            served: Mutex::default(),
            connections: AtomicUsize::new(0),
            next_worker: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            acceptors: Mutex::default(),
            listeners: AtomicUsize::new(0),
            idle: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Begins to serve `exports` at `address`; returns where it listens (a port 0 is replaced).
    ///
    /// # Errors
    /// When the address is taken or cannot be used, or a bitmap that is to be shown is not there.
    pub fn listen(&self, address: &ListenAddress, exports: Vec<Export>) -> Result<ListenAddress> {
        let of = |export: &Export| ServedExport::of(export, address);
        let mut served: Vec<ServedExport> = exports.iter().map(of).collect();
        let directory = Arc::new(Directory::new(Arc::clone(&self.shared.cell), exports)?);
        let listener = match address {
            ListenAddress::Unix(path) => Listener::unix(path),
            ListenAddress::Tcp(address) => Listener::tcp(*address),
        };
        let listener =
            listener.map_err(|error| Error::os(format!("cannot listen on {address}"), &error))?;
        let bound = listener.tcp_address().map_or_else(|| address.clone(), ListenAddress::Tcp);
        let shared = Arc::clone(&self.shared);
        let Some(worker) = self.shared.workers.first() else {
            return Err(Error::new(ErrorKind::ShuttingDown, "the host has no workers"));
        };
        let open = OpenListener::new(shared);
        worker.post(move || spawn(accept_all(listener, open, directory)))?;
        served.iter_mut().for_each(|export| export.listen = bound.clone());
        self.shared.served.lock().unwrap_or_else(PoisonError::into_inner).extend(served);
        Ok(bound)
    }

    /// The names under which a drive is served.
    pub fn exports_of(&self, drive: &str) -> Vec<String> {
        let served = self.shared.served.lock().unwrap_or_else(PoisonError::into_inner);
        let of_drive = served.iter().filter(|export| export.drive == drive);
        of_drive.map(|export| export.name.clone()).collect()
    }

    /// All that is served.
    pub fn exports(&self) -> Vec<ServedExport> {
        self.shared.served.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Clients connected now.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Stops accepting and receiving; requests in progress end and are answered.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        wake_all(&self.shared.acceptors);
        self.each_stream(|stream| stream.shutdown_receive());
    }

    /// Closes connections whose clients do not take their replies.
    pub fn abort(&self) {
        self.each_stream(Stream::shutdown);
    }

    /// Waits until every connection and listener has ended. After [`NbdServer::stop`].
    pub async fn stopped(&self) {
        poll_fn(|cx| {
            let mut idle = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let listeners = self.shared.listeners.load(Ordering::Acquire);
            if self.connections() + listeners == 0 {
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

/// Counts a listener until its socket is closed.
struct OpenListener {
    shared: Arc<Shared>,
}

impl OpenListener {
    fn new(shared: Arc<Shared>) -> Self {
        shared.listeners.fetch_add(1, Ordering::AcqRel);
        Self { shared }
    }
}

impl Drop for OpenListener {
    fn drop(&mut self) {
        self.shared.listeners.fetch_sub(1, Ordering::AcqRel);
        wake_all(&self.shared.idle);
    }
}

async fn accept_all(listener: Listener, open: OpenListener, directory: Arc<Directory>) {
    match listener.attach() {
        Ok(listener) => accept_until_stop(&listener, &open.shared, &directory).await,
        Err(error) => tracing::error!("cannot watch a listener: {error}"),
    }
    // The socket is closed and removed by now; `open` tells so.
    drop(open);
}

async fn accept_until_stop(
    listener: &AttachedListener,
    shared: &Arc<Shared>,
    directory: &Arc<Directory>,
) {
    while let Some(accepted) = accept_or_stop(listener, shared).await {
        let fd = match accepted {
            Ok(fd) => fd,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                sleep_until(turn_now() + ACCEPT_PAUSE).await;
                continue;
            }
        };
        if shared.connections.load(Ordering::Relaxed) >= NBD_CONNECTIONS_MAX {
            tracing::warn!("refused a connection: {NBD_CONNECTIONS_MAX} clients are connected");
            continue;
        }
        dispatch(fd, shared, directory);
    }
}

/// The next connection; `None` once the server stops.
async fn accept_or_stop(
    listener: &AttachedListener,
    shared: &Shared,
) -> Option<std::io::Result<OwnedFd>> {
    let mut accept = pin!(listener.accept());
    poll_fn(|cx| {
        {
            let mut acceptors = shared.acceptors.lock().unwrap_or_else(PoisonError::into_inner);
            if shared.stopping.load(Ordering::SeqCst) {
                return Poll::Ready(None);
            }
            if !acceptors.iter().any(|waker| waker.will_wake(cx.waker())) {
                acceptors.push(cx.waker().clone());
            }
        }
        accept.as_mut().poll(cx).map(Some)
    })
    .await
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
        wake_all(&self.shared.idle);
    }
}
