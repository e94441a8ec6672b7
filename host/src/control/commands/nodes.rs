//! What there is: nodes, drives with what they show, counters, the graph.

use std::path::PathBuf;
use std::sync::Arc;

use super::drives::find_drive;
use super::images::{ImageInfo, backing_of, image_info, is_direct};
use crate::bitmap::{Bitmap, BitmapState};
use crate::control::context::Context;
use crate::control::error::{QmpError, QmpResult};
use crate::control::events::ScopeKind;
use crate::control::qapi::{qapi_enum, qapi_struct};
use crate::control::registry::{Empty, Registry};
use crate::draw::{self, GraphDescription};
use crate::graph::{BitmapScope, EXPORT_DRIVE, Graph, GraphDrive, GraphNode};
use crate::host::Host;

qapi_struct! {
    /// A bitmap and what it holds.
    pub(crate) struct BlockDirtyInfo {
        name: Option<String>,
        /// Dirty bytes.
        count: u64,
        granularity: u64,
        /// It records, or will as soon as its image is opened for writing.
        recording: bool,
        /// Somebody uses it, or a checkpoint has frozen it.
        busy: bool,
        persistent: bool,
        inconsistent: Option<bool>,
        /// Whether it records a node or a drive.
        scope: ScopeKind,
        /// recording, disabled, frozen, inconsistent.
        state: String,
        /// Who uses it.
        users: Vec<String>,
        /// The node whose image keeps it.
        kept_in: Option<String>,
    }
}

qapi_enum! {
    pub(crate) enum DetectZeroes {
        Off = "off",
    }
}

qapi_struct! {
    pub(crate) struct CacheInfo {
        writeback: bool,
        direct: bool,
        no_flush: bool,
    }
}

qapi_struct! {
    /// A node.
    pub(crate) struct BlockDeviceInfo {
        file: String,
        node_name: Option<String>,
        ro: bool,
        drv: String,
        backing_file as "backing_file": Option<String>,
        backing_file_depth as "backing_file_depth": u64,
        active: bool,
        encrypted: bool,
        detect_zeroes as "detect_zeroes": DetectZeroes,
        bps: u64,
        bps_rd as "bps_rd": u64,
        bps_wr as "bps_wr": u64,
        iops: u64,
        iops_rd as "iops_rd": u64,
        iops_wr as "iops_wr": u64,
        image: ImageInfo,
        cache: CacheInfo,
        write_threshold as "write_threshold": u64,
        dirty_bitmaps: Option<Vec<BlockDirtyInfo>>,
    }
}

qapi_struct! {
    /// A drive, as guests see it.
    pub(crate) struct BlockInfo {
        device: String,
        kind as "type": String,
        removable: bool,
        locked: bool,
        /// What it shows; absent: no medium.
        inserted: Option<BlockDeviceInfo>,
        /// The drive's own bitmaps; those of the node are with the node.
        dirty_bitmaps: Option<Vec<BlockDirtyInfo>>,
    }
}

qapi_struct! {
    /// A drive, as operators see it.
    pub(crate) struct DriveInfo {
        id: String,
        /// Of the drive that the export of a node has for itself: that export's id.
        export: Option<String>,
        /// The node that it shows; absent: no medium.
        node_name: Option<String>,
        writable: bool,
        /// Bytes of what it shows.
        size: Option<u64>,
        /// The names under which it is served.
        exports: Vec<String>,
        dirty_bitmaps: Vec<BlockDirtyInfo>,
    }
}

qapi_struct! {
    pub(crate) struct QueryNamedBlockNodes {
        /// Without the chain below each image.
        flat: Option<bool>,
    }
}

pub(super) fn register(to: &mut Registry) {
    to.command("query-named-block-nodes", query_named_block_nodes);
    to.command("query-block", query_block);
    to.command("query-drives", query_drives);
    to.command("query-graph", query_graph);
}

fn query_graph(context: &Context<'_>, _: Empty) -> QmpResult<GraphDescription> {
    Ok(draw::of_host(context.host))
}

fn query_named_block_nodes(
    context: &Context<'_>,
    arguments: QueryNamedBlockNodes,
) -> QmpResult<Vec<BlockDeviceInfo>> {
    let graph = context.host.graph();
    let is_flat = arguments.flat.unwrap_or(false);
    let nodes = graph.nodes().iter().rev();
    Ok(nodes.map(|node| device_info(context.host, &graph, node, is_flat)).collect())
}

fn query_block(context: &Context<'_>, _: Empty) -> QmpResult<Vec<BlockInfo>> {
    let graph = context.host.graph();
    let drives = graph.drives().iter().filter(|drive| !drive.id().starts_with(EXPORT_DRIVE));
    let info = |drive: &GraphDrive| {
        let root = drive.root().map(|root| &graph.nodes()[root.child()]);
        let bitmaps = bitmaps_of(context.host, &graph, &BitmapScope::Drive(drive.id().into()));
        BlockInfo {
            device: drive.id().to_owned(),
            kind: "unknown".to_owned(),
            removable: true,
            locked: false,
            inserted: root.map(|node| device_info(context.host, &graph, node, false)),
            dirty_bitmaps: Some(bitmaps).filter(|bitmaps| !bitmaps.is_empty()),
        }
    };
    Ok(drives.map(info).collect())
}

