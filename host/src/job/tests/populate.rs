//! `populate`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::scene::{
    BLOCK, Over, Worn, chain, dirty, disk, fill_chain, insert_filter, load, of_drive, of_node,
    write,
};
use crate::bitmap::BitmapState;
use crate::error::ErrorKind;
use crate::graph::{Action, BitmapAction, BitmapRef, ChildDecl, Transaction};
use crate::job::{
    BackupSpec, BackupSync, JobEnd, JobHandle, JobKind, JobSpec, MirrorSpec, OnError, PopulateFrom,
    PopulateSpec,
};
use crate::{Host, block_on};

fn populate(device: &str, from: PopulateFrom) -> JobSpec {
    let bitmap = BitmapRef::of_drive("vda", "b");
    let spec = PopulateSpec { bitmap, device: device.into(), from };
    JobSpec::new("p", JobKind::Populate(spec))
}

fn allocation(base: Option<&str>) -> PopulateFrom {
    PopulateFrom::Allocation { base: base.map(Into::into) }
}

fn difference(other: &str) -> PopulateFrom {
    PopulateFrom::Difference { other: other.into() }
}

fn completes(host: &Host, spec: JobSpec) {
    let job = block_on(host.start_job(spec)).expect("a job");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    let progress = job.info().progress;
    assert_eq!(progress.done_bytes, progress.total_bytes);
}

fn act(host: &Host, action: BitmapAction) {
    let action = action.of(BitmapRef::of_drive("vda", "b"));
    block_on(host.transact(Transaction::new().with(action))).expect("an action");
}

/// The chain, and a copy of what it shows, of which one byte cannot be read if it is said so.
fn host_with_copy() -> (Host, Worn) {
    let worn = Worn::default();
    let host = chain()
        .node("store", disk(), vec![])
        .node("copy", worn.clone(), vec![ChildDecl::filtered("store")])
        .start()
        .expect("a host");
    fill_chain(&host);
    let backup = JobKind::Backup(BackupSpec::of("vda", "copy"));
    completes(&host, JobSpec::new("b", backup));
    (host, worn)
}

fn own(of: std::ops::Range<u64>) -> BTreeSet<u64> {
    of.filter(|block| block % 3 != 1).collect()
}

#[test]
fn what_lies_above_a_base_is_dirty_beside_what_was() {
    let check = |device: &str, base: Option<&str>, expect: BTreeSet<u64>| {
        let host = chain().start().expect("a host");
        fill_chain(&host);
        block_on(host.transact(insert_filter("top", "above"))).expect("a filter");
        write(&host, "vda", 1000, 1);
        completes(&host, populate(device, allocation(base)));
        let mut expect = expect;
        expect.insert(1000);
        assert_eq!(dirty(&host, &of_drive()), Vec::from_iter(expect), "{device}");
        assert_eq!(dirty(&host, &of_node("top")), [1000]);
        host.shutdown().expect("an end in order");
    };
    for device in ["vda", "top", "above"] {
        check(device, None, own(350..360));
        check(device, Some("base"), own(300..400));
    }
    check("mid", None, own(300..400));
}

/// Whatever their images are like, whether the bitmap records or not.
#[test]
fn what_two_nodes_do_not_show_alike_is_dirty() {
    for is_disabled in [false, true] {
        let (host, _) = host_with_copy();
        if is_disabled {
            act(&host, BitmapAction::Disable);
        }
        for block in [5, 355, 700, 1001] {
            write(&host, "vda", block, 9);
        }
        let zeroed = host.drive("vda").expect("a drive");
        let flags = crate::node::WriteFlags::NONE;
        block_on(zeroed.zero(20 * BLOCK, 100 * BLOCK, flags)).expect("zeros");
        let mut expect: BTreeSet<u64> = own(20..120);
        expect.extend([5, 355, 700, 1001]);
        if !is_disabled {
            act(&host, BitmapAction::Clear);
        }
        completes(&host, populate("vda", difference("copy")));
        assert_eq!(dirty(&host, &of_drive()), Vec::from_iter(expect), "{is_disabled}");
        let state = if is_disabled { BitmapState::Disabled } else { BitmapState::Recording };
        assert_eq!(host.bitmap(&of_drive(), "b").expect("a bitmap").state(), state);
        // So the copy can be brought up to date by it.
        let bitmap = Some(BitmapRef::of_drive("vda", "b"));
        let sync = BackupSync::Incremental;
        let backup = BackupSpec { sync, bitmap, ..BackupSpec::of("vda", "copy") };
        completes(&host, JobSpec::new("b", JobKind::Backup(backup)));
        completes(&host, populate("vda", difference("copy")));
        assert_eq!(dirty(&host, &of_drive()), [0_u64; 0]);
        host.shutdown().expect("an end in order");
    }
}

