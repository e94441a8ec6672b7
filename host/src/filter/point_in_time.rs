//! What a backup and the view of its point in time share: which bytes are where.

use std::iter::once;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::bitmap::{BitmapError, Granularity, Granules};
use crate::error::{Error, ErrorKind, Result};

/// Granules of sets that are whole or empty.
const WHOLE_BYTES: u64 = 1 << 30;

/// The sets of a node that copies before writes. Those of a plugin's node are bitmaps of its own, by the same
/// names: what they say is in `wit/filter.wit`, at `views`.
#[derive(Clone)]
pub(crate) struct PointInTime {
    /// What is still to be copied: cleared by copies alone, before anything changes there.
    pub(crate) todo: Arc<Granules>,
    /// What `todo` was at the point in time.
    pub(crate) covered: Arc<Granules>,
    /// Whole once the two are filled.
    pub(crate) begun: Arc<Granules>,
    /// Whole once something was, or may have been, changed that had not been copied.
    pub(crate) broken: Arc<Granules>,
}

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
        Ok(Self { todo, covered, begun: set(whole)?, broken: set(whole)? })
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
    /// `EINVAL` if some of the range is not covered.
    pub(super) fn check_covered(&self, range: &Range<u64>) -> Result<()> {
        let mut runs = self.covered.ranges(range.clone());
        if runs.next().as_ref() == Some(range) {
            return Ok(());
        }
        let message = format!(
            "bytes {} to {} are not all in the backup: it is of what a bitmap says",
            range.start, range.end
        );
        Err(Error::new(ErrorKind::Invalid, message))
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
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
    }
}
