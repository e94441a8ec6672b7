//! Exports of a host that runs.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::call::on_worker;
use super::spec::{anonymous_drive, shown_bitmap};
use super::{Host, check_running};
use crate::error::{Error, ErrorKind, Result};
use crate::export::nbd::{Export, ExportBitmap, ExportStatus, ListenAddress, RemovalMode};
use crate::graph::{Action, DriveDecl, Graph, Transaction};
use crate::limits::{DRAIN_TIME, NBD_HANDSHAKE_TIME};

/// What an export serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exported {
    /// A drive, by its id.
    Drive(String),
    /// A node, by its name. A drive without a name stands for it, which goes along when a job or a
    /// transaction puts something in the node's place.
    Node(String),
}

/// A bitmap that an export shows.
#[derive(Clone, Debug)]
pub enum ShownBitmap {
    /// By its name: the drive's own, else one of a node that shows the same, else the first from the top that an
    /// image keeps.
    Named(String),
    /// This one.
    Exactly(ExportBitmap),
}

/// An export to be added.
#[derive(Clone, Debug)]
pub struct NewExport {
    /// Unique among exports.
    pub id: String,
    /// What it serves.
    pub of: Exported,
    /// Where; `None`: where [`Host::nbd_server_start`] has begun to listen.
    pub listen: Option<ListenAddress>,
    /// What clients call it.
    pub name: String,
    /// Shown to clients that ask.
    pub description: String,
    /// Whether clients may change it.
    pub writable: bool,
    /// Whether each write is durable when it is answered.
    pub writethrough: bool,
    /// Whether clients may ask in which layer of images bytes lie.
    pub allocation_depth: bool,
    /// Shown as metadata contexts.
    pub bitmaps: Vec<ShownBitmap>,
}

impl NewExport {
    /// A read-only export of a drive, named as its id.
    pub fn of_drive(id: &str, drive: &str) -> Self {
        Self::new(id, Exported::Drive(drive.to_owned()))
    }

    /// A read-only export of a node, named as its id.
    pub fn of_node(id: &str, node: &str) -> Self {
        Self::new(id, Exported::Node(node.to_owned()))
    }

    fn new(id: &str, of: Exported) -> Self {
        Self {
            id: id.to_owned(),
            of,
            listen: None,
            name: id.to_owned(),
            description: String::new(),
            writable: false,
            writethrough: false,
            allocation_depth: false,
            bitmaps: Vec::new(),
        }
    }
}

impl Host {
    /// All exports, in the order in which they were added.
    pub fn exports(&self) -> Vec<ExportStatus> {
        self.inner.server.exports()
    }

    /// Begins to serve a drive or a node; returns where. By the listener that is at its address, or one that is
    /// opened for it and closed with its last export.
    ///
    /// ```
    /// use blockloom::export::nbd::{ListenAddress, RemovalMode};
    /// use blockloom::host::NewExport;
    /// use blockloom::node::MemoryNode;
    /// use blockloom::{Host, block_on};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let host = Host::builder().node("disk", MemoryNode::new(1 << 20, 1)?, vec![]).start()?;
    /// let listen = Some(ListenAddress::Tcp("127.0.0.1:0".parse()?));
    /// let disk = NewExport { listen, writable: true, ..NewExport::of_node("disk", "disk") };
    /// println!("{}", block_on(host.add_export(disk))?);
    /// assert_eq!((host.exports()[0].id.as_str(), host.exports()[0].clients), ("disk", 0));
    /// block_on(host.remove_export("disk", RemovalMode::Safe))?;
    /// # Ok(host.shutdown()?)
    /// # }
    /// ```
    ///
    /// # Errors
    /// `EEXIST` for an id, or a name at that address; `ENOENT` for what is to be served or shown; `EROFS` for a
    /// writable export of a drive that may not change; as [`Host::transact`] for a node; the listener's.
    pub async fn add_export(&self, export: NewExport) -> Result<ListenAddress> {
        check_running(&self.inner.ended)?;
        let _turn = self.inner.registry.turn.lock().await;
        if self.exports().iter().any(|other| other.id == export.id) {
            let message = format!("there is an export `{}` already", export.id);
            return Err(Error::new(ErrorKind::Exists, message));
        }
        let address = self.address_of(&export)?;
        let drive = match &export.of {
            Exported::Drive(id) => {
                check_drive(&self.graph(), id, export.writable)?;
                id.clone()
            }
            Exported::Node(node) => {
                let drive = anonymous_drive(&export.id);
                // Of one of this id that ended late.
                self.remove_anonymous(&drive).await;
                let decl = DriveDecl {
                    id: drive.clone(),
                    root: Some(node.clone()),
                    writable: export.writable,
                    only_shows: true,
                };
                self.transact(Transaction::new().with(Action::AddDrive(decl))).await?;
                drive
            }
        };
        let is_of_node = matches!(export.of, Exported::Node(_));
        let begun = self.begin_export(&address, &drive, export);
        if begun.is_err() && is_of_node {
            self.remove_anonymous(&drive).await;
        }
        begun
    }

