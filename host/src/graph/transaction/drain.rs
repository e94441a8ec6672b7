//! Standing still: gates closed, nothing in flight behind them; and what a graph change may do then.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::reopen::former_mode;
use super::section_marks::SectionMarks;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::cell::Snapshot;
use crate::graph::counters::Counters;
use crate::graph::edge::EdgeRef;
use crate::graph::gate::Closed;
use crate::graph::generation::NodeGeneration;
use crate::graph::mutation::{Mutation, mutated};
use crate::graph::origin::{Busy, Origin, Request};
use crate::graph::permission::{PermissionSet, Role};
use crate::graph::snapshot::{Cx, Edge, Graph, GraphNode};
use crate::io::{current, turn_now, until};
use crate::limits::CLOSE_TIME;
use crate::node::{BackingName, Extent, OpenMode};

/// Closes the gates of `origins`, all at once, and waits until nothing is behind them.
///
/// # Errors
/// `ETIMEDOUT`, with who has not ended; the gates are open again.
pub(in crate::graph) async fn close<'g>(
    origins: &[&'g Origin],
    within: Duration,
) -> Result<Vec<Closed<'g>>> {
    let deadline = turn_now() + within;
    let closed: Vec<Closed<'g>> = origins.iter().map(|origin| origin.gate.close()).collect();
    for origin in origins {
        if until(deadline, origin.gate.drained()).await.is_none() {
            let abandoned = match origin.abandoned.load(Ordering::Relaxed) {
                0 => String::new(),
                count => format!(" ({count} of them a driver gave up before they had ended)"),
            };
            let message = format!(
                "{} requests of `{}` have not ended in {within:?}{abandoned}: nothing was changed",
                origin.gate.in_flight(),
                origin.name,
            );
            return Err(Error::new(ErrorKind::TimedOut, message));
        }
    }
    Ok(closed)
}

/// Some origins of a graph, standing still until this is dropped.
pub(super) struct Still<'g> {
    origins: Vec<usize>,
    /// Nodes to which others come meanwhile.
    moving: HashSet<NodeGeneration>,
    _closed: Vec<Closed<'g>>,
}

impl<'g> Still<'g> {
    /// `moving`: the nodes to which other origins come.
    ///
    /// # Errors
    /// As [`close`].
    pub(super) async fn of(
        graph: &'g Graph,
        origins: Vec<usize>,
        moving: HashSet<NodeGeneration>,
        within: Duration,
    ) -> Result<Self> {
        let gates: Vec<&Origin> = origins.iter().map(|at| &*graph.origins[*at]).collect();
        let closed = close(&gates, within).await?;
        Ok(Self { origins, moving, _closed: closed })
    }

    /// Those who pause.
    pub(super) fn origins(&self, graph: &Graph) -> Vec<Arc<Origin>> {
        self.origins.iter().map(|at| Arc::clone(&graph.origins[*at])).collect()
    }

    /// Of those whose requests end within that time; with the origins whose requests do not.
    pub(super) async fn of_those_who_end(graph: &'g Graph, within: Duration) -> (Self, Vec<usize>) {
        let all = 0..graph.origins.len();
        let gate = |at: &usize| &graph.origins[*at].gate;
        let closed = all.clone().map(|at| gate(&at).close()).collect();
        let (deadline, mut busy) = (turn_now() + within, Vec::new());
        for at in all.clone() {
            if until(deadline, gate(&at).drained()).await.is_none() {
                busy.push(at);
            }
        }
        let origins: Vec<usize> = all.filter(|at| !busy.contains(at)).collect();
        let moving = graph.reached_by_others(&origins);
        (Self { origins, moving, _closed: closed }, busy)
    }

    /// The names of those who pause: drives, and nodes that act of their own accord.
    pub(super) fn ids(&self, graph: &Graph) -> Vec<Arc<str>> {
        self.origins.iter().map(|at| Arc::clone(&graph.origins[*at].name)).collect()
    }
}

/// One of the two snapshots of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::graph) enum Side {
    Before,
    After,
}

/// A node of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::graph) struct Place {
    pub(in crate::graph) side: Side,
    pub(in crate::graph) node: usize,
}

/// The drained section of a transaction: the snapshot that is, the one that is to be, and nothing in
/// flight of those who reach what differs. Made in this file alone; what is learned in it borrows it, and
/// so ends with it.
pub(in crate::graph) struct Drained<'s> {
    before: &'s Rc<Snapshot>,
    after: &'s Rc<Snapshot>,
    still: &'s Still<'s>,
    /// Of what drivers write in it.
    marks: Rc<SectionMarks>,
    worker: usize,
}

impl<'s> Drained<'s> {
    pub(super) fn new(
        before: &'s Rc<Snapshot>,
        after: &'s Rc<Snapshot>,
        still: &'s Still<'_>,
    ) -> Self {
        let worker = current().map_or(0, |worker| worker.index());
        let marks = Rc::new(SectionMarks::of(before, after));
        Self { before, after, still, marks, worker }
    }

    pub(in crate::graph) fn graph(&self, side: Side) -> &Graph {
        match side {
            Side::Before => self.before,
            Side::After => self.after,
        }
    }

