//! An instance of a plugin: one store, entered by one worker at a time.
//!
//! A worker that finds the instance busy spins for about a microsecond, then leaves its offers in a
//! bounded queue and goes; the one inside takes them before and after it leaves. Answers for another
//! worker's requests go to that worker's outbox.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};

use blockloom_abi::{
    Action, ActionTag, Control, ControlKind, Done, ENTRY_WORDS, Entry, Errno, EventTag, Forward,
    Kind, Kinds, MAX_ACTIONS, MAX_EVENTS, NodeIndex, Parent, PollOne, Request, RequestFlags,
    RequestId, Subject, Token,
};
use crossbeam::queue::{ArrayQueue, SegQueue};
use wasmtime::Store;

use super::bindings::Filter;
use super::bindings::exports::blockloom::filter::control;
use super::bytes::ByteAccess;
use super::faults::{Faults, OnFault, Phase, PhaseCell};
use super::grants::{Grants, PluginChild, resolve};
use super::local::{LocalPlugin, Offer, Ticket, Verdict};
use super::module::{ConfigError, PluginModule, arm, call_ticks};
use super::operation::{Asked as AskedFor, Ended, StoreNumber, subject};
use super::store::{HostState, Lasting, printable};
use super::table::{Answer, Breach, Table};
use super::{PluginLimits, module};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::GraphCell;
use crate::io::{Time, WorkerHandle, turn_now};
use crate::limits::WORKERS_MAX;
use crate::node::NodeInfo;

/// Offers that wait for the worker inside. A worker that finds it full waits for its turn instead.
const QUEUE_MAX: usize = 4096;
/// Looks at a busy instance before giving way: about a microsecond.
const SPINS: u32 = 32;
/// Operations that one instance may have in flight for each request that it may have, and for none.
const OPERATIONS_OF_REQUEST: usize = 4;
/// Nodes that one instance may serve.
const NODES_MAX: u16 = 1024;

/// Why an instance could not be made.
#[derive(Debug)]
pub enum InstanceError {
    /// The plugin refused its configuration.
    Config(ConfigError),
    /// The plugin failed.
    Plugin(Error),
}

impl From<Error> for InstanceError {
    fn from(error: Error) -> Self {
        Self::Plugin(error)
    }
}

/// What became of a single request that was to be offered at once.
pub(super) enum Asked {
    /// It may go to the child.
    Forward,
    /// It waits for its verdict, or has it.
    Offered,
    /// It has to go with a batch.
    NotOffered,
}

/// What only the worker inside touches.
pub(super) struct Place {
    /// `None` while there is no store.
    pub(super) live: Option<Inside>,
    /// Kept from store to store, so that ids of an earlier one name nothing in the next.
    pub(super) table: Option<Table>,
}

/// A store, and what its guest has in hand.
pub(super) struct Inside {
    number: StoreNumber,
    store: Store<HostState>,
    filter: Filter,
    table: Table,
    /// Requests that wait for a slot. Bounded by what exports admit.
    waiting: VecDeque<Offer>,
    /// Ends of operations, for the next call.
    carry: Vec<Entry>,
    /// Operations in flight.
    operations: usize,
    /// The request for which each buffer was read; it ends with it.
    buffers: HashMap<Token, Ticket>,
    /// Where each node's job is.
    jobs: HashMap<NodeIndex, Ticket>,
    /// How often rules had changed when the workers were last told.
    rules_seen: u64,
    words: Vec<u64>,
}

/// What a store begins with.
pub(super) struct SetUp {
    pub(super) config: String,
    pub(super) nodes: Vec<control::Node>,
}

/// See the module.
pub struct Instance {
    id: usize,
    pub(super) module: Arc<PluginModule>,
    pub(super) limits: PluginLimits,
    pub(super) policy: OnFault,
    pub(super) call_ticks: u32,
    kinds: Kinds,
    pub(super) inside: Mutex<Place>,
    pub(super) set_up: Mutex<SetUp>,
    queue: ArrayQueue<Offer>,
    pub(super) phase: PhaseCell,
    pub(super) phase_changes: AtomicU64,
    /// Of the store that is there, or the next one.
    pub(super) number: AtomicU32,
    pub(super) faults: Mutex<Faults>,
    /// Why the last store was lost.
    pub(super) last_fault: Mutex<String>,
    /// Why there will be none any more.
    pub(super) failure: OnceLock<String>,
    /// Who is told of faults.
    pub(super) watchers: Mutex<Vec<Weak<GraphCell>>>,
    workers: Mutex<Vec<WorkerHandle>>,
    /// By worker. Bounded by the worker's waiters.
    outboxes: Box<[SegQueue<(Ticket, Verdict)>]>,
    /// Operations that have ended. Bounded by those in flight.
    ended: SegQueue<Ended>,
    pub(super) lasting: Arc<Lasting>,
    nodes: AtomicU16,
}

