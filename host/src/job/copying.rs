//! What commit and mirror have in common: copying until the target shows what the source does, and keeping it
//! so. What is left the graph tracks; when it is little, the transaction at the end copies it, with nothing in
//! flight.

use std::rc::Rc;
use std::sync::Arc;

use super::context::{Doing, Failed, JobCx, Step};
use super::event::JobNews;
use super::flow::{Bounds, Piece};
use super::looked::Needs;
use super::node::JobNode;
use super::record::{State, Wish};
use super::status::JobStatus;
use super::watched::either;
use super::work::{Ending, Opening};
use crate::bitmap::Granularity;
use crate::error::Result;
use crate::graph::{OwnAccord, Tracker};
use crate::io::{turn_now, until};
use crate::limits::{COPY_MAX_BYTES, JOB_LEFT_MAX_BYTES, JOB_LOOK_PAUSE, ZERO_PROVEN_MAX_BYTES};

/// Number of the edge to what is copied.
pub(super) const SOURCE: usize = 0;
/// Number of the edge to what it is copied to.
pub(super) const TARGET: usize = 1;

/// Passes after which a little that is left is little enough.
const PASSES: usize = 3;

/// How a job copies.
pub(super) struct Copying {
    pub(super) node: Arc<JobNode>,
    /// All of it is to be copied.
    pub(super) copies_all: bool,
    pub(super) granularity: Granularity,
    /// What it has in flight at most.
    pub(super) bounds: Bounds,
    /// It ends by itself.
    pub(super) completes: bool,
    /// It never waits for being asked, nor says that it is ready.
    pub(super) is_silent: bool,
    /// What is found unallocated down to the target is not even looked at.
    pub(super) is_above_target: bool,
}

fn is_of_one_that_is_ready(wish: &mut Wish) -> bool {
    matches!(wish, Wish::Complete | Wish::Cancel)
}

impl Copying {
    /// Begins to track, and makes the context.
    ///
    /// # Errors
    /// As [`Tracker::begin`].
    pub(super) fn open(&self, opening: &Opening<'_>) -> Result<(JobCx, Arc<Tracker>)> {
        let edges = (SOURCE, TARGET);
        let tracker = Tracker::begin(opening.own, edges, self.granularity, self.copies_all)?;
        self.node.set_tracker(&tracker);
        opening.record.hold_back(self.granularity.bytes().min(COPY_MAX_BYTES as u64));
        let copied = Arc::clone(&tracker);
        let doing: Doing = Rc::new(move |own: OwnAccord, piece: Piece| {
            let tracker = Arc::clone(&copied);
            Box::pin(async move {
                let len = piece.range.end - piece.range.start;
                own.on_behalf().await?.copy_tracked(tracker, piece.range).await.map(|_| len)
            })
        });
        let cx = JobCx::new(opening.record, opening.own, doing, Failed::Known).within(&self.bounds);
        Ok((cx, tracker))
    }

    /// Copies until the job is to end.
    pub(super) async fn run(&self, cx: &JobCx, tracker: &Arc<Tracker>) -> Step<Ending> {
        let mut passes = 0_usize;
        loop {
            cx.record.set_left(tracker.left_bytes());
            self.pass(cx, tracker).await?;
            cx.finish().await?;
            passes = passes.saturating_add(1);
            let left = tracker.left_bytes();
            cx.record.set_left(left);
            // What has failed would do so at the end, too: it is tried for as long as it takes.
            let is_done = !cx.take_left_out()
                && (left == 0 || (passes >= PASSES && left <= JOB_LEFT_MAX_BYTES));
            if is_done && self.is_silent {
                return Ok(Ending::Done);
            }
            if is_done && cx.record.state.see(|state| state.status) == JobStatus::Running {
                self.settle_doubts(cx, tracker).await?;
                // What is left counts as what has come since.
                cx.record.set_all_done();
                cx.record.become_status(JobStatus::Ready);
                let (progress, speed) =
                    (cx.record.progress(), cx.record.state.see(|state| state.speed));
                cx.record.tell(JobNews::Ready { progress, speed });
                if self.completes {
                    cx.record.state.change(|state| {
                        state.wish.get_or_insert(Wish::Complete);
                    });
                }
            }
            if is_done {
                // Granted, it is none any more: what keeps the copy up to date does not wait for it.
                match cx.record.state.change(|state| state.wish.take_if(is_of_one_that_is_ready)) {
                    Some(Wish::Complete) => return Ok(Ending::Done),
                    Some(_) => return Ok(Ending::Stopped),
                    None => {}
                }
            }
            if left == 0 {
                // What guests' writes have copied themselves was never done by a piece.
                cx.record.set_all_done();
                rest(cx).await;
            }
            cx.point().await?;
        }
    }

    /// Copies what comes, until it is dropped.
    pub(super) async fn keep_up(&self, cx: &JobCx, tracker: &Arc<Tracker>) -> Step<()> {
        loop {
            self.pass(cx, tracker).await?;
            cx.finish().await?;
            let left = tracker.left_bytes();
            cx.record.set_left(left);
            if left == 0 {
                cx.record.set_all_done();
            }
            rest(cx).await;
        }
    }

    /// Goes once over all that is left.
    async fn pass(&self, cx: &JobCx, tracker: &Arc<Tracker>) -> Step<()> {
        let above = self.is_above_target.then_some(TARGET);
        let needs = Needs::new(above, self.granularity.bytes());
        let mut at = 0;
        loop {
            cx.point().await?;
            let run = tracker.ranges(at..u64::MAX).next();
            let Some(run) = run else { return Ok(()) };
            let (part, needs_data) = needs.first(cx, run).await?;
            at = part.end;
            let most = if needs_data { COPY_MAX_BYTES as u64 } else { ZERO_PROVEN_MAX_BYTES };
            cx.launch_all(Piece { range: part, is_zero: !needs_data }, most).await?;
        }
    }

    /// Where it was told what need not be copied, the host looks at what block status says of it: what it finds
    /// the same proves that bitmaps stay as they are.
    async fn settle_doubts(&self, cx: &JobCx, tracker: &Arc<Tracker>) -> Step<()> {
        if self.copies_all {
            return Ok(());
        }
        let mut at = 0;
        loop {
            cx.point().await?;
            let run = tracker.doubts(at..u64::MAX).next();
            let Some(run) = run else { return Ok(()) };
            let part = run.start..run.end.min(run.start.saturating_add(ZERO_PROVEN_MAX_BYTES));
            at = part.end;
            cx.ask(async |ground| {
                ground.check_tracked(Arc::clone(tracker), part.clone(), false).await
            })
            .await?;
        }
    }
}

/// Waits a while, or until something is asked for or known.
pub(super) async fn rest(cx: &JobCx) {
    let is_asked = |state: &State| state.wish.is_some() || state.stands_still();
    let asked = cx.record.state.when(|state| is_asked(state).then_some(()));
    until(turn_now() + JOB_LOOK_PAUSE, either(asked, cx.broken())).await;
}
