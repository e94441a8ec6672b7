//! A transaction from its writer's lock to the next snapshot: see the module's picture.

use std::rc::Rc;
use std::sync::Arc;

use super::action::{Action, Applied, Transaction, Unproven};
use super::bitmaps::{self, Change};
use super::claims::{Claim, claims};
use super::draft::{By, Draft};
use super::drain::{Drained, Place, Side, Still};
use super::event::Event;
use super::touched::Touched;
use super::work::{self, Step, StepKind};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::cell::{GraphCell, Snapshot};
use crate::graph::detach::ToTheEnd;
use crate::graph::evidence::SameView;
use crate::graph::guard::SourceSet;
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
        ToTheEnd::new(async move { apply(&cell, transaction).await }).await
    }
}

/// Everything that is known before anybody pauses.
struct Plan {
    after: Graph,
    claims: Vec<Claim>,
    steps: Vec<Step>,
    /// Bitmaps that get another size.
    resizing: Vec<usize>,
    /// Ranges in which views alter without an edge that does.
    changes: Vec<Change>,
    /// Who pauses.
    origins: Vec<usize>,
    /// The actions, for messages.
    actions: Vec<String>,
}

impl Plan {
    fn of(before: &Graph, actions: Vec<(Action, Unproven)>) -> Result<(Self, Vec<Event>)> {
        let texts: Vec<String> = actions.iter().map(|(action, _)| action.to_string()).collect();
        let mut draft = Draft::of(before);
        for (number, (action, unproven)) in actions.into_iter().enumerate() {
            draft.by = By { action: number, unproven };
            draft.act(action).map_err(|error| at_action(&texts, number, &error))?;
        }
        let after = draft.assemble(Some(before))?;
        let claims = claims(&draft, before, &after)
            .map_err(|(by, error)| at_action(&texts, by.action, &error))?;
        let steps = work::steps(&draft, before, &after)?;
        let resizing = bitmaps::resizing(before, &after);
        let changes = bitmaps::size_changes(before, &after);
        let origins = origins(before, &after, &claims, &steps, &resizing);
        let moved = draft.bitmaps.iter().filter_map(|entry| {
            let (from, _) = entry.moved.clone()?;
            let (to, name) = (entry.scope.clone(), entry.bitmap.name().as_str().to_owned());
            Some(Event::BitmapMoved { from, to, name })
        });
        let events = moved.collect();
        let plan = Self { after, claims, steps, resizing, changes, origins, actions: texts };
        Ok((plan, events))
    }
}

/// An error with the action that is to blame.
fn at_action(actions: &[String], number: usize, error: &Error) -> Error {
    let what = actions.get(number).map_or("", String::as_str);
    Error::new(error.kind(), format!("action {} ({what}): {error}", number + 1))
}

/// Who must stand still: those who come to what differs, or to what is asked whether it shows the same.
fn origins(
    before: &Graph,
    after: &Graph,
    claims: &[Claim],
    steps: &[Step],
    resizing: &[usize],
) -> Vec<usize> {
    let resized = resizing.iter().filter_map(|at| after.bitmaps[*at].bitmap.recording());
    let resized: Vec<_> = resized.collect();
    let mut touched = Touched::of(before, after, &resized);
    for node in claims.iter().flat_map(|claim| claim.nodes(before, after)) {
        if let Some(at) = before.nodes.iter().position(|other| other.generation == node) {
            touched.nodes[at] = true;
        }
    }
    steps.iter().for_each(|step| touched.nodes[step.old] = true);
    touched.origins(before)
}

fn clock() -> Time {
    current().map_or_else(turn_now, |worker| worker.io().now())
}

async fn apply(cell: &GraphCell, transaction: Transaction) -> Result<Applied> {
    let Transaction { actions, within } = transaction;
    let _writer = cell.writer.lock().await;
    let before = Rc::new(Snapshot::new(cell.load()));
    let (plan, mut events) = Plan::of(&before, actions)?;
    plan.after.start_drivers(Some(&before))?;

    let began = clock();
    let deadline = turn_now() + within;
    let still = Still::of(&before, plan.origins.clone(), within).await?;
    let drained = clock();
    let Plan { mut after, claims, steps, resizing, changes, actions, .. } = plan;
    let (resized, resizes) = bitmaps::resize(&before, &mut after, &resizing, &still)?;
    events.extend(resizes);
    let after = Rc::new(Snapshot::new(Arc::new(after)));
    {
        let section = Drained::new(&before, &after, &still);
        let verified = until(deadline, verify(&section, &claims, &steps, &actions)).await;
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
        for claim in unproven.claims {
            events.extend(bitmaps::mark_whole(&after, &claim.marks, &claim.what));
        }
    }
    resized.fill().commit();
    // What was read of the graph that was proves nothing in the one that is to be.
    let sources: Vec<_> = before.sources.iter().map(|source| source.id).collect();
    before.guards.stale(&SourceSet::new(&sources, &[]), &(0..u64::MAX));
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
