//! The requests that an instance knows: what state each is in, and which answers that allows.
//!
//! An id is a slot and a generation. Every answer names an id; one that names no live request, or asks
//! for a step that the request's state does not allow, is a breach of the protocol.

use blockloom_abi::{Complete, Errno, Forward, Kind, NodeIndex, RequestId};

use super::breach::Breach;
use super::local::Ticket;

/// Where a request stands with the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Offered; the guest owes an answer.
    Offered,
    /// Forwarded with a time that may still be changed, or with notify.
    Forwarded {
        notify: bool,
    },
    /// Its end was told to the guest, which owes the completion.
    Done {
        failed: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    generation: u16,
    state: State,
    node: NodeIndex,
    kind: Kind,
    ticket: Ticket,
    /// Since when the guest owes an answer, if it does: put off by as long as the host worked for it.
    since_ns: u64,
    /// Since when the host has been working for it without a break.
    working_since_ns: u64,
    /// The host has proof that it leaves the node's view as it is.
    unchanged: bool,
    /// A copy has brought what answers it.
    served: bool,
    /// The guest may transform its data.
    transforms: bool,
    /// Operations that the host does for it.
    operations: u32,
    /// Operations that the guest has asked for.
    asked: u32,
}

/// Operations that a guest may ask for on behalf of one request.
pub(super) const OPERATIONS_OF_REQUEST_MAX: u32 = 1 << 16;

/// What the guest decided for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Goes to the child, not before a time (0: now). `known` if the guest may still name it.
    Forward { not_before_ns: u64, notify: bool, known: Option<RequestId> },
    /// Ends without, or after, the child.
    Complete(Result<(), Errno>),
    /// A copy has brought what answers it, which the child shows, too; the guest will hear no more of it.
    Served,
}

impl Answer {
    /// It goes to the child now, and the guest will hear no more of it.
    pub(super) const GONE: Self = Self::Forward { not_before_ns: 0, notify: false, known: None };
}

/// The requests of one instance; at most the limit of requests in flight.
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<u16>,
    live: usize,
    limit: usize,
}

impl Table {
    pub(super) fn new(in_flight: u32) -> Self {
        let limit = usize::try_from(in_flight).unwrap_or(usize::MAX).min(usize::from(u16::MAX));
        Self { slots: Vec::new(), free: Vec::new(), live: 0, limit }
    }

