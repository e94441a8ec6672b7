//! A node that acts: what it holds while it does, and how it reads and writes its children. It needs the grants of
//! the edges that it uses.

use std::ops::Range;
use std::sync::Arc;

use super::super::acting::{Effect, Own};
use super::super::edge::EdgeRef;
use super::super::guard::{Full, Held, SourceId, SourceRange, Want};
use super::super::mutation::{Mutation, mutated};
use super::super::op::{Op, OpKind};
use super::super::origin::{Origin, Request, Shield};
use super::super::permission::PermissionSet;
use super::super::snapshot::{Edge, Graph};
use super::buffer::{ProvenBuf, Watch};
use super::outcome::OutcomeCounters;
use super::proof::{Evidence, ViewProof};
use crate::bitmap::Granules;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Buf, BufMut, turn_now, until};
use crate::limits::{COPY_MAX_BYTES, GUARD_WAIT};
use crate::node::WriteFlags;

/// A node that acts, on the ground of a request. Its operations run to their end: see [`OnBehalf`](super::OnBehalf).
pub(super) struct Actor {
    pub(super) request: Request,
    pub(super) node: usize,
}

pub(super) fn too_many(_: Full) -> Error {
    let message = "too many copies are under way: try again when some have ended";
    Error::new(ErrorKind::Busy, message)
}

/// Whether the node may write to a child what alters everything that shows it.
fn may_change(edge: &Edge) -> bool {
    edge.grants.contains(PermissionSet::WRITE) && edge.proven_for.is_none()
}

impl Actor {
    pub(super) fn graph(&self) -> &Graph {
        self.request.graph()
    }

    pub(super) fn edge(&self, index: usize) -> Result<&Edge> {
        let node = &self.graph().nodes[self.node];
        node.edges.get(index).ok_or_else(|| {
            let message = format!("it has no child number {index}");
            Error::new(ErrorKind::NotFound, message).at_node(&node.name)
        })
    }

    /// What edge `edge` would have to be granted.
    #[cold]
    fn not_permitted(&self, edge: &Edge, grant: &str) -> Error {
        let (node, graph) = (&self.graph().nodes[self.node], self.graph());
        let (name, child) = (&edge.name, &graph.nodes[edge.child].name);
        let message = match edge.proven_for.map(|view| &node.edges[view].name) {
            Some(view) if edge.grants.contains(PermissionSet::WRITE) => format!(
                "its edge `{name}` to node `{child}` may write only what is proven for its edge `{view}`"
            ),
            _ => format!(
                "its edge `{name}` to node `{child}` lacks the grant `{grant}`: add it to that edge's \
                 grants"
            ),
        };
        Error::new(ErrorKind::NotPermitted, message).at_node(&node.name)
    }

    pub(super) fn outcomes(&self) -> Result<&OutcomeCounters> {
        self.origin().map(|origin| &origin.outcomes)
    }

    /// The node, as who acts.
    fn origin(&self) -> Result<&Arc<Origin>> {
        let node = &self.graph().nodes[self.node];
        let origin = node.origin.ok_or_else(|| {
            let message = "it has no grants: it may do nothing of its own accord";
            Error::new(ErrorKind::NotPermitted, message).at_node(&node.name)
        })?;
        Ok(&self.graph().origins[origin])
    }

    /// What a write of `range` to the child of `edge` may touch.
    pub(super) fn around(&self, edge: &Edge, range: &Range<u64>) -> Range<u64> {
        self.graph().nodes[edge.child].fill.around(range)
    }

    pub(super) fn size(&self, edge: &Edge) -> u64 {
        self.graph().nodes[edge.child].info.size_bytes
    }

    /// The source that edge `from` reads.
    pub(super) fn source(&self, from: usize) -> Result<SourceId> {
        let edge = self.edge(from)?;
        let mut sources = self.graph().sources.iter();
        let source = sources.find(|source| source.is_read() && source.node == edge.child);
        let source = source.filter(|_| edge.grants.contains(PermissionSet::CONSISTENT_READ));
        source.map(|source| source.id).ok_or_else(|| self.not_permitted(edge, "read"))
    }

