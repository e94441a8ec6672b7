//! What a client is told when a command fails.

use std::fmt;

use serde_json::{Value, json};

use crate::error::{Error, ErrorKind};
use crate::host::StartError;
use crate::plugin::InstanceError;

/// QMP's classes of errors (QEMU, `qapi/error.json`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorClass {
    /// Everything that has no class of its own.
    Generic,
    /// No such command, or not now.
    CommandNotFound,
    /// No such drive.
    DeviceNotFound,
    /// No such job.
    DeviceNotActive,
}

impl ErrorClass {
    fn name(self) -> &'static str {
        match self {
            Self::Generic => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
            Self::DeviceNotFound => "DeviceNotFound",
            Self::DeviceNotActive => "DeviceNotActive",
        }
    }
}

/// Characters of a description.
const DESC_MAX: usize = 2000;

/// An error for a client: QEMU's words where QEMU has such an error, the host's otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QmpError {
    pub(crate) class: ErrorClass,
    pub(crate) desc: String,
    /// Something was not there that was found before: it may be another one by now.
    pub(crate) is_missing: bool,
}

pub(crate) type QmpResult<T> = Result<T, QmpError>;

impl QmpError {
    pub(crate) fn new(class: ErrorClass, desc: impl Into<String>) -> Self {
        Self { class, desc: desc.into(), is_missing: false }
    }

    pub(crate) fn generic(desc: impl Into<String>) -> Self {
        Self::new(ErrorClass::Generic, desc)
    }

    /// The answer to a command, without its `id`. It repeats no name that is as long as a command.
    pub(crate) fn answer(&self) -> Value {
        let desc = match self.desc.char_indices().nth(DESC_MAX) {
            None => self.desc.clone(),
            Some((end, _)) => format!("{}…", &self.desc[..end]),
        };
        json!({"error": {"class": self.class.name(), "desc": desc}})
    }
}

impl fmt::Display for QmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.desc)
    }
}

impl From<Error> for QmpError {
    fn from(error: Error) -> Self {
        let is_missing = error.kind() == ErrorKind::NotFound;
        Self { is_missing, ..Self::generic(error.to_string()) }
    }
}

impl From<StartError> for QmpError {
    fn from(error: StartError) -> Self {
        Self::generic(error.brief())
    }
}

impl From<InstanceError> for QmpError {
    fn from(error: InstanceError) -> Self {
        Self::generic(error.to_string())
    }
}
