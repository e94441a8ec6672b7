//! How far things are: bars that are drawn over each other on a terminal.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

use super::stdout;

/// Columns of a bar.
const BAR_COLUMNS: u64 = 24;
/// Characters of a name that are shown.
const NAME_CHARS: usize = 16;

/// Something that takes its time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// What it is: `stream`.
    pub(super) kind: String,
    pub(super) name: String,
    /// What it is at.
    pub(super) state: String,
    pub(super) done_bytes: u64,
    pub(super) total_bytes: u64,
}

impl Progress {
    /// In a line of a terminal.
    pub(super) fn bar(&self) -> String {
        let Self { kind, name, state, done_bytes, total_bytes } = self;
        let of = |most: u64| match *total_bytes {
            0 => 0,
            total => u64::try_from(u128::from(*done_bytes) * u128::from(most) / u128::from(total))
                .unwrap_or(most)
                .min(most),
        };
        let full = usize::try_from(of(BAR_COLUMNS)).unwrap_or(0);
        let empty = usize::try_from(BAR_COLUMNS).unwrap_or(0) - full;
        let name: String = name.chars().filter(|c| !c.is_control()).take(NAME_CHARS).collect();
        format!(
            "{kind:<8} {name:<NAME_CHARS$} [{}{}] {:>3}%  {state}",
            "#".repeat(full),
            ".".repeat(empty),
            of(100)
        )
    }

    /// In words.
    pub(super) fn line(&self) -> String {
        let Self { kind, name, state, .. } = self;
        let (done, total) = (size(self.done_bytes), size(self.total_bytes));
        format!("{kind} job `{name}` is {state}: {done} of {total}")
    }
}

/// Bars that never run backwards, though more comes to be done faster than it is done.
#[derive(Default)]
pub(super) struct Steady {
    /// By name: what it was, and how much of that was shown as done.
    before: BTreeMap<String, (Progress, u64)>,
}

impl Steady {
    /// The bars of all that there is now.
    pub(super) fn bars<'p>(&mut self, now: impl Iterator<Item = &'p Progress>) -> Vec<String> {
        let before = std::mem::take(&mut self.before);
        let bar = |progress: &Progress| {
            let least = before.get(&progress.name).map_or(0, |it| least_done(it, progress));
            let done_bytes = progress.done_bytes.max(least);
            self.before.insert(progress.name.clone(), (progress.clone(), done_bytes));
            Progress { done_bytes, ..progress.clone() }.bar()
        };
        now.map(bar).collect()
    }
}

/// How much counts as done at least, where so much has been shown before.
fn least_done((before, shown_bytes): &(Progress, u64), now: &Progress) -> u64 {
    let is_another = now.done_bytes < before.done_bytes || now.total_bytes < before.total_bytes;
    if is_another || before.total_bytes == 0 {
        return 0;
    }
    let least = u128::from(*shown_bytes) * u128::from(now.total_bytes);
    u64::try_from(least.div_ceil(u128::from(before.total_bytes))).unwrap_or(u64::MAX)
}

/// Bytes, to be read by people.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
    let (unit, of) = UNITS.into_iter().find(|(_, of)| bytes >= *of).unwrap_or(UNITS[3]);
    let tenths = u128::from(bytes) * 10 / u128::from(of);
    match tenths % 10 {
        0 => format!("{} {unit}", tenths / 10),
        rest => format!("{}.{rest} {unit}", tenths / 10),
    }
}

/// Lines at the bottom of a terminal, which change; nothing elsewhere.
pub(super) struct Bars {
    is_terminal: bool,
    shown: Vec<String>,
}

impl Bars {
    pub(super) fn new() -> Self {
        Self { is_terminal: std::io::stdout().is_terminal(), shown: Vec::new() }
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Shows these lines in the place of the last ones.
    pub(super) fn show(&mut self, lines: Vec<String>) {
        if !self.is_terminal || lines == self.shown {
            return;
        }
        self.draw(&lines, None);
        self.shown = lines;
    }

    /// Prints a line above them.
    pub(super) fn print(&mut self, line: &str) {
        match self.is_terminal {
            true => self.draw(&self.shown, Some(line)),
            false => stdout::println(format_args!("{line}")),
        }
    }

    fn draw(&self, lines: &[String], above: Option<&str>) {
        let mut text = String::new();
        if !self.shown.is_empty() {
            // Up to the first one; nothing below.
            text += &format!("\x1b[{}A\x1b[J", self.shown.len());
        }
        for line in above.into_iter().chain(lines.iter().map(String::as_str)) {
            text += line;
            text.push('\n');
        }
        let mut output = std::io::stdout().lock();
        stdout::note(output.write_all(text.as_bytes()).and_then(|()| output.flush()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_and_words() {
        let check = |done_bytes, total_bytes, bar: &str, line: &str| {
            let (kind, name) = ("stream".to_owned(), "j\u{1b}[1m".to_owned());
            let state = "running".to_owned();
            let progress = Progress { kind, name, state, done_bytes, total_bytes };
            assert!(progress.bar().contains(bar), "{}", progress.bar());
            assert!(!progress.bar().contains('\u{1b}'));
            assert!(progress.line().ends_with(line), "{}", progress.line());
        };
        check(0, 0, "[........................]   0%  running", "is running: 0 B of 0 B");
        check(1 << 20, 3 << 20, "[########................]  33%", "1 MiB of 3 MiB");
        check(u64::MAX, u64::MAX, "[########################] 100%", "GiB");
        check(1536, 1000, "] 100%", "1.5 KiB of 1000 B");
    }

    #[test]
    fn bars_never_run_backwards() {
        let mut steady = Steady::default();
        let check = |steady: &mut Steady, done_bytes, total_bytes, expect: &str| {
            let name = "j".to_owned();
            let progress = Progress { name, done_bytes, total_bytes, ..Progress::default() };
            let bars = steady.bars([progress].iter());
            assert!(bars[0].contains(expect), "{done_bytes} of {total_bytes}: {bars:?}");
        };
        check(&mut steady, 0, 0, "  0%");
        check(&mut steady, 50, 100, " 50%");
        check(&mut steady, 60, 200, " 50%");
        check(&mut steady, 99, 200, " 50%");
        check(&mut steady, 101, 201, " 50%");
        check(&mut steady, 150, 201, " 74%");
        // Another one of that name.
        check(&mut steady, 10, 100, " 10%");
        assert!(steady.bars([].iter()).is_empty());
        check(&mut steady, 10, 200, "  5%");
    }
}
