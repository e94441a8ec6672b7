//! Backups of bytes in memory: the target holds what was there when the point in time was reached.

use std::time::Duration;

use blockloom_plugin_backup::BackupFilter;
use blockloom_sdk::testing::{Disk, Harness};
use blockloom_sdk::{Errno, Kind, Kinds, NodeIndex, Random};

const GRANULE: u64 = 4 << 10;
const SIZE: u64 = 32 * GRANULE;

fn then() -> Vec<u8> {
    (0..SIZE).map(|at| (at / 64 % 251) as u8 + 1).collect()
}

fn harness(config: &str, target: Disk) -> Harness<BackupFilter> {
    let config = format!(r#"{{"min-cluster-size":"4KiB",{config}}}"#);
    let children = [("file", Disk::new(then())), ("target", target)];
    Harness::with_children(&config, children).expect("a harness")
}

fn zeros() -> Disk {
    Disk::new(vec![0; SIZE as usize])
}

fn lines(host: &Harness<BackupFilter>) -> Vec<String> {
    host.logged().into_iter().map(|(_, line)| line).collect()
}

/// One change of chance, of which the disk's future state is told by the filter's child.
fn change(host: &mut Harness<BackupFilter>, random: &Random) {
    let at = random.below(SIZE - 1);
    let len = random.below(3 * GRANULE).min(SIZE - at);
    match random.below(4) {
        0 => drop(host.submit(Kind::Zero, at, len)),
        1 => drop(host.submit(Kind::Discard, at, len)),
        _ => drop(host.write(at, &vec![0xee; len as usize])),
    }
}

#[test]
fn a_full_backup_in_any_order_of_events() {
    for seed in 0..100 {
        let random = Random::new(seed);
        let mut host = harness(r#""max-workers":3"#, zeros());
        host.run_in_any_order(&Random::new(seed));
        // Before the point in time is reached there is nothing to change: this harness reached it.
        assert_eq!(host.disk("target").bytes(), then());
        let mut host = harness(r#""max-workers":3,"speed":"64KiB""#, zeros());
        for _ in 0..20 {
            change(&mut host, &random);
            host.run_in_any_order(&random);
            change(&mut host, &random);
            change(&mut host, &random);
            host.run_for(Duration::from_millis(random.below(100)));
        }
        host.run_for(Duration::from_secs(10));
        assert!(host.disk("target").bytes() == then(), "seed {seed}");
        assert_eq!(lines(&host).last().map(String::as_str), Some("the backup is complete"));
        assert_eq!(host.rules(NodeIndex(0)), Some((vec![], 2)), "nothing is asked any more");
    }
}

#[test]
fn without_a_background_copy_each_granule_is_kept_once() {
    let mut host = harness(r#""sync":"none""#, zeros());
    host.run();
    for byte in 1..4 {
        let write = host.write(5 * GRANULE + 100, &[byte; 100]);
        host.run();
        assert_eq!(host.result(write), Some(Ok(vec![])));
    }
    let mut expect = vec![0; SIZE as usize];
    let granule = 5 * GRANULE as usize..6 * GRANULE as usize;
    expect[granule.clone()].copy_from_slice(&then()[granule]);
    assert!(host.disk("target").bytes() == expect);
    assert_eq!(host.disk("file").bytes()[5 * GRANULE as usize + 100], 3);
}

#[test]
fn a_failed_copy_fails_the_write_or_the_backup() {
    for (on_error, is_write_failed) in [("break-guest-write", true), ("break-snapshot", false)] {
        let config = format!(r#""sync":"none","on-cbw-error":"{on_error}""#);
        let mut host = harness(&config, zeros());
        host.run();
        host.disk_mut("target").fail(Kinds::WRITE, 0..SIZE, Errno::ENOSPC, 1);
        let write = host.write(0, &[9; 10]);
        host.run();
        let expect = if is_write_failed { Err(Errno::ENOSPC) } else { Ok(vec![]) };
        assert_eq!(host.result(write), Some(expect), "{on_error}");
        let is_broken = lines(&host).iter().any(|line| line.starts_with("the backup is broken"));
        assert_eq!(is_broken, !is_write_failed);
        if is_write_failed {
            // What failed is done again for the next one.
            let write = host.write(0, &[9; 10]);
            host.run();
            assert_eq!(host.result(write), Some(Ok(vec![])));
            let granule = ..GRANULE as usize;
            assert!(host.disk("target").bytes()[granule] == then()[granule]);
        }
    }
}

#[test]
fn a_write_waits_no_longer_than_it_is_told_to() {
    let mut host = harness(r#""sync":"none","cbw-timeout":"50ms""#, zeros());
    host.run();
    let write = host.write(0, &[9; 10]);
    assert_eq!(host.operations().len(), 1, "the copy");
    host.advance(Duration::from_millis(50));
    assert_eq!(host.result(write), Some(Err(Errno::ETIMEDOUT)));
}

#[test]
fn a_new_instance_goes_on_where_the_former_one_was() {
    for seed in 0..50 {
        let random = Random::new(seed);
        let mut host = harness(r#""speed":"64KiB""#, zeros());
        host.run_for(Duration::from_millis(random.below(1500)));
        change(&mut host, &random);
        host.restart().expect("it goes on");
        for _ in 0..10 {
            change(&mut host, &random);
            host.run_for(Duration::from_millis(random.below(200)));
        }
        host.run_for(Duration::from_secs(10));
        assert!(host.disk("target").bytes() == then(), "seed {seed}");
    }
}

/// Each wait for a copy is over with it: so many writes in so short a time have no more in flight than one does.
#[test]
fn waits_that_are_over_count_no_more() {
    const GRANULES: u64 = 2000;
    let disk = || Disk::new(vec![7; (GRANULES * 512) as usize]);
    let config = r#"{"min-cluster-size":512,"sync":"none","cbw-timeout":"30s"}"#;
    let children = [("file", disk()), ("target", disk())];
    let mut host: Harness<BackupFilter> =
        Harness::with_children(config, children).expect("a harness");
    host.run();
    for granule in 0..GRANULES {
        let write = host.write(granule * 512, &[9; 10]);
        host.run();
        assert_eq!(host.result(write), Some(Ok(vec![])), "write {granule}");
    }
}

/// The next version goes on from the bitmaps, and what has been copied is not copied again.
#[test]
fn a_backup_goes_on_in_the_next_version() {
    for seed in 0..20 {
        let random = Random::new(seed);
        let mut host = harness(r#""sync":"full""#, zeros());
        host.run();
        for _ in 0..3 {
            change(&mut host, &random);
            host.run_in_any_order(&random);
            let config = r#"{"min-cluster-size":"4KiB","sync":"full"}"#;
            host = host.replace::<BackupFilter>(config).expect("replaced");
        }
        host.run();
        assert_eq!(host.disk("target").bytes(), then(), "seed {seed}");
        assert!(!lines(&host).iter().any(|line| line.contains("broken")), "{:?}", lines(&host));
    }
}

/// What a disk gains is none of the backup's, whose target is no longer than the disk was; also for a new instance.
#[test]
fn a_disk_that_grows_is_backed_up_as_it_was() {
    for (seed, sync) in (0..20).flat_map(|seed| [(seed, "full"), (seed, "none")]) {
        let random = Random::new(seed);
        let mut host = harness(&format!(r#""sync":"{sync}","speed":"64KiB""#), zeros());
        host.run_for(Duration::from_millis(random.below(300)));
        for round in 1..4 {
            let size_bytes = SIZE + round * 3 * GRANULE + 512;
            let resize = host.submit(Kind::Resize, 0, size_bytes);
            host.run();
            assert_eq!(host.result(resize), Some(Ok(vec![])));
            for at in [SIZE - 100, size_bytes - 512, SIZE + random.below(GRANULE)] {
                let write = host.write(at, &[round as u8; 300]);
                host.run_for(Duration::from_millis(1));
                assert_eq!(host.result(write), Some(Ok(vec![])), "seed {seed}, at {at}");
            }
            host.restart().expect("it goes on");
            change(&mut host, &random);
        }
        if sync == "none" {
            for granule in 0..SIZE / GRANULE {
                host.write(granule * GRANULE, &[7; 10]);
            }
        }
        host.run_for(Duration::from_secs(10));
        assert!(host.disk("target").bytes() == then(), "seed {seed}, {sync}");
        assert!(!lines(&host).iter().any(|line| line.contains("broken")), "{:?}", lines(&host));
    }
}
