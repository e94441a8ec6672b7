//! All jobs of a host, and what may be asked of each.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::group::{Changes, Group, Member};
use super::node::JobNode;
use super::record::{IoStatus, JobEnd, JobInfo, Record, State, Wish};
use super::spec::{JobKind, JobSpec};
use super::status::{JobStatus, Verb};
use super::stream;
use super::work::Planned;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Action, Graph, GraphCell, LocalGraph, NodeDecl, Transaction};
use crate::limits::JOBS_MAX;

/// See the module.
pub(crate) struct Jobs {
    cell: Arc<GraphCell>,
    all: Mutex<Vec<JobHandle>>,
    ended: AtomicBool,
}

/// A job that has been started. It stays valid when the job is gone; clones share it.
#[derive(Clone)]
pub struct JobHandle {
    record: Arc<Record>,
    group: Arc<Group>,
}

/// Jobs that have a place among all, and are not in the graph yet.
pub(crate) struct Starting {
    group: Arc<Group>,
    jobs: Arc<Jobs>,
    has_begun: bool,
}

impl Jobs {
    pub(crate) fn new(cell: &Arc<GraphCell>) -> Arc<Self> {
        let (cell, all, ended) = (Arc::clone(cell), Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { cell, all, ended })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<JobHandle>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn cell(&self) -> &Arc<GraphCell> {
        &self.cell
    }

    /// All that have not been dismissed, in the order in which they were started.
    pub(crate) fn all(&self) -> Vec<JobHandle> {
        self.lock().clone()
    }

    /// # Errors
    /// `ENOENT`.
    pub(crate) fn get(&self, id: &str) -> Result<JobHandle> {
        let all = self.lock();
        let found = all.iter().find(|job| &*job.record.id == id).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no job `{id}`")))
    }

    /// Whether the host has ended, or is about to.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Forgets a job that has ended.
    pub(super) fn dismiss(&self, record: &Arc<Record>) {
        record.become_status(JobStatus::Null);
        self.lock().retain(|job| !Arc::ptr_eq(&job.record, record));
    }

    /// Cancels all, and waits until they have ended. For the end of a host.
    pub(crate) async fn end_all(&self) {
        self.ended.store(true, Ordering::Release);
        let all = self.all();
        for job in &all {
            job.record.state.change(|state| state.wish = Some(Wish::Abort));
        }
        for job in all {
            job.wait().await;
        }
    }

    /// Nobody works any more: who waits for a job is told so.
    pub(crate) fn abandon(&self) {
        self.ended.store(true, Ordering::Release);
        // They know this list.
        let all = std::mem::take(&mut *self.lock());
        for job in all {
            let error = Error::new(ErrorKind::ShuttingDown, "the host has ended");
            job.record.state.change(|state| state.end.get_or_insert(JobEnd::Failed(error)).clone());
        }
    }

    /// Gives jobs their places, and adds their nodes to a transaction. In a group they end together.
    ///
    /// # Errors
    /// `EEXIST` for an id that is taken, `EBUSY` for too many; what stands against a job.
    pub(crate) fn prepare(
        self: &Arc<Self>,
        graph: &Graph,
        specs: &[JobSpec],
        is_grouped: bool,
        changes: &Arc<dyn Changes>,
        mut transaction: Transaction,
    ) -> Result<(Vec<Starting>, Transaction)> {
        let mut planned = Vec::with_capacity(specs.len());
        for spec in specs {
            let Planned { stake, children, work } = plan(graph, spec)?;
            let (name, driver) = (spec.node_name(), Arc::new(JobNode::new(stake)));
            let node = NodeDecl { name: name.clone(), driver, children };
            transaction = transaction.with(Action::AddNode(node));
            let state = State::new(spec.speed, (spec.auto_finalize, spec.auto_dismiss));
            let names = (spec.id.as_str().into(), spec.what.name(), name);
            let record = Record::new(names, spec.on_error, Arc::clone(&self.cell), state);
            planned.push(Member { record: Arc::new(record), work });
        }
        let groups: Vec<Vec<Member>> = match is_grouped {
            true => vec![planned],
            false => planned.into_iter().map(|member| vec![member]).collect(),
        };
        let mut starting = Vec::new();
        for members in groups.into_iter().filter(|members| !members.is_empty()) {
            let group = Arc::new(Group::new(members, self, changes));
            self.enlist(&group)?;
            starting.push(Starting { group, jobs: Arc::clone(self), has_begun: false });
        }
        Ok((starting, transaction))
    }

    fn enlist(&self, group: &Arc<Group>) -> Result<()> {
        if self.has_ended() {
            return Err(Error::new(ErrorKind::ShuttingDown, "the host is about to end"));
        }
        let mut all = self.lock();
        if all.len() + group.members.len() > JOBS_MAX {
            let message = format!("there are {} jobs already: at most {JOBS_MAX}", all.len());
            return Err(Error::new(ErrorKind::InUse, message));
        }
        let before = all.len();
        for member in &group.members {
            let id = &member.record.id;
            if all.iter().any(|job| job.record.id == *id) {
                all.truncate(before);
                let message =
                    format!("there is a job `{id}` already: dismiss it, or take another id");
                return Err(Error::new(ErrorKind::Exists, message));
            }
            let (record, group) = (Arc::clone(&member.record), Arc::clone(group));
            all.push(JobHandle { record, group });
        }
        Ok(())
    }
}

fn plan(graph: &Graph, spec: &JobSpec) -> Result<Planned> {
    let planned = match &spec.what {
        JobKind::Stream(stream) => stream::plan(graph, &spec.id, stream),
    };
    planned.map_err(|error| {
        let message = format!("{} job `{}`: {error}", spec.what.name(), spec.id);
        Error::new(error.kind(), message)
    })
}

impl Starting {
    /// Their nodes are in the graph.
    pub(crate) fn are_created(&self) {
        for member in &self.group.members {
            member.record.become_status(JobStatus::Created);
        }
    }

