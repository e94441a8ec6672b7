//! Damaged images: the seeds of the fuzz targets, and changes of them by chance. Nothing panics, works without
//! end, or takes more memory than is said.
//!
//! A program of its own, as it counts what is allocated. More cases: `BLOCKLOOM_DAMAGE_ROUNDS=100000`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use blockloom_qcow2::testing::Random;
use blockloom_qcow2::testing::fuzz::{MEMORY_MAX_BYTES, TARGETS, Target, damage};

/// Inputs by chance for each target.
const ROUNDS: u64 = 20_000;

/// Counts what is allocated, and the most of it so far.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all is left to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's obligations are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's obligations are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's obligations are the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs a target on an input; says which it was if it fails. Gives its answer, and the most bytes allocated.
fn run(target: &Target, input: &[u8], which: &str) -> (bool, usize) {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let run = target.run;
    let outcome = catch_unwind(|| run(input));
    let most = MOST.load(Ordering::Relaxed) - before;
    let name = target.name;
    let Ok(outcome) = outcome else { panic!("{name}: {which} fails, see above") };
    assert!(most <= MEMORY_MAX_BYTES, "{name}: {which} takes {most} bytes of memory");
    (outcome, most)
}

fn corpus(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name)
}

/// One test, so that nobody else allocates meanwhile.
#[test]
fn damage_is_answered() {
    let rounds = std::env::var("BLOCKLOOM_DAMAGE_ROUNDS").ok();
    let rounds = rounds.map_or(ROUNDS, |rounds| rounds.parse().expect("a number of rounds"));
    for target in &TARGETS {
        let seeds = (target.seeds)();
        for (name, made) in &seeds {
            let path = corpus(target).join(name);
            let seed = std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            assert!(run(target, &seed, name).0, "{}: seed {name} is not accepted", target.name);
            assert!(run(target, made, name).0, "{}: {name}, as made now, is not", target.name);
        }
        let files = std::fs::read_dir(corpus(target)).expect("a corpus");
        let files: Vec<_> = files.map(|file| file.expect("a seed").path()).collect();
        assert!(files.len() >= seeds.len());
        for path in &files {
            run(target, &std::fs::read(path).expect("a seed"), &path.display().to_string());
        }
        let (mut accepted, mut most) = (0, 0);
        for seed in 0..rounds {
            let mut random = Random::new(seed);
            let mut input = seeds[random.below(seeds.len() as u64) as usize].1.clone();
            damage(&mut input, &mut random);
            let (is_accepted, bytes) = run(target, &input, &format!("damage {seed}"));
            accepted += u64::from(is_accepted);
            most = most.max(bytes);
        }
        println!("{}: {accepted} of {rounds} accepted, {most} bytes at most", target.name);
        assert!(accepted * 50 > rounds, "{}: only {accepted} of {rounds} get in", target.name);
    }
}

/// Writes the seeds: `cargo test -p blockloom-tests --test damaged -- --ignored write_seeds`.
#[test]
#[ignore = "writes files"]
fn write_seeds() {
    for target in &TARGETS {
        std::fs::create_dir_all(corpus(target)).expect("a directory");
        for (name, bytes) in (target.seeds)() {
            std::fs::write(corpus(target).join(name), bytes).expect("a seed");
        }
    }
}
