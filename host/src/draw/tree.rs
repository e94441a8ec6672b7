//! The graph as a tree of text: drives and exports of nodes at the top, then nodes that nobody
//! uses.

use std::collections::BTreeSet;

use super::{
    DescribedEdge, DescribedNode, GraphDescription, Kind, bitmap_text, export_text, node_text,
    short,
};
use crate::text::printable;

/// Draws a graph as a tree, one line for each drive, export, bitmap and edge.
///
/// An edge shows what the parent calls its child, the child, the edge's role, and the permissions
/// that it uses and shares (`cr` consistent-read, `w` write, `wu` write-unchanged, `r` resize). The
/// children of a node that has been drawn before are not repeated: it is marked `(*)`.
pub fn tree(graph: &GraphDescription) -> String {
    let mut roots: Vec<Branch> = Vec::new();
    let mut drawn = BTreeSet::new();
    for drive in &graph.drives {
        let exports = graph.exports_of(Kind::Drive, &drive.id);
        let mut below: Vec<Branch> = exports.map(|it| Branch::leaf(export_text(it))).collect();
        let bitmaps = graph.bitmaps_of(Kind::Drive, &drive.id);
        below.extend(bitmaps.map(|it| Branch::leaf(bitmap_text(it))));
        let mut edges = graph.edges_from(Kind::Drive, &drive.id);
        below.push(match edges.next() {
            Some(edge) => edge_branch(graph, edge, &mut drawn),
            None => Branch::leaf("no medium".to_owned()),
        });
        roots.push(Branch { text: format!("drive {}", drive.id), below });
    }
    for edge in graph.edges.iter().filter(|edge| edge.parent_kind == Kind::Export) {
        let export = graph.exports.iter().find(|export| export.id == edge.parent);
        let text = export.map_or_else(|| format!("export {}", edge.parent), export_text);
        roots.push(Branch { text, below: vec![edge_branch(graph, edge, &mut drawn)] });
    }
    for node in &graph.nodes {
        if graph.edges_to(&node.name).next().is_none() {
            let text = format!("{}, not used", node_text(node));
            roots.push(node_branch(graph, node, text, &mut drawn));
        }
    }
    let mut text = String::new();
    for root in &roots {
        root.draw("", "", &mut text);
    }
    text
}

struct Branch {
    text: String,
    below: Vec<Branch>,
}

impl Branch {
    fn leaf(text: String) -> Self {
        Self { text, below: Vec::new() }
    }

    /// Draws this line behind `first`, and the lines below it behind `rest`.
    fn draw(&self, first: &str, rest: &str, to: &mut String) {
        to.push_str(first);
        to.push_str(&printable(&self.text));
        to.push('\n');
        for (index, branch) in self.below.iter().enumerate() {
            let (fork, line) = match index + 1 == self.below.len() {
                true => ("└── ", "    "),
                false => ("├── ", "│   "),
            };
            branch.draw(&format!("{rest}{fork}"), &format!("{rest}{line}"), to);
        }
    }
}

fn edge_branch<'a>(
    graph: &'a GraphDescription,
    edge: &'a DescribedEdge,
    drawn: &mut BTreeSet<&'a str>,
) -> Branch {
    let node = graph.node(&edge.child);
    let child = node.map_or_else(|| edge.child.clone(), node_text);
    let (uses, shares) = (short(&edge.uses), short(&edge.shares));
    let text = format!("{}: {child} [{}, uses {uses}, shares {shares}]", edge.name, edge.role);
    match node {
        Some(node) => node_branch(graph, node, text, drawn),
        None => Branch::leaf(text),
    }
}

fn node_branch<'a>(
    graph: &'a GraphDescription,
    node: &'a DescribedNode,
    text: String,
    drawn: &mut BTreeSet<&'a str>,
) -> Branch {
    let name = node.name.as_str();
    let mut bitmaps = graph.bitmaps_of(Kind::Node, name).peekable();
    let mut children = graph.edges_from(Kind::Node, name).peekable();
    if !drawn.insert(name) {
        let has_more = children.peek().is_some() || bitmaps.peek().is_some();
        return Branch::leaf(if has_more { format!("{text} (*)") } else { text });
    }
    let mut below: Vec<Branch> = bitmaps.map(|it| Branch::leaf(bitmap_text(it))).collect();
    below.extend(children.map(|edge| edge_branch(graph, edge, drawn)));
    Branch { text, below }
}
