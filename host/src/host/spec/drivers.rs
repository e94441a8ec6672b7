//! A node's description becomes its driver, or what opens it.

use std::sync::Arc;

use blockloom_plugin_backup::BackupConfig;
use blockloom_plugin_throttle::ThrottleConfig;

use super::super::start::Driver;
use super::StartError;
use super::builder::Builder;
use crate::config::{
    self, DriverSpec, FileSpec, FilterKind, FilterSpec, Locking, NodeSpec, PluginSpec, Qcow2Spec,
    ViewSpec,
};
use crate::error::{Error, ErrorKind};
use crate::filter::{BackupNode, CopyOnReadNode, PassNode, ThrottleGroup, ThrottleNode, ViewNode};
use crate::node::{
    FileNode, FileOptions, ImageLocking, MemoryNode, Node, NullNode, Qcow2Options, RawNode,
};
use crate::plugin::{
    ByteAccess, Grants, Instance, InstanceError, OnFault, PluginNode, RestartBudget,
};

impl Builder<'_> {
    /// Opens a node, or says what opens it when its children stand; what fails is shown at the key that names it.
    pub(super) fn driver(&mut self, node: &NodeSpec) -> Result<Driver, StartError> {
        let driver: Arc<dyn Node> = match &node.driver {
            DriverSpec::File(file) => {
                let opened = FileNode::open(&self.file_options(node, file));
                Arc::new(opened.map_err(|error| self.at(file.path.span, &error))?)
            }
            DriverSpec::Memory(memory) => {
                let make = match node.children.is_empty() {
                    true => MemoryNode::new,
                    false => MemoryNode::overlay,
                };
                let made = make(memory.size_bytes.value, memory.block_size_bytes.value);
                Arc::new(made.map_err(|error| self.at(memory.size_bytes.span, &error))?)
            }
            DriverSpec::Null(null) => Arc::new(NullNode::new(
                null.size_bytes.value,
                null.read_zeroes.value,
                null.latency.value,
            )),
            DriverSpec::Raw(raw) => {
                let value = |it: &Option<config::Spanned<u64>>| it.as_ref().map(|it| it.value);
                let offset = value(&raw.offset_bytes).unwrap_or(0);
                Arc::new(RawNode::new(offset, value(&raw.size_bytes)))
            }
            DriverSpec::Qcow2(image) => {
                return Ok(Driver::Open(Box::new(self.qcow2_options(node, image))));
            }
            DriverSpec::Plugin(plugin) => {
                let made = Arc::new(self.plugin(node, plugin)?);
                self.made.plugins.insert(node.name.value.clone(), Arc::clone(&made));
                made
            }
            DriverSpec::View(view) => Arc::new(self.view(view)?),
            DriverSpec::Filter(filter) => self.filter(node, filter)?,
            DriverSpec::Running(_) => {
                let message = "it is there already";
                return Err(Error::new(ErrorKind::Exists, message)
                    .at_node(&node.name.value)
                    .into());
            }
        };
        Ok(Driver::Ready(driver))
    }

    fn qcow2_options(&self, node: &NodeSpec, image: &Qcow2Spec) -> Qcow2Options {
        let place =
            |name: &str| self.spec.edges_from(&node.name.value).position(|edge| edge.name == name);
        Qcow2Options {
            write: self.spec.is_written(node),
            backing: place("backing"),
            data_file: place("data-file"),
            l2_cache_bytes: image.l2_cache_bytes.value,
            lazy_refcounts: image.lazy_refcounts.map(|it| it.value),
        }
    }

    fn file_options(&self, node: &NodeSpec, file: &FileSpec) -> FileOptions {
        FileOptions {
            path: file.path_in(self.base),
            create_bytes: file.create_bytes.as_ref().map(|it| it.value),
            direct: file.direct.value,
            write: self.spec.is_written(node),
            auto_read_only: node.auto_read_only.value && !node.read_only.value,
            discard: file.discard.value,
            locking: match file.locking.value {
                Locking::Auto => ImageLocking::Auto,
                Locking::On => ImageLocking::On,
                Locking::Off => ImageLocking::Off,
            },
        }
    }

    fn plugin(&mut self, node: &NodeSpec, spec: &PluginSpec) -> Result<PluginNode, StartError> {
        let key = instance_key(node, spec.instance.as_ref().map(|it| it.value.as_str()));
        if let Some(instance) = self.instance(&key) {
            return self.plugin_node(&instance, node, spec);
        }
        let module = self.machine.module(&spec.plugin.value.in_dir(self.base))?;
        let policy = match spec.on_fault.value {
            config::OnFault::Fail => OnFault::Fail,
            config::OnFault::Bypass => OnFault::Bypass,
            config::OnFault::Restart { faults, within } => {
                OnFault::Restart(RestartBudget { faults, within })
            }
        };
        let json = spec.config.json.to_string();
        let made = Instance::with_policy(&module, &json, spec.limits, policy);
        let instance = made.map_err(|error| match error {
            InstanceError::Plugin(error) => self.at(spec.plugin.span, &error),
            InstanceError::Config(error) => {
                let error_at = spec.config.span_of(&error.path);
                self.at(error_at, &Error::new(ErrorKind::Invalid, error.message))
            }
        })?;
        if let Some(name) = &spec.instance {
            instance.call_it(&name.value);
        }
        self.made.instances.insert(key, Arc::clone(&instance));
        self.plugin_node(&instance, node, spec)
    }

    /// The instance of this key, of what is made or what is there.
    fn instance(&self, key: &str) -> Option<Arc<Instance>> {
        self.made.instances.get(key).cloned().or_else(|| self.living.instance(key))
    }

    fn plugin_node(
        &self,
        instance: &Arc<Instance>,
        node: &NodeSpec,
        spec: &PluginSpec,
    ) -> Result<PluginNode, StartError> {
        let children = self.spec.edges_from(&node.name.value).map(|edge| {
            let grants = spec.grants.iter().filter(|grants| grants.child.value == edge.name);
            let named = grants.flat_map(|grants| &grants.grants);
            let granted = named.filter_map(|grant| Grants::named(grant.value.name()));
            (edge.name.clone(), granted.fold(Grants::NONE, Grants::union))
        });
        let children: Vec<(String, Grants)> = children.collect();
        let lent = self.lent(&spec.bitmaps);
        let access = match spec.bytes.map(|bytes| bytes.value) {
            None => ByteAccess::None,
            Some(config::BytesGrant::Read) => ByteAccess::Read,
            Some(config::BytesGrant::Transform) => ByteAccess::Transform,
        };
        PluginNode::with_children(instance, &children)
            .and_then(|node| node.with_bitmaps(&lent))
            .and_then(|node| node.with_bytes(access))
            .map_err(|error| self.at(spec.plugin.span, &error))
    }

    fn view(&self, spec: &ViewSpec) -> Result<ViewNode, StartError> {
        let of = &spec.of.value;
        let said = |view: ViewNode| match spec.discard {
            Some(discard) => view.with_discards(discard.value),
            None => view,
        };
        let known = self.made.backups.get(of).cloned();
        if let Some(backup) = known.or_else(|| self.living.backup(of)) {
            return Ok(said(ViewNode::of_backup(&backup)));
        }
        let missing = || Error::new(ErrorKind::NotFound, format!("node `{of}` has no views"));
        let known = self.made.plugins.get(of).cloned();
        let plugin = known.or_else(|| self.living.plugin(of)).ok_or_else(missing);
        let view = plugin.and_then(|plugin| ViewNode::of_plugin(&plugin, &spec.view.value));
        view.map(said).map_err(|error| self.at(spec.view.span, &error))
    }

    fn backup(&mut self, node: &NodeSpec, spec: &FilterSpec) -> Result<Arc<dyn Node>, StartError> {
        let config = BackupConfig::from_json(&spec.config.json.to_string());
        let config = config.map_err(|error| {
            let span = spec.config.span_of(&error.path);
            self.at(span, &Error::new(ErrorKind::Invalid, error.message))
        })?;
        let mut changes = None;
        for (name, scope, bitmap) in self.lent(&spec.bitmaps) {
            if name != BackupNode::CHANGES {
                let message = format!("driver `backup` reads no bitmap `{name}`");
                return Err(self.at(node.name.span, &Error::new(ErrorKind::Invalid, message)));
            }
            changes = Some((scope, bitmap));
        }
        let made = BackupNode::new(config, changes);
        let made = Arc::new(made.map_err(|error| self.at(node.name.span, &error))?);
        self.made.backups.insert(node.name.value.clone(), Arc::clone(&made));
        Ok(made)
    }

    fn filter(&mut self, node: &NodeSpec, spec: &FilterSpec) -> Result<Arc<dyn Node>, StartError> {
        match spec.kind {
            FilterKind::Pass => return Ok(Arc::new(PassNode)),
            FilterKind::CopyOnRead => {
                let bottom = self
                    .spec
                    .edges_from(&node.name.value)
                    .position(|edge| edge.name == CopyOnReadNode::BOTTOM);
                return Ok(Arc::new(CopyOnReadNode::new(bottom)));
            }
            FilterKind::Backup => return self.backup(node, spec),
            FilterKind::Throttle => {}
        }
        let key = instance_key(node, spec.instance.as_ref().map(|it| it.value.as_str()));
        let known = self.made.groups.get(&key).or_else(|| self.living.groups.get(&key)).cloned();
        let group = match known {
            Some(group) => group,
            None => {
                let config = ThrottleConfig::from_json(&spec.config.json.to_string());
                let config = config.map_err(|error| {
                    let span = spec.config.span_of(&error.path);
                    self.at(span, &Error::new(ErrorKind::Invalid, error.message))
                })?;
                ThrottleGroup::new(&config)
            }
        };
        self.made.groups.insert(key, group.clone());
        let throttle = Arc::new(ThrottleNode::new(group));
        self.made.throttles.insert(node.name.value.clone(), Arc::clone(&throttle));
        Ok(throttle)
    }
}

/// Instances have a namespace of their own: a node's own instance must not meet a shared one's name.
pub(super) fn instance_key(node: &NodeSpec, shared: Option<&str>) -> String {
    shared.map_or_else(|| format!("node {}", node.name.value), |name| format!("instance {name}"))
}
