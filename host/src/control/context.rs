//! What a command runs in.

use super::registry::Registry;
use crate::host::Host;

/// What a command may reach: the host by its public interface, and what is declared.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) host: &'a Host,
    pub(crate) registry: &'a Registry,
    /// Begins to end the host.
    pub(crate) quit: &'a (dyn Fn() + Send + Sync),
}
