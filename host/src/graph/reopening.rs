//! Which nodes have to be opened for writing before somebody writes to one, and which need not be open for it any
//! more.

use std::sync::Arc;

use super::permission::{PermissionSet, Role};
use super::snapshot::{Edge, Graph};
use crate::node::{OpenMode, Upkeep};

fn changes(edge: &Edge) -> bool {
    !edge.uses.intersection(PermissionSet::CHANGES).is_empty()
}

impl Graph {
    /// How a node is open.
    pub(crate) fn open_mode(&self, node: usize) -> OpenMode {
        self.nodes[node].mode()
    }

    /// Whether some nodes are open for writing only while somebody writes them.
    pub(crate) fn has_auto(&self) -> bool {
        (0..self.nodes.len()).any(|at| self.open_mode(at).auto)
    }

    /// Those of a node, and of what it keeps its bytes in, that are open for writing and could be otherwise, or are
    /// not open for it; parents first. A driver that holds nothing open is read-only only where that was asked for:
    /// it is not among the former.
    pub(crate) fn open_at_or_below(&self, node: usize, write: bool) -> Vec<usize> {
        let mut written = vec![false; self.nodes.len()];
        written[node] = true;
        let mut found = Vec::new();
        // Children come before their parents.
        for at in (0..=node).rev() {
            if !written[at] {
                continue;
            }
            for edge in &self.nodes[at].edges {
                written[edge.child] |= edge.role.forwards_changes() || edge.role == Role::Storage;
            }
            let is_held = !write || self.nodes[at].driver.reopening().is_some();
            if is_held && self.open_mode(at).write == write {
                found.push(at);
            }
        }
        found
    }

    /// Those of `nodes` that nobody writes, but others of them, which keep their bytes there.
    pub(crate) fn unwritten(&self, nodes: &[usize]) -> Vec<usize> {
        let mut written = vec![false; self.nodes.len()];
        for root in self.drives.iter().filter_map(|drive| drive.root()).filter(|it| changes(it)) {
            written[root.child] = true;
        }
        // Parents come after their children.
        for (at, node) in self.nodes.iter().enumerate().rev() {
            let keeps = node.driver.upkeep() == Upkeep::Writes && !nodes.contains(&at);
            for edge in node.edges.iter().filter(|edge| changes(edge)) {
                let by_itself = !edge.grants.intersection(PermissionSet::CHANGES).is_empty();
                written[edge.child] |= written[at] || by_itself || keeps;
            }
        }
        nodes.iter().copied().filter(|at| !written[*at]).collect()
    }

    /// By name, those that are open read-only until somebody writes them, and are written.
    pub(super) fn unopened(&self) -> Vec<Arc<str>> {
        let mut written = vec![false; self.nodes.len()];
        let roots = self.drives.iter().filter_map(|drive| drive.root());
        let edges = roots.chain(self.nodes.iter().flat_map(|node| &node.edges));
        edges.filter(|edge| changes(edge)).for_each(|edge| written[edge.child] = true);
        let is_closed = |at: &usize| {
            let mode = self.open_mode(*at);
            mode.auto && !mode.write
        };
        let closed = (0..self.nodes.len()).filter(|at| written[*at]).filter(is_closed);
        closed.map(|at| Arc::clone(&self.nodes[at].name)).collect()
    }

    /// By name, those that are open for writing only while somebody writes them, and that nobody writes.
    pub(super) fn left_by_writers(&self) -> Vec<Arc<str>> {
        let is_open = |at: &usize| {
            let mode = self.open_mode(*at);
            mode.auto && mode.write && !mode.for_job
        };
        let open: Vec<usize> = (0..self.nodes.len()).filter(is_open).collect();
        let left = if open.is_empty() { open } else { self.unwritten(&open) };
        left.into_iter().map(|at| Arc::clone(&self.nodes[at].name)).collect()
    }

    /// The nodes that were opened for jobs which nobody writes any more; parents first.
    pub(crate) fn left_open(&self) -> Vec<usize> {
        let is_left = |at: &usize| self.open_mode(*at).for_job;
        let opened: Vec<usize> = (0..self.nodes.len()).rev().filter(is_left).collect();
        if opened.is_empty() { opened } else { self.unwritten(&opened) }
    }

    /// The nodes that were opened for jobs, and are open for writing only while somebody writes them, which others
    /// write now.
    pub(crate) fn kept_open(&self) -> Vec<usize> {
        let left = self.left_open();
        let is_kept = |at: &usize| {
            let mode = self.open_mode(*at);
            mode.auto && mode.for_job && !left.contains(at)
        };
        (0..self.nodes.len()).rev().filter(is_kept).collect()
    }
}
