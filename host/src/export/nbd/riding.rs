//! Exports that come and go at the instant of a transaction.
//!
//! One that comes takes its place while nothing is in flight, hidden, and is shown when the graph is published. One
//! that goes takes no more clients from then on, and ends when the graph is published. If the transaction fails,
//! the first was never seen, and the second takes clients again.

use std::sync::Arc;
use std::time::Duration;

use super::listening::Listening;
use super::served::{Export, Served};
use super::server::{GRACE, ListenAddress, NbdServer, RemovalMode};
use super::shared::Registered;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Graph, Rider};
use crate::io::{Stream, spawn, turn_now, until};

/// What an export is to be, by the graph that is to be.
pub(crate) type Resolve = Box<dyn FnOnce(&Graph) -> Result<Export> + Send>;

/// An export that is to come.
pub(crate) struct Adding {
    server: NbdServer,
    id: String,
    resolve: Option<Resolve>,
    listening: Arc<Listening>,
    added: Option<Arc<Served>>,
    is_published: bool,
}

/// An export that is to go.
pub(crate) struct Ending {
    server: NbdServer,
    id: String,
    mode: RemovalMode,
    begun: Option<Registered>,
}

impl NbdServer {
    /// An export that comes with a transaction, at `address`: by the listener that is there, or one that is opened
    /// for it at once.
    ///
    /// # Errors
    /// The listener's.
    pub(crate) fn adding(
        &self,
        address: &ListenAddress,
        id: &str,
        resolve: Resolve,
    ) -> Result<Adding> {
        let missing = || Error::new(ErrorKind::Busy, format!("{address} is being closed"));
        if self.shared.registry().at(address).is_none() {
            self.listen_as(address, Vec::new())?;
        }
        let listening = self.shared.registry().at(address).cloned().ok_or_else(missing)?;
        Ok(Adding {
            server: self.clone(),
            id: id.to_owned(),
            resolve: Some(resolve),
            listening,
            added: None,
            is_published: false,
        })
    }

    /// The end of an export with a transaction.
    pub(crate) fn ending(&self, id: &str, mode: RemovalMode) -> Ending {
        Ending { server: self.clone(), id: id.to_owned(), mode, begun: None }
    }

    /// The export that is called `id`, wherever it goes.
    ///
    /// # Errors
    /// `ENOENT`.
    pub(crate) fn leaving(&self, id: &str) -> Result<Leaving> {
        let registered = self.shared.registry().find(id)?.clone();
        let Registered { served, listening } = registered;
        Ok(Leaving { server: self.clone(), served: Some(served), listening })
    }
}

/// An export, or a listener, that may be going.
pub(crate) struct Leaving {
    server: NbdServer,
    served: Option<Arc<Served>>,
    listening: Arc<Listening>,
}

impl Leaving {
    /// Waits until an export that ends is gone, and a listener that goes with it: somebody else can listen there
    /// then. On a worker.
    ///
    /// # Errors
    /// `ETIMEDOUT` when requests of its clients do not end.
    pub(crate) async fn gone(&self, within: Duration) -> Result<()> {
        let deadline = turn_now() + within;
        if let Some(served) = self.served.as_ref().filter(|served| served.is_ending()) {
            let is_gone = || {
                let registry = self.server.shared.registry();
                !registry.exports.iter().any(|it| Arc::ptr_eq(&it.served, served))
            };
            let late = || {
                let message = format!("requests of clients of export `{}` do not end", served.id);
                Error::new(ErrorKind::TimedOut, message)
            };
            until(deadline, self.server.shared.idle.until(is_gone)).await.ok_or_else(late)?;
        }
        if self.listening.is_stopping() {
            let _ = until(deadline, self.listening.ended()).await;
        }
        Ok(())
    }
}

impl Adding {
    /// Where it will be.
    pub(crate) fn address(&self) -> ListenAddress {
        self.listening.address.clone()
    }

    /// Its listener, should that go.
    pub(crate) fn leaving(&self) -> Leaving {
        let (server, listening) = (self.server.clone(), Arc::clone(&self.listening));
        Leaving { server, served: None, listening }
    }
}

impl Rider for Adding {
    fn prepare(&mut self, after: &Graph) -> Result<()> {
        let Some(resolve) = self.resolve.take() else { return Ok(()) };
        let served = Served::hidden(after, self.id.clone(), resolve(after)?)?;
        let mut registry = self.server.shared.registry();
        if self.listening.is_stopping() {
            let message = format!("{} is being closed", self.listening.address);
            return Err(Error::new(ErrorKind::Busy, message));
        }
        registry.add(Arc::clone(&served), &self.listening)?;
        self.added = Some(served);
        Ok(())
    }

    fn publish(mut self: Box<Self>, _: &Arc<Graph>) {
        self.is_published = true;
        if let Some(served) = &self.added {
            served.begin();
            self.server.tell_added(served);
        }
    }

    fn ends_export(&self, _: &str) -> bool {
        false
    }
}

impl Drop for Adding {
    fn drop(&mut self) {
        if self.is_published {
            return;
        }
        let mut registry = self.server.shared.registry();
        if let Some(served) = self.added.take() {
            registry.exports.retain(|other| !Arc::ptr_eq(&other.served, &served));
            self.listening.directory.retract(&served);
            served.end();
        }
        let mut others = registry.exports.iter();
        let is_used = others.any(|other| Arc::ptr_eq(&other.listening, &self.listening));
        if self.listening.is_implicit && !is_used && !self.listening.is_stopping() {
            self.server.end_listener(&mut registry, &self.listening);
        }
    }
}

impl Rider for Ending {
    fn prepare(&mut self, _: &Graph) -> Result<()> {
        let registry = self.server.shared.registry();
        let registered = registry.find(&self.id)?.clone();
        let Registered { served, listening } = &registered;
        if served.is_ending() {
            let message = format!("export `{}` is being removed already", self.id);
            return Err(Error::new(ErrorKind::Busy, message));
        }
        listening.directory.remove(served, self.mode == RemovalMode::Safe)?;
        self.begun = Some(registered);
        Ok(())
    }

    fn publish(mut self: Box<Self>, _: &Arc<Graph>) {
        let Some(registered) = self.begun.take() else { return };
        let (server, served) = (self.server.clone(), Arc::clone(&registered.served));
        if served.clients() == 0 {
            return server.finish_removal(&registered);
        }
        server.each_client(&served, Stream::shutdown_receive);
        spawn(async move {
            if until(turn_now() + GRACE, served.idle()).await.is_none() {
                server.each_client(&served, Stream::shutdown);
                served.idle().await;
            }
            server.finish_removal(&registered);
        });
    }

    fn ends_export(&self, id: &str) -> bool {
        self.id == id
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(Registered { served, listening }) = self.begun.take() {
            listening.directory.restore(&served);
        }
    }
}
