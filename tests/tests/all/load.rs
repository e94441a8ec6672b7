//! Mixed random load with fio, verified, from several jobs at once.

use blockloom_tests::tools::{fio, have};

use crate::stack::{STACKS, Stack};
use crate::{MIB, scratch};

/// Four jobs, each with a part of the drive of its own; what they read back is checked against its
/// checksums during the run and once more after it.
fn check_load(stack: &Stack, mode: &str) {
    let scratch = scratch();
    let daemon = stack.serve(&scratch, 64 * MIB);
    let report = fio(&[
        "name=verify",
        "ioengine=nbd",
        &format!("uri={}", daemon.uri("vda")),
        &format!("rw={mode}"),
        "bsrange=512-64k",
        "blockalign=512",
        "size=16M",
        "offset_increment=16M",
        "io_size=24M",
        "numjobs=4",
        "iodepth=16",
        "verify=crc32c",
        "verify_fatal=1",
        "verify_backlog=64",
        "verify_state_save=0",
        "randrepeat=1",
        "group_reporting=1",
    ]);
    let job = &report["jobs"][0];
    for direction in ["read", "write"] {
        assert!(job[direction]["total_ios"].as_u64() > Some(500), "{stack}: {direction}: {job}");
    }
    let log = daemon.finish();
    assert!(!log.contains(" errors"), "{stack}: {log}");
}

#[test]
fn random_load_verifies() {
    if !have(&["fio"]) {
        return;
    }
    for stack in &STACKS {
        check_load(stack, "randrw");
    }
}

#[test]
fn load_with_discards_verifies() {
    if !have(&["fio"]) {
        return;
    }
    for stack in &STACKS[..4] {
        check_load(stack, "randrw:4");
    }
}
