//! Overlays: put on, taken off, shortened, cut, emptied.

use super::load::Load;
use super::scene::*;
use crate::graph::DriveDecl;
use crate::graph::transaction::{Action, Event, Transaction, Unproven};

const BLOCKS: u64 = SIZE / BLOCK as u64;

fn snapshot(overlay_name: &str, on: &str) -> Action {
    Action::Snapshot { drive: "d".into(), overlay: overlay(overlay_name, on) }
}

fn root(node: &str) -> Action {
    Action::SetRoot { drive: "d".into(), node: node.into() }
}

fn rebase(node: &str, child: Option<&str>) -> Action {
    let child = child.map(Into::into);
    Action::SetChild { node: node.into(), edge: "backing".into(), child }
}

/// A drive with a bitmap over a node with one.
fn disk() -> Scene {
    Scene::new(
        vec![memory("disk")],
        vec![drive("d", "disk")],
        vec![bitmap(of_drive("d"), "b"), bitmap(of_node("disk"), "n")],
    )
}

/// base ← mid ← top, and the drive on top.
async fn chain() -> Scene {
    let scene = disk();
    scene.act(snapshot("mid", "disk")).await;
    scene.act(snapshot("top", "mid")).await;
    scene
}

#[test]
fn snapshots_under_load_dirty_nothing_and_lose_nothing() {
    run(async {
        let nodes = vec![lag("slow", "disk", 50), memory("disk")];
        let bitmaps = vec![bitmap(of_drive("d"), "b"), bitmap(of_node("disk"), "n")];
        let scene = Scene::new(nodes, vec![drive("d", "slow")], bitmaps);
        let load = Load::start(&scene, "d", BLOCKS);
        load.goes_on(20).await;
        let mut below = "slow".to_owned();
        let mut of_base = None;
        for number in 0..10 {
            let name = format!("overlay{number}");
            let filter = format!("lag{number}");
            let applied = scene.act(snapshot(&name, &below)).await;
            assert!(!marked_whole(&applied.events));
            let base = dirty_blocks(&scene.bitmap(&of_node("disk"), "n"));
            assert_eq!(*of_base.get_or_insert_with(|| base.clone()), base, "the base rests");
            let users = super::super::Which::All;
            let filter_decl = lag(&filter, &name, 50);
            scene.act(Action::InsertAbove { node: name, filter: filter_decl, users }).await;
            below = filter;
            load.goes_on(20).await;
        }
        let written = load.end().await;
        assert_eq!(scene.dirty("d"), written);
    });
}

#[test]
fn an_overlay_that_is_not_empty_is_no_snapshot() {
    run(async {
        let shows = DriveDecl { writable: false, only_shows: true, ..drive("d", "disk") };
        let nodes = vec![memory("disk"), overlay("used", "disk")];
        let scene = Scene::new(nodes, vec![shows, drive("e", "used")], vec![]);
        let applied = scene.act(root("used")).await;
        let waited =
            |event: &Event| matches!(event, Event::Paused { drives, .. } if drives.len() == 2);
        assert!(applied.events.iter().any(waited), "whoever could write the overlay meanwhile");
        scene.act(root("disk")).await;
        scene.write("e", 4, 1).await;
        let message = scene.fails(Transaction::new().with(root("used"))).await;
        assert!(message.contains("drive `d` shows node `used` instead of `disk`"), "{message}");
    });
}

#[test]
fn a_root_goes_back_while_the_overlay_is_empty() {
    run(async {
        let scene = disk();
        scene.write("d", 1, 1).await;
        scene.act(snapshot("top", "disk")).await;
        scene.act(root("disk")).await;
        scene.act(root("top")).await;
        assert_eq!(scene.dirty("d"), [1]);
        scene.write("d", 2, 1).await;
        let message = scene.fails(Transaction::new().with(root("disk"))).await;
        assert!(message.contains("shows node `disk` instead of `top`"), "{message}");
        let back = Transaction::new().with_unproven(root("disk"), Unproven::MarkWhole);
        assert!(marked_whole(&scene.all(back).await.events));
        assert_eq!(scene.dirty("d").len() as u64, BLOCKS);
    });
}

#[test]
fn an_empty_middle_is_left_out() {
    run(async {
        let scene = chain().await;
        scene.write("d", 2, 1).await;
        let load = Load::start(&scene, "d", BLOCKS);
        scene.act(rebase("top", Some("disk"))).await;
        scene.act(Action::RemoveNode { node: "mid".into() }).await;
        load.goes_on(20).await;
        let mut written = load.end().await;
        written.push(2);
        written.sort_unstable();
        written.dedup();
        assert_eq!(scene.dirty("d"), written);
    });
}

