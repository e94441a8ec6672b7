//! One request after another, all geometries.

use super::{Model, SECTOR, check, geometries, new_disk, open_disk, sector_of};
use crate::error::Result;
use crate::testing::{Container, Disk, Geometry, MemoryStorage, Random, block_on};

/// A change of a disk.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    Write,
    /// Of whole clusters, compressed where the image can hold such.
    Compress,
    /// Of whole units, with or without keeping what is allocated.
    Zero(bool),
    Discard,
}

pub(super) fn random_change(random: &mut Random) -> Change {
    match random.below(10) {
        8 | 9 => Change::Compress,
        0 => Change::Zero(false),
        1 => Change::Zero(true),
        2 | 3 => Change::Discard,
        _ => Change::Write,
    }
}

/// A range in sectors, short or long.
pub(super) fn random_range(random: &mut Random, sectors: u64) -> (u64, u64) {
    let first = random.below(sectors);
    let longest = if random.one_in(4) { 300 } else { 12 };
    (first, 1 + random.below((sectors - first).min(longest)))
}

/// Does a change; the model learns what it may lead to, which is certain once it has succeeded.
pub(super) async fn apply(
    disk: &Disk,
    model: &std::cell::RefCell<Model>,
    change: Change,
    (first, count): (u64, u64),
    alone: bool,
) -> Result<()> {
    let value = match change {
        Change::Write | Change::Compress => model.borrow_mut().fresh_value(),
        _ => 0,
    };
    let range = unit_range(disk, change, first, count);
    let note = |certain: bool| {
        for sector in range.clone() {
            model.borrow_mut().change(sector, value, certain);
        }
    };
    if range.is_empty() {
        return Ok(());
    }
    note(false);
    let offset = range.start * SECTOR;
    let len = (range.end - range.start) * SECTOR;
    match change {
        Change::Write => {
            let bytes = sector_of(value).repeat((range.end - range.start) as usize);
            disk.write(offset, &bytes).await?;
        }
        Change::Compress => {
            let cluster = disk.image.cluster_bytes();
            let bytes = sector_of(value).repeat((range.end - range.start) as usize);
            for (at, cluster) in
                (offset..).step_by(cluster as usize).zip(bytes.chunks(cluster as usize))
            {
                match disk.container.data {
                    None => disk.write_compressed(at, cluster).await?,
                    Some(_) => disk.write(at, cluster).await?,
                }
            }
        }
        Change::Zero(keep) => {
            for left in disk.image.zero(&disk.container, offset, len, keep).await? {
                disk.write(left.start, &vec![0; (left.end - left.start) as usize]).await?;
            }
        }
        // Not everything that is discarded has to read as zeros.
        Change::Discard => return disk.image.discard(&disk.container, offset, len).await,
    }
    if alone {
        note(true);
    }
    Ok(())
}

/// What a change applies to: zeroing takes whole units, compressing whole clusters.
fn unit_range(disk: &Disk, change: Change, first: u64, count: u64) -> std::ops::Range<u64> {
    let unit = match change {
        Change::Compress => disk.image.cluster_bytes() / SECTOR,
        _ => disk.image.zero_unit_bytes() / SECTOR,
    };
    let end = first + count;
    match change {
        Change::Zero(_) | Change::Compress => {
            let disk_end = disk.image.size_bytes() / SECTOR;
            let end = if end == disk_end { end } else { end / unit * unit };
            first.next_multiple_of(unit)..end.max(first.next_multiple_of(unit))
        }
        _ => first..end,
    }
}

fn reopened(disk: Disk, geometry: &Geometry) -> Disk {
    let Container { file, data } = disk.container;
    let container = Container {
        file: MemoryStorage::new(file.content()),
        data: data.map(|data| MemoryStorage::new(data.content())),
    };
    open_disk(container, geometry).expect("what was closed opens")
}

fn check_model(geometry: &Geometry, seed: u64) {
    let context = format!("seed {seed}, {geometry:?}");
    let mut random = Random::new(seed);
    let mut disk = new_disk(geometry);
    let model = std::cell::RefCell::new(Model::new(&disk));
    let sectors = model.borrow().sectors();
    for _ in 0..120 {
        match random.below(20) {
            0 => block_on(disk.image.flush(&disk.container)).expect(&context),
            1 => {
                block_on(disk.image.close(&disk.container)).expect(&context);
                disk = reopened(disk, geometry);
            }
            2 => model.borrow_mut().check(&disk, false, &context),
            _ => {
                let change = random_change(&mut random);
                let range = random_range(&mut random, sectors);
                block_on(apply(&disk, &model, change, range, true)).expect(&context);
            }
        }
    }
    model.borrow_mut().check(&disk, false, &context);
    block_on(disk.image.close(&disk.container)).expect(&context);
    assert!(!disk.image.has_pending(), "{context}");
    let report = check(&disk.container.file);
    assert!(report.is_clean(), "{context}: {report:?}");
    let disk = reopened(disk, geometry);
    model.borrow_mut().check(&disk, false, &context);
}

#[test]
fn contents_are_what_was_written_and_nothing_leaks() {
    for geometry in geometries() {
        for seed in 0..12 {
            check_model(&geometry, seed);
        }
    }
}

/// Small writes within sectors: what is around them stays.
#[test]
fn bytes_around_a_write_stay() {
    for geometry in geometries() {
        let disk = new_disk(&geometry);
        let size = disk.image.size_bytes() as usize;
        let mut expect = vec![0; size];
        block_on(disk.read(0, &mut expect)).expect("reads");
        let mut random = Random::new(7);
        for round in 0..200 {
            let offset = random.below(size as u64 - 1);
            let len = 1 + random.below((size as u64 - offset).min(9000));
            let bytes = vec![round as u8; len as usize];
            block_on(disk.write(offset, &bytes)).expect("writes");
            expect[offset as usize..][..len as usize].copy_from_slice(&bytes);
        }
        let mut content = vec![0; size];
        block_on(disk.read(0, &mut content)).expect("reads");
        assert!(content == expect, "{geometry:?}");
    }
}
