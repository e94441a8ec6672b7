//! A sync fails, once, after a field of the header was written: a crash may leave either value until it is written
//! again, which has to come before anything that is durable relies on it.

use super::{SECTOR, new_disk, open_disk, sector_of};
use crate::format::header::features::{DIRTY, OPEN};
use crate::read_header;
use crate::testing::{Container, Disk, Geometry, MemoryStorage, block_on};

/// What a crash may leave: nothing that is not flushed, or all.
fn left(disk: &Disk) -> [MemoryStorage; 2] {
    [false, true].map(|keeps| disk.container.file.crash_keeping(|| keeps))
}

#[test]
fn the_size_that_is_told_is_that_which_is_used() {
    let geometry = Geometry { cluster_bits: 9, ..Geometry::usual(400 * SECTOR) };
    for new in [100 * SECTOR, 90_000 * SECTOR] {
        let mut failed = 0;
        for flushes in 0.. {
            let context = format!("to {new} bytes, flush {flushes}");
            let disk = new_disk(&geometry);
            block_on(disk.write(0, &vec![1; geometry.size_bytes as usize])).expect("a write");
            block_on(disk.image.close(&disk.container)).expect("closes");
            disk.container.file.fail_flush_after(flushes);
            let resized = block_on(disk.image.resize(&disk.container, new));
            disk.container.file.fail_flush_after(u64::from(u32::MAX));
            let size = disk.image.size_bytes();
            let last = sector_of(7);
            block_on(disk.write(size - SECTOR, &last)).expect("a write");
            block_on(disk.image.flush(&disk.container)).expect("a flush");
            for file in left(&disk) {
                let disk = open_disk(Container { file, data: None }, &geometry).expect("opens");
                assert_eq!(disk.image.size_bytes(), size, "{context}");
                let mut bytes = vec![0; SECTOR as usize];
                block_on(disk.read(size - SECTOR, &mut bytes)).expect("reads");
                assert!(bytes == last, "{context}: what was flushed is lost");
            }
            block_on(disk.image.close(&disk.container)).expect("closes");
            assert!(!super::check(&disk.container.file).is_damaged(), "{context}");
            if resized.is_ok() {
                assert_eq!(size, new, "{context}");
                break;
            }
            failed += 1;
        }
        assert!(failed > 1, "{failed} flushes that fail");
    }
}

/// A close that fails may have taken the marks back all the same.
#[test]
fn marks_are_there_when_a_change_follows_a_close_that_failed() {
    for lazy_refcounts in [false, true] {
        let geometry = Geometry { lazy_refcounts, ..Geometry::usual(1 << 20) };
        let mut failed = 0;
        for flushes in 0.. {
            let disk = new_disk(&geometry);
            block_on(disk.write(0, &[1; 512])).expect("a write");
            disk.container.file.fail_flush_after(flushes);
            if block_on(disk.image.close(&disk.container)).is_ok() {
                break;
            }
            failed += 1;
            block_on(disk.write(512 << 10, &[1; 512])).expect("a write");
            for file in left(&disk) {
                let header = block_on(read_header(&file)).expect("a header");
                assert_ne!(header.autoclear & OPEN, 0, "flush {flushes}");
                assert_eq!(header.incompatible & DIRTY != 0, lazy_refcounts, "flush {flushes}");
            }
        }
        assert!(failed > 2, "{failed} flushes that fail");
    }
}
