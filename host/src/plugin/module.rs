//! From a file to something that can be instantiated: recognising, encoding, compiling, describing.

use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockloom_abi::Kinds;
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Store, UpdateDeadline};

use super::PluginLimits;
use super::bindings::exports::blockloom::filter::control;
use super::bindings::{Filter, FilterPre};
use super::bytes::ByteAccess;
use super::grants::Grants;
use super::runtime::{PluginRuntime, TICK};
use super::store::{CALL_DATA_BYTES, HostState, Lasting, printable};
use super::version::AbiVersion;
use crate::error::{Error, ErrorKind, Result};
use crate::io::read_file;

include!(concat!(env!("OUT_DIR"), "/bundled.rs"));

/// Longest plugin file, bytes: compiling takes time in proportion.
const FILE_MAX_BYTES: u64 = 16 << 20;

/// The names of the plugins that come with the host.
pub fn bundled_names() -> impl Iterator<Item = &'static str> {
    BUNDLED.iter().map(|(name, _)| *name)
}

/// The core module of a plugin that comes with the host.
pub fn bundled(name: &str) -> Option<&'static [u8]> {
    BUNDLED.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes)
}

/// What a plugin said against its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The key at fault, joined by dots; empty for the configuration as a whole.
    pub path: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.message),
            path => write!(f, "`{path}`: {}", self.message),
        }
    }
}

/// A compiled plugin, ready to be instantiated.
pub struct PluginModule {
    pub(super) runtime: Arc<PluginRuntime>,
    name: Arc<str>,
    /// The file that it was loaded from, and what tells its bytes from others.
    file: Option<(PathBuf, u64)>,
    pre: FilterPre<HostState>,
    version: &'static AbiVersion,
    /// The kinds of requests that its version knows.
    known: Kinds,
    inspection: Inspection,
}

/// What `blockloom plugin inspect` shows.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// The plugin's own name.
    pub name: String,
    /// The plugin's own version.
    pub version: String,
    /// The version of the contract that it speaks, such as `blockloom:filter@0.1.0`.
    pub abi: &'static str,
    /// The packed layout that it speaks.
    pub layout: u32,
    /// Kinds of requests that it wants to be offered.
    pub kinds: u32,
    /// Its children; the first is the filtered one.
    pub children: Vec<ChildWant>,
    /// Point-in-time views that it offers.
    pub views: Vec<String>,
    /// Bitmaps that it reads, and whether it cannot do without.
    pub bitmaps: Vec<(String, bool)>,
    /// What it wants to do with the data of requests.
    pub wants_bytes: ByteAccess,
    /// Whether it has work of its own.
    pub has_job: bool,
    /// Whether requests may go to the filtered child without it, should it fail.
    pub may_bypass: bool,
    /// Imports of the component.
    pub imports: Vec<String>,
    /// Exports of the component.
    pub exports: Vec<String>,
    /// Length of the file, bytes.
    pub file_bytes: usize,
    /// Whether the file is a core module (encoded at load) rather than a component.
    pub is_core_module: bool,
}

/// A child that a plugin describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildWant {
    /// Its name, as in `child.NAME`.
    pub name: String,
    /// Whether the plugin cannot do without it.
    pub required: bool,
    /// What the plugin wants to do to it of its own accord.
    pub wants: Grants,
    /// Whether nobody else may change what it shows, but through the node.
    pub exclusive: bool,
}

fn read_plugin(path: &Path) -> Result<Vec<u8>> {
    let cannot = || format!("cannot read plugin `{}`", path.display());
    read_file(path, FILE_MAX_BYTES).map_err(|error| Error::os(cannot(), &error))
}

/// Tells files apart that nobody has made alike on purpose.
fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn unusable(name: &str, reason: impl fmt::Display) -> Error {
    // The reason may quote names from the file.
    let reason = printable(&reason.to_string());
    Error::new(ErrorKind::Invalid, format!("plugin `{name}`: {reason}"))
}

impl PluginModule {
    /// Loads a plugin file: a component, or the core module that cargo makes.
    ///
    /// # Errors
    /// When the file cannot be read or is no plugin for this host; the message says what it lacks.
    pub fn load_file(runtime: &Arc<PluginRuntime>, path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = read_plugin(path)?;
        let mut module = Self::load(runtime, &name, &bytes)?;
        module.file = Some((path.to_owned(), digest(&bytes)));
        Ok(module)
    }

