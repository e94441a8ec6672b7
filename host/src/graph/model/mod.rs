//! The real core in lock step with the reference model (`world`), which is written from the rule
//! alone and knows nothing of the core.
//!
//! A case is a scene by chance (`scene`) and steps by chance (`steps`, `bitmaps`; `flights` has those
//! with several requests at once). Each step is done to both; then every bitmap and every view is
//! compared (`run`). What the model cannot know (what of a failed write has landed, what a
//! copy-on-read filter has copied on the way) the disks tell it (`disk`).
//!
//! `BLOCKLOOM_MODEL_CASES` says how many cases run, `BLOCKLOOM_MODEL_SEED` runs one alone. A case that
//! fails is shrunk and prints its seed.
//!
//! Steps that change the graph belong in a file of their own beside `bitmaps`, with an arm in `step`:
//! the model has them all ([`world::Action`]).
//!
//! # Broken rules
//!
//! `mutation.rs` breaks one rule at a time; here is what notices it, mostly:
//!
//! | rule | noticed by |
//! |---|---|
//! | marks nothing; discards do not mark | soundness by bytes: clean, and shows other bytes |
//! | marks after completion | a required granule is clean while the write is held by its disk |
//! | nothing above the class; too much exempt (between, beside) | a required granule is clean |
//! | a watch that begins after the read | a write during a held read, then the claim: proven, not stale |
//! | a watch that is never stale; a claim downgraded | a stale claim is answered with success |
//! | void proofs kept | a failed proven write: a required granule is clean |
//! | proven writes stale nothing | a claim from beside: proven, not stale |
//! | no guards | a copy overtaken by a failure, or a write that is not held off: success, not stale |
//! | zeros without the backing | zeros are claimed of a view that shows others |
//! | nothing drained | a bitmap changes while a write is held |
//! | rollback by replacement | soundness by bytes after a merge back |
//!
mod bitmaps;
mod changes;
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
use run::Run;

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

    /// # Errors
    /// What went wrong, and at which step.
    fn run(&self) -> Result<(), (usize, String)> {
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
            run.check_all_views().await.map_err(|wrong| (case.steps.len(), tell(&run, wrong)))
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

#[test]
fn the_core_does_as_the_model_says() {
    let cases = number("BLOCKLOOM_MODEL_CASES").unwrap_or(800);
    let first = number("BLOCKLOOM_MODEL_SEED");
    let seeds = first.map_or(0..cases, |seed| seed..seed + 1);
    for seed in seeds {
        agree(seed, Case::new(seed, 100));
    }
}

fn agree(seed: u64, case: Case) {
    if case.run().is_err() {
        let case = case.shrunk();
        let (_, wrong) = case.run().expect_err("it fails");
        let steps = case.steps.len();
        panic!(
            "seed {seed} (again: BLOCKLOOM_MODEL_SEED={seed}), shrunk to {steps} steps:\n{wrong}"
        );
    }
}

#[test]
fn every_broken_rule_is_noticed() {
    let all = [
        Mutation::MarksNothing,
        Mutation::MarksAfterCompletion,
        Mutation::DiscardsDoNotMark,
        Mutation::MarksOneClass,
        Mutation::ProofExemptsTooMuch,
        Mutation::WatchesAfterReading,
        Mutation::WatchesNothing,
        Mutation::DowngradesClaims,
        Mutation::KeepsVoidProofs,
        Mutation::ProvenWritesStaleNothing,
        Mutation::TakesNoGuards,
        Mutation::ForgetsTheBacking,
        Mutation::DrainsNothing,
        Mutation::RollsBackByReplacement,
    ];
    let mut unnoticed = Vec::new();
    for mutation in all {
        set(Some(mutation));
        let found = (0..2000).find_map(|seed| {
            let (at, wrong) = Case::new(seed, 100).run().err()?;
            Some((seed, at, wrong))
        });
        set(None);
        match found {
            Some((seed, at, wrong)) => {
                let mut lines = wrong.lines();
                let (wrong, step) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
                println!("{mutation:?}: seed {seed}, step {at}: {wrong}\n  {step}");
            }
            None => unnoticed.push(mutation),
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}
