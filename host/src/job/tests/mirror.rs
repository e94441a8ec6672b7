//! `mirror`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::scene::{
    BLOCK, Over, SIZE, chain, child, dirty, disk, fill_chain, insert_filter, load, news, of_drive,
    of_node, overlay, put, shown, shown_by, write,
};
use crate::bitmap::Granularity;
use crate::error::ErrorKind;
use crate::filter::PassNode;
use crate::graph::{
    Action, BitmapAction, BitmapRef, ChildDecl, DriveDecl, Event, NodeDecl, OpKind, Transaction,
    Unproven, User, Which,
};
use crate::job::{
    BitmapMode, CommitSpec, CopyMode, JobEnd, JobKind, JobNews, JobSpec, JobStatus, MirrorSpec,
    MirrorSync,
};
use crate::{Host, block_on};

fn mirror(spec: MirrorSpec) -> JobSpec {
    JobSpec::new("m", JobKind::Mirror(spec))
}

fn host() -> Host {
    let host = chain().node("copy", disk(), vec![]).start().expect("a host");
    fill_chain(&host);
    host
}

fn root(host: &Host) -> String {
    let graph = host.graph();
    let drive = &graph.drives()[graph.find_drive("vda").expect("a drive")];
    graph.nodes()[drive.root().expect("a root").child()].name().to_owned()
}

/// Users of a node could go over to one of them only.
#[test]
fn one_mirror_at_a_time() {
    let host = chain().node("copy", disk(), vec![]).node("other", disk(), vec![]);
    let host = host.start().expect("a host");
    let first = block_on(host.start_job(mirror(MirrorSpec::of("vda", "copy")))).expect("a job");
    let second = || JobSpec::new("n", JobKind::Mirror(MirrorSpec::of("vda", "other")));
    let error = block_on(host.start_job(second())).err().expect("a second one");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("job `m` mirrors it"), "{error}");
    first.cancel(true).expect("a job");
    block_on(first.wait());
    let both = vec![mirror(MirrorSpec::of("vda", "copy")), second()];
    let error = block_on(host.start_jobs(both, false, Transaction::new())).err().expect("two");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("job `m` mirrors it"), "{error}");
    block_on(host.start_job(second())).expect("the first has ended");
}

/// What takes its place would have another size.
#[test]
fn what_is_mirrored_is_not_resized() {
    let host = host();
    let resize = |size_bytes| {
        let grow = Action::Resize { node: "top".into(), size_bytes };
        block_on(host.transact(Transaction::new().with(grow)))
    };
    block_on(host.transact(insert_filter("top", "filter"))).expect("a filter");
    let job = block_on(host.start_job(mirror(MirrorSpec::of("filter", "copy")))).expect("a job");
    let error = resize(2 * SIZE).expect_err("it is copied");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("job `m` copies it"), "{error}");
    job.cancel(true).expect("a job");
    block_on(job.wait());
    resize(2 * SIZE).expect("nobody copies it");
    host.shutdown().expect("an end in order");
}

/// Nor could they go over to two nodes by a mirror and a commit, or what a commit writes be what a mirror shows. Below
/// what is mirrored a chain can be made shorter: that alters nothing that is copied.
#[test]
fn a_commit_and_a_mirror_have_nothing_in_common() {
    let host = chain().node("copy", disk(), vec![]).start().expect("a host");
    fill_chain(&host);
    let before = shown(&host, "vda");
    let commit = |spec| JobSpec::new("c", JobKind::Commit(spec));
    let active = || commit(CommitSpec::of("vda", "base"));
    let below = || commit(CommitSpec { top: Some("mid".into()), ..CommitSpec::of("vda", "base") });
    let check = |job: JobSpec, node: &str, why: &str| {
        let error = block_on(host.start_job(job)).err().expect("they have a node in common");
        let expect =
            format!("node `{node}`: it is busy: job {why} it; wait for its end, or cancel it");
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().ends_with(&expect), "{error}");
    };
    for (source, is_above) in [("vda", true), ("mid", false), ("base", false)] {
        let job = block_on(host.start_job(mirror(MirrorSpec::of(source, "copy")))).expect("a job");
        let node = if is_above { "top" } else { source };
        check(active(), node, "`m` mirrors");
        if is_above {
            let job = block_on(host.start_job(JobSpec { auto_finalize: false, ..below() }));
            let job = job.expect("it is all the same to the mirror");
            block_on(job.reaches(JobStatus::Pending));
            job.cancel(true).expect("a job that waits");
            block_on(job.wait());
        } else {
            check(below(), node, "`m` mirrors");
        }
        job.cancel(true).expect("a job");
        block_on(job.wait());
    }
    let job = block_on(host.start_job(active())).expect("nobody mirrors it");
    for (source, node) in [("vda", "top"), ("mid", "mid"), ("base", "base")] {
        check(mirror(MirrorSpec::of(source, "copy")), node, "`c` commits");
    }
    job.cancel(true).expect("a job");
    block_on(job.wait());
    assert!(shown(&host, "vda") == before);
    host.shutdown().expect("an end in order");
}

