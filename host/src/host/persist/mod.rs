//! Bitmaps that images keep: which, where, and what becomes of them when the graph changes.
//!
//! | file | idea |
//! |---|---|
//! | `place.rs` | which node keeps a bitmap, and which stored one an export means |
//! | `doubt.rs` | whether what is stored can be believed |
//! | `load.rs` | which of what images hold comes into the graph, and which bitmaps begin there |
//! | `adopt.rs` | what one image holds comes into bitmaps of the graph |
//! | `entry.rs` | entries that are made, and taken out |
//! | `reopened.rs` | images that become writable, or read-only, while they are in the graph |
//! | `follow.rs` | after a change of the graph: renamed, removed, at home elsewhere |
//!
//! A bitmap has an *entry* in the image of one node, its home, from the moment at which it is kept. While it
//! is in use the entry says so, durably, and counts as inconsistent. The node's driver stores the content
//! when it closes, with nothing in flight ([`Keeping::store`](crate::node::Keeping::store)); so a host that
//! does not end in order leaves bitmaps that say that they cannot be trusted.
//!
//! **Invariants**
//! - A bitmap is in the graph and records before its image is marked as in use and its content is read; the
//!   content is added to what it has recorded since. So no change is missed, whatever comes meanwhile.
//! - No change comes to an image between the reading of its bitmaps and their mark: the driver sees to it
//!   ([`BitmapStore`](crate::node::BitmapStore)).
//! - What may have changed below an image while nobody here had it open makes its bitmaps all dirty. What is
//!   below is compared after the bitmaps record, and recorded after it has closed.
//! - A bitmap has a UUID, and its stored form a generation, which grows with each image that it goes to. The new
//!   form is durable before the graph changes, the former one goes after that. Of forms in images that stand on
//!   each other the highest generation counts. If the graph does not change after all, the new form goes again, or
//!   the bitmap's own generation comes to be higher.
//! - What cannot be stored is told and stays marked as in use: never clean on trust.

mod adopt;
#[cfg(test)]
mod crash;
mod doubt;
mod entry;
mod follow;
mod gains;
mod load;
#[cfg(test)]
mod meta;
mod place;
mod reopened;
#[cfg(test)]
mod tests;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use load::{NotKept, Wanted};
pub(super) use place::first_stored;

use crate::bitmap::{Bitmap, BitmapState};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    BitmapScope, Cx, Event, Graph, GraphCell, GraphNode, LocalGraph, NodeGeneration, WriterLock,
};
use crate::node::{BitmapStore, Node, StoreChange, Upkeep};

/// Where a bitmap is kept when the host is down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// In the image that is this node.
    Node(String),
    /// In the first image, from its root, of the drive that it belongs to, whichever that is.
    Root,
    /// In the image at the top of its drive that shows an external data file.
    Meta,
}

/// The kept bitmaps of a host.
#[derive(Default)]
pub(crate) struct Persistence {
    /// One at a time loads, or follows a change.
    turn: WriterLock,
    entries: Mutex<Vec<Entry>>,
    /// Set when a host's graph stands: what comes later is followed.
    begun: AtomicBool,
    /// Nodes whose bitmaps have been loaded.
    loaded: Mutex<Vec<NodeGeneration>>,
}

#[derive(Clone)]
struct Entry {
    bitmap: Arc<Bitmap>,
    /// What it recorded when it was last seen to.
    scope: BitmapScope,
    keep: Keep,
    /// `None` while no image can keep it.
    home: Option<Home>,
    /// It stands still because its image is read-only: it is to go on when that is opened for writing.
    waits: bool,
}

/// A node that keeps bitmaps.
#[derive(Clone)]
struct Home {
    generation: NodeGeneration,
    name: Arc<str>,
    driver: Arc<dyn Node>,
}

impl Home {
    /// Of a node that keeps bitmaps.
    fn of(node: &GraphNode) -> Option<Self> {
        node.driver().bitmap_store()?;
        let (generation, driver) = (node.generation(), Arc::clone(node.driver()));
        Some(Self { generation, name: node.name().into(), driver })
    }

