//! Graph changes: what a transaction may do to nodes, drives and edges.
//!
//! Edges are moved by one primitive, [`Action::Repoint`]; the familiar operations are made of it.

use super::bitmap::Bitmap;
use super::bitmap_actions::BitmapAction;
use super::flight::Freshness;
use super::graph::Node;
use super::ids::{BitmapId, DriveId, FlightId, NodeId, View};
use super::memory::Memory;
use super::refusal::Refusal;
use super::repoint::SameView;
use super::world::World;

/// What becomes of a removed node's bitmaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orphans {
    /// They keep the node from being removed.
    Refuse,
    /// They end.
    End,
    /// They go to the child, which shows the same view (of a filter only).
    MoveToChild,
}

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A new node.
    AddNode(NodeId, Node),
    /// A node that nothing uses goes.
    RemoveNode(NodeId, Orphans),
    /// A new drive, with a root or no medium.
    AddDrive(DriveId, Option<NodeId>),
    /// A drive goes, and its bitmaps with it.
    RemoveDrive(DriveId),
    /// The edges of these users (parents and drives) lead to another node from now on: insertion and
    /// removal of filters, snapshot, replacement, pivot, another backing, change of medium. `None`
    /// ejects a medium or cuts a backing link.
    Repoint {
        /// Whose edges.
        users: Vec<View>,
        /// Where to.
        to: Option<NodeId>,
        /// Why their views stay the same.
        same: Option<SameView>,
    },
    /// Something is done to a bitmap.
    Bitmap(BitmapAction),
}

impl Action {
    /// Change of a drive's root or medium.
    pub fn set_root(drive: DriveId, root: Option<NodeId>, same: Option<SameView>) -> Self {
        Self::Repoint { users: vec![View::Drive(drive)], to: root, same }
    }

    /// An empty overlay of the size of `below` comes between it and these of its users. `len` is that
    /// size; if it is not, the views of those users are not the same.
    pub fn snapshot(
        overlay: NodeId,
        (len, cluster_bytes): (usize, usize),
        below: NodeId,
        users: Vec<View>,
    ) -> [Self; 2] {
        let same = Some(SameView::EmptyOverlay);
        let node = Node::Memory(Memory::overlay(len, cluster_bytes, Some(below)));
        [Self::AddNode(overlay, node), Self::Repoint { users, to: Some(overlay), same }]
    }

    /// A filter comes between `below` and these of its users.
    pub fn insert_filter(filter: NodeId, below: NodeId, users: Vec<View>) -> [Self; 2] {
        let same = Some(SameView::Transparent);
        let edges = Self::Repoint { users, to: Some(filter), same };
        [Self::AddNode(filter, Node::Filter { child: below }), edges]
    }
}

impl World {
    /// The transaction's actions that remove a filter: its users lead to its child.
    ///
    /// # Errors
    /// It is not a filter.
    pub fn removal_of_filter(
        &self,
        filter: NodeId,
        orphans: Orphans,
    ) -> Result<[Action; 2], Refusal> {
        let Some(Node::Filter { child }) = self.graph.node(filter) else {
            return Err(Refusal::Unsupported("only a filter can be removed from between nodes"));
        };
        let users = self.graph.users(filter);
        let same = Some(SameView::Transparent);
        let edges = Action::Repoint { users, to: Some(*child), same };
        Ok([edges, Action::RemoveNode(filter, orphans)])
    }

    /// Applies one action to a world in which what it touches is drained. Returns the bitmaps that it
    /// made dirty whole.
    ///
    /// # Errors
    /// The action is impossible; nothing has changed.
    pub fn apply(&mut self, action: &Action) -> Result<Vec<BitmapId>, Refusal> {
        match action {
            Action::AddNode(id, node) => self.add_node(*id, node).map(|()| Vec::new()),
            Action::RemoveNode(node, orphans) => {
                self.remove_node(*node, *orphans).map(|()| Vec::new())
            }
            Action::AddDrive(id, root) => self.add_drive(*id, *root).map(|()| Vec::new()),
            Action::RemoveDrive(id) => self.remove_drive(*id).map(|()| Vec::new()),
            Action::Repoint { users, to, same } => self.repoint(users, *to, *same),
            Action::Bitmap(action) => self.apply_to_bitmap(action).map(|()| Vec::new()),
        }
    }

