//! What a node does of its own accord: copies, reads and writes of its children.
//!
//! Each runs to its end once begun, whatever becomes of the future that asked. On behalf of a request
//! ([`Cx`]) it passes the gates that the request has passed; otherwise ([`OwnAccord`]) it begins as a
//! request of the node. It needs the grants of the edges that it uses.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use super::super::acting::{Effect, Own};
use super::super::cell::{LocalGraph, Snapshot};
use super::super::detach::ToTheEnd;
use super::super::edge::EdgeRef;
use super::super::generation::NodeGeneration;
use super::super::guard::{Full, Held, SourceId, SourceRange, Want};
use super::super::mutation::{Mutation, mutated};
use super::super::op::{Op, OpKind};
use super::super::origin::{Origin, Request, Shield};
use super::super::permission::PermissionSet;
use super::super::snapshot::{Cx, Edge, Graph};
use super::buffer::{ProvenBuf, Watch};
use super::compare::is_all_zero;
use super::outcome::{OutcomeCounters, Outcomes};
use super::proof::{Evidence, ViewProof};
use crate::bitmap::Granules;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Buf, BufMut, turn_now, until};
use crate::limits::{COPY_MAX_BYTES, COPY_TRIES, GUARD_WAIT, ZERO_PROVEN_MAX_BYTES};
use crate::node::WriteFlags;

/// How a copy is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyHow {
    /// The target's view, and whatever shows it, is claimed to stay as it is.
    pub unchanged: bool,
    /// Only where the target has no bytes of its own.
    pub only_unallocated: bool,
}

/// What a copy did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bytes written.
    pub bytes: u64,
}

/// A node, acting on one worker without a request that asks for it.
#[derive(Clone)]
pub struct OwnAccord {
    graph: Rc<LocalGraph>,
    node: NodeGeneration,
    name: Rc<str>,
}

impl OwnAccord {
    /// For the node with this name.
    ///
    /// # Errors
    /// `ENOENT`; `EPERM` for a node that has no grants.
    pub fn open(graph: &Rc<LocalGraph>, node: &str) -> Result<Self> {
        let snapshot = graph.current();
        let at = snapshot.find_node(node).ok_or_else(|| unknown(node))?;
        let this = Self {
            graph: Rc::clone(graph),
            node: snapshot.nodes[at].generation,
            name: (&*snapshot.nodes[at].name).into(),
        };
        this.find(&snapshot)?;
        Ok(this)
    }

    /// Where the node is, and its origin. Another node may have its name by now.
    pub(super) fn find(&self, graph: &Graph) -> Result<(usize, usize)> {
        let at = graph.nodes.iter().position(|node| node.generation == self.node);
        let node = at.ok_or_else(|| unknown(&self.name))?;
        let origin = graph.nodes[node].origin.filter(|_| graph.nodes[node].has_grants());
        let origin = origin.ok_or_else(|| {
            let message = "it has no grants: it may do nothing of its own accord";
            Error::new(ErrorKind::NotPermitted, message).at_node(&self.name)
        })?;
        Ok((node, origin))
    }

    /// The snapshot now.
    pub(super) fn graph(&self) -> Rc<Snapshot> {
        self.graph.current()
    }

    /// Begins a request of the node, if its gate is open; `None` if it is to wait.
    #[inline(always)]
    fn try_begin(&self) -> Result<Option<Actor>> {
        let graph = self.graph.current();
        let (node, origin) = self.find(&graph)?;
        match Request::try_begin(graph, origin, self.graph.worker()) {
            Ok(request) if self.graph.is_current(request.graph()) => {
                Ok(Some(Actor { request, node }))
            }
            _ => Ok(None),
        }
    }

    /// Begins a request of the node.
    pub(super) async fn begin(&self) -> Result<Actor> {
        loop {
            let graph = self.graph.current();
            let (node, origin) = self.find(&graph)?;
            let request = Request::begin(graph, origin, self.graph.worker()).await;
            if self.graph.is_current(request.graph()) {
                return Ok(Actor { request, node });
            }
        }
    }

