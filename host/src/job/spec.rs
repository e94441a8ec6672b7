//! What may be asked for.

use std::time::Duration;

use super::event::ErrorAction;
use crate::bitmap::Granularity;
use crate::graph::BitmapRef;
use crate::node::BackingName;

/// What a job does when a copy fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// It fails.
    #[default]
    Report,
    /// It goes on with the rest. A copy, a commit or a backup comes to what has failed again and again, ever more
    /// seldom, and does not end before it is done; a stream leaves it where it is, and fails at its end.
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

/// When a mirror copies what is written while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyMode {
    /// Some time later.
    #[default]
    Background,
    /// Before the write is acknowledged.
    WriteBlocking,
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
    /// What it does when a copy fails at what it writes, if that is something else.
    pub on_target_error: Option<OnError>,
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
    /// Copies to a base what an overlay has over it, and puts the one in the other's place.
    Commit(CommitSpec),
    /// Copies a node to another one, and puts the one in the other's place when asked to.
    Mirror(MirrorSpec),
    /// Copies to another node what a node shows when it begins, whatever is written meanwhile.
    Backup(BackupSpec),
    /// Makes dirty in a bitmap where a node has bytes of its own, or shows others than another node.
    Populate(PopulateSpec),
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
    /// How the overlay's image is to name its new backing; by its file, by default. A format that is not said is
    /// the backing's: `qcow2`, or `raw` whatever keeps its bytes.
    pub backing_name: Option<BackingName>,
}

/// See [`JobKind::Commit`].
#[derive(Clone, Debug)]
pub struct CommitSpec {
    /// The topmost node, or a drive that shows it.
    pub device: String,
    /// The overlay that goes; the topmost one by default. That one is *active*: the job becomes ready, and waits
    /// for being completed.
    pub top: Option<String>,
    /// The node to which it goes. Without one the candidates are listed.
    pub base: Option<String>,
    /// Other overlays that stand on the base, or between, may see what is written: they are marked.
    pub is_forced: bool,
    /// One that is active completes by itself.
    pub completes: bool,
    /// How images that stood on the overlay are to name the base; as for a stream.
    pub backing_name: Option<BackingName>,
}

/// See [`JobKind::Mirror`].
#[derive(Clone, Debug)]
pub struct MirrorSpec {
    /// What is copied: a node, or what a drive shows.
    pub device: String,
    /// The node to which it is copied. Nobody else writes it meanwhile.
    pub target: String,
    /// Instead of the first one, who uses this one uses the other in the end: a filter of it.
    pub replaces: Option<String>,
    /// What is copied before it is ready.
    pub sync: MirrorSync,
    /// When what is written meanwhile is copied.
    pub copy_mode: CopyMode,
    /// Granules in which is tracked what is left.
    pub granularity: Option<Granularity>,
    /// Bytes in flight at most, but one granule at least; as it adapts, by default.
    pub most_bytes: Option<u64>,
}

/// What a mirror copies at first. Beside the first of them, its user says that the rest is there already.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum MirrorSync {
    /// Everything.
    #[default]
    Full,
    /// What the topmost overlay has.
    Top,
    /// Nothing but what is written from now on.
    None,
    /// What a bitmap says, which stands still meanwhile.
    Bitmap(BitmapRef, BitmapMode),
}

/// What becomes of the bitmap that said what is to be copied, beside what has changed meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapMode {
    /// What was copied is clean, if the job has not failed or been cancelled.
    OnSuccess,
    /// It stays what it was.
    Never,
    /// What was copied is clean, also if the job has failed or was cancelled: then what it has not copied is dirty. So is
    /// all, if it is not known to be durable where it was copied to, or if a mirror fails once it has been told to end.
    Always,
}

