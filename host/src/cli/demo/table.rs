//! What has been copied, beside what QEMU's rules would have copied.

use super::super::progress::size;
use super::ledger::{Changes, GRANULE};

/// A backup.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) changes: Changes,
    pub(super) copied_bytes: u64,
    /// It is a full one: nothing says what has changed.
    pub(super) is_full: bool,
}

const WIDTHS: [usize; 4] = [14, 14, 14, 14];

fn line(cells: [&str; 5]) -> String {
    let mut line = String::from("  ");
    for (cell, width) in cells.iter().zip(WIDTHS) {
        line += &format!("{cell:<width$}");
    }
    line + cells[4]
}

/// The whole table.
pub(super) fn table(rows: &[Row]) -> String {
    let heads = ["backup", "guest changed", "copied", "QEMU's rules", ""];
    let mut lines = vec![String::new(), line(heads)];
    for row in rows {
        let bytes = |granules: usize| size(granules as u64 * GRANULE);
        let Changes { changed, recorded, unseen } = &row.changes;
        let (changed, copied) = match row.is_full {
            true => ("all".to_owned(), size(row.copied_bytes)),
            false => (bytes(changed.len()), size(row.copied_bytes)),
        };
        let by_qemu = if row.is_full { copied.clone() } else { bytes(recorded.len()) };
        let what = match (row.is_full, unseen.is_empty()) {
            (true, _) => String::new(),
            (false, true) => "nothing missed".to_owned(),
            (false, false) => format!("and {} missed", bytes(unseen.len())),
        };
        lines.push(line([row.name, &changed, &copied, &by_qemu, &what]).trim_end().to_owned());
    }
    lines.push(String::new());
    lines.push(
        "QEMU's rules: a dirty bitmap belongs to a node and records every write to it, also of what is\n\
         only copied up through a filter; after a snapshot it stays where it was."
            .to_owned(),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Granules;
    use super::*;

    #[test]
    fn rows_are_in_columns() {
        let of = |count: u64| (0..count).collect::<Granules>();
        let changes = |changed, recorded, unseen| Changes {
            changed: of(changed),
            recorded: of(recorded),
            unseen: of(unseen),
        };
        let row =
            |name, changes, copied_bytes, is_full| Row { name, changes, copied_bytes, is_full };
        let rows = [
            row("full", changes(0, 0, 0), 64 << 20, true),
            row("first", changes(8, 32, 4), 512 << 10, false),
            row("second", changes(1, 1, 0), 64 << 10, false),
        ];
        let shown = table(&rows);
        let lines: Vec<&str> = shown.lines().skip(1).take(4).collect();
        let expect = [
            "  backup        guest changed copied        QEMU's rules  ",
            "  full          all           64 MiB        64 MiB",
            "  first         512 KiB       512 KiB       2 MiB         and 256 KiB missed",
            "  second        64 KiB        64 KiB        64 KiB        nothing missed",
        ];
        assert_eq!(lines, expect);
    }
}
