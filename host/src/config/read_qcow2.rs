//! Reads the options of driver `qcow2`.

use toml::de::DeValue;

use super::convert::{Choice, Size, type_of};
use super::diagnostic::{Diagnostic, Spanned};
use super::qcow2_options::{
    BackingFormat, BackingSpec, Compression, DEFAULT_CLUSTER_BYTES, DEFAULT_L2_CACHE_BYTES,
    DEFAULT_REFCOUNT_BITS, Preallocation, Qcow2Compat, Qcow2CreateSpec, Qcow2Spec,
};
use super::read_nodes::Partial;
use super::spec::DriverSpec;
use super::table::Table;
use super::units::format_size;

const L2_CACHE_BYTES: (u64, u64) = (64 << 10, 4 << 30);
const CLUSTER_BYTES: (u64, u64) = (512, 2 << 20);
/// Clusters of images with extended L2 entries: 32 subclusters of at least 512 bytes.
const EXTENDED_CLUSTER_MIN_BYTES: u32 = 16 << 10;
const SECTOR_BYTES: u64 = 512;
/// Most directories in `backing-dirs`: each is looked up for each file that an image names.
const MOST_DIRS: usize = 64;

impl Choice for Qcow2Compat {
    const CHOICES: &'static [(&'static str, Self)] = &[("0.10", Self::V0_10), ("1.1", Self::V1_1)];
}

impl Choice for Compression {
    const CHOICES: &'static [(&'static str, Self)] = &[("zlib", Self::Zlib), ("zstd", Self::Zstd)];
}

impl Choice for Preallocation {
    const CHOICES: &'static [(&'static str, Self)] = &[
        ("off", Self::Off),
        ("metadata", Self::Metadata),
        ("falloc", Self::Falloc),
        ("full", Self::Full),
    ];
}

impl Choice for BackingFormat {
    const CHOICES: &'static [(&'static str, Self)] = &[("raw", Self::Raw), ("qcow2", Self::Qcow2)];
}

/// What of the node's children matters to a new image.
struct Children<'a> {
    backing: &'a Spanned<BackingSpec>,
    data_file: Option<super::Span>,
}

pub(super) fn read_qcow2(table: &mut Table<'_>, node: &mut Partial) -> DriverSpec {
    let is_misnamed = table.refuse(
        "child",
        "is not how driver `qcow2` names its children",
        "write `file = …`, `backing = …` and `data-file = …`, each a node's name or `{ driver = … }`",
    );
    match table.entry("file") {
        Some(entry) => node.read_child(entry, table),
        None if is_misnamed => {}
        None => table.missing("file", "{ driver = \"file\", path = \"disk.qcow2\" }"),
    }
    let backing = read_backing(table, node);
    let data_file = table.entry("data-file");
    if let Some(entry) = data_file {
        node.read_child(entry, table);
    }
    let data_file = data_file.map(|entry| entry.key_span);
    let create = read_create(table, &Children { backing: &backing, data_file });
    let (least, most) = L2_CACHE_BYTES;
    let rule = format!("must be {} to {}", format_size(least), format_size(most));
    let is_right = |it: &Size| (least..=most).contains(&it.0);
    let l2_cache = table.take_if("l2-cache", is_right, &rule);
    let default = || table.default(DEFAULT_L2_CACHE_BYTES);
    let l2_cache_bytes = l2_cache.map(|it| it.map(|size| size.0)).unwrap_or_else(default);
    let lazy_refcounts = table.take::<bool>("lazy-refcounts");
    let backing_dirs = read_dirs(table);
    DriverSpec::Qcow2(Qcow2Spec {
        backing,
        create,
        l2_cache_bytes,
        lazy_refcounts,
        backing_dirs,
        image: None,
    })
}

fn read_backing(table: &mut Table<'_>, node: &mut Partial) -> Spanned<BackingSpec> {
    let Some(entry) = table.entry("backing") else { return table.default(BackingSpec::AsImage) };
    let backing = match entry.value.get_ref() {
        DeValue::Boolean(false) => BackingSpec::None,
        DeValue::String(_) | DeValue::Table(_) => {
            node.read_child(entry, table);
            BackingSpec::Node
        }
        wrong => {
            let found = if wrong.as_bool().is_some() { "true" } else { type_of(wrong) };
            let message = format!(
                "`backing` of {} must be the name of a node, a table, or false, not {found}",
                table.what
            );
            let help = "remove it to have what the image names; `backing = false` is no backing";
            table.problem(Diagnostic::error(entry.value_span(), message).help(help));
            BackingSpec::None
        }
    };
    Spanned::new(backing, entry.value_span())
}

