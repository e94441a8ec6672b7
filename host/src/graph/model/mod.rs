//! The real core in lock step with the reference model (`world`), which is written from the rule
//! alone and knows nothing of the core.
//!
//! A case is a scene by chance (`scene`) and steps by chance (`steps`, `bitmaps`; `flights` has those
//! with several requests at once). Each step is done to both; then every bitmap and every view is
//! compared (`run`). What the model cannot know (what of a failed write has landed, what a
//! copy-on-read filter has copied on the way) the disks tell it (`disk`).
//!
//! Graph changes (`changes`) are done with requests open (`load`): a write in a filter, with its disk, or
//! at the guard of a copy that is with its disk; another one comes while the change waits. Whether the
//! core is to know that nobody sees a change, the model decides by what it shows: a way down from both
//! nodes to one, through filters and empty overlays; an overlay that has all its bytes, or the same below. Where it depends
//! on what block status says of zeros, the core may choose, and the bytes must be equal if it marks
//! nothing. Of permissions the model knows nothing: a change may be refused for them.
//!
//! In a share of the scenes each overlay is a qcow2 image (`parts`), opened by the real driver, in memory that
//! grows (`container`): allocation units, fills, guards, deallocation and growth are the driver's then.
//!
//! # How to run it
//!
//! Two tests share the cases, so that two cores are used. `BLOCKLOOM_MODEL_CASES` says how many run
//! ([`CASES`] of [`STEPS`] steps, if it does not), `BLOCKLOOM_MODEL_SEED` runs one alone. A case that fails
//! is shrunk by leaving out steps, and prints its seed and what is left of it.
//!
//! # Why not `proptest-state-machine`
//!
//! Its transitions begin and end in one call. Here most of what is worth finding lies between the two: a
//! step leaves requests open at a chosen point, and what the disks tell of them decides how the model
//! follows. So a step is a number from which everything else is drawn when it is its turn: steps stay
//! valid whatever is left out before them, which is all that shrinking needs, and one seed is the whole
//! case on every machine.
//!
//! # Broken rules
//!
//! `mutation.rs` breaks one rule at a time; here is what notices it first, and in which case (its
//! seed):
//!
//! | rule | noticed by | case |
//! |---|---|---|
//! | `MarksNothing` | bytes: clean, and shows others than when it was clean | 0 |
//! | `MarksAfterCompletion` | a granule that must be dirty is clean, the write with its disk | 0 |
//! | `DiscardsDoNotMark` | a granule that must be dirty is clean | 1 |
//! | `MarksOneClass` (nothing above) | the same, after a change of root | 0 |
//! | `ForgetsTheIdentityChild` (nothing beside a filter) | the same | 5 |
//! | `ProofExemptsTooMuch` (between, beside) | the same, the copy with its disk | 9 |
//! | `KeepsVoidProofs` | the same, after a proven write that failed | 5 |
//! | `DrainsNothing`, `AddsUndrained` | the same, in a bitmap added during a write | 0 |
//! | `ClearsUndrained`, `FreezesUndrained` | it takes effect during a write of its view | 0 |
//! | `EnablesUndrained` | the same | 7 |
//! | `RollsBackByReplacement` | bytes, after a merge back | 1 |
//! | `ChecksBeforeTheDrain` | another backing is called the same view | 94 |
//! | `ShrinksUnmarked` (of a base, too) | a granule that must be dirty is clean | 0 |
//! | `FailedWorkUnmarked` | the same, after a shrink that its driver has failed in | 0 |
//! | `ReopensUnmarked` | another backing, where that was to be refused | 0 |
//! | `GuardsEndWithTime` | a write is not held off by a copy | 27 |
//! | `GuardsEndWithFutures` | a copy whose future is gone is given up: its proof is void | 11 |
//! | `WatchesAfterReading` | a stale claim succeeds: changed during a held read | 27 |
//! | `WatchesNothing`, `DowngradesClaims` | a stale claim succeeds | 5 |
//! | `ProvenWritesStaleNothing` | a stale claim succeeds: copied from another view | 197 |
//! | `TakesNoGuards` | a write is not held off by a copy | 27 |
//! | `ForgetsFills` | a stale claim succeeds: filled around a write | 13 |
//! | `ForgetsTheBacking` | zeros are proven of a view that shows others | 27 |
//! | `ForgetsChangesInFlight` | a stale claim succeeds: read during a write | 27 |
//! | `ForgetsChangesBelow` | a stale claim succeeds: changed below | 27 |
//! | `DiscardsStaleNothing` | a stale claim succeeds: discarded | 65 |
//! | `GraphChangesStaleNothing` | a stale claim succeeds: a node was altered | 42 |
//! | `FailedWritesStaleNothing` | a stale claim succeeds: a proven write had failed | 11 |
//!
//! Zeros that are proven without a guard are noticed by a test of their own (`evidence`): two jobs would
//! have to write one node at one place.
//!
//! # What is left out
//!
//! A driver that fails to grow, which changes nothing that is seen. Bitmaps that graph changes of one transaction add or
//! freeze: they change alone, in `bitmaps` and `changes`. Several graph changes in one transaction, but
//! for one that makes no sense beside one that does.

