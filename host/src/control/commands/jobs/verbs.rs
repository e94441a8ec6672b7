//! What may be asked of a job: twice, since QEMU has two families of commands for it.

use crate::control::context::Context;
use crate::control::error::{ErrorClass, QmpError, QmpResult};
use crate::control::qapi::{clip, qapi_enum, qapi_struct, qapi_union};
use crate::control::registry::{Empty, Registry};
use crate::error::{ErrorKind, Result};
use crate::host::block_on;
use crate::job::{CopyMode, IoStatus, JobHandle, Verb};

qapi_struct! {
    /// A job by its id.
    pub(crate) struct JobId {
        id: String,
    }
}

qapi_struct! {
    /// A job by its id.
    pub(crate) struct JobDevice {
        device: String,
    }
}

qapi_struct! {
    pub(crate) struct BlockJobCancel {
        /// The job's id.
        device: String,
        /// At once, also when it is paused, or could end in order.
        force: Option<bool>,
    }
}

qapi_struct! {
    pub(crate) struct BlockJobSetSpeed {
        /// The job's id.
        device: String,
        /// Bytes a second at most; 0 for no limit.
        speed: i64,
    }
}

qapi_enum! {
    /// When a mirror copies what is written while it runs.
    pub(crate) enum MirrorCopyMode {
        /// Some time later.
        Background = "background",
        /// Before the write is acknowledged.
        WriteBlocking = "write-blocking",
    }
}

impl MirrorCopyMode {
    pub(super) fn mode(self) -> CopyMode {
        match self {
            Self::Background => CopyMode::Background,
            Self::WriteBlocking => CopyMode::WriteBlocking,
        }
    }
}

qapi_struct! {
    /// How a mirror is to go on.
    pub(crate) struct BlockJobChangeMirror {
        copy_mode: MirrorCopyMode,
    }
}

qapi_union! {
    /// How a job is to go on.
    pub(crate) union BlockJobChange by "type": JobType {
        base: JobId,
        /// By the kind of job.
        branches: BlockJobChangeOf {
            Commit(Empty) = "commit",
            Stream(Empty) = "stream",
            Mirror(BlockJobChangeMirror) = "mirror",
            Backup(Empty) = "backup",
            Create(Empty) = "create",
            Amend(Empty) = "amend",
            SnapshotLoad(Empty) = "snapshot-load",
            SnapshotSave(Empty) = "snapshot-save",
            SnapshotDelete(Empty) = "snapshot-delete",
            Populate(Empty) = "populate",
        }
    }
}

impl JobType {
    /// As the library calls it.
    pub(crate) fn of(kind: &str) -> Self {
        match kind {
            "commit" => Self::Commit,
            "mirror" => Self::Mirror,
            "backup" => Self::Backup,
            "populate" => Self::Populate,
            _ => Self::Stream,
        }
    }
}

pub(super) fn register(to: &mut Registry) {
    to.command("job-pause", |to, JobId { id }| pause(&job(to, &id)?));
    to.command("job-resume", |to, JobId { id }| resume(&job(to, &id)?));
    to.command("job-cancel", |to, JobId { id }| cancel(&job(to, &id)?, true));
    to.command("job-complete", |to, JobId { id }| complete(&job(to, &id)?));
    to.command("job-finalize", |to, JobId { id }| finalize(&job(to, &id)?));
    to.command("job-dismiss", |to, JobId { id }| dismiss(&job(to, &id)?));
    to.command("block-job-pause", |to, JobDevice { device }| pause(&block_job(to, &device)?));
    to.command("block-job-resume", |to, JobDevice { device }| resume(&block_job(to, &device)?));
    to.command("block-job-complete", |to, JobDevice { device }| complete(&block_job(to, &device)?));
    to.command("block-job-finalize", |to, JobId { id }| finalize(&block_job(to, &id)?));
    to.command("block-job-dismiss", |to, JobId { id }| dismiss(&block_job(to, &id)?));
    to.command("block-job-cancel", block_job_cancel);
    to.command("block-job-set-speed", set_speed);
    to.command("block-job-change", change);
}

