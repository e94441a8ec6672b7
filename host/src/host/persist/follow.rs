//! After a change of the graph: bitmaps that were renamed or removed, or are at home elsewhere now.
//!
//! A bitmap that goes to another image has an entry there before its entry in the former one goes. Where the
//! change itself brings the new image, by a snapshot, or moves the bitmap to one that is there, that entry is durable
//! before the change takes effect.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::entry::{entry_of, make_entry};
use super::place::{home_for, keep_at};
use super::{Entry, Home, Keep, Persistence, scope_of, tell_not_kept};
use crate::bitmap::{Bitmap, BitmapIdentity, BitmapName};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Action, BitmapAction, BitmapScope, Graph, GraphCell, Transaction};
use crate::node::{BitmapContent, StoreChange, Upkeep};

/// Entries that a transaction makes itself: a bitmap, the node that keeps it, and its identity and name there.
pub(crate) type Entered = Vec<(Arc<Bitmap>, String, BitmapIdentity, BitmapName)>;

impl Persistence {
    /// Has a transaction make an entry in each image that it puts on top of a drive, for the bitmaps that are
    /// to be kept there.
    ///
    /// # Errors
    /// `EROFS` for the removal or renaming of a bitmap whose image is read-only.
    pub(crate) fn prepare(
        &self,
        graph: &Graph,
        mut transaction: Transaction,
    ) -> Result<(Transaction, Entered)> {
        let mut entered = Entered::new();
        for action in transaction.actions() {
            match action {
                Action::Bitmap {
                    bitmap,
                    action: BitmapAction::Remove | BitmapAction::Rename(_),
                } => {
                    if let Some(bitmap) = bitmap.find(graph) {
                        self.check_writes(graph, &bitmap)?;
                    }
                }
                Action::Snapshot { drive, overlay } => {
                    let driver = &overlay.driver;
                    if driver.bitmap_store().is_none() || driver.upkeep() != Upkeep::Writes {
                        continue;
                    }
                    let scope = BitmapScope::Drive(drive.as_str().into());
                    for entry in self.entries().iter().filter(|entry| entry.keep == Keep::Root) {
                        if scope_of(graph, &entry.bitmap).as_ref() == Some(&scope) {
                            let bitmap = &entry.bitmap;
                            entered.retain(|(other, ..)| !Arc::ptr_eq(other, bitmap));
                            let identity = bitmap.identity().next();
                            let (node, name) = (overlay.name.clone(), bitmap.name());
                            entered.push((Arc::clone(bitmap), node, identity, name));
                        }
                    }
                }
                Action::Bitmap { bitmap, action: BitmapAction::MoveTo(scope) } => {
                    if let Some(bitmap) = bitmap.find(graph) {
                        entered.retain(|(other, ..)| !Arc::ptr_eq(other, &bitmap));
                        entered.extend(self.entered_by_move(graph, bitmap, scope));
                    }
                }
                _ => {}
            }
        }
        for action in transaction.actions() {
            let Action::Bitmap { bitmap, action: BitmapAction::Rename(to) } = action else {
                continue;
            };
            let renamed = bitmap.find(graph);
            for (bitmap, _, _, name) in &mut entered {
                // By its last name it is there from the beginning.
                if renamed.as_ref().is_some_and(|renamed| Arc::ptr_eq(renamed, bitmap)) {
                    name.clone_from(to);
                }
            }
        }
        transaction = self.mind_gains(graph, self.wake(graph, transaction));
        for (bitmap, node, identity, name) in &entered {
            let (identity, name) = (*identity, name.clone());
            let content = BitmapContent { identity, name, ..entry_of(bitmap) };
            transaction = transaction.with_entry(node.clone(), bitmap, content);
        }
        Ok((transaction, entered))
    }

    /// The entry that a bitmap needs in another image when it is of `scope`, as far as that is there already.
    fn entered_by_move(
        &self,
        graph: &Graph,
        bitmap: Arc<Bitmap>,
        scope: &BitmapScope,
    ) -> Option<(Arc<Bitmap>, String, BitmapIdentity, BitmapName)> {
        let entries = self.entries();
        let entry = entries.iter().find(|entry| Arc::ptr_eq(&entry.bitmap, &bitmap))?;
        let keep = keep_at(graph, scope, &entry.keep, entry.home.as_ref());
        let target = home_for(graph, scope, &keep).ok()?;
        let is_home = |home: &Home| home.generation == target.generation;
        if entry.home.as_ref().is_some_and(is_home) {
            return None;
        }
        let identity = bitmap.identity().next();
        drop(entries);
        let name = bitmap.name();
        Some((bitmap, target.name.to_string(), identity, name))
    }

    fn check_writes(&self, graph: &Graph, bitmap: &Arc<Bitmap>) -> Result<()> {
        let home = self.home_of(bitmap);
        let Some(home) = home.filter(|home| !home.writes() && home.is_in(graph)) else {
            return Ok(());
        };
        let message = format!("bitmap `{}` is in its image, which is read-only", bitmap.name());
        Err(Error::new(ErrorKind::ReadOnly, message).at_node(&home.name))
    }

