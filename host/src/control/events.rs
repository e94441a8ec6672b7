//! What happens in the host, as events of the protocol.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::clients::Clients;
use super::job_events;
use super::qapi::{qapi_enum, qapi_event};
use super::registry::Registry;
use crate::graph::{BitmapChange, BitmapScope, EXPORT_DRIVE, Event, Notice};

qapi_enum! {
    /// What a bitmap records.
    pub(crate) enum ScopeKind {
        Node = "node",
        Drive = "drive",
    }
}

qapi_enum! {
    /// What has become of a bitmap.
    pub(crate) enum BitmapFate {
        /// By command: it is there, clean.
        Added = "added",
        /// By command: it is gone.
        Removed = "removed",
        /// By command: all of it is clean.
        Cleared = "cleared",
        /// By command: it records.
        Enabled = "enabled",
        /// By command: it records no more.
        Disabled = "disabled",
        /// What was dirty stands still; a successor records.
        Frozen = "frozen",
        /// A freeze ended: dirty is what stood still and what was recorded since.
        MergedBack = "merged-back",
        /// A freeze ended: dirty is what was recorded since.
        Abdicated = "abdicated",
        /// By command: what others show is dirty, too.
        Merged = "merged",
        /// By command: it shows what another one shows.
        Copied = "copied",
        /// By command: it is called `name`, and was called `from`.
        Renamed = "renamed",
        /// What it holds means nothing.
        Distrusted = "distrusted",
        /// It was inconsistent, and is all dirty.
        Repaired = "repaired",
        /// Nothing proves that its view is what it was: all of it is dirty.
        MarkedWhole = "marked-whole",
        /// A range of its view may have altered, and is dirty.
        Marked = "marked",
        /// Its view has another size; what was added is dirty.
        Resized = "resized",
        /// Another node or drive has it now: `node`; it was `from`.
        Moved = "moved",
        /// It no longer records what an export shows: the clients that this has see all of it dirty.
        Left = "left",
        /// It may be lost or inconsistent when the host ends.
        NotKept = "not-kept",
    }
}

qapi_event! {
    /// A bitmap is not what it was.
    pub(crate) event "BLOCK_DIRTY_BITMAP_CHANGED" BitmapChanged {
        /// The node or drive that it records, or did, if it is gone; absent if that is not known.
        node: Option<String>,
        /// Which of both that is.
        scope: Option<ScopeKind>,
        /// Its name.
        name: String,
        /// What has become of it.
        what: BitmapFate,
        /// Why, or what stands against it.
        reason: Option<String>,
        /// Of a range, or a change of size: its first byte.
        offset: Option<u64>,
        /// Its bytes.
        length: Option<u64>,
        /// Its former name, or what it recorded.
        from: Option<String>,
        /// The drive whose view it has left; absent for an export of a node.
        drive: Option<String>,
        /// The export whose clients see all of it dirty.
        export: Option<String>,
    }
}

qapi_event! {
    /// A driver has not answered in time a resize or deallocation. It may still do it.
    pub(crate) event "BLOCK_NODE_LATE" NodeLate {
        node_name: String,
        /// Those that wait for it.
        drives: Vec<String>,
        /// The exports of nodes that do, by their ids.
        exports: Vec<String>,
    }
}

qapi_event! {
    /// A driver that was late has answered.
    pub(crate) event "BLOCK_NODE_ANSWERED" NodeAnswered {
        node_name: String,
        /// Those that go on.
        drives: Vec<String>,
        /// The exports of nodes that do, by their ids.
        exports: Vec<String>,
    }
}

qapi_event! {
    /// A node that was removed could not store what is to be found when it is opened again.
    pub(crate) event "BLOCK_NODE_NOT_CLOSED" NodeNotClosed {
        node_name: String,
        reason: String,
    }
}

qapi_event! {
    /// An image's metadata contradict themselves.
    pub(crate) event "BLOCK_IMAGE_CORRUPTED" ImageCorrupted {
        /// The drive whose root the image is, if there is one.
        device: String,
        node_name: Option<String>,
        msg: String,
        /// Where, if that is known.
        offset: Option<i64>,
        size: Option<i64>,
        /// It can only be read until it has been repaired.
        fatal: bool,
    }
}

qapi_event! {
    /// A plugin failed. What comes of it follows.
    pub(crate) event "PLUGIN_FAULT" PluginFault {
        plugin: String,
        node_name: String,
        reason: String,
        /// It broke the protocol.
        violation: bool,
    }
}

qapi_event! {
    /// Claims of a plugin were refused: nothing was written. At most once a second, with all so far.
    pub(crate) event "PLUGIN_CLAIMS_REFUSED" PluginClaimsRefused {
        plugin: String,
        node_name: String,
        /// For bytes that may have changed since they were read.
        stale: u64,
        /// Without a proof.
        not_proven: u64,
    }
}

qapi_event! {
    /// A plugin was replaced while it ran.
    pub(crate) event "PLUGIN_RELOADED" PluginReloaded {
        plugin: String,
        node_name: String,
        /// The version before.
        from: String,
        /// The version now.
        to: String,
    }
}

