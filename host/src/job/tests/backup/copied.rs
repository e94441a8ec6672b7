//! What is read, and what is written to the target.

use std::sync::atomic::Ordering;

use super::super::scene::{BLOCK, SIZE, chain, fill_chain, news, put, shown, shown_by, write};
use super::{backup, block, world};
use crate::block_on;
use crate::filter::PassNode;
use crate::graph::{BitmapRef, ChildDecl};
use crate::job::{BackupSpec, BackupSync as S, JobEnd, JobNews, JobStatus};
use crate::node::MemoryNode;

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
