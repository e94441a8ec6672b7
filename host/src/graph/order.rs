//! The order in which the sources of a graph are waited for.
//!
//! Who holds a range of a source (a change under way there, or an operation that guards it or writes to
//! it) may come to wait for a range of another one, further on: at an edge by which what it writes enters
//! that source, or at a node that copies from it on the way. If two sources are needed by each other's
//! holders, two requests can wait for each other for ever; a proven write that has been issued knows no
//! time limit. So a graph is refused in which this relation has a cycle: then among all holders there is
//! always one that waits for nobody (see `guard`).
//!
//! The relation is found by following what requests can do, node by node, and not by what lies below
//! what: an overlay only reads its backing, so two overlays on one base need nothing of each other, while
//! a guest's write through one of two filters side by side on one node enters the other's view. A proven
//! write, on its way through filters, does not enter the views that its proof leaves alone.
//! The relation is a little too large, never too small: every driver is taken to do all that its edges
//! allow, and of proofs nothing is known behind a container or a target.
//!
//! What passes an opaque node comes to other offsets. So there the holder of a source can also come to
//! need another range *of the same source*, which another such holder has: a cycle of one.

use std::collections::HashSet;

use super::acting::Effect;
use super::guard::SourceId;
use super::mutation::{Mutation, mutated};
use super::permission::{PermissionSet, Role};
use super::snapshot::{Edge, Graph};
use crate::error::{Error, ErrorKind, Result};

/// Refuses a graph in which copies could wait for each other for ever.
///
/// # Errors
/// `EINVAL`, with the nodes that copy, the edges at which they would meet, and what to do.
pub(super) fn check(graph: &Graph) -> Result<()> {
    if mutated(Mutation::AllowsAnyOrder) {
        return Ok(());
    }
    let needs = needs(graph);
    match shortest_cycle(&needs) {
        None => Ok(()),
        Some(cycle) => Err(Error::new(ErrorKind::Invalid, message(graph, &needs, &cycle))),
    }
}

/// Where a source is needed: an edge, by its parent and its position there.
#[derive(Clone, Copy)]
struct Need {
    parent: usize,
    edge: usize,
}

/// By the index of a source whose range is held, by the index of the one that is needed.
type Needs = Vec<Vec<Option<Need>>>;

fn needs(graph: &Graph) -> Needs {
    (0..graph.sources.len()).map(|source| Walk::of(graph, source).needs).collect()
}

/// A driver at work, and what for.
#[derive(Clone, Copy)]
struct Call<'g> {
    node: usize,
    is_change: bool,
    /// Offsets need no longer be those of the source that is held.
    is_elsewhere: bool,
    /// Of a proven write: what it leaves alone.
    proven: Option<&'g Effect>,
}

/// What a node may do of its own accord, at once: rely on what one edge shows, write through another.
struct Operation<'g> {
    from: Option<usize>,
    to: usize,
    effect: &'g Effect,
}

/// All that the holder of a range of one source can come to do.
struct Walk<'g> {
    graph: &'g Graph,
    /// Index of the source.
    held: usize,
    needs: Vec<Option<Need>>,
    /// See [`Call`]; proofs by address.
    seen: HashSet<(usize, bool, bool, Option<*const Effect>)>,
    pending: Vec<Call<'g>>,
}

impl<'g> Walk<'g> {
    fn of(graph: &'g Graph, held: usize) -> Self {
        let needs = vec![None; graph.sources.len()];
        let mut walk = Self { graph, held, needs, seen: HashSet::new(), pending: Vec::new() };
        walk.begin();
        while let Some(call) = walk.pending.pop() {
            walk.go_on(call);
        }
        walk
    }

