//! Jobs that end together, or not at all: each by itself, if not asked otherwise.
//!
//! Each member works on a worker of its own. When all have done their work, and have been finalized, their
//! changes of the graph are one transaction: all of them take effect at one instant, or none. If one fails or is
//! cancelled before that, the others are cancelled.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::context::{Halt, JobCx, Step};
use super::event::JobNews;
use super::list::Jobs;
use super::record::{JobEnd, JobInfo, Record, State, Wish};
use super::spec::CopyMode;
use super::status::{JobStatus, Verb};
use super::watched::{Watched, either};
use super::work::{Ending, Opening, Work};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    Action, Applied, Graph, LocalGraph, NodeGeneration, OwnAccord, Role, Transaction, Unproven,
};
use crate::io::{sleep_until, spawn_boxed, turn_now};
use crate::limits::{
    DRAIN_TIME, JOB_END_OUTDATED_MAX, JOB_END_PAUSE, JOB_END_TRIES, JOB_LEFT_PAUSE_MAX,
    JOB_LEFT_TIME,
};

/// Who applies transactions: the host, with all that has to be seen to beside the graph; the graph alone, in
/// tests.
pub(crate) trait Changes: Send + Sync {
    /// Applies a transaction.
    ///
    /// # Errors
    /// As [`GraphCell::transact`](crate::graph::GraphCell::transact).
    fn transact<'a>(
        &'a self,
        transaction: Transaction,
    ) -> Pin<Box<dyn Future<Output = Result<Applied>> + 'a>>;

    /// Opens read-only again what was opened for jobs and nobody writes any more.
    fn give_back<'a>(&'a self) -> Pin<Box<dyn Future<Output = ()> + 'a>>;
}

/// A job of a group.
pub(super) struct Member {
    pub(super) record: Arc<Record>,
    pub(super) work: Arc<dyn Work>,
}

/// Where a group is.
#[derive(Clone, Debug)]
enum Phase {
    /// How each member that has done its work ends.
    Working(Vec<Option<Ending>>),
    /// Finalized: the first member has the changes made.
    Ending(Vec<Ending>),
    Done,
    /// The member that is to blame, and why, if it has not been cancelled.
    Broken(usize, Option<Error>),
}

pub(super) struct Group {
    pub(super) members: Vec<Member>,
    phase: Watched<Phase>,
    jobs: Arc<Jobs>,
    changes: Arc<dyn Changes>,
}

impl Group {
    pub(super) fn new(members: Vec<Member>, jobs: &Arc<Jobs>, changes: &Arc<dyn Changes>) -> Self {
        let phase = Watched::new(Phase::Working(vec![None; members.len()]));
        Self { members, phase, jobs: Arc::clone(jobs), changes: Arc::clone(changes) }
    }

    fn member(&self, record: &Arc<Record>) -> Option<&Member> {
        self.members.iter().find(|member| Arc::ptr_eq(&member.record, record))
    }

    /// A member as it is.
    pub(super) fn info(&self, record: &Arc<Record>) -> JobInfo {
        let work = self.member(record).map(|member| &member.work);
        // Not once it has ended: then it has done what there was to do.
        record.state.see(|state| {
            if let Some(work) = work.filter(|_| state.status.allows(Verb::Cancel)) {
                record.look_left(|| work.left_bytes().unwrap_or(0));
            }
        });
        JobInfo { is_in_step: work.and_then(|work| work.is_in_step()), ..record.info() }
    }

    /// Has a job copy in another way from now on.
    ///
    /// # Errors
    /// As [`Work::change`]; of the change of the graph.
    pub(super) async fn change_mode(
        &self,
        record: &Arc<Record>,
        copy_mode: CopyMode,
    ) -> Result<()> {
        let Some(member) = self.member(record) else { return Ok(()) };
        let actions = member.work.change(copy_mode, &record.node)?;
        if actions.is_empty() {
            return Ok(());
        }
        let change = |to: Transaction, (action, unproven)| to.with_unproven(action, unproven);
        let transaction = actions.into_iter().fold(Transaction::new(), change);
        self.changes.transact(transaction).await.map(drop)
    }

    /// Forgets a member that has ended.
    pub(super) fn dismiss(&self, record: &Arc<Record>) {
        self.jobs.dismiss(record);
    }

    /// All have done their work, and may end.
    pub(super) fn finalize(&self) {
        self.phase.change(|phase| {
            if let Phase::Working(ends) = phase
                && let Some(ends) = ends.iter().copied().collect()
            {
                *phase = Phase::Ending(ends);
            }
        });
    }

    /// A member has done its work. The last one leads all to the next state.
    fn arrive(&self, member: usize, ending: Ending) {
        let record = &self.members[member].record;
        record.become_status(JobStatus::Waiting);
        let is_last = self.phase.change(|phase| match phase {
            Phase::Working(ends) => {
                ends[member] = Some(ending);
                ends.iter().all(Option::is_some)
            }
            _ => false,
        });
        if !is_last {
            return;
        }
        let mut is_asked = true;
        for member in &self.members {
            let auto = member.record.state.see(|state| state.auto_finalize);
            member.record.become_status(JobStatus::Pending);
            if !auto {
                is_asked = false;
                member.record.tell(JobNews::Pending);
            }
        }
        if is_asked {
            self.finalize();
        }
    }

