//! Dirty bitmaps for embedders: reading at any time, deciding only while nothing is in flight.

use std::ops::Range;
use std::sync::Arc;

use super::persist::Persistence;
use super::{Inner, Keep, Result};
use crate::bitmap::{Bitmap, BitmapName, BitmapReader, BitmapState, Granularity};
use crate::error::{Error, ErrorKind};
use crate::graph::{BitmapAction, BitmapRef, BitmapScope, GraphCell, Transaction};

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
            Error::new(ErrorKind::NotFound, format!("there is no bitmap `{name}` of {scope}"))
        })?;
        Ok(Self::new(inner, scope, bitmap))
    }

    pub(super) fn new(inner: &Arc<Inner>, scope: &BitmapScope, bitmap: &Arc<Bitmap>) -> Self {
        Self { inner: Arc::clone(inner), scope: scope.clone(), bitmap: Arc::clone(bitmap) }
    }

    /// Its name now.
    pub fn name(&self) -> BitmapName {
        self.bitmap.name()
    }

    /// What it records now: a node's bitmap goes to the child when that node, a filter, is removed. Of a
    /// removed one, what it recorded when this was got.
    pub fn scope(&self) -> BitmapScope {
        let graph = self.inner.cell.load();
        let mut all = graph.bitmaps();
        let now = all.find(|(_, bitmap)| Arc::ptr_eq(bitmap, &self.bitmap));
        now.map_or_else(|| self.scope.clone(), |(scope, _)| scope.clone())
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
        self.act(BitmapAction::Clear).await
    }

    /// Records from now on.
    ///
    /// # Errors
    /// `EBUSY` when a job has it or it is frozen; else as [`DirtyBitmap::clear`].
    pub async fn enable(&self) -> Result<()> {
        self.act(BitmapAction::Enable).await
    }

    /// Stops recording, keeping what is dirty.
    ///
    /// # Errors
    /// As [`DirtyBitmap::enable`].
    pub async fn disable(&self) -> Result<()> {
        self.act(BitmapAction::Disable).await
    }

    /// Puts what is dirty aside, standing still, and goes on recording in a fresh set: the first step of
    /// an incremental copy. Until it ends, this shows both. For several bitmaps at one instant:
    /// [`Action::Checkpoint`](crate::graph::Action::Checkpoint).
    ///
    /// # Errors
    /// As [`DirtyBitmap::enable`].
    pub async fn freeze(&self) -> Result<()> {
        self.act(BitmapAction::Freeze).await
    }

    /// Ends a freeze whose copy failed: dirty is what was put aside and what has changed since.
    ///
    /// # Errors
    /// `EINVAL` when it is not frozen; `EBUSY` when a job has it; else as [`DirtyBitmap::clear`].
    pub async fn merge_back(&self) -> Result<()> {
        self.act(BitmapAction::MergeBack).await
    }

    /// Ends a freeze whose copy is done: dirty is what has changed since.
    ///
    /// # Errors
    /// `EINVAL` when it is not frozen; else as [`DirtyBitmap::clear`].
    pub async fn abdicate(&self) -> Result<()> {
        self.act(BitmapAction::Abdicate).await
    }

    /// Makes dirty here what is dirty in `sources`, which may have other granularities. A change in
    /// flight on a source's view may or may not be among it.
    ///
    /// # Errors
    /// `EINVAL` when a source has another size; `ENOENT` when one was removed; as
    /// [`DirtyBitmap::enable`].
    pub async fn merge(&self, sources: &[&Self]) -> Result<()> {
        self.act(BitmapAction::merge(sources.iter().copied())).await
    }

    /// Makes dirty here what is dirty in `source`, and nothing else: as [`DirtyBitmap::clear`] and
    /// [`DirtyBitmap::merge`] at one instant.
    ///
    /// # Errors
    /// Of both.
    pub async fn copy_of(&self, source: &Self) -> Result<()> {
        self.act(BitmapAction::CopyOf(source.into())).await
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// `EEXIST`; `EBUSY` when somebody uses it; `ENOENT` when it was removed.
    pub async fn rename(&self, name: BitmapName) -> Result<()> {
        self.act(BitmapAction::Rename(name)).await
    }

    /// Ends that it is [inconsistent](BitmapState::Inconsistent): all of it is dirty, and it records from now
    /// on.
    ///
    /// # Errors
    /// `EINVAL` when it is not inconsistent; else as [`DirtyBitmap::clear`].
    pub async fn repair(&self) -> Result<()> {
        self.act(BitmapAction::Repair).await
    }

    /// Has an image keep it while the host is down, from now on. Until it is stored in the end, by
    /// [`Host::shutdown`](crate::Host::shutdown) or when the image's node is removed, the image says that it
    /// is in use.
    ///
    /// # Errors
    /// Why it could not be stored: `ENOTSUP`, `EROFS` or `ENOSPC` of the image; `EEXIST` if the image has one
    /// of its name, or it is kept already; `ENOENT` when it was removed.
    pub async fn keep(&self, keep: Keep) -> Result<()> {
        let bitmap = Arc::clone(&self.bitmap);
        let keep = async move |persistence: &Persistence, cell: &Arc<GraphCell>| {
            persistence.keep(cell, &bitmap, keep).await
        };
        self.inner.persist(keep).await
    }

    /// The node whose image keeps it. `None` if it is not kept, or no image can keep it now, which an event
    /// has told ([`Event::BitmapNotKept`](crate::graph::Event::BitmapNotKept)).
    pub fn kept_in(&self) -> Option<Arc<str>> {
        self.inner.persistence.kept_in(&self.bitmap)
    }

    /// Whether it stands still only because its image is read-only: it goes on when that is opened for writing.
    pub fn waits(&self) -> bool {
        self.inner.persistence.waits(&self.bitmap)
    }

    /// Takes it out of the graph, and out of the image that keeps it.
    ///
    /// # Errors
    /// As [`DirtyBitmap::clear`]; `EROFS` when that image is read-only.
    pub async fn remove(&self) -> Result<()> {
        self.act(BitmapAction::Remove).await
    }

    async fn act(&self, action: BitmapAction) -> Result<()> {
        self.inner.transact(Transaction::new().with(action.of(self))).await.map(drop)
    }
}

