//! Options of nodes that change while they run.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use blockloom_plugin_throttle::ThrottleConfig;
use serde_json::Value;

use super::StartError;
use super::fragment::Fragment;
use crate::config::{
    self, ChildChange, DriverSpec, FilterKind, Live, NodeChange, NodeSpec, ThrottleChange,
};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Action, Graph, Transaction, Unproven};
use crate::host::call::block_on;
use crate::host::running::with_own;
use crate::host::{Host, check_running};
use crate::node::{Reopen, Reopened};

/// Nodes that are to be as they are described.
pub(crate) struct Reopening {
    graph: Arc<Graph>,
    /// What makes them so, each with what is done where a view may change.
    pub(crate) actions: Vec<(Action, Unproven)>,
    described: Vec<(usize, NodeSpec)>,
    /// Other limits, by what of those describes whose they are.
    throttles: Vec<(usize, ThrottleChange, ThrottleConfig)>,
}

impl Host {
    /// Changes options of nodes while they run, all of them in one transaction: each is described again as a node
    /// of a fragment is, by its `node-name`. What is left out stays as it is. These can change:
    ///
    /// - children that are named can be other nodes, and a `backing` can come and end;
    /// - `read-only` of every node. The file of an image follows if it is not described, too, and nobody else writes
    ///   it; so do files that came with another node, and those below it that are to be written again;
    /// - `auto-read-only`, `direct` and `discard` of a file;
    /// - `config` of a `throttle` that is the host's own: the limits of its group, for all that share it; and `instance`
    ///   (`throttle-group`), which group that is. In one that is new, and of which no limits are said, it keeps its own.
    ///
    /// Whatever else would be different is refused. An image that becomes writable marks the bitmaps that it keeps
    /// as in use, and they go on as when it is opened so; one that becomes read-only stores them.
    ///
    /// It opens files, and may block for as long as that takes. Not to be called on a worker.
    ///
    /// # Errors
    /// What cannot change; `EBUSY` if another process uses a file in a way that contradicts it; `EROFS` for a node
    /// that somebody writes; as [`Host::transact`]: `EPERM` for a child that is not known to show the same, unless
    /// that is to be marked.
    pub fn reopen_nodes(&self, nodes: &[Value], unproven: Unproven) -> Result<(), StartError> {
        check_running(&self.inner.ended)?;
        let _turn = block_on(self.inner.registry.turn.lock());
        let mut reopening = self.reopening(nodes, unproven)?;
        let actions = std::mem::take(&mut reopening.actions);
        if !actions.is_empty() {
            let with = |to: Transaction, (action, unproven)| to.with_unproven(action, unproven);
            let transaction = actions.into_iter().fold(Transaction::new(), with);
            block_on(self.inner.transact(transaction))?;
        }
        self.reopened(reopening);
        Ok(())
    }

    /// What has nodes be as they are described, as [`Host::reopen_nodes`] makes them; nobody else may add or remove
    /// until it has been applied. Then [`Host::reopened`] is to be told.
    ///
    /// # Errors
    /// As there, but for those of the transaction.
    pub(crate) fn reopening(
        &self,
        nodes: &[Value],
        unproven: Unproven,
    ) -> Result<Reopening, StartError> {
        let graph = self.graph();
        let live = self.inner.registry.live(&graph, &self.inner.server);
        let mut actions = Vec::new();
        let (mut modes, mut described) = (BTreeMap::new(), Vec::new());
        let mut throttles = Vec::new();
        for options in nodes {
            let (at, change) = changes_of(options, &graph, live.clone())?;
            let NodeChange { children, reopen, throttle, node: spec } = change;
            if let Some(to) = throttle {
                throttles.push((described.len(), to, limits_of(&spec)?));
            }
            for ChildChange { edge, child } in children {
                let set = Action::SetChild { node: spec.name.value.clone(), edge, child };
                actions.push((set, unproven));
            }
            if modes.insert(at, reopen).is_some() {
                let message = "it is described twice";
                return Err(Error::new(ErrorKind::Invalid, message)
                    .at_node(&spec.name.value)
                    .into());
            }
            described.push((at, spec));
        }
        check_limits(&described, &throttles)?;
        self.with_containers(&graph, &mut modes, &described)?;
        for (at, how) in modes.into_iter().filter(|(at, how)| is_other(&graph, *at, how)) {
            let node = &graph.nodes()[at];
            let to = Reopened::of(node, &how)?;
            let action = Action::Reopen { node: node.name().to_owned(), to };
            let unproven = action.default_unproven();
            actions.push((action, unproven));
        }
        Ok(Reopening { graph, actions, described, throttles })
    }

    /// What was to be reopened is so.
    pub(crate) fn reopened(&self, reopening: Reopening) {
        let Reopening { graph, described, throttles, .. } = reopening;
        let registry = &self.inner.registry;
        for (at, spec) in &described {
            registry.describe(&graph.nodes()[*at], spec.clone());
        }
        for (at, to, config) in throttles {
            registry.throttle(&described[at].1, to, &config);
        }
    }