    /// What must have settled before an action takes effect.
    pub fn busy(&self, action: &Action) -> Vec<FlightId> {
        match action {
            Action::AddNode(..) | Action::AddDrive(..) | Action::RemoveDrive(_) => Vec::new(),
            Action::RemoveNode(node, _) => self.busy_below(&[*node], &[*node]),
            Action::Repoint { users, to, .. } => {
                let used = users.iter().filter_map(|user| self.graph.used_by(*user));
                let nodes = users.iter().filter_map(|user| match user {
                    View::Node(node) => Some(*node),
                    View::Drive(_) => None,
                });
                let tops: Vec<_> = used.chain(*to).chain(nodes.clone()).collect();
                self.busy_below(&tops, &nodes.collect::<Vec<_>>())
            }
            Action::Bitmap(action) => self.busy_with_bitmap(action),
        }
    }

    fn add_node(&mut self, id: NodeId, node: &Node) -> Result<(), Refusal> {
        if self.graph.nodes.contains_key(&id) {
            return Err(Refusal::Exists(View::Node(id)));
        }
        let child = match node {
            Node::Memory(memory) => memory.backing(),
            Node::Filter { child } | Node::Opaque { child, .. } => Some(*child),
        };
        if let Some(child) = child {
            self.entry(View::Node(child))?;
        }
        self.graph.nodes.insert(id, node.clone());
        Ok(())
    }

    fn remove_node(&mut self, node: NodeId, orphans: Orphans) -> Result<(), Refusal> {
        self.entry(View::Node(node))?;
        let mut users: Vec<_> = self.graph.users(node).iter().map(ToString::to_string).collect();
        let bitmaps = self.bitmaps.iter().filter(|(_, bitmap)| bitmap.scope == View::Node(node));
        let in_use = |bitmap: &Bitmap| match orphans {
            Orphans::Refuse => true,
            Orphans::End => bitmap.frozen.is_some() || !bitmap.readers.is_empty(),
            Orphans::MoveToChild => false,
        };
        users.extend(bitmaps.filter(|(_, bitmap)| in_use(bitmap)).map(|(id, _)| id.to_string()));
        if !users.is_empty() {
            return Err(Refusal::InUse(users));
        }
        match (orphans, self.graph.node(node)) {
            (Orphans::MoveToChild, Some(Node::Filter { child })) => {
                let child = View::Node(*child);
                let moving = self.bitmaps.values_mut();
                moving
                    .filter(|bitmap| bitmap.scope == View::Node(node))
                    .for_each(|b| b.scope = child);
            }
            (Orphans::MoveToChild, _) => {
                return Err(Refusal::Unsupported("only a filter's bitmaps have a child's view"));
            }
            _ => self.bitmaps.retain(|_, bitmap| bitmap.scope != View::Node(node)),
        }
        self.graph.nodes.remove(&node);
        for watch in self.watches.values_mut().filter(|watch| watch.node == node) {
            watch.worsen(Freshness::Stale);
        }
        Ok(())
    }

    fn add_drive(&mut self, id: DriveId, root: Option<NodeId>) -> Result<(), Refusal> {
        if self.graph.drives.contains_key(&id) {
            return Err(Refusal::Exists(View::Drive(id)));
        }
        if let Some(root) = root {
            self.entry(View::Node(root))?;
        }
        self.graph.drives.insert(id, root);
        Ok(())
    }

    fn remove_drive(&mut self, id: DriveId) -> Result<(), Refusal> {
        let in_use: Vec<_> = (self.bitmaps.iter())
            .filter(|(_, bitmap)| bitmap.scope == View::Drive(id))
            .filter(|(_, bitmap)| bitmap.frozen.is_some() || !bitmap.readers.is_empty())
            .map(|(bitmap, _)| bitmap.to_string())
            .collect();
        if !in_use.is_empty() {
            return Err(Refusal::InUse(in_use));
        }
        self.graph.drives.remove(&id).ok_or(Refusal::UnknownDrive(id))?;
        self.bitmaps.retain(|_, bitmap| bitmap.scope != View::Drive(id));
        Ok(())
    }

    /// Changes in flight that meet a class at or below `tops`, or came through one of `nodes`.
    fn busy_below(&self, tops: &[NodeId], nodes: &[NodeId]) -> Vec<FlightId> {
        let classes: Vec<_> = tops.iter().flat_map(|top| self.graph.stops(*top)).collect();
        let busy = self.flights.iter().filter(|(_, flight)| {
            let path = self.graph.path(flight.entry);
            flight.legs.iter().any(|leg| classes.iter().any(|stop| stop.class == leg.class))
                || path.iter().any(|node| nodes.contains(node))
        });
        busy.map(|(id, _)| *id).collect()
    }
}
