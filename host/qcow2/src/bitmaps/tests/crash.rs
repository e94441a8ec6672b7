//! Power is lost at every point: any part of what was not flushed is there, torn at sectors.

use super::super::{BitmapChange, BitmapImage, Directory, NewBitmap, Trust, replace_header};
use super::cases::{new, words};
use super::image::{Step, TestImage, put, run};
use crate::error::Result;
use crate::format::Header;
use crate::format::bitmap::BitmapCluster;
use crate::format::extension::Extension;
use crate::format::header::{features, fields};
use crate::format::record::{Below, BitmapIdentity, FileIdentity, FileKind, Fit, Record};
use crate::storage::Storage;

const SIZE: u64 = 1 << 30;
const SECTOR: usize = 512;

/// Calls `check` with images that a crash may leave of `steps` on `base`.
fn crash(base: &[u8], steps: &[Step], random: &mut fastrand::Rng, check: &mut dyn FnMut(Vec<u8>)) {
    let mut durable = base.to_vec();
    let mut pending: Vec<(u64, &[u8])> = Vec::new();
    for step in steps.iter().chain([&Step::Flush]) {
        match step {
            Step::Write(offset, data) => {
                pending.push((*offset, data));
                continue;
            }
            Step::Flush => {}
        }
        for _ in 0..12 {
            let mut torn = durable.clone();
            let kept = random.usize(0..=100);
            for &(offset, data) in &pending {
                // Sectors of the container, not of the write.
                let first = (SECTOR - offset as usize % SECTOR).min(data.len());
                let rest = (first..data.len()).step_by(SECTOR);
                let pieces = std::iter::once((0, first))
                    .chain(rest.map(|at| (at, data.len().min(at + SECTOR))));
                for (from, end) in pieces.filter(|_| random.usize(0..100) < kept) {
                    put(&mut torn, offset + from as u64, &data[from..end]);
                }
            }
            check(torn);
        }
        for (offset, data) in pending.drain(..) {
            put(&mut durable, offset, data);
        }
    }
    assert!(pending.is_empty());
    check(durable);
}

/// Every cluster that a consistent directory refers to is counted.
fn check_counts(image: &TestImage, directory: &Directory) {
    let cluster = image.header.borrow().cluster_size;
    let counted = |offset: u64, what: &str| {
        assert_eq!(image.count(cluster.index_of(offset)), 1, "{what} at {offset:#x}");
    };
    if let Some(place) = directory.place {
        counted(place.directory_offset, "directory");
    }
    for entry in directory.entries() {
        counted(entry.table.0, "table");
        let table = run(super::super::load::read_table(image, entry)).expect("a table");
        for entry in table {
            if let BitmapCluster::Stored(host) = entry {
                counted(host.0, "bits");
            }
        }
    }
}

/// A header with `len` bytes of other extensions and a backing file, so that the place of the bitmaps
/// extension varies.
fn lay_out(image: &TestImage, len: usize, name: Option<&str>) {
    let mut header = image.header();
    header.extensions = vec![Extension::Unknown { kind: 0x77, data: vec![3; len] }];
    header.backing_name = name.map(Into::into);
    run(replace_header(&image.memory, &header)).expect("a header");
    *image.header.borrow_mut() = header;
}

/// The files below, when the bitmaps had this generation.
fn files(generation: u64) -> Vec<FileIdentity> {
    let file = FileIdentity {
        kind: FileKind::Below,
        size_bytes: 1 << 20,
        modified_ns: generation,
        changed_ns: generation,
        inode: 7,
    };
    vec![file; 2]
}

fn record(generation: u64) -> Record {
    let mut record = Record::EMPTY;
    record.below = Below::Files(files(generation));
    for name in [&b"a"[..], b"other"] {
        record.set_identity(name, Some(BitmapIdentity { uuid: [9; 16], generation }));
    }
    record
}

/// As [`crate::image::Image::outdate_record`].
async fn outdate(image: &TestImage) -> Result<()> {
    let mut header = image.header();
    header.autoclear &= !features::RECORD;
    image.memory.write(fields::FEATURES, &header.features_field()).await?;
    image.memory.flush().await?;
    *image.header.borrow_mut() = header;
    Ok(())
}

