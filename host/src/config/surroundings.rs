//! Checks of a configuration against the world around it: files, sockets and plugins.
//!
//! The facts come from a [`Surroundings`], so that tests give them and this module touches nothing
//! itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::diagnostic::{Diagnostic, Diagnostics, Span, Spanned};
use super::read_root::NO_ADDRESS;
use super::render::clip;
use super::spec::{
    DriverSpec, FileSpec, FilterKind, GraphSpec, Locking, NodeSpec, PluginSpec, ViewSpec,
};
use super::{
    ImageFacts, ListenAddr, OnFault, PluginSource, images, listen, permissions, qcow2_checks,
    sizes, suggest,
};

/// What is known of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileFacts {
    /// Whether anything is there; if not, the other facts mean nothing.
    pub exists: bool,
    /// Size in bytes, of a block device too.
    pub size_bytes: u64,
    /// Whether it is a block device.
    pub is_block_device: bool,
    /// Whether this process may write it.
    pub writable: bool,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Whether it is neither a file nor a directory nor a block device: a pipe, for example.
    pub is_special: bool,
}

/// One thing that a plugin finds wrong with its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where, as a JSON pointer (`/burst`) or dotted (`limits[0].burst`); empty: the configuration
    /// as a whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

/// Facts from outside the configuration file. Paths are absolute, or relative to the process.
///
/// To ask must change nothing: no file is made, no socket bound, no stale socket removed.
pub trait Surroundings {
    /// What is at `path`. A path at which there is nothing is no error.
    ///
    /// # Errors
    ///
    /// Why it cannot be known: for example a directory on the way is not accessible.
    fn file(&self, path: &Path) -> Result<FileFacts, String>;

    /// Who has the file or block device at `path`, so that it could not be opened, to be written or only read, beside
    /// them: continues "file `path`: …". `None` if nobody stands against it, or that cannot be known.
    fn lock_conflict(&self, path: &Path, is_written: bool) -> Option<String>;

    /// `path` without symbolic links, absolute.
    ///
    /// # Errors
    ///
    /// Why there is none: for example there is nothing.
    fn real_path(&self, path: &Path) -> Result<PathBuf, String>;

    /// What the header of the qcow2 image in the file or block device at `path` says; `None`: it is no qcow2
    /// image.
    ///
    /// # Errors
    ///
    /// Why it cannot be read, or what is wrong with the header.
    fn image(&self, path: &Path) -> Result<Option<ImageFacts>, String>;

    /// Who already uses `addr`, if anyone does; a socket that nobody listens on is free.
    fn listen_in_use(&self, addr: &ListenAddr) -> Option<String>;

    /// The names of the bundled plugins.
    fn bundled_plugins(&self) -> Vec<String>;

    /// Whether `plugin` can be loaded. Asked of files only; they are given by their joined path.
    ///
    /// # Errors
    ///
    /// Why not.
    fn plugin(&self, plugin: &PluginSource) -> Result<(), String>;

    /// Whether requests may go round `plugin`, which can be loaded, once it has failed.
    fn may_bypass(&self, plugin: &PluginSource) -> bool;

    /// What `plugin`, which can be loaded, finds wrong with `config`.
    fn plugin_config(&self, plugin: &PluginSource, config: &Value) -> Vec<ConfigError>;

    /// The children of `plugin`, if it can be loaded, that nobody may change past its node.
    fn plugin_exclusive(&self, plugin: &PluginSource) -> Vec<String>;

    /// The views that `plugin`, which can be loaded, offers.
    fn plugin_views(&self, plugin: &PluginSource) -> Vec<String>;

    /// What the host's own `filter` finds wrong with `config`.
    fn filter_config(&self, filter: FilterKind, config: &Value) -> Vec<ConfigError>;
}

