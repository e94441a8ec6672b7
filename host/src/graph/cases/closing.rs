//! Drivers that close when their nodes leave the graph, and work that they do beside requests.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::stage::*;
use crate::error::ErrorKind;
use crate::graph::log_format::{CLOSED_AT, CLUSTER, LogFormat};
use crate::graph::testing::turn;
use crate::graph::{Action, BitmapScope, ChildDecl, Cx, Event, LocalGraph, Role, Transaction};
use crate::io::{Buf, spawn};
use crate::node::{MemoryNode, NullNode, RawNode, WriteFlags};

type Closed = Arc<Mutex<Vec<String>>>;

fn closed(closed: &Closed) -> Vec<String> {
    closed.lock().expect("no panic").clone()
}

/// A format on a file of its own, and another one that stands on it.
fn two_images(closed: &Closed) -> Scene {
    let file = || MemoryNode::new(CLUSTER, 512).expect("a size");
    let format = |second| LogFormat::new(SIZE, second).telling(closed);
    let scene = Scene::default().node("lower", file(), vec![]).node("upper", file(), vec![]);
    let scene = scene.node("base", format(None), vec![ChildDecl::storage("lower")]);
    let children = vec![ChildDecl::storage("upper"), ChildDecl::backing("base")];
    scene.node("top", format(Some(Role::Backing)), children).pass("filter", "top")
}

async fn forget(stage: &Stage, scope: BitmapScope) {
    let gone = [crate::bitmap::Change::Remove];
    stage.cell.change_bitmap(&stage.bitmap(&scope), &gone).await.expect("a removal");
}

async fn remove(stage: &Stage, drive: Option<&str>, nodes: &[&str]) -> Vec<Event> {
    let mut transaction = Transaction::new();
    if let Some(id) = drive {
        forget(stage, BitmapScope::Drive(id.into())).await;
        transaction = transaction.with(Action::RemoveDrive { drive: id.into() });
    }
    for node in nodes {
        forget(stage, BitmapScope::Node((*node).into())).await;
        transaction = transaction.with(Action::RemoveNode { node: (*node).into() });
    }
    stage.cell.transact(transaction).await.expect("a removal").events
}

#[test]
fn what_is_removed_closes_before_its_container_and_after_what_it_shows() {
    let order = Closed::default();
    two_images(&order).drive("vda", "filter").run(async move |stage| {
        stage.write("vda", 1, 7).await;
        stage.clear().await;
        remove(&stage, Some("vda"), &["filter", "top"]).await;
        assert_eq!(closed(&order), ["top"]);
        assert_eq!(stage.dirty(), dirty(&["upper"], &[0]), "what it wrote");
        stage.clear().await;
        remove(&stage, None, &["base"]).await;
        assert_eq!(closed(&order), ["top", "base"]);
        assert_eq!(stage.dirty(), dirty(&["lower"], &[0]));
        stage.open("file", "lower", false).await;
        let note = crate::io::BufMut::new(6);
        assert_eq!(
            stage.drive("file").read(CLOSED_AT, note).await.expect("a read")[..],
            *b"closed"
        );
    });
    let order = Closed::default();
    two_images(&order).drive("vda", "filter").run(async move |stage| {
        let events = remove(&stage, Some("vda"), &["filter", "top", "base", "lower"]).await;
        assert_eq!(closed(&order), ["base", "top"]);
        assert!(!events.iter().any(|event| matches!(event, Event::NodeNotClosed { .. })));
    });
}

