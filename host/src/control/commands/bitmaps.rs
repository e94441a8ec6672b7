//! Dirty bitmaps: QEMU's commands, and those that QEMU lacks.

use super::drives::OnUnproven;
use crate::bitmap::{BitmapName, Granularity};
use crate::control::context::Context;
use crate::control::error::{QmpError, QmpResult};
use crate::control::plan::Plan;
use crate::control::qapi::{qapi_alternate, qapi_struct};
use crate::control::registry::Registry;
use crate::graph::{Action, BitmapAction, BitmapDecl, BitmapRef, BitmapScope, Graph, Unproven};
use crate::host::Keep;

qapi_struct! {
    /// A bitmap by name.
    pub(crate) struct BlockDirtyBitmap {
        /// The drive or node that it records; a drive comes first.
        pub(crate) node: String,
        pub(crate) name: String,
    }
}

qapi_struct! {
    /// A bitmap that is to be.
    pub(crate) struct BlockDirtyBitmapAdd {
        node: String,
        name: String,
        /// Bytes; 64 KiB unless said.
        granularity: Option<u32>,
        /// Whether an image keeps it: of a drive the first one from its root, whichever that is.
        persistent: Option<bool>,
        /// Whether it records nothing at first.
        disabled: Option<bool>,
    }
}

qapi_alternate! {
    /// A bitmap, by its name in the node that is spoken of, or by both.
    pub(crate) alternate BlockDirtyBitmapOrStr {
        Local(String),
        External(BlockDirtyBitmap),
    }
}

qapi_struct! {
    /// What others show is to be dirty in `target`, too.
    pub(crate) struct BlockDirtyBitmapMerge {
        node: String,
        target: String,
        bitmaps: Vec<BlockDirtyBitmapOrStr>,
    }
}

qapi_struct! {
    /// What another shows, and nothing else, is to be dirty in `target`.
    pub(crate) struct BlockDirtyBitmapCopy {
        node: String,
        target: String,
        bitmap: BlockDirtyBitmapOrStr,
    }
}

qapi_struct! {
    pub(crate) struct BlockDirtyBitmapRename {
        node: String,
        name: String,
        new_name: String,
    }
}

qapi_struct! {
    /// A bitmap is of another node, or drive, from now on.
    pub(crate) struct BlockDirtyBitmapMove {
        node: String,
        name: String,
        /// The node or drive that shows the same; a drive comes first.
        to: String,
        on_unproven: Option<OnUnproven>,
    }
}

qapi_struct! {
    /// Which ranges of a bitmap to list.
    pub(crate) struct BlockDirtyBitmapQuery {
        node: String,
        name: String,
        /// Where to begin, bytes; at the start unless said.
        offset: Option<u64>,
        /// Ranges to list at most: 1024 unless said, up to 16384.
        limit: Option<u32>,
        /// Only what a checkpoint has frozen.
        frozen: Option<bool>,
    }
}

qapi_struct! {
    /// Bytes of a view.
    pub(crate) struct ByteRange {
        offset: u64,
        length: u64,
    }
}

qapi_struct! {
    /// What a bitmap shows.
    pub(crate) struct BlockDirtyBitmapRanges {
        granularity: u64,
        /// Bytes of the view that it records.
        size: u64,
        /// Dirty bytes, of all of it.
        count: u64,
        state: String,
        /// Dirty, in order.
        ranges: Vec<ByteRange>,
        /// Whether there are more: ask again from `next`.
        more: bool,
        next: Option<u64>,
    }
}

const RANGES_DEFAULT: u32 = 1024;
const RANGES_MAX: u32 = 16 << 10;

pub(super) fn register(to: &mut Registry) {
    to.action("block-dirty-bitmap-add", add);
    to.action("block-dirty-bitmap-remove", |to, it| act(to, &it, BitmapAction::Remove));
    to.action("block-dirty-bitmap-clear", |to, it| act(to, &it, BitmapAction::Clear));
    to.action("block-dirty-bitmap-enable", |to, it| act(to, &it, BitmapAction::Enable));
    to.action("block-dirty-bitmap-disable", |to, it| act(to, &it, BitmapAction::Disable));
    to.action("block-dirty-bitmap-repair", |to, it| act(to, &it, BitmapAction::Repair));
    to.action("block-dirty-bitmap-merge", merge);
    to.action("block-dirty-bitmap-copy", copy);
    to.action("block-dirty-bitmap-rename", rename);
    to.action("block-dirty-bitmap-move", move_to);
    to.command("block-dirty-bitmap-query", query);
}

