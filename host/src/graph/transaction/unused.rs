//! Nodes that were never named go with the last who uses them, once that for which they were there has gone.

use std::sync::Arc;

use super::draft::{Draft, Link};
use crate::graph::snapshot::BitmapScope;

impl Draft {
    /// After all actions: removes what is to go if nobody uses it. What only jobs use still is remembered until that is so.
    pub(super) fn remove_unused(&mut self) {
        let left = self.nodes.iter().filter(|node| node.is_left);
        let mut pending: Vec<String> = left.map(|node| node.name.to_string()).collect();
        pending.append(&mut self.unused);
        // Each that goes adds its children once.
        while let Some(name) = pending.pop() {
            let Some(at) = self.nodes.iter().position(|node| *node.name == *name) else { continue };
            if self.nodes[at].driver.job().is_some() {
                // It goes with the job; what it shows may be there for nobody but that.
                let view = self.nodes[at].edges.iter().find(|edge| edge.role.is_view());
                pending.extend(view.map(|edge| edge.child.to_string()));
                continue;
            }
            let (may_go, users) = (self.may_go_unused(at), self.users(&name));
            if !may_go || !users.is_empty() {
                self.nodes[at].is_left = may_go && users.iter().all(|link| self.is_of_job(*link));
                continue;
            }
            let node = self.nodes.remove(at);
            self.view_goes(&BitmapScope::Node(node.name));
            pending.extend(node.edges.iter().map(|edge| edge.child.to_string()));
        }
    }

    fn may_go_unused(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        let scope = BitmapScope::Node(Arc::clone(&node.name));
        node.name.starts_with('#')
            && !node.is_new
            && !self.bitmaps.iter().any(|entry| entry.scope == scope)
            && !self.works.iter().any(|work| *work.node() == *node.name)
    }

    fn is_of_job(&self, link: Link) -> bool {
        matches!(link, Link::Child(parent, _) if self.nodes[parent].driver.job().is_some())
    }
}
