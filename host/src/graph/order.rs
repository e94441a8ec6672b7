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
//! two filters side by side on one node do, if both copy and change: what one of them writes enters the
//! other's view. (What they write unchanged does not: a proof holds for whoever passes the write on.) It is a little too large, never too small: every driver is taken to do all that its edges allow.
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
    if graph.sources.is_empty() {
        return Needs::new();
    }
    let entries = Walk::of_all(graph).entries;
    (0..graph.sources.len()).map(|source| Walk::of(graph, source, &entries).needs).collect()
}

/// A driver at work, and what for.
#[derive(Clone, Copy)]
struct Call<'g> {
    node: usize,
    is_change: bool,
    /// Offsets need no longer be those of the source that is held.
    is_elsewhere: bool,
    /// The proven write that it passes on, and that does not enter what the proof exempts.
    shield: Option<&'g Effect>,
}

impl Call<'_> {
    fn reading(node: usize, is_elsewhere: bool) -> Self {
        Self { node, is_change: false, is_elsewhere, shield: None }
    }
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
    held: Option<usize>,
    /// Changes that enter a source, and what they then do.
    entries: Vec<(SourceId, Call<'g>)>,
    needs: Vec<Option<Need>>,
    seen: HashSet<(usize, bool, bool, Option<*const Effect>)>,
    pending: Vec<Call<'g>>,
}

impl<'g> Walk<'g> {
    fn new(graph: &'g Graph, held: Option<usize>) -> Self {
        let (needs, entries) = (vec![None; graph.sources.len()], Vec::new());
        Self { graph, held, entries, needs, seen: HashSet::new(), pending: Vec::new() }
    }

    /// Of all requests, which hold nothing when they begin: drives', and whatever drivers come to do.
    fn of_all(graph: &'g Graph) -> Self {
        let mut walk = Self::new(graph, None);
        (0..graph.nodes.len()).for_each(|node| walk.call(Call::reading(node, false)));
        for root in graph.drives.iter().filter_map(|drive| drive.root.as_ref()) {
            if carries_changes(root) {
                let call = Call { is_change: true, ..Call::reading(root.child, false) };
                let crossed = root.crossing.iter().flat_map(|sources| sources.ids());
                walk.entries.extend(crossed.map(|source| (source, call)));
                walk.call(call);
            }
        }
        walk.finish()
    }

    /// Of whoever holds a range of a source.
    fn of(graph: &'g Graph, held: usize, entries: &[(SourceId, Call<'g>)]) -> Self {
        let mut walk = Self::new(graph, Some(held));
        walk.begin(held, entries);
        walk.finish()
    }

    fn finish(mut self) -> Self {
        while let Some(call) = self.pending.pop() {
            self.go_on(call);
        }
        self
    }

    /// Whoever can hold a range of it: a change that has entered it, an operation.
    fn begin(&mut self, held: usize, entries: &[(SourceId, Call<'g>)]) {
        let graph = self.graph;
        let id = graph.sources[held].id;
        entries.iter().filter(|(entered, _)| *entered == id).for_each(|(_, call)| self.call(*call));
        for (at, node) in graph.nodes.iter().enumerate() {
            for operation in operations(&node.edges) {
                let guarded = operation.from.map(|from| node.edges[from].child);
                let Effect { enters, exempt, .. } = operation.effect;
                // A void proof counts as a change of what it had exempted.
                let source = &graph.sources[held];
                if (guarded == Some(source.node) && source.is_read())
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
            self.call(Call::reading(edge.child, is_elsewhere));
            // Its container and its targets a driver may change at any time.
            if carries_changes(edge) && (call.is_change || edge.role.is_entry()) {
                let need = Need { parent: call.node, edge: at };
                // Elsewhere it is a write of other bytes, of which nothing is proven.
                let shield = call.shield.filter(|_| call.is_change && !is_elsewhere);
                let is_left = |source: SourceId| {
                    shield.is_some_and(|effect| effect.exempt.ids().any(|exempt| exempt == source))
                };
                let node = edge.child;
                let crossed = edge.crossing.iter().flat_map(|sources| sources.ids());
                for source in crossed.filter(|source| !is_left(*source)) {
                    self.need(source, need, is_elsewhere);
                    let call = Call { node, is_change: true, is_elsewhere: false, shield };
                    self.entries.push((source, call));
                }
                self.call(Call { node, is_change: true, is_elsewhere, shield });
            }
        }
        for operation in operations(&node.edges) {
            if let Some(from) = operation.from {
                let guarded = node.edges[from].child;
                let mut sources = graph.sources.iter();
                let source = sources.find(|source| source.is_read() && source.node == guarded);
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
        let read = operation.from.into_iter().chain([operation.to]);
        read.for_each(|edge| self.call(Call::reading(edges[edge].child, is_elsewhere)));
        let (node, shield) = (edges[operation.to].child, Some(operation.effect));
        self.call(Call { node, is_change: true, is_elsewhere, shield });
    }

    fn need(&mut self, source: SourceId, need: Need, is_elsewhere: bool) {
        let Some(at) = self.graph.sources.iter().position(|other| other.id == source) else {
            return;
        };
        // Nobody waits for what is only tracked.
        if !self.graph.sources[at].is_read() {
            return;
        }
        if Some(at) != self.held || is_elsewhere {
            self.needs[at].get_or_insert(need);
        }
    }

    fn call(&mut self, call: Call<'g>) {
        let shield = call.shield.map(std::ptr::from_ref);
        if self.seen.insert((call.node, call.is_change, call.is_elsewhere, shield)) {
            self.pending.push(call);
        }
    }
}

/// Whether a change can come by an edge. Without the permission it ends before it enters anything.
fn carries_changes(edge: &Edge) -> bool {
    (edge.role.forwards_changes() || edge.role.is_entry())
        && !edge.uses.intersection(PermissionSet::CHANGES).is_empty()
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
