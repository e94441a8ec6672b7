//! What is stored comes back; what cannot be is refused and leaves everything as it was.

use super::super::{BitmapChange, BitmapImage, Directory, NewBitmap, Trust};
use super::image::{Step, TestImage, put, run};
use crate::error::{ErrorKind, Result};
use crate::format::bitmap::{BitmapEntry, encode_directory, flag};
use crate::format::extension::Extension;
use crate::format::{HostOffset, Version};

const SIZE: u64 = 1 << 30;

/// A bitmap over [`SIZE`] bytes with 64 KiB a bit: 256 words.
pub(super) fn new<'a>(name: &'a str, words: &'a [u64]) -> NewBitmap<'a> {
    let name = name.as_bytes();
    NewBitmap { name, granularity_bits: 16, auto: true, in_use: false, size_bytes: SIZE, words }
}

pub(super) fn change(image: &TestImage, changes: &[BitmapChange<'_>]) -> Result<()> {
    let mut directory = run(Directory::load(image))?;
    run(directory.change(image, changes))
}

fn store(image: &TestImage, bitmap: NewBitmap<'_>) {
    change(image, &[BitmapChange::Store(bitmap)]).expect("stored");
}

pub(super) fn words(image: &TestImage, name: &str) -> Result<Vec<u64>> {
    let directory = run(Directory::load(image))?;
    run(directory.load_words(image, name.as_bytes(), image.header.borrow().size_bytes))
}

/// Name, flags and trust of each.
fn listed(image: &TestImage) -> Vec<(String, u32, Trust)> {
    let directory = run(Directory::load(image)).expect("a directory");
    let entries = directory.entries().iter();
    entries.map(|it| (it.name_lossy().into_owned(), it.flags, directory.trust(it))).collect()
}

#[test]
fn bits_come_back() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..300 {
        let (cluster_bits, granularity_bits) = (random.u32(9..=16), random.u8(9..=20));
        let bits_max = 1 << random.u32(0..18);
        let less = random.u64(0..1 << granularity_bits);
        let size_bytes = (random.u64(0..=bits_max) << granularity_bits).saturating_sub(less);
        let image = TestImage::new(cluster_bits, size_bytes);
        let bits = size_bytes.div_ceil(1 << granularity_bits);
        let mut content = vec![0; bits.div_ceil(64) as usize];
        // Runs of zeros, ones and neither, as long as a cluster's bits and longer.
        let mut at = 0;
        while at < content.len() {
            let end = content.len().min(at + random.usize(1..=200));
            let kind = random.u8(..4);
            for word in &mut content[at..end] {
                *word = [0, u64::MAX, random.u64(..), 1 << 63][usize::from(kind)];
            }
            at = end;
        }
        let auto = random.bool();
        let bitmap = NewBitmap {
            granularity_bits,
            auto,
            size_bytes,
            words: &content,
            ..new("täglich", &[])
        };
        store(&image, bitmap);
        if let (Some(last), used @ 1..) = (content.last_mut(), bits % 64) {
            *last &= (1 << used) - 1;
        }
        let what = format!("round {round}: clusters 2^{cluster_bits}, {bits} bits");
        assert_eq!(words(&image, "täglich").expect("stored"), content, "{what}");
        let expect = ("täglich".into(), u32::from(auto) * flag::AUTO, Trust::Stored);
        assert_eq!(listed(&image), [expect], "{what}");
    }
}

#[test]
fn plain_clusters_have_no_data() {
    let check = |words: &[u64], clusters: u64| {
        // 64 words a cluster, 4 of them.
        let image = TestImage::new(9, SIZE);
        let before = image.used();
        store(&image, new("b", words));
        // Table, directory, data.
        assert_eq!(image.used() - before, 2 + clusters, "{} words", words.len());
    };
    check(&[], 0);
    check(&[u64::MAX; 256], 0);
    check(&[u64::MAX; 64], 0);
    check(&[u64::MAX; 65], 1);
    check(&[&[0; 64][..], &[1]].concat(), 1);
    check(&[3; 256], 4);
}

