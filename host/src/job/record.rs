//! What is known of a job everywhere: its state, what was asked of it, how far it is. Who waits
//! for a change of it is woken by each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::event::{JobEvent, JobNews, Progress};
use super::spec::OnError;
use super::status::{JobStatus, Verb};
use super::watched::Watched;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Event, Graph, GraphCell};

/// How a job has ended.
#[derive(Clone, Debug)]
pub enum JobEnd {
    /// It has done what it was to do.
    Completed,
    /// It was cancelled.
    Cancelled,
    /// It has failed: the graph is as if it had not begun.
    Failed(Error),
}

/// Why a job that can go on does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoStatus {
    /// It can.
    Ok,
    /// It met an error, and waits for being resumed.
    Failed,
    /// The same, for want of space.
    NoSpace,
}

impl IoStatus {
    /// Of a job that waits for being resumed.
    pub(super) fn of(error: &Error) -> Self {
        if error.kind() == ErrorKind::NoSpace { Self::NoSpace } else { Self::Failed }
    }
}

/// A wish that it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// In order: one that is ready leaves its target as its source was at one moment.
    Cancel,
    /// At once.
    Abort,
    Complete,
}

/// See the module.
pub(super) struct State {
    pub(super) status: JobStatus,
    /// How it has ended: known no later than that it has.
    pub(super) end: Option<JobEnd>,
    /// Nothing is left of it: who waits for its end may start another one of its name.
    pub(super) is_over: bool,
    /// Somebody has it paused.
    pub(super) is_paused: bool,
    pub(super) io_status: IoStatus,
    pub(super) wish: Option<Wish>,
    /// Bytes a second; 0 for no limit.
    pub(super) speed: u64,
    pub(super) auto_finalize: bool,
    pub(super) auto_dismiss: bool,
}

pub(super) struct Record {
    pub(super) id: Arc<str>,
    pub(super) kind: &'static str,
    pub(super) node: String,
    /// When a copy fails at what it reads, and at what it writes.
    on_error: (OnError, OnError),
    cell: Arc<GraphCell>,
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    /// So much less is told to be done than is there to do, until it has done all.
    held_back_bytes: AtomicU64,
    pub(super) state: Watched<State>,
}

/// A job as it is.
#[derive(Clone, Debug)]
pub struct JobInfo {
    /// Its id.
    pub id: Arc<str>,
    /// Its kind, as on the control socket.
    pub kind: &'static str,
    /// The node that stands for it.
    pub node: String,
    /// Its state.
    pub status: JobStatus,
    /// How far it is.
    pub progress: Progress,
    /// Bytes a second to which it is limited; 0 for no limit.
    pub speed: u64,
    /// Whether somebody has it paused.
    pub is_paused: bool,
    /// Whether it can go on.
    pub io_status: IoStatus,
    /// It lets its end take effect by itself.
    pub auto_finalize: bool,
    /// It is forgotten when it has ended.
    pub auto_dismiss: bool,
    /// Of a mirror: whether nothing is acknowledged that has not been copied.
    pub is_in_step: Option<bool>,
    /// How it has ended.
    pub end: Option<JobEnd>,
}

impl State {
    pub(super) fn new(speed: u64, auto: (bool, bool)) -> Self {
        Self {
            status: JobStatus::Undefined,
            end: None,
            is_over: false,
            is_paused: false,
            io_status: IoStatus::Ok,
            wish: None,
            speed,
            auto_finalize: auto.0,
            auto_dismiss: auto.1,
        }
    }

    /// Whether it is to end without having done its work.
    pub(super) fn is_cancelled(&self) -> bool {
        let is_ready = matches!(self.status, JobStatus::Ready | JobStatus::Standby);
        match self.wish {
            Some(Wish::Abort) => true,
            Some(Wish::Cancel) => !is_ready,
            Some(Wish::Complete) | None => false,
        }
    }

    /// It has ended, unless otherwise before, in this way; and who waits for that is told.
    pub(super) fn be_over(&mut self, end: JobEnd) {
        self.end.get_or_insert(end);
        self.is_over = true;
    }