    /// The file that it was loaded from.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_ref().map(|(path, _)| path.as_path())
    }

    /// The file that it was loaded from, if that has other bytes by now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn changed_file(&self) -> Result<Option<&Path>> {
        let Some((path, known)) = &self.file else { return Ok(None) };
        let now = digest(&read_plugin(path)?);
        Ok((now != *known).then_some(path))
    }

    /// Loads a plugin that comes with the host.
    ///
    /// # Errors
    /// `ENOENT` with the names that there are.
    pub fn load_bundled(runtime: &Arc<PluginRuntime>, name: &str) -> Result<Self> {
        let bytes = bundled(name).ok_or_else(|| {
            let known: Vec<&str> = bundled_names().collect();
            let message = format!(
                "there is no bundled plugin `{name}` (there is: {}); give a path that ends in .wasm",
                known.join(", ")
            );
            Error::new(ErrorKind::NotFound, message)
        })?;
        Self::load(runtime, name, bytes)
    }

    /// Loads a plugin from memory. `name` is for messages.
    ///
    /// # Errors
    /// When it is no plugin for this host.
    pub fn load(runtime: &Arc<PluginRuntime>, name: &str, bytes: &[u8]) -> Result<Self> {
        let is_core_module = bytes.starts_with(b"\0asm\x01\0\0\0");
        let encoded;
        let binary = if is_core_module {
            encoded = encode(bytes).map_err(|error| unusable(name, error))?;
            &encoded
        } else if bytes.starts_with(b"\0asm") {
            bytes
        } else {
            return Err(unusable(name, "it is no WebAssembly file"));
        };
        let component = Component::from_binary(&runtime.engine, binary)
            .map_err(|error| unusable(name, format!("it does not compile: {error:#}")))?;
        let (imports, exports) = names(runtime, &component);
        let spoken = AbiVersion::of(&imports, &exports);
        let version = spoken.map_err(|reason| unusable(name, reason))?;
        let mut linker = Linker::new(&runtime.engine);
        let linked = Filter::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)
            .and_then(|()| linker.instantiate_pre(&component))
            .and_then(FilterPre::new);
        let pre = linked.map_err(|error| unusable(name, format!("it does not fit: {error:#}")))?;
        let inspection = Inspection {
            abi: version.package,
            imports,
            exports,
            file_bytes: bytes.len(),
            is_core_module,
            ..Inspection::default()
        };
        let (runtime, file, known) = (Arc::clone(runtime), None, version.kinds);
        let mut module = Self { runtime, name: name.into(), file, pre, version, known, inspection };
        module.describe()?;
        Ok(module)
    }

    /// The name for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// What compiles and runs it.
    pub fn runtime(&self) -> &Arc<PluginRuntime> {
        &self.runtime
    }

    /// What it is and wants.
    pub fn inspection(&self) -> &Inspection {
        &self.inspection
    }

    /// The kinds of requests that its version knows.
    pub(super) fn known(&self) -> Kinds {
        self.known
    }

    /// As if its version knew no more than these.
    #[cfg(test)]
    pub(super) fn knowing(mut self, kinds: Kinds) -> Self {
        self.known = kinds;
        self
    }

    /// Whether requests of `kind` (a number of the layout) are to be offered.
    pub(super) fn kinds(&self) -> Kinds {
        Kinds::from_bits(self.inspection.kinds).unwrap_or(Kinds::ALL)
    }

    /// Checks a configuration without keeping the instance.
    ///
    /// # Errors
    /// What the plugin says against it; its failure to answer is one about the configuration as a whole.
    pub fn check_config(&self, config: &str, limits: &PluginLimits) -> Result<(), ConfigError> {
        let whole = |error: Error| ConfigError { path: String::new(), message: error.to_string() };
        let (mut store, filter) = self.instantiate(limits, Arc::default()).map_err(whole)?;
        self.configure(&mut store, &filter, config, limits).map_err(whole)?
    }

    pub(super) fn configure(
        &self,
        store: &mut Store<HostState>,
        filter: &Filter,
        config: &str,
        limits: &PluginLimits,
    ) -> Result<std::result::Result<(), ConfigError>> {
        arm(&self.runtime, store, call_ticks(limits));
        let answer = filter.blockloom_filter_control().call_configure(&mut *store, config);
        let answer = answer.map_err(|error| self.trapped(store, "configure", &error))?;
        Ok(answer.map_err(|error| ConfigError {
            path: printable(&error.path),
            message: printable(&error.message),
        }))
    }

    /// A new store with an instance in it.
    pub(super) fn instantiate(
        &self,
        limits: &PluginLimits,
        lasting: Arc<Lasting>,
    ) -> Result<(Store<HostState>, Filter)> {
        let state = HostState::new(&self.name, limits, lasting);
        let mut store = Store::new(&self.runtime.engine, state);
        store.limiter(|state| &mut state.limits);
        store.set_hostcall_fuel(CALL_DATA_BYTES);
        let (runtime, half) = (Arc::clone(&self.runtime), limits.call / 2);
        store.epoch_deadline_callback(move |mut context| {
            context.data_mut().check_time(half)?;
            runtime.ticker.want(1);
            Ok(UpdateDeadline::Continue(1))
        });
        arm(&self.runtime, &mut store, call_ticks(limits));
        let filter = self.pre.instantiate(&mut store);
        let filter = filter.map_err(|error| self.trapped(&store, "instantiate", &error))?;
        Ok((store, filter))
    }

    /// An error that says why a call failed, in the plugin's own words if it panicked.
    pub(super) fn trapped(
        &self,
        store: &Store<HostState>,
        call: &str,
        error: &wasmtime::Error,
    ) -> Error {
        let message = match &store.data().last_error {
            Some(panic) => format!("plugin `{}` failed in `{call}`: {panic}", self.name),
            None => {
                let cause = error.root_cause().to_string();
                format!("plugin `{}` failed in `{call}`: {cause}", self.name)
            }
        };
        tracing::debug!("{message}: {error:?}");
        Error::new(ErrorKind::Io, message)
    }

    fn describe(&mut self) -> Result<()> {
        let limits = PluginLimits::default();
        let (mut store, filter) = self.instantiate(&limits, Arc::default())?;
        arm(&self.runtime, &mut store, call_ticks(&limits));
        let described = filter.blockloom_filter_control().call_describe(&mut store);
        let it = described.map_err(|error| self.trapped(&store, "describe", &error))?;
        let AbiVersion { layout, package, .. } = self.version;
        if it.layout != *layout {
            let reason =
                format!("it speaks layout {}, this host layout {layout} ({package})", it.layout);
            return Err(unusable(&self.name, reason));
        }
        if Kinds::from_bits(it.kinds).is_none() {
            let reason = format!("it asks for unknown kinds of requests ({:#b})", it.kinds);
            return Err(unusable(&self.name, reason));
        }
        let kinds = Kinds::from_bits(it.kinds).unwrap_or_default();
        let changes = Kinds::WRITE.with(Kinds::ZERO).with(Kinds::DISCARD);
        if !it.views.is_empty() && kinds.bits() & changes.bits() != changes.bits() {
            let reason = "it offers a view, and does not ask for all of write, zero and discard: what \
                          would pass it by could not be kept";
            return Err(unusable(&self.name, reason));
        }
        let child = |want: control::ChildWant| ChildWant {
            name: printable(&want.name),
            required: want.required,
            wants: Grants::of_wants(want.wants),
            exclusive: want.exclusive,
        };
        let inspection = &mut self.inspection;
        inspection.name = printable(&it.name);
        inspection.version = printable(&it.version);
        inspection.layout = it.layout;
        inspection.kinds = it.kinds;
        inspection.children = it.children.into_iter().map(child).collect();
        inspection.views = it.views.iter().map(|view| printable(view)).collect();
        let bitmap = |want: control::BitmapWant| (printable(&want.name), want.required);
        inspection.bitmaps = it.bitmaps.into_iter().map(bitmap).collect();
        inspection.wants_bytes = ByteAccess::of_wants(it.wants_bytes);
        inspection.has_job = it.has_job;
        inspection.may_bypass = it.may_bypass;
        Ok(())
    }
}

