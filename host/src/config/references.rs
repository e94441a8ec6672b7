//! Checks that names lead somewhere: children, roots, drives, bitmaps, instances, listeners; and
//! that no node is below itself.

use std::collections::BTreeMap;

use super::diagnostic::{Diagnostic, Problems, Span, Spanned};
use super::render::clip;
use super::spec::{Declared, DriverSpec, ExportSpec, GraphSpec, MOST_OF_EACH, NodeSpec, Scope};
use super::{EdgeParent, bitmaps, qcow2_checks, read_root, sizes, suggest};

/// Reports what does not lead anywhere. Gives whether the graph is small enough and free of cycles:
/// only then may it be walked.
pub(super) fn check(spec: &GraphSpec, declared: &Declared, problems: &Problems) -> bool {
    if let Some(node) = spec.nodes.get(MOST_OF_EACH) {
        let count = spec.nodes.len();
        let message =
            format!("the file has {count} nodes, inline ones too: {MOST_OF_EACH} at most");
        problems.push(Diagnostic::error(node.name.span, message));
        return false;
    }
    check_shared_names(declared, problems);
    check_taken(spec, declared, problems);
    check_targets(spec, declared, problems);
    check_instances(spec, problems);
    check_export_names(spec, problems);
    bitmaps::check_names(spec, problems);
    let is_acyclic = check_cycles(spec, problems);
    if is_acyclic {
        bitmaps::check_exported(spec, declared, problems);
        bitmaps::check_lent(spec, declared, problems);
        bitmaps::check_persist(spec, declared, problems);
        qcow2_checks::check(spec, problems);
        sizes::check_sections(spec, &|_| None, |problem| problems.push(problem));
    }
    is_acyclic
}

fn check_shared_names(declared: &Declared, problems: &Problems) {
    let is_here = |name: &&Spanned<String>| name.span != Span::NOWHERE;
    for node in declared.nodes.iter().filter(is_here) {
        let mut drives = declared.drives.iter().filter(is_here);
        let Some(drive) = drives.find(|drive| *drive == node) else { continue };
        let (first, second) = if node.span < drive.span { (node, drive) } else { (drive, node) };
        let message = format!("`{}` is the name of a node and of a drive", clip(&node.value));
        problems.push(
            Diagnostic::error(second.span, message)
                .note(first.span, "first used here")
                .help("nodes and drives share one namespace: rename one of the two"),
        );
    }
}

/// Reports names that are taken by what is there.
fn check_taken(spec: &GraphSpec, declared: &Declared, problems: &Problems) {
    let Some(live) = spec.live() else { return };
    let named = declared.nodes.iter().chain(&declared.drives);
    for name in named.filter(|name| name.span != Span::NOWHERE) {
        let what = if live.has_node(&name.value) {
            "node"
        } else if live.drive(&name.value).is_some() {
            "drive"
        } else {
            continue;
        };
        let message = format!("there is a {what} `{}` already", clip(&name.value));
        problems.push(Diagnostic::error(name.span, message).help("give this one another name"));
    }
    for export in spec.exports.iter().filter(|export| live.exports.contains(&export.id.value)) {
        let message = format!("there is an export `{}` already", clip(&export.id.value));
        problems
            .push(Diagnostic::error(export.id.span, message).help("give this one another name"));
    }
}

/// A node that shares an instance with one that is there, and says nothing about it, has its configuration.
pub(super) fn take_living_config(spec: &mut GraphSpec) {
    let Some(live) = &spec.live else { return };
    for node in &mut spec.nodes {
        let Some(instance) = node.driver.instance() else { continue };
        let is_it = |it: &&NodeSpec| {
            it.driver.name() == node.driver.name() && it.driver.instance() == Some(instance)
        };
        let known = live.nodes.iter().find(is_it).and_then(|known| known.driver.config());
        let Some(known) = known.map(|config| config.json.clone()) else { continue };
        let config = match &mut node.driver {
            DriverSpec::Plugin(plugin) => &mut plugin.config,
            DriverSpec::Filter(filter) => &mut filter.config,
            _ => continue,
        };
        if config.is_absent() {
            config.json = known;
        }
    }
}

