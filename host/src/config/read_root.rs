//! Reads the file's own tables: `[host]`, `[node.…]`, `[drive.…]`, `[bitmap.…]` and `[export.…]`.

use crate::bitmap::Uuid;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::convert::{Choice, Size, type_of};
use super::diagnostic::{Diagnostic, Problems, Span, Spanned};
use super::render::clip;
use super::spec::{BitmapSpec, Declared, DriveSpec, Engine, ExportSpec, GraphSpec, HostSettings};
use super::spec::{MOST_OF_EACH, Persist, Scope};
use super::table::Table;
use super::{ListenAddr, names, nowhere, read_nodes, suggest};

const WORKERS: (u64, u64) = (1, 64);
const LONGEST_POLL: Duration = Duration::from_millis(1);
const DEFAULT_GRANULARITY_BYTES: u32 = 64 << 10;
const GRANULARITY_BYTES: (u64, u64) = (512, 2 << 30);
const LATER_EXPORTS: [&str; 2] = ["vhost-user-blk", "fuse"];

impl Choice for Engine {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("io-uring", Self::IoUring), ("threads", Self::Threads)];
}

/// Reads the whole file into `spec`, and gives the names that it declares.
pub(super) fn read(root: &DeTable<'_>, spec: &mut GraphSpec, problems: &Problems) -> Declared {
    let mut root = Table::new("the file", Span::default(), root, problems);
    let mut declared = Declared::default();
    if spec.is_addition() {
        let help = "what is added are nodes, drives, bitmaps and exports";
        root.refuse("host", "is for a host that is to start", help);
    } else if let Some(table) = root.table("host", "`host`".to_owned()) {
        spec.host = read_host(table);
    }
    for (name, table) in named_tables(&mut root, "node", &mut declared.nodes) {
        let is_made_up = problems.made_up.contains(&name.value);
        if !is_made_up {
            names::check_name("a node", &name, &table);
        }
        read_nodes::read_node(name, is_made_up, table, None, &mut spec.nodes);
    }
    for (id, table) in named_tables(&mut root, "drive", &mut declared.drives) {
        names::check_name("a drive", &id, &table);
        spec.drives.push(read_drive(id, table));
    }
    for (id, table) in named_tables(&mut root, "bitmap", &mut declared.bitmaps) {
        spec.bitmaps.extend(read_bitmap(id, table));
    }
    for (id, table) in named_tables(&mut root, "export", &mut Vec::new()) {
        names::check_name("an export", &id, &table);
        spec.exports.extend(read_export(id, table));
    }
    root.finish("the file");
    if let Some(live) = &spec.live {
        declared.nodes.extend(live.nodes.iter().map(|node| nowhere(node.name.value.clone())));
        declared.drives.extend(live.drives.iter().map(|drive| nowhere(drive.id.value.clone())));
    }
    declared
}

/// The tables `[KIND.NAME]` with their names; all names go to `declared`.
fn named_tables<'a>(
    root: &mut Table<'a>,
    kind: &'static str,
    declared: &mut Vec<Spanned<String>>,
) -> Vec<(Spanned<String>, Table<'a>)> {
    let Some(all) = root.table(kind, format!("`{kind}`")) else { return Vec::new() };
    let entries = all.entries();
    if let Some(first_too_many) = entries.get(MOST_OF_EACH) {
        let message = format!("the file has {} {kind}s: {MOST_OF_EACH} at most", entries.len());
        all.problem(Diagnostic::error(first_too_many.key_span, message));
    }
    let mut tables = Vec::new();
    for entry in entries.into_iter().take(MOST_OF_EACH) {
        let name = Spanned::new(entry.key.to_owned(), entry.key_span);
        declared.push(name.clone());
        let what = format!("{kind} `{}`", clip(entry.key));
        tables.extend(all.as_table(entry, what).map(|table| (name, table)));
    }
    tables
}