    /// Whoever can hold a range of it.
    fn begin(&mut self) {
        let graph = self.graph;
        let id = graph.sources[self.held].id;
        let roots = graph.drives.iter().filter_map(|drive| drive.root.as_ref());
        for edge in roots.chain(graph.nodes.iter().flat_map(|node| &*node.edges)) {
            if carries_changes(edge, None) && crosses_into(edge, id) {
                self.call(Call {
                    node: edge.child,
                    is_change: true,
                    is_elsewhere: false,
                    proven: None,
                });
            }
        }
        for (at, node) in graph.nodes.iter().enumerate() {
            for operation in operations(&node.edges) {
                let guarded = operation.from.map(|from| node.edges[from].child);
                let Effect { enters, exempt, .. } = operation.effect;
                // A void proof counts as a change of what it had exempted.
                if guarded == Some(graph.sources[self.held].node)
                    || enters.ids().chain(exempt.ids()).any(|entered| entered == id)
                {
                    self.calls_of(at, &operation, false);
                }
            }
        }
    }

    /// What a driver may do for a request, and for it what its children may, in turn.
    fn go_on(&mut self, call: Call<'g>) {
        let graph = self.graph;
        let node = &graph.nodes[call.node];
        for (at, edge) in node.edges.iter().enumerate() {
            let is_elsewhere = call.is_elsewhere || edge.role == Role::Storage;
            let read = Call { node: edge.child, is_change: false, is_elsewhere, proven: None };
            self.call(read);
            // Its container and its targets a driver may change at any time.
            let is_own = edge.role.is_entry();
            let proven = call.proven.filter(|_| !is_own);
            if (call.is_change || is_own) && carries_changes(edge, proven) {
                let need = Need { parent: call.node, edge: at };
                let is_left_alone = |source: &SourceId| {
                    proven.is_some_and(|effect| effect.exempt.ids().any(|exempt| exempt == *source))
                };
                let crossed = edge.crossing.iter().flat_map(|sources| sources.ids());
                let entered = crossed.filter(|source| !is_left_alone(source));
                entered.for_each(|source| self.need(source, need, is_elsewhere));
                self.call(Call { is_change: true, proven, ..read });
            }
        }
        for operation in operations(&node.edges) {
            if let Some(from) = operation.from {
                let guarded = node.edges[from].child;
                let source = graph.sources.iter().find(|source| source.node == guarded);
                let need = Need { parent: call.node, edge: from };
                source.into_iter().for_each(|it| self.need(it.id, need, call.is_elsewhere));
            }
            let need = Need { parent: call.node, edge: operation.to };
            let entered = operation.effect.enters.ids();
            entered.for_each(|source| self.need(source, need, call.is_elsewhere));
            self.calls_of(call.node, &operation, call.is_elsewhere);
        }
    }

    /// The requests of which an operation consists.
    fn calls_of(&mut self, node: usize, operation: &Operation<'g>, is_elsewhere: bool) {
        let edges = &self.graph.nodes[node].edges;
        let call = |edge: usize, is_change, proven| {
            let node = edges[edge].child;
            Call { node, is_change, is_elsewhere, proven }
        };
        let read = operation.from.into_iter().chain([operation.to]);
        read.for_each(|edge| self.call(call(edge, false, None)));
        let proven = operation.effect.unchanged.map(|_| operation.effect);
        self.call(call(operation.to, true, proven));
    }

    fn need(&mut self, source: SourceId, need: Need, is_elsewhere: bool) {
        let Some(at) = self.graph.sources.iter().position(|other| other.id == source) else {
            return;
        };
        if at != self.held || is_elsewhere {
            self.needs[at].get_or_insert(need);
        }
    }

    fn call(&mut self, call: Call<'g>) {
        let proven = call.proven.map(std::ptr::from_ref);
        if self.seen.insert((call.node, call.is_change, call.is_elsewhere, proven)) {
            self.pending.push(call);
        }
    }
}

/// Whether a change can come by an edge. Without the permission it ends before it enters anything.
fn carries_changes(edge: &Edge, proven: Option<&Effect>) -> bool {
    let needed = match proven {
        Some(_) => PermissionSet::CHANGES,
        None => PermissionSet::WRITE,
    };
    (edge.role.forwards_changes() || edge.role.is_entry())
        && !edge.uses.intersection(needed).is_empty()
}

