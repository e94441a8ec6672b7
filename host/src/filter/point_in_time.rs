//! What a backup and the view of its point in time share: which bytes are where.

use std::future::Future;
use std::iter::once;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock, Weak};

use crate::bitmap::{BitmapError, Granularity, Granules};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{GraphCell, LocalGraph, OwnAccord};
use crate::io::spawn;

/// Granules of sets that are whole or empty.
const WHOLE_BYTES: u64 = 1 << 30;

/// The sets of a node that copies before writes. Those of a plugin's node are bitmaps of its own, by the same
/// names: what they say is in `wit/filter.wit`, at `views`.
#[derive(Clone)]
pub(crate) struct PointInTime {
    /// What is still to be copied: cleared by copies, before anything changes there, and where the view is given up.
    pub(crate) todo: Arc<Granules>,
    /// What `todo` was at the point in time, but for what has been given up since.
    pub(crate) covered: Arc<Granules>,
    /// Whole once the two are filled.
    pub(crate) begun: Arc<Granules>,
    /// Whole once something was, or may have been, changed that had not been copied.
    pub(crate) broken: Arc<Granules>,
    /// What nobody needs in the target any more, and the one who frees it there.
    pub(crate) given_up: Arc<GivenUp>,
}

/// Bytes in a target that nobody needs.
pub(crate) struct GivenUp {
    ranges: Granules,
    /// Somebody is at it.
    is_freed: AtomicBool,
    /// The node of the host's own that has written them, once it runs.
    owner: OnceLock<(Weak<GraphCell>, String)>,
}

impl GivenUp {
    /// Who can discard in the target.
    pub(super) fn belongs_to(&self, cell: &Arc<GraphCell>, node: &str) {
        self.owner.get_or_init(|| (Arc::downgrade(cell), node.to_owned()));
    }

    /// Has a range freed in the target, aside: `discard` is given ranges, one after the other.
    pub(super) fn add<F: Future<Output = Result<()>> + 'static>(
        self: &Arc<Self>,
        range: Range<u64>,
        discard: impl Fn(OwnAccord, Range<u64>) -> F + 'static,
    ) {
        self.ranges.mark(range.start, range.end - range.start);
        let owner = self.owner.get().and_then(|(cell, node)| Some((cell.upgrade()?, node)));
        let Some((cell, node)) = owner else { return };
        if self.is_freed.swap(true, Ordering::SeqCst) {
            return;
        }
        let Ok(own) = OwnAccord::open(&LocalGraph::of(&cell), node) else {
            self.is_freed.store(false, Ordering::SeqCst);
            return;
        };
        let all = Arc::clone(self);
        spawn(async move {
            while let Some(range) = all.next() {
                // It is advice: what was not freed stays.
                let _ = discard(own.clone(), range).await;
            }
        });
    }

    /// The next of them; who gets none is done.
    fn next(&self) -> Option<Range<u64>> {
        loop {
            if let Some(range) = self.ranges.next_dirty(0) {
                let range = range.start..range.end.min(range.start + DISCARD_BYTES);
                self.ranges.clear_range(range.start, range.end - range.start);
                return Some(range);
            }
            self.is_freed.store(false, Ordering::SeqCst);
            // What has come just before that is nobody else's.
            let has_more = self.ranges.next_dirty(0).is_some();
            if !has_more || self.is_freed.swap(true, Ordering::SeqCst) {
                return None;
            }
        }
    }
}

/// Freed at once at most: whole granules of every size that there is.
const DISCARD_BYTES: u64 = 1 << 30;

/// Where a range of the view is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// As it was, so far.
    Source,
    /// In the target.
    Target,
    /// Nowhere: it is not covered.
    Nowhere,
}

impl PointInTime {
    /// With nothing in any of them.
    pub(crate) fn new(size_bytes: u64, granularity: Granularity) -> Result<Self, BitmapError> {
        let set = |granularity| Granules::new(size_bytes, granularity).map(Arc::new);
        let whole = Granularity::from_bytes(WHOLE_BYTES)?;
        let (todo, covered) = (set(granularity)?, set(granularity)?);
        let ranges = Granules::new(size_bytes, granularity)?;
        Ok(Self::of([todo, covered, set(whole)?, set(whole)?], ranges))
    }

    /// Of what is still to be copied, what is covered, whether it has begun, and is broken; with room for what is
    /// given up.
    pub(crate) fn of(sets: [Arc<Granules>; 4], ranges: Granules) -> Self {
        let [todo, covered, begun, broken] = sets;
        let (is_freed, owner) = (AtomicBool::new(false), OnceLock::new());
        let given_up = Arc::new(GivenUp { ranges, is_freed, owner });
        Self { todo, covered, begun, broken, given_up }
    }

