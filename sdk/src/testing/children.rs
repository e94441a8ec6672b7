//! The part of a host that has children: what a filter asks for is done to bytes.

use std::collections::BTreeMap;
use std::time::Duration;

use blockloom_abi::{
    Control, ControlKind, Done, Errno, Event, Extent, Kind, Request, RequestFlags, RequestId,
    Subject, Token,
};

use super::disk::{Disk, flags};
use super::scene::{NODE, Pending, Scene, State, held, perform};
use super::{Answer, Harness, host, token};
use crate::bytes::Holder;
use crate::exec::Instance;
use crate::{ByteAccess, Child, ConfigError, Filter, Node, Random, Time};

impl<F: Filter> Harness<F> {
    /// A configured filter whose node 0 has children with bytes, by the names that it describes; the
    /// first is the one that it filters. What it wants of them is granted.
    ///
    /// Rules are kept, as in the real host: what they let pass is not offered. What was submitted and what
    /// the filter asks for is done by [`run`](Self::run). Block status above another child
    /// ([`Cx::status_above`](crate::Cx::status_above)) is that of the child's own blocks.
    ///
    /// ```
    /// use blockloom_sdk::testing::{Disk, Harness};
    /// # use blockloom_sdk::{ConfigError, Description, Errno, Filter, Kinds};
    /// # struct Pass;
    /// # impl Filter for Pass {
    /// #     const KINDS: Kinds = Kinds::NONE;
    /// #     fn describe() -> Description { Description::new("pass", "1") }
    /// #     fn configure(_: &str) -> Result<Self, ConfigError> { Ok(Self) }
    /// # }
    ///
    /// let mut host = Harness::<Pass>::with_children("{}", [("file", Disk::new(vec![0; 4096]))])?;
    /// let write = host.write(100, b"bytes");
    /// let read = host.read(102, 2);
    /// host.run();
    /// assert_eq!(host.result(write), Some(Ok(vec![])));
    /// assert_eq!(host.result(read), Some(Ok(b"te".to_vec())));
    /// assert_eq!(&host.disk("file").bytes()[100..105], b"bytes");
    /// # Ok::<(), ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What the filter finds wrong with the configuration or the node.
    ///
    /// # Panics
    ///
    /// If a child that the filter requires is not there, or one is that it does not know.
    pub fn with_children<'a>(
        config: &str,
        children: impl IntoIterator<Item = (&'a str, Disk)>,
    ) -> Result<Self, ConfigError> {
        let mut harness = Self::new(config)?;
        let description = F::describe();
        let mut disks: Vec<Option<Disk>> = description.children.iter().map(|_| None).collect();
        for (name, disk) in children {
            let at = description.children.iter().position(|child| child.name == name);
            disks[at.unwrap_or_else(|| panic!("the filter has no child `{name}`"))] = Some(disk);
        }
        let kinds = F::KINDS.with(F::DECIDE).with(F::NOTIFY).with(description.also_offered);
        let (requests, buffers) = (BTreeMap::new(), BTreeMap::new());
        let config = config.to_owned();
        harness.scene =
            Some(Scene { description, kinds, config, disks, requests, buffers, armed: 0 });
        let size_bytes = harness.disk("file").size_bytes();
        harness.nodes = NODE.0 + 1;
        host::with(|host| host.add_node(NODE, size_bytes));
        harness.begin().map_err(|error| ConfigError::new("", error))?;
        Ok(harness)
    }

    /// The node as the filter is told of it, and its job's start.
    fn begin(&mut self) -> Result<(), String> {
        let scene = self.scene.as_ref().expect("children");
        let child = |(disk, want): (&Option<Disk>, &crate::ChildWant)| {
            assert!(disk.is_some() || !want.required, "the filter needs a child `{}`", want.name);
            disk.as_ref().map(|disk| Child { size_bytes: disk.size_bytes(), granted: want.wants })
        };
        let node = Node {
            index: NODE,
            name: "node".to_owned(),
            size_bytes: self.disk("file").size_bytes(),
            read_only: false,
            children: scene.disks.iter().zip(&scene.description.children).map(child).collect(),
            bitmaps: host::with(|host| host.bitmaps_of(NODE)),
            bytes: scene.description.bytes,
        };
        self.tell(node)?;
        if F::JOB {
            self.start_job(NODE);
        }
        Ok(())
    }

