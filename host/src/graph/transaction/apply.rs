//! A transaction from its writer's lock to the next snapshot: see the module's picture.

use std::cell::Cell;
use std::collections::HashSet;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use super::action::{Action, Applied, Rider, Transaction, Unproven};
use super::bitmap_action::BitmapAction;
use super::bitmap_steps::position;
use super::bitmaps::{self, Change, Marked};
use super::claims::{Claim, claims};
use super::close;
use super::draft::Draft;
use super::drain::{Drained, Place, Side, Still};
use super::durable;
use super::event::Event;
use super::late::{Answer, Parting, Waiting};
use super::naming;
use super::reopen::{self, Opened};
use super::stored::{NewEntries, NewEntry};
use super::time_limit::TimeLimit;
use super::touched::{Touched, end_watches};
use super::work::{self, Step, StepKind};
use crate::bitmap::{Bitmap, Prepared};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::cell::{GraphCell, Snapshot};
use crate::graph::detach::ToTheEnd;
use crate::graph::evidence::SameView;
use crate::graph::mutation::{Mutation, mutated};
use crate::graph::snapshot::{Graph, ScopedBitmap};
use crate::io::{LocalFuture, Time, current, spawn_boxed, turn_now};
use crate::node::BackingName;

impl GraphCell {
    /// Applies a transaction, on a worker. Once begun it runs to its end, also if its future is dropped.
    ///
    /// # Errors
    /// Whatever stands against an action; `ETIMEDOUT` when requests do not end, or a driver does not answer
    /// a resize or deallocation. The graph and its bitmaps are as before then; if a driver failed to resize
    /// or deallocate, that range is marked, and an event says so. After one that is late, the drives that
    /// come to its node wait until it has answered; an event says that, too.
    pub async fn transact(self: &Arc<Self>, transaction: Transaction) -> Result<Applied> {
        ToTheEnd::new(apply(Arc::clone(self), transaction)).await
    }

    /// Whether a transaction would come as far as to its drain, on a worker: for who has to do first what cannot be
    /// taken back. What it has to open for that, it need not open again: [`Transaction::with_opened`].
    ///
    /// # Errors
    /// Whatever is known by then to stand against an action.
    pub(crate) async fn check(&self, transaction: Transaction) -> Result<Opened> {
        let _writer = self.writer.lock().await;
        let limit = TimeLimit::of(transaction.within);
        let plan = Plan::of(self, &self.load(), transaction, limit).await?;
        Ok(plan.opened)
    }
}

/// Applies a transaction. What is left to wait for when it has been answered goes on by itself.
async fn apply(cell: Arc<GraphCell>, transaction: Transaction) -> Result<Applied> {
    let answer = Rc::new(Answer::default());
    let given = Rc::clone(&answer);
    let mut whole: LocalFuture = Box::pin(async move {
        let result = carry_out(&cell, transaction, &given).await;
        given.give(result);
    });
    let (result, has_ended) = poll_fn(|cx| {
        let has_ended = whole.as_mut().poll(cx).is_ready();
        answer.take().map_or(Poll::Pending, |result| Poll::Ready((result, has_ended)))
    })
    .await;
    if !has_ended {
        spawn_boxed(whole);
    }
    result
}

/// Everything that is known before anybody pauses.
struct Plan {
    after: Rc<Snapshot>,
    claims: Vec<Claim>,
    /// Something leads elsewhere of which nobody wants to know.
    has_silent: bool,
    steps: Vec<Step>,
    /// Contents that bitmaps get when it is published.
    prepared: Prepared,
    /// Ranges in which views alter without an edge that does.
    changes: Vec<Change>,
    /// By node of the graph that is: whether what it shows may differ.
    shapes: Vec<bool>,
    /// Who pauses.
    origins: Vec<usize>,
    /// Bitmaps that it adds.
    added: Vec<Arc<Bitmap>>,
    /// Bitmaps that it takes out.
    gone: Vec<ScopedBitmap>,
    /// Those of them whose views go, too.
    of_gone_views: Vec<Arc<Bitmap>>,
    /// Of the last action that alters a view, among the changes of bitmaps.
    last_shape: usize,
    /// What was verified before anybody paused. No rule of the core does so.
    early: Option<Marking>,
    /// The actions, for messages.
    actions: Vec<String>,
    /// What nodes store before they are used.
    entries: Vec<NewEntry>,
    /// Which backings images are to name.
    backing_names: Vec<(String, Option<BackingName>)>,
    /// What else changes then.
    riders: Vec<Box<dyn Rider>>,
    /// What has happened by the end.
    events: Vec<Event>,
    /// Files that it has opened.
    opened: Opened,
}

