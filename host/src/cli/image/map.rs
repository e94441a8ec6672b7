//! `blockloom image map`: which file of a chain holds which part of the disk, as `qemu-img map` tells it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::failure::Result;
use super::layer::{Format, Layer, open_chain};
use super::mapper::{Mapper, RunKind};
use super::output::{Lines, OutputFormat};
use crate::node::Access;

/// A part of the disk and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    start: u64,
    length: u64,
    /// Images above the one that answers.
    depth: usize,
    /// Whether that image has something of its own here.
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    /// Where it is in the file.
    offset: Option<u64>,
}

impl Extent {
    /// The two as one, if the second goes on as the first one ends.
    fn joined(&self, next: &Self) -> Option<Self> {
        let continued = Self {
            start: self.start + self.length,
            length: next.length,
            offset: self.offset.map(|offset| offset + self.length),
            ..*self
        };
        (continued == *next).then_some(Self { length: self.length + next.length, ..*self })
    }
}

/// Prints the map of a disk, in pieces as they are found.
pub(super) async fn map(
    path: PathBuf,
    format: Option<Format>,
    access: Access,
    output: OutputFormat,
) -> Result<()> {
    let mut disk = Disk::open(&path, format, access).await?;
    let mut lines = Lines::new();
    match output {
        OutputFormat::Human => {
            lines.put(&format!("{}\n", human_line("Offset", "Length", "Mapped to", "File")));
        }
        OutputFormat::Json => lines.put("["),
    }
    let (mut pending, mut separator) = (None::<Extent>, "");
    let mut print = |extent: &Extent, disk: &Disk, lines: &mut Lines| match output {
        OutputFormat::Human => print_human(extent, disk, lines),
        OutputFormat::Json => {
            lines.put(&format!("{separator}{}", json_line(extent)));
            separator = ",\n";
        }
    };
    let (mut at, end) = (0, disk.layers[0].size_bytes);
    while at < end {
        let next = disk.extent(at, end - at).await?;
        at += next.length;
        pending = match pending {
            None => Some(next),
            Some(last) => last.joined(&next).or_else(|| {
                print(&last, &disk, &mut lines);
                Some(next)
            }),
        };
    }
    if let Some(last) = pending {
        print(&last, &disk, &mut lines);
    }
    if output == OutputFormat::Json {
        lines.put("]\n");
    }
    Ok(())
}

fn human_line(offset: &str, length: &str, mapped: &str, file: &str) -> String {
    format!("{offset:<16}{length:<16}{mapped:<16}{file}")
}

/// Only data are shown; compressed ones have no place as they are.
fn print_human(extent: &Extent, disk: &Disk, lines: &mut Lines) {
    if !extent.data || extent.zero {
        return;
    }
    let hex = |number: u64| if number == 0 { "0".to_owned() } else { format!("{number:#x}") };
    let mapped = extent.offset.map_or_else(|| "compressed".to_owned(), hex);
    let file = disk.layers[extent.depth].data_path();
    let file = file.display().to_string();
    lines.put(&human_line(&hex(extent.start), &hex(extent.length), &mapped, &file));
    lines.put("\n");
}

fn json_line(extent: &Extent) -> String {
    let Extent { start, length, depth, present, zero, data, compressed, offset } = extent;
    let mut line = format!(
        "{{ \"start\": {start}, \"length\": {length}, \"depth\": {depth}, \"present\": {present}, \
         \"zero\": {zero}, \"data\": {data}, \"compressed\": {compressed}"
    );
    if let Some(offset) = offset {
        // Writing to a string cannot fail.
        let _ = write!(line, ", \"offset\": {offset}");
    }
    line.push('}');
    line
}

/// A chain of images, the top one first.
#[derive(Debug)]
struct Disk {
    layers: Vec<Layer>,
    mappers: Vec<Mapper>,
}

impl Disk {
    async fn open(path: &Path, format: Option<Format>, access: Access) -> Result<Self> {
        let layers = open_chain(path, format, access).await?;
        let mut mappers = Vec::with_capacity(layers.len());
        for layer in &layers {
            mappers.push(layer.mapper().await?);
        }
        Ok(Self { layers, mappers })
    }

    /// What the first part of a range, which is not empty, is.
    async fn extent(&mut self, start: u64, len: u64) -> Result<Extent> {
        let mut extent = Extent {
            start,
            length: len,
            depth: 0,
            present: false,
            zero: true,
            data: false,
            compressed: false,
            offset: None,
        };
        let sizes: Vec<u64> = self.layers.iter().map(|layer| layer.size_bytes).collect();
        for (depth, (layer, mapper)) in self.layers.iter().zip(&mut self.mappers).enumerate() {
            let within = extent.length.min(sizes[depth] - start);
            let run = mapper.map(&layer.storage, start, within).await?;
            (extent.depth, extent.length, extent.offset) = (depth, run.len, run.host);
            match run.kind {
                RunKind::Unallocated => {
                    // Past the end of the one behind, or with none, there are zeros.
                    if sizes.get(depth + 1).is_none_or(|size| start >= *size) {
                        return Ok(extent);
                    }
                    continue;
                }
                RunKind::Data => (extent.data, extent.zero) = (true, false),
                RunKind::DataHole => extent.data = true,
                RunKind::Compressed { .. } => {
                    (extent.data, extent.zero, extent.compressed) = (true, false, true);
                }
                RunKind::Zero => {}
            }
            extent.present = true;
            return Ok(extent);
        }
        Ok(extent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_join_where_the_second_goes_on() {
        let data = |start, offset| Extent {
            start,
            length: 512,
            depth: 0,
            present: true,
            zero: false,
            data: true,
            compressed: false,
            offset: Some(offset),
        };
        let check = |second: Extent, joins: bool| {
            assert_eq!(data(0, 4096).joined(&second).is_some(), joins, "{second:?}");
        };
        check(data(512, 4608), true);
        check(data(512, 8192), false);
        check(data(1024, 4608), false);
        check(Extent { depth: 1, ..data(512, 4608) }, false);
        check(Extent { offset: None, ..data(512, 0) }, false);
        check(Extent { length: 1 << 20, ..data(512, 4608) }, true);
    }
}
