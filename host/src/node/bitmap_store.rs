//! Bitmaps that a node's driver keeps beside the bytes of its view, in an image's own directory.
//!
//! What is kept, and in which node, is the host's to decide (`host::persist`); a driver stores. It does so
//! by itself in one case only: when it closes ([`Keeping::store`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Error, ErrorKind, NodeFuture, Result};
use crate::bitmap::{Bitmap, BitmapIdentity, BitmapName, BitmapState, Granularity};
use crate::graph::Cx;

/// A bitmap that a store has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBitmap {
    /// Its name.
    pub name: BitmapName,
    /// Bytes that one granule stands for.
    pub granularity: Granularity,
    /// Whether it goes on recording when the image is opened.
    pub auto: bool,
    /// What may be done with it.
    pub trust: Trust,
    /// Which bitmap it is; `None` for one that another program has made.
    pub identity: Option<BitmapIdentity>,
}

/// What may be done with a stored bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It is what it was when it was stored.
    Stored,
    /// It was not stored after its last use: what it holds means nothing.
    Inconsistent,
    /// Its kind is not known here: it is kept as it is.
    Unknown,
}

/// The content of a bitmap that was taken into use.
#[derive(Clone, Debug)]
pub struct LoadedBitmap {
    /// Its name.
    pub name: BitmapName,
    /// Granule 0 is the lowest bit of the first word; or why it cannot be had.
    pub words: Result<Vec<u64>>,
    /// Whether what is below the store is what it was when the bitmap was stored.
    pub below: Below,
}

/// What is known of the files below a store since a bitmap was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Below {
    /// They have not been changed, or there are none.
    Same,
    /// They may have been.
    Changed {
        /// Which of them, as a sentence without its end.
        what: String,
        /// It is nothing but what the store itself keeps its bytes in, and another program has had the store
        /// open for writing: it has followed such changes, if it knows bitmaps.
        through_store: bool,
    },
    /// There are some, and nobody said of them what they were.
    NeverSaid,
}

/// A bitmap as it is to be stored.
#[derive(Clone, Debug)]
pub struct BitmapContent {
    /// Its name.
    pub name: BitmapName,
    /// Bytes that one granule stands for.
    pub granularity: Granularity,
    /// Whether it is to go on recording when the image is opened.
    pub auto: bool,
    /// Whether its content is not to be trusted yet.
    pub in_use: bool,
    /// Which bitmap it is, and the generation of this form of it.
    pub identity: BitmapIdentity,
    /// Bytes of the view.
    pub size_bytes: u64,
    /// Granule 0 is the lowest bit of the first word; what is missing is clean.
    pub words: Vec<u64>,
}

/// A change of what is stored.
#[derive(Clone, Debug)]
pub enum StoreChange {
    /// Stores a bitmap, in place of one of the same name.
    Store(BitmapContent),
    /// Takes one out.
    Remove(BitmapName),
    /// Gives one another name.
    Rename {
        /// Its name now.
        from: BitmapName,
        /// Its new name.
        to: BitmapName,
    },
}

/// See the module. Calls are made as [`LocalGraph::call_node`](crate::graph::LocalGraph::call_node) makes
/// them, or while everything stands still; a driver does one at a time.
///
/// **A driver that is asked for a change of its view before [`Self::begin_use`] marks all its bitmaps as in
/// use, durably, before it makes that change.**
pub trait BitmapStore: Send + Sync {
    /// What it has, in its order.
    fn stored<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, Vec<StoredBitmap>>;

    /// Loads these bitmaps, each for a view of so many bytes, and marks all bitmaps as in use, durably, if the
    /// node can be written. Nothing changes the node's view between the two.
    fn begin_use<'a>(
        &'a self,
        cx: Cx<'a>,
        wanted: Vec<(BitmapName, u64)>,
    ) -> NodeFuture<'a, Vec<LoadedBitmap>>;

    /// Makes changes, durably, all of them at once. After an error what is stored is as before, or
    /// inconsistent. With a bitmap that is not in use is stored, at the same instant, what is below now; the
    /// caller changes nothing any more.
    fn change<'a>(&'a self, cx: Cx<'a>, changes: Vec<StoreChange>) -> NodeFuture<'a, ()>;

    /// The bitmaps that are stored when the node closes.
    fn keeping(&self) -> &Keeping;
}

/// The bitmaps that a node keeps, for its driver to hold: [`BitmapStore::keeping`].
#[derive(Debug, Default)]
pub struct Keeping(Mutex<Vec<Kept>>);

/// A bitmap that is kept, and the name that it has in the store.
#[derive(Clone, Debug)]
struct Kept {
    bitmap: Arc<Bitmap>,
    name: BitmapName,
    /// It is stored when the node closes; else it was only loaded.
    stores: bool,
}

