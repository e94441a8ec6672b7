//! Roles and permissions of edges: computed for the whole graph, and checked for conflicts.
//!
//! As in QEMU, an edge *uses* some permissions and *shares* some with the node's other users. Users
//! at the top (drives, exports of nodes) begin; a `filtered` edge passes on what the users above it
//! use and share; a `backing` edge only reads; a `storage` edge never shares writing or resizing, for its bytes mean something
//! only together; a plugin's edge uses its grants as well. Two users conflict if one uses what the
//! other does not share.

use super::diagnostic::{Diagnostic, Problems, Span};
use super::plugin_options::{BytesGrant, Grant};
use super::references::describe_parent;
use super::spec::{ChildSpec, DriverSpec, ExportSpec, FilterKind, GraphSpec, NodeSpec, Scope};
use crate::graph::{PermissionSet, Role, Users, Verb};

/// The upper end of an edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EdgeParent {
    /// A drive, by its id.
    Drive(String),
    /// An export of a node, by its id.
    Export(String),
    /// A node, by its name.
    Node(String),
}

/// An edge of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeSpec {
    /// Who uses the child.
    pub parent: EdgeParent,
    /// The name of the node that is used.
    pub child: String,
    /// What the parent calls it: `root` of a drive, `node` of an export, `file` and so on of a
    /// node.
    pub name: String,
    /// What the child is to the parent.
    pub role: Role,
    /// What the parent uses.
    pub uses: PermissionSet,
    /// What the parent lets others use.
    pub shares: PermissionSet,
    /// Where the file names the child.
    pub span: Span,
}

/// What the child called `child` is to `node`.
pub(super) fn role_of(node: &NodeSpec, child: &str) -> Role {
    match &node.driver {
        DriverSpec::Raw(raw) if raw.is_section() => Role::Storage,
        DriverSpec::Memory(_) => Role::Backing,
        DriverSpec::Qcow2(_) if child == "backing" => Role::Backing,
        DriverSpec::Qcow2(image) if child == "data-file" && image.data_file_is_raw() => Role::Data,
        DriverSpec::Qcow2(_) => Role::Storage,
        DriverSpec::Plugin(plugin) if child != "file" => {
            let grants = plugin.grants.iter().filter(|grant| grant.child.value == child);
            let changes =
                grants.map(|grant| grant.permissions().intersection(PermissionSet::CHANGES));
            let writes = changes.fold(PermissionSet::NONE, PermissionSet::union);
            if child != "source" && (child == "target" || !writes.is_empty()) {
                Role::Target
            } else {
                Role::Source
            }
        }
        // What it shows is made of the child's bytes, and is not them.
        DriverSpec::Plugin(plugin)
            if plugin.bytes.is_some_and(|bytes| bytes.value == BytesGrant::Transform) =>
        {
            Role::Storage
        }
        DriverSpec::Filter(filter) if filter.kind == FilterKind::Backup && child == "target" => {
            Role::Target
        }
        DriverSpec::Filter(_) if child != "file" => Role::Source,
        DriverSpec::View(_) => Role::Source,
        _ => Role::Filtered,
    }
}

/// All edges: of drives, of exports of nodes, of nodes. Edges to nodes that do not exist are left
/// out.
pub(super) fn edges(spec: &GraphSpec) -> Vec<EdgeSpec> {
    let indices = spec.indices();
    // Who adds a node to a host that runs is about to use it.
    let later = |node: &NodeSpec| match spec.is_addition() && spec.is_left_to_users(node) {
        true => Users { uses: PermissionSet::READ_WRITE, ..Users::NONE },
        false => Users::NONE,
    };
    let mut used: Vec<Users> = spec.nodes.iter().map(later).collect();
    let mut edges = top_edges(spec);
    edges.retain(|edge| match indices.get(edge.child.as_str()) {
        Some(node) => {
            let EdgeSpec { uses, shares, .. } = *edge;
            let user = Users { uses, shares, shares_below: shares };
            used[*node] = used[*node].with(user);
            true
        }
        None => spec.is_live_node(&edge.child),
    });
    let mut below: Vec<Vec<EdgeSpec>> = vec![Vec::new(); spec.nodes.len()];
    let (order, _) = spec.parents_first();
    for index in order {
        let node = &spec.nodes[index];
        for child in &node.children {
            let target = indices.get(child.node.value.as_str());
            if target.is_none() && !spec.is_live_node(&child.node.value) {
                continue;
            }
            let (edge, user) = edge_of(node, child, used[index]);
            if let Some(target) = target {
                used[*target] = used[*target].with(user);
            }
            below[index].push(edge);
        }
    }
    edges.extend(below.into_iter().flatten());
    edges
}