    /// Whether its image can be written.
    fn writes(&self) -> bool {
        self.driver.upkeep() == Upkeep::Writes
    }

    fn is_in(&self, graph: &Graph) -> bool {
        graph.nodes().iter().any(|node| node.generation() == self.generation)
    }

    fn store(&self) -> Result<&dyn BitmapStore> {
        self.driver.bitmap_store().ok_or_else(|| {
            let message = "it keeps no bitmaps: `qcow2` images of version 3 do";
            Error::new(ErrorKind::NotSupported, message).at_node(&self.name)
        })
    }

    /// Calls its store, beside requests.
    async fn call<T: 'static>(
        &self,
        cell: &Arc<GraphCell>,
        f: impl AsyncFnOnce(&dyn BitmapStore, Cx<'_>) -> Result<T> + 'static,
    ) -> Result<T> {
        let home = self.clone();
        let graph = LocalGraph::of(cell);
        let called =
            graph.call_node(&self.name, async move |cx: Cx<'_>| f(home.store()?, cx).await);
        called.await.map_err(|error| error.at_node(&self.name))
    }

    async fn change(&self, cell: &Arc<GraphCell>, change: StoreChange) -> Result<()> {
        self.call(cell, async move |store, cx| store.change(cx, vec![change]).await).await
    }
}

impl Persistence {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn loaded(&self) -> MutexGuard<'_, Vec<NodeGeneration>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps nothing any more: the host has ended.
    pub(super) fn clear(&self) {
        self.entries().clear();
        self.loaded().clear();
    }

    fn home_of(&self, bitmap: &Arc<Bitmap>) -> Option<Home> {
        let entries = self.entries();
        entries.iter().find(|entry| Arc::ptr_eq(&entry.bitmap, bitmap))?.home.clone()
    }

    /// The node whose image keeps a bitmap.
    pub(crate) fn kept_in(&self, bitmap: &Arc<Bitmap>) -> Option<Arc<str>> {
        self.home_of(bitmap).map(|home| home.name)
    }

    /// Whether a bitmap is to go on when its image is opened for writing.
    pub(super) fn waits(&self, bitmap: &Arc<Bitmap>) -> bool {
        let is_it = |entry: &&Entry| Arc::ptr_eq(&entry.bitmap, bitmap);
        let entries = self.entries();
        let waits = entries.iter().find(is_it).is_some_and(|entry| entry.waits);
        waits && bitmap.state() == BitmapState::Disabled
    }

    /// Stores everything that is kept, as it stands. It stays marked as in use, and so counts only once it is
    /// stored in the end: what this shows is whether it can be.
    ///
    /// # Errors
    /// The first that is not; the others are stored.
    pub(super) async fn store(&self, cell: &Arc<GraphCell>) -> Result<()> {
        let _turn = self.turn.lock().await;
        let mut homes: Vec<Home> = Vec::new();
        for home in self.entries().iter().filter_map(|entry| entry.home.clone()) {
            if home.writes() && !homes.iter().any(|other| other.generation == home.generation) {
                homes.push(home);
            }
        }
        let mut result = Ok(());
        for home in homes {
            let stored =
                home.call(cell, async |store, cx| store.keeping().store(store, cx, true).await);
            if let Err(error) = stored.await {
                tracing::error!("bitmaps are not stored: {error}");
                result = result.and(Err(error));
            }
        }
        result
    }
}

fn scope_of(graph: &Graph, bitmap: &Arc<Bitmap>) -> Option<BitmapScope> {
    let found = graph.bitmaps().find(|(_, other)| Arc::ptr_eq(other, bitmap));
    found.map(|(scope, _)| scope.clone())
}

/// `was` is what it recorded when it was last seen to, if that is known.
fn tell_not_kept(
    (cell, graph): (&GraphCell, &Graph),
    bitmap: &Arc<Bitmap>,
    was: Option<&BitmapScope>,
    error: &Error,
) {
    let scope = scope_of(graph, bitmap).or_else(|| was.cloned());
    let name = bitmap.name().to_string();
    cell.tell(graph, Event::BitmapNotKept { scope, name, why: error.to_string() });
}
