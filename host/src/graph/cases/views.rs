//! Copies within one view: streams and copy-on-read. Names of the kind `E18` are those of experiments with
//! qemu-storage-daemon 10.0.2 (QSD), whose answer each test states. There a bitmap records every write that
//! passes its node; here a copy into the view that it was read from dirties nothing, whatever lies between.
//!
//! E17e is a test of `evidence`. What QSD says of the files below (`pf2`) has no like among nodes without
//! files.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::filter::TestFilter;
use super::schedule::{boxed, shuffled};
use super::stage::*;
use crate::graph::{ChildDecl, PermissionSet};
use crate::node::{ExtentKind, RawNode};

/// Blocks with bytes: four of the base and another one, one of the middle, one of the top.
const DATA: [(&str, u64); 7] =
    [("base", 0), ("base", 1), ("base", 2), ("base", 3), ("base", 8), ("mid", 4), ("top", 12)];

/// base ← mid ← top.
fn chain() -> Scene {
    let chain = Scene::default().disk("base").overlay("mid", "base").overlay("top", "mid");
    chain.filled("base").filled("mid").filled("top")
}

async fn fill(stage: &Stage) {
    for (node, block) in DATA {
        stage.fill(node, block, 1 + block as u8).await;
    }
}

async fn check_bytes(stage: &Stage) {
    for block in 0..BLOCKS {
        let has = DATA.iter().any(|(_, of)| *of == block);
        assert_eq!(stage.byte("vda", block).await, if has { 1 + block as u8 } else { 0 });
    }
}

