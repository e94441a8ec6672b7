//! `stream`.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use super::scene::{
    BLOCK, SIZE, Slow, chain, child, dirty, disk, end_of, fill_chain, insert_filter, news,
    of_drive, of_node, overlay, shown, wait_for, write,
};
use crate::error::ErrorKind;
use crate::filter::PassNode;
use crate::graph::{Action, BitmapRef, ChildDecl, NodeDecl, Transaction};
use crate::job::{
    CommitSpec, JobEnd, JobKind, JobNews, JobSpec, JobStatus, MirrorSpec, OnError, PopulateFrom,
    PopulateSpec, StreamSpec,
};
use crate::{Host, block_on};

fn stream(spec: StreamSpec) -> JobSpec {
    JobSpec::new("s", JobKind::Stream(spec))
}

fn on(base: &str) -> StreamSpec {
    StreamSpec { base: Some(base.into()), ..StreamSpec::of("top") }
}

fn clean(host: &Host) {
    for scope in [of_node("top"), of_drive()] {
        assert_eq!(dirty(host, &scope), [0_u64; 0], "{scope}");
    }
}

/// What a job goes over is not cut off; what is added is none of its business.
#[test]
fn what_is_streamed_does_not_shrink() {
    let host = chain().start().expect("a host");
    fill_chain(&host);
    let job = block_on(host.start_job(JobSpec { speed: 1, ..stream(on("base")) })).expect("a job");
    let resize = |node: &str, size_bytes| {
        let resize = Action::Resize { node: node.into(), size_bytes };
        block_on(host.transact(Transaction::new().with(resize)))
    };
    for node in ["top", "mid", "base"] {
        let error = resize(node, SIZE / 2).expect_err("it is gone over");
        assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        assert!(error.to_string().contains("job `s` goes over what is there"), "{error}");
    }
    resize("top", SIZE + BLOCK).expect("a larger disk");
    job.cancel(true).expect("a job that can be cancelled");
    block_on(job.wait());
    resize("top", SIZE / 2).expect("nobody goes over it");
    host.shutdown().expect("an end in order");
}

#[test]
fn an_overlay_stands_alone_and_shows_the_same() {
    let host = chain().start().expect("a host");
    fill_chain(&host);
    let before = shown(&host, "vda");
    let mut events = host.events();
    let job = block_on(host.start_job(stream(StreamSpec::of("vda")))).expect("a job");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert_eq!(child(&host, "top", "backing"), None);
    assert_eq!(shown(&host, "vda"), before);
    clean(&host);
    let (states, news) = news(&mut events, "s");
    use JobStatus as S;
    let expect = [S::Created, S::Running, S::Waiting, S::Pending, S::Concluded, S::Null];
    assert_eq!(states, expect);
    let [JobNews::Completed { progress, error: None, .. }] = &news[..] else { panic!("{news:?}") };
    assert_eq!((progress.done_bytes, progress.total_bytes), (SIZE, SIZE));
    assert!(host.jobs().is_empty() && host.graph().find_node("#job-s").is_none());
    host.shutdown().expect("an end in order");
}

/// What the nodes between have is in the overlay then; what the base has stays there.
#[test]
fn an_overlay_stands_on_a_base_and_shows_the_same() {
    for by_bottom in [false, true] {
        let host = chain().start().expect("a host");
        fill_chain(&host);
        let before = shown(&host, "vda");
        let bottom = StreamSpec { bottom: Some("mid".into()), ..StreamSpec::of("top") };
        let spec = if by_bottom { bottom } else { on("base") };
        let job = block_on(host.start_job(stream(spec))).expect("a job");
        assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
        assert_eq!(child(&host, "top", "backing").as_deref(), Some("base"));
        assert_eq!(shown(&host, "vda"), before);
        clean(&host);
        host.shutdown().expect("an end in order");
    }
}

/// Without a job nothing proves it, and so it is not done.
#[test]
fn a_base_that_shows_something_else_is_refused() {
    let host = chain().start().expect("a host");
    fill_chain(&host);
    let (node, edge) = ("top".into(), "backing".into());
    let cut = Action::SetChild { node, edge, child: Some("base".into()) };
    let error = block_on(host.transact(Transaction::new().with(cut))).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::NotPermitted, "{error}");
    host.shutdown().expect("an end in order");
}

