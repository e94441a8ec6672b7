//! The end of exports and listeners.

use std::sync::Arc;
use std::time::Duration;

use super::listening::Listening;
use super::served::Served;
use super::server::{GRACE, ListenAddress, NbdServer, RemovalMode};
use super::shared::{Registered, Registry};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Event;
use crate::io::{Stream, spawn, turn_now, until};

impl NbdServer {
    /// Ends an export, and waits until its last client is gone: those that do not take their replies are
    /// disconnected after a while. On a worker.
    ///
    /// # Errors
    /// `ENOENT`; `EBUSY` while it has clients, in mode `safe`, or is being removed already; `ETIMEDOUT` when
    /// requests of its clients do not end within `within`: it ends with them.
    pub async fn remove(&self, id: &str, mode: RemovalMode, within: Duration) -> Result<()> {
        let registered = self.begin_removal(id, mode)?;
        let (served, deadline) = (Arc::clone(&registered.served), turn_now() + within);
        let idle = async {
            if until(turn_now() + GRACE, served.idle()).await.is_none() {
                self.each_client(&served, Stream::shutdown);
                served.idle().await;
            }
        };
        if until(deadline, idle).await.is_some() {
            self.finish_removal(&registered);
            if registered.listening.is_stopping() {
                // So that somebody else can listen there.
                let _ = until(deadline, registered.listening.ended()).await;
            }
            return Ok(());
        }
        let (server, served) = (self.clone(), Arc::clone(&registered.served));
        let message =
            format!("requests of {} clients of export `{id}` do not end", served.clients());
        spawn(async move {
            served.idle().await;
            server.finish_removal(&registered);
        });
        Err(Error::new(ErrorKind::TimedOut, message))
    }

    fn begin_removal(&self, id: &str, mode: RemovalMode) -> Result<Registered> {
        let registry = self.shared.registry();
        let registered = registry.find(id)?.clone();
        let Registered { served, listening } = &registered;
        if served.is_ending() {
            let message = format!("export `{id}` is being removed already");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        listening.directory.remove(served, mode == RemovalMode::Safe)?;
        self.each_client(served, Stream::shutdown_receive);
        Ok(registered)
    }

    pub(super) fn each_client(&self, served: &Arc<Served>, act: fn(&Stream)) {
        let meant = Arc::clone(served);
        let is_meant = move |_: &Listening, served: Option<&Arc<Served>>| {
            served.is_some_and(|served| Arc::ptr_eq(served, &meant))
        };
        self.shared.each_stream(is_meant, act);
    }

    pub(super) fn finish_removal(&self, registered: &Registered) {
        let Registered { served, listening } = registered;
        served.end();
        let mut registry = self.shared.registry();
        registry.exports.retain(|export| !Arc::ptr_eq(&export.served, served));
        let mut others = registry.exports.iter();
        let is_last = !others.any(|export| Arc::ptr_eq(&export.listening, listening));
        if listening.is_implicit && is_last {
            self.end_listener(&mut registry, listening);
        }
        drop(registry);
        self.shared.idle.wake_all();
        self.tell(Event::ExportRemoved { id: served.id.as_str().into() });
    }

    /// It accepts nobody any more; who has opened nothing there is disconnected.
    pub(super) fn end_listener(&self, registry: &mut Registry, listening: &Arc<Listening>) {
        registry.forget(listening);
        listening.stop();
        let meant = Arc::clone(listening);
        let is_meant = move |listening: &Listening, served: Option<&Arc<Served>>| {
            served.is_none() && std::ptr::eq(listening, &*meant)
        };
        self.shared.each_stream(is_meant, Stream::shutdown);
    }

    /// Ends all exports of a listener, as [`NbdServer::remove`] with mode `hard`, and then the listener. On a
    /// worker.
    ///
    /// # Errors
    /// `ENOENT`; `ETIMEDOUT` as there.
    pub async fn close(&self, address: &ListenAddress, within: Duration) -> Result<()> {
        let (listening, ids) = {
            let mut registry = self.shared.registry();
            let Some(listening) = registry.at(address).cloned() else {
                let message = format!("nothing listens on {address}");
                return Err(Error::new(ErrorKind::NotFound, message));
            };
            self.end_listener(&mut registry, &listening);
            let exports = registry.exports.iter();
            let ours = exports.filter(|export| Arc::ptr_eq(&export.listening, &listening));
            let ids: Vec<String> = ours.map(|export| export.served.id.clone()).collect();
            (listening, ids)
        };
        let (deadline, grace_end) = (turn_now() + within, turn_now() + GRACE);
        // One that is being removed already ends by itself.
        let begun = ids.iter().filter_map(|id| self.begin_removal(id, RemovalMode::Hard).ok());
        for registered in begun.collect::<Vec<_>>() {
            let server = self.clone();
            spawn(async move {
                let served = &registered.served;
                if until(grace_end, served.idle()).await.is_none() {
                    server.each_client(served, Stream::shutdown);
                    served.idle().await;
                }
                server.finish_removal(&registered);
            });
        }
        let gone = async {
            self.shared.idle.until(|| self.is_without(&listening)).await;
            listening.ended().await;
        };
        until(deadline, gone).await.ok_or_else(|| {
            let message = format!("requests of clients of {address} do not end");
            Error::new(ErrorKind::TimedOut, message)
        })
    }

    fn is_without(&self, listening: &Arc<Listening>) -> bool {
        let registry = self.shared.registry();
        !registry.exports.iter().any(|export| Arc::ptr_eq(&export.listening, listening))
    }
}
