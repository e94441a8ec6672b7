//! The host's jobs on images: streams, commits, mirrors, backups and populations in all their modes, on targets that are
//! shorter than what is copied, too; one after the other, at once and in groups, beside guests, snapshots and filters that come and go; paused, cancelled, with errors; and power
//! that is lost at any event of it.
//!
//! | file | idea |
//! |---|---|
//! | `past.rs`, `left.rs` | what outlives a host; what the next one finds |
//! | `world.rs`, `changer.rs`, `shape.rs` | a host that runs; its graphs; who shows whom |
//! | `guest.rs`, `ledger.rs` | who writes; what drives may show by that |
//! | `round.rs`, `plan.rs`, `targets.rs`, `attend.rs` | a round of jobs; which ones; what they copy to; what is asked of each |
//! | `copied.rs`, `populated.rs`, `settle.rs` | what is owed when they have ended; how the next round begins |
//! | `meddle.rs` | changes of the graph beside jobs |
//! | `bitmaps.rs` | what is owed to bitmaps |
//!
//! - *Views*: whatever a job does and however it ends, each read of a drive shows what its guests wrote, or what was
//!   there.
//! - *Bitmaps*, of drives and nodes: a clean sector shows what it showed when the bitmap was clean, and no guest has
//!   written it since; where nothing failed, a dirty one was touched by a guest, or by a job that writes below the
//!   view, and not by a copy that leaves it as it is. What a backup or mirror takes from a bitmap is in its target.
//! - *Backups*: one that is complete holds what the drive showed at its instant, also after a loss of power; one over
//!   what the drive showed where its bitmap is clean is whole.
//! - *Populations*: where the two differ is dirty once the job has ended well; where nothing failed, nothing else is for
//!   its sake.
//! - *Groups*: all jobs of one end well, or none does. No job leaves anything in the graph.
//! - *Crashes*: what was flushed is there, in the chain that the images name; they have leaks, and nothing worse. A
//!   bitmap that is kept is never clean on trust.
//!
//! A write of a job that fails half-way may damage what shows: that sector is dirty then.

mod attend;
mod bitmaps;
mod changer;
mod copied;
mod guest;
mod ledger;
mod left;
mod meddle;
mod past;
mod plan;
mod populated;
mod round;
mod settle;
mod shape;
mod targets;
mod world;

use std::rc::Rc;

use super::super::mutation::{Mutation, set};
use crate::error::ErrorKind;
use crate::io::sim::{Random, Simulation, Trace};
use left::Life;
use past::Past;
use round::Hazard;
use world::Disk;

/// What may stand against a job or another change of the graph: somebody else's permissions, places and jobs.
const REFUSED: [ErrorKind; 6] = [
    ErrorKind::InUse,
    ErrorKind::Invalid,
    ErrorKind::NotFound,
    ErrorKind::NotPermitted,
    ErrorKind::NotSupported,
    ErrorKind::Busy,
];
/// What may stand against the end of a job: that which stands in its way, and, beside other jobs, what those have
/// done: two that do the same cannot end together.
const BROKEN: [ErrorKind; 2] = [ErrorKind::InUse, ErrorKind::NotFound];

/// Kinds of jobs, as they are counted.
const KINDS: [&str; 5] = ["stream", "commit", "mirror", "backup", "populate"];

/// How often what was tried came to what.
#[derive(Clone, Debug, Default)]
struct Counts {
    /// Jobs by kind: completed, cancelled, failed.
    ends: [[u64; 3]; KINDS.len()],
    refused: u64,
    /// Groups of jobs that ended well, and that did not.
    groups: [u64; 2],
    pivots: u64,
    fleeced: u64,
    changes: u64,
    node_bitmaps: u64,
    /// Backups that were complete, and those that were looked at again.
    backups: u64,
    left: u64,
    crashed: u64,
    /// Nodes that a job has made as long as what it copies to them.
    grown: u64,
    /// The bitmaps that are kept, of a drive and of a node: came back as they were stored, all dirty, inconsistent.
    kept: [[u64; 3]; 2],
}

impl Counts {
    fn end(&mut self, kind: &str, how: usize) {
        if let Some(at) = KINDS.iter().position(|other| *other == kind) {
            self.ends[at][how] += 1;
        }
    }

    fn add(&mut self, other: &Self) {
        for (sum, more) in self.ends.iter_mut().flatten().zip(other.ends.iter().flatten()) {
            *sum += more;
        }
        self.groups.iter_mut().zip(other.groups).for_each(|(sum, more)| *sum += more);
        for (sum, more) in self.kept.iter_mut().flatten().zip(other.kept.iter().flatten()) {
            *sum += more;
        }
        self.grown += other.grown;
        self.refused += other.refused;
        self.pivots += other.pivots;
        self.fleeced += other.fleeced;
        self.changes += other.changes;
        self.node_bitmaps += other.node_bitmaps;
        self.backups += other.backups;
        self.left += other.left;
        self.crashed += other.crashed;
    }
}

