//! The current snapshot, its one writer, and its readers on the workers.

use std::cell::RefCell;
use std::future::poll_fn;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use arc_swap::ArcSwap;

use super::build::{BitmapDecl, GraphDecl};
use super::detach::ToTheEnd;
use super::guard::Guards;
use super::origin::{Origin, Request};
use super::showing::Showings;
use super::snapshot::{Cx, Graph};
#[cfg(test)]
use super::transaction::BitmapAction;
use super::transaction::{
    Action, Event, EventBus, Events, LateWork, TimeLimit, Transaction, close,
};
use crate::bitmap::Bitmap;
#[cfg(test)]
use crate::bitmap::Change;
use crate::error::{Error, ErrorKind, Result};
use crate::io::current;
use crate::limits::DRAIN_TIME;

/// The graph of one host.
pub struct GraphCell {
    current: ArcSwap<Graph>,
    /// Generation of `current`: what a reader compares with on every request.
    generation: AtomicU64,
    pub(super) writer: WriterLock,
    pub(super) events: EventBus,
    pub(super) late: LateWork,
    /// What exports show of bitmaps.
    pub(super) showings: Showings,
}

impl GraphCell {
    /// A cell with its first snapshot.
    pub fn new(graph: Graph) -> Self {
        let generation = AtomicU64::new(graph.generation);
        let current = ArcSwap::from_pointee(graph);
        let (writer, events) = (WriterLock::default(), EventBus::default());
        let (late, showings) = (LateWork::default(), Showings::default());
        Self { current, generation, writer, events, late, showings }
    }

    /// The same, for a host of so many workers: guards keep a table for each.
    pub fn with_workers(mut graph: Graph, workers: usize) -> Self {
        graph.guards = Arc::new(Guards::new(workers));
        Self::new(graph)
    }

    /// The snapshot now.
    pub fn load(&self) -> Arc<Graph> {
        self.current.load_full()
    }

    pub(super) fn publish(&self, next: Arc<Graph>) {
        let generation = next.generation;
        self.current.store(next);
        self.generation.store(generation, Ordering::SeqCst);
    }

    /// Lets go of all nodes: each is dropped when whoever looks at the graph at this moment has ceased to. For a
    /// host that has ended.
    pub(crate) fn clear(&self) {
        let last = self.load();
        let Ok(empty) = GraphDecl::default().build() else { return };
        let (generation, guards) = (last.generation + 1, Arc::clone(&last.guards));
        self.publish(Arc::new(Graph { generation, guards, ..empty }));
    }

    /// Adds a bitmap, in a transaction of its own.
    ///
    /// # Errors
    /// As [`GraphCell::transact`].
    pub async fn add_bitmap(self: &Arc<Self>, decl: BitmapDecl) -> Result<Arc<Bitmap>> {
        let name = decl.name.clone();
        let applied = self.transact(Transaction::new().with(Action::AddBitmap(decl))).await?;
        let removed = || Error::new(ErrorKind::NotFound, format!("bitmap `{name}` is not there"));
        applied.added.into_iter().next().ok_or_else(removed)
    }

    /// Makes `changes` of a bitmap, in a transaction of their own.
    #[cfg(test)]
    pub(crate) async fn change_bitmap(
        self: &Arc<Self>,
        bitmap: &Arc<Bitmap>,
        changes: &[Change],
    ) -> Result<()> {
        let actions = changes.iter().map(|change| BitmapAction::from(change).of(bitmap));
        self.transact(actions.fold(Transaction::new(), Transaction::with)).await.map(drop)
    }

    /// What graph changes do beside what is asked for, from now on.
    pub fn events(&self) -> Events {
        self.events.subscribe()
    }

    /// Tells subscribers of what has come of graph changes, seen with the snapshot `graph`.
    pub(crate) fn tell(&self, graph: &Graph, event: Event) {
        self.events.publish(graph.generation, &[event]);
    }

    /// Tells subscribers that there will be no more events.
    pub(crate) fn end_events(&self) {
        self.events.end();
    }

    /// No request waits any more for what may not come: a shutdown has begun.
    pub fn end_waits(&self) {
        self.load().origins.iter().for_each(|origin| origin.gate.end());
    }

    /// Waits for a moment without requests in flight, at most until the drain deadline; returns whether
    /// it came. For a shutdown, once exports make no more requests.
    pub async fn settle(&self) -> bool {
        let graph = self.load();
        let origins: Vec<&Origin> = graph.origins.iter().map(|origin| &**origin).collect();
        close(&origins, TimeLimit::of(DRAIN_TIME)).await.is_ok()
    }
}

