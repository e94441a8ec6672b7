//! Power is lost at every point: the image is consistent but for leaks, which the next to open it frees, and
//! what was flushed is there.

use std::cell::RefCell;

use super::model::{apply, random_change, random_range};
use super::{Model, check, geometries, new_disk, open_disk};
use crate::check::mend;
use crate::format::Version;
use crate::format::header::features;
use crate::read_header;
use crate::testing::{Container, Geometry, MemoryStorage, Random, block_on};

fn check_crash(geometry: &Geometry, seed: u64) {
    let context = format!("seed {seed}, {geometry:?}");
    let mut random = Random::new(seed);
    let mut disk = new_disk(geometry);
    let model = RefCell::new(Model::new(&disk));
    let sectors = model.borrow().sectors();
    for _ in 0..6 {
        disk.container.file.die_after(random.below(60));
        for _ in 0..40 {
            let result = if random.one_in(8) {
                let result = block_on(disk.image.flush(&disk.container));
                if result.is_ok() {
                    model.borrow_mut().flushed();
                }
                result
            } else {
                let change = random_change(&mut random);
                let range = random_range(&mut random, sectors);
                block_on(apply(&disk, &model, change, range, true))
            };
            if result.is_err() {
                break;
            }
        }
        let container = Container {
            file: disk.container.file.crash(&mut random),
            data: disk.container.data.as_ref().map(|data| data.crash(&mut random)),
        };
        check_and_mend(&container.file, &context);
        disk = open_disk(container, geometry).expect(&context);
        model.borrow_mut().check(&disk, true, &context);
    }
    block_on(disk.image.close(&disk.container)).expect(&context);
    let report = check(&disk.container.file);
    let v2 = geometry.version == Version::V2;
    assert!(report.is_clean() || v2 && !report.is_damaged(), "{context}: {report:?}");
}

/// What is wrong after a crash is what the header says that may be, and nothing once it is mended: the next
/// to open the image does that.
pub(super) fn check_and_mend(file: &MemoryStorage, context: &str) {
    let header = block_on(read_header(file)).expect(context);
    let is_dirty = header.incompatible & features::DIRTY != 0;
    let left_open = header.autoclear & features::OPEN != 0;
    let report = check(file);
    assert!(!report.is_damaged() || is_dirty, "{context}: {report:?}");
    let v2 = header.version == Version::V2;
    assert!(report.leaks == 0 || is_dirty || left_open || v2, "{context}: {report:?}");
    let mended = block_on(mend(file, 1 << 24)).expect(context);
    assert_eq!(mended.is_some(), is_dirty || left_open, "{context}");
    if let Some(report) = mended {
        assert!(report.is_clean(), "{context}: {report:?}");
        let header = block_on(read_header(file)).expect(context);
        let marks = header.incompatible & features::DIRTY | header.autoclear & features::OPEN;
        assert_eq!(marks, 0, "{context}");
    }
}

#[test]
fn a_crash_leaks_at_most_and_loses_nothing_flushed() {
    for geometry in geometries() {
        for seed in 0..60 {
            check_crash(&geometry, seed);
        }
    }
}
