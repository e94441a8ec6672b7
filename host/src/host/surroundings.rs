//! The facts that checks of a configuration need, from this machine; plugins that were compiled for
//! them are kept for the start.

use std::collections::BTreeMap;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use blockloom_plugin_backup::BackupConfig;
use blockloom_plugin_throttle::ThrottleConfig;
use serde_json::Value;

use super::image_facts::image_facts;
use crate::config::{
    ConfigError, DriverSpec, FileFacts, FilterKind, GraphSpec, ImageFacts, ListenAddr,
    PluginSource, Surroundings,
};
use crate::error::{Error, Result};
use crate::io::{
    Listener, LockMode, in_parallel, lock_conflict, path_facts, real_path, socket_in_use,
};
use crate::plugin::{PluginLimits, PluginModule, PluginRuntime, bundled_names};

type Loaded = Result<Arc<PluginModule>>;

/// This machine.
#[derive(Default)]
pub(super) struct Machine {
    /// By the text of the source.
    modules: Mutex<BTreeMap<String, Loaded>>,
    runtime: Mutex<Option<Result<Arc<PluginRuntime>>>>,
}

impl Machine {
    /// For a later look: what has changed is forgotten.
    pub(super) fn anew(&self) -> Self {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let bundled = |key: &String| bundled_names().any(|name| name == key);
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_as_it_was = |loaded: &Loaded| {
            loaded.as_ref().is_ok_and(|module| matches!(module.changed_file(), Ok(None)))
        };
        modules.retain(|key, loaded| bundled(key) || is_as_it_was(loaded));
        Self { modules: Mutex::new(modules), runtime: Mutex::new(runtime) }
    }

    /// Compiles all plugins of a specification at once, one thread each.
    pub(super) fn compile_all(&self, spec: &GraphSpec, base_dir: &Path) {
        let mut sources: Vec<PluginSource> = Vec::new();
        for node in &spec.nodes {
            if let DriverSpec::Plugin(plugin) = &node.driver {
                let source = plugin.plugin.value.in_dir(base_dir);
                if !sources.contains(&source) {
                    sources.push(source);
                }
            }
        }
        in_parallel(sources, |source| drop(self.module(&source)));
    }

    fn runtime(&self) -> Result<Arc<PluginRuntime>> {
        let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        runtime.get_or_insert_with(|| PluginRuntime::new().map(Arc::new)).clone()
    }

    /// What has been compiled another time is the same from now on.
    pub(super) fn keep(&self, source: &PluginSource, module: &Arc<PluginModule>) {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        modules.insert(source.to_string(), Ok(Arc::clone(module)));
    }

    /// All plugins that have been compiled.
    pub(super) fn loaded(&self) -> Vec<Arc<PluginModule>> {
        let modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        modules.values().filter_map(|loaded| loaded.as_ref().ok().cloned()).collect()
    }

    /// A compiled plugin; compiled once.
    pub(super) fn module(&self, source: &PluginSource) -> Loaded {
        let key = source.to_string();
        let lock = || self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&key) {
            return known.clone();
        }
        let loaded = self.runtime().and_then(|runtime| match source {
            PluginSource::Bundled(name) => PluginModule::load_bundled(&runtime, name),
            PluginSource::File(path) => PluginModule::load_file(&runtime, Path::new(path)),
        });
        let loaded = loaded.map(Arc::new);
        lock().entry(key).or_insert(loaded).clone()
    }
}

impl Surroundings for Machine {
    fn file(&self, path: &Path) -> Result<FileFacts, String> {
        let facts = path_facts(path).map_err(|error| error.to_string())?;
        Ok(FileFacts {
            exists: facts.exists,
            size_bytes: facts.size_bytes,
            is_block_device: facts.is_block_device,
            writable: facts.is_writable,
            is_dir: facts.is_directory,
            is_special: facts.is_special,
        })
    }

    fn lock_conflict(&self, path: &Path, is_written: bool) -> Option<String> {
        let mode = if is_written { LockMode::Write } else { LockMode::Read };
        lock_conflict(path, mode)
    }

    fn real_path(&self, path: &Path) -> Result<PathBuf, String> {
        real_path(path).map_err(|error| error.to_string())
    }

    fn image(&self, path: &Path) -> Result<Option<ImageFacts>, String> {
        image_facts(path)
    }

    fn listen_in_use(&self, addr: &ListenAddr) -> Option<String> {
        match addr {
            ListenAddr::Unix(path) => socket_in_use(path),
            ListenAddr::Tcp { host, port } => {
                let address = match (host.as_str(), *port).to_socket_addrs() {
                    Ok(mut addresses) => addresses.next()?,
                    Err(error) => return Some(format!("`{host}` is no address: {error}")),
                };
                Listener::tcp(address).err().map(|error| error.to_string())
            }
        }
    }

    fn bundled_plugins(&self) -> Vec<String> {
        bundled_names().map(str::to_owned).collect()
    }

    fn plugin(&self, plugin: &PluginSource) -> Result<(), String> {
        self.module(plugin).map(drop).map_err(|error: Error| error.to_string())
    }

    fn may_bypass(&self, plugin: &PluginSource) -> bool {
        self.module(plugin).is_ok_and(|module| module.inspection().may_bypass)
    }

    fn plugin_config(&self, plugin: &PluginSource, config: &Value) -> Vec<ConfigError> {
        let whole = |message: String| ConfigError { path: String::new(), message };
        let checked = match self.module(plugin) {
            Ok(module) => module.check_config(&config.to_string(), &PluginLimits::default()),
            Err(error) => return vec![whole(error.to_string())],
        };
        checked
            .err()
            .map(|error| ConfigError { path: error.path, message: error.message })
            .into_iter()
            .collect()
    }

    fn plugin_exclusive(&self, plugin: &PluginSource) -> Vec<String> {
        let Ok(module) = self.module(plugin) else { return Vec::new() };
        let children = module.inspection().children.iter().filter(|child| child.exclusive);
        children.map(|child| child.name.clone()).collect()
    }

    fn plugin_views(&self, plugin: &PluginSource) -> Vec<String> {
        self.module(plugin).map(|module| module.inspection().views.clone()).unwrap_or_default()
    }

    fn filter_config(&self, filter: FilterKind, config: &Value) -> Vec<ConfigError> {
        let json = config.to_string();
        let wrong = match filter {
            FilterKind::Pass | FilterKind::CopyOnRead => {
                let message = format!("`{}` has no configuration: remove the key", filter.name());
                let keys = config.as_object().into_iter().flat_map(|keys| keys.keys());
                return keys
                    .map(|key| ConfigError { path: key.clone(), message: message.clone() })
                    .collect();
            }
            FilterKind::Backup => BackupConfig::check(&json),
            FilterKind::Throttle => {
                let mut wrong = Vec::new();
                ThrottleConfig::read(&json, &mut wrong);
                wrong
            }
        };
        let wrong = wrong.into_iter();
        wrong.map(|error| ConfigError { path: error.path, message: error.message }).collect()
    }
}
