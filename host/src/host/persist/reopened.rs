//! Images that become writable while they are in the graph, or read-only.
//!
//! The image's driver marks its bitmaps as in use, and stores them, with nothing in flight. Those that have stood
//! still because their image was read-only record from the instant at which it is not; then what is stored of them
//! is added, as when an image is opened. Those that went on recording when their image became read-only have
//! missed nothing.

use std::sync::Arc;

use super::adopt::{disbelieve, doubt_of_home};
use super::{Home, Persistence, scope_of, tell_not_kept};
use crate::bitmap::{Bitmap, BitmapName, BitmapState};
use crate::error::Result;
use crate::graph::{Action, BitmapAction, Graph, GraphCell, Transaction};
use crate::node::LoadedBitmap;

impl Persistence {
    /// Has bitmaps that stand still go on with a transaction that opens their images for writing.
    pub(super) fn wake(&self, graph: &Graph, mut transaction: Transaction) -> Transaction {
        let mut woken: Vec<Arc<Bitmap>> = Vec::new();
        for action in transaction.actions() {
            let Action::Reopen { node, to } = action else { continue };
            let Some(node) = graph.find_node(node).filter(|_| to.mode().write) else { continue };
            let generation = graph.nodes()[node].generation();
            let here = self.entries().clone().into_iter().filter(|entry| {
                let home = entry.home.as_ref();
                entry.waits && home.is_some_and(|home| home.generation == generation)
            });
            woken.extend(here.map(|entry| entry.bitmap));
        }
        // Somebody may have taken it out, or it is not to be trusted.
        woken.retain(|bitmap| {
            scope_of(graph, bitmap).is_some() && bitmap.state() == BitmapState::Disabled
        });
        for bitmap in &woken {
            transaction = transaction.with(BitmapAction::Enable.of(bitmap));
        }
        transaction
    }

    /// Follows images whose drivers are others now.
    pub(super) async fn follow_reopened(&self, cell: &Arc<GraphCell>) {
        let graph = cell.load();
        let mut opened: Vec<Home> = Vec::new();
        for entry in self.entries().iter_mut() {
            let Some(home) = &mut entry.home else { continue };
            let mut nodes = graph.nodes().iter();
            let now = nodes.find(|node| node.generation() == home.generation).and_then(Home::of);
            let Some(now) = now.filter(|now| !Arc::ptr_eq(&now.driver, &home.driver)) else {
                continue;
            };
            let is_known = opened.iter().any(|other| other.generation == now.generation);
            if now.writes() && !home.writes() && !is_known {
                opened.push(now.clone());
            }
            *home = now;
        }
        for home in opened {
            if let Err(error) = self.load_again(cell, &graph, &home).await {
                for entry in self.entries().iter().filter(|entry| entry.is_in(&home)) {
                    tell_not_kept((cell, &graph), &entry.bitmap, Some(&entry.scope), &error);
                }
            }
        }
    }

    /// Adds what an image holds to the bitmaps that have stood still, and keeps all that are at home there.
    async fn load_again(&self, cell: &Arc<GraphCell>, graph: &Graph, home: &Home) -> Result<()> {
        let here: Vec<(Arc<Bitmap>, bool)> = {
            let mut entries = self.entries();
            let here = entries.iter_mut().filter(|entry| entry.is_in(home));
            here.map(|entry| (Arc::clone(&entry.bitmap), std::mem::take(&mut entry.waits)))
                .collect()
        };
        let keeping = home.store()?.keeping();
        let names = here
            .iter()
            .filter_map(|(bitmap, _)| Some((keeping.name_of(bitmap)?, bitmap.size_bytes())));
        let wanted: Vec<(BitmapName, u64)> = names.collect();
        let loaded = home.call(cell, async move |store, cx| store.begin_use(cx, wanted).await);
        let loaded: Vec<LoadedBitmap> = loaded.await?;
        for (bitmap, has_waited) in here {
            let Some(name) = keeping.name_of(&bitmap) else { continue };
            let content = loaded.iter().find(|loaded| loaded.name == name).filter(|_| has_waited);
            if let Some(LoadedBitmap { words, below, .. }) = content
                && let Some(scope) = scope_of(graph, &bitmap)
            {
                let doubt = doubt_of_home(graph, &scope, home, below);
                match (words, doubt) {
                    (Ok(words), None) => bitmap.add_words(words),
                    (Ok(_), Some(why)) => disbelieve(cell, &scope, &bitmap, home, &why),
                    (Err(error), _) => {
                        let why = format!("what its image holds cannot be had ({error})");
                        disbelieve(cell, &scope, &bitmap, home, &why);
                    }
                }
            }
            keeping.keep(&bitmap, name, true);
        }
        Ok(())
    }
}

impl super::Entry {
    fn is_in(&self, home: &Home) -> bool {
        self.home.as_ref().is_some_and(|known| known.generation == home.generation)
    }
}
