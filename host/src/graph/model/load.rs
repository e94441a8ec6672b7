//! Graph changes under load: they are done to both worlds while requests wait half-way.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::{self as core, Applied, CopyHow, Event, Transaction, Unproven as Host};
use super::changes::{Ask, Plan, SameView, Step};
use super::disk::landing;
use super::flights::{Writing, told};
use super::parts;
use super::random::Random;
use super::run::{Run, Started, Verdict, bytes_of, kind_of, quiet, start};
use super::world::{
    Action, Buffer, DriveId, FlightId, Node, NodeId, Outcome, Payload, SameView as Evidence, Span,
    Unproven, View, WatchId,
};
use crate::error::{ErrorKind, Result as HostResult};

/// What waits while the graph changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    None,
    /// A write is with its disk.
    AtTheDisk,
    /// A write is in a filter, if there is one on its way.
    InAFilter,
    /// A copy's write is with its disk; a guest's write may wait for its guard.
    AtAGuard,
}

struct Copying {
    real: Started<HostResult<()>>,
    flight: FlightId,
    watch: WatchId,
}

/// Requests that are open in both worlds.
#[derive(Default)]
struct Open {
    copying: Option<Copying>,
    writes: Vec<Writing>,
}

impl Run {
    /// The graph changes, with requests open or without.
    pub(super) async fn graph_change(&mut self, random: &mut Random) -> Verdict {
        let Some(mut plan) = self.plan(random) else { return Ok(()) };
        let unproven = if random.one_in(2) { Unproven::Refuse } else { Unproven::MarkWhole };
        let loads = [Load::None, Load::None, Load::AtTheDisk, Load::InAFilter, Load::AtAGuard];
        let load = random.pick(&loads).unwrap_or(Load::None);
        self.step = format!("{}; {unproven:?}, {load:?}", plan.what);
        let mut open = self.open(random, load).await?;
        self.failing = self.arm_failure(random, &plan);
        let real = self.begin_change(&mut plan, unproven);
        quiet().await;
        let early = real.take();
        let is_early = early.is_some();
        if !is_early {
            self.changes.count("wait");
        }
        if let Some(result) = early {
            self.follow_plan(&plan, unproven, &result)?;
        }
        self.check_bitmaps()?;
        let late = match load {
            Load::AtTheDisk | Load::InAFilter => self.begin_late(random).await?,
            Load::None | Load::AtAGuard => None,
        };
        let late = match late {
            // It got through: it is one of those that are open.
            Some(late) if late.flight.is_some() => {
                open.writes.extend(late.into_writing());
                None
            }
            late => late,
        };
        self.control.writes.open();
        self.control.filters.open();
        self.close(&mut open).await?;
        if !is_early {
            let result = real.end().await?;
            self.follow_plan(&plan, unproven, &result)?;
        }
        if let Some(late) = late {
            self.end_late(late).await?;
        }
        self.control.take_log();
        self.control.set_fail_work(None);
        Ok(())
    }

    /// Of what drivers are to do with nothing in flight, some fails.
    fn arm_failure(&mut self, random: &mut Random, plan: &Plan) -> Option<usize> {
        let can_fail = plan.steps.iter().any(|step| match step {
            Step::Resize { node, len } => *len < self.len(*node),
            Step::Deallocate { span, .. } => !span.is_empty(),
            Step::Do(_) | Step::Move { .. } => false,
        });
        let failing = (can_fail && random.one_in(3)).then(|| random.below(5));
        self.control.set_fail_work(failing);
        failing
    }

