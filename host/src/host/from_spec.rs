//! From a TOML file to a running host.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockloom_plugin_backup::BackupConfig;
use blockloom_plugin_throttle::ThrottleConfig;

use super::images::{self, is_written};
use super::persist::{Wanted, first_stored};
use super::start::{Driver, Failed, Plan, PlannedNode};
use super::surroundings::Machine;
use super::{EXPORT_DRIVE, Host, Keep};
use crate::bitmap::{BitmapName, Granularity};
use crate::config::{
    self, BitmapSpec, Diagnostic, Diagnostics, DriverSpec, Engine, ExportSpec, FileSpec,
    FilterKind, FilterSpec, GraphSpec, LentBitmap, ListenAddr, Locking, NodeSpec, Persist,
    PluginSpec, Qcow2Spec, Scope, Span, ViewSpec,
};
use crate::error::{Error, ErrorKind, Result};
use crate::export::nbd::{Export, ExportBitmap, ListenAddress};
use crate::filter::{BackupNode, CopyOnReadNode, PassNode, ThrottleGroup, ThrottleNode, ViewNode};
use crate::graph::{BitmapDecl, BitmapScope, ChildDecl, DriveDecl, PermissionSet};
use crate::io::{EngineChoice, EngineKind, WorkerOptions, read_text_file};
use crate::node::{
    FileNode, FileOptions, ImageLocking, MemoryNode, Node, NullNode, Qcow2Options, RawNode,
};
use crate::plugin::{
    Grants, Instance, InstanceError, OnFault, PluginLimits, PluginNode, RestartBudget,
};

/// Longest graph file, bytes.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// What the command line says over the file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Overrides {
    /// Threads.
    pub workers: Option<usize>,
    /// Engine.
    pub engine: Option<EngineChoice>,
}

