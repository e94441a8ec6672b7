//! What a transaction claims about views: each edge or bitmap that leads elsewhere is to show what it
//! showed. Found by comparing the snapshots; verified in the drained section.
//!
//! Two nodes show the same if from both, by steps that change nothing (a transparent filter; an overlay
//! without bytes of its own), one comes down to the same node. That node's own edges may be altered, too:
//! then they are another claim, whose marks reach everything above it. So claims about one edge at a time
//! are enough for any combination of actions. An overlay's backing may be altered or cut without that,
//! if the overlay shows nothing of it, or nothing that the new one does not show, too.

use std::sync::Arc;

use super::action::Unproven;
use super::bitmap_steps::position;
use super::bitmaps;
use super::draft::{By, Draft, Place as EdgePlace};
use super::drain::{Drained, Place, Side};
use super::touched::{Known, same_drive};
use super::work::check_keepers;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::evidence::{SameView, Tracker};
use crate::graph::generation::NodeGeneration;
use crate::graph::mutation::{Mutation, mutated};
use crate::graph::permission::Role;
use crate::graph::snapshot::{BitmapScope, Edge, Graph, GraphNode, ScopedBitmap};
use crate::graph::user::DriveTitle;

/// Something that leads elsewhere.
pub(super) struct Claim {
    /// For messages: who shows what instead of what.
    pub(super) what: String,
    pub(super) by: By,
    /// Of the last action that led it elsewhere, among the changes of bitmaps.
    pub(super) position: usize,
    /// Bitmaps of the graph that is to be that see it, by index.
    pub(super) marks: Vec<usize>,
    /// The node of the graph that is to be of which an edge is altered.
    altered: Option<usize>,
    /// Any of them will do.
    proofs: Vec<Proof>,
}

pub(super) enum Proof {
    /// From both places down to one node.
    Meet { before: Vec<Place>, after: Vec<Place> },
    /// An overlay of the graph that is shows nothing of its backing.
    Own { overlay: usize, is_cut: bool },
    /// What an overlay of the graph that is shows of its backing is not the backing's own, nor anybody's down
    /// to `base`.
    Passed { overlay: usize, base: usize },
    /// From both places down to what somebody copies from, and to what that is copied to.
    Tracked { before: Vec<Place>, tracker: Arc<Tracker>, after: Vec<Place> },
    /// All that was to be copied has been.
    CaughtUp(Arc<Tracker>),
}

/// Everything that two snapshots' difference claims and that somebody minds; and whether there is more that nobody
/// does.
///
/// # Errors
/// `EPERM` for what is to be refused unless proven, and has nothing that could prove it.
pub(super) fn claims(
    draft: &Draft,
    before: &Graph,
    after: &Graph,
) -> Result<(Vec<Claim>, bool), (By, Error)> {
    let compare = Comparison { draft, before, after };
    // What is copied to catch up comes before any look at what it may alter.
    let mut claims = compare.catching_up();
    claims.extend(compare.roots());
    let (edges, has_unseen) = compare.edges();
    claims.extend(edges);
    claims.extend(compare.moved_bitmaps());
    let all = claims.len();
    claims.retain(|claim| {
        let is_refused = claim.by.unproven == Unproven::Refuse;
        is_refused || !claim.marks.is_empty() || claim.check_keepers(after).is_err()
    });
    let has_silent = has_unseen || claims.len() < all;
    let cannot_be =
        |claim: &&Claim| claim.proofs.is_empty() && claim.by.unproven == Unproven::Refuse;
    match claims.iter().find(cannot_be) {
        Some(claim) => Err((claim.by, claim.refused())),
        None => Ok((claims, has_silent)),
    }
}

struct Comparison<'g> {
    draft: &'g Draft,
    before: &'g Graph,
    after: &'g Graph,
}