fn read_host(mut table: Table<'_>) -> HostSettings {
    let (least, most) = WORKERS;
    let rule = format!("must be {least} to {most}");
    let workers = table.take_if("workers", |it: &u64| (least..=most).contains(it), &rule);
    let rule = "must be at most 1ms; 0 is no polling";
    let settings = HostSettings {
        workers: workers.map(|workers| workers.map(|workers| workers as u32)),
        engine: table.take("engine"),
        poll: table.take_if("poll", |it: &Duration| *it <= LONGEST_POLL, rule),
    };
    table.finish("`host`");
    settings
}

fn read_drive(id: Spanned<String>, mut table: Table<'_>) -> DriveSpec {
    let root = table.take::<String>("root");
    if let Some(root) = &root {
        names::check_reference(root, &table);
    }
    let writable = table.take::<bool>("writable");
    table.finish("drives");
    DriveSpec { id, root, writable }
}

/// The one of `drive` and `node` that must be there.
fn read_scope(table: &mut Table<'_>) -> Option<Scope> {
    let (drive_key, node_key) = (table.entry("drive"), table.entry("node"));
    if let (Some(drive), Some(node)) = (drive_key, node_key) {
        let message = format!("{} has both `drive` and `node`", table.what);
        let (first, second) = match drive.key_span < node.key_span {
            true => (drive, node),
            false => (node, drive),
        };
        let problem = Diagnostic::error(second.key_span, message);
        let problem = problem.note(first.key_span, "the other one");
        table.problem(problem.help("it belongs to a drive or to a node: remove one of the two"));
        return None;
    }
    if drive_key.is_none() && node_key.is_none() {
        let message = format!("{} has neither `drive` nor `node`", table.what);
        let help = "add `drive = \"ID\"`, or `node = \"NAME\"`";
        table.problem(Diagnostic::error(table.span, message).help(help));
        return None;
    }
    let scope = match table.take("drive") {
        Some(drive) => Scope::Drive(drive),
        None => Scope::Node(table.take("node")?),
    };
    names::check_reference(scope.name(), table);
    Some(scope)
}

fn read_bitmap(id: Spanned<String>, mut table: Table<'_>) -> Option<BitmapSpec> {
    names::check_bitmap_name(&id, &table);
    let name = table.take::<String>("name");
    let name = name.filter(|name| names::check_bitmap_name(name, &table));
    let scope = read_scope(&mut table);
    let (least, most) = GRANULARITY_BYTES;
    let is_right = |it: &Size| it.0.is_power_of_two() && (least..=most).contains(&it.0);
    let rule = "must be a power of two, 512 to 2GiB";
    let granularity = table.take_if("granularity", is_right, rule);
    let granularity = granularity.map(|size| size.map(|size| size.0 as u32));
    let persist = read_persist(&mut table);
    let uuid = read_uuid(&mut table, &persist);
    let enabled = table.take("enabled").unwrap_or_else(|| table.default(true));
    let granularity_bytes = granularity.unwrap_or_else(|| table.default(DEFAULT_GRANULARITY_BYTES));
    table.finish("bitmaps");
    let name = name.unwrap_or_else(|| id.clone());
    Some(BitmapSpec { id, name, scope: scope?, granularity_bytes, persist, uuid, enabled })
}

fn read_uuid(table: &mut Table<'_>, persist: &Spanned<Persist>) -> Option<Spanned<Uuid>> {
    let text = table.take::<String>("uuid")?;
    if persist.value == Persist::None {
        let message = format!("`uuid` of {}: nothing keeps the bitmap", table.what);
        let help = "say by `persist` which image keeps it, or remove `uuid`";
        table.problem(Diagnostic::error(text.span, message).help(help));
    }
    match text.value.parse::<Uuid>() {
        Ok(uuid) => Some(text.map(|_| uuid)),
        Err(error) => {
            let message = format!("`{}` is no UUID", clip(&text.value));
            table.problem(Diagnostic::error(text.span, message).help(error.to_string()));
            None
        }
    }
}