/// The error of a name that is none of `known`, if it is not; `user` refers to it.
pub(super) fn unknown(
    kind: &str,
    name: &Spanned<String>,
    user: &str,
    known: &[Spanned<String>],
) -> Option<Diagnostic> {
    if known.contains(name) || name.value.starts_with('#') {
        return None;
    }
    let message = format!("{user} refers to {kind} `{}`, which does not exist", clip(&name.value));
    let known: Vec<&str> = known.iter().map(|it| it.value.as_str()).collect();
    let help = suggest::help(&name.value, &format!("{kind}s of this file"), &known);
    Some(Diagnostic::error(name.span, message).help(help))
}

fn check_targets(spec: &GraphSpec, declared: &Declared, problems: &Problems) {
    let check = |kind: &str, name: &Spanned<String>, user: String| {
        let known = if kind == "node" { &declared.nodes } else { &declared.drives };
        let Some(problem) = unknown(kind, name, &user, known) else { return };
        let (other, others) = match kind {
            "node" => ("drive", &declared.drives),
            _ => ("node", &declared.nodes),
        };
        let found = others.iter().find(|it| *it == name);
        problems.push(match found {
            Some(it) => problem.note(it.span, format!("this is a {other}")),
            None => problem,
        });
    };
    for node in &spec.nodes {
        for child in &node.children {
            let user = format!("child `{}` of node `{}`", child.name, node.name);
            check("node", &child.node, user);
        }
    }
    for drive in &spec.drives {
        if let Some(root) = &drive.root {
            check("node", root, format!("drive `{}`", clip(&drive.id.value)));
        }
    }
    let bitmaps = spec.bitmaps.iter().map(|it| ("bitmap", &it.id, &it.scope));
    let exports = spec.exports.iter().map(|it| ("export", &it.id, &it.scope));
    for (kind, id, scope) in bitmaps.chain(exports) {
        let user = format!("{kind} `{}`", clip(&id.value));
        match scope {
            Scope::Drive(drive) => check("drive", drive, user),
            Scope::Node(node) => check("node", node, user),
        }
    }
}

/// Nodes that share an instance must agree on everything that an instance has once.
fn check_instances(spec: &GraphSpec, problems: &Problems) {
    let mut seen: BTreeMap<&str, (&Spanned<String>, &DriverSpec, String)> = BTreeMap::new();
    let live = spec.live().into_iter().flat_map(|live| &live.nodes);
    for node in live.chain(&spec.nodes) {
        let Some(instance) = node.driver.instance() else { continue };
        let entry = seen.entry(&instance.value);
        let (first, driver, user) =
            entry.or_insert_with(|| (instance, &node.driver, node.name.value.clone()));
        let Some((what, one, other)) = instance_difference(driver, &node.driver) else { continue };
        let message = format!(
            "nodes `{user}` and `{}` share instance `{instance}`, but differ in `{what}`",
            node.name
        );
        let (one, other) = (one.unwrap_or(first.span), other.unwrap_or(instance.span));
        problems.push(
            Diagnostic::error(other, message)
                .note(one, format!("node `{user}`"))
                .help("make them the same, or give the nodes instances of their own"),
        );
    }
}

/// The first key in which two nodes of one instance differ, and where it stands for each.
fn instance_difference(
    one: &DriverSpec,
    other: &DriverSpec,
) -> Option<(&'static str, Option<Span>, Option<Span>)> {
    if let (DriverSpec::Plugin(one), DriverSpec::Plugin(other)) = (one, other) {
        if one.plugin != other.plugin {
            return Some(("plugin", Some(one.plugin.span), Some(other.plugin.span)));
        }
        if one.limits != other.limits {
            return Some(("limits", None, None));
        }
        if one.on_fault.value != other.on_fault.value {
            return Some(("on-fault", Some(one.on_fault.span), Some(other.on_fault.span)));
        }
    } else if one.name() != other.name() {
        return Some(("driver", None, None));
    }
    let (one, other) = (one.config()?, other.config()?);
    (one.json != other.json).then_some(("config", Some(one.span), Some(other.span)))
}