/// The words of QEMU, for each of its commands that it has them for.
fn no_node(name: &str) -> QmpError {
    QmpError::generic(format!("Node '{name}' not found"))
}

fn no_bitmap(name: &str) -> QmpError {
    QmpError::generic(format!("Dirty bitmap '{name}' not found"))
}

fn bitmap_name(name: &str) -> QmpResult<BitmapName> {
    if name.is_empty() {
        return Err(QmpError::generic("Bitmap name cannot be empty"));
    }
    BitmapName::new(name).map_err(|error| QmpError::generic(error.to_string()))
}

/// The bitmap, as the actions before leave it.
pub(super) fn find(plan: &Plan<'_>, bitmap: &BlockDirtyBitmap) -> QmpResult<BitmapRef> {
    let BlockDirtyBitmap { node, name } = bitmap;
    let scope = plan.find_scope(node).ok_or_else(|| no_node(node))?;
    if plan.untouched().is_some_and(|graph| graph.find_bitmap(&scope, name).is_none()) {
        return Err(no_bitmap(name));
    }
    Ok(BitmapRef::Named { scope, name: name.clone() })
}

fn act(plan: &mut Plan<'_>, bitmap: &BlockDirtyBitmap, action: BitmapAction) -> QmpResult<()> {
    let bitmap = find(plan, bitmap)?;
    plan.push(action.of(bitmap));
    Ok(())
}

fn add(plan: &mut Plan<'_>, bitmap: BlockDirtyBitmapAdd) -> QmpResult<()> {
    let BlockDirtyBitmapAdd { node, name, granularity, persistent, disabled } = bitmap;
    let missing =
        || QmpError::generic(format!("Cannot find device='{node}' nor node-name='{node}'"));
    let scope = plan.find_scope(&node).ok_or_else(missing)?;
    let name = bitmap_name(&name)?;
    let granularity = match granularity {
        None => Granularity::DEFAULT,
        Some(bytes) => Granularity::from_bytes(bytes.into())
            .map_err(|_| QmpError::generic("Granularity must be power of 2 and at least 512"))?,
    };
    if let Some(graph) = plan.untouched()
        && graph.find_bitmap(&scope, name.as_str()).is_some()
    {
        return Err(QmpError::generic(format!("Bitmap already exists: {name}")));
    }
    let enabled = !disabled.unwrap_or(false);
    let keep = keep_of(&plan.context.host.graph(), &scope);
    let decl = BitmapDecl { scope, name, granularity, enabled };
    match persistent {
        Some(true) => plan.add_kept(decl, keep),
        _ => {
            plan.push(Action::AddBitmap(decl));
            Ok(())
        }
    }
}

/// Where a persistent bitmap is kept: by the node that is named, if it is an image, else by the first image
/// below it, or below the drive.
fn keep_of(graph: &Graph, scope: &BitmapScope) -> Keep {
    let node = match scope {
        BitmapScope::Drive(_) => None,
        BitmapScope::Node(name) => graph.find_node(name).map(|at| &graph.nodes()[at]),
    };
    match node.filter(|node| node.driver().bitmap_store().is_some()) {
        Some(node) => Keep::Node(node.name().to_owned()),
        None => Keep::Root,
    }
}

/// The bitmap that is spoken of beside `node`.
fn source(plan: &Plan<'_>, node: &str, bitmap: BlockDirtyBitmapOrStr) -> QmpResult<BitmapRef> {
    let bitmap = match bitmap {
        BlockDirtyBitmapOrStr::Local(name) => BlockDirtyBitmap { node: node.to_owned(), name },
        BlockDirtyBitmapOrStr::External(bitmap) => bitmap,
    };
    find(plan, &bitmap)
}

