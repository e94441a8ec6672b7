//! Drives and their media, and changes of what stands below them.

use super::nodes::find_node;
use crate::config::is_name;
use crate::control::error::{ErrorClass, QmpError, QmpResult};
use crate::control::plan::Plan;
use crate::control::qapi::{clip, qapi_enum, qapi_struct};
use crate::control::registry::Registry;
use crate::graph::{Action, DriveDecl, Graph, GraphDrive, Unproven};

qapi_struct! {
    /// A drive that is to be.
    pub(crate) struct DriveAdd {
        /// Unique among drives and nodes.
        id: String,
        /// The node that it is to show; absent: no medium.
        node_name: Option<String>,
        /// Whether it may change what it shows; false unless said.
        writable: Option<bool>,
    }
}

qapi_struct! {
    pub(crate) struct DriveId {
        id: String,
    }
}

qapi_struct! {
    pub(crate) struct DriveMedium {
        id: String,
        /// The node that it is to show.
        node_name: String,
    }
}

qapi_struct! {
    pub(crate) struct DriveWritable {
        id: String,
        /// Whether it may change what it shows.
        writable: bool,
    }
}

qapi_struct! {
    pub(crate) struct RemoveFilter {
        node_name: String,
    }
}

qapi_enum! {
    /// What becomes of a change of which nothing proves that views stay what they are.
    pub(crate) enum OnUnproven {
        /// It is not made.
        Refuse = "refuse",
        /// It is made, and bitmaps that see it are dirty whole.
        MarkWhole = "mark-whole",
    }
}

qapi_struct! {
    /// All who use one node are to use another.
    pub(crate) struct BlockdevReplace {
        node_name: String,
        /// Its successor.
        by: String,
        on_unproven: Option<OnUnproven>,
    }
}

qapi_struct! {
    pub(crate) struct BlockResize {
        /// A drive, whose node is meant.
        device: Option<String>,
        node_name: Option<String>,
        /// Bytes.
        size: i64,
    }
}

pub(super) fn register(to: &mut Registry) {
    to.action("drive-add", add);
    to.action("drive-del", remove);
    to.action("drive-insert-medium", insert);
    to.action("drive-eject-medium", eject);
    to.action("drive-set-writable", set_writable);
    to.action("blockdev-remove-filter", remove_filter);
    to.action("blockdev-replace", replace);
    to.action("block_resize", resize);
}

/// A drive by its id.
///
/// # Errors
/// DeviceNotFound.
pub(super) fn find_drive<'g>(graph: &'g Graph, id: &str) -> QmpResult<&'g GraphDrive> {
    let found = graph.find_drive(id).map(|at| &graph.drives()[at]);
    found.ok_or_else(|| no_drive(id))
}

fn no_drive(id: &str) -> QmpError {
    QmpError::new(ErrorClass::DeviceNotFound, format!("Device '{}' not found", clip(id)))
}

fn no_node(name: &str) -> QmpError {
    QmpError::generic(format!("Cannot find device='' nor node-name='{}'", clip(name)))
}

/// Refuses ids of drives that are not there, as far as that is known now.
fn check_drive(plan: &Plan<'_>, id: &str) -> QmpResult<()> {
    match plan.has_drive(id) {
        true => Ok(()),
        false => Err(no_drive(id)),
    }
}

fn check_node(plan: &Plan<'_>, name: &str) -> QmpResult<()> {
    if plan.has_node(name) { Ok(()) } else { Err(no_node(name)) }
}

fn add(plan: &mut Plan<'_>, drive: DriveAdd) -> QmpResult<()> {
    let DriveAdd { id, node_name, writable } = drive;
    if !is_name(&id) {
        let desc =
            "Parameter 'id' expects an identifier: a letter, then letters, digits, '-', '.', '_'";
        return Err(QmpError::generic(desc));
    }
    if plan.has_drive(&id) || plan.has_node(&id) {
        let kind = if plan.has_drive(&id) { "drive" } else { "node" };
        return Err(QmpError::generic(format!("there is a {kind} '{id}' already")));
    }
    node_name.iter().try_for_each(|node| check_node(plan, node))?;
    let writable = writable.unwrap_or(false);
    plan.push(Action::AddDrive(DriveDecl { id, root: node_name, writable, only_shows: false }));
    Ok(())
}

fn remove(plan: &mut Plan<'_>, DriveId { id }: DriveId) -> QmpResult<()> {
    check_drive(plan, &id)?;
    plan.push(Action::RemoveDrive { drive: id });
    Ok(())
}

fn insert(plan: &mut Plan<'_>, medium: DriveMedium) -> QmpResult<()> {
    let DriveMedium { id, node_name } = medium;
    check_drive(plan, &id)?;
    check_node(plan, &node_name)?;
    plan.push(Action::InsertMedium { drive: id, node: node_name });
    Ok(())
}

fn eject(plan: &mut Plan<'_>, DriveId { id }: DriveId) -> QmpResult<()> {
    check_drive(plan, &id)?;
    plan.push(Action::EjectMedium { drive: id });
    Ok(())
}

fn set_writable(plan: &mut Plan<'_>, drive: DriveWritable) -> QmpResult<()> {
    let DriveWritable { id, writable } = drive;
    check_drive(plan, &id)?;
    // An export that comes meanwhile could rely on what it was.
    plan.take_turn()?;
    plan.push(Action::SetWritable { drive: id, writable });
    Ok(())
}

fn remove_filter(plan: &mut Plan<'_>, filter: RemoveFilter) -> QmpResult<()> {
    check_node(plan, &filter.node_name)?;
    plan.remove_filter(&filter.node_name)
}

fn replace(plan: &mut Plan<'_>, replace: BlockdevReplace) -> QmpResult<()> {
    let BlockdevReplace { node_name, by, on_unproven } = replace;
    check_node(plan, &node_name)?;
    check_node(plan, &by)?;
    let unproven = match on_unproven {
        Some(OnUnproven::MarkWhole) => Unproven::MarkWhole,
        Some(OnUnproven::Refuse) | None => Unproven::Refuse,
    };
    plan.push_unproven(Action::Replace { node: node_name, by }, unproven);
    Ok(())
}

fn resize(plan: &mut Plan<'_>, resize: BlockResize) -> QmpResult<()> {
    let BlockResize { device, node_name, size } = resize;
    let graph = plan.context.host.graph();
    let node = find_node(&graph, device.as_deref(), node_name.as_deref())?;
    let positive = u64::try_from(size);
    let size_bytes =
        positive.map_err(|_| QmpError::generic("Parameter 'size' expects a >0 size"))?;
    // What a filter shows has the size of what it is a filter of.
    let node = graph.unfiltered(node).name().to_owned();
    plan.push(Action::Resize { node, size_bytes });
    Ok(())
}
