//! The executor: events in, bodies run, actions out.
//!
//! - An event whose answer is known at once is answered in its place in the list; other actions
//!   follow after the answers. Requests keep their order of arrival.
//! - A body runs in a slot. Slots are made as more bodies wait at once than ever before, and then
//!   used again: nothing is allocated for a request once that has settled.
//! - A token is `slot | sequence`, so the end of an operation finds its body without a search.
//! - **Invariant:** a body's future is dropped only after it has ended, or with the instance.

mod shared;
mod slot;

use std::rc::Rc;
use std::sync::Arc;

use blockloom_abi::{
    Action, ActionTag, Complete, Control, ControlKind, Done, ENTRY_WORDS, Entry, Errno, Event,
    EventTag, Forward, Kinds, MAX_ACTIONS, NodeIndex, PollOne, Request, RequestId, Subject, Token,
};

pub(crate) use shared::{Ended, Shared, Unwanted};
pub(crate) use slot::Task;
use slot::{Outcome, Slot, Woken};

use crate::{Cx, Filter, Signal, Time, Verdict};

/// The token of the timer that asks to be called again for the actions that were too many.
const AGAIN: Token = Token(u32::MAX);
/// The slot in the token of a timer that asks what is to be released.
const RELEASE_SLOT: u16 = u16::MAX;
/// Bodies at once, at most; the number of [`AGAIN`]'s slot and [`RELEASE_SLOT`] is none of theirs.
const MAX_SLOTS: usize = u16::MAX as usize;

/// A filter with its requests in flight.
pub struct Instance<F: Filter> {
    filter: Rc<F>,
    shared: Rc<Shared>,
    slots: Vec<Box<dyn Slot<F>>>,
    idle: Vec<u16>,
    woken: Arc<Woken>,
    running: Vec<u16>,
    /// Requests whose end is awaited, by the host's slot.
    forwarded: Vec<Option<Forwarded>>,
    /// Whether any may be held.
    holding: bool,
    /// The timers that ask what is to be released, the earliest last.
    timers: Vec<(Time, Token)>,
    sequence: u32,
    jobs: Vec<(NodeIndex, Rc<Signal>)>,
}

/// A request whose end is awaited.
#[derive(Clone, Copy)]
struct Forwarded {
    request: Request,
    is_held: bool,
}

impl<F: Filter> Instance<F> {
    /// Kinds of which something other than to forward may become.
    const HANDLED: Kinds = F::KINDS.with(F::DECIDE).with(F::NOTIFY);
    /// Whether a body is ever run. If not, what runs bodies is left out of the module.
    const BODIES: bool = F::JOB || F::KINDS.bits() | F::NOTIFY.bits() != 0;
    /// Whether a request is ever held.
    const HOLDS: bool = F::HOLDS.bits() != 0;

    /// A configured filter without requests.
    #[cold]
    pub fn new(filter: F) -> Self {
        Self {
            filter: Rc::new(filter),
            shared: Rc::default(),
            slots: Vec::new(),
            idle: Vec::new(),
            woken: Arc::default(),
            running: Vec::new(),
            forwarded: Vec::new(),
            holding: false,
            timers: Vec::new(),
            sequence: 0,
            jobs: Vec::new(),
        }
    }

    /// The filter.
    pub fn filter(&self) -> &F {
        &self.filter
    }

    /// Takes events and returns actions, in the memory of the events.
    #[inline]
    pub fn poll(&mut self, now: u64, mut words: Vec<u64>) -> Vec<u64> {
        self.shared.set_now(now);
        let (entries, _) = words.as_chunks_mut::<ENTRY_WORDS>();
        let mut written = 0;
        for index in 0..entries.len() {
            if let Some(answer) = self.event(Entry(entries[index])) {
                // Never ahead of what is read: an event gives one answer at most.
                if let Some(place) = entries.get_mut(written) {
                    *place = answer.0;
                    written += 1;
                }
            }
        }
        words.truncate(written * ENTRY_WORDS);
        self.settle(&mut words);
        words
    }

    /// The flat twin of [`poll`](Self::poll).
    #[inline]
    pub fn poll_one(&mut self, now: u64, event: Entry) -> u64 {
        self.shared.set_now(now);
        let answer = self.event(event);
        if Self::BODIES {
            // A body may have set off others, or sent something besides its answer.
            self.run();
        }
        match answer {
            Some(answer)
                if answer.0[0] == FORWARD
                    && answer.w2() <= LATEST
                    && !(Self::HOLDS && self.holding)
                    && (!Self::BODIES || self.shared.is_sent()) =>
            {
                return PollOne::Forward { not_before_ns: answer.w2() }.encode();
            }
            Some(answer) => self.shared.push(answer),
            None => {}
        }
        PollOne::Queued.encode()
    }

