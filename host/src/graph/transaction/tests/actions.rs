//! Filters, roots, nodes, drives and media under load.

use super::load::Load;
use super::scene::*;
use crate::error::ErrorKind;
use crate::graph::transaction::{Action, Event, Transaction, Unproven, User, Which};
use crate::graph::{BitmapScope, ChildDecl, DriveDecl};
use crate::io::BufMut;
use crate::node::RawNode;

const BLOCKS: u64 = SIZE / BLOCK as u64;

/// A drive over a slow filter over a node, with a bitmap `b` each.
fn slow_disk() -> Scene {
    Scene::new(
        vec![lag("slow", "disk", 100), memory("disk")],
        vec![drive("d", "slow")],
        vec![bitmap(of_drive("d"), "b"), bitmap(of_node("disk"), "n")],
    )
}

fn above(node: &str, filter: &str) -> Action {
    let (filter, users) = (pass(filter, node), Which::All);
    Action::InsertAbove { node: node.into(), filter, users }
}

fn below(node: &str, filter: &str, on: &str) -> Action {
    Action::InsertBelow { node: node.into(), edge: "file".into(), filter: pass(filter, on) }
}

fn without(node: &str) -> Action {
    Action::RemoveFilter { node: node.into() }
}

#[test]
fn filters_come_and_go_and_dirty_nothing() {
    run(async {
        let scene = slow_disk();
        let load = Load::start(&scene, "d", BLOCKS);
        for _ in 0..20 {
            for action in
                [above("slow", "f"), below("slow", "g", "disk"), without("f"), without("g")]
            {
                let applied = scene.act(action).await;
                assert!(!marked_whole(&applied.events), "{:?}", applied.events);
                load.goes_on(5).await;
            }
        }
        let written = load.end().await;
        assert_eq!(scene.dirty("d"), written, "nothing lost, and nothing but what was written");
        assert_eq!(dirty_blocks(&scene.bitmap(&of_node("disk"), "n")), written);
        assert_eq!(scene.cell.load().nodes().len(), 2);
    });
}

#[test]
fn a_filter_above_some_users_leaves_the_others() {
    run(async {
        let only = |id: &str| DriveDecl { writable: false, only_shows: true, ..drive(id, "disk") };
        let scene = Scene::new(vec![memory("disk")], vec![drive("d", "disk"), only("e")], vec![]);
        let users = Which::These(vec![User::Drive("e".into())]);
        let filter = pass("f", "disk");
        scene.act(Action::InsertAbove { node: "disk".into(), filter, users }).await;
        let graph = scene.cell.load();
        let root = |id: &str| {
            let drive = &graph.drives()[graph.find_drive(id).expect("a drive")];
            graph.nodes()[drive.root().expect("a root").child()].name().to_owned()
        };
        assert_eq!((root("d"), root("e")), ("disk".into(), "f".into()));
    });
}

/// What lasts longer than a snapshot is the same after any change beside it.
#[test]
fn what_stays_keeps_its_identity() {
    run(async {
        let scene = slow_disk();
        scene.write("d", 3, 7).await;
        let old = scene.cell.load();
        scene.act(above("disk", "f")).await;
        let new = scene.cell.load();
        let at = |name: &str| (old.find_node(name).unwrap(), new.find_node(name).unwrap());
        for name in ["disk", "slow"] {
            let (was, now) = at(name);
            assert_eq!(old.nodes()[was].generation(), new.nodes()[now].generation());
        }
        let (was, now) = at("slow");
        let requests = |graph: &crate::graph::Graph, at: usize| {
            graph.nodes()[at].edges()[0].counters().snapshot().requests
        };
        assert_eq!(requests(&old, was), requests(&new, now));
        // The name alone does not make a node.
        scene.act(without("f")).await;
        scene.act(above("disk", "f")).await;
        let again = scene.cell.load();
        let who = |graph: &crate::graph::Graph| {
            graph.nodes()[graph.find_node("f").expect("f")].generation()
        };
        assert_ne!(who(&new), who(&again));
    });
}

#[test]
fn a_root_that_shows_the_same_keeps_bitmaps_and_another_marks_them() {
    run(async {
        let scene = slow_disk();
        let load = Load::start(&scene, "d", BLOCKS);
        load.goes_on(20).await;
        let root = |node: &str| Action::SetRoot { drive: "d".into(), node: node.into() };
        scene.act(Action::AddNode(pass("f", "disk"))).await;
        scene.act(root("f")).await;
        load.goes_on(20).await;
        scene.act(root("slow")).await;
        load.goes_on(20).await;
        let written = load.end().await;
        assert_eq!(scene.dirty("d"), written);

        scene.act(Action::AddNode(memory("other"))).await;
        let message = scene.fails(Transaction::new().with(root("other"))).await;
        assert!(message.contains("drive `d` shows node `other` instead of `slow`"), "{message}");
        assert!(message.starts_with("set root of drive `d` to `other`: drive `d` "), "{message}");
        let marked = Transaction::new().with_unproven(root("other"), Unproven::MarkWhole);
        let applied = scene.all(marked).await;
        assert!(marked_whole(&applied.events));
        assert_eq!(scene.dirty("d").len() as u64, BLOCKS);
        // The node's own view is what it was.
        assert_eq!(dirty_blocks(&scene.bitmap(&of_node("disk"), "n")), written);
    });
}