/// Why a host did not start.
#[derive(Debug)]
pub enum StartError {
    /// The file is wrong.
    Config(Box<Diagnostics>),
    /// The file cannot be read.
    File(Error),
    /// Everything else.
    Failed(Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(diagnostics) => diagnostics.fmt(f),
            Self::File(error) | Self::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

impl From<Error> for StartError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// An export that is being served.
#[derive(Clone, Debug)]
pub struct StartedExport {
    /// Its id in the file.
    pub id: String,
    /// What a client opens.
    pub uri: String,
}

/// What a file says, what is wrong with it so far, and its directory.
fn read(path: &Path) -> Result<(GraphSpec, Diagnostics, PathBuf), StartError> {
    let name = path.display().to_string();
    let text = read_text_file(path, FILE_MAX_BYTES)
        .map_err(|error| StartError::File(Error::os(format!("cannot read `{name}`"), &error)))?;
    let (spec, found) = config::parse_tolerant(&name, &text);
    Ok((spec, found, path.parent().unwrap_or_else(|| Path::new("")).to_owned()))
}

/// Reads a file and checks what can be without looking at this machine. Images that can be read add the nodes
/// that they name.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_spec(path: &Path) -> Result<GraphSpec, StartError> {
    let (mut spec, found, base) = read(path)?;
    if found.has_errors() {
        return Err(StartError::Config(Box::new(found)));
    }
    // What is wrong with an image concerns those who open it.
    let _ = config::read_images(&mut spec, &Machine::default(), &base);
    Ok(spec)
}

/// Checks a file against this machine, without side effects.
///
/// # Errors
/// Everything that is wrong with it.
pub fn check(path: &Path) -> Result<GraphSpec, StartError> {
    let (mut spec, found, base) = read(path)?;
    let machine = Machine::default();
    check_on(&mut spec, found, &base, &machine)?;
    Ok(spec)
}

fn check_on(
    spec: &mut GraphSpec,
    mut found: Diagnostics,
    base: &Path,
    machine: &Machine,
) -> Result<(), StartError> {
    machine.compile_all(spec, base);
    config::check_surroundings(spec, machine, base)
        .into_iter()
        .for_each(|more| found.push(more.clone()));
    if found.has_errors() { Err(StartError::Config(Box::new(found))) } else { Ok(()) }
}

/// Builds the graph of a file, and serves its exports.
///
/// # Errors
/// Everything that is wrong with the file, or what failed.
pub fn start(path: &Path, overrides: Overrides) -> Result<(Host, Vec<StartedExport>), StartError> {
    let (mut spec, found, base) = read(path)?;
    let machine = Machine::default();
    check_on(&mut spec, found, &base, &machine)?;
    images::prepare_all(&spec, &base).map_err(|failed| {
        let node = Some(failed.node.name.value.clone());
        not_started(&spec, Failed { node, kept: None, error: failed.error })
    })?;
    let mut builder = Builder {
        spec: &spec,
        base: &base,
        machine: &machine,
        instances: BTreeMap::new(),
        groups: BTreeMap::new(),
        plugins: BTreeMap::new(),
        backups: BTreeMap::new(),
    };
    let plan = builder.plan()?;
    let host = Host::start(&worker_options(&spec, overrides), plan)
        .map_err(|failed| not_started(&spec, failed))?;
    let exports = serve(&host, &spec, &base)?;
    Ok((host, exports))
}

/// A node that does not open is shown where it is named, a bitmap that cannot be kept where it is said that
/// it is to be.
fn not_started(spec: &GraphSpec, failed: Failed) -> StartError {
    let is_it = |node: &&NodeSpec| Some(&node.name.value) == failed.node.as_ref();
    let node = spec.nodes.iter().find(is_it).map(|node| node.name.span);
    let mut kept = spec.bitmaps.iter().filter(|bitmap| bitmap.persist.value != Persist::None);
    let bitmap = failed.kept.and_then(|at| kept.nth(at));
    match node.or_else(|| bitmap.map(|bitmap| bitmap.persist.span)) {
        None => StartError::Failed(failed.error),
        Some(span) => {
            let mut found = spec.diagnostics();
            let problem = Diagnostic::error(span, failed.error.to_string());
            let uuid = bitmap.and_then(|bitmap| bitmap.uuid.as_ref());
            found.push(match uuid {
                Some(uuid) => problem.note(uuid.span, "the UUID that it is to have"),
                None => problem,
            });
            StartError::Config(Box::new(found))
        }
    }
}

fn worker_options(spec: &GraphSpec, overrides: Overrides) -> WorkerOptions {
    let default = WorkerOptions::default();
    let settings = &spec.host;
    let workers = settings.workers.as_ref().and_then(|it| usize::try_from(it.value).ok());
    let engine = settings.engine.as_ref().map(|it| match it.value {
        Engine::Auto => EngineChoice::Auto,
        Engine::IoUring => EngineChoice::Exactly(EngineKind::IoUring),
        Engine::Threads => EngineChoice::Exactly(EngineKind::Threads),
    });
    let poll: Option<Duration> = settings.poll.as_ref().map(|it| it.value);
    WorkerOptions {
        workers: overrides.workers.or(workers).unwrap_or(default.workers),
        engine: overrides.engine.or(engine).unwrap_or(default.engine),
        poll: poll.unwrap_or(default.poll),
    }
}

struct Builder<'a> {
    spec: &'a GraphSpec,
    base: &'a Path,
    machine: &'a Machine,
    instances: BTreeMap<String, Arc<Instance>>,
    groups: BTreeMap<String, ThrottleGroup>,
    /// By their names, for views of them.
    plugins: BTreeMap<String, Arc<PluginNode>>,
    backups: BTreeMap<String, Arc<BackupNode>>,
}