    async fn open(&mut self, random: &mut Random, load: Load) -> Result<Open, String> {
        let mut open = Open::default();
        match load {
            Load::None => return Ok(open),
            Load::AtTheDisk | Load::AtAGuard => self.control.writes.close(),
            Load::InAFilter => self.control.filters.close(),
        }
        if load == Load::AtAGuard {
            open.copying = self.begin_copy(random).await?;
        }
        let Some(drive) = self.writable_drive(random) else { return Ok(open) };
        let span = self.span(random, self.len(drive.root));
        let held = self.held();
        let writing = self.begin_write(random, drive, span)?;
        quiet().await;
        let is_held = self.held() > held;
        if is_held && load != Load::InAFilter {
            told(self.world.issue(writing.flight))?;
        }
        if !is_held && load == Load::InAFilter {
            self.end_write(&writing).await?;
            return Ok(open);
        }
        self.step = format!("{}; write to {span} of {}", self.step, drive.id);
        open.writes.push(writing);
        Ok(open)
    }

    /// A copy of a job whose write is with its disk.
    async fn begin_copy(&mut self, random: &mut Random) -> Result<Option<Copying>, String> {
        let jobs = self.scene.jobs.len();
        if jobs == 0 {
            return Ok(None);
        }
        let at = random.below(jobs);
        let job = self.scene.jobs[at];
        if self.copies_on_read(job.from) || (self.scene.is_coarse && self.copies_on_read(job.to)) {
            return Ok(None);
        }
        let span = self.span(random, self.len(job.from).min(self.len(job.to)));
        let watch = told(self.world.register_watch(job.from, span))?;
        told(self.world.capture(watch))?;
        let own = self.job(at);
        let how = CopyHow { unchanged: true, only_unallocated: false };
        let real = start(async move { own.copy(0, 2, bytes_of(span), how).await.map(drop) });
        quiet().await;
        if self.held() == 0 {
            self.world.unregister_watch(watch);
            let result = real.end().await?;
            return match kind_of(&result) {
                Some(ErrorKind::NotPermitted) => Ok(None),
                _ => Err(format!("a copy: {result:?}")),
            };
        }
        self.step = format!("{}; job {at} copies {span}", self.step);
        let flight = told(self.world.admit_claim(job.to, span, &Buffer::Captured(watch)))?;
        told(self.world.issue(flight))?;
        Ok(Some(Copying { real, flight, watch }))
    }

    async fn close(&mut self, open: &mut Open) -> Verdict {
        if let Some(copying) = open.copying.take() {
            let result = copying.real.end().await?;
            if result.is_err() {
                return Err(format!("a copy ended with {result:?}"));
            }
            told(self.world.settle(copying.flight, &Outcome::Done))?;
            self.world.unregister_watch(copying.watch);
        }
        for writing in open.writes.drain(..) {
            self.end_write(&writing).await?;
        }
        Ok(())
    }

    fn begin_change(&self, plan: &mut Plan, unproven: Unproven) -> Started<HostResult<Applied>> {
        let cell = Arc::clone(self.graph.cell());
        match &mut plan.ask {
            Ask::Transact(actions) => {
                let unproven = match unproven {
                    Unproven::MarkWhole => Host::MarkWhole,
                    Unproven::Refuse => Host::Refuse,
                };
                let mut transaction = Transaction::new();
                for action in std::mem::take(actions) {
                    transaction = transaction.with_unproven(action, unproven);
                }
                start(async move { cell.transact(transaction).await })
            }
            Ask::AddBitmap(scope) => {
                let decl = parts::bitmap(*scope, self.scene.granularity);
                let add = Transaction::new().with(core::Action::AddBitmap(decl));
                start(async move { cell.transact(add).await })
            }
            Ask::RemoveBitmap(id) => {
                let bitmap = self.bitmap(*id);
                let remove = Transaction::new().with(core::BitmapAction::Remove.of(&bitmap));
                start(async move { cell.transact(remove).await })
            }
        }
    }

