//! What commands print.

use std::io::{BufWriter, StdoutLock, Write, stdout};

use clap::ValueEnum;
use serde_json::Value;

use crate::cli::stdout::note;

/// How a command prints its results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// For people.
    Human,
    /// For programs: the keys of `qemu-img`.
    Json,
}

/// Text for stdout, in pieces.
#[derive(Debug)]
pub(super) struct Lines {
    output: BufWriter<StdoutLock<'static>>,
}

impl Lines {
    pub(super) fn new() -> Self {
        Self { output: BufWriter::new(stdout().lock()) }
    }

    /// Prints.
    pub(super) fn put(&mut self, text: &str) {
        note(self.output.write_all(text.as_bytes()));
    }

    /// Prints a document.
    pub(super) fn json(&mut self, value: &Value) {
        self.put(&format!("{value:#}\n"));
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        note(self.output.flush());
    }
}

/// A size in the largest unit that it fills, with three digits: `1.5 MiB`.
pub(super) fn rounded_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (bytes.max(1).ilog2() / 10) as usize;
    let number = bytes as f64 / (1_u64 << (10 * unit)) as f64;
    let digits = match number {
        _ if number >= 99.95 => 0,
        _ if number >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{number:.digits$}");
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    format!("{text} {}", UNITS[unit])
}

/// Seconds since the Epoch as a date and time, UTC.
pub(super) fn date(seconds: u32) -> String {
    let (days, rest) = (i64::from(seconds) / 86_400, seconds % 86_400);
    // Civil date from a count of days, with years that begin in March.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let check = |bytes, expect: &str| assert_eq!(rounded_size(bytes), expect);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1 << 20, "1 MiB");
        check(1_704_448, "1.63 MiB");
        check(327_680, "320 KiB");
        check(u64::MAX, "16 EiB");
    }

    #[test]
    fn dates() {
        let check = |seconds, expect: &str| assert_eq!(date(seconds), expect);
        check(0, "1970-01-01 00:00:00");
        check(951_782_400, "2000-02-29 00:00:00");
        check(1_795_640_960, "2026-11-25 21:09:20");
        check(u32::MAX, "2106-02-07 06:28:15");
    }
}
