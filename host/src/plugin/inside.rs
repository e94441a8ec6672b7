//! What is inside an instance: a store, the requests that its guest has in hand, and what the next call takes
//! to it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use blockloom_abi::{
    Action, Done, ENTRY_WORDS, Entry, Errno, Kinds, MAX_EVENTS, NodeIndex, Request, RequestFlags,
    Subject, Token,
};
use wasmtime::Store;

use super::PluginLimits;
use super::bindings::Filter;
use super::bytes::ByteAccess;
use super::cpu::Account;
use super::faults::Fault;
use super::jobs::Job;
use super::local::{Offer, Ticket};
use super::module::PluginModule;
use super::operation::{Asked, Ended, StoreNumber};
use super::store::HostState;
use super::table::Table;
use super::timers::Timers;

/// What only the worker inside touches.
pub(super) struct Place {
    /// `None` while there is no store.
    pub(super) live: Option<Inside>,
    /// Kept from store to store, so that ids of an earlier one name nothing in the next.
    pub(super) table: Option<Table>,
}

/// A buffer of a guest's, from its READ or MAKE on.
#[derive(Clone, Copy)]
pub(super) struct Buffer {
    /// The request for which it is filled; it ends with it.
    pub(super) of: Ticket,
    /// That has yet to end: until then the token stays in use.
    pub(super) is_filling: bool,
    pub(super) is_dropped: bool,
}

/// A store that may take the place, and the nodes that its guest was told of.
pub(super) struct Made {
    pub(super) module: Arc<PluginModule>,
    pub(super) store: Store<HostState>,
    pub(super) filter: Filter,
    pub(super) serves: Vec<NodeIndex>,
    /// How often nodes had had another size by then.
    pub(super) resizes: u64,
}

/// A store, and what its guest has in hand.
pub(super) struct Inside {
    pub(super) number: StoreNumber,
    pub(super) module: Arc<PluginModule>,
    /// What it wants to be offered.
    pub(super) kinds: Kinds,
    pub(super) store: Store<HostState>,
    pub(super) filter: Filter,
    pub(super) table: Table,
    /// Requests that wait for a slot. Bounded by what exports admit.
    pub(super) waiting: VecDeque<Offer>,
    /// Ends of operations, for the next call.
    pub(super) carry: Vec<Entry>,
    /// Operations in flight.
    pub(super) operations: usize,
    /// The buffers that the guest may name.
    pub(super) buffers: HashMap<Token, Buffer>,
    pub(super) timers: Timers,
    /// Each node's job.
    pub(super) jobs: HashMap<NodeIndex, Job>,
    /// The nodes that the guest was told of.
    pub(super) serves: Vec<NodeIndex>,
    /// Those of them of which it is to be told that they have gone.
    pub(super) leaving: Vec<NodeIndex>,
    /// No request is offered: another store is to take the place.
    pub(super) is_gated: bool,
    /// Nor is the guest called at all.
    pub(super) is_frozen: bool,
    pub(super) words: Vec<u64>,
    /// Calls for requests so far, and the events in them.
    pub(super) calls: (u64, u64),
    pub(super) cpu: Account,
}

impl Inside {
    pub(super) fn new(
        made: Made,
        number: StoreNumber,
        table: Table,
        limits: &PluginLimits,
    ) -> Self {
        let Made { module, store, filter, serves, .. } = made;
        let cpu = Account::new(limits, Arc::clone(&module.runtime.ticks));
        Self {
            number,
            kinds: module.kinds(),
            module,
            store,
            filter,
            table,
            waiting: VecDeque::new(),
            carry: Vec::new(),
            operations: 0,
            buffers: HashMap::new(),
            timers: Timers::default(),
            jobs: HashMap::new(),
            serves,
            leaving: Vec::new(),
            is_gated: false,
            is_frozen: false,
            words: Vec::new(),
            calls: (0, 0),
            cpu,
        }
    }

    pub(super) fn asked(&self, action: Action) -> Asked {
        Asked { store: self.number, action }
    }

    /// Adds a request to `words`; `false` when there is no slot or no room for it.
    #[inline]
    pub(super) fn encode(&mut self, request: &Offer, now_ns: u64) -> bool {
        let &Offer::Request { ticket, node, kind, flags, offset, len } = request else {
            return true;
        };
        if !self.has_room_for_events() {
            return false;
        }
        let unchanged = flags.contains(RequestFlags::UNCHANGED);
        let Some(id) = self.table.offer((node, kind, unchanged), ticket, now_ns) else {
            return false;
        };
        if self.store.data_mut().take_lent(id, ticket) == ByteAccess::Transform {
            self.table.transforms(id);
        }
        self.words.extend(Request { id, node, kind, flags, offset, len }.encode().0);
        true
    }

