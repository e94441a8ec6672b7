//! Events of graph changes for embedders.

use super::Host;
use crate::graph::Events;

impl Host {
    /// What graph changes do beside what is asked for, whoever asks: from now on, in order.
    ///
    /// At most [`EVENTS_MAX`](crate::limits::EVENTS_MAX) events wait for each subscriber. One that is
    /// slower loses the oldest and learns with the next event how many; no change waits for it.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use blockloom::bitmap::{BitmapName, Granularity};
    /// use blockloom::graph::{Action, BitmapScope, Event, NodeDecl, Transaction, Unproven};
    /// use blockloom::node::MemoryNode;
    /// use blockloom::{Host, block_on};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let scope = BitmapScope::Drive("vda".into());
    /// let host = Host::builder()
    ///     .node("disk", MemoryNode::new(1 << 20, 1)?, vec![])
    ///     .node("other", MemoryNode::new(1 << 20, 1)?, vec![])
    ///     .drive("vda", "disk", true)
    ///     .bitmap(scope, BitmapName::new("daily")?, Granularity::DEFAULT)
    ///     .start()?;
    /// let mut events = host.events();
    ///
    /// // Nothing proves that the other node shows the same: a backup will be a full one.
    /// let pivot = Action::SetRoot { drive: "vda".into(), node: "other".into() };
    /// block_on(host.transact(Transaction::new().with_unproven(pivot, Unproven::MarkWhole)))?;
    /// let notice = block_on(events.next()).ok_or("an event")?;
    /// assert!(matches!(notice.event, Event::BitmapMarkedWhole { .. }));
    /// assert_eq!((notice.generation, notice.lost), (host.graph().generation(), 0));
    ///
    /// host.shutdown()?;
    /// while let Some(notice) = block_on(events.next()) {
    ///     println!("{}", notice.event);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn events(&self) -> Events {
        self.inner.cell.events()
    }
}
