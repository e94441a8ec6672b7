//! What states a job goes through, and what may be asked of it in each: QEMU's (`job.c`), so that clients of its
//! control protocol find what they expect.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobStatus {
    /// It has not been seen by anybody.
    Undefined,
    /// It is in the graph, and has not begun.
    Created,
    /// It works.
    Running,
    /// It stands still, and did not yet come to [`JobStatus::Ready`].
    Paused,
    /// What it copies to is as what it copies from, and is kept so until it is asked to complete.
    Ready,
    /// It stands still after having been ready.
    Standby,
    /// It has done its work, and waits for the others of its group.
    Waiting,
    /// All of its group have, and wait for being finalized.
    Pending,
    /// It has failed or been cancelled, and what it leaves is put in order.
    Aborting,
    /// It has ended, and waits for being dismissed.
    Concluded,
    /// It is gone.
    Null,
}

/// What may be asked of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// To end without effect.
    Cancel,
    /// To stand still.
    Pause,
    /// To go on.
    Resume,
    /// Another limit of its speed.
    SetSpeed,
    /// To end what is ready.
    Complete,
    /// To let the end take effect.
    Finalize,
    /// To be forgotten.
    Dismiss,
    /// Another way of copying.
    Change,
}

impl JobStatus {
    /// As on the control socket.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Undefined => "undefined",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ready => "ready",
            Self::Standby => "standby",
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Aborting => "aborting",
            Self::Concluded => "concluded",
            Self::Null => "null",
        }
    }

    /// Whether a job in this state may come to `next`.
    pub const fn may_become(self, next: Self) -> bool {
        use JobStatus as S;
        matches!(
            (self, next),
            (S::Undefined, S::Created)
                | (S::Created, S::Running | S::Aborting | S::Null)
                | (S::Running, S::Paused | S::Ready | S::Waiting | S::Aborting)
                | (S::Paused, S::Running)
                | (S::Ready, S::Standby | S::Waiting | S::Aborting)
                | (S::Standby, S::Ready)
                | (S::Waiting, S::Pending | S::Aborting | S::Concluded)
                | (S::Pending, S::Aborting | S::Concluded)
                | (S::Aborting, S::Concluded)
                | (S::Concluded, S::Null)
        )
    }

    /// Whether that may be asked of a job in this state.
    pub const fn allows(self, verb: Verb) -> bool {
        use JobStatus as S;
        let works = matches!(self, S::Created | S::Running | S::Paused | S::Ready | S::Standby);
        match verb {
            Verb::Pause | Verb::Resume | Verb::SetSpeed | Verb::Change => works,
            Verb::Cancel => works || matches!(self, S::Waiting | S::Pending),
            Verb::Complete => matches!(self, S::Ready | S::Standby),
            Verb::Finalize => matches!(self, S::Pending),
            Verb::Dismiss => matches!(self, S::Concluded),
        }
    }

    /// Whether it has ended.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Concluded | Self::Null)
    }

    /// # Errors
    /// `EPERM`, with the job, its state and what was asked.
    pub(super) fn check(self, job: &str, verb: Verb) -> Result<()> {
        if self.allows(verb) {
            return Ok(());
        }
        let message = format!("job `{job}` is {self}: it cannot {verb}");
        Err(Error::new(ErrorKind::NotPermitted, message))
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cancel => "be cancelled",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::SetSpeed => "change its speed",
            Self::Complete => "complete",
            Self::Finalize => "be finalized",
            Self::Dismiss => "be dismissed",
            Self::Change => "change how it copies",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [JobStatus; 11] = [
        JobStatus::Undefined,
        JobStatus::Created,
        JobStatus::Running,
        JobStatus::Paused,
        JobStatus::Ready,
        JobStatus::Standby,
        JobStatus::Waiting,
        JobStatus::Pending,
        JobStatus::Aborting,
        JobStatus::Concluded,
        JobStatus::Null,
    ];

    /// `1` where it is allowed, in the order of the states.
    #[test]
    fn verbs_are_allowed_as_by_qemu() {
        let check = |verb: Verb, expect: &str| {
            let allowed = ALL.map(|status| if status.allows(verb) { '1' } else { '0' });
            assert_eq!(allowed.iter().collect::<String>(), expect, "{verb:?}");
        };
        check(Verb::Cancel, "01111111000");
        check(Verb::Pause, "01111100000");
        check(Verb::Resume, "01111100000");
        check(Verb::SetSpeed, "01111100000");
        check(Verb::Change, "01111100000");
        check(Verb::Complete, "00001100000");
        check(Verb::Finalize, "00000001000");
        check(Verb::Dismiss, "00000000010");
    }

    #[test]
    fn every_state_leads_to_an_end() {
        for status in ALL {
            let mut reached = vec![status];
            let mut at = 0;
            while at < reached.len() {
                let next = ALL.into_iter().filter(|next| reached[at].may_become(*next));
                let next: Vec<_> = next.filter(|next| !reached.contains(next)).collect();
                reached.extend(next);
                at += 1;
            }
            assert!(reached.contains(&JobStatus::Null), "{status}");
            assert!(!JobStatus::Null.may_become(status));
            let error = status.check("j", Verb::Dismiss).err().map(|error| error.to_string());
            let expect = format!("job `j` is {status}: it cannot be dismissed");
            assert_eq!(error, (status != JobStatus::Concluded).then_some(expect));
        }
    }
}