/// Streams at the node of job `stream`; `beside` is the class of the top: what a guest's write dirties.
fn check_stream(scene: Scene, root: &'static str, beside: &'static [&'static str]) {
    scene.run(move |stage| async move {
        fill(&stage).await;
        stage.open("vda", root, true).await;
        let copied = stage.own("stream").copy(0, 0, 0..SIZE, UP).await.expect("a stream");
        assert_eq!(copied.bytes, SIZE - BLOCK, "all but what the top had");
        assert_eq!(stage.dirty(), BTreeMap::new());
        check_bytes(&stage).await;
        let extents = stage.drive("vda").block_status(0, SIZE).await.expect("a status");
        assert!(extents.iter().all(|extent| extent.kind == ExtentKind::Data), "{extents:?}");
        stage.write("vda", 5, 9).await;
        assert_eq!(stage.dirty(), dirty(beside, &[5]), "a guest's write");
    });
}

/// QSD: right (0), as the copy goes round the node's own path.
#[test]
fn e1a_a_stream_into_the_top() {
    check_stream(chain().stream("stream", "top"), "top", &["top", "vda"]);
}

/// QSD: with a writable export on the filter a stream there is refused ("unshared by stream job");
/// without, it dirties all it copies: 6 MiB.
#[test]
fn e18_a_stream_through_a_filter_under_a_writable_drive() {
    let scene = chain().pass("throttle", "top").stream("stream", "throttle");
    check_stream(scene, "throttle", &["throttle", "top", "vda"]);
}

/// QSD: right (0): its own filter goes below.
#[test]
fn e17a_a_stream_below_a_filter() {
    let scene = chain().pass("throttle", "top").stream("stream", "top");
    check_stream(scene, "throttle", &["throttle", "top", "vda"]);
}

/// QSD: right (0).
#[test]
fn e17c_a_stream_over_a_filter_between_top_and_backing() {
    let scene = Scene::default()
        .disk("base")
        .overlay("mid", "base")
        .pass("throttle", "mid")
        .overlay("top", "throttle")
        .filled("base")
        .filled("mid")
        .filled("top")
        .stream("stream", "top");
    check_stream(scene, "top", &["top", "vda"]);
}

/// QSD: 6 MiB of the top dirty; the filter itself copies nothing, as here.
#[test]
fn e17d_a_stream_through_copy_before_write() {
    let filter = Arc::new(TestFilter::default().copying_before_writes());
    let kept = Arc::clone(&filter);
    let children = vec![readable("top"), target("copies", PermissionSet::WRITE)];
    let scene =
        chain().disk("copies").shared_node("before", kept, children).stream("stream", "before");
    scene.run(|stage| async move {
        fill(&stage).await;
        stage.open("vda", "before", true).await;
        filter.before_write.as_ref().expect("it copies").arm();
        stage.own("stream").copy(0, 0, 0..SIZE, UP).await.expect("a stream");
        assert_eq!(stage.dirty(), BTreeMap::new(), "nor has anything come to the copies");
        check_bytes(&stage).await;
        stage.write("vda", 4, 9).await;
        assert_eq!(stage.dirty(), dirty(&["before", "copies", "top", "vda"], &[4]));
    });
}

/// QSD: the job "completes" at once and has copied nothing: `raw` is no filter there.
#[test]
fn e1b2_a_stream_through_a_whole_raw_node() {
    let raw = RawNode::new(0, None);
    let scene = chain().node("raw", raw, vec![ChildDecl::filtered("top")]).stream("stream", "raw");
    check_stream(scene, "raw", &["raw", "top", "vda"]);
}

/// Reads all through a stack with copy-on-read, which copies all of it up.
fn check_reads(stack: fn(Scene) -> Scene, root: &'static str, writable: bool) {
    stack(chain()).run(move |stage| async move {
        fill(&stage).await;
        stage.open("vda", root, writable).await;
        check_bytes(&stage).await;
        assert_eq!(stage.dirty(), BTreeMap::new());
        let extents = stage.drive("vda").block_status(0, SIZE).await.expect("a status");
        assert!(extents.iter().all(|extent| extent.kind == ExtentKind::Data), "{extents:?}");
    });
}

/// QSD: right (0).
#[test]
fn e1c_reads_through_copy_on_read() {
    check_reads(|chain| chain.copy_on_read("cor", "top"), "cor", true);
    check_reads(|chain| chain.copy_on_read("cor", "top"), "cor", false);
}

/// QSD: 6 MiB of the top dirty.
#[test]
fn e1d_reads_through_copy_on_read_over_a_filter() {
    check_reads(|chain| chain.pass("throttle", "top").copy_on_read("cor", "throttle"), "cor", true);
}

/// QSD: 6 MiB of the top dirty.
#[test]
fn e1e_reads_through_copy_on_read_over_copy_on_read() {
    let stack = |chain: Scene| chain.copy_on_read("lower", "top").copy_on_read("upper", "lower");
    check_reads(stack, "upper", true);
}

/// E18 with a guest that writes meanwhile, in many orders: dirty is what it wrote, no more and no less.
#[test]
fn e18_a_stream_through_a_filter_under_load() {
    for seed in 0..100 {
        let slow = TestFilter::pausing(5, seed);
        let scene =
            chain().node("slow", slow, vec![ChildDecl::filtered("top")]).stream("stream", "slow");
        scene.run(move |stage| async move {
            fill(&stage).await;
            stage.open("vda", "slow", true).await;
            let (stream, guest) = (stage.clone(), stage.clone());
            let tasks = vec![
                boxed(async move {
                    for block in 0..6 {
                        stream.own("stream").copy(0, 0, at(block), UP).await.expect("a stream");
                    }
                }),
                boxed(async move {
                    for block in [0, 4, 5] {
                        guest.write("vda", block, 50 + block as u8).await;
                    }
                }),
            ];
            shuffled(seed, tasks).await.unwrap_or_else(|_| panic!("seed {seed}: stuck"));
            let class = ["slow", "top", "vda"];
            assert_eq!(stage.dirty(), dirty(&class, &[0, 4, 5]), "seed {seed}");
            for block in [0, 4, 5] {
                assert_eq!(stage.byte("vda", block).await, 50 + block as u8, "seed {seed}");
            }
        });
    }
}

/// A copy that changes nothing above changes what the view is stored in: that is written for good.
#[test]
fn a_copy_under_a_read_only_drive_comes_through_storage() {
    let scene = Scene::default().disk("file").stored("image", "file").stream("stream", "image");
    scene.showing("vda", "image").run(|stage| async move {
        stage.own("stream").copy(0, 0, at(3), UNCHANGED).await.expect("a copy");
        assert_eq!(stage.dirty(), dirty(&["file"], &[3]));
    });
}
