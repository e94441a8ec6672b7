//! Graphs in which copies could wait for each other for ever, and graphs that look like it.

use std::sync::Arc;

use super::filter::TestFilter;
use super::schedule::{boxed, shuffled};
use super::stage::*;
use crate::error::ErrorKind;
use crate::graph::mutation::{Mutation, set};
use crate::graph::testing::JobNode;
use crate::graph::{Action, ChildDecl, NodeDecl, PermissionSet};
use crate::io::LocalFuture;

/// Lets graphs of any order be built while it lives.
pub(super) struct AnyOrder;

impl AnyOrder {
    pub(super) fn allowed() -> Self {
        set(Some(Mutation::AllowsAnyOrder));
        Self
    }
}

impl Drop for AnyOrder {
    fn drop(&mut self) {
        set(None);
    }
}

/// Two jobs, the target of each stored on the source of the other.
fn crossed() -> Scene {
    Scene::default()
        .disk("one")
        .disk("two")
        .stored("on-one", "one")
        .stored("on-two", "two")
        .job("first", "one", "on-two")
        .job("second", "two", "on-one")
}

/// Filters side by side, both with a copy-on-read filter above.
fn side_by_side() -> Scene {
    Scene::default()
        .disk("base")
        .overlay("disk", "base")
        .pass("left", "disk")
        .pass("right", "disk")
        .copy_on_read("copy-left", "left")
        .copy_on_read("copy-right", "right")
        .drive("vda", "copy-left")
        .showing("vdb", "copy-right")
}

fn check_refused(scene: Scene, expect: &str) {
    let error = scene.refused();
    assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::Invalid, expect));
}

#[test]
fn targets_on_each_others_sources_are_refused() {
    check_refused(
        crossed(),
        "copies could wait for each other for ever: while node `first` copies from `one` (edge \
         `from`), requests there come to `two` by edge `file` of node `on-two`; while node `second` \
         copies from `two` (edge `from`), requests there come to `one` by edge `file` of node \
         `on-one`: give one of them a target outside of what the other one copies, or let both copy \
         from one node",
    );
}

#[test]
fn a_target_on_its_own_source_is_refused() {
    check_refused(
        Scene::default().disk("disk").stored("store", "disk").job("backup", "disk", "store"),
        "copies of one node could wait for each other for ever: while node `backup` copies from \
         `disk` (edge `from`), requests there come to `disk` by edge `file` of node `store`: give it a \
         target outside of `disk`",
    );
}

