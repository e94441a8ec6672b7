//! Entries of bitmaps in images: made, and taken out.

use std::sync::Arc;

use super::load::Wanted;
use super::place::home_for;
use super::{Entry, Home, Keep, Persistence, scope_of};
use crate::bitmap::{Bitmap, BitmapIdentity};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Event, GraphCell};
use crate::node::{BitmapContent, StoreChange, StoredBitmap, create_stored};

impl Persistence {
    /// Makes an entry for a bitmap that is not stored yet, but for forms up to this generation that do not count
    /// any more, and keeps it from now on; all dirty, if there is a doubt.
    pub(super) async fn begin(
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
        let (bitmap, scope) = (Arc::clone(bitmap), wanted.scope.clone());
        let (keep, home) = (wanted.keep.clone(), Some(home.clone()));
        self.entries().push(Entry { bitmap, scope, keep, home, waits: false });
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
pub(super) async fn remove_outdated(cell: &Arc<GraphCell>, home: &Home, stored: &StoredBitmap) {
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