impl Plan {
    async fn of(
        cell: &GraphCell,
        before: &Graph,
        transaction: Transaction,
        limit: TimeLimit,
    ) -> Result<Self> {
        let Transaction { actions, entries, ended_jobs, riders, opened, .. } = transaction;
        let (mut draft, mut prepared) = (Draft::of(before), Prepared::default());
        let is_undrained = actions.iter().any(|(action, _)| is_undrained(action));
        (draft.ended_jobs, draft.opened) = (ended_jobs, opened);
        draft.act_all(actions)?;
        draft.open_as_used(limit).await?;
        let mut after = draft.assemble(Some(before), &mut prepared)?;
        let (claims, has_silent) = claims(&draft, before, &after)
            .map_err(|(by, error)| at_action(&draft.actions, by.action, &error))?;
        let steps = work::steps(&draft, before, &after)?;
        let changes = bitmaps::size_changes(&draft, before, &after);
        let touched = touched(before, &after, &claims, &steps);
        let origins = match is_undrained || mutated(Mutation::DrainsNothing) {
            true => Vec::new(),
            false => touched.origins(before),
        };
        cell.late.check((before, &after), &touched.nodes, &origins)?;
        let moved = draft.bitmaps.iter().filter_map(|entry| {
            let (from, _) = entry.moved.clone()?;
            let (to, name) = (entry.scope.clone(), entry.name.to_string());
            Some(Event::BitmapMoved { from, to, name })
        });
        let mut events: Vec<Event> = moved.collect();
        events.extend(bitmaps::resized(&draft, &after));
        events.extend(bitmaps::gone_with_nodes(&draft));
        let (added, of_gone_views) = (bitmaps::added(&draft), bitmaps::of_gone_views(&draft));
        let backing_names = naming::resolve(&draft.backing_names, (before, &after));
        // Claims count them.
        let gone = after.bitmaps.split_off(draft.bitmaps.len());
        Ok(Self {
            after: Rc::new(Snapshot::new(Arc::new(after))),
            claims,
            has_silent,
            steps,
            prepared,
            changes,
            shapes: touched.shapes,
            origins,
            added,
            gone,
            of_gone_views,
            last_shape: draft.last_shape,
            early: None,
            actions: draft.actions,
            entries,
            backing_names,
            riders,
            events,
            opened: draft.opened,
        })
    }

    /// Makes the changes, but for the snapshot, with everything still that they touch. Whether all that leads
    /// elsewhere is shown to be the same.
    ///
    /// # Errors
    /// Nothing has changed then, but that bitmaps are marked where a driver has failed or is late. For the
    /// latter it has been answered before.
    async fn make(
        &mut self,
        section: &Drained<'_>,
        limit: TimeLimit,
        parting: &mut Parting<'_, '_>,
    ) -> Result<bool> {
        let mut entries = NewEntries::new(std::mem::take(&mut self.entries));
        let made = self.make_with(section, limit, &mut entries, parting).await;
        if made.is_err() {
            entries.take_back(section, limit.again()).await;
        }
        made
    }

