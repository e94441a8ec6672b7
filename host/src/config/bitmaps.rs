//! Checks of bitmaps: names, exports that show them, and the images that are to keep them.

use std::collections::BTreeMap;

use super::diagnostic::{Diagnostic, Diagnostics, Problems, Spanned};
use super::references::unknown;
use super::render::clip;
use super::spec::{
    BitmapSpec, Declared, DriverSpec, GraphSpec, LentBitmap, NodeSpec, Persist, Scope,
};
use super::{Role, permissions};

/// Reports two bitmaps of one name in one place.
pub(super) fn check_names(spec: &GraphSpec, problems: &Problems) {
    let mut seen: BTreeMap<(String, &str), &BitmapSpec> = BTreeMap::new();
    for bitmap in &spec.bitmaps {
        let key = (bitmap.scope.describe(), bitmap.name.value.as_str());
        let first = *seen.entry(key).or_insert(bitmap);
        if std::ptr::eq(first, bitmap) {
            continue;
        }
        let scope = bitmap.scope.describe();
        let message = format!("{scope} has two bitmaps called `{}`", clip(&bitmap.name.value));
        problems.push(
            Diagnostic::error(bitmap.name.span, message)
                .note(first.name.span, "first used here")
                .help("give one of them another `name`"),
        );
    }
}

/// The nodes from what `scope` leads to downwards, as far as edges of roles that `follows` lead.
fn downwards<'a>(
    spec: &'a GraphSpec,
    scope: &Scope,
    follows: impl Fn(Role) -> bool,
) -> Vec<&'a NodeSpec> {
    let mut nodes = Vec::new();
    let mut below = spec.root_of(scope);
    while let Some(node) = below {
        nodes.push(node);
        let mut children = node.children.iter();
        let shown = children.find(|child| follows(permissions::role_of(node, &child.name.value)));
        below = shown.and_then(|child| spec.node(&child.node.value));
    }
    nodes
}

/// The nodes that show what a client of `scope` sees, from the top.
fn shown_by<'a>(spec: &'a GraphSpec, scope: &Scope) -> Vec<&'a NodeSpec> {
    downwards(spec, scope, Role::is_same_view)
}

/// The images whose bitmaps a client of `scope` can see, from the top.
fn images_below<'a>(spec: &'a GraphSpec, scope: &Scope) -> impl Iterator<Item = &'a NodeSpec> {
    downwards(spec, scope, Role::is_view).into_iter().filter(|node| is_image(node))
}

fn is_image(node: &NodeSpec) -> bool {
    matches!(node.driver, DriverSpec::Qcow2(_))
}

/// Reports bitmaps of exports that do not exist, or record what the export does not show.
pub(super) fn check_exported(spec: &GraphSpec, declared: &Declared, problems: &Problems) {
    for export in &spec.exports {
        let user = format!("export `{}`", clip(&export.id.value));
        let mut names: BTreeMap<&str, &Spanned<String>> = BTreeMap::new();
        if export.bitmaps.is_empty() {
            continue;
        }
        let shown = shown_by(spec, &export.scope);
        let is_shown = |name: &str| shown.iter().any(|node| node.name.value == name);
        let has_images = images_below(spec, &export.scope).next().is_some();
        for id in &export.bitmaps {
            let problem = unknown("bitmap", id, &user, &declared.bitmaps);
            // What the file does not declare an image may hold, which shows when it is opened.
            let may_be_there = has_images || spec.is_addition();
            problem.filter(|_| !may_be_there).into_iter().for_each(|it| problems.push(it));
            let Some(bitmap) = spec.bitmap(&id.value) else { continue };
            let is_shown = match &bitmap.scope {
                Scope::Node(node) => is_shown(&node.value),
                Scope::Drive(_) => false,
            };
            if !is_shown && bitmap.scope != export.scope {
                let (theirs, ours) = (bitmap.scope.describe(), export.scope.describe());
                let message = format!(
                    "bitmap `{}` records {theirs}, but {user} serves {ours}",
                    clip(&id.value)
                );
                problems.push(
                    Diagnostic::error(id.span, message)
                        .note(bitmap.scope.name().span, "the bitmap's")
                        .note(export.scope_span(), "the export's")
                        .help(format!("export a bitmap of {ours}")),
                );
            }
            if let Some(first) = names.insert(&bitmap.name.value, id) {
                let name = clip(&bitmap.name.value);
                let message = format!("{user} has two bitmaps that clients see as `{name}`");
                problems.push(Diagnostic::error(id.span, message).note(first.span, "first here"));
            }
        }
    }
}

