//! Claims, true and false, on real graphs of memory nodes. Names of the kind `E17e` are those of
//! experiments with qemu-storage-daemon 10.0.2, whose answer each test states.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use super::super::mutation::{Mutation, set};
use super::super::{
    BitmapAction, BitmapDecl, BitmapScope, ChildDecl, Cx, DriveDecl, GraphCell, GraphDecl,
    LocalDrive, LocalGraph, NodeDecl, PermissionSet, Role, Transaction,
};
use super::{CopyHow, Outcomes, OwnAccord};
use crate::bitmap::{BitmapName, Change, Granularity, Granules};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::{self, ChangeKind, CopyOnReadNode, Filter, PassNode};
use crate::graph::testing::{JobNode, turn};
use crate::io::{Buf, BufMut, EngineChoice, EngineKind, run_on_thread, spawn};
use crate::limits::{COPY_TRIES, WATCHES_MAX, WATCHES_OF_NODE_MAX, ZERO_PROVEN_MAX_BYTES};
use crate::node::{Extent, MemoryNode, Node, WriteFlags};

const SIZE: u64 = 64 << 10;
const BLOCK: u64 = 4 << 10;
const UNCHANGED: CopyHow = CopyHow { unchanged: true, only_unallocated: false };
const CHANGED: CopyHow = CopyHow { unchanged: false, only_unallocated: false };

/// A graph in the making. Every node and drive has a bitmap `b` of 4 KiB granules.
#[derive(Default)]
struct Scene(GraphDecl);

impl Scene {
    fn node(mut self, name: &str, driver: impl Node, children: Vec<ChildDecl>) -> Self {
        self.0.nodes.push(NodeDecl { name: name.into(), driver: Arc::new(driver), children });
        self.bitmap(BitmapScope::Node(name.into()))
    }

    fn base(self, name: &str) -> Self {
        self.node(name, MemoryNode::new(SIZE, 512).expect("a disk"), vec![])
    }

    fn overlay(self, name: &str, backing: &str) -> Self {
        self.node(name, MemoryNode::overlay(SIZE, 512).expect("a disk"), vec![below(backing)])
    }

    fn pass(self, name: &str, child: &str) -> Self {
        self.node(name, PassNode, vec![ChildDecl::filtered(child)])
    }

    /// A node that only acts: copies from its first child to its second, proven for the first.
    fn job(self, name: &str, from: &str, to: &str) -> Self {
        self.actor(name, from, to, Some("from"))
    }

    fn actor(self, name: &str, from: &str, to: &str, proven_for: Option<&str>) -> Self {
        let edge = |name: &str, node: &str, role, grants| ChildDecl {
            name: name.into(),
            role,
            grants,
            ..ChildDecl::filtered(node)
        };
        let read = edge("from", from, Role::Source, PermissionSet::CONSISTENT_READ);
        let write = edge("to", to, Role::Target, PermissionSet::WRITE);
        let proven_for = proven_for.map(Into::into);
        self.node(name, JobNode, vec![read, ChildDecl { proven_for, ..write }])
    }

    fn drive(mut self, id: &str, root: &str) -> Self {
        let root = Some(root.into());
        self.0.drives.push(DriveDecl { id: id.into(), root, writable: true, only_shows: false });
        self.bitmap(BitmapScope::Drive(id.into()))
    }

    fn bitmap(mut self, scope: BitmapScope) -> Self {
        let name = BitmapName::new("b").expect("a name");
        let granularity = Granularity::from_bytes(BLOCK).expect("a granularity");
        self.0.bitmaps.push(BitmapDecl { scope, name, granularity, enabled: true });
        self
    }

    fn run<F: Future<Output = ()> + 'static>(self, test: impl FnOnce(Stage) -> F + 'static) {
        let ended = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), async move {
            let cell = Arc::new(GraphCell::new(self.0.build().expect("a graph")));
            test(Stage { graph: LocalGraph::of(&cell) }).await;
        });
        ended.expect("a worker");
    }
}

fn below(node: &str) -> ChildDecl {
    ChildDecl { name: "backing".into(), role: Role::Backing, ..ChildDecl::filtered(node) }
}

#[derive(Clone)]
struct Stage {
    graph: Rc<LocalGraph>,
}

impl Stage {
    fn drive(&self, id: &str) -> LocalDrive {
        LocalDrive::open(&self.graph, id).expect("a drive")
    }

    fn own(&self, node: &str) -> OwnAccord {
        OwnAccord::open(&self.graph, node).expect("a node that acts")
    }

