//! Costs of the dirty bitmaps at 1 TiB and 64 KiB a granule (2 MiB of bits), each bench with its
//! question.
//!
//! `cargo bench --bench bitmap` runs criterion's benches, then measures the standing targets once
//! more, best of 20, and prints a table of them. A missed target is printed, not failed: a shared
//! machine proves nothing.

#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockloom::bitmap::{Granularity, Granules, MarkList};
use criterion::{Criterion, criterion_group};

const VIEW_BYTES: u64 = 1 << 40;
const GRANULE_BYTES: u64 = Granularity::DEFAULT.bytes();
const GRANULES: u64 = VIEW_BYTES / GRANULE_BYTES;
const WRITE_BYTES: u64 = 4096;

fn clean() -> Granules {
    Granules::new(VIEW_BYTES, Granularity::DEFAULT).expect("2 MiB")
}

/// A set with every `step`-th granule dirty.
fn every(step: usize) -> Granules {
    let granules = clean();
    for granule in (0..GRANULES).step_by(step) {
        granules.mark(granule * GRANULE_BYTES, 1);
    }
    granules
}

fn full() -> Granules {
    let granules = clean();
    granules.set_all();
    granules
}

fn mark_list(bitmaps: usize) -> MarkList {
    (0..bitmaps).map(|_| Arc::new(clean())).collect()
}

/// Offset of the `turn`-th small write of a load that goes round 16 neighbouring words.
fn hot_offset(turn: u64) -> u64 {
    turn % 1024 * GRANULE_BYTES
}

/// Time of `count` marks that each find their granule clean, granule after granule; clearing is not
/// counted.
fn mark_clean(granules: &Granules, count: u64) -> Duration {
    let mut spent = Duration::ZERO;
    let mut left = count;
    while left > 0 {
        let batch = left.min(1024);
        granules.clear_range(0, 1024 * GRANULE_BYTES);
        let start = Instant::now();
        for turn in 0..batch {
            granules.mark(black_box(hot_offset(turn)), black_box(WRITE_BYTES));
        }
        spent += start.elapsed();
        left -= batch;
    }
    spent
}

/// Time of `count` calls of `mark(offset)`.
fn mark_hot(count: u64, mark: impl Fn(u64)) -> Duration {
    let start = Instant::now();
    for turn in 0..count {
        mark(black_box(hot_offset(turn)));
    }
    start.elapsed()
}

/// What does a guest write pay for its mark: the first one in a granule, later ones, and large
/// ones?
fn bench_mark(c: &mut Criterion) {
    let mut group = c.benchmark_group("mark");
    let granules = clean();
    group.bench_function("4KiB/clean granule", |b| {
        b.iter_custom(|count| mark_clean(&granules, count));
    });
    let granules = full();
    group.bench_function("4KiB/dirty granule", |b| {
        b.iter_custom(|count| {
            mark_hot(count, |offset| granules.mark(offset, black_box(WRITE_BYTES)))
        });
    });
    group.bench_function("1MiB/16 dirty granules", |b| {
        b.iter_custom(|count| {
            mark_hot(count, |offset| granules.mark(offset, black_box(16 * GRANULE_BYTES)))
        });
    });
    group.finish();
}

/// How does the mark of a dirty granule grow with the bitmaps that watch a node?
fn bench_mark_list(c: &mut Criterion) {
    let mut group = c.benchmark_group("mark list");
    for bitmaps in [0, 1, 16] {
        let list = mark_list(bitmaps);
        list.mark(0, VIEW_BYTES);
        group.bench_function(format!("4KiB/dirty granule/{bitmaps} bitmaps"), |b| {
            b.iter_custom(|count| {
                mark_hot(count, |offset| list.mark(offset, black_box(WRITE_BYTES)))
            });
        });
    }
    group.finish();
}

/// How long is a merge-back or a merge command at work, where little, everything or nothing is new
/// to the target, and what does it cost not to have drained the target?
fn bench_merge(c: &mut Criterion) {
    let mut group = c.benchmark_group("merge 1TiB");
    for (name, source) in [("every 1000th", every(1000)), ("alternating", every(2))] {
        for target_name in ["clean target", "equal target"] {
            let target =
                if target_name == "equal target" { source.copy().expect("2 MiB") } else { clean() };
            let reset = || {
                if target_name == "clean target" {
                    target.clear_all();
                }
            };
            group.bench_function(format!("{name}/{target_name}/concurrent"), |b| {
                b.iter_custom(|count| timed(count, reset, || target.merge_from(&source)));
            });
            group.bench_function(format!("{name}/{target_name}/drained"), |b| {
                b.iter_custom(|count| timed(count, reset, || target.merge_from_drained(&source)));
            });
        }
    }
    group.finish();
}

/// What does merging between 64 KiB and 128 KiB cost, whose granules have to be found run by run?
fn bench_merge_across(c: &mut Criterion) {
    let coarser = Granularity::from_bytes(2 * GRANULE_BYTES).expect("a power of two");
    let coarse = Granules::new(VIEW_BYTES, coarser).expect("1 MiB");
    let mut group = c.benchmark_group("merge 1TiB across granularities");
    group.sample_size(20);
    for (name, step) in [("every 1000th", 1000), ("alternating", 2)] {
        let fine = every(step);
        group.bench_function(format!("{name}/fine to coarse"), |b| {
            b.iter_custom(|count| timed(count, || coarse.clear_all(), || coarse.merge_from(&fine)));
        });
        coarse.clear_all();
        for granule in (0..GRANULES / 2).step_by(step) {
            coarse.mark(granule * coarser.bytes(), 1);
        }
        group.bench_function(format!("{name}/coarse to fine"), |b| {
            b.iter_custom(|count| timed(count, || fine.clear_all(), || fine.merge_from(&coarse)));
        });
    }
    group.finish();
}

