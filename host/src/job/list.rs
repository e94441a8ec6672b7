//! All jobs of a host, and how more come.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::busy::Beginning;
use super::group::{Changes, Group, Member};
use super::handle::JobHandle;
use super::record::{JobEnd, Record, State, Wish};
use super::spec::{JobKind, JobSpec};
use super::status::JobStatus;
use super::work::{Place, Planned, proven};
use super::{backup, commit, mirror, populate, stream};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    Action, ChildDecl, Graph, GraphCell, LocalGraph, NodeDecl, PermissionSet, Role, Transaction,
    Which,
};
use crate::limits::JOBS_MAX;
use crate::node::Node;

/// See the module.
pub(crate) struct Jobs {
    cell: Arc<GraphCell>,
    all: Mutex<Vec<JobHandle>>,
    ended: AtomicBool,
}

/// What is to be done before jobs begin.
pub(crate) struct Needs {
    /// The nodes that they write in place, which may be open read-only: what they write they give a node that is read
    /// already.
    pub(crate) written: Vec<String>,
    /// Those whose images have to name other backings at the end.
    pub(crate) named: Vec<String>,
    /// What has to be longer.
    pub(crate) growths: Vec<Action>,
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
        // Who hears of its end may take its id.
        self.lock().retain(|job| !Arc::ptr_eq(&job.record, record));
        record.become_status(JobStatus::Null);
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
            job.record.state.change(|state| state.be_over(JobEnd::Failed(error)));
        }
    }

    /// What has to be done before these can be started.
    ///
    /// # Errors
    /// What stands against a job.
    pub(crate) fn needs(graph: &Graph, specs: &[(usize, JobSpec)]) -> Result<Needs> {
        let mut needs = Needs { written: Vec::new(), named: Vec::new(), growths: Vec::new() };
        for (_, spec) in specs {
            let Planned { children, growth, work, .. } = plan(graph, spec)?;
            needs.named.extend(work.named(graph));
            // The target of a copy has to be writable by its description, as for every other writer. What is open for
            // writing only while somebody writes it is opened with the job's node, whose edge says that it does.
            let is_written = |child: &ChildDecl| {
                let changes = !child.grants.intersection(PermissionSet::CHANGES).is_empty();
                changes && (child.role == Role::Source || child.proven_for.is_some())
            };
            needs.written.extend(children.into_iter().filter(is_written).map(|child| child.node));
            needs.growths.extend(growth);
        }
        Ok(needs)
    }

    /// Gives jobs their places, and adds their nodes to a transaction, each before the action with its number. In
    /// a group they end together.
    ///
    /// # Errors
    /// `EEXIST` for an id that is taken, `EBUSY` for too many; what stands against a job.
    pub(crate) fn prepare(
        self: &Arc<Self>,
        graph: &Graph,
        specs: &[(usize, JobSpec)],
        is_grouped: bool,
        changes: &Arc<dyn Changes>,
        mut transaction: Transaction,
    ) -> Result<(Vec<Starting>, Transaction)> {
        let mut planned = Vec::with_capacity(specs.len());
        let (mut more, mut beginning) = (0, Beginning::new(is_grouped));
        for (at, spec) in specs {
            let Planned { node, children, place, mut before, work, .. } = plan(graph, spec)?;
            let tracks = node.job().and_then(|job| job.tracks);
            beginning.add(graph, &spec.id, tracks, &children)?;
            let name = spec.node_name();
            let filter = NodeDecl { name: name.clone(), driver: node, children };
            let add = match place {
                Place::Beside => Action::AddNode(filter),
                Place::Above(node) => Action::InsertAbove { node, filter, users: Which::All },
            };
            before.extend(proven(vec![add]));
            let (at, count) = (at + more, before.len());
            if let Some(held) = work.held() {
                transaction = transaction.wished_before(at, graph, &held);
            }
            (transaction, more) = (transaction.with_before(at, before), more + count);
            let state = State::new(spec.speed, (spec.auto_finalize, spec.auto_dismiss));
            let names = (spec.id.as_str().into(), spec.what.name(), name);
            let on_error = (spec.on_error, spec.on_target_error.unwrap_or(spec.on_error));
            let record = Record::new(names, on_error, Arc::clone(&self.cell), state);
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
        JobKind::Commit(commit) => commit::plan(graph, &spec.id, commit),
        JobKind::Mirror(mirror) => mirror::plan(graph, &spec.id, mirror),
        JobKind::Backup(backup) => backup::plan(graph, &spec.id, backup),
        JobKind::Populate(populate) => populate::plan(graph, &spec.id, populate),
    };
    planned.map_err(|error| {
        let message = format!("{} job `{}`: {error}", spec.what.name(), spec.id);
        Error::new(error.kind(), message)
    })
}

impl Starting {
    /// Whether their end could take effect, as far as is known before they begin with a transaction.
    ///
    /// # Errors
    /// What stands against it.
    pub(crate) fn check_end(&self, begins: &Transaction) -> Result<()> {
        self.group.check_end(begins.changes())
    }

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
            for Member { record, .. } in &self.group.members {
                self.jobs.dismiss(record);
                // Whoever has found it meanwhile does not wait in vain.
                record.state.change(|state| state.be_over(JobEnd::Cancelled));
            }
        }
    }
}
