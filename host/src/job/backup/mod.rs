//! `backup`: copies to another node what a node shows at the instant at which the job comes into the graph.
//!
//! What is written meanwhile is copied before that (`kept.rs`), the rest by the job. A bitmap can say what is
//! copied, or be told: it stands still from that same instant on, while another set records, and what becomes of
//! both at the end is decided by its *mode* and by whether the job has ended well. Nothing that has not been
//! copied, durably, is ever called clean.

mod plan;

use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::context::{Doing, Failed, JobCx, JobFuture, Step};
use super::copying::{SOURCE, TARGET, rest};
use super::flow::{Bounds, Piece};
use super::kept::Kept;
use super::looked::Needs;
use super::spec::{BackupSync, BitmapMode};
use super::work::{Actions, Ending, Opening, Work, proven};
use crate::bitmap::{BitmapState, BitmapUse, Granules};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{BitmapAction, BitmapRef, Graph, Mutation, OwnAccord, mutated};
use crate::io::{turn_now, until};
use crate::limits::{COPY_MAX_BYTES, JOB_SETTLE_TIME, ZERO_PROVEN_MAX_BYTES};

pub(crate) use plan::mode_of;
pub(super) use plan::plan;
use plan::{check_size, is_said, use_of};

/// Number of the edge below which nothing is copied, if there is one.
const BELOW: usize = 2;

struct Backup {
    sync: BackupSync,
    /// With [`BackupSync::Top`]: there is something below.
    has_below: bool,
    size_bytes: u64,
    kept: Arc<Kept>,
    bitmap: Option<Chosen>,
    bounds: Bounds,
    discards: bool,
}

/// A bitmap, and what becomes of it.
struct Chosen {
    /// It may come with the job: what it is, is known once that is there.
    bitmap: BitmapRef,
    mode: BitmapMode,
    /// From then on, until the job has ended.
    held: Mutex<Option<Arc<BitmapUse>>>,
    /// What counts as not copied, if the job has not ended well.
    left: OnceLock<Arc<Granules>>,
}

impl Chosen {
    /// The bitmap is the job's from now on: it has been frozen when that came into the graph.
    fn hold(&self, opening: &Opening<'_>, size_bytes: u64) -> Result<()> {
        let found = self.bitmap.find(&opening.record.graph()).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no {} any more", self.bitmap))
        })?;
        check_size(&found, size_bytes)?;
        let user = format!("job `{}`", opening.record.id);
        let held = Arc::new(found.use_by(user, use_of(self.mode))?);
        if held.state() != BitmapState::Frozen {
            let message = format!("{} does not stand still any more", self.bitmap);
            return Err(Error::new(ErrorKind::InUse, message));
        }
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
        Ok(())
    }

    fn held(&self) -> Option<Arc<BitmapUse>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Backup {
    /// Leaves out what only lies below the topmost overlay.
    async fn leave_out_below(&self, cx: &JobCx) -> Step<()> {
        let above = self.has_below.then_some(BELOW);
        let own = |own: Range<u64>| self.kept.covered().mark(own.start, own.end - own.start);
        cx.look_for_own(self.size_bytes, above, own).await?;
        self.kept.leave_out_all_but_covered();
        Ok(())
    }

    async fn work(&self, cx: &JobCx) -> Step<Ending> {
        if self.sync == BackupSync::Top {
            self.leave_out_below(cx).await?;
        }
        self.kept.begin();
        let _ = self.kept.take_uncounted();
        cx.record.set_left(self.kept.todo().dirty_bytes());
        if self.sync == BackupSync::None {
            return self.keep(cx).await;
        }
        while self.kept.todo().next_dirty(0).is_some() {
            self.pass(cx).await?;
            cx.finish().await?;
        }
        cx.record.add_done(self.kept.take_uncounted());
        cx.ask(async |ground| ground.flush(TARGET).await.map_err(Error::of_write)).await?;
        self.kept.check()?;
        Ok(Ending::Done)
    }

    /// Waits until it is cancelled, or what it keeps is worth nothing.
    async fn keep(&self, cx: &JobCx) -> Step<Ending> {
        loop {
            cx.point().await?;
            cx.record.add_done(self.kept.take_uncounted());
            rest(cx).await;
        }
    }

    /// Goes once over all that is left.
    async fn pass(&self, cx: &JobCx) -> Step<()> {
        let needs = Needs::new(None, self.kept.granule());
        let mut at = 0;
        loop {
            cx.point().await?;
            let Some(run) = self.kept.todo().ranges(at..u64::MAX).next() else { return Ok(()) };
            let (part, needs_data) = needs.first(cx, run).await?;
            at = part.end;
            let granule = self.kept.granule();
            let most =
                if needs_data { granule.max(COPY_MAX_BYTES as u64) } else { ZERO_PROVEN_MAX_BYTES };
            cx.launch_all(Piece { range: part, is_zero: !needs_data }, most).await?;
        }
    }

    /// The job ends, and has not copied all.
    async fn give_up(&self, cx: &JobCx) {
        if let Some(bitmap) = self.bitmap.as_ref().filter(|it| it.mode == BitmapMode::Always)
            && self.kept.has_begun()
        {
            let settled = until(turn_now() + JOB_SETTLE_TIME, async {
                cx.idle().await;
                let left = self.kept.todo().copy()?;
                cx.on_behalf().await?.flush(TARGET).await?;
                Ok::<_, Error>(left)
            });
            let left = match settled.await {
                Some(Ok(left)) => Arc::new(left),
                // What is not durable is not there.
                Some(Err(_)) | None => self.all(),
            };
            bitmap.left.get_or_init(|| left);
        }
        let message = "the backup has ended before it was complete";
        self.kept.break_off(Error::new(ErrorKind::Io, message));
    }

    /// All that was to be copied, as far as that is known.
    fn all(&self) -> Arc<Granules> {
        let all = Arc::clone(self.kept.covered());
        let is_known = is_said(self.sync) || self.sync == BackupSync::Top;
        if !is_known || !self.kept.has_begun() {
            all.set_all();
        }
        all
    }
}

