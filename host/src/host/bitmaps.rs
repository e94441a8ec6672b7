//! Dirty bitmaps for embedders: reading at any time, deciding only while nothing is in flight.

use std::ops::Range;
use std::sync::Arc;

use super::call::on_worker;
use super::{Inner, Result};
use crate::bitmap::{Bitmap, BitmapError, BitmapState, Granularity};
use crate::error::{Error, ErrorKind};
use crate::graph::BitmapScope;

/// A dirty bitmap of a node or a drive. Holding it keeps it readable, also after its removal.
#[derive(Clone)]
pub struct DirtyBitmap {
    inner: Arc<Inner>,
    scope: BitmapScope,
    bitmap: Arc<Bitmap>,
}

fn refused(error: &BitmapError) -> Error {
    Error::new(ErrorKind::Invalid, error.to_string())
}

impl DirtyBitmap {
    pub(super) fn find(inner: &Arc<Inner>, scope: &BitmapScope, name: &str) -> Result<Self> {
        let graph = inner.cell.load();
        let bitmap = graph.find_bitmap(scope, name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no bitmap `{name}` on {scope:?}"))
        })?;
        Ok(Self { inner: Arc::clone(inner), scope: scope.clone(), bitmap: Arc::clone(bitmap) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.bitmap.name().as_str()
    }

    /// What it records.
    pub fn scope(&self) -> &BitmapScope {
        &self.scope
    }

    /// Its granularity.
    pub fn granularity(&self) -> Granularity {
        self.bitmap.granularity()
    }

    /// Whether it records.
    pub fn state(&self) -> BitmapState {
        self.bitmap.state()
    }

    /// Dirty granules.
    pub fn count(&self) -> u64 {
        self.bitmap.count()
    }

    /// Bytes of the view that lie in dirty granules.
    pub fn dirty_bytes(&self) -> u64 {
        self.bitmap.dirty_bytes()
    }

    /// Dirty byte ranges within a range of the view, in order, coalesced.
    pub fn ranges(&self, within: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        self.bitmap.ranges(within)
    }

    /// Makes everything clean: what changes after this returns is dirty, what changed before is not.
    ///
    /// # Errors
    /// `ENOENT` when it was removed; `ETIMEDOUT` when requests do not end.
    pub async fn clear(&self) -> Result<()> {
        self.decide(|bitmap| {
            bitmap.clear();
            Ok(())
        })
        .await
    }

    /// Records from now on.
    ///
    /// # Errors
    /// As [`DirtyBitmap::clear`].
    pub async fn enable(&self) -> Result<()> {
        self.decide(|bitmap| {
            bitmap.enable();
            Ok(())
        })
        .await
    }

    /// Stops recording, keeping what is dirty.
    ///
    /// # Errors
    /// As [`DirtyBitmap::clear`].
    pub async fn disable(&self) -> Result<()> {
        self.decide(|bitmap| {
            bitmap.disable();
            Ok(())
        })
        .await
    }

    /// Makes dirty here what is dirty in `sources`, which may have other granularities. A change in
    /// flight on a source's view may or may not be among it.
    ///
    /// # Errors
    /// `EINVAL` when a source has another size; as [`DirtyBitmap::clear`].
    pub async fn merge(&self, sources: &[&Self]) -> Result<()> {
        let sources: Vec<_> = sources.iter().map(|source| Arc::clone(&source.bitmap)).collect();
        self.decide(move |bitmap| {
            for source in &sources {
                if source.size_bytes() != bitmap.size_bytes() {
                    return Err(refused(&BitmapError::SizeMismatch {
                        target_size_bytes: bitmap.size_bytes(),
                        source_size_bytes: source.size_bytes(),
                    }));
                }
            }
            // All or nothing: sizes were the only thing that could stand against it.
            let merged = sources.iter().try_for_each(|source| bitmap.merge_from_drained(source));
            merged.map_err(|error| refused(&error))
        })
        .await
    }

    /// Takes it out of the graph.
    ///
    /// # Errors
    /// As [`DirtyBitmap::clear`].
    pub async fn remove(&self) -> Result<()> {
        let (cell, scope) = (Arc::clone(&self.inner.cell), self.scope.clone());
        let name = self.name().to_owned();
        let removed = on_worker(self.inner.first(), move || async move {
            cell.remove_bitmap(&scope, &name).await
        });
        removed.await.map(drop)
    }

    async fn decide(&self, f: impl FnOnce(&Bitmap) -> Result<()> + Send + 'static) -> Result<()> {
        let (cell, scope) = (Arc::clone(&self.inner.cell), self.scope.clone());
        let name = self.name().to_owned();
        on_worker(self.inner.first(), move || async move {
            cell.with_bitmap(&scope, &name, |_, bitmap| f(bitmap)).await
        })
        .await
    }
}
