//! `ViewProof`: captured reads, claims, and which of them are true.

use super::flight::{Freshness, Watch};
use super::ids::{FlightId, NodeId, Span, WatchId};
use super::refusal::Refusal;
use super::world::World;

/// Where the bytes of a claimed write come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Buffer {
    /// The buffer that a captured read filled, untouched.
    Captured(WatchId),
    /// That buffer, with other bytes in it by now (as many as the span has).
    Altered(WatchId, Vec<u8>),
    /// No captured read: just bytes.
    Unknown(Vec<u8>),
    /// Zeros, where block status said zero while the watch was registered on the node's own view.
    ZeroByStatus(WatchId),
}

/// What the host answers to a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The write was proven.
    Proven,
    /// Refused: the bytes may be older than the view.
    Stale,
    /// Refused: nothing proves it.
    NotProven,
}

/// Which answers to a claim are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is proven for the view of this node.
    Proven(NodeId),
    /// It is true, and the host may be careful and refuse it.
    MayRefuse(NodeId),
    /// It must be refused. If both are so, the host may name either.
    Refused {
        /// The bytes may be older than the view.
        stale: bool,
        /// Nothing proves it.
        not_proven: bool,
    },
}

impl Verdict {
    /// Whether `answer` is right.
    pub fn admits(self, answer: Answer) -> bool {
        match (self, answer) {
            (Self::Proven(_), answer) => answer == Answer::Proven,
            (Self::MayRefuse(_), _) => true,
            (Self::Refused { stale, .. }, Answer::Stale) => stale,
            (Self::Refused { not_proven, .. }, Answer::NotProven) => not_proven,
            (Self::Refused { .. }, Answer::Proven) => false,
        }
    }

    /// The node whose view evidence exempts.
    pub fn exempts(self) -> Option<NodeId> {
        match self {
            Self::Proven(view) | Self::MayRefuse(view) => Some(view),
            Self::Refused { .. } => None,
        }
    }
}

impl World {
    /// Registers a watch on a node's view; it is stale at once if a change that affects it is in
    /// flight.
    ///
    /// # Errors
    /// No such node, or the span is not in its view.
    pub fn register_watch(&mut self, node: NodeId, span: Span) -> Result<WatchId, Refusal> {
        let len = self.graph.len(self.entry(node.into())?);
        if span.is_empty() || span.end > len {
            return Err(Refusal::OutOfRange { span, len });
        }
        let affects = self
            .flights
            .values()
            .any(|flight| self.graph.reach(node, &flight.legs, flight.exempt).meets(span));
        let freshness = if affects { Freshness::Stale } else { Freshness::Fresh };
        let id = WatchId(self.next_id());
        self.watches.insert(id, Watch { node, span, freshness, captured: None });
        Ok(id)
    }

    /// The read under a watch: what the view shows now.
    ///
    /// # Errors
    /// No such watch, or its node is gone.
    pub fn capture(&mut self, id: WatchId) -> Result<Vec<u8>, Refusal> {
        let watch = self.watches.get_mut(&id).ok_or(Refusal::UnknownWatch(id))?;
        let shows = self.graph.bytes(watch.node);
        let bytes = shows.get(watch.span.offsets()).ok_or(Refusal::UnknownNode(watch.node))?;
        watch.captured = Some(bytes.to_vec());
        Ok(bytes.to_vec())
    }

    /// The captured buffer is gone.
    pub fn unregister_watch(&mut self, id: WatchId) {
        self.watches.remove(&id);
    }

    /// Whether a write of `buffer` to `span` of `node` leaves alone what it claims to, as far as the
    /// host can know.
    ///
    /// It must not be blocked ([`blockers`](Self::blockers)); a claim that waits is judged afterwards.
    pub fn judge(&self, node: NodeId, span: Span, buffer: &Buffer) -> Verdict {
        let watch = match buffer {
            Buffer::Unknown(_) => None,
            Buffer::Captured(id) | Buffer::Altered(id, _) | Buffer::ZeroByStatus(id) => {
                self.watches.get(id)
            }
        };
        let Some(watch) = watch else { return Verdict::Refused { stale: false, not_proven: true } };
        let proves = watch.span.contains(span)
            && self.graph.is_at_or_below(node, watch.node)
            && match buffer {
                Buffer::Captured(_) => watch.captured.is_some(),
                Buffer::ZeroByStatus(_) => {
                    let bytes = self.graph.bytes(node);
                    let mut shown = bytes.get(span.offsets()).unwrap_or(&[1]).iter();
                    self.graph.class(node) == self.graph.class(watch.node)
                        && shown.all(|byte| *byte == 0)
                }
                Buffer::Altered(..) | Buffer::Unknown(_) => false,
            };
        match (proves, watch.freshness) {
            // Block status need not know of every zero.
            (true, Freshness::Fresh) if matches!(buffer, Buffer::ZeroByStatus(_)) => {
                Verdict::MayRefuse(watch.node)
            }
            (true, Freshness::Fresh) => Verdict::Proven(watch.node),
            (true, Freshness::Unsettled) => Verdict::MayRefuse(watch.node),
            (_, freshness) => {
                Verdict::Refused { stale: freshness != Freshness::Fresh, not_proven: !proves }
            }
        }
    }

    /// A claimed write that the host takes as proven. If it is not, the world says so at the next
    /// check: the change then exempts nothing.
    ///
    /// # Errors
    /// The span is not in the node's view; or there is no such watch, or it has captured nothing.
    pub fn admit_claim(
        &mut self,
        node: NodeId,
        span: Span,
        buffer: &Buffer,
    ) -> Result<FlightId, Refusal> {
        let exempt = self.judge(node, span, buffer).exempts();
        let (bytes, shielded) = match buffer {
            Buffer::Unknown(bytes) => (bytes.clone(), None),
            Buffer::Altered(id, bytes) => (bytes.clone(), self.watches.get(id)),
            Buffer::ZeroByStatus(id) => (vec![0; span.len()], self.watches.get(id)),
            Buffer::Captured(id) => {
                let watch = self.watches.get(id).ok_or(Refusal::UnknownWatch(*id))?;
                let captured = watch.captured.as_deref().unwrap_or_default();
                let at = span.shifted_down(watch.span.start);
                let bytes = captured.get(at.offsets()).filter(|_| watch.span.contains(span));
                (bytes.ok_or(Refusal::NotProven)?.to_vec(), Some(watch))
            }
        };
        let shielded = shielded.map(|watch| watch.node);
        self.admit_exempting(node, span, bytes, exempt, shielded)
    }
}
