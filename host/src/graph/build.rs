//! From declarations to a snapshot: names, order, sizes, classes, permissions, entries.

use std::collections::HashMap;
use std::sync::Arc;

use super::acting;
use super::affected::Marks;
use super::class::{Class, Cut, Edges, Reached, Views};
use super::counters::Counters;
use super::guard::Guards;
use super::origin::Origin;
use super::permission::{PermissionSet, Role, Users};
use super::snapshot::{BitmapScope, Edge, Graph, GraphDrive, GraphNode, ScopedBitmap};
use crate::bitmap::{Bitmap, BitmapName, BitmapState, Granularity};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{GRAPH_DEPTH_MAX, WORKERS_MAX};
use crate::node::{Node, NodeInfo};

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

    /// A container, called `file`.
    pub fn storage(node: impl Into<String>) -> Self {
        Self { role: Role::Storage, ..Self::filtered(node) }
    }
}

/// A declared node.
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

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

impl GraphDecl {
    /// Checks everything and makes the first snapshot.
    ///
    /// # Errors
    /// Names used twice or unknown, cycles, nodes whose children do not fit, permission conflicts.
    pub fn build(self) -> Result<Graph> {
        check_names(&self)?;
        let order = children_first(&self.nodes)?;
        let index: HashMap<String, usize> = order
            .iter()
            .enumerate()
            .map(|(at, decl)| (self.nodes[*decl].name.clone(), at))
            .collect();
        let mut declared: Vec<Option<NodeDecl>> = self.nodes.into_iter().map(Some).collect();
        let mut nodes: Vec<GraphNode> = Vec::with_capacity(order.len());
        for decl in order {
            let Some(decl) = declared[decl].take() else { continue };
            let node = node(decl, &index, &nodes)?;
            nodes.push(node);
        }
        let drives = drives(self.drives, &index)?;
        let views = Arc::new(assign_classes(&mut nodes)?);
        let origins = drives.iter().map(|drive| Arc::new(Origin::new(Arc::clone(&drive.id))));
        let origins = origins.collect();
        let mut graph = Graph {
            generation: 1,
            nodes,
            drives,
            bitmaps: Vec::new(),
            views,
            origins,
            sources: Vec::new(),
            next_source: 0,
            guards: Arc::new(Guards::new(WORKERS_MAX)),
        };
        resolve_permissions(&mut graph);
        check_permissions(&graph)?;
        check_proven(&graph)?;
        for decl in self.bitmaps {
            let bitmap = new_bitmap(&graph, &decl)?;
            graph.bitmaps.push(ScopedBitmap { scope: decl.scope, bitmap });
        }
        set_entries(&mut graph);
        acting::resolve(&mut graph, None);
        Ok(graph)
    }
}

fn check_names(decl: &GraphDecl) -> Result<()> {
    let mut seen: HashMap<&str, &str> = HashMap::new();
    let nodes = decl.nodes.iter().map(|node| ("node", node.name.as_str()));
    let drives = decl.drives.iter().map(|drive| ("drive", drive.id.as_str()));
    for (kind, name) in nodes.chain(drives) {
        if let Some(other) = seen.insert(name, kind) {
            let message = format!("`{name}` names a {other} and a {kind}: give one another name");
            return Err(Error::new(ErrorKind::Exists, message));
        }
    }
    Ok(())
}

/// Indices of the declarations, children before parents.
fn children_first(nodes: &[NodeDecl]) -> Result<Vec<usize>> {
    let by_name: HashMap<&str, usize> =
        nodes.iter().enumerate().map(|(at, node)| (node.name.as_str(), at)).collect();
    let mut order = Vec::with_capacity(nodes.len());
    let mut state = vec![Visit::New; nodes.len()];
    for start in 0..nodes.len() {
        visit(nodes, &by_name, start, &mut state, &mut Vec::new(), &mut order)?;
    }
    Ok(order)
}

#[derive(Clone, Copy, PartialEq)]
enum Visit {
    New,
    Open,
    Done,
}

