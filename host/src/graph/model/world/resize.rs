//! Changes that a node makes of itself: resize and deallocation.

use super::change::Reach;
use super::flight::Freshness;
use super::graph::Node;
use super::ids::{FlightId, NodeId, Span};
use super::memory::Memory;
use super::refusal::Refusal;
use super::repoint::SameView;
use super::world::{Touch, World};

impl World {
    /// Makes the view of `node` `len` bytes long; bytes gained are `gained`, then zero.
    ///
    /// It is a change between both sizes, for the class and all above it. Views that change their own
    /// size are dirty where they have grown.
    ///
    /// # Errors
    /// No such node; or its class ends in an opaque one.
    pub fn resize(&mut self, node: NodeId, len: usize, gained: &[u8]) -> Result<(), Refusal> {
        let class = self.graph.class(node);
        let below_len = self.graph.child(class).map_or(0, |below| self.graph.len(below));
        let (memory, _) = self.memory(node)?;
        let old_len = memory.len();
        memory.resize(len, gained, below_len);
        self.fit_bitmaps();
        let legs =
            self.graph.own_leg(class, Span { start: len.min(old_len), end: len.max(old_len) });
        self.touch(&legs, None, Touch::Required);
        self.worsen(&legs, None, Freshness::Stale);
        self.unsettle(class);
        Ok(())
    }

    /// Gives up the clusters that lie wholly in `span`, so that the backing shows there: a commit
    /// that empties its top. Evidence is that the view stays the same; if it is false, or there is
    /// none, the clusters' granules are touched.
    ///
    /// # Errors
    /// No such node; or its class ends in an opaque one.
    pub fn deallocate(
        &mut self,
        node: NodeId,
        span: Span,
        same: Option<SameView>,
    ) -> Result<(), Refusal> {
        let before = self.graph.bytes(node);
        let (memory, class) = self.memory(node)?;
        let span = span.clipped(memory.len()).rounded_in(memory.cluster_bytes(), memory.len());
        memory.deallocate(span);
        let legs = self.graph.own_leg(class, span);
        self.unsettle(class);
        if same.is_some() && self.graph.bytes(node) == before {
            return Ok(());
        }
        if !span.is_empty() {
            self.touch(&legs, None, Touch::Required);
            self.worsen(&legs, None, Freshness::Stale);
        }
        Ok(())
    }

    /// A driver was to give up the clusters in `asked`, and has failed after `landed`, the first of them: a
    /// resize or deallocation that nobody sees the end of. With evidence the view would have stayed the
    /// same.
    ///
    /// # Errors
    /// As [`World::deallocate`].
    pub fn fail_to_give_up(
        &mut self,
        node: NodeId,
        asked: Span,
        landed: Span,
        same: Option<SameView>,
    ) -> Result<(), Refusal> {
        let (memory, class) = self.memory(node)?;
        memory.deallocate(landed);
        let legs = self.graph.own_leg(class, asked);
        self.unsettle(class);
        if same.is_none() && !asked.is_empty() {
            self.touch(&legs, None, Touch::Required);
            self.worsen(&legs, None, Freshness::Stale);
        }
        Ok(())
    }

    /// Watches on views in which a class can be seen: the host may end them whole, as it does for any
    /// change of the graph.
    fn unsettle(&mut self, class: NodeId) {
        for watch in self.watches.values_mut() {
            if self.graph.stops(watch.node).iter().any(|stop| stop.class == class) {
                watch.worsen(Freshness::Unsettled);
            }
        }
    }

    /// What must have settled before a node is resized or gives up clusters: all that affects its
    /// class, and what is proven for a view above it.
    pub fn busy_with_node(&self, node: NodeId) -> Vec<FlightId> {
        let class = self.graph.class(node);
        let busy = self.flights.iter().filter(|(_, flight)| {
            self.graph.reach(node, &flight.legs, None) != Reach::Not
                || self.graph.stops(flight.entry).iter().any(|stop| stop.class == class)
                || flight.shielded.is_some_and(|view| {
                    self.graph.stops(view).iter().any(|stop| stop.class == class)
                })
        });
        busy.map(|(id, _)| *id).collect()
    }

    fn memory(&mut self, node: NodeId) -> Result<(&mut Memory, NodeId), Refusal> {
        let class = self.graph.class(node);
        match self.graph.nodes.get_mut(&class) {
            Some(Node::Memory(memory)) => Ok((memory, class)),
            Some(_) => Err(Refusal::Unsupported("only memory can be resized and deallocated")),
            None => Err(Refusal::UnknownNode(node)),
        }
    }
}
