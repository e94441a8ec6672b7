//! Jobs for embedders, and what they ask of the host.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::call::on_worker;
use super::decided::{decided, tell};
use super::persist::Persistence;
use super::spec::{Registry, said_read_only};
use super::work::Begun;
use super::{Host, Inner, Result, check_running};
use crate::graph::{
    Action, Applied, Graph, GraphCell, LocalGraph, Opened, Transaction, WriterLock,
};
use crate::io::{WorkerHandle, spawn_boxed};
use crate::job::{Changes, JobHandle, JobSpec, Jobs, Needs};
use crate::node::{Reopen, Reopened};

impl Host {
    /// All jobs that have not been dismissed, in the order in which they were started.
    pub fn jobs(&self) -> Vec<JobHandle> {
        self.inner.jobs.all()
    }

    /// A job, by its id.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn job(&self, id: &str) -> Result<JobHandle> {
        self.inner.jobs.get(id)
    }

    /// Starts a job.
    ///
    /// ```
    /// use blockloom::graph::{BitmapScope, ChildDecl};
    /// use blockloom::bitmap::{BitmapName, Granularity};
    /// use blockloom::job::{JobEnd, JobKind, JobSpec, StreamSpec};
    /// use blockloom::node::MemoryNode;
    /// use blockloom::{Host, block_on};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let scope = BitmapScope::Drive("vda".into());
    /// let host = Host::builder()
    ///     .node("base", MemoryNode::new(1 << 20, 512)?, vec![])
    ///     .node("top", MemoryNode::overlay(1 << 20, 512)?, vec![ChildDecl::backing("base")])
    ///     .drive("vda", "top", true)
    ///     .bitmap(scope.clone(), BitmapName::new("daily")?, Granularity::DEFAULT)
    ///     .start()?;
    ///
    /// // The overlay gets what it shows of its base, and stands alone then.
    /// let job = JobSpec::new("flatten", JobKind::Stream(StreamSpec::of("vda")));
    /// let job = block_on(host.start_job(job))?;
    /// assert!(matches!(block_on(job.wait()), JobEnd::Completed));
    /// assert!(host.graph().nodes()[1].edges().is_empty());
    /// // A backup has nothing more to take.
    /// assert_eq!(host.bitmap(&scope, "daily")?.ranges(0..1 << 20).count(), 0);
    /// # Ok(host.shutdown()?)
    /// # }
    /// ```
    ///
    /// # Errors
    /// `EEXIST` for an id or a node that is there, `EBUSY` for too many; whatever stands against the job, naming
    /// both ends.
    pub async fn start_job(&self, spec: JobSpec) -> Result<JobHandle> {
        let (_, mut jobs) = self.start_jobs(vec![spec], false, Transaction::new()).await?;
        Ok(jobs.remove(0))
    }

    /// Starts jobs at the instant at which a transaction is applied: all of it, or nothing. In a group they end
    /// together, too: if one fails or is cancelled, so are the others; else all take effect at one instant.
    ///
    /// What a job copies to is made as long as what it copies, before that, and once nothing is known to stand against
    /// the job. Images that are open read-only, and
    /// that a commit or stream writes, are opened for writing, and read-only again when nobody writes them any
    /// more.
    ///
    /// # Errors
    /// As [`Host::start_job`] and [`Host::transact`].
    pub async fn start_jobs(
        &self,
        specs: Vec<JobSpec>,
        is_grouped: bool,
        transaction: Transaction,
    ) -> Result<(Applied, Vec<JobHandle>)> {
        let at = transaction.actions().count();
        let specs = specs.into_iter().map(|spec| (at, spec)).collect();
        self.start_jobs_at(specs, is_grouped, transaction).await
    }

    /// As [`Host::start_jobs`], each before the action with its number.
    pub(crate) async fn start_jobs_at(
        &self,
        specs: Vec<(usize, JobSpec)>,
        is_grouped: bool,
        transaction: Transaction,
    ) -> Result<(Applied, Vec<JobHandle>)> {
        let changer = Changer::of(&self.inner);
        let has_jobs = !specs.is_empty();
        let _opening = changer.openings.lock().await;
        let graph = self.graph();
        let Needs { mut written, named: named_at_end, growths } = Jobs::needs(&graph, &specs)?;
        changer.closed(&graph, &named_at_end)?;
        written.extend(named(&transaction));
        written.extend(changer.resized(transaction.actions()));
        written.extend(changer.resized(&growths));
        let is_opened = changer.open_to_write(&written).await?;
        let jobs = (specs, growths);
        let started = self.start_opened(&changer, jobs, is_grouped, transaction).await;
        // With a job in it, that gives back what it has written once it has ended.
        if is_opened && (started.is_err() || !has_jobs) {
            changer.give_back_left().await;
        }
        started
    }

    async fn start_opened(
        &self,
        changer: &Changer,
        (specs, growths): (Vec<(usize, JobSpec)>, Vec<Action>),
        is_grouped: bool,
        transaction: Transaction,
    ) -> Result<(Applied, Vec<JobHandle>)> {
        let inner = &self.inner;
        inner.check_unexported(&transaction)?;
        let changes: Arc<dyn Changes> = Arc::new(Changer::of(inner));
        let (starting, mut transaction) =
            inner.jobs.prepare(&inner.cell.load(), &specs, is_grouped, &changes, transaction)?;
        // They would do their work for nothing.
        starting.iter().try_for_each(|group| group.check_end(&transaction))?;
        // A size is changed before anybody else relies on it, and stays: not for jobs that are refused.
        if growths.iter().any(|growth| !changer.is_grown(growth)) {
            let opened = changer.check(&transaction).await?;
            transaction = transaction.with_opened(opened);
        }
        for growth in growths {
            // Somebody may have made it longer since.
            if changer.is_grown(&growth) {
                continue;
            }
            changer.carry_out(Transaction::new().with(growth)).await?;
        }
        let applied = changer.carry_out(transaction).await?;
        starting.iter().for_each(|group| group.are_created());
        let spawn = |job: Box<dyn FnOnce(_) -> _ + Send>| {
            let cell = Arc::clone(&inner.cell);
            // A worker that has ended takes the host with it.
            let _ = inner.next().post(move || spawn_boxed(job(LocalGraph::of(&cell))));
        };
        let jobs = starting.into_iter().flat_map(|group| group.begin(spawn)).collect();
        Ok((applied, jobs))
    }
}

