//! The world: the truth about every view and bitmap, and what is in flight.
//!
//! This file has the steps of one change, in the order in which the host takes them:
//! [`admit`](World::admit) (it counts for watches and may be marked), [`issue`](World::issue) (it must
//! be marked; the driver has it), [`land`](World::land) (some bytes are stored), and
//! [`settle`](World::settle). None of them asks whether the host is right to take it: that is what
//! the questions are for ([`blockers`](World::blockers), [`judge`](World::judge),
//! [`busy`](World::busy)).

use std::collections::BTreeMap;

use super::bitmap::Bitmap;
use super::change::{Leg, Reach};
use super::flight::{Flight, Freshness, Outcome, Payload, Watch};
use super::graph::Graph;
use super::ids::{BitmapId, FlightId, NodeId, Span, View, WatchId};
use super::refusal::Refusal;
use super::violation::Violation;

/// Everything there is. `Clone` is the way to go back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct World {
    pub(super) graph: Graph,
    pub(super) bitmaps: BTreeMap<BitmapId, Bitmap>,
    pub(super) flights: BTreeMap<FlightId, Flight>,
    pub(super) watches: BTreeMap<WatchId, Watch>,
    /// The first harm done to an exempt view; the next check reports it.
    pub(super) harm: Option<Violation>,
    next_id: u32,
}

/// Whether what a change reaches must be dirty, or may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touch {
    Required,
    Allowed,
}

impl World {
    /// An empty world.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nodes, edges, drives, and their views.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// All bitmaps.
    pub fn bitmaps(&self) -> impl Iterator<Item = (BitmapId, &Bitmap)> {
        self.bitmaps.iter().map(|(id, bitmap)| (*id, bitmap))
    }

    /// A bitmap.
    pub fn bitmap(&self, id: BitmapId) -> Option<&Bitmap> {
        self.bitmaps.get(&id)
    }

    /// All changes in flight, oldest first.
    pub fn flights(&self) -> impl Iterator<Item = (FlightId, &Flight)> {
        self.flights.iter().map(|(id, flight)| (*id, flight))
    }

    /// A change in flight.
    pub fn flight(&self, id: FlightId) -> Option<&Flight> {
        self.flights.get(&id)
    }

    /// All watches.
    pub fn watches(&self) -> impl Iterator<Item = (WatchId, &Watch)> {
        self.watches.iter().map(|(id, watch)| (*id, watch))
    }

    /// A watch.
    pub fn watch(&self, id: WatchId) -> Option<&Watch> {
        self.watches.get(&id)
    }

    /// An id that nothing in this world has or had.
    pub fn next_id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    /// The node at which a request to a view enters.
    ///
    /// # Errors
    /// The view doesn't exist or has no medium.
    pub fn entry(&self, view: View) -> Result<NodeId, Refusal> {
        self.graph.top(view).ok_or_else(|| match view {
            View::Node(node) => Refusal::UnknownNode(node),
            View::Drive(drive) if self.graph.drives.contains_key(&drive) => {
                Refusal::NoMedium(drive)
            }
            View::Drive(drive) => Refusal::UnknownDrive(drive),
        })
    }

    /// A change enters at a node: watches on what it reaches are stale from here on, and bitmaps may
    /// be dirty there.
    ///
    /// # Errors
    /// The span is not in the view.
    pub fn admit(
        &mut self,
        entry: NodeId,
        span: Span,
        payload: &Payload,
    ) -> Result<FlightId, Refusal> {
        self.admit_exempting(entry, span, payload.bytes(span.len()), None, None)
    }

