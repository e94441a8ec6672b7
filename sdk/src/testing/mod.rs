//! A host for tests: a filter natively, in virtual time, without a graph.
//!
//! Requests are handed over one by one ([`Harness::submit`]) or as a turn brings them
//! ([`Harness::submit_all`]); what the filter decides is kept for each. Operations on children are
//! listed and ended by the test. The clock stands still between calls of [`Harness::advance`]. A harness made
//! [`with_children`](Harness::with_children) does the operations itself, to bytes in memory.
//!
//! ```
//! use blockloom_sdk::testing::{Answer, Harness};
//! # use blockloom_sdk::{ConfigError, Description, Filter, Kind, Kinds};
//! # struct Pass;
//! # impl Filter for Pass {
//! #     const KINDS: Kinds = Kinds::NONE;
//! #     fn describe() -> Description { Description::new("pass", "1") }
//! #     fn configure(_: &str) -> Result<Self, ConfigError> { Ok(Self) }
//! # }
//!
//! let mut host = Harness::<Pass>::new("{}")?;
//! let read = host.submit(Kind::Read, 0, 4096);
//! assert_eq!(host.answer(read), Some(Answer::forwarded_now()));
//! # Ok::<(), blockloom_sdk::ConfigError>(())
//! ```

mod children;
mod disk;
mod host;
mod scene;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blockloom_abi::{
    Action, BitmapIndex, Control, ControlKind, Done, Entry, Errno, Event, Extent, Kind,
    MAX_ACTIONS, MAX_EVENTS, NodeIndex, Operation, PollOne, Request, RequestFlags, RequestId,
    Subject, Token,
};

pub use disk::Disk;
pub(crate) use host::{
    bitmap_count, bitmap_merge, bitmap_next, bitmap_own, bitmap_set, bytes_get, bytes_put, log,
    set_rules,
};
use scene::Scene;

use crate::exec::Instance;
use crate::{ByteAccess, Child, ConfigError, Filter, Grants, Level, Node, Rule, Time};

/// Operations, timers among them, that a host with the default limits has in flight for one instance; more are
/// refused with `EBUSY`.
const OPERATIONS_MAX: usize = 4 * (256 + 1);

/// What a filter decided about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is passed on.
    Forwarded {
        /// Not before this time; 0 for at once.
        not_before: Time,
        /// Whether the filter waits for its end: see [`Harness::end`].
        notify: bool,
        /// Whether it is claimed to leave the view unchanged.
        claim: bool,
    },
    /// It is answered.
    Completed(Result<(), Errno>),
}

impl Answer {
    /// Passed on at once, with nothing else to it.
    #[must_use]
    pub const fn forwarded_now() -> Self {
        Self::forwarded_at(Time::from_nanos(0))
    }

    /// Passed on not before a time, with nothing else to it.
    #[must_use]
    pub const fn forwarded_at(not_before: Time) -> Self {
        Self::Forwarded { not_before, notify: false, claim: false }
    }
}

/// A filter and the host that the test plays.
pub struct Harness<F: Filter> {
    instance: Instance<F>,
    now: Time,
    next: u32,
    nodes: u16,
    told: Vec<Node>,
    answers: BTreeMap<u32, Answer>,
    operations: Vec<Action>,
    timers: BTreeSet<(u64, u32)>,
    /// Tokens of what was asked for while too much was under way.
    refused: Vec<Token>,
    /// Nodes whose job runs.
    jobs: BTreeSet<u16>,
    scene: Option<Scene>,
}

impl<F: Filter> Harness<F> {
    /// A configured filter that serves node 0. The clock begins at a second.
    ///
    /// # Errors
    ///
    /// What the filter finds wrong with the configuration.
    pub fn new(config: &str) -> Result<Self, ConfigError> {
        host::with(|host| *host = host::Host::default());
        Ok(Self {
            instance: Instance::new(F::configure(config)?),
            now: Time::from_nanos(1_000_000_000),
            next: 0,
            nodes: 0,
            told: Vec::new(),
            answers: BTreeMap::new(),
            operations: Vec::new(),
            timers: BTreeSet::new(),
            refused: Vec::new(),
            jobs: BTreeSet::new(),
            scene: None,
        })
    }

