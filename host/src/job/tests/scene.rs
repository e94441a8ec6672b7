//! Hosts for these tests, and what is seen of them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::bitmap::{BitmapName, Granularity};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::{Change, ChangeKind, Filter, PassNode};
use crate::graph::{
    Action, BitmapScope, ChildDecl, Cx, DriveDecl, Event, Events, NodeDecl, Transaction, Which,
};
use crate::io::{Buf, BufMut, sleep_until, turn_now};
use crate::job::{JobEnd, JobEvent, JobHandle, JobNews, JobStatus};
use crate::node::{MemoryNode, WriteFlags};
use crate::{Drive, Host, HostBuilder, block_on};

/// Says that it is over, at the latest when it is dropped: also by a failed assertion.
pub(super) struct Over<'a>(pub(super) &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Size of every node.
pub(super) const SIZE: u64 = 4 << 20;
/// Unit of allocation, and granule of every bitmap.
pub(super) const BLOCK: u64 = 4096;

pub(super) fn disk() -> MemoryNode {
    MemoryNode::new(SIZE, 512).expect("a size")
}

pub(super) fn overlay() -> MemoryNode {
    MemoryNode::overlay(SIZE, 4096).expect("a size")
}

/// A chain `base` ← `mid` ← `top` behind the drive `vda`, with a bitmap `b` of each of them and of the drive.
/// Each has its number in some blocks of its own: block n is of the topmost that has bit n.
pub(super) fn chain() -> HostBuilder {
    let host = Host::builder()
        .node("base", disk(), vec![])
        .node("mid", overlay(), vec![ChildDecl::backing("base")])
        .node("top", overlay(), vec![ChildDecl::backing("mid")])
        .drive("vda", "top", true);
    let nodes = ["base", "mid", "top"].map(|node| BitmapScope::Node(node.into()));
    nodes.into_iter().chain([BitmapScope::Drive("vda".into())]).fold(host, |host, scope| {
        let granularity = Granularity::from_bytes(BLOCK).expect("a granularity");
        host.bitmap(scope, BitmapName::new("b").expect("a name"), granularity)
    })
}

/// What a drive shows.
pub(super) fn shown(host: &Host, drive: &str) -> Vec<u8> {
    block_on(host.drive(drive).expect("a drive").read(0, SIZE as usize)).expect("a read").to_vec()
}

pub(super) fn write(host: &Host, drive: &str, block: u64, value: u8) {
    let drive = host.drive(drive).expect("a drive");
    block_on(drive.write(block * BLOCK, &[value; BLOCK as usize])).expect("a write");
}

/// What a node shows, by a drive for the moment.
pub(super) fn shown_by(host: &Host, node: &str) -> Vec<u8> {
    let drive =
        DriveDecl { id: "look".into(), root: Some(node.into()), writable: false, only_shows: true };
    block_on(host.transact(Transaction::new().with(Action::AddDrive(drive)))).expect("a drive");
    let shown = shown(host, "look");
    let remove = Action::RemoveDrive { drive: "look".into() };
    block_on(host.transact(Transaction::new().with(remove))).expect("no drive");
    shown
}

/// Writes a block, and notes that in what is expected.
pub(super) fn put(host: &Host, expect: &mut [u8], block: u64, value: u8) {
    write(host, "vda", block, value);
    expect[(block * BLOCK) as usize..((block + 1) * BLOCK) as usize].fill(value);
}

/// Writes to nodes of the chain that nobody else writes: by moving the drive there and back.
pub(super) fn fill_chain(host: &Host) {
    use crate::graph::Unproven;
    for (node, value, blocks) in
        [("base", 1_u8, 0..600_u64), ("mid", 2, 300..400), ("top", 3, 350..360)]
    {
        let root = |node: &str| Action::SetRoot { drive: "vda".into(), node: node.into() };
        let go = Transaction::new().with_unproven(root(node), Unproven::MarkWhole);
        block_on(host.transact(go)).expect("a root");
        for block in blocks.filter(|block| block % 3 != 1) {
            write(host, "vda", block, value);
        }
    }
    for scope in ["base", "mid", "top"].map(|node| BitmapScope::Node(node.into())) {
        clear(host, &scope);
    }
    clear(host, &BitmapScope::Drive("vda".into()));
}

fn clear(host: &Host, scope: &BitmapScope) {
    let bitmap = host.bitmap(scope, "b").expect("a bitmap");
    block_on(bitmap.clear()).expect("cleared");
}

/// Dirty blocks of a bitmap.
pub(super) fn dirty(host: &Host, scope: &BitmapScope) -> Vec<u64> {
    let bitmap = host.bitmap(scope, "b").expect("a bitmap");
    let ranges: Vec<_> = bitmap.ranges(0..u64::MAX).collect();
    ranges.into_iter().flat_map(|run| run.start / BLOCK..run.end.div_ceil(BLOCK)).collect()
}

pub(super) fn of_node(name: &str) -> BitmapScope {
    BitmapScope::Node(name.into())
}

pub(super) fn of_drive() -> BitmapScope {
    BitmapScope::Drive("vda".into())
}

/// The states that a job has been in, and its other news.
pub(super) fn news(events: &mut Events, job: &str) -> (Vec<JobStatus>, Vec<JobNews>) {
    let (mut states, mut news) = (Vec::new(), Vec::new());
    while let Some(notice) = events.try_next() {
        match notice.event {
            Event::Job(JobEvent { job: id, what, .. }) if *id == *job => match what {
                JobNews::Status(status) => states.push(status),
                what => news.push(what),
            },
            _ => {}
        }
    }
    (states, news)
}

