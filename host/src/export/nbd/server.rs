//! The exports of a host and its listeners, which come and go while it runs.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::directory::Directory;
use super::listening::{Listening, Open, accept_all};
use super::served::{Export, Served};
use super::shared::{Registered, Registry, Shared};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Event, GraphCell};
use crate::io::{Listener, Stream, WorkerHandle, spawn};
use crate::limits::{NBD_HANDSHAKE_TIME, NBD_LISTENERS_MAX};

/// Time that clients have to take the replies to their last requests.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

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

/// How an export ends that may have clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalMode {
    /// Not while it has clients.
    Safe,
    /// Its clients are disconnected: requests that have arrived end and are answered.
    Hard,
}

/// What there is to know of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportStatus {
    /// As the host knows it.
    pub id: String,
    /// What clients call it.
    pub name: String,
    /// Where it is served.
    pub address: ListenAddress,
    /// The drive's id.
    pub drive: String,
    /// The names of the bitmaps that it shows.
    pub bitmaps: Vec<String>,
    /// Whether clients may change it.
    pub writable: bool,
    /// Clients that have opened it.
    pub clients: usize,
    /// It takes no more clients, and ends with the last one.
    pub shutting_down: bool,
}

/// The NBD side of a host.
#[derive(Clone)]
pub struct NbdServer {
    pub(super) shared: Arc<Shared>,
}

impl NbdServer {
    /// A server without listeners.
    pub fn new(cell: Arc<GraphCell>, workers: Vec<WorkerHandle>) -> Self {
        Self { shared: Arc::new(Shared::new(cell, workers)) }
    }

    /// Opens a listener without exports, for so many clients at once, which have so long for the handshake; returns
    /// where it listens (a port 0 is replaced).
    ///
    /// # Errors
    /// When the address is taken or cannot be used.
    pub fn open(
        &self,
        address: &ListenAddress,
        max_connections: Option<usize>,
        handshake_time: Duration,
    ) -> Result<ListenAddress> {
        let mut registry = self.shared.registry();
        let bounds = (max_connections, handshake_time);
        let begun = self.begin(&mut registry, address, bounds, false)?;
        let listening = Arc::clone(&begun.listening);
        begun.accept().inspect_err(|_| registry.forget(&listening))?;
        Ok(listening.address.clone())
    }

    /// Begins to serve `exports` at `address`, whose ids are their names, if these are free; returns where it
    /// listens (a port 0 is replaced).
    ///
    /// # Errors
    /// When the address is taken or cannot be used, or a bitmap that is to be shown is not there.
    pub fn listen(&self, address: &ListenAddress, exports: Vec<Export>) -> Result<ListenAddress> {
        let free = |registry: &Registry, export: &Export| match registry.check_free(&export.name) {
            Ok(()) => export.name.clone(),
            Err(_) => format!("{}@{address}", export.name),
        };
        let mut named: Vec<(String, Export)> = Vec::with_capacity(exports.len());
        {
            let registry = self.shared.registry();
            named.extend(exports.into_iter().map(|export| (free(&registry, &export), export)));
        }
        self.listen_as(address, named)
    }

    /// The same with ids.
    ///
    /// # Errors
    /// The same; `EEXIST` for an id.
    pub fn listen_as(
        &self,
        address: &ListenAddress,
        exports: Vec<(String, Export)>,
    ) -> Result<ListenAddress> {
        let mut registry = self.shared.registry();
        let served = exports.into_iter().map(|(id, export)| {
            registry.check_free(&id)?;
            Served::new(&self.shared.cell, id, export)
        });
        let served = served.collect::<Result<Vec<_>>>()?;
        let begun = self.begin(&mut registry, address, (None, NBD_HANDSHAKE_TIME), true)?;
        let listening = Arc::clone(&begun.listening);
        let added = served.into_iter().try_for_each(|served| registry.add(served, &listening));
        if let Err(error) = added.and_then(|()| begun.accept()) {
            registry.exports.retain(|export| !Arc::ptr_eq(&export.listening, &listening));
            registry.forget(&listening);
            return Err(error);
        }
        let exports = registry.exports.iter();
        let added = exports.filter(|export| Arc::ptr_eq(&export.listening, &listening));
        added.for_each(|export| self.tell_added(&export.served));
        Ok(listening.address.clone())
    }

