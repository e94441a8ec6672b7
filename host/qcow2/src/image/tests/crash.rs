//! Power is lost at every point: the image is consistent but for leaks, and what was flushed is there.

use std::cell::RefCell;

use super::model::{apply, random_change, random_range};
use super::{Model, check, geometries, new_disk, open_disk};
use crate::testing::{Container, Geometry, Random, block_on};

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
        let report = check(&container.file);
        assert!(!report.is_damaged(), "{context}: {report:?}");
        disk = open_disk(container, geometry).expect(&context);
        model.borrow_mut().check(&disk, true, &context);
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
