//! Nodes that act of their own accord, and what guards they need.
//!
//! A node acts on a child for which it has *grants*: it copies from a child that it may read to one that
//! it may write. The child that it reads is a *source*: guards and watches are of its view. A change
//! *enters* a source where it passes an edge into the source's down-set, the source and everything
//! below it: from there on it can alter the source's bytes. Requests held further up have not entered.
//!
//! Everything here is computed with the snapshot. Where no node acts, there is no source, no edge is a
//! crossing, and requests pay nothing.

use std::sync::Arc;

use super::affected::Marks;
use super::class::{Class, Cut, Reached};
use super::generation::NodeGeneration;
use super::guard::{SourceId, SourceSet};
use super::mutation::{Mutation, mutated};
use super::origin::Origin;
use super::permission::{PermissionSet, Role};
use super::snapshot::{Edge, Graph};
use crate::node::Upkeep;

/// A node of whose view copies are made.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) node: usize,
    pub(super) class: Class,
    pub(super) id: SourceId,
    /// It is the target of that node's copies, and tracked: nothing guards it.
    pub(super) tracked_by: Option<NodeGeneration>,
}

impl Source {
    /// Whether copies are made of it.
    pub(super) fn is_read(&self) -> bool {
        self.tracked_by.is_none()
    }
}

/// What a node may do through one of its edges of its own accord.
pub(super) struct Own {
    /// Of a write that changes the child.
    pub(super) changed: Effect,
    /// Of a write that is proven for a view which the node reads, by the edge through which it does.
    proven: Box<[(usize, Effect)]>,
}

/// What a write through an edge marks and enters.
pub(super) struct Effect {
    pub(super) marks: Marks,
    /// Sources that it enters, without those whose bytes the proof leaves alone.
    pub(super) enters: SourceSet,
    /// Sources that it enters, by the edge or further down as it is passed on, but does not alter if the
    /// proof holds.
    pub(super) exempt: SourceSet,
    /// The view for which it is proven.
    pub(super) unchanged: Option<Class>,
}

impl Own {
    /// The effect of a write proven for what edge `from` shows; `None` if that view is not at or above
    /// the one written.
    pub(super) fn proven(&self, from: usize) -> Option<&Effect> {
        self.proven.iter().find(|(edge, _)| *edge == from).map(|(_, effect)| effect)
    }

    /// Whether writes mean the same in another snapshot.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let mut proven = self.proven.iter().zip(&other.proven);
        self.changed.is_same(&other.changed)
            && self.proven.len() == other.proven.len()
            && proven.all(|(one, other)| one.0 == other.0 && one.1.is_same(&other.1))
    }
}

impl Effect {
    fn is_same(&self, other: &Self) -> bool {
        self.marks.addresses() == other.marks.addresses()
            && self.enters == other.enters
            && self.exempt == other.exempt
    }
}

/// How a source's bytes depend on a node: not, at the same range, or anywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Below {
    No,
    Ranged,
    Whole,
}

/// By node: how the view of `source` depends on it.
fn down(graph: &Graph, source: usize) -> Vec<Below> {
    let mut below = vec![Below::No; graph.nodes.len()];
    below[source] = Below::Ranged;
    // Children come before parents.
    for at in (0..=source).rev() {
        let here = below[at];
        if here == Below::No {
            continue;
        }
        for edge in &graph.nodes[at].edges {
            let there = match edge.role {
                Role::Root | Role::Filtered | Role::Data | Role::Backing => here,
                Role::Storage => Below::Whole,
                Role::Source | Role::Target => continue,
            };
            below[edge.child] = below[edge.child].max(there);
        }
    }
    below
}

fn may_read(edge: &Edge) -> bool {
    edge.grants.contains(PermissionSet::CONSISTENT_READ)
}

fn may_write(edge: &Edge) -> bool {
    !edge.grants.intersection(PermissionSet::CHANGES).is_empty()
}

/// Finds sources, crossings and what acting nodes' writes mean. The last step of building a snapshot,
/// after its marks can be computed. `former` is the snapshot before it: what stays keeps its numbers.
pub(super) fn resolve(graph: &mut Graph, former: Option<&Graph>) {
    find_sources(graph, former);
    find_origins(graph, former);
    let downs: Vec<Vec<Below>> =
        graph.sources.iter().map(|source| down(graph, source.node)).collect();
    let mut crossings = Vec::new();
    let mut owns = Vec::new();
    for (at, node) in graph.nodes.iter().enumerate() {
        for (position, edge) in node.edges.iter().enumerate() {
            crossings.push(entered(graph, &downs, edge.child, Some(at), None));
            owns.push(may_write(edge).then(|| own(graph, &downs, at, position)));
        }
    }
    let roots: Vec<_> = graph
        .drives
        .iter()
        .map(|drive| drive.root.as_ref())
        .map(|root| root.and_then(|root| entered(graph, &downs, root.child, None, None)))
        .collect();
    let mut resolved = crossings.into_iter().zip(owns);
    for edge in graph.nodes.iter_mut().flat_map(|node| &mut node.edges) {
        (edge.crossing, edge.own) = resolved.next().unwrap_or_default();
    }
    for (drive, crossing) in graph.drives.iter_mut().zip(roots) {
        if let Some(root) = &mut drive.root {
            root.crossing = crossing;
        }
    }
}

