//! A snapshot: nodes, edges, drives and bitmaps at one moment. Immutable.

use std::collections::HashSet;
use std::sync::Arc;

use super::acting::{Own, Source};
use super::affected::Marks;
use super::align::Serializer;
use super::class::{Class, Views};
use super::counters::Counters;
use super::edge::EdgeRef;
use super::fill::Fill;
use super::generation::{DriveGeneration, Generations, NodeGeneration};
use super::guard::{Guards, SourceSet};
use super::origin::{Origin, Request};
use super::permission::{PermissionSet, Role};
use super::transaction::BitmapRef;
use super::user::DriveTitle;
use crate::bitmap::{Bitmap, Granularity, Granules, MAX_GRANULES};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::GROWN_MAX_BYTES;
use crate::node::{Node, NodeInfo, OpenMode, Reopening};

/// A parent's (or drive's) use of a node.
pub struct Edge {
    pub(super) name: Arc<str>,
    pub(super) child: usize,
    pub(super) role: Role,
    pub(super) uses: PermissionSet,
    pub(super) shares: PermissionSet,
    pub(super) counters: Arc<Counters>,
    /// Changes may go behind the child's end: it is growable, and who keeps its bytes there has announced
    /// them, here or above.
    pub(super) grows: bool,
    /// Present where changes enter: at drives, storage and target edges.
    pub(super) entry: Option<Marks>,
    /// What the parent may do of its own accord; part of what it uses.
    pub(super) grants: PermissionSet,
    /// The edge of the parent for whose view its own writes are proven, all of them.
    pub(super) proven_for: Option<usize>,
    /// Sources that a change enters by it.
    pub(super) crossing: Option<SourceSet>,
    /// Present where the parent may write of its own accord.
    pub(super) own: Option<Own>,
}

impl Edge {
    /// The name that the parent gives it (`file`; a drive's is `root`).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Index of the child in [`Graph::nodes`].
    pub fn child(&self) -> usize {
        self.child
    }

    /// What it means for views.
    pub fn role(&self) -> Role {
        self.role
    }

    /// What the parent uses.
    pub fn uses(&self) -> PermissionSet {
        self.uses
    }

    /// Where requests that come by it must end.
    #[inline]
    pub(super) fn end_bytes(&self, child: &GraphNode) -> u64 {
        if self.grows { GROWN_MAX_BYTES } else { child.info.size_bytes }
    }

    /// What it uses as far as every other user is concerned: writes proven for a view concern those
    /// alone whose views they alter.
    pub(super) fn uses_of_all(&self) -> PermissionSet {
        match self.proven_for {
            Some(_) => self.uses.without(self.grants.intersection(PermissionSet::WRITE)),
            None => self.uses,
        }
    }

    /// What it lets others use.
    pub fn shares(&self) -> PermissionSet {
        self.shares
    }

    /// Its statistics.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// A node of a snapshot.
pub struct GraphNode {
    pub(super) generation: NodeGeneration,
    pub(super) name: Arc<str>,
    pub(super) driver: Arc<dyn Node>,
    pub(super) info: NodeInfo,
    /// What changes of it may touch beside what they write.
    pub(super) fill: Fill,
    pub(super) edges: Box<[Edge]>,
    pub(super) class: Class,
    /// Keeps read-modify-write cycles apart, where alignment can call for them.
    pub(super) serializer: Option<Arc<Serializer>>,
    /// Index of its origin, if it acts of its own accord, or its driver has work of its own.
    pub(super) origin: Option<usize>,
    /// Somebody keeps its bytes in it, or in a node that shows it.
    pub(super) is_container: bool,
    /// Size of its view as its driver had it when the snapshot was built: it may have grown since it
    /// became a container.
    pub(super) grown_bytes: u64,
    /// Whether it may be changed, of a driver that holds nothing open.
    pub(super) mode: OpenMode,
    /// It goes as soon as the jobs have ended that use it still.
    pub(super) is_left: bool,
}

impl GraphNode {
    /// Bytes of its view that bitmaps of it have granules for: as it was when the snapshot was built, with
    /// what it has grown by, as far as a bitmap can go.
    pub(super) fn bitmap_bytes(&self, granularity: Granularity) -> u64 {
        let most = MAX_GRANULES.saturating_mul(granularity.bytes());
        self.info.size_bytes.max(self.grown_bytes.min(most))
    }

    /// Whether it may act of its own accord.
    pub(super) fn has_grants(&self) -> bool {
        self.edges.iter().any(|edge| !edge.grants.is_empty())
    }

