//! Configuration: a TOML file becomes a checked, typed description of the block graph.
//!
//! Called by the `serve`, `check` and `graph` commands and by embedders. [`parse`] reads the text
//! alone, so it behaves the same on every machine; [`check_surroundings`] then asks a
//! [`Surroundings`] about files, sockets, plugins and the headers of images, and adds the nodes that images
//! name. Neither creates or changes anything.
//! The graph builder turns the [`GraphSpec`] into live nodes and may report what goes wrong at the
//! same places of the file ([`GraphSpec::diagnostics`]).
//!
//! The way of a file through this module:
//!
//! ```text
//! text → toml (syntax) → Table (one table's keys, typed) → read_* (drivers, exports …) → GraphSpec
//!      → references → permissions → Ok(GraphSpec) or every Diagnostic, by position
//!      → surroundings: images (headers, names, gate) → more nodes, or more diagnostics
//! ```
//!
//! What is added to a host that runs comes the same way, as TOML ([`parse_addition`]) or JSON ([`parse_object`],
//! [`parse_blockdev`]: `json`, `qapi`), beside what is [`Live`].
//!
//! Invariants:
//! - Every error of a file is reported at once; a table with an error still takes part in the later
//!   checks, with defaults in place of what is wrong, and an error is reported once, where it can
//!   be mended.
//! - A `GraphSpec` that `parse` returned has no dangling reference, no cycle and no conflict of
//!   permissions.
//! - A file that an image names becomes a node only if the gate (`image_gate`) lets it through.
//! - No contents of a file make this module panic, or print a control character.

mod bitmaps;
mod convert;
mod diagnostic;
mod image_gate;
mod image_names;
mod images;
mod json;
mod listen;
mod live;
mod names;
mod new_image;
mod permissions;
mod plugin_options;
mod qapi;
mod qcow2_checks;
mod qcow2_options;
mod read_filters;
mod read_nodes;
mod read_qcow2;
mod read_root;
mod references;
mod render;
mod reopen;
mod sizes;
mod spec;
pub(crate) mod suggest;
mod surroundings;
mod syntax;
mod table;
#[cfg(test)]
mod tests;
mod units;
mod views;

pub use crate::graph::{PermissionSet, Role};
pub use crate::plugin::PluginLimits;
pub use diagnostic::{Diagnostic, Diagnostics, Note, Severity, Span, Spanned};
pub(crate) use image_names::{has_protocol, path_named};
pub use images::read as read_images;
pub use listen::{ListenAddr, ListenAddrError};
pub use live::{Live, nowhere};
pub(crate) use names::is_name;
pub(crate) use permissions::grants_of;
pub use permissions::{EdgeParent, EdgeSpec};
pub use plugin_options::{BytesGrant, ConfigSpec, Grant, GrantSpec, OnFault, PluginSource};
pub use qcow2_options::{
    BackingFormat, BackingReference, BackingSpec, Compression, DataFileSpec, ImageFacts, ImageSpec,
    Preallocation, Qcow2Compat, Qcow2CreateSpec, Qcow2Spec,
};
pub use reopen::{ChildChange, NodeChange, ThrottleChange, changes};
pub use spec::{
    BitmapSpec, ChildSpec, DriveSpec, DriverSpec, Engine, ExportSpec, FileSpec, FilterKind,
    FilterSpec, GraphSpec, HostSettings, LentBitmap, Locking, MemorySpec, NodeSpec, NullSpec,
    Persist, PluginSpec, RawSpec, Scope, ViewSpec,
};
pub use surroundings::{ConfigError, FileFacts, Surroundings, check_surroundings};
pub use units::{format_duration, format_size, parse_duration, parse_size};

use diagnostic::{Problems, Source};
use json::{Item, Places, Shape, Wrong};
use qapi::Translated;
use serde_json::Value;
use spec::Declared;

/// Reads the configuration `text` of the file called `file_name` (used in messages only).
///
/// # Errors
///
/// Everything that is wrong with the file, by position; of a file that is not TOML, the first
/// syntax error.
pub fn parse(file_name: &str, text: &str) -> Result<GraphSpec, Diagnostics> {
    let (spec, found) = parse_tolerant(file_name, text);
    if found.is_empty() { Ok(spec) } else { Err(found) }
}

/// As [`parse`], but gives what could be read beside what is wrong, so that further checks can add to
/// it. Where a value is wrong or missing, its default stands; of a file that is not TOML, nothing.
pub fn parse_tolerant(file_name: &str, text: &str) -> (GraphSpec, Diagnostics) {
    parse_into(GraphSpec::empty(file_name, text), Problems::default(), text)
}

/// As [`parse_tolerant`], of what is added to a host that runs: it may name what is there.
pub fn parse_addition(name: &str, text: &str, live: Live) -> (GraphSpec, Diagnostics) {
    let mut spec = GraphSpec::empty(name, text);
    let problems = beside(&mut spec, live);
    parse_into(spec, problems, text)
}

