//! Reads the options of filters: plugins, and the host's own ones.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};
use toml::de::DeValue;

use super::convert::{Choice, Size, integer};
use super::diagnostic::{Diagnostic, Span, Spanned};
use super::plugin_options::pointer_part;
use super::plugin_options::{BytesGrant, ConfigSpec, Grant, GrantSpec, OnFault, PluginSource};
use super::read_nodes::Partial;
use super::render::clip;
use super::spec::{DriverSpec, FilterKind, FilterSpec, LentBitmap, PluginSpec};
use super::table::{Entry, Table, entries};
use super::units::{format_duration, format_size};
use super::{PluginLimits, names, suggest};

/// What `grant` says of the data of requests, beside the names of children.
const BYTES: &str = "bytes";
/// Most children of one plugin.
const MOST_CHILDREN: usize = 64;
const MEMORY_BYTES: (u64, u64) = (64 << 10, 1 << 30);
const CALL: (Duration, Duration) = (Duration::from_micros(100), Duration::from_secs(10));
const IN_FLIGHT: (u64, u64) = (1, 65535);
const BUDGET: (u64, u64) = (1, 1000);
const WITHIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
const CPU: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));
const MESSAGES_MAX: u64 = 10_000;
const HOLD: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(3600));

impl Choice for Grant {
    const CHOICES: &'static [(&'static str, Self)] = &[
        ("read", Self::Read),
        ("write-unchanged", Self::WriteUnchanged),
        ("write", Self::Write),
        ("discard", Self::Discard),
        ("resize", Self::Resize),
    ];
}

impl Choice for BytesGrant {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("read", Self::Read), ("transform", Self::Transform)];
}

pub(super) fn read_plugin(table: &mut Table<'_>, node: &mut Partial) -> DriverSpec {
    let plugin = table.need::<String>("plugin", "\"throttle\"");
    let plugin = plugin.and_then(|plugin| source_of(plugin, table));
    let children = read_children(MOST_CHILDREN, table, node);
    let (grants, bytes) = read_grants(table, &children);
    DriverSpec::Plugin(PluginSpec {
        plugin: plugin.unwrap_or_else(|| table.default(PluginSource::Bundled(String::new()))),
        grants,
        bytes,
        bitmaps: read_lent(table),
        on_fault: read_on_fault(table),
        limits: read_limits(table),
        instance: read_instance(table),
        config: read_config(table),
        exclusive: Vec::new(),
    })
}

pub(super) fn read_filter(
    kind: FilterKind,
    table: &mut Table<'_>,
    node: &mut Partial,
) -> DriverSpec {
    let most = match kind {
        FilterKind::CopyOnRead | FilterKind::Backup => 2,
        FilterKind::Pass | FilterKind::Throttle => 1,
    };
    let children = read_children(most, table, node);
    let is_backup = kind == FilterKind::Backup;
    if is_backup && !children.iter().any(|child| child == "target") {
        table.missing("child.target", "\"NODE\"");
    }
    for key in ["plugin", "grant", "on-fault", "restart", "limits"] {
        table.refuse(
            key,
            "is for plugins: this driver is the host's own",
            "remove it, or write `driver = \"plugin\"`",
        );
    }
    DriverSpec::Filter(FilterSpec {
        kind,
        bitmaps: if is_backup { read_lent(table) } else { Vec::new() },
        instance: read_instance(table),
        config: read_config(table),
    })
}

fn source_of(text: Spanned<String>, table: &Table<'_>) -> Option<Spanned<PluginSource>> {
    if text.value.ends_with(".wasm") {
        if !text.value.contains('\0') {
            return Some(text.map(PluginSource::File));
        }
    } else if !text.value.contains('/') && names::check_name("a plugin", &text, table) {
        return Some(text.map(PluginSource::Bundled));
    } else if !text.value.contains('/') {
        return None;
    }
    let message = format!("`plugin` of {} is neither a bundled plugin nor a file", table.what);
    let help = "write a bundled plugin's name, or the path of a file that ends in `.wasm`";
    table.problem(Diagnostic::error(text.span, message).help(help));
    None
}

