//! The graph in the DOT language, for Graphviz.

use super::draw::{bitmap_text, export_text, node_text};
use super::render::printable;
use super::spec::{GraphSpec, Scope};
use super::{EdgeParent, Role};

/// Draws `spec` in the DOT language: exports and drives as ellipses, nodes as boxes, bitmaps as
/// notes; edges bear their name, role, and the permissions that they use and share.
pub fn dot(spec: &GraphSpec) -> String {
    let mut dot = Dot { text: String::new() };
    dot.text.push_str("digraph blockloom {\n");
    dot.text.push_str("    node [shape=box, fontname=\"monospace\"];\n");
    dot.text.push_str("    edge [fontname=\"monospace\"];\n");
    for drive in &spec.drives {
        let medium = if drive.root.is_some() { "" } else { ", no medium" };
        let label = format!("drive {}{medium}", drive.id);
        dot.vertex(&key("drive", &drive.id.value), &label, "shape=ellipse, style=bold");
    }
    for export in &spec.exports {
        let from = key("export", &export.id.value);
        dot.vertex(&from, &export_text(export), "shape=ellipse");
        if let Scope::Drive(drive) = &export.scope {
            dot.edge(&from, &key("drive", &drive.value), "", "");
        }
    }
    for node in &spec.nodes {
        let style = if node.is_unnamed { "style=dashed" } else { "style=solid" };
        dot.vertex(&key("node", &node.name.value), &node_text(node), style);
    }
    for bitmap in &spec.bitmaps {
        let from = key("bitmap", &bitmap.id.value);
        dot.vertex(&from, &bitmap_text(bitmap), "shape=note");
        dot.edge(&from, &key_of(&bitmap.scope), "", "style=dotted, arrowhead=none");
    }
    for edge in &spec.edges {
        let from = match &edge.parent {
            EdgeParent::Drive(id) => key("drive", id),
            EdgeParent::Export(id) => key("export", id),
            EdgeParent::Node(name) => key("node", name),
        };
        let label =
            format!("{}: {}\nuses {}\nshares {}", edge.name, edge.role, edge.uses, edge.shares);
        let style = match edge.role {
            Role::Root | Role::Filtered | Role::Data | Role::Backing => "style=solid",
            Role::Storage | Role::Source | Role::Target => "style=dashed",
        };
        dot.edge(&from, &key("node", &edge.child), &label, style);
    }
    dot.text.push_str("}\n");
    dot.text
}

/// Drives, nodes, bitmaps and exports have names of their own kind: the key tells them apart.
fn key(kind: &str, name: &str) -> String {
    format!("{kind} {name}")
}

fn key_of(scope: &Scope) -> String {
    match scope {
        Scope::Drive(id) => key("drive", &id.value),
        Scope::Node(name) => key("node", &name.value),
    }
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
