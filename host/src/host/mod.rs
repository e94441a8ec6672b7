//! A host: workers, a graph, bitmaps and exports, put together from code or from a TOML file.
//!
//! [`Host`], [`Drive`] and [`DirtyBitmap`] may be used from any thread, under any async executor or
//! none ([`block_on`]). A call is a message to a worker; the graph is reached on workers alone.

mod bitmaps;
mod call;
mod checkpoints;
mod decided;
mod drive;
mod events;
mod exports;
mod image_facts;
mod images;
mod jobs;
pub(crate) mod persist;
mod plugins;
mod report;
mod running;
mod spec;
mod start;
mod surroundings;
mod transaction;
mod work;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use bitmaps::DirtyBitmap;
pub use call::block_on;
pub(crate) use checkpoints::{OpenCheckpoint, OpenView};
pub use drive::Drive;
pub use exports::{Exported, NewExport, ShownBitmap};
pub use persist::Keep;
pub use plugins::{ChangedPlugin, LoadedPlugin, PluginBinary};
pub use report::report as report_of;
pub use spec::{
    Added, FilterPlace, Fragment, Overrides, StartError, StartedExport, check, read_spec, start,
};
pub(crate) use spec::{Composition, bitmap_shown_by, resolve};

use crate::bitmap::{BitmapName, Granularity};
use crate::error::{Error, ErrorKind, Result};
use crate::export::nbd::{Export, GRACE, ListenAddress, NbdServer};
use crate::graph::{
    Action, BitmapDecl, BitmapScope, ChildDecl, Cx, DriveDecl, Graph, GraphCell, LocalDrive,
    LocalGraph, OpenDriver, Transaction, WriterLock,
};
use crate::io::{EngineKind, WorkerHandle, WorkerOptions, Workers, turn_now, until};
use crate::job::Jobs;
use crate::limits::DRAIN_TIME;
use crate::node::Node;
use call::on_worker;
use checkpoints::Checkpoints;
use persist::{Persistence, Wanted};
use spec::Registry;
use start::{Driver, Plan, PlannedNode};
use work::Begun;

/// Collects what makes a [`Host`].
#[derive(Default)]
pub struct HostBuilder {
    options: WorkerOptions,
    plan: Plan,
}

impl HostBuilder {
    /// Sets threads, engine and polling.
    #[must_use]
    pub fn workers(mut self, options: WorkerOptions) -> Self {
        self.options = options;
        self
    }

    /// Adds a node: a driver of this crate or of your own, and its children in the driver's order.
    #[must_use]
    pub fn node(mut self, name: &str, driver: impl Node, children: Vec<ChildDecl>) -> Self {
        let driver = Driver::Ready(Arc::new(driver));
        self.plan.nodes.push(PlannedNode { name: name.into(), driver, children, is_closed: false });
        self
    }

    /// Adds a node whose driver is opened when its children stand: see [`Host::open_node`].
    #[must_use]
    pub fn open_node(
        mut self,
        name: &str,
        driver: impl OpenDriver,
        children: Vec<ChildDecl>,
    ) -> Self {
        let driver = Driver::Open(Box::new(driver));
        self.plan.nodes.push(PlannedNode { name: name.into(), driver, children, is_closed: false });
        self
    }

    /// Adds a drive that shows the node `root`.
    #[must_use]
    pub fn drive(mut self, id: &str, root: &str, writable: bool) -> Self {
        let root = Some(root.into());
        self.plan.drives.push(DriveDecl { id: id.into(), root, writable, only_shows: false });
        self
    }

    /// Adds a dirty bitmap that records from the start.
    #[must_use]
    pub fn bitmap(
        mut self,
        scope: BitmapScope,
        name: BitmapName,
        granularity: Granularity,
    ) -> Self {
        self.plan.bitmaps.push(BitmapDecl { scope, name, granularity, enabled: true });
        self
    }

    /// Adds a dirty bitmap that an image keeps while the host is down. If the image has it already, it goes on
    /// from there: recording, or disabled, as it was stored.
    #[must_use]
    pub fn kept_bitmap(
        mut self,
        scope: BitmapScope,
        name: BitmapName,
        granularity: Granularity,
        keep: Keep,
    ) -> Self {
        let (of, name) = (scope.clone(), name);
        self.plan.kept.push(Wanted { scope: of, name: name.clone(), keep, uuid: None });
        self.bitmap(scope, name, granularity)
    }

    /// Starts the workers and the graph. Bitmaps that images hold are loaded, and go on recording.
    ///
    /// # Errors
    /// When a name is wrong, nodes do not fit each other or do not open, permissions conflict, or the engine
    /// asked for does not work here; when a bitmap cannot be kept where it is to be.
    pub fn start(self) -> Result<Host> {
        Host::start(&self.options, self.plan).map_err(|failed| failed.error)
    }
}

