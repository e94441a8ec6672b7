//! Closing nodes: those that a transaction removes, and all of them when the host ends.
//!
//! A node closes in a drained section, so that what it writes is marked in sets that the transaction then
//! goes on with; in the order of `close_order.rs`.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::close_order::order;
use super::drain::{Drained, Side, Still};
use super::event::Event;
use super::time_limit::TimeLimit;
use super::touched::Known;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::cell::{GraphCell, Snapshot};
use crate::graph::snapshot::GraphNode;
use crate::io::{turn_now, until};
use crate::limits::CLOSE_TIME;

/// Closes the nodes that are not in the graph that is to be.
pub(super) async fn removed(section: &Drained<'_>) -> Vec<Event> {
    let (before, known) = (section.graph(Side::Before), Known::of(section.graph(Side::After)));
    let mut events = Vec::new();
    let goes = |node: &GraphNode| known.node(node.generation).is_none();
    if !before.nodes.iter().any(goes) {
        return events;
    }
    for at in order(before) {
        let node = &before.nodes[at];
        if goes(node)
            && let Err(error) = section.close(at).await
        {
            events.push(Event::NodeNotClosed {
                node: Arc::clone(&node.name),
                why: error.to_string(),
            });
        }
    }
    events
}

impl GraphCell {
    /// Does something with nothing in flight of those who come to one of these nodes, and no graph change
    /// under way.
    ///
    /// # Errors
    /// `ETIMEDOUT` when requests do not end: it was not done.
    pub(crate) async fn while_still<T>(
        &self,
        is_one: impl Fn(&GraphNode) -> bool,
        within: Duration,
        act: impl AsyncFnOnce() -> T,
    ) -> Result<T> {
        let _writer = self.writer.lock().await;
        let graph = self.load();
        let origins = graph.origins_reaching(graph.nodes.iter().map(is_one).collect());
        let still = Still::of(&graph, origins, HashSet::new(), TimeLimit::of(within)).await?;
        let done = act().await;
        drop(still);
        Ok(done)
    }

    /// Closes all nodes but those that requests are still on their way to after `within`. For the end of a
    /// host, once: nothing may be asked of the nodes afterwards.
    ///
    /// # Errors
    /// The first node's that was not closed; all have been logged.
    pub(crate) async fn close_nodes(&self, within: Duration) -> Result<()> {
        let writer = until(turn_now() + CLOSE_TIME, self.writer.lock()).await;
        let _writer = writer.ok_or_else(|| {
            let message = "a change of the graph does not end: no node was closed";
            Error::new(ErrorKind::TimedOut, message)
        })?;
        let graph = Rc::new(Snapshot::new(self.load()));
        let (still, busy) = Still::of_those_who_end(&graph, TimeLimit::of(within)).await;
        let section = Drained::new(&graph, &graph, &still);
        let mut result = Ok(());
        for at in order(&graph) {
            let node = &graph.nodes[at];
            let closed = match section.is_still(node.generation) {
                true => section.close(at).await,
                false => {
                    let names = busy.iter().map(|at| format!("`{}`", graph.origins[*at].name));
                    let names: Vec<String> = names.collect();
                    let message = format!(
                        "it was not closed: requests of {} have not ended",
                        names.join(", ")
                    );
                    Err(Error::new(ErrorKind::TimedOut, message).at_node(&node.name))
                }
            };
            if let Err(error) = closed {
                tracing::error!("{error}");
                result = result.and(Err(error));
            }
        }
        result
    }
}