    /// The filter.
    #[must_use]
    pub fn filter(&self) -> &F {
        self.instance.filter()
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now
    }

    /// A node of that size with nothing to it but a filtered child; the first has index 0. Requests may be
    /// handed over without one, too.
    ///
    /// # Errors
    ///
    /// What the filter says against it.
    pub fn add_node(&mut self, name: &str, size_bytes: u64) -> Result<NodeIndex, String> {
        let index = NodeIndex(self.nodes);
        self.nodes += 1;
        host::with(|host| host.add_node(index, size_bytes));
        let file = Child { size_bytes, granted: Grants::NONE };
        self.tell(Node {
            index,
            name: name.to_owned(),
            size_bytes,
            read_only: false,
            children: vec![Some(file)],
            bitmaps: host::with(|host| host.bitmaps_of(index)),
            bytes: ByteAccess::None,
        })?;
        Ok(index)
    }

    /// Lends an empty bitmap to the node that is added next, to be read under that name.
    ///
    /// # Panics
    ///
    /// For a granularity that is no power of two from 512 on.
    pub fn lend_bitmap(&mut self, name: &str, granularity_bytes: u64) -> BitmapIndex {
        let node = NodeIndex(self.nodes);
        let lent = host::with(|host| host.lend(node, name, granularity_bytes));
        lent.expect("a granularity")
    }

    fn tell(&mut self, node: Node) -> Result<(), String> {
        self.told.retain(|known| known.index != node.index);
        self.told.push(node.clone());
        self.filter().add_node(node)
    }

    /// Gives the filter another configuration, as a host does while it runs.
    ///
    /// # Errors
    ///
    /// What the filter finds wrong with it.
    pub fn reconfigure(&mut self, config: &str) -> Result<(), ConfigError> {
        self.filter().reload(config)?;
        let node = |node: &Node| (node.index, node.size_bytes);
        let mut nodes: Vec<(NodeIndex, u64)> = self.told.iter().map(node).collect();
        if nodes.is_empty() {
            nodes.push((NodeIndex(0), 0));
        }
        for (node, first) in nodes {
            let kind = ControlKind::Reconfigured;
            self.control(Control { kind, node, first, second: 0 });
        }
        Ok(())
    }

    /// Puts another version of the filter in the place of this one, with its state and the same nodes: their
    /// jobs are stopped before, and begun after it. What is held stays held.
    ///
    /// # Errors
    ///
    /// What the next one says against its configuration, a node or the state.
    pub fn replace<G: Filter>(mut self, config: &str) -> Result<Harness<G>, String> {
        let jobs: Vec<NodeIndex> = self.jobs.iter().map(|node| NodeIndex(*node)).collect();
        jobs.into_iter().for_each(|node| self.stop_job(node));
        if self.scene.is_some() {
            self.run();
        }
        let state = self.filter().save();
        let filter = G::configure(config).map_err(|error| error.to_string())?;
        host::with(host::Host::reset_rules);
        let mut next = Harness {
            instance: Instance::new(filter),
            now: self.now,
            next: self.next,
            nodes: self.nodes,
            told: Vec::new(),
            answers: self.answers,
            operations: Vec::new(),
            timers: BTreeSet::new(),
            refused: Vec::new(),
            jobs: BTreeSet::new(),
            scene: self.scene.map(Scene::replace::<G>),
        };
        for mut node in self.told {
            node.bitmaps = host::with(|host| host.bitmaps_of(node.index));
            next.tell(node)?;
        }
        if !state.is_empty() {
            next.filter().restore(&state)?;
        }
        let nodes: Vec<NodeIndex> = next.told.iter().map(|node| node.index).collect();
        nodes.into_iter().filter(|_| G::JOB).for_each(|node| next.start_job(node));
        Ok(next)
    }