/// Reports bitmaps that are lent to plugins and do not exist.
pub(super) fn check_lent(spec: &GraphSpec, declared: &Declared, problems: &Problems) {
    for node in &spec.nodes {
        let user = format!("node `{}`", clip(&node.name.value));
        let unknown = |lent: &LentBitmap| match spec.lent_bitmap(&lent.bitmap.value) {
            Some(_) => None,
            None => unknown("bitmap", &lent.bitmap, &user, &declared.bitmaps),
        };
        node.driver.lent().iter().filter_map(unknown).for_each(|problem| problems.push(problem));
    }
}

/// Reports bitmaps that are to be kept where none can be.
pub(super) fn check_persist(spec: &GraphSpec, declared: &Declared, problems: &Problems) {
    let mut kept: BTreeMap<(&str, &str), &BitmapSpec> = BTreeMap::new();
    for bitmap in &spec.bitmaps {
        let problem = match &bitmap.persist.value {
            Persist::None => None,
            Persist::Node(node) => keeping_node_problem(spec, declared, bitmap, node),
            Persist::Root => keeping_drive_problem(spec, bitmap, "root"),
            Persist::Meta => keeping_drive_problem(spec, bitmap, "meta"),
        };
        problem.into_iter().for_each(|problem| problems.push(problem));
        let Some(image) = keeper_of(spec, bitmap) else { continue };
        let key = (image.name.value.as_str(), bitmap.name.value.as_str());
        let first = *kept.entry(key).or_insert(bitmap);
        // Of one drive or node, two of one name have been reported.
        if first.scope == bitmap.scope {
            continue;
        }
        let message = format!(
            "node `{}` is to keep two bitmaps called `{}`",
            image.name,
            clip(&bitmap.name.value)
        );
        problems.push(
            Diagnostic::error(bitmap.persist.span, message)
                .note(first.persist.span, format!("bitmap `{}`", clip(&first.id.value)))
                .help("give one of them another `name`, or another image"),
        );
    }
}

/// The image in which `bitmap` is kept to begin with.
fn keeper_of<'a>(spec: &'a GraphSpec, bitmap: &BitmapSpec) -> Option<&'a NodeSpec> {
    match &bitmap.persist.value {
        Persist::None => None,
        Persist::Node(node) => spec.node(&node.value).filter(|node| is_image(node)),
        Persist::Root | Persist::Meta => {
            shown_by(spec, &bitmap.scope).into_iter().find(|node| is_image(node))
        }
    }
}

fn keeping_node_problem(
    spec: &GraphSpec,
    declared: &Declared,
    bitmap: &BitmapSpec,
    name: &Spanned<String>,
) -> Option<Diagnostic> {
    let user = format!("bitmap `{}`", clip(&bitmap.id.value));
    if let Some(problem) = unknown("node", name, &user, &declared.nodes) {
        return Some(problem);
    }
    let node = spec.node(&name.value)?;
    if !is_image(node) {
        let message = format!(
            "node `{name}` cannot keep {user}: its driver is `{}`, and only `qcow2` keeps bitmaps",
            node.driver.name()
        );
        let others: Vec<String> =
            images_below(spec, &bitmap.scope).map(|image| format!("`{}`", image.name)).collect();
        let help = match others.is_empty() {
            true => "write `persist = \"none\"`".to_owned(),
            false => format!("images that could: {}", others.join(", ")),
        };
        return Some(Diagnostic::error(name.span, message).help(help));
    }
    if let Some(problem) = read_only_problem(node, &user, name.span) {
        return Some(problem);
    }
    let root = spec.root_of(&bitmap.scope)?;
    if images_below(spec, &bitmap.scope).any(|image| image.name == node.name) {
        return None;
    }
    let scope = bitmap.scope.describe();
    let message = format!(
        "node `{name}` cannot keep {user}: it is not below {scope}, whose changes the bitmap records"
    );
    let problem = Diagnostic::error(name.span, message);
    let problem =
        problem.note(bitmap.scope.name().span, format!("{scope} begins at `{}`", root.name));
    Some(problem.help(format!("name an image below {scope}")))
}

