//! What a graph change does to bitmaps: marks, and sizes.
//!
//! Changes of content (a new size; later add, clear, freeze, merge back …) are prepared when the next
//! snapshot is assembled, whose marks are of the sets that record then. Marks add bits to the sets that
//! record now.

use std::collections::BTreeSet;
use std::ops::Range;

use super::event::Event;
use super::touched::Known;
use crate::graph::class::{Class, Cut};
use crate::graph::generation::NodeGeneration;
use crate::graph::mutation::{Mutation, mutated};
use crate::graph::snapshot::{BitmapScope, Graph, ScopedBitmap};

/// The bitmaps with this scope, by index.
pub(super) fn of_scope(graph: &Graph, scope: &BitmapScope) -> Vec<usize> {
    let all = graph.bitmaps.iter().enumerate();
    all.filter(|(_, entry)| entry.scope == *scope).map(|(at, _)| at).collect()
}

/// The bitmaps of all views that see what happens in `class`, by index.
pub(super) fn affected(graph: &Graph, class: Class) -> impl Iterator<Item = usize> {
    let reached = graph.views.reached(class, Cut::default());
    let all = graph.bitmaps.iter().enumerate();
    let sees = move |class: &Class| reached.ranged.contains(class) || reached.whole.contains(class);
    all.filter(move |(_, entry)| entry.node.is_some_and(|node| sees(&graph.nodes[node].class)))
        .map(|(at, _)| at)
}

/// The bitmaps that get the size which their view is to have: see [`super::Draft::assemble`]. To be called
/// before they have it.
pub(super) fn resized(after: &Graph) -> Vec<Event> {
    let event = |entry: &ScopedBitmap| {
        let to_bytes = after.nodes[entry.node?].info.size_bytes;
        let (from_bytes, name) = (entry.bitmap.size_bytes(), entry.bitmap.name().to_string());
        let scope = entry.scope.clone();
        let event = Event::BitmapResized { scope, name, from_bytes, to_bytes };
        (from_bytes != to_bytes).then_some(event)
    };
    after.bitmaps.iter().filter_map(event).collect()
}

/// Marks bitmaps whole, as `why` says. A bitmap that is disabled records no graph change either.
pub(super) fn mark_whole(graph: &Graph, which: &[usize], why: &str) -> Vec<Event> {
    let mut events = Vec::new();
    for entry in which.iter().map(|at| &graph.bitmaps[*at]) {
        if let Some(recording) = entry.bitmap.recording() {
            recording.mark(0, u64::MAX);
            let (scope, name) = (entry.scope.clone(), entry.bitmap.name().to_string());
            events.push(Event::BitmapMarkedWhole { scope, name, why: why.to_owned() });
        }
    }
    events
}

/// A range of a node in which its view may alter.
pub(super) struct Change {
    pub(super) node: NodeGeneration,
    pub(super) range: Range<u64>,
    pub(super) why: String,
}

/// The ranges in which views alter because sizes do: what is cut off, or added.
pub(super) fn size_changes(before: &Graph, after: &Graph) -> Vec<Change> {
    let known = Known::of(after);
    let mut seen = BTreeSet::new();
    let mut changes = Vec::new();
    for old in &before.nodes {
        let Some(new) = known.node(old.generation).map(|at| &after.nodes[at]) else { continue };
        let (from, to) = (old.info.size_bytes, new.info.size_bytes);
        if mutated(Mutation::ShrinksUnmarked) && from > to {
            continue;
        }
        if from != to && seen.insert((new.class, from, to)) {
            let why = format!("node `{}` has {to} bytes instead of {from}", new.name);
            let range = from.min(to)..from.max(to);
            changes.push(Change { node: new.generation, range, why });
        }
    }
    changes
}

/// Marks a change wherever it is seen: before it is made, as always.
pub(super) fn mark(graph: &Graph, change: &Change) -> Vec<Event> {
    let Change { node, range, why } = change;
    let mut events = Vec::new();
    let Some(node) = graph.nodes.iter().find(|other| other.generation == *node) else {
        return events;
    };
    let reached = graph.views.reached(node.class, Cut::default());
    for at in affected(graph, node.class) {
        let entry = &graph.bitmaps[at];
        let whole = entry.node.is_some_and(|node| reached.whole.contains(&graph.nodes[node].class));
        if whole {
            events.extend(mark_whole(graph, &[at], why));
            continue;
        }
        let range = range.start..range.end.min(entry.bitmap.size_bytes());
        if range.is_empty() {
            continue;
        }
        if let Some(recording) = entry.bitmap.recording() {
            recording.mark(range.start, range.end - range.start);
            let (scope, name) = (entry.scope.clone(), entry.bitmap.name().to_string());
            events.push(Event::BitmapMarked { scope, name, range, why: why.clone() });
        }
    }
    events
}
