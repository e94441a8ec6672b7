//! Flags that an image was left with by somebody else.

use super::{SECTOR, new_disk, open_disk};
use crate::check::mend;
use crate::format::header::features::{BITMAPS, DIRTY, OPEN, RAW_EXTERNAL_DATA, RECORD};
use crate::read_header;
use crate::testing::{Container, Geometry, MemoryStorage, blank_image, block_on};

/// The autoclear bits in the header.
const AUTOCLEAR: u64 = 88;

#[test]
fn a_discard_in_a_raw_data_file_invalidates_bitmaps() {
    let geometry = Geometry { external_data: true, ..Geometry::usual(1 << 20) };
    let file = MemoryStorage::new(blank_image(&geometry));
    file.write_now(AUTOCLEAR, &(BITMAPS | RAW_EXTERNAL_DATA).to_be_bytes());
    let disk = open_disk(Container { file, data: Some(MemoryStorage::default()) }, &geometry);
    let disk = disk.expect("a valid image");
    block_on(disk.image.discard(&disk.container, 0, 1 << 20)).expect("discarded");
    let mut autoclear = [0; 8];
    disk.container.file.read_now(AUTOCLEAR, &mut autoclear);
    assert_eq!(u64::from_be_bytes(autoclear), RAW_EXTERNAL_DATA | OPEN);
}

/// A table that seems to be shared is copied; its cluster then holds anything.
#[test]
fn a_table_that_only_seemed_shared_is_freed() {
    let geometry = Geometry { cluster_bits: 9, ..Geometry::usual(64 << 10) };
    let disk = new_disk(&geometry);
    block_on(disk.write(0, &[1; 512])).expect("written");
    block_on(disk.image.close(&disk.container)).expect("closed");
    let l1 = 3 * SECTOR;
    let mut entry = [0; 8];
    disk.container.file.read_now(l1, &mut entry);
    entry[0] &= 0x7f;
    disk.container.file.write_now(l1, &entry);
    let disk = open_disk(disk.container, &geometry).expect("opens");
    for round in 0..3 {
        for cluster in 0..64 {
            block_on(disk.write(cluster * 512, &[round; 512])).expect("written");
        }
        block_on(disk.image.discard(&disk.container, 512, 32 << 9)).expect("discarded");
        block_on(disk.image.flush(&disk.container)).expect("flushed");
    }
    block_on(disk.image.close(&disk.container)).expect("closed");
    let report = super::check(&disk.container.file);
    assert!(report.is_clean(), "{report:?}");
}

fn marks(file: &MemoryStorage) -> (bool, bool) {
    let header = block_on(read_header(file)).expect("a header");
    (header.autoclear & OPEN != 0, header.incompatible & DIRTY != 0)
}

/// Durable before the first change, taken back by a close that left nothing behind, and set again.
#[test]
fn an_image_is_marked_while_it_may_leak() {
    for lazy_refcounts in [false, true] {
        let geometry = Geometry { lazy_refcounts, ..Geometry::usual(1 << 20) };
        let disk = new_disk(&geometry);
        let file = &disk.container.file;
        assert_eq!(marks(file), (false, false), "it was opened, no more");
        for round in 0..2 {
            let before = file.flushes();
            block_on(disk.write(0, &[round; 512])).expect("a write");
            assert_eq!(marks(file), (true, lazy_refcounts));
            assert_eq!(file.flushes(), before + 1);
            block_on(disk.image.flush(&disk.container)).expect("a flush");
            assert_eq!(marks(file), (true, lazy_refcounts));
            block_on(disk.image.close(&disk.container)).expect("closes");
            assert_eq!(marks(file), (false, false));
        }
    }
}

/// Who finds the mark and does not repair does not take it back.
#[test]
fn a_mark_that_was_found_stays() {
    let geometry = Geometry::usual(1 << 20);
    let file = MemoryStorage::new(blank_image(&geometry));
    file.write_now(AUTOCLEAR, &OPEN.to_be_bytes());
    let disk = open_disk(Container { file, data: None }, &geometry).expect("opens");
    assert!(disk.image.info().left_open);
    block_on(disk.write(0, &[1; 512])).expect("a write");
    block_on(disk.image.close(&disk.container)).expect("closes");
    assert_eq!(marks(&disk.container.file), (true, false));
    let mended = block_on(mend(&disk.container.file, 1 << 20)).expect("mends");
    assert!(mended.expect("it was left open").is_clean());
    assert_eq!(marks(&disk.container.file), (false, false));
}

/// A repair changes nothing that bitmaps, or what is recorded with them, speak of.
#[test]
fn mending_leaves_the_record_current() {
    let file = MemoryStorage::new(blank_image(&Geometry::usual(1 << 20)));
    file.write_now(AUTOCLEAR, &(BITMAPS | OPEN | RECORD).to_be_bytes());
    block_on(mend(&file, 1 << 20)).expect("mends");
    let header = block_on(read_header(&file)).expect("a header");
    assert_eq!(header.autoclear, BITMAPS | RECORD);
}

/// What a flush after one new cluster costs, with refcounts and without: a sync for data before the mapping,
/// and one for that. A new refcount block needs one more, unless refcounts are late.
#[test]
fn lazy_refcounts_save_writes_and_syncs_of_new_refcount_blocks() {
    let costs = |lazy_refcounts| {
        let geometry = Geometry {
            cluster_bits: 9,
            refcount_bits: 64,
            lazy_refcounts,
            ..Geometry::usual(256 << 10)
        };
        let disk = new_disk(&geometry);
        let mut costs = Vec::new();
        block_on(disk.write(0, &[1; 512])).expect("a write");
        for cluster in 0..256 {
            block_on(disk.write(cluster * 512, &[1; 512])).expect("a write");
            let before = (disk.container.file.operations(), disk.container.file.flushes());
            block_on(disk.image.flush(&disk.container)).expect("a flush");
            let after = (disk.container.file.operations(), disk.container.file.flushes());
            costs.push((after.0 - before.0 - (after.1 - before.1), after.1 - before.1));
        }
        costs.sort_unstable();
        let sums = costs.iter().fold((0, 0), |sum, cost| (sum.0 + cost.0, sum.1 + cost.1));
        (costs[128], sums)
    };
    let (usual, all) = costs(false);
    let (usual_late, all_late) = costs(true);
    assert_eq!((usual, usual_late), ((2, 2), (1, 2)), "writes and syncs of a usual flush");
    assert_eq!((all, all_late), ((520, 516), (260, 512)), "of 256 flushes");
}
