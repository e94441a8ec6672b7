//! What scenes are made of: nodes, drives and bitmaps of the real core, by the numbers of the model.

use std::sync::Arc;

use super::super::{BitmapDecl, BitmapScope, ChildDecl, DriveDecl, NodeDecl};
use super::SECTOR;
use super::disk::{Control, Stop, TestDisk};
use super::world::{DriveId, NodeId, View};
use crate::bitmap::{BitmapName, Granularity};
use crate::error::Result;
use crate::filter::CopyOnReadNode;
use crate::node::MemoryNode;

/// Bitmaps of nodes have the node's number; those of drives follow.
pub(super) const DRIVE_BITMAPS: u32 = 1000;

pub(super) fn node_name(node: NodeId) -> String {
    node.to_string()
}

/// A drive that shows any node to the case alone.
pub(super) fn probe_name(node: NodeId) -> String {
    format!("probe-{node}")
}

pub(super) fn probe(node: NodeId) -> DriveDecl {
    let (id, root) = (probe_name(node), Some(node_name(node)));
    DriveDecl { id, root, writable: false, only_shows: true }
}

pub(super) fn job_name(job: usize) -> String {
    format!("job-{job}")
}

/// Names of a job's edges, in their order.
pub(super) const JOB_EDGES: [&str; 3] = ["from", "beside", "to"];

pub(super) fn bitmap_id(scope: View) -> u32 {
    match scope {
        View::Node(NodeId(node)) => node,
        View::Drive(DriveId(drive)) => DRIVE_BITMAPS + drive,
    }
}

/// No two bitmaps have one name: they can come together on a node.
pub(super) fn bitmap_name(id: u32) -> String {
    format!("b{id}")
}

pub(super) fn bitmap(scope: View, granularity: usize) -> BitmapDecl {
    let name = BitmapName::new(&bitmap_name(bitmap_id(scope))).expect("a name");
    let granularity = Granularity::from_bytes(granularity as u64 * SECTOR);
    let granularity = granularity.expect("a power of two");
    let scope = match scope {
        View::Node(node) => BitmapScope::Node(node_name(node).into()),
        View::Drive(drive) => BitmapScope::Drive(drive.to_string().into()),
    };
    BitmapDecl { scope, name, granularity, enabled: true }
}

/// A disk, alone or with a backing.
pub(super) fn disk(
    id: NodeId,
    (len, cluster, is_overlay): (usize, usize, bool),
    backing: Option<NodeId>,
    control: &Arc<Control>,
) -> Result<NodeDecl> {
    let (size_bytes, block_bytes) = (len as u64 * SECTOR, cluster as u64 * SECTOR);
    let memory = match is_overlay {
        true => MemoryNode::overlay(size_bytes, block_bytes as u32)?,
        false => MemoryNode::new(size_bytes, block_bytes as u32)?,
    };
    let control = Arc::clone(control);
    let backing = backing.map(|backing| ChildDecl::backing(node_name(backing)));
    Ok(NodeDecl {
        name: node_name(id),
        driver: Arc::new(TestDisk { id, memory, block_bytes, control }),
        children: backing.into_iter().collect(),
    })
}

/// A filter that copies on read, or one that can hold what passes.
pub(super) fn filter(
    id: NodeId,
    child: NodeId,
    copies_on_read: bool,
    control: &Arc<Control>,
) -> NodeDecl {
    let (name, child) = (node_name(id), node_name(child));
    if copies_on_read {
        let children = vec![CopyOnReadNode::child(child)];
        return NodeDecl { name, driver: Arc::new(CopyOnReadNode::default()), children };
    }
    let stop = Stop { control: Arc::clone(control) };
    NodeDecl { name, driver: Arc::new(stop), children: vec![ChildDecl::filtered(child)] }
}