    /// Its unique name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which node it is: a name may be given again, this is not.
    pub fn generation(&self) -> NodeGeneration {
        self.generation
    }

    /// Its driver.
    pub fn driver(&self) -> &Arc<dyn Node> {
        &self.driver
    }

    /// What it is.
    pub fn info(&self) -> &NodeInfo {
        &self.info
    }

    /// How it is open itself: it can be changed if what it stands on can be, too.
    pub fn mode(&self) -> OpenMode {
        self.driver.reopening().map_or(self.mode, Reopening::mode)
    }

    /// Its children.
    pub fn edges(&self) -> &[Edge] {
        &self.edges
    }

    /// Its class: nodes of one class show one view.
    pub fn class(&self) -> Class {
        self.class
    }
}

/// A drive of a snapshot.
pub struct GraphDrive {
    pub(super) generation: DriveGeneration,
    pub(super) id: Arc<str>,
    pub(super) writable: bool,
    pub(super) only_shows: bool,
    pub(super) root: Option<Edge>,
}

impl GraphDrive {
    /// Its unique id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether it may change its view.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Its root.
    ///
    /// # Errors
    /// `ENOMEDIUM`.
    #[inline]
    pub fn medium(&self) -> Result<&Edge> {
        self.root.as_ref().ok_or_else(|| self.no_medium())
    }

    #[cold]
    fn no_medium(&self) -> Error {
        Error::new(ErrorKind::NoMedium, format!("{} has no medium", DriveTitle(&self.id)))
    }

    /// Its root; `None` without a medium.
    pub fn root(&self) -> Option<&Edge> {
        self.root.as_ref()
    }
}

/// What a dirty bitmap records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BitmapScope {
    /// The view of a node's class.
    Node(Arc<str>),
    /// A drive's view.
    Drive(Arc<str>),
}

impl std::fmt::Display for BitmapScope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node `{node}`"),
            Self::Drive(drive) => write!(f, "{}", DriveTitle(drive)),
        }
    }
}

pub(super) struct ScopedBitmap {
    pub(super) scope: BitmapScope,
    /// The node whose view the scope is; `None` for a drive without medium.
    pub(super) node: Option<usize>,
    pub(super) bitmap: Arc<Bitmap>,
    /// What changes mark in this snapshot.
    pub(super) recording: Option<Arc<Granules>>,
    /// The drives that show its view, each with the first snapshot since which it has done so without a
    /// break.
    pub(super) shown_by: Vec<(DriveGeneration, u64)>,
}

/// See the module.
pub struct Graph {
    pub(super) generation: u64,
    pub(super) nodes: Vec<GraphNode>,
    pub(super) drives: Vec<GraphDrive>,
    pub(super) bitmaps: Vec<ScopedBitmap>,
    pub(super) generations: Generations,
    pub(super) views: Views,
    /// One for each drive, by its index; then those of nodes that act of their own accord.
    pub(super) origins: Vec<Arc<Origin>>,
    pub(super) sources: Vec<Source>,
    pub(super) next_source: u32,
    /// Shared by all snapshots of a host.
    pub(super) guards: Arc<Guards>,
}

impl Graph {
    /// Counts snapshots of one host.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// All nodes; children come before their parents.
    pub fn nodes(&self) -> &[GraphNode] {
        &self.nodes
    }

    /// All drives.
    pub fn drives(&self) -> &[GraphDrive] {
        &self.drives
    }

    /// All bitmaps with what they record.
    pub fn bitmaps(&self) -> impl Iterator<Item = (&BitmapScope, &Arc<Bitmap>)> {
        self.bitmaps.iter().map(|entry| (&entry.scope, &entry.bitmap))
    }

