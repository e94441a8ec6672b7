//! Dirty bitmaps for embedders: reading at any time, deciding only while nothing is in flight.

use std::ops::Range;
use std::sync::Arc;

use super::call::on_worker;
use super::{Inner, Result, check_running};
use crate::bitmap::{Bitmap, BitmapError, BitmapState, Granularity};
use crate::error::{Error, ErrorKind};
use crate::graph::BitmapScope;

/// A dirty bitmap of a node or a drive. Holding it keeps it readable, also after its removal.
///
/// ```
/// use blockloom::bitmap::{BitmapName, Granularity};
/// use blockloom::graph::BitmapScope;
/// use blockloom::node::MemoryNode;
/// use blockloom::{Host, block_on};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let scope = BitmapScope::Drive("vda".into());
/// let host = Host::builder()
///     .node("disk", MemoryNode::new(1 << 20, 1)?, vec![])
///     .drive("vda", "disk", true)
///     .bitmap(scope.clone(), BitmapName::new("daily")?, Granularity::from_bytes(4096)?)
///     .start()?;
/// let (drive, daily) = (host.drive("vda")?, host.bitmap(&scope, "daily")?);
///
/// // One byte makes the granule dirty that it lies in; two neighbours are one range.
/// block_on(drive.write(10_000, b"x"))?;
/// block_on(drive.write(12_288, b"y"))?;
/// assert_eq!(daily.ranges(0..1 << 20).collect::<Vec<_>>(), [8192..16384]);
/// assert_eq!((daily.count(), daily.dirty_bytes()), (2, 8192));
///
/// block_on(daily.clear())?;
/// block_on(drive.read(0, 4096))?;
/// assert_eq!(daily.count(), 0);
/// # Ok(host.shutdown()?)
/// # }
/// ```
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
        let (name, ended) = (self.name().to_owned(), Arc::clone(&self.inner.ended));
        let removed = on_worker(self.inner.first(), move || async move {
            check_running(&ended)?;
            cell.remove_bitmap(&scope, &name).await
        });
        removed.await.map(drop)
    }

    async fn decide(&self, f: impl FnOnce(&Bitmap) -> Result<()> + Send + 'static) -> Result<()> {
        let (cell, scope) = (Arc::clone(&self.inner.cell), self.scope.clone());
        let (name, ended) = (self.name().to_owned(), Arc::clone(&self.inner.ended));
        on_worker(self.inner.first(), move || async move {
            check_running(&ended)?;
            cell.with_bitmap(&scope, &name, |_, bitmap| f(bitmap)).await
        })
        .await
    }
}
