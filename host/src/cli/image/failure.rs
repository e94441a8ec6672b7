//! How a command fails: with an exit code and a message that names the file or option, and the fix.

use std::fmt::Display;
use std::path::Path;

use crate::error::Error;

/// Why a command did not do its work.
#[derive(Debug)]
pub(super) struct Failure {
    /// The program's exit code.
    pub code: u8,
    /// What to print.
    pub message: String,
}

pub(super) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// The command line is wrong: exit code 2.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// The work could not be done: exit code 1.
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// The same for what went wrong with a file.
    pub(super) fn of_file(path: &Path, error: impl Display) -> Self {
        Self::failed(format!("`{}`: {error}", path.display()))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::failed(error.to_string())
    }
}
