//! What scenes are made of: nodes, drives and bitmaps of the real core, by the numbers of the model.

use std::sync::Arc;

use blockloom_qcow2::create::{Backing, CreateOptions, create};
use blockloom_qcow2::format::ClusterSize;
use blockloom_qcow2::testing::{MemoryStorage, block_on};

use super::super::{BitmapDecl, BitmapScope, ChildDecl, DriveDecl, NodeDecl};
use super::SECTOR;
use super::container::Container;
use super::disk::{Control, Stop, TestDisk};
use super::world::{DriveId, NodeId, View};
use crate::bitmap::{BitmapName, Granularity};
use crate::error::Result;
use crate::filter::CopyOnReadNode;
use crate::node::{MemoryNode, Node, Qcow2Node, Qcow2Options};

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

/// How a disk is made: sizes in sectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Make {
    pub(super) len: usize,
    pub(super) cluster: usize,
    pub(super) is_overlay: bool,
    /// It is an image, if it has a backing.
    pub(super) is_image: bool,
}

/// A disk, alone or with a backing; it comes last, after what it is kept in.
pub(super) fn disk(
    id: NodeId,
    make: Make,
    backing: Option<NodeId>,
    control: &Arc<Control>,
) -> Result<Vec<NodeDecl>> {
    let (size_bytes, block_bytes) = (make.len as u64 * SECTOR, make.cluster as u64 * SECTOR);
    let control = Arc::clone(control);
    let mut children: Vec<ChildDecl> =
        backing.map(|backing| ChildDecl::backing(node_name(backing))).into_iter().collect();
    let mut nodes = Vec::new();
    let is_image = make.is_image && backing.is_some();
    let inner: Box<dyn Node> = match make.is_overlay {
        _ if is_image => {
            let name = format!("{}.img", node_name(id));
            children.insert(0, ChildDecl::storage(&name));
            let (container, image) = image(size_bytes, block_bytes)?;
            nodes.push(NodeDecl { name, driver: Arc::new(container), children: vec![] });
            Box::new(image)
        }
        true => Box::new(MemoryNode::overlay(size_bytes, block_bytes as u32)?),
        false => Box::new(MemoryNode::new(size_bytes, block_bytes as u32)?),
    };
    nodes.push(NodeDecl {
        name: node_name(id),
        driver: Arc::new(TestDisk { id, inner, is_image, block_bytes, control }),
        children,
    });
    Ok(nodes)
}

/// An empty image over a backing.
fn image(size_bytes: u64, cluster_bytes: u64) -> Result<(Container, Qcow2Node)> {
    let storage = MemoryStorage::default();
    let name = "backing".into();
    let options = CreateOptions {
        cluster_size: ClusterSize::from_bytes(cluster_bytes).expect("512 or more"),
        backing: Some(Backing { name, format: None }),
        ..CreateOptions::new(size_bytes)
    };
    block_on(create(&storage, &options)).expect("options that go together");
    let options = Qcow2Options {
        write: true,
        backing: Some(1),
        data_file: None,
        l2_cache_bytes: 0,
        lazy_refcounts: None,
    };
    let image = block_on(Qcow2Node::open(&storage, &options))?;
    Ok((Container(storage), image))
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
