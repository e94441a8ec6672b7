//! Steps with several requests in flight at once: disks hold them half-way.

use std::sync::atomic::Ordering;

use super::super::CopyHow;
use super::random::Random;
use super::run::{Kept, Run, Started, Verdict, bytes_of, kind_of, quiet, start, start_for_a_user};
use super::scene::Drive;
use super::steps::fill;
use super::world::{Answer, Buffer, FlightId, NodeId, Outcome, Payload, Refusal, Span, Unproven};
use crate::bitmap::BitmapState;
use crate::error::{ErrorKind, Result as HostResult};
use crate::node::WriteFlags;

pub(super) fn told<T>(result: Result<T, Refusal>) -> Result<T, String> {
    result.map_err(|refusal| refusal.to_string())
}

/// A guest's write in both worlds, begun and not ended.
pub(super) struct Writing {
    pub(super) real: Started<HostResult<()>>,
    pub(super) flight: FlightId,
    pub(super) node: NodeId,
    pub(super) span: Span,
}

impl Run {
    pub(super) fn writable_drive(&self, random: &mut Random) -> Option<Drive> {
        // A write that fills a cluster reads, and so may copy.
        let copies = |drive: &Drive| self.scene.is_coarse && self.copies_on_read(drive.root);
        let drives = self.drives().into_iter();
        let drives = drives.filter(|drive| drive.is_writable && !copies(drive));
        random.pick(&drives.collect::<Vec<_>>())
    }

    /// A span that meets another one more often than not.
    fn span_near(&self, random: &mut Random, near: Span, len: usize) -> Span {
        let span = self.span(random, len);
        if random.one_in(3) || near.start >= len { span } else { Span::at(near.start, 1) }
    }

    pub(super) fn begin_write(
        &mut self,
        random: &mut Random,
        drive: Drive,
        span: Span,
    ) -> Result<Writing, String> {
        let (real, bytes) = self.write_in_task(random, drive, span);
        let flight = told(self.world.admit(drive.root, span, &bytes))?;
        Ok(Writing { real, flight, node: drive.root, span })
    }

    /// A guest's write in the real world alone.
    pub(super) fn write_in_task(
        &self,
        random: &mut Random,
        drive: Drive,
        span: Span,
    ) -> (Started<HostResult<()>>, Payload) {
        let bytes: Vec<u8> = (0..span.len()).map(|_| random.next() as u8).collect();
        let (real, buf) = (self.drive(&drive.id.to_string()), fill(&bytes));
        let offset = bytes_of(span).start;
        let real = start(async move { real.write(offset, buf, WriteFlags::NONE).await });
        (real, Payload::Bytes(bytes))
    }

    pub(super) async fn end_write(&mut self, writing: &Writing) -> Verdict {
        let result = writing.real.end().await?;
        if result.is_err() {
            let (span, node) = (writing.span, writing.node);
            return Err(format!("a write to {span} of {node} ended with {result:?}"));
        }
        told(self.world.settle(writing.flight, &Outcome::Done))
    }

    fn hold_writes(&self, hold: bool) {
        if hold { self.control.writes.close() } else { self.control.writes.open() }
    }

    pub(super) fn held(&self) -> usize {
        self.control.held.load(Ordering::Relaxed)
    }

    /// A bitmap changes, or a job reads, while a guest's write is with its disk.
    pub(super) async fn during_a_write(&mut self, random: &mut Random) -> Verdict {
        let Some(drive) = self.writable_drive(random) else { return Ok(()) };
        let span = self.span(random, self.len(drive.root));
        self.step = format!("write to {span} of {}, held", drive.id);
        self.hold_writes(true);
        let writing = self.begin_write(random, drive, span)?;
        quiet().await;
        told(self.world.issue(writing.flight))?;
        let checked = self.check_bitmaps();
        let ended = match checked {
            Ok(()) if !self.scene.jobs.is_empty() && random.one_in(2) => {
                self.read_during(random, &writing).await
            }
            Ok(()) => self.bitmap_during(random, &writing).await,
            wrong => wrong,
        };
        self.hold_writes(false);
        ended
    }

    async fn bitmap_during(&mut self, random: &mut Random, writing: &Writing) -> Verdict {
        let Some(chosen) = self.any_bitmap_change(random) else {
            self.hold_writes(false);
            return self.end_write(writing).await;
        };
        let (id, change, action) = chosen;
        self.step = format!("{}; {change:?} of {id}", self.step);
        let (bitmap, cell) = (self.bitmap(id), std::sync::Arc::clone(self.graph.cell()));
        // What no change marks needs no drain, nor does the end of a freeze that drops what was frozen.
        let needs_drain = bitmap.recording().is_some() || bitmap.state() == BitmapState::Disabled;
        let may_be_early = matches!(change, crate::bitmap::Change::Abdicate)
            || (bitmap.state() == BitmapState::Disabled
                && !matches!(change, crate::bitmap::Change::Enable));
        let must_wait = needs_drain && !may_be_early && !self.world.busy(&action).is_empty();
        let real = start(async move { cell.change_bitmap(&bitmap, &[change]).await });
        quiet().await;
        let early = real.take();
        if matches!(early, Some(Ok(()))) && must_wait {
            return Err("a bitmap was changed under a write in flight".to_owned());
        }
        self.hold_writes(false);
        self.end_write(writing).await?;
        let result = match early {
            Some(result) => result,
            None => real.end().await?,
        };
        // What was done early must be the same as if it were done now.
        let expect = self.world.transact(&[action], Unproven::Refuse);
        match (&result, &expect) {
            (Ok(()), Ok(_)) | (Err(_), Err(_)) => Ok(()),
            _ => Err(format!("a bitmap's change ended with {result:?}, not {expect:?}")),
        }
    }

