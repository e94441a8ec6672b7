//! Drivers that do not answer what they are asked with nothing in flight: whoever asked is told, others go
//! on, and what the driver does in the end is no false clean and spoils no later write.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::scene::*;
use crate::bitmap::BitmapName;
use crate::error::{ErrorKind, Result};
use crate::graph::testing::turn;
use crate::graph::transaction::{Action, BitmapAction, BitmapRef, Transaction, Unproven};
use crate::graph::{BitmapDecl, ChildDecl, Cx};
use crate::io::{Buf, BufMut, spawn};
use crate::node::{Extent, MemoryNode, Node, NodeFuture, NodeInfo, WriteFlags};

const BLOCKS: u64 = SIZE / BLOCK as u64;

/// An overlay that does what it is to do when it is let.
struct Slow(MemoryNode, Arc<AtomicBool>);

impl Slow {
    async fn wait(&self) {
        while !self.1.load(Ordering::Relaxed) {
            turn().await;
        }
    }
}

impl Node for Slow {
    fn driver(&self) -> &'static str {
        "slow"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        self.0.info(children)
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        self.0.read(cx, offset, buf)
    }

    fn write<'a>(&'a self, cx: Cx<'a>, at: u64, buf: Buf, flags: WriteFlags) -> NodeFuture<'a, ()> {
        self.0.write(cx, at, buf, flags)
    }

    fn zero<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64, flags: WriteFlags) -> NodeFuture<'a, ()> {
        self.0.zero(cx, at, len, flags)
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, ()> {
        self.0.discard(cx, at, len)
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        self.0.flush(cx)
    }

    fn block_status<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        self.0.block_status(cx, at, len)
    }

    fn resize<'a>(&'a self, cx: Cx<'a>, size_bytes: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.wait().await;
            self.0.resize(cx, size_bytes).await
        })
    }

    fn deallocate<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.wait().await;
            self.0.deallocate(cx, offset, len).await
        })
    }
}

/// Drive `d` on filter `f` on overlay `n`, drive `e` beside it, and nodes that nobody uses.
fn scene(answers: &Arc<AtomicBool>) -> Scene {
    let driver = Slow(MemoryNode::overlay(SIZE, 512).expect("a size"), Arc::clone(answers));
    let nodes = vec![
        node("n", driver, vec![ChildDecl::backing("base")]),
        memory("base"),
        memory("disk"),
        memory("spare"),
        pass("f", "n"),
    ];
    let bitmaps =
        vec![bitmap(of_drive("d"), "b"), bitmap(of_node("n"), "b"), bitmap(of_drive("e"), "b")];
    Scene::new(nodes, vec![drive("d", "f"), drive("e", "disk")], bitmaps)
}

fn at_once(action: Action) -> Transaction {
    Transaction::new().with_unproven(action, Unproven::MarkWhole).within(Duration::from_millis(20))
}

fn clear(bitmap: BitmapRef) -> Transaction {
    at_once(BitmapAction::Clear.of(bitmap))
}

fn give_up() -> Action {
    Action::Deallocate { node: "n".into(), range: 10 * BLOCK as u64..20 * BLOCK as u64 }
}

fn resize(blocks: u64) -> Action {
    Action::Resize { node: "n".into(), size_bytes: blocks * BLOCK as u64 }
}

/// Fills the drive, has `action` fail by its time, and later the driver do it after all.
fn check(action: Action, dirty: Range<u64>) {
    run(async move {
        let answers = Arc::new(AtomicBool::new(false));
        let scene = scene(&answers);
        for block in 0..BLOCKS {
            scene.write("d", block, 7).await;
        }
        for bitmap in [BitmapRef::of_drive("d", "b"), BitmapRef::of_node("n", "b")] {
            scene.all(clear(bitmap)).await;
        }
        let mut events = scene.cell.events();
        let error = scene.cell.transact(at_once(action)).await.expect_err("no answer");
        let expect = "node `n`: its driver has not answered in 20ms and may still do what it was asked: \
                      that is marked, and until it has answered no request comes to the node";
        assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::TimedOut, expect));

        others_go_on(&scene).await;
        let (drive, mut expected) = (scene.drive("d"), dirty.clone().collect::<Vec<u64>>());
        spawn(async move {
            let data = Buf::copy_of(&[9; BLOCK]);
            drive.write(15 * BLOCK as u64, data, WriteFlags::NONE).await.expect("a write");
        });
        turns(64).await;
        assert_eq!(scene.dirty("d"), expected, "the write waits");

        answers.store(true, Ordering::Relaxed);
        turns(64).await;
        for block in 0..BLOCKS {
            let shown = scene.read("d", block).await;
            assert!(shown == 7 || scene.dirty("d").contains(&block), "block {block} shows {shown}");
        }
        assert_eq!(scene.read("d", 15).await, 9, "what the driver did came before the write");
        expected.push(15);
        expected.sort_unstable();
        expected.dedup();
        assert_eq!(scene.dirty("d"), expected);
        assert_eq!(dirty_blocks(&scene.bitmap(&of_node("n"), "b")), expected);
        scene.all(clear(BitmapRef::of_drive("d", "b"))).await;
        let told: Vec<String> = std::iter::from_fn(|| events.try_next())
            .map(|notice| notice.event.to_string())
            .collect();
        let late = "node `n`: its driver is late; until it answers these wait: `d`";
        let answered = "node `n`: its driver has answered at last; these go on: `d`";
        let position = |text: &str| told.iter().position(|event| event == text);
        assert!(position(late) < position(answered) && position(late).is_some(), "{told:?}");
    });
}