async fn copy(own: OwnAccord, kept: Arc<Kept>, range: Range<u64>, discards: bool) -> Result<u64> {
    // That it is broken the job sees by itself.
    if kept.check().is_ok() {
        kept.copy(own.on_behalf().await?, range.clone()).await?;
        if discards {
            // Nobody else writes there: what is gone is what was copied. It is advice, and the copy is there.
            let discarded = own.on_behalf().await?.discard_changed(SOURCE, range).await;
            if let Err(error) = discarded {
                tracing::warn!("what has been backed up is not discarded where it was: {error}");
            }
        }
    }
    Ok(kept.take_uncounted())
}

impl Work for Backup {
    fn open(&self, opening: Opening<'_>) -> Result<JobCx> {
        if let Some(bitmap) = &self.bitmap {
            bitmap.hold(&opening, self.size_bytes)?;
        }
        let held = self.bitmap.as_ref().and_then(Chosen::held);
        self.kept.narrow(|_| held.map(|held| Arc::clone(held.bitmap())));
        let (kept, discards) = (Arc::clone(&self.kept), self.discards);
        let doing: Doing = Rc::new(move |own: OwnAccord, piece: Piece| {
            Box::pin(copy(own, Arc::clone(&kept), piece.range, discards))
        });
        let cx = JobCx::new(opening.record, opening.own, doing, Failed::Known);
        Ok(cx.within(&self.bounds).breaking(self.kept.breaks()))
    }

    fn run<'a>(&'a self, cx: &'a JobCx) -> JobFuture<'a, Step<Ending>> {
        Box::pin(async move {
            let worked = self.work(cx).await;
            if worked.is_err() {
                self.give_up(cx).await;
            }
            worked
        })
    }

    fn held(&self) -> Option<Arc<BitmapUse>> {
        self.bitmap.as_ref().and_then(Chosen::held)
    }

    fn ended(&self) {
        if let Some(bitmap) = &self.bitmap {
            bitmap.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    fn end(&self, _graph: &Graph, how: Ending) -> Result<Actions> {
        let Some(bitmap) = &self.bitmap else { return Ok(Actions::new()) };
        let end = match (bitmap.mode, how) {
            (BitmapMode::Never, _) => BitmapAction::MergeBack,
            (_, Ending::Done) => BitmapAction::Abdicate,
            _ if mutated(Mutation::FailedBackupsCountAsDone) => BitmapAction::Abdicate,
            (BitmapMode::Always, _) if self.kept.has_begun() => {
                let left = bitmap.left.get().unwrap_or_else(|| self.kept.todo());
                BitmapAction::Leave(Arc::clone(left))
            }
            // What it was to copy beside what is dirty is not known: a copy is complete with all of it alone.
            (BitmapMode::Always, _) if !is_said(self.sync) => BitmapAction::Leave(self.all()),
            (BitmapMode::OnSuccess | BitmapMode::Always, _) => BitmapAction::MergeBack,
        };
        let of = bitmap.held().map_or_else(|| bitmap.bitmap.clone(), |held| (&held).into());
        Ok(proven(vec![end.of(of)]))
    }
}
