//! Where the views of two nodes may differ: what lets a graph change put one in the place of the other.
//!
//! A tracker belongs to one node, which copies from its *source* to its *target*. It begins with everything
//! set. From then on whatever enters the source's down-set, or the target's, marks it as it enters (a guard that
//! holds a change off also holds off its mark); what has been copied is cleared where the copy settles, under
//! its guard, if nothing has come near the target meanwhile. So a clear granule says that both show the same,
//! but for what is in flight; and with nothing in flight, that both show the same.
//!
//! Why nobody else can clear it: its set is private to this module, and cleared in two places, each after its
//! own checks: a copy that has settled, be it in a drained section, and a look at block status under the guard. Why nothing is missed: see `acting.rs` for the source; for the target
//! there is a source of its own, which all enter but these copies. A node can show what it wants as its
//! tracker: it proves something only for the node, the edges and the children that it was begun for.

mod catch_up;
mod copy;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use copy::Tracked;

use super::operations::too_many;
use super::own_accord::OwnAccord;
use crate::bitmap::{Granularity, Granules};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::generation::NodeGeneration;
use crate::graph::guard::{Guards, SourceId, SourceRange, Stale, WatchKey};
use crate::graph::mutation::{Mutation, mutated};
use crate::graph::snapshot::Graph;
use crate::limits::COPY_MAX_BYTES;

/// See the module.
pub struct Tracker {
    node: NodeGeneration,
    from: (usize, NodeGeneration),
    to: (usize, NodeGeneration),
    /// Of the source's view, and of the target's but for the node's own copies.
    ids: (SourceId, SourceId),
    differs: Arc<Granules>,
    /// What of that is to be copied; all of it without this.
    wanted: Option<Arc<Granules>>,
    guards: Arc<Guards>,
    watches: Vec<WatchKey>,
}

/// Whether anything has come near a range of the target since this began.
struct Quiet<'g> {
    guards: &'g Guards,
    key: WatchKey,
    is_stale: Arc<AtomicBool>,
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        self.guards.unwatch(self.key);
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.watches.drain(..).for_each(|key| self.guards.unwatch(key));
    }
}

impl Tracker {
    /// Begins to track what edge `from` of a node shows against what edge `to` does: all of it may differ.
    /// Granules are as small as `granularity`, or smaller if that is more than a copy moves. If not `all` is to be
    /// copied, it is what changes from now on, and what [`Self::want`] says.
    ///
    /// # Errors
    /// `EPERM` for a node that does not say so ([`JobStake`](crate::graph::JobStake)), or has not the grants;
    /// `EINVAL` for nodes of different sizes; `EAGAIN` when too much is watched.
    pub fn begin(
        own: &OwnAccord,
        (from, to): (usize, usize),
        granularity: Granularity,
        all: bool,
    ) -> Result<Arc<Self>> {
        let graph = own.graph();
        let (at, _) = own.find(&graph)?;
        let node = &graph.nodes[at];
        let edge = |edge: usize| {
            let missing = || Error::new(ErrorKind::NotFound, "it has no such child");
            node.edges.get(edge).ok_or_else(missing)
        };
        let (source, target) = (edge(from)?.child, edge(to)?.child);
        let not_permitted = || {
            let message = "its edges do not say that it copies from the one to the other";
            Error::new(ErrorKind::NotPermitted, message).at_node(&node.name)
        };
        let generation = |node: usize| graph.nodes[node].generation;
        let id = |of: usize, by: Option<NodeGeneration>| {
            let mut all = graph.sources.iter();
            all.find(|source| source.node == of && source.tracked_by == by).map(|source| source.id)
        };
        let ids = id(source, None).zip(id(target, Some(node.generation)));
        let ids = ids.ok_or_else(not_permitted)?;
        let size_bytes = graph.nodes[source].info.size_bytes;
        if graph.nodes[target].info.size_bytes != size_bytes {
            let message = "it copies between nodes of different sizes";
            return Err(Error::new(ErrorKind::Invalid, message).at_node(&node.name));
        }
        let most = Granularity::from_bytes(COPY_MAX_BYTES as u64).unwrap_or(granularity);
        let granularity = if granularity.bytes() > most.bytes() { most } else { granularity };
        let differs = Arc::new(Granules::new(size_bytes, granularity)?);
        differs.set_all();
        let wanted = match all {
            true => None,
            false => Some(Arc::new(Granules::new(size_bytes, granularity)?)),
        };
        let mut tracker = Self {
            node: node.generation,
            from: (from, generation(source)),
            to: (to, generation(target)),
            ids,
            differs,
            wanted,
            guards: Arc::clone(&graph.guards),
            watches: Vec::new(),
        };
        let target = Some(ids.1).filter(|_| !mutated(Mutation::TrustsTheTarget));
        let sets = [Some(&tracker.differs), tracker.wanted.as_ref()].map(|set| set.map(Arc::clone));
        for set in sets.into_iter().flatten() {
            for source in [Some(ids.0), target].into_iter().flatten() {
                let (place, set) = (SourceRange { source, range: 0..u64::MAX }, Arc::clone(&set));
                tracker
                    .watches
                    .push(tracker.guards.watch(&place, Stale::Set(set)).map_err(too_many)?);
            }
        }
        Ok(Arc::new(tracker))
    }

