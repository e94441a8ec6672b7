//! `blockloom image bitmap --list`: the persistent bitmaps of an image, and what they hold.

use std::path::PathBuf;

use blockloom_qcow2::bitmaps::Trust;
use blockloom_qcow2::info::BitmapInfo;
use serde_json::{Map, Value, json};

use super::bitmaps::{Bitmaps, Content, open_image};
use super::failure::Result;
use super::layer::Format;
use super::output::{Lines, OutputFormat, rounded_size};
use crate::node::Access;
use crate::text::printable;

/// Lists the bitmaps of an image, or one of them, with what they hold.
pub(super) async fn list(
    path: PathBuf,
    format: Option<Format>,
    name: Option<String>,
    access: Access,
    output: OutputFormat,
) -> Result<()> {
    let (layer, image) = open_image(&path, format, access).await?;
    let bitmaps = Bitmaps::load(&path, &layer.storage, &image).await?;
    let entries: Vec<_> = match &name {
        Some(name) => vec![bitmaps.entry(name)?],
        None => bitmaps.entries().iter().collect(),
    };
    let mut lines = Lines::new();
    if output == OutputFormat::Human && entries.is_empty() {
        lines.put("No bitmaps.\n");
    }
    let mut separator = "[";
    for entry in entries {
        let trust = bitmaps.trust(entry);
        let content = match trust {
            Trust::Stored => Some(bitmaps.content(entry).await?),
            Trust::Inconsistent | Trust::Unknown => None,
        };
        let info = BitmapInfo::new(entry.clone());
        let (name, granularity_bytes) = (entry.name_lossy(), info.granularity_bytes);
        let flags = info.flags();
        match output {
            OutputFormat::Human => {
                let flags = if flags.is_empty() { "disabled".into() } else { flags.join(", ") };
                let size = rounded_size(granularity_bytes);
                let name = printable(&name);
                lines.put(&format!("{name}: granularity {size}, {flags}"));
                human_content(&mut lines, trust, content.as_ref());
            }
            OutputFormat::Json => {
                let mut fields = Map::new();
                fields.insert("name".into(), name.into());
                fields.insert("granularity".into(), granularity_bytes.into());
                fields.insert("flags".into(), flags.into());
                fields.insert("inconsistent".into(), (trust == Trust::Inconsistent).into());
                fields.insert("known".into(), (trust != Trust::Unknown).into());
                lines.put(separator);
                json_content(&mut lines, fields, content.as_ref());
                separator = ",\n";
            }
        }
    }
    if output == OutputFormat::Json {
        lines.put(if separator == "[" { "[]\n" } else { "]\n" });
    }
    Ok(())
}

fn human_content(lines: &mut Lines, trust: Trust, content: Option<&Content>) {
    let Some(Content { granules, .. }) = content else {
        lines.put(match trust {
            Trust::Unknown => "; of a kind that is not known here: kept as it is\n",
            _ => "; inconsistent: --repair makes all of it dirty, --remove takes it away\n",
        });
        return;
    };
    let (count, bytes) = (granules.count(), granules.dirty_bytes());
    let of = granules.len_granules();
    lines.put(&format!(", {count} of {of} granules dirty ({bytes} bytes)\n"));
    for run in granules.ranges(0..u64::MAX) {
        lines.put(&format!(
            "    {:#x}-{:#x} ({} bytes)\n",
            run.start,
            run.end,
            run.end - run.start
        ));
    }
}

/// The ranges are printed one by one: there can be very many.
fn json_content(lines: &mut Lines, mut fields: Map<String, Value>, content: Option<&Content>) {
    let Some(Content { granules, .. }) = content else {
        return lines.put(&Value::Object(fields).to_string());
    };
    fields.insert("count".into(), granules.dirty_bytes().into());
    let text = Value::Object(fields).to_string();
    lines.put(text.strip_suffix('}').unwrap_or(&text));
    lines.put(",\"ranges\":[");
    let mut separator = "";
    for run in granules.ranges(0..u64::MAX) {
        let range = json!({ "start": run.start, "length": run.end - run.start });
        lines.put(&format!("{separator}{range}"));
        separator = ",";
    }
    lines.put("]}");
}