    /// See [`Cx::copy`].
    ///
    /// # Errors
    /// As there.
    pub async fn copy(
        &self,
        from: usize,
        to: usize,
        range: Range<u64>,
        how: CopyHow,
    ) -> Result<Copied> {
        let this = self.clone();
        ToTheEnd::new(async move { this.begin().await?.copy(from, to, range, how, None).await })
            .await
    }

    /// See [`Cx::read_proven`].
    ///
    /// # Errors
    /// As there.
    pub async fn read_proven(&self, from: usize, range: Range<u64>) -> Result<ProvenBuf> {
        self.begin().await?.read(from, range).await
    }

    /// See [`Cx::write_proven`].
    ///
    /// # Errors
    /// As there.
    pub async fn write_proven(&self, to: usize, bytes: &ProvenBuf) -> Result<()> {
        let bytes = bytes.clone();
        if let Some(actor) = self.try_begin()? {
            return ToTheEnd::new(actor.write_proven(to, bytes)).await;
        }
        let this = self.clone();
        ToTheEnd::new(async move { this.begin().await?.write_proven(to, bytes).await }).await
    }

    /// See [`Cx::write_changed`].
    ///
    /// # Errors
    /// As there.
    pub async fn write_changed(&self, to: usize, offset: u64, bytes: Buf) -> Result<()> {
        let this = self.clone();
        ToTheEnd::new(async move { this.begin().await?.write_changed(to, offset, bytes).await })
            .await
    }

    /// See [`Cx::zero_proven`].
    ///
    /// # Errors
    /// As there.
    pub async fn zero_proven(&self, from: usize, to: usize, range: Range<u64>) -> Result<()> {
        let this = self.clone();
        ToTheEnd::new(async move { this.begin().await?.zero_proven(from, to, range).await }).await
    }

    /// How its own writes have ended so far.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn outcomes(&self) -> Result<Outcomes> {
        let graph = self.graph.current();
        let (_, origin) = self.find(&graph)?;
        Ok(graph.origins[origin].outcomes.snapshot())
    }
}

fn unknown(node: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no node `{node}`"))
}

