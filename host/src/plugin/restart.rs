//! After a fault: what the policy says, and the new store.
//!
//! A new store is made in steps, each in a turn of its own, so that a worker never gives a guest that hangs
//! more than the time of one call at once. Until it is complete nothing of it counts; if one of the steps
//! fails, that is a fault more.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use blockloom_abi::NodeIndex;

use super::counters::Refused;
use super::faults::{Fault, Next, OnFault, Phase};
use super::inside::{Inside, Made};
use super::instance::Instance;
use super::local::LocalPlugin;
use super::served::Fit;
use super::table::Table;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Event, GraphCell};
use crate::io::{next_turn, turn_now};

/// Time between two events of refused claims.
const REFUSALS_APART: Duration = Duration::from_secs(1);

impl Instance {
    /// Has the users of a graph told of faults.
    pub(super) fn watch_by(&self, cell: &Arc<GraphCell>) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        if !watchers.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(cell))) {
            watchers.push(Arc::downgrade(cell));
        }
    }

    /// Who it is, for the log.
    pub(super) fn of_nodes(&self) -> String {
        let nodes: Vec<String> =
            self.served.names().iter().map(|node| format!("`{node}`")).collect();
        format!("plugin `{}` of {}", self.plugin(), nodes.join(", "))
    }

    /// One event for each node.
    pub(super) fn tell(&self, event: impl Fn(Arc<str>, Arc<str>) -> Event) {
        for node in self.served.names() {
            self.tell_watchers(&event(self.plugin(), node));
        }
    }

    fn tell_watchers(&self, event: &Event) {
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for cell in watchers.iter().filter_map(std::sync::Weak::upgrade) {
            cell.tell(&cell.load(), event.clone());
        }
    }

    /// The views of its nodes show nothing from now on: what is changed past the plugin is not kept.
    fn lose_views(&self, why: &str) {
        if !self.lasting.bitmaps.makes_views() {
            return;
        }
        self.served.present().into_iter().for_each(|node| self.lose_view(node, why));
    }

    /// The view of a node shows nothing from now on. To be told before anything changes that it has not kept.
    #[cold]
    pub(super) fn lose_view(&self, index: NodeIndex, why: &str) {
        if !self.lasting.bitmaps.lose_view(index) {
            return;
        }
        if let Some(node) = self.served.name(index) {
            tracing::error!("node `{node}`: its point in time is lost: {why}");
            let (plugin, why) = (self.plugin(), Arc::from(why));
            self.tell_watchers(&Event::PluginViewLost { plugin, node, why });
        }
    }

    /// Counts a claim that was refused, and tells of it: at most once in [`REFUSALS_APART`], with all so far.
    pub(super) fn claim_refused(&self, node: NodeIndex, why: Refused) {
        let counters = &self.lasting.counters;
        counters.of_node(node).refused(why);
        {
            let mut told = self.refusal_told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.is_some_and(|told| turn_now().since(told) < REFUSALS_APART) {
                return;
            }
            *told = Some(turn_now());
        }
        let Some(name) = self.served.name(node) else { return };
        let sum = counters.sum(Some(node), 0);
        self.tell_watchers(&Event::PluginClaimsRefused {
            plugin: self.plugin(),
            node: name,
            stale: sum.stale,
            not_proven: sum.not_proven,
        });
    }

    /// It fails, for no fault of its own. On a worker.
    pub(crate) fn kill(self: &Arc<Self>) {
        let local = LocalPlugin::of(self);
        let mut entered = self.go_in(Some(&local));
        self.fail(&mut entered, Fault::of("it was killed by command"), &local);
    }

    pub(super) fn enter_phase(&self, phase: Phase) {
        self.phase.set(phase);
        self.phase_changes.fetch_add(1, Ordering::AcqRel);
        self.wake(|_| true);
    }

    /// A store was lost, or did not come to be.
    pub(super) fn after_fault(&self, fault: Fault, local: &LocalPlugin) {
        let Fault { reason, is_violation } = fault;
        let counters = &self.lasting.counters;
        counters.faults.fetch_add(1, Ordering::Relaxed);
        counters.violations.fetch_add(u64::from(is_violation), Ordering::Relaxed);
        let next = {
            let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
            faults.count(self.policy, turn_now())
        };
        reason.clone_into(&mut self.last_fault.lock().unwrap_or_else(PoisonError::into_inner));
        let phase = match next {
            Next::Restart(_) => Phase::Down,
            Next::Bypass => Phase::Bypassed,
            Next::Fail => Phase::Failed,
        };
        if phase != Phase::Down {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.clone());
        }
        let comes = match next {
            Next::Restart(at) => format!("starts again in {:?}", at.since(turn_now())),
            Next::Bypass => "is bypassed from now on".to_owned(),
            Next::Fail => "is out of service".to_owned(),
        };
        tracing::error!("{} failed and {comes}: {reason}", self.of_nodes());
        if phase == Phase::Bypassed {
            self.lose_views("requests go on without its plugin");
        }
        self.enter_phase(phase);
        self.tell(|plugin, node| {
            let why = reason.clone();
            Event::PluginFault { plugin, node, why, is_violation }
        });
        match next {
            Next::Restart(at) => local.restart_at(at),
            Next::Bypass => self.tell(|plugin, node| Event::PluginBypassed { plugin, node }),
            Next::Fail => {
                let is_spent = matches!(self.policy, OnFault::Restart(_));
                self.tell(|plugin, node| Event::PluginFailed { plugin, node, is_spent });
            }
        }
    }

    /// Puts a new store in the place of the one that was lost.
    pub(super) async fn restart(&self, local: &Rc<LocalPlugin>) {
        match self.new_store().await {
            Ok(made) => {
                let mut place = self.go_in(Some(local));
                let table = place.table.take().unwrap_or_else(|| Table::new(self.limits.in_flight));
                place.live = Some(self.settle(made, table));
                self.publish_rules();
                drop(place);
                self.enter_phase(Phase::Running);
                tracing::info!("{} serves again", self.of_nodes());
                self.tell(|plugin, node| Event::PluginRestarted { plugin, node });
            }
            Err(error) => {
                // Rules that it has set are nobody's.
                self.lasting.reset_rules();
                self.after_fault(Fault::of(error.to_string()), local);
            }
        }
    }

    /// A store takes the place: it learns of what has changed while it was made.
    pub(super) fn settle(&self, made: Made, table: Table) -> Inside {
        let has_resized = made.resizes != self.served.resizes();
        let mut inside = Inside::new(made, self.store_number(), table, &self.limits);
        let present = self.served.present();
        let gone = inside.serves.iter().copied().filter(|node| !present.contains(node));
        inside.leaving = gone.collect();
        if has_resized {
            inside.serves.iter().for_each(|node| self.tell_size(*node));
        }
        inside
    }

    async fn new_store(&self) -> Result<Made> {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let module = self.module();
        let (mut store, filter) = module.instantiate(&self.limits, Arc::clone(&self.lasting))?;
        next_turn().await;
        let configured = module.configure(&mut store, &filter, &config, &self.limits)?;
        configured.map_err(|error| {
            let message = format!("plugin `{}` refuses its configuration: {error}", module.name());
            Error::new(ErrorKind::Invalid, message)
        })?;
        let mut made = Made { module, store, filter, serves: Vec::new(), resizes: 0 };
        self.add_nodes(&mut made, None).await?;
        Ok(made)
    }

    /// Has a guest serve all nodes that there are, each in a turn of its own. `fit`: what it has for their
    /// children, if that is not what the nodes have yet.
    pub(super) async fn add_nodes(&self, made: &mut Made, fit: Option<&Fit>) -> Result<()> {
        made.resizes = self.served.resizes();
        for index in self.served.present() {
            next_turn().await;
            let described = (&*made.module, fit);
            let node = self.served.describe(index, described, &self.lasting.bitmaps);
            let Some(node) = node else { continue };
            self.call_add_node(&made.module, (&mut made.store, &made.filter), &node)?;
            made.serves.push(index);
        }
        Ok(())
    }
}