/// See [`JobKind::Backup`].
///
/// ```
/// use blockloom::graph::BitmapRef;
/// use blockloom::job::{BackupSpec, BackupSync};
///
/// let daily = BitmapRef::of_drive("vda", "daily");
/// let backup = BackupSpec {
///     sync: BackupSync::Incremental,
///     bitmap: Some(daily),
///     ..BackupSpec::of("vda", "target")
/// };
/// # let _ = backup;
/// ```
#[derive(Clone, Debug)]
pub struct BackupSpec {
    /// What is copied: a node, or what a drive shows.
    pub device: String,
    /// The node to which it is copied. Nobody else writes it meanwhile.
    pub target: String,
    /// What is copied of its own accord.
    pub sync: BackupSync,
    /// A bitmap of what is copied, which stands still meanwhile.
    pub bitmap: Option<BitmapRef>,
    /// What becomes of it. [`BackupSync::Incremental`] says that itself.
    pub bitmap_mode: Option<BitmapMode>,
    /// What is written is to be compressed, as far as that makes it smaller. The target is a `qcow2` node that keeps its
    /// data itself, or filters over one.
    pub compress: bool,
    /// Bytes that are copied together at least. By default those of the bitmap's granules that it copies, or
    /// [`Granularity::DEFAULT`] at most; always what the target fills at once, if that has no backing, or compresses by
    /// itself.
    pub granularity: Option<Granularity>,
    /// What becomes of a write whose old bytes cannot be copied.
    pub on_cbw_error: OnCbwError,
    /// How long a write may wait for that; none for as long as it takes.
    pub cbw_timeout: Option<Duration>,
    /// What has been copied is discarded where it was: that view of a point in time, or whatever else it is, ends with
    /// its backup. Nobody else writes it meanwhile.
    pub discards_source: bool,
    /// Pieces in flight at most; as it adapts, by default.
    pub most_pieces: Option<usize>,
    /// Bytes of one at most, what is copied together at least.
    pub piece_bytes: Option<u64>,
}

/// What a backup copies of its own accord.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupSync {
    /// Everything.
    #[default]
    Full,
    /// What the topmost overlay has.
    Top,
    /// Nothing but what is about to be overwritten, until it is cancelled.
    None,
    /// What a bitmap says, which is clean then: [`BackupSync::Bitmap`] with [`BitmapMode::OnSuccess`].
    Incremental,
    /// What a bitmap says.
    Bitmap,
}

impl BackupSync {
    /// As on the control socket.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Top => "top",
            Self::None => "none",
            Self::Incremental => "incremental",
            Self::Bitmap => "bitmap",
        }
    }
}

impl BitmapMode {
    /// As on the control socket.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OnSuccess => "on-success",
            Self::Never => "never",
            Self::Always => "always",
        }
    }
}

/// What becomes of a write whose old bytes cannot be copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnCbwError {
    /// It fails, and the backup stays what it is to be.
    #[default]
    BreakGuestWrite,
    /// It goes on, and the backup fails.
    BreakSnapshot,
}

/// See [`JobKind::Populate`].
#[derive(Clone, Debug)]
pub struct PopulateSpec {
    /// What becomes dirty there, beside what is.
    pub bitmap: BitmapRef,
    /// What is looked at: a node, or what a drive shows.
    pub device: String,
    /// What is looked for.
    pub from: PopulateFrom,
}

/// What makes a bitmap dirty.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PopulateFrom {
    /// Bytes that the topmost overlay has, or that lie above a base.
    Allocation {
        /// The base; the topmost overlay's backing, by default.
        base: Option<String>,
    },
    /// Bytes that are others than those of another node: both are read.
    Difference {
        /// The other node, of the same size.
        other: String,
    },
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
            on_target_error: None,
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
            Self::Commit(_) => "commit",
            Self::Mirror(_) => "mirror",
            Self::Backup(_) => "backup",
            Self::Populate(_) => "populate",
        }
    }
}

impl StreamSpec {
    /// Everything below `top`.
    pub fn of(top: impl Into<String>) -> Self {
        Self { top: top.into(), base: None, bottom: None, backing_name: None }
    }
}

impl CommitSpec {
    /// The topmost overlay of a drive, or of a node, to a base.
    pub fn of(device: impl Into<String>, base: impl Into<String>) -> Self {
        let (device, base) = (device.into(), Some(base.into()));
        let (is_forced, completes) = (false, false);
        Self { device, top: None, base, is_forced, completes, backing_name: None }
    }
}

impl MirrorSpec {
    /// All of a node, or of what a drive shows.
    pub fn of(device: impl Into<String>, target: impl Into<String>) -> Self {
        let (device, target) = (device.into(), target.into());
        let (sync, copy_mode) = (MirrorSync::Full, CopyMode::Background);
        Self {
            device,
            target,
            replaces: None,
            sync,
            copy_mode,
            granularity: None,
            most_bytes: None,
        }
    }
}

impl BackupSpec {
    /// All of a node, or of what a drive shows.
    pub fn of(device: impl Into<String>, target: impl Into<String>) -> Self {
        Self {
            device: device.into(),
            target: target.into(),
            sync: BackupSync::Full,
            bitmap: None,
            bitmap_mode: None,
            compress: false,
            granularity: None,
            on_cbw_error: OnCbwError::default(),
            cbw_timeout: None,
            discards_source: false,
            most_pieces: None,
            piece_bytes: None,
        }
    }
}
