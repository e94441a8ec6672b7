//! What may be asked of a job.

use std::sync::Arc;

use super::group::Group;
use super::record::{IoStatus, JobEnd, JobInfo, Record, Wish};
use super::spec::CopyMode;
use super::status::{JobStatus, Verb};
use crate::error::{Error, ErrorKind, Result};

/// A job that has been started. It stays valid when the job is gone; clones share it.
#[derive(Clone)]
pub struct JobHandle {
    pub(super) record: Arc<Record>,
    pub(super) group: Arc<Group>,
}

impl JobHandle {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// The job as it is.
    pub fn info(&self) -> JobInfo {
        self.group.info(&self.record)
    }

    /// Its state.
    pub fn status(&self) -> JobStatus {
        self.record.state.see(|state| state.status)
    }

    /// Waits until it has ended. Once it has been finalized, if it does not do so by itself.
    pub async fn wait(&self) -> JobEnd {
        self.record.state.when(|state| state.end.clone().filter(|_| state.is_over)).await
    }

    /// Waits until it has come to a state, or has ended; returns its state then.
    pub async fn reaches(&self, status: JobStatus) -> JobStatus {
        self.comes_to(|at| at == status || at.is_over()).await
    }

    /// Waits until it is in a state of which that holds; returns it.
    pub async fn comes_to(&self, is_there: impl Fn(JobStatus) -> bool) -> JobStatus {
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

    /// Has a mirror copy in another way from now on.
    ///
    /// # Errors
    /// `EPERM`; `ENOTSUP` for another job; whatever stands against its node among those who write.
    pub async fn change(&self, copy_mode: CopyMode) -> Result<()> {
        self.record.ask(Verb::Change, |_| Ok(()))?;
        self.group.change_mode(&self.record, copy_mode).await
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