    /// Index of a node.
    pub fn find_node(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| &*node.name == name)
    }

    /// A node that has requests of its own, and their origin.
    ///
    /// # Errors
    /// `ENOENT`, `EPERM`.
    pub(super) fn own_origin(&self, name: &str) -> Result<(usize, usize)> {
        let node = self
            .find_node(name)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no node `{name}`")))?;
        let origin = self.nodes[node].origin.ok_or_else(|| {
            let message = "its driver does nothing of its own accord";
            Error::new(ErrorKind::NotPermitted, message).at_node(name)
        })?;
        Ok((node, origin))
    }

    /// Index of a drive.
    pub fn find_drive(&self, id: &str) -> Option<usize> {
        self.drives.iter().position(|drive| &*drive.id == id)
    }

    /// Index of a drive that must be there.
    ///
    /// # Errors
    /// `ENOENT`, with the ids that there are.
    pub fn expect_drive(&self, id: &str) -> Result<usize> {
        self.find_drive(id).ok_or_else(|| {
            let known: Vec<_> = self.drives.iter().map(|drive| format!("`{}`", drive.id)).collect();
            let message = format!("there is no drive `{id}`; there is: {}", known.join(", "));
            Error::new(ErrorKind::NotFound, message)
        })
    }

    /// A bitmap by scope and name.
    pub fn find_bitmap(&self, scope: &BitmapScope, name: &str) -> Option<&Arc<Bitmap>> {
        let mut all = self.bitmaps();
        all.find(|(at, bitmap)| *at == scope && bitmap.name().as_str() == name)
            .map(|(_, bitmap)| bitmap)
    }

    /// Where `bitmap` is in this snapshot.
    pub(super) fn entry_of(&self, bitmap: &Bitmap) -> Option<&ScopedBitmap> {
        self.bitmaps.iter().find(|entry| std::ptr::eq(&*entry.bitmap, bitmap))
    }

    /// The first snapshot since which a drive has shown, without a break, the view that `bitmap` records;
    /// `None` if it does not show it. The drive's own bitmaps go along with it: they miss nothing.
    pub(crate) fn shown_since(&self, drive: &GraphDrive, bitmap: &Bitmap) -> Option<u64> {
        let entry = self.entry_of(bitmap)?;
        let mut shown_by = entry.shown_by.iter();
        let (_, since) = shown_by.find(|(generation, _)| *generation == drive.generation)?;
        let is_own = entry.scope == BitmapScope::Drive(Arc::clone(&drive.id));
        Some(if is_own { 0 } else { *since })
    }

    /// Finds out which drives show the views of bitmaps, and since when.
    pub(super) fn find_shown(&mut self, former: Option<&Self>) {
        for at in 0..self.bitmaps.len() {
            let entry = &self.bitmaps[at];
            let Some(node) = entry.node else { continue };
            let known = former.and_then(|former| former.entry_of(&entry.bitmap));
            let since = |drive: &GraphDrive| {
                let root = drive.root.as_ref()?;
                let shows = self.nodes[root.child].class == self.nodes[node].class;
                let mut known = known.iter().flat_map(|known| &known.shown_by);
                let since = known.find(|(generation, _)| *generation == drive.generation);
                let since = since.map_or(self.generation, |(_, since)| *since);
                shows.then_some((drive.generation, since))
            };
            let shown_by = self.drives.iter().filter_map(since).collect();
            self.bitmaps[at].shown_by = shown_by;
        }
    }

    /// A node, and all that its bytes may come from.
    pub(super) fn below(&self, node: usize) -> impl Iterator<Item = usize> {
        let mut below = vec![false; self.nodes.len()];
        below[node] = true;
        // Children come before their parents.
        for at in (0..=node).rev() {
            let edges = self.nodes[at].edges.iter();
            let shown = edges.filter(|edge| edge.role.is_view() || edge.role == Role::Storage);
            if below[at] {
                shown.for_each(|edge| below[edge.child] = true);
            }
        }
        below.into_iter().enumerate().filter(|(_, is_below)| *is_below).map(|(at, _)| at)
    }

    /// By node: whether it is, or reaches, one of the nodes for which `places` holds.
    pub(super) fn reaching(&self, places: Vec<bool>) -> Vec<bool> {
        let mut comes = places;
        for (at, node) in self.nodes.iter().enumerate() {
            // Children come before parents.
            comes[at] |= node.edges.iter().any(|edge| comes[edge.child]);
        }
        comes
    }

    /// The origins whose requests can come to one of the nodes for which `places` holds.
    pub(super) fn origins_reaching(&self, places: Vec<bool>) -> Vec<usize> {
        let comes = self.reaching(places);
        let drives = self.drives.iter().enumerate();
        let drives = drives.filter(|(_, drive)| drive.root().is_some_and(|root| comes[root.child]));
        let acting = self.nodes.iter().zip(comes.iter()).filter(|(_, comes)| **comes);
        let acting = acting.filter_map(|(node, _)| node.origin);
        drives.map(|(index, _)| index).chain(acting).collect()
    }

    /// Whether the same nodes and drives stand on the same ones as in another snapshot.
    pub(super) fn stands_as(&self, other: &Self) -> bool {
        let leads = |graph: &Self, edge: &Edge| graph.nodes[edge.child].generation;
        let same_edges = |(one, another): (&GraphNode, &GraphNode)| {
            let mut pairs = one.edges.iter().zip(&another.edges);
            one.generation == another.generation
                && one.edges.len() == another.edges.len()
                && pairs.all(|(one, another)| leads(self, one) == leads(other, another))
        };
        let root = |graph: &Self, drive: &GraphDrive| {
            (drive.generation, drive.root.as_ref().map(|root| leads(graph, root)))
        };
        self.nodes.len() == other.nodes.len()
            && self.nodes.iter().zip(&other.nodes).all(same_edges)
            && self.drives.len() == other.drives.len()
            && (self.drives.iter().zip(&other.drives))
                .all(|(one, another)| root(self, one) == root(other, another))
    }

    /// The nodes that requests of other origins than these can come to.
    pub(super) fn reached_by_others(&self, origins: &[usize]) -> HashSet<NodeGeneration> {
        let mut reached = vec![false; self.nodes.len()];
        for (index, drive) in self.drives.iter().enumerate() {
            if let Some(root) = drive.root().filter(|_| !origins.contains(&index)) {
                reached[root.child] = true;
            }
        }
        // Parents come after their children.
        for (at, node) in self.nodes.iter().enumerate().rev() {
            reached[at] |= node.origin.is_some_and(|origin| !origins.contains(&origin));
            if reached[at] {
                node.edges.iter().for_each(|edge| reached[edge.child] = true);
            }
        }
        let nodes = self.nodes.iter().zip(reached).filter(|(_, reached)| *reached);
        nodes.map(|(node, _)| node.generation).collect()
    }

    /// The node whose view a scope is; `None` for a drive without medium or an unknown name.
    pub(super) fn scope_node(&self, scope: &BitmapScope) -> Option<usize> {
        match scope {
            BitmapScope::Node(name) => self.find_node(name),
            BitmapScope::Drive(id) => {
                let drive = &self.drives[self.find_drive(id)?];
                drive.root.as_ref().map(|root| root.child)
            }
        }
    }
}

