//! The real core on the simulator.

mod bitmaps;
mod changes;
mod crash;
mod guest;
mod jobs;
mod lag;
mod oracle;
mod overlay;
mod scene;
mod shape;
mod world;

use std::rc::Rc;

use super::mutation::{Mutation, set};
use crate::io::sim::{Simulation, Trace};
use scene::Scene;
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
        let scene = Scene::by_chance(&mut random);
        let world = World::of(&inner, scene)?;
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

/// Runs seeds until one is wrong.
fn run_all(name: &str, run: impl Fn(u64) -> Outcome) -> Counts {
    let mut counts = Counts::default();
    let seeds = seeds(500);
    for seed in seeds.clone() {
        let outcome = run(seed);
        counts.add(outcome.counts);
        if let Err(wrong) = outcome.verdict {
            let shown = if seeds.end - seeds.start == 1 { usize::MAX } else { 60 };
            let (count, events) = (outcome.trace.len(), outcome.trace.tail(shown));
            panic!(
                "seed {seed}: {wrong}\nthe last of {count} events:\n{events}\
                 again, with all events: BLOCKLOOM_SIM_SEED={seed} cargo test -p blockloom --lib {name}"
            );
        }
    }
    println!("{name}: {seeds:?}: {counts:?}");
    counts
}

#[test]
fn everything_at_once_keeps_bytes_and_bitmaps() {
    run_all("everything_at_once", run);
}

#[test]
fn a_crash_at_any_point_leaves_what_was_flushed() {
    run_all("a_crash_at_any_point", crash::run);
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in 0..40 {
        for run in [run, crash::run] {
            let (first, again) = (run(seed), run(seed));
            assert_eq!(first.trace.first_difference(&again.trace), None, "seed {seed}");
            assert_eq!(first.verdict, again.verdict, "seed {seed}");
        }
    }
}

#[test]
fn a_request_that_is_never_answered_is_noticed() {
    lag::set_swallows(true);
    let ended = (0..20).map(|seed| run(seed).verdict).find(Result::is_err);
    lag::set_swallows(false);
    let wrong = ended.and_then(Result::err).expect("a lost request in twenty seeds");
    assert!(wrong.contains("deadlock") || wrong.contains("have not ended"), "{wrong}");
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
        Mutation::MapsBeforeData,
    ];
    let mut unnoticed = Vec::new();
    for mutation in all {
        set(Some(mutation));
        let run = if mutation == Mutation::MapsBeforeData { crash::run } else { run };
        let found = (0..500).find_map(|seed| Some((seed, run(seed).verdict.err()?)));
        set(None);
        match found {
            Some((seed, wrong)) => println!("{mutation:?}: seed {seed}: {wrong}"),
            None => unnoticed.push(mutation),
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}
