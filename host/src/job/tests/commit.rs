//! `commit`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::scene::{
    BLOCK, Over, SIZE, chain, child, dirty, disk, ends_well, fill_chain, insert_filter, load, news,
    of_drive, of_node, overlay, shown, write,
};
use crate::bitmap::{BitmapName, Granularity};
use crate::error::ErrorKind;
use crate::graph::{Action, BitmapRef, ChildDecl, Transaction};
use crate::job::{
    BackupSpec, CommitSpec, JobEnd, JobKind, JobNews, JobSpec, JobStatus, MirrorSpec, MirrorSync,
    PopulateFrom, PopulateSpec, StreamSpec,
};
use crate::node::MemoryNode;
use crate::{Host, block_on};

fn commit(spec: CommitSpec) -> JobSpec {
    JobSpec::new("c", JobKind::Commit(spec))
}

fn middle() -> CommitSpec {
    CommitSpec { top: Some("mid".into()), ..CommitSpec::of("vda", "base") }
}

/// The blocks that a node of the chain has been given.
fn own_blocks(range: std::ops::Range<u64>) -> Vec<u64> {
    range.filter(|block| block % 3 != 1).collect()
}

/// E2a, E3c: the base is marked where something came to it, and nothing above the section is.
#[test]
fn the_middle_of_a_chain_goes_to_its_base() {
    let host = chain().start().expect("a host");
    fill_chain(&host);
    let before = shown(&host, "vda");
    let mut events = host.events();
    let job = block_on(host.start_job(commit(middle()))).expect("a job");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert_eq!(child(&host, "top", "backing").as_deref(), Some("base"));
    assert_eq!(shown(&host, "vda"), before);
    let of_base = dirty(&host, &of_node("base"));
    // Granules of the tracker are larger.
    assert!(own_blocks(300..400).iter().all(|block| of_base.contains(block)));
    assert!(of_base.iter().all(|block| (288..400).contains(block)), "{of_base:?}");
    for scope in [of_node("mid"), of_node("top"), of_drive()] {
        assert_eq!(dirty(&host, &scope), [0_u64; 0], "{scope}");
    }
    let (states, _) = news(&mut events, "c");
    assert!(!states.contains(&JobStatus::Ready), "{states:?}");
    host.shutdown().expect("an end in order");
}

/// Each would have the base show what its own overlay does.
#[test]
fn two_at_once_have_not_one_base() {
    let host = chain().start().expect("a host");
    fill_chain(&host);
    let before = shown(&host, "vda");
    let active = || CommitSpec { completes: true, ..CommitSpec::of("vda", "base") };
    let job = block_on(host.start_job(JobSpec { speed: 1, ..commit(active()) })).expect("a job");
    for is_forced in [false, true] {
        let lower = JobKind::Commit(CommitSpec { is_forced, ..middle() });
        let error = block_on(host.start_job(JobSpec::new("lower", lower))).err();
        let error = error.expect("another job has that base");
        let expect = "node `base`: jobs `c` and `lower` would copy to it at once: wait for the end of one of \
                      them, or cancel it";
        assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::InUse, expect));
    }
    job.cancel(true).expect("a job that runs");
    assert!(matches!(block_on(job.wait()), JobEnd::Cancelled), "{:?}", job.info());
    let job = block_on(host.start_job(commit(active()))).expect("a job");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert!(shown(&host, "vda") == before);
    host.shutdown().expect("an end in order");
}

/// E2b, E4: the drive's bitmap goes on, whatever the drive shows.
#[test]
fn an_active_overlay_goes_to_a_base_when_it_is_told_to() {
    let host = chain().start().expect("a host");
    fill_chain(&host);
    let mut expect = shown(&host, "vda");
    let mut events = host.events();
    let job = block_on(host.start_job(commit(CommitSpec::of("vda", "base")))).expect("a job");
    assert_eq!(block_on(job.reaches(JobStatus::Ready)), JobStatus::Ready, "{:?}", job.info());
    let put = |expect: &mut Vec<u8>, block: u64, value: u8| {
        write(&host, "vda", block, value);
        expect[(block * BLOCK) as usize..((block + 1) * BLOCK) as usize].fill(value);
    };
    for block in [7, 500, 1000] {
        put(&mut expect, block, 9);
    }
    block_on(host.transact(insert_filter("top", "above"))).expect("a filter");
    job.complete().expect("a job that is ready");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert_eq!(child(&host, "above", "file").as_deref(), Some("base"));
    assert_eq!(shown(&host, "vda"), expect);
    assert_eq!(dirty(&host, &of_drive()), [7, 500, 1000]);
    put(&mut expect, 512, 4);
    assert_eq!(shown(&host, "vda"), expect);
    assert_eq!(dirty(&host, &of_drive()), [7, 500, 512, 1000]);
    assert!(dirty(&host, &of_node("base")).contains(&512));
    let (_, news) = news(&mut events, "c");
    assert!(matches!(news[..], [JobNews::Ready { .. }, JobNews::Completed { error: None, .. }]));
    host.shutdown().expect("an end in order");
}

