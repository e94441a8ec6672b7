//! What a configuration file says, typed: the input of the graph builder and of drawing.
//!
//! Lists are in the order of the file; an unnamed node follows the node that holds it.

use crate::bitmap::Uuid;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::PluginSource;
use super::Qcow2Spec;
use super::diagnostic::{Diagnostics, Source, Span, Spanned};
use super::{
    BytesGrant, ConfigSpec, EdgeParent, EdgeSpec, GrantSpec, ListenAddr, Live, OnFault,
    PluginLimits,
};

/// Most nodes, drives, bitmaps and exports (of each) in one file. It bounds the depth of the graph,
/// and so every recursion over it.
pub(super) const MOST_OF_EACH: usize = 1024;

/// A whole configuration.
#[derive(Clone, Debug)]
pub struct GraphSpec {
    /// Settings of the host, from `[host]`.
    pub host: HostSettings,
    /// All nodes, unnamed ones too.
    pub nodes: Vec<NodeSpec>,
    /// All drives.
    pub drives: Vec<DriveSpec>,
    /// All dirty bitmaps.
    pub bitmaps: Vec<BitmapSpec>,
    /// All exports.
    pub exports: Vec<ExportSpec>,
    /// All edges with their permissions: of drives, then of exports of nodes, then of nodes.
    pub edges: Vec<EdgeSpec>,
    /// What is there already, of what is added to a host that runs.
    pub(super) live: Option<Live>,
    /// Whether the nodes form a graph (few enough, no cycles): what walks along children needs that.
    pub(super) is_graph: bool,
    pub(super) source: Arc<Source>,
}

impl GraphSpec {
    pub(super) fn empty(file_name: &str, text: &str) -> Self {
        let (file_name, text) = (file_name.to_owned(), text.to_owned());
        Self::of(Source { file_name, text, paths: None })
    }

    pub(super) fn of(source: Source) -> Self {
        Self {
            host: HostSettings::default(),
            nodes: Vec::new(),
            drives: Vec::new(),
            bitmaps: Vec::new(),
            exports: Vec::new(),
            edges: Vec::new(),
            live: None,
            is_graph: false,
            source: Arc::new(source),
        }
    }

    /// The node called `name`, also one that is there already.
    pub fn node(&self, name: &str) -> Option<&NodeSpec> {
        let found = self.nodes.iter().find(|node| node.name.value == name);
        found.or_else(|| self.live.as_ref()?.node(name))
    }

    /// The drive called `id`, also one that is there already.
    pub fn drive(&self, id: &str) -> Option<&DriveSpec> {
        let found = self.drives.iter().find(|drive| drive.id.value == id);
        found.or_else(|| self.live.as_ref()?.drive(id))
    }

    /// The bitmap under `[bitmap.ID]`.
    pub fn bitmap(&self, id: &str) -> Option<&BitmapSpec> {
        self.bitmaps.iter().find(|bitmap| bitmap.id.value == id)
    }

    /// The export under `[export.ID]`.
    pub fn export(&self, id: &str) -> Option<&ExportSpec> {
        self.exports.iter().find(|export| export.id.value == id)
    }

    /// The edges that lead to the node called `name`.
    pub fn edges_to<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a EdgeSpec> {
        self.edges.iter().filter(move |edge| edge.child == name)
    }

    /// The edges that lead down from the node called `name`.
    pub fn edges_from<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a EdgeSpec> {
        let is_from =
            move |edge: &&EdgeSpec| matches!(&edge.parent, EdgeParent::Node(it) if it == name);
        self.edges.iter().filter(is_from)
    }

    /// The node that `scope` leads to; a drive without a medium leads nowhere.
    pub fn root_of(&self, scope: &Scope) -> Option<&NodeSpec> {
        match scope {
            Scope::Node(name) => self.node(&name.value),
            Scope::Drive(id) => self.node(&self.drive(&id.value)?.root.as_ref()?.value),
        }
    }

    /// All nodes, each after its children: the order to build them in.
    pub fn build_order(&self) -> Vec<&NodeSpec> {
        let (mut order, _) = self.parents_first();
        order.reverse();
        order.into_iter().map(|index| &self.nodes[index]).collect()
    }

    /// An empty list of diagnostics of this file, for what is found wrong later at its spans.
    pub fn diagnostics(&self) -> Diagnostics {
        Diagnostics::new(Arc::clone(&self.source))
    }

    /// Where each node is in `nodes`.
    pub(super) fn indices(&self) -> BTreeMap<&str, usize> {
        self.nodes
            .iter()
            .enumerate()
            .map(|(index, node)| (node.name.value.as_str(), index))
            .collect()
    }