    async fn write(&self, id: &str, block: u64, byte: u8) -> Result<()> {
        let data = Buf::copy_of(&[byte; BLOCK as usize]);
        self.drive(id).write(block * BLOCK, data, WriteFlags::NONE).await
    }

    async fn byte(&self, id: &str, block: u64) -> u8 {
        let read = self.drive(id).read(block * BLOCK, BufMut::new(BLOCK as usize)).await;
        let bytes = read.expect("a read");
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a block is of one write");
        bytes[0]
    }

    /// Dirty blocks of every bitmap that has some, by the name of its node or drive.
    fn dirty(&self) -> BTreeMap<String, Vec<u64>> {
        let graph = self.graph.current();
        let mut dirty = BTreeMap::new();
        for (scope, bitmap) in graph.bitmaps() {
            let (BitmapScope::Node(name) | BitmapScope::Drive(name)) = scope;
            let blocks: Vec<u64> = bitmap
                .ranges(0..SIZE)
                .flat_map(|range| range.start / BLOCK..range.end.div_ceil(BLOCK))
                .collect();
            if !blocks.is_empty() {
                dirty.insert(name.to_string(), blocks);
            }
        }
        dirty
    }

    async fn clear(&self) {
        let graph = self.graph.current();
        for (_, bitmap) in graph.bitmaps() {
            self.graph.cell().change_bitmap(bitmap, &[Change::Clear]).await.expect("a clear");
        }
    }

    fn outcomes(&self, node: &str) -> Outcomes {
        self.own(node).outcomes().expect("an acting node")
    }
}

fn dirty(expect: &[(&str, &[u64])]) -> BTreeMap<String, Vec<u64>> {
    expect.iter().map(|(name, blocks)| ((*name).to_owned(), blocks.to_vec())).collect()
}

fn at(block: u64) -> std::ops::Range<u64> {
    block * BLOCK..(block + 1) * BLOCK
}

/// What a test does to the requests that pass a [`Turnstile`].
#[derive(Default)]
struct Control {
    /// Writes wait while this is set.
    holds_writes: AtomicBool,
    /// Answers to questions for block status wait while this is set.
    holds_status: AtomicBool,
    /// So many writes reach the child, then fail.
    fail_writes: AtomicU32,
    /// So many writes fail before they reach the child.
    lose_writes: AtomicU32,
    /// Writes that have come.
    writes: AtomicU32,
}

/// Whether one more of them is to fail.
fn takes_one(left: &AtomicU32) -> bool {
    let less = |left: u32| left.checked_sub(1);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
}

/// A filter that holds or fails writes.
struct Turnstile(Arc<Control>);

impl Filter for Turnstile {
    fn driver(&self) -> &'static str {
        "turnstile"
    }

    async fn write(&self, cx: Cx<'_>, offset: u64, buf: Buf, flags: WriteFlags) -> Result<()> {
        self.0.writes.fetch_add(1, Ordering::Relaxed);
        while self.0.holds_writes.load(Ordering::Relaxed) {
            turn().await;
        }
        let failure = || Err(Error::new(ErrorKind::Io, "the test wants it so"));
        if takes_one(&self.0.lose_writes) {
            return failure();
        }
        cx.child(0)?.write(offset, buf, flags).await?;
        if takes_one(&self.0.fail_writes) { failure() } else { Ok(()) }
    }

    async fn block_status(&self, cx: Cx<'_>, at: u64, len: u64) -> Result<Vec<Extent>> {
        let extents = cx.child(0)?.block_status(at, len).await;
        while self.0.holds_status.load(Ordering::Relaxed) {
            turn().await;
        }
        extents
    }
}

/// Lets every task run as far as it can.
async fn quiet() {
    for _ in 0..64 {
        turn().await;
    }
}

/// A task and whether it has ended.
fn start(task: impl Future<Output = ()> + 'static) -> Rc<Cell<bool>> {
    let ended = Rc::new(Cell::new(false));
    let end = Rc::clone(&ended);
    spawn(async move {
        task.await;
        end.set(true);
    });
    ended
}

