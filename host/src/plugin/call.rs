//! Calls of the guest for requests: what goes in, and the flat twin for a single one.

use std::sync::atomic::Ordering;

use blockloom_abi::{
    Done, ENTRY_WORDS, Entry, EventTag, Forward, MAX_EVENTS, PollOne, RequestId, Subject,
};

use super::PluginLimits;
use super::cpu::Standing;
use super::faults::Fault;
use super::inside::Inside;
use super::instance::Instance;
use super::local::{LocalPlugin, Offer, Ticket, Verdict};
use super::module::arm;
use super::table::Answer;
use crate::io::{Time, turn_now};

impl Instance {
    pub(super) fn process(
        &self,
        inside: &mut Inside,
        batch: &mut Vec<Offer>,
        local: &LocalPlugin,
    ) -> Result<bool, Fault> {
        // Before its timers are looked at: what rings from now on needs another look.
        if self.is_rung.load(Ordering::Relaxed) {
            self.is_rung.store(false, Ordering::SeqCst);
        }
        if inside.is_frozen {
            inside.put_by(batch);
            return Ok(false);
        }
        let now_ns = turn_now().as_nanos();
        inside.words.clear();
        let carried = inside.carry.len().min(MAX_EVENTS);
        for entry in inside.carry.drain(..carried) {
            inside.words.extend(entry.0);
        }
        while let Some(control) = self.lasting.controls.pop() {
            inside.push(control.encode());
        }
        // The others come with the next call.
        while inside.has_room_for_events()
            && !self.ended.is_empty()
            && let Some(ended) = self.ended.pop()
        {
            // What an earlier store asked for concerns nobody.
            if ended.store == inside.number {
                inside.tell(ended, now_ns);
            }
        }
        inside.tell_due(now_ns);
        for offer in batch.drain(..) {
            match offer {
                Offer::LetGo { id } => inside.table.let_go(id),
                Offer::Job { ticket, node } => {
                    inside.begin_job(node, ticket);
                    // Not behind the requests that come after it.
                    std::mem::take(&mut inside.carry).into_iter().for_each(|it| inside.push(it));
                }
                Offer::Done { id, result } => {
                    if inside.table.done(id, result.is_err(), now_ns) {
                        let subject = Subject::Request(id);
                        inside.push(Done { subject, result, value: 0 }.encode());
                    }
                }
                request @ Offer::Request { .. } => {
                    // Those that wait for a slot go first.
                    let is_next = !inside.is_gated && inside.waiting.is_empty();
                    if !is_next || !inside.wants(&request) || !inside.encode(&request, now_ns) {
                        inside.waiting.push_back(request);
                    }
                }
            }
        }
        self.take_in(inside, now_ns, local);
        self.call_all(inside, now_ns, local)?;
        self.see_off(inside, local)?;
        if let Some(next_ns) = inside.timers.next_ns() {
            local.alarm_at(Time::from_nanos(next_ns));
        }
        Ok(inside.has_more() || !self.ended.is_empty())
    }

    /// Takes in requests that wait, as far as there is room.
    fn take_in(&self, inside: &mut Inside, now_ns: u64, local: &LocalPlugin) {
        while !inside.is_gated
            && let Some(request) = inside.waiting.front().copied()
        {
            match request {
                // The guest before this one wanted it.
                Offer::Request { ticket, .. } if !inside.wants(&request) => {
                    self.deliver(ticket, Verdict::Answer(Answer::GONE), local);
                }
                _ if !inside.encode(&request, now_ns) => return,
                _ => {}
            }
            inside.waiting.pop_front();
        }
    }

    /// The call for what is in `words`.
    fn call_all(&self, inside: &mut Inside, now_ns: u64, local: &LocalPlugin) -> Result<(), Fault> {
        match inside.words.as_slice() {
            [] => {}
            [head, _, _, _] if *head & 0xff == EventTag::Request as u64 => {
                if let Some(ticket) = self.call_one(inside, now_ns, local)? {
                    self.deliver(ticket, Verdict::Answer(Answer::GONE), local);
                }
            }
            _ => {
                let actions = self.call(inside, now_ns)?;
                self.obey(inside, &actions, now_ns, local)?;
            }
        }
        Ok(())
    }

