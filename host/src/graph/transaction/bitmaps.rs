//! What a graph change does to bitmaps: marks, and sizes.
//!
//! **Seam**: bitmaps change as whole contents that are published with a snapshot. Today only a resize
//! does; other actions (add, clear, freeze, merge back …) prepare theirs beside it, and name the bitmaps
//! in [`resizing`]'s place, so that whoever marks them stands still.

use std::collections::BTreeSet;
use std::ops::Range;

use super::assemble::set_entries;
use super::drain::Still;
use super::event::Event;
use super::touched::Known;
use crate::bitmap::{self, Bitmap, Extension, Prepared};
use crate::error::{Error, Result};
use crate::graph::acting;
use crate::graph::class::{Class, Cut};
use crate::graph::generation::NodeGeneration;
use crate::graph::snapshot::{BitmapScope, Graph};

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

/// The bitmaps whose view is to have another size.
pub(super) fn resizing(before: &Graph, after: &Graph) -> Vec<usize> {
    // New ones come after those that there are.
    let old = after.bitmaps.iter().enumerate().take(before.bitmaps.len());
    let differs =
        |node: usize, bitmap: &Bitmap| after.nodes[node].info.size_bytes != bitmap.size_bytes();
    old.filter(|(_, entry)| entry.node.is_some_and(|node| differs(node, &entry.bitmap)))
        .map(|(at, _)| at)
        .collect()
}

/// Prepares sets of the right size for the bitmaps that [`resizing`] found: what is added is dirty. The
/// graph marks them; to be filled and committed while whoever marks them stands still.
///
/// # Errors
/// `EINVAL` for more granules than there can be, `ENOMEM`; `EBUSY` for a bitmap that cannot change now.
pub(super) fn resize(
    before: &Graph,
    graph: &mut Graph,
    which: &[usize],
    _still: &Still<'_>,
) -> Result<(Prepared, Vec<Event>)> {
    let mut prepared = Prepared::default();
    let mut events = Vec::with_capacity(which.len());
    for at in which {
        let entry = &mut graph.bitmaps[*at];
        let Some(node) = entry.node else { continue };
        let (from_bytes, to_bytes) = (entry.bitmap.size_bytes(), graph.nodes[node].info.size_bytes);
        let name = entry.bitmap.name().as_str().to_owned();
        let resize = bitmap::Change::Resize(to_bytes, Extension::Dirty);
        prepared.add(&entry.bitmap, &resize).map_err(|error| {
            let text = format!("bitmap `{name}` of {} cannot be resized: {error}", entry.scope);
            Error::new(error.kind(), text)
        })?;
        entry.recording = prepared.recording_after(&entry.bitmap);
        let scope = entry.scope.clone();
        events.push(Event::BitmapResized { scope, name, from_bytes, to_bytes });
    }
    if !which.is_empty() {
        set_entries(graph);
        acting::resolve(graph, Some(before));
    }
    Ok((prepared, events))
}

/// Marks bitmaps whole, as `why` says. A bitmap that is disabled records no graph change either.
pub(super) fn mark_whole(graph: &Graph, which: &[usize], why: &str) -> Vec<Event> {
    let mut events = Vec::new();
    for entry in which.iter().map(|at| &graph.bitmaps[*at]) {
        if let Some(set) = entry.bitmap.recording() {
            set.mark(0, u64::MAX);
            let (scope, name) = (entry.scope.clone(), entry.bitmap.name().as_str().to_owned());
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
        if !range.is_empty()
            && let Some(set) = entry.bitmap.recording()
        {
            set.mark(range.start, range.end - range.start);
            let (scope, name) = (entry.scope.clone(), entry.bitmap.name().as_str().to_owned());
            events.push(Event::BitmapMarked { scope, name, range, why: why.clone() });
        }
    }
    events
}