/// copy-on-read over a filter over the overlay, a filter above all: QSD marks 1 MiB for a read of 1 MiB.
#[test]
fn e17e_a_read_through_copy_on_read_dirties_nothing_through_any_filters() {
    let scene = Scene::default()
        .base("base")
        .overlay("top", "base")
        .pass("below", "top")
        .node("cor", CopyOnReadNode::default(), vec![CopyOnReadNode::child("below")])
        .pass("above", "cor")
        .drive("vda", "above");
    scene.run(|stage| async move {
        stage.write("vda", 1, 7).await.expect("a write");
        stage.clear().await;
        for block in 0..SIZE / BLOCK {
            let expect = if block == 1 { 7 } else { 0 };
            assert_eq!(stage.byte("vda", block).await, expect);
        }
        assert_eq!(stage.dirty(), BTreeMap::new());
        let extents = stage.drive("vda").block_status(0, SIZE).await.expect("a status");
        let kinds: Vec<_> = extents.iter().map(|extent| (extent.len, extent.kind)).collect();
        assert_eq!(kinds, [(SIZE, crate::node::ExtentKind::Data)], "all of it was copied up");
        let outcomes = stage.outcomes("cor");
        assert_eq!((outcomes.stale, outcomes.changed, outcomes.voided), (0, 0, 0));
        assert!(outcomes.proven > 0);
        stage.write("vda", 5, 9).await.expect("a write");
        let five: &[u64] = &[5];
        let all = ["above", "below", "cor", "top", "vda"].map(|name| (name, five));
        assert_eq!(stage.dirty(), dirty(&all), "a guest's write dirties all that show it");
    });
}

/// A filter that notes of writes whether somebody's own accord is behind them.
struct Notes(Arc<Mutex<Vec<bool>>>);

impl Filter for Notes {
    fn driver(&self) -> &'static str {
        "notes"
    }

    async fn write(&self, cx: Cx<'_>, at: u64, buf: Buf, flags: WriteFlags) -> Result<()> {
        self.0.lock().expect("no panic").push(cx.is_of_own_accord());
        cx.child(0)?.write(at, buf, flags).await
    }
}

#[test]
fn drivers_can_tell_a_job_from_a_guest() {
    let notes = Arc::<Mutex<Vec<bool>>>::default();
    let scene = Scene::default()
        .base("base")
        .node("notes", Notes(Arc::clone(&notes)), vec![ChildDecl::filtered("base")])
        .node("job", JobNode, vec![CopyOnReadNode::child("notes")])
        .drive("vda", "notes");
    scene.run(|stage| async move {
        stage.write("vda", 3, 7).await.expect("a write");
        stage.own("job").copy(0, 0, at(3), UNCHANGED).await.expect("a copy");
        stage.write("vda", 3, 8).await.expect("a write");
        assert_eq!(*notes.lock().expect("no panic"), [false, true, false]);
    });
}

/// base ← mid ← top, and another overlay of the base: commit from top into base.
fn chain() -> Scene {
    Scene::default()
        .base("base")
        .overlay("mid", "base")
        .overlay("top", "mid")
        .overlay("other", "base")
        .job("commit", "top", "base")
}

#[test]
fn a_commit_dirties_the_base_what_lies_between_and_other_overlays() {
    chain().drive("vda", "top").run(|stage| async move {
        stage.write("vda", 3, 5).await.expect("a write");
        stage.clear().await;
        let copied = stage.own("commit").copy(0, 1, at(3), UNCHANGED).await.expect("a copy");
        assert_eq!(copied.bytes, BLOCK);
        let three: &[u64] = &[3];
        let changed = ["base", "mid", "other"].map(|name| (name, three));
        assert_eq!(
            stage.dirty(),
            dirty(&changed),
            "unchanged as applied to the section top → base"
        );
    });
}