    /// A range is to be copied.
    pub fn want(&self, range: &Range<u64>) {
        if let Some(wanted) = &self.wanted {
            wanted.mark(range.start, range.end.saturating_sub(range.start));
        }
    }

    /// What is to be copied, and where the two may differ, or have done so.
    fn todo(&self) -> &Granules {
        self.wanted.as_ref().unwrap_or(&self.differs)
    }

    /// Runs of what is to be copied.
    pub fn ranges(&self, within: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        self.todo().ranges(within)
    }

    /// Bytes of these.
    pub fn left_bytes(&self) -> u64 {
        self.todo().dirty_bytes()
    }

    /// What is to be copied, now.
    ///
    /// # Errors
    /// As [`Granules::copy`].
    pub fn left(&self) -> Result<Granules> {
        Ok(self.todo().copy()?)
    }

    /// Whether both show the same, but for what is in flight.
    pub(in crate::graph) fn is_all_same(&self) -> bool {
        self.differs.next_dirty(0).is_none()
    }

    /// Runs in which the two may differ, though they need not be copied.
    pub fn doubts(&self, within: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let wanted = self.wanted.as_ref();
        let is_open = move |run: &Range<u64>| {
            wanted.is_some_and(|wanted| wanted.ranges(run.clone()).next().is_none())
        };
        self.differs.ranges(within).filter(is_open)
    }

    /// Where the two may differ, now.
    ///
    /// # Errors
    /// As [`Granules::copy`].
    pub fn differing(&self) -> Result<Granules> {
        Ok(self.differs.copy()?)
    }

    /// The granules that hold a range.
    fn granules_of(&self, range: &Range<u64>) -> Range<u64> {
        let granule = self.granule();
        let end = range.end.div_ceil(granule).saturating_mul(granule);
        range.start / granule * granule..end.min(self.differs.size_bytes())
    }

    /// Where the node is in a snapshot, if there everything is as it was when this began.
    fn place(&self, graph: &Graph) -> Option<usize> {
        let at = graph.nodes.iter().position(|node| node.generation == self.node)?;
        let edges = &graph.nodes[at].edges;
        let leads = |(edge, child): (usize, NodeGeneration)| {
            edges.get(edge).is_some_and(|edge| graph.nodes[edge.child].generation == child)
        };
        (leads(self.from) && leads(self.to)).then_some(at)
    }

    /// The source and the target in a snapshot, as long as it tracks them.
    pub(in crate::graph) fn pair(&self, graph: &Graph) -> Option<(usize, usize)> {
        let edges = &graph.nodes[self.place(graph)?].edges;
        Some((edges[self.from.0].child, edges[self.to.0].child))
    }

    fn granule(&self) -> u64 {
        self.differs.granularity().bytes()
    }

    fn watch_target<'g>(&self, guards: &'g Guards, range: &Range<u64>) -> Result<Quiet<'g>> {
        let is_stale = Arc::new(AtomicBool::new(false));
        let place = SourceRange { source: self.ids.1, range: range.clone() };
        let key = guards.watch(&place, Stale::Flag(Arc::clone(&is_stale))).map_err(too_many)?;
        Ok(Quiet { guards, key, is_stale })
    }

    fn mark(&self, range: &Range<u64>) {
        for set in [Some(&self.differs), self.wanted.as_ref()].into_iter().flatten() {
            set.mark(range.start, range.end - range.start);
        }
    }

    /// A range has been copied, or found to be the same, and its guard has not ended.
    fn clear(&self, range: &Range<u64>, quiet: &Quiet<'_>) {
        if !quiet.is_stale.load(Ordering::Acquire) || mutated(Mutation::TrustsTheTarget) {
            for set in [Some(&self.differs), self.wanted.as_ref()].into_iter().flatten() {
                set.clear_range(range.start, range.end - range.start);
            }
        }
    }
}
