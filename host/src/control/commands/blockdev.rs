//! Nodes that come, change and go.

use super::bitmaps::scope_of;
use super::blockdev_options::{
    BlockdevOptions, BlockdevOptionsBranch, BlockdevOptionsNull, BlockdevRef, BlockdevRefOrNull,
};
use super::drives::OnUnproven;
use crate::bitmap::Bitmap;
use crate::config::is_name;
use crate::control::context::Context;
use crate::control::error::{QmpError, QmpResult};
use crate::control::plan::Plan;
use crate::control::qapi::{QapiType, clip, qapi_alternate, qapi_enum, qapi_struct};
use crate::control::registry::{Empty, Registry};
use crate::graph::{
    Action, BitmapAction, BitmapDecl, BitmapRef, BitmapScope, Edge, Graph, PermissionSet, Role,
    Unproven, User, Which,
};
use crate::host::{FilterPlace, Fragment};
use crate::io::path_facts;

qapi_enum! {
    /// What becomes of the bitmaps of a node that goes.
    pub(crate) enum OnBitmaps {
        /// It stays, and they are named.
        Refuse = "refuse",
        /// They go with it.
        Remove = "remove",
        /// What they show is dirty in bitmaps of the same names of `bitmaps-to`, which are added if they are not
        /// there.
        Merge = "merge",
    }
}

qapi_struct! {
    pub(crate) struct BlockdevDel {
        node_name: String,
        /// `refuse` unless said.
        bitmaps: Option<OnBitmaps>,
        /// A drive or node.
        bitmaps_to: Option<String>,
    }
}

qapi_struct! {
    pub(crate) struct BlockdevReopen {
        /// Each described as when it was added; what is left out stays as it is.
        options: Vec<BlockdevOptions>,
        /// What becomes of it if views may alter.
        on_unproven: Option<OnUnproven>,
    }
}

qapi_struct! {
    /// A node's edge to a child.
    pub(crate) struct NodeEdge {
        node: String,
        edge: String,
    }
}

qapi_alternate! {
    /// Who uses a node: a drive by its id, or another node.
    pub(crate) alternate NodeUser {
        Drive(String),
        Node(NodeEdge),
    }
}

qapi_struct! {
    /// Where a filter goes: over a node, or between one and a child of its.
    pub(crate) struct BlockdevInsertFilter {
        /// The filter, without the node that it filters.
        filter: BlockdevOptions,
        /// A node, over which it goes; or a drive, which alone goes through it.
        above: Option<String>,
        /// Who goes through it; all of the node's users unless said.
        users: Option<Vec<NodeUser>>,
        /// The node under which it goes.
        below: Option<String>,
        /// The node's edge to the child; `file` unless said.
        edge: Option<String>,
    }
}

qapi_struct! {
    pub(crate) struct BlockdevSnapshot {
        /// A node, or a drive, whose node is meant.
        node: String,
        /// An image without a backing, or with that node as its backing, which nobody reads.
        overlay: String,
        /// What becomes of it if views may alter.
        on_unproven: Option<OnUnproven>,
    }
}

pub(super) fn register(to: &mut Registry) {
    to.action("blockdev-add", add);
    to.action("blockdev-del", remove);
    to.command("blockdev-reopen", reopen);
    to.action_only("blockdev-reopen", reopen_in_plan);
    to.action("blockdev-insert-filter", insert_filter);
    to.action("blockdev-snapshot", snapshot);
}

impl BlockdevOptions {
    /// What is opened before it, in QEMU's order; and its backing, after it.
    fn children(&self) -> (Vec<&BlockdevRef>, Option<&BlockdevRefOrNull>) {
        use BlockdevOptionsBranch as Branch;
        match &self.branch {
            Branch::Raw(it) => (vec![&it.file], None),
            Branch::Qcow2(it) => {
                ([&it.file].into_iter().chain(&it.data_file).collect(), it.backing.as_ref())
            }
            Branch::Throttle(it) => (it.file.iter().collect(), None),
            Branch::CopyOnRead(it) => (it.file.iter().collect(), None),
            Branch::CopyBeforeWrite(it) => (it.file.iter().chain([&it.target]).collect(), None),
            Branch::Backup(it) => (it.file.iter().chain(&it.target).collect(), None),
            Branch::Pass(it) => (it.file.iter().collect(), None),
            Branch::Plugin(it) => (it.file.iter().collect(), None),
            _ => (Vec::new(), None),
        }
    }