/// As QEMU refuses it; there the check is edge by edge, and a commit below a filter as well.
#[test]
fn a_commit_that_alters_what_another_drive_shows_is_refused() {
    let scene = chain().drive("vda", "top").drive("vdb", "other");
    let error = scene.0.build().err().expect("vdb shows the base");
    assert_eq!(error.kind(), ErrorKind::InUse);
    let text = error.to_string();
    for part in ["commit", "`to`", "`from`", "vdb"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_copy_declared_changed_dirties_all_above_its_target() {
    let mut scene = Scene::default()
        .base("base")
        .overlay("mid", "base")
        .overlay("top", "mid")
        .overlay("other", "base")
        .actor("commit", "top", "base", None)
        .drive("vda", "top");
    // Who only shows minds no changes.
    (scene.0.drives[0].writable, scene.0.drives[0].only_shows) = (false, true);
    scene.run(|stage| async move {
        stage.own("commit").copy(0, 1, at(3), CHANGED).await.expect("a copy");
        let three: &[u64] = &[3];
        let changed = ["base", "mid", "other", "top", "vda"].map(|name| (name, three));
        assert_eq!(stage.dirty(), dirty(&changed));
        assert_eq!(stage.outcomes("commit").changed, 1);
    });
}

#[test]
fn a_claim_on_bytes_that_have_changed_since_writes_nothing() {
    chain().drive("vda", "top").run(|stage| async move {
        let own = stage.own("commit");
        let bytes = own.read_proven(0, at(2)).await.expect("a read");
        stage.write("vda", 2, 8).await.expect("a write");
        stage.clear().await;
        let refused = own.write_proven(1, &bytes).await.expect_err("stale");
        assert_eq!(refused.kind(), ErrorKind::Stale);
        assert_eq!(stage.dirty(), BTreeMap::new(), "nothing was written");
        assert_eq!(stage.byte("vda", 2).await, 8);
        let fresh = own.read_proven(0, at(2)).await.expect("a read");
        // Elsewhere is no matter.
        stage.write("vda", 4, 1).await.expect("a write");
        stage.clear().await;
        own.write_proven(1, &fresh).await.expect("it still shows them");
        let two: &[u64] = &[2];
        assert_eq!(stage.dirty(), dirty(&["base", "mid", "other"].map(|name| (name, two))));
        let outcomes = stage.outcomes("commit");
        assert_eq!((outcomes.proven, outcomes.stale), (1, 1));
    });
}

/// A write that was under way when the bytes were read may land before or after.
#[test]
fn a_change_in_flight_at_the_read_makes_it_stale() {
    let control = Arc::new(Control::default());
    let held = Arc::clone(&control);
    let scene = Scene::default()
        .base("base")
        .overlay("top", "base")
        .node("turnstile", Turnstile(held), vec![ChildDecl::filtered("top")])
        .job("commit", "turnstile", "base")
        .drive("vda", "turnstile");
    scene.run(|stage| async move {
        control.holds_writes.store(true, Ordering::Relaxed);
        let writer = stage.clone();
        let ended = start(async move { writer.write("vda", 2, 8).await.expect("a write") });
        quiet().await;
        assert!(!ended.get() && control.writes.load(Ordering::Relaxed) == 1);
        let own = stage.own("commit");
        let bytes = own.read_proven(0, at(2)).await.expect("a read");
        let refused = own.write_proven(1, &bytes).await.expect_err("stale");
        assert_eq!(refused.kind(), ErrorKind::Stale);
        assert!(!ended.get(), "what is stale does not wait for a guard to be refused");
        control.holds_writes.store(false, Ordering::Relaxed);
        quiet().await;
        assert!(ended.get());
        let refused = own.write_proven(1, &bytes).await.expect_err("stale");
        assert_eq!(refused.kind(), ErrorKind::Stale);
    });
}

#[test]
fn what_is_not_above_the_node_written_proves_nothing() {
    let scene = Scene::default().base("base").base("else").overlay("top", "base");
    scene.job("job", "else", "base").run(|stage| async move {
        let own = stage.own("job");
        let refused = own.copy(0, 1, at(0), UNCHANGED).await.expect_err("not proven");
        assert_eq!(refused.kind(), ErrorKind::NotPermitted);
        let bytes = own.read_proven(0, at(0)).await.expect("a read");
        own.write_proven(1, &bytes).await.expect_err("not proven");
        assert_eq!(stage.dirty(), BTreeMap::new());
        assert_eq!(stage.outcomes("job").not_proven, 2);
    });
}

#[test]
fn a_proven_write_that_fails_marks_what_it_exempted() {
    let control = Arc::new(Control::default());
    let failing = Arc::clone(&control);
    let scene = Scene::default()
        .node("base", MemoryNode::new(SIZE, 512).expect("a disk"), vec![])
        .node("turnstile", Turnstile(failing), vec![ChildDecl::filtered("base")])
        .overlay("top", "turnstile")
        .job("commit", "top", "turnstile")
        .drive("vda", "top");
    scene.run(|stage| async move {
        stage.write("vda", 6, 3).await.expect("a write");
        stage.clear().await;
        let own = stage.own("commit");
        let before = own.read_proven(0, at(6)).await.expect("a read");
        control.fail_writes.store(1, Ordering::Relaxed);
        own.copy(0, 1, at(6), UNCHANGED).await.expect_err("the write fails");
        let six: &[u64] = &[6];
        let all = ["base", "top", "turnstile", "vda"].map(|name| (name, six));
        assert_eq!(stage.dirty(), dirty(&all));
        let stale = own.write_proven(1, &before).await.expect_err("overlapping watches are stale");
        assert_eq!(stale.kind(), ErrorKind::Stale);
        assert_eq!(stage.outcomes("commit").voided, 1);
    });
}

/// A driver that fills what it writes from its second child, as an overlay does a block of which it has nothing.
struct Fills;

impl Filter for Fills {
    fn driver(&self) -> &'static str {
        "fills"
    }

    async fn write(&self, cx: Cx<'_>, at: u64, buf: Buf, flags: WriteFlags) -> Result<()> {
        cx.child(1)?.read(at, BufMut::new(buf.len())).await?;
        cx.child(0)?.write(at, buf, flags).await
    }
}

/// A copy to a node that reads, on the way, through a copy-on-read within what is copied: that has a proven write
/// made to what the copy has read. If it fails, what was read may have changed: the granule is not done.
#[test]
fn a_copy_that_spoils_what_it_has_read_is_made_again_or_is_stale() {
    for (lost, copied) in [(0, true), (1, true), (COPY_TRIES - 1, true), (COPY_TRIES, false)] {
        let control = Arc::new(Control::default());
        let turnstile = Turnstile(Arc::clone(&control));
        let filled_from =
            ChildDecl { name: "fill".into(), role: Role::Source, ..ChildDecl::filtered("cor") };
        let scene = Scene::default()
            .base("base")
            .overlay("disk", "base")
            .node("turnstile", turnstile, vec![ChildDecl::filtered("disk")])
            .node("cor", CopyOnReadNode::default(), vec![CopyOnReadNode::child("turnstile")])
            .base("bytes")
            .node("target", Fills, vec![ChildDecl::filtered("bytes"), filled_from])
            .actor("keep", "turnstile", "target", None);
        scene.run(move |stage| async move {
            let todo = Granularity::from_bytes(BLOCK).and_then(|it| Granules::new(SIZE, it));
            let todo = Arc::new(todo.expect("a set"));
            todo.mark(0, BLOCK);
            control.lose_writes.store(lost, Ordering::Relaxed);
            let ground = stage.own("keep").on_behalf().await.expect("an open gate");
            let copy = ground.copy_set(0, 1, at(0), CHANGED, Arc::clone(&todo)).await;
            assert_eq!(copy.is_ok(), copied, "{lost} lost: {copy:?}");
            assert_eq!(todo.next_dirty(0).is_none(), copied, "{lost} lost");
            if let Err(error) = copy {
                assert_eq!(error.kind(), ErrorKind::Stale);
            }
            assert_eq!(stage.outcomes("cor").voided, u64::from(lost));
        });
    }
}

/// Of any view in which little pieces are allocated, no more is listed than is asked for.
#[test]
fn block_status_above_a_node_stops_at_so_many_extents() {
    chain().drive("vda", "top").run(|stage| async move {
        for block in [1, 3, 4, 8] {
            stage.write("vda", block, 1).await.expect("a write");
        }
        let mut all = Vec::new();
        for most in [1, 3, 64] {
            let (mut at, mut found) = (0, Vec::new());
            while at < SIZE {
                let ground = stage.own("commit").on_behalf().await.expect("an open gate");
                let some = ground.block_status(0, Some(1), at..SIZE, most).await.expect("a status");
                assert!((1..=most).contains(&some.len()), "{} of {most}", some.len());
                assert_eq!(some[0].offset, at);
                at = some.last().map_or(SIZE, |last| last.offset + last.len);
                found.extend(some.into_iter().map(|extent| (extent.offset, extent.kind)));
            }
            all.push(found);
        }
        let offsets: Vec<u64> = all[2].iter().map(|(offset, _)| offset / BLOCK).collect();
        assert_eq!(offsets, [0, 1, 2, 3, 5, 8, 9]);
        assert!(all.iter().all(|found| *found == all[2]), "{all:?}");
    });
}

#[test]
fn zeros_by_block_status_are_proven_and_data_is_not() {
    let scene = Scene::default().base("base").overlay("mid", "base");
    scene.actor("fill", "mid", "mid", None).run(|stage| async move {
        let own = stage.own("fill");
        let zeros = Buf::copy_of(&[0; BLOCK as usize]);
        own.write_changed(1, BLOCK, zeros).await.expect("a write");
        stage.clear().await;
        own.zero_proven(0, 1, at(9)).await.expect("nothing anywhere");
        let refused = own.zero_proven(0, 1, at(1)).await.expect_err("written zeros are data");
        assert_eq!(refused.kind(), ErrorKind::NotPermitted);
        assert_eq!(stage.dirty(), dirty(&[]), "what shows zeros still does");
    });
}

/// A guard for each piece, however long the range: others wait for one of them, not for all.
#[test]
fn a_long_range_is_zeroed_in_pieces() {
    const PIECE: u64 = ZERO_PROVEN_MAX_BYTES;
    let disk = |overlay: fn(u64, u32) -> Result<MemoryNode>| overlay(3 * PIECE, 512);
    let scene = Scene::default()
        .node("base", disk(MemoryNode::new).expect("a disk"), vec![])
        .node("mid", disk(MemoryNode::overlay).expect("a disk"), vec![below("base")])
        .actor("fill", "mid", "mid", None);
    scene.run(|stage| async move {
        let own = stage.own("fill");
        own.write_changed(1, 3 * PIECE - BLOCK, Buf::zeros(BLOCK as usize)).await.expect("a write");
        let refused = own.zero_proven(0, 1, 0..3 * PIECE).await.expect_err("data at the end");
        assert_eq!(refused.kind(), ErrorKind::NotPermitted);
        assert_eq!(stage.outcomes("fill").proven, 2);
        own.zero_proven(0, 1, 0..0).await.expect("nothing to do");
    });
}

/// However much one node keeps of what it has read, others can prove what they read.
#[test]
fn a_node_that_keeps_what_it_reads_leaves_watches_to_others() {
    let scene = Scene::default().base("base").overlay("top", "base");
    let scene = scene.job("greedy", "top", "base").job("commit", "top", "base");
    scene.run(|stage| async move {
        let (greedy, commit) = (stage.own("greedy"), stage.own("commit"));
        let mut kept = Vec::new();
        for _ in 0..WATCHES_MAX + 1 {
            kept.push(greedy.read_proven(0, at(0)).await.expect("a read"));
        }
        let is_watched = |bytes: &&super::ProvenBuf| bytes.is_watched();
        assert_eq!(kept.iter().filter(is_watched).count(), WATCHES_OF_NODE_MAX);
        let bytes = commit.read_proven(0, at(1)).await.expect("a read");
        commit.write_proven(1, &bytes).await.expect("a proof");
        let last = kept.pop().expect("one");
        let refused = greedy.write_proven(1, &last).await.expect_err("nobody watched it");
        assert_eq!(refused.kind(), ErrorKind::NotPermitted);
        drop(kept);
        let again = greedy.read_proven(0, at(0)).await.expect("a read");
        greedy.write_proven(1, &again).await.expect("a proof");
    });
}

/// What `mid` shows in the end when a commit into it comes between the answer that it shows zeros and
/// their writing.
fn zeros_and_a_commit() -> u8 {
    let control = Arc::new(Control::default());
    let shown = Arc::new(AtomicU32::new(0));
    let (slow, told) = (Arc::clone(&control), Arc::clone(&shown));
    let scene = Scene::default()
        .base("base")
        .overlay("mid", "base")
        .node("turnstile", Turnstile(slow), vec![ChildDecl::filtered("mid")])
        .overlay("top", "turnstile")
        .job("fill", "turnstile", "turnstile")
        .job("commit", "top", "turnstile")
        .drive("vda", "top");
    scene.run(|stage| async move {
        stage.write("vda", 3, 5).await.expect("a write");
        let (fill, commit) = (stage.own("fill"), stage.own("commit"));
        control.holds_status.store(true, Ordering::Relaxed);
        let zeroed = start(async move {
            fill.zero_proven(0, 1, at(3)).await.expect("nothing is there");
        });
        quiet().await;
        let copied = start(async move {
            commit.copy(0, 1, at(3), UNCHANGED).await.expect("a copy");
        });
        quiet().await;
        assert!(!zeroed.get());
        control.holds_status.store(false, Ordering::Relaxed);
        quiet().await;
        assert!(zeroed.get() && copied.get());
        let bytes = stage.own("fill").read_proven(0, at(3)).await.expect("a read");
        told.store(bytes.bytes()[0].into(), Ordering::Relaxed);
    });
    shown.load(Ordering::Relaxed) as u8
}

#[test]
fn a_commit_waits_for_zeros_that_are_being_proven() {
    assert_eq!(zeros_and_a_commit(), 5);
}

/// The model has no two jobs that write one node by chance often enough: this notices the broken rule.
#[test]
fn zeros_without_a_guard_are_noticed() {
    set(Some(Mutation::ZeroesUnguarded));
    let shown = zeros_and_a_commit();
    set(None);
    assert_eq!(shown, 0, "what was committed is lost");
}

/// Zeros are evidence for the view that is written, not for one above it.
#[test]
fn zeros_of_a_view_above_prove_nothing() {
    chain().drive("vda", "top").run(|stage| async move {
        let own = stage.own("commit");
        let refused = own.zero_proven(0, 1, at(9)).await.expect_err("another view");
        assert_eq!(refused.kind(), ErrorKind::NotPermitted);
        assert_eq!(stage.outcomes("commit").not_proven, 1);
        assert_eq!(stage.dirty(), dirty(&[]));
    });
}

/// A write that comes while the copy is between its read and its write waits, and wins.
#[test]
fn a_guest_write_waits_for_the_copy_of_its_range_and_no_other() {
    let control = Arc::new(Control::default());
    let slow = Arc::clone(&control);
    let scene = Scene::default()
        .base("base")
        .node("turnstile", Turnstile(slow), vec![ChildDecl::filtered("base")])
        .overlay("top", "turnstile")
        .job("commit", "top", "turnstile")
        .drive("vda", "top");
    scene.run(|stage| async move {
        stage.write("vda", 2, 5).await.expect("a write");
        control.holds_writes.store(true, Ordering::Relaxed);
        let own = stage.own("commit");
        let copied = start(async move {
            own.copy(0, 1, at(2), UNCHANGED).await.expect("a copy");
        });
        quiet().await;
        assert_eq!(control.writes.load(Ordering::Relaxed), 1, "the copy is writing");
        let writer = stage.clone();
        let same = start(async move { writer.write("vda", 2, 6).await.expect("a write") });
        let writer = stage.clone();
        let other = start(async move { writer.write("vda", 7, 6).await.expect("a write") });
        quiet().await;
        assert!(!copied.get() && !same.get() && other.get());
        control.holds_writes.store(false, Ordering::Relaxed);
        quiet().await;
        assert!(copied.get() && same.get());
        assert_eq!(stage.byte("vda", 2).await, 6);
    });
}

/// (b) copy-on-read over copy-on-read, on one range.
#[test]
fn copy_on_read_over_copy_on_read_ends() {
    let scene = Scene::default()
        .base("base")
        .overlay("mid", "base")
        .node("lower", CopyOnReadNode::default(), vec![CopyOnReadNode::child("mid")])
        .overlay("top", "lower")
        .node("upper", CopyOnReadNode::default(), vec![CopyOnReadNode::child("top")])
        .drive("vda", "upper");
    scene.run(|stage| async move {
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let stage = stage.clone();
                start(async move {
                    for block in 0..8 {
                        assert_eq!(stage.byte("vda", block).await, 0);
                    }
                })
            })
            .collect();
        quiet().await;
        while !readers.iter().all(|ended| ended.get()) {
            turn().await;
        }
        assert_eq!(stage.dirty(), BTreeMap::new());
        assert!(stage.outcomes("lower").proven > 0 && stage.outcomes("upper").proven > 0);
    });
}

