//! What a graph change does to bitmaps: marks, and sizes.
//!
//! Changes of content (a new size; add, clear, freeze, merge back …) are prepared when the next snapshot is
//! assembled, whose marks are of the sets that record then. What the graph change itself alters is marked
//! in the set that records at the place of the action which alters it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::draft::{Draft, DraftBitmap};
use super::event::{BitmapChange, Event};
use super::touched::Known;
use crate::bitmap::{Bitmap, Prepared};
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

/// The bitmaps that get the size which their view is to have: see [`Draft::assemble_bitmaps`]. To be called
/// before they have it.
pub(super) fn resized(draft: &Draft, after: &Graph) -> Vec<Event> {
    let event = |(entry, made): (&ScopedBitmap, &DraftBitmap)| {
        let to_bytes = after.nodes[entry.node?].bitmap_bytes(entry.bitmap.granularity());
        let (from_bytes, name) = (entry.bitmap.size_bytes(), made.name.to_string());
        let scope = entry.scope.clone();
        let event = Event::BitmapResized { scope, name, from_bytes, to_bytes };
        (from_bytes != to_bytes && !made.is_new).then_some(event)
    };
    // The draft has the graph's bitmaps, in the same order.
    after.bitmaps.iter().zip(&draft.bitmaps).filter_map(event).collect()
}

/// The bitmaps that go with the nodes that store them.
pub(super) fn gone_with_nodes(draft: &Draft) -> impl Iterator<Item = Event> {
    draft.gone_with_nodes.iter().map(|(scope, name)| {
        let (scope, name) = (Some(scope.clone()), name.to_string());
        Event::BitmapChanged { scope, name, change: BitmapChange::Removed }
    })
}

/// The bitmaps that the draft adds, in the order of their actions.
pub(super) fn added(draft: &Draft) -> Vec<Arc<Bitmap>> {
    let new = draft.bitmaps.iter().filter(|entry| entry.is_new);
    new.map(|entry| Arc::clone(&entry.bitmap)).collect()
}

/// The bitmaps that a transaction marks: those of the graph that is to be, and behind them those that it
/// takes out, which may be merged before that.
#[derive(Clone, Copy)]
pub(super) struct Marked<'g> {
    pub(super) after: &'g Graph,
    pub(super) gone: &'g [ScopedBitmap],
}

impl Marked<'_> {
    /// Marks bitmaps whole, by their indices, as `why` says. A bitmap that is disabled then records no
    /// graph change either.
    pub(super) fn whole(
        self,
        prepared: &mut Prepared,
        which: &[usize],
        position: usize,
        why: &str,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        let staying = self.after.bitmaps.len();
        for at in which {
            let (entry, stays) = match at.checked_sub(staying) {
                None => (&self.after.bitmaps[*at], true),
                Some(at) => (&self.gone[at], false),
            };
            if prepared.mark_at(position, &entry.bitmap, 0..u64::MAX) && stays {
                events.push(marked_whole(entry, why));
            }
        }
        events
    }

    /// Marks a change that has been made wherever it is seen, in its place among the changes of bitmaps.
    pub(super) fn range(self, prepared: &mut Prepared, change: &Change) -> Vec<Event> {
        let mut events = Vec::new();
        for (entry, range) in seen(self.after, &self.after.bitmaps, change) {
            let bytes = range.clone().unwrap_or(0..u64::MAX);
            // What a bitmap gains by its own new size has been told.
            let is_told = range.is_some() && entry.bitmap.size_bytes() < bytes.end;
            if prepared.mark_at(change.position, &entry.bitmap, bytes) && !is_told {
                events.push(marked(entry, range, &change.why));
            }
        }
        for (entry, range) in seen(self.after, self.gone, change) {
            prepared.mark_at(change.position, &entry.bitmap, range.unwrap_or(0..u64::MAX));
        }
        events
    }
}

/// The bitmaps that go together with their views.
pub(super) fn of_gone_views(draft: &Draft) -> Vec<Arc<Bitmap>> {
    let gone = draft.removed.iter().filter(|entry| entry.view_is_gone);
    gone.map(|entry| Arc::clone(&entry.bitmap)).collect()
}

/// Marks what goes together with its view: what that showed meanwhile is not looked at.
pub(super) fn mark_of_gone_views(
    prepared: &mut Prepared,
    bitmaps: &[Arc<Bitmap>],
    last_shape: usize,
) {
    for bitmap in bitmaps.iter().filter(|_| last_shape > 0) {
        prepared.mark_at(last_shape, bitmap, 0..u64::MAX);
    }
}

fn marked_whole(entry: &ScopedBitmap, why: &str) -> Event {
    let (scope, name) = (entry.scope.clone(), entry.bitmap.name().to_string());
    Event::BitmapMarkedWhole { scope, name, why: why.to_owned() }
}

/// A range of a node in which its view may alter.
pub(super) struct Change {
    pub(super) node: NodeGeneration,
    pub(super) range: Range<u64>,
    /// Among the changes of bitmaps.
    pub(super) position: usize,
    pub(super) why: String,
}

/// The ranges in which views alter because sizes do: what is cut off, or added.
pub(super) fn size_changes(draft: &Draft, before: &Graph, after: &Graph) -> Vec<Change> {
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
            let (range, position) = (from.min(to)..from.max(to), draft.last_shape);
            changes.push(Change { node: new.generation, range, position, why });
        }
    }
    changes
}

/// Those of `bitmaps` that see a change, each with the range in which it does, within its view's size;
/// `None`: anywhere.
fn seen<'b>(
    graph: &Graph,
    bitmaps: &'b [ScopedBitmap],
    change: &Change,
) -> Vec<(&'b ScopedBitmap, Option<Range<u64>>)> {
    let Some(node) = graph.nodes.iter().find(|other| other.generation == change.node) else {
        return Vec::new();
    };
    let reached = graph.views.reached(node.class, Cut::default());
    let seen = |entry: &'b ScopedBitmap| {
        let node = &graph.nodes[entry.node?];
        if reached.whole.contains(&node.class) {
            return Some((entry, None));
        }
        let range = change.range.start..change.range.end.min(node.info.size_bytes);
        let is_seen = reached.ranged.contains(&node.class) && !range.is_empty();
        is_seen.then_some((entry, Some(range)))
    };
    bitmaps.iter().filter_map(seen).collect()
}

fn marked(entry: &ScopedBitmap, range: Option<Range<u64>>, why: &str) -> Event {
    let Some(range) = range else { return marked_whole(entry, why) };
    let (scope, name) = (entry.scope.clone(), entry.bitmap.name().to_string());
    Event::BitmapMarked { scope, name, range, why: why.to_owned() }
}

/// Marks a change, in the graph that is, before a driver makes it: as always, and as the driver may fail or
/// be late. The events are for those cases.
pub(super) fn mark_before(before: &Graph, change: &Change) -> Vec<Event> {
    let mut events = Vec::new();
    if mutated(Mutation::FailedWorkUnmarked) {
        return events;
    }
    for (entry, range) in seen(before, &before.bitmaps, change) {
        let Some(recording) = entry.bitmap.recording() else { continue };
        let Range { start, end } = range.clone().unwrap_or(0..u64::MAX);
        recording.mark(start, end - start);
        events.push(marked(entry, range, &change.why));
    }
    events
}
