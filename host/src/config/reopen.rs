//! What of a node can change while it runs: where its children are, how files and images are open, and the limits of
//! throttles.

use super::diagnostic::{Diagnostic, Diagnostics, Span, Spanned};
use super::qcow2_options::BackingSpec;
use super::spec::{DriverSpec, FilterKind, GraphSpec, NodeSpec};
use crate::node::Reopen;

/// Where a child is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildChange {
    /// The parent's name for it.
    pub edge: String,
    /// The node that it is to be; `None`: none.
    pub child: Option<String>,
}

/// What changes of a node.
#[derive(Clone, Debug)]
pub struct NodeChange {
    /// Where children are to be that are elsewhere.
    pub children: Vec<ChildChange>,
    /// How it is to be open, as far as it is not so.
    pub reopen: Reopen,
    /// Of the host's own throttle: what is said of its limits. What they are is in its description.
    pub throttle: Option<ThrottleChange>,
    /// As it is described from now on.
    pub node: NodeSpec,
}

/// What changes of a throttle's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThrottleChange {
    /// It goes to another group, whose limits are its own then.
    pub joins: bool,
    /// The limits of its group are others, for all that are in it.
    pub limits: bool,
}

/// What has to change of `known`, a node that runs, for it to be as `spec` describes it again. What is left out
/// stays as it is.
///
/// # Errors
/// What cannot change, where it is described.
pub fn changes(spec: &GraphSpec, known: &NodeSpec) -> Result<NodeChange, Box<Diagnostics>> {
    let refuse = |span: Span, message: String, help: &str| {
        let mut found = spec.diagnostics();
        found.push(Diagnostic::error(span, message).help(help));
        Err(Box::new(found))
    };
    let Some(new) = spec.nodes.iter().find(|node| node.name == known.name) else {
        let message = format!("node `{}` is not described", known.name);
        return refuse(Span::default(), message, "describe it by its `node-name`");
    };
    if let Some(other) = spec.nodes.iter().find(|node| node.name != known.name) {
        let message = format!("node `{}` would be new", other.name);
        return refuse(other.name.span, message, "add it first, and then name it as the child");
    }
    if let Some((key, span)) = different(known, new) {
        let message = format!("`{key}` of node `{}` cannot change while it runs", known.name);
        let help = "add another node as it is to be, and let it take this one's place";
        return refuse(span, message, help);
    }
    let child = |node: &'_ NodeSpec, edge: &str| {
        let mut children = node.children.iter();
        children.find(|child| child.name.value == edge).map(|child| child.node.value.clone())
    };
    let mut children = Vec::new();
    for said in &new.children {
        let (edge, node) = (&said.name.value, &said.node.value);
        if child(known, edge).as_ref() != Some(node) {
            children.push(ChildChange { edge: edge.clone(), child: Some(node.clone()) });
        }
    }
    if let DriverSpec::Qcow2(image) = &new.driver
        && image.backing.value == BackingSpec::None
        && child(known, "backing").is_some()
    {
        children.push(ChildChange { edge: "backing".to_owned(), child: None });
    }
    let (reopen, mut node) = reopen(known, new);
    let throttle = throttle(spec, new, &mut node);
    Ok(NodeChange { children, reopen, throttle, node })
}

/// Which limits a throttle has that is described anew. In a group that is new, and of whose limits nothing is said, it
/// keeps those that it has.
fn throttle(spec: &GraphSpec, new: &NodeSpec, node: &mut NodeSpec) -> Option<ThrottleChange> {
    let absent = new.name.span;
    let (DriverSpec::Filter(new), DriverSpec::Filter(known)) = (&new.driver, &mut node.driver)
    else {
        return None;
    };
    if new.kind != FilterKind::Throttle {
        return None;
    }
    let joins = new.instance.is_some() && new.instance != known.instance;
    let is_said = new.config.span != absent;
    let mut live = spec.live().into_iter().flat_map(|live| &live.nodes);
    let is_there = live.any(|other| other.driver.instance() == new.instance.as_ref());
    let limits = is_said && new.config.json != known.config.json;
    if is_said || (joins && is_there) {
        known.config.json = new.config.json.clone();
    }
    if joins {
        known.instance.clone_from(&new.instance);
    }
    (joins || limits).then_some(ThrottleChange { joins, limits: limits || (joins && is_said) })
}