fn crosses_into(edge: &Edge, source: SourceId) -> bool {
    edge.crossing.iter().flat_map(|sources| sources.ids()).any(|crossed| crossed == source)
}

/// What a node with these edges may do of its own accord. Whoever may read and write may copy.
fn operations(edges: &[Edge]) -> Vec<Operation<'_>> {
    let mut operations = Vec::new();
    for (to, edge) in edges.iter().enumerate() {
        let Some(own) = &edge.own else { continue };
        let may_change = edge.grants.contains(PermissionSet::WRITE) && edge.proven_for.is_none();
        let changed = may_change.then_some(&own.changed);
        for (from, read) in edges.iter().enumerate() {
            if !read.grants.contains(PermissionSet::CONSISTENT_READ) {
                continue;
            }
            let proven = own.proven(from).filter(|_| edge.proven_for.is_none_or(|it| it == from));
            let effects = proven.into_iter().chain(changed);
            operations.extend(effects.map(|effect| Operation { from: Some(from), to, effect }));
        }
        operations.extend(changed.map(|effect| Operation { from: None, to, effect }));
    }
    operations
}

/// The sources of a cycle, each needed by the holder of the one before it; as few as there can be.
fn shortest_cycle(needs: &Needs) -> Option<Vec<usize>> {
    let cycles = (0..needs.len()).filter_map(|start| cycle_through(needs, start));
    cycles.min_by_key(Vec::len)
}

fn cycle_through(needs: &Needs, start: usize) -> Option<Vec<usize>> {
    let mut came_from = vec![None; needs.len()];
    let mut ring = std::collections::VecDeque::from([start]);
    while let Some(at) = ring.pop_front() {
        for next in (0..needs.len()).filter(|next| needs[at][*next].is_some()) {
            if next == start {
                let mut cycle: Vec<usize> =
                    std::iter::successors(Some(at), |at| came_from[*at]).collect();
                cycle.reverse();
                return Some(cycle);
            }
            if came_from[next].is_none() {
                came_from[next] = Some(at);
                ring.push_back(next);
            }
        }
    }
    None
}

/// Who copies, where they meet, and the way out.
fn message(graph: &Graph, needs: &Needs, cycle: &[usize]) -> String {
    let name = |source: usize| &graph.nodes[graph.sources[source].node].name;
    let next = |at: usize| cycle[(at + 1) % cycle.len()];
    let meetings = cycle.iter().enumerate().filter_map(|(at, source)| {
        let (copier, read) = copier(graph, *source)?;
        let need = needs[*source][next(at)]?;
        let parent = &graph.nodes[need.parent];
        Some(format!(
            "while node `{copier}` copies from `{}` (edge `{read}`), requests there come to `{}` by \
             edge `{}` of node `{}`",
            name(*source),
            name(next(at)),
            parent.edges[need.edge].name,
            parent.name
        ))
    });
    let meetings: Vec<String> = meetings.collect();
    let meetings = meetings.join("; ");
    let (who, fix) = match cycle {
        [only] => ("copies of one node", format!("give it a target outside of `{}`", name(*only))),
        _ => {
            let fix = "give one of them a target outside of what the other one copies, or let both \
                       copy from one node";
            ("copies", fix.to_owned())
        }
    };
    format!("{who} could wait for each other for ever: {meetings}: {fix}")
}

/// A node that copies from a source, and its edge to it.
fn copier(graph: &Graph, source: usize) -> Option<(&str, &str)> {
    let child = graph.sources[source].node;
    let reads =
        |edge: &&Edge| edge.child == child && edge.grants.contains(PermissionSet::CONSISTENT_READ);
    graph.nodes.iter().find_map(|node| {
        let edge = node.edges.iter().find(reads)?;
        Some((&*node.name, &*edge.name))
    })
}
