//! What images hold comes into the graph, and bitmaps that are to be kept get an entry.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::place::home_for;
use super::{Entry, Home, Keep, Persistence, scope_of, tell_not_kept};
use crate::bitmap::{Bitmap, BitmapName, BitmapState};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    Action, BitmapAction, BitmapDecl, BitmapRef, BitmapScope, Graph, GraphCell, Transaction,
};
use crate::node::{BitmapContent, LoadedBitmap, StoredBitmap, Trust, create_stored};

/// A bitmap of the graph that is to be kept.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) scope: BitmapScope,
    pub(crate) name: BitmapName,
    pub(crate) keep: Keep,
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

/// A bitmap of the graph, and what is stored of it.
struct Pair {
    bitmap: Arc<Bitmap>,
    stored: StoredBitmap,
    keep: Keep,
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
        let known = {
            let mut loaded = self.loaded();
            loaded.retain(|known| graph.nodes().iter().any(|node| node.generation() == *known));
            loaded.clone()
        };
        let new = graph.nodes().iter().filter(|node| !known.contains(&node.generation()));
        for home in new.filter_map(Home::of) {
            self.loaded().push(home.generation);
            let mut stored = home.call(cell, async |store, cx| store.stored(cx).await).await?;
            // Entries that a transaction has made.
            let keeping = home.store()?.keeping();
            stored.retain(|stored| !keeping.has(&stored.name));
            let claims = |stored: &StoredBitmap| {
                let is_it = |at: &usize| {
                    homes[*at].generation == home.generation && wanted[*at].name == stored.name
                };
                (0..wanted.len()).find(is_it)
            };
            for stored in &stored {
                let Some(at) = claims(stored) else { continue };
                check_fits(&graph, &wanted[at], stored).map_err(|error| NotKept {
                    wanted: Some(at),
                    error: error.at_node(&home.name),
                })?;
                adopted[at] = true;
            }
            let claim = |stored: &StoredBitmap| claims(stored).map(|at| &wanted[at]);
            self.load_from(cell, &home, stored.iter().map(|it| (it, claim(it)))).await?;
        }
        for (at, (wanted, home)) in wanted.iter().zip(&homes).enumerate() {
            if !adopted[at] {
                self.begin(cell, wanted, home)
                    .await
                    .map_err(|error| NotKept { wanted: Some(at), error })?;
            }
        }
        Ok(())
    }

    /// Loads bitmaps of one image, each into the bitmap that wants it, or into one of the node's own.
    async fn load_from<'a>(
        &self,
        cell: &Arc<GraphCell>,
        home: &Home,
        stored: impl Iterator<Item = (&'a StoredBitmap, Option<&'a Wanted>)>,
    ) -> Result<()> {
        let mut actions = Transaction::new();
        let mut places = Vec::new();
        for (stored, wanted) in stored.filter(|(stored, _)| stored.trust != Trust::Unknown) {
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
            places.push((scope, stored.clone(), keep));
        }
        if places.is_empty() {
            return Ok(());
        }
        cell.transact(actions).await.map_err(|error| error.at_node(&home.name))?;
        let graph = cell.load();
        let pair = |(scope, stored, keep): (BitmapScope, StoredBitmap, Keep)| {
            let bitmap = Arc::clone(graph.find_bitmap(&scope, stored.name.as_str())?);
            Some(Pair { bitmap, stored, keep })
        };
        let pairs: Vec<Pair> = places.into_iter().filter_map(pair).collect();
        self.take_over(cell, home, &pairs).await
    }

    /// Marks an image as in use, and adds what it holds to bitmaps that record already.
    async fn take_over(&self, cell: &Arc<GraphCell>, home: &Home, pairs: &[Pair]) -> Result<()> {
        let trusted = pairs.iter().filter(|pair| pair.stored.trust == Trust::Stored);
        let wanted = trusted.map(|pair| (pair.stored.name.clone(), pair.bitmap.size_bytes()));
        let wanted: Vec<(BitmapName, u64)> = wanted.collect();
        let loaded =
            home.call(cell, async move |store, cx| store.begin_use(cx, wanted).await).await?;
        let keeping = home.store()?.keeping();
        let mut broken = Transaction::new();
        for Pair { bitmap, stored, keep } in pairs {
            let content = loaded.iter().find(|loaded| loaded.name == stored.name);
            match content.map(|LoadedBitmap { words, .. }| words) {
                Some(Ok(words)) => bitmap.add_words(words),
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

    /// Makes an entry for a bitmap that is not stored yet, and keeps it from now on.
    async fn begin(&self, cell: &Arc<GraphCell>, wanted: &Wanted, home: &Home) -> Result<()> {
        let graph = cell.load();
        let bitmap = graph.find_bitmap(&wanted.scope, wanted.name.as_str()).ok_or_else(|| {
            let message = format!("there is no bitmap `{}` of {}", wanted.name, wanted.scope);
            Error::new(ErrorKind::NotFound, message)
        })?;
        if let Some(other) = self.kept_in(bitmap) {
            let message = format!("bitmap `{}` is kept already, in node `{other}`", wanted.name);
            return Err(Error::new(ErrorKind::Exists, message));
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
        self.begin(cell, &Wanted { scope, name, keep }, &home).await
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
    let name = content.name.clone();
    home.call(cell, async move |store, cx| create_stored(store, cx, content).await).await?;
    home.store()?.keeping().keep(bitmap, name, true);
    Ok(())
}

/// What is stored of a bitmap while it is in use.
pub(super) fn entry_of(bitmap: &Arc<Bitmap>) -> BitmapContent {
    let reader = bitmap.read();
    BitmapContent {
        name: bitmap.name(),
        granularity: reader.granularity(),
        auto: reader.is_recording(),
        in_use: true,
        size_bytes: reader.size_bytes(),
        words: Vec::new(),
    }
}

/// Whether a stored bitmap can be taken over by the one that wants it.
///
/// A stored bitmap has no identity but its name: what was stored by another program, or copied with its image,
/// is not told apart.
fn check_fits(graph: &Graph, wanted: &Wanted, stored: &StoredBitmap) -> Result<()> {
    let name = &wanted.name;
    if stored.trust == Trust::Unknown {
        let message = format!("its image has a bitmap `{name}` of a kind that is not known");
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