#[test]
fn everything_is_given_back() {
    let image = TestImage::new(12, SIZE);
    let before = image.used();
    for round in 1..4 {
        store(&image, new("a", &[round; 256]));
        store(&image, NewBitmap { auto: false, ..new("b", &[u64::MAX, round]) });
    }
    let a = BitmapChange::Rename { from: b"a", to: b"c" };
    change(&image, &[a]).expect("renamed");
    let expect = [("c", flag::AUTO), ("b", 0)];
    assert_eq!(listed(&image), expect.map(|(name, flags)| (name.into(), flags, Trust::Stored)));
    assert_eq!(words(&image, "c").expect("stored"), [3; 256]);
    // Two tables, two of data, the directory.
    assert_eq!(image.used() - before, 5);
    change(&image, &[BitmapChange::Remove(b"b"), BitmapChange::Remove(b"c")]).expect("removed");
    assert_eq!(image.used(), before);
    let header = image.header.borrow();
    assert!(header.bitmaps().is_none() && header.autoclear == 0);
}

#[test]
fn what_is_in_use_is_not_trusted() {
    let image = TestImage::new(16, SIZE);
    store(&image, new("a", &[1]));
    store(&image, NewBitmap { auto: false, ..new("b", &[2]) });
    image.memory.steps.borrow_mut().clear();
    let mut directory = run(Directory::load(&image)).expect("a directory");
    run(directory.begin_use(&image, |entry| entry.name == b"a")).expect("marked");
    run(directory.begin_use(&image, |entry| entry.name == b"a")).expect("nothing to do");
    let steps = image.memory.steps.borrow_mut().split_off(0);
    assert!(matches!(steps[..], [Step::Write(..), Step::Flush]), "{} steps", steps.len());
    let expect = [
        ("a".into(), flag::AUTO | flag::IN_USE, Trust::Inconsistent),
        ("b".into(), 0, Trust::Stored),
    ];
    assert_eq!(listed(&image), expect);
    assert_eq!(words(&image, "a").expect_err("in use").kind(), ErrorKind::Corrupt);
    assert_eq!(words(&image, "b").expect("stored")[0], 2);
    // The same one stores it in the end.
    run(directory.change(&image, &[BitmapChange::Store(new("a", &[7]))])).expect("stored");
    assert_eq!(words(&image, "a").expect("stored")[0], 7);
}

/// Somebody who does not know of bitmaps has changed the image.
#[test]
fn without_the_autoclear_bit_nothing_is_trusted() {
    let image = TestImage::new(12, SIZE);
    store(&image, new("a", &[u64::MAX; 256]));
    store(&image, new("b", &[1; 256]));
    let used = image.used();
    image.header.borrow_mut().autoclear = 0;
    put(&mut image.memory.bytes.borrow_mut(), 88, &[0; 8]);
    assert!(listed(&image).iter().all(|(_, _, trust)| *trust == Trust::Inconsistent));
    assert!(words(&image, "a").is_err());
    let directory = run(Directory::load(&image)).expect("readable");
    let place = directory.place.expect("a place").directory_offset;
    let before = image.bytes();
    let mut directory = directory;
    run(directory.begin_use(&image, |_| true)).expect("nothing to mark");
    assert_eq!(image.bytes(), before);
    // Whatever is at the old places may be somebody else's: it is neither written nor given back.
    store(&image, new("c", &[5]));
    let after = image.bytes();
    assert_eq!(after[place as usize..][..4096], before[place as usize..][..4096]);
    let in_use = flag::AUTO | flag::IN_USE;
    let expect = [
        ("a".into(), in_use, Trust::Inconsistent),
        ("b".into(), in_use, Trust::Inconsistent),
        ("c".into(), flag::AUTO, Trust::Stored),
    ];
    assert_eq!(listed(&image), expect);
    // Three tables, one of data, a directory.
    assert_eq!(image.used() - used, 5);

    // Not even a directory is left.
    let image = TestImage::new(12, SIZE);
    store(&image, new("a", &[1]));
    let place = run(Directory::load(&image)).expect("a directory").place.expect("a place");
    put(&mut image.memory.bytes.borrow_mut(), 88, &[0; 8]);
    put(&mut image.memory.bytes.borrow_mut(), place.directory_offset, &[0xff; 64]);
    assert_eq!(listed(&image), []);
    put(&mut image.memory.bytes.borrow_mut(), 95, &[1]);
    assert_eq!(run(Directory::load(&image)).expect_err("contradiction").kind(), ErrorKind::Corrupt);
}