/// Filters come and go, and the guest writes: on the way, above and below.
#[test]
fn it_goes_on_under_changes_of_the_graph() {
    let slow = Slow { time: Duration::from_millis(2), failures: Arc::default() };
    let host = chain().node("slow", slow, vec![ChildDecl::filtered("base")]).start();
    let host = host.expect("a host");
    let (node, edge) = ("mid".into(), "backing".into());
    let lead = Action::SetChild { node, edge, child: Some("slow".into()) };
    fill_chain(&host);
    block_on(host.transact(Transaction::new().with(lead))).expect("a slower backing");
    let mut expect = shown(&host, "vda");
    let spec = JobSpec { speed: 16 << 20, ..stream(StreamSpec::of("top")) };
    let job = block_on(host.start_job(spec)).expect("a job");
    for round in 0..6_u64 {
        for (node, name) in [("top", "above"), ("mid", "between"), ("base", "below")] {
            block_on(host.transact(insert_filter(node, name))).expect("a filter");
        }
        let block = 17 * round + 5;
        write(&host, "vda", block, 9);
        expect[(block * BLOCK) as usize..((block + 1) * BLOCK) as usize].fill(9);
        for node in ["above", "between", "below"] {
            let remove = Action::RemoveFilter { node: node.into() };
            block_on(host.transact(Transaction::new().with(remove))).expect("no filter");
        }
    }
    job.set_speed(0).expect("faster");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert_eq!(shown(&host, "vda"), expect);
    let blocks: Vec<u64> = (0..6).map(|round| 17 * round + 5).collect();
    assert_eq!(dirty(&host, &of_drive()), blocks);
    host.shutdown().expect("an end in order");
}

/// What it cannot survive is refused, in its name.
#[test]
fn its_ground_is_not_taken_away() {
    let host = chain().start().expect("a host");
    fill_chain(&host);
    let spec = JobSpec { speed: 1, ..stream(on("base")) };
    let job = block_on(host.start_job(spec)).expect("a job");
    let check = |action: Action, expect: &str| {
        let change = Transaction::new().with_unproven(action, crate::graph::Unproven::MarkWhole);
        let error = block_on(host.transact(change)).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        assert!(error.to_string().contains(expect), "{error}");
    };
    let lead = |child: Option<&str>| {
        let (node, edge) = ("mid".into(), "backing".into());
        Action::SetChild { node, edge, child: child.map(Into::into) }
    };
    check(lead(None), "job `s` needs node `base` below it");
    let remove = Action::RemoveNode { node: "base".into() };
    check(remove, "in use by node `mid` (edge `backing`), job `s`");
    check(Action::RemoveNode { node: "#job-s".into() }, "it stands for job `s`");
    let again = block_on(host.start_job(stream(on("base")))).err().expect("refused");
    assert_eq!(again.kind(), ErrorKind::Exists, "{again}");
    job.cancel(false).expect("a job that can be cancelled");
    assert!(matches!(block_on(job.wait()), JobEnd::Cancelled));
    clean(&host);
    host.shutdown().expect("an end in order");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let host = chain().start().expect("a host");
    let check = |spec: StreamSpec, expect: &str| {
        let error = block_on(host.start_job(stream(spec))).err().expect("refused");
        assert!(error.to_string().contains(expect), "{error}");
        assert!(host.jobs().is_empty());
    };
    check(StreamSpec::of("base"), "has no backing");
    check(StreamSpec::of("none"), "there is no node or drive `none`");
    let both = StreamSpec { bottom: Some("mid".into()), ..on("base") };
    check(both, "give one");
    let above = StreamSpec { base: Some("top".into()), ..StreamSpec::of("mid") };
    check(above, "the base `top` is not below it");
    host.shutdown().expect("an end in order");
}

/// A chain base ← mid ← over ← top.
fn longer() -> Host {
    let host = chain().node("over", overlay(), vec![ChildDecl::backing("mid")]);
    let host = host.start().expect("a host");
    fill_chain(&host);
    let (node, edge) = ("top".into(), "backing".into());
    let lead = Action::SetChild { node, edge, child: Some("over".into()) };
    block_on(host.transact(Transaction::new().with(lead))).expect("a longer chain");
    host
}

