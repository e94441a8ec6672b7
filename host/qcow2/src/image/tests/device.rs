//! A container that cannot grow: a full one refuses writes, and nothing else.

use super::{geometries, open_disk};
use crate::error::ErrorKind;
use crate::testing::{Container, Geometry, MemoryStorage, blank_image, block_on};

/// Writes until the container is full, frees all, and writes again.
fn fill_and_free(geometry: &Geometry, end: u64) {
    let context = format!("{geometry:?} in {end} bytes");
    let file = MemoryStorage::new(blank_image(geometry));
    file.set_end(end);
    let disk = open_disk(Container { file, data: None }, geometry).expect(&context);
    let chunk = vec![7; 64 << 10];
    let fill = || {
        let mut at = 0;
        loop {
            match block_on(disk.write(at, &chunk)) {
                Ok(()) => at += chunk.len() as u64,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NoSpace, "{context}: {error}");
                    return at;
                }
            }
        }
    };
    let first = fill();
    assert!(first > end / 2, "{context}: {first} bytes");
    block_on(disk.image.flush(&disk.container)).expect(&context);
    for _ in 0..2 {
        let discard = disk.image.discard(&disk.container, 0, geometry.size_bytes);
        block_on(discard).expect(&context);
        block_on(disk.image.flush(&disk.container)).expect(&context);
    }
    // What counts clusters stays, so that there may be a little less room.
    assert!(fill() + end / 8 >= first, "{context}");
    block_on(disk.image.close(&disk.container)).expect(&context);
    let report = super::check(&disk.container.file);
    assert!(report.is_clean(), "{context}: {report:?}");
}

#[test]
fn a_full_container_refuses_writes_and_can_be_flushed_and_closed() {
    for geometry in geometries().into_iter().filter(|geometry| !geometry.external_data) {
        let geometry = Geometry { size_bytes: 6 << 20, backing_name: None, ..geometry };
        for end in [(2 << 20) - 512, 2 << 20, 4 << 20] {
            fill_and_free(&geometry, end);
        }
    }
}
