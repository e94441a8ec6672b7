//! A round: jobs beside guests and changes of the graph, and a look at everything when they have ended.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::super::lag;
use super::attend::{Ended, Running};
use super::guest;
use super::plan::{Plan, When};
use super::world::World;
use crate::io::sim::{Faults, Random};
use crate::io::{current as current_worker, sleep_until, spawn, turn_now};
use crate::job::JobEnd;

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
