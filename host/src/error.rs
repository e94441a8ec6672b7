//! Errors of the library: few kinds, each one an errno, with the context a reader needs.
//!
//! A message names the thing and the fix; `kind` is what code matches on. Kinds map one-to-one to
//! errnos, so that an error crosses NBD or the plugin ABI without loss.

use std::borrow::Cow;
use std::fmt;

/// What went wrong, as far as a program needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operation is not permitted here (`EPERM`).
    NotPermitted,
    /// No such node, drive, bitmap, export or file (`ENOENT`).
    NotFound,
    /// The medium or a driver failed (`EIO`).
    Io,
    /// Too much is in progress; try again later (`EAGAIN`).
    Busy,
    /// Memory or another bounded resource is exhausted (`ENOMEM`).
    NoMemory,
    /// The thing is in use by somebody else (`EBUSY`).
    InUse,
    /// The name is taken (`EEXIST`).
    Exists,
    /// The drive has no medium (`ENOMEDIUM`).
    NoMedium,
    /// The request or an argument is malformed or out of range (`EINVAL`).
    Invalid,
    /// A write past the end, or no space left (`ENOSPC`).
    NoSpace,
    /// The node or image is read-only (`EROFS`).
    ReadOnly,
    /// Neither native nor emulated here (`ENOTSUP`).
    NotSupported,
    /// The host is shutting down (`ESHUTDOWN`).
    ShuttingDown,
    /// A deadline passed (`ETIMEDOUT`).
    TimedOut,
    /// What a claim rests on has changed since; nothing was written (`ESTALE`).
    Stale,
}

/// Each kind with its Linux errno; the order is the lookup order of [`ErrorKind::from_errno`].
const ERRNOS: [(ErrorKind, i32); 15] = [
    (ErrorKind::NotPermitted, 1),
    (ErrorKind::NotFound, 2),
    (ErrorKind::Io, 5),
    (ErrorKind::Busy, 11),
    (ErrorKind::NoMemory, 12),
    (ErrorKind::InUse, 16),
    (ErrorKind::Exists, 17),
    (ErrorKind::Invalid, 22),
    (ErrorKind::NoSpace, 28),
    (ErrorKind::ReadOnly, 30),
    (ErrorKind::NotSupported, 95),
    (ErrorKind::ShuttingDown, 108),
    (ErrorKind::TimedOut, 110),
    (ErrorKind::Stale, 116),
    (ErrorKind::NoMedium, 123),
];

impl ErrorKind {
    /// The Linux errno of this kind.
    pub fn errno(self) -> i32 {
        ERRNOS.iter().find(|(kind, _)| *kind == self).map_or(5, |(_, errno)| *errno)
    }

    /// The kind for an errno; an errno without a kind of its own is [`ErrorKind::Io`].
    pub fn from_errno(errno: i32) -> Self {
        // A quota or the largest file size is reached: no space, as far as a guest is concerned.
        const EFBIG: i32 = 27;
        const EDQUOT: i32 = 122;
        if matches!(errno, EFBIG | EDQUOT) {
            return Self::NoSpace;
        }
        ERRNOS.iter().find(|(_, e)| *e == errno).map_or(Self::Io, |(kind, _)| *kind)
    }
}

/// An error of the library. One word: results of the request path stay small.
#[derive(Clone, Debug)]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    node: Option<Box<str>>,
    is_of_write: bool,
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`; `message` is lower-case and names the thing and the fix.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), node: None, is_of_write: false }))
    }

    /// The same error, saying at which node it arose (the first node named stays).
    #[must_use]
    pub fn at_node(mut self, node: &str) -> Self {
        if self.0.node.is_none() {
            self.0.node = Some(node.into());
        }
        self
    }

    /// The same error, of a copy that failed at what it writes.
    #[must_use]
    pub(crate) fn of_write(mut self) -> Self {
        self.0.is_of_write = true;
        self
    }

    /// Whether it is of a copy that failed at what it writes, and not at what it reads.
    pub fn is_of_write(&self) -> bool {
        self.0.is_of_write
    }

    /// An operating-system error in the words of `what`.
    pub fn os(what: impl fmt::Display, source: &std::io::Error) -> Self {
        let kind = source.raw_os_error().map_or(ErrorKind::Io, ErrorKind::from_errno);
        Self::new(kind, format!("{what}: {source}"))
    }

    /// What code matches on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The Linux errno of the kind.
    pub fn errno(&self) -> i32 {
        self.0.kind.errno()
    }

    /// The node at which the error arose, if one is known.
    pub fn node(&self) -> Option<&str> {
        self.0.node.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.node {
            Some(node) => write!(f, "node `{node}`: {}", self.0.message),
            None => f.write_str(&self.0.message),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_errnos_are_one_to_one() {
        for (kind, errno) in ERRNOS {
            assert_eq!(kind.errno(), errno);
            assert_eq!(ErrorKind::from_errno(errno), kind);
        }
        assert_eq!(ErrorKind::from_errno(71), ErrorKind::Io);
    }
}