/// How a node is to be open that is open otherwise, and its description then.
fn reopen(known: &NodeSpec, new: &NodeSpec) -> (Reopen, NodeSpec) {
    let absent = new.name.span;
    let (mut how, mut node) = (Reopen::default(), known.clone());
    let set = |to: &mut Option<bool>, known: &mut Spanned<bool>, new: Spanned<bool>| {
        if new.span != absent && known.value != new.value {
            *to = Some(new.value);
            known.value = new.value;
        }
    };
    if let (DriverSpec::File(known), DriverSpec::File(new)) = (&mut node.driver, &new.driver) {
        set(&mut how.direct, &mut known.direct, new.direct);
        set(&mut how.discard, &mut known.discard, new.discard);
    }
    // How a file or an image is open follows from who uses it as long as nobody has said so.
    if new.read_only.span != absent {
        node.read_only.value = new.read_only.value;
        how.write = Some(!new.read_only.value);
    }
    if new.auto_read_only.span != absent {
        node.auto_read_only.value = new.auto_read_only.value;
    }
    if matches!(node.driver, DriverSpec::File(_)) {
        let is_auto = node.auto_read_only.value && !node.read_only.value;
        if known.auto_read_only.value && !is_auto {
            // Closed or not, it was there to be written.
            how.write.get_or_insert(!node.read_only.value);
        }
        how.auto = Some(is_auto);
        // It is for who writes it.
        how.write = how.write.filter(|write| !(is_auto && *write));
    }
    (how, node)
}

/// The first option that `new` has otherwise and that cannot change, and where.
fn different(known: &NodeSpec, new: &NodeSpec) -> Option<(&'static str, Span)> {
    let absent = new.name.span;
    let mut found = None;
    let mut check = |key: &'static str, is_same: bool, span: Span| {
        if !is_same && span != absent && found.is_none() {
            found = Some((key, span));
        }
    };
    fn said<T>(value: &Option<Spanned<T>>) -> Span {
        value.as_ref().map_or_else(Span::default, |value| value.span)
    }
    match (&known.driver, &new.driver) {
        (DriverSpec::File(one), DriverSpec::File(other)) => {
            check("path", one.path == other.path, other.path.span);
            check("locking", one.locking == other.locking, other.locking.span);
        }
        (DriverSpec::Memory(one), DriverSpec::Memory(other)) => {
            let (one, other) = (&one.block_size_bytes, &other.block_size_bytes);
            check("block-size", one == other, other.span);
        }
        (DriverSpec::Null(one), DriverSpec::Null(other)) => {
            check("size", one.size_bytes == other.size_bytes, other.size_bytes.span);
            check("read-zeroes", one.read_zeroes == other.read_zeroes, other.read_zeroes.span);
            check("latency", one.latency == other.latency, other.latency.span);
        }
        (DriverSpec::Raw(one), DriverSpec::Raw(other)) => {
            let is_same = other.offset_bytes.is_none() || one.offset_bytes == other.offset_bytes;
            check("offset", is_same, said(&other.offset_bytes));
            let is_same = other.size_bytes.is_none() || one.size_bytes == other.size_bytes;
            check("size", is_same, said(&other.size_bytes));
        }
        (DriverSpec::Qcow2(one), DriverSpec::Qcow2(other)) => {
            check(
                "l2-cache",
                one.l2_cache_bytes == other.l2_cache_bytes,
                other.l2_cache_bytes.span,
            );
            let is_same =
                other.lazy_refcounts.is_none() || one.lazy_refcounts == other.lazy_refcounts;
            check("lazy-refcounts", is_same, said(&other.lazy_refcounts));
        }
        (DriverSpec::Plugin(one), DriverSpec::Plugin(other)) => {
            check("plugin", one.plugin == other.plugin, other.plugin.span);
            check("on-fault", one.on_fault == other.on_fault, other.on_fault.span);
            check("config", one.config.json == other.config.json, other.config.span);
        }
        // Its limits can change, and whose they are.
        (DriverSpec::Filter(one), DriverSpec::Filter(other))
            if one.kind == other.kind && one.kind == FilterKind::Throttle =>
        {
            return found;
        }
        (DriverSpec::Filter(one), DriverSpec::Filter(other)) if one.kind == other.kind => {
            check("config", one.config.json == other.config.json, other.config.span);
        }
        (DriverSpec::View(one), DriverSpec::View(other)) => {
            check("of", one.of == other.of, other.of.span);
            check("view", one.view == other.view, other.view.span);
            let is_same = other.discard.is_none() || one.discard == other.discard;
            check("discard", is_same, said(&other.discard));
        }
        (one, other) => check("driver", one.name() == other.name(), Span::default()),
    }
    let is_same =
        new.driver.instance().is_none() || known.driver.instance() == new.driver.instance();
    check("instance", is_same, new.driver.instance().map_or_else(Span::default, |it| it.span));
    found
}
