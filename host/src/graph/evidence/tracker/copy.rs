//! Copies of what is tracked, and looks at what need not be copied, under the guard of the source's range.

use std::ops::Range;
use std::sync::Arc;

use super::super::compare::{Likeness, compare};
use super::super::operations::Actor;
use super::super::proof::{Evidence, ViewProof};
use super::{Quiet, Tracker};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::acting::{Effect, Own};
use crate::graph::class::Class;
use crate::graph::edge::EdgeRef;
use crate::graph::guard::{Held, SourceId, SourceRange, SourceSet, Want};
use crate::graph::mutation::{Mutation, mutated};
use crate::graph::op::OpKind;
use crate::limits::{COPY_MAX_BYTES, ZERO_PROVEN_MAX_BYTES};
use crate::node::WriteFlags;

/// What one step of a tracked copy came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tracked {
    /// Bytes that were looked at.
    pub seen_bytes: u64,
    /// Bytes of data that were copied.
    pub copied_bytes: u64,
}

/// A part of a range, and what it needs.
struct Part {
    range: Range<u64>,
    likeness: Likeness,
}

impl Actor {
    /// See [`OnBehalf::copy_tracked`](super::super::OnBehalf::copy_tracked).
    pub(in crate::graph::evidence) async fn copy_tracked(
        self,
        tracker: Arc<Tracker>,
        range: Range<u64>,
    ) -> Result<Tracked> {
        if tracker.place(self.graph()) != Some(self.node) {
            let message = "what it tracks is another pair of nodes by now";
            return Err(Error::new(ErrorKind::Stale, message));
        }
        let mut all = Tracked::default();
        let range = tracker.granules_of(&range);
        let mut at = range.start;
        while let Some(run) = tracker.todo().ranges(at..range.end).next() {
            // A hint, by which the guard is made no longer than it need be.
            let part = self.part(&tracker, run.clone()).await?;
            let copied = self.tracked_part(&tracker, part.range.clone()).await?;
            all.copied_bytes += copied;
            all.seen_bytes += part.range.end - part.range.start;
            at = part.range.end;
        }
        Ok(all)
    }

    /// The first part of a run, in whole granules.
    async fn part(&self, tracker: &Tracker, run: Range<u64>) -> Result<Part> {
        let call = |edge: usize| Ok::<_, Error>(self.call(&self.request, self.edge(edge)?));
        self.part_by((call(tracker.from.0)?, call(tracker.to.0)?), tracker, run).await
    }

    async fn part_by(
        &self,
        (source, target): (EdgeRef<'_>, EdgeRef<'_>),
        tracker: &Tracker,
        run: Range<u64>,
    ) -> Result<Part> {
        let (granule, size) = (tracker.granule(), tracker.differs.size_bytes());
        let (found, likeness) = Box::pin(compare(source, target, run.clone())).await?;
        let is_end = |end: u64| end == size || end == run.end;
        let most = match likeness {
            Likeness::Unknown => COPY_MAX_BYTES as u64,
            Likeness::Same | Likeness::Zero => ZERO_PROVEN_MAX_BYTES,
        };
        let whole = match found.end {
            end if is_end(end) => end,
            end => end / granule * granule,
        };
        // Granules are cleared whole: what is the same in a part of one is copied with it.
        if likeness != Likeness::Unknown && whole > run.start {
            let end = whole.min(run.start.saturating_add(most));
            return Ok(Part { range: run.start..end, likeness });
        }
        let end = found.end.div_ceil(granule).saturating_mul(granule);
        let end = end.min(run.end).min(run.start.saturating_add(COPY_MAX_BYTES as u64));
        Ok(Part { range: run.start..end, likeness: Likeness::Unknown })
    }

    /// See [`OnBehalf::check_tracked`](super::super::OnBehalf::check_tracked).
    pub(in crate::graph::evidence) async fn check_tracked(
        self,
        tracker: Arc<Tracker>,
        range: Range<u64>,
        reads: bool,
    ) -> Result<u64> {
        if tracker.place(self.graph()) != Some(self.node) {
            let message = "what it tracks is another pair of nodes by now";
            return Err(Error::new(ErrorKind::Stale, message));
        }
        let range = tracker.granules_of(&range);
        let (mut at, mut equal) = (range.start, 0);
        while let Some(run) = tracker.differs.ranges(at..range.end).next() {
            let part = self.part(&tracker, run).await?;
            at = part.range.end;
            if part.likeness == Likeness::Same || reads {
                let (seen, same_bytes) = self.checked_part(&tracker, part.range, reads).await?;
                equal += same_bytes;
                at = seen.end;
            }
        }
        Ok(equal)
    }

    /// Clears those granules of a part that show the same, seen under one guard; returns the part, and how many
    /// bytes do.
    async fn checked_part(
        &self,
        tracker: &Tracker,
        range: Range<u64>,
        reads: bool,
    ) -> Result<(Range<u64>, u64)> {
        let (from, to) = (tracker.from.0, tracker.to.0);
        let (source, edges) = (self.source(from)?, (self.edge(from)?, self.edge(to)?));
        let quiet = tracker.watch_target(&self.graph().guards, &range)?;
        let exclusive = Some(SourceRange { source, range: range.clone() });
        let nothing = SourceSet::default;
        let (shared, exempt) = (nothing(), nothing());
        let held = self.hold(Want { exclusive, shared, exempt, range: range.clone() }).await?;
        let request = self.request.part(held.op(), None);
        let calls = (self.call(&request, edges.0), self.call(&request, edges.1));
        let mut part = self.part_by(calls, tracker, range).await?;
        if reads && part.likeness != Likeness::Same {
            let most = part.range.start.saturating_add(COPY_MAX_BYTES as u64);
            part.range.end = part.range.end.min(most);
        }
        let same = match part.likeness {
            Likeness::Same => vec![part.range.clone()],
            _ if !reads => Vec::new(),
            _ => {
                let source = self.read_at(calls.0, &part.range, COPY_MAX_BYTES).await?;
                let target = self.read_at(calls.1, &part.range, COPY_MAX_BYTES).await?;
                equal_granules(tracker.granule(), &part.range, &source, &target)
            }
        };
        let clear = || same.iter().for_each(|range| tracker.clear(range, &quiet));
        let _ = held.settle(!same.is_empty(), clear);
        let equal = same.iter().map(|range| range.end - range.start).sum();
        Ok((part.range, equal))
    }

