//! Reads nodes: the keys that all share, and the options of protocols and formats.

use std::time::Duration;

use toml::de::DeValue;

use super::convert::{Choice, Size, type_of};
use super::diagnostic::{Diagnostic, Spanned};
use super::render::clip;
use super::spec::{ChildSpec, DriverSpec, FileSpec, FilterKind, Locking, MemorySpec, NodeSpec};
use super::spec::{NullSpec, RawSpec};
use super::table::{Entry, Table};
use super::{names, read_filters, read_qcow2, suggest, views};

/// Drivers of this release.
const DRIVERS: [&str; 11] = [
    "file",
    "memory",
    "null",
    "raw",
    "qcow2",
    "plugin",
    "plugin-view",
    "pass",
    "throttle",
    "copy-on-read",
    "backup",
];
/// Drivers that later releases have.
const LATER_DRIVERS: [&str; 1] = ["nbd"];

const AUTO_READ_ONLY: &str = "auto-read-only";
const MAX_BLOCK_SIZE_BYTES: u64 = 4096;
const SECTOR_BYTES: u64 = 512;

impl Choice for Locking {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("on", Self::On), ("off", Self::Off)];
}

/// Reads the node called `name` from `table`, and the unnamed nodes within it, to the end of
/// `nodes`. What it does not say of `auto-read-only` is as `inherited`.
pub(super) fn read_node(
    name: Spanned<String>,
    is_unnamed: bool,
    mut table: Table<'_>,
    inherited: Option<Spanned<bool>>,
    nodes: &mut Vec<NodeSpec>,
) {
    let Some(driver_name) = driver_of(&mut table) else { return };
    // What is given inline has it, too.
    let auto = peeked(&table, AUTO_READ_ONLY).or(inherited);
    let mut node = Partial { name, is_unnamed, auto, children: Vec::new(), nested: Vec::new() };
    let driver = match driver_name {
        "file" => read_file(&mut table),
        "memory" => read_memory(&mut table, &mut node),
        "null" => read_null(&mut table),
        "raw" => read_raw(&mut table, &mut node),
        "qcow2" => read_qcow2::read_qcow2(&mut table, &mut node),
        "plugin" => read_filters::read_plugin(&mut table, &mut node),
        "plugin-view" => views::read_view(&mut table),
        "backup" => read_filters::read_filter(FilterKind::Backup, &mut table, &mut node),
        "pass" => read_filters::read_filter(FilterKind::Pass, &mut table, &mut node),
        "copy-on-read" => read_filters::read_filter(FilterKind::CopyOnRead, &mut table, &mut node),
        _ => read_filters::read_filter(FilterKind::Throttle, &mut table, &mut node),
    };
    let read_only: Option<Spanned<bool>> = table.take("read-only");
    let is_said_writable = read_only.is_some_and(|it| !it.value);
    let read_only = read_only.unwrap_or_else(|| table.default(false));
    let said = table.take(AUTO_READ_ONLY).or(inherited);
    let auto_read_only = said.unwrap_or_else(|| table.default(false));
    table.finish(&format!("driver `{driver_name}`"));
    let Partial { name, is_unnamed, children, nested, .. } = node;
    let is_implicit = false;
    nodes.push(NodeSpec {
        name,
        is_unnamed,
        is_implicit,
        is_within: false,
        read_only,
        is_said_writable,
        auto_read_only,
        driver,
        children,
    });
    nodes.extend(nested);
}

/// A value that is read later, and reported then if it is wrong.
fn peeked(table: &Table<'_>, key: &str) -> Option<Spanned<bool>> {
    let entry = table.entries().into_iter().find(|entry| entry.key == key)?;
    match entry.value.get_ref() {
        DeValue::Boolean(value) => Some(Spanned::new(*value, entry.value_span())),
        _ => None,
    }
}

/// A node whose driver is being read.
pub(super) struct Partial {
    name: Spanned<String>,
    is_unnamed: bool,
    /// What nodes that are given inline have of `auto-read-only` unless they say it.
    auto: Option<Spanned<bool>>,
    children: Vec<ChildSpec>,
    nested: Vec<NodeSpec>,
}