impl Builder<'_> {
    fn plan(&mut self) -> Result<Plan, StartError> {
        let mut plan = Plan::default();
        let is_view = |node: &&NodeSpec| matches!(node.driver, DriverSpec::View(_));
        let nodes = self.spec.nodes.iter();
        // Views need the nodes whose views they are.
        for spec in nodes.clone().filter(|node| !is_view(node)).chain(nodes.filter(is_view)) {
            let driver = self.driver(spec)?;
            let name = spec.name.value.clone();
            let children = self.children(&name);
            plan.nodes.push(PlannedNode { name, driver, children });
        }
        for drive in &self.spec.drives {
            plan.drives.push(DriveDecl {
                id: drive.id.value.clone(),
                root: drive.root.as_ref().map(|root| root.value.clone()),
                writable: drive.is_writable(self.spec),
                only_shows: false,
            });
        }
        for export in &self.spec.exports {
            if let Scope::Node(node) = &export.scope {
                plan.drives.push(DriveDecl {
                    id: drive_of(export),
                    root: Some(node.value.clone()),
                    writable: export.writable.value,
                    only_shows: true,
                });
            }
        }
        for bitmap in &self.spec.bitmaps {
            plan.bitmaps.push(bitmap_decl(bitmap)?);
        }
        plan.kept = self.kept()?;
        Ok(plan)
    }

    /// The bitmaps that images keep, in the order of the file.
    fn kept(&self) -> Result<Vec<Wanted>> {
        let mut kept = Vec::new();
        for bitmap in &self.spec.bitmaps {
            let keep = match &bitmap.persist.value {
                Persist::None => continue,
                Persist::Root => Keep::Root,
                Persist::Meta => Keep::Meta,
                Persist::Node(node) => Keep::Node(node.value.clone()),
            };
            let BitmapDecl { scope, name, .. } = bitmap_decl(bitmap)?;
            let uuid = bitmap.uuid.as_ref().map(|uuid| uuid.value);
            kept.push(Wanted { scope, name, keep, uuid });
        }
        Ok(kept)
    }

    fn children(&self, parent: &str) -> Vec<ChildDecl> {
        let node = self.spec.node(parent);
        let child = |edge: &config::EdgeSpec| ChildDecl {
            name: edge.name.clone(),
            node: edge.child.clone(),
            role: edge.role,
            grants: node.map_or(PermissionSet::NONE, |node| config::grants_of(node, &edge.name)),
            proven_for: None,
        };
        self.spec.edges_from(parent).map(child).collect()
    }

    /// Opens a node, or says what opens it when its children stand; what fails is shown at the key that names it.
    fn driver(&mut self, node: &NodeSpec) -> Result<Driver, StartError> {
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
                self.plugins.insert(node.name.value.clone(), Arc::clone(&made));
                made
            }
            DriverSpec::View(view) => Arc::new(self.view(view)?),
            DriverSpec::Filter(filter) => self.filter(node, filter)?,
        };
        Ok(Driver::Ready(driver))
    }

    fn qcow2_options(&self, node: &NodeSpec, image: &Qcow2Spec) -> Qcow2Options {
        let place =
            |name: &str| self.spec.edges_from(&node.name.value).position(|edge| edge.name == name);
        Qcow2Options {
            write: is_written(self.spec, node),
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
            write: is_written(self.spec, node),
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
        if let Some(instance) = self.instances.get(&key) {
            return self.plugin_node(instance, node, spec);
        }
        let module = self.machine.module(&spec.plugin.value.in_dir(self.base))?;
        let limits = PluginLimits {
            memory_bytes: spec.limits.memory_bytes,
            call: spec.limits.call,
            in_flight: spec.limits.in_flight,
            hold: spec.limits.hold,
        };
        let policy = match spec.on_fault.value {
            config::OnFault::Fail => OnFault::Fail,
            config::OnFault::Bypass => OnFault::Bypass,
            config::OnFault::Restart { faults, within } => {
                OnFault::Restart(RestartBudget { faults, within })
            }
        };
        let json = spec.config.json.to_string();
        let made = Instance::with_policy(&module, &json, limits, policy);
        let instance = made.map_err(|error| match error {
            InstanceError::Plugin(error) => self.at(spec.plugin.span, &error),
            InstanceError::Config(error) => {
                let error_at = spec.config.span_of(&error.path);
                self.at(error_at, &Error::new(ErrorKind::Invalid, error.message))
            }
        })?;
        self.instances.insert(key, Arc::clone(&instance));
        self.plugin_node(&instance, node, spec)
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
        PluginNode::with_children(instance, &children)
            .and_then(|node| node.with_bitmaps(&lent))
            .map_err(|error| self.at(spec.plugin.span, &error))
    }

    /// Bitmaps that are lent to a filter: what it calls them, and where they are.
    fn lent(&self, lent: &[LentBitmap]) -> Vec<(String, BitmapScope, String)> {
        let lent = lent.iter().filter_map(|lent| {
            let bitmap = self.spec.bitmap(&lent.bitmap.value)?;
            let scope = bitmap_scope(&bitmap.scope);
            Some((lent.name.value.clone(), scope, bitmap.name.value.clone()))
        });
        lent.collect()
    }

    fn view(&self, spec: &ViewSpec) -> Result<ViewNode, StartError> {
        let of = &spec.of.value;
        if let Some(backup) = self.backups.get(of) {
            return Ok(ViewNode::of_backup(backup));
        }
        let missing = || Error::new(ErrorKind::NotFound, format!("node `{of}` has no views"));
        let plugin = self.plugins.get(of).ok_or_else(missing);
        let view = plugin.and_then(|plugin| ViewNode::of_plugin(plugin, &spec.view.value));
        view.map_err(|error| self.at(spec.view.span, &error))
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
        self.backups.insert(node.name.value.clone(), Arc::clone(&made));
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
        if !self.groups.contains_key(&key) {
            let config = ThrottleConfig::from_json(&spec.config.json.to_string());
            let config = config.map_err(|error| {
                let span = spec.config.span_of(&error.path);
                self.at(span, &Error::new(ErrorKind::Invalid, error.message))
            })?;
            self.groups.insert(key.clone(), ThrottleGroup::new(&config));
        }
        Ok(Arc::new(ThrottleNode::new(self.groups[&key].clone())))
    }

    fn at(&self, span: Span, error: &Error) -> StartError {
        let mut found = self.spec.diagnostics();
        found.push(Diagnostic::error(span, error.to_string()));
        StartError::Config(Box::new(found))
    }
}