    /// Has files follow the images that are kept in them, and other nodes, where nothing is said of the files.
    fn with_containers(
        &self,
        graph: &Graph,
        modes: &mut BTreeMap<usize, Reopen>,
        described: &[(usize, NodeSpec)],
    ) -> Result<()> {
        let is_described = |at: usize| described.iter().any(|(known, _)| *known == at);
        let asked: Vec<(usize, bool)> =
            modes.iter().filter_map(|(at, how)| Some((*at, how.write?))).collect();
        for (at, write) in asked {
            let mut others = graph.open_at_or_below(at, !write);
            others.retain(|other| *other != at && !is_described(*other));
            if graph.nodes()[at].driver().reopening().is_none() {
                self.retain_followers(graph, (at, write), &mut others);
            }
            if !write {
                let all: Vec<usize> = others.iter().copied().chain([at]).collect();
                let unwritten = graph.unwritten(&all);
                others.retain(|other| unwritten.contains(other));
            }
            for other in others {
                let node = &graph.nodes()[other];
                if write && self.inner.registry.is_said_read_only(node) {
                    return Err(said_read_only(node.name(), graph.nodes()[at].name()));
                }
                modes.entry(other).or_default().write = Some(write);
            }
        }
        Ok(())
    }

    /// Of the nodes below one that holds nothing open, those that follow it: they are closed if they came with it,
    /// and opened unless it stays read-only by the description of one of them.
    fn retain_followers(&self, graph: &Graph, (at, write): (usize, bool), others: &mut Vec<usize>) {
        let node = |at: usize| &graph.nodes()[at];
        if write {
            let is_said = |other: &usize| self.inner.registry.is_said_read_only(node(*other));
            let stays = others.iter().any(is_said);
            others.retain(|other| !stays && !graph.open_mode(*other).auto);
        } else {
            let own = with_own((graph, &self.inner.registry), node(at).name(), None);
            others.retain(|other| own.iter().any(|own| own == node(*other).name()));
        }
    }
}

/// The limits of which a throttle's description speaks.
fn limits_of(spec: &NodeSpec) -> Result<ThrottleConfig> {
    let json = spec.driver.config().map_or_else(|| "{}".to_owned(), |it| it.json.to_string());
    ThrottleConfig::from_json(&json).map_err(|error| {
        let message = format!("`config`: {error}");
        Error::new(ErrorKind::Invalid, message).at_node(&spec.name.value)
    })
}

/// Refuses limits of one group that contradict each other.
fn check_limits(
    described: &[(usize, NodeSpec)],
    throttles: &[(usize, ThrottleChange, ThrottleConfig)],
) -> Result<()> {
    let group = |at: usize| described[at].1.driver.instance();
    for (number, (at, to, config)) in throttles.iter().enumerate() {
        let mut others = throttles[..number].iter();
        let is_other = |(other, too, its): &&(usize, ThrottleChange, ThrottleConfig)| {
            let is_shared = group(*at).is_some() && group(*at) == group(*other);
            is_shared && to.limits == too.limits && its != config
        };
        if let Some((other, ..)) = others.find(is_other) {
            let message = format!(
                "it shares its limits with node `{}`, of which others are said: say the same of both",
                described[*other].1.name.value
            );
            return Err(
                Error::new(ErrorKind::Invalid, message).at_node(&described[*at].1.name.value)
            );
        }
    }
    Ok(())
}

/// Somebody has said of a node that it is read-only, and another one cannot be written without it.
pub(in crate::host) fn said_read_only(node: &str, of: &str) -> Error {
    let message = match node == of {
        true => "it is read-only by its description, and is to be written: reopen it with `read-only` false"
            .to_owned(),
        false => format!(
            "it is read-only by its description, and node `{of}` is to be written: reopen both, this one with \
             `read-only` false"
        ),
    };
    Error::new(ErrorKind::ReadOnly, message).at_node(node)
}

/// Whether a node is not open so.
fn is_other(graph: &Graph, at: usize, how: &Reopen) -> bool {
    let mode = graph.open_mode(at);
    let is_asked = how.write.is_some_and(|write| write != mode.write || mode.for_job);
    let is_auto = how.auto.is_some_and(|auto| auto != mode.auto);
    is_asked || is_auto || how.direct.is_some() || how.discard.is_some()
}

/// Of the limits that a throttle shares, others are said: those that it shares them with will have them, too.
fn leave_group(was: &NodeSpec, options: &Value, live: &mut Live) {
    let is_throttle = |node: &NodeSpec| matches!(&node.driver, DriverSpec::Filter(it) if it.kind == FilterKind::Throttle);
    let said =
        ["throttle-group", "instance"].into_iter().find_map(|key| options.get(key)?.as_str());
    let group = said.or_else(|| was.driver.instance().map(|it| it.value.as_str()));
    let Some(group) = group.filter(|_| is_throttle(was)) else { return };
    for node in live.nodes.iter_mut().filter(|node| is_throttle(node)) {
        if let DriverSpec::Filter(filter) = &mut node.driver {
            filter.instance.take_if(|it| it.value == group);
        }
    }
}

fn changes_of(
    options: &Value,
    graph: &Graph,
    mut live: Live,
) -> Result<(usize, NodeChange), StartError> {
    let named = options.get("node-name").and_then(Value::as_str);
    let name = named.ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "a node that is reopened is described by its `node-name`")
    })?;
    let found = live.nodes.iter().position(|node| node.name.value == name);
    let (at, known) = found
        .zip(graph.find_node(name))
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no node `{name}`")))?;
    // Its name is to be free for its new description.
    let was = live.nodes.remove(at);
    live.sizes.remove(name);
    if options.get("config").is_some() {
        leave_group(&was, options, &mut live);
    }
    let fragment = Fragment::blockdev(options.clone()).named("blockdev-reopen");
    let (spec, found, _) = fragment.read(String::new, live);
    if found.has_errors() {
        return Err(StartError::Config(Box::new(found)));
    }
    let change = config::changes(&spec, &was).map_err(StartError::Config)?;
    Ok((known, change))
}