impl Comparison<'_> {
    fn roots(&self) -> Vec<Claim> {
        let mut claims = Vec::new();
        for old in &self.before.drives {
            let Some(new) = same_drive(self.after, old) else { continue };
            let Some(root) = &new.root else { continue };
            let edge = EdgePlace::Root(old.generation);
            let (by, position) = (self.draft.altered_by(&edge), self.draft.altered_at(&edge));
            let marks = bitmaps::of_scope(self.after, &BitmapScope::Drive(new.id.clone()));
            let (what, proofs) = match &old.root {
                Some(was) if self.is_same(was, root) => continue,
                Some(was) => {
                    let title = DriveTitle(&old.id).to_string();
                    let what = self.instead(&title, was.child, root.child);
                    (what, self.meet(was.child, root.child))
                }
                // What its bitmaps recorded has gone; without bitmaps there is nothing to keep.
                None if marks.is_empty() => continue,
                None => (format!("{} has a new medium", DriveTitle(&old.id)), Vec::new()),
            };
            claims.push(Claim { what, by, position, marks, altered: None, proofs });
        }
        claims
    }

    /// Also whether one leads elsewhere that nobody saw.
    fn edges(&self) -> (Vec<Claim>, bool) {
        let known = Known::of(self.after);
        let (mut claims, mut has_unseen) = (Vec::new(), false);
        for (at, old) in self.before.nodes.iter().enumerate() {
            let Some(now) = known.node(old.generation).filter(|_| is_seen(self.before, at)) else {
                continue;
            };
            let new = &self.after.nodes[now];
            if self.is_unseen(at, new) {
                let is_there =
                    |edge: &Edge| find(new, &edge.name).is_some_and(|it| self.is_same(edge, it));
                has_unseen |= old.edges.len() != new.edges.len() || !old.edges.iter().all(is_there);
                continue;
            }
            let mut altered = |name: &str, what: String, proofs: Vec<Proof>| {
                let edge = EdgePlace::Child(old.generation, name.into());
                let (by, position) = (self.draft.altered_by(&edge), self.draft.altered_at(&edge));
                let marks = bitmaps::affected(self.after, new.class).collect();
                claims.push(Claim { what, by, position, marks, altered: Some(now), proofs });
            };
            for was in old.edges.iter().filter(|edge| shows(edge)) {
                if mutated(Mutation::ReopensUnmarked) && was.role == Role::Backing {
                    continue;
                }
                let what = format!("node `{}` (edge `{}`)", old.name, was.name);
                match find(new, &was.name) {
                    Some(edge) if self.is_same(was, edge) => {}
                    Some(edge) => {
                        let mut proofs = self.meet(was.child, edge.child);
                        if was.role == Role::Backing {
                            proofs.extend(self.passed(at, was.child, edge.child));
                            proofs.push(Proof::Own { overlay: at, is_cut: false });
                        }
                        altered(&was.name, self.instead(&what, was.child, edge.child), proofs);
                    }
                    None => {
                        let child = &self.before.nodes[was.child].name;
                        let what = format!("{what} shows node `{child}` no more");
                        altered(&was.name, what, vec![Proof::Own { overlay: at, is_cut: true }]);
                    }
                }
            }
            for edge in new.edges.iter().filter(|edge| shows(edge)) {
                if find(old, &edge.name).is_none() {
                    let child = &self.after.nodes[edge.child].name;
                    let what = format!("node `{}` (edge `{}`)", old.name, edge.name);
                    let what = format!("{what} shows node `{child}` where it showed none");
                    altered(&edge.name, what, vec![Proof::Own { overlay: at, is_cut: false }]);
                }
            }
        }
        (claims, has_unseen)
    }

    /// Whether nobody saw what a node showed. Who sees it from now on is led there by something else that leads
    /// elsewhere, which is another claim.
    fn is_unseen(&self, at: usize, now: &GraphNode) -> bool {
        let mut roots = self.before.drives.iter().filter_map(|drive| drive.root.as_ref());
        let mut edges = self.before.nodes.iter().flat_map(|node| &node.edges);
        let class = self.before.nodes[at].class;
        let was_there = |entry: usize| {
            let bitmap = &self.after.bitmaps[entry].bitmap;
            self.before.bitmaps.iter().any(|old| Arc::ptr_eq(&old.bitmap, bitmap))
        };
        !roots.any(|root| root.child == at)
            && !edges.any(|edge| edge.child == at)
            && bitmaps::affected(self.before, class).next().is_none()
            && bitmaps::affected(self.after, now.class).all(was_there)
    }

    fn catching_up(&self) -> Vec<Claim> {
        let claim = |(tracker, by): &(Arc<Tracker>, By)| {
            let proof = |(source, target): (usize, usize)| {
                let name = |node: usize| &self.before.nodes[node].name;
                let what =
                    format!("node `{}` is to show what `{}` does", name(target), name(source));
                (what, vec![Proof::CaughtUp(Arc::clone(tracker))])
            };
            let nothing = || ("what a job tracks has gone".to_owned(), Vec::new());
            let (what, proofs) = tracker.pair(self.before).map_or_else(nothing, proof);
            let (position, marks) = (position(by.action), Vec::new());
            Claim { what, by: *by, position, marks, altered: None, proofs }
        };
        self.draft.catching_up.iter().map(claim).collect()
    }

    fn moved_bitmaps(&self) -> Vec<Claim> {
        let mut claims = Vec::new();
        let all = self.draft.bitmaps.iter().chain(&self.draft.removed);
        for (at, entry) in all.enumerate() {
            let Some((from, by)) = &entry.moved else { continue };
            let was = self.before.scope_node(from);
            let Some((was, now)) = was.zip(self.after.bitmaps[at].node) else { continue };
            let what = self.instead(&format!("bitmap `{}`", entry.name), was, now);
            let (position, proofs) = (position(by.action), self.meet(was, now));
            let (marks, altered) = (vec![at], None);
            claims.push(Claim { what, by: *by, position, marks, altered, proofs });
        }
        claims
    }

    /// The proof that an overlay shows the same on a node on which its backing stands, if it does.
    fn passed(&self, overlay: usize, was: usize, now: usize) -> Option<Proof> {
        let generation = self.after.nodes[now].generation;
        let base = self.before.nodes.iter().position(|node| node.generation == generation)?;
        let asks = !self.draft.resizes() && self.before.stands_on(was, base);
        asks.then_some(Proof::Passed { overlay, base })
    }

    fn is_same(&self, before: &Edge, after: &Edge) -> bool {
        self.before.nodes[before.child].generation == self.after.nodes[after.child].generation
    }

    fn instead(&self, who: &str, was: usize, now: usize) -> String {
        let (was, now) = (&self.before.nodes[was].name, &self.after.nodes[now].name);
        format!("{who} shows node `{now}` instead of `{was}`")
    }

    /// The proof that two nodes show the same, if there is a way to it.
    fn meet(&self, was: usize, now: usize) -> Vec<Proof> {
        let mut before = ways_down(self.before, Side::Before, was);
        let mut after = ways_down(self.after, Side::After, now);
        let tracked = self.tracked(&before, &after);
        let who = |graph: &Graph, place: &Place| graph.nodes[place.node].generation;
        let meeting = after.iter().enumerate().find_map(|(steps, place)| {
            let node = who(self.after, place);
            let other = before.iter().position(|place| who(self.before, place) == node);
            other.map(|other| (other, steps))
        });
        let Some((before_steps, after_steps)) = meeting else { return tracked };
        before.truncate(before_steps + 1);
        after.truncate(after_steps + 1);
        // Where a size is about to change, block status cannot be asked for yet.
        let asks = |place: &Place| has_backing(&self.after.nodes[place.node]);
        if self.draft.resizes() && after[..after_steps].iter().any(asks) {
            return tracked;
        }
        [Proof::Meet { before, after }].into_iter().chain(tracked).collect()
    }

    /// The proofs by somebody who copies what is shown to what is to be shown.
    fn tracked(&self, before: &[Place], after: &[Place]) -> Vec<Proof> {
        let trackers = self.before.nodes.iter().filter_map(|node| node.driver.tracker());
        let proof = |tracker: Arc<Tracker>| {
            let (source, target) = tracker.pair(self.before)?;
            let (before, after) = (
                way_to(self.before, before, self.before.nodes[source].generation)?,
                way_to(self.after, after, self.before.nodes[target].generation)?,
            );
            Some(Proof::Tracked { before, tracker, after })
        };
        if self.draft.resizes() { Vec::new() } else { trackers.filter_map(proof).collect() }
    }
}