fn read_dirs(table: &mut Table<'_>) -> Vec<Spanned<String>> {
    let mut dirs = table.list::<String>("backing-dirs");
    if let Some(first_too_many) = dirs.get(MOST_DIRS) {
        let message = format!("`backing-dirs` of {} has more than {MOST_DIRS}", table.what);
        table.problem(Diagnostic::error(first_too_many.span, message));
        dirs.truncate(MOST_DIRS);
    }
    dirs.retain(|dir| {
        let is_path = !dir.value.is_empty() && !dir.value.contains('\0');
        if !is_path {
            let message = format!(
                "an item of `backing-dirs` of {} is no path: it is empty or has a zero byte",
                table.what
            );
            table.problem(Diagnostic::error(dir.span, message));
        }
        is_path
    });
    dirs
}

fn read_create(table: &mut Table<'_>, children: &Children<'_>) -> Option<Box<Qcow2CreateSpec>> {
    let what = format!("`create` of {}", table.what);
    let mut table = table.table("create", what)?;
    let rule = "must be a multiple of 512";
    let size = table.take_if("size", |it: &Size| it.0.is_multiple_of(SECTOR_BYTES), rule);
    if table.entry("size").is_none() && children.backing.value != BackingSpec::Node {
        table.missing("size", "\"10GiB\"");
    }
    let (least, most) = CLUSTER_BYTES;
    let is_right = |it: &Size| it.0.is_power_of_two() && (least..=most).contains(&it.0);
    let cluster = table.take_if("cluster-size", is_right, "must be a power of two, 512 to 2MiB");
    let cluster = cluster.map(|it| it.map(|size| size.0 as u32));
    let is_right = |it: &u64| it.is_power_of_two() && *it <= 64;
    let refcount_bits =
        table.take_if("refcount-bits", is_right, "must be 1, 2, 4, 8, 16, 32 or 64");
    let refcount_bits = refcount_bits.map(|it| it.map(|bits| bits as u32));
    let create = Qcow2CreateSpec {
        span: table.span,
        size_bytes: size.map(|it| it.map(|size| size.0)),
        cluster_size_bytes: cluster.unwrap_or_else(|| table.default(DEFAULT_CLUSTER_BYTES)),
        refcount_bits: refcount_bits.unwrap_or_else(|| table.default(DEFAULT_REFCOUNT_BITS)),
        compat: table.take("compat").unwrap_or_else(|| table.default(Qcow2Compat::V1_1)),
        extended_l2: table.take("extended-l2").unwrap_or_else(|| table.default(false)),
        lazy_refcounts: table.take("lazy-refcounts").unwrap_or_else(|| table.default(false)),
        compression_type: table
            .take("compression-type")
            .unwrap_or_else(|| table.default(Compression::Zlib)),
        preallocation: table
            .take("preallocation")
            .unwrap_or_else(|| table.default(Preallocation::Off)),
        data_file_raw: table.take("data-file-raw").unwrap_or_else(|| table.default(false)),
        backing_file: read_backing_file(&mut table),
        backing_format: table.take("backing-format"),
    };
    check_version(&create, children, &table);
    check_layout(&create, &table);
    check_children(&create, children, &table);
    table.finish("`create`");
    Some(Box::new(create))
}

fn read_backing_file(table: &mut Table<'_>) -> Option<Spanned<String>> {
    let most = blockloom_qcow2::limits::BACKING_NAME_MAX_BYTES as usize;
    let is_right = |it: &String| !it.is_empty() && it.len() <= most && !it.contains('\0');
    let rule = format!("is no file name of 1 to {most} bytes");
    table.take_if("backing-file", is_right, &rule)
}

