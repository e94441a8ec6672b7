//! Trackers, at random: guests write, copies run and fail, somebody changes what lies below the source and below
//! the target. Whenever a pivot is proven, both nodes show the same.
//!
//! `BLOCKLOOM_TRACKER_CASES` says how many cases run. Rules broken on purpose are noticed by the same cases.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::super::CopyHow;
use super::Tracker;
use crate::bitmap::{BitmapName, Granularity};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::{Change, ChangeKind, Filter};
use crate::graph::mutation::{Mutation, set};
use crate::graph::testing::{JobNode as Actor, turn};
use crate::graph::{
    Action, BitmapAction, BitmapDecl, BitmapRef, BitmapScope, ChildDecl, Cx, DriveDecl, GraphCell,
    GraphDecl, JobStake, LocalDrive, LocalGraph, NodeDecl, OwnAccord, PermissionSet, Role,
    Transaction, Unproven,
};
use crate::io::sim::Random;
use crate::io::{Buf, BufMut, EngineChoice, EngineKind, run_on_thread, spawn};
use crate::job::JobNode;
use crate::node::{MemoryNode, Node, WriteFlags};

const SIZE: u64 = 64 << 10;
const BLOCK: u64 = 4 << 10;
const CASES: u64 = 150;
const STEPS: usize = 60;

/// A filter that takes its time; so many of its writes fail half-way.
#[derive(Clone, Default)]
struct Frail(Arc<AtomicU32>, Arc<AtomicU32>);

/// What becomes of its next write; else it goes on.
const IS_HELD: u32 = 1;
/// It has come, and is held until this is something else.
const HOLDS: u32 = 2;

impl Frail {
    fn fails(&self) -> bool {
        let left = |left: u32| left.checked_sub(1);
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok()
    }
}

impl Filter for Frail {
    fn driver(&self) -> &'static str {
        "frail"
    }

    async fn read(&self, cx: Cx<'_>, offset: u64, buf: BufMut) -> Result<BufMut> {
        turn().await;
        cx.child(0)?.read(offset, buf).await
    }

    async fn write(&self, cx: Cx<'_>, offset: u64, buf: Buf, flags: WriteFlags) -> Result<()> {
        turn().await;
        if self.1.compare_exchange(IS_HELD, HOLDS, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            while self.1.load(Ordering::SeqCst) == HOLDS {
                turn().await;
            }
        }
        if self.fails() {
            let half = buf.slice(0..buf.len() / 2);
            cx.child(0)?.write(offset, half, flags).await?;
            return Err(Error::new(ErrorKind::Io, "it was torn"));
        }
        cx.child(0)?.write(offset, buf, flags).await?;
        turn().await;
        Ok(())
    }

    async fn change(
        &self,
        _: Cx<'_>,
        change: Change,
        pass: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        if change.kind == ChangeKind::Zero && self.fails() {
            return Err(Error::new(ErrorKind::Io, "nothing was zeroed"));
        }
        pass().await
    }
}

/// ```text
///   source → base ← beside     frail → target → under
/// ```
/// `guest` writes the source, `other` commits from `beside` to the base, `intruder` writes `under`; `job` copies
/// from the source to `frail`. The drive `vda` shows the source, or `frail` after a pivot.
struct World {
    graph: Rc<LocalGraph>,
    cell: Arc<GraphCell>,
    frail: Frail,
    tracker: Arc<Tracker>,
    next: Cell<u8>,
}

fn edge(name: &str, node: &str, role: Role, grants: PermissionSet) -> ChildDecl {
    ChildDecl { name: name.into(), role, grants, ..ChildDecl::filtered(node) }
}

fn writer(node: &str) -> Vec<ChildDecl> {
    vec![edge("file", node, Role::Filtered, PermissionSet::WRITE)]
}

fn root(drive: &str, node: &str) -> Action {
    Action::SetRoot { drive: drive.into(), node: node.into() }
}

fn node(name: &str, driver: impl Node, children: Vec<ChildDecl>) -> NodeDecl {
    NodeDecl { name: name.into(), driver: Arc::new(driver), children }
}

