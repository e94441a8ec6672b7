//! In which order the nodes of a fragment are added.

use std::collections::BTreeSet;

use super::super::start::{Driver, PlannedNode};
use crate::graph::{Action, NodeDecl};

/// The actions that add nodes, each by what `add` makes of it.
pub(super) fn adding<'a>(
    nodes: Vec<PlannedNode>,
    add: impl Fn(NodeDecl) -> Action + 'a,
) -> impl Iterator<Item = Action> + 'a {
    nodes.into_iter().flat_map(move |node| {
        let closing = node.closing();
        let PlannedNode { name, driver, children, .. } = node;
        let added = match driver {
            Driver::Ready(driver) => Some(add(NodeDecl { name, driver, children })),
            // They come by another way.
            Driver::Open(_) => None,
        };
        added.into_iter().chain(closing)
    })
}

/// What openers stand on and needs no opening; openers and what they stand on of them; the rest.
pub(super) fn in_stages(
    nodes: Vec<PlannedNode>,
) -> (Vec<PlannedNode>, Vec<PlannedNode>, Vec<PlannedNode>) {
    let opens = |node: &PlannedNode| matches!(node.driver, Driver::Open(_));
    // On openers, and below them.
    let mut above: BTreeSet<String> = BTreeSet::new();
    let mut below: BTreeSet<String> = BTreeSet::new();
    loop {
        let known = above.len() + below.len();
        for node in &nodes {
            let stands = node.children.iter().any(|child| above.contains(&child.node));
            if opens(node) || stands {
                above.insert(node.name.clone());
            }
            if opens(node) || below.contains(&node.name) {
                below.extend(node.children.iter().map(|child| child.node.clone()));
            }
        }
        if above.len() + below.len() == known {
            break;
        }
    }
    let (mut first, mut openings, mut last) = (Vec::new(), Vec::new(), Vec::new());
    for node in nodes {
        match (opens(&node) || above.contains(&node.name), below.contains(&node.name)) {
            (true, true) => openings.push(node),
            (true, false) if opens(&node) => openings.push(node),
            (false, true) => first.push(node),
            _ => last.push(node),
        }
    }
    (first, openings, last)
}

/// Of nodes that are added at once: an action that inserts one needs what that stands on.
pub(super) fn children_first(mut nodes: Vec<PlannedNode>) -> Vec<PlannedNode> {
    let mut ordered: Vec<PlannedNode> = Vec::with_capacity(nodes.len());
    while !nodes.is_empty() {
        let names: BTreeSet<String> = nodes.iter().map(|node| node.name.clone()).collect();
        let is_next =
            |node: &PlannedNode| !node.children.iter().any(|child| names.contains(&child.node));
        // What is circular is refused later.
        let next = nodes.iter().position(is_next).unwrap_or(0);
        ordered.push(nodes.remove(next));
    }
    ordered
}
