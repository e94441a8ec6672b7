//! The current snapshot, its one writer, and its readers on the workers.

use std::cell::RefCell;
use std::future::poll_fn;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use arc_swap::ArcSwap;

use super::build::BitmapDecl;
use super::guard::Guards;
use super::mutation::{Mutation, mutated};
use super::origin::Origin;
use super::snapshot::{BitmapScope, Graph};
use super::transaction::{Draft, apply, close};
use crate::bitmap::{Bitmap, BitmapName, Change, Prepared};
use crate::error::{Error, ErrorKind, Result};
use crate::io::current;
use crate::limits::DRAIN_TIME;

/// The graph of one host.
pub struct GraphCell {
    current: ArcSwap<Graph>,
    /// Generation of `current`: what a reader compares with on every request.
    generation: AtomicU64,
    pub(super) writer: WriterLock,
}

impl GraphCell {
    /// A cell with its first snapshot.
    pub fn new(graph: Graph) -> Self {
        let generation = AtomicU64::new(graph.generation);
        Self { current: ArcSwap::from_pointee(graph), generation, writer: WriterLock::default() }
    }

    /// The same, for a host of so many workers: guards keep a table for each.
    pub(crate) fn with_workers(mut graph: Graph, workers: usize) -> Self {
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

    /// Adds a bitmap; it records every change that begins after this returns, and none before.
    ///
    /// # Errors
    /// As [`GraphDecl::build`](super::GraphDecl::build); `ETIMEDOUT` when requests do not end.
    pub async fn add_bitmap(&self, decl: BitmapDecl) -> Result<Arc<Bitmap>> {
        let (scope, name) = (decl.scope.clone(), decl.name.clone());
        let add = |_: &Graph, draft: &mut Draft, _: &mut Prepared| {
            draft.add_bitmap(decl);
            draft.skips_drain = mutated(Mutation::AddsUndrained);
            Ok(())
        };
        apply(self, add, DRAIN_TIME).await?;
        // Nobody can have taken it out before this learns of it, unless it is gone by now.
        let added = self.load().find_bitmap(&scope, name.as_str()).map(Arc::clone);
        added.ok_or_else(|| removed(&name))
    }

    /// Takes a bitmap out of the graph; whoever holds it may still read it.
    ///
    /// # Errors
    /// `ENOENT`; `EBUSY` when somebody uses it or it is frozen; `ETIMEDOUT` when requests do not end.
    pub async fn remove_bitmap(&self, bitmap: &Arc<Bitmap>) -> Result<()> {
        let remove = |graph: &Graph, draft: &mut Draft, prepared: &mut Prepared| {
            scope_of(graph, bitmap)?;
            prepared.add(bitmap, &Change::Remove)?;
            draft.remove_bitmap(bitmap);
            Ok(())
        };
        apply(self, remove, DRAIN_TIME).await.map(drop)
    }

    /// Makes `changes` of a bitmap, all or none, while no change of its view is in flight.
    ///
    /// # Errors
    /// `ENOENT`; `EEXIST` for a name that is taken; `ETIMEDOUT` when requests do not end; as
    /// [`BitmapError`](crate::bitmap::BitmapError).
    pub(crate) async fn change_bitmap(
        &self,
        bitmap: &Arc<Bitmap>,
        changes: &[Change],
    ) -> Result<()> {
        let change = |graph: &Graph, draft: &mut Draft, prepared: &mut Prepared| {
            draft.skips_drain = changes.iter().any(|change| match change {
                Change::Clear => mutated(Mutation::ClearsUndrained),
                Change::Enable => mutated(Mutation::EnablesUndrained),
                Change::Freeze => mutated(Mutation::FreezesUndrained),
                _ => false,
            });
            check_new_names(graph, scope_of(graph, bitmap)?, bitmap, changes)?;
            changes.iter().try_for_each(|change| prepared.add(bitmap, change))?;
            Ok(())
        };
        apply(self, change, DRAIN_TIME).await.map(drop)
    }

    /// Waits for a moment without requests in flight, at most until the drain deadline; returns whether
    /// it came. For a shutdown, once exports make no more requests.
    pub async fn settle(&self) -> bool {
        let graph = self.load();
        let origins: Vec<&Origin> = graph.origins.iter().map(|origin| &**origin).collect();
        close(&origins, DRAIN_TIME).await.is_ok()
    }
}

/// Where the graph has `bitmap`.
fn scope_of<'a>(graph: &'a Graph, bitmap: &Arc<Bitmap>) -> Result<&'a BitmapScope> {
    let mut all = graph.bitmaps();
    all.find(|(_, other)| Arc::ptr_eq(other, bitmap))
        .map(|(scope, _)| scope)
        .ok_or_else(|| removed(&bitmap.name()))
}

fn removed(name: &BitmapName) -> Error {
    Error::new(ErrorKind::NotFound, format!("bitmap `{name}` has been removed"))
}

/// Refuses to give `bitmap` a name that another one of its scope has.
fn check_new_names(
    graph: &Graph,
    scope: &BitmapScope,
    bitmap: &Arc<Bitmap>,
    changes: &[Change],
) -> Result<()> {
    for change in changes {
        let Change::Rename(name) = change else { continue };
        let other = graph.find_bitmap(scope, name.as_str());
        if other.is_some_and(|other| !Arc::ptr_eq(other, bitmap)) {
            let message =
                format!("there is a bitmap `{name}` already: remove it or choose another name");
            return Err(Error::new(ErrorKind::Exists, message));
        }
    }
    Ok(())
}

/// Lets one writer in at a time, in the order of asking as far as wakers keep it.
#[derive(Default)]
pub(super) struct WriterLock {
    state: Mutex<(bool, Vec<Waker>)>,
}

pub(super) struct Writing<'a>(&'a WriterLock);

impl WriterLock {
    pub(super) async fn lock(&self) -> Writing<'_> {
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

    /// Whether no newer snapshot has been published.
    #[inline]
    pub fn is_current(&self, graph: &Graph) -> bool {
        self.cell.generation.load(Ordering::SeqCst) == graph.generation
    }
}
