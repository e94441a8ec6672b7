//! The nodes that an instance serves: telling the guest of one, of its size, and that it has gone.

use std::rc::Rc;
use std::sync::Arc;

use blockloom_abi::{Control, ControlKind, NodeIndex};
use wasmtime::Store;

use super::bindings::Filter;
use super::bindings::exports::blockloom::filter::control;
use super::bytes::ByteAccess;
use super::faults::{Fault, OnFault, Phase};
use super::grants::{Grants, check_bitmaps, check_bytes, check_view, resolve};
use super::inside::{Inside, Place};
use super::instance::Instance;
use super::local::{LocalPlugin, Verdict};
use super::module::{PluginModule, arm};
use super::served::{Children, Departure, Told};
use super::store::{HostState, printable};
use crate::error::{Error, ErrorKind, Result};
use crate::node::NodeInfo;

impl Instance {
    /// One more node, with its children as the plugin describes them.
    pub(super) fn reserve_node(
        &self,
        edges: &[(String, Grants)],
    ) -> Result<(NodeIndex, Arc<Children>, Arc<Departure>)> {
        let children = Arc::new(Children::from_pointee(resolve(&self.module(), edges)?));
        let (index, departure) = self.served.reserve(edges, &children)?;
        Ok((index, children, departure))
    }

    /// Lends a node a bitmap by each of these names; by their indices.
    pub(super) fn lend<'a>(
        &self,
        node: NodeIndex,
        names: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<Vec<u32>> {
        check_bitmaps(&self.module(), names.clone())?;
        let lend = |name: &str| {
            self.served.lend(node, name);
            self.lasting.bitmaps.lend(node, name)
        };
        let lent: std::result::Result<Vec<u32>, String> = names.map(lend).collect();
        lent.map_err(|error| Error::new(ErrorKind::Invalid, error))
    }

    /// A view of a node is shown, for as long as the name that is returned is kept.
    pub(super) fn show(&self, node: NodeIndex, view: &str) -> Result<Arc<str>> {
        check_view(&self.module(), view)?;
        Ok(self.served.show(node, view))
    }

    /// Checks what is granted of the data of a node's requests.
    pub(super) fn check_bytes(&self, granted: ByteAccess) -> Result<()> {
        check_bytes(&self.module(), granted)?;
        if granted == ByteAccess::Transform && self.policy == OnFault::Bypass {
            let message = format!(
                "plugin `{}` changes the data of requests, and may not be bypassed when it fails: choose \
                 \"restart\" or \"fail\"",
                self.plugin()
            );
            return Err(Error::new(ErrorKind::NotPermitted, message));
        }
        Ok(())
    }

    /// Tells the guest of a node, before its first request. `infos` are its children's, in the order of its
    /// edges.
    ///
    /// # Errors
    /// What the guest says against it; `EBUSY` while the plugin is being replaced.
    pub(super) fn add_node(
        &self,
        index: NodeIndex,
        name: &str,
        info: &NodeInfo,
        (infos, bytes): (&[NodeInfo], ByteAccess),
    ) -> Result<()> {
        let mut place = self.go_in(None);
        let Some(inside) = place.live.as_mut() else { return Err(self.fault_error()) };
        if inside.is_gated {
            let message = format!("plugin `{}` is being replaced: try again", self.plugin());
            return Err(Error::new(ErrorKind::InUse, message));
        }
        let (size_bytes, read_only) = (info.size_bytes, info.read_only);
        let child_bytes = infos.iter().map(|info| info.size_bytes).collect();
        self.served
            .tell(index, Told { name: name.into(), size_bytes, read_only, child_bytes, bytes })?;
        self.lasting.add_node(index, size_bytes);
        self.lasting.bitmaps.begin_view(index);
        let added = self.tell_of(inside, index);
        if added.is_err() {
            self.served.untell(index);
        }
        added
    }

    fn tell_of(&self, inside: &mut Inside, index: NodeIndex) -> Result<()> {
        let module = Arc::clone(&inside.module);
        let node = self.served.describe(index, (&module, None), &self.lasting.bitmaps);
        let Some(node) = node else { return Ok(()) };
        self.call_add_node(&module, (&mut inside.store, &inside.filter), &node)?;
        inside.serves.push(index);
        self.publish_rules();
        Ok(())
    }

