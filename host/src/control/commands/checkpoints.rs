//! `checkpoint`: one instant over several drives. Bitmaps are frozen, each with a successor; what drives and nodes
//! show then goes on being shown by views, and exports of them, until the checkpoint ends.
//!
//! A view is a node `plugin-view` of a filter that copies before writes, which is put over what is viewed. Its export
//! shows what the checkpoint has frozen as `qemu:dirty-bitmap:NAME`; a live export shows that and what has been
//! recorded since. All of it comes and goes with one transaction.

use std::sync::Arc;

use serde_json::{Value, json};

use super::bitmaps::{BlockDirtyBitmap, BlockDirtyBitmapOrStr, find};
use super::blockdev::{check_names, no_device, root_of};
use super::blockdev_options::{BlockdevRef, OnCbwError, SizeOrStr};
use super::exports::{ExportWords, new_export};
use crate::bitmap::Bitmap;
use crate::control::context::Context;
use crate::control::error::{QmpError, QmpResult};
use crate::control::plan::Plan;
use crate::control::qapi::{QapiType, clip, qapi_struct};
use crate::control::registry::{Empty, Registry};
use crate::export::nbd::RemovalMode;
use crate::graph::{Action, BitmapAction, BitmapRef, BitmapScope, Graph, Role, Which};
use crate::host::{Exported, FilterPlace, Fragment, OpenCheckpoint, OpenView};

qapi_struct! {
    /// An export of a checkpoint's view.
    pub(crate) struct CheckpointExport {
        id: String,
        /// What clients call it; its id unless said.
        name: Option<String>,
        description: Option<String>,
        /// `unix:PATH` or `tcp:HOST:PORT`; where the NBD server listens unless said.
        listen: Option<String>,
        /// Shown as `qemu:dirty-bitmap:NAME`, as they are frozen; those of the viewed drive or node that the
        /// checkpoint freezes unless said.
        bitmaps: Option<Vec<BlockDirtyBitmapOrStr>>,
    }
}

qapi_struct! {
    /// What a drive or node shows at the instant of the checkpoint.
    pub(crate) struct CheckpointView {
        /// The drive or node.
        node: String,
        /// What the view's node is called.
        node_name: String,
        /// What the filter is called that keeps what is viewed; `NODE-NAME.filter` unless said.
        filter_node_name: Option<String>,
        /// Where that is kept; a node `NODE-NAME.target` in memory unless said. One that is described here goes with
        /// the checkpoint.
        target: Option<BlockdevRef>,
        /// Of what this bitmap says then alone; of all unless said.
        bitmap: Option<BlockDirtyBitmapOrStr>,
        on_cbw_error: Option<OnCbwError>,
        /// Seconds that a write waits for a copy; for ever unless said.
        cbw_timeout: Option<u32>,
        /// Bytes that are copied at least.
        min_cluster_size: Option<SizeOrStr>,
        export: Option<CheckpointExport>,
    }
}

qapi_struct! {
    /// One instant.
    pub(crate) struct Checkpoint {
        /// By which it is ended; needed with views.
        id: Option<String>,
        /// Frozen at that instant.
        bitmaps: Option<Vec<BlockDirtyBitmap>>,
        views: Option<Vec<CheckpointView>>,
    }
}

qapi_struct! {
    /// The end of a checkpoint, or of what one has frozen.
    pub(crate) struct CheckpointEnd {
        /// All of it: its views and exports go, whose clients are disconnected.
        id: Option<String>,
        /// These alone, of a checkpoint without an id.
        bitmaps: Option<Vec<BlockDirtyBitmap>>,
        /// Whether what stood still has been taken care of: it is clean then, else it is dirty again.
        completed: bool,
    }
}

qapi_struct! {
    pub(crate) struct CheckpointViewInfo {
        node_name: String,
        filter_node_name: String,
        export: Option<String>,
    }
}

