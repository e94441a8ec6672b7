//! That two nodes show the same bytes, as seen with nothing in flight.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use super::tracker::Tracker;
use crate::error::Result;
use crate::graph::generation::NodeGeneration;
use crate::graph::permission::Role;
use crate::graph::snapshot::Graph;
use crate::graph::transaction::{Drained, Place, Side};
use crate::limits::GRAPH_DEPTH_MAX;
use crate::node::{Extent, ExtentKind};

/// Over `range`, `upper` shows what `lower` shows; if they are one node, what it would show without its
/// backing. Borrowed from the drained section in which that was found.
#[must_use = "evidence that nobody looks at proves nothing"]
pub(in crate::graph) struct SameView<'d> {
    upper: NodeGeneration,
    lower: NodeGeneration,
    range: Range<u64>,
    section: PhantomData<&'d Drained<'d>>,
}

impl<'d> SameView<'d> {
    /// A node and the child that it shows, because its driver says that it always does.
    pub(in crate::graph) fn transparent(section: &'d Drained<'_>, upper: Place) -> Option<Self> {
        let node = section.node(upper);
        let lower = view_child(section, upper, Role::Filtered)?;
        let size = node.info.size_bytes;
        (node.driver.is_transparent() && section.node(lower).info.size_bytes == size)
            .then(|| Self::new(section, upper, lower, 0..size))
    }

    /// An overlay and its backing, as long as the overlay has no bytes of its own in `range`.
    ///
    /// # Errors
    /// Of the overlay's block status.
    pub(in crate::graph) async fn nothing_allocated(
        section: &'d Drained<'_>,
        upper: Place,
        range: Range<u64>,
    ) -> Result<Option<Self>> {
        let Some(lower) = view_child(section, upper, Role::Backing) else { return Ok(None) };
        let node = section.node(upper);
        // Past its backing's end an overlay shows zeros, and before it ends, it hides the rest.
        if range.end > section.node(lower).info.size_bytes.min(node.info.size_bytes)
            || !section.is_still(node.generation)
        {
            return Ok(None);
        }
        let is_bare = |extent: &Extent| extent.kind == ExtentKind::Unallocated;
        let empty = all_extents(section, upper, range.clone(), is_bare).await?;
        Ok(empty.then(|| Self::new(section, upper, lower, range)))
    }

    /// An overlay and itself on any other backing: all its bytes are its own.
    ///
    /// # Errors
    /// Of the overlay's block status.
    pub(in crate::graph) async fn all_allocated(
        section: &'d Drained<'_>,
        overlay: Place,
    ) -> Result<Option<Self>> {
        let node = section.node(overlay);
        if !section.is_still(node.generation) {
            return Ok(None);
        }
        let range = 0..node.info.size_bytes;
        // A hole reads as zeros for want of a backing there: another one may be longer.
        let is_own = |extent: &Extent| matches!(extent.kind, ExtentKind::Data | ExtentKind::Zero);
        let full = all_extents(section, overlay, range.clone(), is_own).await?;
        Ok(full.then(|| Self::new(section, overlay, overlay, range)))
    }

    /// A node and another one to which all of it has been copied; what is left is copied now.
    ///
    /// # Errors
    /// The nodes'.
    pub(in crate::graph) async fn tracked(
        section: &'d Drained<'_>,
        tracker: &Arc<Tracker>,
    ) -> Result<Option<Self>> {
        let graph = section.graph(Side::Before);
        let Some((source, target)) = tracker.pair(graph) else { return Ok(None) };
        let size = |node: usize| graph.nodes[node].info.size_bytes;
        if size(source) != size(target) || tracker.catch_up(section).await? != Some(true) {
            return Ok(None);
        }
        let place = |node: usize| Place { side: Side::Before, node };
        Ok(Some(Self::new(section, place(source), place(target), 0..size(source))))
    }

    /// An overlay and itself on `base`, on which it stands by others: what is not its own is not theirs.
    ///
    /// # Errors
    /// Of block status, there and between.
    pub(in crate::graph) async fn passed(
        section: &'d Drained<'_>,
        overlay: Place,
        base: Place,
    ) -> Result<Option<Self>> {
        let mut between = Vec::new();
        let mut place = overlay;
        while place != base {
            if !section.is_still(section.node(place).generation) {
                return Ok(None);
            }
            if place != overlay {
                between.push(place);
            }
            match any_view_child(section.graph(place.side), place) {
                Some(below) => place = below,
                None => return Ok(None),
            }
        }
        let range = 0..section.node(overlay).info.size_bytes;
        let mut at = 0;
        while at < range.end {
            for extent in section.block_status(overlay, at, range.end - at).await? {
                at = extent.offset + extent.len;
                let part = extent.offset..at;
                let is_same = match extent.kind {
                    ExtentKind::Data | ExtentKind::Zero | ExtentKind::Unreadable => true,
                    // For want of a backing: the new one may be longer.
                    ExtentKind::Hole => part.start >= section.node(base).info.size_bytes,
                    ExtentKind::Unallocated => is_passed(section, &between, base, part).await?,
                };
                if !is_same {
                    return Ok(None);
                }
            }
        }
        Ok(Some(Self::new(section, overlay, overlay, range)))
    }

