//! Power is lost at every write: workloads on images, recorded once, and what a crash at any point of them may
//! leave.
//!
//! | file | idea |
//! |---|---|
//! | `workload.rs` | a recorded run of a workload: real core, real driver, files of the simulator |
//! | `history.rs` | what its drive may show after a crash |
//! | `replay.rs` | what a crash at a point of the record may leave of the files |
//! | `judge.rs` | one such crash, judged by the engine alone: check, bytes, bitmaps; then repair, and more writes |
//! | `backing.rs` | the same of an image that gets another backing file |
//!
//! Of each point there are a crash that keeps nothing that need not be kept, one that keeps everything, and some
//! that keep what chance says, sector by sector. `BLOCKLOOM_POWER_CRASHES` says how many of these ([`CRASHES`],
//! if it does not). Some of what is left is shown to `qemu-img check`.

mod backing;
mod history;
mod judge;
mod replay;
mod workload;

use std::ops::Range;

use blockloom_qcow2::check::CheckOptions;
use blockloom_qcow2::format::{CompressionType, compressed};
use blockloom_qcow2::snapshots::{self, NewSnapshot};
use blockloom_qcow2::testing::{COMPRESSED, Container, Disk, block_on, tools};

use super::image::{self, Data, Geometry};
use super::oracle::first_word;
use super::world::fill;
use crate::io::sim::{Random, Recorded, SECTOR};
use history::{Progress, Step};
use judge::SNAPSHOT;
use replay::{Files, Replay};
use workload::{Part, Recording};

/// Crashes by chance at each point.
const CRASHES: u64 = 2;
/// What is shown to `qemu-img`, for each workload.
const SHOWN: usize = 30;

const EXTENDED: Geometry = Geometry { cluster_bits: 14, extended: true, ..Geometry::PLAIN };

/// Sectors with their first bytes, in an image that is to be made.
fn own(sectors: impl Iterator<Item = u64>) -> Vec<(u64, Vec<u8>)> {
    let bytes = |sector: u64| (sector * SECTOR as u64, fill(first_word(1, sector)).collect());
    sectors.map(bytes).collect()
}

fn made(part: &Part, sectors: u64, backing: Option<&str>, own: &[(u64, Vec<u8>)]) -> Container {
    image::fresh(part.name, &part.geometry, sectors * SECTOR as u64, backing, own)
}

fn some(random: &mut Random, sectors: u64, most: u64) -> Range<u64> {
    let count = random.within(1..most + 1).min(sectors);
    let first = random.below(sectors - count + 1);
    first..first + count
}

/// `count` steps, and an end in order: writes, of so many sectors at most, and others as often as `others` says.
fn steps(seed: u64, count: usize, (sectors, most): (u64, u64), others: [u64; 3]) -> Vec<Step> {
    let mut random = Random::new(seed);
    let [flushes, zeroes, discards] = others;
    let mut step = |_| match () {
        () if random.one_in(flushes) => Step::Flush,
        () if random.one_in(zeroes) => Step::Zero(some(&mut random, sectors, 3 * most)),
        () if random.one_in(discards) => Step::Discard(some(&mut random, sectors, 3 * most)),
        () => Step::Write(some(&mut random, sectors, most)),
    };
    let mut steps: Vec<Step> = (0..count).map(&mut step).collect();
    steps.push(Step::Close);
    steps
}

/// A crash to be judged, and where it was.
struct Point<'r> {
    recording: &'r Recording,
    progress: Progress,
    files: Files,
}

/// Judges crashes at each point of a recording; returns how many.
fn judge_all(name: &str, recording: &Recording) -> u64 {
    let crashes = super::number("BLOCKLOOM_POWER_CRASHES").unwrap_or(CRASHES);
    let mut replay = Replay::new(recording.files.clone());
    let mut progress = Progress::default();
    let mut random = Random::new(11);
    let mut judged = 0;
    let every = (recording.log.len() * (2 + crashes as usize) / SHOWN).max(1) as u64;
    for (at, recorded) in recording.log.iter().enumerate() {
        replay.add(recorded);
        match recorded {
            Recorded::Says(what) if what % 2 == 0 => progress.begun = *what as usize / 2 + 1,
            Recorded::Says(what) => progress.answered = *what as usize / 2 + 1,
            _ => {}
        }
        for mood in 0..2 + crashes {
            let files = replay.left(mood, &mut random);
            let point = Point { recording, progress, files };
            let told = |wrong: String| {
                let steps = &recording.history.steps[..progress.begun];
                let last = steps.iter().rev().take(6).rev();
                let last: Vec<_> = last.collect();
                format!("{name}, entry {at}, crash {mood}, {progress:?}, after {last:?}: {wrong}")
            };
            let judged_so = recording.judge(&point.files, progress);
            judged_so.map_err(told).unwrap_or_else(|wrong| panic!("{wrong}"));
            if judged % 5 == 0 {
                let gone_on = recording.go_on(&point.files, progress);
                gone_on.map_err(told).unwrap_or_else(|wrong| panic!("{wrong}"));
            }
            if judged % every == 0 {
                show_to_qemu(&point).map_err(told).unwrap_or_else(|wrong| panic!("{wrong}"));
            }
            judged += 1;
        }
    }
    assert_eq!(progress.answered, recording.history.steps.len(), "{name} has ended");
    println!("{name}: {judged} crashes at {} points", recording.log.len());
    judged
}