impl Instance {
    /// Instantiates and configures a plugin. `config` is JSON text. Once it fails, its nodes do.
    ///
    /// # Errors
    /// What the plugin says against it, or how it failed.
    pub fn new(
        module: &Arc<PluginModule>,
        config: &str,
        limits: PluginLimits,
    ) -> Result<Arc<Self>, InstanceError> {
        Self::with_policy(module, config, limits, OnFault::Fail)
    }

    /// The same with a policy for its faults.
    ///
    /// # Errors
    /// The same; `EPERM` for a bypass of a plugin that does not allow it.
    pub fn with_policy(
        module: &Arc<PluginModule>,
        config: &str,
        limits: PluginLimits,
        policy: OnFault,
    ) -> Result<Arc<Self>, InstanceError> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        if policy == OnFault::Bypass && !module.inspection().may_bypass {
            let message = format!(
                "plugin `{}` may not be bypassed when it fails: choose \"restart\" or \"fail\"",
                module.name()
            );
            return Err(Error::new(ErrorKind::NotPermitted, message).into());
        }
        let lasting = Arc::<Lasting>::default();
        let (mut store, filter) = module.instantiate(&limits, Arc::clone(&lasting))?;
        let configured = module.configure(&mut store, &filter, config, &limits)?;
        configured.map_err(InstanceError::Config)?;
        let inside = Inside::new((store, filter), 0, Table::new(limits.in_flight));
        Ok(Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            module: Arc::clone(module),
            limits,
            policy,
            call_ticks: call_ticks(&limits),
            kinds: module.kinds(),
            inside: Mutex::new(Place { live: Some(inside), table: None }),
            set_up: Mutex::new(SetUp { config: config.to_owned(), nodes: Vec::new() }),
            queue: ArrayQueue::new(QUEUE_MAX),
            phase: PhaseCell::new(),
            phase_changes: AtomicU64::new(0),
            number: AtomicU32::new(0),
            faults: Mutex::default(),
            last_fault: Mutex::default(),
            failure: OnceLock::new(),
            watchers: Mutex::default(),
            workers: Mutex::default(),
            outboxes: (0..WORKERS_MAX).map(|_| SegQueue::new()).collect(),
            ended: SegQueue::new(),
            lasting,
            nodes: AtomicU16::new(0),
        }))
    }

    /// The plugin's name, for messages.
    pub fn plugin(&self) -> &str {
        self.module.name()
    }

    /// Its limits.
    pub fn limits(&self) -> &PluginLimits {
        &self.limits
    }

    /// Why it is out of service for good, if it is.
    pub fn failure(&self) -> Option<&str> {
        match self.phase() {
            Phase::Bypassed | Phase::Failed => self.failure.get().map(String::as_str),
            Phase::Running | Phase::Down => None,
        }
    }

    /// How many stores it has had before the present one.
    pub fn restarts(&self) -> u32 {
        self.number.load(Ordering::Acquire)
    }

    /// How many claims of its plugin the host has refused: not proven, or of bytes that may be old.
    pub fn refused_claims(&self) -> u64 {
        self.lasting.refused_claims.load(Ordering::Relaxed)
    }

    /// Has the guest fail in its next call, which is told what the layout does not allow. For tests.
    #[doc(hidden)]
    pub fn confuse(&self) {
        if let Some(inside) = self.lock().live.as_mut() {
            inside.carry.push(Entry([u64::MAX; ENTRY_WORDS]));
        }
    }

    pub(super) fn id(&self) -> usize {
        self.id
    }

    #[inline]
    pub(super) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// How often the phase has changed.
    #[inline]
    pub(super) fn phase_changes(&self) -> u64 {
        self.phase_changes.load(Ordering::Acquire)
    }

    /// The store that is there, or the next one.
    pub(super) fn store_number(&self) -> StoreNumber {
        self.number.load(Ordering::Acquire)
    }

    #[inline]
    pub(super) fn wants(&self, kind: Kind) -> bool {
        self.kinds.contains(kind)
    }

    /// The error of requests to a dead instance.
    pub(super) fn fault_error(&self) -> Error {
        let reason = self.last_fault.lock().unwrap_or_else(PoisonError::into_inner);
        Error::new(ErrorKind::Io, format!("plugin `{}` is out of service: {reason}", self.plugin()))
    }

    /// Makes the worker known, so that answers reach it.
    pub(super) fn register(&self, worker: WorkerHandle) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.retain(|known| known.index() != worker.index());
        workers.push(worker);
    }

    /// A node's children as the plugin describes them.
    pub(super) fn resolve_children(
        &self,
        children: &[(String, Grants)],
    ) -> Result<Vec<PluginChild>> {
        resolve(&self.module, children)
    }

    /// Checks the bitmaps that are lent to a node.
    pub(super) fn check_bitmaps<'a>(
        &self,
        lent: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<()> {
        let (wanted, plugin) = (&self.module.inspection().bitmaps, self.plugin());
        let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
        let is_lent = |name: &str| lent.clone().any(|lent| lent == name);
        if let Some((name, _)) = wanted.iter().find(|(name, needed)| *needed && !is_lent(name)) {
            return invalid(format!(
                "plugin `{plugin}` needs a bitmap `{name}`: add `bitmap.{name} = \"…\"`"
            ));
        }
        let is_wanted = |name: &str| wanted.iter().any(|(wanted, _)| wanted == name);
        match lent.clone().find(|name| !is_wanted(name)) {
            Some(name) => invalid(format!("plugin `{plugin}` reads no bitmap `{name}`")),
            None => Ok(()),
        }
    }

    /// Checks what is granted of the data of a node's requests.
    pub(super) fn check_bytes(&self, granted: ByteAccess) -> Result<()> {
        let (wanted, plugin) = (self.module.inspection().wants_bytes, self.plugin());
        let not_permitted = |message: String| Err(Error::new(ErrorKind::NotPermitted, message));
        if wanted > granted {
            let to = match wanted {
                ByteAccess::Transform => "change the data of requests",
                _ => "look at the data of requests",
            };
            return not_permitted(format!(
                "plugin `{plugin}` wants to {to}, and is not granted that: write `grant.bytes = \"{}\"`, or \
                 use another plugin",
                wanted.name()
            ));
        }
        if granted == ByteAccess::Transform && self.policy == OnFault::Bypass {
            return not_permitted(format!(
                "plugin `{plugin}` changes the data of requests, and may not be bypassed when it fails: choose \
                 \"restart\" or \"fail\""
            ));
        }
        Ok(())
    }

    /// Checks that the plugin offers a view.
    pub(super) fn check_view(&self, view: &str) -> Result<()> {
        let views = &self.module.inspection().views;
        if views.iter().any(|offered| offered == view) {
            return Ok(());
        }
        let offered = match views.is_empty() {
            true => "none".to_owned(),
            false => format!("`{}`", views.join("`, `")),
        };
        let message =
            format!("plugin `{}` offers no view `{view}` (it offers: {offered})", self.plugin());
        Err(Error::new(ErrorKind::NotFound, message))
    }

    /// The index of one more node.
    pub(super) fn reserve_node(&self) -> Result<NodeIndex> {
        let index = self.nodes.fetch_add(1, Ordering::Relaxed);
        if index >= NODES_MAX {
            let message = format!("one plugin instance serves at most {NODES_MAX} nodes");
            return Err(Error::new(ErrorKind::NoMemory, message));
        }
        Ok(NodeIndex(index))
    }

    /// Tells the guest of a node, before its first request.
    pub(super) fn add_node(
        &self,
        index: NodeIndex,
        name: &str,
        info: &NodeInfo,
        (children, infos, access): (&[PluginChild], &[NodeInfo], ByteAccess),
    ) -> Result<()> {
        self.lasting.add_node(index, info.size_bytes);
        let described = self.module.inspection().children.len().max(1);
        let child = |index: usize| {
            let child = children.iter().find(|child| usize::from(child.index.0) == index)?;
            let size_bytes = infos.get(child.edge)?.size_bytes;
            Some(control::Child { size_bytes, granted: child.granted.to_wire() })
        };
        let node = control::Node {
            bytes: access.to_wire(),
            index: index.0,
            name: name.to_owned(),
            size_bytes: info.size_bytes,
            read_only: info.read_only,
            children: (0..described).map(child).collect(),
            bitmaps: self.lasting.bitmaps.list(index),
        };
        let mut guard = self.lock();
        let Some(inside) = guard.live.as_mut() else { return Err(self.fault_error()) };
        self.call_add_node((&mut inside.store, &inside.filter), &node)?;
        self.tell_rules(inside);
        self.set_up.lock().unwrap_or_else(PoisonError::into_inner).nodes.push(node);
        Ok(())
    }

    /// Has a guest serve a node.
    pub(super) fn call_add_node(
        &self,
        (store, filter): (&mut Store<HostState>, &Filter),
        node: &control::Node,
    ) -> Result<()> {
        arm(&self.module.runtime, store, self.call_ticks);
        let answer = filter.blockloom_filter_control().call_add_node(&mut *store, node);
        let answer = answer.map_err(|error| self.module.trapped(store, "add-node", &error))?;
        answer.map_err(|reason| {
            let reason = printable(&reason);
            let message = format!("plugin `{}` refuses the node: {reason}", self.plugin());
            Error::new(ErrorKind::Invalid, message)
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Place> {
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

    pub(super) fn lasting(&self) -> &Arc<Lasting> {
        &self.lasting
    }

    /// How often rules have changed.
    #[inline]
    pub(super) fn rules_changes(&self) -> u64 {
        self.lasting.rules_changes()
    }

    /// Whether there are events that nobody has taken in.
    #[inline]
    pub(super) fn has_controls(&self) -> bool {
        !self.lasting.controls.is_empty() && self.phase() == Phase::Running
    }

    /// Whether the plugin has work of its own.
    pub(super) fn has_job(&self) -> bool {
        self.module.inspection().has_job
    }

    /// An operation has ended; its worker has the instance entered.
    pub(super) fn end_operation(&self, ended: Ended) {
        self.ended.push(ended);
    }

    fn deliver_fault(&self, offer: Offer, local: &LocalPlugin) {
        if let Offer::Request { ticket, .. } | Offer::Job { ticket, .. } = offer {
            self.deliver(ticket, Verdict::Fault, local);
        }
    }

    #[inline]
    fn deliver(&self, ticket: Ticket, verdict: Verdict, local: &LocalPlugin) {
        if ticket.worker == local.worker() {
            local.deliver(ticket, verdict);
        } else {
            self.outboxes[ticket.worker as usize].push((ticket, verdict));
            self.wake(|worker| worker.index() == ticket.worker as usize);
        }
    }

    pub(super) fn wake(&self, which: impl Fn(&WorkerHandle) -> bool) {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.iter().filter(|worker| which(worker)).for_each(WorkerHandle::wake);
    }

    /// Takes what others left for this worker.
    pub(super) fn drain_outbox(&self, local: &LocalPlugin) -> bool {
        let outbox = &self.outboxes[local.worker() as usize];
        let mut any = false;
        while !outbox.is_empty()
            && let Some((ticket, verdict)) = outbox.pop()
        {
            local.deliver(ticket, verdict);
            any = true;
        }
        any
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

    fn process(
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
    fn call_one(
        &self,
        inside: &mut Inside,
        now_ns: u64,
        local: &LocalPlugin,
    ) -> Result<Option<Ticket>, String> {
        let &[head, id, offset, len] = inside.words.as_slice() else { return Ok(None) };
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
        arm(&self.module.runtime, &mut inside.store, self.call_ticks);
        let data = inside.filter.blockloom_filter_data();
        let actions = data.call_poll(&mut inside.store, now_ns, &inside.words);
        let actions = actions.map_err(|error| self.trap(inside, "poll", &error))?;
        self.tell_rules(inside);
        Ok(actions)
    }

    /// Has every worker let go of rules that are no more.
    #[inline]
    fn tell_rules(&self, inside: &mut Inside) {
        let changes = self.rules_changes();
        if inside.rules_seen != changes {
            inside.rules_seen = changes;
            self.wake(|_| true);
        }
    }

    fn trap(&self, inside: &Inside, call: &str, error: &wasmtime::Error) -> String {
        self.module.trapped(&inside.store, call, error).to_string()
    }

    /// Does what the guest answered, up to the first breach.
    fn obey(
        &self,
        inside: &mut Inside,
        words: &[u64],
        now_ns: u64,
        local: &LocalPlugin,
    ) -> Result<(), String> {
        let broken = |violation| Breach::Layout(violation).to_string();
        for entry in Entry::list(words, MAX_ACTIONS).map_err(broken)? {
            // Nearly all: spared the way through the enum of all actions.
            if entry.tag() == ActionTag::Forward as u8 {
                let forward = Forward::decode(entry).map_err(broken)?;
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
            match Action::decode(entry).map_err(broken)? {
                Action::Forward(forward) => self.forward(inside, forward, now_ns, local)?,
                Action::Complete(complete) => {
                    let is_put = inside.store.data().bytes.is_put(complete.id);
                    let completed = inside.table.complete(complete, is_put);
                    let (ticket, answer) = completed.map_err(|breach| breach.to_string())?;
                    inside.forget_buffers(ticket);
                    self.deliver(ticket, Verdict::Answer(answer), local);
                }
                Action::Timer { token, at_ns } => self.set_timer(inside, token, at_ns, local)?,
                Action::Drop { buffer } => {
                    if let Some(ticket) = inside.buffers.remove(&buffer) {
                        inside.store.data_mut().bytes.forget(buffer);
                        let asked = inside.asked(Action::Drop { buffer });
                        self.deliver(ticket, Verdict::Operate(asked), local);
                    }
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
    ) -> Result<(), String> {
        let Some((token, parent)) = subject(&action) else { return Ok(()) };
        if inside.operations >= self.operations_max() {
            return inside.refuse(token, Errno::EBUSY);
        }
        let (ticket, kind) = match parent {
            Parent::Request(id) => (inside.table.ticket(id), inside.table.kind(id)),
            Parent::Job(node) => (inside.jobs.get(&node).copied(), None),
        };
        let refused = match action {
            Action::Copy(copy) if copy.serve => kind.is_some_and(|kind| kind != Kind::Read),
            Action::Write(write) => inside.buffers.get(&write.source).copied() != ticket,
            _ => false,
        };
        if refused {
            return inside.refuse(token, Errno::EINVAL);
        }
        let ticket = match (parent, ticket) {
            (Parent::Request(id), _) => {
                inside.table.operate(id, now_ns).map_err(|breach| breach.to_string())?
            }
            (Parent::Job(_), Some(ticket)) => ticket,
            (Parent::Job(node), None) => return Err(format!("node {} has no job", node.0)),
        };
        let fills = matches!(action, Action::Read(_) | Action::Make { .. });
        if fills && inside.buffers.insert(token, ticket).is_some() {
            return Err(Breach::BufferInUse(token.0).to_string());
        }
        inside.operations += 1;
        self.deliver(ticket, Verdict::Operate(inside.asked(action)), local);
        Ok(())
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
    ) -> Result<(), String> {
        let at = Time::from_nanos(at_ns);
        if at <= turn_now() {
            return inside.end(token, Ok(()));
        }
        if inside.operations >= self.operations_max() {
            return inside.refuse(token, Errno::EBUSY);
        }
        inside.operations += 1;
        local.end_at(at, Ended::of_timer(inside.number, token));
        Ok(())
    }

    /// A FORWARD that has a time, or flags, or comes again.
    fn forward(
        &self,
        inside: &mut Inside,
        forward: Forward,
        now_ns: u64,
        local: &LocalPlugin,
    ) -> Result<(), String> {
        // Nothing but the host's own proof says that bytes of a request are unchanged; a refused claim writes
        // nothing.
        let is_put = inside.store.data().bytes.is_put(forward.id);
        if forward.claim && (is_put || !inside.table.is_unchanged(forward.id)) {
            self.lasting.refuse_claim();
            inside.table.refuse_claim(forward.id).map_err(|breach| breach.to_string())?;
            let subject = Subject::Request(forward.id);
            return inside.carry(Done { subject, result: Err(Errno::EPERM), value: 0 });
        }
        let answer = inside.table.forward(forward, now_ns).map_err(|breach| breach.to_string())?;
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

impl Inside {
    pub(super) fn new(
        (store, filter): (Store<HostState>, Filter),
        number: StoreNumber,
        table: Table,
    ) -> Self {
        Self {
            number,
            store,
            filter,
            table,
            waiting: VecDeque::new(),
            carry: Vec::new(),
            operations: 0,
            buffers: HashMap::new(),
            jobs: HashMap::new(),
            rules_seen: 0,
            words: Vec::new(),
        }
    }

    fn asked(&self, action: Action) -> AskedFor {
        AskedFor { store: self.number, action }
    }

    /// Adds a request to `words`; `false` when there is no slot or no room for it.
    #[inline]
    fn encode(&mut self, request: Offer, now_ns: u64) -> bool {
        let Offer::Request { ticket, node, kind, flags, offset, len } = request else {
            return true;
        };
        if self.words.len() >= MAX_EVENTS * ENTRY_WORDS {
            return false;
        }
        let unchanged = flags.contains(RequestFlags::UNCHANGED);
        let Some(id) = self.table.offer((kind, unchanged), ticket, now_ns) else { return false };
        if self.store.data_mut().take_lent(id, ticket) == ByteAccess::Transform {
            self.table.transforms(id);
        }
        self.words.extend(Request { id, node, kind, flags, offset, len }.encode().0);
        true
    }

    /// Whether there is something that the next call can take.
    fn has_more(&self) -> bool {
        !self.carry.is_empty() || (!self.waiting.is_empty() && self.table.has_room())
    }

    /// Adds an event; what one call cannot take goes with the next.
    fn push(&mut self, event: Entry) {
        if self.words.len() < MAX_EVENTS * ENTRY_WORDS {
            self.words.extend(event.0);
        } else {
            self.carry.push(event);
        }
    }

    /// Tells the guest how an operation ended.
    fn tell(&mut self, ended: Ended, now_ns: u64) {
        self.operations = self.operations.saturating_sub(1);
        let result = ended.result.as_ref().map(drop).map_err(|errno| *errno);
        if let Some(id) = ended.request {
            self.table.operated(id, ended.serves && result.is_ok(), now_ns);
        }
        if ended.is_read && result.is_err() {
            self.buffers.remove(&ended.token);
        }
        let answered = ended.result.unwrap_or_default();
        if let (Some(seen), Some(ticket)) = (answered.seen, self.buffers.get(&ended.token)) {
            self.store.data_mut().bytes.fill(ended.token, *ticket, seen);
        }
        for extent in &answered.extents {
            self.push(extent.encode());
        }
        let subject = Subject::Operation(ended.token);
        self.push(Done { subject, result, value: answered.value }.encode());
    }

    /// The data of a request, and what was read for it, end with it.
    #[inline]
    fn forget_buffers(&mut self, ticket: Ticket) {
        self.store.data_mut().bytes.end(ticket);
        if !self.buffers.is_empty() {
            self.buffers.retain(|_, of| *of != ticket);
        }
    }

    /// Ends an operation that is not begun.
    fn refuse(&mut self, token: Token, errno: Errno) -> Result<(), String> {
        self.end(token, Err(errno))
    }

    fn end(&mut self, token: Token, result: Result<(), Errno>) -> Result<(), String> {
        self.carry(Done { subject: Subject::Operation(token), result, value: 0 })
    }

    fn carry(&mut self, done: Done) -> Result<(), String> {
        if self.carry.len() >= MAX_EVENTS {
            return Err(format!("it asked for more than {MAX_EVENTS} operations at once"));
        }
        self.carry.push(done.encode());
        Ok(())
    }
}

impl Instance {
    /// An instance of a bundled plugin with default limits.
    ///
    /// # Errors
    /// As [`PluginModule::load_bundled`](module::PluginModule::load_bundled) and [`Instance::new`].
    pub fn bundled(
        runtime: &Arc<super::PluginRuntime>,
        name: &str,
        config: &str,
    ) -> Result<Arc<Self>> {
        let module = Arc::new(module::PluginModule::load_bundled(runtime, name)?);
        Self::new(&module, config, PluginLimits::default()).map_err(|error| match error {
            InstanceError::Plugin(error) => error,
            InstanceError::Config(error) => Error::new(ErrorKind::Invalid, error.to_string()),
        })
    }
}