/// Instances have a namespace of their own: a node's own instance must not meet a shared one's name.
fn instance_key(node: &NodeSpec, shared: Option<&str>) -> String {
    shared.map_or_else(|| format!("node {}", node.name.value), |name| format!("instance {name}"))
}

fn bitmap_decl(spec: &BitmapSpec) -> Result<BitmapDecl> {
    let invalid = |error: &dyn fmt::Display| Error::new(ErrorKind::Invalid, error.to_string());
    Ok(BitmapDecl {
        scope: bitmap_scope(&spec.scope),
        name: BitmapName::new(&spec.name.value).map_err(|error| invalid(&error))?,
        granularity: Granularity::from_bytes(spec.granularity_bytes.value.into())
            .map_err(|error| invalid(&error))?,
        enabled: spec.enabled.value,
    })
}

fn bitmap_scope(scope: &Scope) -> BitmapScope {
    match scope {
        Scope::Drive(id) => BitmapScope::Drive(id.value.as_str().into()),
        Scope::Node(name) => BitmapScope::Node(name.value.as_str().into()),
    }
}

/// The drive behind an export; that of a node has an anonymous one.
fn drive_of(export: &ExportSpec) -> String {
    match &export.scope {
        Scope::Drive(id) => id.value.clone(),
        Scope::Node(_) => format!("{EXPORT_DRIVE}{}", export.id.value),
    }
}

