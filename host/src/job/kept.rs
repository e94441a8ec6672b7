//! How a backup keeps what is about to be overwritten.
//!
//! What is still to be copied is a set of granules. The node that stands for the job is a filter above what is
//! copied, and nobody changes that past it; so from the instant at which it comes into the graph, the old bytes of
//! each granule are copied before its first change, or by the job itself, under the guard of the granule: once, by
//! whoever comes first.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::context::Breaks;
use super::copying::{SOURCE, TARGET};
use super::spec::OnCbwError;
use super::watched::Watched;
use crate::bitmap::{Bitmap, Granularity, Granules};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::PointInTime;
use crate::graph::{BitmapRef, Cx, Mutation, OnBehalf, mutated};
use crate::io::{turn_now, until};
use crate::limits::JOB_RETRIES_MAX;
use crate::node::{NodeInfo, WriteFlags};

/// See the module.
pub(super) struct Kept {
    sets: PointInTime,
    /// The bitmap that says what is copied, if one does, and in whole ones of how many bytes.
    says: Option<(BitmapRef, u64)>,
    is_narrow: OnceLock<()>,
    /// What becomes of a write whose copy fails, and how long it may take.
    on_error: (OnCbwError, Option<Duration>),
    /// How the target is written.
    flags: WriteFlags,
    /// Bytes copied that the job has not counted yet.
    uncounted_bytes: AtomicU64,
    /// Why it is broken.
    why: Breaks,
}

impl Kept {
    /// # Errors
    /// As [`Granules::new`].
    pub(super) fn new(
        size_bytes: u64,
        granularity: Granularity,
        says: Option<(BitmapRef, u64)>,
        on_error: (OnCbwError, Option<Duration>),
        flags: WriteFlags,
    ) -> Result<Self> {
        let sets = PointInTime::new(size_bytes, granularity)?;
        let (uncounted_bytes, why) = (AtomicU64::new(0), Arc::new(Watched::new(None)));
        let is_narrow = OnceLock::new();
        Ok(Self { sets, says, is_narrow, on_error, flags, uncounted_bytes, why })
    }

    /// The node is about to come into the graph: everything is to be copied, until it is said what is not.
    ///
    /// # Errors
    /// `EBUSY` when sizes have changed since the job was planned.
    pub(super) fn start(&self, name: &str, info: &NodeInfo, children: &[NodeInfo]) -> Result<()> {
        let target = children.get(TARGET).map_or(0, |target| target.size_bytes);
        if info.size_bytes != self.todo().size_bytes() || target < info.size_bytes {
            let message = "the source or the target of the backup has changed its size: try again";
            return Err(Error::new(ErrorKind::Busy, message).at_node(name));
        }
        self.todo().set_all();
        Ok(())
    }

    /// What is still to be copied.
    pub(super) fn todo(&self) -> &Arc<Granules> {
        &self.sets.todo
    }

    /// What is in the backup at all, once that is known.
    pub(super) fn covered(&self) -> &Arc<Granules> {
        &self.sets.covered
    }

    pub(super) fn granule(&self) -> u64 {
        self.todo().granularity().bytes()
    }

    /// The bitmap stands still by now, and is that which `find` finds: leaves out what it does not say, if it says
    /// what is copied. Whoever comes first does so; all is kept as long as it is not found.
    pub(super) fn narrow(&self, find: impl FnOnce(&BitmapRef) -> Option<Arc<Bitmap>>) {
        let Some((bitmap, unit)) = self.says.as_ref().filter(|_| self.is_narrow.get().is_none())
        else {
            return;
        };
        let Some(still) = find(bitmap).and_then(|bitmap| bitmap.read().still()) else { return };
        self.is_narrow.get_or_init(|| {
            for run in still.ranges(0..u64::MAX) {
                let start = run.start / unit * unit;
                let end = run.end.div_ceil(*unit).saturating_mul(*unit);
                self.covered().mark(start, end - start);
            }
            self.leave_out_all_but_covered();
        });
    }

    /// Nothing else is to be copied.
    pub(super) fn leave_out_all_but_covered(&self) {
        let (covered, todo) = (self.covered(), self.todo());
        let mut at = 0;
        for run in covered.ranges(0..u64::MAX) {
            todo.clear_range(at, run.start - at);
            at = run.end;
        }
        todo.clear_range(at, u64::MAX - at);
    }

