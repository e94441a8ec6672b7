//! What a peer can do wrong in the layout itself.

use core::fmt;

/// An entry, or a list of them, that the layout does not allow. The host ends an instance over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Violation {
    /// The list ends inside an entry.
    Words {
        /// Words in the list.
        count: usize,
    },
    /// The list is longer than the limit of its direction.
    TooMany {
        /// Entries in the list.
        count: usize,
        /// Entries allowed.
        limit: usize,
    },
    /// A tag that this version does not have.
    UnknownTag(u8),
    /// A kind of request that this version does not have.
    UnknownKind(u8),
    /// A kind of control event that this version does not have.
    UnknownControl(u8),
    /// Bits are set that the tag does not use.
    Reserved {
        /// The word they are in, 0 to 3.
        word: u8,
        /// The bits.
        bits: u64,
    },
    /// Not a request's id: its generation is 0.
    RequestId(u32),
    /// Not a node's index: wider than 16 bits.
    Node(u32),
    /// Not an error number.
    Errno(u32),
    /// A length that the operation does not allow.
    Length(u64),
    /// A range that passes the end of the 64-bit offsets.
    Range {
        /// Where it starts.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
    },
    /// A copy that serves its parent, whose parent is not a request.
    ServesNothing,
    /// Not a verdict of `poll-one`.
    PollOne(u64),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Words { count } => write!(f, "{count} words are not a whole number of entries"),
            Self::TooMany { count, limit } => write!(f, "{count} entries, {limit} are allowed"),
            Self::UnknownTag(tag) => write!(f, "unknown tag {tag}"),
            Self::UnknownKind(kind) => write!(f, "unknown kind of request {kind}"),
            Self::UnknownControl(kind) => write!(f, "unknown kind of control event {kind}"),
            Self::Reserved { word, bits } => {
                write!(f, "reserved bits {bits:#x} set in word {word}")
            }
            Self::RequestId(bits) => write!(f, "{bits:#x} is not the id of a request"),
            Self::Node(aux) => write!(f, "{aux} is not the index of a node"),
            Self::Errno(number) => write!(f, "{number} is not an error number"),
            Self::Length(len) => write!(f, "a length of {len} bytes is not allowed here"),
            Self::Range { offset, len } => {
                write!(f, "{len} bytes at {offset} pass the end of all offsets")
            }
            Self::ServesNothing => f.write_str("a copy serves a request but names none"),
            Self::PollOne(word) => write!(f, "{word:#x} is not a verdict of poll-one"),
        }
    }
}

impl core::error::Error for Violation {}