    /// Indices of nodes, each before its children; then those on a cycle or below one.
    pub(super) fn parents_first(&self) -> (Vec<usize>, Vec<usize>) {
        let indices = self.indices();
        let children = |node: usize| {
            let children = self.nodes[node].children.iter();
            children.filter_map(|child| indices.get(child.node.value.as_str()).copied())
        };
        let mut parents_left = vec![0_usize; self.nodes.len()];
        for node in 0..self.nodes.len() {
            children(node).for_each(|child| parents_left[child] += 1);
        }
        let mut order: Vec<usize> =
            (0..self.nodes.len()).filter(|node| parents_left[*node] == 0).collect();
        let mut next = 0;
        while let Some(&node) = order.get(next) {
            next += 1;
            for child in children(node) {
                parents_left[child] -= 1;
                if parents_left[child] == 0 {
                    order.push(child);
                }
            }
        }
        let left = (0..self.nodes.len()).filter(|node| parents_left[*node] > 0).collect();
        (order, left)
    }
}

/// Names that tables of the file bear, also tables that are too wrong to be used: to refer to one
/// of those is no second error.
#[derive(Debug, Default)]
pub(super) struct Declared {
    pub(super) nodes: Vec<Spanned<String>>,
    pub(super) drives: Vec<Spanned<String>>,
    pub(super) bitmaps: Vec<Spanned<String>>,
}

/// Settings of the host. What is absent, the command line or the host decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostSettings {
    /// Worker threads, 1 to 64.
    pub workers: Option<Spanned<u32>>,
    /// How workers do their I/O.
    pub engine: Option<Spanned<Engine>>,
    /// How long an idle worker polls before it sleeps, at most 1 ms; zero: not at all.
    pub poll: Option<Spanned<Duration>>,
}

/// How workers do their I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// io_uring where the kernel has it, else threads.
    Auto,
    /// io_uring.
    IoUring,
    /// A pool of threads that block in system calls.
    Threads,
}

/// A node of the graph.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// Its name; an unnamed node is called `#PARENT.CHILD`, one within it `#PARENT.CHILD/CHILD`.
    pub name: Spanned<String>,
    /// Whether it has no name of its own: the file gives it inline, or an image names it.
    pub is_unnamed: bool,
    /// Whether an image names it: the file says nothing of it, and its spans are those of the node whose image
    /// leads to it.
    pub is_implicit: bool,
    /// Whether it is given within another one, and has a name of its own: it goes with the last who uses it.
    pub is_within: bool,
    /// Whether it refuses every change; false by default.
    pub read_only: Spanned<bool>,
    /// Whether it was said that it does not: then it is open for writing while nobody writes it, too.
    pub is_said_writable: bool,
    /// Whether a file is open for writing only while somebody writes it; false by default. The file below an image
    /// or a filter that is given inline has it from that.
    pub auto_read_only: Spanned<bool>,
    /// The driver and its options.
    pub driver: DriverSpec,
    /// Its children: `file` first, then in the order of the configuration.
    pub children: Vec<ChildSpec>,
}

/// A child of a node: the upper end of an edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildSpec {
    /// What the parent calls it, for example `file`.
    pub name: Spanned<String>,
    /// The name of the node that it is.
    pub node: Spanned<String>,
}

/// A driver with its options.
#[derive(Clone, Debug)]
pub enum DriverSpec {
    /// A file or block device.
    File(FileSpec),
    /// Memory, zero at first; or an overlay, which shows its child `backing` at first.
    Memory(MemorySpec),
    /// Nothing: writes vanish.
    Null(NullSpec),
    /// The child's bytes, or a section of them.
    Raw(RawSpec),
    /// An image.
    Qcow2(Qcow2Spec),
    /// A filter in a sandbox.
    Plugin(PluginSpec),
    /// A filter of the host's own.
    Filter(FilterSpec),
    /// What a node showed at a point in time.
    View(ViewSpec),
    /// That of a node which is there already and was not described: made by a program.
    Running(&'static str),
}

impl DriverSpec {
    /// The driver's name, as the file gives it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Memory(_) => "memory",
            Self::Null(_) => "null",
            Self::Raw(_) => "raw",
            Self::Qcow2(_) => "qcow2",
            Self::Plugin(_) => "plugin",
            Self::Filter(filter) => filter.kind.name(),
            Self::View(_) => "plugin-view",
            Self::Running(driver) => driver,
        }
    }

    /// The name of the instance that serves the node, of drivers that have instances.
    pub fn instance(&self) -> Option<&Spanned<String>> {
        match self {
            Self::Plugin(plugin) => plugin.instance.as_ref(),
            Self::Filter(filter) => filter.instance.as_ref(),
            _ => None,
        }
    }

    /// The bitmaps that a plugin or filter reads.
    pub fn lent(&self) -> &[LentBitmap] {
        match self {
            Self::Plugin(plugin) => &plugin.bitmaps,
            Self::Filter(filter) => &filter.bitmaps,
            _ => &[],
        }
    }

    /// The `config` of a plugin or filter.
    pub fn config(&self) -> Option<&ConfigSpec> {
        match self {
            Self::Plugin(plugin) => Some(&plugin.config),
            Self::Filter(filter) => Some(&filter.config),
            _ => None,
        }
    }
}