    /// Whether the guest wants to be offered a request.
    #[inline]
    pub(super) fn wants(&self, request: &Offer) -> bool {
        match request {
            Offer::Request { kind, .. } => self.kinds.contains(*kind),
            _ => true,
        }
    }

    /// Whether there is something that the next call can take.
    pub(super) fn has_more(&self) -> bool {
        let may_offer = !self.waiting.is_empty() && !self.is_gated && self.table.has_room();
        !self.carry.is_empty() || may_offer
    }

    pub(super) fn has_room_for_events(&self) -> bool {
        self.words.len() < MAX_EVENTS * ENTRY_WORDS
    }

    /// Adds an event; what one call cannot take goes with the next.
    pub(super) fn push(&mut self, event: Entry) {
        if self.has_room_for_events() {
            self.words.extend(event.0);
        } else {
            self.carry.push(event);
        }
    }

    /// Tells the guest how an operation ended.
    pub(super) fn tell(&mut self, ended: Ended, now_ns: u64) {
        self.operations = self.operations.saturating_sub(1);
        let result = ended.result.as_ref().map(drop).map_err(|errno| *errno);
        if let Some(id) = ended.request {
            self.table.operated(id, ended.serves && result.is_ok(), now_ns);
        }
        if ended.is_read
            && let Some(buffer) = self.buffers.get_mut(&ended.token)
        {
            buffer.is_filling = false;
            if result.is_err() || buffer.is_dropped {
                self.buffers.remove(&ended.token);
            }
        }
        let answered = ended.result.unwrap_or_default();
        if let (Some(seen), Some(buffer)) = (answered.seen, self.buffers.get(&ended.token)) {
            self.store.data_mut().bytes.fill(ended.token, buffer.of, seen);
        }
        for extent in &answered.extents {
            self.push(extent.encode());
        }
        let subject = Subject::Operation(ended.token);
        self.push(Done { subject, result, value: answered.value }.encode());
    }

    /// The data of a request, and what was read for it, end with it.
    #[inline]
    pub(super) fn forget_buffers(&mut self, ticket: Ticket) {
        self.store.data_mut().bytes.end(ticket);
        if !self.buffers.is_empty() {
            self.buffers.retain(|_, buffer| buffer.of != ticket);
        }
    }

    /// Tells the guest of timers that are due.
    pub(super) fn tell_due(&mut self, now_ns: u64) {
        while let Some(token) = self.timers.take_due(now_ns) {
            let subject = Subject::Operation(token);
            self.push(Done { subject, result: Ok(()), value: 0 }.encode());
        }
    }

    /// A buffer, or a timer, that the guest lets go of: the request for which it was read.
    pub(super) fn drop_named(&mut self, token: Token) -> Option<Ticket> {
        let Some(buffer) = self.buffers.get_mut(&token) else {
            self.timers.remove(token);
            return None;
        };
        let Buffer { of, is_filling, is_dropped } = *buffer;
        buffer.is_dropped = true;
        if !is_filling {
            self.buffers.remove(&token);
        }
        (!is_dropped).then_some(of)
    }

    /// Operations in flight, and timers.
    pub(super) fn in_flight(&self) -> usize {
        self.operations + self.timers.len()
    }

    /// Whether the guest owes nothing, nothing is done for it, and it has nothing to learn. What is held for it
    /// and timers do not count.
    pub(super) fn is_quiet(&self) -> bool {
        let jobs_rest = self.jobs.values().all(|job| !job.state.is_unasked());
        self.table.is_quiet() && self.operations == 0 && self.carry.is_empty() && jobs_rest
    }

    /// What comes while the guest is not called any more waits for the next one.
    pub(super) fn put_by(&mut self, batch: &mut Vec<Offer>) {
        for offer in batch.drain(..) {
            match offer {
                Offer::LetGo { id } => self.table.let_go(id),
                Offer::Job { ticket, node } => drop(self.jobs.insert(node, Job::stopped(ticket))),
                // Nothing was forwarded for which this is owed.
                Offer::Done { .. } => {}
                request @ Offer::Request { .. } => self.waiting.push_back(request),
            }
        }
    }

    /// Ends an operation that is not begun.
    pub(super) fn refuse(&mut self, token: Token, errno: Errno) -> Result<(), Fault> {
        self.end(token, Err(errno))
    }

    pub(super) fn end(&mut self, token: Token, result: Result<(), Errno>) -> Result<(), Fault> {
        self.carry(Done { subject: Subject::Operation(token), result, value: 0 })
    }

    pub(super) fn carry(&mut self, done: Done) -> Result<(), Fault> {
        if self.carry.len() >= MAX_EVENTS {
            let reason = format!("it asked for more than {MAX_EVENTS} operations at once");
            return Err(Fault::breach(reason));
        }
        self.carry.push(done.encode());
        Ok(())
    }
}