#[test]
fn a_crash_leaves_what_was_stored_or_nothing_that_is_trusted() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut clean, mut trusted, mut current) = (0, 0, 0);
    for round in 0..60 {
        let image = TestImage::new(random.u32(10..=16), SIZE);
        let name = random.bool().then_some("a backing file.qcow2");
        lay_out(&image, random.usize(0..460), name);
        let mut directory = run(Directory::load(&image)).expect("a directory");
        let other = [1, 2, 3];
        let first = [new("a", &[1; 256]), new("other", &other)].map(BitmapChange::Store);
        run(directory.change_recorded(&image, &first, Some(record(1)), true)).expect("stored");
        assert!(image.header().is_record_current());
        let (base, _) = (image.bytes(), image.memory.steps.borrow_mut().clear());
        run(outdate(&image)).expect("durable");
        run(directory.begin_use(&image, |entry| entry.name == b"a")).expect("marked");
        // From here on the bits on disk are out of date.
        let marked = image.memory.steps.borrow().len();
        let next = NewBitmap { auto: false, ..new("a", &[u64::MAX; 256]) };
        let long = "b".repeat(random.usize(1..600));
        let mut changes = vec![BitmapChange::Store(next)];
        if random.bool() {
            changes.push(BitmapChange::Store(new(&long, &[4; 256])));
        }
        run(directory.change_recorded(&image, &changes, Some(record(2)), true)).expect("stored");
        let steps = image.memory.steps.borrow().clone();
        let header = image.header();
        let mut check = |bytes: Vec<u8>, stale: bool| {
            let image = TestImage::open(bytes);
            let found = image.header();
            assert_eq!((found.backing_name, found.size_bytes), (header.backing_name.clone(), SIZE));
            assert_eq!(found.extensions.first(), header.extensions.first());
            let directory = run(Directory::load(&image)).expect("a directory");
            if !directory.is_consistent() {
                return;
            }
            clean += 1;
            check_counts(&image, &directory);
            assert_eq!(words(&image, "other").expect("untouched")[..3], other);
            let entry = directory.entry(b"a").expect("it is there");
            let known = directory.record().expect("it is there, as the directory is");
            let generation = known.identity(b"a").map(|it| it.generation).expect("a form");
            assert_eq!(known.below.fit(&files(generation)), Fit::Same);
            if directory.is_record_current() {
                current += 1;
                assert!(generation == 2 || !stale, "round {round}: of what has changed since");
                assert!(generation == 1 || directory.trust(entry) == Trust::Stored);
            }
            if directory.trust(entry) == Trust::Stored {
                trusted += 1;
                let a = words(&image, "a").expect("stored");
                let is_new = a == [u64::MAX; 256] && !entry.auto();
                let is_old = a == [1; 256] && entry.auto();
                assert!(is_new || is_old && !stale, "round {round}");
                assert_eq!(generation, if is_new { 2 } else { 1 });
            }
        };
        crash(&base, &steps[..marked], &mut random, &mut |bytes| check(bytes, false));
        let mut base = base;
        for step in &steps[..marked] {
            if let Step::Write(offset, data) = step {
                put(&mut base, *offset, data);
            }
        }
        crash(&base, &steps[marked..], &mut random, &mut |bytes| check(bytes, true));
    }
    let counts = format!("{clean} consistent, {trusted} trusted, {current} current");
    assert!(clean > 1000 && trusted > 100 && current > 100, "{counts}");
}

#[test]
fn a_header_changes_as_a_whole() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..200 {
        let image = TestImage::new(random.u32(11..=16), SIZE);
        let name = "n".repeat(random.usize(1..500));
        lay_out(&image, random.usize(0..460), random.bool().then_some(&name));
        let old = image.header();
        let place = crate::format::extension::BitmapsExtension {
            bitmaps: random.u32(1..9),
            directory_len_bytes: random.u64(..),
            directory_offset: random.u64(..),
        };
        let new = super::super::with_bitmaps(&old, Some(place));
        let (from, to) = if random.bool() { (&old, &new) } else { (&new, &old) };
        if run(replace_header(&image.memory, from)).is_err() {
            assert!(image.bytes().len() < 1 << 14, "no room in a large cluster");
            continue;
        }
        let base = image.bytes();
        image.memory.steps.borrow_mut().clear();
        run(replace_header(&image.memory, to)).expect("room");
        let steps = image.memory.steps.borrow().clone();
        let without = |header: &Header| super::super::with_bitmaps(header, None);
        crash(&base, &steps, &mut random, &mut |bytes| {
            let found = TestImage::open(bytes).header();
            assert_eq!(without(&found), without(&old));
            if found.autoclear & 1 != 0 {
                assert_eq!(found, new);
            }
        });
    }
}
