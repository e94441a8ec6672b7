//! The bitmaps that an image keeps, for the host: see [`BitmapStore`].
//!
//! Nobody follows them until they are taken into use; a change of the image that comes before makes all of
//! them inconsistent (`Image::follow_bitmaps`).

use std::sync::{Mutex, PoisonError};

use blockloom_qcow2::bitmaps::{self as engine, BitmapChange, BitmapImage, Directory, NewBitmap};
use blockloom_qcow2::format::bitmap::BitmapEntry;
use blockloom_qcow2::format::header::features;
use blockloom_qcow2::format::record::{self, Record};
use blockloom_qcow2::info::BitmapInfo;

use super::Qcow2Node;
use super::storage::{Container, from_engine};
use crate::bitmap::{BitmapIdentity, BitmapName, Granularity, Uuid};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Cx, WriterLock};
use crate::node::{
    Below, BitmapStore, Keeping, KeptBitmap, LoadedBitmap, NodeFuture, StoreChange, StoredBitmap,
    Trust,
};

/// What a node knows of its image's bitmaps.
#[derive(Default)]
pub(super) struct Bitmaps {
    /// Whoever has it uses `state`.
    turn: WriterLock,
    /// Taken out while it is used: one whose use was given up is read anew.
    state: Mutex<Option<State>>,
    /// The directory after the last use of `state`: for whoever waits for nobody.
    listed: Mutex<Vec<KeptBitmap>>,
    pub(super) keeping: Keeping,
}

impl Bitmaps {
    /// What the image's directory has, as it was used last.
    pub(super) fn listed(&self) -> Vec<KeptBitmap> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn list(&self, state: &State) {
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = state.listed();
    }
}

struct State {
    directory: Directory,
    /// All are marked as in use.
    taken: bool,
    /// What they held before, for the size of the view.
    contents: Vec<LoadedBitmap>,
}

impl State {
    async fn load<I: BitmapImage>(image: &I) -> Result<Self> {
        let directory = Directory::load(image).await.map_err(from_engine)?;
        Ok(Self { directory, taken: false, contents: Vec::new() })
    }

    fn trust(&self, entry: &BitmapEntry, name: &BitmapName) -> Trust {
        match self.directory.trust(entry) {
            engine::Trust::Unknown => Trust::Unknown,
            engine::Trust::Stored => Trust::Stored,
            // It is in use here.
            engine::Trust::Inconsistent => {
                let content = self.contents.iter().find(|content| content.name == *name);
                match content.is_some_and(|content| content.words.is_ok()) {
                    true => Trust::Stored,
                    false => Trust::Inconsistent,
                }
            }
        }
    }

    /// All of a directory that counts.
    fn listed(&self) -> Vec<KeptBitmap> {
        let kept = |entry: &BitmapEntry| {
            let BitmapInfo { name, granularity_bytes, in_use, auto } =
                BitmapInfo::new(entry.clone());
            let name = String::from_utf8_lossy(&name).into_owned();
            KeptBitmap { name, granularity_bytes, in_use, auto }
        };
        match self.directory.is_consistent() {
            true => self.directory.entries().iter().map(kept).collect(),
            false => Vec::new(),
        }
    }

    fn stored(&self) -> Vec<StoredBitmap> {
        let stored = |entry: &BitmapEntry| {
            // One with a name that is none is kept as it is.
            let name = name_of(entry)?;
            let granularity =
                Granularity::from_bytes(1_u64.checked_shl(entry.granularity_bits.into())?);
            let trust = self.trust(entry, &name);
            let identity = self.directory.record().and_then(|it| it.identity(&entry.name));
            let (auto, identity) = (entry.auto(), identity.map(from_record));
            Some(StoredBitmap { name, granularity: granularity.ok()?, auto, trust, identity })
        };
        self.directory.entries().iter().filter_map(stored).collect()
    }
}

