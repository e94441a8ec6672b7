//! The graph as a tree of text: drives and exports of nodes at the top, then nodes that nobody
//! uses.

use std::collections::BTreeSet;

use super::EdgeSpec;
use super::qcow2_options::BackingSpec;
use super::render::printable;
use super::spec::{BitmapSpec, DriverSpec, ExportSpec, GraphSpec, NodeSpec, Persist, Scope};
use super::units::format_size;

/// Draws `spec` as a tree, one line for each drive, export, bitmap and edge.
///
/// An edge shows what the parent calls its child, the child, the edge's role, and the permissions
/// that it uses and shares (`cr` consistent-read, `w` write, `wu` write-unchanged, `r` resize). The
/// children of a node that has been drawn before are not repeated: it is marked `(*)`.
pub fn tree(spec: &GraphSpec) -> String {
    let mut roots: Vec<Branch> = Vec::new();
    let mut drawn = BTreeSet::new();
    for drive in &spec.drives {
        let scope = Scope::Drive(drive.id.clone());
        let mut below: Vec<Branch> = exports_of(spec, &scope).map(export_branch).collect();
        below.extend(bitmaps_of(spec, &scope).map(bitmap_branch));
        let root = spec.edges.iter().find(|edge| edge.parent_is_drive(&drive.id.value));
        below.push(match root {
            Some(edge) => edge_branch(spec, edge, &mut drawn),
            None => Branch::leaf("no medium".to_owned()),
        });
        roots.push(Branch { text: format!("drive {}", drive.id), below });
    }
    for edge in &spec.edges {
        let Some(export) = edge.parent_export().and_then(|id| spec.export(id)) else { continue };
        let below = vec![edge_branch(spec, edge, &mut drawn)];
        roots.push(Branch { text: export_text(export), below });
    }
    for node in &spec.nodes {
        if spec.edges_to(&node.name.value).next().is_none() {
            let text = format!("{}, not used", node_text(node));
            roots.push(node_branch(spec, node, text, &mut drawn));
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
    spec: &'a GraphSpec,
    edge: &'a EdgeSpec,
    drawn: &mut BTreeSet<&'a str>,
) -> Branch {
    let node = spec.node(&edge.child);
    let child = node.map_or_else(|| edge.child.clone(), node_text);
    let EdgeSpec { name, role, uses, shares, .. } = edge;
    let text = format!("{name}: {child} [{role}, uses {uses}, shares {shares}]");
    match node {
        Some(node) => node_branch(spec, node, text, drawn),
        None => Branch::leaf(text),
    }
}

fn node_branch<'a>(
    spec: &'a GraphSpec,
    node: &'a NodeSpec,
    text: String,
    drawn: &mut BTreeSet<&'a str>,
) -> Branch {
    let name = node.name.value.as_str();
    let scope = Scope::Node(node.name.clone());
    let bitmaps = bitmaps_of(spec, &scope).map(bitmap_branch);
    if !drawn.insert(name) {
        let has_more = !node.children.is_empty() || bitmaps.count() > 0;
        return Branch::leaf(if has_more { format!("{text} (*)") } else { text });
    }
    let mut below: Vec<Branch> = bitmaps.collect();
    below.extend(spec.edges_from(name).map(|edge| edge_branch(spec, edge, drawn)));
    Branch { text, below }
}

fn exports_of<'a>(spec: &'a GraphSpec, scope: &'a Scope) -> impl Iterator<Item = &'a ExportSpec> {
    spec.exports.iter().filter(move |export| export.scope == *scope)
}

pub(super) fn bitmaps_of<'a>(
    spec: &'a GraphSpec,
    scope: &'a Scope,
) -> impl Iterator<Item = &'a BitmapSpec> {
    spec.bitmaps.iter().filter(move |bitmap| bitmap.scope == *scope)
}

fn export_branch(export: &ExportSpec) -> Branch {
    Branch::leaf(export_text(export))
}

fn bitmap_branch(bitmap: &BitmapSpec) -> Branch {
    Branch::leaf(bitmap_text(bitmap))
}

pub(super) fn export_text(export: &ExportSpec) -> String {
    let mut text = format!("export {}: nbd on {}", export.id, export.listen);
    if export.name != export.id {
        text.push_str(&format!(", name \"{}\"", export.name));
    }
    text.push_str(if export.writable.value { ", writable" } else { ", read-only" });
    if !export.bitmaps.is_empty() {
        let ids: Vec<&str> = export.bitmaps.iter().map(|id| id.value.as_str()).collect();
        text.push_str(&format!(", bitmaps {}", ids.join(", ")));
    }
    text
}

pub(super) fn bitmap_text(bitmap: &BitmapSpec) -> String {
    let mut text = format!("bitmap {}: ", bitmap.id);
    if bitmap.name != bitmap.id {
        text.push_str(&format!("name \"{}\", ", bitmap.name));
    }
    let granularity = format_size(u64::from(bitmap.granularity_bytes.value));
    text.push_str(&format!("granularity {granularity}"));
    match &bitmap.persist.value {
        Persist::None => {}
        Persist::Root => text.push_str(", kept at the root"),
        Persist::Node(node) => text.push_str(&format!(", kept in {node}")),
        Persist::Meta => text.push_str(", kept in the metadata image"),
    }
    if let Some(uuid) = &bitmap.uuid {
        text.push_str(&format!(", UUID {}", uuid.value));
    }
    if !bitmap.enabled.value {
        text.push_str(", disabled");
    }
    text
}

/// The node's name, its driver and what matters most of its options.
pub(super) fn node_text(node: &NodeSpec) -> String {
    let detail = match &node.driver {
        DriverSpec::File(file) => format!(" {}", file.path),
        DriverSpec::Memory(memory) => format!(" {}", format_size(memory.size_bytes.value)),
        DriverSpec::Null(null) => format!(" {}", format_size(null.size_bytes.value)),
        DriverSpec::Raw(raw) => {
            let offset = raw.offset_bytes.as_ref().map(|it| (" from ", it.value));
            let size = raw.size_bytes.as_ref().map(|it| (" size ", it.value));
            let parts = [offset, size].into_iter().flatten();
            parts.map(|(what, bytes)| format!("{what}{}", format_size(bytes))).collect()
        }
        DriverSpec::Qcow2(image) => match image.size_bytes() {
            Some(bytes) => format!(" {}", format_size(bytes)),
            None if image.backing.value == BackingSpec::AsImage && image.image.is_none() => {
                ", backing as its image says".to_owned()
            }
            None => String::new(),
        },
        DriverSpec::Plugin(plugin) => format!(" {}", plugin.plugin.value),
        DriverSpec::Filter(_) | DriverSpec::Running(_) => String::new(),
        DriverSpec::View(view) => format!(" {}", view.view),
    };
    let instance = node.driver.instance();
    let instance = instance.map(|it| format!(", instance {it}")).unwrap_or_default();
    let read_only = if node.read_only.value { ", read-only" } else { "" };
    format!("{} ({}{detail}{instance}{read_only})", node.name, node.driver.name())
}
