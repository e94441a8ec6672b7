//! The real core on the simulator.

mod bitmaps;
mod changes;
mod guest;
mod jobs;
mod lag;
mod oracle;
mod scene;
mod shape;
mod world;

use std::rc::Rc;

use super::mutation::{Mutation, set};
use crate::io::sim::{Simulation, Trace};
use world::{Counts, EndOfWorld, Verdict, World};

/// What came of a seed.
struct Outcome {
    verdict: Verdict,
    trace: Trace,
    counts: Counts,
}

/// Runs one seed.
fn run(seed: u64) -> Outcome {
    let simulation = Simulation::new(seed);
    let mut random = simulation.random();
    let _end = EndOfWorld;
    let counts = Rc::new(std::cell::Cell::new(Counts::default()));
    let (told, inner) = (Rc::clone(&counts), simulation.clone());
    let ran = simulation.run(async move {
        let world = World::new(&inner, &mut random)?;
        let verdict = Rc::clone(&world).live(random).await;
        told.set(world.counts.get());
        verdict
    });
    let verdict = ran.unwrap_or_else(|stop| Err(stop.to_string()));
    Outcome { verdict, trace: simulation.trace(), counts: counts.get() }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The seeds of a test: fixed ones, or as the environment says.
fn seeds(count: u64) -> std::ops::Range<u64> {
    match number("BLOCKLOOM_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("BLOCKLOOM_SIM_SEEDS").unwrap_or(count),
    }
}

#[test]
fn everything_at_once_keeps_bytes_and_bitmaps() {
    let mut counts = Counts::default();
    let seeds = seeds(500);
    for seed in seeds.clone() {
        let outcome = run(seed);
        counts.add(outcome.counts);
        if let Err(wrong) = outcome.verdict {
            panic!(
                "seed {seed} (again: BLOCKLOOM_SIM_SEED={seed} cargo test -p blockloom --lib \
                 simulation): {wrong}\nthe last of {} events:\n{}",
                outcome.trace.len(),
                outcome.trace.tail(if seeds.end - seeds.start == 1 { usize::MAX } else { 60 }),
            );
        }
    }
    println!("{counts:?}");
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in 0..40 {
        let (first, again) = (run(seed), run(seed));
        assert_eq!(first.trace.first_difference(&again.trace), None, "seed {seed}");
        assert_eq!(first.verdict, again.verdict, "seed {seed}");
    }
}

#[test]
fn broken_rules_are_noticed() {
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
        let found = (0..500).find_map(|seed| Some((seed, run(seed).verdict.err()?)));
        set(None);
        match found {
            Some((seed, wrong)) => println!("{mutation:?}: seed {seed}: {wrong}"),
            None => unnoticed.push(mutation),
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}
