//! What was written to files and made durable, in order: from it follows what a crash at any point may leave.

use std::rc::Rc;

/// One thing that happened to a file, or that the scenario says of itself.
#[derive(Clone, Debug)]
pub(crate) enum Recorded {
    /// An operation that writes these bytes begins: from now on they may be on the medium.
    Writes { op: u64, file: Rc<str>, offset: u64, bytes: Vec<u8> },
    /// It has ended well.
    HasWritten { op: u64 },
    /// A sync of a file begins. It covers what has ended by now.
    Syncs { op: u64, file: Rc<str> },
    /// It has ended well.
    HasSynced { op: u64 },
    /// A file has another length.
    SetLen { file: Rc<str>, len: u64 },
    /// A file is at least so long.
    Extends { file: Rc<str>, len: u64 },
    /// The scenario's own.
    Says(u64),
}