    /// Whether it is to stand still.
    pub(super) fn stands_still(&self) -> bool {
        self.is_paused || self.io_status != IoStatus::Ok
    }
}

impl Record {
    pub(super) fn new(
        (id, kind, node): (Arc<str>, &'static str, String),
        on_error: (OnError, OnError),
        cell: Arc<GraphCell>,
        state: State,
    ) -> Self {
        let [done_bytes, total_bytes, held_back_bytes] = std::array::from_fn(|_| AtomicU64::new(0));
        let state = Watched::new(state);
        Self { id, kind, node, on_error, cell, done_bytes, total_bytes, held_back_bytes, state }
    }

    /// The graph as it is.
    pub(super) fn graph(&self) -> Arc<Graph> {
        self.cell.load()
    }

    /// What it does about an error.
    pub(super) fn on_error(&self, error: &Error) -> OnError {
        if error.is_of_write() { self.on_error.1 } else { self.on_error.0 }
    }

    /// Does what a verb asks for, if the state allows it.
    ///
    /// # Errors
    /// `EPERM`; of `act`.
    pub(super) fn ask<T>(
        &self,
        verb: Verb,
        act: impl FnOnce(&mut State) -> Result<T>,
    ) -> Result<T> {
        self.state.change(|state| {
            state.status.check(&self.id, verb)?;
            act(state)
        })
    }

    /// Goes to another state, and tells so. A step that there is not is none.
    pub(super) fn become_status(&self, next: JobStatus) {
        let changed = self.state.change(|state| {
            let may = state.status.may_become(next);
            if may {
                state.status = next;
            }
            if matches!(next, JobStatus::Ready | JobStatus::Waiting) {
                self.held_back_bytes.store(0, Ordering::Relaxed);
            }
            may
        });
        if changed {
            self.tell(JobNews::Status(next));
        }
    }

    pub(super) fn tell(&self, what: JobNews) {
        let (job, kind) = (Arc::clone(&self.id), self.kind);
        self.cell.tell(&self.graph(), Event::Job(JobEvent { job, kind, what }));
    }

    /// How far it is. Neither number ever falls.
    pub(super) fn progress(&self) -> Progress {
        let done_bytes = self.done_bytes.load(Ordering::Relaxed);
        // Read in the other order than they are written.
        let total_bytes = self.total_bytes.load(Ordering::Relaxed).max(done_bytes);
        let held_back_bytes = self.held_back_bytes.load(Ordering::Relaxed);
        let done_bytes = done_bytes.min(total_bytes.saturating_sub(held_back_bytes));
        Progress { done_bytes, total_bytes }
    }

    /// Others may give it more to do until it has done all: so long the last so many bytes do not count as done.
    pub(super) fn hold_back(&self, bytes: u64) {
        self.held_back_bytes.store(bytes, Ordering::Relaxed);
    }

    /// So much more is done.
    pub(super) fn add_done(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// There is this much left to do.
    pub(super) fn set_left(&self, bytes: u64) {
        self.look_left(|| bytes);
    }

    /// The same, where it is done at this very moment: what is done meanwhile counts once.
    pub(super) fn look_left(&self, left_bytes: impl FnOnce() -> u64) {
        let done = self.done_bytes.load(Ordering::Relaxed);
        self.total_bytes.fetch_max(done.saturating_add(left_bytes()), Ordering::Relaxed);
    }

    /// Nothing is left to do.
    pub(super) fn set_all_done(&self) {
        let total = self.total_bytes.load(Ordering::Relaxed);
        self.done_bytes.fetch_max(total, Ordering::Relaxed);
    }

    pub(super) fn info(&self) -> JobInfo {
        self.state.see(|state| JobInfo {
            id: Arc::clone(&self.id),
            kind: self.kind,
            node: self.node.clone(),
            status: state.status,
            progress: self.progress(),
            speed: state.speed,
            is_paused: state.is_paused,
            io_status: state.io_status,
            auto_finalize: state.auto_finalize,
            auto_dismiss: state.auto_dismiss,
            is_in_step: None,
            end: state.end.clone(),
        })
    }
}
