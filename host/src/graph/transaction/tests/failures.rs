//! Transactions that fail change nothing: the graph is the same to the last pointer.

use std::time::Duration;

use super::load::Load;
use super::scene::*;
use crate::filter::PassNode;
use crate::graph::transaction::{Action, Transaction, User, Which};
use crate::graph::{ChildDecl, DriveDecl, Role};
use crate::io::{spawn, turn_now};

fn scene() -> Scene {
    Scene::new(
        vec![pass("top", "disk"), memory("disk"), memory("spare"), pass("f", "spare")],
        vec![drive("d", "top"), drive("e", "f")],
        vec![bitmap(of_drive("d"), "b"), bitmap(of_node("top"), "n")],
    )
}

fn remove(node: &str) -> Action {
    Action::RemoveNode { node: node.into() }
}

/// Checks that good actions and then a bad one fail, with a message that has all of `parts`.
async fn check(scene: &Scene, bad: Action, parts: &[&str]) {
    let transaction = Transaction::new()
        .with(Action::AddNode(memory("new")))
        .with(Action::InsertAbove {
            node: "disk".into(),
            filter: pass("g", "disk"),
            users: Which::All,
        })
        .with(bad);
    let message = scene.fails(transaction).await;
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn an_action_that_makes_no_sense_undoes_all_before_it() {
    run(async {
        let scene = scene();
        let load = Load::start(&scene, "d", 64);
        load.goes_on(5).await;
        // Under load, marks differ from one moment to the next.
        let written = load.end().await;
        assert_eq!(scene.dirty("d"), written);

        let s = &scene;
        check(s, remove("top"), &["action 3 (remove node `top`)", "in use by drive `d`"]).await;
        check(s, remove("disk"), &["node `disk`", "in use by node `g` (edge `file`)"]).await;
        check(s, remove("nowhere"), &["there is no node `nowhere`"]).await;
        check(s, Action::AddNode(memory("d")), &["`d` names a drive and a node"]).await;
        let drive_without = |id: &str| Action::RemoveDrive { drive: id.into() };
        check(s, drive_without("d"), &["drive `d` has the bitmaps `b`: remove them first"]).await;
        let set_root = |node: &str| Action::SetRoot { drive: "d".into(), node: node.into() };
        check(s, set_root("lost"), &["there is no node `lost`"]).await;
        check(s, Action::RemoveFilter { node: "disk".into() }, &["it is no filter"]).await;
        let end = Action::SetChild { node: "top".into(), edge: "file".into(), child: None };
        check(s, end, &["edge `file` cannot end"]).await;
        let loops = |child: &str| {
            let (node, edge) = ("g".into(), "file".into());
            Action::SetChild { node, edge, child: Some(child.into()) }
        };
        check(s, loops("top"), &["the nodes form a cycle", "top"]).await;
        let (node, filter) = ("top".into(), pass("h", "disk"));
        let wrong = Action::InsertAbove { node, filter, users: Which::All };
        check(s, wrong, &["the filter `h` needs an edge to `top`"]).await;
        let users = Which::These(vec![User::Drive("e".into())]);
        let (node, filter) = ("top".into(), pass("h", "top"));
        let wrong = Action::InsertAbove { node, filter, users };
        check(s, wrong, &["drive `e` does not use node `top`"]).await;
        let wrong = Action::Snapshot { drive: "d".into(), overlay: overlay("o", "disk") };
        check(s, wrong, &["the overlay `o` needs a `backing` edge to `top`"]).await;
        let insert = Action::InsertMedium { drive: "d".into(), node: "new".into() };
        check(s, insert, &["drive `d` has the medium `top`"]).await;
    });
}

#[test]
fn a_node_with_bitmaps_stays() {
    run(async {
        let scene = scene();
        let away = Transaction::new()
            .with_unproven(
                Action::Replace { node: "top".into(), by: "f".into() },
                crate::graph::transaction::Unproven::MarkWhole,
            )
            .with(Action::RemoveDrive { drive: "e".into() })
            .with(remove("top"));
        let message = scene.fails(away).await;
        assert!(message.contains("node `top` has the bitmaps `n`: remove them first"), "{message}");
    });
}

#[test]
fn users_that_cannot_live_together_are_named() {
    run(async {
        let scene = scene();
        let add = Action::AddDrive(drive("second", "disk"));
        let message = scene.fails(Transaction::new().with(add)).await;
        assert!(message.contains("drive `second` (edge `root`) uses w"), "{message}");
        assert!(message.contains("node `top` (edge `file`) does not share"), "{message}");
        let reader = DriveDecl { writable: false, only_shows: true, ..drive("second", "disk") };
        scene.act(Action::AddDrive(reader)).await;
    });
}

/// An edge is known by its name: of two one would be taken for the other.
#[test]
fn two_edges_of_a_node_have_two_names() {
    run(async {
        let scene = scene();
        let edge = |role| ChildDecl { name: "x".into(), role, ..ChildDecl::filtered("disk") };
        let children = vec![edge(Role::Filtered), edge(Role::Source)];
        let twice = Action::AddNode(node("twice", PassNode, children));
        check(&scene, twice, &["node `twice`", "two edges `x`", "another name"]).await;
        // One that an action makes, too.
        let backing = ChildDecl { name: "backing".into(), ..edge(Role::Source) };
        scene.act(Action::AddNode(node("reads", PassNode, vec![backing]))).await;
        let (node, edge, child) = ("reads".into(), "backing".into(), Some("disk".into()));
        let rebase = Action::SetChild { node, edge, child };
        check(&scene, rebase, &["node `reads`", "two edges `backing`"]).await;
    });
}

#[test]
fn a_graph_that_grows_too_deep_is_refused() {
    run(async {
        let scene = scene();
        let mut refused = None;
        for number in 0..crate::limits::GRAPH_DEPTH_MAX {
            let graph = scene.cell.load();
            let root = graph.drives()[0].root().expect("a root").child();
            let below = graph.nodes()[root].name();
            let overlay = overlay(&format!("o{number}"), below);
            let snapshot = Action::Snapshot { drive: "d".into(), overlay };
            refused = scene.cell.transact(Transaction::new().with(snapshot)).await.err();
        }
        let message = refused.expect("a bound").to_string();
        assert!(message.contains("deeper than 256 nodes"), "{message}");
    });
}

#[test]
fn a_driver_that_does_not_start_changes_nothing() {
    run(async {
        let scene = scene();
        let broken = Lag { starts: false, ..Lag::of(0) };
        let filter = node("broken", broken, vec![ChildDecl::filtered("disk")]);
        let (node, users) = ("disk".into(), Which::All);
        let insert = Action::InsertAbove { node, filter, users };
        let message = scene.fails(Transaction::new().with(insert)).await;
        assert!(message.contains("node `broken`: its engine does not start"), "{message}");
    });
}

#[test]
fn a_request_that_does_not_end_ends_the_change() {
    run(async {
        let nodes = vec![lag("slow", "disk", 30_000), memory("disk")];
        let scene = Scene::new(nodes, vec![drive("d", "slow")], vec![]);
        let (writer, began) = (scene.clone(), turn_now());
        spawn(async move { writer.write("d", 0, 1).await });
        turns(3).await;
        let insert = || {
            let (node, users) = ("slow".into(), Which::All);
            Action::InsertAbove { node, filter: pass("g", "slow"), users }
        };
        let soon = Transaction::new().with(insert()).within(Duration::from_millis(5));
        let message = scene.fails(soon).await;
        assert!(message.contains("1 requests of `d` have not ended in 5ms"), "{message}");
        assert!(turn_now().since(began) < Duration::from_millis(30));
        // The gates are open again, and the next try has more time.
        scene.act(insert()).await;
        assert_eq!(scene.read("d", 0).await, 1);
    });
}
