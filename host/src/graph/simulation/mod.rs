//! The real core on the simulator (`io/sim`): drives on a shared base, overlays, filters, copies and
//! claims, bitmap and graph changes, all of them at once, as a seed has it.
//!
//! | file | idea |
//! |---|---|
//! | `scene.rs`, `lag.rs`, `overlay.rs` | a graph by chance; a filter that takes its time and fails; an overlay in files |
//! | `guest.rs`, `jobs.rs`, `changes.rs` | who does something: drives, acting nodes, whoever changes bitmaps and graph |
//! | `shape.rs`, `oracle.rs`, `bitmaps.rs` | what the scenario knows by itself: who stands on whom, what views may show, what is owed to bitmaps |
//! | `world.rs` | one seed: its phases, and the checks between them |
//! | `crash.rs` | one seed that ends in a crash |
//! | `image.rs`, `images.rs`, `judge.rs` | disks that are qcow2 images: how they are made, what they owe when a run ends, a look at them without graph and host |
//! | `blocks.rs`, `compressed.rs` | images that do not fit the blocks of their files; what a write that fails spoils |
//! | `image_zeros.rs` | what a guest zeroed stays zero when the backing gets longer |
//! | `dropped.rs` | flushes of an image that nobody waits for to their end |
//! | `plugins.rs`, `twins.rs`, `backups.rs` | filters that are plugins: compared with their native twins, failing in any call, losing power while they copy |
//! | `works/` | the host's jobs on images, and power that is lost beside them |
//! | `power/` | crashes at every write of recorded workloads on images |
//!
//! # What is checked
//!
//! - *Bytes*: each read, of guests and jobs, shows one of the words that its view may show by then; so does
//!   everything at the end of each phase. After a failure a sector is old, new, or damaged as it was
//!   told. What was proven to leave a view alone is not among its words, so a copy that alters one is seen.
//! - *Bitmaps*: a change is marked when its first byte comes to a disk. At the end of a phase each clean
//!   granule shows what it showed when it was last clean; each one touched is dirty.
//! - *Ends*: every request is answered, every drain ends. Nothing takes so long that it may time out, and
//!   when nothing is left that could happen, whatever waits is a deadlock.
//! - *Crashes*: what was flushed is there, and nothing is that was never written.
//! - *Images*: a crash leaves leaks, which are repaired, and nothing worse; no bitmap counts that was in use; what
//!   was closed in order is exact and clean. After each crash everything goes on, and ends in order.
//! - *Precision*: where there are but copies, all bitmaps stay clean. (More of it is the model's matter.)
//!
//! What a view may show is kept apart from the core: the oracle hears what was asked and answered, and
//! from `lag` and the simulated files what was damaged, and follows the graph by its own `shape`.
//!
//! # Replaying a seed, running more
//!
//! A seed that fails prints how to run it alone, with all of its events. `BLOCKLOOM_SIM_SEED=7` runs that
//! seed, `BLOCKLOOM_SIM_SEEDS=100000` that many, of each test that takes seeds.
//!
//! # Writing a scenario
//!
//! Another driver or filter is another `Kind` of `scene.rs`; another request is an arm in `guest.rs` or
//! `jobs.rs`, which tells the oracle when a change begins and how it ended; another change of the graph is a
//! `Plan` of `changes.rs` with the shape after it. What runs must choose by its own `Random`, wait by
//! the worker's timers, and walk no hash table: `a_seed_is_the_same_run_every_time` tells if not.
//!
//! # What is left out
//!
//! Media are not ejected, no view is smaller than the others, and no drive's change of root is claimed to
//! keep its view: the model has all that. Crashes come without changes of the graph, but for snapshots and
//! resizes of images, and nobody writes to what resizes have added (`power/` does). A commit reads
//! through two filters that copy on read, one above the other, in scenes of their own: they are refused
//! (`copies_that_cause_copies_wait_in_no_circle`).
//!
//! # Broken rules
//!
//! `mutation.rs` breaks one rule at a time; `broken_rules_are_noticed` needs a few seeds for each, and so do
//! `broken_rules_of_backups_are_noticed` and `rules_that_let_too_much_pass_are_noticed` for those of plugins:
//!
//! | rule | noticed by |
//! |---|---|
//! | marks nothing; marks after completion | a change comes to a disk, and is clean |
//! | discards do not mark | a clean sector shows zeros |
//! | nothing above the class; too much exempt | a granule of another view was touched, and is clean |
//! | a watch that begins late, or is never stale; a claim downgraded | a view shows what had been overwritten |
//! | void proofs kept | a clean sector shows damage |
//! | proven writes stale nothing; no guards | a view shows what had been overwritten |
//! | zeros without the backing | a view shows zeros that nobody wrote |
//! | nothing drained; rollback by replacement | a granule was touched, and is clean |
//! | any order of sources | copies wait for each other until their time is over |
//! | a mapping before its data | after a crash, bytes of nobody in place of the backing's |
//! | rules by which no plugin is asked; no guards | a backup holds what came later, or is said to be broken |
//! | bitmaps that a fault forgets | the same: the point in time is another one |
//! | flushes of plugins that are none | after a crash, a complete backup lacks bytes |
//!
//! `broken_rules_of_jobs_are_noticed`, of `works/`:
//!
//! | rule | noticed by |
//! |---|---|
//! | proven writes mark all that they enter | a granule is dirty that nobody has touched |
//! | a backup copies nothing before writes | it holds what came later |
//! | a backup that has failed counts as done | a sector was written, and is clean |
//! | a target takes the source's place before it has caught up; trackers cleared too early; no guards | a view shows what had been overwritten |
//! | a target takes the source's place unflushed | after a crash, a complete copy lacks bytes |
//!
//! Rules of the driver and the engine of images were broken by hand, each by itself; `power` is the crashes at
//! every write, `images` the seeds here, `model` that of `graph/model`:
//!
//! | rule | noticed by | how it shows |
//! |---|---|---|
//! | mappings are written without a sync of their data | `power`, `images` | a mapping past the end; other bytes than were flushed |
//! | refcounts after the mappings that need them | `power`, `images` | a used cluster with refcount 0 |
//! | a refcount table before its blocks | `power` | refcounts that are none |
//! | the header names an L1 table that is not counted yet | `power` | a used cluster with refcount 0 |
//! | a freed cluster is given away before that is durable | `images` (seed 213) | flushed bytes are somebody else's |
//! | a new cluster has nothing before what is written | `power` | zeros where there was something |
//! | what is filled around a write is not announced | `model` (seed 1938) | a stale claim succeeds |
//! | a discard lets the backing show | `power` | the backing's bytes where zeros were flushed |
//! | what is added is not zeroed; is zeroed after the size is told | `power` | the backing's bytes behind the former end |
//! | what a backing shows is called zero | all | a view shows zeros that nobody wrote |
//! | entries of bitmaps that are not in use | `power`, `images` | a bitmap counts while it is in use |
//! | bitmaps that are loaded are not marked as in use | `images` | the same, in a crash after an end in order |
//! | the header names a bitmap directory before that is counted | `power` | a used cluster with refcount 0 |
//! | a bitmap that did not come to another image is still stored | `images` (seed 19) | a bitmap counts that nobody keeps |
//! | a snapshot does not flush what its drive wrote | `power`, `images` | flushed bytes are not there |

