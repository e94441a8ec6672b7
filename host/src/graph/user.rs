//! Who uses a node, in words: for messages.

use std::fmt;

use super::snapshot::{Edge, Graph};

/// How the id begins of the drive that an export of a node has for itself; the export's id follows.
pub(crate) const EXPORT_DRIVE: &str = "#export.";

/// "drive `vda`"; "export `e`" for the drive that an export of a node has for itself.
pub(crate) struct DriveTitle<'a>(pub(crate) &'a str);

impl fmt::Display for DriveTitle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.strip_prefix(EXPORT_DRIVE) {
            Some(export) => write!(f, "export `{export}`"),
            None => write!(f, "drive `{}`", self.0),
        }
    }
}

impl Graph {
    /// Who uses a node, each with the edge by which it does: "drive `vda`", "export `e`", "node `top`", "job `j`".
    pub(crate) fn users_of(&self, node: usize) -> impl Iterator<Item = (String, &Edge)> {
        let roots = self
            .drives
            .iter()
            .filter_map(|drive| Some((DriveTitle(&drive.id).to_string(), drive.root.as_ref()?)));
        let parents = self.nodes.iter().enumerate();
        let edges = parents.flat_map(move |(at, parent)| {
            parent.edges.iter().map(move |edge| (self.title(at), edge))
        });
        roots.chain(edges).filter(move |(_, edge)| edge.child == node)
    }

    /// "drive `vda` (edge `root`)", "node `top` (edge `backing`)": whose edge of this graph it is.
    #[cold]
    pub(super) fn user_of(&self, edge: &Edge) -> String {
        let is_it = |other: &Edge| std::ptr::eq(other, edge);
        let drive = self.drives.iter().find(|drive| drive.root.as_ref().is_some_and(is_it));
        let node = || self.nodes.iter().find(|node| node.edges.iter().any(is_it));
        let user = match drive {
            Some(drive) => DriveTitle(&drive.id).to_string(),
            None => match node() {
                Some(node) => format!("node `{}`", node.name),
                None => "its user".to_owned(),
            },
        };
        format!("{user} (edge `{}`)", edge.name)
    }
}