/// (c) a background copy, while a guest's write to the range is parked in the filter that copies.
#[test]
fn a_background_copy_does_not_wait_for_a_write_that_is_parked_above() {
    let control = Arc::new(Control::default());
    let parked = Arc::clone(&control);
    let grants = PermissionSet::HARMLESS;
    let child = ChildDecl { grants, ..ChildDecl::filtered("top") };
    let scene = Scene::default()
        .base("base")
        .overlay("top", "base")
        .node("filter", Turnstile(parked), vec![child])
        .drive("vda", "filter");
    scene.run(|stage| async move {
        control.holds_writes.store(true, Ordering::Relaxed);
        let writer = stage.clone();
        let written = start(async move { writer.write("vda", 2, 5).await.expect("a write") });
        quiet().await;
        let before = stage.dirty();
        let copied = stage.own("filter").copy(0, 0, at(2), UNCHANGED).await;
        assert_eq!(copied.expect("it does not wait").bytes, BLOCK);
        assert!(!written.get());
        assert_eq!((stage.dirty(), stage.outcomes("filter").proven), (before, 1));
        control.holds_writes.store(false, Ordering::Relaxed);
        quiet().await;
        assert!(written.get());
        assert_eq!(stage.byte("vda", 2).await, 5);
    });
}

#[test]
fn without_grants_a_node_does_nothing_of_its_own_accord() {
    let scene = Scene::default().base("base").pass("pass", "base").drive("vda", "pass");
    scene.run(|stage| async move {
        let refused = OwnAccord::open(&stage.graph, "pass").err().map(|error| error.kind());
        assert_eq!(refused, Some(ErrorKind::NotPermitted));
        let unknown = OwnAccord::open(&stage.graph, "none").err().map(|error| error.kind());
        assert_eq!(unknown, Some(ErrorKind::NotFound));
    });
}