    pub(super) fn admit_exempting(
        &mut self,
        entry: NodeId,
        span: Span,
        bytes: Vec<u8>,
        exempt: Option<NodeId>,
        shielded: Option<NodeId>,
    ) -> Result<FlightId, Refusal> {
        let legs = self.graph.legs(entry, span)?;
        self.touch(&legs, exempt, Touch::Allowed);
        self.worsen(&legs, exempt, Freshness::Stale);
        let store = self.graph.store(entry);
        let landed = vec![false; span.len()];
        let (issued, fill) = (false, Vec::new());
        let flight =
            Flight { entry, span, legs, exempt, shielded, issued, bytes, landed, fill, store };
        let id = FlightId(self.next_id());
        self.flights.insert(id, flight);
        Ok(id)
    }

    /// The driver takes the change: what it reaches must be dirty by now. The driver reads what it
    /// needs to fill clusters.
    ///
    /// # Errors
    /// No such change in flight.
    pub fn issue(&mut self, id: FlightId) -> Result<(), Refusal> {
        let flight = self.flights.get_mut(&id).ok_or(Refusal::UnknownFlight(id))?;
        if !flight.issued {
            flight.issued = true;
            flight.fill = self.graph.below(flight.store.node);
            let (legs, exempt) = (flight.legs.clone(), flight.exempt);
            self.touch(&legs, exempt, Touch::Required);
        }
        Ok(())
    }

    /// Those of its bytes that lie in `part` are stored before it settles. Issues it if need be.
    ///
    /// # Errors
    /// No such change in flight.
    pub fn land(&mut self, id: FlightId, part: Span) -> Result<(), Refusal> {
        self.issue(id)?;
        let flight = self.flights.get_mut(&id).ok_or(Refusal::UnknownFlight(id))?;
        let mut bytes = vec![None; flight.span.len()];
        for (at, byte) in bytes.iter_mut().enumerate() {
            if part.contains(Span::at(flight.span.start + at, 1)) && !flight.landed[at] {
                flight.landed[at] = true;
                *byte = Some(flight.bytes[at]);
            }
        }
        let flight = flight.clone();
        self.store_watching_harm(&flight, &bytes);
        Ok(())
    }

    /// The driver has completed the change. A proof whose write fails is void: what it exempted must
    /// be dirty, and watches there are stale.
    ///
    /// # Errors
    /// No such change in flight.
    pub fn settle(&mut self, id: FlightId, outcome: &Outcome) -> Result<(), Refusal> {
        self.issue(id)?;
        match outcome {
            Outcome::Done => {
                self.land(id, Span::whole(usize::MAX))?;
            }
            Outcome::Ignored => {}
            Outcome::Failed(bytes) => {
                let flight = self.flights.get(&id).ok_or(Refusal::UnknownFlight(id))?.clone();
                let len = bytes.len().min(flight.span.len());
                self.store(&flight, &bytes[..len]);
                if flight.is_guarded() {
                    self.touch(&flight.legs, None, Touch::Required);
                    self.worsen(&flight.legs, None, Freshness::Stale);
                }
            }
        }
        self.flights.remove(&id);
        Ok(())
    }

    /// The change is given up before it was issued. Marks made for it stay.
    ///
    /// # Errors
    /// No such change in flight, or the driver has it.
    pub fn withdraw(&mut self, id: FlightId) -> Result<(), Refusal> {
        let flight = self.flights.get(&id).ok_or(Refusal::UnknownFlight(id))?.clone();
        if flight.issued {
            return Err(Refusal::Unsupported("the driver owns the change until it has settled"));
        }
        self.flights.remove(&id);
        if flight.is_guarded() {
            self.touch(&flight.legs, None, Touch::Allowed);
            self.worsen(&flight.legs, None, Freshness::Unsettled);
        }
        Ok(())
    }

