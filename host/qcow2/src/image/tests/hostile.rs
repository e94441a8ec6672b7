//! Images that contradict themselves: refused, marked, never a panic or an endless loop.

use super::options;
use crate::error::{ErrorKind, Result};
use crate::format::header::{features, fields};
use crate::image::{Image, OpenOptions};
use crate::read_header;
use crate::testing::{Container, Disk, Geometry, MemoryStorage, Random, blank_image, block_on};

const CLUSTER: u64 = 4096;

fn geometry() -> Geometry {
    Geometry { cluster_bits: 12, ..Geometry::usual(3 << 20) }
}

fn open(content: Vec<u8>, options: &OpenOptions) -> Result<Disk> {
    let container = Container { file: MemoryStorage::new(content), data: None };
    let image = block_on(Image::open(&container, options))?;
    Ok(Disk { image, container, backing: None })
}

/// An image with some data, closed.
fn used_image(geometry: &Geometry) -> Vec<u8> {
    let disk = open(blank_image(geometry), &options()).expect("opens");
    let mut random = Random::new(9);
    for _ in 0..30 {
        let offset = random.below(geometry.size_bytes - 20_000);
        block_on(disk.write(offset, &vec![5; 1 + random.below(20_000) as usize])).expect("writes");
    }
    block_on(disk.image.discard(&disk.container, 0, 1 << 20)).expect("discards");
    block_on(disk.write(0, &[1; 6000])).expect("writes");
    block_on(disk.image.close(&disk.container)).expect("closes");
    disk.container.file.content()
}

fn put(content: &mut [u8], offset: u64, word: u64) {
    content[offset as usize..][..8].copy_from_slice(&word.to_be_bytes());
}

fn get(content: &[u8], offset: u64) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&content[offset as usize..][..8]);
    u64::from_be_bytes(word)
}

/// The first L2 table.
fn l2_of(content: &[u8]) -> u64 {
    get(content, 3 * CLUSTER) & !(1 << 63)
}

/// A write to guest offset 0 finds the contradiction; the image is marked, and nothing is written any
/// more.
fn check_marked(what: &str, spoil: impl Fn(&mut Vec<u8>)) {
    let mut content = used_image(&geometry());
    spoil(&mut content);
    let disk = open(content, &options()).expect(what);
    let error = block_on(disk.write(0, &[2; 10])).expect_err(what);
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    assert!(disk.image.is_corrupt(), "{what}");
    let header = block_on(read_header(&disk.container)).expect("a header");
    assert!(header.incompatible & features::CORRUPT != 0, "{what}: marked for others");
    let before = disk.container.file.content();
    let error = block_on(disk.write(2 << 20, &[2; 10])).expect_err(what);
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{what}: {error}");
    let _ = block_on(disk.image.flush(&disk.container));
    let _ = block_on(disk.image.close(&disk.container));
    assert!(disk.container.file.content() == before, "{what}: nothing is written any more");
}

#[test]
fn contradictions_are_found_before_they_are_written_to() {
    const COPIED: u64 = 1 << 63;
    let entry = |word: u64| {
        move |content: &mut Vec<u8>| {
            let l2 = l2_of(content);
            put(content, l2, word);
        }
    };
    check_marked("data in the header", entry(COPIED));
    check_marked("data in the refcount table", entry(COPIED | CLUSTER));
    check_marked("data in a refcount block", entry(COPIED | (2 * CLUSTER)));
    check_marked("data in the L1 table", entry(COPIED | (3 * CLUSTER)));
    check_marked("data in an L2 table", |content| {
        let l2 = l2_of(content);
        put(content, l2, COPIED | l2);
    });
    check_marked("data past the end", entry(COPIED | 1 << 40));
    check_marked("unaligned data", entry(COPIED | (5 * CLUSTER) | 512));
    check_marked("reserved bits", entry(COPIED | (5 * CLUSTER) | 2));
    check_marked("an L2 table past the end", |content| {
        put(content, 3 * CLUSTER, COPIED | 1 << 40);
    });
    check_marked("metadata that counts as free", |content| {
        // The refcounts of the first clusters, and then a cluster is needed.
        content[2 * CLUSTER as usize..][..20].fill(0);
        let l2 = l2_of(content);
        put(content, l2, 0);
    });
}