fn name_of(entry: &BitmapEntry) -> Option<BitmapName> {
    BitmapName::new(std::str::from_utf8(&entry.name).ok()?).ok()
}

impl Qcow2Node {
    /// Does something with the directory, one at a time.
    async fn with_bitmaps<T>(
        &self,
        cx: Cx<'_>,
        f: impl AsyncFnOnce(&mut State, &Container<'_>) -> Result<T>,
    ) -> Result<T> {
        let container = self.container(cx)?;
        let _turn = self.bitmaps.turn.lock().await;
        let slot = || self.bitmaps.state.lock().unwrap_or_else(PoisonError::into_inner);
        let known = slot().take();
        let mut state = match known {
            Some(state) => state,
            None => State::load(&self.image.file(&container)).await?,
        };
        let done = f(&mut state, &container).await;
        self.bitmaps.list(&state);
        *slot() = Some(state);
        done
    }

    /// Reads what can be trusted, and marks everything as in use, unless that has been done: from then on it
    /// is followed.
    async fn take_bitmaps(
        &self,
        cx: Cx<'_>,
        state: &mut State,
        container: &Container<'_>,
    ) -> Result<()> {
        if state.taken {
            return Ok(());
        }
        state.contents.clear();
        if state
            .directory
            .entries()
            .iter()
            .any(|it| state.directory.trust(it) == engine::Trust::Stored)
        {
            self.load_contents(cx, state, container).await;
        }
        if self.mode.write { self.mark_as_used(state, container).await } else { Ok(()) }
    }

    /// Reads and marks them, as for a host that takes them into use: nobody can change the image between the two.
    pub(super) async fn begin_to_follow(&self, cx: Cx<'_>) -> Result<()> {
        self.with_bitmaps(cx, async |state: &mut State, container: &Container<'_>| {
            self.take_bitmaps(cx, state, container).await
        })
        .await
    }

    /// They have been stored, and are read anew before they are used again.
    pub(super) fn forget_bitmaps(&self) {
        *self.bitmaps.state.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn load_contents(&self, cx: Cx<'_>, state: &mut State, container: &Container<'_>) {
        let files = self.files_below(cx).await;
        let (record, is_current) = (state.directory.record(), state.directory.is_record_current());
        let image = self.image.file(container);
        let size_bytes = self.image.size_bytes();
        for entry in state.directory.entries() {
            let (Some(name), engine::Trust::Stored) =
                (name_of(entry), state.directory.trust(entry))
            else {
                continue;
            };
            let words = state.directory.load_words(&image, &entry.name, size_bytes).await;
            let words = words.map_err(from_engine);
            let known = record.filter(|record| record.identity(&entry.name).is_some());
            let below = files.since(known.map(|record| &record.below), is_current);
            state.contents.push(LoadedBitmap { name, words, below });
        }
    }

    async fn mark_as_used(&self, state: &mut State, container: &Container<'_>) -> Result<()> {
        let image = self.image.file(container);
        self.image.outdate_record(container).await.map_err(from_engine)?;
        let marked = state.directory.begin_use(&image, BitmapEntry::is_usable).await;
        marked.map_err(from_engine)?;
        self.image.follow_bitmaps();
        if state.directory.is_consistent()
            && !state.directory.entries().is_empty()
            && image.header().autoclear & features::BITMAPS == 0
        {
            // A change came first. What was read goes on; nothing else of the directory counts.
            state.directory = Directory::load(&image).await.map_err(from_engine)?;
        }
        state.taken = true;
        Ok(())
    }
}

impl BitmapStore for Qcow2Node {
    fn stored<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, Vec<StoredBitmap>> {
        Box::pin(
            self.with_bitmaps(cx, async |state: &mut State, _: &Container<'_>| Ok(state.stored())),
        )
    }

    fn begin_use<'a>(
        &'a self,
        cx: Cx<'a>,
        wanted: Vec<(BitmapName, u64)>,
    ) -> NodeFuture<'a, Vec<LoadedBitmap>> {
        Box::pin(self.with_bitmaps(
            cx,
            async move |state: &mut State, container: &Container<'_>| {
                self.take_bitmaps(cx, state, container).await?;
                let shown = self.image.size_bytes();
                let take = |(name, size_bytes): (BitmapName, u64)| {
                    let at = state.contents.iter().position(|content| content.name == name);
                    let words = match at.map(|at| state.contents.swap_remove(at)) {
                        Some(content) if size_bytes == shown => return content,
                        Some(_) => lost(format!("it is for {shown} bytes, not {size_bytes}")),
                        None => lost("it is not there, or not to be trusted".into()),
                    };
                    LoadedBitmap { name, words, below: Below::NeverSaid }
                };
                let loaded = wanted.into_iter().map(take).collect();
                state.contents = Vec::new();
                Ok(loaded)
            },
        ))
    }

    fn change<'a>(&'a self, cx: Cx<'a>, changes: Vec<StoreChange>) -> NodeFuture<'a, ()> {
        Box::pin(self.with_bitmaps(
            cx,
            async move |state: &mut State, container: &Container<'_>| {
                self.take_bitmaps(cx, state, container).await?;
                let mut record = state.directory.record().cloned().unwrap_or(Record::EMPTY);
                changes.iter().for_each(|change| note(&mut record, change));
                let is_final = changes.iter().any(is_final);
                record.below = match is_final {
                    true => self.files_below(cx).await.recorded(),
                    false => record::Below::Unknown,
                };
                let changes: Vec<BitmapChange<'_>> = changes.iter().map(change).collect();
                let image = self.image.file(container);
                let directory = &mut state.directory;
                let changed = directory.change_recorded(&image, &changes, Some(record), is_final);
                changed.await.map_err(from_engine)
            },
        ))
    }

    fn keeping(&self) -> &Keeping {
        &self.bitmaps.keeping
    }
}