    pub(super) fn address_of(&self, export: &NewExport) -> Result<ListenAddress> {
        if let Some(address) = &export.listen {
            return Ok(address.clone());
        }
        let server = self.inner.nbd_server.lock().unwrap_or_else(PoisonError::into_inner);
        server.clone().ok_or_else(|| {
            let message = format!(
                "export `{}` says nowhere to listen, and no NBD server was started",
                export.id
            );
            Error::new(ErrorKind::NotFound, message)
        })
    }

    fn begin_export(
        &self,
        address: &ListenAddress,
        drive: &str,
        export: NewExport,
    ) -> Result<ListenAddress> {
        let id = export.id.clone();
        let export = export_of(&self.graph(), drive, export)?;
        self.inner.server.add(address, &id, export)
    }

    /// Ends an export, and waits until it has ended: with its last client. What it showed is released.
    ///
    /// # Errors
    /// `ENOENT`; `EBUSY` while it has clients, in mode [`RemovalMode::Safe`], or is being removed already;
    /// `ETIMEDOUT` when requests of its clients do not end: it ends with them.
    pub async fn remove_export(&self, id: &str, mode: RemovalMode) -> Result<()> {
        self.remove_export_only(id, mode).await?;
        let _turn = self.inner.registry.turn.lock().await;
        self.remove_anonymous(&anonymous_drive(id)).await;
        Ok(())
    }

    /// The same, without the drive that stands for a node.
    pub(super) async fn remove_export_only(&self, id: &str, mode: RemovalMode) -> Result<()> {
        let (server, id) = (self.inner.server.clone(), id.to_owned());
        let ended = Arc::clone(&self.inner.ended);
        on_worker(self.inner.first(), move || async move {
            check_running(&ended)?;
            server.remove(&id, mode, DRAIN_TIME).await
        })
        .await
    }

    /// Removes the drive that stood for a node that was exported, if there is one and nobody serves it again.
    async fn remove_anonymous(&self, drive: &str) {
        let is_served = !self.inner.server.exports_of(drive).is_empty();
        if is_served || self.graph().find_drive(drive).is_none() {
            return;
        }
        let remove = Action::RemoveDrive { drive: drive.to_owned() };
        if let Err(error) = self.transact(Transaction::new().with(remove)).await {
            tracing::error!("drive `{drive}`, whose export has ended, is left over: {error}");
        }
    }

    /// Begins to listen for clients of exports that are added without a place, at most so many at once; returns
    /// where (a TCP port 0 is replaced). A client beyond them waits until one of them goes.
    ///
    /// # Errors
    /// `EEXIST` if it listens already; when the address is taken.
    pub fn nbd_server_start(
        &self,
        address: &ListenAddress,
        max_connections: Option<usize>,
    ) -> Result<ListenAddress> {
        self.nbd_server_start_within(address, max_connections, NBD_HANDSHAKE_TIME)
    }