fn check_export_names(spec: &GraphSpec, problems: &Problems) {
    let mut seen: BTreeMap<_, &ExportSpec> = BTreeMap::new();
    for export in &spec.exports {
        if export.listen.value == read_root::NO_ADDRESS {
            continue;
        }
        let key = (&export.listen.value, &export.name.value);
        let first = *seen.entry(key).or_insert(export);
        if std::ptr::eq(first, export) {
            continue;
        }
        let message = format!(
            "exports `{}` and `{}` are both called `{}` on `{}`",
            first.id,
            export.id,
            clip(&export.name.value),
            clip(&export.listen.value.to_string())
        );
        problems.push(
            Diagnostic::error(export.name.span, message)
                .note(first.name.span, "first used here")
                .help("give one of them another `name`, or another address to listen on"),
        );
    }
}

fn check_cycles(spec: &GraphSpec, problems: &Problems) -> bool {
    let (_, left) = spec.parents_first();
    let indices = spec.indices();
    let mut is_left = vec![false; spec.nodes.len()];
    left.iter().for_each(|node| is_left[*node] = true);
    // Each node that is left has a parent that is left: going up ends on a cycle.
    let mut parent_of: BTreeMap<usize, (usize, Span)> = BTreeMap::new();
    for &parent in &left {
        for child in &spec.nodes[parent].children {
            if let Some(&node) = indices.get(child.node.value.as_str()) {
                parent_of.entry(node).or_insert((parent, child.node.span));
            }
        }
    }
    let mut is_done = vec![false; spec.nodes.len()];
    for &start in &left {
        let mut path: Vec<usize> = Vec::new();
        let mut node = start;
        while !is_done[node] {
            is_done[node] = true;
            path.push(node);
            let Some((parent, _)) = parent_of.get(&node) else { break };
            node = *parent;
        }
        if let Some(begin) = path.iter().position(|it| *it == node) {
            report_cycle(spec, &path[begin..], &parent_of, problems);
        }
    }
    left.is_empty()
}

/// Reports the cycle `upwards`, a list of nodes each below the next one and the last below the
/// first.
fn report_cycle(
    spec: &GraphSpec,
    upwards: &[usize],
    parent_of: &BTreeMap<usize, (usize, Span)>,
    problems: &Problems,
) {
    let mut cycle: Vec<usize> = upwards.iter().rev().copied().collect();
    let first = cycle.iter().enumerate().min_by_key(|(_, node)| **node).map_or(0, |(at, _)| at);
    cycle.rotate_left(first);
    let name = |node: usize| spec.nodes[node].name.value.as_str();
    let mut names: Vec<&str> = cycle.iter().map(|node| name(*node)).collect();
    names.extend(names.first().copied());
    let edges = cycle.iter().cycle().skip(1).take(cycle.len());
    let mut edges = edges.filter_map(|child| Some((*parent_of.get(child)?, *child)));
    let Some(((_, span), _)) = edges.next() else { return };
    let message = format!("nodes are below themselves: {}", names.join(" → "));
    let problem = Diagnostic::error(span, message).help("point one of these children elsewhere");
    problems.push(edges.fold(problem, |problem, ((parent, span), child)| {
        problem.note(span, format!("`{}` → `{}`", name(parent), name(child)))
    }));
}

/// The edge's user, for messages: "drive `a`", "export `x`", "node `f`".
pub(super) fn describe_parent(parent: &EdgeParent) -> String {
    match parent {
        EdgeParent::Drive(id) => format!("drive `{}`", clip(id)),
        EdgeParent::Export(id) => format!("export `{}`", clip(id)),
        EdgeParent::Node(name) => format!("node `{}`", clip(name)),
    }
}
