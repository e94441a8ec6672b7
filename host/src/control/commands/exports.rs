//! Exports.

use super::bitmaps::{BlockDirtyBitmap, BlockDirtyBitmapOrStr};
use super::blockdev::root_of;
use crate::config::{ListenAddr, ListenAddrError, is_name};
use crate::control::context::Context;
use crate::control::error::{QmpError, QmpResult};
use crate::control::plan::Plan;
use crate::control::qapi::{clip, qapi_enum, qapi_struct, qapi_union};
use crate::control::registry::{Empty, Registry};
use crate::export::nbd::{ExportBitmap, RemovalMode};
use crate::graph::EXPORT_DRIVE;
use crate::host::{Exported, NewExport, ShownBitmap};
use crate::{block_on, host};

/// The longest string that NBD carries.
const NBD_STRING_BYTES_MAX: usize = 4096;

qapi_struct! {
    pub(crate) struct BlockExportBase {
        pub(super) id: String,
        /// What it is served by is nobody's choice here.
        pub(super) fixed_iothread: Option<bool>,
        /// There are none.
        pub(super) iothread: Option<String>,
        /// A drive, or a node; a drive comes first.
        pub(super) node_name: String,
        pub(super) writable: Option<bool>,
        /// Each write is durable when it is answered.
        pub(super) writethrough: Option<bool>,
        pub(super) allow_inactive: Option<bool>,
    }
}

qapi_struct! {
    pub(crate) struct BlockExportOptionsNbd {
        /// What clients call it; its node's name unless said, as with QEMU, or the drive's.
        pub(super) name: Option<String>,
        pub(super) description: Option<String>,
        /// Shown as `qemu:dirty-bitmap:NAME`.
        pub(super) bitmaps: Option<Vec<BlockDirtyBitmapOrStr>>,
        /// Clients may ask in which layer of images bytes lie, as `qemu:allocation-depth`.
        pub(super) allocation_depth: Option<bool>,
        /// Of `bitmaps` only what a checkpoint has frozen is shown.
        pub(super) frozen: Option<bool>,
        /// `unix:PATH` or `tcp:HOST:PORT`; where the NBD server listens unless said.
        pub(super) listen: Option<String>,
    }
}

qapi_union! {
    /// An export that is to be.
    pub(crate) union BlockExportOptions by "type": BlockExportType {
        base: BlockExportBase,
        /// By kind.
        branches: BlockExportBranch {
            Nbd(BlockExportOptionsNbd) = "nbd",
        }
    }
}

qapi_enum! {
    /// How an export ends that may have clients.
    pub(crate) enum BlockExportRemoveMode {
        /// Not while it has any.
        Safe = "safe",
        /// They are disconnected.
        Hard = "hard",
    }
}

qapi_struct! {
    pub(crate) struct BlockExportDel {
        pub(super) id: String,
        /// `safe` unless said.
        pub(super) mode: Option<BlockExportRemoveMode>,
    }
}

qapi_struct! {
    /// An export.
    pub(crate) struct BlockExportInfo {
        id: String,
        kind as "type": BlockExportType,
        /// What it shows now; empty without a medium.
        node_name: String,
        /// It takes no more clients.
        shutting_down: bool,
        /// The drive that it serves, if it is not of a node.
        drive: Option<String>,
        /// What clients call it.
        name: String,
        /// Where it is served.
        listen: String,
        writable: bool,
        /// Those that it shows.
        bitmaps: Vec<String>,
        /// How many have opened it.
        clients: u64,
    }
}

pub(super) fn register(to: &mut Registry) {
    to.action("block-export-add", add);
    to.command("block-export-del", remove);
    to.action_only("block-export-del", remove_in_plan);
    to.command("query-block-exports", query);
}

pub(super) fn refuse<T>(desc: impl Into<String>) -> QmpResult<T> {
    Err(QmpError::generic(desc))
}

pub(super) fn add(plan: &mut Plan<'_>, options: BlockExportOptions) -> QmpResult<()> {
    let BlockExportOptions { base, branch: BlockExportBranch::Nbd(nbd) } = options;
    if !is_name(&base.id) {
        return refuse("Invalid block export id");
    }
    if plan.context.host.exports().iter().any(|export| export.id == base.id) {
        return refuse(format!("Block export id '{}' is already in use", base.id));
    }
    let of = match (plan.has_drive(&base.node_name), plan.has_node(&base.node_name)) {
        (true, _) => Exported::Drive(base.node_name.clone()),
        (false, true) => Exported::Node(base.node_name.clone()),
        (false, false) => {
            let name = clip(&base.node_name);
            return refuse(format!("Cannot find device='' nor node-name='{name}'"));
        }
    };
    if let Some(id) = base.iothread {
        return refuse(format!("iothread \"{}\" not found", clip(&id)));
    }
    let words = ExportWords {
        name: nbd.name.unwrap_or_else(|| base.node_name.clone()),
        description: nbd.description.unwrap_or_default(),
        listen: nbd.listen,
        writable: base.writable.unwrap_or(false),
        writethrough: base.writethrough.unwrap_or(false),
        allocation_depth: nbd.allocation_depth.unwrap_or(false),
        bitmaps: nbd.bitmaps.unwrap_or_default(),
        is_frozen: nbd.frozen == Some(true),
    };
    let export = new_export(plan, &base.id, of, words)?;
    plan.add_export(export)?;
    Ok(())
}

/// An export as a client describes it.
pub(super) struct ExportWords {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) listen: Option<String>,
    pub(super) writable: bool,
    pub(super) writethrough: bool,
    pub(super) allocation_depth: bool,
    pub(super) bitmaps: Vec<BlockDirtyBitmapOrStr>,
    pub(super) is_frozen: bool,
}

