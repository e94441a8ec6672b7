//! The descriptor of a request: everything but its data.

use crate::error::{Error, ErrorKind, Result};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Reads bytes.
    Read,
    /// Writes bytes.
    Write,
    /// Makes a range read as zeros.
    Zero,
    /// Tells that a range is not needed.
    Discard,
    /// Makes completed writes durable.
    Flush,
    /// Asks for extents.
    Status,
}

impl OpKind {
    /// All kinds, in the order of their index.
    pub const ALL: [Self; 6] =
        [Self::Read, Self::Write, Self::Zero, Self::Discard, Self::Flush, Self::Status];

    /// Position in [`OpKind::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The field's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::Status => "block status",
        }
    }

    /// Whether it may alter a view.
    pub fn is_change(self) -> bool {
        matches!(self, Self::Write | Self::Zero | Self::Discard)
    }
}

/// A request's kind and range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// What it does.
    pub kind: OpKind,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Op {
    /// Bytes of data that it moves: those of reads and writes.
    #[inline]
    pub(super) fn transfer_bytes(&self) -> u64 {
        match self.kind {
            OpKind::Read | OpKind::Write => self.len,
            OpKind::Zero | OpKind::Discard | OpKind::Flush | OpKind::Status => 0,
        }
    }

    /// Checks that the range lies in a view of `size_bytes`.
    ///
    /// # Errors
    /// A change past the end is `ENOSPC`, anything else `EINVAL`.
    #[inline]
    pub fn check_range(&self, size_bytes: u64) -> Result<()> {
        match self.offset.checked_add(self.len) {
            Some(end) if end <= size_bytes => Ok(()),
            _ => Err(self.past_the_end(size_bytes)),
        }
    }

    #[cold]
    fn past_the_end(&self, size_bytes: u64) -> Error {
        let kind = if self.kind.is_change() { ErrorKind::NoSpace } else { ErrorKind::Invalid };
        let message = format!(
            "{} of {} bytes at {} lies past the end ({size_bytes} bytes)",
            self.kind.name(),
            self.len,
            self.offset
        );
        Error::new(kind, message)
    }
}
