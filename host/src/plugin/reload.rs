//! Another plugin in the place of one that runs, under load: its state is handed over, no request is lost, none is
//! seen twice.
//!
//! ```text
//!   aside    instantiate, check, configure            the former serves
//!   jobs     job-stop, until they have ended          the former serves
//!   gate     requests wait; what is offered, done or awaited ends; what is held till a time stays held
//!   hand     save │ add-node …, restore               nobody is called for a request
//!   place    rules, children, kinds; jobs begin       the next serves, those that wait first
//! ```
//!
//! Up to the last line everything can be taken back: then the former goes on as it was. What the next one does to
//! rules and bitmaps before it has its place is done aside (`store.rs`). A plugin that wants kinds of requests of
//! which the former was not asked takes the place with nothing in flight at all: so what it has set as rules is
//! armed for those, too. One that is down, or out of service, has no state to hand over.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use super::faults::{Fault, OnFault, Phase};
use super::inside::{Inside, Made, Place};
use super::instance::{Instance, InstanceError};
use super::local::{LocalPlugin, Verdict};
use super::module::{PluginModule, arm};
use super::node::PluginNode;
use super::operation::StoreNumber;
use super::served::Fit;
use super::store::{CALL_DATA_BYTES, Lasting, STATE_MAX_BYTES, printable};
use super::table::{Answer, Table};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Event, GraphCell};
use crate::io::{Time, next_turn, sleep_until, turn_now};

/// Time that jobs have to end. One that does nothing but wait by then is given up.
const JOB_STOP_TIME: Duration = Duration::from_secs(2);
/// Longest time for which requests wait: for the ends of those before them.
const GATE_TIME: Duration = Duration::from_secs(2);
/// Time after which requests that the guest holds, and whose end it awaits, are let go.
const RELEASE_AFTER: Duration = Duration::from_millis(100);
/// Between two looks at what is still to end, at first and at last.
const LOOKS: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(5));

/// Somebody makes a store for an instance: nobody else does meanwhile.
pub(super) struct Changing<'a>(&'a Instance);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.is_changing.store(false, Ordering::Release);
    }
}

/// A plugin that is to take the place.
struct Next {
    made: Made,
    config: String,
    fit: Fit,
}

/// What it takes over.
struct Handed {
    /// The store that is there, or the one to come.
    number: StoreNumber,
    state: Vec<u8>,
}

/// What is still to end before another plugin can have the place.
fn unfinished(inside: &Inside) -> &'static str {
    if inside.jobs.values().any(|job| job.state.is_unasked()) {
        "a job"
    } else if inside.operations > 0 {
        "an operation that it has asked for"
    } else {
        "a request that it has not answered, or whose end it awaits"
    }
}

impl Instance {
    /// Puts another plugin, or other bytes of the same, in the place of the one that runs, with its state, or in
    /// that of one that has failed. `config` is JSON text; the former one if it is absent. On a worker.
    ///
    /// # Errors
    /// Whatever stands against it: that it wants more than its nodes grant, a refusal of the configuration, a
    /// node or the state, a failure of it, something that does not end in time. The former plugin goes on then as it
    /// was, except where it is the one that failed (in `save`): then what its policy says.
    pub async fn reload(
        self: &Arc<Self>,
        module: &Arc<PluginModule>,
        config: Option<&str>,
    ) -> Result<(), InstanceError> {
        let local = LocalPlugin::of(self);
        let _changing = self.change().await;
        let former = self.module();
        self.check_replacement(&former, module)?;
        let next = self.set_aside(module, config).await?;
        let is_whole =
            self.phase() == Phase::Bypassed || module.kinds().bits() & !former.kinds().bits() != 0;
        self.stop_jobs(&local).await;
        let taken = match is_whole {
            true => self.take_place_still(next, &local, self.cells()).await,
            false => self.take_place(next, &local).await,
        };
        if let Err(error) = taken {
            self.go_on(&local);
            return Err(error.into());
        }
        let version = |module: &PluginModule| Arc::<str>::from(&*module.inspection().version);
        let (from, to) = (version(&former), version(module));
        tracing::info!("{} was replaced: version {from} by {to}", self.of_nodes());
        self.tell(|plugin, node| {
            let (from, to) = (Arc::clone(&from), Arc::clone(&to));
            Event::PluginReloaded { plugin, node, from, to }
        });
        Ok(())
    }

