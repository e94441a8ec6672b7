//! An export while it is served: its bitmaps, its clients, and its end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::waiters::Waiters;
use crate::bitmap::{Bitmap, BitmapReader, BitmapState, BitmapUse, Use};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{BitmapScope, Graph, GraphCell, Showing};

/// A bitmap that an export shows.
#[derive(Clone, Debug)]
pub struct ExportBitmap {
    /// Name in the context, `qemu:dirty-bitmap:NAME`.
    pub name: String,
    /// Where the graph has it.
    pub scope: BitmapScope,
    /// Shows what is frozen of it when the export begins, and nothing that comes later: what a point in time is
    /// to be backed up by.
    pub is_frozen: bool,
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
    /// Whether each write is durable when it is answered, whether or not the client asks for that.
    pub writethrough: bool,
    /// Whether clients may ask in which layer of images bytes lie: context `qemu:allocation-depth`.
    pub allocation_depth: bool,
    /// Shown as metadata contexts.
    pub bitmaps: Vec<ExportBitmap>,
}

/// An export with the bitmaps that it shows. Until it ends nobody may take them away: a client that came
/// later would lack a context without a word. Between clients they may be cleared.
pub(super) struct Served {
    /// As the host knows it.
    pub(super) id: String,
    pub(super) export: Export,
    /// Empty once it has ended.
    bitmaps: Mutex<Vec<Kept>>,
    clients: AtomicUsize,
    /// It is to begin with a transaction, and nobody sees it yet.
    is_hidden: AtomicBool,
    is_ending: AtomicBool,
    client_went: Waiters,
}

/// A bitmap that an export keeps.
struct Kept {
    /// As the context calls it.
    name: String,
    bitmap: BitmapUse,
    is_frozen: bool,
    /// What was frozen of it when the export began.
    still: Option<BitmapReader>,
    /// Has it told when it no longer records what the export shows.
    showing: Option<Arc<Showing>>,
}

/// What a context shows.
pub(super) enum ShownSet {
    /// The bitmap, as it is from time to time.
    Live(Arc<Bitmap>),
    /// What was frozen of it, if anything was.
    Frozen(Option<BitmapReader>),
}

impl Served {
    /// Of `export`, with its bitmaps.
    ///
    /// # Errors
    /// `ENOENT` for a bitmap that is not there, `EAGAIN` for one that is being removed, `EINVAL` for one that is
    /// to be frozen and is not.
    pub(super) fn new(cell: &GraphCell, id: String, export: Export) -> Result<Arc<Self>> {
        let served = Self::hidden(&cell.load(), id, export)?;
        served.check_kept(&cell.load())?;
        served.begin();
        let not_frozen =
            |kept: &Kept| (kept.is_frozen && kept.still.is_none()).then(|| kept.name.clone());
        if let Some(name) = served.bitmaps().iter().find_map(not_frozen) {
            let message = format!("{} is to show what is frozen of bitmap `{name}`", served.user());
            return Err(Error::new(ErrorKind::Invalid, format!("{message}, which is nothing")));
        }
        Ok(served)
    }

    /// A bitmap may have gone before it was kept.
    fn check_kept(&self, graph: &Graph) -> Result<()> {
        for (shown, kept) in self.export.bitmaps.iter().zip(&*self.bitmaps()) {
            let found = graph.find_bitmap(&shown.scope, &shown.name);
            if !found.is_some_and(|found| Arc::ptr_eq(found, kept.bitmap.bitmap())) {
                return Err(not_found(&self.id, shown));
            }
        }
        Ok(())
    }

    /// The same as `graph` has them, for nobody to see before it begins.
    ///
    /// # Errors
    /// The same, but for what is frozen by then.
    pub(super) fn hidden(graph: &Graph, id: String, export: Export) -> Result<Arc<Self>> {
        let keep = |shown: &ExportBitmap| {
            let (name, is_frozen) = (shown.name.clone(), shown.is_frozen);
            Ok(Kept {
                name,
                bitmap: keep(graph, &id, shown)?,
                is_frozen,
                still: None,
                showing: None,
            })
        };
        let bitmaps = export.bitmaps.iter().map(keep).collect::<Result<_>>()?;
        Ok(Arc::new(Self {
            id,
            export,
            bitmaps: Mutex::new(bitmaps),
            clients: AtomicUsize::new(0),
            is_hidden: AtomicBool::new(true),
            is_ending: AtomicBool::new(false),
            client_went: Waiters::default(),
        }))
    }

    /// It can be seen from now on.
    pub(super) fn begin(&self) {
        for kept in self.bitmaps().iter_mut().filter(|kept| kept.is_frozen) {
            let reader = kept.bitmap.read();
            let is_frozen = reader.state() == BitmapState::Frozen;
            kept.still = reader.still().filter(|_| is_frozen);
        }
        self.is_hidden.store(false, Ordering::Release);
    }

    /// From now on it is told when a bitmap does not record what it shows.
    pub(super) fn watch(&self, cell: &GraphCell) {
        for kept in self.bitmaps().iter_mut().filter(|kept| !kept.is_frozen) {
            kept.showing = Some(cell.show(kept.bitmap.bitmap(), self.drive(), &self.id));
        }
    }

    /// Whether nobody is to see it yet.
    pub(super) fn is_hidden(&self) -> bool {
        self.is_hidden.load(Ordering::Acquire)
    }

    /// The drive's id.
    pub(super) fn drive(&self) -> &str {
        &self.export.drive
    }

    /// For messages and users of bitmaps.
    pub(super) fn user(&self) -> String {
        user(&self.id)
    }

    fn bitmaps(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.bitmaps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it shows, as contexts call it.
    pub(super) fn shown(&self) -> Vec<(String, ShownSet)> {
        let set = |kept: &Kept| match kept.is_frozen {
            true => ShownSet::Frozen(kept.still.clone()),
            false => ShownSet::Live(Arc::clone(kept.bitmap.bitmap())),
        };
        self.bitmaps().iter().map(|kept| (kept.name.clone(), set(kept))).collect()
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

    /// It takes clients again: what was to end it has failed.
    pub(super) fn go_on(&self) {
        self.is_ending.store(false, Ordering::Release);
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

fn user(id: &str) -> String {
    format!("export `{id}`")
}

/// A bitmap, kept for an export.
fn keep(graph: &Graph, id: &str, shown: &ExportBitmap) -> Result<BitmapUse> {
    let bitmap = graph.find_bitmap(&shown.scope, &shown.name);
    Ok(bitmap.ok_or_else(|| not_found(id, shown))?.use_by(user(id), Use::Keep)?)
}

fn not_found(id: &str, shown: &ExportBitmap) -> Error {
    let (user, scope, name) = (user(id), &shown.scope, &shown.name);
    let message = format!("{user} is to show bitmap `{name}` of {scope}, which is not there");
    Error::new(ErrorKind::NotFound, message)
}
