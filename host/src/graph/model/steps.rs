//! Steps of one request at a time: at drives, and by jobs.

use super::super::CopyHow;
use super::SECTOR;
use super::random::Random;
use super::run::{Kept, Run, Verdict, bytes_of, kind_of};
use super::scene::Drive;
use super::world::{Answer, Buffer, NodeId, Outcome, Payload, Span, Verdict as Claim, View};
use crate::error::{ErrorKind, Result as HostResult};
use crate::io::Buf;
use crate::node::WriteFlags;

/// What is kept for later claims, at most.
const KEPT_MAX: usize = 6;

/// A buffer of real bytes.
pub(super) fn fill(bytes: &[u8]) -> Buf {
    let real: Vec<u8> =
        bytes.iter().flat_map(|byte| std::iter::repeat_n(*byte, SECTOR as usize)).collect();
    Buf::copy_of(&real)
}

/// The answer that a result is to a claim; `None` if it was proven and has failed.
fn answer(kind: Option<ErrorKind>) -> Result<Option<Answer>, String> {
    match kind {
        None => Ok(Some(Answer::Proven)),
        Some(ErrorKind::Stale) => Ok(Some(Answer::Stale)),
        Some(ErrorKind::NotPermitted) => Ok(Some(Answer::NotProven)),
        Some(ErrorKind::Io) => Ok(None),
        Some(other) => Err(format!("an unexpected error: {other:?}")),
    }
}

impl Run {
    pub(super) fn any_drive(&self, random: &mut Random) -> Option<Drive> {
        random.pick(&self.drives())
    }

    fn arm(&self, random: &mut Random) {
        let fail = random.one_in(6).then(|| random.below(5));
        self.control.set_fail(fail);
    }

    /// A guest reads.
    pub(super) async fn guest_read(&mut self, random: &mut Random) -> Verdict {
        let Some(drive) = self.any_drive(random) else { return Ok(()) };
        let span = self.span(random, self.len(drive.root));
        self.step = format!("read {span} of {}", drive.id);
        self.arm(random);
        let read = self.read(View::Drive(drive.id), span).await;
        self.control.set_fail(None);
        read
    }

    /// A guest writes, zeroes or discards.
    pub(super) async fn guest_change(&mut self, random: &mut Random) -> Verdict {
        let Some(drive) = self.any_drive(random) else { return Ok(()) };
        let span = self.span(random, self.len(drive.root));
        let payload = match random.below(6) {
            0 => Payload::Discard,
            1 => Payload::Zero,
            _ => Payload::Bytes((0..span.len()).map(|_| random.next() as u8).collect()),
        };
        self.step = format!("{payload:?} to {span} of {}", drive.id);
        self.arm(random);
        let range = bytes_of(span);
        let (at, len) = (range.start, range.end - range.start);
        let real = self.drive(&drive.id.to_string());
        let result = match &payload {
            Payload::Bytes(bytes) => real.write(at, fill(bytes), WriteFlags::NONE).await,
            Payload::Zero => real.zero(at, len, WriteFlags::NONE).await,
            Payload::Discard => real.discard(at, len).await,
        };
        self.control.set_fail(None);
        if !drive.is_writable {
            return self.expect_refused(&result);
        }
        self.follow_change((drive.root, span), &payload, 0, &result)
    }

    fn expect_refused(&mut self, result: &HostResult<()>) -> Verdict {
        if kind_of(result) != Some(ErrorKind::NotPermitted) || !self.control.take_log().is_empty() {
            return Err(format!("what is not permitted ended with {result:?}"));
        }
        Ok(())
    }

