//! What a node does on the ground of a request, but not in the request's own future: a plugin asks for
//! several things at once, and each of them ends by itself.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use super::super::detach::ToTheEnd;
use super::super::edge::EdgeRef;
use super::super::mutation::{Mutation, mutated};
use super::super::op::OpKind;
use super::super::permission::Role;
use super::super::snapshot::Cx;
use super::buffer::ProvenBuf;
use super::copies::{Copied, CopyHow};
use super::operations::Actor;
use super::own_accord::OwnAccord;
use super::tracker::{Tracked, Tracker};
use crate::bitmap::Granules;
use crate::error::Result;
use crate::io::Buf;
use crate::limits::ZERO_PROVEN_MAX_BYTES;
use crate::node::{Extent, ExtentKind, NodeFuture, WriteFlags};

/// A node that is to do one thing of its own accord. It stands where the request stands that caused it: behind
/// the gate, with its lineage; a drain waits for it. Each of its operations runs to its end once begun,
/// whatever becomes of the future that asked.
pub struct OnBehalf(Actor);

impl Cx<'_> {
    /// One thing that the node does on behalf of this request.
    pub fn on_behalf(&self) -> OnBehalf {
        OnBehalf(self.actor())
    }
}

impl OwnAccord {
    /// One thing that the node does of its own accord, once its gate is open.
    ///
    /// # Errors
    /// `ENOENT`; `EPERM` for a node that has no grants.
    pub async fn on_behalf(&self) -> Result<OnBehalf> {
        self.begin().await.map(OnBehalf)
    }
}

impl OnBehalf {
    pub(super) fn into_actor(self) -> Actor {
        self.0
    }

    /// See [`Cx::copy`].
    ///
    /// # Errors
    /// As there.
    pub fn copy(
        self,
        from: usize,
        to: usize,
        range: Range<u64>,
        how: CopyHow,
    ) -> impl Future<Output = Result<Copied>> {
        ToTheEnd::new(self.0.copy(from, to, range, how, None))
    }

    /// The same; returns what the source showed, too, if all of it was copied at once.
    ///
    /// # Errors
    /// As there.
    pub fn copy_shown(
        self,
        from: usize,
        to: usize,
        range: Range<u64>,
        how: CopyHow,
    ) -> impl Future<Output = Result<(Copied, Option<Buf>)>> {
        ToTheEnd::new(self.0.copy_shown(from, to, range, how, None))
    }

    /// As [`OnBehalf::copy`] where granules are set, each of which is cleared when all of it has been copied, before the
    /// guard of its range ends.
    ///
    /// # Errors
    /// As there.
    pub fn copy_set(
        self,
        from: usize,
        to: usize,
        range: Range<u64>,
        how: CopyHow,
        granules: Arc<Granules>,
    ) -> impl Future<Output = Result<Copied>> {
        let actor = self.0;
        ToTheEnd::new(async move { actor.copy(from, to, range, how, Some(&granules)).await })
    }

    /// Makes the target of a tracker of this node what its source shows, where in `range` they may differ: guard
    /// by guard, in pieces. What shows zeros is zeroed, and what is the same already by block status is left.
    ///
    /// # Errors
    /// `ESTALE` when it tracks what the node's edges do not lead to any more; else as [`Cx::copy`].
    pub fn copy_tracked(
        self,
        tracker: Arc<Tracker>,
        range: Range<u64>,
    ) -> impl Future<Output = Result<Tracked>> {
        ToTheEnd::new(self.0.copy_tracked(tracker, range))
    }

    /// Looks where the source and the target of a tracker of this node show the same, and need not be copied:
    /// by block status, or, if it `reads`, by their bytes. Returns how many do.
    ///
    /// # Errors
    /// As [`OnBehalf::copy_tracked`].
    pub fn check_tracked(
        self,
        tracker: Arc<Tracker>,
        range: Range<u64>,
        reads: bool,
    ) -> impl Future<Output = Result<u64>> {
        ToTheEnd::new(self.0.check_tracked(tracker, range, reads))
    }

    /// See [`Cx::read_proven`].
    ///
    /// # Errors
    /// As there.
    pub async fn read_proven(self, from: usize, range: Range<u64>) -> Result<ProvenBuf> {
        self.0.read(from, range).await
    }

    /// See [`Cx::write_proven`].
    ///
    /// # Errors
    /// As there.
    pub fn write_proven(self, to: usize, bytes: ProvenBuf) -> impl Future<Output = Result<()>> {
        ToTheEnd::new(self.0.write_proven(to, bytes))
    }

    /// See [`Cx::write_changed`].
    ///
    /// # Errors
    /// As there.
    pub fn write_changed(
        self,
        to: usize,
        offset: u64,
        bytes: Buf,
    ) -> impl Future<Output = Result<()>> {
        ToTheEnd::new(self.0.write_changed(to, offset, bytes))
    }

    /// See [`Cx::zero_proven`].
    ///
    /// # Errors
    /// As there.
    pub fn zero_proven(
        self,
        from: usize,
        to: usize,
        range: Range<u64>,
    ) -> impl Future<Output = Result<()>> {
        ToTheEnd::new(self.0.zero_proven(from, to, range))
    }