qapi_struct! {
    /// A checkpoint that has not ended.
    pub(crate) struct CheckpointInfo {
        id: String,
        /// What it has frozen and is there.
        bitmaps: Vec<BlockDirtyBitmap>,
        views: Vec<CheckpointViewInfo>,
    }
}

pub(super) fn register(to: &mut Registry) {
    to.action("checkpoint", checkpoint);
    to.action("checkpoint-end", checkpoint_end);
    to.command("query-checkpoints", query);
}

fn checkpoint(plan: &mut Plan<'_>, checkpoint: Checkpoint) -> QmpResult<()> {
    let Checkpoint { id, bitmaps, views } = checkpoint;
    let (bitmaps, views) = (bitmaps.unwrap_or_default(), views.unwrap_or_default());
    if bitmaps.is_empty() && views.is_empty() {
        return Err(QmpError::generic("Parameter 'bitmaps' names none"));
    }
    if id.is_none() && !views.is_empty() {
        return Err(QmpError::generic("Parameter 'id' is missing"));
    }
    if let Some(id) = &id {
        plan.take_turn()?;
        if plan.context.host.checkpoints().all().contains_key(id) {
            return Err(QmpError::generic(format!("there is a checkpoint '{}' already", clip(id))));
        }
    }
    let frozen = bitmaps.iter().map(|bitmap| find(plan, bitmap)).collect::<QmpResult<Vec<_>>>()?;
    if !frozen.is_empty() {
        plan.push(Action::Checkpoint { bitmaps: frozen.clone() });
    }
    let views = views.into_iter().map(|view| open_view(plan, view, &bitmaps));
    let views = views.collect::<QmpResult<Vec<Opened>>>()?;
    if let Some(id) = id {
        plan.afterwards(move |context, _| {
            let graph = context.host.graph();
            let bitmaps = frozen.iter().filter_map(|bitmap| bitmap.find(&graph)).collect();
            let views = views.into_iter().map(|view| view.found(&graph)).collect();
            context.host.checkpoints().all().insert(id, OpenCheckpoint { bitmaps, views });
        });
    }
    Ok(())
}

/// A view that is to be.
struct Opened {
    node: String,
    filter: String,
    nodes: Vec<String>,
    export: Option<String>,
}

impl Opened {
    fn found(self, graph: &Graph) -> OpenView {
        let Self { node, filter, nodes, export } = self;
        let nodes = nodes.into_iter().filter_map(|name| {
            let generation = graph.nodes()[graph.find_node(&name)?].generation();
            Some((name, generation))
        });
        OpenView { node, filter, nodes: nodes.collect(), export }
    }
}

fn open_view(
    plan: &mut Plan<'_>,
    view: CheckpointView,
    frozen: &[BlockDirtyBitmap],
) -> QmpResult<Opened> {
    let graph = plan.context.host.graph();
    let root = match root_of(&graph, &view.node)? {
        Some(root) => root,
        None if plan.has_node(&view.node) => view.node.clone(),
        None => return Err(no_device(&view.node)),
    };
    let own_name = || format!("{}.filter", view.node_name);
    let filter = view.filter_node_name.clone().unwrap_or_else(own_name);
    let fragment = describe(plan, &graph, &view, &root, &filter)?;
    let place = FilterPlace::Above { node: root, users: Which::All };
    let added = plan.add_placed(&fragment, &place, &filter)?;
    let CheckpointView { node, node_name, export, .. } = view;
    let exported = export.map(|export| begin_export(plan, export, (&node, &node_name), frozen));
    let export = exported.transpose()?;
    Ok(Opened { node: node_name, filter, nodes: added.nodes, export })
}

