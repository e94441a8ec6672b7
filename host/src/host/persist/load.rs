//! What images hold comes into the graph, and bitmaps that are to be kept get an entry.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::doubt::{
    Fate, Forms, Later, Listed, are_related, doubt, doubt_of_what_is_above, left_below,
};
use super::place::home_for;
use super::{Entry, Home, Keep, Persistence, scope_of, tell_not_kept};
use crate::bitmap::{Bitmap, BitmapIdentity, BitmapName, BitmapState, Uuid};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    Action, BitmapAction, BitmapDecl, BitmapRef, BitmapScope, Event, Graph, GraphCell, Transaction,
};
use crate::node::{
    Below, BitmapContent, LoadedBitmap, StoreChange, StoredBitmap, Trust, create_stored,
};

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

/// A stored bitmap that is to be loaded.
struct Found<'a> {
    stored: &'a StoredBitmap,
    claim: Option<&'a Wanted>,
    identity: Option<BitmapIdentity>,
    later: Option<Later>,
}

/// A bitmap of the graph, and what is stored of it.
struct Pair {
    scope: BitmapScope,
    bitmap: Arc<Bitmap>,
    stored: StoredBitmap,
    keep: Keep,
    identity: Option<BitmapIdentity>,
    later: Option<Later>,
}

impl Pair {
    /// Has the bitmap be the one that is stored.
    fn identify(&self) {
        let Some(identity) = self.identity else { return };
        self.bitmap.set_identity(match &self.later {
            None => identity,
            // From now on this is the last form.
            Some(Later { generation, .. }) => {
                BitmapIdentity { generation: *generation, ..identity }.next()
            }
        });
    }

    /// Why it may be clean where it should be dirty.
    fn doubt(&self, graph: &Graph, home: &Home, below: &Below) -> Option<String> {
        let later = self.later.as_ref();
        let later = later.map(|later| format!("{} has a later form of it", later.place));
        let below = || doubt(&self.scope, below);
        later.or_else(|| doubt_of_what_is_above(graph, &self.scope, home)).or_else(below)
    }