/// Interval at which a shutdown lets held requests go.
const DRAIN_STEP: Duration = Duration::from_millis(50);

struct Inner {
    /// No more calls are taken.
    ended: Arc<AtomicBool>,
    workers: Workers,
    cell: Arc<GraphCell>,
    server: NbdServer,
    persistence: Arc<Persistence>,
    begun: Arc<Begun>,
    registry: Arc<Registry>,
    /// Whoever has it opens nodes for writing, or gives back what has been opened.
    openings: Arc<WriterLock>,
    /// Where exports go that name no place.
    nbd_server: Mutex<Option<ListenAddress>>,
    jobs: Arc<Jobs>,
    checkpoints: Checkpoints,
    next_worker: AtomicUsize,
}

/// See the module. Dropping it ends everything at once; [`Host::shutdown`] ends it in order.
pub struct Host {
    inner: Arc<Inner>,
}

impl Host {
    /// Begins a host from code.
    ///
    /// ```
    /// use blockloom::node::MemoryNode;
    /// use blockloom::{Host, block_on};
    ///
    /// # fn main() -> blockloom::Result<()> {
    /// let host = Host::builder()
    ///     .node("disk", MemoryNode::new(1 << 20, 1)?, vec![])
    ///     .drive("vda", "disk", true)
    ///     .start()?;
    /// let drive = host.drive("vda")?;
    /// block_on(drive.write(4096, b"hello"))?;
    /// assert_eq!(&block_on(drive.read(4096, 5))?[..], b"hello");
    /// host.shutdown()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> HostBuilder {
        HostBuilder::default()
    }

    /// The engine that the workers run on.
    pub fn engine(&self) -> EngineKind {
        self.inner.workers.engine()
    }

    /// The graph now.
    pub fn graph(&self) -> Arc<Graph> {
        self.inner.cell.load()
    }

    /// Checkpoints that have not ended.
    pub(crate) fn checkpoints(&self) -> &Checkpoints {
        &self.inner.checkpoints
    }

    /// From where relative paths are taken: the directory of the file that it began with.
    pub fn base_dir(&self) -> PathBuf {
        self.inner.registry.base()
    }

    /// A drive, by its id.
    ///
    /// # Errors
    /// `ENOENT`, with the ids that there are.
    pub fn drive(&self, id: &str) -> Result<Drive> {
        Drive::open(&self.inner, id)
    }

    /// A dirty bitmap.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn bitmap(&self, scope: &BitmapScope, name: &str) -> Result<DirtyBitmap> {
        DirtyBitmap::find(&self.inner, scope, name)
    }

    /// Adds a dirty bitmap, clean; it records from the moment at which this returns if `enabled`.
    ///
    /// # Errors
    /// `EEXIST`; `ENOENT` for an unknown scope; `ETIMEDOUT` when requests do not end.
    pub async fn add_bitmap(&self, decl: BitmapDecl) -> Result<DirtyBitmap> {
        let (scope, name) = (decl.scope.clone(), decl.name.clone());
        let add = Transaction::new().with(Action::AddBitmap(decl));
        let added = self.inner.transact(add).await?.added;
        match added.first() {
            Some(bitmap) => Ok(DirtyBitmap::new(&self.inner, &scope, bitmap)),
            None => DirtyBitmap::find(&self.inner, &scope, name.as_str()),
        }
    }

    /// Stores all bitmaps that images keep, as they stand. They stay marked as in use: what is stored counts
    /// when it is stored in the end, by [`Host::shutdown`] or when the image's node is removed. So this shows
    /// whether they can be.
    ///
    /// # Errors
    /// The first that is not stored; the others are.
    pub async fn store_bitmaps(&self) -> Result<()> {
        self.inner.persist(async |persistence, cell| persistence.store(cell).await).await
    }

    /// Serves exports over NBD; returns where (a TCP port 0 is replaced). As long as an export is there its
    /// bitmaps are neither removed nor renamed, and as long as a client reads them they are not cleared.
    ///
    /// # Errors
    /// When the address is taken, or a bitmap that is to be shown is not there.
    pub fn serve_nbd(
        &self,
        address: &ListenAddress,
        exports: Vec<Export>,
    ) -> Result<ListenAddress> {
        self.inner.server.listen(address, exports)
    }

    /// NBD clients connected now.
    pub fn connections(&self) -> usize {
        self.inner.server.connections()
    }

    /// The counters of all edges and the dirty counts of all bitmaps, one line each.
    pub fn report(&self) -> String {
        report::report(&self.graph())
    }

    /// Ends in order: no new requests, those in progress finish, writable drives are flushed, nodes close.
    ///
    /// # Errors
    /// When requests do not end in time, a flush fails, or a node does not close; everything has ended then
    /// all the same.
    pub fn shutdown(self) -> Result<()> {
        self.end()
    }

    /// As [`Host::shutdown`], of a host that others hold, too: what they ask for from now on is refused
    /// (`ESHUTDOWN`).
    ///
    /// # Errors
    /// As there.
    pub fn end(&self) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        let worker = inner.first().clone();
        inner.ended.store(true, Ordering::Release);
        inner.server.stop();
        // Not the whole of it: the last reference must not go on a worker.
        let (cell, server) = (Arc::clone(&inner.cell), inner.server.clone());
        let jobs = Arc::clone(&inner.jobs);
        let ended = block_on(on_worker(&worker, move || async move {
            let deadline = turn_now() + DRAIN_TIME;
            let grace_end = turn_now() + GRACE;
            cell.end_waits();
            // What a job has in flight is waited for below.
            let _ = until(grace_end, jobs.end_all()).await;
            let mut settled = cell.settle().await;
            // Requests that had arrived may still begin: what filters hold of them is let go, too.
            while until(turn_now() + DRAIN_STEP, server.stopped()).await.is_none() {
                if turn_now() >= deadline {
                    settled = false;
                    break;
                }
                settled &= cell.settle().await;
                if turn_now() >= grace_end {
                    server.abort();
                }
            }
            let flushed = flush_all(&cell).await;
            let rest = if settled { DRAIN_TIME } else { Duration::ZERO };
            let ended = flushed.and(cell.close_nodes(rest).await);
            if !settled {
                let message = format!("requests did not end within {} s", DRAIN_TIME.as_secs());
                return Err(Error::new(ErrorKind::TimedOut, message));
            }
            ended
        }));
        inner.let_go();
        inner.refresh_workers();
        ended
    }

    /// Calls `f` on a worker as [`LocalGraph::call_node`]: what a driver does beside requests.
    ///
    /// # Errors
    /// As there.
    pub async fn call_node<T, F>(&self, node: &str, f: F) -> Result<T>
    where
        T: Send + 'static,
        F: AsyncFnOnce(Cx<'_>) -> Result<T> + Send + 'static,
    {
        let (cell, ended, node) =
            (Arc::clone(&self.inner.cell), Arc::clone(&self.inner.ended), node.to_owned());
        on_worker(&self.inner.next(), move || async move {
            check_running(&ended)?;
            LocalGraph::of(&cell).call_node(&node, f).await
        })
        .await
    }
}