    /// The child of that name.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn disk(&self, name: &str) -> &Disk {
        let scene = self.scene.as_ref().expect("a harness with children");
        let at = scene.description.children.iter().position(|child| child.name == name);
        at.and_then(|at| scene.disks[at].as_ref()).expect("a child of that name")
    }

    /// The same, to change it.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn disk_mut(&mut self, name: &str) -> &mut Disk {
        let scene = self.scene.as_mut().expect("a harness with children");
        let at = scene.description.children.iter().position(|child| child.name == name);
        at.and_then(|at| scene.disks[at].as_mut()).expect("a child of that name")
    }

    /// Submits a read for node 0, which has children.
    pub fn read(&mut self, offset: u64, len: u64) -> RequestId {
        self.submit(Kind::Read, offset, len)
    }

    /// Submits a write for node 0, which has children.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> RequestId {
        self.admit(Kind::Write, RequestFlags::NONE, offset, bytes.len() as u64, bytes.to_vec())
    }

    /// How a request ended, if it has; what a read has read.
    #[must_use]
    pub fn result(&self, id: RequestId) -> Option<Result<Vec<u8>, Errno>> {
        match &self.scene.as_ref()?.requests.get(&id.bits())?.state {
            State::Ended(result) => Some(result.clone()),
            _ => None,
        }
    }

    /// Does all that can be done without time passing, in the order in which it was asked for.
    pub fn run(&mut self) {
        while self.step(|_| 0) {}
    }

    /// Does all that can be done without time passing, in an order of chance.
    pub fn run_in_any_order(&mut self, random: &Random) {
        while self.step(|choices| random.below(choices as u64) as usize) {}
    }

    /// Lets time pass, and does all that can be done meanwhile.
    pub fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        self.run();
        while let Some(next) = self.next_due().filter(|next| *next <= until) {
            self.advance(next - self.now);
            self.run();
        }
        self.advance(until - self.now);
        self.run();
    }

    /// The instance fails and is started again: with its configuration and its bitmaps and nothing else.
    /// What it had not forwarded is offered again, what it had asked for is lost.
    ///
    /// # Errors
    ///
    /// What the filter says against the node.
    pub fn restart(&mut self) -> Result<(), String> {
        let scene = self.scene.as_mut().expect("a harness with children");
        let filter = F::configure(&scene.config).map_err(|error| error.to_string())?;
        scene.buffers.clear();
        // Nobody is there any more to be told of an end.
        let transforms = scene.transforms();
        for pending in scene.requests.values_mut() {
            match &mut pending.state {
                // What the child gives is not its answer.
                State::Forwarded { notify: true, .. } | State::Settled(Ok(_))
                    if transforms && pending.request.kind == Kind::Read =>
                {
                    pending.state = State::Offered;
                }
                State::Forwarded { notify, .. } => *notify = false,
                State::Settled(result) => pending.state = State::Ended(result.clone()),
                State::Offered | State::Ended(_) => {}
            }
        }
        let offered = scene.requests.values().filter(|it| it.state == State::Offered);
        let offered: Vec<&Pending> = offered.collect();
        offered.iter().for_each(|pending| scene.hold(pending));
        let offered: Vec<Event> = offered.iter().map(|it| Event::Request(it.request)).collect();
        host::with(host::Host::reset_rules);
        self.instance = Instance::new(filter);
        self.operations.clear();
        self.timers.clear();
        self.begin()?;
        self.poll(&offered);
        Ok(())
    }

    /// Takes a request in: it passes, or is offered.
    pub(super) fn admit(
        &mut self,
        kind: Kind,
        flags: RequestFlags,
        offset: u64,
        len: u64,
        data: Vec<u8>,
    ) -> RequestId {
        let id = self.new_id();
        let scene = self.scene.as_mut().expect("a harness with children");
        let is_lowered = scene.transforms() && !scene.kinds.contains(kind);
        // Zeros of the child are none of a node that shows bytes of its own.
        let kind = if is_lowered && kind == Kind::Zero { Kind::Write } else { kind };
        let request = Request { id, node: NODE, kind, flags, offset, len };
        if is_lowered && kind == Kind::Discard {
            let state = State::Ended(Ok(Vec::new()));
            scene.requests.insert(id.bits(), Pending { request, data, state, passed_under: None });
            return id;
        }
        let passes = !scene.kinds.contains(kind) || scene.passes(&request);
        let state = if passes {
            State::Forwarded { not_before: self.now, notify: false }
        } else {
            State::Offered
        };
        let passed_under = passes.then(|| host::with(|host| host.rules_generation));
        let pending = Pending { request, data, state, passed_under };
        scene.hold(&pending);
        scene.requests.insert(id.bits(), pending);
        if passes {
            self.answers.insert(id.bits(), Answer::forwarded_now());
        } else {
            self.offer(request);
        }
        id
    }

    pub(super) fn note(&mut self, id: RequestId, answer: Answer) {
        let Some(scene) = &mut self.scene else { return };
        let Some(pending) = scene.requests.get_mut(&id.bits()) else { return };
        let kind = pending.request.kind;
        let held = match pending.state {
            State::Ended(_) => return,
            _ => host::with(|host| host.take_held(Holder::Request(id.bits()))),
        };
        let is_put = held.as_ref().is_some_and(|held| held.is_put);
        let transforms = scene.description.bytes == ByteAccess::Transform;
        pending.state = match (answer, &pending.state) {
            (Answer::Forwarded { not_before, notify, .. }, _) => {
                if kind == Kind::Write && is_put {
                    pending.data = held.and_then(|held| held.bytes).unwrap_or_default();
                }
                State::Forwarded { not_before, notify }
            }
            (Answer::Completed(Err(errno)), _) => State::Ended(Err(errno)),
            (Answer::Completed(Ok(())), State::Settled(Ok(_)) | State::Offered)
                if kind == Kind::Read && is_put =>
            {
                State::Ended(Ok(held.and_then(|held| held.bytes).unwrap_or_default()))
            }
            (Answer::Completed(Ok(())), State::Settled(settled)) => State::Ended(settled.clone()),
            (Answer::Completed(Ok(())), State::Offered)
                if transforms && matches!(kind, Kind::Write | Kind::Zero) =>
            {
                State::Ended(Ok(Vec::new()))
            }
            (Answer::Completed(Ok(())), _) => {
                panic!("the filter completes a request that it neither forwarded nor served")
            }
        };
    }

    /// A buffer is given back.
    pub(super) fn drop_buffer(&mut self, buffer: Token) {
        if let Some(scene) = &mut self.scene {
            scene.buffers.remove(&buffer.0);
            host::with(|host| host.take_held(Holder::Buffer(buffer.0)));
        }
    }

    /// When the next timer or request comes due.
    fn next_due(&self) -> Option<Time> {
        let timer = self.timers.first().map(|(at, _)| Time::from_nanos(*at));
        let requests = self.scene.as_ref().into_iter().flat_map(|scene| scene.requests.values());
        let held = requests.filter_map(|pending| match pending.state {
            State::Forwarded { not_before, .. } => Some(not_before),
            _ => None,
        });
        held.chain(timer).min()
    }

    /// Does one of what can be done; whether there was something.
    fn step(&mut self, choose: impl FnOnce(usize) -> usize) -> bool {
        if self.tell_armed() {
            return true;
        }
        let now = self.now;
        let scene = self.scene.as_mut().expect("a harness with children");
        let due = |pending: &Pending| match pending.state {
            State::Forwarded { not_before, .. } => not_before <= now,
            _ => false,
        };
        let due: Vec<u32> =
            scene.requests.iter().filter(|(_, it)| due(it)).map(|(id, _)| *id).collect();
        let choices = self.operations.len() + due.len();
        if choices == 0 {
            return false;
        }
        let chosen = choose(choices);
        match chosen.checked_sub(self.operations.len()) {
            Some(index) => self.settle(due[index]),
            None => self.carry_out(chosen),
        }
        true
    }

    /// Tells the filter when nothing is in flight any more that passed under older rules.
    fn tell_armed(&mut self) -> bool {
        let Some(scene) = &mut self.scene else { return false };
        let generation = host::with(|host| host.rules_generation);
        let is_older = |pending: &Pending| {
            let is_in_flight = matches!(pending.state, State::Forwarded { .. });
            is_in_flight && pending.passed_under.is_some_and(|under| under < generation)
        };
        if scene.armed == generation || scene.requests.values().any(is_older) {
            return false;
        }
        scene.armed = generation;
        let Some(epoch) = host::with(|host| host.rules(NODE).map(|rules| rules.1)) else {
            return true;
        };
        let kind = ControlKind::Armed;
        self.control(Control { kind, node: NODE, first: epoch.into(), second: 0 });
        true
    }

    /// The child does a forwarded request.
    fn settle(&mut self, id: u32) {
        let scene = self.scene.as_mut().expect("a harness with children");
        let Some(pending) = scene.requests.get_mut(&id) else { return };
        let file = scene.disks[0].as_mut().expect("a filtered child");
        let result = perform(file, &pending.request, &pending.data);
        let notify = matches!(pending.state, State::Forwarded { notify: true, .. });
        if notify {
            let (id, end) = (pending.request.id, result.as_ref().map(|_| ()).map_err(|it| *it));
            let given = result.as_ref().ok().filter(|_| pending.request.kind == Kind::Read);
            if let Some(bytes) = given.filter(|_| scene.description.bytes != ByteAccess::None) {
                let held = held(scene.description.bytes, Some(bytes.clone()), bytes.len() as u64);
                host::with(|host| host.hold(Holder::Request(id.bits()), held));
            }
            pending.state = State::Settled(result);
            self.end(id, end);
        } else {
            pending.state = State::Ended(result);
        }
    }

    fn carry_out(&mut self, index: usize) {
        let action = self.operations.remove(index);
        let scene = self.scene.as_mut().expect("a harness with children");
        let (result, extents) = match scene.carry_out(&action) {
            Ok(extents) => (Ok(()), extents),
            Err(errno) => (Err(errno), Vec::new()),
        };
        let token = token(&action).expect("an operation");
        let mut events: Vec<Event> = Vec::new();
        for (range, is_own) in extents {
            let (offset, len) = (range.start, range.end - range.start);
            events.push(Event::Extent(Extent { token, flags: flags(is_own), offset, len }));
        }
        events.push(Event::Done(Done { subject: Subject::Operation(token), result, value: 0 }));
        self.poll(&events);
    }
}