/// What came of a seed.
struct Outcome {
    verdict: Result<(), String>,
    trace: Trace,
    counts: Counts,
    story: String,
}

/// Hosts one after the other on the same files.
fn run_seed(seed: u64, crashes: bool) -> Outcome {
    let simulation = Simulation::new(seed);
    let mut random = simulation.random();
    let sectors = if random.one_in(8) { 320 } else { 32 };
    let base_sectors = if random.one_in(3) { random.within(1..sectors) } else { sectors };
    let past = Rc::new(Past::new(&simulation, (sectors, base_sectors), random.one_in(2)));
    let verdict = run_lives(&past, &mut random, crashes);
    let counts = past.counts.borrow().clone();
    Outcome { verdict, trace: simulation.trace(), counts, story: past.story() }
}

fn run_lives(past: &Rc<Past>, random: &mut Random, crashes: bool) -> Result<(), String> {
    let mut disks = Vec::new();
    let count = if random.one_in(2) { 1 } else { 2 };
    for id in ["d", "e"].into_iter().take(count) {
        let root = past.add_image(random, Some("base"));
        disks.push(Disk::new(id, root, past.first_words()));
    }
    let lives = if crashes { random.within(2..4) } else { random.within(1..3) };
    for life in 0..lives {
        let is_last = life + 1 == lives;
        let hazard = match crashes {
            false if is_last && lives > 1 => Hazard::Nothing,
            false => Hazard::Failures,
            true if !is_last && random.one_in(3) => Hazard::Syncs,
            true => Hazard::Nothing,
        };
        let most = if random.one_in(2) { 500 } else { 4000 };
        let crash = (crashes && !is_last).then(|| random.within(20..most));
        let rounds = if is_last && lives > 1 { 1 } else { random.within(1..5) };
        let life = Life { is_first: life == 0, rounds, hazard, crash };
        life.run(past, &disks, Random::new(random.next()))?;
    }
    Ok(())
}

/// Runs seeds until one is wrong.
fn check(name: &str, crashes: bool, count: u64) -> Counts {
    let mut counts = Counts::default();
    for seed in super::seeds(count) {
        let outcome = run_seed(seed, crashes);
        counts.add(&outcome.counts);
        if let Err(wrong) = outcome.verdict {
            let (count, story) = (outcome.trace.len(), outcome.story);
            panic!(
                "seed {seed}: {wrong}\n{story}\nafter {count} events\nagain: BLOCKLOOM_SIM_SEED={seed} cargo \
                 test -p blockloom --lib {name}"
            );
        }
    }
    println!("{name}: {counts:?}");
    counts
}

#[test]
fn jobs_on_images_alter_nothing_that_is_seen() {
    let counts = check("jobs_on_images_alter_nothing", false, 200);
    if super::number("BLOCKLOOM_SIM_SEED").is_none() {
        assert!(counts.ends.iter().flatten().all(|count| *count > 0), "{counts:?}");
        assert!(counts.ends[4][0] > 10 && counts.grown > 10, "{counts:?}");
        assert!(counts.groups.iter().all(|count| *count > 10), "{counts:?}");
    }
}

#[test]
fn a_crash_beside_jobs_loses_nothing_that_was_flushed() {
    let counts = check("a_crash_beside_jobs", true, 200);
    if super::number("BLOCKLOOM_SIM_SEED").is_none() {
        assert!(counts.crashed > 30, "{counts:?}");
        let [of_drive, of_node] = counts.kept;
        assert!(of_drive.iter().all(|count| *count > 10), "{counts:?}");
        assert!(of_node.iter().all(|count| *count > 0), "{counts:?}");
    }
}

#[test]
fn broken_rules_of_jobs_are_noticed() {
    let all = [
        (Mutation::ProofsExemptNothing, false),
        (Mutation::BackupsKeepNothing, false),
        (Mutation::FailedBackupsCountAsDone, false),
        (Mutation::EndsWithoutCatchingUp, false),
        (Mutation::PivotsUnflushed, true),
        (Mutation::ClearsBeforeSettling, false),
        (Mutation::TakesNoGuards, false),
    ];
    let mut unnoticed = Vec::new();
    for (mutation, crashes) in all {
        set(Some(mutation));
        let found = (0..400).find_map(|seed| Some((seed, run_seed(seed, crashes).verdict.err()?)));
        set(None);
        match found {
            Some((seed, wrong)) => println!("{mutation:?}: seed {seed}: {wrong}"),
            None => unnoticed.push(mutation),
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}

#[test]
fn a_seed_of_jobs_is_the_same_run_every_time() {
    for (seed, crashes) in (0..20).flat_map(|seed| [(seed, false), (seed, true)]) {
        let (first, again) = (run_seed(seed, crashes), run_seed(seed, crashes));
        assert_eq!(first.trace.first_difference(&again.trace), None, "seed {seed}");
        assert_eq!(first.verdict, again.verdict, "seed {seed}");
    }
}
