//! Names of things and ranges of bytes.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $letter:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A node. Never used twice in a world, so it is name and generation in one.
    NodeId,
    "n"
);
id!(
    /// A drive.
    DriveId,
    "d"
);
id!(
    /// A dirty bitmap.
    BitmapId,
    "b"
);
id!(
    /// A change that was admitted and has not settled.
    FlightId,
    "f"
);
id!(
    /// A watch: what a captured read leaves behind.
    WatchId,
    "w"
);

/// What shows bytes: a node, or a drive by whatever root it has.
///
/// It addresses requests, scopes bitmaps, and names the user of an edge (a parent node or a drive).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum View {
    /// A node's view.
    Node(NodeId),
    /// A drive's view: its root's, or empty without a medium.
    Drive(DriveId),
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => node.fmt(f),
            Self::Drive(drive) => drive.fmt(f),
        }
    }
}

impl From<NodeId> for View {
    fn from(node: NodeId) -> Self {
        Self::Node(node)
    }
}

impl From<DriveId> for View {
    fn from(drive: DriveId) -> Self {
        Self::Drive(drive)
    }
}

/// The bytes `start..end` of a view. Model views are small, hence `usize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte; at least `start`.
    pub end: usize,
}

impl Span {
    /// `len` bytes from `offset`.
    pub const fn at(offset: usize, len: usize) -> Self {
        Self { start: offset, end: offset.saturating_add(len) }
    }

    /// All of a view of `len` bytes.
    pub const fn whole(len: usize) -> Self {
        Self { start: 0, end: len }
    }

    /// Number of bytes.
    pub const fn len(self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Whether it holds no byte.
    pub const fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// Whether both hold some byte.
    pub fn overlaps(self, other: Self) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }

    /// Whether every byte of `other` is in it.
    pub const fn contains(self, other: Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }

    /// What both hold; empty if nothing.
    pub fn common(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        Self { start, end: self.end.min(other.end).max(start) }
    }

    /// What of it lies in a view of `len` bytes.
    pub fn clipped(self, len: usize) -> Self {
        let end = self.end.min(len);
        Self { start: self.start.min(end), end }
    }

    /// The smallest span of whole `unit`s around it.
    pub fn rounded_out(self, unit: usize) -> Self {
        Self { start: self.start / unit * unit, end: self.end.next_multiple_of(unit) }
    }

    /// The largest span of whole `unit`s within it; the end of a view of `len` bytes ends a unit.
    pub fn rounded_in(self, unit: usize, len: usize) -> Self {
        let start = self.start.next_multiple_of(unit);
        let end = if self.end >= len { len } else { self.end / unit * unit };
        Self { start, end: end.max(start) }
    }

    /// Moved up by `by` bytes.
    pub const fn shifted_up(self, by: usize) -> Self {
        Self { start: self.start + by, end: self.end + by }
    }

    /// Moved down by `by` bytes; what falls below zero is cut off.
    pub const fn shifted_down(self, by: usize) -> Self {
        Self { start: self.start.saturating_sub(by), end: self.end.saturating_sub(by) }
    }

    /// The smallest span around both.
    pub fn hull(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// Indices of the units of `unit` bytes that hold a byte of it.
    pub fn units(self, unit: usize) -> std::ops::Range<usize> {
        if self.is_empty() { 0..0 } else { self.start / unit..self.end.div_ceil(unit) }
    }

    /// Offsets of its bytes.
    pub const fn offsets(self) -> std::ops::Range<usize> {
        self.start..self.end
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}