/// The writes that a filter has passed on.
fn writes_through(host: &Host, filter: &str) -> u64 {
    let graph = host.graph();
    let filter = &graph.nodes()[graph.find_node(filter).expect("a filter")];
    filter.edges()[0].counters().snapshot().requests[OpKind::Write.index()]
}

/// E5: after the pivot the drive's bitmap says what it would say without it.
#[test]
fn a_drive_goes_over_to_its_mirror() {
    for copy_mode in [CopyMode::Background, CopyMode::WriteBlocking] {
        let host = host();
        let mut expect = shown(&host, "vda");
        let mut events = host.events();
        let spec = MirrorSpec { copy_mode, ..MirrorSpec::of("vda", "copy") };
        let job = block_on(host.start_job(mirror(spec))).expect("a job");
        assert_eq!(block_on(job.reaches(JobStatus::Ready)), JobStatus::Ready, "{:?}", job.info());
        for block in [3, 700, 1023] {
            put(&host, &mut expect, block, 8);
        }
        if copy_mode == CopyMode::WriteBlocking {
            assert_eq!(shown_by(&host, "copy"), expect, "what is acknowledged has been copied");
        }
        job.complete().expect("a job that is ready");
        assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
        assert_eq!(root(&host), "copy");
        assert_eq!(shown(&host, "vda"), expect);
        assert_eq!(dirty(&host, &of_drive()), [3, 700, 1023], "{copy_mode:?}");
        put(&host, &mut expect, 5, 1);
        assert_eq!(dirty(&host, &of_drive()), [3, 5, 700, 1023]);
        assert_eq!(dirty(&host, &of_node("top")), [3, 700, 1023], "the former root is as it was");
        let (states, news) = news(&mut events, "m");
        assert!(states.ends_with(&[JobStatus::Pending, JobStatus::Concluded, JobStatus::Null]));
        assert!(matches!(
            news[..],
            [JobNews::Ready { .. }, JobNews::Completed { error: None, .. }]
        ));
        assert_eq!(host.graph().find_node("#job-m"), None);
        host.shutdown().expect("an end in order");
    }
}

/// A mirror that has begun to copy some time later can be told to copy at once, and the other way round.
#[test]
fn it_can_be_told_when_to_copy() {
    let host = host();
    let mut expect = shown(&host, "vda");
    let spec = JobSpec { speed: 1, ..mirror(MirrorSpec::of("vda", "copy")) };
    let job = block_on(host.start_job(spec)).expect("a job");
    let over = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let guest = scope.spawn(|| load(&host, &over));
        let ended = Over(&over);
        block_on(job.change(CopyMode::WriteBlocking)).expect("a mirror");
        assert_eq!(root(&host), "#job-m");
        assert_eq!(child(&host, "#job-m", "source").as_deref(), Some("top"));
        job.set_speed(0).expect("a job that runs");
        assert_eq!(block_on(job.reaches(JobStatus::Ready)), JobStatus::Ready, "{:?}", job.info());
        drop(ended);
        guest.join().expect("a guest")
    });
    let mut blocks = std::collections::BTreeSet::from([3, 5, 700]);
    for (block, value) in written {
        expect[(block * BLOCK) as usize..((block + 1) * BLOCK) as usize].fill(value);
        blocks.insert(block);
    }
    put(&host, &mut expect, 3, 8);
    assert!(shown_by(&host, "copy") == expect, "what is acknowledged has been copied");
    block_on(job.change(CopyMode::Background)).expect("a mirror");
    put(&host, &mut expect, 700, 7);
    block_on(job.change(CopyMode::WriteBlocking)).expect("a mirror");
    put(&host, &mut expect, 5, 7);
    job.complete().expect("a job that is ready");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert_eq!(root(&host), "copy");
    assert!(shown(&host, "vda") == expect);
    assert_eq!(dirty(&host, &of_drive()), Vec::from_iter(blocks));
    assert_eq!(host.graph().find_node("#job-m"), None);
    host.shutdown().expect("an end in order");
}

