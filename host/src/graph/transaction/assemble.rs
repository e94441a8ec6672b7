//! From a draft to a snapshot: order, sizes, classes, permissions, bitmaps, entries. The one way in which
//! graphs are made.
//!
//! What lasts longer than a snapshot (drivers, counters, gates, serializers, bitmaps) is taken over from
//! the draft, which has it from the snapshot before.

use std::collections::HashMap;
use std::sync::Arc;

use super::apply::after_all;
use super::check::{check_drivers, check_permissions, check_proven, resolve_permissions};
use super::draft::{Draft, DraftEdge, DraftNode, invalid, not_found};
use crate::bitmap::Prepared;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::acting;
use crate::graph::affected::Marks;
use crate::graph::class::{Class, Cut, Edges, Views};
use crate::graph::fill::Fill;
use crate::graph::guard::Guards;
use crate::graph::order;
use crate::graph::permission::{PermissionSet, Role, Users};
use crate::graph::snapshot::{Edge, Graph, GraphDrive, GraphNode};
use crate::graph::stake;
use crate::graph::user::DriveTitle;
use crate::limits::{COMPRESSED_MAX_BYTES, FILL_MAX_BYTES, GRAPH_DEPTH_MAX, WORKERS_MAX};
use crate::node::NodeInfo;

type Index<'a> = HashMap<&'a str, usize>;

impl Draft {
    /// Checks everything and makes the next snapshot, after `former`. It marks what bitmaps record in once
    /// `prepared` has taken effect, to which is added what the actions and new sizes of views call for.
    ///
    /// # Errors
    /// Unknown names, cycles, nodes whose children do not fit, permission conflicts, copies that could
    /// wait for each other for ever.
    pub(in crate::graph) fn assemble(
        &self,
        former: Option<&Graph>,
        prepared: &mut Prepared,
    ) -> Result<Graph> {
        let of_all = |error| after_all(&self.actions, error);
        let mut graph = self.assemble_edges().map_err(of_all)?;
        self.assemble_bitmaps(&mut graph, prepared)?;
        graph.find_shown(former);
        set_entries(&mut graph);
        acting::resolve(&mut graph, former);
        order::check(&graph).map_err(of_all)?;
        Ok(graph)
    }

    /// Nodes and drives with what they may do, without bitmaps and what follows from them.
    pub(super) fn assemble_edges(&self) -> Result<Graph> {
        check_drivers(&self.nodes)?;
        let order = children_first(&self.nodes)?;
        let named = order.iter().map(|at| &*self.nodes[*at].name);
        let index: Index<'_> = named.zip(0..).collect();
        let mut nodes: Vec<GraphNode> = Vec::with_capacity(order.len());
        for at in order {
            let node = assemble_node(&self.nodes[at], &index, &nodes)?;
            nodes.push(node);
        }
        find_containers(&mut nodes);
        let views = assign_classes(&mut nodes)?;
        let mut graph = Graph {
            generation: self.generation + 1,
            nodes,
            drives: self.assemble_drives(&index)?,
            bitmaps: Vec::new(),
            views,
            origins: self.drives.iter().map(|drive| Arc::clone(&drive.origin)).collect(),
            generations: self.generations.clone(),
            sources: Vec::new(),
            next_source: 0,
            guards: self.guards.clone().unwrap_or_else(|| Arc::new(Guards::new(WORKERS_MAX))),
        };
        resolve_permissions(&mut graph);
        check_permissions(&graph)?;
        check_proven(&graph)?;
        stake::check(&graph)?;
        Ok(graph)
    }

