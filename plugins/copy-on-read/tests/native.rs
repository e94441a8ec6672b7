//! Copy-on-read over bytes in memory.
#![allow(clippy::single_range_in_vec_init, reason = "a list of ranges may have one")]

use blockloom_plugin_copy_on_read::CopyOnRead;
use blockloom_sdk::testing::{Disk, Harness};
use blockloom_sdk::{Errno, Kinds, Random};

const KIB: u64 = 1 << 10;
const SIZE: u64 = 4 << 20;

fn below() -> Vec<u8> {
    (0..SIZE).map(|at| (at / 512 % 251) as u8).collect()
}

fn harness(file: Disk) -> Harness<CopyOnRead> {
    Harness::with_children("{}", [("file", file)]).expect("a harness")
}

#[test]
fn what_is_read_is_kept() {
    let mut host = harness(Disk::overlay(below()));
    let read = host.read(64 * KIB, 8 * KIB);
    host.run();
    let expect = below()[64 << 10..72 << 10].to_vec();
    assert_eq!(host.result(read), Some(Ok(expect)));
    assert_eq!(host.disk("file").allocated(), std::slice::from_ref(&(64 * KIB..72 * KIB)));
    assert_eq!(host.disk("file").bytes(), below(), "nothing looks different");
}

#[test]
fn what_is_there_is_not_asked_about_and_a_long_read_is_copied_in_pieces() {
    let mut host = harness(Disk::overlay(below()));
    let all = host.read(0, SIZE);
    host.run();
    assert_eq!(host.result(all), Some(Ok(below())));
    assert_eq!(host.disk("file").allocated(), std::slice::from_ref(&(0..SIZE)));
    let again = host.read(0, 1);
    assert!(host.operations().is_empty());
    host.run();
    assert_eq!(host.result(again), Some(Ok(below()[..1].to_vec())));
}

#[test]
fn a_copy_that_fails_costs_the_reader_nothing() {
    let mut disk = Disk::overlay(below());
    disk.fail(Kinds::WRITE, 0..SIZE, Errno::ENOSPC, 1);
    let mut host = harness(disk);
    let read = host.read(0, 4 * KIB);
    host.run();
    assert_eq!(host.result(read), Some(Ok(below()[..4 << 10].to_vec())));
    assert_eq!(host.disk("file").allocated(), []);
}

#[test]
fn nothing_is_copied_from_below_the_bottom() {
    let (file, mut bottom) = (Disk::overlay(below()), Disk::overlay(below()));
    bottom.write(0, &below()[..4 << 10]);
    let mut host: Harness<CopyOnRead> =
        Harness::with_children("{}", [("file", file), ("bottom", bottom)]).expect("a harness");
    let read = host.read(0, 64 * KIB);
    host.run();
    assert_eq!(host.result(read), Some(Ok(below()[..64 << 10].to_vec())));
    assert_eq!(host.disk("file").allocated(), std::slice::from_ref(&(0..4 * KIB)));
}

/// Reads and writes at once, in any order, leave the bytes of the writes.
#[test]
fn no_copy_overwrites_what_was_written() {
    for seed in 0..200 {
        let random = Random::new(seed);
        let mut host = harness(Disk::overlay(below()));
        let mut model = below();
        // Writes that do not overlap may end in any order.
        for slot in 0..16 {
            let at = slot * 8 * KIB + random.below(7 * KIB);
            host.read(at.saturating_sub(2048), 8 * KIB);
            let bytes = [seed as u8 ^ 0x55; 700];
            host.write(at, &bytes);
            model[at as usize..at as usize + 700].copy_from_slice(&bytes);
        }
        host.run_in_any_order(&random);
        assert!(host.disk("file").bytes() == model, "seed {seed}");
    }
}