fn serve(host: &Host, spec: &GraphSpec, base: &Path) -> Result<Vec<StartedExport>, StartError> {
    let mut listeners: Vec<(ListenAddr, Vec<&ExportSpec>)> = Vec::new();
    for export in &spec.exports {
        let address = export.listen.value.in_dir(base);
        match listeners.iter_mut().find(|(known, _)| *known == address) {
            Some((_, exports)) => exports.push(export),
            None => listeners.push((address, vec![export])),
        }
    }
    let mut started = BTreeMap::new();
    for (address, exports) in listeners {
        let served = exports.iter().map(|export| nbd_export(host, spec, export));
        let served = served.collect::<Result<_, _>>()?;
        let bound = host.serve_nbd(&resolve(&address)?, served).map_err(|error| {
            let mut found = spec.diagnostics();
            found.push(Diagnostic::error(exports[0].listen.span, error.to_string()));
            StartError::Config(Box::new(found))
        })?;
        for export in exports {
            started.insert(export.id.value.clone(), uri(&bound, &export.name.value));
        }
    }
    let started = spec.exports.iter().filter_map(|export| {
        let id = export.id.value.clone();
        started.remove(&id).map(|uri| StartedExport { id, uri })
    });
    Ok(started.collect())
}

fn resolve(address: &ListenAddr) -> Result<ListenAddress> {
    match address {
        ListenAddr::Unix(path) => Ok(ListenAddress::Unix(path.clone())),
        ListenAddr::Tcp { host, port } => {
            let mut found = (host.as_str(), *port)
                .to_socket_addrs()
                .map_err(|error| Error::os(format!("`{host}` is no address"), &error))?;
            let none = || Error::new(ErrorKind::NotFound, format!("`{host}` has no address"));
            found.next().map(ListenAddress::Tcp).ok_or_else(none)
        }
    }
}

/// # Errors
/// A bitmap that neither the file nor an image has.
fn nbd_export(host: &Host, spec: &GraphSpec, export: &ExportSpec) -> Result<Export, StartError> {
    let drive = drive_of(export);
    let mut seen = BTreeSet::new();
    let mut bitmaps = Vec::new();
    for id in export.bitmaps.iter().filter(|id| seen.insert(&id.value)) {
        bitmaps.push(match spec.bitmap(&id.value) {
            Some(bitmap) => {
                let name = bitmap.name.value.clone();
                ExportBitmap { name, scope: bitmap_scope(&bitmap.scope) }
            }
            None => ExportBitmap {
                name: id.value.clone(),
                scope: stored_bitmap(host, &drive, &id.value).ok_or_else(|| {
                    let message = format!(
                        "no image below export `{}` holds a bitmap `{}`, and the file declares none",
                        export.id.value, id.value
                    );
                    let mut found = spec.diagnostics();
                    found.push(Diagnostic::error(id.span, message));
                    StartError::Config(Box::new(found))
                })?,
            },
        });
    }
    Ok(Export {
        name: export.name.value.clone(),
        description: export.description.as_ref().map(|it| it.value.clone()).unwrap_or_default(),
        drive,
        writable: export.writable.value,
        bitmaps,
    })
}

/// What records the first stored bitmap of this name from the top of a drive.
fn stored_bitmap(host: &Host, drive: &str, name: &str) -> Option<BitmapScope> {
    let name = BitmapName::new(name).ok()?;
    first_stored(&host.graph(), &BitmapScope::Drive(drive.into()), &name)
}

/// An NBD URI (NBD project, `doc/uri.md`).
fn uri(address: &ListenAddress, name: &str) -> String {
    let name = percent_encode(name, b"-._~");
    match address {
        ListenAddress::Unix(path) => {
            let path = percent_encode(&path.to_string_lossy(), b"-._~/");
            format!("nbd+unix:///{name}?socket={path}")
        }
        ListenAddress::Tcp(SocketAddr::V4(address)) => format!("nbd://{address}/{name}"),
        ListenAddress::Tcp(SocketAddr::V6(address)) => format!("nbd://{address}/{name}"),
    }
}

fn percent_encode(text: &str, plain: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
