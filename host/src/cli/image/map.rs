//! `blockloom image map`: which file of a chain holds which part of the disk, as `qemu-img map` tells it.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::disk::{Disk, Piece};
use super::failure::Result;
use super::layer::{Format, open_chain};
use super::mapper::RunKind;
use super::output::{Lines, OutputFormat};
use crate::node::Access;
use crate::text::printable;

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

impl Extent {
    fn new(start: u64, piece: &Piece) -> Self {
        let Piece { len, depth, is_own, kind, host } = *piece;
        Self {
            start,
            length: len,
            depth,
            present: is_own,
            zero: !matches!(kind, RunKind::Data | RunKind::Compressed(_)),
            data: matches!(kind, RunKind::Data | RunKind::Compressed(_) | RunKind::DataHole),
            compressed: matches!(kind, RunKind::Compressed(_)),
            offset: host,
        }
    }
}

/// Prints the map of a disk, in pieces as they are found.
pub(super) async fn map(
    path: PathBuf,
    format: Option<Format>,
    access: Access,
    output: OutputFormat,
) -> Result<()> {
    let disk = Disk::new(open_chain(&path, format, access).await?).await?;
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
    let (mut at, end) = (0, disk.size_bytes());
    while at < end {
        let next = Extent::new(at, &disk.piece(at, end - at).await?);
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
    let file = disk.layer(extent.depth).data_path();
    let file = printable(&file.display().to_string());
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
