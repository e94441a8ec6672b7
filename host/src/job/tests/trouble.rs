//! Mirrors whose target fails, or whose source is written all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::scene::{
    BLOCK, Over, Slow, Worn, chain, dirty, disk, fill_chain, load, of_drive, shown, shown_by,
    wait_for, write,
};
use crate::bitmap::Granularity;
use crate::graph::{BitmapRef, ChildDecl, Event, Events};
use crate::job::{
    BitmapMode, CopyMode, ErrorAction, JobEnd, JobEvent, JobKind, JobNews, JobSpec, JobStatus,
    MirrorSpec, MirrorSync, OnError,
};
use crate::{Host, block_on};

/// How long a guest writes that would go on for ever.
const MOST: Duration = Duration::from_secs(3);

fn mirror(spec: MirrorSpec) -> JobSpec {
    JobSpec::new("m", JobKind::Mirror(spec))
}

/// A host whose `copy` cannot be written at one block.
fn host_with_worn() -> (Host, Worn) {
    let worn = Worn::default();
    let host = chain()
        .node("store", disk(), vec![])
        .node("copy", worn.clone(), vec![ChildDecl::filtered("store")])
        .start()
        .expect("a host");
    fill_chain(&host);
    (host, worn)
}

/// Also whoever comes as soon as it is told.
#[test]
fn who_sees_that_a_job_has_ended_sees_how() {
    let (host, worn) = host_with_worn();
    worn.bad.store(30 * BLOCK, Ordering::SeqCst);
    let mut events = host.events();
    for _ in 0..50 {
        let spec = JobSpec { auto_dismiss: false, ..mirror(MirrorSpec::of("vda", "copy")) };
        let job = block_on(host.start_job(spec)).expect("a job");
        loop {
            let event = block_on(events.next()).expect("a host").event;
            if let Event::Job(JobEvent { what: JobNews::Status(JobStatus::Concluded), .. }) = event
            {
                break;
            }
        }
        assert!(matches!(job.info().end, Some(JobEnd::Failed(_))), "{:?}", job.info());
        assert!(matches!(block_on(job.wait()), JobEnd::Failed(_)));
        job.dismiss().expect("a job that has ended");
    }
    host.shutdown().expect("an end in order");
}

/// Waits until a job has met so many errors, and gone on without being ready.
fn meets_errors(events: &mut Events, count: usize) {
    let mut met = 0;
    while met < count {
        let event = block_on(events.next()).expect("a host").event;
        let Event::Job(JobEvent { what, .. }) = event else { continue };
        match what {
            JobNews::Error { action, .. } => {
                assert_eq!(action, ErrorAction::Ignore);
                met += 1;
            }
            JobNews::Status(status) => assert_ne!(status, JobStatus::Ready),
            _ => {}
        }
    }
}

/// By `always` a bitmap says what is still to be copied, also of a mirror that has failed.
#[test]
fn a_mirror_that_fails_leaves_what_it_has_not_copied() {
    let check = |mode: BitmapMode, left: &[u64]| {
        let (host, worn) = host_with_worn();
        for block in [20, 30, 900] {
            write(&host, "vda", block, 5);
        }
        worn.bad.store(30 * BLOCK, Ordering::SeqCst);
        let sync = MirrorSync::Bitmap(BitmapRef::of_drive("vda", "b"), mode);
        let granularity = Granularity::from_bytes(BLOCK).ok();
        let spec = MirrorSpec { sync, granularity, ..MirrorSpec::of("vda", "copy") };
        let spec = JobSpec { on_target_error: Some(OnError::Ignore), ..mirror(spec) };
        let mut events = host.events();
        let job = block_on(host.start_job(spec)).expect("a job");
        // By the second one it has tried all else.
        meets_errors(&mut events, 2);
        job.cancel(true).expect("a job that can be cancelled");
        assert!(matches!(block_on(job.wait()), JobEnd::Cancelled));
        assert_eq!(dirty(&host, &of_drive()), left, "{mode:?}");
        let copied = &shown_by(&host, "store")[(20 * BLOCK) as usize..(21 * BLOCK) as usize];
        assert_eq!(copied, [5; BLOCK as usize]);
        host.shutdown().expect("an end in order");
    };
    check(BitmapMode::Always, &[30]);
    check(BitmapMode::OnSuccess, &[20, 30, 900]);
    check(BitmapMode::Never, &[20, 30, 900]);
}