    async fn make_with(
        &mut self,
        section: &Drained<'_>,
        limit: TimeLimit,
        entries: &mut NewEntries,
        parting: &mut Parting<'_, '_>,
    ) -> Result<bool> {
        let Self { claims, steps, prepared, changes, shapes, gone, actions, events, .. } = self;
        let (before, after) = (section.graph(Side::Before), section.graph(Side::After));
        let verified = match self.early.take() {
            Some(early) => Some(Ok(early)),
            None => limit.keep(verify(section, claims, steps, actions)).await,
        };
        let late = || {
            let message = "what the nodes hold was not found out, or copied, in time: the graph is as it was; try \
                           again when its files answer";
            Err(Error::new(ErrorKind::TimedOut, message))
        };
        let unproven = verified.unwrap_or_else(late)?;
        changes.extend(unproven.changes);
        let are_same = changes.is_empty() && unproven.claims.is_empty() && !self.has_silent;
        let flushed = limit.keep(durable::flush_left(section)).await;
        flushed.unwrap_or_else(|| {
            let message = "what was written was not made durable in time: nothing was changed";
            Err(Error::new(ErrorKind::TimedOut, message))
        })?;
        self.riders.iter_mut().try_for_each(|rider| rider.prepare(after))?;
        entries.make(section, limit).await?;
        for (node, name) in self.backing_names.drain(..) {
            section.name_backing(&node, name, limit).await?;
        }
        reopen::exchange(section, limit).await?;
        if !steps.is_empty() {
            // The graph that is keeps its bitmaps if the work fails.
            let marked = changes.iter().flat_map(|change| bitmaps::mark_before(before, change));
            let marked: Vec<Event> = marked.collect();
            let kept = (marked, &mut *prepared, &mut *entries);
            work_within(section, (steps, shapes), kept, limit, parting).await?;
        }
        // From here on nothing can fail.
        events.extend(close::removed(section).await);
        let marked = Marked { after, gone };
        for change in &*changes {
            events.extend(marked.range(prepared, change));
        }
        for at in unproven.claims {
            let Claim { marks, position, what, .. } = &claims[at];
            events.extend(marked.whole(prepared, marks, *position, what));
        }
        bitmaps::mark_of_gone_views(prepared, &self.of_gone_views, self.last_shape);
        section.marks().add_to(prepared);
        std::mem::take(prepared).commit();
        Ok(are_same)
    }
}

/// Has drivers do their work; `marked` has been in case that they fail. What was prepared is given up when
/// one is late.
///
/// # Errors
/// The driver's; `ETIMEDOUT` after one that was late, which has been answered to whoever asked before.
async fn work_within(
    section: &Drained<'_>,
    (steps, shapes): (&[Step], &[bool]),
    (marked, prepared, entries): (Vec<Event>, &mut Prepared, &mut NewEntries),
    limit: TimeLimit,
    parting: &mut Parting<'_, '_>,
) -> Result<()> {
    if limit.is_over() {
        let message =
            "there was no time left for drivers to resize or deallocate: nothing was changed";
        return Err(Error::new(ErrorKind::TimedOut, message));
    }
    let (before, cell) = (section.graph(Side::Before), parting.cell);
    let at = Cell::new(0);
    let mut working = pin!(work::run(section, steps, &at));
    let done = limit.again().keep(working.as_mut()).await;
    let tell = |marked: Vec<Event>, driver_has: &str| {
        // Not all that was read may still be shown.
        end_watches(before, shapes.to_vec(), false);
        let marked = marked.into_iter().map(|event| event.and_its_driver(driver_has));
        cell.events.publish(before.generation, &marked.collect::<Vec<Event>>());
    };
    match done {
        Some(Ok(())) => return Ok(()),
        Some(Err(error)) => {
            tell(marked, "failed half-way");
            return Err(error);
        }
        None => tell(marked, "not answered in time"),
    }
    parting.still.keep_only(&who_comes(before, steps));
    let old = steps[at.get()].old;
    let node = &before.nodes[old];
    let (name, drives) = (Arc::clone(&node.name), parting.still.ids(before));
    let waiting = Waiting::of(cell, before, old, parting.still);
    let late = Event::DriverLate { node: Arc::clone(&name), drives: drives.clone() };
    cell.events.publish(before.generation, &[late]);
    let message = format!(
        "its driver has not answered in {:?} and may still do what it was asked: that is marked, \
         and until it has answered no request comes to the node",
        limit.within
    );
    let error = Error::new(ErrorKind::TimedOut, message).at_node(&name);
    drop(std::mem::take(prepared));
    // From its answer on, somebody else may make an entry where one of these is: they stay.
    entries.outrank();
    parting.answer.give(Err(error.clone()));
    parting.writer = None;
    if working.await.is_ok() {
        work::take_back(section, steps).await;
    }
    end_watches(before, shapes.to_vec(), false);
    drop(waiting);
    cell.events.publish(cell.load().generation, &[Event::DriverAnswered { node: name, drives }]);
    Err(error)
}

