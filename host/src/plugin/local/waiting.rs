//! Who waits for an answer of the guest: places, verdicts, and what becomes of a request that has gone.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::num::NonZeroU64;
use std::rc::Rc;
use std::task::{Poll, Waker};

use blockloom_abi::{Errno, RequestId};

use super::super::operation::{Asked as AskedFor, Ended};
use super::super::rules::KeptRules;
use super::super::table::Answer;
use super::{LocalPlugin, Offer};
use crate::io::Time;

/// Names a waiting request of a worker: two words, which go in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::plugin) struct Ticket {
    /// The worker, and there the place.
    place: u64,
    sequence: NonZeroU64,
}

impl Ticket {
    #[inline]
    pub(in crate::plugin) fn new(worker: u32, waiter: u32, sequence: NonZeroU64) -> Self {
        Self { place: u64::from(worker) << 32 | u64::from(waiter), sequence }
    }

    #[inline]
    pub(in crate::plugin) fn worker(self) -> u32 {
        (self.place >> 32) as u32
    }

    #[inline]
    pub(in crate::plugin) fn waiter(self) -> usize {
        self.place as u32 as usize
    }

    #[inline]
    pub(in crate::plugin) fn sequence(self) -> u64 {
        self.sequence.get()
    }
}

/// What a waiting request learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plugin) enum Verdict {
    /// The guest's answer.
    Answer(Answer),
    /// The guest wants something done for it first; its answer follows.
    Operate(AskedFor),
    /// The store that knew of it is no more.
    Fault,
}

/// A place of a waiting request. It keeps its last waker: the next tenant is often the same task.
pub(super) struct Waiter {
    /// Of the tenant; 0 when the place is free.
    pub(super) sequence: u64,
    pub(super) verdict: Option<Verdict>,
    /// The store that knew of it is no more: it learns so after its verdict.
    pub(super) is_lost: bool,
    /// When the tenant came to the plugin.
    pub(super) since: Time,
    /// Operations that the tenant is to begin, before it takes its verdict. Bounded by those that the
    /// instance may have in flight.
    pub(super) operations: VecDeque<AskedFor>,
    pub(super) waker: Waker,
    /// By which the tenant goes, until the guest has answered it.
    pub(super) rules: Option<Rc<KeptRules>>,
    /// The tenant is to be woken.
    pub(super) waits: bool,
    /// It is a job, which owes no answer.
    pub(super) is_job: bool,
}

/// The places of one worker. Bounded by the requests that exports admit.
#[derive(Default)]
pub(super) struct Waiters {
    pub(super) places: Vec<Waiter>,
    pub(super) free: Vec<u32>,
}

impl Waiters {
    #[inline]
    pub(super) fn insert(&mut self, sequence: NonZeroU64, since: Time) -> u32 {
        let sequence = sequence.get();
        let Some(index) = self.free.pop() else {
            // Far fewer can wait at once.
            let index = self.places.len() as u32;
            let waker = Waker::noop().clone();
            let operations = VecDeque::new();
            self.places.push(Waiter {
                sequence,
                verdict: None,
                is_lost: false,
                since,
                operations,
                waker,
                rules: None,
                waits: false,
                is_job: false,
            });
            return index;
        };
        let place = &mut self.places[index as usize];
        (place.sequence, place.verdict, place.waits) = (sequence, None, false);
        (place.is_job, place.is_lost, place.since) = (false, false, since);
        index
    }

    /// Returns what the tenant has not taken: operations, and its verdict; and rules that may be the last of
    /// their kind.
    #[inline]
    pub(super) fn remove(
        &mut self,
        index: usize,
    ) -> (VecDeque<AskedFor>, Option<Verdict>, Option<Rc<KeptRules>>) {
        let place = &mut self.places[index];
        place.sequence = 0;
        // As it was given.
        self.free.push(index as u32);
        (std::mem::take(&mut place.operations), place.verdict.take(), place.rules.take())
    }

    pub(super) fn live(&self) -> impl Iterator<Item = &Waiter> {
        self.places.iter().filter(|place| place.sequence != 0 && !place.is_job)
    }
}

/// A request's place among the waiters; ends when dropped.
pub(in crate::plugin) struct Waiting {
    pub(super) plugin: Rc<LocalPlugin>,
    pub(super) ticket: Ticket,
}

/// When a request came to the plugin for the first time.
#[derive(Clone, Copy, Debug)]
pub(in crate::plugin) struct Arrival {
    /// Its place in the order of this worker.
    pub(super) sequence: u64,
    pub(in crate::plugin) since: Time,
}

