//! `blockloom image info`: what an image says of itself, with the keys of `qemu-img info`.

use std::path::{Path, PathBuf};

use blockloom_qcow2::format::Version;
use blockloom_qcow2::format::snapshot::Snapshot;
use blockloom_qcow2::info::{BitmapInfo, Info, info as describe};
use serde_json::{Map, Value, json};

use super::failure::{Failure, Result};
use super::layer::{Format, Layer, open_chain, sectors};
use super::output::{Lines, OutputFormat, rounded_size};
use super::snapshot::human_table;
use crate::node::{Access, FileStorage};
use crate::text::printable;

/// Prints what an image, or each of a chain, says of itself.
pub(super) async fn info(
    path: PathBuf,
    format: Option<Format>,
    whole_chain: bool,
    access: Access,
    output: OutputFormat,
) -> Result<()> {
    let layers = match whole_chain {
        true => open_chain(&path, format, access).await?,
        false => vec![Layer::open(&path, format, access).await?],
    };
    let mut all = Vec::with_capacity(layers.len());
    for layer in &layers {
        all.push(Facts::read(layer).await?);
    }
    let mut lines = Lines::new();
    match output {
        OutputFormat::Human => {
            let texts: Vec<_> = all.iter().map(Facts::human).collect();
            lines.put(&texts.join("\n"));
        }
        OutputFormat::Json => {
            let mut values: Vec<_> = all.iter().map(Facts::json).collect();
            match whole_chain {
                true => lines.json(&Value::Array(values)),
                false => lines.json(&values.pop().unwrap_or_default()),
            }
        }
    }
    Ok(())
}

/// What there is to say of an image.
struct Facts<'a> {
    layer: &'a Layer,
    file: FileFacts,
    /// Of a qcow2 image.
    info: Option<Info>,
}

/// What there is to say of a file.
struct FileFacts {
    path: PathBuf,
    len_bytes: u64,
    allocated_bytes: u64,
    is_device: bool,
}

impl FileFacts {
    fn read(path: &Path, storage: &FileStorage) -> Result<Self> {
        let file = storage.file();
        let fail = |error| Failure::of_file(path, error);
        Ok(Self {
            path: path.to_owned(),
            len_bytes: storage.length()?,
            allocated_bytes: file.allocated_bytes().map_err(fail)?,
            is_device: file.is_block_device(),
        })
    }

    fn driver(&self) -> &'static str {
        if self.is_device { "host_device" } else { "file" }
    }

    fn json(&self) -> Value {
        let driver = self.driver();
        json!({
            "name": "file",
            "info": {
                "children": [],
                "virtual-size": sectors(self.len_bytes),
                "filename": self.path.to_string_lossy(),
                "format": driver,
                "actual-size": self.allocated_bytes,
                "format-specific": { "type": driver, "data": {} },
                "dirty-flag": false,
            }
        })
    }

    fn human(&self) -> String {
        let (driver, len) = (self.driver(), sectors(self.len_bytes));
        format!(
            "Child node '/file':\n    filename: {}\n    protocol type: {driver}\n    \
             file length: {} ({len} bytes)\n    disk size: {}\n",
            self.path.display(),
            rounded_size(len),
            rounded_size(self.allocated_bytes)
        )
    }
}

impl<'a> Facts<'a> {
    async fn read(layer: &'a Layer) -> Result<Self> {
        let file = FileFacts::read(&layer.path, &layer.storage)?;
        let info = match &layer.header {
            None => None,
            Some(_) => {
                let info = describe(&layer.storage).await;
                Some(info.map_err(|error| Failure::of_file(&layer.path, error))?)
            }
        };
        Ok(Self { layer, file, info })
    }

    fn json(&self) -> Value {
        let layer = self.layer;
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| drop(map.insert(key.to_owned(), value));
        put("children", json!([self.file.json()]));
        put("virtual-size", layer.size_bytes.into());
        put("filename", layer.path.to_string_lossy().into());
        put("format", if self.info.is_some() { "qcow2" } else { "raw" }.into());
        put("actual-size", self.file.allocated_bytes.into());
        put("dirty-flag", self.info.as_ref().is_some_and(|info| info.dirty).into());
        if let Some(info) = &self.info {
            put("cluster-size", info.cluster_bytes.into());
            let data: Map<_, _> = specifics(info).into_iter().collect();
            put("format-specific", json!({ "type": "qcow2", "data": data }));
            if !info.snapshots.is_empty() {
                put("snapshots", info.snapshots.iter().map(snapshot_json).collect());
            }
        }
        if let (Some(name), Some(path)) = (layer.backing_name(), layer.backing_path()) {
            put("backing-filename", name.into());
            put("full-backing-filename", path.to_string_lossy().into());
        }
        if let Some(format) = layer.backing_format() {
            put("backing-filename-format", format.into());
        }
        Value::Object(map)
    }