/// Lets one writer in at a time, in the order of asking as far as wakers keep it.
#[derive(Default)]
pub(crate) struct WriterLock {
    state: Mutex<(bool, Vec<Waker>)>,
}

pub(crate) struct Writing<'a>(&'a WriterLock);

impl WriterLock {
    pub(crate) async fn lock(&self) -> Writing<'_> {
        poll_fn(|cx| {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.0 {
                state.1.push(cx.waker().clone());
                return Poll::Pending;
            }
            state.0 = true;
            Poll::Ready(Writing(self))
        })
        .await
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = false;
        let waiting = std::mem::take(&mut state.1);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// A snapshot held by one worker. Requests count it without atomics; the worker counts it once.
pub struct Snapshot(Arc<Graph>);

impl Snapshot {
    pub(super) fn new(graph: Arc<Graph>) -> Self {
        Self(graph)
    }

    /// What all workers share.
    pub(super) fn shared(&self) -> Arc<Graph> {
        Arc::clone(&self.0)
    }
}

impl Deref for Snapshot {
    type Target = Graph;

    fn deref(&self) -> &Graph {
        &self.0
    }
}

/// One worker's view of the cell: a request costs a compare and a plain reference count.
pub struct LocalGraph {
    cell: Arc<GraphCell>,
    worker: usize,
    cached: RefCell<Rc<Snapshot>>,
}

thread_local! {
    static LOCAL: RefCell<Vec<Rc<LocalGraph>>> = const { RefCell::new(Vec::new()) };
}

impl LocalGraph {
    /// The current worker's view of `cell`.
    pub fn of(cell: &Arc<GraphCell>) -> Rc<Self> {
        LOCAL.with(|local| {
            let mut local = local.borrow_mut();
            if let Some(known) = local.iter().find(|graph| Arc::ptr_eq(&graph.cell, cell)) {
                return Rc::clone(known);
            }
            let worker = current().map_or(0, |worker| worker.index());
            let graph = Rc::new(Self::new(Arc::clone(cell), worker));
            local.push(Rc::clone(&graph));
            graph
        })
    }

    /// For the worker with this number.
    pub fn new(cell: Arc<GraphCell>, worker: usize) -> Self {
        let cached = RefCell::new(Rc::new(Snapshot(cell.load())));
        Self { cell, worker, cached }
    }

    /// The worker's number.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// The cell.
    pub fn cell(&self) -> &Arc<GraphCell> {
        &self.cell
    }

    /// The current snapshot.
    #[inline]
    pub fn current(&self) -> Rc<Snapshot> {
        let cached = Rc::clone(&self.cached.borrow());
        if self.is_current(&cached) {
            return cached;
        }
        let fresh = Rc::new(Snapshot(self.cell.load()));
        *self.cached.borrow_mut() = Rc::clone(&fresh);
        fresh
    }

    /// Calls `f` with what the driver of a node may reach during a call, as a request of the node: a graph
    /// change waits for its end, and what it writes to the node's containers is marked. For what a driver
    /// does beside requests ([`Node::upkeep`](crate::node::Node::upkeep)); it must not alter what the node
    /// shows. It runs to its end, also if the future is dropped. Not to be waited for by a request, which has
    /// a [`Cx`] of its own: a drain would wait for that request, and this for the drain's end.
    ///
    /// # Errors
    /// `ENOENT`; `EPERM` for a node whose driver has no work of its own, and no grants; those of `f`.
    pub async fn call_node<T: 'static>(
        self: &Rc<Self>,
        name: &str,
        f: impl AsyncFnOnce(Cx<'_>) -> Result<T> + 'static,
    ) -> Result<T> {
        let (graph, name) = (Rc::clone(self), name.to_owned());
        ToTheEnd::new(async move {
            loop {
                let current = graph.current();
                let (node, origin) = current.own_origin(&name)?;
                let request = Request::begin(current, origin, graph.worker).await;
                if graph.is_current(request.graph()) {
                    return f(Cx { graph: request.graph(), request: &request, node }).await;
                }
            }
        })
        .await
    }

    /// Whether no newer snapshot has been published.
    #[inline]
    pub fn is_current(&self, graph: &Graph) -> bool {
        self.cell.generation.load(Ordering::SeqCst) == graph.generation
    }
}