/// What QEMU says of an export that is to be, in its order.
pub(super) fn new_export(
    plan: &Plan<'_>,
    id: &str,
    of: Exported,
    words: ExportWords,
) -> QmpResult<NewExport> {
    let host = plan.context.host;
    let ExportWords { name, description, listen, bitmaps, is_frozen, .. } = words;
    let ExportWords { writable, writethrough, allocation_depth, .. } = words;
    if !is_name(id) {
        return refuse("Invalid block export id");
    }
    if host.exports().iter().any(|export| export.id == id) {
        return refuse(format!("Block export id '{id}' is already in use"));
    }
    let listen = match listen {
        Some(text) => {
            let wrong =
                |error: ListenAddrError| QmpError::generic(format!("Parameter 'listen' {error}"));
            let address: ListenAddr = text.parse().map_err(wrong)?;
            Some(host::resolve(&address.in_dir(&host.base_dir()))?)
        }
        None => None,
    };
    let Some(address) = listen.clone().or_else(|| host.nbd_server_address()) else {
        return refuse("NBD server not running");
    };
    if name.len() > NBD_STRING_BYTES_MAX {
        return refuse(format!("export name '{}' too long", clip(&name)));
    }
    if description.len() > NBD_STRING_BYTES_MAX {
        return refuse(format!("description '{}' too long", clip(&description)));
    }
    if host.exports().iter().any(|it| it.address == address && it.name == name) {
        return refuse(format!("NBD server already has export named '{name}'"));
    }
    let scope = match &of {
        Exported::Drive(name) | Exported::Node(name) => name,
    };
    let shown = |bitmap| shown(plan, scope, bitmap, is_frozen);
    let bitmaps = bitmaps.into_iter().map(shown).collect::<QmpResult<Vec<_>>>()?;
    Ok(NewExport {
        id: id.to_owned(),
        of,
        listen,
        name,
        description,
        writable,
        writethrough,
        allocation_depth,
        bitmaps,
    })
}

fn shown(
    plan: &Plan<'_>,
    of: &str,
    bitmap: BlockDirtyBitmapOrStr,
    is_frozen: bool,
) -> QmpResult<ShownBitmap> {
    match bitmap {
        BlockDirtyBitmapOrStr::Local(name) if !is_frozen => {
            let is_missing = |graph| host::bitmap_shown_by(graph, of, &name).is_none();
            if plan.untouched().is_some_and(is_missing) {
                return refuse(format!("Bitmap '{}' is not found", clip(&name)));
            }
            Ok(ShownBitmap::Named(name))
        }
        BlockDirtyBitmapOrStr::Local(name) => exactly(plan, of, name, is_frozen),
        BlockDirtyBitmapOrStr::External(BlockDirtyBitmap { node, name }) => {
            exactly(plan, &node, name, is_frozen)
        }
    }
}

fn exactly(plan: &Plan<'_>, node: &str, name: String, is_frozen: bool) -> QmpResult<ShownBitmap> {
    let Some(scope) = plan.find_scope(node) else {
        return refuse(format!("Node '{}' not found", clip(node)));
    };
    if plan.untouched().is_some_and(|graph| graph.find_bitmap(&scope, &name).is_none()) {
        return refuse(format!("Dirty bitmap '{}' not found", clip(&name)));
    }
    Ok(ShownBitmap::Exactly(ExportBitmap { name, scope, is_frozen }))
}

fn mode_of(
    context: &Context<'_>,
    id: &str,
    mode: Option<BlockExportRemoveMode>,
) -> QmpResult<RemovalMode> {
    let exports = context.host.exports();
    let Some(export) = exports.iter().find(|export| export.id == id) else {
        return refuse(format!("Export '{}' is not found", clip(id)));
    };
    match mode {
        Some(BlockExportRemoveMode::Hard) => Ok(RemovalMode::Hard),
        Some(BlockExportRemoveMode::Safe) | None if export.clients > 0 => {
            refuse(format!("export '{id}' still in use"))
        }
        Some(BlockExportRemoveMode::Safe) | None => Ok(RemovalMode::Safe),
    }
}

pub(super) fn remove(context: &Context<'_>, remove: BlockExportDel) -> QmpResult<Empty> {
    let mode = mode_of(context, &remove.id, remove.mode)?;
    block_on(context.host.remove_export(&remove.id, mode))?;
    Ok(Empty {})
}

/// In a transaction it ends at its instant: what clients ask for after that fails.
fn remove_in_plan(plan: &mut Plan<'_>, remove: BlockExportDel) -> QmpResult<()> {
    let mode = mode_of(plan.context, &remove.id, remove.mode)?;
    plan.end_export(&remove.id, mode)
}

/// The newest first, as QEMU lists them.
fn query(context: &Context<'_>, _: Empty) -> QmpResult<Vec<BlockExportInfo>> {
    let graph = context.host.graph();
    let exports = context.host.exports().into_iter().rev();
    let info = exports.map(|export| {
        let is_of_node = export.drive.starts_with(EXPORT_DRIVE);
        BlockExportInfo {
            id: export.id,
            kind: BlockExportType::Nbd,
            node_name: root_of(&graph, &export.drive).ok().flatten().unwrap_or_default(),
            shutting_down: export.shutting_down,
            drive: (!is_of_node).then_some(export.drive),
            name: export.name,
            listen: export.address.to_string(),
            writable: export.writable,
            bitmaps: export.bitmaps,
            clients: export.clients as u64,
        }
    });
    Ok(info.collect())
}