    fn human(&self) -> String {
        use std::fmt::Write as _;
        let layer = self.layer;
        let format = if self.info.is_some() { "qcow2" } else { "raw" };
        let mut text = format!(
            "image: {}\nfile format: {format}\nvirtual size: {} ({} bytes)\ndisk size: {}\n",
            layer.path.display(),
            rounded_size(layer.size_bytes),
            layer.size_bytes,
            rounded_size(self.file.allocated_bytes)
        );
        let mut line = |name: &str, value: &str| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name}: {}", printable(value));
        };
        if let Some(info) = &self.info {
            if info.dirty {
                line("cleanly shut down", "no");
            }
            line("cluster_size", &info.cluster_bytes.to_string());
        }
        if let (Some(name), Some(path)) = (layer.backing_name(), layer.backing_path()) {
            let path = path.display().to_string();
            let actual =
                if path == name { String::new() } else { format!(" (actual path: {path})") };
            line("backing file", &format!("{name}{actual}"));
        }
        if let Some(format) = layer.backing_format() {
            line("backing file format", &format);
        }
        if let Some(info) = &self.info {
            if !info.snapshots.is_empty() {
                text += &human_table(&info.snapshots);
            }
            text += "Format specific information:\n";
            for (key, value) in specifics(info) {
                write_value(&mut text, &key.replace('-', " "), &value, 1);
            }
        }
        text + &self.file.human()
    }
}

/// What only this format has.
fn specifics(info: &Info) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    let mut put = |key: &str, value: Value| all.push((key.to_owned(), value));
    let is_v3 = info.version >= Version::V3;
    put("compat", if is_v3 { "1.1" } else { "0.10" }.into());
    put("compression-type", info.compression.name().into());
    if is_v3 {
        put("lazy-refcounts", info.lazy_refcounts.into());
    }
    if !info.bitmaps.is_empty() {
        put("bitmaps", info.bitmaps.iter().map(bitmap_json).collect());
    }
    put("refcount-bits", info.refcount_bits.into());
    if is_v3 {
        if let Some(name) = info.data_file.as_ref().filter(|_| info.external_data) {
            put("data-file", String::from_utf8_lossy(name).into());
        }
        if info.external_data {
            put("data-file-raw", info.data_file_raw.into());
        }
        put("corrupt", info.corrupt.into());
        put("extended-l2", info.extended_l2.into());
    }
    all
}

/// A value under its name, as `qemu-img` indents them.
fn write_value(text: &mut String, name: &str, value: &Value, depth: usize) {
    let indent = "    ".repeat(depth);
    match value {
        Value::Array(items) => {
            *text += &format!("{indent}{name}:\n");
            for (index, item) in items.iter().enumerate() {
                write_value(text, &format!("[{index}]"), item, depth + 1);
            }
        }
        Value::Object(fields) => {
            *text += &format!("{indent}{name}:\n");
            for (name, field) in fields {
                write_value(text, name, field, depth + 1);
            }
        }
        Value::String(value) => *text += &format!("{indent}{name}: {}\n", printable(value)),
        value => *text += &format!("{indent}{name}: {value}\n"),
    }
}

fn snapshot_json(snapshot: &Snapshot) -> Value {
    const SECOND: u64 = 1_000_000_000;
    let mut value = json!({
        "id": String::from_utf8_lossy(&snapshot.id),
        "name": snapshot.name_lossy(),
        "vm-state-size": snapshot.vm_state_bytes,
        "date-sec": snapshot.date_seconds,
        "date-nsec": snapshot.date_nanoseconds,
        "vm-clock-sec": snapshot.vm_clock_nanoseconds / SECOND,
        "vm-clock-nsec": snapshot.vm_clock_nanoseconds % SECOND,
    });
    if let Some(icount) = snapshot.icount {
        value["icount"] = icount.into();
    }
    value
}

fn bitmap_json(bitmap: &BitmapInfo) -> Value {
    json!({
        "name": String::from_utf8_lossy(&bitmap.name),
        "granularity": bitmap.granularity_bytes,
        "flags": bitmap.flags(),
    })
}
