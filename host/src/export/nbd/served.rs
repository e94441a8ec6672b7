//! An export while it is served: its bitmaps, its clients, and its end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::waiters::Waiters;
use crate::bitmap::{Bitmap, BitmapUse, Use};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{BitmapScope, GraphCell};

/// A bitmap that an export shows.
#[derive(Clone, Debug)]
pub struct ExportBitmap {
    /// Name in the context, `qemu:dirty-bitmap:NAME`.
    pub name: String,
    /// Where the graph has it.
    pub scope: BitmapScope,
}

/// A drive under a name.
#[derive(Clone, Debug)]
pub struct Export {
    /// The name that clients ask for.
    pub name: String,
    /// Shown to clients that ask.
    pub description: String,
    /// The drive's id.
    pub drive: String,
    /// Whether clients may change it.
    pub writable: bool,
    /// Shown as metadata contexts.
    pub bitmaps: Vec<ExportBitmap>,
}

/// An export with the bitmaps that it shows. Until it ends nobody may take them away: a client that came
/// later would lack a context without a word. Between clients they may be cleared.
pub(super) struct Served {
    /// As the host knows it.
    pub(super) id: String,
    pub(super) export: Export,
    /// As the context calls it; empty once it has ended.
    bitmaps: Mutex<Vec<(String, BitmapUse)>>,
    clients: AtomicUsize,
    is_ending: AtomicBool,
    client_went: Waiters,
}

impl Served {
    /// Of `export`, with its bitmaps.
    ///
    /// # Errors
    /// `ENOENT` for a bitmap that is not there, `EAGAIN` for one that is being removed.
    pub(super) fn new(cell: &GraphCell, id: String, export: Export) -> Result<Arc<Self>> {
        let keep = |shown: &ExportBitmap| {
            let kept = keep(cell, &export, shown)?;
            Ok((shown.name.clone(), kept))
        };
        let bitmaps = export.bitmaps.iter().map(keep).collect::<Result<_>>()?;
        Ok(Arc::new(Self {
            id,
            export,
            bitmaps: Mutex::new(bitmaps),
            clients: AtomicUsize::new(0),
            is_ending: AtomicBool::new(false),
            client_went: Waiters::default(),
        }))
    }

    /// The drive's id.
    pub(super) fn drive(&self) -> &str {
        &self.export.drive
    }

    /// For messages and users of bitmaps.
    pub(super) fn user(&self) -> String {
        user(&self.export)
    }

    fn bitmaps(&self) -> MutexGuard<'_, Vec<(String, BitmapUse)>> {
        self.bitmaps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its bitmaps, as contexts call them.
    pub(super) fn shown(&self) -> Vec<(String, Arc<Bitmap>)> {
        let bitmaps = self.bitmaps();
        bitmaps.iter().map(|(name, kept)| (name.clone(), Arc::clone(kept.bitmap()))).collect()
    }

    /// Clients that have opened it and are not gone.
    pub(super) fn clients(&self) -> usize {
        self.clients.load(Ordering::Acquire)
    }

    /// Whether it takes no more clients.
    pub(super) fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Acquire)
    }

    /// It takes no more clients. It has left its listener.
    pub(super) fn begin_to_end(&self) {
        self.is_ending.store(true, Ordering::Release);
    }

    /// Waits until no client is left.
    pub(super) async fn idle(&self) {
        self.client_went.until(|| self.clients() == 0).await;
    }

    /// Lets go of its bitmaps.
    pub(super) fn end(&self) {
        let bitmaps = std::mem::take(&mut *self.bitmaps());
        drop(bitmaps);
    }
}

/// A client of an export, from its opening to its last reply.
pub(super) struct Client(Arc<Served>);

impl Client {
    /// To be called while the export is in its listener's directory, which keeps it from leaving.
    pub(super) fn of(served: &Arc<Served>) -> Self {
        served.clients.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(served))
    }

    /// What it has opened.
    pub(super) fn served(&self) -> &Arc<Served> {
        &self.0
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::AcqRel);
        self.0.client_went.wake_all();
    }
}

fn user(export: &Export) -> String {
    format!("export `{}`", export.name)
}

/// A bitmap, kept for an export.
fn keep(cell: &GraphCell, export: &Export, shown: &ExportBitmap) -> Result<BitmapUse> {
    let find = || cell.load().find_bitmap(&shown.scope, &shown.name).map(Arc::clone);
    let not_found = || {
        let (user, scope, name) = (user(export), &shown.scope, &shown.name);
        let message = format!("{user} is to show bitmap `{name}` of {scope}, which is not there");
        Error::new(ErrorKind::NotFound, message)
    };
    let kept = find().ok_or_else(not_found)?.use_by(user(export), Use::Keep)?;
    // It may have gone before it was kept.
    let is_there = find().is_some_and(|found| Arc::ptr_eq(&found, kept.bitmap()));
    if is_there { Ok(kept) } else { Err(not_found()) }
}
