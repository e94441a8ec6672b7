//! Copies of what a node shows to a target that is to show it from then on, whatever becomes of the node: only
//! where granules are set, each of which is cleared where its copy settles. What shows zeros is zeroed there,
//! without data, or left, if the target shows zeros by itself.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use super::super::acting::{Effect, Own};
use super::super::detach::ToTheEnd;
use super::super::edge::EdgeRef;
use super::super::guard::{Held, SourceId};
use super::compare::{is_zero, is_zero_apart};
use super::on_behalf::OnBehalf;
use super::operations::{Actor, clear};
use crate::bitmap::Granules;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::op::OpKind;
use crate::limits::{COMPRESSED_MAX_BYTES, COPY_MAX_BYTES, COPY_TRIES, ZERO_PROVEN_MAX_BYTES};
use crate::node::WriteFlags;

/// Bytes of a part that has data: as of every copy, or a whole unit that is compressed.
const PART_MAX_BYTES: usize = {
    let unit_bytes = COMPRESSED_MAX_BYTES as usize;
    if unit_bytes > COPY_MAX_BYTES { unit_bytes } else { COPY_MAX_BYTES }
};

/// A part of a range, and what it shows.
struct Part {
    range: Range<u64>,
    is_zero: bool,
}

/// What is copied, from where to where.
struct Copy<'a> {
    source: (SourceId, usize),
    to: usize,
    todo: &'a Granules,
    effect: &'a Effect,
    own: &'a Own,
    /// How data are written.
    flags: WriteFlags,
}

impl OnBehalf {
    /// Has the target keep what the source shows, where granules are set in a range of whole ones; each of them is
    /// cleared when it does, before the guard of its range ends. Clipped to the smaller of the two; done in pieces, of
    /// whole granules (of at most [`COMPRESSED_MAX_BYTES`]), which are written as `flags` say.
    /// Returns how many bytes of granules it has cleared.
    ///
    /// # Errors
    /// As [`Cx::copy`](crate::graph::Cx::copy), those at what it writes as such:
    /// [`Error::is_of_write`]. Pieces done before stay done.
    pub fn copy_out(
        self,
        (from, to): (usize, usize),
        range: Range<u64>,
        todo: Arc<Granules>,
        flags: WriteFlags,
    ) -> impl Future<Output = Result<u64>> {
        let actor = self.into_actor();
        ToTheEnd::new(async move { actor.copy_out((from, to), range, &todo, flags).await })
    }
}

impl Actor {
    async fn copy_out(
        self,
        (from, to): (usize, usize),
        range: Range<u64>,
        todo: &Granules,
        flags: WriteFlags,
    ) -> Result<u64> {
        let end = range.end.min(self.size(self.edge(from)?)).min(self.size(self.edge(to)?));
        let (own, effect) = self.effect(from, to, false)?;
        let copy = Copy { source: (self.source(from)?, from), to, todo, effect, own, flags };
        let (mut at, mut done) = (range.start, 0);
        while let Some(run) = todo.ranges(at..end).next() {
            // A hint, by which the guard is made no longer than it need be.
            let source = self.call(&self.request, self.edge(from)?);
            let part = part(source, todo, run).await?;
            at = part.range.end;
            done += self.copy_part(&copy, part.range).await?;
        }
        Ok(done)
    }

    /// Copies a part, under one guard after the other; returns how many bytes of granules it has cleared.
    async fn copy_part(&self, copy: &Copy<'_>, range: Range<u64>) -> Result<u64> {
        let (target, source) = (self.edge(copy.to)?, copy.source.0);
        let (mut at, mut done, mut spoiled) = (range.start, 0, 0);
        while let Some(run) = copy.todo.ranges(at..range.end).next() {
            let want = self.want(Some(source), (target, copy.effect), &run);
            let held = self.hold(want).await?;
            // Others may have copied it while this waited.
            let Some(run) = copy.todo.ranges(run.clone()).next() else {
                at = run.end;
                continue;
            };
            let request = self.request.part(held.op(), copy.effect.unchanged);
            let calls =
                (self.call(&request, self.edge(copy.source.1)?), self.call(&request, target));
            let part = part(calls.0, copy.todo, run).await?;
            at = part.range.end;
            if self.copy_held(&held, copy, calls, &part).await? {
                done += part.range.end - part.range.start;
                continue;
            }
            // Something that the copy itself has caused touched what it read: nothing was cleared.
            spoiled += 1;
            if spoiled == COPY_TRIES {
                self.outcomes()?.stale();
                let message = "what was copied changed each time while it was";
                return Err(Error::new(ErrorKind::Stale, message));
            }
            at = part.range.start;
        }
        Ok(done)
    }

    /// Copies what the guard held is for; whether it was intact.
    async fn copy_held(
        &self,
        held: &Held<'_>,
        copy: &Copy<'_>,
        (source, target): (EdgeRef<'_>, EdgeRef<'_>),
        part: &Part,
    ) -> Result<bool> {
        let Part { range, is_zero } = part;
        let (offset, len) = (range.start, range.end - range.start);
        self.check_range(target.edge, OpKind::Write, range).map_err(Error::of_write)?;
        let target_too = *is_zero && Box::pin(is_zero_apart(target, source, range)).await?;
        if target_too {
            return Ok(held.settle(true, || clear(Some(copy.todo), range)));
        }
        let bytes = match is_zero {
            true => None,
            false => Some(self.read_at(source, range, PART_MAX_BYTES).await?),
        };
        let write = async |call: EdgeRef<'_>| match bytes {
            Some(bytes) => call.write_admitted(offset, bytes, copy.flags).await,
            None => call.zero_with_fua(offset, len, WriteFlags::NONE).await,
        };
        let place = (target, range, Some(copy.todo));
        self.change_held(held, copy.own, place, write).await.map_err(Error::of_write)
    }
}

/// The first part of a run of whole granules that is alike, in whole granules.
async fn part(source: EdgeRef<'_>, todo: &Granules, run: Range<u64>) -> Result<Part> {
    let granule = todo.granularity().bytes();
    let (found, is_zero) = Box::pin(is_zero(source, run.clone())).await?;
    let whole = match found.end {
        end if end == run.end => end,
        end => end / granule * granule,
    };
    if is_zero && whole > run.start {
        let end = whole.min(run.start.saturating_add(ZERO_PROVEN_MAX_BYTES));
        return Ok(Part { range: run.start..end, is_zero });
    }
    // Granules are cleared whole: zeros in a part of one are copied with it.
    let end = found.end.div_ceil(granule).saturating_mul(granule);
    let most = granule.min(COMPRESSED_MAX_BYTES.into()).max(COPY_MAX_BYTES as u64);
    let end = end.min(run.end).min(run.start.saturating_add(most));
    Ok(Part { range: run.start..end, is_zero: false })
}
