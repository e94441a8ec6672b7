//! The whole of a request, as one step: what the host should answer, and the truth afterwards.
//!
//! For runs in which one request is in flight at a time. [`Outcome`] is what the device does, and is
//! the caller's to choose; each returns what the host should answer to that.

use super::actions::Action;
use super::evidence::{Buffer, Verdict};
use super::flight::{Outcome, Payload};
use super::ids::{BitmapId, FlightId, NodeId, Span, View};
use super::refusal::Refusal;
use super::world::World;

/// What to do about a graph change without evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unproven {
    /// Make dirty whole what it may alter.
    MarkWhole,
    /// Refuse the transaction.
    Refuse,
}

impl World {
    /// A read.
    ///
    /// # Errors
    /// No such view, no medium, or out of range.
    pub fn read(&self, view: View, span: Span) -> Result<Vec<u8>, Refusal> {
        let bytes = self.graph.bytes(self.entry(view)?);
        let read = bytes.get(span.offsets()).filter(|read| !read.is_empty());
        read.map(<[u8]>::to_vec).ok_or(Refusal::OutOfRange { span, len: bytes.len() })
    }

    /// A write, zeroing or discard at a drive or node, not claimed to be unchanged.
    ///
    /// # Errors
    /// As [`read`](Self::read); a guard holds it off; or the device fails.
    pub fn change(
        &mut self,
        view: View,
        span: Span,
        payload: &Payload,
        outcome: &Outcome,
    ) -> Result<(), Refusal> {
        let entry = self.entry(view)?;
        none_or(self.blockers(entry, span, None)?, Refusal::Waits)?;
        let flight = self.admit(entry, span, payload)?;
        self.finish(flight, outcome)
    }

    /// A write with a claim. A refused claim changes nothing.
    ///
    /// Where both are right ([`Verdict::MayRefuse`]) it is proven; [`judge`](Self::judge) beforehand
    /// tells whether the host may refuse.
    ///
    /// # Errors
    /// The claim is refused; no such node, or out of range; a guard holds it off; the device fails.
    pub fn claimed_write(
        &mut self,
        node: NodeId,
        span: Span,
        buffer: &Buffer,
        outcome: &Outcome,
    ) -> Result<(), Refusal> {
        self.graph.legs(self.entry(node.into())?, span)?;
        let exempt = match self.judge(node, span, buffer) {
            Verdict::Refused { not_proven: true, .. } => return Err(Refusal::NotProven),
            Verdict::Refused { .. } => return Err(Refusal::Stale),
            Verdict::Proven(view) | Verdict::MayRefuse(view) => view,
        };
        none_or(self.blockers(node, span, Some(exempt))?, Refusal::Waits)?;
        let flight = self.admit_claim(node, span, buffer)?;
        self.finish(flight, outcome)
    }

    /// Copies what `from` shows at `span` to `to`, at or below it, clipped to the smaller view.
    /// Returns how many bytes were copied.
    ///
    /// # Errors
    /// `to` is not at or below `from`; no such node; out of range; the device fails.
    pub fn copy(
        &mut self,
        from: NodeId,
        to: NodeId,
        span: Span,
        outcome: &Outcome,
    ) -> Result<usize, Refusal> {
        let to_len = self.graph.len(self.entry(to.into())?);
        let watch = self.register_watch(from, span)?;
        let span = span.clipped(to_len);
        let copied = self.capture(watch).and_then(|_| {
            if span.is_empty() && self.graph.is_at_or_below(to, from) {
                return Ok(0);
            }
            self.claimed_write(to, span, &Buffer::Captured(watch), outcome)?;
            Ok(span.len())
        });
        self.unregister_watch(watch);
        copied
    }

    /// Applies all actions, or none. Returns the bitmaps made dirty whole, of which an event tells.
    ///
    /// # Errors
    /// An action is impossible, not drained, or without evidence that was asked for.
    pub fn transact(
        &mut self,
        actions: &[Action],
        unproven: Unproven,
    ) -> Result<Vec<BitmapId>, Refusal> {
        let mut next = self.clone();
        let mut marked = Vec::new();
        for action in actions {
            none_or(next.busy(action), Refusal::Busy)?;
            if unproven == Unproven::Refuse {
                none_or(next.unproven_users(action)?, Refusal::NotSameView)?;
            }
            marked.extend(next.apply(action)?);
        }
        marked.sort_unstable();
        marked.dedup();
        *self = next;
        Ok(marked)
    }

    /// Power fails: of each change in flight these bytes have landed, and nobody is told. Watches and
    /// guards are gone; bitmaps are as their journals say, dirty where they were.
    ///
    /// Bytes lost of what has settled before are not modelled: as if each settlement were a flush.
    pub fn lose_power(&mut self, mut landed: impl FnMut(FlightId, &[u8]) -> Vec<Option<u8>>) {
        for (id, flight) in std::mem::take(&mut self.flights) {
            if flight.issued {
                let bytes = landed(id, &flight.bytes);
                self.store(&flight, &bytes[..bytes.len().min(flight.span.len())]);
            }
        }
        self.watches.clear();
    }

    fn finish(&mut self, flight: FlightId, outcome: &Outcome) -> Result<(), Refusal> {
        self.settle(flight, outcome)?;
        match outcome {
            Outcome::Done | Outcome::Ignored => Ok(()),
            Outcome::Failed(_) => Err(Refusal::Io),
        }
    }
}

fn none_or<T>(found: Vec<T>, refusal: impl FnOnce(Vec<T>) -> Refusal) -> Result<(), Refusal> {
    if found.is_empty() { Ok(()) } else { Err(refusal(found)) }
}