    /// Follows a change of the graph that has been made, once [`Self::load`] has been called.
    pub(crate) async fn follow(&self, cell: &Arc<GraphCell>, entered: Entered) {
        if !self.begun.load(Ordering::Acquire) {
            return;
        }
        let _turn = self.turn.lock().await;
        for (bitmap, node, identity, name) in &entered {
            // Another change may have entered it elsewhere since.
            if identity.generation > bitmap.identity().generation {
                bitmap.set_identity(*identity);
            }
            let home = home_named(&cell.load(), node);
            if let Some(store) = home.as_ref().and_then(|home| home.store().ok()) {
                store.keeping().keep(bitmap, name.clone(), true);
            }
        }
        self.follow_reopened(cell).await;
        self.load_added(cell).await;
        let entries = self.entries().clone();
        for entry in entries {
            let graph = cell.load();
            let followed = match scope_of(&graph, &entry.bitmap) {
                None => self.follow_removal(cell, &graph, &entry).await,
                Some(scope) => self.follow_change(cell, &graph, &entry, &scope, &entered).await,
            };
            if let Err(error) = followed {
                tell_not_kept((cell, &graph), &entry.bitmap, Some(&entry.scope), &error);
            }
        }
        self.settle_entered(cell, &entered).await;
    }

    /// What a change has entered in an image that is not the bitmap's home after all, as it went on from there or was
    /// removed, goes from there.
    async fn settle_entered(&self, cell: &Arc<GraphCell>, entered: &Entered) {
        for (bitmap, node, ..) in entered {
            let graph = cell.load();
            let Some(home) = home_named(&graph, node) else { continue };
            let is_home = self.home_of(bitmap).is_some_and(|at| at.generation == home.generation);
            let settled = match is_home {
                true => follow_name(cell, bitmap, &home).await,
                false => leave(cell, bitmap, &home).await,
            };
            if let Err(error) = settled {
                tell_not_kept((cell, &graph), bitmap, None, &error);
            }
        }
    }

    /// A bitmap has left the graph: its entry goes, unless the node went with it.
    async fn follow_removal(
        &self,
        cell: &Arc<GraphCell>,
        graph: &Graph,
        entry: &Entry,
    ) -> Result<()> {
        self.entries().retain(|other| !Arc::ptr_eq(&other.bitmap, &entry.bitmap));
        let Some(home) = entry.home.as_ref().filter(|home| home.is_in(graph)) else {
            return Ok(());
        };
        leave(cell, &entry.bitmap, home).await
    }

    async fn follow_change(
        &self,
        cell: &Arc<GraphCell>,
        graph: &Graph,
        entry: &Entry,
        scope: &BitmapScope,
        entered: &Entered,
    ) -> Result<()> {
        let home = entry.home.as_ref().filter(|home| home.is_in(graph));
        let mut keep = entry.keep.clone();
        if entry.scope != *scope {
            keep = keep_at(graph, scope, &keep, home);
            self.comes_to(&entry.bitmap, scope, &keep);
        }
        let target = match home_for(graph, scope, &keep) {
            Ok(target) => target,
            // A read-only image's own: it stays where it is.
            Err(_) if entry.scope == *scope && home.is_some_and(|home| !home.writes()) => {
                return Ok(());
            }
            Err(error) => {
                let was_kept = entry.home.is_some();
                self.move_to(&entry.bitmap, None);
                // Its entry stays, marked as in use: what comes of it cannot be told from here on.
                if let Some(home) = home {
                    home.store()?.keeping().forget(&entry.bitmap);
                }
                return if was_kept { Err(error) } else { Ok(()) };
            }
        };
        if let Some(home) = home.filter(|home| home.generation == target.generation) {
            return follow_name(cell, &entry.bitmap, home).await;
        }
        let is_entered = entered
            .iter()
            .any(|(bitmap, node, ..)| Arc::ptr_eq(bitmap, &entry.bitmap) && **node == *target.name);
        if !is_entered {
            self.move_to(&entry.bitmap, None);
            if let Err(error) = make_entry(cell, &entry.bitmap, &target).await {
                // Its former entry stays, marked as in use: what it says is not kept up to date.
                if let Some(home) = home {
                    home.store()?.keeping().forget(&entry.bitmap);
                }
                return Err(error);
            }
        }
        self.move_to(&entry.bitmap, Some(target));
        match home {
            Some(home) => leave(cell, &entry.bitmap, home).await,
            None => Ok(()),
        }
    }

    /// It records something else, and is to be kept so.
    fn comes_to(&self, bitmap: &Arc<Bitmap>, scope: &BitmapScope, keep: &Keep) {
        let mut entries = self.entries();
        if let Some(entry) = entries.iter_mut().find(|entry| Arc::ptr_eq(&entry.bitmap, bitmap)) {
            (entry.scope, entry.keep) = (scope.clone(), keep.clone());
        }
    }

    fn move_to(&self, bitmap: &Arc<Bitmap>, home: Option<Home>) {
        let mut entries = self.entries();
        if let Some(entry) = entries.iter_mut().find(|entry| Arc::ptr_eq(&entry.bitmap, bitmap)) {
            entry.home = home;
        }
    }
}

/// A node that keeps bitmaps.
fn home_named(graph: &Graph, node: &str) -> Option<Home> {
    graph.find_node(node).and_then(|at| Home::of(&graph.nodes()[at]))
}

/// Takes a bitmap's entry out of an image.
async fn leave(cell: &Arc<GraphCell>, bitmap: &Arc<Bitmap>, home: &Home) -> Result<()> {
    match home.store()?.keeping().forget(bitmap) {
        Some(name) if home.writes() => home.change(cell, StoreChange::Remove(name)).await,
        _ => Ok(()),
    }
}

/// Gives a bitmap's entry the name that the bitmap has.
async fn follow_name(cell: &Arc<GraphCell>, bitmap: &Arc<Bitmap>, home: &Home) -> Result<()> {
    let keeping = home.store()?.keeping();
    let to = bitmap.name();
    match keeping.name_of(bitmap) {
        Some(from) if from != to && home.writes() => {
            home.change(cell, StoreChange::Rename { from, to: to.clone() }).await?;
            keeping.keep(bitmap, to, true);
            Ok(())
        }
        _ => Ok(()),
    }
}