/// It would have to leave out at its end what was not there when it looked, or what another job needs.
#[test]
fn what_others_work_on_below_it_is_refused_at_once() {
    let streams = |top: &str, base: Option<&str>| {
        let base = base.map(Into::into);
        JobKind::Stream(StreamSpec { base, ..StreamSpec::of(top) })
    };
    let commit = |top: &str, base: &str| {
        let top = Some(top.into());
        JobKind::Commit(CommitSpec { top, ..CommitSpec::of("vda", base) })
    };
    let allocation = PopulateSpec {
        bitmap: BitmapRef::of_node("top", "b"),
        device: "top".into(),
        from: PopulateFrom::Allocation { base: Some("mid".into()) },
    };
    let refused = [
        (streams("top", None), streams("mid", None)),
        (streams("top", Some("base")), streams("over", Some("base"))),
        (streams("top", Some("base")), streams("top", None)),
        (streams("top", None), commit("mid", "base")),
        (streams("top", Some("mid")), commit("over", "mid")),
        (streams("top", None), JobKind::Mirror(MirrorSpec::of("mid", "other"))),
        (streams("top", Some("base")), JobKind::Populate(allocation)),
        (commit("top", "base"), commit("top", "mid")),
        (commit("top", "base"), streams("over", Some("base"))),
    ];
    let allowed = [
        (streams("top", Some("mid")), streams("mid", None)),
        (streams("top", Some("mid")), streams("top", Some("mid"))),
        (streams("top", Some("mid")), commit("mid", "base")),
        (streams("top", Some("mid")), JobKind::Mirror(MirrorSpec::of("mid", "other"))),
    ];
    let cases = refused.iter().map(|pair| (pair, false)).chain(allowed.iter().map(|it| (it, true)));
    for ((one, other), is_allowed) in cases {
        for (first, second) in [(one, other), (other, one)] {
            let host = longer();
            let add = NodeDecl { name: "other".into(), driver: Arc::new(disk()), children: vec![] };
            block_on(host.transact(Transaction::new().with(Action::AddNode(add)))).expect("a node");
            let before = shown(&host, "vda");
            let start = |id: &str, what: &JobKind| {
                // What has nothing to do is there until it is told to end.
                let spec = JobSpec { auto_finalize: false, ..JobSpec::new(id, what.clone()) };
                block_on(host.start_job(JobSpec { speed: 1, ..spec }))
            };
            let first_job = start("first", first).expect("a job");
            let what = format!("{first:?}, {second:?}");
            let mut jobs = vec![first_job];
            match start("second", second) {
                Ok(job) if is_allowed => jobs.insert(0, job),
                Ok(_) => panic!("{what} is not refused"),
                Err(error) if is_allowed => panic!("{what}: {error}"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::InUse, "{what}: {error}");
                    assert!(error.to_string().contains("is to leave it out"), "{what}: {error}");
                }
            }
            for job in jobs {
                // Where it is already, none of these is wanted.
                let _ = job.set_speed(0);
                let end = end_of(&job);
                assert!(matches!(end, JobEnd::Completed), "{what}: {end:?}");
            }
            assert!(shown(&host, "vda") == before, "{what}");
            assert_eq!(dirty(&host, &of_drive()), [0_u64; 0], "{what}");
            host.shutdown().expect("an end in order");
        }
    }
}

/// A chain of which the base fails so often.
fn failing(failures: u32) -> (Host, Arc<AtomicU32>) {
    let count = Arc::new(AtomicU32::new(0));
    let slow = Slow { time: Duration::ZERO, failures: Arc::clone(&count) };
    let host = chain().node("slow", slow, vec![ChildDecl::filtered("base")]).start();
    let host = host.expect("a host");
    fill_chain(&host);
    let (node, edge) = ("mid".into(), "backing".into());
    let lead = Action::SetChild { node, edge, child: Some("slow".into()) };
    block_on(host.transact(Transaction::new().with(lead))).expect("a backing that fails");
    count.store(failures, std::sync::atomic::Ordering::SeqCst);
    (host, count)
}

