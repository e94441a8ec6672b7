//! What a job works with: the node that stands for it, the pieces in flight, and the points at which it stands
//! still, fails or is cancelled.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::event::{ErrorAction, JobNews};
use super::flow::{Bounds, Flow, Piece};
use super::pace::Pace;
use super::record::{IoStatus, Record, State, Wish};
use super::status::JobStatus;
use super::watched::{Watched, either};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{OnBehalf, OwnAccord};
use crate::io::{sleep_until, spawn, turn_now, until};
use crate::limits::{JOB_RETRIES_MAX, JOB_RETRY_PAUSE, JOB_RETRY_PAUSE_MAX};

/// Why a job does not go on.
#[derive(Debug)]
pub(super) enum Halt {
    Cancelled,
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

pub(super) type Step<T> = Result<T, Halt>;

/// A future of a job's worker.
pub(super) type JobFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// How a piece is done; gives how many bytes of what there is to do have been done since the last one. Whatever
/// becomes of the future, what it has begun runs to its end.
pub(super) type Doing = Rc<dyn Fn(OwnAccord, Piece) -> JobFuture<'static, Result<u64>>>;

/// Why a job cannot end well any more, once that is known.
pub(super) type Breaks = Arc<Watched<Option<Error>>>;

/// What is done with pieces that have failed once the job goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Failed {
    /// They are tried again.
    Again,
    /// The job itself knows that they are not done.
    Known,
}

/// See the module.
pub(super) struct JobCx {
    pub(super) record: Arc<Record>,
    pub(super) own: OwnAccord,
    flow: Rc<Flow>,
    /// Bytes of a piece at most.
    piece_bytes: u64,
    doing: Doing,
    failed: Failed,
    again: RefCell<VecDeque<Piece>>,
    /// The first error that was ignored.
    ignored: RefCell<Option<Error>>,
    /// Something has been left out since that was asked last.
    has_left_out: Cell<bool>,
    /// In a row, without a piece that was done.
    retries: Rc<Cell<usize>>,
    pace: Pace,
    breaks: Option<Breaks>,
    /// That it cannot end well has been told.
    is_broken: Cell<bool>,
}

/// How long a job waits that has met so many errors in a row and goes on.
fn retry_pause(errors: usize) -> Duration {
    let times = u32::try_from(errors).ok().and_then(|errors| 1_u32.checked_shl(errors));
    times.map_or(JOB_RETRY_PAUSE_MAX, |times| {
        JOB_RETRY_PAUSE.saturating_mul(times).min(JOB_RETRY_PAUSE_MAX)
    })
}

impl JobCx {
    pub(super) fn new(record: &Arc<Record>, own: &OwnAccord, doing: Doing, failed: Failed) -> Self {
        Self {
            record: Arc::clone(record),
            own: own.clone(),
            flow: Rc::default(),
            piece_bytes: u64::MAX,
            doing,
            failed,
            again: RefCell::default(),
            ignored: RefCell::default(),
            has_left_out: Cell::default(),
            retries: Rc::default(),
            pace: Pace::default(),
            breaks: None,
            is_broken: Cell::new(false),
        }
    }

    /// One of which it may come to be known, whatever it waits for, that it cannot end well.
    pub(super) fn breaking(self, breaks: &Breaks) -> Self {
        Self { breaks: Some(Arc::clone(breaks)), ..self }
    }

    /// With less in flight than it may have.
    pub(super) fn within(self, bounds: &Bounds) -> Self {
        let piece_bytes = bounds.piece_bytes.unwrap_or(u64::MAX).max(1);
        Self { flow: Rc::new(Flow::within(bounds)), piece_bytes, ..self }
    }

    /// One thing that the job's node does, once its gate is open.
    ///
    /// # Errors
    /// As [`OwnAccord::on_behalf`].
    pub(super) async fn on_behalf(&self) -> Result<OnBehalf> {
        self.own.on_behalf().await
    }

    /// Asks something until it is answered or the job fails because it is not.
    ///
    /// # Errors
    /// As [`Self::point`].
    pub(super) async fn ask<T>(&self, question: impl AsyncFn(OnBehalf) -> Result<T>) -> Step<T> {
        loop {
            // It is not given up: what a driver does for it would have no end.
            let answer = match self.on_behalf().await {
                Ok(ground) => question(ground).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(answer) => return Ok(answer),
                // Nobody can do without an answer: whoever would go on asks again.
                Err(error) => self.met(None, error).await?,
            }
            self.point().await?;
        }
    }