    /// Starts the job of a node.
    pub fn start_job(&mut self, node: NodeIndex) {
        self.control(Control { kind: ControlKind::JobStart, node, first: 0, second: 0 });
    }

    /// Asks the job of a node to end.
    pub fn stop_job(&mut self, node: NodeIndex) {
        self.control(Control { kind: ControlKind::JobStop, node, first: 0, second: 0 });
    }

    /// Whether the job of a node has been started and has not ended.
    #[must_use]
    pub fn job_runs(&self, node: NodeIndex) -> bool {
        self.jobs.contains(&node.0)
    }

    /// Hands over one request for node 0, by the flat call.
    pub fn submit(&mut self, kind: Kind, offset: u64, len: u64) -> RequestId {
        self.submit_to(NodeIndex(0), kind, RequestFlags::NONE, offset, len)
    }

    /// Hands over one request, by the flat call.
    pub fn submit_to(
        &mut self,
        node: NodeIndex,
        kind: Kind,
        flags: RequestFlags,
        offset: u64,
        len: u64,
    ) -> RequestId {
        if self.scene.is_some() && node == NodeIndex(0) {
            return self.admit(kind, flags, offset, len, Vec::new());
        }
        let id = self.new_id();
        self.offer(Request { id, node, kind, flags, offset, len });
        id
    }

    fn offer(&mut self, request: Request) {
        let id = request.id;
        let word = self.instance.poll_one(self.now.as_nanos(), request.encode());
        match PollOne::decode(word).expect("a verdict word") {
            PollOne::Queued => self.poll(&[]),
            PollOne::Forward { not_before_ns } => {
                self.answered(id, Answer::forwarded_at(Time::from_nanos(not_before_ns)));
            }
        }
    }

    fn answered(&mut self, id: RequestId, answer: Answer) {
        self.answers.insert(id.bits(), answer);
        self.note(id, answer);
    }

    /// Hands over several requests for node 0 as one turn.
    pub fn submit_all(
        &mut self,
        requests: impl IntoIterator<Item = (Kind, u64, u64)>,
    ) -> Vec<RequestId> {
        let (node, flags) = (NodeIndex(0), RequestFlags::NONE);
        let requests: Vec<Request> = requests
            .into_iter()
            .map(|(kind, offset, len)| Request {
                id: self.new_id(),
                node,
                kind,
                flags,
                offset,
                len,
            })
            .collect();
        let events: Vec<Event> = requests.iter().copied().map(Event::Request).collect();
        events.chunks(MAX_EVENTS).for_each(|events| self.poll(events));
        requests.iter().map(|request| request.id).collect()
    }

    /// What was decided about a request, if anything was.
    #[must_use]
    pub fn answer(&self, id: RequestId) -> Option<Answer> {
        self.answers.get(&id.bits()).copied()
    }

    /// Operations on children, not yet ended, in the order in which they were asked for.
    #[must_use]
    pub fn operations(&self) -> &[Action] {
        &self.operations
    }

