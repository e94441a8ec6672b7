//! Errors of what is copied from and to, and copies before writes that fail, are late or become stale.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::super::scene::{
    BLOCK, Slow, chain, disk, fill_chain, news, shown, shown_by, wait_for, write,
};
use super::{backup, block, world};
use crate::block_on;
use crate::error::ErrorKind;
use crate::graph::{ChildDecl, Event};
use crate::job::{
    BackupSpec, BackupSync as S, ErrorAction, IoStatus, JobEnd, JobEvent, JobNews, JobSpec,
    JobStatus, OnCbwError, OnError,
};

/// What becomes of a write whose old bytes cannot be kept.
#[test]
fn a_write_whose_copy_fails_fails_or_breaks_the_backup() {
    for on_cbw_error in [OnCbwError::BreakGuestWrite, OnCbwError::BreakSnapshot] {
        let world = world();
        let expect = shown(&world.host, "vda");
        world.target.bad.store(901 * BLOCK, Ordering::SeqCst);
        let spec = BackupSpec { on_cbw_error, ..BackupSpec::of("vda", "onto") };
        let job = world.start(spec);
        let drive = world.host.drive("vda").expect("a drive");
        write(&world.host, "vda", 100, 5);
        // It shows zeros, and so would be zeroed: there is nothing to do for it.
        write(&world.host, "vda", 800, 5);
        world.target.bad.store(400 * BLOCK, Ordering::SeqCst);
        let written = block_on(drive.write(500 * BLOCK, &[7; BLOCK as usize]));
        written.expect("its copy can be made");
        world.target.bad.store(590 * BLOCK, Ordering::SeqCst);
        let written = block_on(drive.write(590 * BLOCK, &[7; BLOCK as usize]));
        let seen = shown(&world.host, "vda");
        match on_cbw_error {
            OnCbwError::BreakGuestWrite => {
                assert_eq!(written.expect_err("no copy").kind(), ErrorKind::Io);
                assert!(block(&seen, 590) == block(&expect, 590));
                world.target.bad.store(u64::MAX, Ordering::SeqCst);
                job.set_speed(0).expect("a job that runs");
                let end = block_on(job.wait());
                assert!(matches!(end, JobEnd::Completed), "{end:?}");
                assert!(shown_by(&world.host, "copy") == expect);
            }
            OnCbwError::BreakSnapshot => {
                written.expect("it goes on");
                assert!(block(&seen, 590) == [7; BLOCK as usize]);
                job.set_speed(0).ok();
                let JobEnd::Failed(error) = block_on(job.wait()) else { panic!("it is broken") };
                assert!(error.to_string().contains("a copy before a write failed"), "{error}");
                // Nobody copies any more.
                write(&world.host, "vda", 590, 1);
            }
        }
        world.end();
    }
}

/// What is kept of the point in time may be lost while the job stands still: nobody has to resume it to learn that.
#[test]
fn one_that_is_paused_says_that_it_is_broken() {
    for sync in [S::None, S::Full] {
        let world = world();
        let on_cbw_error = OnCbwError::BreakSnapshot;
        let job = world.start(BackupSpec { sync, on_cbw_error, ..BackupSpec::of("vda", "onto") });
        job.pause().expect("a job that runs");
        assert_eq!(block_on(job.reaches(JobStatus::Paused)), JobStatus::Paused);
        assert_eq!(job.info().io_status, IoStatus::Ok);
        world.target.bad.store(590 * BLOCK, Ordering::SeqCst);
        let mut events = world.host.events();
        write(&world.host, "vda", 590, 7);
        let told = block_on(async {
            loop {
                let event = events.next().await.expect("a host").event;
                let Event::Job(JobEvent { what, .. }) = event else { continue };
                if let JobNews::Error { action, is_no_space, is_of_write, why } = what {
                    return (action, is_no_space, is_of_write, why);
                }
            }
        });
        let (action, is_no_space, is_of_write, why) = told;
        assert_eq!((action, is_no_space, is_of_write), (ErrorAction::Report, false, true));
        assert!(why.contains("a copy before a write failed"), "{why}");
        let info = job.info();
        assert_eq!((info.status, info.io_status), (JobStatus::Paused, IoStatus::Failed));
        job.resume().expect("a job that stands still");
        let JobEnd::Failed(error) = block_on(job.wait()) else { panic!("it is broken") };
        assert_eq!(error.to_string(), why);
        world.end();
    }
}