mod bitmaps;
mod changes;
mod container;
mod disk;
mod flights;
mod load;
mod parts;
mod random;
mod run;
mod scene;
mod steps;
#[allow(
    unreachable_pub,
    dead_code,
    unused_imports,
    reason = "the model is a crate of its own in spirit: it has more than is used"
)]
mod world;

use random::Random;
use run::{Changes, Run};

use super::mutation::{Mutation, set};
use crate::io::{EngineChoice, EngineKind, run_on_thread};

/// Real bytes of one byte of the model.
const SECTOR: u64 = 512;

/// A case: the scene's seed, then one for each step. Steps can be left out without altering others.
#[derive(Clone, Debug)]
struct Case {
    scene: u64,
    steps: Vec<u64>,
}

impl Case {
    fn new(seed: u64, steps: usize) -> Self {
        let mut random = Random::new(seed);
        let scene = random.next();
        Self { scene, steps: (0..steps).map(|_| random.next()).collect() }
    }

    /// What its graph changes came to.
    ///
    /// # Errors
    /// What went wrong, and at which step.
    fn run(&self) -> Result<Changes, (usize, String)> {
        let case = self.clone();
        let ended = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), async move {
            let mut run = Run::new(case.scene);
            let tell = |run: &Run, wrong: String| {
                format!("{wrong}\n  at: {}\n{}\n{:#?}", run.step, run.world, run.scene.jobs)
            };
            let mut trace = Vec::new();
            for (at, seed) in case.steps.iter().enumerate() {
                let stepped = step(&mut run, &mut Random::new(*seed)).await;
                let checked = match stepped {
                    Ok(()) => run.check().await,
                    wrong => wrong,
                };
                trace.push(run.step.clone());
                checked.map_err(|wrong| (at, format!("{}\n{trace:#?}", tell(&run, wrong))))?;
            }
            let checked = run.check_all_views().await;
            checked.map_err(|wrong| (case.steps.len(), tell(&run, wrong)))?;
            Ok(std::mem::take(&mut run.changes))
        });
        ended.expect("a worker")
    }

    /// The case without the steps that are not needed for its failure.
    fn shrunk(mut self) -> Self {
        if let Err((at, _)) = self.run() {
            self.steps.truncate(at + 1);
        }
        let mut size = self.steps.len();
        while size > 0 {
            let mut at = 0;
            while at < self.steps.len() {
                let mut less = self.clone();
                less.steps.drain(at..less.steps.len().min(at + size));
                if less.run().is_err() { self = less } else { at += size }
            }
            size /= 2;
        }
        self
    }
}