#[test]
fn what_nobody_knows_is_kept() {
    let image = TestImage::new(16, SIZE);
    store(&image, new("known", &[9]));
    let known = run(Directory::load(&image)).expect("a directory").entries()[0].clone();
    let strange = [
        BitmapEntry { kind: 7, name: b"kind".to_vec(), ..known.clone() },
        BitmapEntry { flags: 1 << 9, name: b"flags".to_vec(), ..known.clone() },
        BitmapEntry { extra: vec![5; 11], name: b"extra".to_vec(), ..known.clone() },
        BitmapEntry {
            extra: vec![6; 3],
            flags: flag::EXTRA_DATA_COMPATIBLE,
            name: b"compatible".to_vec(),
            ..known.clone()
        },
    ];
    // Each with a table of its own, of zeros.
    let cluster = 1 << 16;
    let mut entries = vec![known];
    for mut entry in strange {
        entry.table = run(image.allocate(1)).expect("room");
        entries.push(entry);
    }
    let directory = encode_directory(&entries).expect("it fits");
    let place = image.header.borrow().bitmaps().expect("a directory").directory_offset;
    put(&mut image.memory.bytes.borrow_mut(), place, &directory);
    let mut header = image.header();
    for extension in &mut header.extensions {
        if let Extension::Bitmaps(bitmaps) = extension {
            (bitmaps.bitmaps, bitmaps.directory_len_bytes) = (5, directory.len() as u64);
        }
    }
    *image.header.borrow_mut() = header.clone();
    put(&mut image.memory.bytes.borrow_mut(), 0, &header.encode().expect("a header"));
    assert_eq!(image.bytes().len() % cluster, 0);

    let trusts: Vec<Trust> = listed(&image).into_iter().map(|(_, _, trust)| trust).collect();
    let (stored, unknown) = (Trust::Stored, Trust::Unknown);
    assert_eq!(trusts, [stored, unknown, unknown, unknown, stored]);
    assert_eq!(words(&image, "kind").expect_err("unknown").kind(), ErrorKind::NotSupported);
    let taken = change(&image, &[BitmapChange::Store(new("flags", &[]))]).expect_err("taken");
    assert_eq!(taken.kind(), ErrorKind::Exists);

    let mut directory = run(Directory::load(&image)).expect("a directory");
    let changes = [new("known", &[8]), new("compatible", &[1])].map(BitmapChange::Store);
    run(directory.change(&image, &changes)).expect("stored");
    let after = directory.entries().to_vec();
    assert_eq!(after[1..4], entries[1..4]);
    assert_eq!((&after[4].extra[..], after[4].flags), (&[6; 3][..], flag::AUTO | 4));
    assert_eq!(words(&image, "compatible").expect("stored")[0], 1);
    // What is to record and cannot be made to is marked.
    run(directory.begin_use(&image, |_| false)).expect("marked");
    let flags: Vec<u32> = directory.entries().iter().map(|entry| entry.flags).collect();
    let in_use = flag::AUTO | flag::IN_USE;
    assert_eq!(flags, [flag::AUTO, in_use, 1 << 9, in_use, flag::AUTO | 4]);
    change(&image, &[BitmapChange::Remove(b"extra")]).expect("removed");
    assert_eq!(listed(&image).len(), 4);
}