fn merge(plan: &mut Plan<'_>, merge: BlockDirtyBitmapMerge) -> QmpResult<()> {
    let BlockDirtyBitmapMerge { node, target, bitmaps } = merge;
    let target = find(plan, &BlockDirtyBitmap { node: node.clone(), name: target })?;
    let sources = bitmaps.into_iter().map(|bitmap| source(plan, &node, bitmap));
    let sources = sources.collect::<QmpResult<Vec<_>>>()?;
    plan.push(BitmapAction::merge(sources).of(target));
    Ok(())
}

fn copy(plan: &mut Plan<'_>, copy: BlockDirtyBitmapCopy) -> QmpResult<()> {
    let BlockDirtyBitmapCopy { node, target, bitmap } = copy;
    let target = find(plan, &BlockDirtyBitmap { node: node.clone(), name: target })?;
    let source = source(plan, &node, bitmap)?;
    plan.push(BitmapAction::CopyOf(source).of(target));
    Ok(())
}

fn rename(plan: &mut Plan<'_>, rename: BlockDirtyBitmapRename) -> QmpResult<()> {
    let BlockDirtyBitmapRename { node, name, new_name } = rename;
    let action = BitmapAction::Rename(bitmap_name(&new_name)?);
    act(plan, &BlockDirtyBitmap { node, name }, action)
}

fn move_to(plan: &mut Plan<'_>, moved: BlockDirtyBitmapMove) -> QmpResult<()> {
    let BlockDirtyBitmapMove { node, name, to, on_unproven } = moved;
    let bitmap = find(plan, &BlockDirtyBitmap { node, name })?;
    let scope = plan.find_scope(&to).ok_or_else(|| no_node(&to))?;
    let unproven = match on_unproven {
        Some(OnUnproven::MarkWhole) => Unproven::MarkWhole,
        Some(OnUnproven::Refuse) | None => Unproven::Refuse,
    };
    plan.push_unproven(BitmapAction::MoveTo(scope).of(bitmap), unproven);
    Ok(())
}

/// What a client calls `node`.
pub(super) fn scope_of(graph: &Graph, name: &str) -> Option<BitmapScope> {
    if graph.find_drive(name).is_some() {
        return Some(BitmapScope::Drive(name.into()));
    }
    graph.find_node(name).map(|_| BitmapScope::Node(name.into()))
}

fn query(context: &Context<'_>, query: BlockDirtyBitmapQuery) -> QmpResult<BlockDirtyBitmapRanges> {
    let BlockDirtyBitmapQuery { node, name, offset, limit, frozen } = query;
    let graph = context.host.graph();
    let scope = scope_of(&graph, &node).ok_or_else(|| no_node(&node))?;
    let bitmap = graph.find_bitmap(&scope, &name).ok_or_else(|| no_bitmap(&name))?;
    let limit = limit.unwrap_or(RANGES_DEFAULT);
    if limit == 0 || limit > RANGES_MAX {
        return Err(QmpError::generic(format!("Parameter 'limit' expects 1 to {RANGES_MAX}")));
    }
    let mut reader = bitmap.read();
    if frozen == Some(true) {
        let not_frozen = || QmpError::generic(format!("Bitmap '{name}' has nothing frozen"));
        let is_frozen = reader.state() == crate::bitmap::BitmapState::Frozen;
        reader = reader.still().filter(|_| is_frozen).ok_or_else(not_frozen)?;
    }
    let mut rest = reader.ranges(offset.unwrap_or(0)..u64::MAX);
    let listed = rest.by_ref().take(limit as usize);
    let listed = listed.map(|range| ByteRange {
        offset: range.start,
        length: range.end.saturating_sub(range.start),
    });
    let ranges: Vec<ByteRange> = listed.collect();
    let next = rest.next().map(|range| range.start);
    Ok(BlockDirtyBitmapRanges {
        granularity: reader.granularity().bytes(),
        size: reader.size_bytes(),
        count: reader.dirty_bytes(),
        state: reader.state().to_string(),
        ranges,
        more: next.is_some(),
        next,
    })
}