    /// Makes a range of child `to` read as zeros: a change. Done in pieces.
    ///
    /// # Errors
    /// `EPERM` without the grant; the nodes'. Pieces done before stay done.
    pub fn zero_changed(self, to: usize, range: Range<u64>) -> impl Future<Output = Result<()>> {
        let flags = WriteFlags::NONE;
        let zero = async move |call: EdgeRef<'_>, piece: Range<u64>| {
            call.zero_with_fua(piece.start, piece.end - piece.start, flags).await
        };
        ToTheEnd::new(in_pieces(self.0, (to, OpKind::Zero), range, zero))
    }

    /// Tells child `to` that a range is not needed: a change. Done in pieces.
    ///
    /// # Errors
    /// As [`OnBehalf::zero_changed`].
    pub fn discard_changed(self, to: usize, range: Range<u64>) -> impl Future<Output = Result<()>> {
        let discard = async |call: EdgeRef<'_>, piece: Range<u64>| {
            call.discard_child(piece.start, piece.end - piece.start).await
        };
        ToTheEnd::new(in_pieces(self.0, (to, OpKind::Discard), range, discard))
    }

    /// Makes completed writes of a child durable.
    ///
    /// # Errors
    /// `ENOENT`; the node's.
    pub async fn flush(self, child: usize) -> Result<()> {
        if mutated(Mutation::PluginsFlushNothing) {
            return Ok(());
        }
        self.0.call(&self.0.request, self.0.edge(child)?).flush().await
    }

    /// The extents of a child from the start of `range` on, as it shows them, `most` at most; they may end before it. What
    /// shows from a backing counts as that backing has it, down to the child `above`, and without it, or to the
    /// last one.
    ///
    /// # Errors
    /// As [`OnBehalf::block_status`].
    pub async fn block_status_shown(
        self,
        child: usize,
        above: Option<usize>,
        range: Range<u64>,
        most: usize,
    ) -> Result<Vec<Extent>> {
        let call = self.0.call(&self.0.request, self.0.edge(child)?);
        let end = above.map(|above| self.0.edge(above)).transpose()?;
        status_above(call, end.map_or(usize::MAX, |edge| edge.child), range, most).await
    }

    /// The extents of a child from the start of `range` on, `most` at most; they may end before it. With `above`, what the
    /// child shows from a backing counts as that backing has it, down to the child `above`, and without it.
    ///
    /// # Errors
    /// `ENOENT`; `EINVAL` past the end; the nodes'.
    pub async fn block_status(
        self,
        child: usize,
        above: Option<usize>,
        range: Range<u64>,
        most: usize,
    ) -> Result<Vec<Extent>> {
        let edge = self.0.edge(child)?;
        let call = self.0.call(&self.0.request, edge);
        match above {
            None => {
                let len = range.end.saturating_sub(range.start);
                let mut extents = call.block_status(range.start, len).await?;
                extents.truncate(most);
                Ok(extents)
            }
            Some(above) => status_above(call, self.0.edge(above)?.child, range, most).await,
        }
    }
}

async fn in_pieces(
    actor: Actor,
    (to, kind): (usize, OpKind),
    range: Range<u64>,
    issue: impl AsyncFn(EdgeRef<'_>, Range<u64>) -> Result<()>,
) -> Result<()> {
    actor.check_range(actor.edge(to)?, kind, &range)?;
    let mut at = range.start;
    while at < range.end {
        let piece = at..range.end.min(at.saturating_add(ZERO_PROVEN_MAX_BYTES));
        at = piece.end;
        actor.change((to, kind), &piece, async |call| issue(call, piece.clone()).await).await?;
    }
    Ok(())
}

/// Block status in which what node `end` and those below it hold does not count.
fn status_above<'a>(
    edge: EdgeRef<'a>,
    end: usize,
    range: Range<u64>,
    most: usize,
) -> NodeFuture<'a, Vec<Extent>> {
    Box::pin(async move {
        let (offset, len) = (range.start, range.end.saturating_sub(range.start));
        let backing = match below(edge, end) {
            Below::End if len > 0 => {
                let kind = ExtentKind::Unallocated;
                return Ok(vec![Extent { offset, len, kind, host_offset: None }]);
            }
            Below::Backing(backing) => Some(backing),
            Below::End | Below::Nothing => None,
        };
        let mut extents = Vec::new();
        for extent in edge.block_status(offset, len).await? {
            if extents.len() >= most {
                break;
            }
            let backing = backing.filter(|_| extent.kind == ExtentKind::Unallocated);
            let Some(backing) = backing else {
                extents.push(extent);
                continue;
            };
            let stop = extent.offset.saturating_add(extent.len);
            let shown = stop.min(backing.node().info().size_bytes);
            let mut at = extent.offset;
            while at < shown {
                let left = most.saturating_sub(extents.len());
                if left == 0 {
                    return Ok(extents);
                }
                let found = status_above(backing, end, at..shown, left).await?;
                at = found.last().map_or(shown, |last| last.offset.saturating_add(last.len));
                extents.extend(found);
            }
            if at < stop && extents.len() < most {
                extents.push(Extent { offset: at, len: stop - at, ..extent });
            }
        }
        Ok(extents)
    })
}

/// What a view stands on.
enum Below<'a> {
    /// The node at which counting ends is of this view, or nothing is between.
    End,
    Backing(EdgeRef<'a>),
    Nothing,
}

fn below(edge: EdgeRef<'_>, end: usize) -> Below<'_> {
    let mut node = edge.edge.child;
    while node != end {
        let edges = &edge.graph.nodes[node].edges;
        match edges.iter().find(|edge| edge.role.is_view()) {
            None => return Below::Nothing,
            Some(view) if view.role == Role::Backing => {
                return Below::Backing(EdgeRef { edge: view, ..edge });
            }
            // A filter's status is its child's: the backing is further down.
            Some(view) => node = view.child,
        }
    }
    Below::End
}