/// What is proven to alter nothing makes nothing to be copied again.
#[test]
fn it_goes_on_under_changes_of_the_graph() {
    let host = host();
    let before = shown(&host, "vda");
    let job = block_on(host.start_job(mirror(MirrorSpec::of("vda", "copy")))).expect("a job");
    assert_eq!(block_on(job.reaches(JobStatus::Ready)), JobStatus::Ready, "{:?}", job.info());
    let copied = job.info().progress;
    for (node, name) in [("top", "above"), ("mid", "between"), ("base", "below")] {
        block_on(host.transact(insert_filter(node, name))).expect("a filter");
    }
    let remove = Action::RemoveFilter { node: "between".into() };
    block_on(host.transact(Transaction::new().with(remove))).expect("no filter");
    job.complete().expect("a job that is ready");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert_eq!(job.info().progress, copied);
    assert_eq!(child(&host, "above", "file").as_deref(), Some("copy"));
    assert_eq!(shown(&host, "vda"), before);
    assert_eq!(dirty(&host, &of_drive()), [0_u64; 0]);
    host.shutdown().expect("an end in order");
}

/// While it waits for being finalized, the copy is kept up to date, and the worker has time for others.
#[test]
fn a_mirror_is_finalized_when_asked_to_be() {
    for copy_mode in [CopyMode::Background, CopyMode::WriteBlocking] {
        let host = host();
        let mut expect = shown(&host, "vda");
        let spec = MirrorSpec { copy_mode, ..MirrorSpec::of("vda", "copy") };
        let spec = JobSpec { auto_finalize: false, ..mirror(spec) };
        let job = block_on(host.start_job(spec)).expect("a job");
        assert_eq!(block_on(job.reaches(JobStatus::Ready)), JobStatus::Ready, "{:?}", job.info());
        // Standing still, it takes the wish, and grants it once it goes on.
        job.pause().expect("a job that can stand still");
        assert_eq!(block_on(job.reaches(JobStatus::Standby)), JobStatus::Standby);
        job.complete().expect("a job that is ready");
        assert_eq!(job.status(), JobStatus::Standby);
        job.resume().expect("a job that stands still");
        assert_eq!(block_on(job.reaches(JobStatus::Pending)), JobStatus::Pending);
        put(&host, &mut expect, 100, 8);
        job.finalize().expect("a job that waits for that");
        assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
        assert_eq!(root(&host), "copy");
        assert_eq!(shown(&host, "vda"), expect);
        host.shutdown().expect("an end in order");
    }
}

/// Cancelled once it is ready, a mirror is a copy as of one moment; before that, nothing.
#[test]
fn a_mirror_that_is_cancelled_is_a_copy() {
    let host = host();
    let mut expect = shown(&host, "vda");
    let job = block_on(host.start_job(mirror(MirrorSpec::of("vda", "copy")))).expect("a job");
    assert_eq!(block_on(job.reaches(JobStatus::Ready)), JobStatus::Ready, "{:?}", job.info());
    put(&host, &mut expect, 100, 8);
    job.cancel(false).expect("a job that can be cancelled");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert_eq!(root(&host), "top");
    assert_eq!(shown_by(&host, "copy"), expect);
    assert_eq!(shown(&host, "vda"), expect);
    host.shutdown().expect("an end in order");
}

#[test]
fn a_drive_goes_over_to_its_mirror_under_load() {
    for copy_mode in [CopyMode::Background, CopyMode::WriteBlocking] {
        let host = chain().node("one", disk(), vec![]).node("two", disk(), vec![]);
        let host = host.start().expect("a host");
        fill_chain(&host);
        let mut expect = shown(&host, "vda");
        let over = AtomicBool::new(false);
        let written = std::thread::scope(|scope| {
            let guest = scope.spawn(|| load(&host, &over));
            let ended = Over(&over);
            let mut ends = Vec::new();
            for target in ["one", "two", "one", "two"] {
                let spec = MirrorSpec { copy_mode, ..MirrorSpec::of("vda", target) };
                let job = block_on(host.start_job(mirror(spec))).expect("a job");
                let reached = block_on(job.reaches(JobStatus::Ready));
                let _ = job.complete();
                ends.push((reached, block_on(job.wait())));
            }
            drop(ended);
            let written = guest.join().expect("a guest");
            for end in ends {
                assert!(matches!(end, (JobStatus::Ready, JobEnd::Completed)), "{end:?}");
            }
            written
        });
        assert_eq!(root(&host), "two");
        let mut blocks = std::collections::BTreeSet::new();
        for (block, value) in written {
            expect[(block * BLOCK) as usize..((block + 1) * BLOCK) as usize].fill(value);
            blocks.insert(block);
        }
        assert!(shown(&host, "vda") == expect, "a guest sees something else than it wrote");
        assert_eq!(dirty(&host, &of_drive()), Vec::from_iter(blocks), "{copy_mode:?}");
        host.shutdown().expect("an end in order");
    }
}

