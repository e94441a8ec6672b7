//! What one image holds comes into bitmaps of the graph: those that want it, or the node's own.

use std::sync::Arc;

use super::doubt::{Later, doubt, doubt_of_what_is_above};
use super::load::Wanted;
use super::{Entry, Home, Keep, Persistence};
use crate::bitmap::{Bitmap, BitmapIdentity, BitmapName, BitmapState, Uuid};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    Action, BitmapAction, BitmapDecl, BitmapRef, BitmapScope, Event, Graph, GraphCell, Transaction,
};
use crate::node::{Below, LoadedBitmap, StoredBitmap, Trust};

/// A stored bitmap that is to be loaded.
pub(super) struct Found<'a> {
    pub(super) stored: &'a StoredBitmap,
    pub(super) claim: Option<&'a Wanted>,
    pub(super) identity: Option<BitmapIdentity>,
    pub(super) later: Option<Later>,
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
        later.or_else(|| doubt_of_home(graph, &self.scope, home, below))
    }

    fn disbelieve(&self, cell: &GraphCell, home: &Home, why: &str) {
        disbelieve(cell, &self.scope, &self.bitmap, home, why);
    }
}

/// Why what a bitmap's image holds may be clean where it should be dirty.
pub(super) fn doubt_of_home(
    graph: &Graph,
    scope: &BitmapScope,
    home: &Home,
    below: &Below,
) -> Option<String> {
    doubt_of_what_is_above(graph, scope, home).or_else(|| doubt(scope, below))
}

/// A bitmap counts as all dirty.
pub(super) fn disbelieve(
    cell: &GraphCell,
    scope: &BitmapScope,
    bitmap: &Bitmap,
    home: &Home,
    why: &str,
) {
    bitmap.add_all();
    let (scope, name) = (scope.clone(), bitmap.name().to_string());
    let why = format!("{why}, since it was stored in the image of node `{}`", home.name);
    cell.tell(&cell.load(), Event::BitmapMarkedWhole { scope, name, why });
}

impl Persistence {
    /// Loads bitmaps of one image, each into the bitmap that wants it, or into one of the node's own.
    pub(super) async fn load_from(
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
            let waits = stored.auto && !home.writes();
            let (bitmap, scope) = (Arc::clone(bitmap), pair.scope.clone());
            let (keep, home) = (keep.clone(), Some(home.clone()));
            self.entries().push(Entry { bitmap, scope, keep, home, waits });
        }
        if broken.actions().next().is_some() {
            cell.transact(broken).await?;
        }
        Ok(())
    }
}

/// Whether a stored bitmap can be taken over by the one that wants it: that of its name, unless it is said
/// which it has to be.
pub(super) fn check_fits(graph: &Graph, wanted: &Wanted, stored: &StoredBitmap) -> Result<()> {
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
