//! What is asked of a job while it runs, until it has ended.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::plan::{Copy, CopyKind, Plan};
use super::populated::Populated;
use super::world::{World, lag_name};
use crate::error::{Error, Result as HostResult};
use crate::graph::{Action, Transaction};
use crate::io::sim::{Random, note};
use crate::io::{sleep_until, spawn_boxed, turn_now, until};
use crate::job::{Changes, CopyMode, IoStatus, JobEnd, JobHandle, JobStatus, Jobs};

/// A job that has begun, at some moment of `began`.
pub(super) struct Running {
    pub(super) job: JobHandle,
    pub(super) kind: &'static str,
    pub(super) copy: Option<Copy>,
    pub(super) populated: Option<Populated>,
    pub(super) began: Range<u64>,
    /// There is no other job.
    is_alone: bool,
}

/// How it has ended.
pub(super) struct Ended {
    pub(super) kind: &'static str,
    pub(super) copy: Option<Copy>,
    pub(super) populated: Option<Populated>,
    pub(super) began: Range<u64>,
    pub(super) end: JobEnd,
}

/// How often a job that stands still is told to go on, before it is cancelled.
const RESUMES_MAX: u64 = 40;
/// How long a job may go on by itself when nobody limits its speed.
const PATIENCE: Duration = Duration::from_secs(120);

async fn pause(random: &mut Random, micros: u64) {
    sleep_until(turn_now() + Duration::from_micros(random.below(micros))).await;
}

impl World {
    /// Starts jobs in one transaction; none, if something stands against one.
    pub(super) async fn start(
        &self,
        random: &mut Random,
        plans: Vec<Plan>,
        (is_grouped, is_alone): (bool, bool),
    ) -> Vec<Running> {
        let began = self.past.tick();
        let kinds: Vec<_> = plans.iter().map(|plan| plan.spec.what.name()).collect();
        let specs: Vec<_> = plans.iter().map(|plan| (0, plan.spec.clone())).collect();
        let changes: Arc<dyn Changes> = Arc::clone(&self.changer) as _;
        let started = async {
            let (graph, transaction) = (self.cell.load(), Transaction::new());
            let growths = Jobs::needs(&graph, &specs)?.growths;
            let (starting, transaction) =
                self.jobs.prepare(&graph, &specs, is_grouped, &changes, transaction)?;
            if !growths.is_empty() {
                self.cell.check(transaction.changes()).await?;
            }
            for growth in growths {
                self.grow(growth).await?;
            }
            self.transact(transaction).await?;
            Ok::<_, Error>(starting)
        };
        let started = started.await;
        let starting = match started {
            Ok(starting) => starting,
            Err(error) => {
                note("refused", [0; 3]);
                self.past.tell(|| format!("jobs are refused: {error}"));
                self.past.count(|counts| counts.refused += 1);
                self.expect("a start", &error, &super::REFUSED);
                return Vec::new();
            }
        };
        let began = began..self.past.tick();
        starting.iter().for_each(|group| group.are_created());
        let mut handles = Vec::new();
        for group in starting {
            handles.extend(group.begin(|job: Box<dyn FnOnce(_) -> _ + Send>| {
                spawn_boxed(job(Rc::clone(self.worker(random))));
            }));
        }
        let running = handles.into_iter().zip(kinds).zip(plans);
        let running = running.map(|((job, kind), plan)| {
            note(kind, [began.start, began.end, 0]);
            self.past.tell(|| format!("{} begins: {:?}", job.id(), plan.spec));
            let Plan { copy, populated, .. } = plan;
            Running { job, kind, copy, populated, began: began.clone(), is_alone }
        });
        running.collect()
    }

    /// Makes a node longer, as a host does before a job begins.
    async fn grow(&self, growth: Action) -> HostResult<()> {
        if let Action::Resize { node, .. } = &growth
            && self.disks.iter().any(|disk| self.chain(disk).contains(node))
        {
            // What lies above it shows it there, or nothing: all of that counts as changed.
            self.trusts.set(true);
        }
        self.past.tell(|| growth.to_string());
        self.transact(Transaction::new().with(growth)).await?;
        self.past.count(|counts| counts.grown += 1);
        Ok(())
    }