impl Keeping {
    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a bitmap, which has this name in the store; `stores` if it is to be stored when the node closes.
    pub(crate) fn keep(&self, bitmap: &Arc<Bitmap>, name: BitmapName, stores: bool) {
        let mut all = self.lock();
        all.retain(|kept| !Arc::ptr_eq(&kept.bitmap, bitmap));
        all.push(Kept { bitmap: Arc::clone(bitmap), name, stores });
    }

    /// Keeps a bitmap no longer; returns the name that it has in the store.
    pub(crate) fn forget(&self, bitmap: &Arc<Bitmap>) -> Option<BitmapName> {
        let mut all = self.lock();
        let at = all.iter().position(|kept| Arc::ptr_eq(&kept.bitmap, bitmap))?;
        Some(all.remove(at).name)
    }

    /// Whether a bitmap is kept that has this name in the store.
    pub(crate) fn has(&self, name: &BitmapName) -> bool {
        self.lock().iter().any(|kept| kept.name == *name)
    }

    /// The name in the store of a bitmap that is kept.
    pub(crate) fn name_of(&self, bitmap: &Arc<Bitmap>) -> Option<BitmapName> {
        let all = self.lock();
        let kept = all.iter().find(|kept| Arc::ptr_eq(&kept.bitmap, bitmap))?;
        Some(kept.name.clone())
    }

    /// Stores what is kept. For a driver that closes, with nothing in flight: `in_use` is false then. One
    /// that is inconsistent stays so.
    ///
    /// # Errors
    /// The store's. What is kept is marked as in use then, or inconsistent as a whole.
    pub async fn store(&self, store: &dyn BitmapStore, cx: Cx<'_>, in_use: bool) -> Result<()> {
        let kept: Vec<Kept> = self.lock().clone();
        let size_bytes = cx.node_size_bytes();
        let changes: Vec<StoreChange> = kept
            .iter()
            .filter(|kept| kept.stores && kept.bitmap.state() != BitmapState::Inconsistent)
            .map(|kept| StoreChange::Store(content_of(kept, size_bytes, in_use)))
            .collect();
        if changes.is_empty() {
            return Ok(());
        }
        store.change(cx, changes).await
    }
}

fn content_of(kept: &Kept, size_bytes: u64, in_use: bool) -> BitmapContent {
    let reader = kept.bitmap.read();
    BitmapContent {
        name: kept.name.clone(),
        granularity: reader.granularity(),
        auto: reader.is_recording(),
        in_use,
        identity: kept.bitmap.identity(),
        // An image refuses one that is shorter than its view.
        size_bytes: reader.size_bytes().max(size_bytes),
        words: reader.to_words(),
    }
}

/// Makes an entry for a bitmap that is in use from now on, or takes over one that the same bitmap has left in the
/// store. Whether that had none of its name.
///
/// # Errors
/// `EEXIST` for one of its name that is not the same, or a later form of it; the store's, with its node: no
/// room, or read-only.
pub(crate) async fn create(
    store: &dyn BitmapStore,
    cx: Cx<'_>,
    content: BitmapContent,
) -> Result<bool> {
    let node = cx.node_name();
    let stored = store.stored(cx).await.map_err(|error| error.at_node(node))?;
    let former = stored.iter().find(|stored| stored.name == content.name);
    if let Some(stored) = former {
        check_is_same(stored, &content).map_err(|error| error.at_node(node))?;
    }
    let changes = vec![StoreChange::Store(content)];
    store.change(cx, changes).await.map_err(|error| error.at_node(node))?;
    Ok(former.is_none())
}

/// Whether a stored bitmap is an earlier form of the one that is to be stored, or this one.
fn check_is_same(stored: &StoredBitmap, content: &BitmapContent) -> Result<()> {
    let BitmapContent { name, granularity, identity, .. } = content;
    let fits = |known: BitmapIdentity| {
        known.uuid == identity.uuid && known.generation <= identity.generation
    };
    if stored.identity.is_some_and(fits) && stored.granularity == *granularity {
        return Ok(());
    }
    let theirs = match stored.identity {
        Some(BitmapIdentity { uuid, generation }) => {
            format!("UUID {uuid}, generation {generation}")
        }
        None => "without a UUID".into(),
    };
    let message = format!(
        "its image has a bitmap `{name}` already ({theirs}, granularity {}), which is not this one (UUID {}, \
         generation {}, granularity {granularity}): remove or rename one of them first",
        stored.granularity, identity.uuid, identity.generation
    );
    Err(Error::new(ErrorKind::Exists, message))
}
