//! The nodes that an instance serves: what each has to have, and how the guest is told of it.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use blockloom_abi::NodeIndex;
use wasmtime::Store;

use super::bindings::Filter;
use super::bindings::exports::blockloom::filter::control;
use super::grants::{Grants, PluginChild, resolve};
use super::instance::Instance;
use super::module::arm;
use super::store::{HostState, printable};
use crate::error::{Error, ErrorKind, Result};
use crate::node::NodeInfo;

/// Nodes that one instance may serve.
const NODES_MAX: u16 = 1024;

impl Instance {
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
        (children, infos): (&[PluginChild], &[NodeInfo]),
    ) -> Result<()> {
        self.lasting.add_node(index, info.size_bytes);
        let described = self.module.inspection().children.len().max(1);
        let child = |index: usize| {
            let child = children.iter().find(|child| usize::from(child.index.0) == index)?;
            let size_bytes = infos.get(child.edge)?.size_bytes;
            Some(control::Child { size_bytes, granted: child.granted.to_wire() })
        };
        let node = control::Node {
            index: index.0,
            name: name.to_owned(),
            size_bytes: info.size_bytes,
            read_only: info.read_only,
            children: (0..described).map(child).collect(),
            bitmaps: self.lasting.bitmaps.list(index),
        };
        let mut guard = self.go_in(None);
        let Some(inside) = guard.live.as_mut() else { return Err(self.fault_error()) };
        let added = self.call_add_node((&mut inside.store, &inside.filter), &node);
        self.publish_rules();
        added?;
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
}