    /// A change that claims nothing, in the model.
    pub(super) fn follow_change(
        &mut self,
        (node, span): (NodeId, Span),
        payload: &Payload,
        depth: usize,
        result: &HostResult<()>,
    ) -> Verdict {
        let log = self.control.take_log();
        self.follow_copies(&log, depth)?;
        let has_failed = match kind_of(result) {
            None => false,
            Some(ErrorKind::Io) => true,
            other => return Err(format!("a change ended with {other:?}")),
        };
        let outcome = self.outcome((node, span), &log, depth, has_failed)?;
        let flight = self.world.admit(node, span, payload).map_err(|error| error.to_string())?;
        self.world.settle(flight, &outcome).map_err(|error| error.to_string())
    }

    /// A job copies from the first child, or from the other one.
    pub(super) async fn job_copy(&mut self, random: &mut Random) -> Verdict {
        let at = random.below(self.scene.jobs.len());
        let job = self.scene.jobs[at];
        let (edge, from) = if random.one_in(5) { (1, job.beside) } else { (0, job.from) };
        let span = self.span(random, self.len(from).min(self.len(job.to)));
        let unchanged = job.is_proven || !random.one_in(3);
        let only_unallocated = random.one_in(4);
        self.step = format!("job {at} copies {span} of {from} to {}, {unchanged}", job.to);
        // With the failure of one run the others are not begun: whole copies alone are compared.
        if !only_unallocated {
            self.arm(random);
        }
        let how = CopyHow { unchanged, only_unallocated };
        let result = self.job(at).copy(edge, 2, bytes_of(span), how).await.map(drop);
        self.control.set_fail(None);
        if !unchanged {
            return self.follow_changed_copy((from, job.to), span, &result);
        }
        let is_its_view = !job.is_proven || edge == 0;
        if only_unallocated && result.is_ok() && is_its_view {
            return self.follow_runs((from, job.to), span, &result);
        }
        self.follow_claim((from, job.to), span, None, &result, is_its_view)
    }

    /// A copy of several runs, each of them proven.
    fn follow_runs(
        &mut self,
        (from, to): (NodeId, NodeId),
        asked: Span,
        result: &HostResult<()>,
    ) -> Verdict {
        let log = self.control.take_log();
        let (disk, shift) = self.disk_of(to);
        for landed in &log {
            if landed.depth > 1 {
                self.follow_copies(std::slice::from_ref(landed), 1)?;
                continue;
            }
            if landed.disk != disk {
                return Err(format!("a copy to {to} was written to {}", landed.disk));
            }
            // The rest of its clusters it only fills.
            let span = landed.span.shifted_down(shift).common(asked);
            let copied = self.world.copy(from, to, span, &Outcome::Done);
            copied
                .map_err(|refusal| format!("the core has copied {span}: {refusal}: {result:?}"))?;
        }
        Ok(())
    }

    fn follow_changed_copy(
        &mut self,
        (from, to): (NodeId, NodeId),
        span: Span,
        result: &HostResult<()>,
    ) -> Verdict {
        if kind_of(result) == Some(ErrorKind::Stale) {
            // The copy was overtaken by a failure that it caused itself; it wrote nothing.
            let log = self.control.take_log();
            let is_own = |landed: &super::disk::Landed| landed.depth <= 1;
            if log.iter().any(is_own) || !log.iter().any(|landed| landed.has_failed) {
                return Err("a copy was called stale without a cause".to_owned());
            }
            return self.follow_copies(&log, 1);
        }
        let log = self.control.take_log();
        self.follow_copies(&log, 1)?;
        let bytes = self.world.read(View::Node(from), span).map_err(|error| error.to_string())?;
        let has_failed = result.is_err();
        let payload = Payload::Bytes(bytes);
        // The rest of its clusters it only fills.
        let (_, shift) = self.disk_of(to);
        let own = log.iter().filter(|landed| landed.depth == 1);
        let own = own.map(|landed| landed.span.shifted_down(shift).common(span).len());
        if own.sum::<usize>() < span.len() && !has_failed {
            // Only where the target had no bytes of its own.
            let outcome = self.outcome((to, span), &log, 1, true)?;
            return self.follow_parts(to, span, &outcome);
        }
        let admitted = self.world.admit(to, span, &payload);
        let flight = admitted.map_err(|error| error.to_string())?;
        let outcome = self.outcome((to, span), &log, 1, has_failed)?;
        self.world.settle(flight, &outcome).map_err(|error| error.to_string())
    }

