//! What the host should answer when it does not do what it was asked to.

use std::fmt;

use super::ids::{BitmapId, DriveId, FlightId, NodeId, Span, View, WatchId};

/// Why a request, claim or action is not carried out. The world is as before, unless it says
/// otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No such node, or no longer.
    UnknownNode(NodeId),
    /// No such drive.
    UnknownDrive(DriveId),
    /// No such bitmap.
    UnknownBitmap(BitmapId),
    /// No such change in flight.
    UnknownFlight(FlightId),
    /// No such watch.
    UnknownWatch(WatchId),
    /// What is to be added is there already.
    Exists(View),
    /// A bitmap of that id is there already.
    BitmapExists(BitmapId),
    /// A request to a drive without a medium.
    NoMedium(DriveId),
    /// The range does not lie in the view.
    OutOfRange {
        /// What was asked for.
        span: Span,
        /// Size of the view.
        len: usize,
    },
    /// A claim whose bytes may be older than the view.
    Stale,
    /// A claim without a reason to believe it.
    NotProven,
    /// The device failed. The change has marked what it affects, and some of it may have landed.
    Io,
    /// A guard holds the request off; these must settle first.
    Waits(Vec<FlightId>),
    /// These must settle before the action takes effect.
    Busy(Vec<FlightId>),
    /// Something uses what is to go: the users by name.
    InUse(Vec<String>),
    /// An edge from the first to the second node would close a circle.
    Cycle(NodeId, NodeId),
    /// A graph change that may alter the views of these users, and marking whole was not allowed.
    NotSameView(Vec<View>),
    /// Bitmaps of views of different size don't merge.
    SizeMismatch,
    /// Never possible for this kind of thing, or in this state of it.
    Unsupported(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownNode(node) => write!(f, "there is no node {node}"),
            Self::UnknownDrive(drive) => write!(f, "there is no drive {drive}"),
            Self::UnknownBitmap(bitmap) => write!(f, "there is no bitmap {bitmap}"),
            Self::UnknownFlight(flight) => write!(f, "no change {flight} is in flight"),
            Self::UnknownWatch(watch) => write!(f, "there is no watch {watch}"),
            Self::Exists(view) => write!(f, "{view} exists already"),
            Self::BitmapExists(bitmap) => write!(f, "bitmap {bitmap} exists already"),
            Self::NoMedium(drive) => write!(f, "drive {drive} has no medium"),
            Self::OutOfRange { span, len } => write!(f, "{span} is not in a view of {len} bytes"),
            Self::Stale => f.write_str("the claim's bytes may be older than the view"),
            Self::NotProven => f.write_str("nothing proves the claim"),
            Self::Io => f.write_str("the device failed"),
            Self::Waits(flights) => write!(f, "held off by a guard until {flights:?} settle"),
            Self::Busy(flights) => write!(f, "not while {flights:?} are in flight"),
            Self::InUse(users) => write!(f, "in use by {}", users.join(", ")),
            Self::Cycle(from, to) => write!(f, "an edge {from} → {to} would close a circle"),
            Self::NotSameView(users) => {
                write!(f, "nothing shows that {users:?} keep their views")
            }
            Self::SizeMismatch => f.write_str("the bitmaps are of views of different size"),
            Self::Unsupported(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Refusal {}
