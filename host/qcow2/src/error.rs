//! Errors: few kinds, each of them an errno.

use std::borrow::Cow;

/// What went wrong, as far as a program needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Not a qcow2 image, an argument out of range (`EINVAL`).
    Invalid,
    /// The image's metadata contradict themselves or the specification (`EIO`).
    Corrupt,
    /// A feature that this crate, or this version of the format, does not have (`ENOTSUP`).
    NotSupported,
    /// The image may not be changed (`EROFS`).
    ReadOnly,
    /// No room, in the container or in a table of bounded size (`ENOSPC`).
    NoSpace,
    /// No such snapshot or bitmap (`ENOENT`).
    NotFound,
    /// The name is taken (`EEXIST`).
    Exists,
    /// What the container answered: its errno.
    Storage(i32),
}

/// An error; its message is lower-case and names the thing and, where there is one, the fix.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: Cow<'static, str>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Metadata that contradict themselves or the specification.
    pub fn corrupt(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// An argument, or a file, that is not what it should be.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// What code matches on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The Linux errno.
    pub fn errno(&self) -> i32 {
        match self.kind {
            ErrorKind::NotFound => 2,
            ErrorKind::Corrupt => 5,
            ErrorKind::Exists => 17,
            ErrorKind::Invalid => 22,
            ErrorKind::NoSpace => 28,
            ErrorKind::ReadOnly => 30,
            ErrorKind::NotSupported => 95,
            ErrorKind::Storage(errno) => errno,
        }
    }
}