    fn fail(&self, member: usize, error: Option<Error>) {
        self.phase.change(|phase| {
            if matches!(phase, Phase::Working(_) | Phase::Ending(_)) {
                *phase = Phase::Broken(member, error);
            }
        });
        for member in &self.members {
            member.record.state.change(|state| state.wish = Some(Wish::Abort));
        }
    }

    /// A member's whole life on its worker.
    pub(super) async fn run(self: &Arc<Self>, member: usize, graph: Rc<LocalGraph>) {
        let Member { record, work, .. } = &self.members[member];
        record.become_status(JobStatus::Running);
        let opened = OwnAccord::open(&graph, &record.node);
        let opened = opened.and_then(|own| {
            let opening = Opening { record, own: &own };
            work.open(opening)
        });
        let cx = match opened {
            Ok(cx) => cx,
            Err(error) => {
                self.fail(member, Some(error));
                return self.conclude(member).await;
            }
        };
        match work.run(&cx).await {
            Ok(ending) => {
                self.arrive(member, ending);
                self.wait(member, &cx).await;
            }
            Err(Halt::Cancelled) => self.fail(member, None),
            Err(Halt::Failed(error)) => self.fail(member, Some(error)),
        }
        drop(cx);
        if member == 0 {
            self.take_effect().await;
        }
        self.conclude(member).await;
    }

    /// Waits until it is decided how all end.
    async fn wait(&self, member: usize, cx: &JobCx) {
        let Member { record, work, .. } = &self.members[member];
        let decided = async {
            let is_decided = |phase: &Phase| !matches!(phase, Phase::Working(_));
            self.phase.when(|phase| is_decided(phase).then_some(())).await;
            Ok(())
        };
        let cancelled = async {
            let is_asked = |state: &State| matches!(state.wish, Some(Wish::Abort | Wish::Cancel));
            record.state.when(|state| is_asked(state).then_some(())).await;
            Err(Halt::Cancelled)
        };
        let ended: Step<()> = either(decided, either(cancelled, work.keep_up(cx))).await;
        match ended {
            Ok(()) => {}
            Err(Halt::Cancelled) => self.fail(member, None),
            Err(Halt::Failed(error)) => self.fail(member, Some(error)),
        }
    }

    /// Makes the changes of all members, if that is what has been decided.
    async fn take_effect(&self) {
        let Phase::Ending(ends) = self.phase.see(Phase::clone) else { return };
        match self.change_all(&ends).await {
            Ok(()) => self.phase.change(|phase| *phase = Phase::Done),
            Err(error) => self.fail(0, Some(error)),
        }
    }

    async fn change_all(&self, ends: &[Ending]) -> Result<()> {
        let (mut tries, mut outdated) = (JOB_END_TRIES, JOB_END_OUTDATED_MAX);
        loop {
            let graph = self.jobs.cell().load();
            // An overlay that has come meanwhile would go on to name what it does not stand on any more.
            let transaction = self.changes_of(&graph, ends)?.only_on(&graph);
            let changed = self.changes.transact(transaction).await;
            // If another change came first, it is to be seen anew what is to be done.
            let is_outdated = self.jobs.cell().load().generation() != graph.generation();
            let kind = changed.as_ref().err().map(Error::kind);
            let left = match kind {
                // Nothing has been tried then.
                Some(ErrorKind::Stale) if is_outdated => &mut outdated,
                _ => &mut tries,
            };
            *left -= 1;
            // What came too late may still be on its way to where the next try writes.
            let is_late = kind == Some(ErrorKind::TimedOut);
            if changed.is_ok() || *left == 0 || !is_outdated || is_late {
                return changed.map(drop);
            }
        }
    }

    fn changes_of(&self, graph: &Graph, ends: &[Ending]) -> Result<Transaction> {
        let mut transaction = Transaction::new();
        let ends = self.members.iter().zip(ends).map(|(member, ending)| {
            let actions = member.work.end(graph, *ending)?;
            Ok((member, actions))
        });
        let ends = ends.collect::<Result<Vec<_>>>()?;
        // The users of any of them may come to something of which nothing but somebody's word says that it is the same.
        let mut marks = ends.iter().flat_map(|(_, actions)| actions);
        let is_marked = marks.any(|(_, it)| *it == Unproven::MarkWhole);
        for (member, actions) in ends {
            if member.work.tracks() {
                let node = member.record.node.clone();
                transaction = transaction.with(Action::CatchUp { node });
            }
            let remove = remove(member, graph);
            let unproven = match is_marked {
                true => Unproven::MarkWhole,
                false => remove.default_unproven(),
            };
            transaction = transaction.ending_job(&member.record.id).with_unproven(remove, unproven);
            for (action, unproven) in actions {
                transaction = match &action {
                    Action::NameOwnBacking { node, .. } if member.work.leaves_names() => {
                        transaction.may_keep_name(node)
                    }
                    _ => transaction,
                };
                transaction = transaction.with_unproven(action, unproven);
            }
        }
        Ok(transaction)
    }

