//! What block status said of the ranges that come next: asked once for many of them.
//!
//! It is as old as that answer. Whoever copies looks again, under the guard of what it copies.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;

use super::context::{JobCx, Step};
use super::copying::SOURCE;
use crate::error::Result;
use crate::graph::OnBehalf;
use crate::limits::EXTENTS_MAX;
use crate::node::{Extent, ExtentKind};

/// Extents that were seen, in order; what has been gone past is forgotten.
#[derive(Default)]
pub(super) struct Looked(RefCell<VecDeque<Extent>>);

impl Looked {
    /// The kind of the start of `run`, and the end of what is alike from there on, within it. If nothing is known
    /// there, `ask` says what there is in a range, as [`OnBehalf::block_status`] does; nothing, if that is nothing.
    ///
    /// # Errors
    /// As [`JobCx::point`].
    pub(super) async fn first<K: PartialEq>(
        &self,
        cx: &JobCx,
        run: &Range<u64>,
        alike: impl Fn(ExtentKind) -> K,
        ask: impl AsyncFn(OnBehalf, Range<u64>) -> Result<Vec<Extent>>,
    ) -> Step<Option<(K, u64)>> {
        if let Some(known) = self.known(run, &alike) {
            return Ok(Some(known));
        }
        let found = cx.ask(async |ground| ask(ground, run.clone()).await).await?;
        *self.0.borrow_mut() = found.into();
        Ok(self.known(run, alike))
    }

    fn known<K: PartialEq>(
        &self,
        run: &Range<u64>,
        alike: impl Fn(ExtentKind) -> K,
    ) -> Option<(K, u64)> {
        let end = |extent: &Extent| extent.offset.saturating_add(extent.len);
        let mut extents = self.0.borrow_mut();
        while extents.front().is_some_and(|extent| end(extent) <= run.start) {
            extents.pop_front();
        }
        let first = extents.front().filter(|first| first.offset <= run.start)?;
        let kind = alike(first.kind);
        let same = extents.iter().take_while(|extent| alike(extent.kind) == kind);
        let end = same.last().map_or(run.start, end);
        (end > run.start).then_some((kind, end.min(run.end)))
    }
}

/// What of the source of a job needs its bytes to be read, and what not; what is below the child `above` does not
/// count.
pub(super) struct Needs {
    looked: Looked,
    above: Option<usize>,
    granule: u64,
}

impl Needs {
    /// In whole granules of so many bytes.
    pub(super) fn new(above: Option<usize>, granule: u64) -> Self {
        Self { looked: Looked::default(), above, granule }
    }

    /// The first part of a run that is alike, and whether its bytes have to be read.
    ///
    /// # Errors
    /// As [`JobCx::point`].
    pub(super) async fn first(&self, cx: &JobCx, run: Range<u64>) -> Step<(Range<u64>, bool)> {
        let is_data = |kind| matches!(kind, ExtentKind::Data | ExtentKind::Unreadable);
        let ask = async |ground: OnBehalf, range: Range<u64>| {
            ground.block_status_shown(SOURCE, self.above, range, EXTENTS_MAX).await
        };
        let found = self.looked.first(cx, &run, is_data, ask).await?;
        let Some((needs_data, end)) = found else { return Ok((run, true)) };
        let granule = self.granule;
        let up = |end: u64| end.div_ceil(granule).saturating_mul(granule);
        let whole = end / granule * granule;
        // A part of a granule is copied with it: its data, too, if it has some.
        let (end, needs_data) = match needs_data {
            true => (up(end), true),
            false if end == run.end => (end, false),
            false if whole > run.start => (whole, false),
            false => (up(run.start.saturating_add(1)), true),
        };
        Ok((run.start..end.min(run.end).max(run.start + 1), needs_data))
    }
}

impl JobCx {
    /// Goes once over `size_bytes`: `ask` says what there is in a range, as [`OnBehalf::block_status`] does.
    ///
    /// # Errors
    /// As [`JobCx::point`].
    pub(super) async fn look_through(
        &self,
        size_bytes: u64,
        ask: impl AsyncFn(OnBehalf, Range<u64>) -> Result<Vec<Extent>>,
        mut see: impl FnMut(&Extent),
    ) -> Step<()> {
        let mut at = 0;
        while at < size_bytes {
            self.point().await?;
            let found = self.ask(async |ground| ask(ground, at..size_bytes).await).await?;
            let Some(last) = found.last() else { break };
            at = last.offset.saturating_add(last.len);
            found.iter().for_each(&mut see);
        }
        Ok(())
    }

    /// Where its source shows what does not only lie below the child `above`: `own` is told of each such range.
    ///
    /// # Errors
    /// As [`JobCx::point`].
    pub(super) async fn look_for_own(
        &self,
        size_bytes: u64,
        above: Option<usize>,
        mut own: impl FnMut(Range<u64>),
    ) -> Step<()> {
        let ask = async |ground: OnBehalf, range: Range<u64>| {
            ground.block_status_shown(SOURCE, above, range, EXTENTS_MAX).await
        };
        let see = |extent: &Extent| {
            if extent.kind != ExtentKind::Unallocated {
                own(extent.offset..extent.offset.saturating_add(extent.len));
            }
        };
        self.look_through(size_bytes, ask, see).await
    }
}