/// `qemu-img check` finds leaks at most.
#[allow(clippy::disallowed_methods, reason = "a foreign tool looks at real files")]
fn show_to_qemu(point: &Point<'_>) -> Result<(), String> {
    if !tools::have(&["qemu-img"]) {
        return Ok(());
    }
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    for (name, bytes) in &point.files {
        let written = std::fs::write(directory.path().join(name), bytes);
        written.map_err(|error| error.to_string())?;
    }
    for part in point.recording.chain(point.progress) {
        if part.geometry.data != Data::Inside {
            // It looks for the data file somewhere else.
            continue;
        }
        let path = directory.path().join(image::file_name(part.name));
        let found = tools::qemu_check(&path.to_string_lossy());
        let number = |what: &str| found[what].as_u64().unwrap_or(0);
        if number("corruptions") > 0 || number("check-errors") > 0 {
            return Err(format!("qemu-img check of {}: {found}", part.name));
        }
    }
    Ok(())
}

fn alone(geometry: Geometry) -> Vec<Part> {
    vec![Part { name: "base", geometry }]
}

fn over_base(top: Geometry, base: Geometry) -> Vec<Part> {
    vec![Part { name: "top", geometry: top }, Part { name: "base", geometry: base }]
}

fn check(
    name: &str,
    parts: Vec<Part>,
    containers: Vec<Container>,
    steps: Vec<Step>,
    keeps_bitmap: bool,
) {
    let overlay = Geometry { cluster_bits: 10, ..Geometry::PLAIN };
    let recording = workload::record(parts, containers, (steps, overlay), keeps_bitmap);
    let judged = judge_all(name, &recording);
    if super::number("BLOCKLOOM_POWER_CRASHES").is_none() {
        assert!(judged > 500, "{name}: {judged} crashes prove little");
    }
}

#[test]
fn power_is_lost_while_much_is_allocated() {
    for (bits, refcount_bits, direct) in [(9, 16, false), (10, 1, false), (12, 16, true)] {
        let geometry = Geometry { cluster_bits: bits, refcount_bits, direct, ..Geometry::PLAIN };
        let parts = alone(geometry);
        let containers = vec![made(&parts[0], 600, None, &[])];
        let steps = steps(1, 60, (600, 12), [6, 0, 0]);
        check("allocation", parts, containers, steps, false);
    }
}

#[test]
fn power_is_lost_while_an_internal_snapshot_is_left_behind() {
    let parts = alone(Geometry::PLAIN);
    let container = made(&parts[0], 200, None, &own((0..200).filter(|at| at % 5 != 0)));
    let new = NewSnapshot { name: SNAPSHOT.to_vec(), date_seconds: 1, date_nanoseconds: 0 };
    block_on(snapshots::create(&container.file, new, &CheckOptions::default()))
        .expect("a snapshot");
    let steps = steps(2, 60, (200, 8), [6, 12, 8]);
    check("copy-on-write", parts, vec![container], steps, false);
}

#[test]
fn power_is_lost_while_clusters_are_discarded_and_zeroed() {
    for top in [Geometry { cluster_bits: 10, ..Geometry::PLAIN }, EXTENDED] {
        let parts = over_base(top, Geometry::PLAIN);
        let containers = vec![
            made(&parts[0], 200, Some("base"), &own((0..200).step_by(3))),
            made(&parts[1], 150, None, &own(0..150)),
        ];
        let steps = steps(3, 60, (200, 12), [6, 3, 3]);
        check("discard and zero", parts, containers, steps, false);
    }
}

