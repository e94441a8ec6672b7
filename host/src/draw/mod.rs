//! Drawings of a block graph, and the one description that they are made of.
//!
//! A file's graph ([`of_spec`]) and a live one (`of_host`) become the same description; `query-graph` sends
//! it, and `blockloom graph --control` draws what it gets.

mod dot;
mod of_host;
mod of_spec;
mod svg;
#[cfg(test)]
mod tests;
mod tree;

pub use dot::dot;
pub(crate) use of_host::of_host;
pub use of_spec::of_spec;
pub use svg::svg;
pub use tree::tree;

use std::fmt;

use crate::control::qapi::{qapi_enum, qapi_struct};
use crate::graph::{PermissionSet, Role};

qapi_enum! {
    /// What a permission lets its holder do.
    pub enum Permission {
        /// To read bytes that are consistent.
        ConsistentRead = "consistent-read",
        /// To change bytes.
        Write = "write",
        /// To write what changes no view.
        WriteUnchanged = "write-unchanged",
        /// To change the size.
        Resize = "resize",
    }
}

qapi_enum! {
    /// What stands at the upper end of an edge, or has a bitmap or an export.
    pub enum Kind {
        /// A drive, by its id.
        Drive = "drive",
        /// An export of a node, by its id.
        Export = "export",
        /// A node, by its name.
        Node = "node",
    }
}

qapi_enum! {
    /// What a child is to its parent.
    pub enum EdgeRole {
        /// What a drive or an export of a node shows.
        Root = "root",
        /// The parent shows the child's bytes.
        Filtered = "filtered",
        /// The parent keeps its bytes there, at the same offsets.
        Data = "data",
        /// Shown where the parent has no bytes of its own.
        Backing = "backing",
        /// The parent keeps its bytes there.
        Storage = "storage",
        /// The parent reads it and does not show it.
        Source = "source",
        /// The parent writes it.
        Target = "target",
    }
}

qapi_struct! {
    /// What a client or an export uses.
    pub struct DescribedDrive {
        /// Its name.
        pub id: String,
        /// The node that it shows; absent: no medium.
        pub root: Option<String>,
        /// Whether it may change its view.
        pub writable: bool,
    }
}

qapi_struct! {
    /// An export.
    pub struct DescribedExport {
        /// Its name among exports.
        pub id: String,
        /// What clients call it.
        pub name: String,
        /// Whether it is of a drive or of a node.
        pub scope: Kind,
        /// Of which.
        pub of: String,
        /// Where it is served.
        pub listen: String,
        /// Whether clients may change it.
        pub writable: bool,
        /// The bitmaps that clients can read.
        pub bitmaps: Vec<String>,
    }
}

qapi_struct! {
    /// A node.
    pub struct DescribedNode {
        /// Its name.
        pub name: String,
        /// Its driver.
        pub driver: String,
        /// What matters most of its options, for people.
        pub detail: Option<String>,
        /// The plugin instance that it shares with others.
        pub instance: Option<String>,
        /// Whether it refuses changes.
        pub read_only: bool,
        /// Whether it has no name of its own.
        pub unnamed: bool,
        /// Bytes of its view, if they are known.
        pub size: Option<u64>,
    }
}

qapi_struct! {
    /// A dirty bitmap.
    pub struct DescribedBitmap {
        /// What it is called.
        pub id: String,
        /// What clients see.
        pub name: String,
        /// Whether it records a drive or a node.
        pub scope: Kind,
        /// Which.
        pub of: String,
        /// Bytes that one bit stands for.
        pub granularity: u64,
        /// Where it is kept when the host is down, for people; absent: nowhere.
        pub kept: Option<String>,
        /// Which one it is, wherever it is stored.
        pub uuid: Option<String>,
        /// What it does with changes: recording, disabled, frozen, inconsistent.
        pub state: String,
        /// Dirty bytes, of one that lives.
        pub count: Option<u64>,
    }
}

qapi_struct! {
    /// A use of a node.
    pub struct DescribedEdge {
        /// What uses it.
        pub parent_kind: Kind,
        /// Which.
        pub parent: String,
        /// What the parent calls it.
        pub name: String,
        /// The node.
        pub child: String,
        /// What it is to the parent.
        pub role: EdgeRole,
        /// What the parent uses.
        pub uses: Vec<Permission>,
        /// What it lets others use.
        pub shares: Vec<Permission>,
    }
}

qapi_struct! {
    /// A whole graph.
    pub struct GraphDescription {
        /// All drives.
        pub drives: Vec<DescribedDrive>,
        /// All exports.
        pub exports: Vec<DescribedExport>,
        /// All nodes.
        pub nodes: Vec<DescribedNode>,
        /// All dirty bitmaps.
        pub bitmaps: Vec<DescribedBitmap>,
        /// All edges.
        pub edges: Vec<DescribedEdge>,
    }
}

