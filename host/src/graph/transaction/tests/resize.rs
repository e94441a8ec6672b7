//! Sizes under load: views, and the bitmaps that follow them.

use std::sync::Arc;
use std::time::Duration;

use blockloom_plugin_backup::BackupConfig;

use super::load::Load;
use super::scene::*;
use crate::filter::BackupNode;
use crate::graph::transaction::{Action, Event, Transaction, Unproven};
use crate::graph::{DriveDecl, LocalGraph, NodeDecl};
use crate::io::{Buf, sleep_until, turn_now};
use crate::node::{Node, WriteFlags};

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

/// The host's own backup of `disk` to `target`, which has begun.
fn backup_scene(sync: &str) -> (Scene, Arc<BackupNode>) {
    let config = format!(r#"{{ "sync": "{sync}", "min-cluster-size": 4096 }}"#);
    let config = BackupConfig::from_json(&config).expect("a configuration");
    let driver = Arc::new(BackupNode::new(config, None).expect("a backup"));
    let backup = NodeDecl {
        name: "backup".into(),
        driver: Arc::clone(&driver) as _,
        children: BackupNode::children("slow", "target"),
    };
    let nodes = vec![memory("disk"), lag("slow", "disk", 50), memory("target"), backup];
    let target = DriveDecl { writable: false, only_shows: true, ..drive("t", "target") };
    let scene = Scene::new(nodes, vec![drive("d", "backup"), target], vec![]);
    scene.cell.load().start_drivers(None).expect("drivers that start");
    (scene, driver)
}

/// What is cut off below a backup would be missing in it; what is added is none of its point in time.
#[test]
fn a_disk_does_not_shrink_below_a_backup_that_needs_it() {
    run(async {
        let (scene, backup) = backup_scene("none");
        backup.run(&LocalGraph::of(&scene.cell), "backup");
        let message = scene.fails(Transaction::new().with(resize("disk", BLOCKS / 2))).await;
        assert!(message.contains("node `backup` keeps"), "{message}");
        scene.act(resize("disk", BLOCKS + 8)).await;
        for (block, byte) in [(BLOCKS - 1, 7), (BLOCKS + 4, 8)] {
            let (offset, data) = (block * BLOCK as u64, [byte; 2 * BLOCK]);
            let drive = scene.drive("d");
            let write = drive.write(offset, Buf::copy_of(&data), WriteFlags::NONE);
            write.await.expect("also behind the former end");
            assert_eq!(scene.read("d", block + 1).await, byte);
        }
        let message = scene.fails(Transaction::new().with(resize("disk", BLOCKS - 1))).await;
        assert!(message.contains("node `backup` keeps"), "{message}");
    });
}

#[test]
fn a_disk_shrinks_below_a_backup_that_is_complete() {
    run(async {
        let (scene, backup) = backup_scene("full");
        // It copies by itself, to memory: others have their turn all the same.
        backup.run(&LocalGraph::of(&scene.cell), "backup");
        let message = scene.fails(Transaction::new().with(resize("disk", BLOCKS / 2))).await;
        assert!(message.contains("node `backup` keeps"), "{message}");
        while backup.keeps_old_bytes() {
            sleep_until(turn_now() + Duration::from_micros(100)).await;
        }
        scene.act(resize("disk", BLOCKS / 2)).await;
    });
}

/// Nor is another one put in its place, whoever is willing to mark that; what shows the same may come and go.
#[test]
fn a_disk_is_not_exchanged_below_a_backup_that_needs_it() {
    run(async {
        let (scene, backup) = backup_scene("none");
        backup.run(&LocalGraph::of(&scene.cell), "backup");
        scene.act(Action::AddNode(memory("other"))).await;
        let lead = |child: &str| {
            let (node, edge) = ("slow".into(), "file".into());
            let set = Action::SetChild { node, edge, child: Some(child.into()) };
            Transaction::new().with_unproven(set, Unproven::MarkWhole)
        };
        let message = scene.fails(lead("other")).await;
        assert!(message.contains("node `backup` keeps what was there"), "{message}");
        let replace = Action::Replace { node: "disk".into(), by: "other".into() };
        let replace = Transaction::new().with_unproven(replace, Unproven::MarkWhole);
        let message = scene.fails(replace).await;
        assert!(message.contains("node `backup` keeps what was there"), "{message}");
        scene.act(Action::AddNode(pass("filter", "disk"))).await;
        scene.all(lead("filter")).await;
        scene.all(lead("disk")).await;
        // With the node that keeps it goes what it kept.
        let remove = Action::RemoveFilter { node: "backup".into() };
        scene.all(lead("other").with(remove)).await;
    });
}
