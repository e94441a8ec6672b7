//! What a host remembers of all that it was given: descriptions of nodes that are there, and what several nodes
//! share.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use blockloom_plugin_throttle::ThrottleConfig;

use super::super::surroundings::Machine;
use super::drivers::instance_key;
use crate::config::{
    DriveSpec, DriverSpec, GraphSpec, ListenAddr, Live, NodeSpec, PluginSource, Scope,
    ThrottleChange, nowhere,
};
use crate::error::Result;
use crate::export::nbd::{ListenAddress, NbdServer};
use crate::filter::{BackupNode, ThrottleGroup, ThrottleNode};
use crate::graph::{BitmapScope, Graph, GraphNode, NodeGeneration, PermissionSet, WriterLock};
use crate::plugin::{Instance, PluginModule, PluginNode};

/// See the module.
#[derive(Default)]
pub(in crate::host) struct Registry {
    /// Whoever has it adds to the host, or takes from it.
    pub(in crate::host) turn: WriterLock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    base: PathBuf,
    machine: Machine,
    living: Living,
    described: Vec<(NodeGeneration, NodeSpec)>,
    /// Names made up so far.
    made_up: u64,
}

/// What is made for nodes of one specification.
#[derive(Clone, Default)]
pub(in crate::host) struct Made {
    pub(super) instances: BTreeMap<String, Arc<Instance>>,
    pub(super) groups: BTreeMap<String, ThrottleGroup>,
    /// By their names, for views of them.
    pub(super) plugins: BTreeMap<String, Arc<PluginNode>>,
    pub(super) backups: BTreeMap<String, Arc<BackupNode>>,
    pub(super) throttles: BTreeMap<String, Arc<ThrottleNode>>,
}

/// The same of all that are there.
#[derive(Clone, Default)]
pub(super) struct Living {
    instances: BTreeMap<String, Weak<Instance>>,
    pub(super) groups: BTreeMap<String, ThrottleGroup>,
    plugins: BTreeMap<String, Weak<PluginNode>>,
    backups: BTreeMap<String, Weak<BackupNode>>,
    throttles: BTreeMap<String, Weak<ThrottleNode>>,
}

impl Living {
    pub(super) fn instance(&self, key: &str) -> Option<Arc<Instance>> {
        self.instances.get(key)?.upgrade()
    }

    pub(super) fn plugin(&self, node: &str) -> Option<Arc<PluginNode>> {
        self.plugins.get(node)?.upgrade()
    }

    pub(super) fn backup(&self, node: &str) -> Option<Arc<BackupNode>> {
        self.backups.get(node)?.upgrade()
    }

    pub(super) fn add(&mut self, made: Made) {
        let Made { instances, groups, plugins, backups, throttles } = made;
        let weak = |(name, it): (String, Arc<Instance>)| (name, Arc::downgrade(&it));
        self.instances.extend(instances.into_iter().map(weak));
        self.groups.extend(groups);
        let weak = |(name, it): (String, Arc<PluginNode>)| (name, Arc::downgrade(&it));
        self.plugins.extend(plugins.into_iter().map(weak));
        let weak = |(name, it): (String, Arc<BackupNode>)| (name, Arc::downgrade(&it));
        self.backups.extend(backups.into_iter().map(weak));
        let weak = |(name, it): (String, Arc<ThrottleNode>)| (name, Arc::downgrade(&it));
        self.throttles.extend(throttles.into_iter().map(weak));
    }
}

impl State {
    /// Forgets what is not in the graph. Workers may keep a node for some time longer.
    fn tidy(&mut self, graph: &Graph) {
        let nodes = graph.nodes();
        self.described.retain(|(known, _)| nodes.iter().any(|node| node.generation() == *known));
        let keys = self.described.iter().map(|(_, node)| group_key(node));
        let keys: BTreeSet<String> = keys.collect();
        let living = &mut self.living;
        living.instances.retain(|key, _| keys.contains(key));
        living.groups.retain(|key, _| keys.contains(key));
        living.plugins.retain(|name, _| graph.find_node(name).is_some());
        living.backups.retain(|name, _| graph.find_node(name).is_some());
        living.throttles.retain(|name, _| graph.find_node(name).is_some());
    }

    fn described(&self, node: &GraphNode) -> Option<&NodeSpec> {
        let mut known = self.described.iter();
        known.find(|(known, _)| *known == node.generation()).map(|(_, spec)| spec)
    }
}