    /// Has a guest serve a node.
    pub(super) fn call_add_node(
        &self,
        module: &PluginModule,
        (store, filter): (&mut Store<HostState>, &Filter),
        node: &control::Node,
    ) -> Result<()> {
        arm(&module.runtime, store, self.call_ticks);
        let answer = filter.blockloom_filter_control().call_add_node(&mut *store, node);
        let answer = answer.map_err(|error| module.trapped(store, "add-node", &error))?;
        answer.map_err(|reason| {
            let reason = printable(&reason);
            let message = format!("plugin `{}` refuses the node: {reason}", module.name());
            Error::new(ErrorKind::Invalid, message).at_node(&node.name)
        })
    }

    /// The node has another size, or its children have.
    pub(super) fn resize_node(&self, index: NodeIndex, info: &NodeInfo, infos: &[NodeInfo]) {
        let child_bytes: Vec<u64> = infos.iter().map(|info| info.size_bytes).collect();
        if !self.served.tell_again(index, info, &child_bytes) {
            return;
        }
        self.lasting.resize(index, info.size_bytes);
        self.tell_size(index);
        self.wake(|_| true);
    }

    /// Tells the guest of a node's size.
    pub(super) fn tell_size(&self, node: NodeIndex) {
        let Some(first) = self.served.size_bytes(node) else { return };
        let kind = ControlKind::Reconfigured;
        self.lasting.controls.push(Control { kind, node, first, second: 0 });
    }

    /// A node has left the graph: no request comes to it any more. The guest is told by whoever is inside next.
    pub(super) fn leave(&self, node: NodeIndex) {
        if self.served.leave(node) {
            self.departures.push(node);
            self.wake(|_| true);
        }
    }

    /// Nobody has a node any more.
    pub(super) fn drop_node(&self, node: NodeIndex) {
        self.leave(node);
        if self.served.drop_node(node) {
            self.lasting.end_node(node);
        }
    }

    /// Takes nodes that have left.
    pub(super) fn take_departures(&self, place: &mut Place) {
        while !self.departures.is_empty()
            && let Some(node) = self.departures.pop()
        {
            match place.live.as_mut() {
                Some(inside) if inside.serves.contains(&node) => inside.depart(node),
                _ => self.forget(node),
            }
        }
    }

    /// Tells the guest of nodes that have gone, once their jobs have ended.
    pub(super) fn see_off(&self, inside: &mut Inside, local: &LocalPlugin) -> Result<(), Fault> {
        while !inside.leaving.is_empty()
            && let Some(node) = inside.next_gone()
        {
            arm(&inside.module.runtime, &mut inside.store, self.call_ticks);
            let control = inside.filter.blockloom_filter_control();
            let told = control.call_remove_node(&mut inside.store, node.0);
            told.map_err(|error| self.trap(inside, "remove-node", &error))?;
            self.gone(inside, node, local);
        }
        Ok(())
    }

    /// The guest inside knows of a node no more.
    fn gone(&self, inside: &mut Inside, node: NodeIndex, local: &LocalPlugin) {
        inside.serves.retain(|known| *known != node);
        if let Some(job) = inside.jobs.remove(&node) {
            inside.forget_buffers(job.ticket);
            self.deliver(job.ticket, Verdict::Fault, local);
        }
        self.forget(node);
    }

    /// No guest knows of a node any more.
    pub(super) fn forget(&self, node: NodeIndex) {
        self.lasting.end_node(node);
        self.served.forget(node);
    }

    /// The job of a node that has left does not end: its plugin is at fault.
    pub(super) fn end_leaving(&self, node: NodeIndex, local: &Rc<LocalPlugin>) {
        let mut place = self.go_in(Some(local));
        self.take_departures(&mut place);
        if place.live.as_ref().is_some_and(|inside| inside.leaving.contains(&node)) {
            let reason = "it went on working for a node that was removed".to_owned();
            self.fail(&mut place, Fault::of(reason), local);
        }
    }

    /// Whether somebody has to go inside for what no request brings.
    #[inline]
    pub(super) fn has_controls(&self) -> bool {
        let is_there = || matches!(self.phase(), Phase::Running | Phase::Reloading);
        let has_controls = !self.lasting.controls.is_empty() && is_there();
        (has_controls && self.put_off_until().is_none()) || !self.departures.is_empty()
    }
}
