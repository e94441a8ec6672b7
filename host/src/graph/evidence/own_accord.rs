//! Who asks for what a node does of its own accord: copies, reads and writes of its children.
//!
//! Each runs to its end once begun, whatever becomes of the future that asked. On behalf of a request
//! ([`Cx`]) it passes the gates that the request has passed; otherwise ([`OwnAccord`]) it begins as a
//! request of the node.

use std::ops::Range;
use std::rc::Rc;

use super::super::cell::{LocalGraph, Snapshot};
use super::super::detach::ToTheEnd;
use super::super::generation::NodeGeneration;
use super::super::origin::Request;
use super::super::snapshot::{Cx, Graph};
use super::buffer::ProvenBuf;
use super::copies::{Copied, CopyHow};
use super::operations::Actor;
use super::outcome::Outcomes;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Buf;

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
