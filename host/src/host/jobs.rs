//! Jobs for embedders, and what they ask of the host.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::call::on_worker;
use super::decided::{decided, tell};
use super::persist::Persistence;
use super::work::Begun;
use super::{Host, Inner, Result, check_running};
use crate::graph::{Applied, GraphCell, LocalGraph, Transaction};
use crate::io::{WorkerHandle, spawn_boxed};
use crate::job::{Changes, JobHandle, JobSpec, Jobs};

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
    /// What a job copies to is made as long as what it copies, before that.
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
        let inner = &self.inner;
        let changes: Arc<dyn Changes> = Arc::new(Changer::of(inner));
        // A size is changed before anybody else relies on it; it stays, whatever comes of the jobs.
        for growth in Jobs::growths(&inner.cell.load(), &specs)? {
            inner.transact(Transaction::new().with(growth)).await?;
        }
        let (starting, transaction) =
            inner.jobs.prepare(&inner.cell.load(), &specs, is_grouped, &changes, transaction)?;
        let applied = inner.transact(transaction).await?;
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
    begun: Option<Arc<Begun>>,
    workers: Vec<WorkerHandle>,
}

impl Changer {
    pub(super) fn of(inner: &Inner) -> Self {
        Self {
            cell: Arc::clone(&inner.cell),
            ended: Arc::clone(&inner.ended),
            persistence: Arc::clone(&inner.persistence),
            begun: inner.begun_once_loaded(),
            workers: inner.workers.handles().to_vec(),
        }
    }

    /// As [`Host::transact`].
    pub(super) async fn apply(&self, transaction: Transaction) -> Result<Applied> {
        let (cell, ended) = (Arc::clone(&self.cell), Arc::clone(&self.ended));
        let (persistence, begun) = (Arc::clone(&self.persistence), self.begun.clone());
        let applied = on_worker(&self.workers[0], move || async move {
            check_running(&ended)?;
            let decided = decided(&cell.load(), &transaction);
            let (transaction, entered) = persistence.prepare(&cell.load(), transaction)?;
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
}