#[test]
fn a_change_of_the_graph_is_refused_as_well() {
    let scene = Scene::default()
        .disk("one")
        .disk("two")
        .disk("three")
        .stored("on-one", "one")
        .stored("on-two", "two")
        .job("first", "one", "on-two")
        .job("second", "three", "on-one");
    scene.run(|stage| async move {
        let generation = stage.cell.load().generation();
        let (node, edge) = ("second".into(), "from".into());
        let cross = Action::SetChild { node, edge, child: Some("two".into()) };
        let error = stage.act(cross).await.expect_err("it would be crossed");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let text = error.to_string();
        for part in ["`first`", "`second`", "`on-one`", "`on-two`", "target outside"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(stage.cell.load().generation(), generation, "nothing was changed");
        let add = NodeDecl {
            name: "third".into(),
            driver: Arc::new(JobNode),
            children: vec![source("two"), target("three", PermissionSet::WRITE)],
        };
        stage.act(Action::AddNode(add)).await.expect("a line, not a ring");
    });
}

#[test]
fn what_stacks_is_not_refused() {
    let chain = |scene: Scene| scene.disk("base").overlay("mid", "base").overlay("top", "mid");
    let allowed = [
        // Copy-on-read over copy-on-read, directly and over an overlay.
        chain(Scene::default()).copy_on_read("a", "top").copy_on_read("b", "a").drive("vda", "b"),
        Scene::default()
            .disk("base")
            .overlay("mid", "base")
            .copy_on_read("lower", "mid")
            .overlay("top", "lower")
            .copy_on_read("upper", "top")
            .drive("vda", "upper"),
        // Two overlays of one base, both copying on read; with copy-on-read below them, too.
        Scene::default()
            .disk("ground")
            .overlay("base", "ground")
            .copy_on_read("shared", "base")
            .overlay("left", "shared")
            .overlay("right", "shared")
            .copy_on_read("copy-left", "left")
            .copy_on_read("copy-right", "right")
            .drive("vda", "copy-left")
            .drive("vdb", "copy-right"),
        side_by_side(),
        // Commits and streams of one chain.
        chain(Scene::default())
            .proven_job("commit", "top", "base")
            .stream("stream", "top")
            .drive("vda", "top"),
        chain(Scene::default()).proven_job("low", "mid", "base").drive("vda", "top"),
        // A backup to another disk, and one to an overlay of its own source.
        Scene::default()
            .disk("disk")
            .overlay("copy", "disk")
            .job("backup", "disk", "copy")
            .showing("vda", "disk"),
        // Each copies straight to the other's source: all that is needed is taken at once.
        Scene::default()
            .disk("one")
            .disk("two")
            .actor("first", vec![source("one"), target("two", PermissionSet::WRITE)])
            .actor("second", vec![source("two"), target("one", PermissionSet::WRITE)]),
    ];
    for (number, scene) in allowed.into_iter().enumerate() {
        if let Err(error) = scene.0.build() {
            panic!("graph {number}: {error}");
        }
    }
}

/// Whether two tasks are stuck in some order of many.
fn check_stuck(scene: fn() -> Scene, tasks: fn(&Stage) -> [LocalFuture; 2]) {
    let _any = AnyOrder::allowed();
    let stuck = (0..64).filter(|seed| {
        let (scene, seed) = (scene(), *seed);
        on_a_worker(async move {
            let stage = scene.stage();
            shuffled(seed, tasks(&stage).into()).await.is_err()
        })
    });
    assert!(stuck.count() > 0, "no order of the tasks is stuck");
}

/// Both copies have their guard, then each wants to enter what the other one guards.
#[test]
fn targets_on_each_others_sources_would_never_end() {
    // What is stored takes a while, so both are under way.
    let slow =
        || {
            let mut scene = crossed();
            for node in &mut scene.0.nodes {
                if node.name.starts_with("on-") {
                    node.children[0].node.insert_str(0, "slow-");
                }
            }
            scene
                .node("slow-one", TestFilter::pausing(8, 1), vec![ChildDecl::filtered("one")])
                .node("slow-two", TestFilter::pausing(8, 2), vec![ChildDecl::filtered("two")])
        };
    check_stuck(slow, |stage| {
        ["first", "second"].map(|node| {
            let stage = stage.clone();
            boxed(async move {
                stage.own(node).copy(0, 1, at(0), CHANGED).await.expect("a copy");
            })
        })
    });
}

/// What each of them writes is proven, and passes the view of the other.
#[test]
fn copying_filters_side_by_side_end() {
    for seed in 0..64 {
        let mut scene = side_by_side();
        for node in &mut scene.0.nodes {
            if matches!(&*node.name, "left" | "right") {
                node.driver = Arc::new(TestFilter::pausing(8, seed + node.name.len() as u64));
            }
        }
        scene.run(move |stage| async move {
            let read = |drive: &'static str| {
                let stage = stage.clone();
                boxed(async move {
                    stage.byte(drive, 0).await;
                })
            };
            let tasks = vec![read("vda"), read("vdb"), read("vda"), read("vdb")];
            shuffled(seed, tasks).await.unwrap_or_else(|left| panic!("seed {seed}: {left} stuck"));
            assert!(stage.dirty().is_empty(), "seed {seed}: {:?}", stage.dirty());
        });
    }
}

/// The same for parts of blocks: whole ones pass the view of the other.
#[test]
fn copies_of_parts_of_blocks_side_by_side_end() {
    for seed in 0..64 {
        let mut scene = side_by_side();
        for node in &mut scene.0.nodes {
            if matches!(&*node.name, "left" | "right") {
                let filter = TestFilter::pausing(8, seed + node.name.len() as u64);
                let block_bytes = Some(BLOCK as u32);
                node.driver = Arc::new(TestFilter { block_bytes, ..filter });
            }
        }
        scene.run(move |stage| async move {
            let copy = |node| {
                let own = stage.own(node);
                boxed(async move {
                    own.copy(0, 0, 100..300, UNCHANGED).await.expect("a copy");
                })
            };
            let tasks = vec![copy("copy-left"), copy("copy-right")];
            shuffled(seed, tasks).await.unwrap_or_else(|left| panic!("seed {seed}: {left} stuck"));
            assert!(stage.dirty().is_empty(), "seed {seed}: {:?}", stage.dirty());
        });
    }
}
