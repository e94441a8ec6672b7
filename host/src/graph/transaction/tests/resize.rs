//! Sizes under load: views, and the bitmaps that follow them.

use super::load::Load;
use super::scene::*;
use crate::graph::transaction::{Action, Event, Transaction, Unproven};

const BLOCKS: u64 = SIZE / BLOCK as u64;

fn resize(node: &str, blocks: u64) -> Action {
    Action::Resize { node: node.into(), size_bytes: blocks * BLOCK as u64 }
}

#[test]
fn bitmaps_follow_the_size_of_their_view() {
    run(async {
        let scene = Scene::new(
            vec![lag("slow", "disk", 50), memory("disk")],
            vec![drive("d", "slow")],
            vec![bitmap(of_drive("d"), "b"), bitmap(of_node("disk"), "n")],
        );
        let load = Load::start(&scene, "d", BLOCKS / 2);
        load.goes_on(20).await;
        let applied = scene.act(resize("disk", BLOCKS + 8)).await;
        let resized = |event: &&Event| matches!(event, Event::BitmapResized { .. });
        assert_eq!(applied.events.iter().filter(resized).count(), 2);
        load.goes_on(20).await;
        let info = scene.drive("d").info().expect("a medium");
        assert_eq!(info.size_bytes, SIZE + 8 * BLOCK as u64);
        scene.act(resize("disk", BLOCKS / 2)).await;
        load.goes_on(20).await;
        scene.act(resize("disk", BLOCKS)).await;
        let mut dirty = load.end().await;
        dirty.extend(BLOCKS / 2..BLOCKS);
        assert_eq!(scene.dirty("d"), dirty, "what was cut off and came again is dirty");
        assert_eq!(dirty_blocks(&scene.bitmap(&of_node("disk"), "n")), dirty);
        assert_eq!(scene.bitmap(&of_drive("d"), "b").size_bytes(), SIZE);
    });
}

/// A base that shrinks and grows again reads as zeros: an overlay that keeps its size has changed there.
#[test]
fn a_base_that_shrinks_changes_the_overlays_above() {
    run(async {
        let scene = Scene::new(
            vec![memory("base"), overlay("top", "base")],
            vec![drive("d", "top")],
            vec![bitmap(of_drive("d"), "b")],
        );
        scene.act(resize("base", 100)).await;
        let expected: Vec<u64> = (100..BLOCKS).collect();
        assert_eq!(scene.dirty("d"), expected);
        scene.clear(&of_drive("d"), "b").await;
        scene.act(resize("base", 110)).await;
        assert_eq!(scene.dirty("d"), (100..110).collect::<Vec<u64>>());
    });
}

#[test]
fn what_cannot_be_undone_comes_once() {
    run(async {
        let nodes = vec![memory("x"), memory("y"), overlay("top", "x")];
        let drives = vec![drive("d", "top"), drive("e", "y")];
        let scene = Scene::new(nodes, drives, vec![]);
        let two = Transaction::new().with(resize("x", 10)).with(resize("y", 10));
        let message = scene.fails(two).await;
        assert!(message.contains("shrink or deallocate once"), "{message}");
        let range = 0..BLOCK as u64;
        let grow_and_fail = Transaction::new()
            .with(resize("x", BLOCKS + 1))
            .with_unproven(Action::Deallocate { node: "y".into(), range }, Unproven::MarkWhole);
        let message = scene.fails(grow_and_fail).await;
        assert!(message.contains("keeps all its bytes"), "{message}");
        // The growth was taken back: the driver has its old size.
        scene.act(resize("y", BLOCKS + 1)).await;
        let graph = scene.cell.load();
        let size = |name: &str| graph.nodes()[graph.find_node(name).unwrap()].info().size_bytes;
        assert_eq!((size("x"), size("y")), (SIZE, SIZE + BLOCK as u64));
        let misfit = Action::Resize { node: "y".into(), size_bytes: 1000 };
        let message = scene.fails(Transaction::new().with(misfit)).await;
        assert!(message.contains("no multiple of its block size"), "{message}");
    });
}