    /// Gives the plugin that runs another configuration, JSON text, without a pause. On a worker.
    ///
    /// # Errors
    /// What the plugin says against it: the former one stays in force; `EIO` for one that is out of service, or
    /// fails of it: then what its policy says.
    pub async fn reconfigure(self: &Arc<Self>, config: &str) -> Result<(), InstanceError> {
        let local = LocalPlugin::of(self);
        let _changing = self.change().await;
        let mut place = self.go_in(Some(&local));
        if place.live.is_none() {
            return Err(self.fault_error().into());
        }
        let configured = self.guarded(&mut place, &local, |inside| {
            let module = Arc::clone(&inside.module);
            let (store, filter) = (&mut inside.store, &inside.filter);
            let configured = module.configure(store, filter, config, &self.limits);
            let configured = configured.map_err(|error| Fault::of(error.to_string()))?;
            self.publish_rules();
            Ok(configured)
        });
        configured.ok_or_else(|| self.fault_error())?.map_err(InstanceError::Config)?;
        config.clone_into(&mut self.config.lock().unwrap_or_else(PoisonError::into_inner));
        // It may give requests that are held another time in answer.
        self.served.present().into_iter().for_each(|node| self.tell_size(node));
        drop(place);
        local.enter_soon();
        tracing::info!("{} has another configuration", self.of_nodes());
        Ok(())
    }