/// Reads `child.NAME`, `most` of them, and gives the names of all children, also of wrong ones.
fn read_children(most: usize, table: &mut Table<'_>, node: &mut Partial) -> Vec<String> {
    let mut names = vec!["file".to_owned()];
    let is_misnamed = table.refuse(
        "file",
        "is not how a filter names its child",
        "write `child.file = \"NODE\"`, or `child.file = { driver = … }`",
    );
    let what = format!("`child` of {}", table.what);
    let has_children = table.entry("child").is_some();
    let mut children = match table.table("child", what) {
        Some(child) => child.entries(),
        None if has_children => return names,
        None => Vec::new(),
    };
    // `file` must be there, so it is the last to be left out.
    children.sort_by_key(|entry| (entry.key != "file", entry.key_span));
    if let Some(first_too_many) = children.get(most) {
        let message = format!("{} has {} children: {most} at most", table.what, children.len());
        table.problem(Diagnostic::error(first_too_many.key_span, message));
    }
    if children.first().is_none_or(|entry| entry.key != "file") && !is_misnamed {
        table.missing("child.file", "\"NODE\"");
    }
    for entry in children.into_iter().take(most) {
        let name = Spanned::new(entry.key.to_owned(), entry.key_span);
        if name.value == BYTES {
            let message = format!("`child.{BYTES}` of {} cannot be", table.what);
            let help =
                format!("`grant.{BYTES}` is about the data of requests: no child has that name");
            table.problem(Diagnostic::error(name.span, message).help(help));
        } else if names::check_child_name(&name, table) {
            node.read_child(entry, table);
        }
        if name.value != "file" {
            names.push(name.value);
        }
    }
    names
}

/// Reads `grant.CHILD` and `grant.bytes`.
fn read_grants(
    table: &mut Table<'_>,
    children: &[String],
) -> (Vec<GrantSpec>, Option<Spanned<BytesGrant>>) {
    let Some(grant) = table.table("grant", format!("`grant` of {}", table.what)) else {
        return (Vec::new(), None);
    };
    let (bytes, of_children): (Vec<_>, Vec<_>) =
        grant.entries().into_iter().partition(|entry| entry.key == BYTES);
    let name = format!("`grant.{BYTES}` of {}", table.what);
    let bytes = bytes.into_iter().find_map(|entry| table.convert::<BytesGrant>(entry, &name));
    let read = |entry: Entry<'_>| {
        if !children.iter().any(|child| child == entry.key) {
            let name = clip(entry.key);
            let message = format!("{} grants `{name}`, which is no child of it", table.what);
            let known: Vec<&str> = children.iter().map(String::as_str).collect();
            let help = suggest::help(entry.key, "children", &known);
            table.problem(Diagnostic::error(entry.key_span, message).help(help));
        }
        let mut grants: Vec<Spanned<Grant>> = Vec::new();
        let name = format!("`grant.{}` of {}", clip(entry.key), table.what);
        for grant in table.items::<Grant>(entry, &name) {
            match grants.iter().find(|known| known.value == grant.value) {
                Some(known) => table.problem(
                    Diagnostic::error(grant.span, format!("{name} lists a grant twice"))
                        .note(known.span, "first here"),
                ),
                None => grants.push(grant),
            }
        }
        GrantSpec { child: Spanned::new(entry.key.to_owned(), entry.key_span), grants }
    };
    (of_children.into_iter().map(read).collect(), bytes)
}

/// Reads `bitmap.NAME`.
fn read_lent(table: &mut Table<'_>) -> Vec<LentBitmap> {
    let Some(lent) = table.table("bitmap", format!("`bitmap` of {}", table.what)) else {
        return Vec::new();
    };
    let read = |entry: Entry<'_>| {
        let name = format!("`bitmap.{}` of {}", clip(entry.key), table.what);
        let of_plugin = Spanned::new(entry.key.to_owned(), entry.key_span);
        let bitmap = table.convert::<String>(entry, &name)?;
        Some(LentBitmap { name: of_plugin, bitmap })
    };
    lent.entries().into_iter().filter_map(read).collect()
}

fn read_on_fault(table: &mut Table<'_>) -> Spanned<OnFault> {
    let text = table.take::<String>("on-fault");
    if text.as_ref().is_none_or(|text| text.value != "restart") {
        table.refuse("restart", "needs `on-fault = \"restart\"`", "add it, or remove this key");
    }
    let Some(text) = text else { return table.default(OnFault::Fail) };
    let policy = match text.value.as_str() {
        "fail" => OnFault::Fail,
        "bypass" => OnFault::Bypass,
        "restart" => read_restart(table),
        _ => {
            let message = format!(
                "`on-fault = \"{}\"` of {} is no fault policy",
                clip(&text.value),
                table.what
            );
            let help = "write \"restart\", \"bypass\" or \"fail\", which is the default";
            table.problem(Diagnostic::error(text.span, message).help(help));
            OnFault::Fail
        }
    };
    text.map(|_| policy)
}

