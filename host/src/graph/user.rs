//! Who uses a node, in words: for messages.

use super::snapshot::{Edge, Graph};

impl Graph {
    /// "drive `vda` (edge `root`)", "node `top` (edge `backing`)": whose edge of this graph it is.
    #[cold]
    pub(super) fn user_of(&self, edge: &Edge) -> String {
        let is_it = |other: &Edge| std::ptr::eq(other, edge);
        let drive = self.drives.iter().find(|drive| drive.root.as_ref().is_some_and(is_it));
        let node = || self.nodes.iter().find(|node| node.edges.iter().any(is_it));
        let user = match drive {
            Some(drive) => format!("drive `{}`", drive.id),
            None => match node() {
                Some(node) => format!("node `{}`", node.name),
                None => "its user".to_owned(),
            },
        };
        format!("{user} (edge `{}`)", edge.name)
    }
}