    /// Ends the oldest operation, which must not be let go of a buffer.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn end_operation(&mut self, result: Result<(), Errno>) -> Action {
        self.end_status(result, &[])
    }

    /// Ends the oldest operation with extents, whose tokens do not matter.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn end_status(&mut self, result: Result<(), Errno>, extents: &[Extent]) -> Action {
        let action = self.operations.remove(0);
        let token = token(&action).expect("an operation");
        let mut events: Vec<Event> =
            extents.iter().map(|extent| Event::Extent(Extent { token, ..*extent })).collect();
        let subject = Subject::Operation(token);
        events.push(Event::Done(Done { subject, result, value: 0 }));
        self.poll(&events);
        action
    }

    /// Ends a request that was forwarded with notice.
    pub fn end(&mut self, id: RequestId, result: Result<(), Errno>) {
        let subject = Subject::Request(id);
        self.poll(&[Event::Done(Done { subject, result, value: 0 })]);
    }

    /// Tells that something changed around a node.
    pub fn control(&mut self, control: Control) {
        if control.kind == ControlKind::JobStart {
            self.jobs.insert(control.node.0);
        }
        self.poll(&[Event::Control(control)]);
    }

    /// Lets time pass, and sets off the timers that come due.
    pub fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        while let Some(&(at, timer)) = self.timers.first()
            && at <= until.as_nanos()
        {
            self.timers.pop_first();
            self.now = self.now.max(Time::from_nanos(at));
            let subject = Subject::Operation(Token(timer));
            self.poll(&[Event::Done(Done { subject, result: Ok(()), value: 0 })]);
        }
        self.now = until;
    }

    /// What the filter logged on this thread since the harness was made.
    #[must_use]
    pub fn logged(&self) -> Vec<(Level, String)> {
        host::with(|host| host.logged.clone())
    }

    /// The rules of a node and their epoch, if the filter set any.
    #[must_use]
    pub fn rules(&self, node: NodeIndex) -> Option<(Vec<Rule>, u32)> {
        host::with(|host| host.rules(node).cloned())
    }

    /// Makes an empty bitmap of bytes.
    pub fn add_bitmap(&mut self, bitmap: BitmapIndex) {
        host::with(|host| host.add_bitmap(bitmap));
    }

    fn new_id(&mut self) -> RequestId {
        let number = self.next;
        self.next += 1;
        let generation = (number >> 16) as u16 + 1;
        RequestId::new(number as u16, generation).expect("not 0")
    }

    fn poll(&mut self, events: &[Event]) {
        let words: Vec<u64> = events.iter().flat_map(|event| event.encode().0).collect();
        let words = self.instance.poll(self.now.as_nanos(), words);
        for entry in Entry::list(&words, MAX_ACTIONS).expect("a list of actions") {
            let action = Action::decode(entry).expect("an action");
            self.act(action);
        }
        if !self.refused.is_empty() {
            let refused = std::mem::take(&mut self.refused).into_iter().map(|token| {
                let subject = Subject::Operation(token);
                Event::Done(Done { subject, result: Err(Errno::EBUSY), value: 0 })
            });
            let refused: Vec<Event> = refused.collect();
            refused.chunks(MAX_EVENTS).for_each(|events| self.poll(events));
        }
    }

    /// Whether the host would begin one more operation.
    fn has_room(&self) -> bool {
        let operations = self.operations.iter().filter(|action| token(action).is_some());
        operations.count() + self.timers.len() < OPERATIONS_MAX
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Forward(forward) => {
                let answer = Answer::Forwarded {
                    not_before: Time::from_nanos(forward.not_before_ns),
                    notify: forward.notify,
                    claim: forward.claim,
                };
                self.answered(forward.id, answer);
            }
            Action::Complete(complete) => {
                self.answered(complete.id, Answer::Completed(complete.result));
            }
            Action::Drop { token } if self.timers.iter().any(|timer| timer.1 == token.0) => {
                self.timers.retain(|timer| timer.1 != token.0);
            }
            Action::Timer { token, .. } if !self.has_room() => self.refused.push(token),
            Action::Timer { token, at_ns } => {
                self.timers.insert((at_ns.max(self.now.as_nanos()), token.0));
            }
            Action::JobEnd { node } => {
                assert!(self.jobs.remove(&node.0), "the job of node {} does not run", node.0);
            }
            Action::Drop { token } if self.scene.is_some() => self.drop_buffer(token),
            other => match token(&other) {
                Some(token) if !self.has_room() => self.refused.push(token),
                _ => self.operations.push(other),
            },
        }
    }
}

impl<F: Filter> std::fmt::Debug for Harness<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Harness").field("now", &self.now).finish_non_exhaustive()
    }
}

fn token(action: &Action) -> Option<Token> {
    match *action {
        Action::Copy(copy) => Some(copy.token),
        Action::Write(write) => Some(write.operation.token),
        Action::Make { token, .. } => Some(token),
        Action::Status { operation: Operation { token, .. }, .. } => Some(token),
        Action::Read(operation)
        | Action::Zero(operation)
        | Action::Discard(operation)
        | Action::Flush(operation) => Some(operation.token),
        _ => None,
    }
}
