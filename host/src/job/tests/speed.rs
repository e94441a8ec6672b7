//! What a speed means: also where all data are one piece.

use super::scene::{BLOCK, disk, overlay, wait_for, write};
use crate::bitmap::{BitmapName, Granularity};
use crate::graph::{Action, BitmapRef, BitmapScope, ChildDecl, Transaction, Unproven};
use crate::job::{
    BackupSpec, CommitSpec, JobEnd, JobKind, JobSpec, JobStatus, MirrorSpec, PopulateFrom,
    PopulateSpec, StreamSpec,
};
use crate::{Host, block_on};

/// Bytes that a job may not yet call done.
const GRANULE: u64 = 64 << 10;

/// `base` ← `mid` ← `top`, of which `mid` has one block, and `copy`.
fn host() -> Host {
    let bitmap = (BitmapScope::Drive("vda".into()), BitmapName::new("b").expect("a name"));
    let host = Host::builder()
        .node("base", disk(), vec![])
        .node("mid", overlay(), vec![ChildDecl::backing("base")])
        .node("top", overlay(), vec![ChildDecl::backing("mid")])
        .node("copy", disk(), vec![])
        .drive("vda", "mid", true)
        .bitmap(bitmap.0, bitmap.1, Granularity::from_bytes(BLOCK).expect("a granularity"))
        .start()
        .expect("a host");
    write(&host, "vda", 5, 7);
    let go = Action::SetRoot { drive: "vda".into(), node: "top".into() };
    let go = Transaction::new().with_unproven(go, Unproven::MarkWhole);
    block_on(host.transact(go)).expect("a root");
    host
}

/// What a job copies it pays for before it is ready, or ends; and it can be paused, cancelled and made faster meanwhile.
fn check(what: JobKind) {
    for ends in [false, true] {
        let host = host();
        let spec = JobSpec { speed: 1, ..JobSpec::new("j", what.clone()) };
        let job = block_on(host.start_job(spec)).expect("a job");
        let is_copied = || {
            let progress = job.info().progress;
            progress.total_bytes > 0 && progress.done_bytes + GRANULE >= progress.total_bytes
        };
        assert!(wait_for(is_copied), "{what:?}: {:?}", job.info());
        assert_eq!(job.status(), JobStatus::Running, "{what:?}");
        job.pause().expect("a job that runs");
        assert_eq!(block_on(job.reaches(JobStatus::Paused)), JobStatus::Paused, "{what:?}");
        job.resume().expect("a job that stands still");
        assert_eq!(block_on(job.reaches(JobStatus::Running)), JobStatus::Running, "{what:?}");
        if ends {
            job.set_speed(0).expect("a job that runs");
            let at = block_on(job.comes_to(|at| at == JobStatus::Ready || at.is_over()));
            if at == JobStatus::Ready {
                // Who asks it to end does not wait for what it owes then.
                job.set_speed(1).expect("a job that is ready");
                write(&host, "vda", 9, 9);
                job.complete().expect("a job that is ready");
            }
            let end = block_on(job.wait());
            assert!(matches!(end, JobEnd::Completed), "{what:?}: {end:?}");
        } else {
            job.cancel(false).expect("a job that can be cancelled");
            let end = block_on(job.wait());
            assert!(matches!(end, JobEnd::Cancelled), "{what:?}: {end:?}");
        }
        host.shutdown().expect("an end in order");
    }
}

#[test]
fn what_is_streamed_or_committed_is_paid_for() {
    check(JobKind::Stream(StreamSpec { base: Some("base".into()), ..StreamSpec::of("top") }));
    check(JobKind::Stream(StreamSpec::of("top")));
    check(JobKind::Commit(CommitSpec { top: Some("mid".into()), ..CommitSpec::of("vda", "base") }));
    check(JobKind::Commit(CommitSpec::of("vda", "base")));
}

#[test]
fn what_is_copied_or_compared_is_paid_for() {
    check(JobKind::Mirror(MirrorSpec::of("vda", "copy")));
    check(JobKind::Backup(BackupSpec::of("vda", "copy")));
    let from = PopulateFrom::Difference { other: "copy".into() };
    let bitmap = BitmapRef::of_drive("vda", "b");
    check(JobKind::Populate(PopulateSpec { device: "vda".into(), bitmap, from }));
}