qapi_event! {
    /// What a plugin's view showed of a point in time is not kept any more.
    pub(crate) event "PLUGIN_VIEW_LOST" PluginViewLost {
        plugin: String,
        node_name: String,
        reason: String,
    }
}

qapi_event! {
    /// An export is served.
    pub(crate) event "BLOCK_EXPORT_ADDED" ExportAdded {
        id: String,
        /// The drive that it serves, if it is not of a node.
        drive: Option<String>,
    }
}

qapi_event! {
    /// An export has ended, and its last client is gone.
    pub(crate) event "BLOCK_EXPORT_DELETED" ExportDeleted {
        id: String,
    }
}

qapi_event! {
    /// A plugin that had failed serves again.
    pub(crate) event "PLUGIN_RESTARTED" PluginRestarted {
        plugin: String,
        node_name: String,
    }
}

qapi_event! {
    /// A plugin has failed, and requests go to the node's child without it.
    pub(crate) event "PLUGIN_BYPASSED" PluginBypassed {
        plugin: String,
        node_name: String,
    }
}

qapi_event! {
    /// A plugin has failed for good: the node's requests fail.
    pub(crate) event "PLUGIN_FAILED" PluginFailed {
        plugin: String,
        node_name: String,
        /// It failed more often than its budget of restarts allows.
        spent: bool,
    }
}

qapi_event! {
    /// Drives paused for a change of the graph.
    pub(crate) event "BLOCK_DRIVES_PAUSED" DrivesPaused {
        drives: Vec<String>,
        /// The exports of nodes that did, by their ids.
        exports: Vec<String>,
        /// Time that the requests in flight took to end, nanoseconds.
        drain_ns: u64,
        /// Time for which everything stood still then, nanoseconds.
        still_ns: u64,
    }
}

qapi_event! {
    /// More happened than could be told: what is to be known of it is to be asked for.
    pub(crate) event "BLOCK_EVENTS_LOST" EventsLost {
        count: u64,
    }
}

/// Declares them.
pub(super) fn register(to: &mut Registry) {
    job_events::register(to);
    to.event::<BitmapChanged>();
    to.event::<ImageCorrupted>();
    to.event::<NodeLate>();
    to.event::<NodeAnswered>();
    to.event::<NodeNotClosed>();
    to.event::<ExportAdded>();
    to.event::<ExportDeleted>();
    to.event::<PluginFault>();
    to.event::<PluginClaimsRefused>();
    to.event::<PluginReloaded>();
    to.event::<PluginViewLost>();
    to.event::<PluginRestarted>();
    to.event::<PluginBypassed>();
    to.event::<PluginFailed>();
    to.event::<DrivesPaused>();
    to.event::<EventsLost>();
}

fn split(scope: &BitmapScope) -> (String, ScopeKind) {
    match scope {
        BitmapScope::Node(name) => (name.to_string(), ScopeKind::Node),
        BitmapScope::Drive(id) => (id.to_string(), ScopeKind::Drive),
    }
}

/// An event of a bitmap, of which nothing more is said.
fn changed(scope: Option<&BitmapScope>, name: String, what: BitmapFate) -> BitmapChanged {
    let (node, scope) = scope.map(split).unzip();
    let (reason, offset, length, from) = (None, None, None, None);
    let (drive, export) = (None, None);
    BitmapChanged { node, scope, name, what, reason, offset, length, from, drive, export }
}