/// Checks `spec` against `surroundings`, and adds the nodes that images name to it. Relative paths are taken
/// from `base_dir`, the directory of the file. A specification with cycles has nothing more checked.
pub fn check_surroundings(
    spec: &mut GraphSpec,
    surroundings: &dyn Surroundings,
    base_dir: &Path,
) -> Diagnostics {
    if !spec.is_graph {
        return spec.diagnostics();
    }
    let past_plugins = ask_exclusive(spec, surroundings, base_dir);
    let mut found = images::read(spec, surroundings, base_dir);
    past_plugins.into_iter().for_each(|problem| found.push(problem));
    let spec = &*spec;
    let mut check = Check { spec, surroundings, base_dir, found, sizes: BTreeMap::new() };
    for node in &spec.nodes {
        match &node.driver {
            DriverSpec::File(file) => check.file(node, file),
            DriverSpec::Plugin(plugin) => {
                if check.plugin(&plugin.plugin) {
                    let source = plugin.plugin.value.in_dir(base_dir);
                    let wrong = surroundings.plugin_config(&source, &plugin.config.json);
                    check.config(node, wrong);
                    check.bypass(node, plugin, &source);
                }
            }
            DriverSpec::View(view) => check.view(view),
            DriverSpec::Filter(filter) => {
                let wrong = surroundings.filter_config(filter.kind, &filter.config.json);
                check.config(node, wrong);
            }
            DriverSpec::Memory(_)
            | DriverSpec::Null(_)
            | DriverSpec::Raw(_)
            | DriverSpec::Qcow2(_)
            | DriverSpec::Running(_) => {}
        }
    }
    check.same_files();
    let Check { sizes, mut found, .. } = check;
    let file_bytes = |file: &FileSpec| sizes.get(&file.path_in(base_dir)).copied();
    sizes::check_sections(spec, &file_bytes, |problem| found.push(problem));
    check_listeners(spec, surroundings, base_dir, &mut found);
    found
}

/// Notes which children plugins want for themselves, and returns the conflicts that come of it.
fn ask_exclusive(
    spec: &mut GraphSpec,
    surroundings: &dyn Surroundings,
    base_dir: &Path,
) -> Vec<Diagnostic> {
    let known = images::conflicts(spec);
    for node in &mut spec.nodes {
        if let DriverSpec::Plugin(plugin) = &mut node.driver {
            plugin.exclusive = surroundings.plugin_exclusive(&plugin.plugin.value.in_dir(base_dir));
        }
    }
    spec.edges = permissions::edges(spec);
    let mut conflicts = images::conflicts(spec);
    conflicts.retain(|conflict| !known.contains(conflict));
    conflicts
}

struct Check<'a> {
    spec: &'a GraphSpec,
    surroundings: &'a dyn Surroundings,
    base_dir: &'a Path,
    found: Diagnostics,
    /// Sizes in bytes of the files that are there or can be made.
    sizes: BTreeMap<PathBuf, u64>,
}