fn visit<'a>(
    nodes: &'a [NodeDecl],
    by_name: &HashMap<&str, usize>,
    at: usize,
    state: &mut [Visit],
    path: &mut Vec<&'a str>,
    order: &mut Vec<usize>,
) -> Result<()> {
    path.push(&nodes[at].name);
    if state[at] == Visit::Open {
        return Err(invalid(format!("the nodes form a cycle: {}", path.join(" → "))));
    }
    if path.len() > GRAPH_DEPTH_MAX {
        return Err(invalid(format!("the graph is deeper than {GRAPH_DEPTH_MAX} nodes")));
    }
    if state[at] == Visit::New {
        state[at] = Visit::Open;
        for child in &nodes[at].children {
            let Some(next) = by_name.get(child.node.as_str()) else {
                let message =
                    format!("its child `{}` is the unknown node `{}`", child.name, child.node);
                return Err(Error::new(ErrorKind::NotFound, message).at_node(&nodes[at].name));
            };
            visit(nodes, by_name, *next, state, path, order)?;
        }
        state[at] = Visit::Done;
        order.push(at);
    }
    path.pop();
    Ok(())
}

fn new_edge(name: &str, child: usize, role: Role, uses: PermissionSet) -> Edge {
    let (shares, counters) = (PermissionSet::NONE, Arc::new(Counters::new()));
    Edge {
        name: name.into(),
        child,
        role,
        uses,
        shares,
        counters,
        entry: None,
        grants: PermissionSet::NONE,
        proven_for: None,
        crossing: None,
        own: None,
    }
}

/// The edge called `view`, for which writes through `child` are to be proven.
fn view_edge(decl: &NodeDecl, child: &ChildDecl, view: &str) -> Result<usize> {
    let known = decl.children.iter().position(|other| other.name == view);
    known.ok_or_else(|| {
        let message = format!(
            "its edge `{}` is to be proven for its edge `{view}`, which it does not have",
            child.name
        );
        Error::new(ErrorKind::NotFound, message).at_node(&decl.name)
    })
}

fn node(decl: NodeDecl, index: &HashMap<String, usize>, below: &[GraphNode]) -> Result<GraphNode> {
    let edge = |child: &ChildDecl| {
        let at = index.get(&child.node).copied().unwrap_or(usize::MAX);
        let proven_for = child.proven_for.as_ref();
        let proven_for = proven_for.map(|view| view_edge(&decl, child, view)).transpose()?;
        let plain = new_edge(&child.name, at, child.role, PermissionSet::NONE);
        Ok(Edge { grants: child.grants, proven_for, ..plain })
    };
    let edges: Box<[Edge]> = decl.children.iter().map(edge).collect::<Result<_>>()?;
    let infos: Vec<NodeInfo> = edges.iter().map(|edge| below[edge.child].info).collect();
    let info = decl.driver.info(&infos).map_err(|error| error.at_node(&decl.name))?;
    let alignment = info.limits.request_alignment;
    let sound = alignment.is_power_of_two()
        && alignment <= 4096
        && info.limits.memory_alignment.is_power_of_two()
        && info.limits.memory_alignment <= 4096
        && info.limits.transfer_max_bytes >= alignment
        && info.size_bytes % u64::from(alignment) == 0
        && i64::try_from(info.size_bytes).is_ok();
    if !sound {
        let message = format!(
            "its size ({} bytes) is no multiple of its block size ({alignment}), or its limits \
             contradict themselves",
            info.size_bytes
        );
        return Err(invalid(message).at_node(&decl.name));
    }
    let serializer = (alignment > 1).then(Arc::default);
    let name = decl.name.into();
    Ok(GraphNode {
        name,
        driver: decl.driver,
        info,
        edges,
        class: Class::default(),
        serializer,
        origin: None,
    })
}

fn drives(decls: Vec<DriveDecl>, index: &HashMap<String, usize>) -> Result<Vec<GraphDrive>> {
    let mut drives = Vec::with_capacity(decls.len());
    for decl in decls {
        let root = match decl.root {
            None => None,
            Some(root) => {
                let child = index.get(&root).copied().ok_or_else(|| {
                    let message = format!("drive `{}` has the unknown root `{root}`", decl.id);
                    Error::new(ErrorKind::NotFound, message)
                })?;
                let Users { uses, shares } = Role::root(decl.writable, decl.only_shows);
                Some(Edge { shares, ..new_edge("root", child, Role::Root, uses) })
            }
        };
        drives.push(GraphDrive { id: decl.id.into(), writable: decl.writable, root });
    }
    Ok(drives)
}