/// Where what a tracker compares may come from.
fn tracked_nodes<'g>(graph: &'g Graph, tracker: &Tracker) -> Vec<&'g GraphNode> {
    let Some((source, target)) = tracker.pair(graph) else { return Vec::new() };
    let below = graph.below(source).chain(graph.below(target));
    below.map(|node| &graph.nodes[node]).collect()
}

/// A way as far as a node, if it comes there.
fn way_to(graph: &Graph, way: &[Place], to: NodeGeneration) -> Option<Vec<Place>> {
    let at = way.iter().position(|place| graph.nodes[place.node].generation == to)?;
    Some(way[..=at].to_vec())
}

/// Whether anybody sees what a node shows: if not, nobody minds what that is.
fn is_seen(graph: &Graph, node: usize) -> bool {
    let class = graph.nodes[node].class;
    let mut roots = graph.drives.iter().filter_map(|drive| drive.root.as_ref());
    let mut edges = graph.nodes.iter().flat_map(|node| &node.edges);
    let of_class =
        |entry: &ScopedBitmap| entry.node.is_some_and(|node| graph.nodes[node].class == class);
    roots.any(|root| root.child == node)
        || edges.any(|edge| edge.child == node)
        || graph.bitmaps.iter().any(of_class)
}

/// Whether what the child shows can be seen through the edge.
fn shows(edge: &Edge) -> bool {
    edge.role.is_view() || edge.role == Role::Storage
}