impl Check<'_> {
    fn file(&mut self, node: &NodeSpec, file: &FileSpec) {
        if file.path.value.is_empty() {
            // It is missing or wrong, which has been reported.
            return;
        }
        let path = file.path_in(self.base_dir);
        let shown = clip(&file.path.value);
        let facts = match self.surroundings.file(&path) {
            Ok(facts) => facts,
            Err(why) => {
                let message = format!("cannot look at file `{shown}`: {why}");
                return self.found.push(Diagnostic::error(file.path.span, message));
            }
        };
        if !facts.exists {
            let Some(create) = &file.create_bytes else {
                let help = match qcow2_checks::image_in(self.spec, node) {
                    Some(image) => format!(
                        "to have an image made, add `create = {{ size = \"10GiB\" }}` to node `{}`",
                        image.name
                    ),
                    None => {
                        "to have it made, sparse, add its size: `create = \"10GiB\"`".to_owned()
                    }
                };
                let message = format!("file `{shown}` does not exist");
                let problem = Diagnostic::error(file.path.span, message);
                return self.found.push(problem.help(help));
            };
            self.sizes.insert(path.clone(), create.value);
            return self.directory(&path, file);
        }
        if facts.is_dir {
            let message = format!("`{shown}` is a directory, not a file");
            return self.found.push(Diagnostic::error(file.path.span, message));
        }
        self.locked(node, file, &path);
        self.sizes.insert(path, facts.size_bytes);
        let is_later = node.auto_read_only.value && !self.spec.is_written(node);
        if facts.writable || node.read_only.value || is_later {
            return;
        }
        if let Some((span, label, fix)) = permissions::writer_of(self.spec, node) {
            let what = if facts.is_block_device { "block device" } else { "file" };
            let message = format!("{what} `{shown}` cannot be written by this process");
            let help = format!("change its owner or mode, or {fix}");
            self.found
                .push(Diagnostic::error(file.path.span, message).note(span, label).help(help));
        }
    }

    /// Another process may have the image. What is added to a running host is locked at once, and may be of its own.
    fn locked(&mut self, node: &NodeSpec, file: &FileSpec, path: &Path) {
        if file.locking.value == Locking::Off || self.spec.live().is_some() {
            return;
        }
        let is_written = self.spec.is_written(node);
        if let Some(why) = self.surroundings.lock_conflict(path, is_written) {
            let message = format!("file `{}`: {why}", clip(&file.path.value));
            self.found.push(Diagnostic::error(file.path.span, message));
        }
    }

    /// The directory in which `path` is to be made.
    fn directory(&mut self, path: &Path, file: &FileSpec) {
        let Some(wrong) = wrong_directory(self.surroundings, path) else { return };
        let message = format!("file `{}` cannot be made: {wrong}", clip(&file.path.value));
        let problem = Diagnostic::error(file.path.span, message);
        self.found.push(problem.help("make the directory first, or correct the path"));
    }

    fn plugin(&mut self, plugin: &Spanned<PluginSource>) -> bool {
        let problem = match &plugin.value {
            PluginSource::Bundled(name) => {
                let bundled = self.surroundings.bundled_plugins();
                if bundled.contains(name) {
                    return true;
                }
                let bundled: Vec<&str> = bundled.iter().map(String::as_str).collect();
                let help = suggest::help(name, "bundled plugins", &bundled);
                let help = format!("{help}; a file's name ends in `.wasm`");
                let message = format!("no bundled plugin is called `{}`", clip(name));
                Diagnostic::error(plugin.span, message).help(help)
            }
            PluginSource::File(path) => {
                let source = plugin.value.in_dir(self.base_dir);
                let Err(why) = self.surroundings.plugin(&source) else { return true };
                let message = format!("plugin `{}` cannot be loaded: {why}", clip(path));
                Diagnostic::error(plugin.span, message)
            }
        };
        self.found.push(problem);
        false
    }

    fn bypass(&mut self, node: &NodeSpec, plugin: &PluginSpec, source: &PluginSource) {
        if plugin.on_fault.value == OnFault::Bypass && !self.surroundings.may_bypass(source) {
            let message = format!(
                "plugin `{}` of node `{}` may not be bypassed when it fails",
                clip(&plugin.plugin.value.to_string()),
                clip(&node.name.value)
            );
            let problem = Diagnostic::error(plugin.on_fault.span, message);
            self.found
                .push(problem.help("write `on-fault = \"restart\"` or `on-fault = \"fail\"`"));
        }
    }

    /// A view of a plugin must be one that it offers.
    fn view(&mut self, view: &ViewSpec) {
        let of = self.spec.node(&view.of.value).map(|node| &node.driver);
        let Some(DriverSpec::Plugin(plugin)) = of else { return };
        let source = plugin.plugin.value.in_dir(self.base_dir);
        let is_there = match &plugin.plugin.value {
            PluginSource::Bundled(name) => self.surroundings.bundled_plugins().contains(name),
            PluginSource::File(_) => self.surroundings.plugin(&source).is_ok(),
        };
        let offered = self.surroundings.plugin_views(&source);
        // What cannot be loaded has been reported.
        if !is_there || offered.contains(&view.view.value) {
            return;
        }
        let name = clip(&view.view.value);
        let message = format!("plugin `{}` offers no view `{name}`", plugin.plugin.value);
        let offered: Vec<&str> = offered.iter().map(String::as_str).collect();
        let help = match offered.is_empty() {
            true => "name a node whose plugin offers views, such as `backup`".to_owned(),
            false => suggest::help(&view.view.value, "its views", &offered),
        };
        self.found.push(
            Diagnostic::error(view.view.span, message)
                .note(plugin.plugin.span, "the plugin")
                .help(help),
        );
    }

    fn config(&mut self, node: &NodeSpec, wrong: Vec<ConfigError>) {
        let Some(config) = node.driver.config() else { return };
        for error in wrong {
            let what = match error.path.is_empty() {
                true => "`config`".to_owned(),
                false => {
                    let path = error.path.trim_start_matches('/').replace('/', ".");
                    format!("`{}` in `config`", clip(&path))
                }
            };
            let message = format!("{what} of node `{}`: {}", node.name, error.message);
            self.found.push(Diagnostic::error(config.span_of(&error.path), message));
        }
    }

    /// Two nodes on one file are blind to each other: bitmaps and permissions of one miss what the
    /// other does.
    fn same_files(&mut self) {
        let mut seen: BTreeMap<PathBuf, (&NodeSpec, &FileSpec)> = BTreeMap::new();
        let live = self.spec.live().into_iter().flat_map(|live| &live.nodes);
        for node in live.chain(&self.spec.nodes) {
            let DriverSpec::File(file) = &node.driver else { continue };
            let path = file.path_in(self.base_dir);
            // What is not there yet has the path that it is made at.
            let path = self.surroundings.real_path(&path).unwrap_or(path);
            let (first, first_file) = *seen.entry(path).or_insert((node, file));
            let is_unlocked = [first_file, file].iter().any(|it| it.locking.value == Locking::Off);
            if std::ptr::eq(first, node) || is_unlocked {
                continue;
            }
            let written = |it: &NodeSpec| {
                let live = self.spec.live()?;
                let label = format!("node `{}` is written", it.name);
                live.written.contains(&it.name.value).then(|| (Span::NOWHERE, label, String::new()))
            };
            let writer = |it| written(it).or_else(|| permissions::writer_of(self.spec, it));
            if self.spec.is_live_node(&node.name.value) {
                continue;
            }
            let writers = [first, node].map(|it| (it, writer(it)));
            let Some((writer, (span, label, _))) =
                writers.into_iter().find_map(|(it, why)| Some((it, why?)))
            else {
                continue;
            };
            let message = format!(
                "nodes `{}` and `{}` are the same file, and `{}` writes it",
                first.name, node.name, writer.name
            );
            let help = match first.is_implicit || node.is_implicit {
                true => "use one node for both: write `backing = …` where an image names it",
                false => "use one node for both",
            };
            self.found.push(
                Diagnostic::error(file.path.span, message)
                    .note(first_file.path.span, "the same file")
                    .note(span, label)
                    .help(help),
            );
        }
    }
}