#[test]
fn a_driver_that_does_not_close_is_told_of() {
    let image = || {
        // No room for the note.
        let raw = RawNode::new(0, Some(512));
        let file = NullNode::new(CLUSTER, true, Duration::ZERO);
        let scene = Scene::default().node("file", file, vec![]);
        let scene = scene.node("raw", raw, vec![ChildDecl::storage("file")]);
        scene.node("image", LogFormat::new(SIZE, None), vec![ChildDecl::storage("raw")])
    };
    image().run(async |stage| {
        let events = remove(&stage, None, &["image"]).await;
        let told = events.iter().find(|event| matches!(event, Event::NodeNotClosed { .. }));
        let told = told.expect("an event").to_string();
        assert!(told.contains("`image` was removed, and did not close"), "{told}");
        assert!(stage.cell.load().find_node("image").is_none());
    });
    image().run(async |stage| {
        let error = stage.cell.close_nodes(Duration::ZERO).await.expect_err("no room");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
    });
}

/// Nodes that requests are still on their way to stay open.
#[test]
fn the_end_of_a_host_closes_what_is_still() {
    let order = Closed::default();
    let scene = two_images(&order).drive("vda", "filter");
    let slow = NullNode::new(SIZE, true, Duration::from_secs(1));
    let busy = LogFormat::new(SIZE, None).telling(&order);
    let scene = scene.node("slow", slow, vec![]);
    let scene = scene.node("busy", busy, vec![ChildDecl::storage("slow")]).drive("vdb", "busy");
    scene.run(async move |stage| {
        let drive = stage.drive("vdb");
        spawn(async move { drop(drive.write(0, Buf::zeros(512), WriteFlags::NONE).await) });
        turn().await;
        let error = stage.cell.close_nodes(Duration::ZERO).await.expect_err("a request");
        assert!(error.to_string().contains("requests of `vdb` have not ended"), "{error}");
        assert_eq!(closed(&order), ["base", "top"]);
    });
}

#[test]
fn work_beside_requests_is_marked_and_holds_up_changes() {
    let scene = two_images(&Closed::default()).showing("vda", "filter");
    scene.run(async |stage| {
        let local = LocalGraph::of(&stage.cell);
        let go_on = Rc::new(Cell::new(false));
        let is_done = Rc::new(Cell::new(false));
        let (may, done) = (Rc::clone(&go_on), Rc::clone(&is_done));
        let work = async move |cx: Cx<'_>| {
            while !may.get() {
                turn().await;
            }
            let file = cx.child(0)?;
            file.write(600, Buf::copy_of(b"note"), WriteFlags::NONE).await?;
            file.zero(2 * CLUSTER, CLUSTER, WriteFlags::NONE).await?;
            done.set(true);
            Ok(file.len_bytes())
        };
        let caller = Rc::clone(&local);
        let called = spawn_value(async move { caller.call_node("top", work).await });
        turn().await;
        let stage_too = stage.clone();
        let change = spawn_value(async move {
            remove(&stage_too, Some("vda"), &["filter"]).await;
            is_done.get()
        });
        for _ in 0..20 {
            turn().await;
        }
        assert!(change.take().is_none(), "it waits");
        go_on.set(true);
        while change.0.borrow().is_none() {
            turn().await;
        }
        assert_eq!(change.take(), Some(true));
        assert_eq!(called.take().expect("an end").expect("some work"), 3 * CLUSTER);
        assert_eq!(stage.dirty(), dirty(&["upper"], &[0, 1, 2]), "no view has changed");
        let call = async |node: &str| local.call_node(node, async |_: Cx<'_>| Ok(())).await;
        let refused = call("upper").await.map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::NotPermitted));
        assert_eq!(call("none").await.map_err(|error| error.kind()), Err(ErrorKind::NotFound));
    });
}

struct Slot<T>(Rc<std::cell::RefCell<Option<T>>>);

impl<T> Slot<T> {
    fn take(&self) -> Option<T> {
        self.0.borrow_mut().take()
    }
}

fn spawn_value<T: 'static>(future: impl Future<Output = T> + 'static) -> Slot<T> {
    let slot = Slot(Rc::default());
    let put = Rc::clone(&slot.0);
    spawn(async move {
        let value = future.await;
        *put.borrow_mut() = Some(value);
    });
    slot
}