    /// The answer to an event, if it is known at once.
    #[inline(always)]
    fn event(&mut self, entry: Entry) -> Option<Entry> {
        if entry.tag() != EventTag::Request as u8 {
            self.other(entry);
            return None;
        }
        if !Self::HANDLED.contains_number(entry.a()) {
            return Some(Entry([FORWARD, u64::from(entry.id()), 0, 0]));
        }
        let Ok(request) = Request::decode(entry) else { broken() };
        if F::DECIDE.contains(request.kind)
            && let Some(verdict) = self.filter.decide(&request, self.shared.now())
        {
            return Some(self.answer(request, verdict));
        }
        if !F::KINDS.contains(request.kind) {
            return Some(self.answer(request, Verdict::Forward));
        }
        match self.start(Task::Request(request))? {
            Outcome::Verdict(request, verdict) => Some(self.answer(request, verdict)),
            outcome => {
                self.ended(outcome);
                None
            }
        }
    }

    /// The action for a verdict.
    #[inline]
    fn answer(&mut self, request: Request, verdict: Verdict) -> Entry {
        let not_before_ns = match verdict {
            Verdict::Forward => 0,
            Verdict::ForwardAt(time) => time.as_nanos(),
            Verdict::Hold => {
                self.holding = true;
                NEVER.as_nanos()
            }
            Verdict::Fail(errno) => {
                return Complete { id: request.id, result: Err(errno) }.encode();
            }
            Verdict::Served => return Complete { id: request.id, result: Ok(()) }.encode(),
        };
        let is_held = Self::HOLDS && verdict == Verdict::Hold;
        // The end of one that is held says that its id is free, whoever has let it go.
        let notify = is_held || F::NOTIFY.contains(request.kind);
        if notify {
            let place = usize::from(request.id.slot());
            if self.forwarded.len() <= place {
                self.forwarded.resize(place + 1, None);
            }
            self.forwarded[place] = Some(Forwarded { request, is_held });
        }
        Forward { id: request.id, not_before_ns, notify, claim: false }.encode()
    }

    /// Gives a body a slot and polls it once.
    fn start(&mut self, task: Task) -> Option<Outcome> {
        let index = match self.idle.pop() {
            Some(index) => index,
            None => {
                assert!(self.slots.len() < MAX_SLOTS, "more requests in flight than have slots");
                let index = self.slots.len() as u16;
                self.slots.push(slot::slot(index, &self.woken));
                index
            }
        };
        let cx = Cx::new(Rc::clone(&self.shared), index, task.clone());
        let slot = &mut self.slots[usize::from(index)];
        slot.refill(Rc::clone(&self.filter), cx, task);
        let outcome = slot.poll()?;
        self.idle.push(index);
        Some(outcome)
    }

    /// Every event but a request.
    fn other(&mut self, entry: Entry) {
        let Ok(event) = Event::decode(entry) else { broken() };
        match event {
            Event::Control(control) => self.control(control),
            _ if !Self::BODIES && !Self::HOLDS => {}
            Event::Request(_) => {}
            Event::Extent(extent) => self.shared.extent(extent),
            Event::Done(Done { subject: Subject::Operation(AGAIN), .. }) => {}
            Event::Done(Done { subject: Subject::Operation(token), .. })
                if Self::HOLDS && token.0 as u16 == RELEASE_SLOT =>
            {
                self.timers.retain(|(_, timer)| *timer != token);
            }
            Event::Done(done) => match done.subject {
                Subject::Operation(_) if !Self::BODIES => {}
                Subject::Operation(token) => self.shared.done(token, done),
                Subject::Request(_) if F::NOTIFY == Kinds::NONE && !Self::HOLDS => {}
                Subject::Request(id) => self.done(id, done.result),
            },
        }
    }

    /// A request that was forwarded with notice has ended.
    fn done(&mut self, id: RequestId, result: Result<(), Errno>) {
        let place = self.forwarded.get_mut(usize::from(id.slot()));
        let forwarded = place.and_then(|place| place.take_if(|it| it.request.id == id));
        let Some(Forwarded { request, is_held }) = forwarded else { return };
        if Self::HOLDS && is_held {
            self.filter.gone(&request);
        }
        if !F::NOTIFY.contains(request.kind) {
            return self.shared.push(Complete { id, result }.encode());
        }
        if let Some(outcome) = self.start(Task::Done(request, result)) {
            self.ended(outcome);
        }
    }