/// Shows its child. One begins zeros and writes there, and does not wait for them; the others never end the
/// ones or the others.
#[derive(PartialEq)]
enum Zeroing {
    Hasty,
    Endless,
    EndlessWrites,
}

impl Zeroing {
    /// Passes a change on, or begins it and does not wait.
    async fn pass(&self, change: impl Future<Output = Result<()>>) -> Result<()> {
        if *self != Self::Hasty {
            return change.await;
        }
        let mut change = Box::pin(change);
        let polled = poll_fn(|cx| Poll::Ready(change.as_mut().poll(cx))).await;
        assert!(polled.is_pending());
        Err(Error::new(ErrorKind::TimedOut, "it did not wait"))
    }
}

impl Filter for Zeroing {
    fn driver(&self) -> &'static str {
        "zeroing"
    }

    async fn change(
        &self,
        _: Cx<'_>,
        change: filter::Change,
        pass: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        match (self, change.kind) {
            (Self::EndlessWrites, ChangeKind::Write) | (Self::Endless, ChangeKind::Zero) => {
                std::future::pending().await
            }
            (_, ChangeKind::Write | ChangeKind::Zero) => self.pass(pass()).await,
            (_, ChangeKind::Discard | ChangeKind::SetLen) => pass().await,
        }
    }
}

