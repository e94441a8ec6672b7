//! Copies from one child to another, under guards.

use std::ops::Range;

use super::operations::Actor;
use super::proof::Evidence;
use crate::bitmap::Granules;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Buf;
use crate::limits::{COPY_MAX_BYTES, COPY_TRIES};

/// How a copy is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyHow {
    /// The target's view, and whatever shows it, is claimed to stay as it is.
    pub unchanged: bool,
    /// Only where the target has no bytes of its own.
    pub only_unallocated: bool,
}

/// What a copy did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bytes written.
    pub bytes: u64,
}

impl Actor {
    pub(super) async fn copy(
        self,
        from: usize,
        to: usize,
        range: Range<u64>,
        how: CopyHow,
        clears: Option<&Granules>,
    ) -> Result<Copied> {
        let copied = self.copy_shown(from, to, range, how, clears).await;
        copied.map(|(copied, _)| copied)
    }

    /// As [`Actor::copy`]; returns what the source shows, too, if all of it was copied at once.
    pub(super) async fn copy_shown(
        self,
        from: usize,
        to: usize,
        range: Range<u64>,
        how: CopyHow,
        clears: Option<&Granules>,
    ) -> Result<(Copied, Option<Buf>)> {
        let end = range.end.min(self.size(self.edge(from)?)).min(self.size(self.edge(to)?));
        let mut copied = Copied::default();
        let (mut at, mut shown) = (range.start, None);
        while at < end {
            let piece = at..end.min(at.saturating_add(COPY_MAX_BYTES as u64));
            at = piece.end;
            let (written, last) = self.copy_piece(from, to, piece, (how, clears)).await?;
            copied.bytes += written;
            shown = last.filter(|bytes| bytes.len() as u64 == range.end - range.start);
        }
        Ok((copied, shown))
    }

    /// One guarded copy; returns how many bytes were written, and those of the last run.
    async fn copy_piece(
        &self,
        from: usize,
        to: usize,
        piece: Range<u64>,
        (how, clears): (CopyHow, Option<&Granules>),
    ) -> Result<(u64, Option<Buf>)> {
        let (source, source_edge) = (self.source(from)?, self.edge(from)?);
        let (own, effect) = self.effect(from, to, how.unchanged)?;
        let target = self.edge(to)?;
        let mut at = piece.start;
        let (mut written, mut spoiled, mut last) = (0, 0, None);
        while at < piece.end {
            // A guard is issued once: each run of bytes has its own.
            let Some(rest) = first_set(clears, at..piece.end) else { break };
            let want = self.want(Some(source), (target, effect), &rest);
            let held = self.hold(want).await?;
            let request = self.request.part(held.op(), effect.unchanged);
            let call = self.call(&request, target);
            // Others may have cleared it while this waited.
            let Some(rest) = first_set(clears, rest.clone()) else {
                at = rest.end;
                continue;
            };
            let run = match how.only_unallocated {
                true => call.first_unallocated(rest.clone()).await?,
                false => Some(rest.clone()),
            };
            let Some(run) = run else {
                at = rest.end;
                continue;
            };
            at = run.end;
            let bytes = self.read_bytes(&request, source_edge, &run).await?;
            last = Some(bytes.clone());
            let claim = how.unchanged.then_some((Evidence::UnderGuard, (from, to)));
            let write =
                self.write_held(&held, (own, effect), claim, (call, clears), run.start, bytes);
            let is_intact = write.await?;
            written += run.end - run.start;
            if clears.is_some() && !is_intact {
                // Something that the copy itself has caused touched what it read: nothing was cleared.
                spoiled += 1;
                if spoiled == COPY_TRIES {
                    self.outcomes()?.stale();
                    let message = "what was copied changed each time while it was";
                    return Err(Error::new(ErrorKind::Stale, message));
                }
                at = run.start;
            }
        }
        Ok((written, last))
    }
}

/// The first part of a range of which a granule is set, if only such are wanted.
fn first_set(of: Option<&Granules>, range: Range<u64>) -> Option<Range<u64>> {
    of.map_or_else(|| Some(range.clone()), |granules| granules.ranges(range.clone()).next())
}
