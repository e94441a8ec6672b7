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
use wasmtime::Store;

use super::bindings::Filter;
use super::counters::Refused;
use super::faults::{Fault, Next, OnFault, Phase};
use super::inside::Inside;
use super::instance::Instance;
use super::local::LocalPlugin;
use super::store::HostState;
use super::table::Table;
use crate::error::{Error, Result};
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

    fn nodes(&self) -> Vec<Arc<str>> {
        let set_up = self.set_up.lock().unwrap_or_else(PoisonError::into_inner);
        set_up.nodes.iter().map(|node| node.name.as_str().into()).collect()
    }

    /// Who it is, for the log.
    fn of_nodes(&self) -> String {
        let nodes: Vec<String> = self.nodes().iter().map(|node| format!("`{node}`")).collect();
        format!("plugin `{}` of {}", self.plugin(), nodes.join(", "))
    }

    /// One event for each node.
    fn tell(&self, event: impl Fn(Arc<str>, Arc<str>) -> Event) {
        for node in self.nodes() {
            self.tell_watchers(&event(Arc::from(self.plugin()), node));
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
        let nodes: Vec<NodeIndex> = {
            let set_up = self.set_up.lock().unwrap_or_else(PoisonError::into_inner);
            set_up.nodes.iter().map(|node| NodeIndex(node.index)).collect()
        };
        nodes.into_iter().for_each(|node| self.lose_view(node, why));
    }

    /// The view of a node shows nothing from now on. To be told before anything changes that it has not kept.
    #[cold]
    pub(super) fn lose_view(&self, index: NodeIndex, why: &str) {
        if !self.lasting.bitmaps.lose_view(index) {
            return;
        }
        if let Some(node) = self.name_of(index) {
            tracing::error!("node `{node}`: its point in time is lost: {why}");
            let (plugin, why) = (Arc::from(self.plugin()), Arc::from(why));
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
        let Some(name) = self.name_of(node) else { return };
        let sum = counters.sum(Some(node), 0);
        self.tell_watchers(&Event::PluginClaimsRefused {
            plugin: Arc::from(self.plugin()),
            node: name,
            stale: sum.stale,
            not_proven: sum.not_proven,
        });
    }

    fn name_of(&self, index: NodeIndex) -> Option<Arc<str>> {
        let set_up = self.set_up.lock().unwrap_or_else(PoisonError::into_inner);
        let node = set_up.nodes.iter().find(|node| node.index == index.0);
        node.map(|node| node.name.as_str().into())
    }

    fn enter_phase(&self, phase: Phase) {
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
            let _ = self.failure.set(reason.clone());
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
            Ok(store) => {
                let mut place = self.go_in(Some(local));
                let table = place.table.take().unwrap_or_else(|| Table::new(self.limits.in_flight));
                place.live = Some(Inside::new(store, self.store_number(), table, &self.limits));
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

    async fn new_store(&self) -> Result<(Store<HostState>, Filter)> {
        let (config, nodes) = {
            let set_up = self.set_up.lock().unwrap_or_else(PoisonError::into_inner);
            (set_up.config.clone(), set_up.nodes.clone())
        };
        let module = &self.module;
        let (mut store, filter) = module.instantiate(&self.limits, Arc::clone(&self.lasting))?;
        next_turn().await;
        let configured = module.configure(&mut store, &filter, &config, &self.limits)?;
        configured.map_err(|error| {
            let message = format!("plugin `{}` refuses its configuration: {error}", self.plugin());
            Error::new(crate::error::ErrorKind::Invalid, message)
        })?;
        for mut node in nodes {
            next_turn().await;
            node.bitmaps = self.lasting.bitmaps.list(NodeIndex(node.index));
            self.call_add_node((&mut store, &filter), &node)?;
        }
        Ok((store, filter))
    }
}