#[test]
fn tables_that_overlap_are_refused() {
    let check = |what: &str, spoil: &dyn Fn(&mut Vec<u8>)| {
        let mut content = used_image(&geometry());
        spoil(&mut content);
        let error = open(content.clone(), &options()).err().expect(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
        let read_only = OpenOptions::default();
        let read_error = open(content, &read_only).err().map(|error| error.kind());
        assert!(read_error.is_none_or(|kind| kind == ErrorKind::Corrupt), "{what}");
    };
    check("L1 table over the refcount table", &|content| put(content, 40, CLUSTER));
    check("two L1 entries for a table", &|content| {
        let entry = get(content, 3 * CLUSTER);
        put(content, 3 * CLUSTER + 8, entry);
    });
    check("a refcount block in the L1 table", &|content| put(content, CLUSTER, 3 * CLUSTER));
    check("an unaligned L2 table", &|content| put(content, 3 * CLUSTER, 0x5200));
    check("an L1 table past the end", &|content| put(content, 40, 1 << 40));
}

#[test]
fn a_dirty_or_corrupt_image_is_read_only() {
    for (bit, name) in [(features::DIRTY, "rebuilt"), (features::CORRUPT, "corrupt")] {
        let mut content = used_image(&geometry());
        put(&mut content, fields::FEATURES, bit);
        let disk = open(content.clone(), &options()).expect("opens");
        block_on(disk.read(0, &mut [0; 10])).expect("reads");
        let error = block_on(disk.write(0, &[0; 10])).expect_err("refuses");
        assert_eq!(error.kind(), ErrorKind::ReadOnly);
        assert!(error.to_string().contains(name), "{error}");
        assert!(disk.container.file.content() == content);
    }
}

/// What a first change would make wrong is invalidated before it, and not by opening.
#[test]
fn unknown_autoclear_features_go_with_the_first_change() {
    let mut content = used_image(&geometry());
    put(&mut content, fields::FEATURES + 16, 1 << 40);
    let disk = open(content, &options()).expect("opens");
    let autoclear = |disk: &Disk| block_on(read_header(&disk.container)).expect("valid").autoclear;
    block_on(disk.read(0, &mut [0; 10])).expect("reads");
    block_on(disk.image.flush(&disk.container)).expect("flushes");
    assert_eq!(autoclear(&disk), 1 << 40);
    block_on(disk.write(0, &[0; 10])).expect("writes");
    assert_eq!(autoclear(&disk), features::OPEN);
}

/// A container without room: errors, and an image in order.
#[test]
fn no_space_is_an_error_and_nothing_else() {
    let disk = open(blank_image(&geometry()), &options()).expect("opens");
    disk.container.file.set_len_max(40 * CLUSTER);
    let mut written = Vec::new();
    for index in 0..100 {
        if block_on(disk.write(index * CLUSTER, &[1; CLUSTER as usize])).is_ok() {
            written.push(index);
        }
        if index % 10 == 0 {
            block_on(disk.image.flush(&disk.container)).expect("there is room for metadata");
        }
    }
    assert!(written.len() > 20 && written.len() < 40, "{written:?}");
    block_on(disk.image.close(&disk.container)).expect("closes");
    assert!(super::check(&disk.container.file).is_clean());
    for index in 0..100 {
        let mut read = [9; 10];
        block_on(disk.read(index * CLUSTER, &mut read)).expect("reads");
        assert_eq!(read, [u8::from(written.contains(&index)); 10]);
    }
}

/// Random damage: whatever happens, it ends and does not panic.
#[test]
fn random_damage() {
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let geometry = Geometry {
            cluster_bits: [9, 12, 14][random.below(3) as usize],
            size_bytes: 600 << 10,
            ..geometry()
        };
        let geometry = Geometry { extended_l2: geometry.cluster_bits == 14, ..geometry };
        let mut content = used_damage_base(&geometry);
        for _ in 0..1 + random.below(8) {
            let metadata = 6 << geometry.cluster_bits;
            let end = if random.one_in(2) { 112 } else { metadata };
            let at = random.below(end) as usize & !7;
            if at < 24 {
                continue;
            }
            let word = match random.below(4) {
                0 => random.number(),
                1 => random.below(40) << geometry.cluster_bits,
                2 => 1 << 63 | random.below(40) << geometry.cluster_bits,
                _ => 1 << random.below(64),
            };
            content[at..at + 8].copy_from_slice(&word.to_be_bytes());
        }
        let Ok(disk) = open(content, &options()) else { continue };
        let size = disk.image.size_bytes().min(1 << 20);
        for _ in 0..20 {
            let offset = random.below(size.max(1));
            let len = (size - offset.min(size)).min(9000);
            let _ = block_on(disk.read(offset, &mut vec![0; len as usize]));
            let _ = block_on(disk.write(offset, &vec![1; len as usize]));
            let _ = block_on(disk.image.discard(&disk.container, offset, len));
            let _ = block_on(disk.image.zero(&disk.container, 0, size, random.one_in(2)));
            let _ = block_on(disk.image.flush(&disk.container));
        }
        let _ = block_on(disk.image.resize(&disk.container, size * 2));
        let _ = block_on(disk.image.close(&disk.container));
    }
}

fn used_damage_base(geometry: &Geometry) -> Vec<u8> {
    let disk = open(blank_image(geometry), &options()).expect("opens");
    for index in 0..12 {
        block_on(disk.write(index * 50_000, &[7; 9000])).expect("writes");
    }
    block_on(disk.image.close(&disk.container)).expect("closes");
    disk.container.file.content()
}
