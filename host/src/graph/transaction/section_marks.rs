//! What drivers write to their containers in a drained section, on the bitmaps of these.
//!
//! In the section a bitmap may have two sets: the one that records now, and the one that is to record once
//! the snapshot is published, which is filled from the other at the very end. Nobody knows before whether it
//! will be. So a change is marked in the set that records now, before it is issued, and noted; what is noted
//! is marked again in the set that records in the end, whatever the actions did in between.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use crate::bitmap::{Bitmap, Prepared};
use crate::graph::cell::Snapshot;
use crate::graph::class::{Class, Cut, Reached};
use crate::graph::generation::NodeGeneration;
use crate::graph::op::Op;
use crate::graph::snapshot::{Edge, Graph};

/// Ranges noted one by one; above this they are joined, bitmap by bitmap.
const NOTED_MAX: usize = 1024;

/// See the module.
pub(in crate::graph) struct SectionMarks {
    graphs: [Rc<Snapshot>; 2],
    noted: RefCell<Vec<(Arc<Bitmap>, Range<u64>)>>,
    /// Changes of what is seen.
    written: Cell<u64>,
}

impl SectionMarks {
    /// For a section between these two.
    pub(super) fn of(before: &Rc<Snapshot>, after: &Rc<Snapshot>) -> Self {
        Self {
            graphs: [Rc::clone(before), Rc::clone(after)],
            noted: RefCell::default(),
            written: Cell::new(0),
        }
    }

    /// Marks a change by an edge of either snapshot. Called before the change is issued.
    pub(in crate::graph) fn mark(&self, graph: &Graph, edge: &Edge, op: &Op) {
        if edge.entry.is_none() || op.len == 0 {
            return;
        }
        let child = graph.nodes[edge.child].generation;
        let is_it = |other: &Edge| std::ptr::eq(other, edge);
        let parent = graph.nodes.iter().find(|node| node.edges.iter().any(is_it));
        let parent = parent.map(|parent| parent.generation);
        for graph in &self.graphs {
            self.mark_in(graph, (parent, &edge.name), child, op.offset..op.offset + op.len);
        }
    }

    fn mark_in(
        &self,
        graph: &Graph,
        (parent, edge): (Option<NodeGeneration>, &str),
        child: NodeGeneration,
        range: Range<u64>,
    ) {
        let Some(child) = graph.nodes.iter().find(|node| node.generation == child) else { return };
        let own = graph.nodes.iter().enumerate().find_map(|(at, node)| {
            let position = node.edges.iter().position(|other| *other.name == *edge)?;
            (Some(node.generation) == parent).then_some((at, position))
        });
        let reached = graph.views.reached(child.class, Cut { class: None, edge: own });
        self.mark_reached(graph, &reached, &range);
    }

    /// Marks a change of `child`, a node of the graph that is, of which is proven that it alters nothing at and above
    /// `class`. Called before the change is issued.
    pub(in crate::graph) fn mark_proven(
        &self,
        range: Range<u64>,
        child: usize,
        class: Option<Class>,
    ) {
        self.written.set(self.written.get() + 1);
        let graph = &self.graphs[0];
        let reached = graph.views.reached(graph.nodes[child].class, Cut { class, edge: None });
        self.mark_reached(graph, &reached, &range);
    }

    /// How often something has been written that is seen: what was looked at before is not to be relied on.
    pub(in crate::graph) fn written(&self) -> u64 {
        self.written.get()
    }

    fn mark_reached(&self, graph: &Graph, reached: &Reached, range: &Range<u64>) {
        let Reached { ranged, whole } = reached;
        for entry in &graph.bitmaps {
            let Some(node) = entry.node.map(|node| &graph.nodes[node]) else { continue };
            let range = match (whole.contains(&node.class), ranged.contains(&node.class)) {
                (true, _) => 0..u64::MAX,
                (false, true) => range.clone(),
                (false, false) => continue,
            };
            if let Some(recording) = entry.bitmap.recording() {
                recording.mark(range.start, range.end - range.start);
                if node.info.growable && range.end < u64::MAX {
                    recording.mark_grown(range.end);
                }
            }
            self.note(&entry.bitmap, range);
        }
    }

    fn note(&self, bitmap: &Arc<Bitmap>, range: Range<u64>) {
        let mut noted = self.noted.borrow_mut();
        let is_full = noted.len() >= NOTED_MAX;
        let known = noted.iter_mut().rev().find(|(other, last)| {
            Arc::ptr_eq(other, bitmap) && (is_full || last.end == range.start || *last == range)
        });
        match known {
            Some((_, last)) => *last = last.start.min(range.start)..last.end.max(range.end),
            None => noted.push((Arc::clone(bitmap), range)),
        }
    }

    /// Marks what has been noted in the sets that record when all is done.
    pub(super) fn add_to(&self, prepared: &mut Prepared) {
        for (bitmap, range) in self.noted.take() {
            prepared.mark_at(usize::MAX, &bitmap, range);
        }
    }
}
