//! Exports that show bitmaps: told once these no longer record what the export's drive shows.
//!
//! A graph change can leave a node's bitmap behind with its node, while a drive goes on elsewhere. Each change looks
//! when it has been published, so the event comes with it, whether a client is there or not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::cell::GraphCell;
use super::snapshot::{BitmapScope, Graph};
use super::transaction::Event;
use crate::bitmap::Bitmap;

/// A bitmap that an export shows, as long as that has this.
pub(crate) struct Showing {
    bitmap: Arc<Bitmap>,
    drive: Arc<str>,
    export: Arc<str>,
    has_left: AtomicBool,
    /// What it recorded when it was last there.
    scope: Mutex<Option<BitmapScope>>,
}

/// All of a host: as many as its exports show.
#[derive(Default)]
pub(super) struct Showings(Mutex<Vec<Weak<Showing>>>);

impl GraphCell {
    /// From now on events tell when `bitmap` does not record what `drive` shows; at once, if that is so already.
    pub(crate) fn show(&self, bitmap: &Arc<Bitmap>, drive: &str, export: &str) -> Arc<Showing> {
        let showing = Arc::new(Showing {
            bitmap: Arc::clone(bitmap),
            drive: drive.into(),
            export: export.into(),
            has_left: AtomicBool::new(false),
            scope: Mutex::default(),
        });
        let mut all = self.showings.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A graph that is published later looks for it here.
        let graph = self.load();
        all.push(Arc::downgrade(&showing));
        let left = showing.left(&graph);
        drop(all);
        if let Some(event) = left {
            self.tell(&graph, event);
        }
        showing
    }
}

impl Showings {
    /// Which of them it is that `graph`, which has just been published, has left behind.
    pub(super) fn left(&self, graph: &Graph) -> Vec<Event> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|showing| showing.strong_count() > 0);
        all.iter().filter_map(|showing| showing.upgrade()?.left(graph)).collect()
    }
}

impl Showing {
    fn left(&self, graph: &Graph) -> Option<Event> {
        // The end of an export takes its drive away before it lets go of this.
        let drive = &graph.drives[graph.find_drive(&self.drive)?];
        let entry = graph.entry_of(&self.bitmap);
        let mut scope = self.scope.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entry {
            *scope = Some(entry.scope.clone());
        }
        let is_of =
            |scope: &BitmapScope| matches!(scope, BitmapScope::Drive(id) if **id == *drive.id);
        // A drive's own says what it shows even while that is nothing.
        let is_own = entry.is_some_and(|entry| is_of(&entry.scope));
        let has_left = !is_own && graph.shown_since(drive, &self.bitmap).is_none();
        if !has_left {
            self.has_left.store(false, Ordering::Relaxed);
            return None;
        }
        let was_told = self.has_left.swap(true, Ordering::Relaxed);
        let scope = scope.clone();
        let (name, drive) = (self.bitmap.name().to_string(), Arc::clone(&self.drive));
        let export = Arc::clone(&self.export);
        (!was_told).then_some(Event::BitmapLeft { scope, name, drive, export })
    }
}
