//! The commands, by subject. A subject declares its own in `register`.

mod bitmaps;
mod blockdev;
mod blockdev_options;
mod checkpoints;
mod drives;
mod exports;
mod images;
mod jobs;
mod nbd_server;
mod nodes;
mod plugins;
mod session;
mod stats;
mod transaction;

pub(super) use jobs::JobType;

use super::events;
use super::registry::Registry;

/// All commands, actions and events.
pub(super) fn registry() -> Registry {
    let mut registry = Registry::default();
    session::register(&mut registry);
    transaction::register(&mut registry);
    bitmaps::register(&mut registry);
    nodes::register(&mut registry);
    stats::register(&mut registry);
    drives::register(&mut registry);
    checkpoints::register(&mut registry);
    blockdev::register(&mut registry);
    exports::register(&mut registry);
    nbd_server::register(&mut registry);
    plugins::register(&mut registry);
    jobs::register(&mut registry);
    events::register(&mut registry);
    registry
}