/// What cannot be copied is tried for as long as it takes: the job is not ready before, and can be cancelled.
#[test]
fn a_mirror_that_ignores_errors_is_ready_when_all_is_copied() {
    for is_cancelled in [false, true] {
        let (host, worn) = host_with_worn();
        let expect = shown(&host, "vda");
        worn.bad.store(500 * BLOCK, Ordering::SeqCst);
        let mut events = host.events();
        let on_target_error = Some(OnError::Ignore);
        let spec = JobSpec { on_target_error, ..mirror(MirrorSpec::of("vda", "copy")) };
        let job = block_on(host.start_job(spec)).expect("a job");
        meets_errors(&mut events, 5);
        let info = job.info();
        assert_eq!(info.status, JobStatus::Running);
        assert!(info.progress.done_bytes < info.progress.total_bytes, "{info:?}");
        if is_cancelled {
            job.cancel(false).expect("a job that can be cancelled");
            assert!(matches!(block_on(job.wait()), JobEnd::Cancelled));
        } else {
            worn.bad.store(u64::MAX, Ordering::SeqCst);
            assert_eq!(block_on(job.reaches(JobStatus::Ready)), JobStatus::Ready);
            let progress = job.info().progress;
            assert_eq!(progress.done_bytes, progress.total_bytes);
            job.complete().expect("a job that is ready");
            assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
        }
        assert!(shown(&host, "vda") == expect);
        host.shutdown().expect("an end in order");
    }
}

/// While guests write, neither what is done nor what there is to do gets less, and all is done when it is ready, not
/// before.
#[test]
fn a_mirror_tells_how_far_it_is() {
    for copy_mode in [CopyMode::Background, CopyMode::WriteBlocking] {
        let slow = Slow { time: Duration::from_micros(200), failures: Arc::default() };
        let host = chain()
            .node("store", disk(), vec![])
            .node("copy", slow, vec![ChildDecl::filtered("store")])
            .start()
            .expect("a host");
        fill_chain(&host);
        let over = AtomicBool::new(false);
        let began = Instant::now();
        let job = std::thread::scope(|scope| {
            let guest = scope.spawn(|| load(&host, &over));
            let ended = Over(&over);
            let speed = 16 << 20;
            let granularity = Granularity::from_bytes(BLOCK).ok();
            let spec = MirrorSpec { copy_mode, granularity, ..MirrorSpec::of("vda", "copy") };
            let job = block_on(host.start_job(JobSpec { speed, ..mirror(spec) })).expect("a job");
            let mut before = job.info().progress;
            wait_for(|| {
                let (next, is_over) = (job.info(), began.elapsed() > MOST);
                let now = next.progress;
                assert!(now.done_bytes >= before.done_bytes, "{before:?} {now:?}");
                assert!(now.total_bytes >= before.total_bytes, "{before:?} {now:?}");
                let is_all = now.total_bytes > 0 && now.done_bytes == now.total_bytes;
                assert!(!is_all || next.status == JobStatus::Ready, "{next:?}");
                before = now;
                is_over || next.status == JobStatus::Ready
            });
            drop(ended);
            guest.join().expect("a guest");
            assert_eq!(block_on(job.reaches(JobStatus::Ready)), JobStatus::Ready);
            job
        });
        assert!(wait_for(|| {
            let progress = job.info().progress;
            progress.done_bytes == progress.total_bytes
        }));
        job.cancel(true).expect("a job that can be cancelled");
        block_on(job.wait());
        host.shutdown().expect("an end in order");
    }
}
