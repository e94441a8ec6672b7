//! The exports of one listener, as the handshake sees them.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::proto::{BlockSizes, ExportDirectory, ExportInfo, ExportSummary, Features};
use super::served::{Client, Served};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::GraphCell;
use crate::limits::TRANSFER_MAX_BYTES;

/// What a listener serves.
pub(super) struct Directory {
    pub(super) cell: Arc<GraphCell>,
    served: RwLock<Vec<Arc<Served>>>,
}

impl Directory {
    /// Of nothing yet.
    pub(super) fn new(cell: Arc<GraphCell>) -> Self {
        Self { cell, served: RwLock::default() }
    }

    pub(super) fn served(&self) -> RwLockReadGuard<'_, Vec<Arc<Served>>> {
        self.served.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn served_mut(&self) -> RwLockWriteGuard<'_, Vec<Arc<Served>>> {
        self.served.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// One export more.
    ///
    /// # Errors
    /// `EEXIST` for a second one of a name.
    pub(super) fn add(&self, served: &Arc<Served>) -> Result<()> {
        let mut all = self.served_mut();
        if let Some(other) = all.iter().find(|other| other.export.name == served.export.name) {
            let message = format!(
                "exports `{}` and `{}` would both be called `{}` there: give one another name",
                other.id, served.id, served.export.name
            );
            return Err(Error::new(ErrorKind::Exists, message));
        }
        all.push(Arc::clone(served));
        Ok(())
    }

    /// The export takes no more clients.
    ///
    /// # Errors
    /// `EBUSY` while it has clients, if it is to be `idle`.
    pub(super) fn remove(&self, served: &Arc<Served>, idle: bool) -> Result<()> {
        // Who opens it holds the lock for reading, and is counted before it lets go of it.
        let mut all = self.served_mut();
        let clients = served.clients();
        if idle && clients > 0 {
            let message = format!(
                "export `{}` has {clients} client{}: disconnect them first, or remove it with \
                 mode `hard`",
                served.id,
                if clients == 1 { "" } else { "s" }
            );
            return Err(Error::new(ErrorKind::InUse, message));
        }
        all.retain(|other| !Arc::ptr_eq(other, served));
        served.begin_to_end();
        Ok(())
    }

    /// What was removed is there again: what was to end it has failed.
    pub(super) fn restore(&self, served: &Arc<Served>) {
        let mut all = self.served_mut();
        served.go_on();
        all.push(Arc::clone(served));
    }

    /// What nobody has seen yet is not to come.
    pub(super) fn retract(&self, served: &Arc<Served>) {
        self.served_mut().retain(|other| !Arc::ptr_eq(other, served));
    }

    /// Opens the export for a name; `None` if there is none.
    pub(super) fn open(&self, name: &str) -> Option<Client> {
        let all = self.served();
        find(&all, name).map(Client::of)
    }
}

/// A listener with one export serves it under the empty name too.
fn find<'a>(all: &'a [Arc<Served>], name: &str) -> Option<&'a Arc<Served>> {
    let mut seen = all.iter().filter(|served| !served.is_hidden());
    let by_name = seen.clone().find(|served| served.export.name == name);
    by_name.or_else(|| seen.next().filter(|_| name.is_empty() && seen.next().is_none()))
}

impl ExportDirectory for Directory {
    fn names(&self) -> Vec<ExportSummary> {
        let summary = |served: &Served| ExportSummary {
            name: served.export.name.clone(),
            description: served.export.description.clone(),
        };
        let served = self.served();
        served.iter().filter(|it| !it.is_hidden()).map(|served| summary(served)).collect()
    }

    fn lookup(&self, name: &str) -> Option<ExportInfo> {
        let served = Arc::clone(find(&self.served(), name)?);
        let export = &served.export;
        let graph = self.cell.load();
        let drive = &graph.drives()[graph.find_drive(&export.drive)?];
        let info = graph.nodes()[drive.root()?.child()].info();
        Some(ExportInfo {
            name: export.name.clone(),
            description: export.description.clone(),
            size_bytes: info.size_bytes,
            read_only: !export.writable,
            features: Features::ALL,
            block_sizes: BlockSizes::new(1, 4096, TRANSFER_MAX_BYTES).unwrap_or_default(),
            contexts: self.contexts(&served).into_iter().map(|(name, _)| name).collect(),
        })
    }
}