/// The view, the filter, and where it keeps old bytes.
fn describe(
    plan: &Plan<'_>,
    graph: &Graph,
    view: &CheckpointView,
    root: &str,
    filter: &str,
) -> QmpResult<Fragment> {
    let node_name = &view.node_name;
    let mut new = vec![node_name.clone(), filter.to_owned()];
    let mut nodes = json!({});
    let target = match view.target.clone() {
        Some(BlockdevRef::Definition(mut options)) => {
            options.fill_in();
            new.extend(options.base.node_name.clone());
            options.emit().unwrap_or_default()
        }
        Some(BlockdevRef::Reference(name)) if plan.has_node(&name) => name.into(),
        Some(BlockdevRef::Reference(name)) => return Err(no_device(&name)),
        None => {
            let name = format!("{node_name}.target");
            let shown = graph.find_node(root).map(|at| &graph.nodes()[at]);
            let size_bytes = shown.map_or(0, |node| node.info().size_bytes);
            nodes[&name] = json!({"driver": "memory", "size": size_bytes});
            new.push(name.clone());
            name.into()
        }
    };
    check_names(plan, &new)?;
    let mut config = json!({"sync": "none"});
    if let Some(error) = view.on_cbw_error {
        config["on-cbw-error"] = error.emit().unwrap_or_default();
    }
    if let Some(seconds) = view.cbw_timeout.filter(|seconds| *seconds > 0) {
        config["cbw-timeout"] = format!("{seconds}s").into();
    }
    if let Some(size) = view.min_cluster_size.clone() {
        config["min-cluster-size"] = size.emit().unwrap_or_default();
    }
    let child = json!({"file": root, "target": target});
    nodes[filter] = json!({"driver": "backup", "child": child, "config": config});
    if let Some(bitmap) = view.bitmap.clone() {
        let BlockDirtyBitmap { node, name } = of_view(bitmap, &view.node);
        find(plan, &BlockDirtyBitmap { node: node.clone(), name: name.clone() })?;
        nodes[filter]["bitmap"] = json!({"changes": format!("{node}/{name}")});
    }
    nodes[node_name] = json!({"driver": "plugin-view", "of": filter, "view": "snapshot"});
    Ok(Fragment::json("checkpoint", json!({"node": Value::Object(as_object(nodes))})))
}

fn as_object(value: Value) -> serde_json::Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => serde_json::Map::new(),
    }
}

fn of_view(bitmap: BlockDirtyBitmapOrStr, node: &str) -> BlockDirtyBitmap {
    match bitmap {
        BlockDirtyBitmapOrStr::Local(name) => BlockDirtyBitmap { node: node.to_owned(), name },
        BlockDirtyBitmapOrStr::External(bitmap) => bitmap,
    }
}

fn begin_export(
    plan: &mut Plan<'_>,
    export: CheckpointExport,
    (of, view): (&str, &str),
    frozen: &[BlockDirtyBitmap],
) -> QmpResult<String> {
    let CheckpointExport { id, name, description, listen, bitmaps } = export;
    let of_drive = || frozen.iter().filter(|bitmap| bitmap.node == of).cloned().collect();
    let named = |all: Vec<_>| all.into_iter().map(|bitmap| of_view(bitmap, of)).collect();
    let bitmaps: Vec<BlockDirtyBitmap> = bitmaps.map_or_else(of_drive, named);
    if let Some(other) = bitmaps.iter().find(|bitmap| !frozen.contains(bitmap)) {
        let desc = format!("bitmap '{}' is none that the checkpoint freezes", clip(&other.name));
        return Err(QmpError::generic(desc));
    }
    let words = ExportWords {
        name: name.unwrap_or_else(|| id.clone()),
        description: description.unwrap_or_default(),
        listen,
        writable: false,
        writethrough: false,
        allocation_depth: false,
        bitmaps: bitmaps.into_iter().map(BlockDirtyBitmapOrStr::External).collect(),
        is_frozen: true,
    };
    let export = new_export(plan, &id, Exported::Node(view.to_owned()), words)?;
    plan.add_export(export)?;
    Ok(id)
}