/// The origins that come to where work is done, or taken back.
fn who_comes(before: &Graph, steps: &[Step]) -> Vec<usize> {
    let mut places = vec![false; before.nodes.len()];
    for step in steps {
        let written = before.written_by(before.nodes[step.old].generation);
        places.iter_mut().zip(written).for_each(|(place, is_written)| *place |= is_written);
    }
    before.origins_reaching(places)
}

/// Whether a broken rule has an action done while requests are in flight.
fn is_undrained(action: &Action) -> bool {
    match action {
        Action::AddBitmap(_) => mutated(Mutation::AddsUndrained),
        Action::Checkpoint { .. } => mutated(Mutation::FreezesUndrained),
        Action::Bitmap { action, .. } => match action {
            BitmapAction::Clear => mutated(Mutation::ClearsUndrained),
            BitmapAction::Enable => mutated(Mutation::EnablesUndrained),
            BitmapAction::Freeze => mutated(Mutation::FreezesUndrained),
            _ => false,
        },
        _ => false,
    }
}

/// An error with the action that is to blame.
pub(super) fn at_action(actions: &[String], number: usize, error: &Error) -> Error {
    match (actions.get(number), actions.len()) {
        (None, _) => error.clone(),
        (Some(what), 1) => Error::new(error.kind(), format!("{what}: {error}")),
        (Some(what), _) => {
            Error::new(error.kind(), format!("action {} ({what}): {error}", number + 1))
        }
    }
}

