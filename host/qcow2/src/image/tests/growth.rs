//! A disk that grows: zeros first, then its size.

use super::{geometries, open_disk};
use crate::format::Version;
use crate::image::{Image, MappingKind, OpenOptions};
use crate::limits::PENDING_FREES_MAX_BYTES;
use crate::read_header;
use crate::storage::Storage;
use crate::testing::{Container, Disk, Geometry, MemoryStorage, blank_image, block_on};

/// What is added is zero and durable while the container tells the former size; only then it grows.
#[test]
fn what_is_added_is_zeroed_before_the_size_is_told() {
    for geometry in geometries().into_iter().filter(|geometry| !geometry.external_data) {
        let before = (64 << geometry.cluster_bits).min(1 << 20);
        let geometry =
            Geometry { size_bytes: before, backing_name: Some(b"base".into()), ..geometry };
        let after = before + (40 << geometry.cluster_bits);
        let file = MemoryStorage::new(blank_image(&geometry));
        let disk = open_disk(Container { file, data: None }, &geometry).expect("an image");
        let told = || block_on(read_header(&disk.container.file)).expect("a header").size_bytes;
        block_on(disk.image.extend(&disk.container, after)).expect("extends");
        let zeroed = disk.image.zero(&disk.container, before, after - before, false);
        let left = block_on(zeroed).expect("zeroes");
        if geometry.version == Version::V2 {
            let all = before..after;
            assert_eq!(left, [all], "no zeros over a backing: they have to be written");
            block_on(disk.write(before, &[0; 512])).expect("a write");
        } else {
            let turn = disk.image.enter();
            let mapped = disk.image.map(&turn, &disk.container, before, 512);
            let kind = block_on(mapped).expect("a mapping").kind;
            assert!(matches!(kind, MappingKind::Zero(_)), "{geometry:?}: {kind:?}");
            assert_eq!(left, []);
        }
        block_on(disk.image.flush(&disk.container)).expect("flushes");
        assert_eq!(told(), before, "{geometry:?}");
        block_on(disk.image.resize(&disk.container, after)).expect("grows");
        assert_eq!((told(), disk.image.size_bytes()), (after, after), "{geometry:?}");
        block_on(disk.image.close(&disk.container)).expect("closes");
        let report = super::check(&disk.container.file);
        assert!(report.is_clean(), "{geometry:?}: {report:?}");
    }
}

/// Growth that is given up leaves the disk as it was.
#[test]
fn growth_is_taken_back() {
    let geometry = Geometry { backing_name: Some(b"base".into()), ..Geometry::usual(1 << 20) };
    let file = MemoryStorage::new(blank_image(&geometry));
    let disk = open_disk(Container { file, data: None }, &geometry).expect("an image");
    block_on(disk.image.extend(&disk.container, 4 << 20)).expect("extends");
    let zeroed = disk.image.zero(&disk.container, 1 << 20, 3 << 20, false);
    assert_eq!(block_on(zeroed).expect("zeroes"), []);
    block_on(disk.image.resize(&disk.container, 1 << 20)).expect("shrinks");
    assert_eq!(disk.image.size_bytes(), 1 << 20);
    block_on(disk.image.resize(&disk.container, 4 << 20)).expect("grows");
    let turn = disk.image.enter();
    let mapped = block_on(disk.image.map(&turn, &disk.container, 1 << 20, 512));
    assert_eq!(mapped.expect("a mapping").kind, MappingKind::Unallocated);
}

/// A guest that writes and discards and never flushes: what it gave up comes back all the same.
#[test]
fn a_container_does_not_grow_without_a_flush() {
    let geometry = Geometry::usual(1 << 30);
    let file = MemoryStorage::new(blank_image(&geometry));
    let options = OpenOptions { writable: true, discard_freed: false, ..OpenOptions::default() };
    let image = block_on(Image::open(&file, &options)).expect("an image");
    let disk = Disk { image, container: Container { file, data: None }, backing: None };
    let piece = vec![1; 8 << 20];
    for round in 0..40 {
        block_on(disk.write(round * (8 << 20), &piece)).expect("a write");
        let discarded = disk.image.discard(&disk.container, round * (8 << 20), 8 << 20);
        block_on(discarded).expect("a discard");
    }
    let len = block_on(disk.container.file.len_bytes()).expect("a length");
    let most = PENDING_FREES_MAX_BYTES + 3 * piece.len() as u64;
    assert!(len < most, "{len} bytes");
    // Once for each bound's worth, and not at every write.
    assert!((4..30).contains(&disk.container.file.flushes()), "{}", disk.container.file.flushes());
    block_on(disk.image.close(&disk.container)).expect("closes");
    let report = super::check(&disk.container.file);
    assert!(report.is_clean(), "{report:?}");
}
