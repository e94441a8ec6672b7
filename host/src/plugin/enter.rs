//! Going inside: one worker at a time, which takes what the others left; and what a failure in there does.

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError, TryLockError};

use super::faults::Fault;
use super::inside::{Inside, Place};
use super::instance::Instance;
use super::local::{LocalPlugin, Offer, Verdict};
use crate::graph::{Mutation, mutated};
use crate::io::turn_now;

/// Looks at a busy instance before giving way: about a microsecond.
const SPINS: u32 = 32;

/// What became of a single request that was to be offered at once.
pub(super) enum Asked {
    /// It may go to the child.
    Forward,
    /// It waits for its verdict, or has it.
    Offered,
    /// It has to go with a batch.
    NotOffered,
}

/// Being inside for anything but offers, until it is dropped: then somebody sees to the offers of those who
/// found it busy meanwhile.
pub(super) struct Entered<'a> {
    place: MutexGuard<'a, Place>,
    /// Dropped after the lock.
    _leaving: Leaving<'a>,
}

struct Leaving<'a> {
    instance: &'a Instance,
    /// None for who is on no worker: then any worker sees to them.
    local: Option<&'a Rc<LocalPlugin>>,
}

impl Deref for Entered<'_> {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl DerefMut for Entered<'_> {
    fn deref_mut(&mut self) -> &mut Place {
        &mut self.place
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if !self.instance.has_left() {
            return;
        }
        match self.local {
            Some(local) => local.queue(),
            None => {
                self.instance.is_left.store(true, Ordering::Release);
                self.instance.wake(|_| true);
            }
        }
    }
}

impl Instance {
    /// Goes inside for something else than offers.
    pub(super) fn go_in<'a>(&'a self, local: Option<&'a Rc<LocalPlugin>>) -> Entered<'a> {
        Entered { place: self.lock(), _leaving: Leaving { instance: self, local } }
    }

    /// Whether offers were left by somebody who could not see to them: then the caller has to.
    pub(super) fn take_left(&self) -> bool {
        self.is_left.load(Ordering::Relaxed) && self.is_left.swap(false, Ordering::AcqRel)
    }

    /// Whether there is something that whoever found somebody inside has left to them.
    #[inline]
    fn has_left(&self) -> bool {
        !self.queue.is_empty() || !self.ended.is_empty() || self.is_rung.load(Ordering::SeqCst)
    }

