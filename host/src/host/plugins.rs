//! Plugins of a running host: another one in the place of one that runs, another configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Host;
use super::call::on_worker;
use crate::config::PluginSource;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Urgency, compute};
use crate::plugin::{Instance, InstanceError, PluginModule, PluginNode};

/// Where the plugin is that is to take the place of one that runs.
#[derive(Clone)]
pub enum PluginBinary {
    /// In a file: a component, or the core module that cargo makes.
    File(PathBuf),
    /// In memory; in messages it has the name of the one before.
    Bytes(Vec<u8>),
    /// Compiled already.
    Module(Arc<PluginModule>),
}

impl From<&Path> for PluginBinary {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl From<Vec<u8>> for PluginBinary {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl PluginBinary {
    /// Compiles it on a thread for calculations.
    async fn module(self, former: Arc<PluginModule>) -> Result<Arc<PluginModule>> {
        let compiled = compute(Urgency::Later, move || match self {
            Self::File(path) => PluginModule::load_file(former.runtime(), &path).map(Arc::new),
            Self::Bytes(bytes) => {
                PluginModule::load(former.runtime(), former.name(), &bytes).map(Arc::new)
            }
            Self::Module(module) => Ok(module),
        });
        compiled.await.unwrap_or_else(|error| Err(Error::os("the plugin was not compiled", &error)))
    }
}

/// What has come of the file of a plugin that had changed.
#[derive(Debug)]
pub struct ChangedPlugin {
    /// The plugin.
    pub plugin: Arc<str>,
    /// Its file.
    pub file: PathBuf,
    /// Why it was not taken, if it was not.
    pub result: Result<(), InstanceError>,
}

/// A plugin, and where it runs.
pub struct LoadedPlugin {
    /// The plugin.
    pub module: Arc<PluginModule>,
    /// Its instances, each with the names of the nodes that it serves.
    pub instances: Vec<(Arc<Instance>, Vec<String>)>,
}

impl Host {
    /// Compiles a plugin, a bundled one by its name or a file that ends in `.wasm`, and keeps it for nodes that
    /// are added later, as long as its file stays as it is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn load_plugin(&self, plugin: &str) -> Result<LoadedPlugin> {
        super::check_running(&self.inner.ended)?;
        let source = match plugin.ends_with(".wasm") && !plugin.contains('\0') {
            true => PluginSource::File(plugin.to_owned()),
            false => PluginSource::Bundled(plugin.to_owned()),
        };
        let module = self.inner.registry.load_plugin(&source.in_dir(&self.base_dir()))?;
        Ok(LoadedPlugin { instances: self.instances_of(&module), module })
    }

    /// All plugins that nodes have, and those that were loaded.
    pub fn plugins(&self) -> Vec<LoadedPlugin> {
        let loaded = self.inner.registry.loaded_plugins().into_iter();
        let running = self.plugin_instances().into_iter().map(|instance| instance.module());
        let by_name = loaded.chain(running).map(|module| {
            let key = (module.name().to_owned(), Arc::as_ptr(&module));
            (key, module)
        });
        let once: BTreeMap<_, _> = by_name.collect();
        let all = once.into_values();
        all.map(|module| LoadedPlugin { instances: self.instances_of(&module), module }).collect()
    }

    /// The file of the plugin that serves a node, or that an instance has; `None` if it has none.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn plugin_file(&self, of: &str) -> Result<Option<PathBuf>> {
        Ok(self.plugin_instance(of)?.module().file().map(Path::to_owned))
    }

    fn instances_of(&self, module: &Arc<PluginModule>) -> Vec<(Arc<Instance>, Vec<String>)> {
        let graph = self.graph();
        let instances = self.plugin_instances().into_iter();
        let instances = instances.filter(|instance| Arc::ptr_eq(&instance.module(), module));
        let with_nodes = instances.map(|instance| {
            let nodes = graph.nodes().iter().filter(|node| {
                let behind = PluginNode::behind(node);
                behind.is_some_and(|behind| Arc::ptr_eq(behind.instance(), &instance))
            });
            let nodes = nodes.map(|node| node.name().to_owned()).collect();
            (instance, nodes)
        });
        with_nodes.collect()
    }