/// Joins nodes to classes.
fn assign_classes(nodes: &mut [GraphNode]) -> Result<Views> {
    let edges = |node: &GraphNode| -> Box<Edges> {
        node.edges.iter().map(|edge| (edge.role, edge.child)).collect()
    };
    let edges: Vec<_> = nodes.iter().map(edges).collect();
    let views = Views::of(&edges).map_err(|(at, error)| error.at_node(&nodes[at].name))?;
    for (at, node) in nodes.iter_mut().enumerate() {
        node.class = views.class(at);
    }
    Ok(views)
}

/// Passes what drives use and share down the edges.
fn resolve_permissions(graph: &mut Graph) {
    let mut users = vec![Users::NONE; graph.nodes.len()];
    for root in graph.drives.iter().filter_map(|drive| drive.root.as_ref()) {
        users[root.child] = users[root.child].with(root.uses, root.shares);
    }
    for at in (0..graph.nodes.len()).rev() {
        for edge in &mut graph.nodes[at].edges {
            let passed = edge.role.pass(users[at]);
            (edge.uses, edge.shares) = (edge.grants.union(passed.uses), passed.shares);
            users[edge.child] = users[edge.child].with(edge.uses, edge.shares);
        }
    }
}

fn users(graph: &Graph) -> Vec<Vec<(String, &Edge)>> {
    let mut users: Vec<Vec<(String, &Edge)>> = graph.nodes.iter().map(|_| Vec::new()).collect();
    for drive in &graph.drives {
        if let Some(root) = &drive.root {
            users[root.child].push((format!("drive `{}`", drive.id), root));
        }
    }
    for node in &graph.nodes {
        for edge in &node.edges {
            users[edge.child].push((format!("node `{}`", node.name), edge));
        }
    }
    users
}

fn check_permissions(graph: &Graph) -> Result<()> {
    for (node, users) in graph.nodes.iter().zip(users(graph)) {
        for (at, (name, edge)) in users.iter().enumerate() {
            if !edge.uses.intersection(PermissionSet::CHANGES).is_empty() && node.info.read_only {
                let message =
                    format!("it is read-only, and {name} (edge `{}`) changes it", edge.name);
                return Err(Error::new(ErrorKind::ReadOnly, message).at_node(&node.name));
            }
            let others = users.iter().enumerate().filter(|(other, _)| *other != at);
            for (_, (other_name, other)) in others {
                let missing = edge.uses_of_all().without(other.shares);
                if !missing.is_empty() {
                    let message = format!(
                        "{name} (edge `{}`) uses {missing}, which {other_name} (edge `{}`) does not \
                         share: give one of them a node of its own, or make it read-only",
                        edge.name, other.name
                    );
                    return Err(Error::new(ErrorKind::InUse, message).at_node(&node.name));
                }
            }
        }
    }
    Ok(())
}

/// Writes that are proven for a view conflict with the drives of the views that they alter.
fn check_proven(graph: &Graph) -> Result<()> {
    for node in &graph.nodes {
        for edge in node.edges.iter().filter(|edge| edge.grants.contains(PermissionSet::WRITE)) {
            let Some(view) = edge.proven_for.map(|from| &node.edges[from]) else { continue };
            let class = Some(graph.nodes[view.child].class);
            let target = graph.nodes[edge.child].class;
            let Reached { ranged, whole } = graph.views.reached(target, Cut { class, edge: None });
            for drive in &graph.drives {
                let Some(root) = &drive.root else { continue };
                let shown = graph.nodes[root.child].class;
                let is_altered = ranged.contains(&shown) || whole.contains(&shown);
                if is_altered && !root.shares.contains(PermissionSet::WRITE) {
                    let message = format!(
                        "what it writes by its edge `{}` is proven for its edge `{}`, and alters what \
                         drive `{}` shows: detach that drive, or let it share `w`",
                        edge.name, view.name, drive.id
                    );
                    return Err(Error::new(ErrorKind::InUse, message).at_node(&node.name));
                }
            }
        }
    }
    Ok(())
}