    fn disbelieve(&self, cell: &GraphCell, home: &Home, why: &str) {
        self.bitmap.add_all();
        let (scope, name) = (self.scope.clone(), self.stored.name.to_string());
        let why = format!("{why}, since it was stored in the image of node `{}`", home.name);
        cell.tell(&cell.load(), Event::BitmapMarkedWhole { scope, name, why });
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
        let wanted_all = wanted;
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
            let is_claimed = |image: &Listed| {
                let mut claims = homes.iter().zip(wanted_all);
                claims.any(|(home, other)| {
                    home.generation == image.home.generation && other.name == wanted.name
                })
            };
            let left = || left_below(&graph, &all, here?, wanted, is_claimed);
            // Whoever knows it by its UUID knows what was changed from when on: here nobody does.
            let doubt = match wanted.uuid {
                Some(uuid) => {
                    Some(format!("the image of node `{}` has none with the UUID {uuid}", home.name))
                }
                None => left()
                    .map(|below| format!("the image of node `{below}` has it, which is below")),
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

    /// Loads bitmaps of one image, each into the bitmap that wants it, or into one of the node's own.
    async fn load_from(
        &self,
        cell: &Arc<GraphCell>,
        home: &Home,
        found: Vec<Found<'_>>,
    ) -> Result<()> {
        let mut actions = Transaction::new();
        let mut places = Vec::new();
        let found = found.into_iter().filter(|found| found.stored.trust != Trust::Unknown);
        for Found { stored, claim: wanted, identity, later } in found {
            let own = BitmapScope::Node(Arc::clone(&home.name));
            let scope = wanted.map_or(own, |wanted| wanted.scope.clone());
            let name = stored.name.clone();
            let which = BitmapRef::Named { scope: scope.clone(), name: name.to_string() };
            let enabled = stored.auto && home.writes();
            if wanted.is_none() {
                let (scope, granularity) = (scope.clone(), stored.granularity);
                actions = actions.with(Action::AddBitmap(BitmapDecl {
                    scope,
                    name,
                    granularity,
                    enabled,
                }));
            } else {
                let action = if enabled { BitmapAction::Enable } else { BitmapAction::Disable };
                actions = actions.with(action.of(which.clone()));
            }
            if stored.trust == Trust::Inconsistent {
                tracing::warn!(
                    "bitmap `{}` in the image of node `{}` is inconsistent: it was not stored after \
                     its last use",
                    stored.name,
                    home.name
                );
                actions = actions.with(BitmapAction::Distrust.of(which));
            }
            let keep =
                wanted.map_or_else(|| Keep::Node(home.name.to_string()), |it| it.keep.clone());
            places.push((scope, stored.clone(), keep, identity, later));
        }
        if places.is_empty() {
            return Ok(());
        }
        cell.transact(actions).await.map_err(|error| error.at_node(&home.name))?;
        let graph = cell.load();
        let pairs = places.into_iter().filter_map(|(scope, stored, keep, identity, later)| {
            let bitmap = Arc::clone(graph.find_bitmap(&scope, stored.name.as_str())?);
            Some(Pair { scope, bitmap, stored, keep, identity, later })
        });
        let pairs: Vec<Pair> = pairs.collect();
        self.take_over(cell, home, &pairs).await
    }

    /// Marks an image as in use, and adds what it holds to bitmaps that record already.
    async fn take_over(&self, cell: &Arc<GraphCell>, home: &Home, pairs: &[Pair]) -> Result<()> {
        let trusted = pairs.iter().filter(|pair| pair.stored.trust == Trust::Stored);
        let wanted = trusted.map(|pair| (pair.stored.name.clone(), pair.bitmap.size_bytes()));
        let wanted: Vec<(BitmapName, u64)> = wanted.collect();
        let loaded =
            home.call(cell, async move |store, cx| store.begin_use(cx, wanted).await).await?;
        let (graph, keeping) = (cell.load(), home.store()?.keeping());
        let mut broken = Transaction::new();
        for pair in pairs {
            let Pair { bitmap, stored, keep, .. } = pair;
            pair.identify();
            let content = loaded.iter().find(|loaded| loaded.name == stored.name);
            match content.map(|LoadedBitmap { words, .. }| words) {
                Some(Ok(words)) => match content.and_then(|it| pair.doubt(&graph, home, &it.below))
                {
                    None => bitmap.add_words(words),
                    Some(why) => pair.disbelieve(cell, home, &why),
                },
                _ if bitmap.state() == BitmapState::Inconsistent => {}
                other => {
                    let none = Error::new(ErrorKind::Io, "its image does not have it any more");
                    let error = other.and_then(|words| words.as_ref().err()).unwrap_or(&none);
                    tracing::warn!("bitmap `{}` of node `{}`: {error}", stored.name, home.name);
                    broken = broken.with(BitmapAction::Distrust.of(bitmap));
                }
            }
            keeping.keep(bitmap, stored.name.clone(), home.writes());
            let (bitmap, keep, home) = (Arc::clone(bitmap), keep.clone(), Some(home.clone()));
            self.entries().push(Entry { bitmap, keep, home });
        }
        if broken.actions().next().is_some() {
            cell.transact(broken).await?;
        }
        Ok(())
    }

    /// Makes an entry for a bitmap that is not stored yet, but for forms up to this generation that do not count
    /// any more, and keeps it from now on; all dirty, if there is a doubt.
    async fn begin(
        &self,
        cell: &Arc<GraphCell>,
        wanted: &Wanted,
        home: &Home,
        (generation, doubt): (u64, Option<String>),
    ) -> Result<()> {
        let graph = cell.load();
        let bitmap = graph.find_bitmap(&wanted.scope, wanted.name.as_str()).ok_or_else(|| {
            let message = format!("there is no bitmap `{}` of {}", wanted.name, wanted.scope);
            Error::new(ErrorKind::NotFound, message)
        })?;
        if let Some(other) = self.kept_in(bitmap) {
            let message = format!("bitmap `{}` is kept already, in node `{other}`", wanted.name);
            return Err(Error::new(ErrorKind::Exists, message));
        }
        if let Some(uuid) = wanted.uuid {
            bitmap.set_identity(BitmapIdentity { uuid, generation });
        }
        if let Some(why) = doubt {
            bitmap.add_all();
            let (scope, name) = (wanted.scope.clone(), wanted.name.to_string());
            cell.tell(&graph, Event::BitmapMarkedWhole { scope, name, why });
        }
        make_entry(cell, bitmap, home).await?;
        let (bitmap, keep, home) = (Arc::clone(bitmap), wanted.keep.clone(), Some(home.clone()));
        self.entries().push(Entry { bitmap, keep, home });
        Ok(())
    }

    /// Keeps a bitmap from now on.
    ///
    /// # Errors
    /// Why it cannot be stored; `EEXIST` if it is kept already, or the image has one of its name.
    pub(crate) async fn keep(
        &self,
        cell: &Arc<GraphCell>,
        bitmap: &Arc<Bitmap>,
        keep: Keep,
    ) -> Result<()> {
        let _turn = self.turn.lock().await;
        let (graph, name) = (cell.load(), bitmap.name());
        let scope = scope_of(&graph, bitmap).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("bitmap `{name}` has been removed"))
        })?;
        let home = home_for(&graph, &scope, &keep)?;
        self.begin(cell, &Wanted { scope, name, keep, uuid: None }, &home, (0, None)).await
    }

    /// As [`Self::load`], after a change of the graph: what fails is told.
    pub(super) async fn load_added(&self, cell: &Arc<GraphCell>) {
        if let Err(NotKept { error, .. }) = self.load_new(cell, &[]).await {
            tracing::error!("bitmaps of an image are not loaded: {error}");
            for entry in self.entries().iter().filter(|entry| entry.home.is_none()) {
                tell_not_kept(cell, &cell.load(), &entry.bitmap, &error);
            }
        }
    }
}

