//! A transaction from its writer's lock to the next snapshot: see the module's picture.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::action::{Applied, Transaction, Unproven};
use super::bitmaps::{self, Change};
use super::claims::{Claim, claims};
use super::draft::Draft;
use super::drain::{Drained, Place, Side, Still};
use super::event::Event;
use super::touched::{Touched, end_watches};
use super::work::{self, Step, StepKind};
use crate::bitmap::Prepared;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::cell::{GraphCell, Snapshot};
use crate::graph::detach::ToTheEnd;
use crate::graph::evidence::SameView;
use crate::graph::mutation::{Mutation, mutated};
use crate::graph::snapshot::Graph;
use crate::io::{Time, current, turn_now, until};

impl GraphCell {
    /// Applies a transaction, on a worker. Once begun it runs to its end, also if its future is dropped.
    ///
    /// # Errors
    /// Whatever stands against an action; `ETIMEDOUT` when requests do not end. The graph is as before
    /// then; if a driver failed to resize or deallocate, that range is marked.
    pub async fn transact(self: &Arc<Self>, transaction: Transaction) -> Result<Applied> {
        let cell = Arc::clone(self);
        let change = async move {
            let Transaction { actions, within } = transaction;
            let act = |_: &Graph, draft: &mut Draft, _: &mut Prepared| draft.act_all(actions);
            apply(&cell, act, within).await
        };
        ToTheEnd::new(change).await
    }
}

/// Everything that is known before anybody pauses.
struct Plan {
    after: Graph,
    claims: Vec<Claim>,
    steps: Vec<Step>,
    /// Contents that bitmaps get when it is published.
    prepared: Prepared,
    /// Ranges in which views alter without an edge that does.
    changes: Vec<Change>,
    /// By node of the graph that is: whether what it shows may differ.
    shapes: Vec<bool>,
    /// Who pauses.
    origins: Vec<usize>,
    /// The actions, for messages.
    actions: Vec<String>,
}

impl Plan {
    fn of(
        before: &Graph,
        change: impl FnOnce(&Graph, &mut Draft, &mut Prepared) -> Result<()>,
    ) -> Result<(Self, Vec<Event>)> {
        let (mut draft, mut prepared) = (Draft::of(before), Prepared::default());
        change(before, &mut draft, &mut prepared)?;
        let after = draft.assemble(Some(before), &mut prepared)?;
        let claims = claims(&draft, before, &after)
            .map_err(|(by, error)| at_action(&draft.actions, by.action, &error))?;
        let steps = work::steps(&draft, before, &after)?;
        let changes = bitmaps::size_changes(before, &after);
        let touched = touched(before, &after, &claims, &steps);
        let origins = match draft.skips_drain || mutated(Mutation::DrainsNothing) {
            true => Vec::new(),
            false => touched.origins(before),
        };
        let moved = draft.bitmaps.iter().filter_map(|entry| {
            let (from, _) = entry.moved.clone()?;
            let (to, name) = (entry.scope.clone(), entry.bitmap.name().to_string());
            Some(Event::BitmapMoved { from, to, name })
        });
        let mut events: Vec<Event> = moved.collect();
        events.extend(bitmaps::resized(&after));
        let shapes = touched.shapes;
        let actions = draft.actions;
        let plan = Self { after, claims, steps, prepared, changes, shapes, origins, actions };
        Ok((plan, events))
    }
}

/// An error with the action that is to blame.
pub(super) fn at_action(actions: &[String], number: usize, error: &Error) -> Error {
    let what = actions.get(number).map_or("", String::as_str);
    Error::new(error.kind(), format!("action {} ({what}): {error}", number + 1))
}

/// What must stand still: what differs, and what is asked whether it shows the same.
fn touched(before: &Graph, after: &Graph, claims: &[Claim], steps: &[Step]) -> Touched {
    let mut touched = Touched::of(before, after);
    for node in claims.iter().flat_map(|claim| claim.nodes(before, after)) {
        if let Some(at) = before.nodes.iter().position(|other| other.generation == node) {
            touched.nodes[at] = true;
        }
    }
    for step in steps {
        (touched.nodes[step.old], touched.shapes[step.old]) = (true, true);
    }
    touched
}

fn clock() -> Time {
    current().map_or_else(turn_now, |worker| worker.io().now())
}