impl World {
    fn new() -> Self {
        let disk = || MemoryNode::new(SIZE, 512).expect("a disk");
        let overlay = || MemoryNode::overlay(SIZE, 512).expect("a disk");
        let frail = Frail::default();
        let stake = JobStake {
            id: "j".into(),
            stands_on: Vec::new(),
            tracks: Some((0, 1)),
            leaves_out: None,
            alters_others: false,
        };
        let job = Arc::new(JobNode::new(stake));
        let read = PermissionSet::CONSISTENT_READ;
        let proven = edge("to", "base", Role::Target, PermissionSet::WRITE);
        let proven = ChildDecl { proven_for: Some("from".into()), ..proven };
        let copy = vec![
            edge("from", "source", Role::Source, read),
            edge("to", "frail", Role::Target, PermissionSet::WRITE),
        ];
        let nodes = vec![
            node("base", disk(), vec![]),
            node("beside", overlay(), vec![ChildDecl::backing("base")]),
            node("source", overlay(), vec![ChildDecl::backing("base")]),
            node("under", disk(), vec![]),
            node("target", overlay(), vec![ChildDecl::backing("under")]),
            node("frail", frail.clone(), vec![ChildDecl::filtered("target")]),
            node("guest", Actor, writer("source")),
            node("filler", Actor, writer("beside")),
            node("intruder", Actor, writer("under")),
            node("other", Actor, vec![edge("from", "beside", Role::Source, read), proven]),
            NodeDecl { name: "job".into(), driver: Arc::clone(&job) as _, children: copy },
        ];
        let drive = |id: &str, root: &str| {
            let (id, root) = (id.into(), Some(root.into()));
            DriveDecl { id, root, writable: false, only_shows: true }
        };
        let drives = vec![
            drive("u", "under"),
            drive("vda", "source"),
            drive("s", "source"),
            drive("t", "frail"),
        ];
        let granularity = Granularity::from_bytes(BLOCK).expect("a granularity");
        let bitmap = |drive: &str| {
            let (scope, name) = (BitmapScope::Drive(drive.into()), BitmapName::new("b"));
            BitmapDecl { scope, name: name.expect("a name"), granularity, enabled: true }
        };
        let bitmaps = vec![bitmap("vda"), bitmap("u"), bitmap("t")];
        let cell = Arc::new(GraphCell::new(
            GraphDecl { nodes, drives, bitmaps }.build().expect("a graph"),
        ));
        let graph = LocalGraph::of(&cell);
        let own = OwnAccord::open(&graph, "job").expect("a job");
        let tracker = Tracker::begin(&own, (0, 1), granularity, true).expect("a tracker");
        job.set_tracker(&tracker);
        Self { graph, cell, frail, tracker, next: Cell::new(0) }
    }

    fn own(&self, node: &str) -> OwnAccord {
        OwnAccord::open(&self.graph, node).expect("a node that acts")
    }

    fn fresh(&self) -> Buf {
        self.next.set(self.next.get().wrapping_add(1).max(1));
        Buf::copy_of(&[self.next.get(); BLOCK as usize])
    }

    async fn shown(&self, drive: &str) -> Vec<u8> {
        let drive = LocalDrive::open(&self.graph, drive).expect("a drive");
        drive.read(0, BufMut::new(SIZE as usize)).await.expect("a read").to_vec()
    }

    /// One of those who do something. Failures are among what may happen.
    async fn act(self: Rc<Self>, mut random: Random) {
        let block = random.below(SIZE / BLOCK) * BLOCK;
        let range = block..(block + random.within(1..5) * BLOCK).min(SIZE);
        match random.below(11) {
            0..=2 => {
                let _ = self.own("guest").write_changed(0, block, self.fresh()).await;
            }
            3 => {
                let ground = self.own("guest").on_behalf().await.expect("a ground");
                let _ = ground.zero_changed(0, range).await;
            }
            4 => {
                let _ = self.own("filler").write_changed(0, block, self.fresh()).await;
            }
            5 => {
                let how = CopyHow { unchanged: true, only_unallocated: false };
                let _ = self.own("other").copy(0, 1, range, how).await;
            }
            6 => {
                let _ = self.own("intruder").write_changed(0, block, self.fresh()).await;
            }
            7 => self.frail.0.store(1, Ordering::SeqCst),
            _ => {
                let ground = self.own("job").on_behalf().await.expect("a ground");
                let _ = ground.copy_tracked(Arc::clone(&self.tracker), range).await;
            }
        }
    }

    fn root(node: &str, unproven: Unproven) -> Transaction {
        Transaction::new().with_unproven(root("vda", node), unproven)
    }

    async fn copy(&self, range: Range<u64>) {
        let ground = self.own("job").on_behalf().await.expect("a ground");
        ground.copy_tracked(Arc::clone(&self.tracker), range).await.expect("copied");
    }

    async fn clear(&self, drive: &str) {
        let clear = BitmapAction::Clear.of(BitmapRef::of_drive(drive, "b"));
        self.cell.transact(Transaction::new().with(clear)).await.expect("cleared");
    }

    fn is_dirty(&self, drive: &str) -> bool {
        let graph = self.graph.current();
        let bitmap = graph.find_bitmap(&BitmapScope::Drive(drive.into()), "b").expect("a bitmap");
        bitmap.read().ranges(0..u64::MAX).next().is_some()
    }