    /// Asks this and that of a job, and sees to it that it ends.
    pub(super) async fn attend(self: Rc<Self>, running: Running, mut random: Random) -> Ended {
        let Running { job, kind, copy, mut populated, began, is_alone } = running;
        for _ in 0..random.below(4) {
            pause(&mut random, 20_000).await;
            match random.below(6) {
                0 => drop(job.pause()),
                1 => drop(job.set_speed(random.below(4) * self.past.size_bytes())),
                2 if random.one_in(2) => drop(job.cancel(random.one_in(2))),
                3 => drop(job.change(CopyMode::WriteBlocking).await),
                _ => drop(job.resume()),
            }
        }
        if let Some(copy) = copy.as_ref().filter(|copy| copy.kind == CopyKind::Fleecing) {
            self.fleece(&job, copy, &began).await;
        }
        let end = self.end_of(&job, &mut random).await;
        if let Some(owed) = &mut populated {
            self.note_end(owed, began.start);
        }
        if job.status() == JobStatus::Concluded {
            drop(job.dismiss());
        }
        let how = match &end {
            JobEnd::Completed => 0,
            JobEnd::Cancelled => 1,
            JobEnd::Failed(error) => {
                let also = if is_alone { &super::BROKEN[..1] } else { &super::BROKEN[..] };
                self.expect(&format!("a {kind}"), error, also);
                2
            }
        };
        note("job ended", [how as u64, 0, 0]);
        self.past.tell(|| format!("{} ends: {end:?}", job.id()));
        self.past.count(|counts| counts.end(kind, how));
        Ended { kind, copy, populated, began, end }
    }

    async fn end_of(&self, job: &JobHandle, random: &mut Random) -> JobEnd {
        use JobStatus as S;
        let mut resumes = 0;
        loop {
            let _ = job.set_speed(0);
            let rests = |at: S| {
                matches!(at, S::Paused | S::Standby | S::Ready | S::Pending) || at.is_over()
            };
            match until(turn_now() + PATIENCE, job.comes_to(rests)).await {
                // It goes on trying what cannot be done.
                None => drop(job.cancel(true)),
                Some(at) if at.is_over() => return job.wait().await,
                Some(S::Ready) if random.one_in(6) => drop(job.cancel(false)),
                Some(S::Ready) => drop(job.complete()),
                Some(S::Pending) if random.one_in(6) => drop(job.cancel(random.one_in(2))),
                Some(S::Pending) => drop(job.finalize()),
                Some(_) if resumes > RESUMES_MAX => drop(job.cancel(true)),
                Some(_) => drop(job.resume()),
            }
            resumes += 1;
            // It learns of that when its turn comes.
            pause(random, 2000).await;
        }
    }

    /// Waits for the guests; the overlay shows what the drive showed when the job came. Then cancels it.
    async fn fleece(&self, job: &JobHandle, copy: &Copy, began: &Range<u64>) {
        let disk = &self.disks[copy.disk];
        while disk.guests.get() > 0 {
            sleep_until(turn_now() + Duration::from_millis(1)).await;
        }
        if !self.cell.settle().await {
            return self.judge(Err("requests do not end".to_owned()));
        }
        let shown = self.look(&[lag_name(&copy.store)]).await;
        // What is broken it says by then, also while it stands still.
        sleep_until(turn_now() + Duration::from_secs(1)).await;
        let is_whole = !job.status().is_over() && job.info().io_status == IoStatus::Ok;
        let is_good = is_whole && job.cancel(true).is_ok();
        if is_good && matches!(job.wait().await, JobEnd::Cancelled) {
            let may_fail = self.fails.get();
            let checked = match shown.map(|mut shown| shown.pop().unwrap_or_default()) {
                Ok(words) => disk.ledger.borrow().check((0, &words), began, may_fail),
                Err(_) if may_fail => Ok(()),
                Err(wrong) => Err(wrong),
            };
            self.judge(checked.map_err(|wrong| format!("what is fleeced: {wrong}")));
            self.past.count(|counts| counts.fleeced += 1);
        }
    }
}
