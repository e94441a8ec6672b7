//! Changes in flight, and the watches that they make stale.

use super::change::Leg;
use super::graph::Store;
use super::ids::{NodeId, Span};

/// What a request puts in place of what was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// These bytes, as many as the span has.
    Bytes(Vec<u8>),
    /// Zeros.
    Zero,
    /// A hint: zeros, or nothing happens ([`Outcome::Ignored`]). A backing never shows through.
    Discard,
}

impl Payload {
    /// The bytes that a span of `len` bytes shows afterwards.
    pub(super) fn bytes(&self, len: usize) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Zero | Self::Discard => vec![0; len],
        }
    }
}

/// How a change ends. Bytes that have landed already stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All has landed.
    Done,
    /// Success, and nothing has happened (a discard).
    Ignored,
    /// An error, or the future was dropped and the driver says so later: of the span only these
    /// bytes have landed, whatever they are; holes and what follows the end have not.
    Failed(Vec<Option<u8>>),
}

impl Outcome {
    /// Failed, nothing landed.
    pub const fn failed() -> Self {
        Self::Failed(Vec::new())
    }

    /// Failed, and `bytes` landed at the start of the span.
    pub fn torn(bytes: &[u8]) -> Self {
        Self::Failed(bytes.iter().copied().map(Some).collect())
    }
}

/// A change between admission and settlement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flight {
    /// Node at which it entered.
    pub entry: NodeId,
    /// What it writes there.
    pub span: Span,
    /// The classes it meets.
    pub legs: Vec<Leg>,
    /// The node whose view evidence exempts, and all above it. Its span is guarded until the change
    /// has settled.
    pub exempt: Option<NodeId>,
    /// The node whose view the *host* takes to be exempt; differs from `exempt` if the host is wrong.
    pub shielded: Option<NodeId>,
    /// Whether the driver has it, so that bytes may land.
    pub issued: bool,
    pub(super) bytes: Vec<u8>,
    pub(super) landed: Vec<bool>,
    /// What the backing showed when the driver took it: fills the rest of the clusters.
    pub(super) fill: Vec<u8>,
    pub(super) store: Store,
}

impl Flight {
    /// What it is about to store at `offset` of the view of its entry, if that lies in its span.
    pub fn byte_at(&self, offset: usize) -> Option<u8> {
        self.bytes.get(offset.checked_sub(self.span.start)?).copied()
    }

    /// Whether it takes a guard.
    pub fn is_guarded(&self) -> bool {
        self.exempt.is_some() || self.shielded.is_some()
    }
}

/// What is known of a view's bytes at a span since a watch on them began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Freshness {
    /// Nothing that affects them was in flight, or has been admitted since.
    Fresh,
    /// Nothing has altered them, but the host may be careful and say they are stale: the graph was
    /// changed with evidence, or a proven write was withdrawn.
    Unsettled,
    /// Something that affects them was in flight when the watch began, or came later.
    Stale,
}

/// A registered watch on a view: made before the read is issued, asked when its bytes are claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// Whose view.
    pub node: NodeId,
    /// Which bytes.
    pub span: Span,
    /// Whether they still are what was captured.
    pub freshness: Freshness,
    /// What the read returned, when it has.
    pub captured: Option<Vec<u8>>,
}

impl Watch {
    pub(super) fn worsen(&mut self, to: Freshness) {
        self.freshness = self.freshness.max(to);
    }
}