    /// A pivot while others act, and back when they have ended; returns whether it was proven. What the bitmap calls
    /// clean then is what it was before.
    ///
    /// # Errors
    /// It is not; or, if nobody acts, the nodes show different bytes, or anything was marked.
    async fn pivot(self: &Rc<Self>, actors: Vec<Random>) -> Result<bool, String> {
        self.frail.0.store(0, Ordering::SeqCst);
        self.clear("vda").await;
        let (before, is_quiet) = (self.shown("vda").await, actors.is_empty());
        let acting = self.begin(actors);
        let there = self.cell.transact(Self::root("frail", Unproven::Refuse)).await;
        until_ended(&acting).await;
        let after = self.shown("vda").await;
        let graph = self.graph.current();
        let scope = BitmapScope::Drive("vda".into());
        let dirty = graph.find_bitmap(&scope, "b").expect("a bitmap").read();
        let differs = (0..SIZE / BLOCK).map(|block| block * BLOCK).find(|at| {
            let range = *at as usize..(at + BLOCK) as usize;
            let is_clean = dirty.ranges(*at..at + BLOCK).next().is_none();
            is_clean && before[range.clone()] != after[range]
        });
        if let Some(at) = differs {
            return Err(format!("byte {at} is called clean, and is another"));
        }
        if is_quiet && there.is_ok() && dirty.ranges(0..u64::MAX).next().is_some() {
            return Err("a bitmap was marked of what stays the same".into());
        }
        let back = self.cell.transact(Self::root("source", Unproven::MarkWhole)).await;
        back.expect("back again");
        Ok(there.is_ok())
    }

    /// Has some act at once; how many have not ended.
    fn begin(self: &Rc<Self>, actors: Vec<Random>) -> Rc<Cell<usize>> {
        let left = Rc::new(Cell::new(actors.len()));
        for random in actors {
            let (world, left) = (Rc::clone(self), Rc::clone(&left));
            spawn(async move {
                world.act(random).await;
                left.set(left.get() - 1);
            });
        }
        left
    }
}

async fn until_ended(left: &Cell<usize>) {
    while left.get() > 0 {
        turn().await;
    }
}

/// A case; returns how many pivots were proven.
fn case(seed: u64) -> Result<u64, String> {
    let ended = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), async move {
        let (world, mut random) = (Rc::new(World::new()), Random::new(seed));
        let mut pivots = 0;
        for _ in 0..STEPS {
            let some = |random: &mut Random, from: u64| -> Vec<Random> {
                (0..random.within(from..4)).map(|_| Random::new(random.next())).collect()
            };
            if random.one_in(6) {
                let actors = some(&mut random, 0);
                pivots += u64::from(world.pivot(actors).await?);
            } else {
                until_ended(&world.begin(some(&mut random, 1))).await;
            }
        }
        Ok(pivots)
    });
    ended.expect("a worker")
}

fn cases() -> u64 {
    let asked = std::env::var("BLOCKLOOM_TRACKER_CASES").ok();
    asked.and_then(|asked| asked.parse().ok()).unwrap_or(CASES)
}

#[test]
fn what_is_proven_by_a_tracker_is_so() {
    let mut pivots = 0;
    for seed in 0..cases() {
        pivots += case(seed).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
    assert!(pivots > cases() * 3, "hardly anything was proven: {pivots}");
}

#[test]
fn broken_rules_of_trackers_are_noticed() {
    for rule in
        [Mutation::ClearsBeforeSettling, Mutation::TrustsTheTarget, Mutation::ForgetsChangesBelow]
    {
        set(Some(rule));
        let noticed = (0..CASES).find(|seed| case(*seed).is_err());
        set(None);
        println!("{rule:?}: seed {noticed:?}");
        assert!(noticed.is_some(), "{rule:?}");
    }
}

/// A section copies what is left, and ends before its write does: nobody comes between that and its end.
#[test]
fn a_write_that_outlives_its_section_is_waited_for() {
    let ended = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), async {
        let world = Rc::new(World::new());
        let bytes = |value: u8| Buf::copy_of(&[value; BLOCK as usize]);
        world.copy(0..SIZE).await;
        world.own("guest").write_changed(0, 0, bytes(1)).await.expect("a write");
        world.frail.1.store(IS_HELD, Ordering::SeqCst);
        let clear = |drive: &str| BitmapAction::Clear.of(BitmapRef::of_drive(drive, "b"));
        let too_late = async |transaction: Transaction, millis| {
            let transaction = transaction.within(Duration::from_millis(millis));
            let error = world.cell.transact(transaction).await.expect_err("the target is late");
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            (error.to_string(), world.frail.1.load(Ordering::SeqCst) == HOLDS)
        };
        // However busy the machine is: until its time is long enough for its write to come.
        let pivot = || World::root("frail", Unproven::Refuse);
        let begin = || pivot().with(clear("u"));
        let mut millis = 20;
        while !too_late(begin(), millis).await.1 {
            assert!(millis < 20_000, "its write never comes");
            millis *= 2;
        }
        // Neither is the other put in its place, nor does whoever copies go, and let others write there.
        let expect = "what job `j` copies from node `source` (drive `vda`, drive `s`) to node `frail` has not \
                      ended in 20ms: nothing was changed";
        let gone = |transaction: Transaction| {
            transaction.with(Action::RemoveNode { node: "job".into() }).ending_job("j")
        };
        for other in [pivot(), Transaction::new().with(clear("t")), gone(Transaction::new())] {
            assert_eq!(too_late(other, 20).await, (expect.to_owned(), true));
        }
        // Whoever has nothing to do with it goes on.
        world.cell.transact(Transaction::new().with(clear("u"))).await.expect("cleared");

        let left = Rc::new(Cell::new(1));
        let (other, ends) = (Rc::clone(&world), Rc::clone(&left));
        spawn(async move {
            other.own("guest").write_changed(0, 0, bytes(2)).await.expect("a write");
            other.copy(0..SIZE).await;
            ends.set(0);
        });
        for _ in 0..1000 {
            turn().await;
        }
        assert_eq!(left.get(), 1, "the range is guarded");
        world.frail.1.store(0, Ordering::SeqCst);
        until_ended(&left).await;
        let both = gone(World::root("frail", Unproven::Refuse));
        world.cell.transact(both).await.expect("both show the same");
        assert_eq!(world.shown("vda").await[..BLOCK as usize], [2; BLOCK as usize]);
    });
    ended.expect("a worker");
}