    async fn read_during(&mut self, random: &mut Random, writing: &Writing) -> Verdict {
        let at = random.below(self.scene.jobs.len());
        let from = self.scene.jobs[at].from;
        let span = self.span_near(random, writing.span, self.len(from));
        self.step = format!("{}; job {at} reads {span} of {from}", self.step);
        let job = self.job(at);
        let real = start(async move { job.read_proven(0, bytes_of(span)).await });
        quiet().await;
        let watch = told(self.world.register_watch(from, span))?;
        self.hold_writes(false);
        self.end_write(writing).await?;
        let bytes = real.end().await?.map_err(|error| error.to_string())?;
        let log = self.control.take_log();
        self.follow_copies(&log, 0)?;
        told(self.world.capture(watch))?;
        self.keep(Kept { bytes, watch, node: from });
        Ok(())
    }

    /// A guest writes while a job has its bytes in hand, and has not got them yet.
    pub(super) async fn during_a_read(&mut self, random: &mut Random) -> Verdict {
        let Some(drive) = self.writable_drive(random) else { return Ok(()) };
        let at = random.below(self.scene.jobs.len());
        let from = self.scene.jobs[at].from;
        if self.copies_on_read(from) {
            return Ok(());
        }
        let span = self.span(random, self.len(from));
        let written = self.span_near(random, span, self.len(drive.root));
        self.step =
            format!("job {at} reads {span} of {from}, held; write to {written} of {}", drive.id);
        let job = self.job(at);
        self.control.reads.close();
        let real = start(async move { job.read_proven(0, bytes_of(span)).await });
        quiet().await;
        // A write may have to read what it does not cover.
        self.control.reads.let_others_pass();
        let watch = told(self.world.register_watch(from, span))?;
        told(self.world.capture(watch))?;
        if random.one_in(3) {
            self.step.push_str(" (a discard)");
            let (range, real) = (bytes_of(written), self.drive(&drive.id.to_string()));
            let result = real.discard(range.start, range.end - range.start).await;
            self.follow_change((drive.root, written), &Payload::Discard, 0, &result)?;
        } else {
            let writing = self.begin_write(random, drive, written)?;
            self.end_write(&writing).await?;
        }
        self.control.reads.open();
        let bytes = real.end().await?.map_err(|error| error.to_string())?;
        self.control.take_log();
        self.keep(Kept { bytes, watch, node: from });
        if random.one_in(2) {
            return self.claim(random, at, self.kept.len() - 1).await;
        }
        Ok(())
    }

    /// A guest writes while a copy is with its disk.
    pub(super) async fn during_a_copy(&mut self, random: &mut Random) -> Verdict {
        let Some(drive) = self.writable_drive(random) else { return Ok(()) };
        let at = random.below(self.scene.jobs.len());
        let job = self.scene.jobs[at];
        if self.copies_on_read(job.from) {
            return Ok(());
        }
        let span = self.span(random, self.len(job.from).min(self.len(job.to)));
        let written = self.span_near(random, span, self.len(drive.root));
        self.step = format!("job {at} copies {span}, held; write to {written} of {}", drive.id);
        let watch = told(self.world.register_watch(job.from, span))?;
        told(self.world.capture(watch))?;
        let buffer = Buffer::Captured(watch);
        let claim = self.world.judge(job.to, span, &buffer);
        self.hold_writes(true);
        let own = self.job(at);
        let how = CopyHow { unchanged: true, only_unallocated: false };
        let copy = async move { own.copy(0, 2, bytes_of(span), how).await.map(drop) };
        let (copy, user) = start_for_a_user(copy);
        quiet().await;
        if self.held() == 0 {
            self.hold_writes(false);
            let result = copy.end().await?;
            self.world.unregister_watch(watch);
            let is_right = kind_of(&result) == Some(ErrorKind::NotPermitted)
                && claim.admits(Answer::NotProven);
            return if is_right {
                Ok(())
            } else {
                Err(format!("a copy: {result:?}, not {claim:?}"))
            };
        }
        let copying = told(self.world.admit_claim(job.to, span, &buffer))?;
        told(self.world.issue(copying))?;
        let blockers = told(self.world.blockers(drive.root, written, None))?;
        let is_dropped = random.one_in(3);
        if is_dropped {
            self.step = format!("{}; nobody waits for the copy", self.step);
            user.set(false);
            quiet().await;
        }
        let writing = self.begin_write(random, drive, written)?;
        quiet().await;
        let is_held_off = self.held() == 1;
        if is_held_off == blockers.is_empty() {
            return Err(format!("a write was held off: {is_held_off}; by right by {blockers:?}"));
        }
        if !is_held_off {
            told(self.world.issue(writing.flight))?;
        }
        self.check_bitmaps()?;
        self.hold_writes(false);
        if is_dropped {
            quiet().await;
        } else {
            let result = copy.end().await?;
            if result.is_err() {
                return Err(format!("a copy ended with {result:?}"));
            }
        }
        told(self.world.settle(copying, &Outcome::Done))?;
        self.end_write(&writing).await?;
        self.control.take_log();
        self.world.unregister_watch(watch);
        Ok(())
    }
}
