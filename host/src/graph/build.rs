//! Declarations, of which the first snapshot is made and changes bring more.

use std::collections::HashSet;
use std::sync::Arc;

use super::permission::{PermissionSet, Role};
use super::snapshot::{BitmapScope, Graph, GraphNode};
use super::transaction::Draft;
use crate::bitmap::{BitmapName, Granularity, Prepared};
use crate::error::Result;
use crate::node::{Node, NodeInfo, OpenMode};

/// A child of a declared node.
#[derive(Clone, Debug)]
pub struct ChildDecl {
    /// The parent's name for it (`file`).
    pub name: String,
    /// The child node.
    pub node: String,
    /// What the edge means.
    pub role: Role,
    /// What the parent may do of its own accord, beyond what its own users pass through it.
    pub grants: PermissionSet,
    /// The parent's edge for whose view every write of its own accord is proven; without one it may
    /// write what it likes. Such writes conflict only with users of views that they alter.
    pub proven_for: Option<String>,
}

impl ChildDecl {
    /// A filter's child, called `file`.
    pub fn filtered(node: impl Into<String>) -> Self {
        let (name, grants) = ("file".into(), PermissionSet::NONE);
        Self { name, node: node.into(), role: Role::Filtered, grants, proven_for: None }
    }

    /// What an overlay stands on, called `backing`.
    pub fn backing(node: impl Into<String>) -> Self {
        Self { name: "backing".into(), role: Role::Backing, ..Self::filtered(node) }
    }

    /// A container, called `file`.
    pub fn storage(node: impl Into<String>) -> Self {
        Self { role: Role::Storage, ..Self::filtered(node) }
    }
}

/// A declared node.
#[derive(Clone)]
pub struct NodeDecl {
    /// Unique among nodes and drives.
    pub name: String,
    /// Its driver.
    pub driver: Arc<dyn Node>,
    /// Its edges, in the driver's order.
    pub children: Vec<ChildDecl>,
}

/// A declared drive.
#[derive(Clone, Debug)]
pub struct DriveDecl {
    /// Unique among nodes and drives.
    pub id: String,
    /// Its root node; `None` for no medium.
    pub root: Option<String>,
    /// Whether it may change its view.
    pub writable: bool,
    /// Read-only, it shows whatever is there: others may change the node beside it.
    pub only_shows: bool,
}

/// A declared dirty bitmap.
#[derive(Clone, Debug)]
pub struct BitmapDecl {
    /// What it records.
    pub scope: BitmapScope,
    /// Unique in its scope.
    pub name: BitmapName,
    /// Its granularity.
    pub granularity: Granularity,
    /// Whether it records from the start.
    pub enabled: bool,
}

/// Everything that makes a graph.
///
/// ```
/// use std::sync::Arc;
///
/// use blockloom::filter::PassNode;
/// use blockloom::graph::{ChildDecl, DriveDecl, GraphDecl, NodeDecl};
/// use blockloom::node::MemoryNode;
///
/// # fn main() -> blockloom::Result<()> {
/// let memory = Arc::new(MemoryNode::new(1 << 20, 512)?);
/// let decl = GraphDecl {
///     nodes: vec![
///         NodeDecl {
///             name: "pass".into(),
///             driver: Arc::new(PassNode),
///             children: vec![ChildDecl::filtered("disk")],
///         },
///         NodeDecl { name: "disk".into(), driver: memory, children: vec![] },
///     ],
///     drives: vec![DriveDecl {
///         id: "vda".into(),
///         root: Some("pass".into()),
///         writable: true,
///         only_shows: false,
///     }],
///     bitmaps: vec![],
/// };
/// let graph = decl.build()?;
/// let names: Vec<_> = graph.nodes().iter().map(|node| node.name()).collect();
/// assert_eq!(names, ["disk", "pass"]);
/// assert_eq!(graph.nodes()[0].class(), graph.nodes()[1].class());
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct GraphDecl {
    /// In any order.
    pub nodes: Vec<NodeDecl>,
    /// In the order of their index.
    pub drives: Vec<DriveDecl>,
    /// In any order.
    pub bitmaps: Vec<BitmapDecl>,
}

impl GraphDecl {
    /// Checks everything and makes the first snapshot.
    ///
    /// # Errors
    /// Names used twice or unknown, cycles, nodes whose children do not fit, permission conflicts, copies
    /// that could wait for each other for ever.
    pub fn build(self) -> Result<Graph> {
        self.build_with(&[])
    }

    /// The same, with nodes that refuse changes though their drivers hold nothing open.
    ///
    /// # Errors
    /// As [`Self::build`]; `ENOENT`.
    pub(crate) fn build_with(self, read_only: &[String]) -> Result<Graph> {
        let mut draft = Draft::default();
        self.nodes.into_iter().try_for_each(|node| draft.add_node(node))?;
        self.drives.into_iter().try_for_each(|drive| draft.add_drive(drive))?;
        self.bitmaps.into_iter().try_for_each(|bitmap| draft.add_bitmap(bitmap))?;
        read_only.iter().try_for_each(|node| draft.set_mode(node, OpenMode::READ_ONLY))?;
        let mut prepared = Prepared::default();
        let graph = draft.assemble(None, &mut prepared)?;
        prepared.commit();
        Ok(graph)
    }
}

impl Graph {
    /// Tells the drivers of all nodes, or of those that `since` has not, that the graph stands.
    ///
    /// # Errors
    /// The first driver's.
    pub(crate) fn start_drivers(&self, since: Option<&Self>) -> Result<()> {
        let mut known = HashSet::new();
        known.extend(since.into_iter().flat_map(|graph| &graph.nodes).map(|node| node.generation));
        for node in self.nodes.iter().filter(|node| !known.contains(&node.generation)) {
            let children = self.infos_below(node);
            let started = node.driver.start(&node.name, &node.info, &children);
            started.map_err(|error| error.at_node(&node.name))?;
        }
        Ok(())
    }

    fn infos_below(&self, node: &GraphNode) -> Vec<NodeInfo> {
        node.edges.iter().map(|edge| self.nodes[edge.child].info).collect()
    }

    /// Tells drivers of nodes that have other sizes than in `before`, or whose children have, or that are read-only
    /// now or no more, or that have got or lost a backing.
    pub(crate) fn tell_drivers(&self, before: &Self) {
        let has_backing =
            |node: &GraphNode| node.edges.iter().any(|edge| edge.role == Role::Backing);
        for node in &self.nodes {
            let known = before.nodes.iter().find(|known| known.generation == node.generation);
            let Some(known) = known else { continue };
            if has_backing(node) != has_backing(known) {
                node.driver.backing_changed(has_backing(node));
            }
            let sizes = |graph: &Self, node: &GraphNode| -> Vec<u64> {
                let below = graph.infos_below(node);
                below.iter().chain([&node.info]).map(|info| info.size_bytes).collect()
            };
            let is_other = node.info.read_only != known.info.read_only;
            if is_other || sizes(self, node) != sizes(before, known) {
                node.driver.resized(&node.info, &self.infos_below(node));
            }
        }
    }
}
