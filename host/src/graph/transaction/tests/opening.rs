//! Files that take their time to be opened: nobody on the worker waits for that but the change that needs it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use super::scene::*;
use crate::error::{ErrorKind, Result};
use crate::graph::testing::turn;
use crate::graph::transaction::{Action, Transaction};
use crate::graph::{Cx, GraphNode};
use crate::io::{Buf, BufMut, sleep_until, turn_now};
use crate::node::{
    Extent, Node, NodeFuture, NodeInfo, NullNode, OpenMode, Reopen, Reopening, WriteFlags,
};

/// Open for writing only while somebody writes it, and opened so when it is told to.
struct Door {
    bytes: NullNode,
    write: bool,
    opens: Arc<Mutex<Receiver<()>>>,
    /// How long it takes to hand over.
    slow: Duration,
}

impl Door {
    fn new(write: bool, opens: Arc<Mutex<Receiver<()>>>) -> Self {
        let bytes = NullNode::new(SIZE, true, Duration::ZERO);
        Self { bytes, write, opens, slow: Duration::ZERO }
    }

    fn closed() -> (Self, Sender<()>) {
        let (opens, is_told) = channel();
        (Self::new(false, Arc::new(Mutex::new(is_told))), opens)
    }
}

impl Node for Door {
    fn driver(&self) -> &'static str {
        "door"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        self.bytes.info(children)
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        self.bytes.read(cx, offset, buf)
    }

    fn write<'a>(&'a self, cx: Cx<'a>, at: u64, buf: Buf, flags: WriteFlags) -> NodeFuture<'a, ()> {
        self.bytes.write(cx, at, buf, flags)
    }

    fn zero<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64, flags: WriteFlags) -> NodeFuture<'a, ()> {
        self.bytes.zero(cx, at, len, flags)
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, ()> {
        self.bytes.discard(cx, at, len)
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        self.bytes.flush(cx)
    }

    fn block_status<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        self.bytes.block_status(cx, at, len)
    }

    fn reopening(&self) -> Option<&dyn Reopening> {
        Some(self)
    }
}

impl Reopening for Door {
    fn mode(&self) -> OpenMode {
        OpenMode { write: self.write, auto: true, for_job: false }
    }

    fn reopened(&self, how: &Reopen) -> Result<Arc<dyn Node>> {
        let told = self.opens.lock().expect("a lock").recv();
        told.expect("it is told at last");
        let other = Self::new(how.write.unwrap_or(self.write), Arc::clone(&self.opens));
        Ok(Arc::new(Self { slow: self.slow, ..other }))
    }

    fn hand_over<'a>(&'a self, _: Cx<'a>, _: OpenMode) -> NodeFuture<'a, ()> {
        Box::pin(async {
            sleep_until(turn_now() + self.slow).await;
            Ok(())
        })
    }

    fn take_over<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}

fn scene() -> (Scene, Sender<()>) {
    let (door, opens) = Door::closed();
    let nodes = vec![node("door", door, vec![]), memory("disk"), memory("disk2")];
    (Scene::new(nodes, vec![drive("d", "disk")], vec![]), opens)
}

fn add_writer() -> Transaction {
    Transaction::new().with(Action::AddDrive(drive("w", "door")))
}

#[test]
fn a_worker_goes_on_while_a_file_is_opened() {
    run(async {
        let (scene, opens) = scene();
        let mut added = pin!(scene.cell.transact(add_writer()));
        for block in 0..20 {
            let is_added = poll_fn(|cx| Poll::Ready(added.as_mut().poll(cx).is_ready())).await;
            assert!(!is_added);
            scene.write("d", block, 1).await;
            turn().await;
        }
        opens.send(()).expect("somebody waits");
        added.await.expect("a drive");
        scene.write("w", 3, 1).await;
    });
}

#[test]
fn what_is_not_opened_in_time_stands_in_nobodys_way() {
    run(async {
        let (scene, opens) = scene();
        let error = scene.cell.transact(add_writer().within(Duration::from_millis(20))).await;
        let error = error.expect_err("it is not opened");
        let expect = "node `door`: it was not opened in time, and nothing was changed: see that its file \
                      system answers, and try again";
        assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::TimedOut, expect));
        scene.all(Transaction::new().with(Action::AddDrive(drive("e", "disk2")))).await;
        // One for who came too late.
        opens.send(()).expect("it waits");
        opens.send(()).expect("it waits");
        scene.cell.transact(add_writer()).await.expect("a drive");
        scene.write("w", 3, 1).await;
    });
}

/// Whoever has to know first whether a file can be opened does not open it twice.
#[test]
fn what_was_opened_for_a_check_is_used_by_the_change() {
    run(async {
        let (scene, opens) = scene();
        opens.send(()).expect("somebody waits");
        let opened = scene.cell.check(add_writer()).await.expect("it can be opened");
        assert!(scene.cell.load().find_drive("w").is_none());
        let at_once = add_writer().within(Duration::from_millis(200));
        scene.all(at_once.with_opened(opened)).await;
        scene.write("w", 3, 1).await;

        // By now another one is there: what was opened beside the former is of no use.
        let remove = || Transaction::new().with(Action::RemoveDrive { drive: "w".into() });
        let again = || add_writer().within(Duration::from_millis(20));
        opens.send(()).expect("somebody waits");
        scene.all(remove()).await;
        opens.send(()).expect("somebody waits");
        let opened = scene.cell.check(add_writer()).await.expect("it can be opened");
        for transaction in [add_writer(), remove()] {
            opens.send(()).expect("somebody waits");
            scene.all(transaction).await;
        }
        let error = scene.cell.transact(again().with_opened(opened)).await;
        assert_eq!(error.expect_err("it is not opened").kind(), ErrorKind::TimedOut);
        opens.send(()).expect("it waits");
    });
}

/// Each of two takes more than half of the time that the change has.
#[test]
fn all_that_is_asked_of_a_change_has_one_time() {
    run(async {
        let (opens, is_told) = channel();
        let told = Arc::new(Mutex::new(is_told));
        let door = |name: &str| {
            let slow = Duration::from_millis(60);
            node(name, Door { slow, ..Door::new(false, Arc::clone(&told)) }, vec![])
        };
        let scene = Scene::new(vec![door("one"), door("two")], vec![], vec![]);
        let both = || {
            let added =
                ["one", "two"].map(|node| Action::AddDrive(drive(&format!("of-{node}"), node)));
            (0..2).for_each(|_| opens.send(()).expect("somebody waits"));
            added.into_iter().fold(Transaction::new(), Transaction::with)
        };
        let error = scene.cell.transact(both().within(Duration::from_millis(100))).await;
        assert_eq!(error.expect_err("no time for both").kind(), ErrorKind::TimedOut);
        assert!(scene.cell.load().drives().is_empty());
        let is_open =
            |node: &GraphNode| node.driver().reopening().is_some_and(|it| it.mode().write);
        assert!(!scene.cell.load().nodes().iter().any(is_open));
        scene.all(both()).await;
        scene.write("of-one", 3, 1).await;
    });
}
