//! Nodes that act of their own accord, and what they have read, across graph changes.

use super::scene::*;
use crate::error::ErrorKind;
use crate::graph::transaction::{Action, Event, Transaction, Unproven, Which};
use crate::graph::{ChildDecl, DriveDecl, LocalGraph, NodeDecl, OwnAccord, PermissionSet};

/// A filter that may copy what its child shows back into it.
fn acting(name: &str, on: &str) -> NodeDecl {
    let grants = PermissionSet::HARMLESS;
    let child = ChildDecl { grants, ..ChildDecl::filtered(on) };
    NodeDecl { children: vec![child], ..pass(name, on) }
}

fn scene() -> Scene {
    let nodes = vec![
        acting("f", "top"),
        overlay("top", "disk"),
        memory("disk"),
        acting("g", "beside"),
        memory("beside"),
    ];
    let bitmaps = vec![bitmap(of_drive("d"), "b")];
    Scene::new(nodes, vec![drive("d", "f"), drive("e", "g")], bitmaps)
}

fn actor(scene: &Scene, node: &str) -> OwnAccord {
    OwnAccord::open(&LocalGraph::of(&scene.cell), node).expect("a node that acts")
}

/// What was read before a change below proves nothing after it; what has nothing to do with it does.
#[test]
fn a_change_below_ends_what_reads_have_proven() {
    run(async {
        let scene = scene();
        scene.act(Action::AddNode(memory("other"))).await;
        let (here, beside) = (actor(&scene, "f"), actor(&scene, "g"));
        let range = 0..BLOCK as u64;
        let read = here.read_proven(0, range.clone()).await.expect("a read");
        let read_beside = beside.read_proven(0, range.clone()).await.expect("a read");
        let (node, edge, child) = ("top".into(), "backing".into(), Some("other".into()));
        let rebase = Action::SetChild { node, edge, child };
        let applied =
            scene.all(Transaction::new().with_unproven(rebase, Unproven::MarkWhole)).await;
        let paused = |event: &Event| matches!(event, Event::Paused { drives, .. } if drives.iter().map(|id| &**id).eq(["d", "f"]));
        assert!(applied.events.iter().any(paused), "{:?}", applied.events);
        scene.clear(&of_drive("d"), "b").await;
        let refused = here.write_proven(0, &read).await.expect_err("another backing");
        assert_eq!(refused.kind(), ErrorKind::Stale);
        beside.write_proven(0, &read_beside).await.expect("nothing has changed there");
        let read = here.read_proven(0, range).await.expect("a read");
        here.write_proven(0, &read).await.expect("it was read again");
        assert_eq!(scene.dirty("d").len(), 0);
    });
}

/// A copy's guard is to be seen by whoever changes what lies below it: also by one whose own way is as it
/// was.
#[test]
fn who_crosses_into_a_new_source_waits_for_it() {
    run(async {
        let shows = DriveDecl { writable: false, only_shows: true, ..drive("d", "top") };
        let nodes = vec![overlay("top", "disk"), memory("disk")];
        let scene = Scene::new(nodes, vec![shows, drive("e", "disk")], vec![]);
        let child =
            ChildDecl { grants: PermissionSet::CONSISTENT_READ, ..ChildDecl::filtered("top") };
        let filter = NodeDecl { children: vec![child], ..pass("f", "top") };
        let (node, users) = ("top".into(), Which::All);
        let applied = scene.act(Action::InsertAbove { node, filter, users }).await;
        let waited =
            |event: &Event| matches!(event, Event::Paused { drives, .. } if drives.len() == 2);
        assert!(applied.events.iter().any(waited), "{:?}", applied.events);
    });
}

/// A filter that acts comes under load: edges below it become crossings, for whoever uses them.
#[test]
fn a_filter_that_acts_comes_and_goes_under_load() {
    run(async {
        let nodes = vec![lag("slow", "disk", 50), memory("disk")];
        let scene = Scene::new(nodes, vec![drive("d", "slow")], vec![bitmap(of_drive("d"), "b")]);
        let load = super::load::Load::start(&scene, "d", SIZE / BLOCK as u64);
        for _ in 0..10 {
            let (filter, users) = (acting("f", "slow"), Which::All);
            scene.act(Action::InsertAbove { node: "slow".into(), filter, users }).await;
            let own = actor(&scene, "f");
            let how = crate::graph::CopyHow { unchanged: true, only_unallocated: false };
            own.copy(0, 0, 0..SIZE, how).await.expect("a copy onto itself");
            load.goes_on(5).await;
            scene.act(Action::RemoveFilter { node: "f".into() }).await;
            let gone = own.copy(0, 0, 0..SIZE, how).await.expect_err("the node has gone");
            assert_eq!(gone.kind(), ErrorKind::NotFound);
        }
        let written = load.end().await;
        assert_eq!(scene.dirty("d"), written, "copies dirty nothing");
    });
}