/// Refuses calls after the end.
fn check_running(ended: &AtomicBool) -> Result<()> {
    if ended.load(Ordering::Acquire) {
        return Err(Error::new(ErrorKind::ShuttingDown, "the host has been shut down"));
    }
    Ok(())
}

impl Drop for Host {
    /// Drives and bitmaps that are still held do not keep it alive.
    fn drop(&mut self) {
        self.inner.jobs.abandon();
        self.inner.cell.end_events();
        self.inner.workers.stop();
        self.inner.let_go();
    }
}

impl Inner {
    /// Lets go of all nodes, with their files and locks, whoever holds drives, bitmaps or jobs of a host that has
    /// ended.
    fn let_go(&self) {
        self.cell.clear();
        self.persistence.clear();
    }

    fn first(&self) -> &WorkerHandle {
        &self.workers.handles()[0]
    }

    /// Does something about kept bitmaps, on a worker.
    async fn persist<T: Send + 'static>(
        &self,
        f: impl AsyncFnOnce(&Persistence, &Arc<GraphCell>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (cell, ended) = (Arc::clone(&self.cell), Arc::clone(&self.ended));
        let persistence = Arc::clone(&self.persistence);
        on_worker(self.first(), move || async move {
            check_running(&ended)?;
            f(&persistence, &cell).await
        })
        .await
    }

    /// Workers in turn, so that drives spread over them.
    fn next(&self) -> WorkerHandle {
        let handles = self.workers.handles();
        handles[self.next_worker.fetch_add(1, Ordering::Relaxed) % handles.len()].clone()
    }
}

async fn flush_all(cell: &Arc<GraphCell>) -> Result<()> {
    let graph = cell.load();
    let mut result = Ok(());
    for drive in graph.drives().iter().filter(|drive| drive.is_writable() && drive.root().is_some())
    {
        let drive_flush = LocalDrive::open(&LocalGraph::of(cell), drive.id())?;
        let flushed = until(turn_now() + DRAIN_TIME, drive_flush.flush()).await;
        let late = || Err(Error::new(ErrorKind::TimedOut, "the flush did not end in time"));
        if let Err(error) = flushed.unwrap_or_else(late) {
            tracing::error!("flush of drive `{}`: {error}", drive.id());
            result = Err(error);
        }
    }
    result
}