/// A drive is to show an empty overlay of what it shows, and the same section copies something else into that.
fn into_what_was_empty(unproven: Unproven) -> Result<(), String> {
    let ended = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), async move {
        let world = World::new();
        world.own("guest").write_changed(0, 0, world.fresh()).await.expect("a write");
        world.clear("vda").await;
        let before = world.shown("u").await;
        let roots = [root("u", "target"), root("vda", "frail")];
        let both = roots.into_iter().fold(Transaction::new(), |transaction, root| {
            transaction.with_unproven(root, unproven)
        });
        match (world.cell.transact(both).await, unproven) {
            (Err(error), Unproven::Refuse) => {
                assert_eq!(error.kind(), ErrorKind::NotPermitted, "{error}");
                assert_eq!(world.shown("u").await, before);
            }
            (Err(error), Unproven::MarkWhole) => return Err(error.to_string()),
            (Ok(_), _) if world.is_dirty("u") => assert!(!world.is_dirty("vda")),
            (Ok(_), _) => return Err("what has changed is called clean".into()),
        }
        Ok(())
    });
    ended.expect("a worker")
}

#[test]
fn what_is_copied_in_a_section_voids_what_was_found_in_it_before() {
    for unproven in [Unproven::Refuse, Unproven::MarkWhole] {
        assert_eq!(into_what_was_empty(unproven), Ok(()));
        set(Some(Mutation::KeepsVoidEvidence));
        let noticed = into_what_was_empty(unproven);
        set(None);
        assert!(noticed.is_err(), "{unproven:?}");
    }
}

/// What is left to be copied turns out to be the same by block status: nothing is written for it, nor marked.
#[test]
fn what_shows_the_same_is_not_marked_in_a_section() {
    let ended = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), async {
        let world = World::new();
        world.own("guest").write_changed(0, 3 * BLOCK, world.fresh()).await.expect("a write");
        assert_eq!(world.tracker.left_bytes(), SIZE);
        let pivot = World::root("frail", Unproven::Refuse);
        world.cell.transact(pivot).await.expect("all else is zero in both");
        let graph = world.graph.current();
        let dirty = graph.find_bitmap(&BitmapScope::Drive("t".into()), "b").expect("a bitmap");
        let dirty: Vec<Range<u64>> = dirty.read().ranges(0..u64::MAX).collect();
        assert_eq!(dirty, [3 * BLOCK..4 * BLOCK; 1]);
    });
    ended.expect("a worker");
}

/// What another node tracks, or what was tracked before an edge led elsewhere, proves nothing.
#[test]
fn a_tracker_is_of_its_node_alone() {
    let ended = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), async {
        let world = World::new();
        let own = world.own("other");
        let granularity = Granularity::from_bytes(BLOCK).expect("a granularity");
        let error = Tracker::begin(&own, (0, 1), granularity, true).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::NotPermitted, "{error}");
        let ground = own.on_behalf().await.expect("a ground");
        let error = ground.copy_tracked(Arc::clone(&world.tracker), 0..BLOCK).await;
        assert_eq!(error.expect_err("refused").kind(), ErrorKind::Stale);
        assert_eq!(world.tracker.left_bytes(), SIZE);
    });
    ended.expect("a worker");
}