mod backups;
mod bitmaps;
mod blocks;
mod changes;
mod compressed;
mod crash;
mod dropped;
mod guest;
mod image;
mod image_zeros;
mod images;
mod jobs;
mod judge;
mod lag;
mod oracle;
mod overlay;
mod plugins;
mod power;
mod scene;
mod shape;
mod twins;
mod works;
mod world;

use std::pin::Pin;
use std::rc::Rc;

use super::mutation::{Mutation, set};
use crate::io::sim::{Random, Simulation, Trace};
use scene::Scene;
use world::{Counts, EndOfWorld, Verdict, World};

/// What came of a seed.
struct Outcome {
    verdict: Verdict,
    trace: Trace,
    counts: Counts,
    scene: String,
}

impl Outcome {
    fn of(verdict: Verdict, simulation: &Simulation) -> Self {
        let (counts, scene) = world::current()
            .map(|world| (world.counts.get(), world.scene.to_string()))
            .unwrap_or_default();
        Self { verdict, trace: simulation.trace(), counts, scene }
    }
}

/// Runs one seed of everything at once.
fn run(seed: u64) -> Outcome {
    run_scene(seed, Scene::by_chance, |world, random| Box::pin(world.live(random)))
}

/// Runs one seed of everything at once with plugins that fail in any of their calls.
fn run_failing_plugins(seed: u64) -> Outcome {
    run_scene(seed, Scene::of_plugins, |world, random| Box::pin(world.live_with_faults(random)))
}

/// Runs one seed of copies alone, with plugins that fail.
fn run_copies_of_failing_plugins(seed: u64) -> Outcome {
    run_scene(seed, Scene::of_plugins_for_copies, |world, random| {
        Box::pin(world.only_copy_with_faults(random))
    })
}

/// Runs one seed of everything at once, on images.
fn run_images(seed: u64) -> Outcome {
    run_scene(seed, Scene::of_images, |world, random| Box::pin(world.live_on_images(random)))
}

/// Runs one seed of copies alone, on images.
fn run_copies_of_images(seed: u64) -> Outcome {
    run_scene(seed, Scene::of_images_for_copies, |world, random| Box::pin(world.only_copy(random)))
}

/// Runs one seed of copies alone.
fn run_copies(seed: u64) -> Outcome {
    run_scene(seed, Scene::for_copies, |world, random| Box::pin(world.only_copy(random)))
}

