//! The graph in the DOT language, for Graphviz.

use super::{GraphDescription, Kind, bitmap_text, export_text, node_text, short};
use crate::text::printable;

/// Draws a graph in the DOT language: exports and drives as ellipses, nodes as boxes, bitmaps as
/// notes; edges bear their name, role, and the permissions that they use and share.
pub fn dot(graph: &GraphDescription) -> String {
    let mut dot = Dot { text: String::new() };
    dot.text.push_str("digraph blockloom {\n");
    dot.text.push_str("    node [shape=box, fontname=\"monospace\"];\n");
    dot.text.push_str("    edge [fontname=\"monospace\"];\n");
    for drive in &graph.drives {
        let medium = if drive.root.is_some() { "" } else { ", no medium" };
        let label = format!("drive {}{medium}", drive.id);
        dot.vertex(&key(Kind::Drive, &drive.id), &label, "shape=ellipse, style=bold");
    }
    for export in &graph.exports {
        let from = key(Kind::Export, &export.id);
        dot.vertex(&from, &export_text(export), "shape=ellipse");
        if export.scope == Kind::Drive {
            dot.edge(&from, &key(Kind::Drive, &export.of), "", "");
        }
    }
    for node in &graph.nodes {
        let style = if node.unnamed { "style=dashed" } else { "style=solid" };
        dot.vertex(&key(Kind::Node, &node.name), &node_text(node), style);
    }
    for bitmap in &graph.bitmaps {
        // In a file each has an id of its own; in a host a name is unique in its scope.
        let from = match bitmap.count {
            None => format!("bitmap {}", bitmap.id),
            Some(_) => format!("bitmap {} of {}", bitmap.id, key(bitmap.scope, &bitmap.of)),
        };
        dot.vertex(&from, &bitmap_text(bitmap), "shape=note");
        dot.edge(&from, &key(bitmap.scope, &bitmap.of), "", "style=dotted, arrowhead=none");
    }
    for edge in &graph.edges {
        let (uses, shares) = (short(&edge.uses), short(&edge.shares));
        let label = format!("{}: {}\nuses {uses}\nshares {shares}", edge.name, edge.role);
        let style = if edge.role.is_view() { "style=solid" } else { "style=dashed" };
        let from = key(edge.parent_kind, &edge.parent);
        dot.edge(&from, &key(Kind::Node, &edge.child), &label, style);
    }
    dot.text.push_str("}\n");
    dot.text
}

/// Drives, nodes, bitmaps and exports have names of their own kind: the key tells them apart.
fn key(kind: Kind, name: &str) -> String {
    let kind = match kind {
        Kind::Drive => "drive",
        Kind::Export => "export",
        Kind::Node => "node",
    };
    format!("{kind} {name}")
}

struct Dot {
    text: String,
}

impl Dot {
    fn vertex(&mut self, key: &str, label: &str, style: &str) {
        let (key, label) = (quoted(key), quoted(label));
        self.text.push_str(&format!("    {key} [label={label}, {style}];\n"));
    }

    fn edge(&mut self, from: &str, to: &str, label: &str, style: &str) {
        let label =
            if label.is_empty() { label.to_owned() } else { format!("label={}", quoted(label)) };
        let parts: Vec<&str> =
            [label.as_str(), style].into_iter().filter(|part| !part.is_empty()).collect();
        let attributes = match parts.is_empty() {
            true => String::new(),
            false => format!(" [{}]", parts.join(", ")),
        };
        let (from, to) = (quoted(from), quoted(to));
        self.text.push_str(&format!("    {from} -> {to}{attributes};\n"));
    }
}

/// A DOT string: what would end it or begin an escape is escaped, a line break is one.
fn quoted(text: &str) -> String {
    let lines =
        text.split('\n').map(|line| printable(line).replace('\\', "\\\\").replace('"', "\\\""));
    let lines: Vec<String> = lines.collect();
    format!("\"{}\"", lines.join("\\n"))
}
