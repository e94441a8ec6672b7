//! Whether what a node shows may have changed while the host was down.

use super::{NodeFuture, Result};
use crate::io::FileStamp;

/// What a node says of what it shows by itself, for somebody who stores something that holds only as long as
/// that has not changed: a bitmap. See [`Node::identity`](super::Node::identity).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It cannot be told, or nobody has thought of it: as if it had changed.
    Unknown,
    /// It shows what its children hold, each at its place, and what it is opened with says nothing else.
    OfChildren,
    /// The same, and these numbers decide which of it.
    Shaped([u64; 2]),
    /// It never changes.
    Constant,
    /// A file.
    File {
        /// Its path, for messages.
        path: String,
        /// What tells whether it has been changed.
        stamp: FileStamp,
    },
}

/// A driver's answer.
pub(super) fn answer<'a>(identity: Identity) -> NodeFuture<'a, Identity> {
    Box::pin(async move { Result::Ok(identity) })
}