/// How long does a count hold up a query?
fn bench_count(c: &mut Criterion) {
    let mut group = c.benchmark_group("count 1TiB");
    for (name, granules) in [("clean", clean()), ("alternating", every(2))] {
        group.bench_function(name, |b| b.iter(|| black_box(&granules).count()));
    }
    group.finish();
}

/// How long does it take a backup to list what it has to copy?
fn bench_ranges(c: &mut Criterion) {
    let mut group = c.benchmark_group("ranges 1TiB");
    group.sample_size(20);
    for (name, granules) in [
        ("clean", clean()),
        ("every 1000th", every(1000)),
        ("alternating", every(2)),
        ("full", full()),
    ] {
        group.bench_function(name, |b| b.iter(|| list_ranges(&granules)));
    }
    group.finish();
}

/// Walks all ranges, looking at each.
fn list_ranges(granules: &Granules) -> u64 {
    black_box(granules).ranges(0..VIEW_BYTES).map(|range| black_box(range).end & 1).sum()
}

/// Time of `count` calls of `work`, each after a `reset` that is not counted.
fn timed<T>(count: u64, reset: impl Fn(), work: impl Fn() -> T) -> Duration {
    let mut spent = Duration::ZERO;
    for _ in 0..count {
        reset();
        let start = Instant::now();
        black_box(work());
        spent += start.elapsed();
    }
    spent
}

/// Shortest time of one of `count` operations, over 20 samples of all of them, in nanoseconds.
fn best_ns(count: u64, sample: impl Fn(u64) -> Duration) -> f64 {
    let best = (0..20).map(|_| sample(count)).min().expect("20 samples");
    best.as_nanos() as f64 / count as f64
}

/// Prints one line of the table of targets.
fn report(what: &str, measured_ns: f64, target_ns: Option<f64>) {
    match target_ns {
        Some(target_ns) => {
            let verdict = if measured_ns <= target_ns { "PASS" } else { "FAIL" };
            let ratio = measured_ns / target_ns;
            println!("{what:<44} {measured_ns:>12.1} {target_ns:>12.0} {ratio:>6.2}  {verdict}");
        }
        None => println!("{what:<44} {measured_ns:>12.1} {:>12} {:>6}", "-", "-"),
    }
}

/// Are the standing targets met?
fn targets() {
    const MARKS: u64 = 200_000;
    println!(
        "\n{:<44} {:>12} {:>12} {:>6}",
        "best of 20 samples", "measured ns", "target ns", "ratio"
    );
    let set = full();
    let mark = |len_bytes| move |set: &Granules, offset| set.mark(offset, black_box(len_bytes));
    let (small, large) = (mark(WRITE_BYTES), mark(16 * GRANULE_BYTES));
    report("mark 4 KiB, clean granule", best_ns(MARKS, |count| mark_clean(&clean(), count)), None);
    let dirty_ns = best_ns(MARKS, |count| mark_hot(count, |offset| small(&set, offset)));
    report("mark 4 KiB, dirty granule", dirty_ns, Some(5.0));
    let dirty_16_ns = best_ns(MARKS, |count| mark_hot(count, |offset| large(&set, offset)));
    report("mark 1 MiB, 16 dirty granules", dirty_16_ns, Some(15.0));
    for (bitmaps, target_ns) in [(1, Some(5.0)), (16, None)] {
        let list = mark_list(bitmaps);
        list.mark(0, VIEW_BYTES);
        let list_ns = best_ns(MARKS, |count| {
            mark_hot(count, |offset| list.mark(offset, black_box(WRITE_BYTES)))
        });
        report(&format!("mark 4 KiB, dirty granule, {bitmaps} bitmap(s)"), list_ns, target_ns);
    }

    let (target, sparse, alternating) = (clean(), every(1000), every(2));
    let once = |work: &dyn Fn()| best_ns(1, |count| timed(count, || target.clear_all(), work));
    let merge = |source: &Granules| target.merge_from(source).expect("equal sizes");
    let merge_drained = |source: &Granules| target.merge_from_drained(source).expect("equal sizes");
    report("count, alternating", once(&|| _ = black_box(alternating.count())), Some(300_000.0));
    report("merge every 1000th into clean", once(&|| merge(&sparse)), Some(300_000.0));
    report(
        "merge alternating into clean, drained",
        once(&|| merge_drained(&alternating)),
        Some(300_000.0),
    );
    report(
        "merge alternating into clean, concurrent",
        once(&|| merge(&alternating)),
        Some(300_000.0),
    );
    report("list ranges, every 1000th", once(&|| _ = black_box(list_ranges(&sparse))), None);
    report("list ranges, alternating", once(&|| _ = black_box(list_ranges(&alternating))), None);
}

criterion_group!(
    benches,
    bench_mark,
    bench_mark_list,
    bench_merge,
    bench_merge_across,
    bench_count,
    bench_ranges
);

fn main() {
    benches();
    Criterion::default().configure_from_args().final_summary();
    if std::env::args().any(|arg| arg == "--bench") {
        targets();
    }
}