/// Guests write all the time; the view is always what they wrote.
#[test]
fn an_active_overlay_goes_to_a_base_under_load() {
    let host = chain().start().expect("a host");
    fill_chain(&host);
    let before = shown(&host, "vda");
    let over = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let load = scope.spawn(|| load(&host, &over));
        let ended = Over(&over);
        let mut ends = Vec::new();
        for round in 0..6 {
            let spec = CommitSpec { completes: true, ..CommitSpec::of("vda", "base") };
            let job = block_on(host.start_job(commit(spec))).expect("a job");
            ends.push(block_on(job.wait()));
            let (name, size) = (format!("top{round}"), SIZE);
            let driver = Arc::new(MemoryNode::overlay(size, 4096).expect("a size"));
            let children = vec![ChildDecl::backing("base")];
            let overlay = crate::graph::NodeDecl { name, driver, children };
            let snapshot = Action::Snapshot { drive: "vda".into(), overlay };
            block_on(host.transact(Transaction::new().with(snapshot))).expect("a snapshot");
            let remove = |node: &str| {
                // Those of the chain have bitmaps, and stand on the base still.
                let remove = Action::RemoveNode { node: node.into() };
                block_on(host.transact(Transaction::new().with(remove))).map(drop)
            };
            if round == 0 {
                for node in ["top", "mid"] {
                    let take = crate::graph::BitmapAction::Remove
                        .of(crate::graph::BitmapRef::of_node(node, "b"));
                    block_on(host.transact(Transaction::new().with(take))).expect("no bitmap");
                    remove(node).expect("no node");
                }
            } else {
                remove(&format!("top{}", round - 1)).expect("no node");
            }
        }
        drop(ended);
        let written = load.join().expect("a guest");
        for end in ends {
            assert!(matches!(end, JobEnd::Completed), "{end:?}");
        }
        written
    });
    let mut expect = before;
    let mut blocks: Vec<u64> = Vec::new();
    for (block, value) in written {
        expect[(block * BLOCK) as usize..((block + 1) * BLOCK) as usize].fill(value);
        blocks.push(block);
    }
    blocks.sort_unstable();
    blocks.dedup();
    assert!(shown(&host, "vda") == expect, "a guest sees something else than it wrote");
    assert_eq!(dirty(&host, &of_drive()), blocks);
    host.shutdown().expect("an end in order");
}

#[test]
fn a_base_has_to_be_named_and_to_be_below() {
    let host = chain().start().expect("a host");
    let check = |spec: CommitSpec, expect: &str| {
        let error = block_on(host.start_job(commit(spec))).err().expect("refused");
        assert!(error.to_string().contains(expect), "{error}");
        assert!(host.jobs().is_empty());
    };
    let none = CommitSpec { base: None, ..CommitSpec::of("vda", "base") };
    check(none, "it needs a `base`: one of `mid`, `base`");
    check(CommitSpec::of("mid", "top"), "the base `top` is not below it");
    check(CommitSpec::of("base", "base"), "has no backing");
    host.shutdown().expect("an end in order");
}

/// QSD commits into a base that others stand on, and changes what they show without a word.
#[test]
fn a_base_that_others_stand_on_is_left_alone_unless_forced() {
    let host =
        chain().node("other", overlay(), vec![ChildDecl::backing("base")]).start().expect("a host");
    fill_chain(&host);
    let refused = block_on(host.start_job(commit(middle()))).err().expect("refused");
    assert_eq!(refused.kind(), ErrorKind::InUse, "{refused}");
    assert!(refused.to_string().contains("alters what node `other` shows"), "{refused}");
    let add = Action::AddBitmap(crate::graph::BitmapDecl {
        scope: of_node("other"),
        name: crate::bitmap::BitmapName::new("b").expect("a name"),
        granularity: crate::bitmap::Granularity::from_bytes(BLOCK).expect("a granularity"),
        enabled: true,
    });
    block_on(host.transact(Transaction::new().with(add))).expect("a bitmap");
    let before = shown(&host, "vda");
    let forced = CommitSpec { is_forced: true, ..middle() };
    let job = block_on(host.start_job(commit(forced))).expect("a job");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert_eq!(shown(&host, "vda"), before);
    assert_eq!(dirty(&host, &of_node("other")), dirty(&host, &of_node("base")));
    assert_eq!(dirty(&host, &of_drive()), [0_u64; 0]);
    host.shutdown().expect("an end in order");
}