    /// Waits until nobody makes a store.
    pub(super) async fn change(&self) -> Changing<'_> {
        while self.is_changing.swap(true, Ordering::AcqRel) {
            sleep_until(turn_now() + LOOKS.1).await;
        }
        Changing(self)
    }

    fn check_replacement(&self, former: &PluginModule, next: &PluginModule) -> Result<()> {
        let name = next.name();
        let not_permitted = |what: &str| {
            Err(Error::new(ErrorKind::NotPermitted, format!("plugin `{name}` {what}")))
        };
        let (is, was) = (next.inspection(), former.inspection());
        if self.policy == OnFault::Bypass && !is.may_bypass {
            return not_permitted(
                "may not be bypassed when it fails: only a graph with `on-fault = \"restart\"` or \
                 \"fail\" can have it",
            );
        }
        // What the host keeps for views it keeps from the beginning.
        if is.views.is_empty() != was.views.is_empty() {
            let message = format!(
                "plugin `{name}` offers {} view, unlike the one before: remove its nodes, and add them anew",
                if is.views.is_empty() { "no" } else { "a" }
            );
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        self.served.fit(next).map(drop)
    }

    /// A store of the plugin, configured, which can reach nothing of the instance.
    async fn set_aside(
        &self,
        module: &Arc<PluginModule>,
        config: Option<&str>,
    ) -> Result<Next, InstanceError> {
        let present = || self.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let config = config.map_or_else(present, str::to_owned);
        let (mut store, filter) = module.instantiate(&self.limits, Arc::<Lasting>::default())?;
        next_turn().await;
        let configured = module.configure(&mut store, &filter, &config, &self.limits)?;
        configured.map_err(InstanceError::Config)?;
        let (module, serves) = (Arc::clone(module), Vec::new());
        let made = Made { module, store, filter, serves, resizes: 0 };
        Ok(Next { made, config, fit: Fit::new() })
    }

    /// Tells jobs to end, and waits until they have, or for long enough.
    async fn stop_jobs(&self, local: &Rc<LocalPlugin>) {
        let deadline = turn_now() + JOB_STOP_TIME;
        self.look_until(deadline, local, |place| {
            let Some(inside) = place.live.as_mut() else { return true };
            inside.stop_jobs();
            inside.has_stopped()
        })
        .await;
    }

    /// Looks ever later until it is so; whether it came to be.
    async fn look_until(
        &self,
        deadline: Time,
        local: &Rc<LocalPlugin>,
        mut is_so: impl FnMut(&mut Place) -> bool,
    ) -> bool {
        let mut pause = LOOKS.0;
        loop {
            if is_so(&mut self.go_in(Some(local))) {
                return true;
            }
            if turn_now() >= deadline {
                return false;
            }
            // What was left inside goes in.
            local.enter_soon();
            sleep_until(turn_now() + pause).await;
            pause = (pause * 2).min(LOOKS.1);
        }
    }

    fn cells(&self) -> Vec<Arc<GraphCell>> {
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.iter().filter_map(Weak::upgrade).collect()
    }

    /// Takes the place with nothing in flight that comes to one of its nodes.
    async fn take_place_still(
        self: &Arc<Self>,
        next: Next,
        local: &Rc<LocalPlugin>,
        mut cells: Vec<Arc<GraphCell>>,
    ) -> Result<()> {
        let Some(cell) = cells.pop() else { return self.take_place(next, local).await };
        let act = async || Box::pin(self.take_place_still(next, local, cells)).await;
        cell.while_still(|node| PluginNode::is_of(node, self), GATE_TIME, act).await?
    }

    async fn take_place(&self, mut next: Next, local: &Rc<LocalPlugin>) -> Result<()> {
        let handed = self.take_over(local).await?;
        next.fit = self.served.fit(&next.made.module)?;
        next.made.store.data_mut().begin_aside(&self.lasting);
        let taken = self.prepare(&mut next, &handed.state).await;
        if let Err(error) = taken {
            next.made.store.data_mut().take_back();
            return Err(error);
        }
        self.put_in_place(next, &handed, local)
    }

    /// Has the guest that is there hand over its state, once it has nothing in hand.
    async fn take_over(&self, local: &Rc<LocalPlugin>) -> Result<Handed> {
        let number = self.store_number();
        let has_place = match self.phase() {
            Phase::Running => self.gate(local),
            _ => false,
        };
        if !has_place {
            return Ok(Handed { number: self.store_number(), state: Vec::new() });
        }
        let mut owes = "";
        let mut release = Some(turn_now() + RELEASE_AFTER);
        let is_quiet = self.look_until(turn_now() + GATE_TIME, local, |place| {
            self.pass_by(place);
            let Some(inside) = place.live.as_mut() else { return true };
            owes = unfinished(inside);
            if release.take_if(|at| turn_now() >= *at).is_some() {
                self.release_awaited(inside, local);
            }
            inside.is_frozen = inside.is_quiet() && self.ended.is_empty();
            inside.is_frozen
        });
        if !is_quiet.await {
            let message = format!(
                "plugin `{}` has not finished {owes} within {GATE_TIME:?}: it was not replaced",
                self.plugin()
            );
            return Err(Error::new(ErrorKind::TimedOut, message));
        }
        let mut place = self.go_in(Some(local));
        let state = self.guarded(&mut place, local, |inside| self.call_save(inside));
        let state = state.ok_or_else(|| self.has_failed())?;
        Ok(Handed { number, state })
    }

    fn has_failed(&self) -> Error {
        let reason = self.last_fault.lock().unwrap_or_else(PoisonError::into_inner);
        let message = format!("it was not replaced, as the one before has failed: {reason}");
        Error::new(ErrorKind::Io, message)
    }

    /// No request is offered from now on; whether there is a guest.
    fn gate(&self, local: &Rc<LocalPlugin>) -> bool {
        let mut place = self.go_in(Some(local));
        let Some(inside) = place.live.as_mut() else { return false };
        inside.is_gated = true;
        inside.stop_jobs();
        // Under the lock: who comes in later sees it.
        self.phase.set(Phase::Reloading);
        true
    }

    /// Lets those go whose end the guest awaits: they may be held for longer than others can wait.
    fn release_awaited(&self, inside: &Inside, local: &LocalPlugin) {
        for (ticket, id) in inside.table.awaited() {
            let at_once = Answer::Forward { not_before_ns: 0, notify: true, known: Some(id) };
            self.deliver(ticket, Verdict::Answer(at_once), local);
        }
    }

    /// What others have left for whoever is inside.
    fn pass_by(&self, place: &mut Place) {
        self.take_departures(place);
        let Some(inside) = place.live.as_mut().filter(|inside| inside.is_frozen) else { return };
        let mut batch = Vec::new();
        while let Some(offer) = self.queue.pop() {
            batch.push(offer);
        }
        inside.put_by(&mut batch);
    }

    fn call_save(&self, inside: &mut Inside) -> Result<Vec<u8>, Fault> {
        arm(&inside.module.runtime, &mut inside.store, self.call_ticks);
        inside.store.set_hostcall_fuel(STATE_MAX_BYTES);
        let state = inside.filter.blockloom_filter_control().call_save(&mut inside.store);
        inside.store.set_hostcall_fuel(CALL_DATA_BYTES);
        state.map_err(|error| self.trap(inside, "save", &error))
    }

    /// Tells the next guest of the nodes, and hands it the state.
    async fn prepare(&self, next: &mut Next, state: &[u8]) -> Result<()> {
        let Next { made, fit, .. } = next;
        self.add_nodes(made, Some(fit)).await?;
        if state.is_empty() {
            return Ok(());
        }
        next_turn().await;
        let module = &made.module;
        arm(&module.runtime, &mut made.store, self.call_ticks);
        let control = made.filter.blockloom_filter_control();
        let restored = control.call_restore(&mut made.store, state);
        let restored = restored.map_err(|error| module.trapped(&made.store, "restore", &error))?;
        restored.map_err(|reason| {
            let reason = printable(&reason);
            let message =
                format!("plugin `{}` does not take over the state: {reason}", module.name());
            Error::new(ErrorKind::Invalid, message)
        })
    }

    /// From here on the next one serves.
    ///
    /// # Errors
    /// If the one before has failed meanwhile.
    fn put_in_place(&self, next: Next, handed: &Handed, local: &Rc<LocalPlugin>) -> Result<()> {
        let Next { mut made, config, fit } = next;
        let mut place = self.go_in(Some(local));
        if self.store_number() != handed.number {
            made.store.data_mut().take_back();
            return Err(self.has_failed());
        }
        self.pass_by(&mut place);
        let former = place.live.take();
        self.number.fetch_add(u32::from(former.is_some()), Ordering::AcqRel);
        self.reloads.fetch_add(u32::from(former.is_some()), Ordering::AcqRel);
        // Timers alone.
        while self.ended.pop().is_some() {}
        self.lasting.reset_rules();
        fit.into_iter().for_each(|(children, fits)| children.store(Arc::new(fits)));
        made.store.data_mut().come_forward();
        self.kinds.store(made.module.kinds().bits(), Ordering::Release);
        self.known.store(made.module.known().bits(), Ordering::Release);
        self.set_module(&made.module);
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let inside = match former {
            Some(former) => self.succeed(former, made, local),
            None => {
                let table = place.table.take();
                let table = table.unwrap_or_else(|| Table::new(self.limits.in_flight));
                self.settle(made, table)
            }
        };
        place.live = Some(inside);
        drop(place);
        self.enter_phase(Phase::Running);
        local.enter_soon();
        Ok(())
    }

    /// Takes over what is not the guest's: requests that wait, those that are held, and where jobs are.
    fn succeed(&self, mut former: Inside, made: Made, local: &Rc<LocalPlugin>) -> Inside {
        self.drop_buffers(&mut former, None, local);
        former.table.forget_held();
        let Inside { table, waiting, jobs, .. } = former;
        let mut inside = self.settle(made, table);
        inside.waiting = waiting;
        for (node, job) in jobs {
            match inside.serves.contains(&node) {
                true => inside.begin_job(node, job.ticket),
                false => self.deliver(job.ticket, Verdict::Fault, local),
            }
        }
        inside
    }

    /// Nothing came of it: the guest that is there goes on.
    fn go_on(&self, local: &Rc<LocalPlugin>) {
        let mut place = self.go_in(Some(local));
        let Some(inside) = place.live.as_mut() else { return };
        let was_gated = std::mem::take(&mut inside.is_gated);
        inside.is_frozen = false;
        inside.resume_jobs();
        drop(place);
        if was_gated {
            self.enter_phase(Phase::Running);
        }
        local.enter_soon();
    }
}