/// What a driver may reach during a call: its children, through the graph.
#[derive(Clone, Copy)]
pub struct Cx<'g> {
    pub(super) graph: &'g Graph,
    /// The request on whose behalf the driver is called.
    pub(super) request: &'g Request,
    pub(super) node: usize,
}

impl<'g> Cx<'g> {
    /// The node's edge number `index`.
    ///
    /// # Errors
    /// `ENOENT` when it has no such child.
    pub fn child(&self, index: usize) -> Result<EdgeRef<'g>> {
        let node = &self.graph.nodes[self.node];
        let Some(edge) = node.edges.get(index) else {
            let message = format!("it has no child number {index}");
            return Err(Error::new(ErrorKind::NotFound, message).at_node(&node.name));
        };
        Ok(EdgeRef { graph: self.graph, request: self.request, edge })
    }

    /// Whether it has such an edge.
    pub fn has_child(&self, index: usize) -> bool {
        index < self.graph.nodes[self.node].edges.len()
    }

    /// Whether the node is being drained; if not, the task is woken when that begins. Whoever holds a
    /// request back asks, and lets it go.
    pub fn poll_drained(&self, cx: &std::task::Context<'_>) -> bool {
        self.request.poll_drained(cx)
    }

    /// Whether the request goes back to a node that acts of its own accord, as a job's does: nobody waits for it who has
    /// asked for anything just now.
    pub fn is_of_own_accord(&self) -> bool {
        self.request.is_of_own_accord()
    }

    /// Whether the host ends; if not, the task is woken when that begins. Whoever waits for something that may not
    /// come asks, and gives up.
    pub fn poll_ends(&self, cx: &std::task::Context<'_>) -> bool {
        self.request.poll_ends(cx)
    }

    /// Whether the request is proven not to alter the view of this node.
    pub fn is_unchanged(&self) -> bool {
        let class = self.graph.nodes[self.node].class;
        self.request.unchanged().is_some_and(|view| self.graph.views.is_at_or_above(class, view))
    }

    /// A bitmap, as it is in the graph of the request.
    pub(crate) fn find_bitmap(&self, bitmap: &BitmapRef) -> Option<Arc<Bitmap>> {
        bitmap.find(self.graph)
    }

    /// The node's name.
    pub fn node_name(&self) -> &'g str {
        &self.graph.nodes[self.node].name
    }

    /// Bytes of the node's view.
    pub fn node_size_bytes(&self) -> u64 {
        self.graph.nodes[self.node].info.size_bytes
    }

    /// Number of the worker that runs the call.
    pub fn worker(&self) -> usize {
        self.request.worker()
    }
}