    /// What a write through edge `to` does, if it is proven for what edge `from` shows or else as a
    /// change; with the grant that it needs.
    pub(super) fn effect(
        &self,
        from: usize,
        to: usize,
        unchanged: bool,
    ) -> Result<(&Own, &Effect)> {
        let edge = self.edge(to)?;
        let own = edge.own.as_ref().ok_or_else(|| self.not_permitted(edge, "write"))?;
        if !unchanged {
            return if may_change(edge) {
                Ok((own, &own.changed))
            } else {
                Err(self.not_permitted(edge, "write"))
            };
        }
        let is_its_view = edge.proven_for.is_none_or(|view| view == from);
        let Some(effect) = own.proven(from).filter(|_| is_its_view) else {
            self.outcomes()?.not_proven();
            let message = format!(
                "what its edge `{}` shows proves nothing of its edge `{}`: the one written must be \
                 below the one read",
                self.edge(from)?.name,
                edge.name
            );
            return Err(Error::new(ErrorKind::NotPermitted, message));
        };
        // Below the view for which it is proven it is a change.
        let is_own_view = effect.unchanged == Some(self.graph().nodes[edge.child].class);
        let (needed, name) = if is_own_view {
            (PermissionSet::WRITE_UNCHANGED, "write-unchanged")
        } else {
            (PermissionSet::WRITE, "write")
        };
        let may = edge.grants.contains(needed) || edge.grants.contains(PermissionSet::WRITE);
        if may { Ok((own, effect)) } else { Err(self.not_permitted(edge, name)) }
    }

    /// What an operation needs: the view of `source`, if there is one to rely on, still at `range`, and
    /// the way free for a write with `effect`.
    pub(super) fn want(
        &self,
        source: Option<SourceId>,
        (target, effect): (&Edge, &Effect),
        range: &Range<u64>,
    ) -> Want {
        let range = self.around(target, range);
        let source = source.filter(|_| !mutated(Mutation::TakesNoGuards));
        Want {
            exclusive: source.map(|source| SourceRange { source, range: range.clone() }),
            shared: effect.enters.clone(),
            exempt: effect.exempt.clone(),
            range,
        }
    }