    /// Begins a piece, as soon as there is room and the speed allows.
    ///
    /// # Errors
    /// As [`Self::point`].
    pub(super) async fn launch(&self, piece: Piece) -> Step<()> {
        loop {
            self.point().await?;
            let again = self.again.borrow_mut().pop_front();
            if let Some(again) = again {
                self.launch_now(again).await?;
                continue;
            }
            return self.launch_now(piece).await;
        }
    }

    /// Begins the pieces of a range that is alike, each of `most` bytes at most: whole clusters, as far as that goes.
    ///
    /// # Errors
    /// As [`Self::point`].
    pub(super) async fn launch_all(&self, of: Piece, most: u64) -> Step<()> {
        let Piece { range, is_zero } = of;
        let most = if is_zero { most } else { most.min(self.piece_bytes) };
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at / most + 1) * most);
            self.launch(Piece { range: at..end, is_zero }).await?;
            at = end;
        }
        Ok(())
    }

    /// Waits until all pieces are done, those that have failed among them, and paid for.
    ///
    /// # Errors
    /// As [`Self::point`].
    pub(super) async fn finish(&self) -> Step<()> {
        loop {
            either(self.flow.idle(), self.interrupted()).await;
            self.point().await?;
            let again = self.again.borrow_mut().pop_front();
            match again {
                Some(piece) => self.launch_now(piece).await?,
                None => return self.pay_off().await,
            }
        }
    }

    /// Waits until no piece is in flight, whatever has been asked for.
    pub(super) async fn idle(&self) {
        self.flow.idle().await;
    }

    /// The first error that the job went on after.
    pub(super) fn ignored(&self) -> Option<Error> {
        self.ignored.borrow().clone()
    }

    /// Whether a piece has failed, and been left out for now, since this was asked last.
    pub(super) fn take_left_out(&self) -> bool {
        self.has_left_out.take()
    }

    async fn launch_now(&self, piece: Piece) -> Step<()> {
        loop {
            match piece.is_zero {
                true => self.point().await?,
                false => self.pay_off().await?,
            }
            if self.flow.has_room(&piece) {
                break;
            }
            either(self.flow.room(&piece), self.interrupted()).await;
        }
        if !piece.is_zero {
            let speed = self.record.state.see(|state| state.speed);
            self.pace.owe(piece.range.end - piece.range.start, speed, turn_now());
        }
        self.flow.begin(&piece);
        let (flow, record) = (Rc::clone(&self.flow), Arc::clone(&self.record));
        let (doing, retries) =
            ((self.doing)(self.own.clone(), piece.clone()), Rc::clone(&self.retries));
        spawn(async move {
            let done = doing.await;
            if let Ok(bytes) = &done {
                retries.set(0);
                record.add_done(*bytes);
            }
            flow.end(piece, done.err());
        });
        Ok(())
    }

    /// Waits for something that cannot wait for a piece to end.
    async fn interrupted(&self) {
        let is_asked = |state: &State| state.wish == Some(Wish::Abort);
        let asked = self.record.state.when(|state| is_asked(state).then_some(()));
        either(asked, self.broken()).await;
    }

    /// Waits until it is known that it cannot end well.
    pub(super) async fn broken(&self) {
        match &self.breaks {
            Some(breaks) => breaks.when(|why| why.is_some().then_some(())).await,
            None => std::future::pending().await,
        }
    }

    /// Why it cannot end well.
    fn why_broken(&self) -> Option<Error> {
        self.breaks.as_ref().and_then(|breaks| breaks.see(Clone::clone))
    }

    /// Waits until what it has begun is paid for. Who asks one that is ready to end does not wait for that.
    ///
    /// # Errors
    /// As [`Self::point`].
    async fn pay_off(&self) -> Step<()> {
        loop {
            self.point().await?;
            let (speed, is_asked) =
                self.record.state.see(|state| (state.speed, state.wish.is_some()));
            if is_asked {
                self.pace.forgive();
            }
            let Some(due) = self.pace.due(speed, turn_now()) else { return Ok(()) };
            let is_other = |state: &State| {
                state.speed != speed || state.wish.is_some() || state.stands_still()
            };
            let asked = self.record.state.when(|state| is_other(state).then_some(()));
            until(due, either(asked, either(self.broken(), self.flow.failing()))).await;
        }
    }

    /// Where the job can stand still: between two pieces. What has failed is settled; nothing is in flight
    /// while it stands still.
    ///
    /// # Errors
    /// [`Halt`]: it has been cancelled, or fails; also if it is known that it cannot end well.
    pub(super) async fn point(&self) -> Step<()> {
        loop {
            let failed = self.flow.take_failed();
            if let Some((piece, error)) = failed {
                self.met(Some(piece), error).await?;
                continue;
            }
            let (is_cancelled, stands_still) =
                self.record.state.see(|state| (state.is_cancelled(), state.stands_still()));
            if is_cancelled {
                return Err(Halt::Cancelled);
            }
            if !stands_still {
                return self.why_broken().map_or(Ok(()), |why| Err(Halt::Failed(why)));
            }
            self.stand_still().await;
        }
    }

    async fn stand_still(&self) {
        either(self.flow.idle(), self.tell_broken()).await;
        let (still, then) = match self.record.state.see(|state| state.status) {
            JobStatus::Ready => (JobStatus::Standby, JobStatus::Ready),
            _ => (JobStatus::Paused, JobStatus::Running),
        };
        self.record.become_status(still);
        // One that is to complete does so once it goes on.
        let ends = |state: &State| matches!(state.wish, Some(Wish::Cancel | Wish::Abort));
        let goes_on = |state: &State| !state.stands_still() || ends(state);
        let goes_on = self.record.state.when(|state| goes_on(state).then_some(()));
        either(goes_on, self.tell_broken()).await;
        self.record.become_status(then);
        if self.record.state.see(ends) {
            // It is not to stand still again before that is seen to.
            self.record
                .state
                .change(|state| (state.is_paused, state.io_status) = (false, IoStatus::Ok));
        }
    }

    /// Tells that it cannot end well, once that is known: it ends when it goes on. Never returns.
    async fn tell_broken(&self) {
        self.broken().await;
        if let Some(error) = self.why_broken().filter(|_| !self.is_broken.replace(true)) {
            self.record.state.change(|state| state.io_status = IoStatus::of(&error));
            self.tell_error(&error, ErrorAction::Report);
        }
        std::future::pending::<()>().await;
    }

    fn tell_error(&self, error: &Error, action: ErrorAction) {
        let is_no_space = error.kind() == ErrorKind::NoSpace;
        let (is_of_write, why) = (error.is_of_write(), error.to_string());
        self.record.tell(JobNews::Error { action, is_no_space, is_of_write, why });
    }

    /// Settles an error.
    async fn met(&self, piece: Option<Piece>, error: Error) -> Step<()> {
        let retries = self.retries.get();
        let passes = matches!(error.kind(), ErrorKind::Stale | ErrorKind::Busy);
        if passes && retries < JOB_RETRIES_MAX {
            self.retries.set(retries + 1);
            self.again.borrow_mut().extend(piece.filter(|_| self.failed == Failed::Again));
            sleep_until(turn_now() + JOB_RETRY_PAUSE).await;
            return Ok(());
        }
        let is_no_space = error.kind() == ErrorKind::NoSpace;
        let mut action = self.record.on_error(&error).action(is_no_space);
        let has_been_tried = self.failed == Failed::Again && retries >= JOB_RETRIES_MAX;
        if action == ErrorAction::Ignore && (piece.is_none() || has_been_tried) {
            // There is no answer without which it could go on, or what it would leave out.
            action = ErrorAction::Report;
        }
        self.tell_error(&error, action);
        match action {
            ErrorAction::Report => return Err(Halt::Failed(error)),
            ErrorAction::Ignore => {
                self.ignored.borrow_mut().get_or_insert(error);
                if self.failed == Failed::Known {
                    self.retries.set(retries.saturating_add(1));
                    self.has_left_out.set(true);
                    self.back_off(retry_pause(retries)).await;
                }
            }
            ErrorAction::Stop => {
                self.again.borrow_mut().extend(piece.filter(|_| self.failed == Failed::Again));
                self.record.state.change(|state| state.io_status = IoStatus::of(&error));
            }
        }
        Ok(())
    }

    /// Waits a while, or until it is to stand still or to end.
    async fn back_off(&self, pause: Duration) {
        let is_other = |state: &State| state.is_cancelled() || state.stands_still();
        let asked = self.record.state.when(|state| is_other(state).then_some(()));
        until(turn_now() + pause, either(asked, self.broken())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fails for ever costs little, and is tried for ever.
    #[test]
    fn the_more_errors_the_longer_the_pause() {
        let pauses =
            [0, 1, 2, 6, 7, 31, 32, usize::MAX].map(|errors| retry_pause(errors).as_millis());
        assert_eq!(pauses, [10, 20, 40, 640, 1000, 1000, 1000, 1000]);
    }
}