/// The same while it waits for its next piece: it ends at once.
#[test]
fn one_that_is_slowed_down_ends_when_it_is_broken() {
    for sync in [S::None, S::Full] {
        let world = world();
        let on_cbw_error = OnCbwError::BreakSnapshot;
        let job = world.start(BackupSpec { sync, on_cbw_error, ..BackupSpec::of("vda", "onto") });
        // Its first piece is done, and the next one is far away.
        assert!(sync == S::None || wait_for(|| job.info().progress.done_bytes > 0));
        world.target.bad.store(590 * BLOCK, Ordering::SeqCst);
        write(&world.host, "vda", 590, 7);
        let (tell, told) = std::sync::mpsc::channel();
        let waits = job.clone();
        std::thread::spawn(move || tell.send(block_on(waits.wait())));
        let end = told.recv_timeout(Duration::from_secs(30)).expect("it does not go on to wait");
        let JobEnd::Failed(error) = end else { panic!("{sync:?}: {end:?}") };
        assert!(error.to_string().contains("a copy before a write failed"), "{error}");
        world.end();
    }
}

/// That a copy has become stale is neither the guest's concern nor the end of the backup.
#[test]
fn a_copy_before_a_write_that_is_stale_is_made_again() {
    for on_cbw_error in [OnCbwError::BreakGuestWrite, OnCbwError::BreakSnapshot] {
        let world = world();
        let expect = shown(&world.host, "vda");
        let spec = BackupSpec { sync: S::None, on_cbw_error, ..BackupSpec::of("vda", "onto") };
        let job = block_on(world.host.start_job(backup(spec))).expect("a job");
        assert_eq!(block_on(job.reaches(JobStatus::Running)), JobStatus::Running);
        world.source.stale.store(2, Ordering::SeqCst);
        write(&world.host, "vda", 590, 7);
        assert_eq!(world.source.stale.load(Ordering::SeqCst), 0);
        assert!(block(&shown_by(&world.host, "copy"), 590) == block(&expect, 590));
        job.cancel(false).expect("a job that can be cancelled");
        assert!(matches!(block_on(job.wait()), JobEnd::Cancelled), "{:?}", job.info());
        world.end();
    }
}

#[test]
fn a_copy_before_a_write_may_take_so_long_and_no_longer() {
    for on_cbw_error in [OnCbwError::BreakGuestWrite, OnCbwError::BreakSnapshot] {
        let (failures, time) = (Arc::new(AtomicU32::new(0)), Duration::from_millis(200));
        let slow = Slow { time, failures };
        let host = chain()
            .node("copy", disk(), vec![])
            .node("onto", slow, vec![ChildDecl::filtered("copy")])
            .start()
            .expect("a host");
        fill_chain(&host);
        let cbw_timeout = Some(Duration::from_millis(5));
        let spec = BackupSpec {
            sync: S::None,
            on_cbw_error,
            cbw_timeout,
            ..BackupSpec::of("vda", "onto")
        };
        let job = block_on(host.start_job(backup(spec))).expect("a job");
        let drive = host.drive("vda").expect("a drive");
        let written = block_on(drive.write(0, &[7; BLOCK as usize]));
        match on_cbw_error {
            OnCbwError::BreakGuestWrite => {
                assert_eq!(written.expect_err("too late").kind(), ErrorKind::TimedOut);
                job.cancel(false).expect("a job that can be cancelled");
                assert!(matches!(block_on(job.wait()), JobEnd::Cancelled));
            }
            OnCbwError::BreakSnapshot => {
                written.expect("it goes on");
                let end = block_on(job.wait());
                assert!(matches!(end, JobEnd::Failed(_)), "{end:?}");
            }
        }
        write(&host, "vda", 0, 8);
        host.shutdown().expect("an end in order");
    }
}

/// Errors of what is read are told from those of what is written.
#[test]
fn errors_of_source_and_target_have_policies_of_their_own() {
    for is_of_write in [false, true] {
        let world = world();
        let expect = shown(&world.host, "vda");
        let worn = if is_of_write { &world.target } else { &world.source };
        worn.bad.store(500 * BLOCK, Ordering::SeqCst);
        let (on_error, other) = (OnError::Stop, OnError::Report);
        let (on_error, on_target_error) =
            if is_of_write { (other, Some(on_error)) } else { (on_error, Some(other)) };
        let spec = JobSpec { on_error, on_target_error, ..backup(BackupSpec::of("vda", "onto")) };
        let mut events = world.host.events();
        let job = block_on(world.host.start_job(spec)).expect("a job");
        assert_eq!(block_on(job.reaches(JobStatus::Paused)), JobStatus::Paused);
        let (_, news) = news(&mut events, "b");
        let side = news.iter().find_map(|news| match news {
            JobNews::Error { is_of_write, .. } => Some(*is_of_write),
            _ => None,
        });
        assert_eq!(side, Some(is_of_write));
        worn.bad.store(u64::MAX, Ordering::SeqCst);
        write(&world.host, "vda", 500, 9);
        job.resume().expect("a job that stands still");
        assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
        assert!(shown_by(&world.host, "copy") == expect);
        world.end();
    }
}