    /// It is known what is in the backup: all that is still to be copied, and has been so far.
    pub(super) fn begin(&self) {
        self.sets.begun.set_all();
    }

    pub(super) fn has_begun(&self) -> bool {
        self.sets.begun.next_dirty(0).is_some()
    }

    /// Bytes that have been copied since this was asked last.
    pub(super) fn take_uncounted(&self) -> u64 {
        self.uncounted_bytes.swap(0, Ordering::Relaxed)
    }

    /// Whether it relies on bytes that have not been copied.
    pub(super) fn is_unfinished(&self) -> bool {
        self.sets.is_unfinished()
    }

    /// Nothing is kept any more.
    pub(super) fn break_off(&self, why: Error) {
        self.why.change(|known| _ = known.get_or_insert(why));
        self.sets.broken.set_all();
    }

    /// Why it is broken, once it is.
    pub(super) fn breaks(&self) -> &Breaks {
        &self.why
    }

    /// # Errors
    /// Why it is broken, if it is.
    pub(super) fn check(&self) -> Result<()> {
        if !self.sets.is_broken() {
            return Ok(());
        }
        let why = self.why.see(Clone::clone);
        Err(why.unwrap_or_else(|| Error::new(ErrorKind::Io, "the backup is broken")))
    }

    /// The granules that hold a range.
    fn granules_of(&self, range: &Range<u64>) -> Range<u64> {
        let granule = self.granule();
        let end = range.end.div_ceil(granule).saturating_mul(granule);
        range.start / granule * granule..end.min(self.todo().size_bytes())
    }

    /// Copies what is still to be copied of the granules that a change is going to touch.
    ///
    /// # Errors
    /// Those of the copy, if the change is to fail then.
    pub(super) async fn before(&self, cx: Cx<'_>, range: Range<u64>) -> Result<()> {
        self.narrow(|bitmap| cx.find_bitmap(bitmap));
        let range = self.granules_of(&range);
        if mutated(Mutation::BackupsKeepNothing) {
            return Ok(());
        }
        if cx.is_unchanged() || !self.sets.is_todo(&range) || self.sets.is_broken() {
            return Ok(());
        }
        let copy = self.copy_before(&cx, range);
        let copied = match self.on_error.1 {
            None => copy.await,
            Some(timeout) => {
                let late = "a copy before a write took too long";
                let late = || Err(Error::new(ErrorKind::TimedOut, late).of_write());
                until(turn_now() + timeout, copy).await.unwrap_or_else(late)
            }
        };
        match (copied, self.on_error.0) {
            (Err(error), OnCbwError::BreakSnapshot) => {
                let why = format!("a copy before a write failed, and the write went on: {error}");
                let why = Error::new(error.kind(), why);
                self.break_off(if error.is_of_write() { why.of_write() } else { why });
                Ok(())
            }
            (copied, _) => copied,
        }
    }

    /// What somebody else's failure has made stale under way is read again.
    async fn copy_before(&self, cx: &Cx<'_>, range: Range<u64>) -> Result<()> {
        let mut tries = JOB_RETRIES_MAX;
        loop {
            tries -= 1;
            match self.copy(cx.on_behalf(), range.clone()).await {
                Err(error) if error.kind() == ErrorKind::Stale && tries > 0 => {}
                copied => return copied,
            }
        }
    }

    /// Copies those of a range of whole granules that are still to be copied: then none is left in it.
    ///
    /// # Errors
    /// As [`OnBehalf::copy_out`].
    pub(super) async fn copy(&self, ground: OnBehalf, range: Range<u64>) -> Result<()> {
        let todo = Arc::clone(self.todo());
        let copied = ground.copy_out((SOURCE, TARGET), range.clone(), todo, self.flags).await?;
        self.uncounted_bytes.fetch_add(copied, Ordering::Relaxed);
        if self.sets.is_todo(&range) && !self.sets.is_broken() {
            let message = format!(
                "bytes {} to {} are still to be copied: the disk or the target ends before them",
                range.start, range.end
            );
            return Err(Error::new(ErrorKind::Stale, message));
        }
        Ok(())
    }
}