fn top_edges(spec: &GraphSpec) -> Vec<EdgeSpec> {
    let of_drive = spec.drives.iter().filter_map(|drive| {
        let root = drive.root.as_ref()?;
        let Users { uses, shares, .. } = Role::root(drive.is_writable(spec), false);
        Some(EdgeSpec {
            parent: EdgeParent::Drive(drive.id.value.clone()),
            child: root.value.clone(),
            name: "root".to_owned(),
            role: Role::Root,
            uses,
            shares,
            span: root.span,
        })
    });
    let of_export = spec.exports.iter().filter_map(|export| {
        let Scope::Node(node) = &export.scope else { return None };
        // Read-only, it serves whatever the node shows, as QEMU's exports do.
        let Users { uses, shares, .. } = Role::root(export.writable.value, true);
        Some(EdgeSpec {
            parent: EdgeParent::Export(export.id.value.clone()),
            child: node.value.clone(),
            name: "node".to_owned(),
            role: Role::Root,
            uses,
            shares,
            span: node.span,
        })
    });
    of_drive.chain(of_export).collect()
}

fn writable_export<'a>(spec: &'a GraphSpec, drive: &str) -> Option<&'a ExportSpec> {
    let serves = |scope: &Scope| matches!(scope, Scope::Drive(id) if id.value == drive);
    spec.exports.iter().find(|export| export.writable.value && serves(&export.scope))
}

/// The edge, and what it is to the users above its child.
fn edge_of(node: &NodeSpec, child: &ChildSpec, above: Users) -> (EdgeSpec, Users) {
    let role = role_of(node, &child.name.value);
    let uses = above.uses;
    let uses = if node.read_only.value { uses.without(PermissionSet::CHANGES) } else { uses };
    let passed = role.pass(Users { uses, ..above });
    let granted = grants_of(node, &child.name.value);
    let user = Users { uses: passed.uses.union(granted), ..passed };
    let user = if is_exclusive(node, &child.name.value) { user.exclusive() } else { user };
    let edge = EdgeSpec {
        parent: EdgeParent::Node(node.name.value.clone()),
        child: child.node.value.clone(),
        name: child.name.value.clone(),
        role,
        uses: user.uses,
        shares: user.shares,
        span: child.node.span,
    };
    (edge, user)
}

/// What `node` may do to the child called `child` of its own accord.
pub(crate) fn grants_of(node: &NodeSpec, child: &str) -> PermissionSet {
    match &node.driver {
        DriverSpec::Plugin(plugin) => {
            let grants = plugin.grants.iter().filter(|grant| grant.child.value == child);
            grants.fold(PermissionSet::NONE, |all, grant| all.union(grant.permissions()))
        }
        DriverSpec::Filter(filter) if filter.kind == FilterKind::CopyOnRead && child == "file" => {
            PermissionSet::HARMLESS
        }
        DriverSpec::Filter(filter) if filter.kind == FilterKind::Backup => match child {
            "target" => PermissionSet::WRITE,
            _ => PermissionSet::CONSISTENT_READ,
        },
        _ => PermissionSet::NONE,
    }
}

/// Whether nobody but those who come through `node` may change what its child called `child` shows.
fn is_exclusive(node: &NodeSpec, child: &str) -> bool {
    match &node.driver {
        DriverSpec::Plugin(plugin) => plugin.exclusive.iter().any(|name| name == child),
        DriverSpec::Filter(filter) => filter.kind == FilterKind::Backup && child == "file",
        _ => false,
    }
}

/// Reports users of a node that conflict, and changes to nodes that are read-only.
pub(super) fn check(spec: &GraphSpec, problems: &Problems) {
    for node in &spec.nodes {
        let edges: Vec<&EdgeSpec> = spec.edges_to(&node.name.value).collect();
        if node.read_only.value || matches!(node.driver, DriverSpec::View(_)) {
            let change = edges
                .iter()
                .find(|edge| !edge.uses.intersection(PermissionSet::CHANGES).is_empty());
            if let Some(edge) = change {
                problems.push(read_only_conflict(spec, node, edge));
            }
        }
        for (index, second) in edges.iter().enumerate() {
            let mut pairs =
                edges[..index].iter().flat_map(|first| [(*first, *second), (*second, *first)]);
            let found = pairs.find_map(|(user, other)| {
                let (permission, verb) = user.uses.without(other.shares).gravest()?;
                Some((user, other, permission, verb))
            });
            if let Some((user, other, permission, verb)) = found {
                problems.push(conflict(spec, node, user, other, permission, verb));
            }
        }
    }
}

/// Who at the top, or which grant, makes an edge use a permission.
enum Origin<'a> {
    Export(&'a ExportSpec),
    Grant(&'a NodeSpec, &'a str, Grant, Span),
}

