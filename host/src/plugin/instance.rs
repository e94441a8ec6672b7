//! An instance of a plugin: one store, entered by one worker at a time.
//!
//! A worker that finds the instance busy spins for about a microsecond, then leaves its offers in a
//! bounded queue and goes; the one inside takes them before and after it leaves. Answers for another
//! worker's requests go to that worker's outbox.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use blockloom_abi::{ENTRY_WORDS, Entry, Kind, Kinds, NodeIndex};
use crossbeam::queue::{ArrayQueue, SegQueue};

use super::counters::PluginCounters;
use super::faults::{Faults, OnFault, Phase, PhaseCell};
use super::inside::{Inside, Made, Place};
use super::local::{LocalPlugin, Offer, Ticket, Verdict};
use super::module::{ConfigError, PluginModule, call_ticks};
use super::operation::{Ended, StoreNumber};
use super::served::Served;
use super::store::Lasting;
use super::table::Table;
use super::version::{OfferedAs, offers_as};
use super::{PluginLimits, module};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::GraphCell;
use crate::io::{Time, WorkerHandle};
use crate::limits::WORKERS_MAX;

/// Offers that wait for the worker inside. A worker that finds it full waits for its turn instead.
const QUEUE_MAX: usize = 4096;

/// Why an instance could not be made.
#[derive(Debug)]
pub enum InstanceError {
    /// The plugin refused its configuration.
    Config(ConfigError),
    /// The plugin failed.
    Plugin(Error),
}