/// Options of driver `file`.
#[derive(Clone, Debug)]
pub struct FileSpec {
    /// The path as written; see [`path_in`](Self::path_in).
    pub path: Spanned<String>,
    /// Make the file with this many bytes, sparse, if it does not exist.
    pub create_bytes: Option<Spanned<u64>>,
    /// Go past the page cache; false by default.
    pub direct: Spanned<bool>,
    /// Whether to lock the file against other processes; auto by default.
    pub locking: Spanned<Locking>,
    /// Whether discards free space of the file; true by default.
    pub discard: Spanned<bool>,
}

impl FileSpec {
    /// The path, relative to the directory of the configuration file.
    pub fn path_in(&self, base_dir: &Path) -> PathBuf {
        base_dir.join(&self.path.value)
    }
}

/// Whether a file is locked against other processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locking {
    /// Where the file system can.
    #[default]
    Auto,
    /// Always; not to be able to is an error.
    On,
    /// Never.
    Off,
}

/// Options of driver `memory`.
#[derive(Clone, Debug)]
pub struct MemorySpec {
    /// Size in bytes, a multiple of the block size; by default that of the backing.
    pub size_bytes: Spanned<u64>,
    /// Whether the size is left out, and has not been taken from the backing yet.
    pub(super) lacks_size: bool,
    /// What requests must be aligned to in bytes, and what an overlay allocates: a power of two, 1 to
    /// 4096; 1 by default.
    pub block_size_bytes: Spanned<u32>,
}

/// Options of driver `null`.
#[derive(Clone, Debug)]
pub struct NullSpec {
    /// Size in bytes, a multiple of the block size.
    pub size_bytes: Spanned<u64>,
    /// Whether reads give zeroes, else they leave the buffer as it is; false by default, as in
    /// QEMU.
    pub read_zeroes: Spanned<bool>,
    /// How long every request takes; zero by default.
    pub latency: Spanned<Duration>,
    /// What requests must be aligned to in bytes: a power of two, 1 to 4096; 1 by default.
    pub block_size_bytes: Spanned<u32>,
}

/// Options of driver `raw`. Without `offset` and `size` it shows its child's bytes.
#[derive(Clone, Debug)]
pub struct RawSpec {
    /// Where the section begins in the child, in bytes: a multiple of 512; absent: at 0.
    pub offset_bytes: Option<Spanned<u64>>,
    /// Size of the section in bytes, a multiple of 512; absent: to the child's end.
    pub size_bytes: Option<Spanned<u64>>,
}

impl RawSpec {
    /// Whether it shows only a section of its child: the edge is then `storage`, else `filtered`.
    pub fn is_section(&self) -> bool {
        self.offset_bytes.is_some() || self.size_bytes.is_some()
    }
}

/// A bitmap that a plugin may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LentBitmap {
    /// The plugin's name for it.
    pub name: Spanned<String>,
    /// The bitmap, by its name in the file.
    pub bitmap: Spanned<String>,
}

/// Options of driver `plugin`.
#[derive(Clone, Debug)]
pub struct PluginSpec {
    /// Which plugin.
    pub plugin: Spanned<PluginSource>,
    /// What it may do to its children; nothing by default.
    pub grants: Vec<GrantSpec>,
    /// What it may do with the data of requests; absent: nothing.
    pub bytes: Option<Spanned<BytesGrant>>,
    /// Bitmaps that it may read.
    pub bitmaps: Vec<LentBitmap>,
    /// What happens to the node when the plugin fails.
    pub on_fault: Spanned<OnFault>,
    /// What the plugin may use.
    pub limits: PluginLimits,
    /// The instance that the node shares with others of the same name; absent: one of its own.
    pub instance: Option<Spanned<String>>,
    /// What the plugin is told.
    pub config: ConfigSpec,
    /// Children that nobody may change past the node, once the plugin has been asked.
    pub exclusive: Vec<String>,
}

/// A filter of the host's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterKind {
    /// Passes everything through.
    Pass,
    /// Limits requests and bytes a second.
    Throttle,
    /// Keeps in its child what is read from below it.
    CopyOnRead,
    /// Copies what there was at a point in time.
    Backup,
}