const PERMISSIONS: [(Permission, PermissionSet, &str); 4] = [
    (Permission::ConsistentRead, PermissionSet::CONSISTENT_READ, "cr"),
    (Permission::Write, PermissionSet::WRITE, "w"),
    (Permission::WriteUnchanged, PermissionSet::WRITE_UNCHANGED, "wu"),
    (Permission::Resize, PermissionSet::RESIZE, "r"),
];

fn permissions(set: PermissionSet) -> Vec<Permission> {
    let held = PERMISSIONS.into_iter().filter(|(_, one, _)| set.contains(*one));
    held.map(|(permission, ..)| permission).collect()
}

/// As a [`PermissionSet`] is shown.
fn short(permissions: &[Permission]) -> String {
    let held = PERMISSIONS.into_iter().filter(|(one, ..)| permissions.contains(one));
    let words: Vec<&str> = held.map(|(.., word)| word).collect();
    if words.is_empty() { "-".to_owned() } else { words.join("+") }
}

impl From<Role> for EdgeRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Root => Self::Root,
            Role::Filtered => Self::Filtered,
            Role::Data => Self::Data,
            Role::Backing => Self::Backing,
            Role::Storage => Self::Storage,
            Role::Source => Self::Source,
            Role::Target => Self::Target,
        }
    }
}

impl EdgeRole {
    /// Whether the parent shows bytes of the child, as far as it has none of its own.
    fn is_view(self) -> bool {
        matches!(self, Self::Root | Self::Filtered | Self::Data | Self::Backing)
    }
}

impl fmt::Display for EdgeRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Filtered => "filtered",
            Self::Data => "data",
            Self::Backing => "backing",
            Self::Storage => "storage",
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

impl GraphDescription {
    fn node(&self, name: &str) -> Option<&DescribedNode> {
        self.nodes.iter().find(|node| node.name == name)
    }

    fn edges_to<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a DescribedEdge> {
        self.edges.iter().filter(move |edge| edge.child == name)
    }

    /// The edges that lead down from something.
    fn edges_from<'a>(
        &'a self,
        kind: Kind,
        name: &'a str,
    ) -> impl Iterator<Item = &'a DescribedEdge> {
        self.edges.iter().filter(move |edge| edge.parent_kind == kind && edge.parent == name)
    }

    fn bitmaps_of<'a>(
        &'a self,
        kind: Kind,
        name: &'a str,
    ) -> impl Iterator<Item = &'a DescribedBitmap> {
        self.bitmaps.iter().filter(move |bitmap| bitmap.scope == kind && bitmap.of == name)
    }

    fn exports_of<'a>(
        &'a self,
        kind: Kind,
        name: &'a str,
    ) -> impl Iterator<Item = &'a DescribedExport> {
        self.exports.iter().filter(move |export| export.scope == kind && export.of == name)
    }
}

fn export_text(export: &DescribedExport) -> String {
    let mut text = format!("export {}: nbd on {}", export.id, export.listen);
    if export.name != export.id {
        text.push_str(&format!(", name \"{}\"", export.name));
    }
    text.push_str(if export.writable { ", writable" } else { ", read-only" });
    if !export.bitmaps.is_empty() {
        text.push_str(&format!(", bitmaps {}", export.bitmaps.join(", ")));
    }
    text
}

fn bitmap_text(bitmap: &DescribedBitmap) -> String {
    let mut text = format!("bitmap {}: ", bitmap.id);
    if bitmap.name != bitmap.id {
        text.push_str(&format!("name \"{}\", ", bitmap.name));
    }
    text.push_str(&format!("granularity {}", crate::config::format_size(bitmap.granularity)));
    if let Some(kept) = &bitmap.kept {
        text.push_str(&format!(", kept {kept}"));
    }
    if let Some(uuid) = &bitmap.uuid {
        text.push_str(&format!(", UUID {uuid}"));
    }
    if bitmap.state != RECORDING {
        text.push_str(&format!(", {}", bitmap.state));
    }
    if let Some(count) = bitmap.count {
        text.push_str(&format!(", {} dirty", crate::config::format_size(count)));
    }
    text
}

/// The state that goes without saying.
const RECORDING: &str = "recording";

/// The node's name, its driver and what matters most of its options.
fn node_text(node: &DescribedNode) -> String {
    let detail = node.detail.as_deref().unwrap_or_default();
    let instance = node.instance.as_ref().map(|it| format!(", instance {it}")).unwrap_or_default();
    let read_only = if node.read_only { ", read-only" } else { "" };
    format!("{} ({}{detail}{instance}{read_only})", node.name, node.driver)
}
