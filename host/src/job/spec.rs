//! What may be asked for.

use super::event::ErrorAction;

/// What a job does when a copy fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// It fails.
    #[default]
    Report,
    /// It goes on with the rest.
    Ignore,
    /// It stands still until it is resumed, and tries again.
    Stop,
    /// The same when no space is left; else it fails.
    StopForSpace,
}

impl OnError {
    pub(super) fn action(self, is_no_space: bool) -> ErrorAction {
        match self {
            Self::Report => ErrorAction::Report,
            Self::Ignore => ErrorAction::Ignore,
            Self::Stop => ErrorAction::Stop,
            Self::StopForSpace if is_no_space => ErrorAction::Stop,
            Self::StopForSpace => ErrorAction::Report,
        }
    }
}

/// A job that is to begin.
///
/// ```
/// use blockloom::job::{JobKind, JobSpec, OnError, StreamSpec};
///
/// let stream = StreamSpec { base: Some("base".into()), ..StreamSpec::of("top") };
/// let spec = JobSpec {
///     on_error: OnError::StopForSpace,
///     speed: 64 << 20,
///     ..JobSpec::new("flatten", JobKind::Stream(stream))
/// };
/// assert!(spec.auto_finalize && spec.auto_dismiss);
/// ```
#[derive(Clone, Debug)]
pub struct JobSpec {
    /// Unique among jobs.
    pub id: String,
    /// The name of the node that stands for it; `#job-ID` by default.
    pub node: Option<String>,
    /// What it does.
    pub what: JobKind,
    /// Bytes a second that it copies at most; 0 for no limit.
    pub speed: u64,
    /// What it does when a copy fails.
    pub on_error: OnError,
    /// It lets its end take effect by itself.
    pub auto_finalize: bool,
    /// It is forgotten when it has ended.
    pub auto_dismiss: bool,
}

/// What a job does.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum JobKind {
    /// Copies to an overlay what it shows of what lies below it.
    Stream(StreamSpec),
}

/// See [`JobKind::Stream`].
#[derive(Clone, Debug)]
pub struct StreamSpec {
    /// The overlay, or a filter on it, or a drive that shows it.
    pub top: String,
    /// The node on which it is to stand in the end; none for nothing.
    pub base: Option<String>,
    /// Instead of that: the last node of which something is copied.
    pub bottom: Option<String>,
}

impl JobSpec {
    /// Unlimited, failing at the first error, and ending by itself.
    pub fn new(id: impl Into<String>, what: JobKind) -> Self {
        Self {
            id: id.into(),
            node: None,
            what,
            speed: 0,
            on_error: OnError::Report,
            auto_finalize: true,
            auto_dismiss: true,
        }
    }

    pub(super) fn node_name(&self) -> String {
        self.node.clone().unwrap_or_else(|| format!("#job-{}", self.id))
    }
}

impl JobKind {
    /// As on the control socket.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stream(_) => "stream",
        }
    }
}

impl StreamSpec {
    /// Everything below `top`.
    pub fn of(top: impl Into<String>) -> Self {
        Self { top: top.into(), base: None, bottom: None }
    }
}