/// This one, whatever it is called.
impl From<&DirtyBitmap> for BitmapRef {
    fn from(bitmap: &DirtyBitmap) -> Self {
        Self::This(Arc::clone(&bitmap.bitmap))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

    use super::*;
    use crate::bitmap::Use;
    use crate::error::ErrorKind;
    use crate::graph::BitmapDecl;
    use crate::node::MemoryNode;
    use crate::{Host, block_on};

    const SIZE_BYTES: u64 = 1 << 20;

    fn scope() -> BitmapScope {
        BitmapScope::Drive("vda".into())
    }

    fn name(name: &str) -> BitmapName {
        BitmapName::new(name).unwrap()
    }

    /// A host with the drive `vda` and its bitmap `daily`, 512 B a granule.
    fn host() -> (Host, DirtyBitmap) {
        let host = Host::builder()
            .node("disk", MemoryNode::new(SIZE_BYTES, 1).unwrap(), vec![])
            .drive("vda", "disk", true)
            .bitmap(scope(), name("daily"), Granularity::MIN)
            .start()
            .unwrap();
        let daily = host.bitmap(&scope(), "daily").unwrap();
        (host, daily)
    }

    /// Each write by when it began: after how many decisions had returned.
    type Writes = Mutex<Vec<(u64, u64)>>;

    fn write_until(
        host: &Host,
        over: &AtomicBool,
        decided: &AtomicU64,
        writes: &Writes,
        seed: u64,
    ) {
        let vda = host.drive("vda").unwrap();
        let mut random = seed;
        while !over.load(SeqCst) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let (begun, offset) = (decided.load(SeqCst), random % SIZE_BYTES);
            block_on(vda.write(offset, b"x")).unwrap();
            writes.lock().unwrap().push((begun, offset));
        }
    }