    fn assemble_drives(&self, index: &Index<'_>) -> Result<Vec<GraphDrive>> {
        let mut drives = Vec::with_capacity(self.drives.len());
        for drive in &self.drives {
            let root = match &drive.root {
                None => None,
                Some(root) => {
                    let child = index.get(&*root.child).copied().ok_or_else(|| {
                        let (title, root) = (DriveTitle(&drive.id), &root.child);
                        not_found(format!("{title} has the unknown root `{root}`"))
                    })?;
                    let Users { uses, shares, .. } = Role::root(drive.writable, drive.only_shows);
                    Some(Edge { uses, shares, ..assemble_edge(root, child) })
                }
            };
            drives.push(GraphDrive {
                generation: drive.generation,
                id: Arc::clone(&drive.id),
                writable: drive.writable,
                only_shows: drive.only_shows,
                root,
            });
        }
        Ok(drives)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Visit {
    New,
    Open,
    /// With the nodes on the longest path down from it, itself among them.
    Done(usize),
}

/// Indices of the nodes, children before parents; otherwise in the order in which they stand.
fn children_first(nodes: &[DraftNode]) -> Result<Vec<usize>> {
    let by_name: Index<'_> = nodes.iter().map(|node| &*node.name).zip(0..).collect();
    let mut order = Vec::with_capacity(nodes.len());
    let mut state = vec![Visit::New; nodes.len()];
    for start in 0..nodes.len() {
        visit(nodes, &by_name, start, &mut state, &mut Vec::new(), &mut order)?;
    }
    Ok(order)
}

/// Returns the depth at `at`. Recursion is bounded by that depth's limit.
fn visit<'a>(
    nodes: &'a [DraftNode],
    by_name: &Index<'_>,
    at: usize,
    state: &mut [Visit],
    path: &mut Vec<&'a str>,
    order: &mut Vec<usize>,
) -> Result<usize> {
    if let Visit::Done(depth) = state[at] {
        return Ok(depth);
    }
    let too_deep = || invalid(format!("the graph is deeper than {GRAPH_DEPTH_MAX} nodes"));
    path.push(&nodes[at].name);
    if state[at] == Visit::Open {
        return Err(invalid(format!("the nodes form a cycle: {}", path.join(" → "))));
    }
    if path.len() > GRAPH_DEPTH_MAX {
        return Err(too_deep());
    }
    state[at] = Visit::Open;
    let mut depth = 1;
    for edge in &nodes[at].edges {
        let Some(next) = by_name.get(&*edge.child) else {
            let message = format!("its child `{}` is the unknown node `{}`", edge.name, edge.child);
            return Err(not_found(message).at_node(&nodes[at].name));
        };
        depth = depth.max(1 + visit(nodes, by_name, *next, state, path, order)?);
    }
    if depth > GRAPH_DEPTH_MAX {
        return Err(too_deep());
    }
    state[at] = Visit::Done(depth);
    order.push(at);
    path.pop();
    Ok(depth)
}

/// Permissions and marks come later.
fn assemble_edge(edge: &DraftEdge, child: usize) -> Edge {
    Edge {
        name: Arc::clone(&edge.name),
        child,
        role: edge.role,
        grants: edge.grants,
        uses: edge.grants,
        shares: PermissionSet::NONE,
        counters: Arc::clone(&edge.counters),
        grows: false,
        entry: None,
        proven_for: None,
        crossing: None,
        own: None,
    }
}

/// Edges are compared by name: of two one would be taken for the other.
fn check_edge_names(node: &DraftNode) -> Result<()> {
    let edges = node.edges.iter().enumerate();
    let mut again =
        edges.filter(|(at, edge)| node.edges[..*at].iter().any(|other| other.name == edge.name));
    let Some((_, edge)) = again.next() else { return Ok(()) };
    let message = format!("it has two edges `{}`: give one of them another name", edge.name);
    Err(invalid(message).at_node(&node.name))
}

/// The edge called `view`, for which writes through `edge` are to be proven.
fn view_edge(node: &DraftNode, edge: &DraftEdge, view: &str) -> Result<usize> {
    let known = node.edges.iter().position(|other| *other.name == *view);
    known.ok_or_else(|| {
        let message = format!(
            "its edge `{}` is to be proven for its edge `{view}`, which it does not have",
            edge.name
        );
        not_found(message).at_node(&node.name)
    })
}

fn assemble_node(node: &DraftNode, index: &Index<'_>, below: &[GraphNode]) -> Result<GraphNode> {
    let edge = |edge: &DraftEdge| {
        let child = index.get(&*edge.child).copied().unwrap_or(usize::MAX);
        let proven_for = edge.proven_for.as_ref();
        let proven_for = proven_for.map(|view| view_edge(node, edge, view)).transpose()?;
        let passes_on = edge.role == Role::Storage || edge.role.forwards_changes();
        let grows = passes_on && below.get(child).is_some_and(|child| child.info.growable);
        Ok(Edge { proven_for, grows, ..assemble_edge(edge, child) })
    };
    check_edge_names(node)?;
    let edges: Box<[Edge]> = node.edges.iter().map(edge).collect::<Result<_>>()?;
    let mut infos: Vec<NodeInfo> = edges.iter().map(|edge| below[edge.child].info).collect();
    let mut info = node.driver.info(&infos).map_err(|error| error.at_node(&node.name))?;
    info.size_bytes = node.resized.unwrap_or(info.size_bytes);
    let grown_bytes = match info.growable {
        false => info.size_bytes,
        true if edges.is_empty() => info.size_bytes,
        true => {
            let grown = infos.iter_mut().zip(&edges);
            grown.for_each(|(info, edge)| info.size_bytes = below[edge.child].grown_bytes);
            node.driver.info(&infos).map_or(info.size_bytes, |info| info.size_bytes)
        }
    };
    info.size_bytes = node.resized.or(node.kept).unwrap_or(info.size_bytes);
    info.limits = node.driver.limits_at(info.size_bytes).unwrap_or(info.limits);
    info.read_only |= !node.mode.write;
    let alignment = info.limits.request_alignment;
    let sound = alignment.is_power_of_two()
        && alignment <= 4096
        && info.limits.memory_alignment.is_power_of_two()
        && info.limits.memory_alignment <= 4096
        && info.limits.transfer_max_bytes >= alignment
        && info.limits.fill_bytes.is_power_of_two()
        && info.limits.fill_bytes <= FILL_MAX_BYTES
        && (info.limits.compressed_bytes == 0 || info.limits.compressed_bytes.is_power_of_two())
        && info.limits.compressed_bytes <= COMPRESSED_MAX_BYTES
        && info.size_bytes.is_multiple_of(u64::from(alignment))
        && i64::try_from(info.size_bytes).is_ok();
    if !sound {
        let message = format!(
            "its size ({} bytes) is no multiple of its block size ({alignment}), or its limits \
             contradict themselves",
            info.size_bytes
        );
        return Err(invalid(message).at_node(&node.name));
    }
    let serializer = node.serializer.clone();
    let fill = Fill::of(&*node.driver, &info, &edges, below);
    Ok(GraphNode {
        generation: node.generation,
        name: Arc::clone(&node.name),
        driver: Arc::clone(&node.driver),
        info,
        fill,
        edges,
        class: Class::default(),
        serializer: serializer.or_else(|| (alignment > 1).then(Arc::default)),
        origin: None,
        is_container: false,
        grown_bytes,
        mode: node.mode,
        is_left: node.is_left,
    })
}

/// Finds the nodes that can grow under others: what bytes are kept in, and what that goes on to.
fn find_containers(nodes: &mut [GraphNode]) {
    // Parents come after their children.
    for at in (0..nodes.len()).rev() {
        let (below, node) = nodes.split_at_mut(at);
        let Some(node) = node.first() else { continue };
        for edge in &node.edges {
            let goes_on = node.is_container && edge.role.forwards_changes();
            below[edge.child].is_container |= goes_on || edge.role == Role::Storage;
        }
    }
}

/// Joins nodes to classes.
fn assign_classes(nodes: &mut [GraphNode]) -> Result<Views> {
    let edges = |node: &GraphNode| -> Box<Edges> {
        node.edges.iter().map(|edge| (edge.role, edge.child)).collect()
    };
    let edges: Vec<_> = nodes.iter().map(edges).collect();
    let of_view = |node: &&GraphNode| node.edges.iter().any(|edge| edge.role.is_view());
    if let Some(node) = nodes.iter().filter(|node| node.driver.is_opaque()).find(of_view) {
        let message = "it shows bytes of its own: its child is a `storage` edge";
        return Err(Error::new(ErrorKind::Invalid, message).at_node(&node.name));
    }
    let views = Views::of(&edges).map_err(|(at, error)| error.at_node(&nodes[at].name))?;
    for (at, node) in nodes.iter_mut().enumerate() {
        node.class = views.class(at);
    }
    Ok(views)
}

/// Computes where changes enter and what they mark.
fn set_entries(graph: &mut Graph) {
    let at = |node: usize, cut, grows| Marks::of(graph, graph.nodes[node].class, cut, grows);
    let of_drive =
        |drive: &GraphDrive| drive.root.as_ref().map(|root| at(root.child, Cut::default(), false));
    let drives: Vec<Option<Marks>> = graph.drives.iter().map(of_drive).collect();
    let mut edges = Vec::new();
    for (parent, node) in graph.nodes.iter().enumerate() {
        for (position, edge) in node.edges.iter().enumerate() {
            if edge.role.is_entry() {
                let own = Cut { edge: Some((parent, position)), ..Cut::default() };
                edges.push(((parent, position), at(edge.child, own, edge.grows)));
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