/// A filter on which it was to stand may go: it stands on what that was a filter of.
#[test]
fn its_base_may_lose_its_filter() {
    let host = chain().start().expect("a host");
    fill_chain(&host);
    block_on(host.transact(insert_filter("base", "pass"))).expect("a filter");
    let before = shown(&host, "vda");
    let spec = JobSpec { speed: 1, ..stream(on("pass")) };
    let job = block_on(host.start_job(spec)).expect("a job");
    let remove = Action::RemoveFilter { node: "pass".into() };
    block_on(host.transact(Transaction::new().with(remove))).expect("no filter");
    job.set_speed(0).expect("a job that runs");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert_eq!(child(&host, "top", "backing").as_deref(), Some("base"));
    assert!(shown(&host, "vda") == before);
    clean(&host);
    host.shutdown().expect("an end in order");
}

/// What one of them does at its end, the other one need not do any more.
#[test]
fn two_of_the_same_overlay_end_at_once() {
    let slow = Slow { time: Duration::from_millis(50), failures: Arc::default() };
    let host = chain().node("slow", slow, vec![ChildDecl::filtered("top")]).start();
    let host = host.expect("a host");
    fill_chain(&host);
    let root = Action::SetRoot { drive: "vda".into(), node: "slow".into() };
    block_on(host.transact(Transaction::new().with(root))).expect("another root");
    let before = shown(&host, "vda");
    let start = |id: &str| {
        let what = JobKind::Stream(StreamSpec::of("top"));
        let spec = JobSpec { auto_finalize: false, ..JobSpec::new(id, what) };
        let job = block_on(host.start_job(spec)).expect("a job");
        assert_eq!(block_on(job.reaches(JobStatus::Pending)), JobStatus::Pending, "{id}");
        job
    };
    let jobs = ["one", "other"].map(start);
    std::thread::scope(|scope| {
        // Each waits for this, and the second one for the first.
        let reads = scope.spawn(|| shown(&host, "vda"));
        jobs.iter().for_each(|job| job.finalize().expect("a job that waits for that"));
        for job in &jobs {
            assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
        }
        assert!(reads.join().expect("a guest") == before);
    });
    assert_eq!(child(&host, "top", "backing"), None);
    assert!(shown(&host, "vda") == before);
    clean(&host);
    host.shutdown().expect("an end in order");
}

#[test]
fn an_error_ends_it_or_not_as_asked() {
    let check = |on_error, fails: bool| {
        let (host, _) = failing(1);
        let spec = JobSpec { on_error, ..stream(StreamSpec::of("top")) };
        let job = block_on(host.start_job(spec)).expect("a job");
        if on_error == OnError::Stop {
            assert_eq!(block_on(job.reaches(JobStatus::Paused)), JobStatus::Paused);
            assert_eq!(job.info().io_status, crate::job::IoStatus::Failed);
            job.resume().expect("a job that goes on");
        }
        let end = block_on(job.wait());
        assert_eq!(matches!(end, JobEnd::Failed(_)), fails, "{end:?}");
        assert_eq!(child(&host, "top", "backing").is_some(), fails);
        assert!(host.graph().find_node("#job-s").is_none());
        clean(&host);
        host.shutdown().expect("an end in order");
    };
    check(OnError::Report, true);
    check(OnError::Ignore, true);
    check(OnError::StopForSpace, true);
    check(OnError::Stop, false);
}

