//! Calls of the guest for requests: what goes in, and the flat twin for a single one.

use blockloom_abi::{
    Control, ControlKind, Done, ENTRY_WORDS, Entry, EventTag, Forward, MAX_EVENTS, PollOne,
    RequestId, Subject,
};

use super::inside::Inside;
use super::instance::Instance;
use super::local::{LocalPlugin, Offer, Ticket, Verdict};
use super::module::arm;
use super::table::{Answer, Breach};
use crate::io::turn_now;

impl Instance {
    pub(super) fn process(
        &self,
        inside: &mut Inside,
        batch: &mut Vec<Offer>,
        local: &LocalPlugin,
    ) -> Result<bool, String> {
        let now_ns = turn_now().as_nanos();
        inside.words.clear();
        let carried = inside.carry.len().min(MAX_EVENTS);
        for entry in inside.carry.drain(..carried) {
            inside.words.extend(entry.0);
        }
        while let Some(control) = self.lasting.controls.pop() {
            inside.push(control.encode());
        }
        while !self.ended.is_empty()
            && let Some(ended) = self.ended.pop()
        {
            // What an earlier store asked for concerns nobody.
            if ended.store == inside.number {
                inside.tell(ended, now_ns);
            }
        }
        for offer in batch.drain(..) {
            match offer {
                Offer::LetGo { id } => inside.table.let_go(id),
                Offer::Job { ticket, node } => {
                    inside.jobs.insert(node, ticket);
                    let (kind, first, second) = (ControlKind::JobStart, 0, 0);
                    inside.push(Control { kind, node, first, second }.encode());
                }
                Offer::Done { id, result } => {
                    if inside.table.done(id, result.is_err(), now_ns) {
                        let subject = Subject::Request(id);
                        inside.push(Done { subject, result, value: 0 }.encode());
                    }
                }
                request @ Offer::Request { .. } => {
                    // Those that wait for a slot go first.
                    if !inside.waiting.is_empty() || !inside.encode(request, now_ns) {
                        inside.waiting.push_back(request);
                    }
                }
            }
        }
        while let Some(request) = inside.waiting.front().copied()
            && inside.encode(request, now_ns)
        {
            inside.waiting.pop_front();
        }
        match inside.words.as_slice() {
            [] => return Ok(false),
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
        Ok(inside.has_more())
    }

    /// The flat call for a single request, which is in `words`. Returns its ticket if it is to be
    /// forwarded now; any other answer has been delivered.
    #[inline]
    pub(super) fn call_one(
        &self,
        inside: &mut Inside,
        now_ns: u64,
        local: &LocalPlugin,
    ) -> Result<Option<Ticket>, String> {
        let &[head, id, offset, len] = inside.words.as_slice() else { return Ok(None) };
        inside.calls = (inside.calls.0 + 1, inside.calls.1 + 1);
        arm(&self.module.runtime, &mut inside.store, self.call_ticks);
        let data = inside.filter.blockloom_filter_data();
        let word = data.call_poll_one(&mut inside.store, now_ns, head, id, offset, len);
        let word = word.map_err(|error| self.trap(inside, "poll-one", &error))?;
        self.tell_rules(inside);
        let broken = |violation| Breach::Layout(violation).to_string();
        match PollOne::decode(word).map_err(broken)? {
            PollOne::Forward { not_before_ns } => {
                let id = Entry([head, id, offset, len]).id();
                let id = RequestId::from_bits(id).map_err(broken)?;
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
    fn call(&self, inside: &mut Inside, now_ns: u64) -> Result<Vec<u64>, String> {
        let events = inside.words.len() / ENTRY_WORDS;
        inside.calls = (inside.calls.0 + 1, inside.calls.1 + events as u64);
        arm(&self.module.runtime, &mut inside.store, self.call_ticks);
        let data = inside.filter.blockloom_filter_data();
        let actions = data.call_poll(&mut inside.store, now_ns, &inside.words);
        let actions = actions.map_err(|error| self.trap(inside, "poll", &error))?;
        self.tell_rules(inside);
        Ok(actions)
    }

    /// Has every worker let go of rules that are no more.
    #[inline]
    pub(super) fn tell_rules(&self, inside: &mut Inside) {
        let changes = self.rules_changes();
        if inside.rules_seen != changes {
            inside.rules_seen = changes;
            self.wake(|_| true);
        }
    }

    fn trap(&self, inside: &Inside, call: &str, error: &wasmtime::Error) -> String {
        self.module.trapped(&inside.store, call, error).to_string()
    }
}
