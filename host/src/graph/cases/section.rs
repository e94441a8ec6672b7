//! Formats that write to their containers while everything stands still: when they are resized, or give up
//! clusters.

use super::stage::*;
use crate::bitmap::Change;
use crate::graph::log_format::{CLUSTER, CLUSTERS_MAX, LogFormat};
use crate::graph::{
    Action, BitmapAction, BitmapRef, BitmapScope, ChildDecl, Role, Transaction, Unproven,
};
use crate::node::MemoryNode;

/// A format over a disk, in a container behind a filter, with clusters 2 and 5.
async fn scene() -> Stage {
    let file = MemoryNode::new(CLUSTER, 512).expect("a size");
    let scene = Scene::default().disk("base").node("file", file, vec![]).pass("filter", "file");
    let children = vec![ChildDecl::storage("filter"), ChildDecl::backing("base")];
    let format = LogFormat::new(SIZE, Some(Role::Backing));
    let stage = scene.node("image", format, children).drive("vda", "image").stage();
    stage.write("vda", 2, 1).await;
    stage.write("vda", 5, 2).await;
    stage.clear().await;
    stage
}

fn bitmap(node: &str) -> BitmapRef {
    BitmapRef::Named { scope: BitmapScope::Node(node.into()), name: "b".into() }
}

fn resize(clusters: u64) -> Action {
    Action::Resize { node: "image".into(), size_bytes: clusters * CLUSTER }
}

fn deallocate(blocks: std::ops::Range<u64>) -> Action {
    Action::Deallocate { node: "image".into(), range: blocks.start * BLOCK..blocks.end * BLOCK }
}

#[test]
fn what_a_resize_writes_is_marked_below() {
    on_a_worker(async {
        let stage = scene().await;
        stage.act(resize(BLOCKS - 3)).await.expect("a resize");
        assert_eq!(stage.dirty(), dirty(&["file", "filter"], &[0]), "all else was cut off");
        stage.clear().await;
        stage.act(resize(BLOCKS)).await.expect("a resize");
        let mut expect = dirty(&["file", "filter"], &[0]);
        expect.extend(dirty(&["image", "vda"], &[13, 14, 15]));
        assert_eq!(stage.dirty(), expect);
        assert_eq!(stage.byte("vda", 5).await, 2);
    });
}

#[test]
fn what_is_given_up_is_marked_below() {
    on_a_worker(async {
        let stage = scene().await;
        let change = Transaction::new().with_unproven(deallocate(0..3), Unproven::MarkWhole);
        stage.cell.transact(change).await.expect("a deallocation");
        let mut expect = dirty(&["file", "filter"], &[0]);
        expect.extend(dirty(&["image", "vda"], &[0, 1, 2]));
        assert_eq!(stage.dirty(), expect);
        assert_eq!((stage.byte("vda", 2).await, stage.byte("vda", 5).await), (0, 2));
    });
}

/// Whatever else the transaction does to these bitmaps: what was written then is in them.
#[test]
fn actions_on_bitmaps_beside_it_lose_nothing() {
    on_a_worker(async {
        for after in [false, true] {
            let stage = scene().await;
            stage.write("vda", 9, 3).await;
            let clear = || BitmapAction::Clear.of(bitmap("file"));
            let freeze = || Action::Checkpoint { bitmaps: vec![bitmap("filter")] };
            let change = match after {
                true => Transaction::new().with(resize(BLOCKS + 1)).with(clear()).with(freeze()),
                false => Transaction::new().with(clear()).with(freeze()).with(resize(BLOCKS + 1)),
            };
            stage.cell.transact(change).await.expect("a resize");
            assert_eq!(stage.dirty()["file"], [0], "cleared, and then written");
            let filter = stage.bitmap(&BitmapScope::Node("filter".into()));
            stage.cell.change_bitmap(&filter, &[Change::Abdicate]).await.expect("an end");
            assert_eq!(stage.dirty()["filter"], [0], "since it was frozen");
        }
    });
}

/// A driver that has written and then fails changes nothing but what it wrote.
#[test]
fn a_resize_that_fails_leaves_its_marks() {
    on_a_worker(async {
        let stage = scene().await;
        let change = Transaction::new()
            .with(resize(CLUSTERS_MAX + 1))
            .with(BitmapAction::Clear.of(bitmap("file")));
        let error = stage.cell.transact(change).await.map(drop).expect_err("too large");
        assert!(error.to_string().contains("it has no more entries"), "{error}");
        assert_eq!(stage.dirty()["file"], [0]);
        assert_eq!(stage.dirty()["filter"], [0]);
        assert_eq!(stage.drive("vda").info().expect("a medium").size_bytes, SIZE);
        assert_eq!((stage.byte("vda", 2).await, stage.byte("vda", 5).await), (1, 2));
    });
}