/// What a transaction that needs a moment with nothing in flight says, while zeros or a write are under way
/// that nobody waits for any more.
fn abandoned_change_and_a_drain(is_write: bool) -> Result<String> {
    let endless = if is_write { Zeroing::EndlessWrites } else { Zeroing::Endless };
    let scene = Scene::default()
        .base("base")
        .node("endless", endless, vec![ChildDecl::filtered("base")])
        .node("hasty", Zeroing::Hasty, vec![ChildDecl::filtered("endless")])
        .drive("vda", "hasty");
    let (tell, told) = std::sync::mpsc::channel();
    scene.run(move |stage| async move {
        let changed = match is_write {
            true => stage.write("vda", 2, 1).await,
            false => stage.drive("vda").zero(2 * BLOCK, BLOCK, WriteFlags::NONE).await,
        };
        changed.expect_err("it did not wait");
        let graph = stage.graph.current();
        let scope = BitmapScope::Drive("vda".into());
        let clear = BitmapAction::Clear.of(graph.find_bitmap(&scope, "b").expect("a bitmap"));
        let clear = Transaction::new().with(clear).within(Duration::from_millis(20));
        let applied = stage.graph.cell().transact(clear).await;
        tell.send(applied.map(|_| stage.dirty().len().to_string())).expect("a test");
    });
    told.recv().expect("an end")
}