impl fmt::Display for InstanceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => write!(f, "its configuration is refused: {error}"),
            Self::Plugin(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for InstanceError {}

impl From<Error> for InstanceError {
    fn from(error: Error) -> Self {
        Self::Plugin(error)
    }
}
/// See the module.
pub struct Instance {
    id: usize,
    /// Its name among instances, if several nodes share it.
    name: OnceLock<Arc<str>>,
    /// What the next store is made of.
    module: Mutex<Arc<PluginModule>>,
    pub(super) config: Mutex<String>,
    pub(super) limits: PluginLimits,
    pub(super) policy: OnFault,
    pub(super) call_ticks: u32,
    /// Bits of the kinds that the guest wants to be offered.
    pub(super) kinds: AtomicU32,
    /// Bits of the kinds that its version knows.
    pub(super) known: AtomicU32,
    pub(super) inside: Mutex<Place>,
    pub(super) served: Served,
    /// Nodes that have left the graph. Bounded by those that there are.
    pub(super) departures: SegQueue<NodeIndex>,
    pub(super) queue: ArrayQueue<Offer>,
    /// Requests have gone on because they had been held for too long.
    has_let_go: AtomicBool,
    /// Somebody who could not see to it has left offers there.
    pub(super) is_left: AtomicBool,
    /// Some worker's alarm for the guest's timers has rung, and nobody has looked at them since.
    pub(super) is_rung: AtomicBool,
    pub(super) phase: PhaseCell,
    pub(super) phase_changes: AtomicU64,
    /// Of the store that is there, or the next one.
    pub(super) number: AtomicU32,
    /// How many of them took the place of one that was alive.
    pub(super) reloads: AtomicU32,
    /// A store is being made.
    pub(super) is_changing: AtomicBool,
    pub(super) faults: Mutex<Faults>,
    /// Why the last store was lost.
    pub(super) last_fault: Mutex<String>,
    /// Why there will be none any more.
    pub(super) failure: Mutex<Option<String>>,
    /// Who is told of faults.
    pub(super) watchers: Mutex<Vec<Weak<GraphCell>>>,
    workers: Mutex<Vec<WorkerHandle>>,
    /// How many those are.
    worker_count: AtomicUsize,
    /// By worker. Bounded by the worker's waiters.
    outboxes: Box<[SegQueue<(Ticket, Verdict)>]>,
    /// Operations that have ended. Bounded by those in flight.
    pub(super) ended: SegQueue<Ended>,
    pub(super) lasting: Arc<Lasting>,
    /// Until then it is not called, as it has used up its processor time: nanoseconds.
    pub(super) put_off_until: AtomicU64,
    /// When somebody was last told of a refused claim.
    pub(super) refusal_told: Mutex<Option<Time>>,
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
        let lasting = Arc::new(Lasting::of(module.inspection()));
        let (mut store, filter) = module.instantiate(&limits, Arc::clone(&lasting))?;
        let configured = module.configure(&mut store, &filter, config, &limits)?;
        configured.map_err(InstanceError::Config)?;
        let made =
            Made { module: Arc::clone(module), store, filter, serves: Vec::new(), resizes: 0 };
        let inside = Inside::new(made, 0, Table::new(limits.in_flight), &limits);
        Ok(Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            name: OnceLock::new(),
            module: Mutex::new(Arc::clone(module)),
            config: Mutex::new(config.to_owned()),
            limits,
            policy,
            call_ticks: call_ticks(&limits),
            kinds: AtomicU32::new(module.kinds().bits()),
            known: AtomicU32::new(module.known().bits()),
            inside: Mutex::new(Place { live: Some(inside), table: None }),
            served: Served::default(),
            departures: SegQueue::new(),
            queue: ArrayQueue::new(QUEUE_MAX),
            has_let_go: AtomicBool::new(false),
            is_left: AtomicBool::new(false),
            is_rung: AtomicBool::new(false),
            phase: PhaseCell::new(),
            phase_changes: AtomicU64::new(0),
            number: AtomicU32::new(0),
            reloads: AtomicU32::new(0),
            is_changing: AtomicBool::new(false),
            faults: Mutex::default(),
            last_fault: Mutex::default(),
            failure: Mutex::default(),
            watchers: Mutex::default(),
            workers: Mutex::default(),
            worker_count: AtomicUsize::new(0),
            outboxes: (0..WORKERS_MAX).map(|_| SegQueue::new()).collect(),
            ended: SegQueue::new(),
            lasting,
            put_off_until: AtomicU64::new(0),
            refusal_told: Mutex::default(),
        }))
    }

    /// The plugin's name, for messages.
    pub fn plugin(&self) -> Arc<str> {
        self.module().shared_name()
    }

    /// What it is called among instances, if it was given a name.
    pub fn name(&self) -> Option<&str> {
        self.name.get().map(|name| &**name)
    }

    /// Gives it a name, once: by it [`Host::reload_plugin`](crate::Host::reload_plugin) finds it.
    pub fn call_it(&self, name: &str) {
        let _ = self.name.set(name.into());
    }

    /// The plugin.
    pub fn module(&self) -> Arc<PluginModule> {
        Arc::clone(&self.module.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_module(&self, module: &Arc<PluginModule>) {
        *self.module.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(module);
    }

    /// Its limits.
    pub fn limits(&self) -> &PluginLimits {
        &self.limits
    }

    /// Why it is out of service for good, if it is.
    pub fn failure(&self) -> Option<String> {
        match self.phase() {
            Phase::Bypassed | Phase::Failed => {
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
            }
            Phase::Running | Phase::Down | Phase::Reloading => None,
        }
    }

    /// How many stores it has lost.
    pub fn restarts(&self) -> u32 {
        self.number.load(Ordering::Acquire) - self.reloads.load(Ordering::Acquire)
    }

    /// How often its plugin was replaced while it was alive.
    pub fn reloads(&self) -> u32 {
        self.reloads.load(Ordering::Acquire)
    }

    /// How often the present store was called for requests, and with how many events.
    pub fn calls(&self) -> (u64, u64) {
        self.go_in(None).live.as_ref().map_or((0, 0), |inside| inside.calls)
    }

    /// What has been counted of it, and of all its nodes.
    pub fn counters(&self) -> PluginCounters {
        self.lasting.counters.sum(None, self.restarts().into())
    }

    /// Has the guest fail in its next call, which is told what the layout does not allow. For tests.
    #[doc(hidden)]
    pub fn confuse(&self) {
        if let Some(inside) = self.go_in(None).live.as_mut() {
            inside.carry.push(Entry([u64::MAX; ENTRY_WORDS]));
        }
    }

    pub(super) fn id(&self) -> usize {
        self.id
    }

    #[inline]
    /// Where it stands.
    pub fn phase(&self) -> Phase {
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
        // A request that is asked for the last time, or goes uncalled for the last time, does no harm: whoever
        // widens them waits for those.
        self.kinds.load(Ordering::Relaxed) & 1 << kind as u32 != 0
    }

    /// As what the guest is offered a request of a kind.
    pub(super) fn offers_as(&self, kind: Kind) -> OfferedAs {
        let known = Kinds::from_bits(self.known.load(Ordering::Relaxed)).unwrap_or(Kinds::NONE);
        offers_as(known, kind)
    }

    /// The error of requests to a dead instance.
    pub(super) fn fault_error(&self) -> Error {
        let reason = self.last_fault.lock().unwrap_or_else(PoisonError::into_inner);
        Error::new(ErrorKind::Io, format!("plugin `{}` is out of service: {reason}", self.plugin()))
    }

    /// A request has been held for as long as it may, and goes on before its time. Said once.
    #[cold]
    pub(super) fn tell_let_go(&self) {
        if !self.has_let_go.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "plugin `{}` holds requests for longer than {:?}: they go on then (`limits.hold` allows \
                 more)",
                self.plugin(),
                self.limits.hold
            );
        }
    }

    /// Makes the worker known, so that answers reach it.
    pub(super) fn register(&self, worker: WorkerHandle) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.retain(|known| known.index() != worker.index());
        workers.push(worker);
        self.worker_count.store(workers.len(), Ordering::Relaxed);
    }

    /// The worker lets go of the instance.
    pub(super) fn forget_worker(&self, worker: u32) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.retain(|known| known.index() != worker as usize);
        self.worker_count.store(workers.len(), Ordering::Relaxed);
    }

    /// Whether none but workers that have served it hold it: they may let go of it.
    #[inline]
    pub(super) fn has_no_users(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) <= self.worker_count.load(Ordering::Relaxed)
    }

    pub(super) fn lasting(&self) -> &Arc<Lasting> {
        &self.lasting
    }

    /// An operation has ended; its worker has the instance entered.
    pub(super) fn end_operation(&self, ended: Ended) {
        self.ended.push(ended);
    }

    pub(super) fn deliver_fault(&self, offer: Offer, local: &LocalPlugin) {
        if let Offer::Request { ticket, .. } | Offer::Job { ticket, .. } = offer {
            self.lasting.bytes.take_back(ticket);
            self.deliver(ticket, Verdict::Fault, local);
        }
    }

    #[inline]
    pub(super) fn deliver(&self, ticket: Ticket, verdict: Verdict, local: &LocalPlugin) {
        if ticket.worker() == local.worker() {
            local.deliver(ticket, verdict);
        } else {
            self.outboxes[ticket.worker() as usize].push((ticket, verdict));
            self.wake(|worker| worker.index() == ticket.worker() as usize);
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
