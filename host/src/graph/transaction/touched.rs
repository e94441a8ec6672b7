//! What differs between two snapshots, and so must be still while one takes the other's place.
//!
//! A node is touched if its driver, its edges, its size or limits, or what its changes mark and enter differ; a drive
//! if its root or its marks do. A request that comes to none of these runs the same way in either snapshot, and
//! need not pause. Sharing is compared nowhere: only the check of a new graph reads it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::graph::acting::Own;
use crate::graph::generation::NodeGeneration;
use crate::graph::guard::{SourceId, SourceSet};
use crate::graph::mutation::{Mutation, mutated};
use crate::graph::snapshot::{Edge, Graph, GraphDrive, GraphNode};

/// Indices in `after` by identity.
pub(super) struct Known {
    nodes: HashMap<NodeGeneration, usize>,
}

impl Known {
    pub(super) fn of(after: &Graph) -> Self {
        let generations = after.nodes.iter().map(|node| node.generation);
        Self { nodes: generations.zip(0..).collect() }
    }

    /// Where a node is now.
    pub(super) fn node(&self, generation: NodeGeneration) -> Option<usize> {
        self.nodes.get(&generation).copied()
    }
}

/// The drive of `after` that is `drive`.
pub(super) fn same_drive<'g>(after: &'g Graph, drive: &GraphDrive) -> Option<&'g GraphDrive> {
    after.drives.iter().find(|other| other.generation == drive.generation)
}

/// What of `before` is touched.
pub(super) struct Touched {
    /// By node: whether requests must not be on their way there.
    pub(super) nodes: Vec<bool>,
    /// By node: whether what it shows may differ by itself.
    pub(super) shapes: Vec<bool>,
    /// By drive.
    drives: Vec<bool>,
}

struct Comparison<'g> {
    before: &'g Graph,
    after: &'g Graph,
}

fn same<T>(one: &Option<T>, other: &Option<T>, is_same: impl Fn(&T, &T) -> bool) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => is_same(one, other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

impl Comparison<'_> {
    /// It leads where it led, and means what it meant.
    fn same_way(&self, before: &Edge, after: &Edge) -> bool {
        before.name == after.name
            && before.role == after.role
            && self.before.nodes[before.child].generation
                == self.after.nodes[after.child].generation
    }

    /// It shows its children's bytes as it did.
    fn same_shape(&self, before: &GraphNode, after: &GraphNode) -> bool {
        let mut edges = before.edges.iter().zip(&after.edges);
        before.info.size_bytes == after.info.size_bytes
            && before.edges.len() == after.edges.len()
            && edges.all(|(before, after)| self.same_way(before, after))
    }

    fn same_edge(&self, before: &Edge, after: &Edge) -> bool {
        self.same_way(before, after)
            && before.uses == after.uses
            && same(&before.entry, &after.entry, |one, other| one.addresses() == other.addresses())
            && before.crossing == after.crossing
            && same(&before.own, &after.own, Own::is_same)
    }

    fn same_node(&self, before: &GraphNode, after: &GraphNode) -> bool {
        let mut edges = before.edges.iter().zip(&after.edges);
        Arc::ptr_eq(&before.driver, &after.driver)
            && before.info == after.info
            && before.edges.len() == after.edges.len()
            && edges.all(|(before, after)| self.same_edge(before, after))
    }

    fn same_drive(&self, before: &GraphDrive, after: &GraphDrive) -> bool {
        match (&before.root, &after.root) {
            (None, None) => true,
            (Some(before), Some(after)) => self.same_edge(before, after),
            _ => false,
        }
    }
}

impl Touched {
    /// Compares.
    pub(super) fn of(before: &Graph, after: &Graph) -> Self {
        let compare = Comparison { before, after };
        let known = Known::of(after);
        let now = |node: &GraphNode| known.node(node.generation).map(|at| &after.nodes[at]);
        let node = |node: &GraphNode| !now(node).is_some_and(|now| compare.same_node(node, now));
        let shape = |node: &GraphNode| !now(node).is_some_and(|now| compare.same_shape(node, now));
        let drive = |drive: &GraphDrive| {
            !same_drive(after, drive).is_some_and(|now| compare.same_drive(drive, now))
        };
        Self {
            nodes: before.nodes.iter().map(node).collect(),
            shapes: before.nodes.iter().map(shape).collect(),
            drives: before.drives.iter().map(drive).collect(),
        }
    }

    /// The origins of `before` that are, or come to, what is touched.
    pub(super) fn origins(&self, before: &Graph) -> Vec<usize> {
        let mut origins = before.origins_reaching(self.nodes.clone());
        let drives = self.drives.iter().enumerate().filter(|(_, touched)| **touched);
        origins.extend(drives.map(|(drive, _)| drive));
        origins.sort_unstable();
        origins.dedup();
        origins
    }
}

/// Ends the watches of all sources that could see a shape that differs: what was read before proves
/// nothing any more. What bitmaps record alters no bytes, and ends none. Where all views are shown to be the same,
/// what is tracked of them goes on.
pub(super) fn end_watches(before: &Graph, shapes: Vec<bool>, are_same: bool) {
    if mutated(Mutation::GraphChangesStaleNothing) {
        return;
    }
    let reaching = before.reaching(shapes);
    let sources = before.sources.iter().filter(|source| reaching[source.node]);
    let ids: Vec<SourceId> = sources.map(|source| source.id).collect();
    let sources = SourceSet::new(&[], &ids);
    match (ids.is_empty(), are_same) {
        (true, _) => {}
        (false, true) => before.guards.forget_read(&sources),
        (false, false) => before.guards.stale(&sources, &(0..u64::MAX)),
    }
}