/// An overlay on the same base: what is copied is what the topmost one has, and block status proves the rest.
#[test]
fn the_top_alone_is_copied_to_an_overlay_on_the_same_base() {
    let host = chain().node("copy", overlay(), vec![ChildDecl::backing("mid")]).start();
    let host = host.expect("a host");
    fill_chain(&host);
    let before = shown(&host, "vda");
    let spec = MirrorSpec { sync: MirrorSync::Top, ..MirrorSpec::of("vda", "copy") };
    let job = block_on(host.start_job(mirror(spec))).expect("a job");
    assert_eq!(block_on(job.reaches(JobStatus::Ready)), JobStatus::Ready, "{:?}", job.info());
    assert!(job.info().progress.done_bytes < SIZE / 4, "{:?}", job.info());
    job.complete().expect("a job that is ready");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert_eq!((root(&host), shown(&host, "vda")), ("copy".into(), before));
    assert_eq!(dirty(&host, &of_drive()), [0_u64; 0]);
    host.shutdown().expect("an end in order");
}

/// What nobody has shown is marked: it may be another view.
#[test]
fn what_is_taken_on_trust_marks_the_bitmaps() {
    let host = host();
    let mut events = host.events();
    let spec = MirrorSpec { sync: MirrorSync::None, ..MirrorSpec::of("vda", "copy") };
    let job = block_on(host.start_job(mirror(spec))).expect("a job");
    assert_eq!(block_on(job.reaches(JobStatus::Ready)), JobStatus::Ready, "{:?}", job.info());
    write(&host, "vda", 9, 7);
    job.complete().expect("a job that is ready");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert_eq!(root(&host), "copy");
    let all = shown(&host, "vda");
    assert_eq!(all[(9 * BLOCK) as usize..(10 * BLOCK) as usize], [7; BLOCK as usize]);
    assert_eq!(dirty(&host, &of_drive()).len() as u64, SIZE / BLOCK);
    let mut is_told = false;
    while let Some(notice) = events.try_next() {
        is_told |= matches!(notice.event, Event::BitmapMarkedWhole { .. });
    }
    assert!(is_told);
    host.shutdown().expect("an end in order");
}

/// The same where an overlay came over the job, which is a filter: it shows the copy then.
#[test]
fn what_is_taken_on_trust_comes_below_overlays_too() {
    let host = host();
    let copy_mode = CopyMode::WriteBlocking;
    let spec = MirrorSpec { sync: MirrorSync::None, copy_mode, ..MirrorSpec::of("vda", "copy") };
    let job = block_on(host.start_job(mirror(spec))).expect("a job");
    assert_eq!(block_on(job.reaches(JobStatus::Ready)), JobStatus::Ready, "{:?}", job.info());
    let backing = ChildDecl::backing(root(&host));
    let overlay =
        NodeDecl { name: "over".into(), driver: Arc::new(overlay()), children: vec![backing] };
    let drive = "vda".into();
    let snapshot = Transaction::new().with(Action::Snapshot { drive, overlay });
    block_on(host.transact(snapshot)).expect("an overlay");
    job.complete().expect("a job that is ready");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert_eq!(child(&host, "over", "backing").as_deref(), Some("copy"));
    assert_eq!(dirty(&host, &of_drive()).len() as u64, SIZE / BLOCK);
    host.shutdown().expect("an end in order");
}

