//! Which views a change reaches: the touch set's half of design §3, from the view's side.
//!
//! The host asks "what is above the node at which the change entered?" and walks upwards. This asks,
//! for one view at a time, "is the change on my way down?" and walks downwards. Both must agree.

use super::graph::{Graph, Node};
use super::ids::{NodeId, Span};
use super::refusal::Refusal;

/// A change as it meets one class on its way down to where the bytes are stored.
///
/// A change in transparent nodes has one leg. Below each opaque node there is one more, at the
/// offsets of the opaque node's child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// Where it enters.
    pub class: NodeId,
    /// The opaque node whose own request this is, if any.
    pub through: Option<NodeId>,
    /// What is written.
    pub exact: Span,
    /// What may be touched on the way: `exact` rounded to the clusters that the driver fills.
    pub announced: Span,
}

/// How a change reaches a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Not at all, or evidence exempts the view.
    Not,
    /// At these offsets.
    Here {
        /// What is written.
        exact: Span,
        /// What may be touched.
        announced: Span,
    },
    /// From below an opaque node that did not cause it: anywhere.
    Anywhere,
}

impl Reach {
    /// Whether it may touch `span`.
    pub fn meets(self, span: Span) -> bool {
        match self {
            Self::Not => false,
            Self::Here { announced, .. } => announced.overlaps(span),
            Self::Anywhere => !span.is_empty(),
        }
    }
}

/// Whole units, then so many bytes more at either end.
#[derive(Debug, Clone, Copy)]
struct Fill {
    unit: usize,
    slack: usize,
}

impl Fill {
    fn around(self, span: Span) -> Span {
        let span = span.rounded_out(self.unit);
        Span { start: span.start.saturating_sub(self.slack), end: span.end + self.slack }
    }
}

impl Graph {
    /// The legs of a request that writes `span` to `entry`.
    ///
    /// # Errors
    /// [`Refusal::OutOfRange`] if it doesn't lie in the view, or in that of an opaque node's child.
    pub fn legs(&self, entry: NodeId, span: Span) -> Result<Vec<Leg>, Refusal> {
        let len = self.len(entry);
        if span.is_empty() || span.end > len {
            return Err(Refusal::OutOfRange { span, len });
        }
        let class = self.class(entry);
        match self.node(class).ok_or(Refusal::UnknownNode(entry))? {
            Node::Opaque { child, window, .. } => {
                let mut below = self.legs(*child, span.shifted_up(window.start))?;
                below[0].through = Some(class);
                let announced = self.fill(class).around(span).clipped(len);
                let own = Leg { class, through: None, exact: span, announced };
                Ok(std::iter::once(own).chain(below).collect())
            }
            Node::Memory(memory) => {
                let announced = memory.announced(span);
                Ok(vec![Leg { class, through: None, exact: span, announced }])
            }
            Node::Filter { .. } => Err(Refusal::Unsupported("a class ends in no filter")),
        }
    }

    /// What may be touched around a change of `node`.
    fn fill(&self, node: NodeId) -> Fill {
        match self.node(node) {
            Some(Node::Memory(memory)) => Fill { unit: memory.cluster_bytes(), slack: 0 },
            Some(Node::Filter { child }) => self.fill(*child),
            Some(Node::Opaque { child, window, .. }) => {
                let below = self.fill(*child);
                // The host knows but that clusters begin at multiples of this.
                let unit = 1 << (window.start | below.unit).trailing_zeros();
                Fill { unit, slack: below.slack + below.unit - unit }
            }
            None => Fill { unit: 1, slack: 0 },
        }
    }

    /// The only leg of a change that a node makes of itself: resize, deallocation.
    pub fn own_leg(&self, node: NodeId, span: Span) -> [Leg; 1] {
        [Leg { class: self.class(node), through: None, exact: span, announced: span }]
    }

    /// How a change reaches the view whose top is `top`, if all that is at or above the class of
    /// `exempt` keeps its bytes.
    ///
    /// The first class on the way down that is exempt or hit by the change decides: what lies below
    /// is seen through it.
    pub fn reach(&self, top: NodeId, legs: &[Leg], exempt: Option<NodeId>) -> Reach {
        let exempt = exempt.map(|node| self.class(node));
        for stop in self.stops(top) {
            if exempt == Some(stop.class) {
                return Reach::Not;
            }
            if let Some(leg) = legs.iter().find(|leg| leg.class == stop.class) {
                return match stop.through {
                    None => Reach::Here { exact: leg.exact, announced: leg.announced },
                    Some(_) => Reach::Anywhere,
                };
            }
        }
        Reach::Not
    }
}
