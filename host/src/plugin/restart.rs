//! After a fault: what the policy says, and the new store.
//!
//! A new store is made in steps, each in a turn of its own, so that a worker never gives a guest that hangs
//! more than the time of one call at once. Until it is complete nothing of it counts; if one of the steps
//! fails, that is a fault more.

use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::task::Poll;

use wasmtime::Store;

use super::bindings::Filter;
use super::faults::{Next, OnFault, Phase};
use super::inside::Inside;
use super::instance::Instance;
use super::local::LocalPlugin;
use super::store::HostState;
use super::table::Table;
use crate::error::{Error, Result};
use crate::graph::{Event, GraphCell};
use crate::io::turn_now;

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
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for node in self.nodes() {
            let event = event(Arc::from(self.plugin()), node);
            for cell in watchers.iter().filter_map(std::sync::Weak::upgrade) {
                cell.tell(&cell.load(), event.clone());
            }
        }
    }

    fn enter_phase(&self, phase: Phase) {
        self.phase.set(phase);
        self.phase_changes.fetch_add(1, Ordering::AcqRel);
        self.wake(|_| true);
    }

    /// A store was lost, or did not come to be.
    pub(super) fn after_fault(&self, reason: String, local: &LocalPlugin) {
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
        self.enter_phase(phase);
        self.tell(|plugin, node| Event::PluginFault { plugin, node, why: reason.clone() });
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
    pub(super) async fn restart(&self, local: &LocalPlugin) {
        match self.new_store().await {
            Ok(store) => {
                let mut place = self.lock();
                let table = place.table.take().unwrap_or_else(|| Table::new(self.limits.in_flight));
                place.live = Some(Inside::new(store, self.store_number(), table));
                drop(place);
                self.enter_phase(Phase::Running);
                tracing::info!("{} serves again", self.of_nodes());
                self.tell(|plugin, node| Event::PluginRestarted { plugin, node });
            }
            Err(error) => {
                // Rules that it has set are nobody's.
                self.lasting.reset_rules();
                self.after_fault(error.to_string(), local);
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
            node.bitmaps = self.lasting.bitmaps.list(blockloom_abi::NodeIndex(node.index));
            self.call_add_node((&mut store, &filter), &node)?;
        }
        Ok((store, filter))
    }
}

/// Lets others have their turn.
async fn next_turn() {
    let mut is_over = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut is_over, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