    /// Nobody reads the whole granules of a range any more: what was not copied need not be. Returns them.
    pub(super) fn give_up(&self, range: &Range<u64>) -> Range<u64> {
        let granule = self.todo.granularity().bytes();
        let size_bytes = self.todo.size_bytes();
        let end = if range.end >= size_bytes { size_bytes } else { range.end / granule * granule };
        let start = range.start.div_ceil(granule).saturating_mul(granule);
        let whole = start.min(end)..end;
        // In this order: who reads looks at both, the other way round.
        self.covered.clear_range(whole.start, whole.end - whole.start);
        fence(Ordering::SeqCst);
        self.todo.clear_range(whole.start, whole.end - whole.start);
        whole
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.next_dirty(0).is_some()
    }

    /// Whether bytes of the range are still to be copied.
    #[inline]
    pub(crate) fn is_todo(&self, range: &Range<u64>) -> bool {
        self.todo.ranges(range.clone()).next().is_some()
    }

    /// Whether it relies on bytes that have not been copied.
    pub(crate) fn is_unfinished(&self) -> bool {
        let is_begun = self.begun.next_dirty(0).is_some();
        !self.is_broken() && (!is_begun || self.todo.next_dirty(0).is_some())
    }

    /// Whether the view can be read.
    ///
    /// # Errors
    /// `EBUSY` before the point in time; `EIO` when it is not kept any more.
    pub(super) fn check(&self) -> Result<()> {
        // Pairs with those who clear `todo`, or break the backup, and change what is read after that.
        fence(Ordering::SeqCst);
        if self.is_broken() {
            let message = "the backup is broken: what has been changed since was not all kept";
            return Err(Error::new(ErrorKind::Io, message));
        }
        if self.begun.next_dirty(0).is_none() {
            return Err(not_begun());
        }
        Ok(())
    }

    /// # Errors
    /// `EIO` if some of the range is not covered: nobody has those bytes.
    pub(super) fn check_covered(&self, range: &Range<u64>) -> Result<()> {
        let mut runs = self.covered.ranges(range.clone());
        if runs.next().as_ref() == Some(range) {
            return Ok(());
        }
        let message = format!(
            "bytes {} to {} are not all in the backup: it is of what a bitmap says",
            range.start, range.end
        );
        Err(Error::new(ErrorKind::Io, message))
    }

    /// Those parts of a range that are in the target by now.
    pub(super) fn copied(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        fence(Ordering::SeqCst);
        let mut copied = Vec::new();
        let mut at = range.start;
        for todo in self.todo.ranges(range.clone()).chain(once(range.end..range.end)) {
            if at < todo.start {
                copied.push(at..todo.start);
            }
            at = todo.end;
        }
        copied
    }

    /// The first run of a range, all of which is in one place.
    pub(super) fn first(&self, range: Range<u64>) -> (Range<u64>, Place) {
        let covered = self.covered.ranges(range.clone()).next();
        let Some(covered) = covered.filter(|run| run.start == range.start) else {
            let end = self.covered.next_dirty(range.start).map_or(range.end, |run| run.start);
            return (range.start..end.min(range.end), Place::Nowhere);
        };
        match self.todo.ranges(covered.clone()).next() {
            Some(todo) if todo.start == covered.start => (todo, Place::Source),
            Some(todo) => (covered.start..todo.start, Place::Target),
            None => (covered, Place::Target),
        }
    }
}

/// The error of whoever comes before the point in time.
pub(super) fn not_begun() -> Error {
    let message = "the backup has not reached its point in time: try again later";
    Error::new(ErrorKind::InUse, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene() -> PointInTime {
        let it = PointInTime::new(64 << 10, Granularity::from_bytes(4096).expect("one"));
        it.expect("sets")
    }

    #[test]
    fn it_is_read_from_its_beginning_until_it_breaks() {
        let it = scene();
        assert_eq!(it.check().expect_err("not begun").kind(), ErrorKind::InUse);
        it.begun.set_all();
        it.check().expect("begun");
        it.broken.set_all();
        assert_eq!(it.check().expect_err("broken").kind(), ErrorKind::Io);
    }

    #[test]
    fn each_byte_is_in_one_place() {
        let it = scene();
        for set in [&it.covered, &it.todo] {
            set.mark(8192, 16384);
        }
        it.todo.clear_range(12288, 4096);
        let firsts = [0, 8192, 12288, 16384, 24576].map(|at| it.first(at..65536));
        assert_eq!(
            firsts,
            [
                (0..8192, Place::Nowhere),
                (8192..12288, Place::Source),
                (12288..16384, Place::Target),
                (16384..24576, Place::Source),
                (24576..65536, Place::Nowhere),
            ]
        );
        assert_eq!(it.first(100..200), (100..200, Place::Nowhere));
        assert_eq!(it.copied(&(9000..20000)), vec![12288..16384; 1]);
        assert_eq!(it.copied(&(8192..12288)), []);
        it.check_covered(&(9000..24576)).expect("covered");
        for range in [8191..8192, 9000..24577, 0..1, 30000..30001] {
            let error = it.check_covered(&range).expect_err("not covered");
            assert_eq!(error.kind(), ErrorKind::Io);
        }
    }
}
