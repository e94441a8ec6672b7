//! What is copied is what was there at one instant, whatever goes on beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::scene::{
    BLOCK, Over, SIZE, chain, child, dirty, disk, fill_chain, insert_filter, load, of_drive,
    overlay, put, shown, shown_by, wait_for, write,
};
use super::{backup, world};
use crate::error::ErrorKind;
use crate::graph::{
    Action, BitmapAction, BitmapRef, ChildDecl, DriveDecl, NodeDecl, Transaction, Unproven,
};
use crate::job::{
    BackupSpec, BackupSync as S, BitmapMode, CommitSpec, JobEnd, JobKind, JobSpec, JobStatus,
    MirrorSpec, StreamSpec,
};
use crate::node::WriteFlags;
use crate::{Host, block_on};

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

/// Bytes by which a disk grows.
const MORE: u64 = 10 * BLOCK;

fn grow(host: &Host) {
    block_on(host.resize("vda", SIZE + MORE)).expect("a larger disk");
    for block in [SIZE / BLOCK - 1, SIZE / BLOCK, (SIZE + MORE) / BLOCK - 1] {
        write(host, "vda", block, 6);
    }
}

/// What a disk gains while it is copied is none of the instant's: its target has no room for that.
#[test]
fn a_disk_grows_below_it() {
    let world = world();
    let expect = shown(&world.host, "vda");
    let job = world.start(BackupSpec::of("vda", "onto"));
    grow(&world.host);
    job.set_speed(0).expect("a job that runs");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    assert!(shown_by(&world.host, "copy") == expect);
    world.end();

    let host = chain().node("scratch", overlay(), vec![ChildDecl::backing("top")]).start();
    let host = host.expect("a host");
    fill_chain(&host);
    let expect = shown(&host, "vda");
    let spec = BackupSpec { sync: S::None, ..BackupSpec::of("vda", "scratch") };
    let job = block_on(host.start_job(backup(spec))).expect("a job");
    grow(&host);
    let graph = host.graph();
    let scratch = &graph.nodes()[graph.find_node("scratch").expect("a node")];
    assert_eq!(scratch.info().size_bytes, SIZE);
    assert!(shown_by(&host, "scratch") == expect);
    job.cancel(false).expect("a job that can be cancelled");
    assert!(matches!(block_on(job.wait()), JobEnd::Cancelled));
    host.shutdown().expect("an end in order");
}

/// What was not copied is dirty at the end, and so is what the disk has gained; no more than that.
#[test]
fn a_disk_grows_below_one_that_is_cancelled() {
    let world = world();
    let bitmap = Some(BitmapRef::of_drive("vda", "b"));
    let bitmap_mode = Some(BitmapMode::Always);
    let job = world.start(BackupSpec { bitmap, bitmap_mode, ..BackupSpec::of("vda", "onto") });
    assert!(wait_for(|| job.info().progress.done_bytes > 0), "nothing is copied");
    grow(&world.host);
    job.cancel(false).expect("a job that can be cancelled");
    assert!(matches!(block_on(job.wait()), JobEnd::Cancelled));
    let dirty = dirty(&world.host, &of_drive());
    let (former, all) = (SIZE / BLOCK, (SIZE + MORE) / BLOCK);
    assert!((former - 1..all).all(|block| dirty.contains(&block)), "{dirty:?}");
    assert!(!dirty.contains(&0), "it has been copied: {dirty:?}");
    world.end();
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
    let keeps = "job `b` keeps what was there at one point in time, and a shrink";
    check(Action::Resize { node, size_bytes }, keeps);
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
