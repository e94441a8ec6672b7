//! Commits, snapshots and pivots. Names of the kind `E3` are those of experiments with qemu-storage-daemon
//! 10.0.2 (QSD), whose answer each test states. There a bitmap stays with its node when the drive goes on
//! elsewhere, and silently stops recording; here a drive's bitmap goes with the drive.
//!
//! E4, E4b and E16b, an export that shows a node's bitmap across a pivot, are tests of `export::nbd`.
//!
//! Not to be said with native nodes:
//! - E2b and E5 with nothing marked: that a commit or mirror has nothing left to copy is evidence that a job
//!   keeps from its beginning on. Here such a pivot is refused, or marks whole.
//! - E5b, E5c with bitmaps that images keep, E8, E11: they need qcow2.
//! - E6, E12, E14, E15: backup jobs and the commands of transactions.

use std::collections::BTreeMap;

use super::stage::*;
use crate::bitmap::Use;
use crate::error::ErrorKind;
use crate::graph::{
    Action, Applied, BitmapAction, BitmapScope, ChildDecl, Event, NodeDecl, Transaction, Unproven,
};
use crate::node::MemoryNode;

fn chain() -> Scene {
    let chain = Scene::default().disk("base").overlay("mid", "base").overlay("top", "mid");
    chain.filled("base").filled("mid").filled("top")
}

fn snapshot(name: &str, on: &str) -> Action {
    let driver = std::sync::Arc::new(MemoryNode::overlay(SIZE, 512).expect("a disk"));
    let overlay = NodeDecl { name: name.into(), driver, children: vec![ChildDecl::backing(on)] };
    Action::Snapshot { drive: "vda".into(), overlay }
}

fn root(node: &str) -> Action {
    Action::SetRoot { drive: "vda".into(), node: node.into() }
}

fn remove(node: &str) -> Action {
    Action::RemoveNode { node: node.into() }
}

fn node(name: &str) -> BitmapScope {
    BitmapScope::Node(name.into())
}

/// A job goes, and the drive shows `to`, which nothing proves to be the same.
async fn pivot(stage: &Stage, job: &str, to: &str) -> Applied {
    let refused = Transaction::new().with(remove(job)).with(root(to));
    let error = stage.cell.transact(refused).await.expect_err("nothing proves it");
    assert_eq!(error.kind(), ErrorKind::NotPermitted, "{error}");
    let pivot = Transaction::new().with(remove(job)).with_unproven(root(to), Unproven::MarkWhole);
    stage.cell.transact(pivot).await.expect("a pivot")
}

fn all_blocks() -> Vec<u64> {
    (0..BLOCKS).collect()
}

/// QSD: as here.
#[test]
fn e2a_a_commit_below_the_top_dirties_the_base_alone() {
    chain().run(|stage| async move {
        stage.fill("mid", 4, 7).await;
        stage.open("vda", "top", true).await;
        let commit = Scene::default().proven_job("commit", "mid", "base").0.nodes.remove(0);
        stage.act(Action::AddNode(commit)).await.expect("a job");
        stage.own("commit").copy(0, 1, at(4), UNCHANGED).await.expect("a commit");
        assert_eq!(stage.dirty(), dirty(&["base"], &[4]));
        assert_eq!(stage.byte("vda", 4).await, 7);
        stage.act(remove("commit")).await.expect("the job has ended");
    });
}

/// QSD: the bitmap of the top has what was written before the pivot, and nothing of what is written
/// after it; the base's has both and all that was committed.
#[test]
fn e2b_an_active_commit_keeps_the_drives_bitmap() {
    chain().run(|stage| async move {
        stage.fill("top", 2, 7).await;
        stage.open("vda", "top", true).await;
        let commit = Scene::default().proven_job("commit", "top", "base").0.nodes.remove(0);
        stage.act(Action::AddNode(commit)).await.expect("a job");
        let own = stage.own("commit");
        own.copy(0, 1, 0..SIZE, UNCHANGED).await.expect("a commit");
        stage.write("vda", 3, 8).await;
        own.copy(0, 1, at(3), UNCHANGED).await.expect("a commit");
        let mut expected = dirty(&["top", "vda"], &[3]);
        expected.extend(dirty(&["base", "mid"], &all_blocks()));
        assert_eq!(stage.dirty(), expected, "ready");
        let applied = pivot(&stage, "commit", "base").await;
        let whole = |event: &Event| match event {
            Event::BitmapMarkedWhole { scope, .. } => Some(scope.to_string()),
            _ => None,
        };
        let whole: Vec<String> = applied.events.iter().filter_map(whole).collect();
        assert_eq!(whole, ["drive `vda`"], "never clean on trust");
        assert_eq!((stage.byte("vda", 2).await, stage.byte("vda", 3).await), (7, 8));
        stage.clear().await;
        stage.write("vda", 9, 8).await;
        // The others still stand on the base.
        assert_eq!(stage.dirty(), dirty(&["base", "mid", "top", "vda"], &[9]));
    });
}

