//! What bodies and the instance share: the clock, the actions to send, operations in flight.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::task::{Poll, Waker};

use blockloom_abi::{Action, CopyRange, Done, Entry, Errno, Extent, Operation, Token, Write};

use crate::Time;

/// What becomes of an operation that its body no longer wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unwanted {
    /// It goes on, and its result is lost.
    GoesOn,
    /// The same; the buffer that it fills is dropped as soon as it ends.
    Buffer,
    /// It ends.
    Timer,
}

/// The end of an operation.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) result: Result<(), Errno>,
    pub(crate) extents: Vec<Extent>,
}

/// An operation that a body started.
#[derive(Debug)]
struct Started {
    token: Token,
    state: State,
    extents: Vec<Extent>,
}

#[derive(Debug)]
enum State {
    Waiting(Waker),
    Ended(Result<(), Errno>),
    /// Its body no longer wants it; a buffer it fills is dropped as soon as it ends.
    Abandoned {
        drop_buffer: bool,
    },
}

/// Shared by an instance and its bodies.
#[derive(Default)]
pub(crate) struct Shared {
    now: Cell<u64>,
    /// Words of actions that are not the answer in place of an event.
    actions: Cell<Vec<u64>>,
    /// Operations in flight, for each slot.
    operations: RefCell<Vec<Vec<Started>>>,
    sequence: Cell<u16>,
}

impl Shared {
    #[inline]
    pub(crate) fn now(&self) -> Time {
        Time::from_nanos(self.now.get())
    }

    #[inline]
    pub(crate) fn set_now(&self, now: u64) {
        self.now.set(now);
    }

    pub(crate) fn push(&self, entry: Entry) {
        let mut actions = self.actions.take();
        actions.extend_from_slice(&entry.0);
        self.actions.set(actions);
    }

    /// Whether there is nothing to send.
    pub(crate) fn is_sent(&self) -> bool {
        let actions = self.actions.take();
        let sent = actions.is_empty();
        self.actions.set(actions);
        sent
    }

    /// What there is to send; what is left of it is to be put back, as is its memory.
    #[inline]
    pub(crate) fn take_actions(&self) -> Vec<u64> {
        self.actions.take()
    }

    #[inline]
    pub(crate) fn put_actions(&self, actions: Vec<u64>) {
        self.actions.set(actions);
    }

    /// Sends what starts an operation, and notes whom its end wakes.
    pub(crate) fn start(&self, slot: u16, waker: Waker, action: Action) -> Token {
        let mut operations = self.operations.borrow_mut();
        let wanted = usize::from(slot) + 1;
        if operations.len() < wanted {
            operations.resize_with(wanted, Vec::new);
        }
        let running = &mut operations[usize::from(slot)];
        let token = self.unused(slot, running);
        running.push(Started { token, state: State::Waiting(waker), extents: Vec::new() });
        self.push(named(action, token).encode());
        token
    }

    /// The next token of a slot: `slot | sequence`, leaving out what is still in flight.
    fn unused(&self, slot: u16, running: &[Started]) -> Token {
        loop {
            let sequence = self.sequence.get();
            self.sequence.set(sequence.wrapping_add(1));
            let token = Token(u32::from(slot) | u32::from(sequence) << 16);
            if running.iter().all(|operation| operation.token != token) {
                return token;
            }
        }
    }

    fn with<R>(&self, token: Token, act: impl FnOnce(&mut Vec<Started>, usize) -> R) -> Option<R> {
        let mut operations = self.operations.borrow_mut();
        let running = operations.get_mut(usize::from(token.0 as u16))?;
        let index = running.iter().position(|operation| operation.token == token)?;
        Some(act(running, index))
    }

    /// The end of an operation; until then `waker` is woken by it.
    pub(crate) fn poll(&self, token: Token, waker: &Waker) -> Poll<Ended> {
        self.with(token, |running, index| match &mut running[index].state {
            State::Ended(result) => {
                let result = *result;
                Poll::Ready(Ended { result, extents: running.swap_remove(index).extents })
            }
            State::Waiting(known) => {
                known.clone_from(waker);
                Poll::Pending
            }
            State::Abandoned { .. } => Poll::Pending,
        })
        .unwrap_or(Poll::Pending)
    }

    /// The body of an operation no longer waits for it.
    pub(crate) fn abandon(&self, token: Token, unwanted: Unwanted) {
        let drop_buffer = unwanted == Unwanted::Buffer;
        let drops = self.with(token, |running, index| match running[index].state {
            State::Ended(result) => {
                running.swap_remove(index);
                result.is_ok() && drop_buffer
            }
            _ if unwanted == Unwanted::Timer => {
                running.swap_remove(index);
                true
            }
            _ => {
                running[index].state = State::Abandoned { drop_buffer };
                false
            }
        });
        if drops == Some(true) {
            self.push(Action::Drop { token }.encode());
        }
    }

    /// A part of an answer arrived.
    pub(crate) fn extent(&self, extent: Extent) {
        self.with(extent.token, |running, index| running[index].extents.push(extent));
    }

    /// An operation ended: wakes who waits for it.
    pub(crate) fn done(&self, token: Token, done: Done) {
        let dropped = self.with(token, |running, index| {
            let ended = State::Ended(done.result);
            match std::mem::replace(&mut running[index].state, ended) {
                State::Waiting(waker) => waker.wake(),
                State::Ended(_) => {}
                State::Abandoned { drop_buffer } => {
                    running.swap_remove(index);
                    return drop_buffer && done.result.is_ok();
                }
            }
            false
        });
        if dropped == Some(true) {
            self.push(Action::Drop { token }.encode());
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("now", &self.now()).finish_non_exhaustive()
    }
}

/// The action under that token.
fn named(action: Action, token: Token) -> Action {
    match action {
        Action::Copy(copy) => Action::Copy(CopyRange { token, ..copy }),
        Action::Read(operation) => Action::Read(Operation { token, ..operation }),
        Action::Write(write) => {
            Action::Write(Write { operation: Operation { token, ..write.operation }, ..write })
        }
        Action::Status { operation, above } => {
            Action::Status { operation: Operation { token, ..operation }, above }
        }
        Action::Zero(operation) => Action::Zero(Operation { token, ..operation }),
        Action::Discard(operation) => Action::Discard(Operation { token, ..operation }),
        Action::Flush(operation) => Action::Flush(Operation { token, ..operation }),
        Action::Timer { at_ns, .. } => Action::Timer { token, at_ns },
        Action::Make { parent, len, .. } => Action::Make { token, parent, len },
        other => other,
    }
}
