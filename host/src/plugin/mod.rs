//! Filters that are WebAssembly components: loading them, offering them requests, doing what they answer.
//!
//! ```text
//!   PluginNode (node)         one per node: offers each request, then forwards or fails it
//!     → LocalPlugin (local/)      this worker's batch of the turn, and who waits for an answer
//!        → Instance (instance.rs)     one store; one worker inside at a time (enter.rs, inside.rs)
//!             → guest (call.rs)           one call for all: events in, actions out (crate `blockloom-abi`)
//!             ← obey.rs                   judging the actions, and handing them out
//!   ← operation.rs            what the guest asks for: copies, reads, writes of its node's children, done
//!                             on the ground of the request that they serve, within the grants (grants.rs)
//! ```
//!
//! Which requests a guest is asked about at all, its rules say (`rules.rs`); what it has to remember is in
//! bitmaps that outlive it (`bitmaps/`).
//!
//! The data stays in the host: a plugin sees ids and ranges, and bytes only of nodes that grant it
//! (`bytes.rs`). What it answers is judged (`table`), not trusted. **Any** error of a call, and any breach of
//! the layout, drops the store. A request that the plugin had forwarded completes with the child's result, and is never issued again. One that it had not
//! waits until what was done for it is over; then the policy decides ([`OnFault`]): it fails with `EIO`, goes
//! to the child, or is offered to a new store (`restart.rs`), which begins with the same configuration, the
//! same nodes and the bitmaps as they are, and without rules. Nothing else in the daemon notices.
//!
//! Nodes come and go while a guest lives (`nodes.rs`, `served.rs`), each with its job (`jobs.rs`). Another plugin, or
//! other bytes of the same, may take the place of one that runs (`reload.rs`), or get another configuration.
//!
//! **Invariant**: no host lock, and no reference into the graph, is held while a guest runs, except the
//! instance's own.

#[cfg(test)]
mod at_once;
mod bindings;
mod bitmaps;
mod breach;
mod buffers;
mod bytes;
mod call;
mod counters;
mod cpu;
mod enter;
mod faults;
mod grants;
mod inside;
mod instance;
mod jobs;
mod local;
pub mod measure;
mod module;
mod node;
mod nodes;
mod obey;
mod operation;
mod reload;
mod restart;
mod rules;
mod runtime;
mod served;
mod store;
mod table;
#[cfg(test)]
mod tests;
mod timers;
mod version;

use std::time::Duration;

pub use bytes::ByteAccess;
pub use counters::PluginCounters;
pub use faults::{OnFault, Phase, RestartBudget};
pub use grants::Grants;
pub use instance::{Instance, InstanceError};
pub use module::{ChildWant, ConfigError, Inspection, PluginModule, bundled, bundled_names};
pub(crate) use node::OwnSets;
pub use node::PluginNode;
pub use runtime::PluginRuntime;

/// What a plugin instance may use. A configuration may say so much and no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PluginLimits {
    /// Linear memory, bytes: 64 KiB to 1 GiB; 16 MiB by default.
    pub memory_bytes: u64,
    /// Time of one call: 100 µs to 10 s; 5 ms by default.
    pub call: Duration,
    /// Requests of a node that it has not answered, or that are held for it: 1 to 65535; 256 by default.
    pub in_flight: u32,
    /// Time that it may keep one request without an answer: 1 ms to 1 h; 30 s by default.
    pub hold: Duration,
    /// Processor time that its calls may take of each second: 1 ms to 1 s, which is no limit; 500 ms by default. One
    /// that always wants more, for as long as `hold`, has failed.
    pub cpu: Duration,
    /// Messages that it may log in each second: 0 to 10000, 100 by default; more are counted, and dropped.
    pub messages: u32,
}

impl Default for PluginLimits {
    fn default() -> Self {
        Self {
            memory_bytes: 16 << 20,
            call: Duration::from_millis(5),
            in_flight: 256,
            hold: Duration::from_secs(30),
            cpu: Duration::from_millis(500),
            messages: 100,
        }
    }
}