impl LocalPlugin {
    /// Tells a waiter its verdict; one that is gone is passed over.
    #[inline]
    pub(in crate::plugin) fn deliver(&self, ticket: Ticket, verdict: Verdict) {
        let mut waiters = self.waiters.borrow_mut();
        let waiter = waiters.places.get_mut(ticket.waiter());
        let Some(waiter) = waiter.filter(|it| it.sequence == ticket.sequence()) else {
            drop(waiters);
            self.lose(verdict);
            return;
        };
        match verdict {
            Verdict::Operate(asked) => waiter.operations.push_back(asked),
            // Answers given before the fault stand; what was not begun is not begun any more.
            Verdict::Fault => {
                waiter.is_lost = true;
                waiter.operations.clear();
            }
            verdict => waiter.verdict = Some(verdict),
        }
        if std::mem::take(&mut waiter.waits) {
            waiter.waker.wake_by_ref();
        }
    }

    /// A verdict for a request that has gone.
    fn lose(&self, verdict: Verdict) {
        match verdict {
            Verdict::Operate(asked) => self.cancel(&asked),
            Verdict::Answer(Answer::Forward { known: Some(id), notify, .. }) => {
                if let Some(plugin) = Self::known(self.instance.id()) {
                    plugin.give_up(id, notify);
                }
            }
            Verdict::Answer(_) | Verdict::Fault => {}
        }
    }

    /// A forwarded request that the guest may still name has gone before its end.
    fn give_up(self: &Rc<Self>, id: RequestId, notify: bool) {
        self.offer(match notify {
            true => Offer::Done { id, result: Err(Errno::ECANCELED) },
            false => Offer::LetGo { id },
        });
    }

    /// An operation whose request has gone.
    fn cancel(&self, asked: &AskedFor) {
        let ended = Ended::refused(asked.store, &asked.action, Errno::ECANCELED);
        let Some(ended) = ended else { return };
        self.instance.end_operation(ended);
        if let Some(plugin) = Self::known(self.instance.id()) {
            plugin.queue();
        }
    }
}

impl Waiting {
    /// The worker's side of the instance.
    pub(in crate::plugin) fn plugin(&self) -> &Rc<LocalPlugin> {
        &self.plugin
    }

    /// When it came.
    pub(in crate::plugin) fn arrival(&self) -> Arrival {
        let since = self.plugin.waiters.borrow().places[self.ticket.waiter()].since;
        Arrival { sequence: self.ticket.sequence(), since }
    }

    /// Takes the verdict if there is one, else leaves a waker.
    #[inline]
    pub(in crate::plugin) fn poll(&self, waker: &Waker) -> Poll<Verdict> {
        let mut waiters = self.plugin.waiters.borrow_mut();
        let waiter = &mut waiters.places[self.ticket.waiter()];
        if let Some(asked) = waiter.operations.pop_front() {
            return Poll::Ready(Verdict::Operate(asked));
        }
        if let Some(verdict) = waiter.verdict.take() {
            return Poll::Ready(verdict);
        }
        if waiter.is_lost {
            return Poll::Ready(Verdict::Fault);
        }
        waiter.waits = true;
        if !waiter.waker.will_wake(waker) {
            waiter.waker.clone_from(waker);
        }
        Poll::Pending
    }

    /// The rules by which it goes: for one that the guest has just forwarded, to be kept until the child has
    /// ended it.
    #[inline]
    pub(in crate::plugin) fn take_rules(&self) -> Option<Rc<KeptRules>> {
        self.plugin.waiters.borrow_mut().places[self.ticket.waiter()].rules.take()
    }

    /// Waits for the verdict.
    pub(in crate::plugin) async fn verdict(&self) -> Verdict {
        poll_fn(|cx| self.poll(cx.waker())).await
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let left = self.plugin.waiters.borrow_mut().remove(self.ticket.waiter());
        let (operations, verdict, rules) = left;
        drop(rules);
        operations.iter().for_each(|asked| self.plugin.cancel(asked));
        if let Some(verdict) = verdict {
            self.plugin.lose(verdict);
        }
    }
}

/// A forwarded request that the guest may still name: it learns of its end, or that nobody waits for that.
pub(in crate::plugin) struct Named {
    plugin: Rc<LocalPlugin>,
    id: RequestId,
    notify: bool,
    is_told: bool,
}

impl Named {
    pub(in crate::plugin) fn new(waiting: &Waiting, id: RequestId, notify: bool) -> Self {
        Self { plugin: Rc::clone(&waiting.plugin), id, notify, is_told: false }
    }

    /// The child has ended it.
    pub(in crate::plugin) fn end(mut self, result: Result<(), Errno>) {
        self.is_told = true;
        self.plugin.offer(Offer::Done { id: self.id, result });
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if !self.is_told {
            self.plugin.give_up(self.id, self.notify);
        }
    }
}