#[test]
fn a_job_pauses_and_ends_when_it_is_told_to() {
    let host = chain().start().expect("a host");
    fill_chain(&host);
    let before = shown(&host, "vda");
    let (auto_finalize, auto_dismiss) = (false, false);
    let spec = JobSpec { auto_finalize, auto_dismiss, speed: 1, ..stream(on("base")) };
    let job = block_on(host.start_job(spec)).expect("a job");
    job.pause().expect("a job that pauses");
    assert_eq!(block_on(job.reaches(JobStatus::Paused)), JobStatus::Paused);
    assert_eq!(job.pause().expect_err("twice").kind(), ErrorKind::NotPermitted);
    job.set_speed(0).expect("another speed");
    assert_eq!(job.complete().expect_err("not ready").kind(), ErrorKind::NotPermitted);
    job.resume().expect("a job that goes on");
    assert_eq!(block_on(job.reaches(JobStatus::Pending)), JobStatus::Pending);
    assert_eq!(child(&host, "top", "backing").as_deref(), Some("mid"));
    job.finalize().expect("a job that waits for it");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert_eq!(block_on(job.reaches(JobStatus::Concluded)), JobStatus::Concluded);
    assert_eq!(child(&host, "top", "backing").as_deref(), Some("base"));
    assert_eq!(host.jobs().len(), 1);
    job.dismiss().expect("a job that has ended");
    assert!(host.jobs().is_empty());
    assert_eq!(shown(&host, "vda"), before);
    host.shutdown().expect("an end in order");
}

/// Two chains: one effect, or none.
#[test]
fn jobs_of_a_group_end_together() {
    for cancels in [false, true] {
        let host = chain()
            .node("base2", disk(), vec![])
            .node("top2", overlay(), vec![ChildDecl::backing("base2")])
            .drive("vdb", "top2", true)
            .start()
            .expect("a host");
        fill_chain(&host);
        let one = JobSpec { auto_finalize: false, ..stream(StreamSpec::of("top")) };
        let two = JobSpec::new("t", JobKind::Stream(StreamSpec::of("vdb")));
        let two = JobSpec { auto_dismiss: false, ..two };
        let started = host.start_jobs(vec![one, two], true, Transaction::new());
        let (_, jobs) = block_on(started).expect("jobs");
        assert_eq!(block_on(jobs[0].reaches(JobStatus::Pending)), JobStatus::Pending);
        assert_eq!(block_on(jobs[1].reaches(JobStatus::Pending)), JobStatus::Pending);
        assert!(child(&host, "top2", "backing").is_some());
        let act = if cancels { jobs[1].cancel(false) } else { jobs[1].finalize() };
        act.expect("a job that can");
        for job in &jobs {
            let end = block_on(job.wait());
            assert_eq!(matches!(end, JobEnd::Cancelled), cancels, "{end:?}");
            assert_eq!(matches!(end, JobEnd::Completed), !cancels, "{end:?}");
        }
        for node in ["top", "top2"] {
            assert_eq!(child(&host, node, "backing").is_some(), cancels, "{node}");
        }
        host.shutdown().expect("an end in order");
    }
}

/// A node that cannot go when its job ends goes later.
#[test]
fn the_node_of_a_job_that_has_ended_goes_once_it_can() {
    let host = chain().start().expect("a host");
    fill_chain(&host);
    let spec = JobSpec { speed: 1, ..stream(StreamSpec::of("top")) };
    let job = block_on(host.start_job(spec)).expect("a job");
    let (driver, children) = (Arc::new(PassNode), vec![ChildDecl::filtered("#job-s")]);
    let user = NodeDecl { name: "user".into(), driver, children };
    block_on(host.transact(Transaction::new().with(Action::AddNode(user)))).expect("a user");
    job.cancel(true).expect("a job that runs");
    assert!(matches!(block_on(job.wait()), JobEnd::Cancelled));
    assert!(host.graph().find_node("#job-s").is_some());
    block_on(host.remove_node("user")).expect("nobody uses it");
    assert!(wait_for(|| host.graph().find_node("#job-s").is_none()));
    let again = block_on(host.start_job(stream(StreamSpec::of("top")))).expect("its id is free");
    assert!(matches!(block_on(again.wait()), JobEnd::Completed));
    host.shutdown().expect("an end in order");
}

#[test]
fn a_host_ends_while_jobs_run() {
    for in_order in [true, false] {
        let host = chain().start().expect("a host");
        fill_chain(&host);
        let spec = JobSpec { speed: 1, ..stream(StreamSpec::of("top")) };
        let job = block_on(host.start_job(spec)).expect("a job");
        match in_order {
            true => host.shutdown().expect("an end in order"),
            false => drop(host),
        }
        assert!(!matches!(block_on(job.wait()), JobEnd::Completed));
    }
}