fn read_persist(table: &mut Table<'_>) -> Spanned<Persist> {
    let Some(entry) = table.entry("persist") else { return table.default(Persist::None) };
    let policy = match entry.value.get_ref() {
        DeValue::Table(_) => {
            let what = format!("`persist` of {}", table.what);
            let node = table.as_table(entry, what).and_then(|mut target| {
                let node = target.need::<String>("node", "\"NODE\"");
                target.finish("`persist`");
                node
            });
            let Some(node) = node else { return Spanned::new(Persist::None, entry.value_span()) };
            names::check_reference(&node, table);
            return Spanned::new(Persist::Node(node), entry.value_span());
        }
        DeValue::String(text) => match text.as_ref() {
            "none" => return Spanned::new(Persist::None, entry.value_span()),
            "root" => return Spanned::new(Persist::Root, entry.value_span()),
            "meta" => return Spanned::new(Persist::Meta, entry.value_span()),
            _ => format!("\"{}\"", clip(text)),
        },
        other => type_of(other).to_owned(),
    };
    let message = format!("`persist` of {} cannot be {policy}", table.what);
    let help = "write \"none\", \"root\", \"meta\" or `{ node = \"NODE\" }`";
    table.problem(Diagnostic::error(entry.value_span(), message).help(help));
    Spanned::new(Persist::None, entry.value_span())
}

fn read_export(id: Spanned<String>, mut table: Table<'_>) -> Option<ExportSpec> {
    let mut is_later = false;
    if let Some(kind) = table.need::<String>("type", "\"nbd\"")
        && kind.value != "nbd"
    {
        let text = clip(&kind.value);
        is_later = LATER_EXPORTS.contains(&kind.value.as_str());
        let message = match is_later {
            true => format!("export type `{text}` is not in this release"),
            false => format!("unknown export type `{text}`"),
        };
        let help = suggest::help(&kind.value, "this release has", &["nbd"]);
        table.problem(Diagnostic::error(kind.span, message).help(help));
    }
    let name = table.take::<String>("name");
    let name = name.filter(|name| names::check_nbd_string("the name of an export", name, &table));
    let scope = read_scope(&mut table);
    // Where another kind is served, and by what other keys, is not known here.
    let has_listen = table.entry("listen").is_some();
    let listen = (has_listen || !is_later).then(|| read_listen(&mut table)).flatten();
    let writable = table.take("writable").unwrap_or_else(|| table.default(false));
    let writethrough = table.take("writethrough").unwrap_or_else(|| table.default(false));
    let allocation_depth = table.take("allocation-depth").unwrap_or_else(|| table.default(false));
    let bitmaps = read_bitmap_list(&mut table);
    let description = table.take::<String>("description");
    if let Some(text) = &description {
        names::check_nbd_string("the description of an export", text, &table);
    }
    let listen = listen.unwrap_or_else(|| table.default(NO_ADDRESS));
    if !is_later {
        table.finish("exports");
    }
    let name = name.unwrap_or_else(|| id.clone());
    Some(ExportSpec {
        id,
        name,
        scope: scope?,
        listen,
        writable,
        writethrough,
        allocation_depth,
        bitmaps,
        description,
    })
}

/// Stands for an address that is missing or wrong; no right address is equal to it.
pub(super) const NO_ADDRESS: ListenAddr = ListenAddr::Unix(PathBuf::new());

fn read_listen(table: &mut Table<'_>) -> Option<Spanned<ListenAddr>> {
    let listen = table.need::<String>("listen", "\"unix:/path/to/socket\"")?;
    match listen.value.parse() {
        Ok(addr) => Some(Spanned::new(addr, listen.span)),
        Err(wrong) => {
            let message = format!("`listen` of {} {wrong}", table.what);
            table.problem(Diagnostic::error(listen.span, message));
            None
        }
    }
}

fn read_bitmap_list(table: &mut Table<'_>) -> Vec<Spanned<String>> {
    let mut bitmaps: Vec<Spanned<String>> = Vec::new();
    for bitmap in table.list::<String>("bitmaps") {
        match bitmaps.iter().find(|known| known.value == bitmap.value) {
            Some(known) => {
                let name = clip(&bitmap.value);
                let message = format!("{} lists bitmap `{name}` twice", table.what);
                let problem = Diagnostic::error(bitmap.span, message);
                table.problem(problem.note(known.span, "first here"));
            }
            None => bitmaps.push(bitmap),
        }
    }
    bitmaps
}
