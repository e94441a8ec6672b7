//! What does it cost to find where a guest range lies, when its L2 slice is in the cache?
//!
//! Random 4 KiB of an image whose 8192 clusters of 64 KiB are all allocated: the look itself, and with it
//! the count of the request in flight; and how that scales with two threads. `cargo bench -p blockloom-qcow2 --features testing --bench map` runs
//! criterion's benches, then measures the standing targets once more, best of 20, and prints a table of
//! them. A missed target is printed, not failed: a shared machine proves nothing.

#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use blockloom_qcow2::Image;
use blockloom_qcow2::image::{OpenOptions, Step};
use blockloom_qcow2::testing::{Geometry, MemoryStorage, Random, blank_image, block_on};
use criterion::{Criterion, criterion_group};

const CLUSTERS: u64 = 8192;
const CLUSTER_BYTES: u64 = 64 << 10;
const SIZE_BYTES: u64 = CLUSTERS * CLUSTER_BYTES;
const REQUEST_BYTES: u64 = 4096;
const LOOKS_PER_SAMPLE: u64 = 100_000;
const SAMPLES: usize = 20;

/// An image that maps every cluster. Guest data are not written: nobody reads them.
fn allocated_image() -> Image {
    block_on(async {
        let storage = MemoryStorage::new(blank_image(&Geometry::usual(SIZE_BYTES)));
        let options = OpenOptions { writable: true, ..OpenOptions::default() };
        let image = Image::open(&storage, &options).await.expect("an image");
        let turn = image.enter();
        let mut offset = 0;
        while offset < SIZE_BYTES {
            let left = SIZE_BYTES - offset;
            match image.prepare_write(&turn, &storage, offset, left).await.expect("room") {
                Step::InPlace { len, .. } => offset += len,
                Step::Allocate(allocation) => {
                    offset += allocation.len();
                    image.commit(&storage, allocation).await.expect("a mapping");
                }
            }
        }
        image.flush(&storage).await.expect("a flush");
        drop(turn);
        image
    })
}

/// Offsets to look at in turn; few enough not to displace the tables from the processor's caches.
fn offsets() -> Vec<u64> {
    let mut random = Random::new(1);
    (0..1024).map(|_| random.below(SIZE_BYTES / REQUEST_BYTES) * REQUEST_BYTES).collect()
}

/// Time of so many looks.
fn time_of(count: u64, offsets: &[u64], look: impl Fn(u64) -> bool) -> Duration {
    let begin = Instant::now();
    let mut all_found = true;
    for &offset in offsets.iter().cycle().take(count as usize) {
        all_found &= look(black_box(offset));
    }
    let elapsed = begin.elapsed();
    assert!(all_found, "every offset is mapped, and its slice cached");
    elapsed
}

/// A measurement: name, target in nanoseconds, what is done for an offset.
type Contestant<'i> = (&'static str, Option<f64>, Box<dyn Fn(u64) -> bool + 'i>);

fn contestants(image: &Image) -> [Contestant<'_>; 4] {
    let read =
        |turn: &_, offset| black_box(image.map_cached(turn, offset, REQUEST_BYTES)).is_some();
    let write = |turn: &_, offset| {
        black_box(image.prepare_write_cached(turn, offset, REQUEST_BYTES)).is_some()
    };
    let (for_reads, for_writes) = (image.enter(), image.enter());
    [
        ("L2 lookup, cached", Some(30.0), Box::new(move |offset| read(&for_reads, offset))),
        ("write in place, cached", None, Box::new(move |offset| write(&for_writes, offset))),
        ("L2 lookup as a request", None, Box::new(move |offset| read(&image.enter(), offset))),
        (
            "write in place as a request",
            None,
            Box::new(move |offset| write(&image.enter(), offset)),
        ),
    ]
}

fn bench_looks(criterion: &mut Criterion) {
    let (image, offsets) = (allocated_image(), offsets());
    for (name, _, look) in contestants(&image) {
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|count| time_of(count, &offsets, &look));
        });
    }
}

fn targets() {
    let (image, offsets) = (allocated_image(), offsets());
    println!("{:32} {:>11} {:>9}", "best of 20 samples", "measured ns", "target ns");
    for (name, target_ns, look) in contestants(&image) {
        let sample = || time_of(LOOKS_PER_SAMPLE, &offsets, &look);
        let best = (0..SAMPLES).map(|_| sample()).min().unwrap_or_default();
        let best_ns = best.as_secs_f64() * 1e9 / LOOKS_PER_SAMPLE as f64;
        let verdict = target_ns.map(|target| if best_ns <= target { "PASS" } else { "FAIL" });
        let target = target_ns.map_or_else(String::new, |target| target.to_string());
        println!("{name:32} {best_ns:11.1} {target:>9} {}", verdict.unwrap_or_default());
    }
}

/// Requests that two threads look up in a time over those of one thread.
fn scaling(images: [&Image; 2]) -> f64 {
    let offsets = offsets();
    let look = |image: &Image, offset| {
        black_box(image.map_cached(&image.enter(), offset, REQUEST_BYTES)).is_some()
    };
    let alone = || time_of(LOOKS_PER_SAMPLE, &offsets, |offset| look(images[0], offset));
    let together = || {
        let barrier = Barrier::new(2);
        let run = |image| {
            barrier.wait();
            time_of(LOOKS_PER_SAMPLE, &offsets, |offset| look(image, offset))
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| run(images[1]));
            run(images[0]).max(other.join().expect("a thread"))
        })
    };
    let mut best = [Duration::MAX; 2];
    for _ in 0..SAMPLES {
        best = [best[0].min(alone()), best[1].min(together())];
    }
    2.0 * best[0].as_secs_f64() / best[1].as_secs_f64()
}

/// The control shares nothing: what it loses is the machine's.
fn print_scaling() {
    let (image, other) = (allocated_image(), allocated_image());
    let (one, two) = (scaling([&image, &image]), scaling([&image, &other]));
    println!("two threads over one: {one:.2} on one image, {two:.2} on two images");
    println!("one image over two: {:.2}", one / two);
}

criterion_group!(benches, bench_looks);

fn main() {
    let has = |word: &str| std::env::args().any(|argument| argument == word);
    if !has("--table") {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
    if has("--bench") {
        targets();
        print_scaling();
    }
}
