//! What images hold comes into the graph, and bitmaps that are to be kept get an entry.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::adopt::{Found, check_fits};
use super::doubt::{Fate, Forms, Listed, are_related, left_below};
use super::entry::remove_outdated;
use super::place::home_for;
use super::{Home, Keep, Persistence, tell_not_kept};
use crate::bitmap::{BitmapIdentity, BitmapName, Uuid};
use crate::error::{Error, Result};
use crate::graph::{BitmapScope, Graph, GraphCell};
use crate::node::StoredBitmap;

/// A bitmap of the graph that is to be kept.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) scope: BitmapScope,
    pub(crate) name: BitmapName,
    pub(crate) keep: Keep,
    /// What is stored of it has to have this UUID.
    pub(crate) uuid: Option<Uuid>,
}

/// Why bitmaps are not kept.
#[derive(Debug)]
pub(crate) struct NotKept {
    /// Which of those that were to be; `None` if it is about others.
    pub(crate) wanted: Option<usize>,
    pub(crate) error: Error,
}

impl From<Error> for NotKept {
    fn from(error: Error) -> Self {
        Self { wanted: None, error }
    }
}

impl Persistence {
    /// Loads the bitmaps of all images that have come since this was called last: those that record go on,
    /// those that cannot be trusted are inconsistent, and those of images that are read-only stand still.
    /// Bitmaps that are `wanted` to be kept take over what is stored of them, or get an entry.
    ///
    /// # Errors
    /// The first that stands against it: a stored bitmap that does not fit the wanted one of its name, an
    /// image that cannot keep it, the store's.
    pub(crate) async fn load(
        &self,
        cell: &Arc<GraphCell>,
        wanted: &[Wanted],
    ) -> Result<(), NotKept> {
        let _turn = self.turn.lock().await;
        self.begun.store(true, Ordering::Release);
        self.load_new(cell, wanted).await
    }

    pub(super) async fn load_new(
        &self,
        cell: &Arc<GraphCell>,
        wanted: &[Wanted],
    ) -> Result<(), NotKept> {
        let graph = cell.load();
        let mut homes = Vec::new();
        for (at, wanted) in wanted.iter().enumerate() {
            let home = home_for(&graph, &wanted.scope, &wanted.keep)
                .map_err(|error| NotKept { wanted: Some(at), error })?;
            homes.push(home);
        }
        let mut adopted = vec![false; wanted.len()];
        let all = self.list(cell, &graph).await?;
        let mut outdated = Vec::new();
        // From above: to mark an image as in use changes what is below others.
        for listed in all.iter().rev().filter(|listed| listed.is_new) {
            let home = &listed.home;
            self.loaded().push(home.generation);
            let claims = |stored: &StoredBitmap| {
                let is_it = |at: &usize| {
                    homes[*at].generation == home.generation && wanted[*at].name == stored.name
                };
                (0..wanted.len()).find(is_it)
            };
            // One that is to be in another image, where it is not: there it begins anew.
            let begins_elsewhere = |uuid: Uuid| {
                let is_it = |at: &usize| {
                    wanted[*at].uuid == Some(uuid) && homes[*at].generation != home.generation
                };
                let places = (0..wanted.len()).filter(is_it).map(|at| homes[at].generation);
                let images = places.filter_map(|at| all.iter().find(|it| it.home.generation == at));
                images.into_iter().any(|image| are_related(&graph, image, listed))
            };
            let mut found = Vec::new();
            for stored in &listed.stored {
                // Entries that a transaction has made.
                if listed.is_kept(stored)? {
                    continue;
                }
                // It may have been lost, with all that could be believed.
                let wanted_uuid = claims(stored).and_then(|at| wanted[at].uuid);
                let lost = wanted_uuid.map(|uuid| BitmapIdentity { uuid, generation: 0 });
                let identity = stored.identity.or(lost);
                let forms = identity
                    .map(|identity| Forms::of(&graph, &all, &self.entries(), listed, identity));
                let Some(at) = claims(stored) else {
                    if stored.identity.is_some_and(|it| begins_elsewhere(it.uuid)) {
                        outdated.push((home, stored));
                        continue;
                    }
                    match forms.map_or(Fate::Loads(None), Forms::fate) {
                        Fate::Loads(later) => {
                            found.push(Found { stored, claim: None, identity, later });
                        }
                        Fate::Outdated => outdated.push((home, stored)),
                        Fate::Waits => {}
                    }
                    continue;
                };
                check_fits(&graph, &wanted[at], stored).map_err(|error| NotKept {
                    wanted: Some(at),
                    error: error.at_node(&home.name),
                })?;
                adopted[at] = true;
                let later = forms.and_then(Forms::later);
                found.push(Found { stored, claim: Some(&wanted[at]), identity, later });
            }
            self.load_from(cell, home, found).await?;
        }
        let claimed: Vec<_> = homes
            .iter()
            .map(|home| home.generation)
            .zip(wanted.iter().map(|it| &it.name))
            .collect();
        for (at, (wanted, home)) in wanted.iter().zip(&homes).enumerate() {
            if adopted[at] {
                continue;
            }
            let here = all.iter().find(|listed| listed.home.generation == home.generation);
            let forms = here.zip(wanted.uuid).map(|(here, uuid)| {
                let none = BitmapIdentity { uuid, generation: 0 };
                Forms::of(&graph, &all, &self.entries(), here, none)
            });
            let generation = forms.and_then(Forms::later).map_or(0, |later| later.generation);
            let is_claimed =
                |image: &Listed| claimed.contains(&(image.home.generation, &wanted.name));
            let left = || left_below(&graph, &all, here?, wanted, is_claimed);
            // Whoever knows it by its UUID knows what was changed from when on: here nobody does.
            let doubt = match wanted.uuid {
                Some(uuid) => {
                    Some(format!("the image of node `{}` has none with the UUID {uuid}", home.name))
                }
                None => left()
                    .map(|below| format!("it is in the image of node `{below}`, which is below")),
            };
            self.begin(cell, wanted, home, (generation, doubt))
                .await
                .map_err(|error| NotKept { wanted: Some(at), error })?;
        }
        for (home, stored) in outdated {
            remove_outdated(cell, home, stored).await;
        }
        Ok(())
    }

    /// What all images have, if some have come since the last time.
    async fn list(&self, cell: &Arc<GraphCell>, graph: &Graph) -> Result<Vec<Listed>> {
        let known = {
            let mut loaded = self.loaded();
            loaded.retain(|known| graph.nodes().iter().any(|node| node.generation() == *known));
            loaded.clone()
        };
        let homes: Vec<Home> = graph.nodes().iter().filter_map(Home::of).collect();
        let mut all = Vec::new();
        if homes.iter().all(|home| known.contains(&home.generation)) {
            return Ok(all);
        }
        for home in homes {
            let stored = home.call(cell, async |store, cx| store.stored(cx).await).await?;
            all.push(Listed { is_new: !known.contains(&home.generation), home, stored });
        }
        Ok(all)
    }

    /// As [`Self::load`], after a change of the graph: what fails is told.
    pub(super) async fn load_added(&self, cell: &Arc<GraphCell>) {
        if let Err(NotKept { error, .. }) = self.load_new(cell, &[]).await {
            tracing::error!("bitmaps of an image are not loaded: {error}");
            for entry in self.entries().iter().filter(|entry| entry.home.is_none()) {
                let graph = cell.load();
                tell_not_kept((cell, &graph), &entry.bitmap, Some(&entry.scope), &error);
            }
        }
    }
}