impl Partial {
    /// Adds the child that `entry` gives: the name of a node, or a table that is an unnamed one.
    pub(super) fn read_child(&mut self, entry: Entry<'_>, table: &Table<'_>) {
        let name = Spanned::new(entry.key.to_owned(), entry.key_span);
        let node = match entry.value.get_ref() {
            DeValue::String(node) => {
                let node = Spanned::new(node.clone().into_owned(), entry.value_span());
                names::check_reference(&node, table);
                node
            }
            DeValue::Table(inline) => {
                let unnamed = names::unnamed(&self.name.value, self.is_unnamed, entry.key);
                let what = format!("node `{unnamed}`");
                let inline = Table::new(what, entry.key_span, inline, table.problems());
                let unnamed = Spanned::new(unnamed, entry.key_span);
                // As with QEMU, in which a backing does not have it either.
                let inherited = self.auto.filter(|_| entry.key != "backing");
                read_node(unnamed.clone(), true, inline, inherited, &mut self.nested);
                unnamed
            }
            other => {
                let found = type_of(other);
                let message = format!(
                    "child `{}` of {} must be the name of a node or a table, not {found}",
                    clip(entry.key),
                    table.what
                );
                table.problem(Diagnostic::error(entry.value_span(), message));
                return;
            }
        };
        self.children.push(ChildSpec { name, node });
    }
}