    /// Makes a part the same, under one guard after the other; returns how much data was copied.
    async fn tracked_part(&self, tracker: &Tracker, part: Range<u64>) -> Result<u64> {
        let (from, to) = (tracker.from.0, tracker.to.0);
        let (source, target) = (self.source(from)?, self.edge(to)?);
        let proves = target.own.as_ref().is_some_and(|own| own.proven(from).is_some());
        let (own, effect) = self.effect(from, to, proves)?;
        let (mut at, mut copied) = (part.start, 0);
        while let Some(run) = tracker.todo().ranges(at..part.end).next() {
            let quiet = tracker.watch_target(&self.graph().guards, &run)?;
            let want = without(self.want(Some(source), (target, effect), &run), tracker.ids.1);
            let held = self.hold(want).await?;
            let Some(run) = tracker.todo().ranges(run).next() else { continue };
            let request = self.request.part(held.op(), effect.unchanged);
            let calls = (self.call(&request, self.edge(from)?), self.call(&request, target));
            let part = self.part_by(calls, tracker, run).await?;
            at = part.range.end;
            if mutated(Mutation::ClearsBeforeSettling) {
                tracker.clear(&part.range, &quiet);
            }
            match part.likeness {
                Likeness::Same => {
                    let _ = held.settle(true, || tracker.clear(&part.range, &quiet));
                }
                likeness => {
                    let claim = proves.then_some((from, to));
                    let by = (&held, own, effect);
                    copied += self
                        .equalize(by, claim, calls, (tracker, &part.range, &quiet), likeness)
                        .await?;
                }
            }
        }
        Ok(copied)
    }

    /// Writes what makes a range the same, and settles that.
    async fn equalize(
        &self,
        (held, own, effect): (&Held<'_>, &Own, &Effect),
        claim: Option<(usize, usize)>,
        (source, target): (EdgeRef<'_>, EdgeRef<'_>),
        (tracker, range, quiet): (&Tracker, &Range<u64>, &Quiet<'_>),
        likeness: Likeness,
    ) -> Result<u64> {
        let (offset, len) = (range.start, range.end - range.start);
        let bytes = match likeness {
            Likeness::Zero => None,
            _ => Some(self.read_at(source, range, COPY_MAX_BYTES).await?),
        };
        let copied = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        self.check_range(target.edge, OpKind::Write, range).map_err(Error::of_write)?;
        let around = self.around(target.edge, range);
        let write = async |call: EdgeRef<'_>| match bytes {
            Some(bytes) => call.write_admitted(offset, bytes, WriteFlags::NONE).await,
            None => call.zero_with_fua(offset, len, WriteFlags::NONE).await,
        };
        let intact = || tracker.clear(range, quiet);
        let done = match claim {
            Some((from, to)) => {
                let shield = self.shield(from, to, &around);
                let ranges = (range.clone(), around.clone());
                let guarded = (held, &*self.graph().guards);
                let by = (own, effect);
                let proof =
                    ViewProof::check(guarded, by, ranges, &Evidence::UnderGuard, self.outcomes()?)?;
                mark_in_section(target, range, effect.unchanged);
                target.request.set_shield(shield);
                let (done, is_intact) =
                    proof.settle_and(target.settle(write(target).await), intact);
                if !is_intact {
                    mark_in_section(target, &around, None);
                }
                done
            }
            None => {
                self.issue_changed(held, own, (range, &around))?;
                mark_in_section(target, range, None);
                let done = target.settle(write(target).await);
                if done.is_err() {
                    own.changed.marks.mark(around.start, around.end - around.start);
                }
                let _ = held.settle(done.is_ok(), intact);
                done
            }
        };
        if done.is_err() && !mutated(Mutation::ClearsBeforeSettling) {
            // What lies around may be torn, too.
            tracker.mark(&around);
        }
        done.map(|()| copied).map_err(Error::of_write)
    }
}

/// A write in a drained section is marked in what records when that has ended, too: before it is issued.
fn mark_in_section(target: EdgeRef<'_>, range: &Range<u64>, unchanged: Option<Class>) {
    if let Some(section) = target.request.section() {
        section.mark_proven(range.clone(), target.edge.child, unchanged);
    }
}

/// What a copy of the tracker's own wants: it does not count as somebody who comes near the target.
fn without(want: Want, target: SourceId) -> Want {
    let own = SourceSet::new(&[target], &[]);
    let left = |sources: &SourceSet| sources.without(&own).unwrap_or_default();
    Want { shared: left(&want.shared), exempt: left(&want.exempt), ..want }
}

/// Those granules of a range of which two have the same bytes.
fn equal_granules(granule: u64, range: &Range<u64>, one: &[u8], other: &[u8]) -> Vec<Range<u64>> {
    let len = usize::try_from(granule).unwrap_or(usize::MAX);
    let pairs = one.chunks(len).zip(other.chunks(len));
    let starts = (range.start..).step_by(len);
    let same = starts.zip(pairs).filter(|(_, (one, other))| one == other);
    same.map(|(start, (one, _))| start..start + one.len() as u64).collect()
}