/// Ticks of the first half of a call's limit.
pub(super) fn call_ticks(limits: &PluginLimits) -> u32 {
    // One tick may be about to come.
    let ticks = (limits.call / 2).as_nanos().div_ceil(TICK.as_nanos()) + 1;
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// Gives the next call its time: half of it by the clock, the rest by [`HostState::check_time`].
#[inline]
pub(super) fn arm(runtime: &PluginRuntime, store: &mut Store<HostState>, ticks: u32) {
    store.data_mut().begin_call();
    runtime.ticker.want(ticks);
    store.set_epoch_deadline(ticks.into());
}

fn encode(module: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let not_encoded = |error: &dyn fmt::Display| {
        format!(
            "this core module is no Blockloom filter ({error:#}): export one with \
             blockloom_sdk::export_filter! and build for wasm32-unknown-unknown"
        )
    };
    let encoder = wit_component::ComponentEncoder::default().module(module);
    let mut encoder = encoder.map_err(|error| not_encoded(&error))?.validate(true);
    encoder.encode().map_err(|error| not_encoded(&error))
}

fn names(runtime: &PluginRuntime, component: &Component) -> (Vec<String>, Vec<String>) {
    let kind = component.component_type();
    let imports = kind.imports(&runtime.engine).map(|(name, _)| name.to_owned()).collect();
    let exports = kind.exports(&runtime.engine).map(|(name, _)| name.to_owned()).collect();
    (imports, exports)
}