    /// Asks what is to be released, and when to ask again.
    #[cold]
    fn release(&mut self) {
        let (now, shared, forwarded) = (self.shared.now(), &self.shared, &mut self.forwarded);
        let next = self.filter.release(now, &mut |id| {
            let place = forwarded.get_mut(usize::from(id.slot())).and_then(Option::as_mut);
            if let Some(held) = place.filter(|it| it.is_held && it.request.id == id) {
                held.is_held = false;
                shared.push(Forward::now(id).encode());
            }
        });
        self.holding = next.is_some();
        if let Some(next) = next
            && self.timers.last().is_none_or(|(earliest, _)| next < *earliest)
        {
            self.sequence = (self.sequence + 1) % (AGAIN.0 >> 16);
            let token = Token(self.sequence << 16 | u32::from(RELEASE_SLOT));
            self.timers.push((next, token));
            self.shared.push(Action::Timer { token, at_ns: next.as_nanos() }.encode());
        }
    }

    fn control(&mut self, control: Control) {
        let node = control.node;
        match control.kind {
            ControlKind::JobStart if F::JOB => {
                let stop = Rc::<Signal>::default();
                self.jobs.retain(|(_, stop)| Rc::strong_count(stop) > 1);
                self.jobs.push((node, Rc::clone(&stop)));
                if let Some(outcome) = self.start(Task::Job(node, stop)) {
                    self.ended(outcome);
                }
            }
            ControlKind::JobStop if F::JOB => {
                let jobs = self.jobs.iter().filter(|(of, _)| *of == node);
                jobs.for_each(|(_, stop)| stop.set());
            }
            _ => {}
        }
        self.filter.control(control);
    }

    /// Sends what a body came to.
    fn ended(&mut self, outcome: Outcome) {
        let entry = match outcome {
            Outcome::Verdict(request, verdict) => self.answer(request, verdict),
            Outcome::Complete(request, result) => Complete { id: request.id, result }.encode(),
            Outcome::JobEnded(node) => Action::JobEnd { node }.encode(),
        };
        self.shared.push(entry);
    }

    /// Runs woken bodies, then appends what there is to send.
    #[inline]
    fn settle(&mut self, words: &mut Vec<u64>) {
        if Self::BODIES {
            self.run();
        }
        if Self::HOLDS && self.holding {
            self.release();
        }
        let mut actions = self.shared.take_actions();
        if !actions.is_empty() {
            Self::send(&mut actions, words);
        }
        self.shared.put_actions(actions);
    }

    fn send(actions: &mut Vec<u64>, words: &mut Vec<u64>) {
        let room = MAX_ACTIONS * ENTRY_WORDS - words.len();
        // Else there is at most one action for each event.
        if !(Self::BODIES || Self::HOLDS) || actions.len() <= room {
            words.reserve_exact(actions.len());
            words.append(actions);
        } else {
            words.reserve_exact(room);
            words.extend(actions.drain(..room - ENTRY_WORDS));
            words.extend_from_slice(&Action::Timer { token: AGAIN, at_ns: 0 }.encode().0);
        }
    }

    /// Runs woken bodies until none is left.
    fn run(&mut self) {
        loop {
            let mut running = std::mem::take(&mut self.running);
            self.woken.take(&mut running);
            if running.is_empty() {
                self.running = running;
                break;
            }
            for &index in &running {
                if let Some(outcome) = self.slots[usize::from(index)].poll() {
                    self.idle.push(index);
                    self.ended(outcome);
                }
            }
            self.running = running;
        }
    }
}

/// Word 0 of a FORWARD without flags.
const FORWARD: u64 = ActionTag::Forward as u64;
/// The latest time that a verdict word carries.
const LATEST: u64 = PollOne::MAX_NOT_BEFORE_NS;
/// A time that does not come.
const NEVER: Time = Time::from_nanos(u64::MAX);

#[cold]
fn broken() -> ! {
    panic!("the host sent an event that the layout does not allow")
}

impl<F: Filter> std::fmt::Debug for Instance<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (slots, idle) = (self.slots.len(), self.idle.len());
        f.debug_struct("Instance")
            .field("slots", &slots)
            .field("idle", &idle)
            .finish_non_exhaustive()
    }
}