/// A bitmap says what is to be copied; what becomes of it is as asked.
#[test]
fn a_mirror_copies_what_a_bitmap_says() {
    let check = |mode: BitmapMode, cancels: bool, left: &[u64]| {
        let host = host();
        let full = block_on(host.start_job(mirror(MirrorSpec::of("vda", "copy")))).expect("a job");
        assert_eq!(block_on(full.reaches(JobStatus::Ready)), JobStatus::Ready);
        full.cancel(false).expect("a copy");
        assert!(matches!(block_on(full.wait()), JobEnd::Completed), "{:?}", full.info());
        let mut expect = shown(&host, "vda");
        put(&host, &mut expect, 20, 5);
        put(&host, &mut expect, 900, 6);
        let bitmap = BitmapRef::of_drive("vda", "b");
        let sync = MirrorSync::Bitmap(bitmap, mode);
        let granularity = Granularity::from_bytes(BLOCK).ok();
        let spec = MirrorSpec { sync, granularity, ..MirrorSpec::of("vda", "copy") };
        let job = block_on(host.start_job(mirror(spec))).expect("a job");
        assert_eq!(block_on(job.reaches(JobStatus::Ready)), JobStatus::Ready, "{:?}", job.info());
        put(&host, &mut expect, 30, 7);
        job.cancel(cancels).expect("a job that can be cancelled");
        let end = block_on(job.wait());
        assert_eq!(matches!(end, JobEnd::Cancelled), cancels, "{end:?}");
        if !cancels {
            assert_eq!(shown_by(&host, "copy"), expect);
        }
        assert_eq!(dirty(&host, &of_drive()), left, "{mode:?}");
        host.shutdown().expect("an end in order");
    };
    check(BitmapMode::OnSuccess, false, &[30]);
    check(BitmapMode::OnSuccess, true, &[20, 30, 900]);
    check(BitmapMode::Never, false, &[20, 30, 900]);
    // What has been copied is so however it ends.
    check(BitmapMode::Always, true, &[30]);
}

/// A filter that comes above what is mirrored as it is written takes the guest's requests, and hands them to the
/// mirror; it is there afterwards, wherever the guest is then.
#[test]
fn a_filter_comes_above_a_mirror_that_copies_writes() {
    for (completes, users) in [
        (true, Which::All),
        (false, Which::All),
        (true, Which::These(vec![User::Drive("vda".into())])),
    ] {
        let host = host();
        let mut expect = shown(&host, "vda");
        let spec =
            MirrorSpec { copy_mode: CopyMode::WriteBlocking, ..MirrorSpec::of("vda", "copy") };
        let job = block_on(host.start_job(mirror(spec))).expect("a job");
        assert_eq!(block_on(job.reaches(JobStatus::Ready)), JobStatus::Ready, "{:?}", job.info());
        let children = vec![ChildDecl::filtered("top")];
        let filter = NodeDecl { name: "filter".into(), driver: Arc::new(PassNode), children };
        let insert = Action::InsertAbove { node: "top".into(), filter, users };
        block_on(host.transact(Transaction::new().with(insert))).expect("a filter");
        assert_eq!(root(&host), "filter");
        for block in [3, 700] {
            put(&host, &mut expect, block, 9);
        }
        assert_eq!(writes_through(&host, "filter"), 2);
        assert!(shown(&host, "vda") == expect && shown_by(&host, "copy") == expect, "both have it");
        if completes {
            job.complete().expect("a job that is ready");
        } else {
            job.cancel(false).expect("a job that is ready");
        }
        assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
        assert!(shown_by(&host, "copy") == expect);
        let below = if completes { "copy" } else { "top" };
        assert_eq!(child(&host, "filter", "file").as_deref(), Some(below));
        assert_eq!(root(&host), "filter");
        put(&host, &mut expect, 8, 1);
        assert_eq!(writes_through(&host, "filter"), 3);
        let remove = Action::RemoveFilter { node: "filter".into() };
        block_on(host.transact(Transaction::new().with(remove))).expect("a filter that goes");
        assert!(shown(&host, "vda") == expect);
        host.shutdown().expect("an end in order");
    }
}

/// Nobody else writes the target, and nobody takes it away.
#[test]
fn its_target_is_its_own() {
    let host = host();
    let job = JobSpec { speed: 1, ..mirror(MirrorSpec::of("vda", "copy")) };
    let job = block_on(host.start_job(job)).expect("a job");
    let check = |action: Action, expect: &str| {
        let change = Transaction::new().with_unproven(action, Unproven::MarkWhole);
        let error = block_on(host.transact(change)).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        assert!(error.to_string().contains(expect), "{error}");
    };
    let writer = DriveDecl {
        id: "vdb".into(),
        root: Some("copy".into()),
        writable: true,
        only_shows: false,
    };
    check(Action::AddDrive(writer), "job `m`");
    check(Action::RemoveNode { node: "copy".into() }, "in use by job `m`");
    let lead = |edge: &str| Action::SetChild {
        node: "#job-m".into(),
        edge: edge.into(),
        child: Some("base".into()),
    };
    check(lead("source"), "it stands for job `m`");
    check(lead("target"), "it stands for job `m`");
    // The source may be left: the job goes on with it.
    let clear = BitmapAction::Clear.of(BitmapRef::of_drive("vda", "b"));
    block_on(host.transact(Transaction::new().with(clear))).expect("cleared");
    job.cancel(false).expect("a job that can be cancelled");
    assert!(matches!(block_on(job.wait()), JobEnd::Cancelled));
    host.shutdown().expect("an end in order");
}
