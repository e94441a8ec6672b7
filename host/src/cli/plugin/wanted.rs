//! The children that a plugin wants, as a node has them.

use crate::graph::{ChildDecl, PermissionSet, Role};
use crate::plugin::{ByteAccess, Grants, PluginModule};

/// What a node of the plugin is made of: its children with all that the plugin wants granted, those that it can
/// do without perhaps among them. `node_of` names the node for a child; the filtered one is first.
pub(super) fn children(
    module: &PluginModule,
    with_optional: bool,
    node_of: impl Fn(&str) -> String,
) -> (Vec<(String, Grants)>, Vec<ChildDecl>) {
    let it = module.inspection();
    let file = match it.wants_bytes {
        ByteAccess::Transform => Role::Storage,
        ByteAccess::None | ByteAccess::Read => Role::Filtered,
    };
    let (mut granted, mut children) = (Vec::new(), Vec::new());
    let wanted = it.children.iter().enumerate();
    for (at, child) in wanted.filter(|(at, child)| *at == 0 || child.required || with_optional) {
        let grants = child.wants.permissions();
        let role = match at {
            0 => file,
            _ if grants.intersection(PermissionSet::CHANGES).is_empty() => Role::Source,
            _ => Role::Target,
        };
        let (name, node) = (child.name.clone(), node_of(&child.name));
        granted.push((name.clone(), child.wants));
        children.push(ChildDecl { name, node, role, grants, proven_for: None });
    }
    if granted.is_empty() {
        granted.push(("file".to_owned(), Grants::NONE));
        children.push(ChildDecl { role: file, ..ChildDecl::filtered(node_of("file")) });
    }
    (granted, children)
}
