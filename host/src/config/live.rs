//! What is there already when something is added to a host that runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::diagnostic::{Span, Spanned};
use super::permissions::role_of;
use super::spec::{BitmapSpec, ChildSpec, DriveSpec, DriverSpec, NodeSpec, Scope};
use super::{EdgeParent, EdgeSpec, GraphSpec, ListenAddr, PluginSource, grants_of};
use crate::graph::{PermissionSet, Role};

/// See the module. What is read beside it may name it.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// All nodes, as they were described, with the children that they have now. Paths are absolute.
    pub nodes: Vec<NodeSpec>,
    /// Their sizes in bytes, by name.
    pub sizes: BTreeMap<String, u64>,
    /// The names of those that somebody changes.
    pub written: BTreeSet<String>,
    /// All drives.
    pub drives: Vec<DriveSpec>,
    /// All bitmaps: what each records, and its name.
    pub bitmaps: Vec<(Scope, String)>,
    /// The ids of all exports.
    pub exports: Vec<String>,
    /// Where exports listen already.
    pub listeners: Vec<ListenAddr>,
}

impl Live {
    /// Whether there is a node called `name`.
    pub fn has_node(&self, name: &str) -> bool {
        self.nodes.iter().any(|node| node.name.value == name)
    }

    pub(super) fn node(&self, name: &str) -> Option<&NodeSpec> {
        self.nodes.iter().find(|node| node.name.value == name)
    }

    pub(super) fn drive(&self, id: &str) -> Option<&DriveSpec> {
        self.drives.iter().find(|drive| drive.id.value == id)
    }
}

/// A name of something that is there: it stands nowhere in what is read.
pub fn nowhere<T>(value: T) -> Spanned<T> {
    Spanned::new(value, Span::NOWHERE)
}

impl NodeSpec {
    /// A node that is there and was described by nobody.
    pub fn running(name: &str, driver: &'static str) -> Self {
        Self {
            name: nowhere(name.to_owned()),
            is_unnamed: name.starts_with('#'),
            is_implicit: false,
            is_within: false,
            read_only: nowhere(false),
            is_said_writable: false,
            auto_read_only: nowhere(false),
            driver: DriverSpec::Running(driver),
            children: Vec::new(),
        }
    }

    /// The same with paths relative to `base` made absolute.
    #[must_use]
    pub fn in_dir(mut self, base: &Path) -> Self {
        let within = |path: &str| {
            let path = base.join(path);
            std::path::absolute(&path).unwrap_or(path).to_string_lossy().into_owned()
        };
        match &mut self.driver {
            DriverSpec::File(file) => file.path.value = within(&file.path.value),
            DriverSpec::Plugin(plugin) => {
                if let PluginSource::File(path) = &mut plugin.plugin.value {
                    *path = within(path);
                }
            }
            _ => {}
        }
        self
    }

    /// The same as it is for those who come later: with other children, and places that are none of theirs.
    #[must_use]
    pub fn as_running(mut self, children: impl IntoIterator<Item = (String, String)>) -> Self {
        let child = |(name, node)| ChildSpec { name: nowhere(name), node: nowhere(node) };
        self.children = children.into_iter().map(child).collect();
        self.name.span = Span::NOWHERE;
        self.read_only.span = Span::NOWHERE;
        self.auto_read_only.span = Span::NOWHERE;
        match &mut self.driver {
            DriverSpec::File(file) => file.path.span = Span::NOWHERE,
            DriverSpec::Plugin(plugin) => {
                plugin.plugin.span = Span::NOWHERE;
                plugin.on_fault.span = Span::NOWHERE;
                plugin.config.forget_places();
                plugin.instance.iter_mut().for_each(|it| it.span = Span::NOWHERE);
            }
            DriverSpec::Filter(filter) => {
                filter.config.forget_places();
                filter.instance.iter_mut().for_each(|it| it.span = Span::NOWHERE);
            }
            _ => {}
        }
        self
    }
}

fn changes(uses: PermissionSet) -> bool {
    !uses.intersection(PermissionSet::CHANGES).is_empty()
}

impl GraphSpec {
    /// Whether this is added to a host that runs.
    pub fn is_addition(&self) -> bool {
        self.live.is_some()
    }

    /// What is there already.
    pub fn live(&self) -> Option<&Live> {
        self.live.as_ref()
    }

    pub(super) fn is_live_node(&self, name: &str) -> bool {
        self.live.as_ref().is_some_and(|live| live.has_node(name))
    }

