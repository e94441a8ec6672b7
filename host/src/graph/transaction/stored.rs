//! Entries of bitmaps that nodes of the graph that is to be make before it is published: durable before the change
//! takes effect, and taken back if it does not.

use std::sync::Arc;

use super::drain::{Drained, Side};
use super::time_limit::TimeLimit;
use crate::bitmap::{Bitmap, BitmapIdentity};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::snapshot::Cx;
use crate::node::{BitmapContent, BitmapStore, StoreChange, create_stored};

/// An entry that a node makes for a bitmap.
pub(super) struct NewEntry {
    pub(super) node: String,
    pub(super) bitmap: Arc<Bitmap>,
    pub(super) content: BitmapContent,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody has begun to make it, or it has been seen to that it counts for nothing.
    Absent,
    /// It may be there.
    Tried,
    /// It is there, and the image had nothing of its name before.
    Made,
}

/// The entries of a transaction, in order.
#[derive(Default)]
pub(super) struct NewEntries(Vec<(NewEntry, State)>);

impl NewEntries {
    pub(super) fn new(entries: Vec<NewEntry>) -> Self {
        Self(entries.into_iter().map(|entry| (entry, State::Absent)).collect())
    }

    /// Makes all of them.
    ///
    /// # Errors
    /// The first that is not made, as [`create_stored`]; `ENOENT`, `ENOTSUP`, `ETIMEDOUT`.
    pub(super) async fn make(&mut self, section: &Drained<'_>, limit: TimeLimit) -> Result<()> {
        for (entry, state) in &mut self.0 {
            *state = State::Tried;
            let content = entry.content.clone();
            let create = async move |store: &dyn BitmapStore, cx: Cx<'_>| {
                create_stored(store, cx, content).await
            };
            if with_store(section, &entry.node, limit, create).await? {
                *state = State::Made;
            }
        }
        Ok(())
    }

    /// The transaction has failed: what was made goes, as far as there is time for all of it. Where that cannot be, and
    /// where the image had a former entry in its place, the entry does not outrank the valid one any more.
    pub(super) async fn take_back(&mut self, section: &Drained<'_>, limit: TimeLimit) {
        for (entry, state) in self.0.iter_mut().rev() {
            if *state == State::Made {
                let name = entry.content.name.clone();
                let remove = async move |store: &dyn BitmapStore, cx: Cx<'_>| {
                    store.change(cx, vec![StoreChange::Remove(name)]).await
                };
                match with_store(section, &entry.node, limit, remove).await {
                    Ok(()) => *state = State::Absent,
                    Err(error) => tracing::warn!(
                        "bitmap `{}` stays in the image of node `{}`, which it has not come to: {error}",
                        entry.content.name,
                        entry.node
                    ),
                }
            }
        }
        self.outrank();
    }

    /// Has the valid forms outrank the entries that may be there.
    pub(super) fn outrank(&mut self) {
        for (NewEntry { bitmap, content, .. }, state) in &mut self.0 {
            let left = content.identity.next();
            if *state != State::Absent && bitmap.identity().generation < left.generation {
                bitmap.set_identity(BitmapIdentity { uuid: bitmap.identity().uuid, ..left });
            }
            *state = State::Absent;
        }
    }
}

/// Calls the store of a node of the graph that is to be.
async fn with_store<T>(
    section: &Drained<'_>,
    name: &str,
    limit: TimeLimit,
    call: impl AsyncFnOnce(&dyn BitmapStore, Cx<'_>) -> Result<T>,
) -> Result<T> {
    let place = section.find(Side::After, name)?;
    let request = section.request(place);
    let (graph, node) = (request.graph(), place.node);
    let store = graph.nodes[node].driver.bitmap_store().ok_or_else(|| {
        let message = "it keeps no bitmaps: `qcow2` images of version 3 do";
        Error::new(ErrorKind::NotSupported, message).at_node(name)
    })?;
    let cx = Cx { graph, request: &request, node };
    let late = || {
        let message = "it did not see to its bitmaps in time: try again when less is written to it";
        Err(Error::new(ErrorKind::TimedOut, message).at_node(name))
    };
    limit.keep(call(store, cx)).await.unwrap_or_else(late)
}
