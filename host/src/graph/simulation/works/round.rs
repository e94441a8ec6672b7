//! A round: jobs beside guests and changes of the graph, and a look at everything when they have ended.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::super::lag;
use super::attend::{Ended, Running};
use super::bitmaps::Tracked;
use super::guest;
use super::ledger::Ledger;
use super::plan::{CopyKind, Plan, When};
use super::world::{World, lag_name, told};
use crate::bitmap::{BitmapName, Granularity};
use crate::graph::{Action, BitmapAction, BitmapDecl, BitmapScope, LocalDrive, Transaction};
use crate::io::sim::{Faults, Random, SECTOR};
use crate::io::{current as current_worker, sleep_until, spawn, turn_now};
use crate::job::{BitmapMode, JobEnd};

/// Tasks that a round waits for, by a waker alone: one that does not end is a deadlock.
#[derive(Default)]
struct Tasks {
    running: Cell<usize>,
    waiting: RefCell<Option<Waker>>,
}

impl Tasks {
    fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        self.running.set(self.running.get() + 1);
        let tasks = Rc::clone(self);
        spawn(async move {
            task.await;
            tasks.running.set(tasks.running.get() - 1);
            if let Some(waker) = tasks.waiting.take() {
                waker.wake();
            }
        });
    }

    async fn all_ended(&self) {
        poll_fn(|cx| {
            if self.running.get() == 0 {
                return Poll::Ready(());
            }
            *self.waiting.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// What may go wrong in a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hazard {
    /// Filters fail, writes half-way; files cannot be read, or have no space.
    Failures,
    /// Syncs fail, and files have no space; nothing is damaged.
    Syncs,
    Nothing,
}

impl World {
    /// Sets off what may go wrong in a round.
    fn set_hazard(&self, random: &mut Random, hazard: Hazard) {
        let is_on = hazard == Hazard::Syncs || (hazard == Hazard::Failures && random.one_in(2));
        self.fails.set(is_on);
        if !is_on {
            return;
        }
        let rate = |random: &mut Random, usual| if random.one_in(2) { 0 } else { usual };
        match hazard {
            Hazard::Failures => {
                lag::set_failures(random.within(4..40));
                let (read, space) = (rate(random, 60), rate(random, 60));
                self.past.simulation.set_faults(Faults { read, space, ..Faults::HARMLESS });
            }
            Hazard::Syncs => {
                let (sync, space) = (rate(random, 60), rate(random, 40));
                self.past.simulation.set_faults(Faults { sync, space, ..Faults::HARMLESS });
            }
            Hazard::Nothing => {}
        }
    }

    fn end_hazard(&self, hazard: Hazard) {
        lag::set_failures(0);
        self.past.simulation.set_faults(Faults::HARMLESS);
        // A file of which a sync has failed goes on failing.
        self.fails.set(hazard == Hazard::Syncs);
    }

    /// # Errors
    /// What is wrong.
    pub(super) async fn round(
        self: &Rc<Self>,
        random: &mut Random,
        hazard: Hazard,
    ) -> Result<(), String> {
        for at in 0..self.disks.len() {
            if random.one_in(2) || self.chain(&self.disks[at]).len() == 1 {
                self.snapshot(random, at, None).await;
            }
        }
        self.set_hazard(random, hazard);
        self.past.tell(|| {
            let chains: Vec<_> = self.disks.iter().map(|disk| self.chain(disk)).collect();
            format!("round: {chains:?}{}", if self.fails.get() { ", things fail" } else { "" })
        });
        let tasks = Rc::<Tasks>::default();
        let is_first = random.one_in(2);
        if !is_first {
            self.start_guests(&tasks, random);
            sleep_until(turn_now() + Duration::from_micros(random.below(8000))).await;
        }
        let (running, is_grouped) = self.start_some(random, is_first).await;
        if is_first {
            self.start_guests(&tasks, random);
        }
        let ended = Rc::<RefCell<Vec<Ended>>>::default();
        for running in running {
            let (world, ended) = (Rc::clone(self), Rc::clone(&ended));
            let random = Random::new(random.next());
            tasks.spawn(async move {
                let end = world.attend(running, random).await;
                ended.borrow_mut().push(end);
            });
        }
        let (world, others) = (Rc::clone(self), Random::new(random.next()));
        tasks.spawn(world.meddle(others));
        tasks.all_ended().await;
        // Requests that nobody waits for any more may have to begin yet, behind a gate that was closed.
        while current_worker().is_some_and(|worker| worker.tasks() > 1) {
            sleep_until(turn_now() + Duration::from_millis(1)).await;
        }
        let may_be_damaged = self.fails.get();
        self.end_hazard(hazard);
        self.verdict()?;
        check_group(&ended.borrow(), is_grouped)?;
        if is_grouped && let Some(first) = ended.borrow().first() {
            let is_done = matches!(first.end, JobEnd::Completed);
            self.past.count(|counts| counts.groups[usize::from(!is_done)] += 1);
        }
        for ended in ended.take() {
            self.check_copy(ended, may_be_damaged).await?;
        }
        self.settle(random, may_be_damaged).await
    }

    fn start_guests(self: &Rc<Self>, tasks: &Rc<Tasks>, random: &mut Random) {
        guest::start(self, random, &mut |guest| tasks.spawn(guest));
    }

    /// A job, or several of them: each by itself, or together in one transaction. Whether they end together.
    async fn start_some(&self, random: &mut Random, is_first: bool) -> (Vec<Running>, bool) {
        let count = if random.one_in(2) { 1 } else { random.within(2..4) };
        let when = When { is_alone: count == 1, is_first };
        let mut plans: Vec<Plan> = Vec::new();
        for number in 0..count {
            let disk = random.below(self.disks.len() as u64) as usize;
            plans.extend(self.plan(random, (disk, &format!("job{number}")), when).await);
        }
        if count > 1 && random.one_in(2) {
            let is_grouped = !random.one_in(4);
            return (self.start(random, plans, (is_grouped, false)).await, is_grouped);
        }
        let mut running = Vec::new();
        for plan in plans {
            running.extend(self.start(random, vec![plan], (false, when.is_alone)).await);
        }
        (running, false)
    }

    /// What a copy left, and what bitmap `j` of its drive counts from then on.
    async fn check_copy(&self, ended: Ended, may_be_damaged: bool) -> Result<(), String> {
        let Ended { copy: Some(copy), began, end, kind } = ended else { return Ok(()) };
        let is_done = matches!(end, JobEnd::Completed);
        if copy.kind == CopyKind::Fleecing {
            return Ok(());
        }
        let disk = &self.disks[copy.disk];
        if copy.kind == CopyKind::Mirror && self.chain(disk).contains(&copy.store) {
            self.past.count(|counts| counts.pivots += 1);
            if copy.mode.is_some_and(|mode| mode != BitmapMode::Never) {
                // When the one took the other's place is not known here.
                self.go_on_from(&disk.id, Vec::new(), began);
            }
            return Ok(());
        }
        let words = self.look(&[lag_name(&copy.store)]).await?.pop().unwrap_or_default();
        let instant = match copy.kind {
            CopyKind::Mirror => began.start..self.past.tick(),
            _ => began.clone(),
        };
        if is_done {
            let ledger = disk.ledger.borrow();
            let checked = ledger.check((0, &words), &instant, may_be_damaged);
            checked.map_err(|wrong| format!("what a {kind} made of {}: {wrong}", disk.id))?;
            drop(ledger);
            self.past.keep_backup(&copy.store, &words);
        }
        match copy.mode {
            Some(BitmapMode::Always) if !is_done && copy.kind != CopyKind::Mirror => {
                // What was copied is clean, where it was copied.
                let mut either = vec![words];
                if may_be_damaged || copy.kind == CopyKind::BackupOfTop {
                    either.extend(self.references(&disk.id, "j"));
                }
                let since = self.since(&disk.id).start..began.end;
                self.go_on_from(&disk.id, either, since);
                self.expect_all_of(&disk.id);
            }
            Some(BitmapMode::OnSuccess | BitmapMode::Always) if is_done => {
                self.go_on_from(&disk.id, vec![words], began);
            }
            _ => {}
        }
        Ok(())
    }

    /// Nothing is in flight: looks at everything, checks it, and begins anew with some of it.
    async fn settle(&self, random: &mut Random, may_be_damaged: bool) -> Result<(), String> {
        if !self.cell.settle().await {
            return Err("requests do not end".to_owned());
        }
        self.verdict()?;
        self.check_jobs()?;
        let now = self.past.tick();
        let mut shown = Vec::new();
        for disk in &self.disks {
            let words = self.read(&disk.id).await?;
            let checked = disk.ledger.borrow().check((0, &words), &(now..now), may_be_damaged);
            checked.map_err(|wrong| format!("drive {}: {wrong}", disk.id))?;
            shown.push((BitmapScope::Drive(disk.id.as_str().into()), words));
        }
        shown.extend(self.look_at_nodes().await?);
        self.check_bitmaps(&shown, may_be_damaged)?;
        for (disk, (_, words)) in self.disks.iter().zip(&shown) {
            let drive = LocalDrive::open(&self.workers[0], &disk.id).map_err(told)?;
            match drive.flush().await {
                Ok(()) => disk.ledger.borrow_mut().settle(words.clone(), self.past.tick()),
                Err(error) => self.expect("a flush", &error, &[]),
            }
        }
        self.clear_some(random, &shown).await?;
        if !random.one_in(3) {
            self.tidy().await?;
        }
        self.track_more(random).await?;
        self.verdict()
    }

    /// No job is left, nor what stood for it.
    fn check_jobs(&self) -> Result<(), String> {
        if let Some(job) = self.jobs.all().first() {
            return Err(format!("job {} is still there: {}", job.id(), job.status()));
        }
        let graph = self.cell.load();
        let mut left = graph.nodes().iter().filter(|node| node.driver().job().is_some());
        left.next().map_or(Ok(()), |node| Err(format!("node {} is still there", node.name())))
    }

    /// What the nodes show that have a bitmap.
    async fn look_at_nodes(&self) -> Result<Vec<(BitmapScope, Vec<u64>)>, String> {
        let node = |tracked: &Tracked| match &tracked.scope {
            BitmapScope::Node(node) => Some(node.to_string()),
            BitmapScope::Drive(_) => None,
        };
        let nodes: Vec<String> = self.tracked.borrow().iter().filter_map(node).collect();
        let shown = self.look(&nodes).await?;
        let scopes = nodes.iter().map(|node| BitmapScope::Node(node.as_str().into()));
        Ok(scopes.zip(shown).collect())
    }

    fn check_bitmaps(
        &self,
        shown: &[(BitmapScope, Vec<u64>)],
        has_failed: bool,
    ) -> Result<(), String> {
        let happened = self.take_happened(has_failed);
        let ledgers: Vec<_> = self.disks.iter().map(|disk| disk.ledger.borrow()).collect();
        let by_id = |at: usize| (self.disks[at].id.as_str(), &*ledgers[at]);
        let all: Vec<(&str, &Ledger)> = (0..ledgers.len()).map(by_id).collect();
        for tracked in self.tracked.borrow_mut().iter_mut() {
            tracked.note(&happened, &all);
            let words = shown.iter().find(|(scope, _)| *scope == tracked.scope);
            let of = |id: &str| matches!(&tracked.scope, BitmapScope::Drive(of) if **of == *id);
            let ledger = all.iter().find(|(id, _)| of(id)).map(|(_, ledger)| *ledger);
            let words = words.map(|(_, words)| &words[..]).unwrap_or_default();
            tracked.check(words, ledger)?;
        }
        Ok(())
    }

    async fn clear_some(
        &self,
        random: &mut Random,
        shown: &[(BitmapScope, Vec<u64>)],
    ) -> Result<(), String> {
        let mut transaction = Transaction::new();
        let mut cleared = Vec::new();
        for (at, tracked) in self.tracked.borrow().iter().enumerate() {
            if random.one_in(2) {
                transaction = transaction.with(BitmapAction::Clear.of(tracked.reference()));
                cleared.push(at);
            }
        }
        self.transact(transaction).await.map_err(told)?;
        let now = self.past.tick();
        let mut all = self.tracked.borrow_mut();
        for at in cleared {
            let words = shown.iter().find(|(scope, _)| *scope == all[at].scope);
            all[at].begin(words.map(|(_, words)| words.clone()).unwrap_or_default(), now);
        }
        Ok(())
    }

    /// Gives some nodes bitmaps of their own.
    async fn track_more(&self, random: &mut Random) -> Result<(), String> {
        let stores = self.without_bitmap();
        let Some(store) = random.pick(&stores).filter(|_| random.one_in(2)) else { return Ok(()) };
        let scope = BitmapScope::Node(store.as_str().into());
        let name = BitmapName::new("n").map_err(|error| error.to_string())?;
        let granularity = Granularity::from_bytes(SECTOR as u64);
        let granularity = granularity.map_err(|error| error.to_string())?;
        let decl = BitmapDecl { scope: scope.clone(), name, granularity, enabled: true };
        let add = Transaction::new().with(Action::AddBitmap(decl));
        self.transact(add).await.map_err(told)?;
        let words = self.look(&[store]).await?.pop().unwrap_or_default();
        let graph = self.cell.load();
        let found = graph.find_bitmap(&scope, "n").ok_or("a bitmap that was added")?;
        let tracked = Tracked::new(scope, std::sync::Arc::clone(found), words, self.past.tick());
        self.tracked.borrow_mut().push(tracked);
        self.past.count(|counts| counts.node_bitmaps += 1);
        Ok(())
    }
}

/// Of a group all end well, or none does.
fn check_group(ended: &[Ended], is_grouped: bool) -> Result<(), String> {
    let done = ended.iter().filter(|ended| matches!(ended.end, JobEnd::Completed)).count();
    if is_grouped && done > 0 && done < ended.len() {
        let ends: Vec<_> = ended.iter().map(|ended| (ended.kind, &ended.end)).collect();
        return Err(format!("some of a group have ended well: {ends:?}"));
    }
    Ok(())
}
