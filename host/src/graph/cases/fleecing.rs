//! Copies before writes into an overlay of what is written: the overlay shows what was, and holds no more
//! than what has been written since.
//!
//! Who only writes the overlay does not mind that its backing is written; the others who use it say so by
//! themselves. A node that copies from it does so under a guard, which holds the guest's write off. Nothing
//! holds it off for a drive's read: one that has found nothing in the overlay can come to the backing after
//! the write. So a drive there shows whatever is there, or reads while nobody writes.

use std::sync::Arc;

use super::filter::TestFilter;
use super::schedule::{boxed, shuffled};
use super::stage::*;
use crate::error::ErrorKind;
use crate::graph::mutation::{Mutation, set};
use crate::graph::{ChildDecl, PermissionSet};

/// Blocks that guests write.
const USED: u64 = 4;

fn initial(block: u64) -> u8 {
    100 + block as u8
}

/// A disk that takes its time; drive `vda` on a filter that copies what it replaces to `fleece`.
fn fleecing(seed: u64) -> (Scene, Arc<TestFilter>) {
    let filter = Arc::new(TestFilter::pausing(6, seed).copying_before_writes());
    let slow = TestFilter::pausing(6, seed + 1);
    let scene = Scene::default()
        .disk("memory")
        .node("disk", slow, vec![ChildDecl::filtered("memory")])
        .overlay("fleece", "disk")
        .shared_node(
            "before",
            Arc::clone(&filter) as _,
            vec![readable("disk"), target("fleece", PermissionSet::WRITE)],
        )
        .drive("vda", "before");
    (scene, filter)
}

/// Fills the disk, and begins to keep what it shows.
async fn begin(stage: &Stage, filter: &TestFilter) {
    for block in 0..BLOCKS {
        stage.write("vda", block, initial(block)).await;
    }
    stage.clear().await;
    filter.before_write.as_ref().expect("it copies").arm();
}

#[test]
fn the_overlay_shows_what_was_while_the_guest_writes() {
    let (scene, filter) = fleecing(1);
    scene.showing("old", "fleece").run(|stage| async move {
        begin(&stage, &filter).await;
        for (block, byte) in [(2, 7), (5, 8), (2, 9)] {
            stage.write("vda", block, byte).await;
            assert_eq!(stage.byte("vda", block).await, byte);
        }
        for block in 0..BLOCKS {
            assert_eq!(stage.byte("old", block).await, initial(block));
        }
        // A copy into it is no proof of its view, nor is it one that its backing does not show: what stands
        // on a disk that is written is marked.
        let all = ["memory", "disk", "before", "vda", "fleece", "old"];
        assert_eq!(stage.dirty(), dirty(&all, &[2, 5]));
    });
}

/// Guests write, and a backup copies from the overlay, in an order by chance.
///
/// # Errors
/// What was copied is not what was, or somebody waits for ever.
fn back_up(seed: u64) -> Result<(), String> {
    let (scene, filter) = fleecing(seed);
    let scene = scene.disk("archive").job("backup", "fleece", "archive").showing("show", "archive");
    on_a_worker(async move {
        let stage = scene.stage();
        begin(&stage, &filter).await;
        let copied = stage.clone();
        let mut tasks = vec![boxed(async move {
            for block in 0..USED {
                let copy = copied.own("backup").copy(0, 1, at(block), CHANGED).await;
                copy.expect("a copy");
            }
        })];
        for guest in 0..3 {
            let stage = stage.clone();
            tasks.push(boxed(async move {
                for block in 0..USED {
                    stage.write("vda", (block + guest) % USED, guest as u8).await;
                }
            }));
        }
        let ended = shuffled(seed, tasks).await;
        ended.map_err(|left| format!("seed {seed}: {left} tasks wait for each other"))?;
        for block in 0..USED {
            let copied = stage.byte("show", block).await;
            if copied != initial(block) {
                return Err(format!("seed {seed}: block {block} was copied as {copied}"));
            }
        }
        Ok(())
    })
}

#[test]
fn a_backup_of_the_overlay_is_of_one_moment() {
    (0..150).try_for_each(back_up).unwrap_or_else(|wrong| panic!("{wrong}"));
}

/// The case is such that guards are needed.
#[test]
fn without_guards_a_backup_of_the_overlay_shows_later_writes() {
    set(Some(Mutation::TakesNoGuards));
    let ended = (0..150).try_for_each(back_up);
    set(None);
    let wrong = ended.expect_err("nothing was overtaken");
    assert!(wrong.contains("was copied as"), "{wrong}");
}

fn check_refused(scene: Scene, expect: &str) {
    let error = scene.refused();
    let fix = "give one of them a node of its own, or make it read-only";
    let expect = format!("{expect} does not share: {fix}");
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::InUse, expect));
}

/// Whoever minds what the overlay shows minds what shows through it.
#[test]
fn others_do_not_share_what_the_target_does() {
    let minds =
        "node `disk`: node `before` (edge `file`) uses w, which node `fleece` (edge `backing`)";
    check_refused(fleecing(1).0.drive("vdb", "fleece"), minds);
    check_refused(fleecing(1).0.drive_that("vdb", "fleece", false, false), minds);
    check_refused(fleecing(1).0.overlay("over", "fleece").drive("vdb", "over"), minds);
    check_refused(
        fleecing(1).0.drive("vdb", "disk"),
        "node `disk`: drive `vdb` (edge `root`) uses w, which node `before` (edge `file`)",
    );
    // Nobody else writes the target itself, nor a disk in which it is stored.
    check_refused(
        fleecing(1).0.job("other", "disk", "fleece"),
        "node `fleece`: node `before` (edge `to`) uses w, which node `other` (edge `to`)",
    );
    let stored = Scene::default().disk("disk").stored("box", "disk").node(
        "before",
        TestFilter::default().copying_before_writes(),
        vec![readable("disk"), target("box", PermissionSet::WRITE)],
    );
    check_refused(
        stored.drive("vda", "before"),
        "node `disk`: node `box` (edge `file`) uses w, which node `before` (edge `file`)",
    );
}
