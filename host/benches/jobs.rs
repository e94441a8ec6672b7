//! Jobs beside a guest: how fast they copy, and how long the guest waits.
//!
//! `cargo bench --bench jobs` runs each kind of job on disks in memory, alone and beside a guest that writes
//! and reads 4 KiB at random, one after the other; and the guest alone. It prints a table: throughput of each
//! job, median and 99th percentile of the guest's requests, and their ratio to the guest alone. With `-- --quick`
//! disks are an eighth as large. A shared machine proves nothing: it prints, and does not fail.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use blockloom::bitmap::{BitmapName, Granularity};
use blockloom::graph::{BitmapRef, BitmapScope, ChildDecl};
use blockloom::job::{
    BackupSpec, BackupSync, CommitSpec, CopyMode, JobEnd, JobKind, JobSpec, JobStatus, MirrorSpec,
    StreamSpec,
};
use blockloom::node::MemoryNode;
use blockloom::{Drive, Error, ErrorKind, Host, Result, block_on};

const REQUEST_BYTES: u64 = 4096;
const CHUNK_BYTES: u64 = 1 << 20;
/// Of the guest alone.
const ALONE: Duration = Duration::from_secs(1);

/// A disk, all of it written, below an overlay in which every other MiB is; and a disk to copy to.
fn host(size_bytes: u64) -> Result<Host> {
    let host = Host::builder()
        .node("base", MemoryNode::new(size_bytes, 512)?, vec![])
        .node("top", MemoryNode::overlay(size_bytes, 65536)?, vec![ChildDecl::backing("base")])
        .node("copy", MemoryNode::new(size_bytes, 512)?, vec![])
        .drive("fill", "base", true)
        .bitmap(BitmapScope::Node("base".into()), BitmapName::new("b")?, Granularity::DEFAULT)
        .start()?;
    fill(&host.drive("fill")?, size_bytes, CHUNK_BYTES)?;
    let moved = blockloom::graph::Action::SetRoot { drive: "fill".into(), node: "top".into() };
    let moved = blockloom::graph::Transaction::new()
        .with_unproven(moved, blockloom::graph::Unproven::MarkWhole);
    block_on(host.transact(moved))?;
    fill(&host.drive("fill")?, size_bytes, 2 * CHUNK_BYTES)?;
    let bitmap = blockloom::graph::BitmapDecl {
        scope: BitmapScope::Drive("fill".into()),
        name: BitmapName::new("b")?,
        granularity: Granularity::DEFAULT,
        enabled: true,
    };
    block_on(host.add_bitmap(bitmap))?;
    // One in a hundred granules is dirty.
    let (drive, data) = (host.drive("fill")?, vec![3; 65536]);
    let mut at = 0;
    while at < size_bytes {
        block_on(drive.write(at, &data))?;
        at += 100 * 65536;
    }
    Ok(host)
}

fn fill(drive: &Drive, size_bytes: u64, step: u64) -> Result<()> {
    let data = vec![7; CHUNK_BYTES as usize];
    let mut at = 0;
    while at < size_bytes {
        block_on(drive.write(at, &data))?;
        at += step;
    }
    Ok(())
}

/// Requests at random, one after the other; how long each took.
fn guest(drive: &Drive, size_bytes: u64, over: &AtomicBool) -> Result<Vec<Duration>> {
    let (mut times, data) = (Vec::new(), [1; REQUEST_BYTES as usize]);
    let mut state = 1_u64;
    while !over.load(SeqCst) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let offset = (state >> 20) % (size_bytes / REQUEST_BYTES) * REQUEST_BYTES;
        let began = Instant::now();
        if state >> 63 == 0 {
            block_on(drive.write(offset, &data))?;
        } else {
            block_on(drive.read(offset, REQUEST_BYTES as usize))?;
        }
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

/// Runs a job to its end; bytes that it has done, and how long that took.
fn run(host: &Host, what: JobKind) -> Result<(u64, Duration)> {
    let began = Instant::now();
    let job = block_on(host.start_job(JobSpec::new("job", what)))?;
    if block_on(job.comes_to(|at| at == JobStatus::Ready || at.is_over())) == JobStatus::Ready {
        job.cancel(false)?;
    }
    match block_on(job.wait()) {
        JobEnd::Failed(error) => Err(error),
        _ => Ok((job.info().progress.done_bytes, began.elapsed())),
    }
}

fn kinds() -> Vec<(&'static str, JobKind)> {
    let mirror =
        |copy_mode| JobKind::Mirror(MirrorSpec { copy_mode, ..MirrorSpec::of("fill", "copy") });
    let incremental = BackupSpec {
        sync: BackupSync::Incremental,
        bitmap: Some(BitmapRef::of_drive("fill", "b")),
        ..BackupSpec::of("fill", "copy")
    };
    vec![
        ("backup full", JobKind::Backup(BackupSpec::of("fill", "copy"))),
        ("backup incremental", JobKind::Backup(incremental)),
        ("mirror background", mirror(CopyMode::Background)),
        ("mirror write-blocking", mirror(CopyMode::WriteBlocking)),
        ("commit", JobKind::Commit(CommitSpec::of("fill", "base"))),
        ("stream", JobKind::Stream(StreamSpec::of("fill"))),
    ]
}

fn beside<T: Send>(
    host: &Host,
    size_bytes: u64,
    job: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<Duration>)> {
    let (drive, over) = (host.drive("fill")?, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| guest(&drive, size_bytes, &over));
        let done = job();
        over.store(true, SeqCst);
        let panicked = |_| Error::new(ErrorKind::Io, "the guest has panicked");
        let times = guest.join().map_err(panicked)??;
        Ok((done?, times))
    })
}

fn at(times: &[Duration], percent: usize) -> Duration {
    times.get(times.len() * percent / 100).or_else(|| times.last()).copied().unwrap_or_default()
}

fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / (1 << 20) as f64 / time.as_secs_f64()
}

/// How fast do jobs copy, and how long does a guest wait meanwhile?
fn main() -> Result<()> {
    let is_quick = std::env::args().any(|argument| argument == "--quick");
    let size_bytes: u64 = if is_quick { 128 << 20 } else { 1 << 30 };
    let idle = host(size_bytes)?;
    let ((), alone) = beside(&idle, size_bytes, || {
        std::thread::sleep(ALONE);
        Ok(())
    })?;
    idle.shutdown()?;
    let alone = [50, 99].map(|percent| at(&alone, percent));
    println!("{:24} {:>10} {:>12} {:>12} {:>12}", "", "MiB/s", "beside", "median", "p99");
    println!("{:24} {:>10} {:>12} {:>12.1?} {:>12.1?}", "guest alone", "", "", alone[0], alone[1]);
    for (name, what) in kinds() {
        let by_itself = host(size_bytes)?;
        let (bytes, time) = run(&by_itself, what.clone())?;
        by_itself.shutdown()?;
        let host = host(size_bytes)?;
        let ((bytes_beside, time_beside), times) = beside(&host, size_bytes, || run(&host, what))?;
        host.shutdown()?;
        let [median, p99] = [50, 99].map(|percent| at(&times, percent));
        println!(
            "{name:24} {:>10.0} {:>12.0} {median:>12.1?} {p99:>12.1?}  {:.1} x the guest alone",
            rate(bytes, time),
            rate(bytes_beside, time_beside),
            p99.as_secs_f64() / alone[1].as_secs_f64().max(f64::EPSILON),
        );
    }
    Ok(())
}