    /// Whether it is a filter that does not say what it filters.
    fn lacks_child(&self) -> bool {
        use BlockdevOptionsBranch as Branch;
        match &self.branch {
            Branch::Throttle(it) => it.file.is_none() && it.child.is_none(),
            Branch::CopyOnRead(it) => it.file.is_none() && it.child.is_none(),
            Branch::CopyBeforeWrite(it) => it.file.is_none(),
            Branch::Backup(it) => it.file.is_none() && it.child.is_none(),
            Branch::Pass(it) => it.file.is_none() && it.child.is_none(),
            Branch::Plugin(it) => it.file.is_none() && it.child.is_none(),
            _ => false,
        }
    }

    /// Says what QEMU takes for granted.
    pub(super) fn fill_in(&mut self) {
        const NULL_BYTES: u64 = 1 << 30;
        use BlockdevOptionsBranch as Branch;
        let within = |node: &mut BlockdevRef| {
            if let BlockdevRef::Definition(options) = node {
                options.fill_in();
            }
        };
        match &mut self.branch {
            Branch::NullCo(null) | Branch::NullAio(null) => {
                let BlockdevOptionsNull { size, .. } = null;
                size.get_or_insert(NULL_BYTES);
            }
            Branch::Raw(it) => within(&mut it.file),
            Branch::Qcow2(it) => {
                within(&mut it.file);
                it.data_file.iter_mut().for_each(within);
                if let Some(BlockdevRefOrNull::Definition(options)) = &mut it.backing {
                    options.fill_in();
                }
            }
            Branch::Throttle(it) => it.file.iter_mut().for_each(within),
            Branch::CopyOnRead(it) => it.file.iter_mut().for_each(within),
            Branch::CopyBeforeWrite(it) => {
                it.file.iter_mut().chain([&mut it.target]).for_each(within);
            }
            Branch::Backup(it) => it.file.iter_mut().chain(&mut it.target).for_each(within),
            Branch::Pass(it) => it.file.iter_mut().for_each(within),
            Branch::Plugin(it) => it.file.iter_mut().for_each(within),
            _ => {}
        }
    }

    fn into_fragment(mut self) -> Fragment {
        self.fill_in();
        // A struct is something.
        Fragment::blockdev(self.emit().unwrap_or_default())
    }
}

fn no_node(name: &str) -> QmpError {
    QmpError::generic(format!("Failed to find node with node-name='{}'", clip(name)))
}

pub(super) fn no_device(name: &str) -> QmpError {
    let name = clip(name);
    QmpError::generic(format!("Cannot find device='{name}' nor node-name='{name}'"))
}

/// Names that are taken by what is being added, and those that it names.
struct Names<'p, 'c> {
    plan: &'p Plan<'c>,
    taken: Vec<String>,
}

impl Names<'_, '_> {
    fn is_there(&self, name: &str) -> bool {
        self.plan.has_node(name) || self.taken.iter().any(|taken| taken == name)
    }