    fn assert_dirty(bitmap: &BitmapReader, writes: &[(u64, u64)], since: u64) {
        for (_, offset) in writes.iter().filter(|(begun, _)| *begun >= since) {
            assert!(bitmap.test(*offset), "{offset} was written and is clean");
        }
    }

    /// Freezes that are undone and freezes that are not, while others write.
    #[test]
    fn a_freeze_and_its_end_lose_no_write() {
        let (host, daily) = host();
        let (over, decided, writes) =
            (AtomicBool::new(false), AtomicU64::new(0), Writes::default());
        let rounds = || {
            let mut since = 0;
            for round in 0..40 {
                block_on(daily.freeze()).unwrap();
                let frozen = decided.fetch_add(1, SeqCst) + 1;
                let before = writes.lock().unwrap().clone();
                while writes.lock().unwrap().len() < before.len() + 10 {
                    std::thread::yield_now();
                }
                assert_dirty(&daily.read(), &writes.lock().unwrap(), since);
                let still = daily.read().still().unwrap();
                let count = still.count();
                if round % 2 == 0 {
                    block_on(daily.merge_back()).unwrap();
                } else {
                    block_on(daily.abdicate()).unwrap();
                    since = frozen;
                }
                assert_dirty(&daily.read(), &writes.lock().unwrap(), since);
                assert_eq!(still.count(), count, "what was put aside goes on recording");
                writes.lock().unwrap().retain(|(begun, _)| *begun >= since);
            }
        };
        std::thread::scope(|scope| {
            for seed in [3, 5] {
                let (host, over, decided, writes) = (&host, &over, &decided, &writes);
                scope.spawn(move || write_until(host, over, decided, writes, seed));
            }
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(rounds));
            over.store(true, SeqCst);
            if let Err(panic) = result {
                std::panic::resume_unwind(panic);
            }
        });
        host.shutdown().unwrap();
    }

    #[test]
    fn a_bitmap_in_use_is_neither_cleared_nor_removed_nor_renamed() {
        let (host, daily) = host();
        let reader = daily.bitmap.use_by("export `vda`".into(), Use::Read).unwrap();
        assert_eq!(daily.users(), ["export `vda`"]);
        let refused = [
            ("clear", "", block_on(daily.clear())),
            ("remove", "", block_on(daily.remove())),
            ("rename", " to `weekly`", block_on(daily.rename(name("weekly")))),
        ];
        for (verb, to, result) in refused {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InUse);
            let message = format!(
                "{verb} bitmap `daily` of drive `vda`{to}: bitmap `daily` is in use by export `vda`: \
                 end that first"
            );
            assert_eq!(error.to_string(), message);
        }
        block_on(daily.disable()).unwrap();
        drop(reader);
        block_on(daily.remove()).unwrap();
        host.shutdown().unwrap();
    }

    /// A handle is of the bitmap that it was got for, whatever that is called and whatever else is
    /// called so.
    #[test]
    fn a_handle_follows_its_bitmap_and_not_the_name() {
        let (host, daily) = host();
        let decl = |called: &str| BitmapDecl {
            scope: scope(),
            name: name(called),
            granularity: Granularity::MIN,
            enabled: true,
        };
        let other = block_on(host.add_bitmap(decl("other"))).unwrap();
        let taken = block_on(daily.rename(name("other"))).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::Exists);
        block_on(daily.rename(name("weekly"))).unwrap();
        assert!(host.bitmap(&scope(), "daily").is_err());
        block_on(host.drive("vda").unwrap().write(0, b"x")).unwrap();
        assert_eq!((host.bitmap(&scope(), "weekly").unwrap().count(), daily.count()), (1, 1));

        block_on(other.remove()).unwrap();
        let again = block_on(host.add_bitmap(decl("other"))).unwrap();
        block_on(host.drive("vda").unwrap().write(0, b"x")).unwrap();
        let gone = block_on(other.clear()).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
        assert_eq!(gone.to_string(), "clear bitmap `other`: bitmap `other` has been removed");
        assert_eq!((other.count(), again.count()), (1, 1));
        host.shutdown().unwrap();
    }
}