/// Applies transactions, with what has to be seen to beside the graph. It does not keep the host alive.
pub(super) struct Changer {
    cell: Arc<GraphCell>,
    ended: Arc<AtomicBool>,
    persistence: Arc<Persistence>,
    registry: Arc<Registry>,
    openings: Arc<WriterLock>,
    begun: Option<Arc<Begun>>,
    workers: Vec<WorkerHandle>,
}

/// The nodes whose images are to name other backings.
fn named(transaction: &Transaction) -> Vec<String> {
    let named = transaction.actions().filter_map(|action| match action {
        Action::NameBacking { node, .. } | Action::NameOwnBacking { node, .. } => {
            Some(node.clone())
        }
        _ => None,
    });
    named.collect()
}

impl Changer {
    pub(super) fn of(inner: &Inner) -> Self {
        Self {
            cell: Arc::clone(&inner.cell),
            ended: Arc::clone(&inner.ended),
            persistence: Arc::clone(&inner.persistence),
            registry: Arc::clone(&inner.registry),
            openings: Arc::clone(&inner.openings),
            begun: inner.begun_once_loaded(),
            workers: inner.workers.handles().to_vec(),
        }
    }

    /// As [`Host::transact`]. Images that are to name another backing are opened for writing for that, and files that
    /// nobody writes for being resized.
    pub(super) async fn apply(&self, transaction: Transaction) -> Result<Applied> {
        let mut written = named(&transaction);
        written.extend(self.resized(transaction.actions()));
        if written.is_empty() {
            return self.carry_out(transaction).await;
        }
        let _opening = self.openings.lock().await;
        let (transaction, kept) = self.leave_names(transaction).await;
        written.retain(|node| !kept.contains(node));
        let is_opened =
            self.open_to_write(&written).await? || !transaction.may_keep_names().is_empty();
        let applied = self.carry_out(transaction).await;
        if is_opened {
            self.give_back_left().await;
        }
        applied
    }

    /// Opens the images that may go on naming the backings that they name; those that cannot be opened do so, and
    /// are returned.
    async fn leave_names(&self, mut transaction: Transaction) -> (Transaction, Vec<String>) {
        let mut kept = Vec::new();
        for node in transaction.may_keep_names().to_vec() {
            if let Err(error) = self.open_to_write(std::slice::from_ref(&node)).await {
                tracing::warn!(
                    "the image of node `{node}` goes on naming the backing that it names: {error}"
                );
                transaction = transaction.without_name(&node);
                kept.push(node);
            }
        }
        (transaction, kept)
    }

    /// Whether what is to be longer is so by now.
    fn is_grown(&self, growth: &Action) -> bool {
        let Action::Resize { node, size_bytes } = growth else { return false };
        let graph = self.cell.load();
        let at = graph.find_node(node);
        at.is_some_and(|at| graph.nodes()[at].info().size_bytes >= *size_bytes)
    }

