//! The command line.

use std::path::PathBuf;
use std::process::exit;
use std::str::FromStr;

/// What the command line says.
pub(crate) struct Options {
    /// Runs of each workload on each server.
    pub(crate) rounds: usize,
    /// Duration of one run, seconds.
    pub(crate) secs: u32,
    /// Size of each disk, MiB.
    pub(crate) size_mib: u64,
    /// The `blockloom` to measure.
    pub(crate) program: PathBuf,
    /// Beginning of the names of the sections to run; empty for all.
    only: String,
}

impl Options {
    /// `None` when this is not a benchmark run: `cargo test --benches` runs it without `--bench`.
    pub(crate) fn from_arguments() -> Option<Self> {
        let mut options = Self {
            rounds: 5,
            secs: 3,
            size_mib: 512,
            // Built with this benchmark, in the same profile: never an old one.
            program: env!("CARGO_BIN_EXE_blockloom-under-test").into(),
            only: String::new(),
        };
        let mut is_benchmark = false;
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => is_benchmark = true,
                "--rounds" => options.rounds = value(&argument, arguments.next()),
                "--secs" => options.secs = value(&argument, arguments.next()),
                "--size-mib" => options.size_mib = value(&argument, arguments.next()),
                "--program" => options.program = value(&argument, arguments.next()),
                "--only" => options.only = value(&argument, arguments.next()),
                _ => refuse(&format!("unknown option `{argument}`")),
            }
        }
        if options.rounds == 0 || options.secs == 0 || options.size_mib == 0 {
            refuse("`--rounds`, `--secs` and `--size-mib` must be at least 1");
        }
        is_benchmark.then_some(options)
    }

    /// Whether to run a section.
    pub(crate) fn has(&self, section: &str) -> bool {
        section.starts_with(&self.only)
    }
}

fn value<T: FromStr>(option: &str, text: Option<String>) -> T {
    text.and_then(|text| text.parse().ok())
        .unwrap_or_else(|| refuse(&format!("`{option}` needs a value")))
}

fn refuse(message: &str) -> ! {
    eprintln!(
        "error: {message}\nusage: [--only SECTION] [--rounds N] [--secs S] [--size-mib M] [--program FILE]"
    );
    exit(2)
}
