//! An image whose metadata contradict themselves: whoever listens to the host is told.

use std::sync::{Arc, OnceLock, Weak};

use crate::graph::{Event, GraphCell, GraphDrive};

/// Where it is told; nowhere before the node runs.
#[derive(Default)]
pub(super) struct Alarm(OnceLock<(Weak<GraphCell>, Arc<str>)>);

impl Alarm {
    /// The node stands in a graph.
    pub(super) fn goes_to(&self, cell: &Arc<GraphCell>, node: &str) {
        // A node has one name in one graph, however often it is opened in another way.
        self.0.get_or_init(|| (Arc::downgrade(cell), node.into()));
    }

    /// Tells of it, once for an image: `why` is what does not fit.
    pub(super) fn sound(&self, why: &str, is_fatal: bool) {
        let there = self.0.get().and_then(|(cell, node)| Some((cell.upgrade()?, node)));
        let Some((cell, node)) = there else {
            tracing::warn!("an image is corrupt: {why}");
            return;
        };
        let graph = cell.load();
        let at = graph.nodes().iter().position(|it| it.name() == &**node);
        let is_root =
            |drive: &&GraphDrive| drive.root().is_some_and(|edge| Some(edge.child()) == at);
        let drive = graph.drives().iter().find(is_root).map(|drive| drive.id().into());
        let (node, why) = (Arc::clone(node), why.to_owned());
        cell.tell(&graph, Event::ImageCorrupt { node, drive, why, is_fatal });
    }
}