/// Tells all clients.
pub(super) fn tell(clients: &Clients, notice: Notice) {
    if notice.lost > 0 {
        clients.emit(EventsLost { count: notice.lost });
    }
    match notice.event {
        Event::BitmapChanged { scope, name, change } => {
            clients.emit(by_command(scope.as_ref(), name, change));
        }
        Event::BitmapMarkedWhole { scope, name, why } => {
            let event = changed(Some(&scope), name, BitmapFate::MarkedWhole);
            clients.emit(BitmapChanged { reason: Some(why), ..event });
        }
        Event::BitmapMarked { scope, name, range, why } => {
            let event = changed(Some(&scope), name, BitmapFate::Marked).at(range);
            clients.emit(BitmapChanged { reason: Some(why), ..event });
        }
        Event::BitmapResized { scope, name, from_bytes, to_bytes } => {
            let range = from_bytes.min(to_bytes)..to_bytes.max(from_bytes);
            clients.emit(changed(Some(&scope), name, BitmapFate::Resized).at(range));
        }
        Event::BitmapMoved { from, to, name } => {
            let event = changed(Some(&to), name, BitmapFate::Moved);
            clients.emit(BitmapChanged { from: Some(split(&from).0), ..event });
        }
        Event::BitmapLeft { scope, name, drive, export } => {
            let drive = (!drive.starts_with(EXPORT_DRIVE)).then(|| drive.to_string());
            let event = changed(scope.as_ref(), name, BitmapFate::Left);
            clients.emit(BitmapChanged { drive, export: Some(export.to_string()), ..event });
        }
        Event::BitmapNotKept { scope, name, why } => {
            let event = changed(scope.as_ref(), name, BitmapFate::NotKept);
            clients.emit(BitmapChanged { reason: Some(why), ..event });
        }
        Event::DriverLate { node, drives } => {
            let (node_name, (drives, exports)) = (node.to_string(), apart(&drives));
            clients.emit(NodeLate { node_name, drives, exports });
        }
        Event::DriverAnswered { node, drives } => {
            let (node_name, (drives, exports)) = (node.to_string(), apart(&drives));
            clients.emit(NodeAnswered { node_name, drives, exports });
        }
        Event::NodeNotClosed { node, why } => {
            clients.emit(NodeNotClosed { node_name: node.to_string(), reason: why });
        }
        Event::ImageCorrupt { node, drive, why, is_fatal } => {
            let named = drive.filter(|drive| !drive.starts_with(EXPORT_DRIVE));
            let device = named.map_or_else(String::new, |drive| drive.to_string());
            let node_name = Some(node.to_string());
            let (offset, size) = (None, None);
            let event =
                ImageCorrupted { device, node_name, msg: why, offset, size, fatal: is_fatal };
            clients.emit(event);
        }
        Event::ExportAdded { id, drive } => {
            let drive = (!drive.starts_with(EXPORT_DRIVE)).then(|| drive.to_string());
            clients.emit(ExportAdded { id: id.to_string(), drive });
        }
        Event::ExportRemoved { id } => clients.emit(ExportDeleted { id: id.to_string() }),
        Event::Job(event) => job_events::tell(clients, event),
        Event::PluginFault { plugin, node, why, is_violation } => {
            let (plugin, node_name) = (plugin.to_string(), node.to_string());
            let event = PluginFault { plugin, node_name, reason: why, violation: is_violation };
            clients.emit(event);
        }
        Event::PluginClaimsRefused { plugin, node, stale, not_proven } => {
            let (plugin, node_name) = (plugin.to_string(), node.to_string());
            clients.emit(PluginClaimsRefused { plugin, node_name, stale, not_proven });
        }
        Event::PluginReloaded { plugin, node, from, to } => {
            let (plugin, node_name) = (plugin.to_string(), node.to_string());
            let (from, to) = (from.to_string(), to.to_string());
            clients.emit(PluginReloaded { plugin, node_name, from, to });
        }
        Event::PluginViewLost { plugin, node, why } => {
            let (plugin, node_name) = (plugin.to_string(), node.to_string());
            clients.emit(PluginViewLost { plugin, node_name, reason: why.to_string() });
        }
        Event::PluginRestarted { plugin, node } => {
            let (plugin, node_name) = (plugin.to_string(), node.to_string());
            clients.emit(PluginRestarted { plugin, node_name });
        }
        Event::PluginBypassed { plugin, node } => {
            let (plugin, node_name) = (plugin.to_string(), node.to_string());
            clients.emit(PluginBypassed { plugin, node_name });
        }
        Event::PluginFailed { plugin, node, is_spent } => {
            let (plugin, node_name) = (plugin.to_string(), node.to_string());
            clients.emit(PluginFailed { plugin, node_name, spent: is_spent });
        }
        Event::Paused { drives, drain, still } => {
            let (drain_ns, still_ns) = (nanos(drain), nanos(still));
            let (drives, exports) = apart(&drives);
            clients.emit(DrivesPaused { drives, exports, drain_ns, still_ns });
        }
    }
}

/// Drives, and the exports of nodes that have drives of their own.
fn apart(drives: &[Arc<str>]) -> (Vec<String>, Vec<String>) {
    let export = |drive: &Arc<str>| drive.strip_prefix(EXPORT_DRIVE).map(str::to_owned);
    let named = drives.iter().filter(|drive| export(drive).is_none()).map(|it| it.to_string());
    (named.collect(), drives.iter().filter_map(export).collect())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl BitmapChanged {
    fn at(self, range: Range<u64>) -> Self {
        let length = Some(range.end.saturating_sub(range.start));
        Self { offset: Some(range.start), length, ..self }
    }
}

fn by_command(scope: Option<&BitmapScope>, name: String, change: BitmapChange) -> BitmapChanged {
    let what = match &change {
        BitmapChange::Added => BitmapFate::Added,
        BitmapChange::Removed => BitmapFate::Removed,
        BitmapChange::Cleared => BitmapFate::Cleared,
        BitmapChange::Enabled => BitmapFate::Enabled,
        BitmapChange::Disabled => BitmapFate::Disabled,
        BitmapChange::Frozen => BitmapFate::Frozen,
        BitmapChange::MergedBack => BitmapFate::MergedBack,
        BitmapChange::Abdicated => BitmapFate::Abdicated,
        BitmapChange::Merged => BitmapFate::Merged,
        BitmapChange::Copied => BitmapFate::Copied,
        BitmapChange::Renamed { .. } => BitmapFate::Renamed,
        BitmapChange::Distrusted => BitmapFate::Distrusted,
        BitmapChange::Repaired => BitmapFate::Repaired,
    };
    let from = match change {
        BitmapChange::Renamed { from } => Some(from),
        _ => None,
    };
    BitmapChanged { from, ..changed(scope, name, what) }
}