/// QSD: the bitmap stays with the old top, which nothing writes to any more: what the guest writes from
/// now on is recorded nowhere.
#[test]
fn e3_a_drives_bitmap_goes_on_after_a_snapshot() {
    Scene::default().disk("disk").drive("vda", "disk").run(|stage| async move {
        stage.write("vda", 1, 7).await;
        stage.act(snapshot("snap", "disk")).await.expect("a snapshot");
        stage.write("vda", 6, 7).await;
        let mut expected = dirty(&["disk"], &[1]);
        expected.extend(dirty(&["vda"], &[1, 6]));
        assert_eq!(stage.dirty(), expected);
    });
}

/// QSD: the bitmap of the top gets the range that is committed, as here; that of the drive, if somebody had
/// put one on the overlay, dies with it.
#[test]
fn e3c_what_is_committed_into_the_snapshot_is_new_there_and_not_to_the_drive() {
    Scene::default().disk("disk").drive("vda", "disk").run(|stage| async move {
        stage.act(snapshot("snap", "disk")).await.expect("a snapshot");
        stage.write("vda", 6, 7).await;
        assert_eq!(stage.dirty(), dirty(&["vda"], &[6]));
        let commit = Scene::default().proven_job("commit", "snap", "disk").0.nodes.remove(0);
        stage.act(Action::AddNode(commit)).await.expect("a job");
        stage.own("commit").copy(0, 1, at(6), UNCHANGED).await.expect("a commit");
        assert_eq!(stage.dirty(), dirty(&["disk", "vda"], &[6]));
        stage.clear().await;
        // What the overlay has is in the disk now, but nobody has kept an account of it.
        pivot(&stage, "commit", "disk").await;
        assert_eq!(stage.dirty(), dirty(&["vda"], &all_blocks()));
        stage.act(remove("snap")).await.expect("nobody uses it");
        assert_eq!(stage.byte("vda", 6).await, 7);
    });
}

/// QSD: the bitmap of the source stays where it is; what is written to the target is recorded there, if
/// somebody thought of it in time.
#[test]
fn e5_a_drives_bitmap_goes_on_after_a_mirror() {
    let scene = Scene::default().disk("disk").disk("copy").filled("disk");
    scene.run(|stage| async move {
        stage.fill("disk", 2, 7).await;
        stage.open("vda", "disk", true).await;
        let mirror = Scene::default().job("mirror", "disk", "copy").0.nodes.remove(0);
        stage.act(Action::AddNode(mirror)).await.expect("a job");
        stage.own("mirror").copy(0, 1, 0..SIZE, CHANGED).await.expect("a mirror");
        assert_eq!(stage.dirty(), dirty(&["copy"], &all_blocks()), "the target's own view");
        pivot(&stage, "mirror", "copy").await;
        assert_eq!(stage.dirty(), dirty(&["copy", "vda"], &all_blocks()));
        assert_eq!(stage.byte("vda", 2).await, 7);
        stage.clear().await;
        stage.write("vda", 5, 7).await;
        assert_eq!(stage.dirty(), dirty(&["copy", "vda"], &[5]));
    });
}

/// E4, E4b, E5c. QSD: a node whose bitmap an export shows is deleted, and the daemon aborts; or a node
/// that it opened by itself is closed, and its bitmap is gone without a word.
#[test]
fn e4_a_node_with_a_bitmap_in_use_stays_and_nothing_aborts() {
    Scene::default().disk("disk").disk("copy").drive("vda", "disk").run(|stage| async move {
        let bitmap = stage.bitmap(&node("disk"));
        let user = bitmap.use_by("export `vda`".into(), Use::Read).expect("a reader");
        let pivot = Transaction::new().with_unproven(root("copy"), Unproven::MarkWhole);
        stage.cell.transact(pivot).await.expect("a pivot");
        let error = stage.act(remove("disk")).await.expect_err("it has a bitmap");
        assert_eq!(
            (error.kind(), &*error.to_string()),
            (
                ErrorKind::InUse,
                "remove node `disk`: node `disk` has the bitmaps `b`: remove them first"
            )
        );
        let error = stage.act(BitmapAction::Remove.of(&bitmap)).await.expect_err("it is shown");
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(error.to_string().contains("export `vda`"), "{error}");
        drop(user);
        stage.act(BitmapAction::Remove.of(&bitmap)).await.expect("nobody uses it");
        stage.act(remove("disk")).await.expect("nor the node");
        assert_eq!(stage.dirty(), dirty(&["vda"], &all_blocks()));
    });
}

/// E5b. QSD: a stream down to the base leaves the middle out, clean and right. Here, too: what the overlay has got
/// is looked at, whoever has copied it.
#[test]
fn e5b_a_stream_to_the_base_then_leaves_the_middle_out() {
    chain().stream("stream", "top").run(|stage| async move {
        stage.fill("base", 1, 6).await;
        stage.fill("mid", 4, 7).await;
        stage.open("vda", "top", true).await;
        let (node, edge) = ("top".to_owned(), "backing".to_owned());
        let rebase = || Action::SetChild {
            node: node.clone(),
            edge: edge.clone(),
            child: Some("base".into()),
        };
        let error = stage.act(rebase()).await.expect_err("nothing proves it");
        assert_eq!(error.kind(), ErrorKind::NotPermitted);
        stage.own("stream").copy(0, 0, at(4), UP).await.expect("a stream");
        stage.act(rebase()).await.expect("a shorter chain");
        assert_eq!(stage.dirty(), BTreeMap::new());
        assert_eq!((stage.byte("vda", 1).await, stage.byte("vda", 4).await), (6, 7));
    });
}
