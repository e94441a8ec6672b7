//! Going inside: one worker at a time, which takes what the others left; and what a failure in there does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::inside::{Inside, Place};
use super::instance::Instance;
use super::local::{LocalPlugin, Offer, Verdict};
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

impl Instance {
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
            let again = self.run(&mut inside, batch, local);
            drop(inside);
            if again {
                local.queue();
            }
            guard = if self.queue.is_empty() { None } else { self.try_lock() };
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
        again.unwrap_or(false)
    }

    /// Runs `act` inside; `None` when the instance is dead, or dies of it.
    #[inline]
    fn guarded<T>(
        &self,
        place: &mut Place,
        local: &LocalPlugin,
        act: impl FnOnce(&mut Inside) -> Result<T, String>,
    ) -> Option<T> {
        let live = place.live.as_mut()?;
        // The second line of defence: a panic of the WebAssembly runtime fails one plugin only.
        let result = catch_unwind(AssertUnwindSafe(|| act(live)));
        match result.unwrap_or_else(|_| Err("the WebAssembly runtime panicked".into())) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.fail(place, reason, local);
                None
            }
        }
    }

    /// Offers a single request, if nobody is inside and nothing else waits to go in. The answer may be
    /// there on return.
    #[inline]
    pub(super) fn ask(&self, request: Offer, local: &Rc<LocalPlugin>) -> Asked {
        let Some(mut guard) = self.try_lock() else { return Asked::NotOffered };
        let Some(live) = guard.live.as_mut() else { return Asked::NotOffered };
        let now_ns = turn_now().as_nanos();
        live.words.clear();
        let alone = self.queue.is_empty() && live.waiting.is_empty() && live.carry.is_empty();
        if !alone || !live.encode(request, now_ns) {
            return Asked::NotOffered;
        }
        let forwarded = self.guarded(&mut guard, local, |live| self.call_one(live, now_ns, local));
        let more = guard.live.as_ref().is_some_and(Inside::has_more);
        drop(guard);
        // Whoever found this worker inside has left its offers in the queue.
        if more || !self.queue.is_empty() {
            local.queue();
        }
        if forwarded.flatten().is_some() { Asked::Forward } else { Asked::Offered }
    }

    /// Drops the store, and tells everyone who waits for it. What comes then, the policy says.
    fn fail(&self, place: &mut Place, reason: String, local: &LocalPlugin) {
        let Some(mut dead) = place.live.take() else { return };
        self.number.fetch_add(1, Ordering::AcqRel);
        self.lasting.reset_rules();
        while self.ended.pop().is_some() {}
        self.after_fault(reason, local);
        let mut table = dead.table;
        // Of each worker's requests those that were offered came before those that wait for a place.
        table.clear().into_iter().for_each(|it| self.deliver(it, Verdict::Fault, local));
        dead.waiting.drain(..).for_each(|offer| self.deliver_fault(offer, local));
        dead.jobs.into_values().for_each(|it| self.deliver(it, Verdict::Fault, local));
        place.table = Some(table);
    }

    /// Fails the instance if it has owed some answer for longer than it may. Requests that wait for a
    /// place have not been offered: nothing is owed for them.
    pub(super) fn check_overdue(&self, local: &LocalPlugin) {
        // Whoever is inside now, the next look comes soon.
        let Some(mut guard) = self.try_lock() else { return };
        let hold = self.limits.hold;
        let hold_ns = u64::try_from(hold.as_nanos()).unwrap_or(u64::MAX);
        let now_ns = turn_now().as_nanos();
        if guard.live.as_ref().is_some_and(|inside| inside.table.is_overdue(now_ns, hold_ns)) {
            let reason = format!("it kept a request for more than {hold:?} without an answer");
            self.fail(&mut guard, reason, local);
        }
    }
}
