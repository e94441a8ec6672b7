//! Dirty bitmaps for embedders: reading at any time, deciding only while nothing is in flight.

use std::ops::Range;
use std::sync::Arc;

use super::call::on_worker;
use super::{Inner, Result, check_running};
use crate::bitmap::{Bitmap, BitmapName, BitmapReader, BitmapState, Change, Granularity};
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

impl DirtyBitmap {
    pub(super) fn find(inner: &Arc<Inner>, scope: &BitmapScope, name: &str) -> Result<Self> {
        let graph = inner.cell.load();
        let bitmap = graph.find_bitmap(scope, name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no bitmap `{name}` on {scope:?}"))
        })?;
        Ok(Self { inner: Arc::clone(inner), scope: scope.clone(), bitmap: Arc::clone(bitmap) })
    }

    /// Its name now.
    pub fn name(&self) -> BitmapName {
        self.bitmap.name()
    }

    /// What it records.
    pub fn scope(&self) -> &BitmapScope {
        &self.scope
    }

    /// Its granularity.
    pub fn granularity(&self) -> Granularity {
        self.bitmap.granularity()
    }

    /// What it does with changes.
    pub fn state(&self) -> BitmapState {
        self.bitmap.state()
    }

    /// Who uses it, as `` export `vda` ``; each once.
    pub fn users(&self) -> Vec<String> {
        self.bitmap.users()
    }

    /// All of it as it stands now, whatever is decided later: also what [`Self::freeze`] has put
    /// aside, alone ([`BitmapReader::still`]).
    pub fn read(&self) -> BitmapReader {
        self.bitmap.read()
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
    /// `EBUSY` when somebody reads it or it is frozen; `ENOENT` when it was removed; `ETIMEDOUT` when
    /// requests do not end.
    pub async fn clear(&self) -> Result<()> {
        self.change(Change::Clear).await
    }

    /// Records from now on.
    ///
    /// # Errors
    /// `EBUSY` when a job has it or it is frozen; else as [`DirtyBitmap::clear`].
    pub async fn enable(&self) -> Result<()> {
        self.change(Change::Enable).await
    }

    /// Stops recording, keeping what is dirty.
    ///
    /// # Errors
    /// As [`DirtyBitmap::enable`].
    pub async fn disable(&self) -> Result<()> {
        self.change(Change::Disable).await
    }

    /// Puts what is dirty aside, standing still, and goes on recording in a fresh set: the first step of
    /// an incremental copy. Until it ends, this shows both.
    ///
    /// # Errors
    /// As [`DirtyBitmap::enable`].
    pub async fn freeze(&self) -> Result<()> {
        self.change(Change::Freeze).await
    }

    /// Ends a freeze whose copy failed: dirty is what was put aside and what has changed since.
    ///
    /// # Errors
    /// `EINVAL` when it is not frozen; `EBUSY` when a job has it; else as [`DirtyBitmap::clear`].
    pub async fn merge_back(&self) -> Result<()> {
        self.change(Change::MergeBack).await
    }

    /// Ends a freeze whose copy is done: dirty is what has changed since.
    ///
    /// # Errors
    /// `EINVAL` when it is not frozen; else as [`DirtyBitmap::clear`].
    pub async fn abdicate(&self) -> Result<()> {
        self.change(Change::Abdicate).await
    }

    /// Makes dirty here what is dirty in `sources`, which may have other granularities. A change in
    /// flight on a source's view may or may not be among it.
    ///
    /// # Errors
    /// `EINVAL` when a source has another size; as [`DirtyBitmap::enable`].
    pub async fn merge(&self, sources: &[&Self]) -> Result<()> {
        let sources = sources.iter().map(|source| Arc::clone(&source.bitmap)).collect();
        self.change(Change::Merge(sources)).await
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// `EEXIST`; `EBUSY` when somebody uses it; `ENOENT` when it was removed.
    pub async fn rename(&self, name: BitmapName) -> Result<()> {
        self.change(Change::Rename(name)).await
    }

    /// Takes it out of the graph.
    ///
    /// # Errors
    /// As [`DirtyBitmap::clear`].
    pub async fn remove(&self) -> Result<()> {
        let (cell, bitmap) = (Arc::clone(&self.inner.cell), Arc::clone(&self.bitmap));
        let ended = Arc::clone(&self.inner.ended);
        on_worker(self.inner.first(), move || async move {
            check_running(&ended)?;
            cell.remove_bitmap(&bitmap).await
        })
        .await
    }

    async fn change(&self, change: Change) -> Result<()> {
        let (cell, bitmap) = (Arc::clone(&self.inner.cell), Arc::clone(&self.bitmap));
        let ended = Arc::clone(&self.inner.ended);
        on_worker(self.inner.first(), move || async move {
            check_running(&ended)?;
            cell.change_bitmap(&bitmap, &[change]).await
        })
        .await
    }
}