    /// What QEMU says of names, in the order in which it opens nodes; `is_made` if the node's file need not be there.
    fn check(&mut self, options: &BlockdevOptions, is_made: bool) -> QmpResult<()> {
        let (children, backing) = options.children();
        let makes = match &options.branch {
            BlockdevOptionsBranch::Qcow2(image) => image.create.is_some(),
            _ => false,
        };
        for child in children {
            match child {
                BlockdevRef::Definition(options) => self.check(options, makes)?,
                BlockdevRef::Reference(name) if !self.is_there(name) => {
                    return Err(no_device(name));
                }
                BlockdevRef::Reference(_) => {}
            }
        }
        if let BlockdevOptionsBranch::CopyOnRead(cor) = &options.branch
            && let Some(bottom) = cor.bottom.as_deref().filter(|name| !self.is_there(name))
        {
            return Err(QmpError::generic(format!("Bottom node '{}' not found", clip(bottom))));
        }
        self.check_file(options, is_made)?;
        if let Some(name) = &options.base.node_name {
            self.check_new(name)?;
        }
        match backing {
            Some(BlockdevRefOrNull::Definition(options)) => self.check(options, false),
            Some(BlockdevRefOrNull::Reference(name)) if !name.is_empty() => {
                let missing = || {
                    let QmpError { class, desc, .. } = no_device(name);
                    QmpError::new(class, format!("Could not open backing file: {desc}"))
                };
                if self.is_there(name) { Ok(()) } else { Err(missing()) }
            }
            _ => Ok(()),
        }
    }

    fn check_new(&mut self, name: &str) -> QmpResult<()> {
        if !is_name(name) {
            return Err(QmpError::generic(format!("Invalid node-name: '{}'", clip(name))));
        }
        if self.is_there(name) {
            return Err(QmpError::generic(format!("Duplicate nodes with node-name='{name}'")));
        }
        self.taken.push(name.to_owned());
        Ok(())
    }

    /// A file that is not there, in QEMU's words.
    fn check_file(&self, options: &BlockdevOptions, is_made: bool) -> QmpResult<()> {
        use BlockdevOptionsBranch as Branch;
        let (Branch::File(file) | Branch::HostDevice(file)) = &options.branch else {
            return Ok(());
        };
        let path = self.plan.context.host.base_dir().join(&file.filename);
        let why = match path_facts(&path) {
            Ok(facts) if facts.is_directory => "Is a directory",
            Ok(facts) if !facts.exists && file.create.is_none() && !is_made => {
                "No such file or directory"
            }
            _ => return Ok(()),
        };
        Err(QmpError::generic(format!("Could not open '{}': {why}", clip(&file.filename))))
    }
}

/// Refuses names that nodes cannot get.
pub(super) fn check_names(plan: &Plan<'_>, new: &[String]) -> QmpResult<()> {
    let mut names = Names { plan, taken: Vec::new() };
    new.iter().try_for_each(|name| names.check_new(name))
}

fn add(plan: &mut Plan<'_>, options: BlockdevOptions) -> QmpResult<()> {
    if options.lacks_child() {
        return Err(QmpError::generic("Parameter 'file' is missing"));
    }
    if options.base.node_name.is_none() {
        return Err(QmpError::generic("'node-name' must be specified for the root node"));
    }
    Names { plan, taken: Vec::new() }.check(&options, false)?;
    plan.add_nodes(&options.into_fragment())?;
    Ok(())
}

fn remove(plan: &mut Plan<'_>, remove: BlockdevDel) -> QmpResult<()> {
    let BlockdevDel { node_name, bitmaps, bitmaps_to } = remove;
    if !plan.has_node(&node_name) {
        return Err(no_node(&node_name));
    }
    match (bitmaps.unwrap_or(OnBitmaps::Refuse), bitmaps_to) {
        (OnBitmaps::Refuse, None) => {}
        (OnBitmaps::Remove, None) => {
            for bitmap in bitmaps_of(plan, &node_name) {
                plan.push(BitmapAction::Remove.of(&bitmap));
            }
        }
        (OnBitmaps::Merge, Some(to)) => merge_bitmaps(plan, &node_name, &to)?,
        (OnBitmaps::Merge, None) => {
            return Err(QmpError::generic("Parameter 'bitmaps-to' is missing"));
        }
        (_, Some(_)) => {
            return Err(QmpError::generic("Parameter 'bitmaps-to' is for 'bitmaps': 'merge'"));
        }
    }
    plan.remove_node(&node_name)
}

