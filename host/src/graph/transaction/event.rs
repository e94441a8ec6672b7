//! What a graph change did beside what was asked for, and what came of it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::graph::{BitmapScope, DriveTitle, EXPORT_DRIVE};
use crate::job::JobEvent;

/// What was decided about a bitmap, and done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BitmapChange {
    /// It is there, clean.
    Added,
    /// It has left the graph.
    Removed,
    /// All of it is clean.
    Cleared,
    /// It records.
    Enabled,
    /// It records no more.
    Disabled,
    /// What was dirty stands still; a successor records.
    Frozen,
    /// A freeze has ended; what stood still is dirty, too.
    MergedBack,
    /// A freeze has ended; what stood still is clean.
    Abdicated,
    /// What others show is dirty, too.
    Merged,
    /// It shows what another one shows.
    Copied,
    /// It has another name.
    Renamed {
        /// The former one.
        from: String,
    },
    /// It is inconsistent.
    Distrusted,
    /// It was inconsistent, and is all dirty.
    Repaired,
}

/// See the module. `Display` is the line that is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Something was decided about a bitmap. Told by [`Host::transact`](crate::Host::transact), and whatever
    /// goes by it; or it went with the node that stores it.
    BitmapChanged {
        /// What it records; or did, if it is gone. `None` if it was not there before what was decided.
        scope: Option<BitmapScope>,
        /// Its name.
        name: String,
        /// What was done.
        change: BitmapChange,
    },
    /// Nothing proves that a bitmap's view is what it was: it was marked whole.
    BitmapMarkedWhole {
        /// What it records.
        scope: BitmapScope,
        /// Its name.
        name: String,
        /// What was altered.
        why: String,
    },
    /// A range of a bitmap's view may have altered.
    BitmapMarked {
        /// What it records.
        scope: BitmapScope,
        /// Its name.
        name: String,
        /// The range, bytes.
        range: Range<u64>,
        /// What was altered.
        why: String,
    },
    /// A bitmap's view has another size. What was added is dirty.
    BitmapResized {
        /// What it records.
        scope: BitmapScope,
        /// Its name.
        name: String,
        /// Size of the view before, bytes.
        from_bytes: u64,
        /// Size of the view now, bytes.
        to_bytes: u64,
    },
    /// A bitmap went to the node that shows its view now.
    BitmapMoved {
        /// What it recorded.
        from: BitmapScope,
        /// What it records.
        to: BitmapScope,
        /// Its name.
        name: String,
    },
    /// Clients that an export has see all of a bitmap dirty from now on: the bitmap no longer records what the
    /// export's drive shows. Told once, by the change that makes it so.
    BitmapLeft {
        /// What it records; or did, if it is gone. `None` if that is not known any more.
        scope: Option<BitmapScope>,
        /// Its name.
        name: String,
        /// The drive that shows something else.
        drive: Arc<str>,
        /// The export's id.
        export: Arc<str>,
    },
    /// A bitmap that is to be kept is not, or not as it is to be: when the host ends it may be lost, or
    /// inconsistent.
    BitmapNotKept {
        /// What it records; or did, if it is gone. `None` if that is not known any more.
        scope: Option<BitmapScope>,
        /// Its name.
        name: String,
        /// What stands against it.
        why: String,
    },
    /// A driver has not answered in time a resize or deallocation, and may still do it.
    DriverLate {
        /// Its node.
        node: Arc<str>,
        /// The drives that wait until it has answered.
        drives: Vec<Arc<str>>,
    },
    /// A driver that was late has answered. What it may have changed has been marked.
    DriverAnswered {
        /// Its node.
        node: Arc<str>,
        /// The drives that go on.
        drives: Vec<Arc<str>>,
    },
    /// A node that was removed could not store what is to be found when it is opened again.
    NodeNotClosed {
        /// Its name.
        node: Arc<str>,
        /// The error.
        why: String,
    },
    /// An image's metadata contradict themselves. Told once for an image that may be changed, and once while it
    /// may not.
    ImageCorrupt {
        /// Its node.
        node: Arc<str>,
        /// The drive whose root that is.
        drive: Option<Arc<str>>,
        /// What does not fit.
        why: String,
        /// It was marked as corrupt: nothing can be written to it until it has been repaired.
        is_fatal: bool,
    },
    /// An export is served.
    ExportAdded {
        /// Its id.
        id: Arc<str>,
        /// The drive that it serves.
        drive: Arc<str>,
    },
    /// An export has ended, and its last client is gone.
    ExportRemoved {
        /// Its id.
        id: Arc<str>,
    },
    /// A plugin failed: its store was lost. What comes of it follows.
    PluginFault {
        /// What it is called.
        plugin: Arc<str>,
        /// The node that it serves.
        node: Arc<str>,
        /// How it failed.
        why: String,
        /// It broke the protocol.
        is_violation: bool,
    },
    /// Claims of a plugin were refused: nothing was written. Told at most once a second, with all so far.
    PluginClaimsRefused {
        /// What it is called.
        plugin: Arc<str>,
        /// The node for which it claimed.
        node: Arc<str>,
        /// Claims for bytes that may have changed since they were read, so far.
        stale: u64,
        /// Claims without a proof, so far.
        not_proven: u64,
    },
    /// A plugin that had failed serves again, in a new store.
    PluginRestarted {
        /// What it is called.
        plugin: Arc<str>,
        /// The node that it serves.
        node: Arc<str>,
    },
    /// A plugin was replaced while it ran.
    PluginReloaded {
        /// What it is called.
        plugin: Arc<str>,
        /// The node that it serves.
        node: Arc<str>,
        /// The version before.
        from: Arc<str>,
        /// The version now.
        to: Arc<str>,
    },
    /// A plugin has failed, and requests go to the node's child without it.
    PluginBypassed {
        /// What it is called.
        plugin: Arc<str>,
        /// The node that it served.
        node: Arc<str>,
    },
    /// What a plugin's view showed of a point in time is not kept any more: reading it fails.
    PluginViewLost {
        /// What the plugin is called.
        plugin: Arc<str>,
        /// The node whose view it is.
        node: Arc<str>,
        /// How that came.
        why: Arc<str>,
    },
    /// A plugin has failed for good, and the node's requests fail.
    PluginFailed {
        /// What it is called.
        plugin: Arc<str>,
        /// The node that it served.
        node: Arc<str>,
        /// It has failed more often than its budget of restarts allows.
        is_spent: bool,
    },
    /// News of a job.
    Job(JobEvent),
    /// Drives had to pause.
    Paused {
        /// Their ids.
        drives: Vec<Arc<str>>,
        /// Time that the requests in flight took to end.
        drain: Duration,
        /// Time for which, then, everything stood still.
        still: Duration,
    },
}