    /// Whether their end could take effect, if nothing else changed before it: once a transaction has been applied with
    /// which they begin.
    ///
    /// # Errors
    /// What stands against it.
    pub(super) fn check_end(&self, begins: Transaction) -> Result<()> {
        let ends = vec![Ending::Done; self.members.len()];
        let foreseen = self.jobs.cell().foresee(begins, |graph| self.changes_of(graph, &ends));
        foreseen.map_err(|error| {
            let ids: Vec<String> =
                self.members.iter().map(|member| format!("`{}`", member.record.id)).collect();
            let jobs = if ids.len() == 1 { "job" } else { "jobs" };
            let message =
                format!("{jobs} {}: the end could not take effect: {error}", ids.join(", "));
            Error::new(error.kind(), message)
        })
    }

    /// Ends a member, as the group has.
    async fn conclude(self: &Arc<Self>, member: usize) {
        let record = &self.members[member].record;
        let over = |phase: &Phase| match phase {
            Phase::Working(_) | Phase::Ending(_) => None,
            Phase::Done => Some(None),
            Phase::Broken(who, error) => Some(Some((*who, error.clone()))),
        };
        let end = match self.phase.when(over).await {
            None => JobEnd::Completed,
            Some((who, error)) => {
                record.become_status(JobStatus::Aborting);
                self.take_out(member).await;
                match error {
                    Some(error) if who == member || self.members.len() == 1 => {
                        JobEnd::Failed(error)
                    }
                    _ => JobEnd::Cancelled,
                }
            }
        };
        if !self.jobs.has_ended() {
            self.changes.give_back().await;
        }
        let (progress, speed) = (record.progress(), record.state.see(|state| state.speed));
        let news = match &end {
            JobEnd::Completed => {
                record.set_all_done();
                JobNews::Completed { progress: record.progress(), speed, error: None }
            }
            JobEnd::Failed(error) => {
                JobNews::Completed { progress, speed, error: Some(error.to_string()) }
            }
            JobEnd::Cancelled => JobNews::Cancelled { progress, speed },
        };
        // Who sees that it has ended sees how.
        record.state.change(|state| drop(state.end.get_or_insert_with(|| end.clone()).clone()));
        record.tell(news);
        self.members[member].work.ended();
        let auto_dismiss = record.state.see(|state| state.auto_dismiss);
        record.become_status(JobStatus::Concluded);
        if auto_dismiss {
            self.jobs.dismiss(record);
        }
        record.state.change(|state| state.be_over(end));
    }

    /// Takes the node of a member out of the graph. If that cannot be done, it stays there for a while, without
    /// anything that it does.
    async fn take_out(self: &Arc<Self>, member: usize) {
        let Some(node) = self.generation_of(member) else { return };
        for _ in 0..JOB_END_TRIES {
            if self.is_taken_out(member, node, DRAIN_TIME).await {
                return;
            }
            sleep_until(turn_now() + JOB_END_PAUSE).await;
        }
        let group = Arc::clone(self);
        spawn_boxed(Box::pin(async move {
            let mut pause = JOB_END_PAUSE;
            while !group.is_taken_out(member, node, JOB_LEFT_TIME).await {
                sleep_until(turn_now() + pause).await;
                pause = (pause * 2).min(JOB_LEFT_PAUSE_MAX);
            }
            if !group.jobs.has_ended() {
                group.changes.give_back().await;
            }
        }));
    }

    fn generation_of(&self, member: usize) -> Option<NodeGeneration> {
        let graph = self.jobs.cell().load();
        let node = graph.find_node(&self.members[member].record.node)?;
        Some(graph.nodes()[node].generation())
    }

    /// Tries to take the node of a member out of the graph; whether there is nothing left to do.
    async fn is_taken_out(&self, member: usize, node: NodeGeneration, within: Duration) -> bool {
        let Member { record, work, .. } = &self.members[member];
        let graph = self.jobs.cell().load();
        // By now there may be another job of its name.
        let is_there = graph.nodes().iter().any(|it| it.generation() == node);
        if !is_there || self.jobs.has_ended() {
            return true;
        }
        let ending = Transaction::new().within(within).ending_job(&record.id);
        let mut transaction = ending.with(remove(&self.members[member], &graph));
        for (action, unproven) in work.end(&graph, Ending::Broken).unwrap_or_default() {
            transaction = transaction.with_unproven(action, unproven);
        }
        match self.changes.transact(transaction).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!("node of job `{}` is still there: {error}", record.id);
                false
            }
        }
    }
}

fn remove(member: &Member, graph: &Graph) -> Action {
    let node = member.record.node.clone();
    let at = graph.find_node(&node).map(|at| graph.nodes()[at].edges());
    let mut edges = at.into_iter().flatten();
    match edges.any(|edge| edge.role() == Role::Filtered) {
        false => Action::RemoveNode { node },
        true => Action::RemoveFilter { node },
    }
}