/// An error of the graph that the actions make together: none of them need be to blame alone.
pub(super) fn after_all(actions: &[String], error: Error) -> Error {
    match actions.len() {
        0 | 1 => error,
        count => Error::new(error.kind(), format!("after these {count} actions: {error}")),
    }
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

/// Changes a copy of the graph, checks it, and puts it in the graph's place.
async fn carry_out(cell: &GraphCell, transaction: Transaction, answer: &Answer) -> Result<Applied> {
    let writer = Some(cell.writer.lock().await);
    let before = Rc::new(Snapshot::new(cell.load()));
    if transaction.only_on.as_ref().is_some_and(|graph| !before.stands_as(graph)) {
        let message = "the graph has changed meanwhile: see anew what is to be done";
        return Err(Error::new(ErrorKind::Stale, message));
    }
    let limit = TimeLimit::of(transaction.within);
    let mut plan = Plan::of(cell, &before, transaction, limit).await?;
    plan.after.start_drivers(Some(&before))?;
    let after = Rc::clone(&plan.after);
    let moving = before.reached_by_others(&plan.origins);

    let began = clock();
    if mutated(Mutation::ChecksBeforeTheDrain) {
        let nobody = Still::of(&before, Vec::new(), HashSet::new(), limit).await?;
        let section = Drained::new(&before, &after, &nobody);
        plan.early = Some(verify(&section, &plan.claims, &plan.steps, &plan.actions).await?);
    }
    let still = Still::of(&before, std::mem::take(&mut plan.origins), moving, limit).await?;
    let drained = clock();
    let mut parting = Parting { cell, answer, writer, still: &still };
    let section = Drained::new(&before, &after, &still);
    let are_same = plan.make(&section, limit, &mut parting).await?;
    drop(section);
    // Nobody else writes before this one is published.
    let Parting { writer: _writer, .. } = parting;
    let Plan { shapes, mut events, added, riders, .. } = plan;
    end_watches(&before, shapes, are_same);
    let generation = after.generation;
    let drives = still.ids(&before);
    cell.publish(after.shared());
    after.tell_drivers(&before);
    reopen::leave(&before, &after);
    let graph = after.shared();
    riders.into_iter().for_each(|rider| rider.publish(&graph));
    events.extend(cell.showings.left(&graph));
    drop(still);
    let opened = clock();
    if !drives.is_empty() {
        let (drain, still) = (drained.since(began), opened.since(drained));
        events.push(Event::Paused { drives, drain, still });
    }
    cell.events.publish(generation, &events);
    Ok(Applied { generation, events, added })
}

/// What has no evidence, and is to be marked.
struct Marking {
    /// By index.
    claims: Vec<usize>,
    changes: Vec<Change>,
}

/// Refuses what has no evidence, unless it was asked for without.
///
/// # Errors
/// `EPERM`; `EBUSY` where somebody relies on what was shown.
fn refuse(section: &Drained<'_>, claim: &Claim, actions: &[String]) -> Result<()> {
    let refused = match claim.by.unproven {
        Unproven::MarkWhole => claim.check_keepers(section.graph(Side::After)),
        Unproven::Refuse => Err(claim.refused()),
    };
    refused.map_err(|error| at_action(actions, claim.by.action, &error))
}

/// Whether a claim has evidence: how much had been written in the section before it was looked for.
///
/// # Errors
/// As [`verify`].
async fn evidence(section: &Drained<'_>, claim: &Claim, actions: &[String]) -> Result<Option<u64>> {
    let written = section.marks().written();
    let found = claim.verify(section).await?;
    if found.is_none() {
        refuse(section, claim, actions)?;
    }
    Ok(found.map(|_| written))
}

/// The claims that are not proven, by index. What is copied for one may void the evidence of another, or some of
/// its own: that is looked for again.
///
/// # Errors
/// As [`verify`].
async fn unproven(
    section: &Drained<'_>,
    claims: &[Claim],
    actions: &[String],
) -> Result<Vec<usize>> {
    let is_void = |found: &Option<u64>| {
        let still_holds = |written: u64| written == section.marks().written();
        !mutated(Mutation::KeepsVoidEvidence) && found.is_some_and(|written| !still_holds(written))
    };
    let mut found = Vec::with_capacity(claims.len());
    for claim in claims {
        found.push(evidence(section, claim, actions).await?);
    }
    // Each time one more has nothing left to copy; but for such as copy round in a circle.
    for _ in claims {
        for (claim, found) in claims.iter().zip(&mut found).filter(|(_, found)| is_void(found)) {
            *found = evidence(section, claim, actions).await?;
        }
    }
    let mut unproven = Vec::new();
    for (at, (claim, found)) in claims.iter().zip(&found).enumerate() {
        if found.is_none() || is_void(found) {
            refuse(section, claim, actions)?;
            unproven.push(at);
        }
    }
    Ok(unproven)
}

/// Verifies what the transaction claims.
///
/// # Errors
/// `EPERM` for the first thing that cannot be proven and is to be refused then; of block status.
async fn verify(
    section: &Drained<'_>,
    claims: &[Claim],
    steps: &[Step],
    actions: &[String],
) -> Result<Marking> {
    let claims = unproven(section, claims, actions).await?;
    let mut marking = Marking { claims, changes: Vec::new() };
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
                           `on-unproven` \"mark-whole\" (the range is marked)";
            let error = Error::new(ErrorKind::NotPermitted, message).at_node(&node.name);
            return Err(at_action(actions, by.action, &error));
        }
        work::check_keepers(
            section.graph(Side::After),
            step.node,
            "a deallocation would alter what it has not copied yet",
        )
        .map_err(|error| at_action(actions, by.action, &error))?;
        let position = position(by.action);
        marking.changes.push(Change { node: node.generation, range: range.clone(), position, why });
    }
    Ok(marking)
}