#[test]
fn what_is_written_meanwhile_is_dirty_and_no_more() {
    let (host, _) = host_with_copy();
    let over = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let guest = scope.spawn(|| load(&host, &over));
        let ended = Over(&over);
        let ends: Vec<JobEnd> = (0..4)
            .map(|_| {
                let job = block_on(host.start_job(populate("vda", difference("copy"))));
                block_on(job.expect("a job").wait())
            })
            .collect();
        drop(ended);
        let written = guest.join().expect("a guest");
        assert!(ends.iter().all(|end| matches!(end, JobEnd::Completed)), "{ends:?}");
        written
    });
    let written: BTreeSet<u64> = written.into_iter().map(|(block, _)| block).collect();
    assert_eq!(dirty(&host, &of_drive()), Vec::from_iter(written));
    host.shutdown().expect("an end in order");
}

/// One that does not come to its end leaves the bitmap as it was.
#[test]
fn one_that_fails_or_is_cancelled_has_done_nothing() {
    let (host, worn) = host_with_copy();
    write(&host, "vda", 700, 9);
    act(&host, BitmapAction::Clear);
    let begin = |on_error: OnError, speed: u64| -> JobHandle {
        let spec = JobSpec { on_error, speed, ..populate("vda", difference("copy")) };
        block_on(host.start_job(spec)).expect("a job")
    };
    let job = begin(OnError::Report, 1);
    let clear = BitmapAction::Clear.of(BitmapRef::of_drive("vda", "b"));
    let error = block_on(host.transact(Transaction::new().with(clear))).expect_err("it is in use");
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    job.cancel(false).expect("a job that can be cancelled");
    assert!(matches!(block_on(job.wait()), JobEnd::Cancelled));
    worn.bad.store(500 * BLOCK, Ordering::SeqCst);
    let job = begin(OnError::Report, 0);
    assert!(matches!(block_on(job.wait()), JobEnd::Failed(_)), "{:?}", job.info());
    assert_eq!(dirty(&host, &of_drive()), [0_u64; 0]);
    // What could not be read may differ.
    let job = begin(OnError::Ignore, 0);
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    let found = dirty(&host, &of_drive());
    assert!(found.contains(&500) && found.contains(&700) && !found.contains(&5), "{found:?}");
    host.shutdown().expect("an end in order");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let host = chain()
        .node("short", crate::node::MemoryNode::new(BLOCK, 512).expect("a size"), vec![])
        .node("copy", disk(), vec![])
        .start()
        .expect("a host");
    let check = |spec: JobSpec, expect: &str| {
        let error = block_on(host.start_job(spec)).err().expect("refused");
        assert!(error.to_string().contains(expect), "{error}");
    };
    check(populate("vda", difference("short")), "`short` has 4096 bytes");
    check(populate("short", allocation(None)), "not of 4096");
    check(populate("vda", allocation(Some("copy"))), "the base `copy` is not below it");
    check(populate("nowhere", allocation(None)), "no node or drive `nowhere`");
    let freeze = BitmapAction::Freeze.of(BitmapRef::of_drive("vda", "b"));
    block_on(host.transact(Transaction::new().with(freeze))).expect("a freeze");
    let job = block_on(host.start_job(populate("vda", allocation(None)))).expect("a job");
    let JobEnd::Failed(error) = block_on(job.wait()) else { panic!("it is frozen") };
    assert!(error.to_string().contains("frozen"), "{error}");
    act(&host, BitmapAction::MergeBack);
    // A job that copies one of them goes on beside it.
    let mirror = JobKind::Mirror(MirrorSpec::of("vda", "copy"));
    let mirror = block_on(host.start_job(JobSpec { speed: 1, ..JobSpec::new("m", mirror) }));
    completes(&host, populate("vda", difference("copy")));
    mirror.expect("a job").cancel(true).expect("a job that can be cancelled");
    let remove = Action::RemoveNode { node: "short".into() };
    block_on(host.transact(Transaction::new().with(remove))).expect("nobody uses it");
    host.shutdown().expect("an end in order");
}