#[test]
fn what_cannot_be_is_refused() {
    let image = TestImage::new(9, SIZE);
    let name = "x".repeat(1024);
    store(&image, new("a", &[1]));
    let before = image.bytes();
    let check = |changed: BitmapChange<'_>, expect: ErrorKind| {
        let error = change(&image, &[changed]).expect_err("refused");
        assert_eq!(error.kind(), expect, "{changed:?}: {error}");
        assert!(image.bytes() == before, "{changed:?}");
    };
    check(BitmapChange::Store(new("", &[])), ErrorKind::Invalid);
    check(BitmapChange::Store(new(&name, &[])), ErrorKind::Invalid);
    check(BitmapChange::Remove(b"b"), ErrorKind::NotFound);
    check(BitmapChange::Rename { from: b"b", to: b"c" }, ErrorKind::NotFound);
    check(BitmapChange::Rename { from: b"a", to: b"" }, ErrorKind::Invalid);
    for granularity_bits in [0, 8, 32, 255] {
        let bitmap = NewBitmap { granularity_bits, ..new("b", &[]) };
        check(BitmapChange::Store(bitmap), ErrorKind::Invalid);
    }
    let huge = NewBitmap { granularity_bits: 9, size_bytes: 1 << 42, ..new("b", &[]) };
    check(BitmapChange::Store(huge), ErrorKind::Invalid);
    store(&image, new("b", &[1]));
    let taken = change(&image, &[BitmapChange::Rename { from: b"a", to: b"b" }]);
    assert_eq!(taken.expect_err("taken").kind(), ErrorKind::Exists);

    let image = TestImage::new(16, SIZE);
    image.header.borrow_mut().version = Version::V2;
    let old = change(&image, &[BitmapChange::Store(new("b", &[]))]).expect_err("version 2");
    assert_eq!(old.kind(), ErrorKind::NotSupported);
    // An image of 512-byte clusters whose header has no room.
    let image = TestImage::new(9, SIZE);
    let unknown = Extension::Unknown { kind: 1, data: vec![0; 370] };
    image.header.borrow_mut().extensions = vec![unknown];
    let used = image.used();
    let full = change(&image, &[BitmapChange::Store(new("b", &[1]))]).expect_err("no room");
    assert_eq!((full.kind(), image.used()), (ErrorKind::NoSpace, used));
}

/// What the table and the directory of a stored bitmap may say.
#[test]
fn contradictions_are_found() {
    let check = |spoil: fn(&mut Vec<u8>, usize, usize), expect: &str| {
        let image = TestImage::new(12, SIZE);
        store(&image, new("a", &[1, 2, 3]));
        let directory = run(Directory::load(&image)).expect("a directory");
        let place = directory.place.expect("a place").directory_offset;
        let HostOffset(table) = directory.entries()[0].table;
        spoil(&mut image.memory.bytes.borrow_mut(), place as usize, table as usize);
        let error = words(&image, "a").expect_err(expect);
        assert!(error.to_string().contains(expect), "{error}");
    };
    check(|bytes, _, table| bytes[table + 7] = 2, "reserved");
    check(|bytes, _, table| bytes[table + 2] = 1, "past the end");
    check(|bytes, place, _| bytes[place + 11] = 0, "too short");
    check(|bytes, place, _| bytes[place + 17] = 14, "too short");
    check(|bytes, place, _| bytes[place + 3] = 1, "past the end");
    check(|bytes, place, _| bytes[place] = 0xff, "past the end");
    check(|bytes, _, table| bytes.truncate(table), "past the end");
    check(|bytes, place, _| bytes.truncate(place + 8), "past the end");
    check(|bytes, place, _| bytes[place + 17] = 8, "not known");
}

/// Each write in turn is the first that fails: as before, or as after, and a second try succeeds.
#[test]
fn a_container_that_breaks_loses_nothing() {
    for writes in 0.. {
        let image = TestImage::new(12, SIZE);
        store(&image, new("a", &[1; 256]));
        let used = image.used();
        let mut directory = run(Directory::load(&image)).expect("a directory");
        let changes = [new("a", &[2; 256]), new("b", &[u64::MAX; 256])].map(BitmapChange::Store);
        image.memory.writes_left.set(Some(writes));
        let changed = run(directory.change(&image, &changes));
        image.memory.writes_left.set(None);
        let a = words(&image, "a").expect("consistent");
        match &changed {
            Ok(()) => assert_eq!(a, [2; 256], "{writes}"),
            Err(_) => assert_eq!(a, [1; 256], "{writes}"),
        }
        run(directory.change(&image, &changes)).expect("a second try");
        assert_eq!(words(&image, "a").expect("stored"), [2; 256]);
        assert_eq!(words(&image, "b").expect("stored"), [u64::MAX; 256]);
        if changed.is_ok() && writes > 30 {
            // Table and bits of one more.
            assert_eq!(image.used(), used + 2);
            break;
        }
        assert!(writes < 200);
    }
}