    /// The flat call for a single request, which is in `words`. Returns its ticket if it is to be
    /// forwarded now; any other answer has been delivered.
    #[inline]
    pub(super) fn call_one(
        &self,
        inside: &mut Inside,
        now_ns: u64,
        local: &LocalPlugin,
    ) -> Result<Option<Ticket>, Fault> {
        let &[head, id, offset, len] = inside.words.as_slice() else { return Ok(None) };
        inside.calls = (inside.calls.0 + 1, inside.calls.1 + 1);
        arm(&inside.module.runtime, &mut inside.store, self.call_ticks);
        let begun = inside.cpu.begin();
        let data = inside.filter.blockloom_filter_data();
        let word = data.call_poll_one(&mut inside.store, now_ns, head, id, offset, len);
        let word = word.map_err(|error| self.trap(inside, "poll-one", &error))?;
        self.stand(inside.cpu.end(begun))?;
        match PollOne::decode(word)? {
            PollOne::Forward { not_before_ns } => {
                let id = Entry([head, id, offset, len]).id();
                let id = RequestId::from_bits(id)?;
                if not_before_ns <= now_ns
                    && let Some(ticket) = inside.table.forward_now(id)
                {
                    inside.forget_buffers(ticket);
                    return Ok(Some(ticket));
                }
                let forward = Forward { not_before_ns, ..Forward::now(id) };
                self.forward(inside, forward, now_ns, local)?;
            }
            PollOne::Queued => {
                inside.words.clear();
                let actions = self.call(inside, now_ns)?;
                self.obey(inside, &actions, now_ns, local)?;
            }
        }
        Ok(None)
    }

    /// The call for a batch: the events are in `words`.
    fn call(&self, inside: &mut Inside, now_ns: u64) -> Result<Vec<u64>, Fault> {
        let events = inside.words.len() / ENTRY_WORDS;
        inside.calls = (inside.calls.0 + 1, inside.calls.1 + events as u64);
        arm(&inside.module.runtime, &mut inside.store, self.call_ticks);
        let begun = inside.cpu.begin();
        let data = inside.filter.blockloom_filter_data();
        let actions = data.call_poll(&mut inside.store, now_ns, &inside.words);
        let actions = actions.map_err(|error| self.trap(inside, "poll", &error))?;
        self.stand(inside.cpu.end(begun))?;
        Ok(actions)
    }

    /// Puts off further calls of a guest that has used up its processor time.
    #[inline]
    fn stand(&self, standing: Standing) -> Result<(), Fault> {
        match standing {
            Standing::Well => Ok(()),
            Standing::PutOff(until) => {
                self.put_off_until.store(until.as_nanos(), Ordering::Release);
                self.lasting.counters.put_off.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Standing::Starving => {
                let PluginLimits { cpu, hold, .. } = self.limits;
                let reason =
                    format!("for {hold:?} it has wanted more processor time than {cpu:?} a second");
                Err(Fault::of(reason))
            }
        }
    }

    /// Until when it is not called, as it has used up its processor time.
    #[inline]
    pub(super) fn put_off_until(&self) -> Option<Time> {
        match self.put_off_until.load(Ordering::Acquire) {
            0 => None,
            until => Some(Time::from_nanos(until)).filter(|until| *until > turn_now()),
        }
    }

    /// Has every worker let go of rules that are no more. What was answered so far has been delivered.
    #[inline]
    pub(super) fn publish_rules(&self) {
        if self.lasting.publish_rules() {
            self.wake(|_| true);
        }
    }

    pub(super) fn trap(&self, inside: &Inside, call: &str, error: &wasmtime::Error) -> Fault {
        Fault::of(inside.module.trapped(&inside.store, call, error).to_string())
    }
}