/// Who goes over to the base in the end, writes it, and somebody else does not share that: this is known before
/// anything is copied.
#[test]
fn an_end_that_could_not_be_is_refused_at_the_start() {
    let host =
        chain().node("other", overlay(), vec![ChildDecl::backing("base")]).start().expect("a host");
    fill_chain(&host);
    block_on(host.add_drive("vdb", Some("other"), false)).expect("a drive");
    let forced = CommitSpec { is_forced: true, completes: true, ..CommitSpec::of("vda", "base") };
    let nodes = host.graph().nodes().len();
    let refused = block_on(host.start_job(commit(forced.clone()))).err().expect("refused");
    assert_eq!(refused.kind(), ErrorKind::InUse, "{refused}");
    let expect = "job `c`: the end could not take effect: node `base`: drive `vda` (edge `root`) uses w, which node \
                  `other` (edge `backing`) does not share: give one of them a node of its own, or make it read-only";
    assert_eq!(refused.to_string(), expect);
    assert_eq!((host.graph().nodes().len(), host.jobs().len()), (nodes, 0));
    assert_eq!(dirty(&host, &of_node("base")), [0_u64; 0]);
    // In the middle of the chain nobody comes to write the base.
    let middle = CommitSpec { is_forced: true, ..middle() };
    let job = JobSpec { auto_finalize: false, ..commit(middle) };
    let job = block_on(host.start_job(job)).expect("a job");
    job.cancel(true).expect("a job that is there");
    assert!(matches!(block_on(job.wait()), JobEnd::Cancelled));
    block_on(host.remove_drive("vdb")).expect("no drive");
    ends_well(&block_on(host.start_job(commit(forced))).expect("a job"));
    host.shutdown().expect("an end in order");
}

#[test]
fn a_shorter_base_grows_first() {
    let host = Host::builder()
        .node("base", MemoryNode::new(SIZE / 2, 512).expect("a size"), vec![])
        .node("top", overlay(), vec![ChildDecl::backing("base")])
        .drive("vda", "top", true)
        .start()
        .expect("a host");
    write(&host, "vda", SIZE / BLOCK - 1, 5);
    write(&host, "vda", 3, 6);
    let before = shown(&host, "vda");
    let spec = CommitSpec { completes: true, ..CommitSpec::of("vda", "base") };
    let job = block_on(host.start_job(commit(spec))).expect("a job");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert_eq!(
        host.graph().nodes()[host.graph().drives()[0].root().expect("a root").child()].name(),
        "base"
    );
    assert_eq!(shown(&host, "vda"), before);
    host.shutdown().expect("an end in order");
}

/// The one that ended first would take from the other what that copies to, or what it copies from.
#[test]
fn one_does_not_commit_what_another_commits_to() {
    let upper = CommitSpec { completes: true, ..CommitSpec::of("vda", "mid") };
    let (upper, lower) = (("upper", upper), ("lower", middle()));
    for (first, second, does) in [(&upper, &lower, "commits to"), (&lower, &upper, "commits")] {
        let host = chain().start().expect("a host");
        fill_chain(&host);
        let before = shown(&host, "vda");
        let spec = |(id, spec): &(&str, CommitSpec), is_forced| {
            let what = JobKind::Commit(CommitSpec { is_forced, ..spec.clone() });
            // It is there until it is told to end.
            JobSpec { auto_finalize: false, ..JobSpec::new(*id, what) }
        };
        let expect = format!(
            "node `mid`: it is busy: job `{}` {does} it; wait for its end, or cancel it",
            first.0
        );
        let is_refused = |error: crate::Error| {
            assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
            assert!(error.to_string().ends_with(&expect), "{error}");
        };
        // If they begin together, and do not end so, they are as one after the other.
        let both = vec![spec(first, false), spec(second, false)];
        let started = host.start_jobs(both, false, Transaction::new());
        is_refused(block_on(started).err().expect("both have `mid`"));
        assert!(host.jobs().is_empty());
        let job = block_on(host.start_job(spec(first, false))).expect("a job");
        for is_forced in [false, true] {
            is_refused(block_on(host.start_job(spec(second, is_forced))).err().expect("busy"));
        }
        ends_well(&job);
        assert!(shown(&host, "vda") == before);
        host.shutdown().expect("an end in order");
    }
}

/// Overlays that were never named, and what stands beside them.
fn unnamed() -> Host {
    let host = Host::builder()
        .node("base", disk(), vec![])
        .node("#mid", overlay(), vec![ChildDecl::backing("base")])
        .node("#top", overlay(), vec![ChildDecl::backing("#mid")])
        .node("other", disk(), vec![])
        .node("copy", disk(), vec![])
        .drive("vda", "#top", true);
    let granularity = Granularity::from_bytes(BLOCK).expect("a granularity");
    let name = BitmapName::new("b").expect("a name");
    let host = host.bitmap(of_drive(), name, granularity).start().expect("a host");
    [3, 500].iter().for_each(|block| write(&host, "vda", *block, 7));
    host
}

