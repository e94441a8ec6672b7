//! Nodes, edges and drives, and every view by definition.
//!
//! A view is computed from the top down, recursively, each time it is asked for: no cache, no index,
//! nothing that could go stale. The same holds for classes and for what lies below a node.

use std::collections::BTreeMap;

use super::ids::{DriveId, NodeId, Span, View};
use super::memory::Memory;
use super::refusal::Refusal;

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// Stores bytes; its view edge is `backing`.
    Memory(Memory),
    /// Shows its child's bytes; its view edge is `filtered` or `data`, which are the same to views.
    Filter {
        /// Whose bytes it shows.
        child: NodeId,
    },
    /// Opaque: a window of a child, each byte XORed with a key. Its edge is no view edge. Past the
    /// child's end it shows zero.
    Opaque {
        /// Where its bytes are kept.
        child: NodeId,
        /// Which part of the child.
        window: Span,
        /// What tells its bytes from the child's.
        key: u8,
    },
}

/// One class on the way down from the top of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// The class, known by its lowest node.
    pub class: NodeId,
    /// The opaque node that was crossed last on the way to it.
    pub through: Option<NodeId>,
}

/// Where the bytes of a request to a node are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Store {
    pub(super) node: NodeId,
    pub(super) shift: usize,
    pub(super) key: u8,
}

/// All nodes and drives.
///
/// **Invariant**: edges lead to nodes that exist and form no cycle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    pub(super) nodes: BTreeMap<NodeId, Node>,
    pub(super) drives: BTreeMap<DriveId, Option<NodeId>>,
}

impl Graph {
    /// The node, if it exists.
    pub fn node(&self, node: NodeId) -> Option<&Node> {
        self.nodes.get(&node)
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().map(|(id, node)| (*id, node))
    }

    /// All drives with their roots.
    pub fn drives(&self) -> impl Iterator<Item = (DriveId, Option<NodeId>)> {
        self.drives.iter().map(|(id, root)| (*id, *root))
    }

    /// The node below: a node has at most one edge downwards.
    pub fn child(&self, node: NodeId) -> Option<NodeId> {
        match self.nodes.get(&node)? {
            Node::Memory(memory) => memory.backing,
            Node::Filter { child } | Node::Opaque { child, .. } => Some(*child),
        }
    }

    /// The top node of a view: the node itself, or the drive's root.
    pub fn top(&self, view: View) -> Option<NodeId> {
        match view {
            View::Node(node) => self.nodes.contains_key(&node).then_some(node),
            View::Drive(drive) => self.drives.get(&drive).copied().flatten(),
        }
    }

    /// What a node or drive uses: its child or its root.
    pub fn used_by(&self, user: View) -> Option<NodeId> {
        match user {
            View::Node(node) => self.child(node),
            View::Drive(_) => self.top(user),
        }
    }

    /// Parents and drives of a node.
    pub fn users(&self, node: NodeId) -> Vec<View> {
        let parents = self.nodes.keys().filter(|parent| self.child(**parent) == Some(node));
        let drives = self.drives.iter().filter(|(_, root)| **root == Some(node));
        parents
            .map(|parent| View::Node(*parent))
            .chain(drives.map(|(drive, _)| View::Drive(*drive)))
            .collect()
    }

    /// Size of a view; zero for what does not exist or has no medium.
    pub fn len(&self, view: impl Into<View>) -> usize {
        let Some(top) = self.top(view.into()) else { return 0 };
        match self.nodes.get(&top) {
            Some(Node::Memory(memory)) => memory.len(),
            Some(Node::Filter { child }) => self.len(*child),
            Some(Node::Opaque { window, .. }) => window.len(),
            None => 0,
        }
    }

    /// A view, by definition; empty for what does not exist or has no medium.
    pub fn bytes(&self, view: impl Into<View>) -> Vec<u8> {
        let Some(top) = self.top(view.into()) else { return Vec::new() };
        match self.nodes.get(&top) {
            Some(Node::Memory(memory)) => {
                memory.show(&memory.backing.map(|below| self.bytes(below)).unwrap_or_default())
            }
            Some(Node::Filter { child }) => self.bytes(*child),
            Some(Node::Opaque { child, window, key }) => {
                let below = self.bytes(*child);
                let shown = |at| below.get(at).map_or(0, |byte: &u8| byte ^ key);
                window.offsets().map(shown).collect()
            }
            None => Vec::new(),
        }
    }

    /// The class of a node, known by its lowest node.
    pub fn class(&self, node: NodeId) -> NodeId {
        match self.nodes.get(&node) {
            Some(Node::Filter { child }) => self.class(*child),
            _ => node,
        }
    }

    /// The node and all below it.
    pub fn path(&self, top: NodeId) -> Vec<NodeId> {
        std::iter::successors(Some(top), |node| self.child(*node)).collect()
    }

    /// The classes from `top` downwards, across opaque nodes too.
    pub fn stops(&self, top: NodeId) -> Vec<Stop> {
        let mut stops = vec![Stop { class: self.class(top), through: None }];
        while let Some(Stop { class, through }) = stops.last().copied() {
            let Some(below) = self.child(class) else { break };
            let opaque = matches!(self.nodes.get(&class), Some(Node::Opaque { .. }));
            let through = if opaque { Some(class) } else { through };
            stops.push(Stop { class: self.class(below), through });
        }
        stops
    }

    /// Whether `node` is in the class of `of`, or in one below it along view edges.
    pub fn is_at_or_below(&self, node: NodeId, of: NodeId) -> bool {
        let class = self.class(node);
        self.stops(of).iter().any(|stop| stop.through.is_none() && stop.class == class)
    }

    /// What a write to `node` stores where.
    pub(super) fn store(&self, node: NodeId) -> Store {
        let class = self.class(node);
        let Some(Node::Opaque { child, window, key }) = self.nodes.get(&class) else {
            return Store { node: class, shift: 0, key: 0 };
        };
        let below = self.store(*child);
        Store { node: below.node, shift: below.shift + window.start, key: below.key ^ key }
    }

    /// The view under a memory node.
    pub(super) fn below(&self, memory: NodeId) -> Vec<u8> {
        self.child(memory).map(|below| self.bytes(below)).unwrap_or_default()
    }

    pub(super) fn memory_mut(&mut self, node: NodeId) -> Option<&mut Memory> {
        match self.nodes.get_mut(&node) {
            Some(Node::Memory(memory)) => Some(memory),
            _ => None,
        }
    }

    /// Points the edge of `user` to `to`.
    pub(super) fn point(&mut self, user: View, to: Option<NodeId>) -> Result<(), Refusal> {
        if let Some(to) = to {
            if !self.nodes.contains_key(&to) {
                return Err(Refusal::UnknownNode(to));
            }
            if let View::Node(node) = user
                && self.path(to).contains(&node)
            {
                return Err(Refusal::Cycle(node, to));
            }
        }
        match user {
            View::Drive(drive) => {
                *self.drives.get_mut(&drive).ok_or(Refusal::UnknownDrive(drive))? = to;
            }
            View::Node(node) => {
                match (self.nodes.get_mut(&node).ok_or(Refusal::UnknownNode(node))?, to) {
                    (Node::Memory(memory), to) => memory.backing = to,
                    (Node::Filter { child } | Node::Opaque { child, .. }, Some(to)) => *child = to,
                    _ => return Err(Refusal::Unsupported("a filter or opaque node needs a child")),
                }
            }
        }
        Ok(())
    }
}