    /// Whether who comes later may use the node as it likes, and so change it: it is there for that, or it was said
    /// that it can be written.
    pub(super) fn is_left_to_users(&self, node: &NodeSpec) -> bool {
        let is_view = matches!(node.driver, DriverSpec::View(_));
        if node.read_only.value || is_view || self.shows_read_only(node) {
            return false;
        }
        if node.is_said_writable {
            return true;
        }
        if node.is_implicit {
            return false;
        }
        let name = &node.name.value;
        let is_child =
            self.nodes.iter().any(|other| other.children.iter().any(|it| it.node.value == *name));
        let is_root =
            self.drives.iter().any(|it| it.root.as_ref().is_some_and(|it| it.value == *name));
        let scopes = self.exports.iter().map(|export| &export.scope);
        let is_exported =
            scopes.into_iter().any(|scope| matches!(scope, Scope::Node(it) if it.value == *name));
        !is_child && !is_root && !is_exported
    }

    /// Whether a node shows one of the specification that is read-only, and so is.
    fn shows_read_only(&self, node: &NodeSpec) -> bool {
        let shown = |node: &NodeSpec| {
            let mut children = node.children.iter();
            let shown = children.find(|it| role_of(node, &it.name.value) == Role::Filtered)?;
            self.node(&shown.node.value)
        };
        let below = std::iter::successors(shown(node), |node| shown(node));
        below.take(self.nodes.len()).any(|node| node.read_only.value)
    }

    /// Whether the node has to be open for writing: somebody changes it, or may do so.
    pub fn is_written(&self, node: &NodeSpec) -> bool {
        if node.auto_read_only.value && matches!(node.driver, DriverSpec::File(_)) {
            return self.is_written_now(node);
        }
        let mut users = self.edges_to(&node.name.value);
        users.any(|edge| changes(edge.uses)) || self.left_open_by(node).is_some()
    }

    /// The node that is left to users who then may change `node`: itself, or one above.
    pub(super) fn left_open_by<'a>(&'a self, node: &'a NodeSpec) -> Option<&'a NodeSpec> {
        let (mut seen, mut open) = (BTreeSet::new(), vec![node]);
        while let Some(at) = open.pop() {
            if at.read_only.value || !seen.insert(&at.name.value) {
                continue;
            }
            if self.is_left_to_users(at) {
                return Some(at);
            }
            open.extend(self.written_with(at));
        }
        None
    }

    /// The nodes that are written by writing `node`.
    fn written_with<'a>(&'a self, node: &'a NodeSpec) -> impl Iterator<Item = &'a NodeSpec> {
        let passes =
            |edge: &&EdgeSpec| matches!(edge.role, Role::Filtered | Role::Storage | Role::Data);
        self.edges_to(&node.name.value).filter(passes).filter_map(|edge| match &edge.parent {
            EdgeParent::Node(parent) => self.node(parent),
            EdgeParent::Drive(_) | EdgeParent::Export(_) => None,
        })
    }

    /// Whether somebody of the specification changes the node, not only those who come later.
    fn is_written_now(&self, node: &NodeSpec) -> bool {
        let (mut seen, mut open) = (BTreeSet::new(), vec![node]);
        while let Some(at) = open.pop() {
            if !seen.insert(&at.name.value) {
                continue;
            }
            for edge in self.edges_to(&at.name.value).filter(|edge| changes(edge.uses)) {
                let EdgeParent::Node(parent) = &edge.parent else { return true };
                let Some(parent) = self.node(parent) else { continue };
                // An image that can be changed is marked so, by itself.
                if matches!(parent.driver, DriverSpec::Qcow2(_))
                    || changes(grants_of(parent, &edge.name))
                {
                    return true;
                }
                open.push(parent);
            }
        }
        false
    }

    /// The bitmap that is lent as `id`: one of this specification, or one that is there: by its name, if that is
    /// said of one alone, or as `SCOPE/NAME`, where `SCOPE` is its drive or node.
    pub fn lent_bitmap(&self, id: &str) -> Option<(Scope, String)> {
        if let Some(BitmapSpec { scope, name, .. }) = self.bitmap(id) {
            return Some((scope.clone(), name.value.clone()));
        }
        let all = &self.live.as_ref()?.bitmaps;
        let is_it = |(scope, name): &&(Scope, String)| {
            id.split_once('/').is_some_and(|(of, it)| scope.name().value == of && name == it)
        };
        let mut named = all.iter().filter(|(_, name)| name == id);
        let only = named.next().filter(|_| named.next().is_none());
        all.iter().find(is_it).or(only).cloned()
    }
}