impl Cx<'_> {
    pub(super) fn actor(&self) -> Actor {
        Actor { request: self.request.cause(), node: self.node }
    }

    /// Copies a range of child `from` to the same range of child `to`, under a guard: meanwhile nothing
    /// changes the bytes read. Clipped to the smaller of the two; done in pieces.
    ///
    /// # Errors
    /// `EPERM` without the grants, or when nothing proves that the view stays as it is; `ESTALE`
    /// when it has changed, which here only a request caused by this copy can do; `ETIMEDOUT` when the
    /// range stays guarded by others; the nodes'. Pieces done before stay done.
    pub async fn copy(
        &self,
        from: usize,
        to: usize,
        range: Range<u64>,
        how: CopyHow,
    ) -> Result<Copied> {
        let actor = self.actor();
        ToTheEnd::new(async move { actor.copy(from, to, range, how, None).await }).await
    }

    /// Reads a range of child `from`, and watches it: as long as nothing touches it, the bytes can be
    /// written unchanged.
    ///
    /// # Errors
    /// `EPERM` without the grant; `EINVAL` past the end; the nodes'.
    pub async fn read_proven(&self, from: usize, range: Range<u64>) -> Result<ProvenBuf> {
        self.actor().read(from, range).await
    }

    /// Writes bytes to child `to`, where they were read, with the claim that the view which showed
    /// them stays as it is.
    ///
    /// # Errors
    /// `ESTALE` when it has changed since, `EPERM` when nothing proves the claim: nothing is written
    /// then. The nodes': what was exempted is marked then.
    pub async fn write_proven(&self, to: usize, bytes: &ProvenBuf) -> Result<()> {
        let (actor, bytes) = (self.actor(), bytes.clone());
        ToTheEnd::new(async move { actor.write_proven(to, bytes).await }).await
    }

    /// Writes other bytes to child `to`: a change.
    ///
    /// # Errors
    /// `EPERM` without the grant; the nodes'.
    pub async fn write_changed(&self, to: usize, offset: u64, bytes: Buf) -> Result<()> {
        let actor = self.actor();
        ToTheEnd::new(async move { actor.write_changed(to, offset, bytes).await }).await
    }

    /// Zeroes a range of child `to`, with the claim that child `from`, which shows the same view, shows
    /// zeros there by its block status. The zeros are allocated. Done in pieces.
    ///
    /// # Errors
    /// As [`Cx::write_proven`]; pieces done before stay done.
    pub async fn zero_proven(&self, from: usize, to: usize, range: Range<u64>) -> Result<()> {
        let actor = self.actor();
        ToTheEnd::new(async move { actor.zero_proven(from, to, range).await }).await
    }
}

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

    async fn read_bytes(&self, request: &Request, edge: &Edge, range: &Range<u64>) -> Result<Buf> {
        self.read_at(self.call(request, edge), range).await
    }

    /// The bytes of a range, by a request that is part of the operation.
    pub(super) async fn read_at(&self, call: EdgeRef<'_>, range: &Range<u64>) -> Result<Buf> {
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        if len > COPY_MAX_BYTES {
            let message = format!("one read moves at most {COPY_MAX_BYTES} bytes, not {len}");
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
    async fn write_held(
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

    pub(super) async fn copy(
        self,
        from: usize,
        to: usize,
        range: Range<u64>,
        how: CopyHow,
        clears: Option<&Granules>,
    ) -> Result<Copied> {
        let copied = self.copy_shown(from, to, range, how, clears).await;
        copied.map(|(copied, _)| copied)
    }

    /// As [`Actor::copy`]; returns what the source shows, too, if all of it was copied at once.
    pub(super) async fn copy_shown(
        self,
        from: usize,
        to: usize,
        range: Range<u64>,
        how: CopyHow,
        clears: Option<&Granules>,
    ) -> Result<(Copied, Option<Buf>)> {
        let end = range.end.min(self.size(self.edge(from)?)).min(self.size(self.edge(to)?));
        let mut copied = Copied::default();
        let (mut at, mut shown) = (range.start, None);
        while at < end {
            let piece = at..end.min(at.saturating_add(COPY_MAX_BYTES as u64));
            at = piece.end;
            let (written, last) = self.copy_piece(from, to, piece, (how, clears)).await?;
            copied.bytes += written;
            shown = last.filter(|bytes| bytes.len() as u64 == range.end - range.start);
        }
        Ok((copied, shown))
    }

    /// One guarded copy; returns how many bytes were written, and those of the last run.
    async fn copy_piece(
        &self,
        from: usize,
        to: usize,
        piece: Range<u64>,
        (how, clears): (CopyHow, Option<&Granules>),
    ) -> Result<(u64, Option<Buf>)> {
        let (source, source_edge) = (self.source(from)?, self.edge(from)?);
        let (own, effect) = self.effect(from, to, how.unchanged)?;
        let target = self.edge(to)?;
        let mut at = piece.start;
        let (mut written, mut spoiled, mut last) = (0, 0, None);
        while at < piece.end {
            // A guard is issued once: each run of bytes has its own.
            let Some(rest) = first_set(clears, at..piece.end) else { break };
            let want = self.want(Some(source), (target, effect), &rest);
            let held = self.hold(want).await?;
            let request = self.request.part(held.op(), effect.unchanged);
            let call = self.call(&request, target);
            // Others may have cleared it while this waited.
            let Some(rest) = first_set(clears, rest.clone()) else {
                at = rest.end;
                continue;
            };
            let run = match how.only_unallocated {
                true => call.first_unallocated(rest.clone()).await?,
                false => Some(rest.clone()),
            };
            let Some(run) = run else {
                at = rest.end;
                continue;
            };
            at = run.end;
            let bytes = self.read_bytes(&request, source_edge, &run).await?;
            last = Some(bytes.clone());
            let claim = how.unchanged.then_some((Evidence::UnderGuard, (from, to)));
            let write =
                self.write_held(&held, (own, effect), claim, (call, clears), run.start, bytes);
            let is_intact = write.await?;
            written += run.end - run.start;
            if clears.is_some() && !is_intact {
                // Something that the copy itself has caused touched what it read: nothing was cleared.
                spoiled += 1;
                if spoiled == COPY_TRIES {
                    self.outcomes()?.stale();
                    let message = "what was copied changed each time while it was";
                    return Err(Error::new(ErrorKind::Stale, message));
                }
                at = run.start;
            }
        }
        Ok((written, last))
    }

    /// Zeros are evidence for the view that is written, and for no other: what alters views on the way up
    /// is a copy, whose bytes were read.
    fn check_zero_view(&self, from: usize, to: usize) -> Result<()> {
        let (from, to) = (self.edge(from)?, self.edge(to)?);
        let class = |edge: &Edge| self.graph().nodes[edge.child].class;
        if class(from) == class(to) {
            return Ok(());
        }
        self.outcomes()?.not_proven();
        let message = format!(
            "zeros of its edge `{}` prove nothing of its edge `{}`, which shows another view: copy the \
             range instead",
            from.name, to.name
        );
        Err(Error::new(ErrorKind::NotPermitted, message))
    }

    pub(super) async fn zero_proven(self, from: usize, to: usize, range: Range<u64>) -> Result<()> {
        let (source, edge) = (self.source(from)?, self.edge(to)?);
        self.check_range(self.edge(from)?, OpKind::Status, &range)?;
        self.check_range(edge, OpKind::Zero, &range)?;
        self.effect(from, to, true)?;
        self.check_zero_view(from, to)?;
        let mut at = range.start;
        while at < range.end {
            let piece = at..range.end.min(at.saturating_add(ZERO_PROVEN_MAX_BYTES));
            at = piece.end;
            self.zero_piece((source, edge), (from, to), piece).await?;
        }
        Ok(())
    }

    /// Zeroes under one guard what shows zeros.
    async fn zero_piece(
        &self,
        (source, edge): (SourceId, &Edge),
        (from, to): (usize, usize),
        range: Range<u64>,
    ) -> Result<()> {
        let (own, effect) = self.effect(from, to, true)?;
        let guarded = (!mutated(Mutation::ZeroesUnguarded)).then_some(source);
        let held = self.hold(self.want(guarded, (edge, effect), &range)).await?;
        let request = self.request.part(held.op(), effect.unchanged);
        let shown = self.call(&request, self.edge(from)?);
        if !Box::pin(is_all_zero(shown, &range)).await? {
            self.outcomes()?.not_proven();
            let message = "its block status does not say that the range shows zeros";
            return Err(Error::new(ErrorKind::NotPermitted, message));
        }
        let (offset, len) = (range.start, range.end - range.start);
        let around = self.around(edge, &range);
        let shield = self.shield(from, to, &around);
        let proof = ViewProof::check(
            (&held, &self.graph().guards),
            (own, effect),
            (range, around),
            &Evidence::UnderGuard,
            self.outcomes()?,
        )?;
        request.set_shield(shield);
        let call = self.call(&request, edge);
        // Unmapped, a backing could show.
        let flags = WriteFlags { no_unmap: true, ..WriteFlags::NONE };
        proof.settle(call.settle(call.zero_with_fua(offset, len, flags).await))
    }
}

/// The first part of a range of which a granule is set, if only such are wanted.
fn first_set(of: Option<&Granules>, range: Range<u64>) -> Option<Range<u64>> {
    of.map_or_else(|| Some(range.clone()), |granules| granules.ranges(range.clone()).next())
}

/// A part that has been copied is to be copied no more.
pub(super) fn clear(of: Option<&Granules>, range: &Range<u64>) {
    if let Some(granules) = of {
        granules.clear_range(range.start, range.end - range.start);
    }
}