/// The driver, if this release has it.
fn driver_of(table: &mut Table<'_>) -> Option<&'static str> {
    let Some(_) = table.entry("driver") else {
        let what = format!("{} has no `driver`", table.what);
        let list = suggest::list(&DRIVERS);
        let keys = table.entries();
        let near = keys.iter().find(|it| suggest::nearest(it.key, ["driver"]).is_some());
        let start = match near {
            Some(near) => format!("is `{}` meant to be `driver`?", clip(near.key)),
            None => "add `driver = \"file\"`;".to_owned(),
        };
        let help = format!("{start} this release has: {list}");
        table.problem(Diagnostic::error(table.span, what).help(help));
        return None;
    };
    let driver = table.take::<String>("driver")?;
    let text = driver.value.as_str();
    if let Some(known) = DRIVERS.into_iter().find(|known| *known == text) {
        return Some(known);
    }
    let list = suggest::list(&DRIVERS);
    table.problem(if LATER_DRIVERS.contains(&text) {
        Diagnostic::error(driver.span, format!("driver `{text}` is not in this release"))
            .help(format!("this release has: {list}"))
    } else {
        Diagnostic::error(driver.span, format!("unknown driver `{}`", clip(text)))
            .help(suggest::help(text, "this release has", &DRIVERS))
    });
    None
}

fn bytes(size: Spanned<Size>) -> Spanned<u64> {
    size.map(|size| size.0)
}

fn read_file(table: &mut Table<'_>) -> DriverSpec {
    table.refuse(
        "size",
        "is not a key of driver `file`: a file has the size it has",
        "to have it made if it does not exist, write `create = \"10GiB\"`",
    );
    let rule = "is no path: it is empty or has a zero byte";
    let is_path = |path: &String| !path.is_empty() && !path.contains('\0');
    if table.entry("path").is_none() {
        table.missing("path", "\"disk.img\"");
    }
    let path = table.take_if("path", is_path, rule);
    DriverSpec::File(FileSpec {
        path: path.unwrap_or_else(|| table.default(String::new())),
        create_bytes: table.take("create").map(bytes),
        direct: table.take("direct").unwrap_or_else(|| table.default(false)),
        locking: table.take("locking").unwrap_or_else(|| table.default(Locking::Auto)),
        discard: table.take("discard").unwrap_or_else(|| table.default(true)),
    })
}

fn read_memory(table: &mut Table<'_>, node: &mut Partial) -> DriverSpec {
    let has_backing = read_backing(table, node);
    let lacks_size = has_backing && table.entry("size").is_none();
    let (size_bytes, block_size_bytes) = read_size(table, !lacks_size);
    DriverSpec::Memory(MemorySpec { size_bytes, lacks_size, block_size_bytes })
}

/// Reads `child.backing`, and gives whether it is there, be it right or wrong.
fn read_backing(table: &mut Table<'_>, node: &mut Partial) -> bool {
    let mut has_backing = false;
    for (key, why) in [
        ("backing", "is not how driver `memory` names its backing"),
        ("file", "is unknown: driver `memory` keeps its bytes in no file"),
    ] {
        let help = "for an overlay write `child.backing = \"NODE\"`, \
                    or `child.backing = { driver = … }`";
        has_backing |= table.refuse(key, why, help);
    }
    let what = format!("`child` of {}", table.what);
    // An empty table is no backing; what is no table was meant to be one.
    let is_wrong = table.entry("child").is_some();
    let Some(children) = table.table("child", what) else { return has_backing || is_wrong };
    for entry in children.entries() {
        has_backing = true;
        if entry.key == "backing" {
            node.read_child(entry, table);
            continue;
        }
        let message = format!("{} has no child `{}`", table.what, clip(entry.key));
        let help = suggest::help(entry.key, "children of driver `memory`", &["backing"]);
        table.problem(Diagnostic::error(entry.key_span, message).help(help));
    }
    has_backing
}

fn read_null(table: &mut Table<'_>) -> DriverSpec {
    let (size_bytes, block_size_bytes) = read_size(table, true);
    DriverSpec::Null(NullSpec {
        size_bytes,
        read_zeroes: table.take("read-zeroes").unwrap_or_else(|| table.default(false)),
        latency: table.take("latency").unwrap_or_else(|| table.default(Duration::ZERO)),
        block_size_bytes,
    })
}

/// The size, and the block size that it must be a multiple of.
fn read_size(table: &mut Table<'_>, is_needed: bool) -> (Spanned<u64>, Spanned<u32>) {
    if is_needed && table.entry("size").is_none() {
        table.missing("size", "\"1GiB\"");
    }
    let size = table.take("size").map(bytes);
    let size = size.unwrap_or_else(|| table.default(0));
    let rule = "must be a power of two, 1 to 4096";
    let is_right = |it: &Size| it.0.is_power_of_two() && it.0 <= MAX_BLOCK_SIZE_BYTES;
    let block = table.take_if("block-size", is_right, rule).map(bytes);
    let block = block.unwrap_or_else(|| table.default(1));
    if !size.value.is_multiple_of(block.value) {
        let message = format!("`size` of {} is not a multiple of its block size", table.what);
        let up = size.value.next_multiple_of(block.value);
        table.problem(
            Diagnostic::error(size.span, message)
                .note(block.span, "the block size")
                .help(format!("the next multiple is {up}")),
        );
    }
    (size, block.map(|block| block as u32))
}

fn read_raw(table: &mut Table<'_>, node: &mut Partial) -> DriverSpec {
    let is_misnamed = table.refuse(
        "child",
        "is not how driver `raw` names its child",
        "write `file = \"NODE\"`, or `file = { driver = … }`",
    );
    match table.entry("file") {
        Some(entry) => node.read_child(entry, table),
        None if is_misnamed => {}
        None => table.missing("file", "\"NODE\""),
    }
    let rule = "must be a multiple of 512";
    let is_right = |it: &Size| it.0.is_multiple_of(SECTOR_BYTES);
    let offset = table.take_if("offset", is_right, rule).map(bytes);
    let size = table.take_if("size", is_right, rule).map(bytes);
    if let (Some(offset), Some(size)) = (&offset, &size)
        && offset.value + size.value > super::units::MAX_SIZE_BYTES
    {
        let message = format!("the section of {} ends past 2^63 - 1 bytes", table.what);
        table.problem(Diagnostic::error(size.span, message).note(offset.span, "it begins here"));
    }
    DriverSpec::Raw(RawSpec { offset_bytes: offset, size_bytes: size })
}
