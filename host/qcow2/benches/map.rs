//! What does a lookup cost when its L2 slice is in memory? The budget is 30 ns.

#![allow(missing_docs, reason = "a benchmark")]

use std::hint::black_box;

use blockloom_qcow2::image::{Image, OpenOptions};
use blockloom_qcow2::testing::{Container, Disk, Geometry, MemoryStorage, Random};
use blockloom_qcow2::testing::{blank_image, block_on};
use criterion::{Criterion, criterion_group, criterion_main};

const SIZE: u64 = 1 << 30;

/// Offsets that are looked up in turn, so that no branch predictor knows them.
const OFFSETS: usize = 4096;

fn disk(extended_l2: bool) -> Disk {
    let geometry = Geometry { extended_l2, ..Geometry::usual(SIZE) };
    let container = Container { file: MemoryStorage::new(blank_image(&geometry)), data: None };
    let options = OpenOptions { writable: true, ..OpenOptions::default() };
    let image = block_on(Image::open(&container, &options)).expect("opens");
    let disk = Disk { image, container, backing: None };
    for offset in (0..SIZE).step_by(1 << 16) {
        block_on(disk.write(offset, &[1; 4096])).expect("writes");
        if extended_l2 {
            block_on(disk.write(offset + (32 << 10), &[1; 4096])).expect("writes");
        }
    }
    disk
}

fn lookups(criterion: &mut Criterion) {
    let mut random = Random::new(1);
    // The written half of a cluster with subclusters too.
    let offsets: Vec<u64> = (0..OFFSETS).map(|_| random.below(SIZE >> 16) << 16).collect();
    for (name, disk) in [("standard", disk(false)), ("extended", disk(true))] {
        let turn = disk.image.enter();
        let mut next = offsets.iter().cycle();
        criterion.bench_function(&format!("map_cached/{name}"), |bencher| {
            bencher.iter(|| {
                let offset = next.next().copied().unwrap_or_default();
                black_box(disk.image.map_cached(&turn, offset, 4096))
            });
        });
        criterion.bench_function(&format!("prepare_write_cached/{name}"), |bencher| {
            bencher.iter(|| {
                let offset = next.next().copied().unwrap_or_default();
                black_box(disk.image.prepare_write_cached(&turn, offset, 4096))
            });
        });
    }
    let disk = disk(false);
    criterion.bench_function("enter_and_leave", |bencher| {
        bencher.iter(|| drop(black_box(disk.image.enter())));
    });
}

criterion_group!(benches, lookups);
criterion_main!(benches);
