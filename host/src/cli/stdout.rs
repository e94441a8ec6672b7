//! What goes to stdout, and what becomes of it.
//!
//! A reader that goes (`| head -1`) has had all that it wants: what comes after that is dropped. Any other failure
//! is the command's.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

use crate::error::{Error, ErrorKind, Result};

/// Why nothing goes there any more; the first reason.
static END: OnceLock<End> = OnceLock::new();

enum End {
    ReaderGone,
    Failed(String),
}

/// Prints a line at once.
pub(super) fn println(line: fmt::Arguments<'_>) {
    let mut output = io::stdout().lock();
    note(writeln!(output, "{line}").and_then(|()| output.flush()));
}

/// What became of something that was written.
pub(super) fn note(result: io::Result<()>) {
    let Err(error) = result else { return };
    END.get_or_init(|| match error.kind() {
        io::ErrorKind::BrokenPipe => End::ReaderGone,
        _ => End::Failed(error.to_string()),
    });
}

/// Whether nothing goes there any more.
pub(super) fn is_over() -> bool {
    END.get().is_some()
}

/// What came of all that was written.
///
/// # Errors
/// Why some of it is lost that somebody was to read.
pub(super) fn check() -> Result<()> {
    match END.get() {
        Some(End::Failed(why)) => {
            Err(Error::new(ErrorKind::Io, format!("cannot write to stdout: {why}")))
        }
        Some(End::ReaderGone) | None => Ok(()),
    }
}

/// The exit code of a command that has ended with `code`: one that could not say what it was to say has failed.
pub(super) fn conclude(code: ExitCode) -> ExitCode {
    match check() {
        Err(error) if code == ExitCode::SUCCESS => {
            super::complain(&error);
            ExitCode::from(1)
        }
        _ => code,
    }
}