#[test]
fn power_is_lost_while_clusters_are_written_compressed() {
    let direct = Geometry { direct: true, ..EXTENDED };
    for geometry in [Geometry { cluster_bits: 11, ..Geometry::PLAIN }, EXTENDED, direct] {
        let parts = alone(geometry);
        let container = made(&parts[0], 240, None, &own((0..90).step_by(2)));
        let cluster = (1 << geometry.cluster_bits) / SECTOR as u64;
        let mut steps = steps(8, 60, (240, 4 * cluster), [6, 10, 10]);
        // Whole clusters, and parts of some at both ends, which are written as ever.
        let compressed = |step: Step| match step {
            Step::Write(range) if range.start % 3 != 0 => Step::Compress(range),
            step => step,
        };
        steps = steps.into_iter().map(compressed).collect();
        assert!(steps.iter().any(
            |step| matches!(step, Step::Compress(range) if range.end - range.start > 2 * cluster)
        ));
        check("compressing", parts, vec![container], steps, false);
    }
}

/// Puts a compressed cluster of [`COMPRESSED`] bytes at each place.
fn compress(disk: &Disk, places: impl Iterator<Item = u64>) {
    let cluster_bytes = disk.image.cluster_bytes();
    let cluster = vec![COMPRESSED; cluster_bytes as usize];
    let packed = compressed::compress(CompressionType::Deflate, &cluster).expect("it compresses");
    let packed = packed.expect("it gets shorter");
    block_on(async {
        for place in places {
            let (turn, lens) = (disk.image.enter(), [packed.len() as u64]);
            let room = disk.image.prepare_compressed_write(
                &turn,
                &disk.container,
                place * cluster_bytes,
                &lens,
                1,
            );
            let room = room.await.expect("an answer").expect("room");
            disk.container.file.write_now(room.host().0, &packed);
            disk.image.commit(&disk.container, room).await.expect("memory");
        }
        disk.image.close(&disk.container).await.expect("memory");
    });
}

#[test]
fn power_is_lost_while_compressed_clusters_are_rewritten() {
    let geometry = Geometry { cluster_bits: 11, ..Geometry::PLAIN };
    let parts = alone(geometry);
    let container = made(&parts[0], 240, None, &own(0..20));
    let disk = image::open_disk(container, None).expect("an image");
    compress(&disk, 8..56);
    let steps = steps(4, 60, (240, 9), [6, 10, 10]);
    check("compressed", parts, vec![disk.container], steps, false);
}

#[test]
fn power_is_lost_while_a_bitmap_moves_and_is_stored() {
    let kilobyte = Geometry { cluster_bits: 10, ..Geometry::PLAIN };
    let parts = alone(kilobyte);
    let containers = vec![made(&parts[0], 100, None, &own(0..60))];
    let mut all = steps(5, 45, (100, 8), [5, 9, 9]);
    all.insert(15, Step::Snapshot("mid"));
    all.insert(32, Step::Snapshot("top"));
    check("bitmap", parts, containers, all, true);
}

#[test]
fn power_is_lost_while_a_disk_changes_its_size() {
    for top in [Geometry::PLAIN, EXTENDED] {
        // The base is longer at times, and shows nothing of that.
        let parts = over_base(top, Geometry::PLAIN);
        let containers = vec![
            made(&parts[0], 100, Some("base"), &own((0..100).step_by(3))),
            made(&parts[1], 180, None, &own(0..180)),
        ];
        check("resize", parts, containers, resizes(), false);
    }
}

/// Of a disk of 100 sectors, with writes between.
fn resizes() -> Vec<Step> {
    let (mut random, mut all, mut sectors) = (Random::new(6), Vec::new(), 100);
    for round in 0..50 {
        all.push(match round % 5 {
            0 => {
                sectors = random.within(40..300);
                Step::Resize(sectors)
            }
            3 => Step::Flush,
            _ => Step::Write(some(&mut random, sectors, 30)),
        });
    }
    all.push(Step::Close);
    all
}

#[test]
fn power_is_lost_while_a_disk_in_another_file_changes_its_size() {
    for data in [Data::Apart, Data::Raw] {
        let parts = alone(Geometry { cluster_bits: 10, data, ..Geometry::PLAIN });
        let containers = vec![made(&parts[0], 100, None, &own((0..100).step_by(3)))];
        check("resize of a data file", parts, containers, resizes(), false);
    }
}

#[test]
fn power_is_lost_while_data_are_in_another_file() {
    for data in [Data::Apart, Data::Raw] {
        let parts = alone(Geometry { cluster_bits: 10, data, ..Geometry::PLAIN });
        let containers = vec![made(&parts[0], 200, None, &own((0..200).step_by(2)))];
        let steps = steps(7, 60, (200, 12), [6, 5, 5]);
        check("data file", parts, containers, steps, false);
    }
}