/// What has nothing to do with the node goes on; what has is refused at once.
async fn others_go_on(scene: &Scene) {
    scene.write("e", 3, 1).await;
    scene.all(clear(BitmapRef::of_drive("e", "b"))).await;
    for action in [
        BitmapAction::Clear.of(BitmapRef::of_drive("d", "b")),
        BitmapAction::Clear.of(BitmapRef::of_node("n", "b")),
        add_bitmap("new"),
        resize(BLOCKS + 1),
        Action::SetRoot { drive: "d".into(), node: "spare".into() },
    ] {
        is_refused(scene, action).await;
    }
}

fn add_bitmap(name: &str) -> Action {
    let name = BitmapName::new(name).expect("a name");
    Action::AddBitmap(BitmapDecl { name, ..bitmap(of_node("n"), "b") })
}

async fn is_refused(scene: &Scene, action: Action) {
    let error = scene.cell.transact(at_once(action)).await.expect_err("the driver is at it");
    let message = error.to_string();
    let expect =
        "node `n`: its driver has not answered yet what it was asked before: wait until it has";
    assert_eq!((error.kind(), &*message), (ErrorKind::InUse, expect));
}

#[test]
fn a_late_deallocation_is_marked_and_waited_for() {
    check(give_up(), 10..20);
}

/// What it has cut off is lost; the size is what it was.
#[test]
fn a_late_shrink_is_marked_and_put_back() {
    check(resize(100), 100..BLOCKS);
}

#[test]
fn a_late_growth_is_put_back() {
    check(resize(2 * BLOCKS), 0..0);
}

/// Of those who paused for the same change, who does not come to the late node goes on.
#[test]
fn who_has_nothing_to_do_with_a_late_node_goes_on() {
    run(async {
        let answers = Arc::new(AtomicBool::new(false));
        let scene = scene(&answers);
        let other = BitmapAction::Clear.of(BitmapRef::of_drive("e", "b"));
        let mut events = scene.cell.events();
        let error =
            scene.cell.transact(at_once(give_up()).with(other)).await.expect_err("no answer");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        scene.write("e", 3, 1).await;
        scene.all(clear(BitmapRef::of_drive("e", "b"))).await;
        assert_eq!(scene.dirty("e"), [0; 0]);
        is_refused(&scene, BitmapAction::Clear.of(BitmapRef::of_drive("d", "b"))).await;
        let told = std::iter::from_fn(|| events.try_next()).map(|notice| notice.event.to_string());
        let late = "node `n`: its driver is late; until it answers these wait: `d`";
        assert!(told.into_iter().any(|event| event == late));
        answers.store(true, Ordering::Relaxed);
        turns(64).await;
        scene.all(clear(BitmapRef::of_drive("d", "b"))).await;
    });
}

/// A node that nobody uses has no gate to close: nobody comes to it, and its bitmaps stay marked.
#[test]
fn a_node_that_nobody_uses_is_guarded_all_the_same() {
    run(async {
        let answers = Arc::new(AtomicBool::new(false));
        let scene = scene(&answers);
        let leave = Action::SetRoot { drive: "d".into(), node: "spare".into() };
        scene.all(at_once(leave)).await;
        scene.all(clear(BitmapRef::of_node("n", "b"))).await;
        let error = scene.cell.transact(at_once(give_up())).await.expect_err("no answer");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        for action in [
            BitmapAction::Clear.of(BitmapRef::of_node("n", "b")),
            add_bitmap("new"),
            resize(BLOCKS + 1),
            Action::AddDrive(drive("more", "f")),
            Action::SetRoot { drive: "e".into(), node: "f".into() },
        ] {
            is_refused(&scene, action).await;
        }
        scene.write("d", 1, 1).await;
        answers.store(true, Ordering::Relaxed);
        turns(64).await;
        scene.all(clear(BitmapRef::of_node("n", "b"))).await;
    });
}