fn job(context: &Context<'_>, id: &str) -> QmpResult<JobHandle> {
    context.host.job(id).map_err(|_| QmpError::generic("Job not found"))
}

fn block_job(context: &Context<'_>, id: &str) -> QmpResult<JobHandle> {
    let missing = |_| {
        let desc = format!("Block job '{}' not found", clip(id));
        QmpError::new(ErrorClass::DeviceNotActive, desc)
    };
    context.host.job(id).map_err(missing)
}

/// What has been asked of a job, in QEMU's words if it cannot be.
fn asked(job: &JobHandle, verb: (Verb, &str), result: Result<()>) -> QmpResult<Empty> {
    let Err(error) = result else { return Ok(Empty {}) };
    let (verb, word) = verb;
    let status = job.status();
    if error.kind() == ErrorKind::NotPermitted && !status.allows(verb) {
        let id = job.id();
        let desc = format!("Job '{id}' in state '{status}' cannot accept command verb '{word}'");
        return Err(QmpError::generic(desc));
    }
    Err(error.into())
}

fn pause(job: &JobHandle) -> QmpResult<Empty> {
    let result = job.pause();
    if result.is_err() && job.status().allows(Verb::Pause) {
        return Err(QmpError::generic("Job is already paused"));
    }
    asked(job, (Verb::Pause, "pause"), result)
}

fn resume(job: &JobHandle) -> QmpResult<Empty> {
    let result = job.resume();
    result.map(|()| Empty {}).map_err(|_| {
        // QEMU asks first whether it was paused.
        QmpError::generic("Can't resume a job that was not paused")
    })
}

fn cancel(job: &JobHandle, is_forced: bool) -> QmpResult<Empty> {
    asked(job, (Verb::Cancel, "cancel"), job.cancel(is_forced))
}

fn complete(job: &JobHandle) -> QmpResult<Empty> {
    asked(job, (Verb::Complete, "complete"), job.complete())
}

fn finalize(job: &JobHandle) -> QmpResult<Empty> {
    asked(job, (Verb::Finalize, "finalize"), job.finalize())
}

fn dismiss(job: &JobHandle) -> QmpResult<Empty> {
    asked(job, (Verb::Dismiss, "dismiss"), job.dismiss())
}

fn block_job_cancel(context: &Context<'_>, cancelled: BlockJobCancel) -> QmpResult<Empty> {
    let BlockJobCancel { device, force } = cancelled;
    let (job, is_forced) = (block_job(context, &device)?, force.unwrap_or(false));
    let info = job.info();
    if !is_forced && (info.is_paused || info.io_status != IoStatus::Ok) {
        let desc = format!("The block job for device '{device}' is currently paused");
        return Err(QmpError::generic(desc));
    }
    cancel(&job, is_forced)
}

fn set_speed(context: &Context<'_>, set: BlockJobSetSpeed) -> QmpResult<Empty> {
    let job = block_job(context, &set.device)?;
    let set = || job.set_speed(super::speed_of(set.speed)?).map_err(QmpError::from);
    match job.status().allows(Verb::SetSpeed) {
        true => set().map(|()| Empty {}),
        false => asked(&job, (Verb::SetSpeed, "set-speed"), job.set_speed(0)),
    }
}

fn change(context: &Context<'_>, change: BlockJobChange) -> QmpResult<Empty> {
    let job = block_job(context, &change.base.id)?;
    if !job.status().allows(Verb::Change) {
        let changed = block_on(job.change(CopyMode::Background));
        return asked(&job, (Verb::Change, "change"), changed);
    }
    let kind = job.info().kind;
    let BlockJobChangeOf::Mirror(mirror) = &change.branch else {
        let desc = match kind {
            "mirror" => "Change to copy mode 'background' is not implemented",
            _ => "Job type does not support change",
        };
        return Err(QmpError::generic(desc));
    };
    if kind != "mirror" {
        return Err(QmpError::generic("Job type does not support change"));
    }
    block_on(job.change(mirror.copy_mode.mode()))?;
    Ok(Empty {})
}
