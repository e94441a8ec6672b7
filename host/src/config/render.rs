//! Diagnostics as text, the way rustc lays them out.
//!
//! Columns count characters from 1. Tabs are shown as spaces, control and invisible formatting
//! characters as escapes, and a long line by the part around the fault, so that the marks stand
//! under what they mean.

use std::fmt::{self, Write as _};

use super::diagnostic::{Diagnostic, Diagnostics, Severity, Source, Span};
use crate::text::{printable, push_printable};

/// Diagnostics shown; the rest is counted.
const MOST_SHOWN: usize = 100;
/// Characters of a source line shown, and how many of them stand before the fault when it is cut.
const LONGEST_LINE_CHARS: usize = 160;
const KEPT_BEFORE_FAULT_CHARS: usize = 40;
/// Characters of a name or value quoted in a message.
const LONGEST_QUOTE_CHARS: usize = 64;
const TAB: &str = "    ";

pub(super) fn render(all: &Diagnostics, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let lines = Lines::new(&all.source);
    for diagnostic in all.iter().take(MOST_SHOWN) {
        lines.diagnostic(diagnostic, f)?;
        writeln!(f)?;
    }
    let errors = all.iter().filter(|it| it.severity == Severity::Error).count();
    let warnings = all.len() - errors;
    let count = [counted(errors, "error"), counted(warnings, "warning")];
    let count: Vec<&str> = count.iter().flatten().map(String::as_str).collect();
    if all.is_empty() {
        return write!(f, "no errors in {}", printable(all.file_name()));
    }
    write!(f, "{} in {}", count.join(", "), printable(all.file_name()))?;
    if all.len() > MOST_SHOWN {
        write!(f, " (the first {MOST_SHOWN} are shown)")?;
    }
    Ok(())
}

fn counted(count: usize, what: &str) -> Option<String> {
    match count {
        0 => None,
        1 => Some(format!("1 {what}")),
        _ => Some(format!("{count} {what}s")),
    }
}

