//! Names of files in the headers of images: what QEMU's block drivers would open for them.
//!
//! Only plain files are understood. Everything else that such a name can mean is refused by name: it would
//! be an image that decides what the host connects to.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::render::clip;
use crate::node::protocol;

/// What is in a file that an image names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The image does not say.
    Unsaid,
    /// The bytes that it shows.
    Raw,
    /// A qcow2 image.
    Qcow2,
}

/// A file that an image names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// Its path; relative: to the directory of the image.
    pub(super) path: String,
    pub(super) format: Format,
    /// Whether the name itself says that it has no backing, whatever its own header says.
    pub(super) has_no_backing: bool,
}

/// Keys of `json:` names that change nothing of what is shown.
const HARMLESS_KEYS: [&str; 6] = [
    "node-name",
    "read-only",
    "auto-read-only",
    "file.node-name",
    "file.read-only",
    "file.auto-read-only",
];

/// Understands the file name `name` of a header that says `format` of it.
///
/// # Errors
/// What it is instead: continues "which …".
pub(super) fn parse(name: &str, format: Option<&str>) -> Result<Named, String> {
    let format = match format {
        Some(format) => format_of(format)?,
        None => Format::Unsaid,
    };
    if let Some(json) = name.strip_prefix("json:") {
        return parse_json(json, format);
    }
    let path = match protocol(name) {
        None => name,
        Some("file") => absolute_path("file:", &name["file:".len()..])?,
        Some(protocol) => {
            let protocol = clip(protocol);
            return Err(format!("has the protocol `{protocol}`: images lead to files only"));
        }
    };
    Ok(Named { path: checked_path(path)?, format, has_no_backing: false })
}

/// The path that the name of a file in a header means, if it is one; relative: to the directory of the image.
pub(crate) fn path_named(name: &str) -> Option<PathBuf> {
    parse(name, None).ok().map(|named| named.path.into())
}

/// Whether a name is no path, as something stands before its first `:` that says what it is.
pub(crate) fn has_protocol(name: &str) -> bool {
    protocol(name).is_some()
}

fn checked_path(path: &str) -> Result<String, String> {
    match path.is_empty() || path.contains('\0') {
        true => Err("is no path: it is empty or has a zero byte".to_owned()),
        false => Ok(path.to_owned()),
    }
}

/// QEMU takes a relative path behind `prefix` from the directory in which it happens to run.
fn absolute_path<'a>(prefix: &str, path: &'a str) -> Result<&'a str, String> {
    match Path::new(path).is_absolute() {
        true => Ok(path),
        false => {
            Err(format!("has a relative path in `{prefix}`, which leads nowhere in particular"))
        }
    }
}

fn format_of(format: &str) -> Result<Format, String> {
    match format {
        "raw" | "file" => Ok(Format::Raw),
        "qcow2" => Ok(Format::Qcow2),
        _ => {
            let format = clip(format);
            Err(format!("has the format `{format}`: `raw` and `qcow2` are possible"))
        }
    }
}

fn parse_json(json: &str, format: Format) -> Result<Named, String> {
    let wrong = |error: serde_json::Error| format!("is no JSON after `json:`: {error}");
    let value: Map<String, Value> = serde_json::from_str(json).map_err(wrong)?;
    let mut keys = Map::new();
    flatten("", value, &mut keys);
    let mut text = |key: &str| match keys.remove(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("has a `{key}` that is no string")),
    };
    let (driver, protocol) = (text("driver")?, text("file.driver")?);
    let (outer, inner) = (text("filename")?, text("file.filename")?);
    let has_no_backing = matches!(keys.get("backing"), Some(Value::Null));
    if has_no_backing {
        keys.remove("backing");
    }
    if let Some(key) = keys.keys().find(|key| !HARMLESS_KEYS.contains(&key.as_str())) {
        return Err(format!("has the key `{}`, which is not understood in `json:`", clip(key)));
    }
    if let Some(protocol) = protocol.filter(|protocol| protocol != "file") {
        let protocol = clip(&protocol);
        return Err(format!("has the protocol `{protocol}`: images lead to files only"));
    }
    let (format, path, other) = match driver.as_deref() {
        Some("file") => (Format::Raw, outer, inner),
        Some(driver) => (format_of(driver)?, inner, outer),
        None => (format, inner, outer),
    };
    if other.is_some() {
        return Err("has two file names in `json:`".to_owned());
    }
    let path = path.ok_or_else(|| "has no file name".to_owned())?;
    absolute_path("json:", &path)?;
    Ok(Named { path: checked_path(&path)?, format, has_no_backing })
}

/// Joins the keys of nested tables by dots, as QEMU does.
fn flatten(prefix: &str, table: Map<String, Value>, to: &mut Map<String, Value>) {
    for (key, value) in table {
        let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match value {
            Value::Object(inner) => flatten(&key, inner, to),
            value => drop(to.insert(key, value)),
        }
    }
}