    /// Has each work, by `spawn`: on a worker, given what makes its future there.
    pub(crate) fn begin(
        mut self,
        mut spawn: impl FnMut(Box<dyn FnOnce(Rc<LocalGraph>) -> crate::io::LocalFuture + Send>),
    ) -> Vec<JobHandle> {
        self.has_begun = true;
        let mut handles = Vec::new();
        for (at, member) in self.group.members.iter().enumerate() {
            let group = Arc::clone(&self.group);
            spawn(Box::new(move |graph| Box::pin(async move { group.run(at, graph).await })));
            let (record, group) = (Arc::clone(&member.record), Arc::clone(&self.group));
            handles.push(JobHandle { record, group });
        }
        handles
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if !self.has_begun {
            for member in &self.group.members {
                self.jobs.dismiss(&member.record);
            }
        }
    }
}

impl JobHandle {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// The job as it is.
    pub fn info(&self) -> JobInfo {
        self.record.info()
    }

    /// Its state.
    pub fn status(&self) -> JobStatus {
        self.record.state.see(|state| state.status)
    }

    /// Waits until it has ended. Once it has been finalized, if it does not do so by itself.
    pub async fn wait(&self) -> JobEnd {
        self.record.state.when(|state| state.end.clone()).await
    }

    /// Waits until it has come to a state, or has ended; returns its state then.
    pub async fn reaches(&self, status: JobStatus) -> JobStatus {
        let is_there = |at: JobStatus| at == status || at.is_over();
        self.record.state.when(|state| is_there(state.status).then_some(state.status)).await
    }

    /// Has it stand still at the next point; what is in flight ends.
    ///
    /// # Errors
    /// `EPERM`, when its state does not allow it: so for all of these.
    pub fn pause(&self) -> Result<()> {
        self.record.ask(Verb::Pause, |state| {
            if state.is_paused {
                let message = format!("job `{}` is paused already", self.record.id);
                return Err(Error::new(ErrorKind::NotPermitted, message));
            }
            state.is_paused = true;
            Ok(())
        })
    }

    /// Has it go on, also after an error for which it stands still.
    ///
    /// # Errors
    /// `EPERM`, also for one that does not stand still.
    pub fn resume(&self) -> Result<()> {
        self.record.ask(Verb::Resume, |state| {
            if !state.stands_still() {
                let message = format!("job `{}` is not paused", self.record.id);
                return Err(Error::new(ErrorKind::NotPermitted, message));
            }
            (state.is_paused, state.io_status) = (false, IoStatus::Ok);
            Ok(())
        })
    }

    /// Bytes a second that it copies at most, from now on; 0 for no limit.
    ///
    /// # Errors
    /// `EPERM`.
    pub fn set_speed(&self, speed: u64) -> Result<()> {
        self.record.ask(Verb::SetSpeed, |state| {
            state.speed = speed;
            Ok(())
        })
    }

    /// Ends it without effect on who uses the nodes. One that is ready leaves its target as its source was at one
    /// moment, unless it is `forced` to end at once.
    ///
    /// # Errors
    /// `EPERM`.
    pub fn cancel(&self, forced: bool) -> Result<()> {
        self.record.ask(Verb::Cancel, |state| {
            let wish = if forced { Wish::Abort } else { Wish::Cancel };
            if state.wish != Some(Wish::Abort) {
                state.wish = Some(wish);
            }
            Ok(())
        })
    }

    /// Has one that is ready end, with effect.
    ///
    /// # Errors
    /// `EPERM`.
    pub fn complete(&self) -> Result<()> {
        self.record.ask(Verb::Complete, |state| {
            state.wish.get_or_insert(Wish::Complete);
            Ok(())
        })
    }

    /// Lets the end of all jobs of its group take effect.
    ///
    /// # Errors
    /// `EPERM`.
    pub fn finalize(&self) -> Result<()> {
        self.record.ask(Verb::Finalize, |_| Ok(()))?;
        self.group.finalize();
        Ok(())
    }

    /// Forgets one that has ended.
    ///
    /// # Errors
    /// `EPERM`.
    pub fn dismiss(&self) -> Result<()> {
        self.record.ask(Verb::Dismiss, |_| Ok(()))?;
        self.group.dismiss(&self.record);
        Ok(())
    }
}
