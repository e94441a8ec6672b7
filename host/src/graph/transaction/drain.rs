//! Standing still: gates closed, nothing in flight behind them; and what a graph change may do then.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use super::reopen::former_mode;
use super::section_marks::SectionMarks;
use super::time_limit::TimeLimit;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::busy::{Busy, Concern};
use crate::graph::cell::Snapshot;
use crate::graph::counters::Counters;
use crate::graph::edge::EdgeRef;
use crate::graph::gate::{Closed, Gate};
use crate::graph::generation::NodeGeneration;
use crate::graph::mutation::{Mutation, mutated};
use crate::graph::origin::{Origin, Request};
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
    limit: TimeLimit,
) -> Result<Vec<Closed<'g>>> {
    let closed: Vec<Closed<'g>> = origins.iter().map(|origin| origin.gate.close()).collect();
    for origin in origins {
        if limit.keep_under_way(origin.gate.drained()).await.is_none() {
            let message = format!("{}: nothing was changed", origin.unended(limit.within));
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
    /// By origin.
    closed: Vec<Closed<'g>>,
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
        limit: TimeLimit,
    ) -> Result<Self> {
        let gates: Vec<&Origin> = origins.iter().map(|at| &*graph.origins[*at]).collect();
        let closed = close(&gates, limit).await?;
        Ok(Self { origins, moving, closed })
    }

    /// Those who pause.
    pub(super) fn origins(&self, graph: &Graph) -> Vec<Arc<Origin>> {
        let pausing = self.origins.iter().zip(&self.closed).filter(|(_, closed)| !closed.is_open());
        pausing.map(|(at, _)| Arc::clone(&graph.origins[*at])).collect()
    }

    /// Lets all others go on.
    pub(super) fn keep_only(&self, origins: &[usize]) {
        let others = self.origins.iter().zip(&self.closed).filter(|(at, _)| !origins.contains(at));
        others.for_each(|(_, closed)| closed.open());
    }

    /// Of those whose requests end within that time; with the origins whose requests do not.
    pub(super) async fn of_those_who_end(graph: &'g Graph, limit: TimeLimit) -> (Self, Vec<usize>) {
        let gates = graph.origins.iter().map(|origin| &origin.gate);
        let closed: Vec<Closed<'_>> = gates.clone().map(Gate::close).collect();
        let (mut ended, mut busy) = (Vec::new(), Vec::new());
        for (at, gate) in gates.enumerate() {
            match limit.keep_under_way(gate.drained()).await {
                Some(()) => ended.push(at),
                None => busy.push(at),
            }
        }
        let moving = graph.reached_by_others(&ended);
        // Nobody begins anything any more, whether it has ended or not.
        (Self { origins: (0..closed.len()).collect(), moving, closed }, busy)
    }

    /// The names of those who pause: drives, and nodes that act of their own accord.
    pub(super) fn ids(&self, graph: &Graph) -> Vec<Arc<str>> {
        self.origins(graph).iter().map(|origin| Arc::clone(&origin.name)).collect()
    }
}

/// One of the two snapshots of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::graph) enum Side {
    Before,
    After,
}

/// A node of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// Whom it concerns what is done at a place.
    concerns: RefCell<HashMap<Place, Rc<Concern>>>,
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
        Self { before, after, still, marks, concerns: RefCell::default(), worker }
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

    /// A node by its name.
    ///
    /// # Errors
    /// `ENOENT`.
    pub(super) fn find(&self, side: Side, name: &str) -> Result<Place> {
        let node = self.graph(side).find_node(name);
        let missing = || Error::new(ErrorKind::NotFound, format!("there is no node `{name}`"));
        Ok(Place { side, node: node.ok_or_else(missing)? })
    }

    /// Whether no request can come to a node: it is new, or whoever reaches it stands still.
    pub(in crate::graph) fn is_still(&self, generation: NodeGeneration) -> bool {
        mutated(Mutation::ChecksBeforeTheDrain) || !self.still.moving.contains(&generation)
    }

    /// A request that comes to a node. What of it goes on when the section has ended holds up the next one that has to do
    /// with the node.
    pub(super) fn request(&self, place: Place) -> Request {
        let graph = match place.side {
            Side::Before => self.before,
            Side::After => self.after,
        };
        let busy = Busy::of(&self.concern(place), self.worker);
        Request::inside(self, Rc::clone(graph), self.worker, Some(busy))
    }

    /// A request of what a node that acts copies, called `work` in messages: what of it goes on when the section has ended
    /// is the node's as all that this does.
    pub(in crate::graph) fn request_of(&self, node: usize, work: &str) -> Request {
        let origin = self.before.nodes[node].origin.map(|at| &self.before.origins[at]);
        let origins = origin.into_iter().map(Arc::clone).collect();
        let busy = Busy::of(&Rc::new(Concern { origins, work: work.into() }), self.worker);
        Request::inside(self, Rc::clone(self.before), self.worker, Some(busy))
    }

    fn concern(&self, place: Place) -> Rc<Concern> {
        let find = || Rc::new(self.find_concern(place));
        Rc::clone(self.concerns.borrow_mut().entry(place).or_insert_with(find))
    }

    /// Those who come to what the driver of a node may write, now or if the change is made.
    fn find_concern(&self, place: Place) -> Concern {
        let (graph, node) = (self.graph(place.side), self.node(place));
        let written = graph.nodes.iter().zip(graph.written_by(node.generation));
        let written = written.filter(|(_, is_written)| *is_written);
        let written: HashSet<NodeGeneration> = written.map(|(node, _)| node.generation).collect();
        let mut origins: Vec<Arc<Origin>> = Vec::new();
        for graph in [self.before, self.after] {
            let places = graph.nodes.iter().map(|node| written.contains(&node.generation));
            for at in graph.origins_reaching(places.collect()) {
                let origin = &graph.origins[at];
                if !origins.iter().any(|known| Arc::ptr_eq(known, origin)) {
                    origins.push(Arc::clone(origin));
                }
            }
        }
        Concern { origins, work: format!("what a change asked node `{}`", node.name).into() }
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
        let request = self.request(place);
        let edge = own_edge(place.node);
        let edge = EdgeRef { graph: request.graph(), request: &request, edge: &edge };
        edge.block_status(offset, len).await
    }

    /// Makes a node's completed writes durable.
    ///
    /// # Errors
    /// The driver's.
    pub(in crate::graph) async fn flush(&self, place: Place) -> Result<()> {
        let request = self.request(place);
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
        limit: TimeLimit,
    ) -> Result<()> {
        // What is writable up to now may not be any more then.
        let side = match former_mode(self.before, self.after, name) {
            Some(OpenMode { write: true, .. }) => Side::Before,
            _ => Side::After,
        };
        let place = self.find(side, name)?;
        let request = self.request(place);
        let (graph, node) = (request.graph(), place.node);
        let cx = Cx { graph, request: &request, node };
        let named = graph.nodes[node].driver.name_backing(cx, backing);
        let late = || {
            let message = "its image did not name another backing in time";
            Err(Error::new(ErrorKind::TimedOut, message))
        };
        let done = limit.keep(named).await.unwrap_or_else(late);
        done.map_err(|error| error.at_node(name))
    }

    /// Changes the size of a node of the graph that is to be.
    ///
    /// # Errors
    /// The driver's.
    pub(super) async fn resize(&self, node: usize, size_bytes: u64) -> Result<()> {
        let request = self.request(Place { side: Side::After, node });
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
        let request = self.request(Place { side: Side::After, node });
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
