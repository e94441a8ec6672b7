//! In which order nodes close.
//!
//! What stands on a container writes to it when it closes, so before the container does; and what shows another
//! node records what that is, so after it has closed, with the containers that it has.

use crate::graph::snapshot::Graph;

/// All nodes of a graph. Where the two rules contradict each other, containers come last.
pub(super) fn order(graph: &Graph) -> Vec<usize> {
    let count = graph.nodes.len();
    let below = reached(graph);
    let edges = |at: usize| graph.nodes[at].edges.iter();
    // By node: those that close before it because they keep bytes in it, or because it shows them.
    let (mut keepers, mut shown) = (vec![Vec::new(); count], vec![Vec::new(); count]);
    for (at, shown) in shown.iter_mut().enumerate() {
        let (views, others): (Vec<_>, Vec<_>) = edges(at).partition(|edge| edge.role.is_view());
        let mut is_container = vec![false; count];
        for edge in others {
            is_container.iter_mut().zip(&below[edge.child]).for_each(|(is, below)| *is |= below);
        }
        (0..count).filter(|it| is_container[*it]).for_each(|it| keepers[it].push(at));
        let is_shown = |it: &usize| views.iter().any(|edge| below[edge.child][*it]);
        shown.extend((0..count).filter(|it| is_shown(it) && !is_container[*it]));
    }
    let mut order = Vec::with_capacity(count);
    let mut is_closed = vec![false; count];
    while order.len() < count {
        // Parents come after their children.
        let mut open = (0..count).rev().filter(|at| !is_closed[*at]);
        let may = |at: &usize, also: &[Vec<usize>]| {
            keepers[*at].iter().chain(&also[*at]).all(|before| is_closed[*before])
        };
        let next =
            open.clone().find(|at| may(at, &shown)).or_else(|| open.find(|at| may(at, &keepers)));
        let Some(next) = next else { break };
        is_closed[next] = true;
        order.push(next);
    }
    order
}

/// By node: itself and all nodes below it, by any edges.
fn reached(graph: &Graph) -> Vec<Vec<bool>> {
    let mut reached: Vec<Vec<bool>> = Vec::with_capacity(graph.nodes.len());
    // Children come before their parents.
    for (at, node) in graph.nodes.iter().enumerate() {
        let mut own = vec![false; graph.nodes.len()];
        own[at] = true;
        for edge in &node.edges {
            own.iter_mut().zip(&reached[edge.child]).for_each(|(is, below)| *is |= below);
        }
        reached.push(own);
    }
    reached
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::filter::PassNode;
    use crate::graph::{ChildDecl, GraphDecl, NodeDecl};
    use crate::node::{MemoryNode, Node, NullNode, RawNode};

    fn node(name: &str, driver: impl Node, children: Vec<ChildDecl>) -> NodeDecl {
        NodeDecl { name: name.into(), driver: Arc::new(driver), children }
    }

    fn file(name: &str) -> NodeDecl {
        node(name, MemoryNode::new(1 << 20, 512).expect("a size"), vec![])
    }

    fn image(name: &str, children: Vec<ChildDecl>) -> NodeDecl {
        node(name, NullNode::new(1 << 20, true, std::time::Duration::ZERO), children)
    }

    #[test]
    fn what_is_shown_closes_before_and_containers_after() {
        let check = |nodes: Vec<NodeDecl>, pairs: &[(&str, &str)]| {
            let graph = GraphDecl { nodes, ..GraphDecl::default() }.build().expect("a graph");
            let order = order(&graph);
            let place = |name: &str| {
                let is_it = |at: &usize| graph.nodes[*at].name() == name;
                order.iter().position(is_it).expect("it closes")
            };
            assert_eq!(order.len(), graph.nodes.len());
            for (first, second) in pairs {
                assert!(place(first) < place(second), "{first} before {second}");
            }
        };
        let (backing, storage) = (ChildDecl::backing, ChildDecl::storage);
        // An image on an image, each in a part of a file, with a filter between.
        let nodes = vec![
            file("f0"),
            file("f1"),
            node("part", RawNode::new(512, None), vec![storage("f0")]),
            image("base", vec![storage("part")]),
            node("filter", PassNode, vec![ChildDecl::filtered("base")]),
            image("top", vec![storage("f1"), backing("filter")]),
        ];
        let pairs = [("base", "part"), ("part", "f0"), ("base", "filter"), ("filter", "top")];
        check(nodes, &[&pairs[..], &[("f0", "top"), ("top", "f1")]].concat());
        // An image within an image: what keeps its bytes there comes first.
        let nodes = vec![
            file("f0"),
            image("outer", vec![storage("f0")]),
            node("filter", PassNode, vec![ChildDecl::filtered("outer")]),
            image("inner", vec![storage("filter")]),
        ];
        check(nodes, &[("inner", "outer"), ("inner", "filter"), ("outer", "f0")]);
        // Both: containers win.
        let nodes = vec![
            file("f0"),
            image("base", vec![storage("f0")]),
            image("top", vec![storage("f0"), backing("base")]),
        ];
        check(nodes, &[("base", "f0"), ("top", "f0"), ("base", "top")]);
    }
}
