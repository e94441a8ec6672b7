//! What is to follow a change some time later, looked at before that is made: who works for hours towards a change of
//! the graph learns first that it could not be made.

use super::action::{Action, Transaction};
use super::draft::Draft;
use crate::bitmap::Prepared;
use crate::error::Result;
use crate::graph::cell::GraphCell;
use crate::graph::snapshot::Graph;

impl GraphCell {
    /// Whether what is to follow a transaction could be made if nothing else changed meanwhile: names, cycles,
    /// permissions, and who waits for whom. What views show, and what bitmaps record, will be known by then, and is not
    /// looked at. `next` is given the graph that the first one would leave.
    ///
    /// # Errors
    /// Of `next`; what stands against what follows. What stands against the first one, that tells itself.
    pub(crate) fn foresee(
        &self,
        first: Transaction,
        next: impl FnOnce(&Graph) -> Result<Transaction>,
    ) -> Result<()> {
        let Ok(between) = after(&self.load(), first) else { return Ok(()) };
        let mut next = next(&between)?;
        next.actions.retain(|(action, _)| !is_of_content(action));
        after(&between, next).map(drop)
    }
}

/// Whether an action changes nothing but what nodes or bitmaps hold.
fn is_of_content(action: &Action) -> bool {
    matches!(action, Action::CatchUp { .. } | Action::Bitmap { .. } | Action::Checkpoint { .. })
}

/// The graph that a transaction would leave, for nobody to use. Nodes that are opened for who writes them count as open.
fn after(before: &Graph, transaction: Transaction) -> Result<Graph> {
    let mut draft = Draft::of(before);
    draft.ended_jobs = transaction.ended_jobs;
    draft.act_all(transaction.actions)?;
    // Nobody has asked for them: what stands against them is told without their number.
    draft.actions.clear();
    let mut after = draft.assemble(Some(before), &mut Prepared::default())?;
    // Behind them are those that it takes out.
    after.bitmaps.truncate(draft.bitmaps.len());
    Ok(after)
}