#[test]
fn a_middle_with_bytes_is_left_out_once_the_top_has_them_all() {
    run(async {
        let scene = disk();
        scene.act(snapshot("mid", "disk")).await;
        scene.write("d", 7, 1).await;
        scene.act(snapshot("top", "mid")).await;
        let message = scene.fails(Transaction::new().with(rebase("top", Some("disk")))).await;
        assert!(message.contains("node `top` (edge `backing`) shows node `disk`"), "{message}");
        for block in 0..BLOCKS {
            scene.write("d", block, 3).await;
        }
        scene.clear(&of_drive("d"), "b").await;
        scene.act(rebase("top", Some("disk"))).await;
        assert_eq!(scene.dirty("d").len(), 0);
        scene.clear(&of_drive("d"), "b").await;
        scene.act(rebase("top", None)).await;
        assert_eq!((scene.dirty("d").len(), scene.read("d", 9).await), (0, 3));
    });
}

#[test]
fn a_chain_is_cut_where_nothing_but_zeros_shows_through() {
    run(async {
        let scene = chain().await;
        scene.write("d", 2, 8).await;
        // Below is nothing but zeros: also a filter, and what was zeroed.
        scene.act(rebase("top", None)).await;
        assert_eq!((scene.dirty("d"), scene.read("d", 2).await), (vec![2], 8));

        let scene = disk();
        scene.write("d", 1, 1).await;
        scene.act(snapshot("top", "disk")).await;
        let message = scene.fails(Transaction::new().with(rebase("top", None))).await;
        assert!(
            message.contains("node `top` (edge `backing`) shows node `disk` no more"),
            "{message}"
        );
        let cut = Transaction::new().with_unproven(rebase("top", None), Unproven::MarkWhole);
        assert!(marked_whole(&scene.all(cut).await.events));
        assert_eq!((scene.read("d", 1).await, scene.dirty("d").len() as u64), (0, BLOCKS));
        // And tied again: what shows through is another view.
        let message = scene.fails(Transaction::new().with(rebase("top", Some("disk")))).await;
        assert!(message.contains("where it showed none"), "{message}");
    });
}

#[test]
fn every_view_above_an_altered_edge_is_marked_and_none_below() {
    run(async {
        let scene = chain().await;
        scene.cell.add_bitmap(bitmap(of_node("mid"), "m")).await.expect("a bitmap");
        scene.act(Action::AddNode(memory("other"))).await;
        let change = || rebase("mid", Some("other"));
        // Nobody has written: both are zero, but that is not looked at.
        let message = scene.fails(Transaction::new().with(change())).await;
        assert!(message.contains("2 bitmaps would be marked whole"), "{message}");
        scene.all(Transaction::new().with_unproven(change(), Unproven::MarkWhole)).await;
        assert_eq!(scene.dirty("d").len() as u64, BLOCKS);
        assert_eq!(scene.bitmap(&of_node("mid"), "m").count(), BLOCKS);
        assert_eq!(scene.bitmap(&of_node("disk"), "n").count(), 0);
    });
}

/// Several steps at once are judged by what comes of them.
#[test]
fn actions_add_up() {
    run(async {
        let scene = disk();
        let load = Load::start(&scene, "d", BLOCKS);
        load.goes_on(10).await;
        let users = super::super::Which::All;
        let all = Transaction::new()
            .with(snapshot("a", "disk"))
            .with(Action::InsertAbove { node: "a".into(), filter: pass("f", "a"), users })
            .with(snapshot("b", "f"))
            .with(Action::RemoveFilter { node: "f".into() });
        let applied = scene.all(all).await;
        assert!(!marked_whole(&applied.events));
        load.goes_on(10).await;
        let written = load.end().await;
        assert_eq!(scene.dirty("d"), written);
        let names: Vec<String> =
            scene.cell.load().nodes().iter().map(|node| node.name().to_owned()).collect();
        assert_eq!(names, ["disk", "a", "b"]);
    });
}

#[test]
fn a_deallocation_marks_its_range_unless_it_shows_the_same() {
    run(async {
        let scene = disk();
        scene.act(snapshot("top", "disk")).await;
        scene.write("d", 3, 6).await;
        scene.clear(&of_drive("d"), "b").await;
        let block = BLOCK as u64;
        let give_up = |blocks: std::ops::Range<u64>| {
            let range = blocks.start * block..blocks.end * block;
            Action::Deallocate { node: "top".into(), range }
        };
        scene.act(give_up(10..20)).await;
        assert_eq!(scene.dirty("d").len(), 0, "there was nothing");
        let message = scene.fails(Transaction::new().with(give_up(2..4))).await;
        assert!(message.contains("nothing proves that its backing shows the same"), "{message}");
        scene.all(Transaction::new().with_unproven(give_up(2..4), Unproven::MarkWhole)).await;
        assert_eq!((scene.dirty("d"), scene.read("d", 3).await), (vec![2, 3], 0));
        let message = scene.fails(Transaction::new().with(give_up(0..BLOCKS + 1))).await;
        assert!(message.contains("is to lie within"), "{message}");
    });
}