/// What takes its place is not followed by a job that only reads it: for that it stays, and goes with it.
#[test]
fn what_was_never_named_goes_with_the_last_job_that_uses_it() {
    let compare = JobKind::Populate(PopulateSpec {
        bitmap: BitmapRef::of_drive("vda", "b"),
        device: "vda".into(),
        from: PopulateFrom::Difference { other: "other".into() },
    });
    let top_only = MirrorSpec { sync: MirrorSync::Top, ..MirrorSpec::of("vda", "copy") };
    let active = CommitSpec { completes: true, ..CommitSpec::of("vda", "base") };
    let middle = CommitSpec { top: Some("#mid".into()), ..CommitSpec::of("vda", "base") };
    let mirror = JobKind::Mirror(MirrorSpec::of("vda", "copy"));
    // What goes, while what reads, and what stays that long.
    let cases = [
        (JobKind::Commit(active), &compare, &["#top", "#mid"][..], &[][..]),
        (mirror, &compare, &["#top", "#mid"], &[]),
        (JobKind::Commit(middle), &JobKind::Mirror(top_only), &["#mid"], &["#top"]),
    ];
    for (pivot, reads, stay_with_it, stay) in cases {
        for cancels in [false, true] {
            let host = unnamed();
            let before = shown(&host, "vda");
            let is_there = |node: &&&str| host.graph().find_node(node).is_some();
            let reader = JobSpec { auto_finalize: false, ..JobSpec::new("reader", reads.clone()) };
            let reader = block_on(host.start_job(reader)).expect("a job");
            let job = block_on(host.start_job(JobSpec::new("c", pivot.clone()))).expect("a job");
            ends_well(&job);
            assert_eq!(stay_with_it.iter().find(|node| !is_there(node)), None, "{pivot:?}");
            if cancels {
                reader.cancel(true).expect("a job that is there");
                let end = block_on(reader.wait());
                assert!(matches!(end, JobEnd::Cancelled), "{end:?}");
            } else {
                ends_well(&reader);
            }
            let is_mirror = matches!(reads, JobKind::Mirror(_));
            let stay = if is_mirror && !cancels { &[][..] } else { stay };
            assert_eq!(stay_with_it.iter().find(is_there), None, "{pivot:?}");
            assert_eq!(stay.iter().find(|node| !is_there(node)), None, "{pivot:?}");
            assert!(shown(&host, "vda") == before, "{pivot:?}");
            host.shutdown().expect("an end in order");
        }
    }
}

/// It goes although another job has put itself between it and who used it.
#[test]
fn what_was_never_named_goes_from_below_a_job() {
    let host = unnamed();
    let before = shown(&host, "vda");
    let copy = JobKind::Backup(BackupSpec::of("#mid", "copy"));
    let copy = JobSpec { auto_finalize: false, ..JobSpec::new("b", copy) };
    let copy = block_on(host.start_job(copy)).expect("a job");
    assert_eq!(child(&host, "#top", "backing").as_deref(), Some("#job-b"));
    let stream = JobKind::Stream(StreamSpec { base: Some("base".into()), ..StreamSpec::of("vda") });
    let stream = block_on(host.start_job(JobSpec::new("s", stream))).expect("a job");
    ends_well(&stream);
    assert_eq!(child(&host, "#top", "backing").as_deref(), Some("base"));
    assert!(host.graph().find_node("#mid").is_some());
    copy.cancel(true).expect("a job that is there");
    assert!(matches!(block_on(copy.wait()), JobEnd::Cancelled));
    assert_eq!(["#mid", "#job-b"].map(|node| host.graph().find_node(node)), [None; 2]);
    assert!(shown(&host, "vda") == before);
    host.shutdown().expect("an end in order");
}

#[test]
fn what_is_cancelled_leaves_the_view_as_it_was() {
    for is_ready in [false, true] {
        let host = chain().start().expect("a host");
        fill_chain(&host);
        let before = shown(&host, "vda");
        let spec = commit(CommitSpec::of("vda", "base"));
        let spec = JobSpec { speed: if is_ready { 0 } else { 1 }, ..spec };
        let job = block_on(host.start_job(spec)).expect("a job");
        if is_ready {
            assert_eq!(block_on(job.reaches(JobStatus::Ready)), JobStatus::Ready);
        }
        job.cancel(true).expect("a job that can be cancelled");
        assert!(matches!(block_on(job.wait()), JobEnd::Cancelled));
        assert_eq!(shown(&host, "vda"), before);
        assert_eq!(child(&host, "top", "backing").as_deref(), Some("mid"));
        assert_eq!(dirty(&host, &of_drive()), [0_u64; 0]);
        host.shutdown().expect("an end in order");
    }
}