    /// Which guards hold a change off that writes `span` to `entry`, proven for `exempt` or not.
    ///
    /// A guard is of the view and range of a proven write that has not settled, and holds off every
    /// change that reaches them: even a proven one, because it may fail. Likewise a proven write
    /// waits for changes that reach its own view and range.
    ///
    /// # Errors
    /// The span is not in the view.
    pub fn blockers(
        &self,
        entry: NodeId,
        span: Span,
        exempt: Option<NodeId>,
    ) -> Result<Vec<FlightId>, Refusal> {
        let legs = self.graph.legs(entry, span)?;
        let announced = legs[0].announced;
        let held_off = |flight: &Flight| {
            let theirs = flight.exempt.is_some_and(|view| {
                self.graph.reach(view, &legs, None).meets(flight.legs[0].announced)
            });
            let ours = exempt
                .is_some_and(|view| self.graph.reach(view, &flight.legs, None).meets(announced));
            theirs || ours
        };
        Ok(self.flights.iter().filter(|(_, flight)| held_off(flight)).map(|(id, _)| *id).collect())
    }

    /// Touches in every recording bitmap what a change reaches.
    pub(super) fn touch(&mut self, legs: &[Leg], exempt: Option<NodeId>, touch: Touch) {
        for bitmap in self.bitmaps.values_mut().filter(|bitmap| bitmap.enabled) {
            let Some(top) = self.graph.top(bitmap.scope) else { continue };
            let (exact, announced) = match self.graph.reach(top, legs, exempt) {
                Reach::Not => continue,
                Reach::Here { exact, announced } => (exact, announced),
                Reach::Anywhere => (Span::whole(usize::MAX), Span::whole(usize::MAX)),
            };
            bitmap.record.allow(announced, bitmap.granularity);
            if touch == Touch::Required {
                bitmap.record.require(exact, bitmap.granularity);
            }
        }
    }

    /// Makes watches on what a change reaches no better than `to`.
    pub(super) fn worsen(&mut self, legs: &[Leg], exempt: Option<NodeId>, to: Freshness) {
        for watch in self.watches.values_mut() {
            if self.graph.reach(watch.node, legs, exempt).meets(watch.span) {
                watch.worsen(to);
            }
        }
    }

    /// Touches again for all that is in flight, after bitmaps or edges have changed. Nothing is in
    /// flight there if the host has drained as it should.
    pub(super) fn touch_in_flight(&mut self) {
        for flight in self.flights.values().cloned().collect::<Vec<_>>() {
            let touch = if flight.issued { Touch::Required } else { Touch::Allowed };
            self.touch(&flight.legs, flight.exempt, touch);
        }
    }

    /// Sizes of bitmaps follow their views.
    pub(super) fn fit_bitmaps(&mut self) {
        for bitmap in self.bitmaps.values_mut() {
            bitmap.fit(self.graph.len(bitmap.scope));
        }
    }

    pub(super) fn store(&mut self, flight: &Flight, bytes: &[Option<u8>]) {
        let store = flight.store;
        let bytes: Vec<_> = bytes.iter().map(|byte| byte.map(|byte| byte ^ store.key)).collect();
        if let Some(memory) = self.graph.memory_mut(store.node) {
            memory.put(flight.span.start + store.shift, &bytes, &flight.fill);
        }
    }

    /// Stores, and remembers whether a view changed that the host takes to be exempt.
    fn store_watching_harm(&mut self, flight: &Flight, bytes: &[Option<u8>]) {
        let Some(shielded) = flight.shielded else { return self.store(flight, bytes) };
        let class = self.graph.class(shielded);
        let exempt: Vec<_> = (self.graph.nodes.keys().copied())
            .filter(|node| self.graph.stops(*node).iter().any(|stop| stop.class == class))
            .map(|node| (node, self.graph.bytes(node)))
            .collect();
        self.store(flight, bytes);
        for (node, before) in exempt {
            let after = self.graph.bytes(node);
            if let Some(offset) = (0..before.len()).find(|at| before[*at] != after[*at]) {
                self.harm.get_or_insert(Violation::Harm {
                    view: View::Node(node),
                    proven_for: shielded,
                    written_to: flight.entry,
                    offset,
                    before: before[offset],
                    after: after[offset],
                });
            }
        }
    }
}