impl FilterKind {
    /// The name of the driver, which is also that of the bundled plugin that does the same.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Throttle => "throttle",
            Self::CopyOnRead => "copy-on-read",
            Self::Backup => "backup",
        }
    }
}

/// Options of the host's own filters.
#[derive(Clone, Debug)]
pub struct FilterSpec {
    /// Which one.
    pub kind: FilterKind,
    /// Bitmaps that it reads.
    pub bitmaps: Vec<LentBitmap>,
    /// The instance that the node shares with others of the same name; absent: one of its own.
    pub instance: Option<Spanned<String>>,
    /// The same as the plugin of the same name takes.
    pub config: ConfigSpec,
}

/// Options of driver `plugin-view`.
#[derive(Clone, Debug)]
pub struct ViewSpec {
    /// The node whose view it is.
    pub of: Spanned<String>,
    /// That node's name for it.
    pub view: Spanned<String>,
    /// Whether discards give it up, if that is said.
    pub discard: Option<Spanned<bool>>,
}

/// A drive: what a guest or client uses.
#[derive(Clone, Debug)]
pub struct DriveSpec {
    /// Its name.
    pub id: Spanned<String>,
    /// The node that it shows; absent: no medium.
    pub root: Option<Spanned<String>>,
    /// Whether it may change its view; absent: if an export of it is writable.
    pub writable: Option<Spanned<bool>>,
}

impl DriveSpec {
    /// Whether it may change its view.
    pub fn is_writable(&self, spec: &GraphSpec) -> bool {
        let serves = |scope: &Scope| matches!(scope, Scope::Drive(id) if id.value == self.id.value);
        let exported = || spec.exports.iter().any(|it| it.writable.value && serves(&it.scope));
        self.writable.as_ref().map_or_else(exported, |writable| writable.value)
    }
}

/// A dirty bitmap.
#[derive(Clone, Debug)]
pub struct BitmapSpec {
    /// What the file calls it.
    pub id: Spanned<String>,
    /// What clients see (`qemu:dirty-bitmap:NAME`): the id, unless `name` says otherwise.
    pub name: Spanned<String>,
    /// Whose changes it records.
    pub scope: Scope,
    /// Bytes that one bit stands for: a power of two, 512 B to 2 GiB; 64 KiB by default.
    pub granularity_bytes: Spanned<u32>,
    /// Where it is kept when the host is down.
    pub persist: Spanned<Persist>,
    /// What is stored of it has to have this UUID; if nothing is, it gets it.
    pub uuid: Option<Spanned<Uuid>>,
    /// Whether it records from the start; true by default.
    pub enabled: Spanned<bool>,
}

/// Where a bitmap is kept when the host is down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Persist {
    /// Nowhere.
    #[default]
    None,
    /// In the first image, from its root, of the drive that it belongs to, whichever that is.
    Root,
    /// In the image that is this node.
    Node(Spanned<String>),
    /// In the image that shows an external raw data file at the top of the drive that it belongs to, and stays
    /// there whatever is below.
    Meta,
}

/// What a bitmap or an export belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A drive, by its id.
    Drive(Spanned<String>),
    /// A node, by its name.
    Node(Spanned<String>),
}

impl Scope {
    /// The name of the drive or node.
    pub fn name(&self) -> &Spanned<String> {
        match self {
            Self::Drive(name) | Self::Node(name) => name,
        }
    }

    /// "drive `x`" or "node `x`".
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Drive(id) => format!("drive `{id}`"),
            Self::Node(name) => format!("node `{name}`"),
        }
    }
}

/// An NBD export.
#[derive(Clone, Debug)]
pub struct ExportSpec {
    /// What the file calls it.
    pub id: Spanned<String>,
    /// What clients call it: the id, unless `name` says otherwise.
    pub name: Spanned<String>,
    /// What it serves.
    pub scope: Scope,
    /// Where it listens; exports with the same address share the listener.
    pub listen: Spanned<ListenAddr>,
    /// Whether clients may change it; false by default.
    pub writable: Spanned<bool>,
    /// Whether each write is durable when it is answered; false by default.
    pub writethrough: Spanned<bool>,
    /// Whether clients may ask in which layer of images bytes lie; false by default.
    pub allocation_depth: Spanned<bool>,
    /// The bitmaps that clients can read: ids, or names of bitmaps that an image below holds.
    pub bitmaps: Vec<Spanned<String>>,
    /// A text for people, sent to clients that ask.
    pub description: Option<Spanned<String>>,
}

impl ExportSpec {
    pub(super) fn scope_span(&self) -> Span {
        self.scope.name().span
    }
}