    /// Replaces a plugin under load: `of` is a node that it serves, or the name of its instance. Requests wait while
    /// what the plugin has in hand comes to its end and its state goes over to the next one; held requests stay
    /// held. None is lost, none is seen twice. One that is down or out of service is replaced, too, and serves
    /// again. `config` is JSON text; without one the former stays.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use blockloom::graph::ChildDecl;
    /// # use blockloom::node::MemoryNode;
    /// use blockloom::plugin::{Instance, PluginNode, PluginRuntime, bundled};
    /// use blockloom::{Host, block_on};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let runtime = Arc::new(PluginRuntime::new()?);
    /// let slow = Instance::bundled(&runtime, "throttle", r#"{ "iops": 10000 }"#)?;
    /// let host = Host::builder()
    ///     .node("disk", MemoryNode::new(1 << 20, 512)?, vec![])
    ///     .node("slow", PluginNode::new(&slow)?, vec![ChildDecl::filtered("disk")])
    ///     .drive("vda", "slow", true)
    ///     .start()?;
    /// let next = bundled("throttle").ok_or("a plugin")?.to_vec();
    /// let config = r#"{ "iops": 20000 }"#;
    /// block_on(host.reload_plugin("slow", next.into(), Some(config)))?;
    /// assert_eq!(slow.reloads(), 1);
    /// # Ok(host.shutdown()?)
    /// # }
    /// ```
    ///
    /// # Errors
    /// `ENOENT`; what is wrong with the file; as [`Instance::reload`]. The former plugin goes on then.
    pub async fn reload_plugin(
        &self,
        of: &str,
        binary: PluginBinary,
        config: Option<&str>,
    ) -> Result<(), InstanceError> {
        let instance = self.plugin_instance(of)?;
        let module = binary.module(instance.module()).await?;
        let config = config.map(str::to_owned);
        self.with_instance(instance, async move |instance| {
            instance.reload(&module, config.as_deref()).await
        })
        .await
    }

    /// Gives a plugin another configuration, JSON text, without a pause: `of` as for [`Host::reload_plugin`].
    ///
    /// # Errors
    /// `ENOENT`; as [`Instance::reconfigure`]. The former configuration stays in force then.
    pub async fn reconfigure_plugin(&self, of: &str, config: &str) -> Result<(), InstanceError> {
        let (instance, config) = (self.plugin_instance(of)?, config.to_owned());
        self.with_instance(instance, async move |instance| instance.reconfigure(&config).await)
            .await
    }

    /// Ends a plugin as a fault of its own would: what comes of that, its nodes' policy says. `of` as for
    /// [`Host::reload_plugin`]. A drill.
    ///
    /// # Errors
    /// `ENOENT`.
    pub async fn kill_plugin(&self, of: &str) -> Result<(), InstanceError> {
        let instance = self.plugin_instance(of)?;
        self.with_instance(instance, async move |instance| {
            instance.kill();
            Ok(())
        })
        .await
    }

    /// Replaces every plugin whose file has other bytes than when it was loaded.
    pub async fn reload_changed_plugins(&self) -> Vec<ChangedPlugin> {
        let mut changed = Vec::new();
        for instance in self.plugin_instances() {
            let module = instance.module();
            let file = match module.changed_file() {
                Ok(Some(file)) => file.to_owned(),
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!("plugin `{}` stays as it is: {error}", module.name());
                    continue;
                }
            };
            let plugin = instance.plugin();
            let reload = async {
                let next = PluginBinary::File(file.clone()).module(module).await?;
                self.with_instance(instance, async move |instance| {
                    instance.reload(&next, None).await
                })
                .await
            };
            let result = reload.await;
            changed.push(ChangedPlugin { plugin, file, result });
        }
        changed
    }

    /// All instances of plugins that nodes of the graph have, each once.
    fn plugin_instances(&self) -> Vec<Arc<Instance>> {
        let graph = self.graph();
        let nodes = graph.nodes().iter().filter_map(PluginNode::behind);
        let instances = nodes.map(|node| (Arc::as_ptr(node.instance()), node.instance()));
        let once: BTreeMap<_, _> = instances.collect();
        once.into_values().map(Arc::clone).collect()
    }

    fn plugin_instance(&self, of: &str) -> Result<Arc<Instance>> {
        let graph = self.graph();
        if let Some(at) = graph.find_node(of) {
            return match PluginNode::behind(&graph.nodes()[at]) {
                Some(node) => Ok(Arc::clone(node.instance())),
                None => {
                    Err(Error::new(ErrorKind::Invalid, "it is no node of a plugin").at_node(of))
                }
            };
        }
        let named = self.plugin_instances().into_iter().find(|known| known.name() == Some(of));
        named.ok_or_else(|| {
            let message = format!("there is no node and no plugin instance `{of}`");
            Error::new(ErrorKind::NotFound, message)
        })
    }

    async fn with_instance(
        &self,
        instance: Arc<Instance>,
        act: impl AsyncFnOnce(&Arc<Instance>) -> Result<(), InstanceError> + Send + 'static,
    ) -> Result<(), InstanceError> {
        let ended = Arc::clone(&self.inner.ended);
        let done = on_worker(self.inner.first(), move || async move {
            super::check_running(&ended)?;
            Ok(act(&instance).await)
        });
        done.await?
    }
}