    /// An overlay and itself without a backing: what is not its own is zero below.
    ///
    /// # Errors
    /// Of block status, there and below.
    pub(in crate::graph) async fn zero_below(
        section: &'d Drained<'_>,
        overlay: Place,
    ) -> Result<Option<Self>> {
        let mut place = Some(overlay);
        while let Some(at) = place {
            if !section.is_still(section.node(at).generation) {
                return Ok(None);
            }
            place = any_view_child(section.graph(at.side), at);
        }
        let range = 0..section.node(overlay).info.size_bytes;
        let mut at = 0;
        while at < range.end {
            for extent in section.block_status(overlay, at, range.end - at).await? {
                at = extent.offset + extent.len;
                let is_bare = extent.kind == ExtentKind::Unallocated;
                if is_bare && !is_zero_below(section, overlay, extent.offset..at).await? {
                    return Ok(None);
                }
            }
        }
        Ok(Some(Self::new(section, overlay, overlay, range)))
    }

    fn new(section: &'d Drained<'_>, upper: Place, lower: Place, range: Range<u64>) -> Self {
        let (upper, lower) = (section.node(upper).generation, section.node(lower).generation);
        Self { upper, lower, range, section: PhantomData }
    }

    /// What follows from this and a view of what this one's lower node shows.
    pub(in crate::graph) fn then(self, below: Self) -> Option<Self> {
        (self.lower == below.upper && self.range == below.range)
            .then_some(Self { lower: below.lower, ..self })
    }

    /// Whether it says that about these two nodes.
    pub(in crate::graph) fn is_of(&self, upper: NodeGeneration, lower: NodeGeneration) -> bool {
        (self.upper, self.lower) == (upper, lower)
    }
}

fn view_child(section: &Drained<'_>, parent: Place, role: Role) -> Option<Place> {
    let edge = section.node(parent).edges.iter().find(|edge| edge.role == role)?;
    Some(Place { node: edge.child, ..parent })
}

fn any_view_child(graph: &Graph, parent: Place) -> Option<Place> {
    let edge = graph.nodes[parent.node].edges.iter().find(|edge| edge.role.is_view())?;
    Some(Place { node: edge.child, ..parent })
}

async fn all_extents(
    section: &Drained<'_>,
    place: Place,
    range: Range<u64>,
    is_so: impl Fn(&Extent) -> bool,
) -> Result<bool> {
    let mut at = range.start;
    while at < range.end {
        let extents = section.block_status(place, at, range.end - at).await?;
        if !extents.iter().all(&is_so) {
            return Ok(false);
        }
        // The edge has checked that they cover `at`.
        at = extents.last().map_or(range.end, |last| last.offset + last.len);
    }
    Ok(true)
}

/// Whether what lies between an overlay and `base` leaves a range to that.
async fn is_passed(
    section: &Drained<'_>,
    between: &[Place],
    base: Place,
    mut range: Range<u64>,
) -> Result<bool> {
    let base_bytes = section.node(base).info.size_bytes;
    for place in between {
        let node = section.node(*place);
        if node.edges.iter().any(|edge| edge.role.is_same_view()) {
            // A filter's status is its child's, if it alters nothing.
            if !node.driver.is_transparent() {
                return Ok(false);
            }
            continue;
        }
        // Behind its end it hides the base.
        let end = node.info.size_bytes;
        if range.end > end {
            if end.max(range.start) < base_bytes {
                return Ok(false);
            }
            range.end = end;
        }
        // Behind the base's end both show zeros.
        let is_bare = |extent: &Extent| match extent.kind {
            ExtentKind::Unallocated => true,
            ExtentKind::Hole => extent.offset >= base_bytes,
            _ => false,
        };
        if !range.is_empty() && !all_extents(section, *place, range.clone(), is_bare).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a range that `place` leaves to what lies below it is zero there, by block status.
async fn is_zero_below(section: &Drained<'_>, place: Place, range: Range<u64>) -> Result<bool> {
    // One entry for each part of the range that is left to a child; each step goes down the graph, which
    // is bounded, and splits parts as the child's extents do.
    let mut pending = vec![(place, range, 0)];
    while let Some((place, range, depth)) = pending.pop() {
        let Some(below) = any_view_child(section.graph(place.side), place) else {
            return Ok(false);
        };
        // A filter that alters bytes may say anything of them.
        let node = section.node(below);
        let is_filter = node.edges.iter().any(|edge| edge.role.is_same_view());
        if depth > GRAPH_DEPTH_MAX || (is_filter && !node.driver.is_transparent()) {
            return Ok(false);
        }
        // Past its end it reads as zeros.
        let end = range.end.min(node.info.size_bytes);
        let mut at = range.start;
        while at < end {
            for extent in section.block_status(below, at, end - at).await? {
                let part = at..extent.offset + extent.len;
                at = part.end;
                match extent.kind {
                    ExtentKind::Data | ExtentKind::Unreadable => return Ok(false),
                    ExtentKind::Zero | ExtentKind::Hole => {}
                    ExtentKind::Unallocated => pending.push((below, part, depth + 1)),
                }
            }
        }
    }
    Ok(true)
}