fn from_record(identity: record::BitmapIdentity) -> BitmapIdentity {
    let record::BitmapIdentity { uuid, generation } = identity;
    BitmapIdentity { uuid: Uuid::from_bytes(uuid), generation }
}

/// Whether it is the last change before the image is closed: what it stores is not in use.
fn is_final(change: &StoreChange) -> bool {
    matches!(change, StoreChange::Store(content) if !content.in_use)
}

/// Notes in the record which bitmaps there are after a change.
fn note(record: &mut Record, change: &StoreChange) {
    let bytes = |name: &BitmapName| name.as_str().as_bytes().to_vec();
    match change {
        StoreChange::Store(content) => {
            let BitmapIdentity { uuid, generation } = content.identity;
            let identity = record::BitmapIdentity { uuid: uuid.bytes(), generation };
            record.set_identity(&bytes(&content.name), Some(identity));
        }
        StoreChange::Remove(name) => record.set_identity(&bytes(name), None),
        StoreChange::Rename { from, to } => {
            let identity = record.identity(&bytes(from));
            record.set_identity(&bytes(from), None);
            record.set_identity(&bytes(to), identity);
        }
    }
}

fn lost<T>(message: String) -> Result<T> {
    Err(Error::new(ErrorKind::Io, message))
}

fn change(change: &StoreChange) -> BitmapChange<'_> {
    match change {
        StoreChange::Store(content) => BitmapChange::Store(NewBitmap {
            name: content.name.as_str().as_bytes(),
            granularity_bits: content.granularity.shift() as u8,
            auto: content.auto,
            in_use: content.in_use,
            size_bytes: content.size_bytes,
            words: &content.words,
        }),
        StoreChange::Remove(name) => BitmapChange::Remove(name.as_str().as_bytes()),
        StoreChange::Rename { from, to } => {
            BitmapChange::Rename { from: from.as_str().as_bytes(), to: to.as_str().as_bytes() }
        }
    }
}