impl Origin<'_> {
    fn span(&self) -> Span {
        match self {
            Self::Export(export) => export.writable.span,
            Self::Grant(_, _, _, span) => *span,
        }
    }

    fn label(&self) -> String {
        match self {
            Self::Export(export) => format!("export `{}` is writable", export.id),
            Self::Grant(node, _, grant, _) => {
                format!("node `{}` is granted `{}`", node.name, grant.name())
            }
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Export(export) => format!("make export `{}` `writable = false`", export.id),
            Self::Grant(node, child, grant, _) => {
                format!("take `{}` from `grant.{child}` of node `{}`", grant.name(), node.name)
            }
        }
    }
}

fn origin_of<'a>(
    spec: &'a GraphSpec,
    edge: &'a EdgeSpec,
    permission: PermissionSet,
) -> Option<Origin<'a>> {
    let name = match &edge.parent {
        EdgeParent::Drive(id) => return writable_export(spec, id).map(Origin::Export),
        EdgeParent::Export(id) => return spec.export(id).map(Origin::Export),
        EdgeParent::Node(name) => name,
    };
    let node = spec.node(name)?;
    if let DriverSpec::Plugin(plugin) = &node.driver {
        let grants = plugin.grants.iter().filter(|grants| grants.child.value == edge.name);
        let mut grants = grants.flat_map(|grants| &grants.grants);
        if let Some(it) = grants.find(|it| it.value.permission() == permission) {
            return Some(Origin::Grant(node, &edge.name, it.value, it.span));
        }
    }
    let above = spec.edges_to(name).find(|above| above.uses.contains(permission))?;
    origin_of(spec, above, permission)
}

/// Why `node` must be writable, if it must: a place, what is there, and how to do without.
pub(super) fn writer_of(spec: &GraphSpec, node: &NodeSpec) -> Option<(Span, String, String)> {
    let known = spec.edges_to(&node.name.value).find_map(|edge| {
        let (permission, _) = edge.uses.intersection(PermissionSet::CHANGES).gravest()?;
        let origin = origin_of(spec, edge, permission)?;
        Some((origin.span(), origin.label(), origin.fix()))
    });
    known.or_else(|| {
        let top = spec.left_open_by(node)?;
        let name = &top.name;
        let label = format!("node `{name}` may be written by who uses it");
        Some((name.span, label, format!("add `read-only` to node `{name}`")))
    })
}

fn read_only_conflict(spec: &GraphSpec, node: &NodeSpec, edge: &EdgeSpec) -> Diagnostic {
    let permission = edge.uses.intersection(PermissionSet::CHANGES).gravest();
    let origin = permission.and_then(|(permission, _)| origin_of(spec, edge, permission));
    let (span, who, fix) = match &origin {
        Some(origin) => (origin.span(), origin.label(), format!(", or {}", origin.fix())),
        None => (edge.span, format!("{} writes", describe_parent(&edge.parent)), String::new()),
    };
    let message = format!("{who}, but node `{}` is read-only", node.name);
    if matches!(node.driver, DriverSpec::View(_)) {
        let fix = fix.strip_prefix(", or ").unwrap_or("give it a node that can be written");
        let message = format!("{who}, but node `{}` shows a point in time", node.name);
        return Diagnostic::error(span, message).note(node.name.span, "that node").help(fix);
    }
    let help = format!("remove `read-only = true` from node `{}`{fix}", node.name);
    Diagnostic::error(span, message).note(node.read_only.span, "read-only here").help(help)
}

fn conflict(
    spec: &GraphSpec,
    node: &NodeSpec,
    user: &EdgeSpec,
    other: &EdgeSpec,
    permission: PermissionSet,
    verb: Verb,
) -> Diagnostic {
    let describe = |edge: &EdgeSpec| {
        let parent = describe_parent(&edge.parent);
        format!("{parent} (edge `{}`)", edge.name)
    };
    let both = other.uses.contains(permission);
    let (one, two, name) = (describe(user), describe(other), &node.name);
    let message = match both {
        true => format!("{one} and {two} both {} node `{name}`", verb.both),
        false => format!("{two} cannot share node `{name}` with {one}, which {} it", verb.one),
    };
    let (first, second) = if user.span < other.span { (user, other) } else { (other, user) };
    let mut problem = Diagnostic::error(second.span, message)
        .note(first.span, format!("{} uses it here", describe_parent(&first.parent)));
    let mut help = match &second.parent {
        EdgeParent::Node(name) => format!("give node `{name}` a child of its own"),
        parent => format!("give {} a node of its own", describe_parent(parent)),
    };
    let writers = if both { vec![second, first] } else { vec![user] };
    let origins = writers.into_iter().filter_map(|edge| origin_of(spec, edge, permission));
    for (index, origin) in origins.enumerate() {
        if index == 0 {
            help = format!("{help}, or {}", origin.fix());
        }
        problem = problem.note(origin.span(), origin.label());
    }
    problem.help(help)
}
