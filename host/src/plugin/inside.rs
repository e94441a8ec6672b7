//! What is inside an instance: a store, the requests that its guest has in hand, and what the next call takes
//! to it.

use std::collections::{HashMap, VecDeque};

use blockloom_abi::{
    Action, Done, ENTRY_WORDS, Entry, Errno, MAX_EVENTS, NodeIndex, Request, RequestFlags, Subject,
    Token,
};
use wasmtime::Store;

use super::PluginLimits;
use super::bindings::Filter;
use super::cpu::Account;
use super::faults::Fault;
use super::local::{Offer, Ticket};
use super::operation::{Asked, Ended, StoreNumber};
use super::store::HostState;
use super::table::Table;

/// What only the worker inside touches.
pub(super) struct Place {
    /// `None` while there is no store.
    pub(super) live: Option<Inside>,
    /// Kept from store to store, so that ids of an earlier one name nothing in the next.
    pub(super) table: Option<Table>,
}

/// A store, and what its guest has in hand.
pub(super) struct Inside {
    pub(super) number: StoreNumber,
    pub(super) store: Store<HostState>,
    pub(super) filter: Filter,
    pub(super) table: Table,
    /// Requests that wait for a slot. Bounded by what exports admit.
    pub(super) waiting: VecDeque<Offer>,
    /// Ends of operations, for the next call.
    pub(super) carry: Vec<Entry>,
    /// Operations in flight.
    pub(super) operations: usize,
    /// The request for which each buffer was read; it ends with it.
    pub(super) buffers: HashMap<Token, Ticket>,
    /// Where each node's job is.
    pub(super) jobs: HashMap<NodeIndex, Ticket>,
    pub(super) words: Vec<u64>,
    pub(super) cpu: Account,
}

impl Inside {
    pub(super) fn new(
        (store, filter): (Store<HostState>, Filter),
        number: StoreNumber,
        table: Table,
        limits: &PluginLimits,
    ) -> Self {
        Self {
            number,
            store,
            filter,
            table,
            waiting: VecDeque::new(),
            carry: Vec::new(),
            operations: 0,
            buffers: HashMap::new(),
            jobs: HashMap::new(),
            words: Vec::new(),
            cpu: Account::new(limits),
        }
    }

    pub(super) fn asked(&self, action: Action) -> Asked {
        Asked { store: self.number, action }
    }

    /// Adds a request to `words`; `false` when there is no slot or no room for it.
    #[inline]
    pub(super) fn encode(&mut self, request: Offer, now_ns: u64) -> bool {
        let Offer::Request { ticket, node, kind, flags, offset, len } = request else {
            return true;
        };
        if self.words.len() >= MAX_EVENTS * ENTRY_WORDS {
            return false;
        }
        let unchanged = flags.contains(RequestFlags::UNCHANGED);
        let Some(id) = self.table.offer((node, kind, unchanged), ticket, now_ns) else {
            return false;
        };
        self.words.extend(Request { id, node, kind, flags, offset, len }.encode().0);
        true
    }

    /// Whether there is something that the next call can take.
    pub(super) fn has_more(&self) -> bool {
        !self.carry.is_empty() || (!self.waiting.is_empty() && self.table.has_room())
    }

    /// Adds an event; what one call cannot take goes with the next.
    pub(super) fn push(&mut self, event: Entry) {
        if self.words.len() < MAX_EVENTS * ENTRY_WORDS {
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
        if ended.is_read && result.is_err() {
            self.buffers.remove(&ended.token);
        }
        let answered = ended.result.unwrap_or_default();
        for extent in &answered.extents {
            self.push(extent.encode());
        }
        let subject = Subject::Operation(ended.token);
        self.push(Done { subject, result, value: answered.value }.encode());
    }

    /// What was read for a request ends with it.
    #[inline]
    pub(super) fn forget_buffers(&mut self, ticket: Ticket) {
        if !self.buffers.is_empty() {
            self.buffers.retain(|_, of| *of != ticket);
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