fn read_restart(table: &mut Table<'_>) -> OnFault {
    let (mut faults, mut within) = (5, Duration::from_secs(60));
    let what = format!("`restart` of {}", table.what);
    if let Some(mut table) = table.table("restart", what) {
        let (least, most) = BUDGET;
        let rule = format!("must be {least} to {most}");
        let is_right = |it: &u64| (least..=most).contains(it);
        if let Some(budget) = table.take_if("budget", is_right, &rule) {
            faults = budget.value as u32;
        }
        if let Some(time) = take_duration(&mut table, "within", WITHIN) {
            within = time;
        }
        table.finish("`restart`");
    }
    OnFault::Restart { faults, within }
}

fn read_limits(table: &mut Table<'_>) -> PluginLimits {
    let mut limits = PluginLimits::default();
    let what = format!("`limits` of {}", table.what);
    let Some(mut table) = table.table("limits", what) else { return limits };
    let (least, most) = MEMORY_BYTES;
    let rule = format!("must be {} to {}", format_size(least), format_size(most));
    let is_right = |it: &Size| (least..=most).contains(&it.0);
    if let Some(memory) = table.take_if("memory", is_right, &rule) {
        limits.memory_bytes = memory.value.0;
    }
    if let Some(call) = take_duration(&mut table, "call", CALL) {
        limits.call = call;
    }
    let (least, most) = IN_FLIGHT;
    let rule = format!("must be {least} to {most}");
    let is_right = |it: &u64| (least..=most).contains(it);
    if let Some(in_flight) = table.take_if("in-flight", is_right, &rule) {
        limits.in_flight = in_flight.value as u32;
    }
    if let Some(hold) = take_duration(&mut table, "hold", HOLD) {
        limits.hold = hold;
    }
    if let Some(cpu) = take_duration(&mut table, "cpu", CPU) {
        limits.cpu = cpu;
    }
    let rule = format!("must be 0 to {MESSAGES_MAX}");
    if let Some(messages) = table.take_if("log", |it: &u64| *it <= MESSAGES_MAX, &rule) {
        limits.messages = messages.value as u32;
    }
    table.finish("`limits`");
    limits
}

fn take_duration(
    table: &mut Table<'_>,
    key: &'static str,
    (least, most): (Duration, Duration),
) -> Option<Duration> {
    let rule = format!("must be {} to {}", format_duration(least), format_duration(most));
    let found = table.take_if(key, |it| (least..=most).contains(it), &rule);
    found.map(|found| found.value)
}

fn read_instance(table: &mut Table<'_>) -> Option<Spanned<String>> {
    let instance = table.take::<String>("instance")?;
    names::check_name("an instance", &instance, table).then_some(instance)
}

fn read_config(table: &mut Table<'_>) -> ConfigSpec {
    let json = Value::Object(Map::new());
    let mut config = ConfigSpec { json, span: table.span, spans: BTreeMap::new() };
    let Some(entry) = table.entry("config") else { return config };
    config.span = entry.key_span;
    if table.as_table(entry, format!("`config` of {}", table.what)).is_some() {
        config.json = to_json(entry, String::new(), &mut config.spans, table);
    }
    config
}

/// The value of `entry` as JSON; notes in `spans` where its parts stand, `pointer` being its own
/// place.
fn to_json(
    entry: Entry<'_>,
    pointer: String,
    spans: &mut BTreeMap<String, Span>,
    table: &Table<'_>,
) -> Value {
    let wrong = |what: &str| {
        let message = format!("`config` of {} has {what}", table.what);
        table.problem(Diagnostic::error(entry.value_span(), message));
        Value::Null
    };
    match entry.value.get_ref() {
        DeValue::String(text) => Value::String(text.clone().into_owned()),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(date) => Value::String(date.to_string()),
        DeValue::Integer(number) => match integer(number) {
            Some(number) => Value::from(number),
            None => wrong("an integer that does not fit 64 bits"),
        },
        DeValue::Float(number) => match number.as_str().parse::<f64>() {
            Ok(number) if number.is_finite() => Value::from(number),
            _ => wrong("a number that is not finite"),
        },
        DeValue::Array(items) => {
            let item = |(index, value)| {
                let pointer = format!("{pointer}/{index}");
                let item = Entry { value, ..entry };
                spans.insert(pointer.clone(), item.value_span());
                to_json(item, pointer, spans, table)
            };
            Value::Array(items.iter().enumerate().map(item).collect())
        }
        DeValue::Table(inner) => {
            let item = |item: Entry<'_>| {
                let pointer = format!("{pointer}{}", pointer_part(item.key));
                spans.insert(pointer.clone(), item.key_span);
                (item.key.to_owned(), to_json(item, pointer, spans, table))
            };
            Value::Object(entries(inner).into_iter().map(item).collect())
        }
    }
}
