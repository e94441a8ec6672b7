//! Edges that move, and what shows that views stay the same.
//!
//! A view may be altered if it is seen through an edge that moves, before or after. It is dirty
//! whole then, unless [`SameView`] evidence is given for that edge and is true.

use std::collections::{BTreeMap, BTreeSet};

use super::actions::Action;
use super::flight::Freshness;
use super::graph::{Graph, Node};
use super::ids::{BitmapId, NodeId, Span, View};
use super::refusal::Refusal;
use super::world::World;

/// How the host knows that a view stays the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameView {
    /// The edge moves within a class: a transparent filter comes or goes.
    Transparent,
    /// The edge moves to an overlay of the same size that has nothing allocated.
    EmptyOverlay,
    /// A job says so: a stream or commit whose watches stayed fresh, a mirror with nothing to copy;
    /// or the bytes were compared. True if the bytes are equal.
    Finished,
}

/// Users of the edges that move, by what is known of their views.
#[derive(Debug, Default)]
struct Movers {
    /// The same, by evidence.
    same: BTreeSet<View>,
    /// The same, since the edge moves within a class; without evidence the host may not know.
    within_class: BTreeSet<View>,
    /// Nothing shows that they are the same.
    unproven: BTreeSet<View>,
}

/// What is known of a user before its edge moves.
struct Before {
    used: Option<NodeId>,
    bytes: Vec<u8>,
}

impl World {
    /// The users whose views an action may alter: it has no evidence for them, or a false one. None
    /// for actions that move no edge.
    ///
    /// # Errors
    /// The action is impossible.
    pub fn unproven_users(&self, action: &Action) -> Result<Vec<View>, Refusal> {
        let Action::Repoint { users, to, same } = action else { return Ok(Vec::new()) };
        let (_, movers) = moved(&self.graph, users, *to, *same)?;
        Ok(movers.unproven.into_iter().collect())
    }

    /// Moves the edges of `users`. Returns the bitmaps that it made dirty whole.
    pub(super) fn repoint(
        &mut self,
        users: &[View],
        to: Option<NodeId>,
        same: Option<SameView>,
    ) -> Result<Vec<BitmapId>, Refusal> {
        let (after, movers) = moved(&self.graph, users, to, same)?;
        let before = std::mem::replace(&mut self.graph, after);
        let after = &self.graph;
        let affected =
            |view: View, by: &BTreeSet<View>| uses(&before, view, by) || uses(after, view, by);

        for watch in self.watches.values_mut() {
            let view = View::Node(watch.node);
            if affected(view, &movers.unproven) {
                watch.worsen(Freshness::Stale);
            } else if affected(view, &movers.same) || affected(view, &movers.within_class) {
                watch.worsen(Freshness::Unsettled);
            }
        }
        let mut marked = Vec::new();
        for (id, bitmap) in &mut self.bitmaps {
            bitmap.fit(after.len(bitmap.scope));
            if bitmap.enabled && affected(bitmap.scope, &movers.unproven) {
                bitmap.record.require(Span::whole(usize::MAX), bitmap.granularity);
                marked.push(*id);
            } else if bitmap.enabled
                && (affected(bitmap.scope, &movers.within_class)
                    || is_above_class_of(after, bitmap.scope, &movers.unproven)
                    || is_above_class_of(&before, bitmap.scope, &movers.unproven))
            {
                bitmap.record.allow(Span::whole(usize::MAX), bitmap.granularity);
            }
        }
        self.touch_in_flight();
        Ok(marked)
    }
}

/// The graph after the edges have moved, and what is known of the views of their users.
fn moved(
    graph: &Graph,
    users: &[View],
    to: Option<NodeId>,
    same: Option<SameView>,
) -> Result<(Graph, Movers), Refusal> {
    let mut after = graph.clone();
    users.iter().try_for_each(|user| after.point(*user, to))?;
    let before =
        |user: &View| (*user, Before { used: graph.used_by(*user), bytes: graph.bytes(*user) });
    let mut movers = Movers::default();
    for (user, before) in users.iter().map(before).collect::<BTreeMap<_, _>>() {
        let kind = if same.is_some_and(|same| is_same(&after, user, &before, to, same)) {
            &mut movers.same
        } else if same.is_none() && is_within_class(&after, before.used, to) {
            &mut movers.within_class
        } else {
            &mut movers.unproven
        };
        kind.insert(user);
    }
    Ok((after, movers))
}

/// Whether the evidence is true.
fn is_same(after: &Graph, user: View, before: &Before, to: Option<NodeId>, same: SameView) -> bool {
    match (same, before.used, to) {
        (SameView::Transparent, used, to) => is_within_class(after, used, to),
        (SameView::EmptyOverlay, Some(used), Some(to)) => match after.node(to) {
            Some(Node::Memory(overlay)) => {
                let backing = overlay.backing().map(|backing| after.class(backing));
                overlay.is_unallocated()
                    && overlay.len() == after.len(used)
                    && backing == Some(after.class(used))
            }
            _ => false,
        },
        (SameView::EmptyOverlay, ..) => false,
        (SameView::Finished, ..) => after.bytes(user) == before.bytes,
    }
}

fn is_within_class(graph: &Graph, used: Option<NodeId>, to: Option<NodeId>) -> bool {
    used.map(|node| graph.class(node)) == to.map(|node| graph.class(node))
}

/// Whether a view is of a class at or above that of one of these users: design §3 lets the host mark by
/// classes, and a node leaves one and joins one when its edge moves.
fn is_above_class_of(graph: &Graph, view: View, users: &BTreeSet<View>) -> bool {
    let stops = graph.top(view).map(|top| graph.stops(top)).unwrap_or_default();
    users.iter().any(|user| match user {
        View::Node(node) => stops.iter().any(|stop| stop.class == graph.class(*node)),
        View::Drive(_) => false,
    })
}

/// Whether a view is seen through the edge of one of these users.
fn uses(graph: &Graph, view: View, edges_of: &BTreeSet<View>) -> bool {
    let path = graph.top(view).map(|top| graph.path(top)).unwrap_or_default();
    edges_of.contains(&view) || path.iter().any(|node| edges_of.contains(&View::Node(*node)))
}
