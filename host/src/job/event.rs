//! What subscribers of the host's events learn of jobs.

use std::fmt;
use std::sync::Arc;

use super::status::JobStatus;

/// How far a job is, bytes: what is done never gets less, what there is to do may get more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Done.
    pub done_bytes: u64,
    /// Done, and to be done.
    pub total_bytes: u64,
}

/// News of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobEvent {
    /// The job's id.
    pub job: Arc<str>,
    /// What kind of job it is: as on the control socket (`stream`).
    pub kind: &'static str,
    /// What happened.
    pub what: JobNews,
}

/// What happened to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JobNews {
    /// It is in another state.
    Status(JobStatus),
    /// It may be asked to complete.
    Ready {
        /// How far it came.
        progress: Progress,
        /// Bytes a second to which it is limited; 0 for no limit.
        speed: u64,
    },
    /// It waits for being finalized.
    Pending,
    /// It met an error while it copied.
    Error {
        /// What becomes of it.
        action: ErrorAction,
        /// No space was left.
        is_no_space: bool,
        /// It was at what it writes, not at what it reads.
        is_of_write: bool,
        /// The error.
        why: String,
    },
    /// It has ended by itself.
    Completed {
        /// How far it came.
        progress: Progress,
        /// Bytes a second to which it was limited; 0 for no limit.
        speed: u64,
        /// Why it failed, if it did.
        error: Option<String>,
    },
    /// It has ended because it was asked to.
    Cancelled {
        /// How far it came.
        progress: Progress,
        /// As above.
        speed: u64,
    },
}

/// What a job does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorAction {
    /// It fails.
    Report,
    /// It goes on.
    Ignore,
    /// It stands still until it is resumed, and tries again.
    Stop,
}

impl JobEvent {
    /// Whether somebody should look.
    pub(crate) fn is_warning(&self) -> bool {
        match &self.what {
            JobNews::Error { .. } => true,
            JobNews::Completed { error, .. } => error.is_some(),
            _ => false,
        }
    }
}

impl fmt::Display for JobEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { job, kind, what } = self;
        write!(f, "{kind} job `{job}` ")?;
        match what {
            JobNews::Status(status) => write!(f, "is {status}"),
            JobNews::Ready { .. } => f.write_str("can be completed"),
            JobNews::Pending => f.write_str("waits for being finalized"),
            JobNews::Error { action, why, .. } => {
                let action = match action {
                    ErrorAction::Report => "fails",
                    ErrorAction::Ignore => "goes on",
                    ErrorAction::Stop => "stands still until it is resumed",
                };
                write!(f, "{action} after an error: {why}")
            }
            JobNews::Completed { error: Some(error), .. } => write!(f, "failed: {error}"),
            JobNews::Completed { progress, .. } => {
                write!(f, "has ended, after {} bytes", progress.done_bytes)
            }
            JobNews::Cancelled { progress, .. } => {
                write!(f, "was cancelled, after {} bytes", progress.done_bytes)
            }
        }
    }
}