/// Reports what version 2 of the format does not have.
fn check_version(create: &Qcow2CreateSpec, children: &Children<'_>, table: &Table<'_>) {
    if create.compat.value == Qcow2Compat::V1_1 {
        return;
    }
    let wrong = [
        (create.extended_l2.value, "`extended-l2 = true`", create.extended_l2.span),
        (create.lazy_refcounts.value, "`lazy-refcounts = true`", create.lazy_refcounts.span),
        (
            create.compression_type.value == Compression::Zstd,
            "`compression-type = \"zstd\"`",
            create.compression_type.span,
        ),
        (
            create.refcount_bits.value != DEFAULT_REFCOUNT_BITS,
            "a `refcount-bits` that is not 16",
            create.refcount_bits.span,
        ),
        (children.data_file.is_some(), "`data-file`", children.data_file.unwrap_or_default()),
    ];
    for (_, option, span) in wrong.into_iter().filter(|(is_there, ..)| *is_there) {
        let message = format!("{option} of {} needs `compat = \"1.1\"`", table.what);
        let problem = Diagnostic::error(span, message).note(create.compat.span, "the older format");
        table.problem(problem.help("remove one of the two"));
    }
}

/// Reports sizes that do not go together.
fn check_layout(create: &Qcow2CreateSpec, table: &Table<'_>) {
    let cluster = &create.cluster_size_bytes;
    if create.extended_l2.value && cluster.value < EXTENDED_CLUSTER_MIN_BYTES {
        let least = format_size(EXTENDED_CLUSTER_MIN_BYTES.into());
        let message = format!(
            "`extended-l2` of {} needs clusters of at least {least}, not {}",
            table.what,
            format_size(cluster.value.into())
        );
        let problem = Diagnostic::error(create.extended_l2.span, message);
        table.problem(problem.note(cluster.span, "the cluster size"));
    }
    let Some(size) = &create.size_bytes else { return };
    let cluster_bytes = u64::from(cluster.value);
    let entry_bytes = if create.extended_l2.value { 16 } else { 8 };
    // At most 2 MiB × 256 Ki: no overflow, as the number of L1 entries has none.
    let bytes_per_l2 = cluster_bytes * (cluster_bytes / entry_bytes);
    let most = (blockloom_qcow2::limits::L1_MAX_BYTES / 8).saturating_mul(bytes_per_l2);
    if size.value > most {
        let message = format!(
            "`size` of {} is more than {}, the most with clusters of {}",
            table.what,
            format_size(most),
            format_size(cluster_bytes)
        );
        let problem = Diagnostic::error(size.span, message);
        let problem = problem.note(cluster.span, "the cluster size");
        table.problem(problem.help("make the image smaller, or its clusters larger"));
    }
}

/// Reports options that do not go with the node's other files.
fn check_children(create: &Qcow2CreateSpec, children: &Children<'_>, table: &Table<'_>) {
    let has_backing = children.backing.value == BackingSpec::Node;
    let raw = &create.data_file_raw;
    if raw.value && children.data_file.is_none() {
        let message = format!("`data-file-raw` of {} is about no `data-file`", table.what);
        let help = "add `data-file = { driver = \"file\", path = \"disk.raw\" }` to the node";
        table.problem(Diagnostic::error(raw.span, message).help(help));
    }
    if raw.value && has_backing {
        let message = format!(
            "`data-file-raw` of {} cannot be: all bytes of the node would be the \
                     data file's, and none its backing's",
            table.what
        );
        let problem = Diagnostic::error(raw.span, message);
        let problem = problem.note(children.backing.span, "the backing");
        table.problem(problem.help("remove one of the two"));
    }
    let allocated = &create.preallocation;
    if allocated.value != Preallocation::Off && has_backing && !create.extended_l2.value {
        let message = format!(
            "`preallocation = \"{}\"` of {} would hide the backing",
            allocated.value.name(),
            table.what
        );
        let problem = Diagnostic::error(allocated.span, message);
        let problem = problem.note(children.backing.span, "the backing");
        table.problem(problem.help("remove one of the two, or add `extended-l2 = true`"));
    }
    let named = [
        ("backing-file", create.backing_file.as_ref().map(|it| it.span)),
        ("backing-format", create.backing_format.as_ref().map(|it| it.span)),
    ];
    for (key, span) in named {
        let Some(span) = span.filter(|_| !has_backing) else { continue };
        let message = format!("`{key}` of {} is about no `backing`", table.what);
        let help = "add `backing = { driver = …, file = … }` or `backing = \"NODE\"` to the node";
        table.problem(Diagnostic::error(span, message).help(help));
    }
}
