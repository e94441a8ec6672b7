//! Options of nodes that change while they run.

use serde_json::Value;

use super::super::Host;
use super::super::call::block_on;
use super::StartError;
use super::fragment::Fragment;
use crate::config::{self, ChildChange, Live};
use crate::error::{Error, ErrorKind};
use crate::graph::{Action, Transaction, Unproven};

impl Host {
    /// Changes options of nodes while they run, all of them in one transaction: each is described again as a node
    /// of a fragment is, by its `node-name`. What is left out stays as it is. Children that are named can be
    /// other nodes, and a `backing` can end; whatever else would be different is refused.
    ///
    /// # Errors
    /// What cannot change; as [`Host::transact`]: `EPERM` for a child that is not known to show the same, unless
    /// that is to be marked.
    pub fn reopen_nodes(&self, nodes: &[Value], unproven: Unproven) -> Result<(), StartError> {
        super::super::check_running(&self.inner.ended)?;
        let registry = &self.inner.registry;
        let _turn = block_on(registry.turn.lock());
        let live = registry.live(&self.graph(), &self.inner.server);
        let mut transaction = Transaction::new();
        for options in nodes {
            let (node, changes) = changes_of(options, live.clone())?;
            for ChildChange { edge, child } in changes {
                let set = Action::SetChild { node: node.clone(), edge, child };
                transaction = transaction.with_unproven(set, unproven);
            }
        }
        if transaction.actions().next().is_some() {
            block_on(self.inner.transact(transaction))?;
        }
        Ok(())
    }
}

impl Host {
    /// The changes that have a node be as it is described again, as [`Host::reopen_nodes`] makes them.
    ///
    /// # Errors
    /// As there, for what it says of the node.
    pub(crate) fn reopening(&self, options: &Value) -> Result<Vec<Action>, StartError> {
        let live = self.inner.registry.live(&self.graph(), &self.inner.server);
        let (node, changes) = changes_of(options, live)?;
        let set =
            |ChildChange { edge, child }| Action::SetChild { node: node.clone(), edge, child };
        Ok(changes.into_iter().map(set).collect())
    }
}

fn changes_of(options: &Value, mut live: Live) -> Result<(String, Vec<ChildChange>), StartError> {
    let named = options.get("node-name").and_then(Value::as_str);
    let name = named.ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "a node that is reopened is described by its `node-name`")
    })?;
    let at = live.nodes.iter().position(|node| node.name.value == name);
    let at =
        at.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no node `{name}`")))?;
    // Its name is to be free for its new description.
    let known = live.nodes.remove(at);
    live.sizes.remove(name);
    let fragment = Fragment::blockdev(options.clone()).named("blockdev-reopen");
    let (spec, found, _) = fragment.read(String::new, live);
    if found.has_errors() {
        return Err(StartError::Config(Box::new(found)));
    }
    let changes = config::changes(&spec, &known).map_err(StartError::Config)?;
    Ok((name.to_owned(), changes))
}
