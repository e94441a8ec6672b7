//! What nodes do of their own accord begins once the graph and all its bitmaps are there.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Inner;
use crate::graph::{GraphCell, LocalGraph, NodeGeneration};

/// The nodes whose own work has begun.
#[derive(Default)]
pub(super) struct Begun {
    nodes: Mutex<HashSet<NodeGeneration>>,
    /// A host may begin without nodes.
    has_begun: AtomicBool,
}

impl Begun {
    /// Has the work of nodes begin that have come since this was called last. On a worker.
    pub(super) fn begin_new(&self, cell: &Arc<GraphCell>) {
        self.has_begun.store(true, Ordering::Release);
        let graph = cell.load();
        let new: Vec<_> = {
            let mut begun = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
            begun.retain(|known| graph.nodes().iter().any(|node| node.generation() == *known));
            graph.nodes().iter().filter(|node| begun.insert(node.generation())).collect()
        };
        let local = LocalGraph::of(cell);
        for node in new {
            node.driver().run(&local, node.name());
        }
    }
}

impl Inner {
    /// While a host starts, its bitmaps are not there yet: what its nodes do begins together.
    pub(super) fn begun_once_loaded(&self) -> Option<Arc<Begun>> {
        self.begun.has_begun.load(Ordering::Acquire).then(|| Arc::clone(&self.begun))
    }
}