/// A new, clean bitmap for a scope of `graph`.
fn new_bitmap(graph: &Graph, decl: &BitmapDecl) -> Result<Arc<Bitmap>> {
    let name = decl.name.as_str();
    if graph.find_bitmap(&decl.scope, name).is_some() {
        let message =
            format!("there is a bitmap `{name}` already: remove it or choose another name");
        return Err(Error::new(ErrorKind::Exists, message));
    }
    let Some(node) = graph.scope_node(&decl.scope) else {
        let message = match &decl.scope {
            BitmapScope::Node(node) => format!("bitmap `{name}`: there is no node `{node}`"),
            BitmapScope::Drive(drive) => {
                format!("bitmap `{name}`: there is no drive `{drive}`, or it has no medium")
            }
        };
        return Err(Error::new(ErrorKind::NotFound, message));
    };
    let size = graph.nodes[node].info.size_bytes;
    let state = if decl.enabled { BitmapState::Recording } else { BitmapState::Disabled };
    let bitmap = Bitmap::new(decl.name.clone(), size, decl.granularity, state);
    bitmap
        .map(Arc::new)
        .map_err(|error| Error::new(error.kind(), format!("bitmap `{name}`: {error}")))
}

/// Computes where changes enter and what they mark.
fn set_entries(graph: &mut Graph) {
    let at = |node: usize, cut| Marks::of(graph, graph.nodes[node].class, cut);
    let of_drive =
        |drive: &GraphDrive| drive.root.as_ref().map(|root| at(root.child, Cut::default()));
    let drives: Vec<Option<Marks>> = graph.drives.iter().map(of_drive).collect();
    let mut edges = Vec::new();
    for (parent, node) in graph.nodes.iter().enumerate() {
        for (position, edge) in node.edges.iter().enumerate() {
            if edge.role.is_entry() {
                let own = Cut { edge: Some((parent, position)), ..Cut::default() };
                edges.push(((parent, position), at(edge.child, own)));
            }
        }
    }
    for (drive, entry) in graph.drives.iter_mut().zip(drives) {
        if let Some(root) = &mut drive.root {
            root.entry = entry;
        }
    }
    for ((parent, position), entry) in edges {
        graph.nodes[parent].edges[position].entry = Some(entry);
    }
}

fn copy_edge(edge: &Edge) -> Edge {
    Edge {
        name: Arc::clone(&edge.name),
        counters: Arc::clone(&edge.counters),
        entry: None,
        crossing: None,
        own: None,
        ..*edge
    }
}

impl Graph {
    /// The next snapshot, with one more bitmap.
    pub(super) fn with_bitmap(&self, decl: BitmapDecl) -> Result<(Self, Arc<Bitmap>)> {
        let bitmap = new_bitmap(self, &decl)?;
        let mut next = self.next();
        next.bitmaps.push(ScopedBitmap { scope: decl.scope, bitmap: Arc::clone(&bitmap) });
        set_entries(&mut next);
        acting::resolve(&mut next, Some(self));
        Ok((next, bitmap))
    }

    /// The next snapshot, without a bitmap.
    pub(super) fn without_bitmap(&self, bitmap: &Arc<Bitmap>) -> Self {
        let mut next = self.next();
        next.bitmaps.retain(|entry| !Arc::ptr_eq(&entry.bitmap, bitmap));
        set_entries(&mut next);
        acting::resolve(&mut next, Some(self));
        next
    }

    /// The next snapshot, which marks what the bitmaps record in now.
    pub(super) fn with_recording(&self) -> Self {
        let mut next = self.next();
        set_entries(&mut next);
        acting::resolve(&mut next, Some(self));
        next
    }

    /// A copy with the next generation and no entries yet.
    fn next(&self) -> Self {
        let node = |node: &GraphNode| GraphNode {
            name: Arc::clone(&node.name),
            driver: Arc::clone(&node.driver),
            info: node.info,
            edges: node.edges.iter().map(copy_edge).collect(),
            class: node.class,
            serializer: node.serializer.clone(),
            origin: None,
        };
        let drive = |drive: &GraphDrive| GraphDrive {
            id: Arc::clone(&drive.id),
            writable: drive.writable,
            root: drive.root.as_ref().map(copy_edge),
        };
        let bitmap = |entry: &ScopedBitmap| ScopedBitmap {
            scope: entry.scope.clone(),
            bitmap: Arc::clone(&entry.bitmap),
        };
        Self {
            generation: self.generation + 1,
            nodes: self.nodes.iter().map(node).collect(),
            drives: self.drives.iter().map(drive).collect(),
            bitmaps: self.bitmaps.iter().map(bitmap).collect(),
            views: Arc::clone(&self.views),
            // Those of nodes are found again.
            origins: self.origins[..self.drives.len()].to_vec(),
            sources: Vec::new(),
            next_source: self.next_source,
            guards: Arc::clone(&self.guards),
        }
    }
}