fn checkpoint_end(plan: &mut Plan<'_>, end: CheckpointEnd) -> QmpResult<()> {
    let CheckpointEnd { id, bitmaps, completed } = end;
    let bitmaps = match (id, bitmaps) {
        (Some(id), None) => return end_whole(plan, id, completed),
        (None, Some(bitmaps)) if !bitmaps.is_empty() => bitmaps,
        (None, Some(_)) => return Err(QmpError::generic("Parameter 'bitmaps' names none")),
        _ => {
            let desc = "either 'id' or 'bitmaps' says what is to end";
            return Err(QmpError::generic(desc));
        }
    };
    for bitmap in &bitmaps {
        let bitmap = find(plan, bitmap)?;
        thaw(plan, bitmap, completed);
    }
    Ok(())
}

fn thaw(plan: &mut Plan<'_>, bitmap: BitmapRef, completed: bool) {
    let action = if completed { BitmapAction::Abdicate } else { BitmapAction::MergeBack };
    plan.push(action.of(bitmap));
}

fn end_whole(plan: &mut Plan<'_>, id: String, completed: bool) -> QmpResult<()> {
    plan.take_turn()?;
    let host = plan.context.host;
    let known = host.checkpoints().all().get(&id).cloned();
    let OpenCheckpoint { bitmaps, views } = known
        .ok_or_else(|| QmpError::generic(format!("there is no checkpoint '{}'", clip(&id))))?;
    let graph = host.graph();
    for view in &views {
        let is_there = |export: &&String| host.exports().iter().any(|it| it.id == **export);
        if let Some(export) = view.export.as_ref().filter(is_there) {
            plan.end_export(export, RemovalMode::Hard)?;
        }
    }
    for view in &views {
        remove_nodes(plan, &graph, view);
    }
    let is_there = |bitmap: &&Arc<Bitmap>| graph.bitmaps().any(|(_, it)| Arc::ptr_eq(it, bitmap));
    let is_frozen =
        |bitmap: &&Arc<Bitmap>| bitmap.read().state() == crate::bitmap::BitmapState::Frozen;
    for bitmap in bitmaps.iter().filter(is_there).filter(is_frozen) {
        thaw(plan, bitmap.into(), completed);
    }
    plan.afterwards(move |context, _| drop(context.host.checkpoints().all().remove(&id)));
    Ok(())
}

/// What came with a view and is there, parents first. A filter is taken out: others may stand on it.
fn remove_nodes(plan: &mut Plan<'_>, graph: &Graph, view: &OpenView) {
    let came =
        graph.nodes().iter().rev().filter(|node| {
            view.nodes.iter().any(|(_, generation)| *generation == node.generation())
        });
    for node in came {
        let is_filter = node.edges().iter().any(|edge| edge.role() == Role::Filtered);
        let node = node.name().to_owned();
        plan.push(match is_filter {
            true => Action::RemoveFilter { node },
            false => Action::RemoveNode { node },
        });
    }
}

fn query(context: &Context<'_>, _: Empty) -> QmpResult<Vec<CheckpointInfo>> {
    let graph = context.host.graph();
    let bitmap = |bitmap: &Arc<Bitmap>| {
        let mut all = graph.bitmaps();
        let (scope, _) = all.find(|(_, other)| Arc::ptr_eq(other, bitmap))?;
        let (BitmapScope::Drive(node) | BitmapScope::Node(node)) = scope;
        Some(BlockDirtyBitmap { node: node.to_string(), name: bitmap.name().to_string() })
    };
    let view = |view: &OpenView| CheckpointViewInfo {
        node_name: view.node.clone(),
        filter_node_name: view.filter.clone(),
        export: view.export.clone(),
    };
    let all = context.host.checkpoints().all();
    let info = all.iter().map(|(id, checkpoint)| CheckpointInfo {
        id: id.clone(),
        bitmaps: checkpoint.bitmaps.iter().filter_map(bitmap).collect(),
        views: checkpoint.views.iter().map(view).collect(),
    });
    Ok(info.collect())
}
