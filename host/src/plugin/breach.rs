//! How a guest breaks the protocol, and in which words that is told.

use std::fmt;

use blockloom_abi::{Kind, Violation};

use super::table::OPERATIONS_OF_REQUEST_MAX;

/// How a guest broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Breach {
    /// The layout itself.
    Layout(Violation),
    /// An id that names no request of this instance.
    UnknownRequest(u32),
    /// A step that the request's state does not allow.
    OutOfTurn { id: u32, what: &'static str },
    /// A success that the child did not give.
    Unserved { id: u32, kind: Kind },
    /// A buffer with the name of one that is there.
    BufferInUse(u32),
    /// More operations for one request than it may need.
    TooManyOperations(u32),
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout(violation) => violation.fmt(f),
            Self::UnknownRequest(id) => {
                write!(f, "it answered request {id:#x}, which it was not given")
            }
            Self::OutOfTurn { id, what } => {
                write!(f, "it tried to {what} request {id:#x} out of turn")
            }
            Self::Unserved { id, kind } => {
                write!(f, "it completed {kind:?} {id:#x} with success, but did not forward it")
            }
            Self::TooManyOperations(id) => write!(
                f,
                "it asked for more than {OPERATIONS_OF_REQUEST_MAX} operations for request {id:#x}"
            ),
            Self::BufferInUse(token) => {
                write!(f, "it read into buffer {token:#x}, which it had not dropped")
            }
        }
    }
}