fn bitmaps_of(plan: &Plan<'_>, node: &str) -> Vec<std::sync::Arc<Bitmap>> {
    let graph = plan.context.host.graph();
    let scope = BitmapScope::Node(node.into());
    graph.bitmaps().filter(|(of, _)| **of == scope).map(|(_, bitmap)| bitmap.clone()).collect()
}

fn merge_bitmaps(plan: &mut Plan<'_>, from: &str, to: &str) -> QmpResult<()> {
    let graph = plan.context.host.graph();
    let scope = scope_of(&graph, to).filter(|_| from != to).ok_or_else(|| no_device(to))?;
    for bitmap in bitmaps_of(plan, from) {
        let name = bitmap.name();
        let source = BitmapRef::from(&bitmap);
        if graph.find_bitmap(&scope, name.as_str()).is_none() {
            let granularity = bitmap.granularity();
            let decl =
                BitmapDecl { scope: scope.clone(), name: name.clone(), granularity, enabled: true };
            plan.push(Action::AddBitmap(decl));
        }
        let target = BitmapRef::Named { scope: scope.clone(), name: name.to_string() };
        plan.push(BitmapAction::merge([source.clone()]).of(target));
        plan.push(BitmapAction::Remove.of(source));
    }
    Ok(())
}

/// What is to be reopened, in the words of the host.
fn reopened(plan: &Plan<'_>, options: Vec<BlockdevOptions>) -> QmpResult<Vec<serde_json::Value>> {
    for options in &options {
        let name = options.base.node_name.as_deref();
        let name = name.ok_or_else(|| QmpError::generic("node-name not specified"))?;
        if !plan.has_node(name) {
            return Err(no_node(name));
        }
        for child in options.children().0 {
            if let BlockdevRef::Reference(child) = child
                && !plan.has_node(child)
            {
                let desc = format!("Cannot find device='' nor node-name='{}'", clip(child));
                return Err(QmpError::generic(desc));
            }
        }
    }
    let nodes = options.into_iter().map(|mut options| {
        options.fill_in();
        options.emit().unwrap_or_default()
    });
    Ok(nodes.collect())
}

fn unproven(wanted: Option<OnUnproven>) -> Unproven {
    match wanted {
        Some(OnUnproven::MarkWhole) => Unproven::MarkWhole,
        Some(OnUnproven::Refuse) | None => Unproven::Refuse,
    }
}

fn reopen(context: &Context<'_>, reopen: BlockdevReopen) -> QmpResult<Empty> {
    let nodes = reopened(&Plan::new(context), reopen.options)?;
    context.host.reopen_nodes(&nodes, unproven(reopen.on_unproven))?;
    Ok(Empty {})
}

fn reopen_in_plan(plan: &mut Plan<'_>, reopen: BlockdevReopen) -> QmpResult<()> {
    let nodes = reopened(plan, reopen.options)?;
    plan.reopen(&nodes, unproven(reopen.on_unproven))
}

fn insert_filter(plan: &mut Plan<'_>, insert: BlockdevInsertFilter) -> QmpResult<()> {
    let BlockdevInsertFilter { mut filter, above, users, below, edge } = insert;
    if filter.base.node_name.is_none() {
        return Err(QmpError::generic("Parameter 'filter.node-name' is missing"));
    }
    let place = match (above, below) {
        (Some(above), None) if edge.is_none() => above_place(plan, &above, users)?,
        (None, Some(node)) if users.is_none() => {
            if !plan.has_node(&node) {
                return Err(no_node(&node));
            }
            FilterPlace::Below { node, edge: edge.unwrap_or_else(|| "file".into()) }
        }
        _ => {
            let desc = "either 'above', which may have 'users', or 'below', which may have 'edge', \
                        says where the filter goes";
            return Err(QmpError::generic(desc));
        }
    };
    Names { plan, taken: Vec::new() }.check(&filter, false)?;
    filter.fill_in();
    plan.insert_filter(&place, &filter.emit().unwrap_or_default())?;
    Ok(())
}

