//! Doing what a guest answered: each action is judged first, and the first breach ends the store.

use blockloom_abi::{
    Action, ActionTag, Done, Entry, Errno, Forward, Kind, MAX_ACTIONS, Parent, Subject, Token,
};

use super::breach::Breach;
use super::counters::Refused;
use super::faults::Fault;
use super::inside::{Buffer, Inside};
use super::instance::Instance;
use super::local::{LocalPlugin, Ticket, Verdict};
use super::operation::subject;
use super::table::Answer;
use crate::io::{Time, turn_now};

/// Operations that one instance may have in flight for each request that it may have, and for none.
const OPERATIONS_OF_REQUEST: usize = 4;

impl Instance {
    /// Does what the guest answered, up to the first breach.
    pub(super) fn obey(
        &self,
        inside: &mut Inside,
        words: &[u64],
        now_ns: u64,
        local: &LocalPlugin,
    ) -> Result<(), Fault> {
        for entry in Entry::list(words, MAX_ACTIONS)? {
            // Nearly all: spared the way through the enum of all actions.
            if entry.tag() == ActionTag::Forward as u8 {
                let forward = Forward::decode(entry)?;
                let plain = forward.not_before_ns <= now_ns && !forward.notify && !forward.claim;
                match plain.then(|| inside.table.forward_now(forward.id)).flatten() {
                    Some(ticket) => {
                        inside.forget_buffers(ticket);
                        self.deliver(ticket, Verdict::Answer(Answer::GONE), local);
                    }
                    None => self.forward(inside, forward, now_ns, local)?,
                }
                continue;
            }
            match Action::decode(entry)? {
                Action::Forward(forward) => self.forward(inside, forward, now_ns, local)?,
                Action::Complete(complete) => {
                    let is_put = inside.store.data().bytes.is_put(complete.id);
                    let (ticket, answer) = inside.table.complete(complete, is_put)?;
                    inside.forget_buffers(ticket);
                    self.deliver(ticket, Verdict::Answer(answer), local);
                }
                Action::Timer { token, at_ns } => self.set_timer(inside, token, at_ns, local)?,
                Action::Drop { token } => self.drop_named(inside, token, local),
                Action::JobEnd { node } => {
                    let ticket = inside.end_job(node)?;
                    self.drop_buffers(inside, Some(ticket), local);
                }
                operation => self.operate(inside, operation, now_ns, local)?,
            }
        }
        Ok(())
    }

    /// An operation on behalf of a request goes to the worker that has the request.
    fn operate(
        &self,
        inside: &mut Inside,
        action: Action,
        now_ns: u64,
        local: &LocalPlugin,
    ) -> Result<(), Fault> {
        let Some((token, parent)) = subject(&action) else { return Ok(()) };
        if inside.in_flight() >= self.operations_max() {
            return inside.refuse(token, Errno::EBUSY);
        }
        let (ticket, kind) = match parent {
            Parent::Request(id) => (inside.table.ticket(id), inside.table.kind(id)),
            Parent::Job(node) => {
                let job = inside.jobs.get(&node).filter(|job| job.state.is_running());
                (job.map(|job| job.ticket), None)
            }
        };
        let refused = match action {
            Action::Copy(copy) if copy.serve => kind.is_some_and(|kind| kind != Kind::Read),
            Action::Write(write) => {
                let buffer = inside.buffers.get(&write.source).filter(|it| !it.is_dropped);
                buffer.map(|buffer| buffer.of) != ticket
            }
            _ => false,
        };
        if refused {
            return inside.refuse(token, Errno::EINVAL);
        }
        let ticket = match (parent, ticket) {
            (Parent::Request(id), _) => inside.table.operate(id, now_ns)?,
            (Parent::Job(_), Some(ticket)) => ticket,
            (Parent::Job(node), None) => {
                return Err(Fault::breach(format!("node {} has no job", node.0)));
            }
        };
        let fills = matches!(action, Action::Read(_) | Action::Make { .. });
        let buffer = Buffer { of: ticket, is_filling: true, is_dropped: false };
        if fills && inside.buffers.insert(token, buffer).is_some() {
            return Err(Breach::BufferInUse(token.0).into());
        }
        inside.operations += 1;
        self.deliver(ticket, Verdict::Operate(inside.asked(action)), local);
        Ok(())
    }

    /// Lets go of what was read for one who asks for nothing any more, or for all.
    pub(super) fn drop_buffers(
        &self,
        inside: &mut Inside,
        of: Option<Ticket>,
        local: &LocalPlugin,
    ) {
        let buffers = inside.buffers.iter();
        let theirs = buffers.filter(|(_, buffer)| of.is_none_or(|of| of == buffer.of));
        let tokens: Vec<Token> = theirs.map(|(token, _)| *token).collect();
        for token in tokens {
            self.drop_named(inside, token, local);
        }
    }

    /// Lets go of what a token names.
    fn drop_named(&self, inside: &mut Inside, token: Token, local: &LocalPlugin) {
        if let Some(ticket) = inside.drop_named(token) {
            inside.store.data_mut().bytes.forget(token);
            let asked = inside.asked(Action::Drop { token });
            self.deliver(ticket, Verdict::Operate(asked), local);
        }
    }

    fn operations_max(&self) -> usize {
        OPERATIONS_OF_REQUEST.saturating_mul(self.limits.in_flight as usize + 1)
    }

    /// A DONE at a time.
    fn set_timer(
        &self,
        inside: &mut Inside,
        token: Token,
        at_ns: u64,
        local: &LocalPlugin,
    ) -> Result<(), Fault> {
        inside.timers.remove(token);
        let at = Time::from_nanos(at_ns);
        if at <= turn_now() {
            return inside.end(token, Ok(()));
        }
        if inside.in_flight() >= self.operations_max() {
            return inside.refuse(token, Errno::EBUSY);
        }
        inside.timers.set(token, at_ns);
        local.alarm_at(at);
        Ok(())
    }

    /// A FORWARD that has a time, or flags, or comes again.
    pub(super) fn forward(
        &self,
        inside: &mut Inside,
        forward: Forward,
        now_ns: u64,
        local: &LocalPlugin,
    ) -> Result<(), Fault> {
        // Nothing but the host's own proof says that bytes of a request are unchanged; a refused claim writes
        // nothing.
        let is_put = inside.store.data().bytes.is_put(forward.id);
        if forward.claim && (is_put || !inside.table.is_unchanged(forward.id)) {
            let node = inside.table.refuse_claim(forward.id)?;
            self.claim_refused(node, Refused::NotProven);
            let subject = Subject::Request(forward.id);
            return inside.carry(Done { subject, result: Err(Errno::EPERM), value: 0 });
        }
        let answer = inside.table.forward(forward, now_ns)?;
        if let Some((ticket, answer)) = answer {
            // With notify it has not ended yet.
            if matches!(answer, Answer::Forward { notify: true, .. }) {
                inside.store.data_mut().bytes.go(forward.id);
            } else {
                inside.forget_buffers(ticket);
            }
            self.deliver(ticket, Verdict::Answer(answer), local);
        }
        Ok(())
    }
}