/// Cleared before the zeros land, a bitmap would never learn of them.
#[test]
fn a_change_that_was_abandoned_holds_up_a_drain() {
    let expect = "1 requests of `vda` have not ended in 20ms (1 of them a driver gave up before they had \
                  ended): nothing was changed";
    for is_write in [false, true] {
        let error = abandoned_change_and_a_drain(is_write).expect_err("it may still be under way");
        assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::TimedOut, expect));
        set(Some(Mutation::GuardsEndWithFutures));
        let drained = abandoned_change_and_a_drain(is_write);
        set(None);
        drained.expect("the broken rule is noticed");
    }
}

/// Whether a copy of where zeros are under way that nobody waits for any more comes to its end.
fn abandoned_zeros_and_a_copy() -> bool {
    let has_ended = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&has_ended);
    let scene = Scene::default()
        .base("base")
        .node("endless", Zeroing::Endless, vec![ChildDecl::filtered("base")])
        .node("hasty", Zeroing::Hasty, vec![ChildDecl::filtered("endless")])
        .node("copier", CopyOnReadNode::default(), vec![CopyOnReadNode::child("endless")])
        .drive("vda", "hasty");
    scene.run(|stage| async move {
        let failed = stage.drive("vda").zero(2 * BLOCK, BLOCK, WriteFlags::NONE).await;
        assert_eq!(failed.expect_err("it did not wait").kind(), ErrorKind::TimedOut);
        let own = stage.own("copier");
        let ended = start(async move { drop(own.copy(0, 0, at(2), UNCHANGED).await) });
        quiet().await;
        told.store(ended.get(), Ordering::Relaxed);
    });
    has_ended.load(Ordering::Relaxed)
}

/// A driver may still be at it, whoever has stopped waiting.
#[test]
fn a_change_that_was_abandoned_is_waited_for() {
    assert!(!abandoned_zeros_and_a_copy());
    set(Some(Mutation::GuardsEndWithFutures));
    let has_ended = abandoned_zeros_and_a_copy();
    set(None);
    assert!(has_ended, "the broken rule is noticed");
}