#[test]
fn replace_moves_users_and_leaves_what_it_stands_on() {
    run(async {
        let scene = slow_disk();
        let load = Load::start(&scene, "d", BLOCKS);
        scene.act(Action::AddNode(pass("f", "disk"))).await;
        scene.act(Action::Replace { node: "disk".into(), by: "f".into() }).await;
        load.goes_on(20).await;
        let graph = scene.cell.load();
        let child = |name: &str| {
            let node = &graph.nodes()[graph.find_node(name).expect("a node")];
            graph.nodes()[node.edges()[0].child()].name().to_owned()
        };
        assert_eq!((child("slow"), child("f")), ("f".into(), "disk".into()));
        let written = load.end().await;
        assert_eq!(scene.dirty("d"), written);
    });
}

#[test]
fn a_replacement_with_other_bytes_is_refused_or_marks_all_that_see_it() {
    run(async {
        let scene = slow_disk();
        scene.act(Action::AddNode(memory("other"))).await;
        let replace = || Action::Replace { node: "disk".into(), by: "other".into() };
        let message = scene.fails(Transaction::new().with(replace())).await;
        assert!(message.contains("node `slow` (edge `file`) shows node `other`"), "{message}");
        assert!(message.contains("1 bitmap would be marked whole"), "{message}");
        scene.all(Transaction::new().with_unproven(replace(), Unproven::MarkWhole)).await;
        assert_eq!(scene.dirty("d").len() as u64, BLOCKS);
        assert_eq!(scene.bitmap(&of_node("disk"), "n").count(), 0);
    });
}

#[test]
fn an_opaque_filter_is_no_evidence() {
    run(async {
        let scene = slow_disk();
        let insert = || {
            let filter = node("f", RawNode::new(0, None), vec![ChildDecl::filtered("slow")]);
            Action::InsertAbove { node: "slow".into(), filter, users: Which::All }
        };
        let message = scene.fails(Transaction::new().with(insert())).await;
        assert!(message.contains("nothing proves"), "{message}");
        scene.all(Transaction::new().with_unproven(insert(), Unproven::MarkWhole)).await;
        assert_eq!(scene.dirty("d").len() as u64, BLOCKS);
    });
}

#[test]
fn a_filters_bitmaps_go_to_its_child() {
    run(async {
        let scene = slow_disk();
        scene.act(above("slow", "f")).await;
        scene.cell.add_bitmap(bitmap(of_node("f"), "mine")).await.expect("a bitmap");
        scene.write("d", 5, 1).await;
        let applied = scene.act(without("f")).await;
        let moved = |event: &Event| matches!(event, Event::BitmapMoved { to: BitmapScope::Node(to), .. } if **to == *"slow");
        assert!(applied.events.iter().any(moved));
        scene.write("d", 6, 1).await;
        assert_eq!(dirty_blocks(&scene.bitmap(&of_node("slow"), "mine")), [5, 6]);
    });
}

#[test]
fn media_are_changed_under_load_and_are_another_view() {
    run(async {
        let scene = slow_disk();
        scene.act(Action::AddNode(memory("disc"))).await;
        let eject = || Action::EjectMedium { drive: "d".into() };
        let insert = || Action::InsertMedium { drive: "d".into(), node: "disc".into() };
        scene.write("d", 1, 1).await;
        scene.act(eject()).await;
        let error = scene.drive("d").read(0, BufMut::new(BLOCK)).await;
        assert_eq!(error.expect_err("no medium").kind(), ErrorKind::NoMedium);
        assert_eq!(scene.dirty("d"), [1], "what it recorded stays to be read");
        let applied = scene.act(insert()).await;
        assert!(marked_whole(&applied.events));
        assert_eq!((scene.read("d", 1).await, scene.dirty("d").len() as u64), (0, BLOCKS));
        let message = scene.fails(Transaction::new().with(insert())).await;
        assert!(message.contains("has the medium `disc`"), "{message}");
        // Out and in again at once is no change.
        scene.clear(&of_drive("d"), "b").await;
        let applied = scene.all(Transaction::new().with(eject()).with(insert())).await;
        assert_eq!((marked_whole(&applied.events), scene.dirty("d").len()), (false, 0));
    });
}

#[test]
fn drives_come_and_go_and_the_others_go_on() {
    run(async {
        let scene = slow_disk();
        let load = Load::start(&scene, "d", BLOCKS);
        for _ in 0..10 {
            let add = Transaction::new()
                .with(Action::AddNode(memory("other")))
                .with(Action::AddDrive(drive("e", "other")));
            let applied = scene.all(add).await;
            assert!(applied.events.is_empty(), "nobody had to pause: {:?}", applied.events);
            scene.write("e", 1, 9).await;
            let gone = scene.drive("e");
            let remove = Transaction::new()
                .with(Action::RemoveDrive { drive: "e".into() })
                .with(Action::RemoveNode { node: "other".into() });
            scene.all(remove).await;
            let error = gone.read(0, BufMut::new(BLOCK)).await.expect_err("it is gone");
            assert_eq!(error.kind(), ErrorKind::NotFound);
            load.goes_on(5).await;
        }
        let written = load.end().await;
        assert_eq!(scene.dirty("d"), written);
    });
}

/// Whoever holds a drive that has moved in the list goes on with it, not with its neighbour.
#[test]
fn a_drive_is_known_by_what_it_is() {
    run(async {
        let nodes = vec![memory("x"), memory("y")];
        let scene = Scene::new(nodes, vec![drive("a", "x"), drive("b", "y")], vec![]);
        let (a, b) = (scene.drive("a"), scene.drive("b"));
        scene.write("b", 0, 5).await;
        scene.act(Action::RemoveDrive { drive: "a".into() }).await;
        let read = b.read(0, BufMut::new(BLOCK)).await.expect("a read");
        assert_eq!(read[0], 5);
        scene.act(Action::AddDrive(drive("a", "x"))).await;
        assert!(a.read(0, BufMut::new(BLOCK)).await.is_err(), "another drive of that name");
    });
}
