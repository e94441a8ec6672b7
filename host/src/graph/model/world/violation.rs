//! What a check found to be wrong.

use std::fmt;

use super::bitmap::Part;
use super::ids::{BitmapId, NodeId, Span, View};

/// A broken invariant, with what is needed to see why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Soundness: a clean granule shows other bytes than when it was last clean.
    FalseClean {
        /// Which bitmap.
        bitmap: BitmapId,
        /// Of which view.
        scope: View,
        /// Which granule.
        granule: usize,
        /// What was shown when it was last clean; `None` where the view had no byte.
        was: Vec<Option<u8>>,
        /// What is shown.
        shows: Vec<u8>,
    },
    /// Precision's lower side: an unexempted change touched a granule that is clean.
    Missed {
        /// Which bitmap.
        bitmap: BitmapId,
        /// Which of its sets.
        part: Part,
        /// Of which view.
        scope: View,
        /// Which granule.
        granule: usize,
    },
    /// Precision: no unexempted change touched a granule that is dirty.
    Needless {
        /// Which bitmap.
        bitmap: BitmapId,
        /// Which of its sets.
        part: Part,
        /// Of which view.
        scope: View,
        /// Which granule.
        granule: usize,
    },
    /// A write that was taken as proven for a view has changed that view, or one above it.
    Harm {
        /// Which view changed.
        view: View,
        /// For which view it was taken as proven.
        proven_for: NodeId,
        /// Where it was written.
        written_to: NodeId,
        /// The first byte that changed.
        offset: usize,
        /// What it was.
        before: u8,
        /// What it is.
        after: u8,
    },
    /// The host shows other bytes than it should.
    WrongBytes {
        /// Of which view.
        view: View,
        /// What was read.
        span: Span,
        /// The first byte that is wrong.
        offset: usize,
        /// What it should be.
        expect: u8,
        /// What it is; `None` if the host's view ends before.
        got: Option<u8>,
    },
    /// The host gave another answer than it should.
    Answer {
        /// To what.
        request: String,
        /// What was right.
        expect: String,
        /// What it said.
        got: String,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FalseClean { bitmap, scope, granule, was, shows } => write!(
                f,
                "bitmap {bitmap} of {scope} calls granule {granule} clean, which shows {shows:?}; \
                 when it was last clean it showed {}",
                Was(was)
            ),
            Self::Missed { bitmap, part, scope, granule } => write!(
                f,
                "bitmap {bitmap} of {scope} ({part:?}) calls granule {granule} clean, which an \
                 unexempted change has touched"
            ),
            Self::Needless { bitmap, part, scope, granule } => write!(
                f,
                "bitmap {bitmap} of {scope} ({part:?}) calls granule {granule} dirty, which no \
                 unexempted change has touched"
            ),
            Self::Harm { view, proven_for, written_to, offset, before, after } => write!(
                f,
                "a write to {written_to}, taken as proven for {proven_for}, changed {view} at \
                 {offset} from {before} to {after}"
            ),
            Self::WrongBytes { view, span, offset, expect, got } => {
                write!(f, "reading {span} of {view}: at {offset} there is {got:?}, not {expect}")
            }
            Self::Answer { request, expect, got } => {
                write!(f, "{request}: the answer was {got}, not {expect}")
            }
        }
    }
}

impl std::error::Error for Violation {}

/// Bytes that may not have been there.
struct Was<'a>(&'a [Option<u8>]);

impl fmt::Display for Was<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown =
            self.0.iter().map(|byte| byte.map_or("nothing".into(), |byte| byte.to_string()));
        write!(f, "[{}]", shown.collect::<Vec<String>>().join(", "))
    }
}