fn find<'g>(node: &'g GraphNode, edge: &str) -> Option<&'g Edge> {
    node.edges.iter().find(|other| *other.name == *edge)
}

fn has_backing(node: &GraphNode) -> bool {
    node.edges.iter().any(|edge| edge.role == Role::Backing)
}

/// The nodes that may show what `from` shows, from it down.
fn ways_down(graph: &Graph, side: Side, from: usize) -> Vec<Place> {
    let mut places = vec![Place { side, node: from }];
    let mut at = from;
    loop {
        let node = &graph.nodes[at];
        let is_step = |edge: &&Edge| match edge.role {
            Role::Filtered => node.driver.is_transparent(),
            Role::Backing => true,
            _ => false,
        };
        let Some(edge) = node.edges.iter().find(is_step) else { return places };
        if graph.nodes[edge.child].info.size_bytes != node.info.size_bytes {
            return places;
        }
        // Children come before their parents: this ends.
        at = edge.child;
        places.push(Place { side, node: at });
    }
}

impl Claim {
    /// Nodes that nobody may reach while the claim is verified.
    pub(super) fn nodes(&self, before: &Graph, after: &Graph) -> Vec<NodeGeneration> {
        let mut nodes = Vec::new();
        for proof in &self.proofs {
            match proof {
                Proof::Meet { before: was, after: now } => {
                    let was = was.iter().map(|place| &before.nodes[place.node]);
                    let now = now.iter().map(|place| &after.nodes[place.node]);
                    nodes.extend(was.chain(now).filter(|node| has_backing(node)));
                }
                Proof::Tracked { before: was, tracker, after: now } => {
                    let was = was.iter().map(|place| &before.nodes[place.node]);
                    let now = now.iter().map(|place| &after.nodes[place.node]);
                    nodes.extend(was.chain(now).filter(|node| has_backing(node)));
                    nodes.extend(tracked_nodes(before, tracker));
                }
                Proof::CaughtUp(tracker) => nodes.extend(tracked_nodes(before, tracker)),
                Proof::Passed { overlay, base } => {
                    let mut at = Some(*overlay).filter(|at| at != base);
                    while let Some(node) = at.map(|at| &before.nodes[at]) {
                        nodes.push(node);
                        let mut views = node.edges.iter().filter(|edge| edge.role.is_view());
                        at = views.next().map(|edge| edge.child).filter(|at| at != base);
                    }
                }
                Proof::Own { overlay, is_cut } => {
                    let mut at = Some(*overlay);
                    while let Some(node) = at.map(|at| &before.nodes[at]) {
                        nodes.push(node);
                        let mut views = node.edges.iter().filter(|edge| edge.role.is_view());
                        at = views.next().filter(|_| *is_cut).map(|edge| edge.child);
                    }
                }
            }
        }
        nodes.into_iter().map(|node| node.generation).collect()
    }

