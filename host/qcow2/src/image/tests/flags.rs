//! Flags that an image was left with by somebody else.

use super::{SECTOR, new_disk, open_disk};
use crate::format::header::features::{BITMAPS, RAW_EXTERNAL_DATA};
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
    assert_eq!(u64::from_be_bytes(autoclear), RAW_EXTERNAL_DATA);
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