impl Event {
    /// Whether somebody should look: a backup will be larger than it need be, a drive waits,
    /// an image is to be checked.
    fn is_warning(&self) -> bool {
        if let Self::Job(event) = self {
            return event.is_warning();
        }
        matches!(
            self,
            Self::BitmapMarkedWhole { .. }
                | Self::BitmapLeft { .. }
                | Self::BitmapNotKept { .. }
                | Self::DriverLate { .. }
                | Self::NodeNotClosed { .. }
                | Self::ImageCorrupt { .. }
                | Self::PluginFault { .. }
                | Self::PluginClaimsRefused { not_proven: 1.., .. }
                | Self::PluginBypassed { .. }
                | Self::PluginViewLost { .. }
                | Self::PluginFailed { .. }
        )
    }

    /// With what the driver that was to make the change has come to.
    pub(super) fn and_its_driver(mut self, has: &str) -> Self {
        if let Self::BitmapMarkedWhole { why, .. } | Self::BitmapMarked { why, .. } = &mut self {
            *why += &format!(", and its driver has {has}");
        }
        self
    }

    /// Writes it to the log.
    pub(super) fn log(&self, generation: u64) {
        if self.is_warning() {
            tracing::warn!(generation, "{self}");
        } else {
            tracing::debug!(generation, "{self}");
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BitmapChanged { scope, name, change } => {
                write!(f, "bitmap `{name}`")?;
                scope.iter().try_for_each(|scope| write!(f, " of {scope}"))?;
                write!(f, " was {change}")
            }
            Self::BitmapMarkedWhole { scope, name, why } => {
                write!(f, "bitmap `{name}` of {scope} was marked whole: {why}")
            }
            Self::BitmapMarked { scope, name, range, why } => {
                let Range { start, end } = range;
                write!(f, "bitmap `{name}` of {scope} was marked at {start}..{end}: {why}")
            }
            Self::BitmapResized { scope, name, from_bytes, to_bytes } => {
                write!(
                    f,
                    "bitmap `{name}` of {scope} was resized from {from_bytes} to {to_bytes} bytes"
                )
            }
            Self::BitmapMoved { from, to, name } => {
                write!(f, "bitmap `{name}` of {from} went to {to}")
            }
            Self::BitmapLeft { scope, name, export, .. } => {
                write!(f, "bitmap `{name}`")?;
                scope.iter().try_for_each(|scope| write!(f, " of {scope}"))?;
                write!(f, " does not record what export `{export}` shows: clients see it all dirty")
            }
            Self::BitmapNotKept { scope, name, why } => {
                write!(f, "bitmap `{name}`")?;
                scope.iter().try_for_each(|scope| write!(f, " of {scope}"))?;
                write!(f, " is not kept: {why}")
            }
            Self::DriverLate { node, drives } => {
                let drives = names(drives);
                write!(
                    f,
                    "node `{node}`: its driver is late; until it answers these wait: {drives}"
                )
            }
            Self::DriverAnswered { node, drives } => {
                let drives = names(drives);
                write!(f, "node `{node}`: its driver has answered at last; these go on: {drives}")
            }
            Self::NodeNotClosed { node, why } => {
                write!(f, "node `{node}` was removed, and did not close: {why}")
            }
            Self::ImageCorrupt { node, why, is_fatal, .. } => {
                let what = if *is_fatal { "is now marked as corrupt" } else { "is corrupt" };
                write!(f, "node `{node}`: its image {what}: {why}")
            }
            Self::ExportAdded { id, drive } => match drive.starts_with(EXPORT_DRIVE) {
                true => write!(f, "export `{id}` is served"),
                false => write!(f, "export `{id}` serves drive `{drive}`"),
            },
            Self::ExportRemoved { id } => write!(f, "export `{id}` has ended"),
            Self::PluginFault { plugin, node, why, is_violation } => {
                let how = if *is_violation { " and broke the protocol" } else { "" };
                write!(f, "node `{node}`: its plugin `{plugin}` failed{how}: {why}")
            }
            Self::PluginClaimsRefused { plugin, node, stale, not_proven } => {
                write!(
                    f,
                    "node `{node}`: claims of its plugin `{plugin}` were refused, so far {stale} stale ones \
                     and {not_proven} without a proof"
                )
            }
            Self::PluginRestarted { plugin, node } => {
                write!(f, "node `{node}`: its plugin `{plugin}` serves again")
            }
            Self::PluginReloaded { plugin, node, from, to } => {
                write!(
                    f,
                    "node `{node}`: its plugin `{plugin}` was replaced: version {from} by {to}"
                )
            }
            Self::PluginBypassed { plugin, node } => {
                write!(f, "node `{node}`: requests go on without its plugin `{plugin}`")
            }
            Self::PluginViewLost { plugin, node, why } => {
                write!(
                    f,
                    "node `{node}`: the point in time of its plugin `{plugin}` is lost: {why}"
                )
            }
            Self::PluginFailed { plugin, node, is_spent } => {
                write!(f, "node `{node}`: its plugin `{plugin}` is out of service")?;
                if *is_spent { f.write_str(": it failed too often") } else { Ok(()) }
            }
            Self::Job(event) => event.fmt(f),
            Self::Paused { drives, drain, still } => {
                write!(f, "paused {}: {drain:?} to drain, {still:?} still", names(drives))
            }
        }
    }
}

/// As in "it was added".
impl fmt::Display for BitmapChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added => f.write_str("added"),
            Self::Removed => f.write_str("removed"),
            Self::Cleared => f.write_str("cleared"),
            Self::Enabled => f.write_str("enabled"),
            Self::Disabled => f.write_str("disabled"),
            Self::Frozen => f.write_str("frozen"),
            Self::MergedBack => f.write_str("merged back"),
            Self::Abdicated => f.write_str("succeeded"),
            Self::Merged => f.write_str("merged into"),
            Self::Copied => f.write_str("copied into"),
            Self::Renamed { from } => write!(f, "`{from}` before"),
            Self::Distrusted => f.write_str("distrusted"),
            Self::Repaired => f.write_str("repaired"),
        }
    }
}

/// `-` for nobody.
fn names(drives: &[Arc<str>]) -> String {
    if drives.is_empty() {
        return "-".into();
    }
    let drives: Vec<String> = drives.iter().map(|id| in_list(id)).collect();
    drives.join(", ")
}

fn in_list(drive: &str) -> String {
    match drive.starts_with(EXPORT_DRIVE) {
        true => DriveTitle(drive).to_string(),
        false => format!("`{drive}`"),
    }
}