    /// Does in the model what the core says that it has done.
    fn follow_plan(
        &mut self,
        plan: &Plan,
        unproven: Unproven,
        result: &HostResult<Applied>,
    ) -> Verdict {
        let wrong = |why: &str| Err(format!("{}: {why}: {result:?}", plan.what));
        let applied = match result {
            Ok(_) if plan.is_nonsense => return wrong("it makes no sense"),
            Ok(applied) => applied,
            Err(error) => {
                self.changes.refused += 1;
                self.changes.count(&format!("{}: {:?}", plan.kind(), error.kind()));
                return match error.kind() {
                    ErrorKind::NotPermitted
                        if unproven == Unproven::Refuse && self.is_doubtful(&plan.steps) =>
                    {
                        Ok(())
                    }
                    // Permissions, cycles, opaque parents: of these the model knows nothing.
                    ErrorKind::InUse | ErrorKind::Invalid => Ok(()),
                    ErrorKind::NotFound if plan.is_nonsense => Ok(()),
                    ErrorKind::Io => match self.failing.take() {
                        Some(quarters) => self.fail_steps(&plan.steps, quarters),
                        None => wrong("nothing was to fail"),
                    },
                    _ => wrong("an unexpected error"),
                };
            }
        };
        let is_marked = |event: &Event| {
            matches!(event, Event::BitmapMarkedWhole { .. } | Event::BitmapMarked { .. })
        };
        let is_marked = applied.events.iter().any(is_marked);
        for step in &plan.steps {
            let is_proven = self.do_step(step, is_marked)?;
            if !is_proven && unproven == Unproven::Refuse {
                return wrong("nothing proves it, and it was to be refused then");
            }
        }
        self.changes.count(&plan.kind());
        self.scene = plan.scene.clone();
        self.forget_lost_sources();
        Ok(())
    }

    /// Whether the core may say that it cannot prove something.
    fn is_doubtful(&self, steps: &[Step]) -> bool {
        steps.iter().any(|step| match step {
            Step::Do(_) | Step::Resize { .. } => false,
            Step::Move { user, to } => {
                // A node that the plan adds is not there yet: what it shows is known.
                let is_new = to.is_some_and(|to| self.world.graph().node(to).is_none());
                if is_new {
                    self.is_other_size(steps, *user)
                } else {
                    self.same_view(*user, *to) != SameView::Plain
                }
            }
            Step::Deallocate { node, span } => !self.shows_nothing(*node, *span),
        })
    }

    /// Whether a new overlay is not as long as what it covers.
    fn is_other_size(&self, steps: &[Step], user: View) -> bool {
        let graph = self.world.graph();
        let len = graph.used_by(user).map(|node| graph.len(node));
        steps.iter().any(|step| match step {
            Step::Do(Action::AddNode(_, Node::Memory(memory))) => Some(memory.len()) != len,
            _ => false,
        })
    }

    /// Whether an overlay has no bytes there that would come to light were they given up.
    fn shows_nothing(&self, node: NodeId, span: Span) -> bool {
        let graph = self.world.graph();
        let Some(Node::Memory(overlay)) = graph.node(node) else { return false };
        let below = overlay.backing().map_or(0, |backing| graph.len(backing));
        span.end <= below && span.offsets().all(|at| !overlay.is_allocated(at))
    }

    /// A driver has failed half-way: what it was to do changes all the same.
    fn fail_steps(&mut self, steps: &[Step], quarters: usize) -> Verdict {
        for step in steps {
            let (node, asked, is_proven) = match step {
                Step::Resize { node, len } => {
                    (*node, Span { start: *len, end: self.len(*node) }, false)
                }
                Step::Deallocate { node, span } => (*node, *span, self.shows_nothing(*node, *span)),
                Step::Do(_) | Step::Move { .. } => continue,
            };
            let cluster = match self.world.graph().node(node) {
                Some(Node::Memory(overlay)) if overlay.backing().is_some() => {
                    overlay.cluster_bytes()
                }
                _ => usize::MAX,
            };
            let bytes = landing(asked.len() as u64, quarters, cluster as u64) as usize;
            let same = is_proven.then_some(Evidence::Finished);
            told(self.world.fail_to_give_up(node, asked, Span::at(asked.start, bytes), same))?;
        }
        self.changes.count("driver fails");
        Ok(())
    }