    /// The same, of which clients have so long for the handshake.
    ///
    /// # Errors
    /// The same.
    pub fn nbd_server_start_within(
        &self,
        address: &ListenAddress,
        max_connections: Option<usize>,
        handshake_time: Duration,
    ) -> Result<ListenAddress> {
        check_running(&self.inner.ended)?;
        let mut server = self.inner.nbd_server.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = &*server {
            let message = format!("the NBD server listens on {address} already");
            return Err(Error::new(ErrorKind::Exists, message));
        }
        let bound = self.inner.server.open(address, max_connections, handshake_time)?;
        *server = Some(bound.clone());
        Ok(bound)
    }

    /// Where [`Host::nbd_server_start`] has begun to listen.
    pub fn nbd_server_address(&self) -> Option<ListenAddress> {
        self.inner.nbd_server.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends what [`Host::nbd_server_start`] has begun, with all its exports, whose clients are disconnected when
    /// what they have asked for has been answered.
    ///
    /// # Errors
    /// `ENOENT` if it was not started; `ETIMEDOUT` when requests do not end: it ends with them.
    pub async fn nbd_server_stop(&self) -> Result<()> {
        let stopped = {
            let mut server = self.inner.nbd_server.lock().unwrap_or_else(PoisonError::into_inner);
            server.take()
        };
        let address =
            stopped.ok_or_else(|| Error::new(ErrorKind::NotFound, "no NBD server was started"))?;
        self.close_listener(&address, DRAIN_TIME).await
    }

    /// Ends a listener with all its exports.
    async fn close_listener(&self, address: &ListenAddress, within: Duration) -> Result<()> {
        let exports = self.exports().into_iter().filter(|export| export.address == *address);
        let drives: Vec<String> = exports.map(|export| anonymous_drive(&export.id)).collect();
        let (server, address) = (self.inner.server.clone(), address.clone());
        let closed =
            on_worker(
                self.inner.first(),
                move || async move { server.close(&address, within).await },
            )
            .await;
        let _turn = self.inner.registry.turn.lock().await;
        for drive in drives {
            self.remove_anonymous(&drive).await;
        }
        closed
    }
}

/// What an export serves that is of a drive of `graph`.
///
/// # Errors
/// `ENOENT` for a bitmap that is not there; `EEXIST` for two of one name.
pub(super) fn export_of(graph: &Graph, drive: &str, export: NewExport) -> Result<Export> {
    let NewExport {
        id, name, description, writable, writethrough, allocation_depth, bitmaps, ..
    } = export;
    let find = |shown: ShownBitmap| match shown {
        ShownBitmap::Exactly(bitmap) => Ok(bitmap),
        ShownBitmap::Named(name) => {
            let scope = shown_bitmap(graph, drive, &name).ok_or_else(|| {
                let message = format!("nothing that export `{id}` shows has a bitmap `{name}`");
                Error::new(ErrorKind::NotFound, message)
            })?;
            Ok(ExportBitmap { name, scope, is_frozen: false })
        }
    };
    let bitmaps = bitmaps.into_iter().map(find).collect::<Result<Vec<_>>>()?;
    for (at, bitmap) in bitmaps.iter().enumerate() {
        if bitmaps[..at].iter().any(|other| other.name == bitmap.name) {
            let message = format!("export `{id}` would show two bitmaps called `{}`", bitmap.name);
            return Err(Error::new(ErrorKind::Exists, message));
        }
    }
    let drive = drive.to_owned();
    Ok(Export { name, description, drive, writable, writethrough, allocation_depth, bitmaps })
}

/// # Errors
/// `ENOENT`; `EROFS` if clients are to change a drive that may not be changed.
pub(super) fn check_drive(graph: &Graph, id: &str, writable: bool) -> Result<()> {
    let drive = &graph.drives()[graph.expect_drive(id)?];
    if writable && !drive.is_writable() {
        let message = format!("drive `{id}` is read-only: a client could not change it");
        return Err(Error::new(ErrorKind::ReadOnly, message));
    }
    Ok(())
}