    pub(in crate::graph) fn node(&self, place: Place) -> &GraphNode {
        &self.graph(place.side).nodes[place.node]
    }

    /// Whether no request can come to a node: it is new, or whoever reaches it stands still.
    pub(in crate::graph) fn is_still(&self, generation: NodeGeneration) -> bool {
        mutated(Mutation::ChecksBeforeTheDrain) || !self.still.moving.contains(&generation)
    }

    /// A request in one of the two. What of it goes on when the section has ended holds up the next one.
    pub(super) fn request(&self, side: Side) -> Request {
        let graph = match side {
            Side::Before => self.before,
            Side::After => self.after,
        };
        let busy = Busy::of(self.still.origins(self.before), self.worker);
        Request::inside(self, Rc::clone(graph), self.worker, Some(busy))
    }

    /// A request in the graph that is.
    pub(in crate::graph) fn before(&self) -> Request {
        self.request(Side::Before)
    }

    /// What drivers have written in it, on the bitmaps that see it.
    pub(in crate::graph) fn marks(&self) -> &Rc<SectionMarks> {
        &self.marks
    }

    /// The extents of a node, as [`EdgeRef::block_status`].
    ///
    /// # Errors
    /// The driver's.
    pub(in crate::graph) async fn block_status(
        &self,
        place: Place,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Extent>> {
        let request = self.request(place.side);
        let edge = own_edge(place.node);
        let edge = EdgeRef { graph: request.graph(), request: &request, edge: &edge };
        edge.block_status(offset, len).await
    }

    /// Makes a node's completed writes durable.
    ///
    /// # Errors
    /// The driver's.
    pub(in crate::graph) async fn flush(&self, place: Place) -> Result<()> {
        let request = self.request(place.side);
        let edge = own_edge(place.node);
        let edge = EdgeRef { graph: request.graph(), request: &request, edge: &edge };
        edge.flush().await
    }

    /// Closes a node of the graph that is.
    ///
    /// # Errors
    /// The driver's; `ETIMEDOUT`.
    pub(super) async fn close(&self, node: usize) -> Result<()> {
        // Nobody comes there any more: nobody waits for what is late.
        let request = Request::inside(self, Rc::clone(self.before), self.worker, None);
        let cx = Cx { graph: request.graph(), request: &request, node };
        let node = &cx.graph.nodes[node];
        let done = until(turn_now() + CLOSE_TIME, node.driver.close(cx)).await;
        let late = || {
            let message = format!("it did not close within {} s", CLOSE_TIME.as_secs());
            Err(Error::new(ErrorKind::TimedOut, message))
        };
        done.unwrap_or_else(late).map_err(|error| error.at_node(&node.name))
    }

    /// Has the image of a node of the graph that is to be name a backing.
    ///
    /// # Errors
    /// The driver's; `ENOENT`, `ETIMEDOUT`.
    pub(super) async fn name_backing(
        &self,
        name: &str,
        backing: Option<BackingName>,
        within: Duration,
    ) -> Result<()> {
        // What is writable up to now may not be any more then.
        let side = match former_mode(self.before, self.after, name) {
            Some(OpenMode { write: true, .. }) => Side::Before,
            _ => Side::After,
        };
        let request = self.request(side);
        let graph = request.graph();
        let node = graph
            .find_node(name)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no node `{name}`")))?;
        let cx = Cx { graph, request: &request, node };
        let named = graph.nodes[node].driver.name_backing(cx, backing);
        let late = || {
            let message = "its image did not name another backing in time";
            Err(Error::new(ErrorKind::TimedOut, message))
        };
        let done = until(turn_now() + within, named).await.unwrap_or_else(late);
        done.map_err(|error| error.at_node(name))
    }

    /// Changes the size of a node of the graph that is to be.
    ///
    /// # Errors
    /// The driver's.
    pub(super) async fn resize(&self, node: usize, size_bytes: u64) -> Result<()> {
        let request = self.request(Side::After);
        let cx = Cx { graph: request.graph(), request: &request, node };
        let node = &cx.graph.nodes[node];
        let done = node.driver.resize(cx, size_bytes).await;
        done.map_err(|error| error.at_node(&node.name))
    }

    /// Gives up a range of a node of the graph that is to be.
    ///
    /// # Errors
    /// The driver's.
    pub(super) async fn deallocate(&self, node: usize, offset: u64, len: u64) -> Result<()> {
        let request = self.request(Side::After);
        let cx = Cx { graph: request.graph(), request: &request, node };
        let node = &cx.graph.nodes[node];
        let done = node.driver.deallocate(cx, offset, len).await;
        done.map_err(|error| error.at_node(&node.name))
    }
}

/// The edge by which a change itself reads a node: counted nowhere else.
fn own_edge(child: usize) -> Edge {
    Edge {
        name: "change".into(),
        child,
        role: Role::Source,
        grants: PermissionSet::NONE,
        uses: PermissionSet::CONSISTENT_READ,
        shares: PermissionSet::ALL,
        counters: Arc::new(Counters::new()),
        grows: false,
        entry: None,
        proven_for: None,
        crossing: None,
        own: None,
    }
}
