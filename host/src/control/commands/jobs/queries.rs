//! `query-jobs` and `query-block-jobs`.

use super::verbs::JobType;
use crate::control::context::Context;
use crate::control::error::QmpResult;
use crate::control::job_events::JobStatusWord;
use crate::control::qapi::{qapi_enum, qapi_struct};
use crate::control::registry::{Empty, Registry};
use crate::job::{IoStatus, JobEnd, JobInfo as Info, JobStatus};

qapi_struct! {
    /// A job.
    pub(crate) struct JobInfo {
        id: String,
        kind as "type": JobType,
        status: JobStatusWord,
        /// Bytes.
        current_progress: u64,
        /// Bytes; it may become more.
        total_progress: u64,
        /// Why it failed.
        error: Option<String>,
    }
}

qapi_enum! {
    /// Whether a job can go on.
    pub(crate) enum BlockDeviceIoStatus {
        Ok = "ok",
        Failed = "failed",
        Nospace = "nospace",
    }
}

qapi_struct! {
    /// A job.
    pub(crate) struct BlockJobInfo {
        kind as "type": JobType,
        /// Its id.
        device: String,
        /// Bytes that there are to do, as far as is known.
        len: u64,
        /// Bytes done.
        offset: u64,
        /// Whether it works.
        busy: bool,
        /// Whether it stands still, or is about to.
        paused: bool,
        /// Bytes a second to which it is limited; 0 for no limit.
        speed: u64,
        io_status: BlockDeviceIoStatus,
        /// Whether it can be completed.
        ready: bool,
        status: JobStatusWord,
        auto_finalize: bool,
        auto_dismiss: bool,
        /// Why it failed.
        error: Option<String>,
        /// Of a mirror: whether nothing is acknowledged now that has not been copied.
        actively_synced: Option<bool>,
    }
}

pub(super) fn register(to: &mut Registry) {
    to.command("query-jobs", query_jobs);
    to.command("query-block-jobs", query_block_jobs);
}

fn query_jobs(context: &Context<'_>, _: Empty) -> QmpResult<Vec<JobInfo>> {
    Ok(context.host.jobs().iter().map(|job| job_info(&job.info())).collect())
}

fn query_block_jobs(context: &Context<'_>, _: Empty) -> QmpResult<Vec<BlockJobInfo>> {
    Ok(context.host.jobs().iter().map(|job| block_job_info(job.info())).collect())
}

fn error_of(info: &Info) -> Option<String> {
    match info.end.as_ref()? {
        JobEnd::Completed => None,
        JobEnd::Cancelled => Some("Operation canceled".to_owned()),
        JobEnd::Failed(error) => Some(error.to_string()),
    }
}

fn job_info(info: &Info) -> JobInfo {
    JobInfo {
        id: info.id.to_string(),
        kind: JobType::of(info.kind),
        status: JobStatusWord::of(info.status),
        current_progress: info.progress.done_bytes,
        total_progress: info.progress.total_bytes,
        error: error_of(info),
    }
}

fn block_job_info(info: Info) -> BlockJobInfo {
    let JobInfo { id, kind, status, current_progress, total_progress, error } = job_info(&info);
    let is_paused = info.is_paused || info.io_status != IoStatus::Ok;
    BlockJobInfo {
        kind,
        device: id,
        len: total_progress,
        offset: current_progress,
        busy: matches!(info.status, JobStatus::Running),
        paused: is_paused,
        speed: info.speed,
        io_status: match info.io_status {
            IoStatus::Ok => BlockDeviceIoStatus::Ok,
            IoStatus::Failed => BlockDeviceIoStatus::Failed,
            IoStatus::NoSpace => BlockDeviceIoStatus::Nospace,
        },
        ready: matches!(info.status, JobStatus::Ready | JobStatus::Standby),
        status,
        auto_finalize: info.auto_finalize,
        auto_dismiss: info.auto_dismiss,
        error,
        actively_synced: info.is_in_step,
    }
}