    /// An alarm for the guest's timers has rung: whoever is inside, or comes next, looks at them.
    pub(super) fn ring(&self) {
        self.is_rung.store(true, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Place> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Place>> {
        match self.inside.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Hands the instance a worker's batch. On return every offer has been taken, by this worker or by
    /// the one inside.
    pub(super) fn enter(&self, local: &Rc<LocalPlugin>, batch: &mut Vec<Offer>) {
        let mut guard = self.try_lock();
        for _ in 0..SPINS {
            if guard.is_some() {
                break;
            }
            std::hint::spin_loop();
            guard = self.try_lock();
        }
        if guard.is_none() {
            let mut kept = batch.drain(..);
            let refused = kept.find_map(|offer| self.queue.push(offer).err());
            let rest: Vec<Offer> = refused.into_iter().chain(kept).collect();
            let full = !rest.is_empty();
            batch.extend(rest);
            guard = if full { Some(self.lock()) } else { self.try_lock() };
        }
        while let Some(mut inside) = guard {
            // Looking is cheaper than popping: that has a fence.
            while !self.queue.is_empty()
                && let Some(offer) = self.queue.pop()
            {
                batch.push(offer);
            }
            self.take_departures(&mut inside);
            let again = self.run(&mut inside, batch, local);
            // What ended while there is no store concerns nobody.
            let is_live = inside.live.is_some();
            drop(inside);
            if again {
                local.queue();
            }
            let is_left = if is_live { self.has_left() } else { !self.queue.is_empty() };
            guard = if is_left { self.try_lock() } else { None };
        }
    }

    /// Runs one batch inside; returns whether there is more to do.
    fn run(&self, place: &mut Place, batch: &mut Vec<Offer>, local: &LocalPlugin) -> bool {
        let again = self.guarded(place, local, |live| self.process(live, batch, local));
        if again.is_none() {
            for offer in batch.drain(..) {
                self.deliver_fault(offer, local);
            }
        }
        self.publish_rules();
        again.unwrap_or(false)
    }

    /// Runs `act` inside; `None` when the instance is dead, or dies of it.
    #[inline]
    pub(super) fn guarded<T>(
        &self,
        place: &mut Place,
        local: &LocalPlugin,
        act: impl FnOnce(&mut Inside) -> Result<T, Fault>,
    ) -> Option<T> {
        let live = place.live.as_mut()?;
        // The second line of defence: a panic of the WebAssembly runtime fails one plugin only.
        let result = catch_unwind(AssertUnwindSafe(|| act(live)));
        match result.unwrap_or_else(|_| Err(Fault::of("the WebAssembly runtime panicked"))) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.fail(place, fault, local);
                None
            }
        }
    }

    /// Offers a single request, if nobody is inside and nothing else waits to go in. The answer may be
    /// there on return.
    #[inline]
    pub(super) fn ask(&self, request: &Offer, local: &Rc<LocalPlugin>) -> Asked {
        let Some(mut guard) = self.try_lock() else { return Asked::NotOffered };
        let Some(live) = guard.live.as_mut() else { return Asked::NotOffered };
        let now_ns = turn_now().as_nanos();
        live.words.clear();
        let is_idle = self.queue.is_empty() && live.waiting.is_empty() && live.carry.is_empty();
        let alone = is_idle && !live.is_gated && live.wants(request);
        if !alone || !live.encode(request, now_ns) {
            return Asked::NotOffered;
        }
        let forwarded = self.guarded(&mut guard, local, |live| self.call_one(live, now_ns, local));
        let more = guard.live.as_ref().is_some_and(Inside::has_more);
        self.publish_rules();
        drop(guard);
        if more || self.has_left() {
            local.queue();
        }
        if forwarded.flatten().is_some() { Asked::Forward } else { Asked::Offered }
    }

    /// Drops the store, and tells everyone who waits for it. What comes then, the policy says.
    pub(super) fn fail(&self, place: &mut Place, fault: Fault, local: &LocalPlugin) {
        let Some(mut dead) = place.live.take() else { return };
        self.number.fetch_add(1, Ordering::AcqRel);
        self.lasting.reset_rules();
        if mutated(Mutation::FaultsForgetBitmaps) {
            self.lasting.bitmaps.forget();
        }
        while self.ended.pop().is_some() {}
        self.put_off_until.store(0, Ordering::Release);
        self.is_rung.store(false, Ordering::SeqCst);
        dead.leaving.drain(..).for_each(|node| self.forget(node));
        self.after_fault(fault, local);
        let mut table = dead.table;
        // Of each worker's requests those that were offered came before those that wait for a place.
        table.clear().into_iter().for_each(|it| self.deliver(it, Verdict::Fault, local));
        dead.waiting.drain(..).for_each(|offer| self.deliver_fault(offer, local));
        dead.jobs.into_values().for_each(|it| self.deliver(it.ticket, Verdict::Fault, local));
        place.table = Some(table);
    }

    /// Fails the instance if it has owed some answer for longer than it may. Requests that wait for a
    /// place have not been offered: nothing is owed for them.
    pub(super) fn check_overdue(&self, local: &Rc<LocalPlugin>) {
        // Whoever is inside now, the next look comes soon.
        let Some(place) = self.try_lock() else { return };
        let leaving = Leaving { instance: self, local: Some(local) };
        let mut guard = Entered { place, _leaving: leaving };
        let hold = self.limits.hold;
        let hold_ns = u64::try_from(hold.as_nanos()).unwrap_or(u64::MAX);
        let now_ns = turn_now().as_nanos();
        if guard.live.as_ref().is_some_and(|inside| inside.table.is_overdue(now_ns, hold_ns)) {
            let reason = format!("it kept a request for more than {hold:?} without an answer");
            self.fail(&mut guard, Fault::of(reason), local);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Poll, Waker};
    use std::time::Duration;

    use blockloom_abi::{Kind, NodeIndex, RequestFlags, Token};

    use super::super::operation::{Answered, Ended};
    use super::super::{PluginRuntime, local::Waiting, table::Answer};
    use super::*;
    use crate::io::{EngineChoice, EngineKind, run_on_thread, sleep_until};

    fn offer(local: &Rc<LocalPlugin>) -> Waiting {
        let (node, kind, flags) = (NodeIndex(0), Kind::Read, RequestFlags::NONE);
        let request = |ticket| Offer::Request { ticket, node, kind, flags, offset: 0, len: 512 };
        let rules = local.rules(&local.lasting().add_node(node, 0));
        match local.request(turn_now(), rules, request) {
            Ok(waiting) => waiting,
            Err(_) => panic!("somebody is inside"),
        }
    }

    async fn verdict(waiting: &Waiting) -> Option<Verdict> {
        // Whatever is ready, and the batch of the turn, comes before this.
        sleep_until(turn_now() + Duration::from_nanos(1)).await;
        match waiting.poll(Waker::noop()) {
            Poll::Ready(verdict) => Some(verdict),
            Poll::Pending => None,
        }
    }

    /// Whoever was inside, for whatever reason: what was left in the queue meanwhile is offered, or fails.
    #[test]
    fn offers_that_were_left_for_the_one_inside_are_seen_to() {
        for (is_on_worker, fails) in [(true, false), (false, false), (true, true)] {
            let ended = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), async move {
                let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
                let instance = Instance::bundled(&runtime, "pass", "{}").expect("a plugin");
                let local = LocalPlugin::of(&instance);
                let mut entered = instance.go_in(is_on_worker.then_some(&local));
                let waiting = offer(&local);
                assert_eq!(verdict(&waiting).await, None);
                assert_eq!(instance.queue.len(), 1);
                if fails {
                    instance.fail(&mut entered, Fault::of("the test wants it so"), &local);
                }
                drop(entered);
                let expect = if fails { Verdict::Fault } else { Verdict::Answer(Answer::GONE) };
                assert_eq!(verdict(&waiting).await, Some(expect));
            });
            ended.expect("a worker");
        }
    }

