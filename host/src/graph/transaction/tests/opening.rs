//! Files that take their time to be opened: nobody on the worker waits for that but the change that needs it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::scene::*;
use crate::error::{ErrorKind, Result};
use crate::graph::Cx;
use crate::graph::testing::turn;
use crate::graph::transaction::{Action, Transaction};
use crate::io::{Buf, BufMut, spawn};
use crate::node::{
    Extent, Node, NodeFuture, NodeInfo, NullNode, OpenMode, Reopen, Reopening, WriteFlags,
};

/// Open for writing only while somebody writes it, and opened so when it is told to.
struct Door {
    bytes: NullNode,
    write: bool,
    opens: Arc<Mutex<Receiver<()>>>,
}

impl Door {
    fn new(write: bool, opens: Arc<Mutex<Receiver<()>>>) -> Self {
        Self { bytes: NullNode::new(SIZE, true, Duration::ZERO), write, opens }
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
        Ok(Arc::new(Self::new(how.write.unwrap_or(self.write), Arc::clone(&self.opens))))
    }

    fn hand_over<'a>(&'a self, _: Cx<'a>, _: OpenMode) -> NodeFuture<'a, ()> {
        Box::pin(async { Ok(()) })
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
        let (cell, is_added) = (Arc::clone(&scene.cell), Rc::new(Cell::new(false)));
        let added = Rc::clone(&is_added);
        spawn(async move {
            cell.transact(add_writer()).await.expect("a drive");
            added.set(true);
        });
        for block in 0..20 {
            scene.write("d", block, 1).await;
            turn().await;
        }
        assert!(!is_added.get());
        opens.send(()).expect("somebody waits");
        while !is_added.get() {
            turn().await;
        }
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
