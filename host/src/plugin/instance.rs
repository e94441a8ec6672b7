//! An instance of a plugin: one store, entered by one worker at a time.
//!
//! A worker that finds the instance busy spins for about a microsecond, then leaves its offers in a
//! bounded queue and goes; the one inside takes them before and after it leaves. Answers for another
//! worker's requests go to that worker's outbox.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use blockloom_abi::{ENTRY_WORDS, Entry, Kind, Kinds};
use crossbeam::queue::{ArrayQueue, SegQueue};

use super::bindings::exports::blockloom::filter::control;
use super::counters::PluginCounters;
use super::faults::{Faults, OnFault, Phase, PhaseCell};
use super::inside::{Inside, Place};
use super::local::{LocalPlugin, Offer, Ticket, Verdict};
use super::module::{ConfigError, PluginModule, call_ticks};
use super::operation::{Ended, StoreNumber};
use super::store::Lasting;
use super::table::Table;
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

impl From<Error> for InstanceError {
    fn from(error: Error) -> Self {
        Self::Plugin(error)
    }
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
    pub(super) queue: ArrayQueue<Offer>,
    /// Somebody who could not see to it has left offers there.
    pub(super) is_left: AtomicBool,
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
    pub(super) ended: SegQueue<Ended>,
    pub(super) lasting: Arc<Lasting>,
    pub(super) nodes: AtomicU16,
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
        let inside = Inside::new((store, filter), 0, Table::new(limits.in_flight), &limits);
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
            is_left: AtomicBool::new(false),
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
            put_off_until: AtomicU64::new(0),
            refusal_told: Mutex::default(),
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

    pub(super) fn lasting(&self) -> &Arc<Lasting> {
        &self.lasting
    }

    /// Whether there are events that nobody has taken in.
    #[inline]
    pub(super) fn has_controls(&self) -> bool {
        !self.lasting.controls.is_empty()
            && self.phase() == Phase::Running
            && self.put_off_until().is_none()
    }

    /// Whether the plugin has work of its own.
    pub(super) fn has_job(&self) -> bool {
        self.module.inspection().has_job
    }

    /// An operation has ended; its worker has the instance entered.
    pub(super) fn end_operation(&self, ended: Ended) {
        self.ended.push(ended);
    }

    pub(super) fn deliver_fault(&self, offer: Offer, local: &LocalPlugin) {
        if let Offer::Request { ticket, .. } | Offer::Job { ticket, .. } = offer {
            self.deliver(ticket, Verdict::Fault, local);
        }
    }

    #[inline]
    pub(super) fn deliver(&self, ticket: Ticket, verdict: Verdict, local: &LocalPlugin) {
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