    /// Begins to serve an export at `address`: by the listener that is there, or one that is opened for it and
    /// closed with its last export. Returns where.
    ///
    /// # Errors
    /// `EEXIST` for an id, or a name at that address; the listener's; when a bitmap that is to be shown is not
    /// there.
    pub fn add(&self, address: &ListenAddress, id: &str, export: Export) -> Result<ListenAddress> {
        let mut registry = self.shared.registry();
        let Some(listening) = registry.at(address).cloned() else {
            drop(registry);
            return self.listen_as(address, vec![(id.to_owned(), export)]);
        };
        registry.check_free(id)?;
        let served = Served::new(&self.shared.cell, id.to_owned(), export)?;
        registry.add(Arc::clone(&served), &listening)?;
        self.tell_added(&served);
        Ok(listening.address.clone())
    }

    pub(super) fn tell_added(&self, served: &Served) {
        let (id, drive) = (served.id.as_str().into(), served.drive().into());
        self.tell(Event::ExportAdded { id, drive });
        served.watch(&self.shared.cell);
    }

    pub(super) fn tell(&self, event: Event) {
        let graph = self.shared.cell.load();
        self.shared.cell.tell(&graph, event);
    }

    fn begin(
        &self,
        registry: &mut Registry,
        address: &ListenAddress,
        bounds: (Option<usize>, Duration),
        is_implicit: bool,
    ) -> Result<Begun<'_>> {
        let Some(worker) = self.shared.workers.first().filter(|_| !self.shared.is_stopping())
        else {
            return Err(Error::new(ErrorKind::ShuttingDown, "the host takes no more clients"));
        };
        if registry.listeners.len() >= NBD_LISTENERS_MAX {
            let message = format!("there are {NBD_LISTENERS_MAX} listeners: no more are possible");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        let listener = match address {
            ListenAddress::Unix(path) => Listener::unix(path),
            ListenAddress::Tcp(address) => Listener::tcp(*address),
        };
        let listener =
            listener.map_err(|error| Error::os(format!("cannot listen on {address}"), &error))?;
        let bound = listener.tcp_address().map_or_else(|| address.clone(), ListenAddress::Tcp);
        let directory = Directory::new(Arc::clone(&self.shared.cell));
        let listening = Listening::new(bound, directory, bounds, is_implicit);
        registry.listeners.push(Arc::clone(&listening));
        Ok(Begun { worker, listener, open: Open::new(&self.shared, &listening), listening })
    }

    /// The names under which a drive is served.
    pub fn exports_of(&self, drive: &str) -> Vec<String> {
        let registry = self.shared.registry();
        let of_drive = registry.exports.iter().filter(|export| export.served.drive() == drive);
        of_drive.map(|export| export.served.export.name.clone()).collect()
    }

    /// All exports, in the order in which they were added.
    pub fn exports(&self) -> Vec<ExportStatus> {
        let status = |registered: &Registered| {
            let Registered { served, listening } = registered;
            ExportStatus {
                id: served.id.clone(),
                name: served.export.name.clone(),
                address: listening.address.clone(),
                drive: served.export.drive.clone(),
                bitmaps: served.export.bitmaps.iter().map(|it| it.name.clone()).collect(),
                writable: served.export.writable,
                clients: served.clients(),
                shutting_down: served.is_ending(),
            }
        };
        let registry = self.shared.registry();
        registry.exports.iter().filter(|it| !it.served.is_hidden()).map(status).collect()
    }

    /// Where it listens.
    pub fn listeners(&self) -> Vec<ListenAddress> {
        let registry = self.shared.registry();
        let open = registry.listeners.iter().filter(|listening| !listening.is_stopping());
        open.map(|listening| listening.address.clone()).collect()
    }

    /// Clients connected now.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Stops accepting and receiving; requests in progress end and are answered.
    pub fn stop(&self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        self.shared.registry().listeners.iter().for_each(|listening| listening.stop());
        self.shared.each_stream(|_, _| true, Stream::shutdown_receive);
    }

    /// Closes connections whose clients do not take their replies.
    pub fn abort(&self) {
        self.shared.each_stream(|_, _| true, Stream::shutdown);
    }

    /// Waits until every connection and listener has ended. After [`NbdServer::stop`].
    pub async fn stopped(&self) {
        let listeners = || self.shared.listeners.load(Ordering::Acquire);
        self.shared.idle.until(|| self.connections() + listeners() == 0).await;
    }
}

/// A listener that does not accept yet.
struct Begun<'a> {
    worker: &'a WorkerHandle,
    listener: Listener,
    open: Open,
    listening: Arc<Listening>,
}

impl Begun<'_> {
    fn accept(self) -> Result<()> {
        let Self { worker, listener, open, .. } = self;
        worker.post(move || spawn(accept_all(listener, open)))
    }
}