/// What is wrong with the directory of `path`.
fn wrong_directory(surroundings: &dyn Surroundings, path: &Path) -> Option<String> {
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    let shown = clip(&directory.to_string_lossy());
    match surroundings.file(directory) {
        Err(why) => Some(format!("cannot look at directory `{shown}`: {why}")),
        Ok(facts) if !facts.exists => Some(format!("directory `{shown}` does not exist")),
        Ok(facts) if !facts.is_dir => Some(format!("`{shown}` is no directory")),
        Ok(facts) if !facts.writable => Some(format!("directory `{shown}` cannot be written")),
        Ok(_) => None,
    }
}

fn check_listeners(
    spec: &GraphSpec,
    surroundings: &dyn Surroundings,
    base_dir: &Path,
    found: &mut Diagnostics,
) {
    let mut seen: Vec<&ListenAddr> = Vec::new();
    for export in &spec.exports {
        // One without an address has been reported, or goes to a server that is there.
        if seen.contains(&&export.listen.value) || export.listen.value == NO_ADDRESS {
            continue;
        }
        seen.push(&export.listen.value);
        let addr = export.listen.value.in_dir(base_dir);
        if spec.live().is_some_and(|live| live.listeners.contains(&addr)) {
            continue;
        }
        if !addr.fits() {
            let message = format!("`listen` of export `{}` {}", export.id, listen::too_long());
            found.push(Diagnostic::error(export.listen.span, message));
            continue;
        }
        let in_use = surroundings.listen_in_use(&addr);
        let wrong = in_use.or_else(|| match &addr {
            ListenAddr::Unix(path) => wrong_directory(surroundings, path),
            ListenAddr::Tcp { .. } => None,
        });
        if let Some(wrong) = wrong {
            let shown = clip(&export.listen.value.to_string());
            let message = format!("export `{}` cannot listen on `{shown}`: {wrong}", export.id);
            found.push(Diagnostic::error(export.listen.span, message));
        }
    }
}
