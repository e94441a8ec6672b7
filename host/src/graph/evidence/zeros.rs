//! Zeros that are written where a view shows zeros: evidence by block status.

use std::ops::Range;

use super::super::guard::SourceId;
use super::super::mutation::{Mutation, mutated};
use super::super::op::OpKind;
use super::super::snapshot::Edge;
use super::compare::is_all_zero;
use super::operations::Actor;
use super::proof::{Evidence, ViewProof};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::ZERO_PROVEN_MAX_BYTES;
use crate::node::WriteFlags;

impl Actor {
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