impl Registry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host begins from a file in `base`.
    pub(super) fn begin(&self, base: &Path, machine: Machine) {
        let mut state = self.state();
        (state.base, state.machine) = (base.to_owned(), machine);
    }

    /// The directory of the file that the host began with.
    pub(in crate::host) fn base(&self) -> PathBuf {
        self.state().base.clone()
    }

    /// Compiles a plugin, and keeps it for nodes to come, as long as its file stays as it is.
    ///
    /// # Errors
    /// As [`PluginModule::load_file`].
    pub(in crate::host) fn load_plugin(&self, source: &PluginSource) -> Result<Arc<PluginModule>> {
        let module = self.machine().module(source)?;
        self.state().machine.keep(source, &module);
        Ok(module)
    }

    /// All plugins that are kept so, or were compiled for the start.
    pub(in crate::host) fn loaded_plugins(&self) -> Vec<Arc<PluginModule>> {
        self.state().machine.loaded()
    }

    /// For something new: files may have changed since the last time.
    pub(super) fn machine(&self) -> Machine {
        self.state().machine.anew()
    }

    pub(super) fn living(&self, graph: &Graph) -> Living {
        let mut state = self.state();
        state.tidy(graph);
        state.living.clone()
    }

    /// A name for a node without one.
    pub(super) fn make_up_name(&self, graph: &Graph) -> String {
        let mut state = self.state();
        loop {
            let name = format!("#block{:03}", state.made_up);
            state.made_up += 1;
            if graph.find_node(&name).is_none() {
                return name;
            }
        }
    }

    /// Remembers the nodes of a specification that are in the graph now.
    pub(super) fn take(&self, graph: &Graph, spec: &GraphSpec, base: &Path, made: Made) {
        let mut state = self.state();
        for node in &spec.nodes {
            if let Some(at) = graph.find_node(&node.name.value) {
                let generation = graph.nodes()[at].generation();
                state.described.push((generation, node.clone().in_dir(base)));
            }
        }
        state.living.add(made);
        state.tidy(graph);
    }

    /// A node is described in another way from now on.
    pub(super) fn describe(&self, node: &GraphNode, spec: NodeSpec) {
        let mut state = self.state();
        state.described.retain(|(known, _)| *known != node.generation());
        state.described.push((node.generation(), spec));
    }

    /// The limits of a throttle, which is described so by now, change.
    pub(super) fn throttle(&self, spec: &NodeSpec, to: ThrottleChange, config: &ThrottleConfig) {
        let mut state = self.state();
        let key = group_key(spec);
        let groups = &mut state.living.groups;
        let group = groups.entry(key.clone()).or_insert_with(|| ThrottleGroup::new(config)).clone();
        if to.limits {
            group.set_limits(config);
            // They are of all that share them.
            let of_group = state.described.iter_mut().map(|(_, other)| other);
            for other in of_group.filter(|other| group_key(other) == key) {
                if let (DriverSpec::Filter(other), Some(said)) =
                    (&mut other.driver, spec.driver.config())
                {
                    other.config.json = said.json.clone();
                }
            }
        }
        let node = state.living.throttles.get(&spec.name.value).and_then(Weak::upgrade);
        if let Some(node) = node.filter(|_| to.joins) {
            node.join(group);
        }
    }

    /// Whether somebody has said that a node is read-only; not, that an image names it.
    pub(in crate::host) fn is_said_read_only(&self, node: &GraphNode) -> bool {
        let state = self.state();
        state.described(node).is_some_and(|spec| spec.read_only.value && !spec.is_implicit)
    }

    /// Whether a node was given within another one, by a name of its own.
    pub(in crate::host) fn is_within(&self, node: &GraphNode) -> bool {
        self.state().described(node).is_some_and(|spec| spec.is_within)
    }

    /// What is there.
    pub(super) fn live(&self, graph: &Graph, server: &NbdServer) -> Live {
        let mut state = self.state();
        state.tidy(graph);
        let nodes = graph.nodes().iter().map(|node| {
            let children = node.edges().iter().map(|edge| {
                let child = graph.nodes()[edge.child()].name();
                (edge.name().to_owned(), child.to_owned())
            });
            let known = state.described(node).cloned();
            let spec =
                known.unwrap_or_else(|| NodeSpec::running(node.name(), node.driver().driver()));
            spec.as_running(children)
        });
        let drives = graph.drives().iter().map(|drive| DriveSpec {
            id: nowhere(drive.id().to_owned()),
            root: drive.root().map(|root| nowhere(graph.nodes()[root.child()].name().to_owned())),
            writable: Some(nowhere(drive.is_writable())),
        });
        let bitmaps = graph.bitmaps().map(|(scope, bitmap)| {
            let scope = match scope {
                BitmapScope::Drive(id) => Scope::Drive(nowhere(id.to_string())),
                BitmapScope::Node(name) => Scope::Node(nowhere(name.to_string())),
            };
            (scope, bitmap.name().to_string())
        });
        let roots = graph.drives().iter().filter_map(|drive| drive.root());
        let edges = graph.nodes().iter().flat_map(|node| node.edges()).chain(roots);
        let changing =
            edges.filter(|edge| !edge.uses().intersection(PermissionSet::CHANGES).is_empty());
        Live {
            nodes: nodes.collect(),
            sizes: graph
                .nodes()
                .iter()
                .map(|node| (node.name().to_owned(), node.info().size_bytes))
                .collect(),
            written: changing.map(|edge| graph.nodes()[edge.child()].name().to_owned()).collect(),
            drives: drives.collect(),
            bitmaps: bitmaps.collect(),
            exports: server.exports().into_iter().map(|export| export.id).collect(),
            listeners: server.listeners().into_iter().map(address).collect(),
        }
    }
}

fn group_key(node: &NodeSpec) -> String {
    instance_key(node, node.driver.instance().map(|it| it.value.as_str()))
}

fn address(address: ListenAddress) -> ListenAddr {
    match address {
        ListenAddress::Unix(path) => ListenAddr::Unix(path),
        ListenAddress::Tcp(address) => {
            ListenAddr::Tcp { host: address.ip().to_string(), port: address.port() }
        }
    }
}
