//! `backup`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::commit::load;
use super::scene::{
    BLOCK, Over, SIZE, Slow, Worn, chain, child, dirty, disk, fill_chain, insert_filter, news,
    of_drive, of_node, overlay, put, shown, shown_by, wait_for, write,
};
use crate::error::ErrorKind;
use crate::filter::PassNode;
use crate::graph::{
    Action, BitmapAction, BitmapRef, ChildDecl, DriveDecl, Event, NodeDecl, Transaction, Unproven,
};
use crate::job::backup::mode_of;
use crate::job::{
    BackupSpec, BackupSync, BitmapMode, CommitSpec, ErrorAction, IoStatus, JobEnd, JobEvent,
    JobHandle, JobKind, JobNews, JobSpec, JobStatus, MirrorSpec, OnCbwError, OnError, StreamSpec,
};
use crate::node::{MemoryNode, WriteFlags};
use crate::{Host, block_on};

use BackupSync as S;
use BitmapMode as M;

fn backup(spec: BackupSpec) -> JobSpec {
    JobSpec::new("b", JobKind::Backup(spec))
}

/// The chain of the scene over a source that counts reads, and a target that can be worn.
struct World {
    host: Host,
    source: Worn,
    target: Worn,
}

fn world() -> World {
    let (source, target) = (Worn::default(), Worn::default());
    let host = chain()
        .node("copy", disk(), vec![])
        .node("onto", target.clone(), vec![ChildDecl::filtered("copy")])
        .start()
        .expect("a host");
    fill_chain(&host);
    let filter = NodeDecl {
        name: "meter".into(),
        driver: Arc::new(source.clone()),
        children: vec![ChildDecl::filtered("top")],
    };
    let (node, users) = ("top".into(), crate::graph::Which::All);
    let insert = Transaction::new().with(Action::InsertAbove { node, filter, users });
    block_on(host.transact(insert)).expect("a filter");
    World { host, source, target }
}

impl World {
    /// Starts a job that stands still after its first pieces.
    fn start(&self, spec: BackupSpec) -> JobHandle {
        let spec = JobSpec { speed: 1, ..backup(spec) };
        block_on(self.host.start_job(spec)).expect("a job")
    }

    fn end(self) {
        assert!(self.host.jobs().is_empty());
        assert_eq!(self.host.graph().find_node("#job-b"), None);
        self.host.shutdown().expect("an end in order");
    }
}

fn block(of: &[u8], block: u64) -> &[u8] {
    &of[(block * BLOCK) as usize..((block + 1) * BLOCK) as usize]
}