fn parse_into(mut spec: GraphSpec, problems: Problems, text: &str) -> (GraphSpec, Diagnostics) {
    match syntax::parse(text) {
        Ok(root) => {
            let declared = read_root::read(&root, &mut spec, &problems);
            check(&mut spec, &declared, &problems);
        }
        Err(problem) => problems.push(problem),
    }
    let found = problems.into_diagnostics(&spec);
    (spec, found)
}

/// As [`parse_addition`], of a JSON object that has the tables of a file as its members, and nodes in the words
/// of TOML or of QEMU's `BlockdevOptions`. Places are the paths of keys.
pub fn parse_object(name: &str, object: &Value, live: Live) -> (GraphSpec, Diagnostics) {
    let Value::Object(members) = object else {
        return of_items(name, Vec::new(), vec![no_object()], live, None);
    };
    let mut translated = Translated::default();
    let mut root = Vec::new();
    for (member, value) in members {
        match (member.as_str(), value) {
            ("node", Value::Object(nodes)) => {
                for (name, options) in nodes {
                    let path = json::below(member, name);
                    match options {
                        Value::Object(options) => drop(translated.add(options, &path, name)),
                        _ => translated.wrong.push(Wrong::new(&path, "must be an object", "")),
                    }
                }
            }
            _ => match Item::of(value, member) {
                Ok(item) => root.push((member.clone(), item)),
                Err(wrong) => translated.wrong.push(wrong),
            },
        }
    }
    let Translated { nodes, within, wrong } = translated;
    root.push(("node".to_owned(), Item::new("node", Shape::Table(nodes))));
    let (mut spec, found) = of_items(name, root, wrong, live, None);
    tell_within(&mut spec, &within);
    (spec, found)
}

fn tell_within(spec: &mut GraphSpec, names: &[String]) {
    for node in &mut spec.nodes {
        node.is_within = names.contains(&node.name.value);
    }
}

/// As [`parse_addition`], of one node: QEMU's `BlockdevOptions`, or the same in the words of TOML. Without a
/// `node-name` it is called `made_up`. Gives its name, too.
pub fn parse_blockdev(
    name: &str,
    options: &Value,
    made_up: &str,
    live: Live,
) -> (GraphSpec, Diagnostics, String) {
    let Value::Object(options) = options else {
        let (spec, found) = of_items(name, Vec::new(), vec![no_object()], live, None);
        return (spec, found, made_up.to_owned());
    };
    let mut translated = Translated::default();
    let node = translated.add(options, "", made_up);
    let Translated { nodes, within, wrong } = translated;
    let root = vec![("node".to_owned(), Item::new("", Shape::Table(nodes)))];
    let (mut spec, found) = of_items(name, root, wrong, live, Some(made_up));
    tell_within(&mut spec, &within);
    (spec, found, node)
}

fn no_object() -> Wrong {
    Wrong::new("", "it must be an object", "")
}

fn beside(spec: &mut GraphSpec, live: Live) -> Problems {
    let names = live.nodes.iter().map(|node| &node.name.value);
    let unnamed = names.filter(|name| name.starts_with('#')).cloned().collect();
    spec.live = Some(live);
    Problems::beside(unnamed)
}

fn of_items(
    name: &str,
    items: Vec<(String, Item)>,
    mut wrong: Vec<Wrong>,
    live: Live,
    made_up: Option<&str>,
) -> (GraphSpec, Diagnostics) {
    let mut places = Places::default();
    let root = places.table(&items);
    wrong.append(&mut places.wrong);
    let problem = |it: Wrong| {
        let problem = Diagnostic::error(places.place(&it.path), it.message);
        if it.help.is_empty() { problem } else { problem.help(it.help) }
    };
    let wrong: Vec<Diagnostic> = wrong.into_iter().map(problem).collect();
    let (file_name, text) = (name.to_owned(), String::new());
    let mut spec = GraphSpec::of(Source { file_name, text, paths: Some(places.paths) });
    let mut problems = beside(&mut spec, live);
    problems.made_up.extend(made_up.map(str::to_owned));
    wrong.into_iter().for_each(|problem| problems.push(problem));
    let declared = read_root::read(&root, &mut spec, &problems);
    check(&mut spec, &declared, &problems);
    let found = problems.into_diagnostics(&spec);
    (spec, found)
}

fn check(spec: &mut GraphSpec, declared: &Declared, problems: &Problems) {
    references::take_living_config(spec);
    views::fill_in(spec, declared, problems);
    spec.is_graph = references::check(&*spec, declared, problems);
    if spec.is_graph {
        qcow2_checks::fill_in(spec);
        sizes::fill_in(spec, problems);
        spec.edges = permissions::edges(spec);
        permissions::check(spec, problems);
    }
}