    /// Holds all of that, once it is granted.
    pub(super) async fn hold(&self, want: Want) -> Result<Held<'_>> {
        let operations = self.request.operations();
        let by = self.request.by(&operations);
        let range = want.range.clone();
        let acquire = self.graph().guards.acquire(self.request.worker(), want, by);
        match until(turn_now() + GUARD_WAIT, acquire).await {
            Some(held) => held.map_err(too_many),
            None => {
                let message = format!(
                    "bytes {} to {} have been guarded or in use for {} s: nothing was written",
                    range.start,
                    range.end,
                    GUARD_WAIT.as_secs()
                );
                Err(Error::new(ErrorKind::TimedOut, message))
            }
        }
    }

    /// The edge, for a request that is part of the operation.
    pub(super) fn call<'a>(&'a self, request: &'a Request, edge: &'a Edge) -> EdgeRef<'a> {
        EdgeRef { graph: self.graph(), request, edge }
    }

    pub(super) fn check_range(&self, edge: &Edge, kind: OpKind, range: &Range<u64>) -> Result<()> {
        let len = range
            .end
            .checked_sub(range.start)
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "a range ends before it begins"))?;
        let node = &self.graph().nodes[edge.child];
        let op = Op { kind, offset: range.start, len };
        op.check_range(node.info.size_bytes).map_err(|error| error.at_node(&node.name))
    }

    pub(super) async fn read(self, from: usize, range: Range<u64>) -> Result<ProvenBuf> {
        let (source, edge) = (self.source(from)?, self.edge(from)?);
        self.check_range(edge, OpKind::Read, &range)?;
        let place = SourceRange { source, range: range.clone() };
        let owner = self.origin()?;
        let mut watch = Watch::begin(&self.graph().guards, &place, owner);
        let buf = self.read_bytes(&self.request, edge, &range).await?;
        if mutated(Mutation::WatchesAfterReading) {
            watch = Watch::begin(&self.graph().guards, &place, owner);
        }
        Ok(ProvenBuf::new(buf, range.start, source, watch))
    }

    pub(super) async fn read_bytes(
        &self,
        request: &Request,
        edge: &Edge,
        range: &Range<u64>,
    ) -> Result<Buf> {
        self.read_at(self.call(request, edge), range, COPY_MAX_BYTES).await
    }

    /// The bytes of a range, `most` at most, by a request that is part of the operation.
    pub(super) async fn read_at(
        &self,
        call: EdgeRef<'_>,
        range: &Range<u64>,
        most: usize,
    ) -> Result<Buf> {
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        if len > most {
            let message = format!("one read moves at most {most} bytes, not {len}");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        Ok(call.settle(call.read_admitted(range.start, BufMut::new(len)).await)?.freeze())
    }

    pub(super) async fn write_changed(self, to: usize, offset: u64, bytes: Buf) -> Result<()> {
        let range = offset..offset.saturating_add(bytes.len() as u64);
        let write =
            async |call: EdgeRef<'_>| call.write_admitted(offset, bytes, WriteFlags::NONE).await;
        self.change((to, OpKind::Write), &range, write).await
    }

    /// A change of `range` through edge `to`, which `issue` makes.
    pub(super) async fn change(
        &self,
        (to, kind): (usize, OpKind),
        range: &Range<u64>,
        issue: impl AsyncFnOnce(EdgeRef<'_>) -> Result<()>,
    ) -> Result<()> {
        let edge = self.edge(to)?;
        self.check_range(edge, kind, range)?;
        let own = edge.own.as_ref().filter(|_| may_change(edge));
        let own = own.ok_or_else(|| self.not_permitted(edge, "write"))?;
        let held = self.hold(self.want(None, (edge, &own.changed), range)).await?;
        let request = self.request.part(held.op(), None);
        let call = self.call(&request, edge);
        self.change_held(&held, own, (call, range, None), issue).await.map(drop)
    }

    /// A change of what the guard held is for; whether nothing that was let pass has touched it meanwhile.
    pub(super) async fn change_held<'r>(
        &self,
        held: &Held<'_>,
        own: &Own,
        (call, range, clears): (EdgeRef<'r>, &Range<u64>, Option<&Granules>),
        issue: impl AsyncFnOnce(EdgeRef<'r>) -> Result<()>,
    ) -> Result<bool> {
        let around = self.around(call.edge, range);
        self.issue_changed(held, own, (range, &around))?;
        let result = call.settle(issue(call).await);
        if result.is_err() {
            // A block may be torn.
            own.changed.marks.mark(around.start, around.end - around.start);
        }
        let is_intact = held.settle(result.is_ok(), || clear(clears, range));
        result.map(|()| is_intact)
    }

    /// Writes what the guard held is for: proven by a claim, for what its first edge shows and written
    /// through its second; or as a change. Whether it was intact: only then granules have been cleared.
    pub(super) async fn write_held(
        &self,
        held: &Held<'_>,
        (own, effect): (&Own, &Effect),
        claim: Option<(Evidence<'_>, (usize, usize))>,
        (call, clears): (EdgeRef<'_>, Option<&Granules>),
        offset: u64,
        bytes: Buf,
    ) -> Result<bool> {
        let range = offset..offset + bytes.len() as u64;
        if let Some((evidence, (from, to))) = claim {
            let around = self.around(call.edge, &range);
            let shield = self.shield(from, to, &around);
            let guarded = (held, &*self.graph().guards);
            let (ranges, outcomes) = ((range.clone(), around), self.outcomes()?);
            let proof = ViewProof::check(guarded, (own, effect), ranges, &evidence, outcomes)?;
            call.request.set_shield(shield);
            #[cfg(test)]
            if mutated(Mutation::GuardsEndWithTime) {
                held.expire();
            }
            let write = call.write_admitted(offset, bytes, WriteFlags::NONE);
            let (result, is_intact) =
                proof.settle_and(call.settle(write.await), || clear(clears, &range));
            return result.map(|()| is_intact);
        }
        let write =
            async |call: EdgeRef<'_>| call.write_admitted(offset, bytes, WriteFlags::NONE).await;
        self.change_held(held, own, (call, &range, clears), write).await
    }

    /// Where the snapshot has what a write leaves alone that is proven by edge `from`, and touches `around`:
    /// a block of which a part is written goes down whole, the rest as it was.
    pub(super) fn shield(&self, from: usize, to: usize, around: &Range<u64>) -> Shield {
        Shield { node: self.node, to, from, start: around.start, end: around.end }
    }

    /// Announces and marks a write that is a change: it is to be issued next.
    pub(super) fn issue_changed(
        &self,
        held: &Held<'_>,
        own: &Own,
        (range, around): (&Range<u64>, &Range<u64>),
    ) -> Result<()> {
        let outcomes = self.outcomes()?;
        if !held.issue_part(around) {
            outcomes.stale();
            let message = "the bytes read have changed since: nothing was written";
            return Err(Error::new(ErrorKind::Stale, message));
        }
        outcomes.changed();
        own.changed.marks.mark(range.start, range.end - range.start);
        Ok(())
    }
}

/// A part that has been copied is to be copied no more.
pub(super) fn clear(of: Option<&Granules>, range: &Range<u64>) {
    if let Some(granules) = of {
        granules.clear_range(range.start, range.end - range.start);
    }
}
