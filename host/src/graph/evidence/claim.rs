//! A claimed write: of bytes that were read before, where they were read, with the view that showed them as
//! it was. It is the shortest of a node's operations, and the most frequent; what it costs is what is moved
//! about and locked.

use std::future::Future;
use std::ops::Range;

use super::super::acting::{Effect, Own};
use super::super::guard::{AtOnce, Held, OpId, Want};
use super::super::mutation::{Mutation, mutated};
use super::super::op::OpKind;
use super::super::snapshot::Edge;
use super::buffer::{ProvenBuf, Provenance};
use super::operations::{Actor, too_many};
use super::proof::{Evidence, ViewProof, issue_watched, stale};
use crate::error::{Error, ErrorKind, Result};
use crate::node::WriteFlags;

/// Where a claim leads.
struct Aim<'a> {
    /// The edge that showed the bytes.
    from: usize,
    edge: &'a Edge,
    own: &'a Own,
    effect: &'a Effect,
    range: Range<u64>,
}

/// What became of the guard that it needs.
enum Issued {
    /// Granted and announced; whoever gets it holds it ([`Held::of_issued`]).
    Now(OpId),
    /// It must wait for that.
    Later(Box<Want>),
}

impl Actor {
    /// See [`Cx::write_proven`](super::super::Cx::write_proven).
    #[allow(clippy::manual_async_fn, reason = "an `async fn` keeps its arguments twice")]
    pub(super) fn write_proven(
        self,
        to: usize,
        bytes: ProvenBuf,
    ) -> impl Future<Output = Result<()>> {
        let (read, buf) = bytes.apart();
        async move {
            let (aim, issued) = self.issue(to, &read)?;
            let guards = &*self.graph().guards;
            let held = match issued {
                Issued::Now(op) => Held::of_issued(guards, op),
                Issued::Later(want) => Box::pin(self.hold(*want)).await?,
            };
            let request = self.request.part(held.op(), aim.effect.unchanged);
            let (call, offset) = (self.call(&request, aim.edge), aim.range.start);
            let around = self.around(aim.edge, &aim.range);
            let shield = self.shield(aim.from, to, &around);
            let proof = ViewProof::check(
                (&held, guards),
                (aim.own, aim.effect),
                (aim.range, around),
                &Evidence::Watched(&read),
                self.outcomes()?,
            )?;
            request.set_shield(shield);
            #[cfg(test)]
            if mutated(Mutation::GuardsEndWithTime) {
                held.expire();
            }
            let write = call.write_admitted(offset, buf, WriteFlags::NONE);
            proof.settle(call.settle(write.await))
        }
    }

    /// Checks the claim, and issues its write if it need not wait.
    ///
    /// # Errors
    /// As [`Cx::write_proven`](super::super::Cx::write_proven).
    #[inline]
    fn issue(&self, to: usize, read: &Provenance) -> Result<(Aim<'_>, Issued)> {
        let (edge, range) = (self.edge(to)?, read.range());
        self.check_range(edge, OpKind::Write, &range)?;
        let edges = &self.graph().nodes[self.node].edges;
        let is_origin = |from: usize| self.source(from).is_ok_and(|id| id == read.source());
        let from = (0..edges.len()).find(|from| is_origin(*from)).filter(|_| read.is_watched());
        let Some(from) = from else {
            self.outcomes()?.not_proven();
            let message = "nothing is known of these bytes that could prove the claim";
            return Err(Error::new(ErrorKind::NotPermitted, message));
        };
        let (own, effect) = self.effect(from, to, true)?;
        let mut want = self.want(Some(read.source()), (edge, effect), &range);
        let operations = self.request.operations();
        let (by, worker) = (self.request.by(&operations), self.request.worker());
        let guards = &self.graph().guards;
        let issued = match issue_watched(guards, worker, &mut want, by, read).map_err(too_many)? {
            AtOnce::Issued(op) => Issued::Now(op),
            // What is stale stays so: it need not wait to be refused.
            AtOnce::Stale if !mutated(Mutation::DowngradesClaims) => {
                self.outcomes()?.stale();
                return Err(stale());
            }
            AtOnce::Stale | AtOnce::MustWait => Issued::Later(Box::new(want)),
        };
        Ok((Aim { from, edge, own, effect, range }, issued))
    }
}