    /// The evidence for it, if there is any. It is good as long as nothing is written in the section
    /// ([`SectionMarks::written`](super::section_marks::SectionMarks::written)); looking for it may do so.
    ///
    /// # Errors
    /// Of block status, or of a flush.
    pub(super) async fn verify<'d>(
        &self,
        section: &'d Drained<'_>,
    ) -> Result<Option<Vec<SameView<'d>>>> {
        for proof in &self.proofs {
            let evidence = match proof {
                Proof::Meet { before, after } => {
                    let before = way(section, before).await?;
                    let after = way(section, after).await?;
                    before
                        .zip(after)
                        .map(|(before, after)| before.into_iter().chain(after).collect())
                }
                Proof::Tracked { before, tracker, after } => {
                    let before = way(section, before).await?;
                    let after = way(section, after).await?;
                    let copied = match before.is_some() && after.is_some() {
                        true => SameView::tracked(section, tracker).await?,
                        false => None,
                    };
                    before.zip(after).zip(copied).map(|((before, after), copied)| {
                        before.into_iter().chain(after).chain([copied]).collect()
                    })
                }
                Proof::CaughtUp(tracker) => tracker.catch_up(section).await?.map(|_| Vec::new()),
                Proof::Own { overlay, is_cut } => {
                    let overlay = Place { side: Side::Before, node: *overlay };
                    let found = match is_cut {
                        true => SameView::zero_below(section, overlay).await?,
                        false => SameView::all_allocated(section, overlay).await?,
                    };
                    flushed(section, overlay, found).await?
                }
                Proof::Passed { overlay, base } => {
                    let place = |node: usize| Place { side: Side::Before, node };
                    let (overlay, base) = (place(*overlay), place(*base));
                    let found = SameView::passed(section, overlay, base).await?;
                    flushed(section, overlay, found).await?
                }
            };
            if evidence.is_some() {
                return Ok(evidence);
            }
        }
        Ok(None)
    }

    /// Refuses it without evidence where somebody relies on what was shown.
    ///
    /// # Errors
    /// `EBUSY`, with who does.
    pub(super) fn check_keepers(&self, after: &Graph) -> Result<()> {
        self.altered.map_or(Ok(()), |node| {
            check_keepers(after, node, "it would show something else below it")
        })
    }

    /// Why the transaction fails without evidence.
    pub(super) fn refused(&self) -> Error {
        let marked = match self.marks.len() {
            0 => "no bitmap sees it".to_owned(),
            1 => "1 bitmap would be marked whole".to_owned(),
            count => format!("{count} bitmaps would be marked whole"),
        };
        let message = format!(
            "{}, and nothing proves that they show the same: ask for it with `on-unproven` \
             \"mark-whole\" ({marked})",
            self.what
        );
        Error::new(ErrorKind::NotPermitted, message)
    }
}

/// Evidence of what only the overlay has from now on: it must be there after a crash.
async fn flushed<'d>(
    section: &'d Drained<'_>,
    overlay: Place,
    found: Option<SameView<'d>>,
) -> Result<Option<Vec<SameView<'d>>>> {
    if found.is_some() {
        section.flush(overlay).await?;
    }
    Ok(found.map(|found| vec![found]))
}

/// That the first node of a way shows what the last one shows. Nothing needs to be shown for one node.
async fn way<'d>(
    section: &'d Drained<'_>,
    places: &[Place],
) -> Result<Option<Option<SameView<'d>>>> {
    let mut view: Option<SameView<'d>> = None;
    for pair in places.windows(2) {
        let upper = section.node(pair[0]);
        let step = if has_backing(upper) {
            SameView::nothing_allocated(section, pair[0], 0..upper.info.size_bytes).await?
        } else {
            SameView::transparent(section, pair[0])
        };
        let lower = section.node(pair[1]).generation;
        let step = step.filter(|step| step.is_of(upper.generation, lower));
        let Some(step) = step else { return Ok(None) };
        view = match view {
            None => Some(step),
            Some(view) => match view.then(step) {
                Some(view) => Some(view),
                None => return Ok(None),
            },
        };
    }
    Ok(Some(view))
}