    fn follow_parts(&mut self, to: NodeId, span: Span, outcome: &Outcome) -> Verdict {
        let Outcome::Failed(bytes) = outcome else { return Ok(()) };
        for (at, byte) in bytes.iter().enumerate() {
            let Some(byte) = byte else { continue };
            let part = Span::at(span.start + at, 1);
            let change = self.world.change(
                View::Node(to),
                part,
                &Payload::Bytes(vec![*byte]),
                &Outcome::Done,
            );
            change.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// A claim on what `from` shows, read now, or kept before.
    pub(super) fn follow_claim(
        &mut self,
        (from, to): (NodeId, NodeId),
        span: Span,
        kept: Option<Buffer>,
        result: &HostResult<()>,
        is_its_view: bool,
    ) -> Verdict {
        let log = self.control.take_log();
        let of_now = match kept {
            Some(_) => None,
            None => {
                let watch = self.world.register_watch(from, span);
                Some(watch.map_err(|error| error.to_string())?)
            }
        };
        self.follow_copies(&log, 1)?;
        let buffer = match (kept, of_now) {
            (Some(buffer), _) => buffer,
            (None, Some(watch)) => {
                self.world.capture(watch).map_err(|error| error.to_string())?;
                Buffer::Captured(watch)
            }
            (None, None) => return Err("nothing is claimed".to_owned()),
        };
        let followed = self.follow_verdict((to, span), &buffer, &log, result, is_its_view);
        if let Some(watch) = of_now {
            self.world.unregister_watch(watch);
        }
        followed
    }

    pub(super) fn follow_verdict(
        &mut self,
        (to, span): (NodeId, Span),
        buffer: &Buffer,
        log: &[super::disk::Landed],
        result: &HostResult<()>,
        is_its_view: bool,
    ) -> Verdict {
        let mut claim = self.world.judge(to, span, buffer);
        if !is_its_view {
            // The edge is for another view; that is permissions, of which the model knows nothing.
            claim = Claim::Refused { stale: false, not_proven: true };
        }
        let answer = answer(kind_of(result))?;
        if !claim.admits(answer.unwrap_or(Answer::Proven)) {
            return Err(format!(
                "a claim on {span} of {to} was answered {result:?}, not {claim:?}"
            ));
        }
        if matches!(answer, Some(Answer::Stale | Answer::NotProven)) {
            return match log.iter().find(|landed| landed.depth <= 1) {
                Some(landed) => Err(format!("a refused claim has written {landed:?}")),
                None => Ok(()),
            };
        }
        let flight = self.world.admit_claim(to, span, buffer).map_err(|error| error.to_string())?;
        let outcome = self.outcome((to, span), log, 1, answer.is_none())?;
        self.world.settle(flight, &outcome).map_err(|error| error.to_string())
    }

    /// A job reads what it may claim later.
    pub(super) async fn job_read(&mut self, random: &mut Random) -> Verdict {
        let at = random.below(self.scene.jobs.len());
        let job = self.scene.jobs[at];
        let (edge, from) = if random.one_in(4) { (1, job.beside) } else { (0, job.from) };
        let span = self.span(random, self.len(from));
        self.step = format!("job {at} reads {span} of {from}");
        let bytes = self.job(at).read_proven(edge, bytes_of(span)).await;
        let bytes = bytes.map_err(|error| error.to_string())?;
        let watch = self.world.register_watch(from, span).map_err(|error| error.to_string())?;
        let log = self.control.take_log();
        self.follow_copies(&log, usize::MAX)?;
        self.world.capture(watch).map_err(|error| error.to_string())?;
        self.check_bytes(View::Node(from), span, bytes.bytes())?;
        self.keep(Kept { bytes, watch, node: from });
        Ok(())
    }

    pub(super) fn keep(&mut self, kept: Kept) {
        self.kept.push(kept);
        if self.kept.len() > KEPT_MAX {
            let oldest = self.kept.remove(0);
            self.world.unregister_watch(oldest.watch);
        }
    }

    /// A job claims what it, or another one, has read before.
    pub(super) async fn job_claim(&mut self, random: &mut Random) -> Verdict {
        if self.kept.is_empty() {
            return self.job_read(random).await;
        }
        let (at, kept) = (random.below(self.scene.jobs.len()), random.below(self.kept.len()));
        self.step = "what was read before".to_owned();
        self.claim(random, at, kept).await
    }

    /// A job claims what was kept.
    pub(super) async fn claim(&mut self, random: &mut Random, at: usize, kept: usize) -> Verdict {
        let (job, kept) = (self.scene.jobs[at], &self.kept[kept]);
        let (node, watch, mut bytes) = (kept.node, kept.watch, kept.bytes.clone());
        if random.one_in(3) {
            let sectors = bytes.bytes().len() / SECTOR as usize;
            let part = bytes_of(self.span(random, sectors));
            bytes = bytes.slice(part.start as usize..part.end as usize).expect("a part of it");
        }
        let range = bytes.range();
        let span =
            Span { start: (range.start / SECTOR) as usize, end: (range.end / SECTOR) as usize };
        if span.end > self.len(job.to) {
            return Ok(());
        }
        self.step = format!("{}; job {at} claims {span} of {node} for {}", self.step, job.to);
        self.arm(random);
        let result = self.job(at).write_proven(2, &bytes).await;
        self.control.set_fail(None);
        let is_read = node == job.from || node == job.beside;
        let is_its_view = is_read && (!job.is_proven || node == job.from);
        let buffer = Some(Buffer::Captured(watch));
        self.follow_claim((node, job.to), span, buffer, &result, is_its_view)
    }

    /// A job zeroes what shows zeros.
    pub(super) async fn job_zero(&mut self, random: &mut Random) -> Verdict {
        let at = random.below(self.scene.jobs.len());
        let job = self.scene.jobs[at];
        let span = self.span(random, self.len(job.from).min(self.len(job.to)));
        self.step = format!("job {at} zeroes {span} of {} for {}", job.to, job.from);
        self.arm(random);
        let result = self.job(at).zero_proven(0, 2, bytes_of(span)).await;
        self.control.set_fail(None);
        let log = self.control.take_log();
        if kind_of(&result) == Some(ErrorKind::NotPermitted) {
            // Block status need not know of every zero.
            return if log.is_empty() { Ok(()) } else { Err("refused, and written".to_owned()) };
        }
        let watch = self.world.register_watch(job.from, span).map_err(|error| error.to_string())?;
        let buffer = Buffer::ZeroByStatus(watch);
        let followed = self.follow_verdict((job.to, span), &buffer, &log, &result, true);
        self.world.unregister_watch(watch);
        followed
    }

    /// A job writes other bytes.
    pub(super) async fn job_write(&mut self, random: &mut Random) -> Verdict {
        let at = random.below(self.scene.jobs.len());
        let job = self.scene.jobs[at];
        let span = self.span(random, self.len(job.to));
        let bytes: Vec<u8> = (0..span.len()).map(|_| random.next() as u8).collect();
        self.step = format!("job {at} changes {span} of {}", job.to);
        self.arm(random);
        let result = self.job(at).write_changed(2, bytes_of(span).start, fill(&bytes)).await;
        self.control.set_fail(None);
        if job.is_proven {
            return self.expect_refused(&result);
        }
        self.follow_change((job.to, span), &Payload::Bytes(bytes), 1, &result)
    }
}