/// The beginning of a name or value from the file, for a message.
pub(super) fn clip(text: &str) -> String {
    match text.char_indices().nth(LONGEST_QUOTE_CHARS) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

/// Cells of a terminal that a character takes, near enough to place a mark below it.
fn cells(c: char) -> usize {
    match c {
        '\u{300}'..='\u{36f}' | '\u{1ab0}'..='\u{1aff}' | '\u{20d0}'..='\u{20ff}' => 0,
        '\u{fe00}'..='\u{fe0f}' | '\u{fe20}'..='\u{fe2f}' => 0,
        '\u{1100}'..='\u{115f}' | '\u{2e80}'..='\u{a4cf}' | '\u{ac00}'..='\u{d7a3}' => 2,
        '\u{f900}'..='\u{faff}' | '\u{fe30}'..='\u{fe6f}' | '\u{ff00}'..='\u{ff60}' => 2,
        '\u{ffe0}'..='\u{ffe6}' | '\u{1f300}'..='\u{1f64f}' | '\u{1f680}'..='\u{1faff}' => 2,
        '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

/// The file, by lines.
struct Lines<'a> {
    source: &'a Source,
    starts: Vec<usize>,
}

/// A mark under a line: from and to in bytes of the line.
struct Mark<'a> {
    line: usize,
    from: usize,
    to: usize,
    sign: char,
    label: &'a str,
}

impl<'a> Lines<'a> {
    fn new(source: &'a Source) -> Self {
        let ends = source.text.match_indices('\n').map(|(at, _)| at + 1);
        Self { source, starts: std::iter::once(0).chain(ends).collect() }
    }

    /// Index of the line that holds the byte at `offset`.
    fn line_of(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset).saturating_sub(1)
    }

    fn text(&self, line: usize) -> &'a str {
        let start = self.starts.get(line).copied().unwrap_or(self.source.text.len());
        let end = self.starts.get(line + 1).copied().unwrap_or(self.source.text.len());
        let text = self.source.text.get(start..end).unwrap_or("");
        text.trim_end_matches('\n').trim_end_matches('\r')
    }

    /// Clips `span` to its first line, and to whole characters.
    fn mark<'l>(&self, span: Span, sign: char, label: &'l str) -> Mark<'l> {
        let line = self.line_of(span.start);
        let text = self.text(line);
        let start = self.starts.get(line).copied().unwrap_or(0);
        let from = text.floor_char_boundary(span.start.saturating_sub(start));
        let to = text.floor_char_boundary(span.end.saturating_sub(start)).max(from);
        Mark { line, from, to, sign, label }
    }

    fn diagnostic(&self, it: &Diagnostic, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match it.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        writeln!(f, "{severity}: {}", printable(&it.message))?;
        if let Some(path) = self.source.path(it.span) {
            return self.by_path(path, it, f);
        }
        let main = self.mark(it.span, '^', "");
        let column = self.text(main.line)[..main.from].chars().count() + 1;
        let place = (main.line + 1, column);
        let mut marks = vec![main];
        let (there, here): (Vec<_>, Vec<_>) =
            it.notes.iter().partition(|note| note.span == Span::NOWHERE);
        marks.extend(here.iter().map(|note| self.mark(note.span, '-', &note.label)));
        marks.sort_by_key(|mark| (mark.line, mark.from));

        let last = marks.last().map_or(0, |mark| mark.line + 1);
        let gutter = " ".repeat(last.to_string().len() + 1);
        let name = printable(&self.source.file_name);
        writeln!(f, "{gutter}--> {name}:{}:{}", place.0, place.1)?;
        writeln!(f, "{gutter} |")?;
        self.snippet(&marks, &gutter, f)?;
        there.iter().try_for_each(|note| {
            writeln!(f, "{gutter} = note: {} (it is there already)", printable(&note.label))
        })?;
        match &it.help {
            Some(help) => writeln!(f, "{gutter} = help: {}", printable(help)),
            None => Ok(()),
        }
    }

    /// Of what is no text.
    fn by_path(&self, path: &str, it: &Diagnostic, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = printable(&self.source.file_name);
        match path.is_empty() {
            true => writeln!(f, "  --> {name}")?,
            false => writeln!(f, "  --> {name}: {}", printable(path))?,
        }
        for note in &it.notes {
            let place = match self.source.path(note.span) {
                Some(path) if !path.is_empty() => format!("{path}: "),
                _ => String::new(),
            };
            writeln!(f, "   = note: {}", printable(&format!("{place}{}", note.label)))?;
        }
        match &it.help {
            Some(help) => writeln!(f, "   = help: {}", printable(help)),
            None => Ok(()),
        }
    }

    fn snippet(&self, marks: &[Mark<'_>], gutter: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = gutter.len();
        let mut shown: Option<usize> = None;
        for on_line in marks.chunk_by(|one, next| one.line == next.line) {
            let line = on_line[0].line;
            if shown.is_some_and(|shown| line > shown + 1) {
                writeln!(f, "{gutter}...")?;
            }
            shown = Some(line);
            let view = View::new(self.text(line), on_line[0].from);
            let row = format!("{:>width$} | {}", line + 1, view.text);
            writeln!(f, "{}", row.trim_end())?;
            for mark in on_line {
                let (before, under) = view.place(mark);
                let signs = String::from(mark.sign).repeat(under);
                let label = printable(mark.label);
                let row = format!("{gutter} | {}{signs} {label}", " ".repeat(before));
                writeln!(f, "{}", row.trim_end())?;
            }
        }
        Ok(())
    }
}

/// A source line as it is printed.
struct View {
    text: String,
    /// For each character shown, and one past the last: its byte in the line and its first cell.
    cells: Vec<(usize, usize)>,
}

impl View {
    /// Shows `line`, if it is long only the part around the byte at `fault`.
    fn new(line: &str, fault: usize) -> Self {
        let first_char = match line.chars().count() > LONGEST_LINE_CHARS {
            true => line[..fault].chars().count().saturating_sub(KEPT_BEFORE_FAULT_CHARS),
            false => 0,
        };
        let mut view = Self { text: String::new(), cells: Vec::new() };
        let mut cell = 0;
        if first_char > 0 {
            view.text.push('…');
            cell = 1;
        }
        let mut end = line.len();
        for (index, (byte, c)) in line.char_indices().skip(first_char).enumerate() {
            if index == LONGEST_LINE_CHARS {
                end = byte;
                break;
            }
            view.cells.push((byte, cell));
            let start = view.text.len();
            match c {
                '\t' => view.text.push_str(TAB),
                _ => push_printable(c, &mut view.text),
            }
            cell += view.text[start..].chars().map(cells).sum::<usize>();
        }
        view.cells.push((end, cell));
        if end < line.len() {
            let _ = view.text.write_char('…');
        }
        view
    }

    /// Cells before the mark and under it (at least one).
    fn place(&self, mark: &Mark<'_>) -> (usize, usize) {
        let cell_of = |byte: usize| {
            let index = self.cells.partition_point(|(at, _)| *at < byte);
            let place = self.cells.get(index).or_else(|| self.cells.last());
            place.map_or(0, |(_, cell)| *cell)
        };
        let before = cell_of(mark.from);
        (before, cell_of(mark.to).saturating_sub(before).max(1))
    }
}