    /// So are ends of operations, which nothing else may follow.
    #[test]
    fn ends_that_were_left_for_the_one_inside_are_seen_to() {
        let ended = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), async move {
            let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
            let instance = Instance::bundled(&runtime, "pass", "{}").expect("a plugin");
            let local = LocalPlugin::of(&instance);
            let mut entered = instance.go_in(Some(&local));
            let inside = entered.live.as_mut().expect("a store");
            inside.operations = 1;
            local.end_operation(Ended {
                store: inside.number,
                token: Token(7),
                request: None,
                result: Ok(Answered::default()),
                is_read: false,
                serves: false,
            });
            sleep_until(turn_now() + Duration::from_nanos(1)).await;
            assert!(!instance.ended.is_empty(), "somebody is inside");
            drop(entered);
            sleep_until(turn_now() + Duration::from_nanos(1)).await;
            assert!(instance.ended.is_empty());
            let entered = instance.go_in(Some(&local));
            assert_eq!(entered.live.as_ref().map(|inside| inside.operations), Some(0));
        });
        ended.expect("a worker");
    }

    /// So are timers that came due.
    #[test]
    fn timers_that_came_due_beside_the_one_inside_are_seen_to() {
        let ended = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), async move {
            let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
            let instance = Instance::bundled(&runtime, "pass", "{}").expect("a plugin");
            let local = LocalPlugin::of(&instance);
            let mut entered = instance.go_in(Some(&local));
            let at = turn_now() + Duration::from_nanos(1);
            let inside = entered.live.as_mut().expect("a store");
            inside.timers.set(Token(7), at.as_nanos());
            local.alarm_at(at);
            sleep_until(at + Duration::from_nanos(1)).await;
            sleep_until(turn_now() + Duration::from_nanos(1)).await;
            let inside = entered.live.as_ref().expect("a store");
            assert_eq!(inside.timers.len(), 1, "somebody is inside");
            drop(entered);
            sleep_until(turn_now() + Duration::from_nanos(1)).await;
            let entered = instance.go_in(Some(&local));
            assert_eq!(entered.live.as_ref().map(|inside| inside.timers.len()), Some(0));
        });
        ended.expect("a worker");
    }
}
