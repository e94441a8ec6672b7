//! Many requests at once, in an order that a seed says; some are dropped at an await.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;

use super::model::{apply, random_change, random_range};
use super::{Model, check, geometries, new_disk};
use crate::error::Result;
use crate::testing::{Geometry, Random, block_on, run_all};

fn check_concurrent(geometry: &Geometry, seed: u64, drop_one_in: Option<u64>) {
    let context = format!("seed {seed}, drop one in {drop_one_in:?}, {geometry:?}");
    let mut random = Random::new(seed);
    let disk = new_disk(geometry);
    for storage in disk.container.data.iter().chain([&disk.container.file]) {
        storage.set_delays(seed, 3);
    }
    let model = RefCell::new(Model::new(&disk));
    let sectors = model.borrow().sectors();
    for _ in 0..8 {
        let mut futures: Vec<Pin<Box<dyn Future<Output = Result<()>> + '_>>> = Vec::new();
        for _ in 0..16 {
            if random.one_in(8) {
                futures.push(Box::pin(disk.image.flush(&disk.container)));
                continue;
            }
            let change = random_change(&mut random);
            // Most of them meet in a few clusters.
            let near = if random.one_in(3) { sectors } else { sectors.min(100) };
            let range = random_range(&mut random, near);
            futures.push(Box::pin(apply(&disk, &model, change, range, false)));
        }
        for result in run_all(&mut random, drop_one_in, futures).into_iter().flatten() {
            result.expect(&context);
        }
        model.borrow_mut().check(&disk, false, &context);
    }
    block_on(disk.image.close(&disk.container)).expect(&context);
    let report = check(&disk.container.file);
    assert!(report.is_clean(), "{context}: {report:?}");
    model.borrow_mut().check(&disk, false, &context);
}

#[test]
fn requests_in_any_order() {
    for geometry in geometries() {
        for seed in 0..12 {
            check_concurrent(&geometry, seed, None);
        }
    }
}

#[test]
fn futures_dropped_at_any_await() {
    for geometry in geometries() {
        for seed in 0..12 {
            check_concurrent(&geometry, seed, Some(30));
        }
    }
}

/// What succeeded is there, whatever failed beside it.
#[test]
fn failures_of_the_container() {
    for geometry in geometries() {
        for seed in 0..12 {
            let context = format!("seed {seed}, {geometry:?}");
            let mut random = Random::new(seed);
            let disk = new_disk(&geometry);
            let model = RefCell::new(Model::new(&disk));
            let sectors = model.borrow().sectors();
            disk.container.file.set_delays(seed, 0);
            disk.container.file.set_failures(Some(20));
            for _ in 0..100 {
                let range = random_range(&mut random, sectors);
                let change = random_change(&mut random);
                // A change that fails has happened, or not, or in part.
                let _ = block_on(apply(&disk, &model, change, range, true));
                if random.one_in(10) {
                    let _ = block_on(disk.image.flush(&disk.container));
                }
            }
            disk.container.file.set_failures(None);
            model.borrow_mut().check(&disk, false, &context);
            block_on(disk.image.close(&disk.container)).expect(&context);
            let report = check(&disk.container.file);
            assert!(report.is_clean(), "{context}: {report:?}");
        }
    }
}

/// Threads that write each its own stripes of shared clusters.
#[test]
fn threads_share_an_image() {
    let geometry = Geometry { cluster_bits: 12, ..Geometry::usual(4 << 20) };
    let disk = new_disk(&geometry);
    let threads = 4;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let disk = &disk;
            scope.spawn(move || {
                let mut random = Random::new(thread);
                for round in 0..400_u32 {
                    let stripe = random.below(4 << 20 >> 11) * threads + thread;
                    let bytes = [thread as u8 + 1; 512];
                    let offset = stripe * 512 % (4 << 20);
                    spin_on(disk.write(offset, &bytes)).expect("writes");
                    let mut read = [0; 512];
                    spin_on(disk.read(offset, &mut read)).expect("reads");
                    assert!(read == bytes, "thread {thread}, round {round}");
                    if round % 64 == 0 {
                        spin_on(disk.image.flush(&disk.container)).expect("flushes");
                    }
                }
            });
        }
    });
    block_on(disk.image.close(&disk.container)).expect("closes");
    assert!(check(&disk.container.file).is_clean());
}

/// Polls until it is ready: somebody on another thread is waited for.
fn spin_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::yield_now();
    }
}