    /// The nodes that it has resized or deallocated, as far as they are open read-only only because nobody writes
    /// them.
    fn resized<'a>(&self, actions: impl IntoIterator<Item = &'a Action>) -> Vec<String> {
        let graph = self.cell.load();
        let is_auto = |at: &usize| graph.open_mode(*at).auto;
        let is_left = |node: &&String| {
            let closed = graph.find_node(node).map(|at| graph.open_at_or_below(at, false));
            closed.is_some_and(|closed| !closed.is_empty() && closed.iter().all(is_auto))
        };
        let nodes = actions.into_iter().filter_map(|action| match action {
            Action::Resize { node, .. } | Action::Deallocate { node, .. } => Some(node),
            _ => None,
        });
        nodes.filter(is_left).cloned().collect()
    }

    /// Whether nothing that is known before anybody pauses stands against a transaction; with what was opened for it.
    ///
    /// # Errors
    /// What does.
    async fn check(&self, transaction: &Transaction) -> Result<Opened> {
        let (cell, persistence) = (Arc::clone(&self.cell), Arc::clone(&self.persistence));
        let changes = transaction.changes();
        let checked = on_worker(&self.workers[0], move || async move {
            let (changes, _) = persistence.prepare(&cell.load(), changes)?;
            cell.check(changes).await
        });
        checked.await
    }

    async fn carry_out(&self, transaction: Transaction) -> Result<Applied> {
        let (cell, ended) = (Arc::clone(&self.cell), Arc::clone(&self.ended));
        let (persistence, begun) = (Arc::clone(&self.persistence), self.begun.clone());
        let applied = on_worker(&self.workers[0], move || async move {
            check_running(&ended)?;
            let (transaction, entered) = persistence.prepare(&cell.load(), transaction)?;
            let decided = decided(&cell.load(), &transaction);
            let applied = cell.transact(transaction).await?;
            tell(&cell, decided);
            persistence.follow(&cell, entered).await;
            begun.iter().for_each(|begun| begun.begin_new(&cell));
            Ok(applied)
        });
        let applied = applied.await?;
        self.refresh();
        Ok(applied)
    }

    /// Opens nodes for writing, with what they keep their bytes in, as far as they are open read-only; until
    /// [`Self::give_back_left`]. Whether there were such.
    ///
    /// # Errors
    /// `EROFS` for a file that is read-only by its description; as for reopening nodes.
    async fn open_to_write(&self, nodes: &[String]) -> Result<bool> {
        let graph = self.cell.load();
        let closed = self.closed(&graph, nodes)?;
        if closed.is_empty() {
            return Ok(false);
        }
        self.open_all(&graph, &closed, (true, true)).await.map(|()| true)
    }

    /// Those of nodes, with what they keep their bytes in, that are open read-only, and are to be opened for writing.
    ///
    /// # Errors
    /// `EROFS` for a file that is read-only by its description.
    fn closed(&self, graph: &Graph, nodes: &[String]) -> Result<Vec<usize>> {
        let mut closed: Vec<usize> = Vec::new();
        for (name, node) in nodes.iter().filter_map(|name| Some((name, graph.find_node(name)?))) {
            for at in graph.open_at_or_below(node, false) {
                let below = &graph.nodes()[at];
                let is_file = below.edges().is_empty();
                if is_file && self.registry.is_said_read_only(below) {
                    return Err(said_read_only(below.name(), name));
                }
                if !closed.contains(&at) {
                    closed.push(at);
                }
            }
        }
        Ok(closed)
    }

    async fn open_all(&self, graph: &Graph, nodes: &[usize], how: (bool, bool)) -> Result<()> {
        let (write, for_job) = how;
        let how = Reopen { write: Some(write), for_job, ..Reopen::default() };
        let mut transaction = Transaction::new();
        for node in nodes.iter().map(|at| &graph.nodes()[*at]) {
            let to = Reopened::of(node, &how)?;
            transaction = transaction.with(Action::Reopen { node: node.name().to_owned(), to });
        }
        self.carry_out(transaction).await.map(drop)
    }

    /// Opens read-only again what was opened for writing and nobody writes any more; what is to be open only while
    /// somebody writes it, and is written by others now, goes with the last of them. What cannot be stays as it is.
    async fn give_back_left(&self) {
        let graph = self.cell.load();
        for (nodes, write) in [(graph.left_open(), false), (graph.kept_open(), true)] {
            if nodes.is_empty() {
                continue;
            }
            if let Err(error) = self.open_all(&graph, &nodes, (write, false)).await {
                let names = nodes.iter().map(|at| format!("`{}`", graph.nodes()[*at].name()));
                let names = names.collect::<Vec<_>>().join(", ");
                tracing::warn!(
                    "what was opened for writing for a job, {names}, stays so until the next job ends, or \
                     `blockdev-reopen` opens it read-only: {error}"
                );
            }
        }
    }

    /// Lets every worker go over to the current snapshot now: one without requests would keep the former,
    /// and with it the files of removed nodes.
    pub(super) fn refresh(&self) {
        for worker in &self.workers {
            let cell = Arc::clone(&self.cell);
            // A worker that has ended has let go of everything.
            let _ = worker.post(move || drop(LocalGraph::of(&cell).current()));
        }
    }
}

impl Changes for Changer {
    fn transact<'a>(
        &'a self,
        transaction: Transaction,
    ) -> Pin<Box<dyn Future<Output = Result<Applied>> + 'a>> {
        Box::pin(self.apply(transaction))
    }

    fn give_back<'a>(&'a self) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        Box::pin(async move {
            let _opening = self.openings.lock().await;
            self.give_back_left().await;
        })
    }
}
