//! The jobs of an instance's nodes: begun with the node, and stopped before it goes or its plugin is replaced.

use blockloom_abi::{Control, ControlKind, NodeIndex};

use super::faults::Fault;
use super::inside::Inside;
use super::local::Ticket;

/// A node's job.
pub(super) struct Job {
    /// Where what is done in it goes.
    pub(super) ticket: Ticket,
    pub(super) state: JobState,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobState {
    Running,
    /// It was told to stop.
    Stopping,
    /// The same, and it is to be begun again when it has.
    Again,
    /// It has ended because it was told to, or was not begun at all.
    Stopped,
    /// It has ended by itself, or there is none.
    Ended,
}

impl JobState {
    /// The guest may do something in it.
    pub(super) fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::Stopping | Self::Again)
    }

    /// It runs and was not told to stop.
    pub(super) fn is_unasked(self) -> bool {
        matches!(self, Self::Running | Self::Again)
    }
}

impl Job {
    pub(super) fn stopped(ticket: Ticket) -> Self {
        Self { ticket, state: JobState::Stopped }
    }
}

impl Inside {
    fn control(&mut self, kind: ControlKind, node: NodeIndex) {
        // A few for each node.
        self.carry.push(Control { kind, node, first: 0, second: 0 }.encode());
    }

    /// A node's job is to begin, if there is one.
    pub(super) fn begin_job(&mut self, node: NodeIndex, ticket: Ticket) {
        let has_job = self.module.inspection().has_job && !self.leaving.contains(&node);
        let state = if has_job { JobState::Running } else { JobState::Ended };
        if has_job {
            self.control(ControlKind::JobStart, node);
        }
        self.jobs.insert(node, Job { ticket, state });
    }

    /// Tells a job to stop.
    pub(super) fn stop_job(&mut self, node: NodeIndex) {
        let Some(job) = self.jobs.get_mut(&node) else { return };
        match job.state {
            JobState::Running => {
                job.state = JobState::Stopping;
                self.control(ControlKind::JobStop, node);
            }
            JobState::Again => job.state = JobState::Stopping,
            JobState::Stopping | JobState::Stopped | JobState::Ended => {}
        }
    }

    pub(super) fn stop_jobs(&mut self) {
        let nodes: Vec<NodeIndex> = self.jobs.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.stop_job(node));
    }

    /// Whether all that were told to stop have.
    pub(super) fn has_stopped(&self) -> bool {
        self.jobs.values().all(|job| !job.state.is_running())
    }

    /// Begins again what was told to stop.
    pub(super) fn resume_jobs(&mut self) {
        let mut begins = Vec::new();
        for (node, job) in &mut self.jobs {
            match job.state {
                JobState::Stopping => job.state = JobState::Again,
                JobState::Stopped => begins.push((*node, job.ticket)),
                JobState::Running | JobState::Again | JobState::Ended => {}
            }
        }
        begins.into_iter().for_each(|(node, ticket)| self.begin_job(node, ticket));
    }

    /// A job has ended; returns whose it was.
    ///
    /// # Errors
    /// A job that does not run.
    pub(super) fn end_job(&mut self, node: NodeIndex) -> Result<Ticket, Fault> {
        let running = self.jobs.get_mut(&node).filter(|job| job.state.is_running());
        let job = running.ok_or_else(|| {
            Fault::breach(format!("it ended the job of node {}, which does not run", node.0))
        })?;
        let ticket = job.ticket;
        match job.state {
            JobState::Stopping => job.state = JobState::Stopped,
            JobState::Again => self.begin_job(node, ticket),
            _ => job.state = JobState::Ended,
        }
        Ok(ticket)
    }

    /// A node is to go: its job stops first.
    pub(super) fn depart(&mut self, node: NodeIndex) {
        self.leaving.push(node);
        self.stop_job(node);
    }

    /// A node that is to go, of which the guest can be told: its job has ended, or waits for nothing but a time.
    pub(super) fn next_gone(&mut self) -> Option<NodeIndex> {
        let is_idle = self.operations == 0 && self.carry.is_empty();
        let is_over = |node: &NodeIndex| match self.jobs.get(node) {
            Some(job) => !job.state.is_running() || is_idle,
            None => true,
        };
        let at = self.leaving.iter().position(is_over)?;
        Some(self.leaving.swap_remove(at))
    }
}