fn read_only_problem(node: &NodeSpec, user: &str, span: super::Span) -> Option<Diagnostic> {
    if !node.read_only.value {
        return None;
    }
    let message = format!("node `{}` cannot keep {user}: it is read-only", node.name);
    let problem = Diagnostic::error(span, message).note(node.read_only.span, "read-only here");
    Some(problem.help(format!("remove `read-only = true` from node `{}`", node.name)))
}

fn keeping_drive_problem(
    spec: &GraphSpec,
    bitmap: &BitmapSpec,
    policy: &str,
) -> Option<Diagnostic> {
    let user = format!("bitmap `{}`", clip(&bitmap.id.value));
    let span = bitmap.persist.span;
    let Scope::Drive(drive) = &bitmap.scope else {
        let message =
            format!("`persist = \"{policy}\"` of {user} needs a drive, and it has a node");
        let problem = Diagnostic::error(span, message).note(bitmap.scope.name().span, "the node");
        return Some(
            problem.help("write `persist = { node = \"NODE\" }`, or give the bitmap a drive"),
        );
    };
    // Without a medium it waits for one.
    let root = spec.root_of(&bitmap.scope)?;
    let Some(image) = keeper_of(spec, bitmap) else {
        let message = format!(
            "`persist = \"{policy}\"` of {user}: no `qcow2` node shows what drive `{drive}` shows"
        );
        let problem = Diagnostic::error(span, message);
        let problem = problem.note(drive.span, format!("its root is node `{}`", root.name));
        return Some(problem.help(
            "put a `qcow2` node at the root (with `data-file` and `create.data-file-raw` it shows another \
             node's bytes), or write `persist = \"none\"`",
        ));
    };
    if policy == "meta" && !image.children.iter().any(|child| child.name.value == "data-file") {
        let message = format!(
            "`persist = \"meta\"` of {user}: node `{}`, the first image of drive `{drive}`, has no `data-file`",
            image.name
        );
        let help = "put a `qcow2` node at the root whose `data-file` is the rest of the graph, made with \
                    `create.data-file-raw`, or write `persist = \"root\"`";
        return Some(
            Diagnostic::error(span, message).note(image.name.span, "the image").help(help),
        );
    }
    read_only_problem(image, &user, span)
}

/// Reports bitmaps of policy `meta` whose image shows no raw data file, as far as images are known.
pub(super) fn check_meta(spec: &GraphSpec, found: &mut Diagnostics) {
    for bitmap in spec.bitmaps.iter().filter(|it| it.persist.value == Persist::Meta) {
        let Some(node) = keeper_of(spec, bitmap) else { continue };
        let DriverSpec::Qcow2(image) = &node.driver else { continue };
        let has_data_file = node.children.iter().any(|child| child.name.value == "data-file");
        if image.image.is_none() || !has_data_file || image.data_file_is_raw() {
            continue;
        }
        let message = format!(
            "`persist = \"meta\"` of bitmap `{}`: the data file of node `{}` is not raw",
            clip(&bitmap.id.value),
            node.name
        );
        let help =
            "make the image with `create.data-file-raw = true`, or write `persist = \"root\"`";
        let problem = Diagnostic::error(bitmap.persist.span, message);
        found.push(problem.note(node.name.span, "the image").help(help));
    }
}
