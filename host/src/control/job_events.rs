//! What happens to jobs, as events of the protocol.

use super::clients::Clients;
use super::commands::JobType;
use super::qapi::{qapi_enum, qapi_event};
use super::registry::Registry;
use crate::job::{ErrorAction, JobEvent, JobNews, JobStatus, Progress};

qapi_enum! {
    /// What a job is at.
    pub(crate) enum JobStatusWord {
        Undefined = "undefined",
        Created = "created",
        Running = "running",
        Paused = "paused",
        Ready = "ready",
        Standby = "standby",
        Waiting = "waiting",
        Pending = "pending",
        Aborting = "aborting",
        Concluded = "concluded",
        Null = "null",
    }
}

qapi_event! {
    /// A job is at something else.
    pub(crate) event "JOB_STATUS_CHANGE" JobStatusChange {
        id: String,
        status: JobStatusWord,
    }
}

qapi_event! {
    /// A job has ended by itself.
    pub(crate) event "BLOCK_JOB_COMPLETED" BlockJobCompleted {
        kind as "type": JobType,
        /// Its id.
        device: String,
        /// Bytes that there were to do.
        len: u64,
        /// Bytes done.
        offset: u64,
        /// Bytes a second to which it was limited; 0 for no limit.
        speed: u64,
        /// Why it failed.
        error: Option<String>,
    }
}

qapi_event! {
    /// A job has ended because it was asked to, or because another one of its group has failed.
    pub(crate) event "BLOCK_JOB_CANCELLED" BlockJobCancelled {
        kind as "type": JobType,
        /// Its id.
        device: String,
        len: u64,
        offset: u64,
        speed: u64,
    }
}

qapi_event! {
    /// A job may be asked to complete.
    pub(crate) event "BLOCK_JOB_READY" BlockJobReady {
        kind as "type": JobType,
        /// Its id.
        device: String,
        len: u64,
        offset: u64,
        speed: u64,
    }
}

qapi_event! {
    /// A job waits for being finalized.
    pub(crate) event "BLOCK_JOB_PENDING" BlockJobPending {
        kind as "type": JobType,
        id: String,
    }
}

qapi_enum! {
    /// What failed.
    pub(crate) enum IoOperationType {
        Read = "read",
        Write = "write",
    }
}

qapi_enum! {
    /// What is done about an error.
    pub(crate) enum BlockErrorAction {
        Ignore = "ignore",
        Report = "report",
        Stop = "stop",
    }
}

qapi_event! {
    /// A copy of a job has failed.
    pub(crate) event "BLOCK_JOB_ERROR" BlockJobError {
        /// Its id.
        device: String,
        operation: IoOperationType,
        action: BlockErrorAction,
        /// What went wrong.
        reason: Option<String>,
    }
}

/// Declares them.
pub(super) fn register(to: &mut Registry) {
    to.event::<JobStatusChange>();
    to.event::<BlockJobCompleted>();
    to.event::<BlockJobCancelled>();
    to.event::<BlockJobReady>();
    to.event::<BlockJobPending>();
    to.event::<BlockJobError>();
}

impl JobStatusWord {
    pub(super) fn of(status: JobStatus) -> Self {
        match status {
            JobStatus::Undefined => Self::Undefined,
            JobStatus::Created => Self::Created,
            JobStatus::Running => Self::Running,
            JobStatus::Paused => Self::Paused,
            JobStatus::Ready => Self::Ready,
            JobStatus::Standby => Self::Standby,
            JobStatus::Waiting => Self::Waiting,
            JobStatus::Pending => Self::Pending,
            JobStatus::Aborting => Self::Aborting,
            JobStatus::Concluded => Self::Concluded,
            JobStatus::Null => Self::Null,
        }
    }
}

/// Tells all clients.
pub(super) fn tell(clients: &Clients, event: JobEvent) {
    let JobEvent { job, kind, what } = event;
    let (device, kind) = (job.to_string(), JobType::of(kind));
    match what {
        JobNews::Status(status) => {
            let status = JobStatusWord::of(status);
            clients.emit(JobStatusChange { id: device, status });
        }
        JobNews::Ready { progress, speed } => {
            let Progress { done_bytes: offset, total_bytes: len } = progress;
            clients.emit(BlockJobReady { kind, device, len, offset, speed });
        }
        JobNews::Pending => clients.emit(BlockJobPending { kind, id: device }),
        JobNews::Error { action, is_of_write, why, .. } => {
            let operation =
                if is_of_write { IoOperationType::Write } else { IoOperationType::Read };
            let action = match action {
                ErrorAction::Report => BlockErrorAction::Report,
                ErrorAction::Ignore => BlockErrorAction::Ignore,
                ErrorAction::Stop => BlockErrorAction::Stop,
            };
            clients.emit(BlockJobError { device, operation, action, reason: Some(why) });
        }
        JobNews::Completed { progress, speed, error } => {
            let Progress { done_bytes: offset, total_bytes: len } = progress;
            clients.emit(BlockJobCompleted { kind, device, len, offset, speed, error });
        }
        JobNews::Cancelled { progress, speed } => {
            let Progress { done_bytes: offset, total_bytes: len } = progress;
            clients.emit(BlockJobCancelled { kind, device, len, offset, speed });
        }
    }
}
