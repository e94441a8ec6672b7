//! Writes that were abandoned and land later: nobody else's bytes are where they land.

use std::task::{Context, Waker};

use super::options;
use crate::image::{Allocation, Image, Step, Turn};
use crate::testing::{Container, Disk, Geometry, MemoryStorage, blank_image, block_on};

const CLUSTER: u64 = 4096;

fn new_disk() -> Disk {
    let geometry = Geometry { cluster_bits: 12, ..Geometry::usual(1 << 20) };
    let container = Container { file: MemoryStorage::new(blank_image(&geometry)), data: None };
    let image = block_on(Image::open(&container, &options())).expect("opens");
    let disk = Disk { image, container, backing: None };
    // Some epochs have passed, so that one that is taken for an earlier one is noticed.
    for _ in 0..8 {
        block_on(disk.write(0, &[9; CLUSTER as usize])).expect("writes");
        block_on(disk.image.discard(&disk.container, 0, CLUSTER)).expect("discards");
        flush(&disk);
    }
    assert!(disk.image.turns.epoch() > 2);
    disk
}

fn allocation<'t>(disk: &Disk, turn: &'t Turn<'_>, offset: u64, len: u64) -> Allocation<'t> {
    match block_on(disk.image.prepare_write(turn, &disk.container, offset, len)) {
        Ok(Step::Allocate(allocation)) => allocation,
        other => panic!("{other:?}"),
    }
}

fn flush(disk: &Disk) {
    block_on(disk.image.flush(&disk.container)).expect("flushes");
}

/// Host clusters of an abandoned allocation are not given to others before its turn ends.
#[test]
fn a_late_write_finds_its_cluster_unused() {
    let disk = new_disk();
    let turn = disk.image.enter();
    let abandoned = allocation(&disk, &turn, 0, CLUSTER);
    let late = abandoned.host();
    drop(abandoned);
    for index in 1..20 {
        block_on(disk.write(index * CLUSTER, &[index as u8; CLUSTER as usize])).expect("writes");
        flush(&disk);
    }
    disk.container.file.write_now(late.0, &[0xee; CLUSTER as usize]);
    for index in 0..20 {
        let mut read = [0; CLUSTER as usize];
        block_on(disk.read(index * CLUSTER, &mut read)).expect("reads");
        assert_eq!(read, [index as u8; CLUSTER as usize]);
    }
    drop(turn);
    flush(&disk);
    block_on(disk.image.close(&disk.container)).expect("closes");
    assert!(super::check(&disk.container.file).is_clean());
}

/// The same for a cluster that was freed while a write in place was in flight, and for one that a
/// reader had looked up.
#[test]
fn a_freed_cluster_is_not_used_again_while_it_may_be_accessed() {
    let disk = new_disk();
    block_on(disk.write(0, &[1; CLUSTER as usize])).expect("writes");
    let turn = disk.image.enter();
    let (host, _) = disk.image.prepare_write_cached(&turn, 0, 100).expect("in place");
    block_on(disk.image.discard(&disk.container, 0, CLUSTER)).expect("discards");
    for index in 1..20 {
        flush(&disk);
        block_on(disk.write(index * CLUSTER, &[index as u8; CLUSTER as usize])).expect("writes");
    }
    disk.container.file.write_now(host.0, &[0xee; 100]);
    for index in 1..20 {
        let mut read = [0; CLUSTER as usize];
        block_on(disk.read(index * CLUSTER, &mut read)).expect("reads");
        assert_eq!(read, [index as u8; CLUSTER as usize]);
    }
    drop(turn);
    flush(&disk);
    flush(&disk);
    let turn = disk.image.enter();
    // The next allocation begins anew where something was freed.
    let reused = (20..40).any(|index| allocation(&disk, &turn, index * CLUSTER, 1).host() == host);
    assert!(reused, "after the turn the cluster is used again");
}

/// Others wait for the guest cluster of an abandoned write into a reserved host cluster, until its turn
/// ends: its fills would land over theirs.
#[test]
fn a_late_fill_lands_before_others_write() {
    let disk = new_disk();
    block_on(disk.write(0, &[1; CLUSTER as usize])).expect("writes");
    block_on(disk.image.zero(&disk.container, 0, CLUSTER, true)).expect("zeroes");
    let turn = disk.image.enter();
    let abandoned = allocation(&disk, &turn, 0, 100);
    let span = abandoned.span();
    assert_eq!(span.end - span.start, CLUSTER);
    drop(abandoned);
    let mut other = Box::pin(disk.write(2000, &[2; 100]));
    let mut context = Context::from_waker(Waker::noop());
    assert!(other.as_mut().poll(&mut context).is_pending(), "the cluster is held");
    disk.container.file.write_now(span.start, &vec![0; CLUSTER as usize]);
    drop(turn);
    block_on(other).expect("writes");
    let mut read = [0; 100];
    block_on(disk.read(2000, &mut read)).expect("reads");
    assert_eq!(read, [2; 100]);
}

/// Released instead of dropped, nobody waits.
#[test]
fn what_is_released_is_free_at_once() {
    let disk = new_disk();
    let turn = disk.image.enter();
    allocation(&disk, &turn, 0, 100).release();
    let again = allocation(&disk, &turn, 0, 100);
    block_on(disk.image.commit(&disk.container, again)).expect("commits");
}