async fn step(run: &mut Run, random: &mut Random) -> run::Verdict {
    let has_jobs = !run.scene.jobs.is_empty();
    match random.below(if has_jobs { 31 } else { 19 }) {
        0..=5 => run.guest_change(random).await,
        6..=8 => run.guest_read(random).await,
        9..=11 => run.bitmap_change(random).await,
        12 | 13 => run.during_a_write(random).await,
        14..=18 => run.graph_change(random).await,
        20 | 21 => run.during_a_read(random).await,
        22 | 23 => run.during_a_copy(random).await,
        19 | 24 => run.job_copy(random).await,
        26 | 27 => run.job_read(random).await,
        25 | 29 => run.job_claim(random).await,
        28 => run.job_zero(random).await,
        _ => run.job_write(random).await,
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Steps of a case.
const STEPS: usize = 200;

/// Cases, unless the environment says otherwise.
const CASES: u64 = 2000;

/// What graph changes there are, by [`changes::Plan::kind`]: each is applied, and often.
const CHANGES: [&str; 19] = [
    "add bitmap",
    "add drive",
    "add node",
    "deallocate",
    "driver fails",
    "eject",
    "insert above",
    "insert below",
    "insert medium",
    "remove bitmap",
    "remove drive",
    "remove filter",
    "remove node",
    "replace",
    "resize",
    "set backing",
    "set root",
    "snapshot of",
    "write while",
];

/// Half of the cases: tests run side by side.
fn the_core_does_as_the_model_says(half: u64) {
    let (all, one) = (number("BLOCKLOOM_MODEL_CASES"), number("BLOCKLOOM_MODEL_SEED"));
    if let Some(seed) = one {
        if seed % 2 == half {
            agree(seed, Case::new(seed, STEPS));
        }
        return;
    }
    let mut sum = Changes::default();
    for seed in (half..all.unwrap_or(CASES)).step_by(2) {
        sum.add(agree(seed, Case::new(seed, STEPS)));
    }
    println!("{sum:?}");
    if all.is_none() {
        let is_rare = |kind: &&str| sum.applied.get(*kind).is_none_or(|count| *count < 100);
        let rare: Vec<&str> = CHANGES.into_iter().filter(is_rare).collect();
        assert!(rare.is_empty(), "these changes are hardly tried: {rare:?}; {sum:?}");
    }
}

#[test]
fn the_core_does_as_the_model_says_in_even_cases() {
    the_core_does_as_the_model_says(0);
}

#[test]
fn the_core_does_as_the_model_says_in_odd_cases() {
    the_core_does_as_the_model_says(1);
}

fn agree(seed: u64, case: Case) -> Changes {
    case.run().unwrap_or_else(|_| {
        let case = case.shrunk();
        let (_, wrong) = case.run().expect_err("it fails");
        let steps = case.steps.len();
        panic!(
            "seed {seed} (again: BLOCKLOOM_MODEL_SEED={seed}), shrunk to {steps} steps:\n{wrong}"
        );
    })
}

/// Breaks rules, one at a time: each is to be noticed.
fn are_noticed(rules: &[Mutation]) {
    let mut unnoticed = Vec::new();
    for rule in rules {
        set(Some(*rule));
        let found = (0..CASES).find_map(|seed| {
            let (at, wrong) = Case::new(seed, STEPS).run().err()?;
            Some((seed, at, wrong))
        });
        set(None);
        match found {
            Some((seed, at, wrong)) => {
                let mut lines = wrong.lines();
                let (wrong, step) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
                println!("{rule:?}: seed {seed}, step {at}: {wrong}\n  {step}");
            }
            None => unnoticed.push(rule),
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}

#[test]
fn rules_of_marks_and_bitmaps_are_noticed_if_broken() {
    are_noticed(&[
        Mutation::MarksNothing,
        Mutation::MarksAfterCompletion,
        Mutation::DiscardsDoNotMark,
        Mutation::MarksOneClass,
        Mutation::ForgetsTheIdentityChild,
        Mutation::ProofExemptsTooMuch,
        Mutation::KeepsVoidProofs,
        Mutation::DrainsNothing,
        Mutation::AddsUndrained,
        Mutation::ClearsUndrained,
        Mutation::EnablesUndrained,
        Mutation::FreezesUndrained,
        Mutation::RollsBackByReplacement,
        Mutation::ChecksBeforeTheDrain,
        Mutation::ShrinksUnmarked,
        Mutation::ReopensUnmarked,
        Mutation::FailedWorkUnmarked,
        Mutation::GuardsEndWithTime,
        Mutation::GuardsEndWithFutures,
    ]);
}

#[test]
fn rules_of_evidence_and_guards_are_noticed_if_broken() {
    are_noticed(&[
        Mutation::WatchesAfterReading,
        Mutation::WatchesNothing,
        Mutation::DowngradesClaims,
        Mutation::ProvenWritesStaleNothing,
        Mutation::TakesNoGuards,
        Mutation::ForgetsFills,
        Mutation::ForgetsTheBacking,
        Mutation::ForgetsChangesInFlight,
        Mutation::ForgetsChangesBelow,
        Mutation::DiscardsStaleNothing,
        Mutation::GraphChangesStaleNothing,
        Mutation::FailedWritesStaleNothing,
    ]);
}