fn query_drives(context: &Context<'_>, _: Empty) -> QmpResult<Vec<DriveInfo>> {
    let graph = context.host.graph();
    let served = context.host.exports();
    let info = |drive: &GraphDrive| {
        let root = drive.root().map(|root| &graph.nodes()[root.child()]);
        let exports = served.iter().filter(|export| export.drive == drive.id());
        DriveInfo {
            id: drive.id().to_owned(),
            export: drive.id().strip_prefix(EXPORT_DRIVE).map(str::to_owned),
            node_name: root.map(|node| node.name().to_owned()),
            writable: drive.is_writable(),
            size: root.map(|node| node.info().size_bytes),
            exports: exports.map(|export| export.name.clone()).collect(),
            dirty_bitmaps: bitmaps_of(context.host, &graph, &BitmapScope::Drive(drive.id().into())),
        }
    };
    Ok(graph.drives().iter().map(info).collect())
}

fn bitmaps_of(host: &Host, graph: &Graph, scope: &BitmapScope) -> Vec<BlockDirtyInfo> {
    let bitmaps = graph.bitmaps().filter(|(of, _)| *of == scope);
    bitmaps.map(|(scope, bitmap)| dirty_info(host, scope, bitmap)).collect()
}

fn dirty_info(host: &Host, scope: &BitmapScope, bitmap: &Arc<Bitmap>) -> BlockDirtyInfo {
    let reader = bitmap.read();
    let known = host.bitmap(scope, reader.name()).ok();
    let kept_in = known.as_ref().and_then(|bitmap| bitmap.kept_in());
    let waits = known.is_some_and(|bitmap| bitmap.waits());
    let users = bitmap.users();
    BlockDirtyInfo {
        name: Some(reader.name().to_owned()),
        count: reader.dirty_bytes(),
        granularity: reader.granularity().bytes(),
        recording: reader.is_recording() || waits,
        busy: reader.state() == BitmapState::Frozen || !users.is_empty(),
        persistent: kept_in.is_some(),
        inconsistent: (reader.state() == BitmapState::Inconsistent).then_some(true),
        scope: match scope {
            BitmapScope::Drive(_) => ScopeKind::Drive,
            BitmapScope::Node(_) => ScopeKind::Node,
        },
        state: reader.state().to_string(),
        users,
        kept_in: kept_in.map(|node| node.to_string()),
    }
}

/// The node below that is nearest to files: the file is the image's.
fn file_node<'g>(graph: &'g Graph, node: &'g GraphNode) -> Option<&'g GraphNode> {
    let first = |node: &&'g GraphNode| Some(&graph.nodes()[node.edges().first()?.child()]);
    // Children come before their parents: this ends.
    let mut path = std::iter::successors(Some(node), first);
    path.find(|node| node.driver().driver() == "file")
}

/// The name of an image's file.
pub(super) fn file_name(graph: &Graph, node: &GraphNode) -> String {
    file_node(graph, node).and_then(|node| node.driver().label()).unwrap_or_default()
}

/// Where that is.
pub(super) fn file_path(graph: &Graph, node: &GraphNode) -> Option<PathBuf> {
    file_node(graph, node)?.driver().file_path()
}

fn device_info(host: &Host, graph: &Graph, node: &GraphNode, is_flat: bool) -> BlockDeviceInfo {
    let image = image_info(graph, node, is_flat);
    let bitmaps = bitmaps_of(host, graph, &BitmapScope::Node(node.name().into()));
    BlockDeviceInfo {
        file: image.filename.clone(),
        node_name: Some(node.name().to_owned()),
        ro: node.info().read_only,
        drv: image.format.clone(),
        backing_file: backing_of(graph, node).map(|backing| file_name(graph, backing)),
        backing_file_depth: image.depth(),
        active: true,
        encrypted: false,
        detect_zeroes: DetectZeroes::Off,
        bps: 0,
        bps_rd: 0,
        bps_wr: 0,
        iops: 0,
        iops_rd: 0,
        iops_wr: 0,
        image,
        cache: CacheInfo { writeback: true, direct: is_direct(graph, node), no_flush: false },
        write_threshold: 0,
        dirty_bitmaps: Some(bitmaps).filter(|bitmaps| !bitmaps.is_empty()),
    }
}

/// The node that `device`, a drive, shows, or the one called `node_name`: as QEMU looks it up.
pub(super) fn find_node<'g>(
    graph: &'g Graph,
    device: Option<&str>,
    node_name: Option<&str>,
) -> QmpResult<&'g GraphNode> {
    if let Some(drive) = device.and_then(|device| find_drive(graph, device).ok()) {
        let no_medium = || QmpError::generic(format!("Device '{}' has no medium", drive.id()));
        return Ok(&graph.nodes()[drive.root().ok_or_else(no_medium)?.child()]);
    }
    let found = node_name.or(device).and_then(|name| graph.find_node(name));
    let (device, node_name) = (device.unwrap_or_default(), node_name.unwrap_or_default());
    let missing = || format!("Cannot find device='{device}' nor node-name='{node_name}'");
    found.map(|at| &graph.nodes()[at]).ok_or_else(|| QmpError::generic(missing()))
}