/// Makes an entry for a bitmap in an image, in use from now on.
pub(super) async fn make_entry(
    cell: &Arc<GraphCell>,
    bitmap: &Arc<Bitmap>,
    home: &Home,
) -> Result<()> {
    let content = entry_of(bitmap);
    let (name, identity) = (content.name.clone(), content.identity);
    home.call(cell, async move |store, cx| create_stored(store, cx, content).await).await?;
    bitmap.set_identity(identity);
    home.store()?.keeping().keep(bitmap, name, true);
    Ok(())
}

/// Takes a form of a bitmap that does not count any more out of an image.
async fn remove_outdated(cell: &Arc<GraphCell>, home: &Home, stored: &StoredBitmap) {
    let name = &stored.name;
    tracing::info!(
        "bitmap `{name}` in the image of node `{}` is left over: there is a later form of it",
        home.name
    );
    if !home.writes() {
        return;
    }
    if let Err(error) = home.change(cell, StoreChange::Remove(name.clone())).await {
        tracing::warn!("bitmap `{name}`, which is left over, is not removed: {error}");
    }
}

/// What is stored of a bitmap in an image that it comes to, while it is in use.
pub(super) fn entry_of(bitmap: &Arc<Bitmap>) -> BitmapContent {
    let reader = bitmap.read();
    BitmapContent {
        name: bitmap.name(),
        granularity: reader.granularity(),
        auto: reader.is_recording(),
        in_use: true,
        identity: bitmap.identity().next(),
        size_bytes: reader.size_bytes(),
        words: Vec::new(),
    }
}

/// Whether a stored bitmap can be taken over by the one that wants it: that of its name, unless it is said
/// which it has to be.
fn check_fits(graph: &Graph, wanted: &Wanted, stored: &StoredBitmap) -> Result<()> {
    let name = &wanted.name;
    if stored.trust == Trust::Unknown {
        let message = format!("its image has a bitmap `{name}` of a kind that is not known");
        return Err(Error::new(ErrorKind::Exists, message));
    }
    // One that is inconsistent may have lost it, and counts as all dirty.
    let is_lost = stored.identity.is_none() && stored.trust == Trust::Inconsistent;
    let is_other = |uuid: &Uuid| stored.identity.map(|it| it.uuid) != Some(*uuid) && !is_lost;
    if let Some(uuid) = wanted.uuid.filter(is_other) {
        let theirs = match stored.identity {
            Some(identity) => format!("UUID {}", identity.uuid),
            None => "without a UUID".into(),
        };
        let message = format!(
            "its image has another bitmap `{name}` ({theirs}) than the one with the UUID {uuid}: take that one, \
             remove the bitmap, or choose another name"
        );
        return Err(Error::new(ErrorKind::Exists, message));
    }
    let bitmap = graph.find_bitmap(&wanted.scope, name.as_str());
    match bitmap.map(|bitmap| bitmap.granularity()) {
        Some(granularity) if granularity != stored.granularity => {
            let message = format!(
                "its image has a bitmap `{name}` with a granularity of {} bytes, not {granularity}: \
                 take that one, remove the bitmap, or choose another name",
                stored.granularity
            );
            Err(Error::new(ErrorKind::Exists, message))
        }
        _ => Ok(()),
    }
}