/// Runs one seed with nodes whose copies could wait for each other, if the graph were not refused.
fn run_circles(seed: u64) -> Outcome {
    run_scene(seed, Scene::with_circles, |world, random| Box::pin(world.live(random)))
}

type Living = Pin<Box<dyn Future<Output = Verdict>>>;

fn run_scene(
    seed: u64,
    scene: fn(&mut Random) -> Scene,
    live: fn(Rc<World>, Random) -> Living,
) -> Outcome {
    let simulation = Simulation::new(seed);
    let mut random = simulation.random();
    let _end = EndOfWorld;
    let inner = simulation.clone();
    let ran = simulation.run(async move {
        let world = World::of(&inner, scene(&mut random))?;
        live(world, random).await
    });
    let verdict = ran.unwrap_or_else(|stop| Err(stop.to_string()));
    Outcome::of(verdict, &simulation)
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
                "seed {seed}: {wrong}\n{}\nthe last of {count} events:\n{events}\
                 again, with all events: BLOCKLOOM_SIM_SEED={seed} cargo test -p blockloom --lib {name}",
                outcome.scene,
            );
        }
    }
    println!("{name}: {seeds:?}: {counts:?}");
    counts
}

#[test]
fn everything_at_once_keeps_bytes_and_bitmaps() {
    let counts = run_all("everything_at_once", run);
    assert_eq!(counts.circles, 0, "no scene is refused");
    // Seeds in which nothing happens prove nothing.
    if number("BLOCKLOOM_SIM_SEED").is_none() {
        let Counts { writes, reads, failed, copies, claims, stale, .. } = counts;
        let all = [writes, reads, failed, copies, claims, stale, counts.bitmap_changes];
        assert!(all.iter().all(|count| *count > 1000), "{counts:?}");
        assert!(counts.kinds.iter().all(|count| *count > 50), "{counts:?}");
    }
}

#[test]
fn everything_at_once_on_images() {
    let counts = run_all("everything_at_once_on_images", run_images);
    if number("BLOCKLOOM_SIM_SEED").is_none() {
        let Counts { writes, reads, failed, copies, claims, stale, .. } = counts;
        let all = [writes, reads, failed, copies, claims, stale, counts.bitmap_changes];
        assert!(all.iter().all(|count| *count > 1000), "{counts:?}");
        assert!(counts.kinds.iter().all(|count| *count > 50), "{counts:?}");
    }
}

#[test]
fn everything_at_once_with_plugins_that_fail() {
    let counts = run_all("everything_at_once_with_plugins", run_failing_plugins);
    if number("BLOCKLOOM_SIM_SEED").is_none() {
        assert!(counts.plugin_faults > 200, "{counts:?}");
    }
}

#[test]
fn copies_alone_of_plugins_that_fail_dirty_nothing() {
    let counts = run_all("copies_alone_of_plugins", run_copies_of_failing_plugins);
    if number("BLOCKLOOM_SIM_SEED").is_none() {
        assert!(counts.plugin_faults > 200, "{counts:?}");
    }
}

#[test]
fn copies_alone_on_images_dirty_nothing() {
    run_all("copies_alone_on_images", run_copies_of_images);
}

/// A commit holds what its write enters (the source below the lower of two copy-on-read filters) while its
/// read comes to need the source below the upper one; a guest's read holds that, and comes to need the
/// lower one. Such a graph is refused; what is left of it, or is not refused, waits for nobody for ever.
#[test]
fn copies_that_cause_copies_wait_in_no_circle() {
    let counts = run_all("copies_that_cause_copies", run_circles);
    if number("BLOCKLOOM_SIM_SEED").is_none() {
        assert!(counts.circles > 20 && counts.copies > 1000, "{counts:?}");
    }
}

#[test]
fn copies_alone_dirty_nothing() {
    let counts = run_all("copies_alone", run_copies);
    assert_eq!(counts.circles, 0, "no scene is refused");
}

#[test]
fn a_crash_at_any_point_leaves_what_was_flushed() {
    run_all("a_crash_at_any_point", crash::run);
}

#[test]
fn a_crash_leaves_images_that_go_on() {
    run_all("a_crash_leaves_images", images::run);
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in 0..40 {
        for run in [run, crash::run, run_images, images::run] {
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
    let words = ["deadlock", "have not ended", "does not end"];
    assert!(words.iter().any(|word| wrong.contains(word)), "{wrong}");
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
        Mutation::AllowsAnyOrder,
    ];
    let mut unnoticed = Vec::new();
    for mutation in all {
        set(Some(mutation));
        let run = match mutation {
            Mutation::MapsBeforeData => crash::run,
            Mutation::AllowsAnyOrder => run_circles,
            _ => run,
        };
        let found = (0..500).find_map(|seed| Some((seed, run(seed).verdict.err()?)));
        set(None);
        match found {
            Some((seed, wrong)) => println!("{mutation:?}: seed {seed}: {wrong}"),
            None => unnoticed.push(mutation),
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}
