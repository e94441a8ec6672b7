//! A listener: it accepts connections and spreads them over the workers.

use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use super::connection;
use super::directory::Directory;
use super::server::ListenAddress;
use super::shared::{Connected, Shared};
use super::waiters::Waiters;
use crate::graph::LocalGraph;
use crate::io::{AttachedListener, Listener, Stream, sleep_until, spawn, turn_now};
use crate::limits::NBD_CONNECTIONS_MAX;

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener, as everybody but its task sees it.
pub(super) struct Listening {
    pub(super) address: ListenAddress,
    pub(super) directory: Directory,
    /// Clients that it takes at once; others wait until one of them goes. Without it, as many as the host.
    pub(super) max_connections: Option<usize>,
    /// Time that clients have for the handshake.
    handshake_time: Duration,
    /// It was opened for exports, and goes with the last one.
    pub(super) is_implicit: bool,
    connections: AtomicUsize,
    is_stopping: AtomicBool,
    has_ended: AtomicBool,
    changed: Waiters,
}

impl Listening {
    pub(super) fn new(
        address: ListenAddress,
        directory: Directory,
        (max_connections, handshake_time): (Option<usize>, Duration),
        is_implicit: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            address,
            directory,
            max_connections,
            handshake_time,
            is_implicit,
            connections: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            changed: Waiters::default(),
        })
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }

    /// It accepts no more connections, and its socket is closed soon.
    pub(super) fn stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        self.changed.wake_all();
    }

    /// Waits until its socket is closed, and that of every client.
    pub(super) async fn ended(&self) {
        let is_over = || {
            self.has_ended.load(Ordering::Acquire) && self.connections.load(Ordering::Acquire) == 0
        };
        self.changed.until(is_over).await;
    }

    /// Whether there is room for one client more. Nobody but who asks that takes one.
    fn has_room(&self) -> bool {
        let connections = self.connections.load(Ordering::Acquire);
        self.max_connections.is_none_or(|most| connections < most)
    }
}

/// Counts a listener until its socket is closed.
pub(super) struct Open {
    shared: Arc<Shared>,
    listening: Arc<Listening>,
}

impl Open {
    pub(super) fn new(shared: &Arc<Shared>, listening: &Arc<Listening>) -> Self {
        shared.listeners.fetch_add(1, Ordering::AcqRel);
        Self { shared: Arc::clone(shared), listening: Arc::clone(listening) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.listeners.fetch_sub(1, Ordering::AcqRel);
        self.shared.idle.wake_all();
        self.listening.has_ended.store(true, Ordering::Release);
        self.listening.changed.wake_all();
    }
}

pub(super) async fn accept_all(listener: Listener, open: Open) {
    match listener.attach() {
        Ok(listener) => accept_until_stop(&listener, &open).await,
        Err(error) => tracing::error!("cannot watch a listener: {error}"),
    }
    // The socket is closed and removed by now; `open` tells so.
    drop(open);
}

async fn accept_until_stop(listener: &AttachedListener, open: &Open) {
    while let Some(accepted) = accept_or_stop(listener, open).await {
        let fd = match accepted {
            Ok(fd) => fd,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                sleep_until(turn_now() + ACCEPT_PAUSE).await;
                continue;
            }
        };
        if open.shared.connections.load(Ordering::Relaxed) >= NBD_CONNECTIONS_MAX {
            tracing::warn!("refused a connection: {NBD_CONNECTIONS_MAX} clients are connected");
            continue;
        }
        dispatch(fd, open);
    }
}

/// The next connection, once there is room for it: until then it waits to be accepted. `None` once the listener is
/// to stop.
async fn accept_or_stop(
    listener: &AttachedListener,
    open: &Open,
) -> Option<std::io::Result<OwnedFd>> {
    let mut accept = pin!(listener.accept());
    poll_fn(|cx| {
        open.listening.changed.register(cx);
        if open.listening.is_stopping() || open.shared.is_stopping() {
            return Poll::Ready(None);
        }
        if !open.listening.has_room() {
            return Poll::Pending;
        }
        accept.as_mut().poll(cx).map(Some)
    })
    .await
}

/// Hands a connection to the next worker.
fn dispatch(fd: OwnedFd, open: &Open) {
    let Open { shared, listening } = open;
    let counted = Counted::new(shared, listening);
    let posted = shared.next_worker().post(move || spawn(serve(fd, counted)));
    if let Err(error) = posted {
        tracing::warn!("dropped a connection: {error}");
    }
}

async fn serve(fd: OwnedFd, counted: Counted) {
    let stream = match Stream::attach(fd) {
        Ok(stream) => Rc::new(stream),
        Err(error) => {
            tracing::warn!("cannot watch a connection: {error}");
            return;
        }
    };
    let Counted { shared, listening } = &counted;
    let connected = Connected::new(shared, listening, &stream);
    if shared.is_stopping() || listening.is_stopping() {
        stream.shutdown();
    }
    let opened = |served: &_| connected.opens(served);
    let graph = LocalGraph::of(&shared.cell);
    let of = (&listening.directory, listening.handshake_time);
    connection::serve(stream, of, &graph, opened).await;
}

/// Counts a connection from accept to its end.
struct Counted {
    shared: Arc<Shared>,
    listening: Arc<Listening>,
}

impl Counted {
    fn new(shared: &Arc<Shared>, listening: &Arc<Listening>) -> Self {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        listening.connections.fetch_add(1, Ordering::AcqRel);
        Self { shared: Arc::clone(shared), listening: Arc::clone(listening) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.shared.idle.wake_all();
        self.listening.connections.fetch_sub(1, Ordering::AcqRel);
        self.listening.changed.wake_all();
    }
}