    /// Takes a slot; `None` when the limit is reached.
    #[inline]
    pub(super) fn offer(
        &mut self,
        (node, kind, unchanged): (NodeIndex, Kind, bool),
        ticket: Ticket,
        now_ns: u64,
    ) -> Option<RequestId> {
        if self.live == self.limit {
            return None;
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u16::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot {
                    generation: 0,
                    state: State::Free,
                    node,
                    kind,
                    ticket,
                    since_ns: 0,
                    working_since_ns: 0,
                    unchanged,
                    served: false,
                    transforms: false,
                    operations: 0,
                    asked: 0,
                });
                index
            }
        };
        let slot = &mut self.slots[usize::from(index)];
        let generation = slot.generation.checked_add(1).unwrap_or(1);
        *slot = Slot {
            generation,
            state: State::Offered,
            node,
            kind,
            ticket,
            since_ns: now_ns,
            working_since_ns: 0,
            unchanged,
            served: false,
            transforms: false,
            operations: 0,
            asked: 0,
        };
        self.live += 1;
        RequestId::new(index, generation)
    }

    fn slot(&mut self, id: RequestId) -> Result<&mut Slot, Breach> {
        let unknown = Breach::UnknownRequest(id.bits());
        let slot = self.slots.get_mut(usize::from(id.slot())).ok_or(unknown)?;
        if slot.generation != id.generation() { Err(unknown) } else { Ok(slot) }
    }

    /// Whether `id` named an earlier request of a slot that now has another one.
    fn is_past(&self, id: RequestId) -> bool {
        let slot = self.slots.get(usize::from(id.slot()));
        // Generations wrap: the half behind the present one is the past.
        slot.is_some_and(|slot| {
            (1..=u16::MAX / 2).contains(&slot.generation.wrapping_sub(id.generation()))
        })
    }

    fn release(&mut self, id: RequestId) {
        let slot = &mut self.slots[usize::from(id.slot())];
        if slot.state != State::Free {
            slot.state = State::Free;
            self.live -= 1;
            self.free.push(id.slot());
        }
    }

    /// A FORWARD without time or flags, of a request that was offered: it goes, and nobody names it again.
    /// `None` when it is not that simple: see [`Table::forward`].
    #[inline]
    pub(super) fn forward_now(&mut self, id: RequestId) -> Option<Ticket> {
        let slot = self.slots.get_mut(usize::from(id.slot()))?;
        if slot.generation != id.generation() || slot.state != State::Offered {
            return None;
        }
        slot.state = State::Free;
        let ticket = slot.ticket;
        self.live -= 1;
        self.free.push(id.slot());
        Some(ticket)
    }

    /// A FORWARD; `None` when it re-times a request that has gone in the meantime.
    #[inline]
    pub(super) fn forward(
        &mut self,
        action: Forward,
        now_ns: u64,
    ) -> Result<Option<(Ticket, Answer)>, Breach> {
        let id = action.id;
        if self.is_past(id) {
            return Ok(None);
        }
        let slot = self.slot(id)?;
        let ticket = slot.ticket;
        let notify = match slot.state {
            State::Offered => action.notify,
            State::Forwarded { notify } => notify,
            // The guest cannot know when the host lets a held request go.
            State::Free => return Ok(None),
            State::Done { .. } => {
                return Err(Breach::OutOfTurn { id: id.bits(), what: "forward" });
            }
        };
        let held = action.not_before_ns > now_ns;
        let known = (held || notify).then_some(id);
        if known.is_some() {
            slot.state = State::Forwarded { notify };
        } else {
            self.release(id);
        }
        let answer = Answer::Forward { not_before_ns: action.not_before_ns, notify, known };
        Ok(Some((ticket, answer)))
    }

    /// The guest may transform the data of a request.
    pub(super) fn transforms(&mut self, id: RequestId) {
        if let Ok(slot) = self.slot(id) {
            slot.transforms = true;
        }
    }

    /// A COMPLETE; `is_put` if the guest has put bytes to the request.
    pub(super) fn complete(
        &mut self,
        action: Complete,
        is_put: bool,
    ) -> Result<(Ticket, Answer), Breach> {
        let bits = action.id.bits();
        let slot = self.slot(action.id)?;
        let (ticket, kind) = (slot.ticket, slot.kind);
        match (slot.state, action.result) {
            (State::Offered, Ok(())) if slot.served => {
                self.release(action.id);
                return Ok((ticket, Answer::Served));
            }
            (State::Free, _) => return Err(Breach::UnknownRequest(bits)),
            (State::Forwarded { .. }, _) => {
                return Err(Breach::OutOfTurn { id: bits, what: "complete" });
            }
            // What it shows is its own.
            (State::Offered, Ok(())) if slot.transforms && is_own_answer(kind, is_put) => {}
            // Discard is advisory: not doing it is a success.
            (State::Offered, Ok(())) if kind != Kind::Discard => {
                return Err(Breach::Unserved { id: bits, kind });
            }
            (State::Done { failed: true }, Ok(())) => {
                return Err(Breach::Unserved { id: bits, kind });
            }
            (State::Offered | State::Done { .. }, _) => {}
        }
        self.release(action.id);
        Ok((ticket, Answer::Complete(action.result)))
    }

    /// An operation that the guest asks for on behalf of a request, which it has yet to answer.
    pub(super) fn operate(&mut self, id: RequestId, now_ns: u64) -> Result<Ticket, Breach> {
        let slot = self.slot(id)?;
        match slot.state {
            State::Offered | State::Done { .. } if slot.asked == OPERATIONS_OF_REQUEST_MAX => {
                Err(Breach::TooManyOperations(id.bits()))
            }
            State::Offered | State::Done { .. } => {
                slot.asked += 1;
                if slot.operations == 0 {
                    slot.working_since_ns = now_ns;
                }
                slot.operations += 1;
                Ok(slot.ticket)
            }
            State::Free => Err(Breach::UnknownRequest(id.bits())),
            State::Forwarded { .. } => {
                Err(Breach::OutOfTurn { id: id.bits(), what: "do something for" })
            }
        }
    }

    /// An operation has ended; `serves` if it brought what answers its request.
    pub(super) fn operated(&mut self, id: RequestId, serves: bool, now_ns: u64) {
        if let Ok(slot) = self.slot(id)
            && slot.state != State::Free
        {
            slot.operations = slot.operations.saturating_sub(1);
            slot.served |= serves;
            if slot.operations == 0 {
                slot.since_ns += now_ns.saturating_sub(slot.working_since_ns);
            }
        }
    }

    /// The kind of a request that the guest may name.
    pub(super) fn kind(&mut self, id: RequestId) -> Option<Kind> {
        self.slot(id).ok().map(|slot| slot.kind)
    }

    /// Who waits for the answer to a request that the guest may name.
    pub(super) fn ticket(&mut self, id: RequestId) -> Option<Ticket> {
        self.slot(id).ok().map(|slot| slot.ticket)
    }

    /// Whether a request is proven to leave the node's view as it is.
    pub(super) fn is_unchanged(&mut self, id: RequestId) -> bool {
        self.slot(id).is_ok_and(|slot| slot.unchanged)
    }

    /// A claim that was refused: the guest owes the completion, with an error. Returns whose request it was.
    pub(super) fn refuse_claim(&mut self, id: RequestId) -> Result<NodeIndex, Breach> {
        let slot = self.slot(id)?;
        if slot.state != State::Offered {
            return Err(Breach::OutOfTurn { id: id.bits(), what: "forward" });
        }
        slot.state = State::Done { failed: true };
        Ok(slot.node)
    }

    /// Forgets all requests: those who wait for an answer, in the order of their arrival on each worker. Their
    /// ids name nothing any more, and are not given out again soon.
    pub(super) fn clear(&mut self) -> Vec<Ticket> {
        let mut tickets = Vec::with_capacity(self.live);
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.state != State::Free {
                slot.state = State::Free;
                tickets.push(slot.ticket);
                // There are no more slots than a `u16` counts.
                self.free.push(index as u16);
            }
        }
        self.live = 0;
        tickets.sort_by_key(|ticket| ticket.sequence());
        tickets
    }

    /// Whether nothing is owed: no request is offered, and the end of none is awaited.
    pub(super) fn is_quiet(&self) -> bool {
        let is_owed =
            |slot: &Slot| !matches!(slot.state, State::Free | State::Forwarded { notify: false });
        !self.slots.iter().any(is_owed)
    }

    /// Forwarded requests whose end the guest awaits; some of them may be held.
    pub(super) fn awaited(&self) -> Vec<(Ticket, RequestId)> {
        let awaited = (0..=u16::MAX).zip(&self.slots).filter_map(|(index, slot)| {
            let is_awaited = slot.state == (State::Forwarded { notify: true });
            let id = RequestId::new(index, slot.generation).filter(|_| is_awaited)?;
            Some((slot.ticket, id))
        });
        awaited.collect()
    }

    /// Forgets requests that are held: they go at their time, and nobody changes it any more.
    pub(super) fn forget_held(&mut self) {
        for (index, slot) in (0..=u16::MAX).zip(&mut self.slots) {
            if slot.state == (State::Forwarded { notify: false }) {
                slot.state = State::Free;
                self.live -= 1;
                self.free.push(index);
            }
        }
    }

    /// Whether one more request fits.
    pub(super) fn has_room(&self) -> bool {
        self.live < self.limit
    }

    /// The child has ended a request forwarded with notify; returns whether the guest is to be told.
    pub(super) fn done(&mut self, id: RequestId, failed: bool, now_ns: u64) -> bool {
        match self.slot(id) {
            Ok(slot) if slot.state == (State::Forwarded { notify: true }) => {
                slot.state = State::Done { failed };
                slot.since_ns = now_ns;
                true
            }
            _ => false,
        }
    }

    /// Whether the guest has owed an answer for longer than `hold_ns`.
    pub(super) fn is_overdue(&self, now_ns: u64, hold_ns: u64) -> bool {
        let is_asked = |slot: &Slot| matches!(slot.state, State::Offered | State::Done { .. });
        // While the host works for it, the guest owes nothing.
        let is_owed = |slot: &Slot| is_asked(slot) && slot.operations == 0;
        let is_late = |slot: &Slot| now_ns.saturating_sub(slot.since_ns) > hold_ns;
        self.slots.iter().any(|slot| is_owed(slot) && is_late(slot))
    }

    /// A held request has gone to the child; nobody will name it again.
    pub(super) fn let_go(&mut self, id: RequestId) {
        if self.slot(id).is_ok_and(|slot| slot.state == (State::Forwarded { notify: false })) {
            self.release(id);
        }
    }
}

/// Whether a guest that may transform the data of a request can have done it itself.
fn is_own_answer(kind: Kind, is_put: bool) -> bool {
    match kind {
        Kind::Read => is_put,
        Kind::Write | Kind::Zero => true,
        Kind::Discard | Kind::Flush | Kind::Resize => false,
    }
}

#[cfg(test)]
mod tests;