/// QEMU's words for what has no sense together.
#[test]
fn what_has_no_sense_together_is_refused() {
    let all = [S::Full, S::Top, S::None, S::Incremental, S::Bitmap];
    let modes = [None, Some(M::OnSuccess), Some(M::Never), Some(M::Always)];
    let expect = |sync: S, has_bitmap: bool, mode: Option<M>| -> Result<Option<M>, String> {
        let name = sync.name();
        match (sync, has_bitmap, mode) {
            (S::Incremental | S::Bitmap, false, _) => {
                Err(format!("must provide a valid bitmap name for '{name}' sync mode"))
            }
            (S::Incremental, true, None | Some(M::OnSuccess)) => Ok(Some(M::OnSuccess)),
            (S::Incremental, true, _) => {
                Err("bitmap sync mode must be 'on-success' when using sync mode 'incremental'"
                    .into())
            }
            (_, false, None) => Ok(None),
            (_, false, _) => Err("cannot specify bitmap sync mode without a bitmap".into()),
            (_, true, None) => Err("bitmap sync mode must be given when providing a bitmap".into()),
            (S::None, true, _) => {
                Err("sync mode 'none' does not produce meaningful bitmap outputs".into())
            }
            (S::Full | S::Top, true, Some(M::Never)) => Err(format!(
                "bitmap sync mode 'never' has no meaningful effect when combined with sync mode \
                 '{name}'"
            )),
            (_, true, mode) => Ok(mode),
        }
    };
    for sync in all {
        for has_bitmap in [false, true] {
            for mode in modes {
                let found = mode_of(sync, has_bitmap, mode).map_err(|error| error.to_string());
                assert_eq!(found, expect(sync, has_bitmap, mode), "{sync:?} {mode:?}");
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Done,
    /// The target cannot keep block 900.
    Worn,
    Cancelled,
}

/// What a bitmap of blocks 20 and 900 says after a backup during which block 30 was written: QEMU's matrix.
#[test]
fn bitmaps_are_left_as_their_mode_says() {
    let check = |sync: S, mode: M, how: How, is_left: &dyn Fn(&[u64]) -> bool| {
        let world = world();
        let mut expect = shown(&world.host, "vda");
        for block in [20, 900] {
            put(&world.host, &mut expect, block, 9);
        }
        if how == How::Worn {
            world.target.bad.store(900 * BLOCK + 7, Ordering::SeqCst);
        }
        let bitmap = Some(BitmapRef::of_drive("vda", "b"));
        let spec =
            BackupSpec { sync, bitmap, bitmap_mode: Some(mode), ..BackupSpec::of("vda", "onto") };
        let job = world.start(spec);
        write(&world.host, "vda", 30, 1);
        assert_eq!(dirty(&world.host, &of_drive()), [20, 30, 900], "it shows both while it runs");
        if how == How::Cancelled {
            job.cancel(false).expect("a job that can be cancelled");
        }
        job.set_speed(0).ok();
        let end = block_on(job.wait());
        let is_expected = match end {
            JobEnd::Completed => how == How::Done,
            JobEnd::Failed(ref error) => how == How::Worn && error.kind() == ErrorKind::Io,
            JobEnd::Cancelled => how == How::Cancelled,
        };
        assert!(is_expected, "{sync:?} {mode:?} {how:?}: {end:?}");
        let left = dirty(&world.host, &of_drive());
        assert!(is_left(&left), "{sync:?} {mode:?} {how:?}: {left:?}");
        if how == How::Done {
            let copy = shown_by(&world.host, "copy");
            match sync {
                S::Full => assert!(copy == expect),
                S::Top => {
                    assert!(block(&copy, 354) == block(&expect, 354));
                    assert!(block(&copy, 330) == [0; BLOCK as usize], "it lies below");
                }
                _ => assert!(block(&copy, 30) == [0; BLOCK as usize], "it is not in it"),
            }
            for at in [20, 900] {
                assert!(block(&copy, at) == block(&expect, at), "block {at}");
            }
        }
        assert_eq!(world.host.bitmap(&of_drive(), "b").expect("a bitmap").users(), [""; 0]);
        world.end();
    };
    let all = |left: &[u64]| left == [20, 30, 900];
    let since = |left: &[u64]| left == [30];
    for mode in [M::OnSuccess, M::Always] {
        for sync in [S::Full, S::Top, S::Bitmap] {
            check(sync, mode, How::Done, &since);
        }
    }
    check(S::Incremental, M::OnSuccess, How::Done, &since);
    check(S::Bitmap, M::Never, How::Done, &all);
    for how in [How::Worn, How::Cancelled] {
        for sync in [S::Full, S::Top, S::Incremental, S::Bitmap] {
            check(sync, M::OnSuccess, how, &all);
        }
        check(S::Bitmap, M::Never, how, &all);
    }
    check(S::Bitmap, M::Always, How::Worn, &|left| left == [30, 900]);
    check(S::Bitmap, M::Always, How::Cancelled, &|left| {
        left.contains(&30) && left.iter().all(|block| [20, 30, 900].contains(block))
    });
    // What has not been copied is dirty then, if it was before or not.
    for sync in [S::Full, S::Top] {
        check(sync, M::Always, How::Worn, &|left| {
            let is_worn = |block: &u64| *block >= 896;
            left.contains(&30)
                && left.contains(&900)
                && left.iter().all(|it| *it == 30 || is_worn(it))
        });
    }
    check(S::Full, M::Always, How::Cancelled, &|left| left.len() > 512);
}

/// From wherever it is started, and whatever filters come and go: E17 has no case of it.
#[test]
fn a_backup_is_of_one_instant_under_load() {
    for device in ["vda", "top", "meter"] {
        let world = world();
        let host = &world.host;
        let expect = shown(host, "vda");
        let job = world.start(BackupSpec::of(device, "onto"));
        let over = AtomicBool::new(false);
        let written = std::thread::scope(|scope| {
            let guest = scope.spawn(|| load(host, &over));
            let (watched, over) = (job.clone(), &over);
            let watch = scope.spawn(move || {
                let mut last = watched.info().progress;
                while !over.load(Ordering::SeqCst) {
                    let next = watched.info().progress;
                    assert!(next.done_bytes >= last.done_bytes, "{last:?}, {next:?}");
                    assert!(next.total_bytes >= last.total_bytes, "{last:?}, {next:?}");
                    assert!(next.done_bytes <= next.total_bytes, "{next:?}");
                    last = next;
                }
            });
            let ended = Over(over);
            for (node, name) in [("top", "one"), ("meter", "two"), ("base", "three")] {
                block_on(host.transact(insert_filter(node, name))).expect("a filter");
            }
            job.set_speed(0).expect("a job that runs");
            for node in ["meter", "one"] {
                let remove = Action::RemoveFilter { node: node.into() };
                block_on(host.transact(Transaction::new().with(remove))).expect("no filter");
            }
            let end = block_on(job.wait());
            drop(ended);
            watch.join().expect("progress that goes forwards");
            let written = guest.join().expect("a guest");
            assert!(matches!(end, JobEnd::Completed), "{device}: {end:?}");
            written
        });
        assert!(shown_by(host, "copy") == expect, "{device}: it is of another instant");
        let blocks: std::collections::BTreeSet<u64> =
            written.into_iter().map(|(block, _)| block).collect();
        assert_eq!(dirty(host, &of_drive()), Vec::from_iter(blocks), "{device}");
        assert_eq!(child(host, "two", "file").as_deref(), Some("top"), "{device}");
        world.end();
    }
}

/// One that copies what a bitmap says reads that, and what is there, once.
#[test]
fn an_incremental_one_reads_what_is_dirty() {
    let world = world();
    let mut expect = shown(&world.host, "vda");
    let blocks: Vec<u64> = (0..1024).filter(|block| block * 7919 % 1024 < 100).collect();
    for block in &blocks {
        put(&world.host, &mut expect, *block, 9);
    }
    world.source.reads.store(0, Ordering::SeqCst);
    let (sync, bitmap) = (S::Incremental, Some(BitmapRef::of_drive("vda", "b")));
    let spec = BackupSpec { sync, bitmap, ..BackupSpec::of("vda", "onto") };
    let mut events = world.host.events();
    let job = block_on(world.host.start_job(backup(spec))).expect("a job");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    let dirty_bytes = blocks.len() as u64 * BLOCK;
    let read_bytes = world.source.reads.load(Ordering::SeqCst);
    assert_eq!(read_bytes, dirty_bytes);
    let progress = job.info().progress;
    assert_eq!((progress.done_bytes, progress.total_bytes), (dirty_bytes, dirty_bytes));
    let (copy, zeros) = (shown_by(&world.host, "copy"), [0; BLOCK as usize]);
    for at in 0..SIZE / BLOCK {
        let expect = if blocks.contains(&at) { block(&expect, at) } else { &zeros };
        assert!(block(&copy, at) == expect, "block {at}");
    }
    let (states, news) = news(&mut events, "b");
    assert!(states.ends_with(&[JobStatus::Pending, JobStatus::Concluded, JobStatus::Null]));
    assert!(matches!(news[..], [JobNews::Completed { error: None, .. }]), "{news:?}");
    world.end();
}

/// A full one reads no zeros, and writes none where the target shows them.
#[test]
fn zeros_are_neither_read_nor_written() {
    let world = world();
    let expect = shown(&world.host, "vda");
    world.source.reads.store(0, Ordering::SeqCst);
    // Behind the last of what has been written.
    world.target.bad.store(700 * BLOCK, Ordering::SeqCst);
    let job = block_on(world.host.start_job(backup(BackupSpec::of("vda", "onto"))));
    let job = job.expect("a job");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    // In granules of 64 KiB there is something in each, as far as there is anything.
    assert_eq!(world.source.reads.load(Ordering::SeqCst), 608 * BLOCK);
    assert!(shown_by(&world.host, "copy") == expect);
    write(&world.host, "vda", 800, 1);
    assert!(shown_by(&world.host, "copy") == expect);
    // What the target had is zeroed.
    world.target.bad.store(u64::MAX, Ordering::SeqCst);
    let other = BackupSpec::of("base", "onto");
    let job = block_on(world.host.start_job(backup(other))).expect("a job");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert!(shown_by(&world.host, "copy") == shown_by(&world.host, "base"));
    world.end();
}

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

/// What does not begin changes nothing: not the size of what it was to copy to either.
#[test]
fn what_is_refused_leaves_its_target_as_long_as_it_is() {
    let short = || MemoryNode::new(SIZE / 2, 512).expect("a size");
    let host = Host::builder()
        .node("base", short(), vec![])
        .node("top", overlay(), vec![ChildDecl::backing("base")])
        .node("other", overlay(), vec![ChildDecl::backing("base")])
        .node("onto", short(), vec![])
        .drive("vda", "top", true)
        .drive("vdb", "onto", true)
        .start()
        .expect("a host");
    let refused = [
        (JobKind::Backup(BackupSpec::of("vda", "onto")), "drive `vdb`"),
        (JobKind::Mirror(MirrorSpec::of("vda", "onto")), "drive `vdb`"),
        (JobKind::Commit(CommitSpec::of("vda", "base")), "node `other`"),
    ];
    for (what, who) in refused {
        let error = block_on(host.start_job(JobSpec::new("j", what.clone()))).err();
        let error = error.expect("somebody is in the way");
        assert_eq!(error.kind(), ErrorKind::InUse, "{what:?}: {error}");
        assert!(error.to_string().contains(who), "{what:?}: {error}");
        assert!(host.jobs().is_empty());
        let graph = host.graph();
        for node in ["base", "onto"] {
            let at = graph.find_node(node).expect("a node");
            assert_eq!(graph.nodes()[at].info().size_bytes, SIZE / 2, "{what:?}: {node}");
        }
    }
    host.shutdown().expect("an end in order");
}

/// What is behind a filter gets as long as what is copied to it.
#[test]
fn a_shorter_target_grows_below_a_filter() {
    let host = chain()
        .node("short", MemoryNode::new(SIZE / 2, 512).expect("a size"), vec![])
        .node("filter", PassNode, vec![ChildDecl::filtered("short")])
        .start()
        .expect("a host");
    fill_chain(&host);
    let before = shown(&host, "vda");
    let job = block_on(host.start_job(backup(BackupSpec::of("vda", "filter")))).expect("a job");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    for node in ["filter", "short"] {
        assert!(shown_by(&host, node) == before, "{node}");
    }
    host.shutdown().expect("an end in order");
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

/// A target that is an overlay of what is copied shows the instant for as long as the job is there.
#[test]
fn an_overlay_of_the_source_can_be_its_target() {
    let host = chain().node("scratch", overlay(), vec![ChildDecl::backing("top")]).start();
    let host = host.expect("a host");
    fill_chain(&host);
    let expect = shown(&host, "vda");
    let spec = BackupSpec { sync: S::None, ..BackupSpec::of("vda", "scratch") };
    let job = block_on(host.start_job(backup(spec))).expect("a job");
    for block in [3, 500, 1000] {
        write(&host, "vda", block, 8);
    }
    block_on(host.drive("vda").expect("a drive").zero(900 * BLOCK, 4 * BLOCK, WriteFlags::NONE))
        .expect("zeros");
    assert!(shown_by(&host, "scratch") == expect);
    let cancelled = job.cancel(false);
    cancelled.expect("a job that can be cancelled");
    assert!(matches!(block_on(job.wait()), JobEnd::Cancelled));
    assert_eq!(child(&host, "scratch", "backing").as_deref(), Some("top"));
    host.shutdown().expect("an end in order");
}

/// What is kept is not altered past who keeps it.
#[test]
fn what_would_alter_what_it_keeps_is_refused() {
    let world = world();
    let expect = shown(&world.host, "vda");
    let job = world.start(BackupSpec::of("vda", "onto"));
    let check = |action: Action, expect: &str| {
        let change = Transaction::new().with_unproven(action, Unproven::MarkWhole);
        let error = block_on(world.host.transact(change)).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        assert!(error.to_string().contains(expect), "{error}");
    };
    let root = |node: &str| Some(node.to_owned());
    let writer =
        DriveDecl { id: "vdb".into(), root: root("meter"), writable: true, only_shows: false };
    check(Action::AddDrive(writer), "does not share");
    let writer =
        DriveDecl { id: "vdb".into(), root: root("onto"), writable: true, only_shows: false };
    check(Action::AddDrive(writer), "job `b`");
    let (node, edge) = ("meter".into(), "file".into());
    check(Action::SetChild { node, edge, child: root("base") }, "keeps what was there");
    let (node, edge) = ("top".into(), "backing".into());
    check(Action::SetChild { node, edge, child: root("base") }, "keeps what was there");
    let (node, size_bytes) = ("top".into(), SIZE / 2);
    check(Action::Resize { node, size_bytes }, "keeps what was there");
    let range = 350 * BLOCK..360 * BLOCK;
    check(Action::Deallocate { node: "top".into(), range }, "keeps what was there");
    check(Action::RemoveFilter { node: "#job-b".into() }, "it stands for job `b`");
    let clear = BitmapAction::Clear.of(BitmapRef::of_drive("vda", "b"));
    block_on(world.host.transact(Transaction::new().with(clear))).expect("it is not the job's");
    job.set_speed(0).expect("a job that runs");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert!(shown_by(&world.host, "copy") == expect);
    world.end();
}

/// The bitmap of a job is its own until it has ended.
#[test]
fn a_bitmap_in_use_is_left_alone() {
    let world = world();
    for block in [20, 900] {
        write(&world.host, "vda", block, 9);
    }
    let bitmap = BitmapRef::of_drive("vda", "b");
    let (sync, of) = (S::Incremental, Some(bitmap.clone()));
    let job = world.start(BackupSpec { sync, bitmap: of, ..BackupSpec::of("vda", "onto") });
    for action in [
        BitmapAction::Clear,
        BitmapAction::Disable,
        BitmapAction::Remove,
        BitmapAction::MergeBack,
        BitmapAction::Abdicate,
    ] {
        let action = Transaction::new().with(action.of(&bitmap));
        let error = block_on(world.host.transact(action)).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        assert!(error.to_string().contains("job `b`"), "{error}");
    }
    job.set_speed(0).ok();
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    let remove = Transaction::new().with(BitmapAction::Remove.of(&bitmap));
    block_on(world.host.transact(remove)).expect("it is free");
    world.end();
}

/// What comes with the transaction is the job's like any other: a full one, and a bitmap of what changes since.
#[test]
fn its_bitmap_may_come_with_it() {
    use crate::bitmap::{BitmapName, Granularity};
    use crate::graph::BitmapDecl;
    for sync in [S::Full, S::Bitmap] {
        let world = world();
        let host = &world.host;
        write(host, "vda", 700, 9);
        let expect = shown(host, "vda");
        let granularity = Granularity::from_bytes(BLOCK).expect("a power of two");
        let name = BitmapName::new("new").expect("a name");
        let decl = BitmapDecl { scope: of_drive(), name, granularity, enabled: true };
        let bitmap = BitmapRef::of_drive("vda", "new");
        let merge = BitmapAction::merge([BitmapRef::of_drive("vda", "b")]).of(&bitmap);
        let clear = BitmapAction::Clear.of(BitmapRef::of_drive("vda", "b"));
        let actions = Transaction::new().with(Action::AddBitmap(decl)).with(merge).with(clear);
        let (bitmap, bitmap_mode) = (Some(bitmap), Some(M::OnSuccess));
        let spec = BackupSpec { sync, bitmap, bitmap_mode, ..BackupSpec::of("vda", "onto") };
        let started = block_on(host.start_jobs(vec![backup(spec)], false, actions));
        let (_, jobs) = started.expect("a job");
        write(host, "vda", 30, 1);
        assert!(matches!(block_on(jobs[0].wait()), JobEnd::Completed), "{:?}", jobs[0].info());
        let (new, since) =
            (host.bitmap(&of_drive(), "new").expect("a bitmap"), 30 * BLOCK..31 * BLOCK);
        assert_eq!((new.dirty_bytes(), new.ranges(0..u64::MAX).next()), (BLOCK, Some(since)));
        assert_eq!(dirty(host, &of_drive()), [30]);
        let copy = shown_by(host, "copy");
        assert!(block(&copy, 700) == block(&expect, 700));
        assert!((copy == expect) == (sync == S::Full));
        world.end();
    }
}

/// Other jobs come and end beside it, and put other nodes in the place of what is copied.
#[test]
fn other_jobs_come_and_end_beside_it() {
    let commit = CommitSpec { completes: true, ..CommitSpec::of("vda", "base") };
    let others = [
        JobKind::Mirror(MirrorSpec::of("vda", "other")),
        JobKind::Stream(StreamSpec::of("vda")),
        JobKind::Commit(commit),
        JobKind::Backup(BackupSpec::of("vda", "other")),
    ];
    for other in others {
        let name = other.name();
        for is_first in [false, true] {
            let world = world();
            let host = &world.host;
            let add = NodeDecl { name: "other".into(), driver: Arc::new(disk()), children: vec![] };
            let add = Transaction::new().with(Action::AddNode(add));
            block_on(host.transact(add)).expect("a node");
            let mut expect = shown(host, "vda");
            let begin = || JobSpec { speed: 1, ..JobSpec::new("other", other.clone()) };
            let first = is_first.then(|| block_on(host.start_job(begin())).expect("a job"));
            let job = world.start(BackupSpec::of("vda", "onto"));
            let at_first = expect.clone();
            put(host, &mut expect, 5, 1);
            let second = first.unwrap_or_else(|| block_on(host.start_job(begin())).expect("a job"));
            put(host, &mut expect, 700, 2);
            second.set_speed(0).expect("a job that runs");
            block_on(second.comes_to(|at| at == JobStatus::Ready || at.is_over()));
            let _ = second.complete();
            let end = block_on(second.wait());
            assert!(matches!(end, JobEnd::Completed), "{name}: {end:?}");
            put(host, &mut expect, 355, 3);
            job.set_speed(0).expect("a job that runs");
            let end = block_on(job.wait());
            assert!(matches!(end, JobEnd::Completed), "{name}: {end:?}");
            assert!(shown_by(host, "copy") == at_first, "{name}, first: {is_first}");
            assert!(shown(host, "vda") == expect, "{name}, first: {is_first}");
            assert_eq!(dirty(host, &of_drive()), [5, 355, 700], "{name}, first: {is_first}");
            world.end();
        }
    }
}

/// A drive may go on to an overlay; what it showed is still copied.
#[test]
fn a_snapshot_goes_over_it() {
    let world = world();
    let expect = shown(&world.host, "vda");
    let job = world.start(BackupSpec::of("vda", "onto"));
    write(&world.host, "vda", 5, 1);
    let children = vec![ChildDecl::backing("#job-b")];
    let overlay = NodeDecl { name: "new".into(), driver: Arc::new(overlay()), children };
    let snapshot = Action::Snapshot { drive: "vda".into(), overlay };
    block_on(world.host.transact(Transaction::new().with(snapshot))).expect("a snapshot");
    write(&world.host, "vda", 6, 1);
    job.set_speed(0).expect("a job that runs");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert!(shown_by(&world.host, "copy") == expect);
    assert_eq!(child(&world.host, "new", "backing").as_deref(), Some("meter"));
    assert_eq!(dirty(&world.host, &of_drive()), [5, 6]);
    world.end();
}

/// Drives are copied as of one instant; if one fails, the bitmaps of all are as if none had been.
#[test]
fn a_group_takes_its_bitmaps_or_none() {
    for fails in [false, true] {
        let world = world();
        let host = &world.host;
        write(host, "vda", 20, 9);
        let add = |name: &str| {
            Action::AddNode(NodeDecl {
                name: name.into(),
                driver: Arc::new(disk()),
                children: vec![],
            })
        };
        block_on(host.transact(Transaction::new().with(add("second")))).expect("a node");
        let spec = |id: &str, device: &str, target: &str, bitmap: BitmapRef| {
            let (sync, bitmap) = (S::Incremental, Some(bitmap));
            let spec = BackupSpec { sync, bitmap, ..BackupSpec::of(device, target) };
            JobSpec { id: id.into(), speed: 1, ..backup(spec) }
        };
        let specs = vec![
            spec("b", "vda", "onto", BitmapRef::of_drive("vda", "b")),
            spec("c", "base", "second", BitmapRef::of_node("base", "b")),
        ];
        if fails {
            world.target.bad.store(20 * BLOCK, Ordering::SeqCst);
        }
        let started = block_on(host.start_jobs(specs, true, Transaction::new()));
        let (_, jobs) = started.expect("jobs");
        write(host, "vda", 30, 9);
        let ends: Vec<JobEnd> = jobs
            .iter()
            .map(|job| {
                job.set_speed(0).ok();
                block_on(job.wait())
            })
            .collect();
        match fails {
            true => {
                assert!(matches!(ends[..], [JobEnd::Failed(_), JobEnd::Cancelled]), "{ends:?}");
                assert_eq!(dirty(host, &of_drive()), [20, 30]);
            }
            false => {
                assert!(matches!(ends[..], [JobEnd::Completed, JobEnd::Completed]), "{ends:?}");
                assert_eq!(dirty(host, &of_drive()), [30]);
            }
        }
        for bitmap in [of_drive(), of_node("base")] {
            let state = host.bitmap(&bitmap, "b").expect("a bitmap").state();
            assert_eq!(state, crate::bitmap::BitmapState::Recording);
        }
        world.end();
    }
}

#[test]
fn nobody_who_cannot_is_asked_to_compress() {
    let world = world();
    let drive = world.host.drive("vda").expect("a drive");
    let bytes = crate::io::Buf::copy_of(&[1; 512]);
    let error = block_on(drive.write_buf(0, bytes, WriteFlags::COMPRESSED)).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    assert!(error.to_string().contains("`worn` writes nothing compressed"), "{error}");
    // Zeros are stored as such.
    block_on(drive.zero(0, 4096, WriteFlags::COMPRESSED)).expect("zeros");
    world.end();
}

#[test]
fn what_cannot_be_is_refused() {
    let world = world();
    let check = |spec: BackupSpec, expect: &str| {
        let error = block_on(world.host.start_job(backup(spec))).err().expect("refused");
        assert!(error.to_string().contains(expect), "{error}");
        assert!(world.host.jobs().is_empty());
    };
    check(BackupSpec::of("vda", "top"), "source and target cannot be the same");
    check(BackupSpec::of("vda", "base"), "its target `base` is a part of what it shows");
    check(BackupSpec::of("vda", "nowhere"), "no node or drive `nowhere`");
    check(BackupSpec { compress: true, ..BackupSpec::of("vda", "onto") }, "cannot compress");
    let bitmap = Some(BitmapRef::of_drive("vda", "x"));
    let spec = BackupSpec { sync: S::Incremental, bitmap, ..BackupSpec::of("vda", "onto") };
    check(spec, "has no bitmap `x`");
    let add = NodeDecl {
        name: "long".into(),
        driver: Arc::new(crate::node::MemoryNode::new(2 * SIZE, 512).expect("a size")),
        children: vec![],
    };
    block_on(world.host.transact(Transaction::new().with(Action::AddNode(add)))).expect("a node");
    check(BackupSpec::of("vda", "long"), "source and target have different sizes");
    world.end();
}
