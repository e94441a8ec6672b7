//! The bitmaps that an image keeps, for the host: see [`BitmapStore`].
//!
//! Nobody follows them until they are taken into use; a change of the image that comes before makes all of
//! them inconsistent (`Image::follow_bitmaps`).

use std::sync::{Mutex, PoisonError};

use blockloom_qcow2::bitmaps::{self as engine, BitmapChange, BitmapImage, Directory, NewBitmap};
use blockloom_qcow2::format::bitmap::BitmapEntry;
use blockloom_qcow2::format::header::features;

use super::Qcow2Node;
use super::storage::{Container, from_engine};
use crate::bitmap::{BitmapName, Granularity};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Cx, WriterLock};
use crate::node::{
    BitmapStore, Keeping, LoadedBitmap, NodeFuture, StoreChange, StoredBitmap, Trust,
};

/// What a node knows of its image's bitmaps.
#[derive(Default)]
pub(super) struct Bitmaps {
    /// Whoever has it uses `state`.
    turn: WriterLock,
    /// Taken out while it is used: one whose use was given up is read anew.
    state: Mutex<Option<State>>,
    pub(super) keeping: Keeping,
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

    fn stored(&self) -> Vec<StoredBitmap> {
        let stored = |entry: &BitmapEntry| {
            // One with a name that is none is kept as it is.
            let name = name_of(entry)?;
            let granularity =
                Granularity::from_bytes(1_u64.checked_shl(entry.granularity_bits.into())?);
            let trust = self.trust(entry, &name);
            Some(StoredBitmap { name, granularity: granularity.ok()?, auto: entry.auto(), trust })
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
        *slot() = Some(state);
        done
    }

    /// Reads what can be trusted, and marks everything as in use, unless that has been done: from then on it
    /// is followed.
    async fn take_bitmaps(&self, state: &mut State, container: &Container<'_>) -> Result<()> {
        if state.taken {
            return Ok(());
        }
        state.contents.clear();
        let image = self.image.file(container);
        let size_bytes = self.image.size_bytes();
        for entry in state.directory.entries() {
            let (Some(name), engine::Trust::Stored) =
                (name_of(entry), state.directory.trust(entry))
            else {
                continue;
            };
            let words = state.directory.load_words(&image, &entry.name, size_bytes).await;
            state.contents.push(LoadedBitmap { name, words: words.map_err(from_engine) });
        }
        if !self.write {
            return Ok(());
        }
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
                self.take_bitmaps(state, container).await?;
                let shown = self.image.size_bytes();
                let take = |(name, size_bytes): (BitmapName, u64)| {
                    let at = state.contents.iter().position(|content| content.name == name);
                    let words = match at.map(|at| state.contents.swap_remove(at)) {
                        Some(content) if size_bytes == shown => content.words,
                        Some(_) => lost(format!("it is for {shown} bytes, not {size_bytes}")),
                        None => lost("it is not there, or not to be trusted".into()),
                    };
                    LoadedBitmap { name, words }
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
                self.take_bitmaps(state, container).await?;
                let changes: Vec<BitmapChange<'_>> = changes.iter().map(change).collect();
                let image = self.image.file(container);
                state.directory.change(&image, &changes).await.map_err(from_engine)
            },
        ))
    }

    fn keeping(&self) -> &Keeping {
        &self.bitmaps.keeping
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
