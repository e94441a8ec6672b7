//! The rate of a throttle as a client measures it, once the burst is spent.

use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

use blockloom_tests::tools::{fio, have};
use serde_json::Value;

use crate::{MIB, scratch, serve};

/// Measurements take turns: each needs the machine more than other tests do.
static MEASURING: Mutex<()> = Mutex::new(());

/// Attempts until a busy machine has let the load be made. More than the rate is never excused.
const ATTEMPTS: usize = 4;
const DRIFT_MAX: f64 = 0.02;

const TWINS: [&str; 2] = ["driver = \"plugin\"\nplugin = \"throttle\"", "driver = \"throttle\""];

/// Drives `d0`, `d1`, … on memory, each behind a throttle of its own or of a shared instance.
fn graph(twin: &str, config: &str, drives: usize) -> String {
    let drive = |number| {
        let instance = if drives > 1 { "instance = \"group\"\n" } else { "" };
        format!(
            "[node.m{number}]\ndriver = \"memory\"\nsize = \"64MiB\"\n\
             [node.t{number}]\n{twin}\n{instance}child.file = \"m{number}\"\nconfig = {{ {config} }}\n\
             [drive.d{number}]\nroot = \"t{number}\"\n\
             [export.d{number}]\ntype = \"nbd\"\ndrive = \"d{number}\"\n\
             listen = \"unix:nbd.sock\"\nwritable = true\n"
        )
    };
    (0..drives).map(drive).collect()
}

/// One job's options: which drive, what it does, how large requests are, how many at once.
type Job = (usize, &'static str, &'static str, u32);

/// Runs jobs at once: a second to spend the burst, then three that count. Gives fio's jobs.
fn measure(twin: &str, config: &str, drives: usize, jobs: &[Job]) -> Vec<Value> {
    let scratch = scratch();
    let daemon = serve(&scratch, &graph(twin, config, drives), &[]);
    let mut options: Vec<String> =
        ["ioengine=nbd", "time_based=1", "ramp_time=1s", "runtime=3s", "size=64M", "thread=1"]
            .map(str::to_owned)
            .to_vec();
    for (drive, mode, block, depth) in jobs {
        let uri = daemon.uri(&format!("d{drive}"));
        options.push(format!("name={mode}-{drive}"));
        options.extend([format!("uri={uri}"), format!("rw={mode}"), format!("bs={block}")]);
        options.push(format!("iodepth={depth}"));
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let report = fio(&options);
    daemon.finish();
    report["jobs"].as_array().expect("jobs").clone()
}

fn iops(job: &Value) -> f64 {
    ["read", "write"].iter().map(|it| job[it]["iops"].as_f64().expect("a rate")).sum()
}

fn bytes_per_second(job: &Value) -> f64 {
    ["read", "write"].iter().map(|it| job[it]["bw_bytes"].as_f64().expect("a rate")).sum()
}

/// Measures until the rate that `rate` finds is within [`DRIFT_MAX`] of `expect`; gives the jobs.
fn check(
    twin: &str,
    config: &str,
    drives: usize,
    jobs: &[Job],
    rate: impl Fn(&[Value]) -> f64,
    expect: f64,
) -> Vec<Value> {
    check_shares(twin, config, drives, jobs, (rate, expect), 0.0..=1.0)
}

/// The same, until each job also has a share of the rate within `shares`.
fn check_shares(
    twin: &str,
    config: &str,
    drives: usize,
    jobs: &[Job],
    (rate, expect): (impl Fn(&[Value]) -> f64, f64),
    shares: RangeInclusive<f64>,
) -> Vec<Value> {
    let _turn = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = Vec::new();
    for _ in 0..ATTEMPTS {
        let jobs = measure(twin, config, drives, jobs);
        let drift = rate(&jobs) / expect - 1.0;
        let of_jobs: Vec<f64> = jobs.iter().map(|job| iops(job) / total_iops(&jobs)).collect();
        found.push(format!("{:+.2} %, shares {of_jobs:.2?}", drift * 100.0));
        assert!(drift < DRIFT_MAX, "{twin}, {config}: off the rate by {found:?}");
        if drift > -DRIFT_MAX && of_jobs.iter().all(|share| shares.contains(share)) {
            return jobs;
        }
    }
    panic!("{twin}, {config}: off the rate by {found:?}, where shares are {shares:?}");
}

fn total_iops(jobs: &[Value]) -> f64 {
    jobs.iter().map(iops).sum()
}

#[test]
fn iops_are_exact() {
    if !have(&["fio"]) {
        return;
    }
    for twin in TWINS {
        check(twin, "iops = 1000", 1, &[(0, "randread", "4k", 16)], total_iops, 1000.0);
        check(twin, "iops = 20000", 1, &[(0, "randrw", "4k", 64)], total_iops, 20_000.0);
    }
}

#[test]
fn bytes_per_second_are_exact() {
    if !have(&["fio"]) {
        return;
    }
    for twin in TWINS {
        let total = |jobs: &[Value]| jobs.iter().map(bytes_per_second).sum();
        let jobs = [(0, "randwrite", "64k", 16)];
        check(twin, "bps = \"80MiB\"", 1, &jobs, total, (80 * MIB) as f64);
    }
}

/// Reads and writes have limits of their own, also when both are under way.
#[test]
fn reads_and_writes_are_limited_separately() {
    if !have(&["fio"]) {
        return;
    }
    for twin in TWINS {
        let config = "iops-read = 3000, iops-write = 1000";
        let jobs = [(0, "randread", "4k", 16), (0, "randwrite", "4k", 16)];
        let jobs = check(twin, config, 1, &jobs, |jobs| iops(&jobs[0]), 3000.0);
        let writes = iops(&jobs[1]);
        assert!((writes / 1000.0 - 1.0).abs() < DRIFT_MAX, "{twin}: {writes} writes a second");
    }
}

/// Nodes that name one instance share its limits, and share them fairly.
#[test]
fn a_group_shares_its_rate() {
    if !have(&["fio"]) {
        return;
    }
    for twin in TWINS {
        let jobs = [(0, "randread", "4k", 16), (1, "randwrite", "4k", 16)];
        check_shares(twin, "iops = 4000", 2, &jobs, (total_iops, 4000.0), 0.4..=0.6);
    }
}

/// Two busy drives of one group have equal shares, whatever their depths.
#[test]
fn a_group_is_fair_whatever_the_depth() {
    if !have(&["fio"]) {
        return;
    }
    for twin in TWINS {
        // One at a time can do as much as half of it, on a busy machine, too.
        let jobs = [(0, "randread", "4k", 1), (1, "randread", "4k", 32)];
        check_shares(twin, "iops = 300", 2, &jobs, (total_iops, 300.0), 0.425..=0.575);
    }
}