fn is_same_node(graph: &Graph, at: usize, former: &Graph, then: usize) -> bool {
    graph.nodes[at].generation == former.nodes[then].generation
}

fn find_sources(graph: &mut Graph, former: Option<&Graph>) {
    let mut next = former.map_or(0, |former| former.next_source);
    let mut places: Vec<(usize, Option<NodeGeneration>)> = Vec::new();
    for edge in graph.nodes.iter().flat_map(|node| &node.edges) {
        if may_read(edge) && !places.contains(&(edge.child, None)) {
            places.push((edge.child, None));
        }
    }
    for node in &graph.nodes {
        let tracks = node.driver.job().and_then(|job| job.tracks);
        let target = tracks.and_then(|(_, to)| node.edges.get(to));
        places.extend(target.map(|edge| (edge.child, Some(node.generation))));
    }
    let mut sources = Vec::new();
    for (node, tracked_by) in places {
        let known = former.and_then(|former| {
            former.sources.iter().find(|source| {
                source.tracked_by == tracked_by && is_same_node(graph, node, former, source.node)
            })
        });
        let id = known.map_or_else(
            || {
                next += 1;
                SourceId(next - 1)
            },
            |source| source.id,
        );
        sources.push(Source { node, class: graph.nodes[node].class, id, tracked_by });
    }
    (graph.sources, graph.next_source) = (sources, next);
}

fn find_origins(graph: &mut Graph, former: Option<&Graph>) {
    graph.origins.truncate(graph.drives.len());
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let acts = node.has_grants() || node.driver.upkeep() != Upkeep::None;
        let known = former.and_then(|former| {
            let then = (0..former.nodes.len()).find(|then| is_same_node(graph, at, former, *then));
            former.nodes[then?].origin.map(|origin| Arc::clone(&former.origins[origin]))
        });
        let origin = acts.then(|| {
            graph.origins.push(
                known.unwrap_or_else(|| Arc::new(Origin::new(Arc::clone(&graph.nodes[at].name)))),
            );
            graph.origins.len() - 1
        });
        graph.nodes[at].origin = origin;
    }
}

/// The sources that a change enters by an edge from `parent` to `child`: those that have the child in
/// their down-set and not the parent, through which it had been entered before. `only` chooses among
/// them.
fn entered(
    graph: &Graph,
    downs: &[Vec<Below>],
    child: usize,
    parent: Option<usize>,
    only: Option<&dyn Fn(&Source) -> bool>,
) -> Option<SourceSet> {
    let (mut ranged, mut whole) = (Vec::new(), Vec::new());
    for (source, down) in graph.sources.iter().zip(downs) {
        let was_inside = parent.is_some_and(|parent| down[parent] != Below::No);
        let is_forgotten = mutated(Mutation::ForgetsChangesBelow) && child != source.node;
        if was_inside || is_forgotten || only.is_some_and(|only| !only(source)) {
            continue;
        }
        match down[child] {
            Below::No => {}
            Below::Ranged => ranged.push(source.id),
            Below::Whole => whole.push(source.id),
        }
    }
    let set = SourceSet::new(&ranged, &whole);
    (!set.is_empty()).then_some(set)
}

/// The nodes through which a change of `node` goes as it is.
fn passed_on(graph: &Graph, node: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(node), |node| {
        let edges = &graph.nodes[*node].edges;
        edges.iter().find(|edge| edge.role.is_same_view()).map(|edge| edge.child)
    })
}

/// What node `at` may do through its edge `position`. A request of its own enters every source that has
/// the child below it: nothing above has announced it.
fn own(graph: &Graph, downs: &[Vec<Below>], at: usize, position: usize) -> Own {
    let child = graph.nodes[at].edges[position].child;
    let target = graph.nodes[child].class;
    let effect = |unchanged: Option<Class>| {
        let cut = Cut { class: unchanged, edge: None };
        let Reached { ranged, whole } = graph.views.reached(target, cut);
        let is_altered =
            |source: &Source| ranged.contains(&source.class) || whole.contains(&source.class);
        let enters = entered(graph, downs, child, None, Some(&is_altered)).unwrap_or_default();
        // Filters beside the one written pass it on to nodes below which these sources have, too.
        let (mut exempt, mut exempt_whole) = (Vec::new(), Vec::new());
        for (source, down) in graph.sources.iter().zip(downs) {
            if unchanged.is_none() || is_altered(source) {
                continue;
            }
            match passed_on(graph, child).map(|node| down[node]).max() {
                Some(Below::Ranged) => exempt.push(source.id),
                Some(Below::Whole) => exempt_whole.push(source.id),
                Some(Below::No) | None => {}
            }
        }
        Effect {
            marks: Marks::of(graph, target, cut, false),
            enters: match mutated(Mutation::ProvenWritesStaleNothing) && unchanged.is_some() {
                true => SourceSet::default(),
                false => enters,
            },
            exempt: SourceSet::new(&exempt, &exempt_whole),
            unchanged,
        }
    };
    let edges = graph.nodes[at].edges.iter().enumerate();
    let proven = edges.filter(|(_, edge)| may_read(edge)).filter_map(|(from, edge)| {
        let view = graph.nodes[edge.child].class;
        graph.views.is_at_or_above(view, target).then(|| (from, effect(Some(view))))
    });
    Own { changed: effect(None), proven: proven.collect() }
}
