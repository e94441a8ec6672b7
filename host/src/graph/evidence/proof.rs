//! The proof of an unchanged write: how it is made, and when it is void.

use std::ops::Range;

use super::super::acting::{Effect, Own};
use super::super::guard::{AtOnce, By, Full, Guards, Held, Want};
use super::super::mutation::{Mutation, mutated};
use super::buffer::Provenance;
use super::outcome::OutcomeCounters;
use crate::error::{Error, ErrorKind, Result};

/// How the bytes to be written are known to be what the guarded view shows.
pub(super) enum Evidence<'e> {
    /// The host has read them, or their block status, while it held this guard.
    UnderGuard,
    /// The host has read them before, and has watched them since.
    Watched(&'e Provenance),
}

/// Takes the guard of what was read before and announces its write, in one step, if it need not wait:
/// whether the bytes are fresh is asked while nothing can touch what they were read from.
///
/// # Errors
/// [`Full`].
#[inline]
pub(super) fn issue_watched(
    guards: &Guards,
    worker: usize,
    want: &mut Want,
    by: By<'_>,
    bytes: &Provenance,
) -> std::result::Result<AtOnce, Full> {
    guards.try_issue(worker, want, by, || bytes.is_fresh())
}

/// A claim of what was read before is refused.
pub(super) fn stale() -> Error {
    let message = "the view has changed since its bytes were read: read them again";
    Error::new(ErrorKind::Stale, message)
}

/// These bytes are what A shows at R, and stay so until this write has settled.
///
/// It borrows the guard of (A, R). Dropped before its write has settled, it is void.
pub(super) struct ViewProof<'h> {
    held: &'h Held<'h>,
    guards: &'h Guards,
    own: &'h Own,
    effect: &'h Effect,
    outcomes: &'h OutcomeCounters,
    /// What the write may touch.
    around: Range<u64>,
    is_settled: bool,
}

impl<'h> ViewProof<'h> {
    /// Makes the proof, announces the write and marks what it affects: the write is to be issued next.
    ///
    /// `around` is what a write of `range` may touch; `effect` is what the present snapshot says of a write
    /// that is proven for the view which `held` guards; that the view is at or above the node written is why
    /// there is one.
    ///
    /// # Errors
    /// `ESTALE` when the view may have changed since its bytes were read: nothing may be written.
    pub(super) fn check(
        (held, guards): (&'h Held<'h>, &'h Guards),
        (own, effect): (&'h Own, &'h Effect),
        (range, around): (Range<u64>, Range<u64>),
        evidence: &Evidence<'_>,
        outcomes: &'h OutcomeCounters,
    ) -> Result<Self> {
        let was_fresh = match evidence {
            Evidence::UnderGuard => true,
            // By `issue_watched`, which has looked.
            Evidence::Watched(_) if held.is_issued() => true,
            Evidence::Watched(bytes) => bytes.is_fresh() && bytes.range() == range,
        };
        if !was_fresh && mutated(Mutation::DowngradesClaims) && held.issue_part(&around) {
            own.changed.marks.mark(range.start, range.end - range.start);
            return Ok(Self { held, guards, own, effect, outcomes, around, is_settled: false });
        }
        // From here on no change enters the range before the write has settled.
        if !was_fresh || !(held.is_issued() || held.issue_part(&around)) {
            outcomes.stale();
            return Err(stale());
        }
        effect.marks.mark(range.start, range.end - range.start);
        Ok(Self { held, guards, own, effect, outcomes, around, is_settled: false })
    }

    /// The write has ended. If it failed, or something that was let pass overtook it, what the proof
    /// exempted is marked, before anybody learns of it.
    pub(super) fn settle<T>(self, result: Result<T>) -> Result<T> {
        self.settle_and(result, || {}).0
    }

    /// The same; `intact` is called before the guard ends, if the write was what it was proven to be. Says
    /// whether it was.
    pub(super) fn settle_and<T>(
        mut self,
        result: Result<T>,
        intact: impl FnOnce(),
    ) -> (Result<T>, bool) {
        self.is_settled = true;
        let is_intact = self.held.settle(result.is_ok(), intact);
        if is_intact {
            self.outcomes.proven();
        } else {
            self.void();
        }
        (result, is_intact)
    }

    fn void(&self) {
        self.outcomes.voided();
        if mutated(Mutation::KeepsVoidProofs) {
            return;
        }
        self.own.changed.marks.mark(self.around.start, self.around.end - self.around.start);
        if mutated(Mutation::FailedWritesStaleNothing) {
            return;
        }
        self.guards.stale(&self.own.changed.enters, &self.around);
        self.guards.stale(&self.effect.exempt, &self.around);
    }
}

impl Drop for ViewProof<'_> {
    fn drop(&mut self) {
        // Its operation runs to its end; this is the end of the worker, or a panic of a driver.
        if !self.is_settled {
            self.void();
        }
    }
}