/// Changes a copy of the graph by `change`, checks it, and puts it in the graph's place. What `change`
/// adds to [`Prepared`] takes effect with it.
///
/// # Errors
/// As [`GraphCell::transact`].
pub(in crate::graph) async fn apply(
    cell: &GraphCell,
    change: impl FnOnce(&Graph, &mut Draft, &mut Prepared) -> Result<()>,
    within: Duration,
) -> Result<Applied> {
    let _writer = cell.writer.lock().await;
    let before = Rc::new(Snapshot::new(cell.load()));
    let (plan, mut events) = Plan::of(&before, change)?;
    plan.after.start_drivers(Some(&before))?;

    let began = clock();
    let deadline = turn_now() + within;
    let Plan { after, claims, steps, prepared, changes, shapes, actions, origins } = plan;
    let after = Rc::new(Snapshot::new(Arc::new(after)));
    let mut early = None;
    if mutated(Mutation::ChecksBeforeTheDrain) {
        let nobody = Still::of(&before, Vec::new(), within).await?;
        let section = Drained::new(&before, &after, &nobody);
        early = Some(verify(&section, &claims, &steps, &actions).await);
    }
    let still = Still::of(&before, origins, within).await?;
    let drained = clock();
    {
        let section = Drained::new(&before, &after, &still);
        let verified = match early {
            Some(verified) => Some(verified),
            None => until(deadline, verify(&section, &claims, &steps, &actions)).await,
        };
        let late = || {
            let message = "what the nodes hold was not found out in time: nothing was changed";
            Err(Error::new(ErrorKind::TimedOut, message))
        };
        let unproven = verified.unwrap_or_else(late)?;
        for change in changes.iter().chain(&unproven.changes) {
            // The graph that is keeps its bitmaps if the work fails.
            bitmaps::mark(&before, change);
            events.extend(bitmaps::mark(&after, change));
        }
        work::run(&section, &steps).await?;
        // From here on nothing can fail.
        prepared.fill().commit();
        for claim in unproven.claims {
            events.extend(bitmaps::mark_whole(&after, &claim.marks, &claim.what));
        }
    }
    if !mutated(Mutation::GraphChangesStaleNothing) {
        end_watches(&before, shapes);
    }
    let generation = after.generation;
    let drives = still.ids(&before);
    cell.publish(after.shared());
    drop(still);
    let opened = clock();
    if !drives.is_empty() {
        let (drain, still) = (drained.since(began), opened.since(drained));
        events.push(Event::Paused { drives, drain, still });
    }
    events.iter().for_each(|event| event.log(generation));
    Ok(Applied { generation, events })
}

/// What has no evidence, and is to be marked.
struct Marking<'p> {
    claims: Vec<&'p Claim>,
    changes: Vec<Change>,
}

/// Verifies what the transaction claims.
///
/// # Errors
/// `EPERM` for the first thing that cannot be proven and is to be refused then; of block status.
async fn verify<'p>(
    section: &Drained<'_>,
    claims: &'p [Claim],
    steps: &[Step],
    actions: &[String],
) -> Result<Marking<'p>> {
    let mut marking = Marking { claims: Vec::new(), changes: Vec::new() };
    for claim in claims {
        let evidence: Option<Vec<SameView<'_>>> = claim.verify(section).await?;
        match (evidence, claim.by.unproven) {
            (Some(_), _) => {}
            (None, Unproven::MarkWhole) => marking.claims.push(claim),
            (None, Unproven::Refuse) => {
                return Err(at_action(actions, claim.by.action, &claim.refused()));
            }
        }
    }
    for step in steps {
        let StepKind::Deallocate { range, by } = &step.kind else { continue };
        let place = Place { side: Side::Before, node: step.old };
        let evidence = SameView::nothing_allocated(section, place, range.clone()).await?;
        if evidence.is_some() {
            continue;
        }
        let node = &section.graph(Side::After).nodes[step.node];
        let why = format!("{}..{} of node `{}` was deallocated", range.start, range.end, node.name);
        if by.unproven == Unproven::Refuse {
            let message = "nothing proves that its backing shows the same there: ask for it with \
                           `Unproven::MarkWhole` (the range is marked)";
            let error = Error::new(ErrorKind::NotPermitted, message).at_node(&node.name);
            return Err(at_action(actions, by.action, &error));
        }
        marking.changes.push(Change { node: node.generation, range: range.clone(), why });
    }
    Ok(marking)
}