pub(super) fn insert_filter(node: &str, name: &str) -> Transaction {
    let driver = Arc::new(PassNode);
    let filter = NodeDecl { name: name.into(), driver, children: vec![ChildDecl::filtered(node)] };
    Transaction::new().with(Action::InsertAbove { node: node.into(), filter, users: Which::All })
}

/// Whether something comes to be so, within a long time.
pub(super) fn wait_for(mut is_so: impl FnMut() -> bool) -> bool {
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(30) {
        if is_so() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

/// Writes blocks in turn, and reads each back; what was written.
pub(super) fn load(host: &Host, over: &AtomicBool) -> Vec<(u64, u8)> {
    load_drive(&host.drive("vda").expect("a drive"), over)
}

pub(super) fn load_drive(drive: &Drive, over: &AtomicBool) -> Vec<(u64, u8)> {
    let (mut written, mut number) = (Vec::new(), 0_u64);
    while !over.load(Ordering::SeqCst) {
        number += 1;
        let (block, value) = (number * 7919 % (SIZE / BLOCK), (number % 251) as u8 + 1);
        // Some of the nodes fail a few times.
        let write = || block_on(drive.write(block * BLOCK, &[value; BLOCK as usize])).ok();
        (0..4).find_map(|_| write()).expect("a write");
        let read = || block_on(drive.read(block * BLOCK, BLOCK as usize)).ok();
        let read = (0..4).find_map(|_| read()).expect("a read");
        assert!(read.iter().all(|byte| *byte == value), "block {block} after write {number}");
        written.push((block, value));
    }
    written
}

/// The end of a job, also of one that waits for being told to.
pub(super) fn end_of(job: &JobHandle) -> JobEnd {
    let is_done = |at: JobStatus| at == JobStatus::Pending || at.is_over();
    block_on(job.comes_to(|at| at == JobStatus::Ready || is_done(at)));
    let _ = job.complete();
    block_on(job.comes_to(is_done));
    let _ = job.finalize();
    block_on(job.wait())
}

#[track_caller]
pub(super) fn ends_well(job: &JobHandle) {
    let end = end_of(job);
    assert!(matches!(end, JobEnd::Completed), "{end:?}");
}

/// The edge of a node: where it leads, by name.
pub(super) fn child(host: &Host, node: &str, edge: &str) -> Option<String> {
    let graph = host.graph();
    let node = &graph.nodes()[graph.find_node(node).expect("a node")];
    let edge = node.edges().iter().find(|other| other.name() == edge)?;
    Some(graph.nodes()[edge.child()].name().to_owned())
}

/// A filter that takes its time, and fails as often as is left in `failures`: a write half-way.
pub(super) struct Slow {
    pub(super) time: Duration,
    pub(super) failures: Arc<AtomicU32>,
}

impl Slow {
    async fn fails(&self) -> bool {
        sleep_until(turn_now() + self.time).await;
        let left = |left: u32| left.checked_sub(1);
        self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok()
    }
}

fn damaged<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Io, "the medium is damaged"))
}

impl Filter for Slow {
    fn driver(&self) -> &'static str {
        "slow"
    }

    async fn read(&self, cx: Cx<'_>, offset: u64, buf: BufMut) -> Result<BufMut> {
        if self.fails().await {
            return damaged();
        }
        cx.child(0)?.read(offset, buf).await
    }

    async fn write(&self, cx: Cx<'_>, offset: u64, buf: Buf, flags: WriteFlags) -> Result<()> {
        if self.fails().await {
            let half = buf.slice(0..buf.len() / 2);
            cx.child(0)?.write(offset, half, flags).await?;
            return damaged();
        }
        cx.child(0)?.write(offset, buf, flags).await
    }
}

/// A filter that counts what is read, and cannot read or write one byte of it.
#[derive(Clone)]
pub(super) struct Worn {
    pub(super) reads: Arc<AtomicU64>,
    /// The byte; past the end for none.
    pub(super) bad: Arc<AtomicU64>,
    /// Reads that are stale.
    pub(super) stale: Arc<AtomicU32>,
}

impl Default for Worn {
    fn default() -> Self {
        let bad = Arc::new(AtomicU64::new(u64::MAX));
        Self { reads: Arc::default(), bad, stale: Arc::default() }
    }
}

impl Worn {
    fn check(&self, range: &Range<u64>) -> Result<()> {
        let bad = self.bad.load(Ordering::SeqCst);
        if range.contains(&bad) { damaged() } else { Ok(()) }
    }
}

impl Filter for Worn {
    fn driver(&self) -> &'static str {
        "worn"
    }

    async fn read(&self, cx: Cx<'_>, offset: u64, buf: BufMut) -> Result<BufMut> {
        let len = buf.len() as u64;
        self.check(&(offset..offset + len))?;
        let left = |left: u32| left.checked_sub(1);
        if self.stale.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok() {
            return Err(Error::new(ErrorKind::Stale, "something has come between"));
        }
        self.reads.fetch_add(len, Ordering::SeqCst);
        cx.child(0)?.read(offset, buf).await
    }

    async fn change(
        &self,
        _: Cx<'_>,
        change: Change,
        pass: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        if matches!(change.kind, ChangeKind::Write | ChangeKind::Zero) {
            self.check(&change.range)?;
        }
        pass().await
    }
}
