//! Chains of backups at random, to one target, by one bitmap: with errors, pauses and cancellations at any time,
//! while a guest writes, the graph changes and other jobs run. Whenever one is complete, the target shows what the
//! drive did at its instant, whatever became of those before it: a backup that fails loses nothing that is dirty.
//!
//! `BLOCKLOOM_BACKUP_SEED` runs one seed, `BLOCKLOOM_BACKUP_SEEDS` that many.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::random::World;
use super::super::scene::{BLOCK, Over, Slow, dirty, disk, load_drive, of_drive, shown, shown_by};
use crate::bitmap::Granularity;
use crate::block_on;
use crate::graph::{Action, BitmapRef, ChildDecl, NodeDecl};
use crate::job::{
    BackupSpec, BackupSync as S, BitmapMode as M, JobEnd, JobHandle, JobKind, JobSpec, JobStatus,
    OnCbwError, OnError,
};

const SEEDS: u64 = 12;
const ROUNDS: usize = 8;

/// What came of the backups of a seed.
#[derive(Debug, Default)]
struct Counts {
    completed: usize,
    cancelled: usize,
    failed: usize,
}

fn spec(world: &mut World, is_first: bool) -> (JobSpec, Option<M>) {
    let modes = [M::OnSuccess, M::Never, M::Always];
    let mode = world.random.pick(&modes).unwrap_or(M::OnSuccess);
    let (sync, mode) = match (is_first, world.random.below(4)) {
        (true, _) => (S::Full, M::OnSuccess),
        (false, 0) => (S::Full, if mode == M::Never { M::Always } else { mode }),
        (false, 1) => (S::Incremental, M::OnSuccess),
        (false, _) => (S::Bitmap, mode),
    };
    let granularity = [None, Some(512), Some(16 << 10), Some(256 << 10)];
    let granularity = world.random.pick(&granularity).flatten();
    let granularity = granularity.map(|bytes| Granularity::from_bytes(bytes).expect("a power"));
    let on_cbw_error =
        if world.random.one_in(2) { OnCbwError::BreakSnapshot } else { OnCbwError::default() };
    let backup = BackupSpec {
        sync,
        bitmap: Some(BitmapRef::of_drive("vda", "b")),
        bitmap_mode: Some(mode),
        granularity,
        on_cbw_error,
        ..BackupSpec::of("vda", "archive")
    };
    let errors = [OnError::Report, OnError::Ignore, OnError::Stop, OnError::StopForSpace];
    let spec = JobSpec {
        speed: [0, 1 << 20, 64 << 20][world.random.below(3) as usize],
        on_error: world.random.pick(&errors).unwrap_or_default(),
        ..JobSpec::new("backup", JobKind::Backup(backup))
    };
    (spec, Some(mode))
}

/// Another job beside it, which is left to itself.
fn other(world: &mut World) -> Option<JobHandle> {
    let spec = JobSpec { on_error: OnError::Ignore, ..JobSpec::new("job", world.kind()) };
    block_on(world.host.start_job(spec)).ok()
}

fn finish(world: &mut World, backup: &JobHandle, other: Option<JobHandle>) -> JobEnd {
    let _ = backup.set_speed(0);
    if let Some(job) = &other {
        if world.settle(job) == JobStatus::Ready {
            let _ = job.complete();
        }
        world.end_of(job);
    }
    world.end_of(backup)
}

fn seed(seed: u64, counts: &mut Counts) {
    let mut world = World::new(seed);
    let slow = Slow { time: Duration::from_micros(50), failures: Arc::clone(&world.failures) };
    let node = |name: &str, driver, children| {
        Action::AddNode(NodeDecl { name: name.into(), driver, children })
    };
    assert!(world.act(node("store", Arc::new(disk()), vec![])));
    let children = vec![ChildDecl::filtered("store")];
    assert!(world.act(node("archive", Arc::new(slow), children)));
    let mut expect = shown(&world.host, "vda");
    let mut is_first = true;
    for round in 0..ROUNDS {
        let at = format!("seed {seed}, round {round}");
        let (spec, mode) = spec(&mut world, is_first);
        let instant = expect.clone();
        let before: BTreeSet<u64> = dirty(&world.host, &of_drive()).into_iter().collect();
        let backup = block_on(world.host.start_job(spec)).expect("a backup");
        let over = AtomicBool::new(false);
        let (written, end) = std::thread::scope(|scope| {
            let (drive, over) = (world.host.drive("vda").expect("a drive"), &over);
            let guest = scope.spawn(move || load_drive(&drive, over));
            let ended = Over(over);
            if world.random.one_in(3) {
                world.failures.store(world.random.below(3) as u32 + 1, Ordering::SeqCst);
            }
            let other = if world.random.one_in(2) { other(&mut world) } else { None };
            for _ in 0..world.random.below(4) {
                world.bother(&backup);
            }
            let end = finish(&mut world, &backup, other);
            world.failures.store(0, Ordering::SeqCst);
            drop(ended);
            (guest.join().expect("a guest"), end)
        });
        let mut blocks = BTreeSet::new();
        for (block, value) in written {
            expect[(block * BLOCK) as usize..((block + 1) * BLOCK) as usize].fill(value);
            blocks.insert(block);
        }
        assert!(shown(&world.host, "vda") == expect, "{at}: a guest sees what it did not write");
        let now: BTreeSet<u64> = dirty(&world.host, &of_drive()).into_iter().collect();
        assert!(blocks.is_subset(&now), "{at}: what was written is called clean");
        match end {
            JobEnd::Completed => {
                counts.completed += 1;
                is_first = false;
                let archive = shown_by(&world.host, "store");
                let differs = archive.iter().zip(&instant).position(|(is, was)| is != was);
                let differs = differs.map(|byte| byte as u64 / BLOCK);
                assert_eq!(differs, None, "{at}: the backup is not of its instant, {mode:?}");
            }
            JobEnd::Cancelled => counts.cancelled += 1,
            JobEnd::Failed(_) => counts.failed += 1,
        }
        let is_kept = mode == Some(M::Never)
            || (mode == Some(M::OnSuccess) && !matches!(end, JobEnd::Completed));
        assert!(!is_kept || before.is_subset(&now), "{at}: {mode:?}, {end:?}: bits are lost");
        assert!(world.host.jobs().is_empty(), "{at}");
    }
    world.host.shutdown().expect("an end in order");
}

#[test]
fn what_is_complete_is_of_its_instant() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let mut counts = Counts::default();
    if let Some(one) = number("BLOCKLOOM_BACKUP_SEED") {
        seed(one, &mut counts);
        return;
    }
    for at in 0..number("BLOCKLOOM_BACKUP_SEEDS").unwrap_or(SEEDS) {
        seed(at, &mut counts);
    }
    println!("{counts:?}");
    let Counts { completed, cancelled, failed } = counts;
    assert!(completed > 0 && cancelled > 0 && failed > 0, "{counts:?}");
}
