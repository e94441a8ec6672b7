//! `change-backing-file`: what jobs do in the end, by itself.

use super::super::nodes::find_node;
use super::{is_in_chain, named};
use crate::control::error::{QmpError, QmpResult};
use crate::control::plan::Plan;
use crate::control::qapi::{clip, qapi_struct};
use crate::control::registry::Registry;
use crate::graph::{Action, Role};

qapi_struct! {
    /// An image is to name its backing in another way. What it shows is no matter of that.
    pub(crate) struct ChangeBackingFile {
        /// A drive, or a node, in whose chain the image is.
        device: String,
        image_node_name: String,
        backing_file: String,
    }
}

pub(super) fn register(to: &mut Registry) {
    to.action("change-backing-file", change);
}

fn change(plan: &mut Plan<'_>, change: ChangeBackingFile) -> QmpResult<()> {
    let ChangeBackingFile { device, image_node_name, backing_file } = change;
    let graph = plan.context.host.graph();
    let top = find_node(&graph, Some(&device), Some(&device))?;
    let image = find_node(&graph, None, Some(&image_node_name))?;
    let backing = image.edges().iter().find(|edge| edge.role() == Role::Backing);
    let none = "not allowing backing file change on an image without a backing file";
    let backing = backing.ok_or_else(|| QmpError::generic(none))?;
    if !is_in_chain(&graph, top, image) {
        let desc = format!("'{}' and image file are not in the same chain", clip(&device));
        return Err(QmpError::generic(desc));
    }
    let name = Some(named(&graph, &graph.nodes()[backing.child()], backing_file));
    plan.push(Action::NameBacking { node: image_node_name, name });
    Ok(())
}
