//! What a command runs in.

use super::clients::Clients;
use super::qapi::QapiEvent;
use super::registry::Registry;
use crate::host::Host;

/// What a command may reach: the host by its public interface, and whoever listens.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) host: &'a Host,
    pub(crate) registry: &'a Registry,
    #[allow(dead_code, reason = "as `emit`")]
    pub(crate) clients: &'a Clients,
    /// Begins to end the host.
    pub(crate) quit: &'a (dyn Fn() + Send + Sync),
}

impl Context<'_> {
    /// Sends an event to all clients.
    #[allow(dead_code, reason = "what there is comes from the host")]
    pub(crate) fn emit<E: QapiEvent>(&self, event: E) {
        debug_assert!(self.registry.has_event(E::NAME), "`{}` is not declared", E::NAME);
        self.clients.emit(event);
    }
}