    /// Does one step; returns whether the core could know that nobody sees it.
    fn do_step(&mut self, step: &Step, is_marked: bool) -> Result<bool, String> {
        match step {
            Step::Do(action) => told(self.world.apply(action)).map(|_| true),
            Step::Move { user, to } => {
                let is_proven = match self.same_view(*user, *to) {
                    SameView::Plain => true,
                    SameView::Unknown => false,
                    SameView::Perhaps => !is_marked,
                };
                let is_medium = matches!(user, View::Drive(_))
                    && (to.is_none() || self.world.graph().used_by(*user).is_none());
                let same = is_proven.then_some(Evidence::Finished);
                let (users, to) = (vec![*user], *to);
                told(self.world.apply(&Action::Repoint { users, to, same }))?;
                Ok(is_proven || is_medium)
            }
            Step::Resize { node, len } => {
                told(self.world.resize(*node, *len, &[]))?;
                Ok(true)
            }
            Step::Deallocate { node, span } => {
                let is_proven = self.shows_nothing(*node, *span);
                let same = is_proven.then_some(Evidence::Finished);
                told(self.world.deallocate(*node, *span, same))?;
                Ok(is_proven)
            }
        }
    }

    /// What was read of a node that nobody reads any more proves nothing, even if somebody will.
    fn forget_lost_sources(&mut self) {
        let graph = self.world.graph();
        let copied = self.scene.copiers.iter().filter_map(|filter| graph.child(*filter));
        let read = self.scene.jobs.iter().flat_map(|job| [job.from, job.beside]);
        let sources: BTreeSet<_> = copied.chain(read).collect();
        let (kept, lost) = std::mem::take(&mut self.kept)
            .into_iter()
            .partition(|kept| sources.contains(&kept.node));
        self.kept = kept;
        for lost in lost {
            self.world.unregister_watch(lost.watch);
        }
    }

    /// A guest's write that comes while the graph changes.
    async fn begin_late(&mut self, random: &mut Random) -> Result<Option<Late>, String> {
        let Some(drive) = self.writable_drive(random) else { return Ok(None) };
        let span = Span::at(random.below(self.len(drive.root)), 1);
        self.step = format!("{}; late write to {span} of {}", self.step, drive.id);
        let held = self.held();
        let (real, bytes) = self.write_in_task(random, drive, span);
        quiet().await;
        let mut late = Late { real, bytes, drive: drive.id, root: drive.root, span, flight: None };
        if self.held() > held {
            late.flight = Some(told(self.world.admit(drive.root, span, &late.bytes))?);
        }
        Ok(Some(late))
    }

    /// It waited at the gate, or nothing held it.
    async fn end_late(&mut self, late: Late) -> Verdict {
        let result = late.real.end().await?;
        let log = self.control.take_log();
        self.follow_copies(&log, 0)?;
        let (kind, span) = (kind_of(&result), late.span);
        let expect = match self.world.entry(View::Drive(late.drive)) {
            Err(_) if self.scene.drives.iter().any(|drive| drive.id == late.drive) => {
                Some(ErrorKind::NoMedium)
            }
            Err(_) => Some(ErrorKind::NotFound),
            Ok(root) if span.end > self.len(root) => Some(ErrorKind::NoSpace),
            Ok(root) => {
                let flight = told(self.world.admit(root, span, &late.bytes))?;
                told(self.world.settle(flight, &Outcome::Done))?;
                None
            }
        };
        if kind == expect {
            self.changes.count("write while");
            return Ok(());
        }
        Err(format!("a write while the graph changed ended with {result:?}, not {expect:?}"))
    }
}

struct Late {
    real: Started<HostResult<()>>,
    bytes: Payload,
    drive: DriveId,
    root: NodeId,
    span: Span,
    /// In the model, if it was let through.
    flight: Option<FlightId>,
}

impl Late {
    fn into_writing(self) -> Option<Writing> {
        let Self { real, span, flight, root, .. } = self;
        flight.map(|flight| Writing { real, flight, node: root, span })
    }
}