/// The place over a node, or over what a drive shows.
fn above_place(
    plan: &Plan<'_>,
    above: &str,
    users: Option<Vec<NodeUser>>,
) -> QmpResult<FilterPlace> {
    let user = |user: NodeUser| match user {
        NodeUser::Drive(id) => User::Drive(id),
        NodeUser::Node(NodeEdge { node, edge }) => User::Node { node, edge },
    };
    let named = users.map(|users| Which::These(users.into_iter().map(user).collect()));
    let graph = plan.context.host.graph();
    if let Some(node) = root_of(&graph, above)? {
        let these = || Which::These(vec![User::Drive(above.to_owned())]);
        return Ok(FilterPlace::Above { node, users: named.unwrap_or_else(these) });
    }
    if !plan.has_node(above) {
        return Err(no_device(above));
    }
    let users = named.unwrap_or(Which::All);
    Ok(FilterPlace::Above { node: above.to_owned(), users })
}

/// The node that a drive shows; `None` if there is no drive of this id.
pub(super) fn root_of(graph: &Graph, drive: &str) -> QmpResult<Option<String>> {
    let Some(at) = graph.find_drive(drive) else { return Ok(None) };
    let no_medium = || QmpError::generic(format!("Device '{drive}' has no medium"));
    let root = graph.drives()[at].root().ok_or_else(no_medium)?;
    Ok(Some(graph.nodes()[root.child()].name().to_owned()))
}

fn snapshot(plan: &mut Plan<'_>, snapshot: BlockdevSnapshot) -> QmpResult<()> {
    let BlockdevSnapshot { node, overlay, on_unproven } = snapshot;
    // Actions before it may end a use, or begin one.
    let is_first = plan.untouched().is_some();
    let unproven = unproven(on_unproven);
    let graph = plan.context.host.graph();
    let node = match root_of(&graph, &node)? {
        Some(root) => root,
        None if plan.has_node(&node) => node,
        None => return Err(no_device(&node)),
    };
    if !plan.has_node(&overlay) {
        return Err(no_device(&overlay));
    }
    let at = graph.find_node(&overlay);
    let found = at.map(|at| &graph.nodes()[at]);
    let backing = found.and_then(|found| {
        let edge = found.edges().iter().find(|edge| edge.role() == Role::Backing)?;
        Some(graph.nodes()[edge.child()].name())
    });
    match (backing, found.map(|found| found.driver().driver())) {
        // It was added with what it is to stand on.
        (Some(backing), _) if backing == node => {}
        (Some(_), _) => {
            return Err(QmpError::generic("The overlay already has a backing image"));
        }
        (None, Some("qcow2") | None) => {
            let (edge, child) = ("backing".to_owned(), Some(node.clone()));
            plan.push_unproven(Action::SetChild { node: overlay.clone(), edge, child }, unproven);
        }
        (None, Some(_)) => {
            return Err(QmpError::generic("The overlay does not support backing images"));
        }
    }
    if let Some(at) = at.filter(|_| is_first) {
        check_unused(&graph, at)?;
    }
    plan.push_unproven(Action::Replace { node, by: overlay }, unproven);
    Ok(())
}

/// Refuses an overlay that somebody sees as it is. Who only writes it, as a job does to its target, sees nothing of it.
fn check_unused(graph: &Graph, overlay: usize) -> QmpResult<()> {
    let sees = |edge: &Edge| {
        edge.role() != Role::Target || edge.uses().contains(PermissionSet::CONSISTENT_READ)
    };
    let users = graph.users_of(overlay).filter(|(_, edge)| sees(edge));
    let users: Vec<String> = users.map(|(user, _)| user).collect();
    if users.is_empty() {
        return Ok(());
    }
    let users = users.join(", ");
    Err(QmpError::generic(format!("The overlay is already in use by {users}")))
}
