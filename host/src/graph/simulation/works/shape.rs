//! Which stores show which others, and what drives show, as transactions leave it.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::Graph;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// The stores that each store shows, itself among them.
    below: BTreeMap<String, BTreeSet<String>>,
    /// What each drive shows first, by its id.
    roots: BTreeMap<String, String>,
}

/// The nodes that one shows, from itself down.
fn down(graph: &Graph, node: usize) -> impl Iterator<Item = &str> {
    let below = |at: &usize| {
        let edges = graph.nodes()[*at].edges();
        Some(edges.iter().find(|edge| edge.role().is_view())?.child())
    };
    std::iter::successors(Some(node), below).map(|at| graph.nodes()[at].name())
}

/// Whether it keeps bytes, and is no file of an image.
pub(super) fn is_store(node: &str) -> bool {
    ["base", "image", "ref"].iter().any(|kind| node.starts_with(kind)) && !node.contains(['.', '-'])
}

/// The stores that a drive shows, from its root down.
pub(super) fn chain(graph: &Graph, drive: &str) -> Vec<String> {
    let drive = graph.find_drive(drive).map(|at| &graph.drives()[at]);
    let root = drive.and_then(|drive| drive.root());
    let all = root.into_iter().flat_map(|root| down(graph, root.child()));
    all.filter(|node| is_store(node)).map(str::to_owned).collect()
}

impl Shape {
    pub(super) fn of(graph: &Graph) -> Self {
        let stores = graph.nodes().iter().enumerate().filter(|(_, node)| is_store(node.name()));
        let below = stores.map(|(at, node)| {
            let below = down(graph, at).filter(|node| is_store(node)).map(str::to_owned);
            (node.name().to_owned(), below.collect())
        });
        let root = |id: &str| Some((id.to_owned(), chain(graph, id).first()?.clone()));
        let roots = graph.drives().iter().filter_map(|drive| root(drive.id()));
        Self { below: below.collect(), roots: roots.collect() }
    }

    /// Whether a store shows another one.
    pub(super) fn shows(&self, store: &str, other: &str) -> bool {
        self.below.get(store).is_some_and(|below| below.contains(other))
    }

    /// Whether what a drive's guests write is seen in a store.
    pub(super) fn sees(&self, store: &str, drive: &str) -> bool {
        self.roots.get(drive).is_some_and(|root| self.shows(store, root))
    }
}
