//! Claims, true and false, on real graphs of memory nodes. Names of the kind `E17e` are those of
//! experiments with qemu-storage-daemon 10.0.2, whose answer each test states.

mod scene;
mod waiting;
mod zeros;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use scene::{
    BLOCK, CHANGED, Control, SIZE, Scene, Turnstile, UNCHANGED, at, chain, dirty, quiet, start,
};

use super::super::{ChildDecl, Cx, Role};
use super::OwnAccord;
use crate::bitmap::{Granularity, Granules};
use crate::error::{ErrorKind, Result};
use crate::filter::{CopyOnReadNode, Filter};
use crate::graph::testing::JobNode;
use crate::io::{Buf, BufMut};
use crate::limits::{COPY_TRIES, WATCHES_MAX, WATCHES_OF_NODE_MAX};
use crate::node::{MemoryNode, WriteFlags};

/// copy-on-read over a filter over the overlay, a filter above all: QSD marks 1 MiB for a read of 1 MiB.
#[test]
fn e17e_a_read_through_copy_on_read_dirties_nothing_through_any_filters() {
    let scene = Scene::default()
        .base("base")
        .overlay("top", "base")
        .pass("below", "top")
        .node("cor", CopyOnReadNode::default(), vec![CopyOnReadNode::child("below")])
        .pass("above", "cor")
        .drive("vda", "above");
    scene.run(|stage| async move {
        stage.write("vda", 1, 7).await.expect("a write");
        stage.clear().await;
        for block in 0..SIZE / BLOCK {
            let expect = if block == 1 { 7 } else { 0 };
            assert_eq!(stage.byte("vda", block).await, expect);
        }
        assert_eq!(stage.dirty(), BTreeMap::new());
        let extents = stage.drive("vda").block_status(0, SIZE).await.expect("a status");
        let kinds: Vec<_> = extents.iter().map(|extent| (extent.len, extent.kind)).collect();
        assert_eq!(kinds, [(SIZE, crate::node::ExtentKind::Data)], "all of it was copied up");
        let outcomes = stage.outcomes("cor");
        assert_eq!((outcomes.stale, outcomes.changed, outcomes.voided), (0, 0, 0));
        assert!(outcomes.proven > 0);
        stage.write("vda", 5, 9).await.expect("a write");
        let five: &[u64] = &[5];
        let all = ["above", "below", "cor", "top", "vda"].map(|name| (name, five));
        assert_eq!(stage.dirty(), dirty(&all), "a guest's write dirties all that show it");
    });
}

/// A filter that notes of writes whether somebody's own accord is behind them.
struct Notes(Arc<Mutex<Vec<bool>>>);

impl Filter for Notes {
    fn driver(&self) -> &'static str {
        "notes"
    }

    async fn write(&self, cx: Cx<'_>, at: u64, buf: Buf, flags: WriteFlags) -> Result<()> {
        self.0.lock().expect("no panic").push(cx.is_of_own_accord());
        cx.child(0)?.write(at, buf, flags).await
    }
}

#[test]
fn drivers_can_tell_a_job_from_a_guest() {
    let notes = Arc::<Mutex<Vec<bool>>>::default();
    let scene = Scene::default()
        .base("base")
        .node("notes", Notes(Arc::clone(&notes)), vec![ChildDecl::filtered("base")])
        .node("job", JobNode, vec![CopyOnReadNode::child("notes")])
        .drive("vda", "notes");
    scene.run(|stage| async move {
        stage.write("vda", 3, 7).await.expect("a write");
        stage.own("job").copy(0, 0, at(3), UNCHANGED).await.expect("a copy");
        stage.write("vda", 3, 8).await.expect("a write");
        assert_eq!(*notes.lock().expect("no panic"), [false, true, false]);
    });
}

#[test]
fn a_commit_dirties_the_base_what_lies_between_and_other_overlays() {
    chain().drive("vda", "top").run(|stage| async move {
        stage.write("vda", 3, 5).await.expect("a write");
        stage.clear().await;
        let copied = stage.own("commit").copy(0, 1, at(3), UNCHANGED).await.expect("a copy");
        assert_eq!(copied.bytes, BLOCK);
        let three: &[u64] = &[3];
        let changed = ["base", "mid", "other"].map(|name| (name, three));
        assert_eq!(
            stage.dirty(),
            dirty(&changed),
            "unchanged as applied to the section top → base"
        );
    });
}

/// As QEMU refuses it; there the check is edge by edge, and a commit below a filter as well.
#[test]
fn a_commit_that_alters_what_another_drive_shows_is_refused() {
    let scene = chain().drive("vda", "top").drive("vdb", "other");
    let error = scene.0.build().err().expect("vdb shows the base");
    assert_eq!(error.kind(), ErrorKind::InUse);
    let text = error.to_string();
    for part in ["commit", "`to`", "`from`", "vdb"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_copy_declared_changed_dirties_all_above_its_target() {
    let mut scene = Scene::default()
        .base("base")
        .overlay("mid", "base")
        .overlay("top", "mid")
        .overlay("other", "base")
        .actor("commit", "top", "base", None)
        .drive("vda", "top");
    // Who only shows minds no changes.
    (scene.0.drives[0].writable, scene.0.drives[0].only_shows) = (false, true);
    scene.run(|stage| async move {
        stage.own("commit").copy(0, 1, at(3), CHANGED).await.expect("a copy");
        let three: &[u64] = &[3];
        let changed = ["base", "mid", "other", "top", "vda"].map(|name| (name, three));
        assert_eq!(stage.dirty(), dirty(&changed));
        assert_eq!(stage.outcomes("commit").changed, 1);
    });
}

#[test]
fn a_claim_on_bytes_that_have_changed_since_writes_nothing() {
    chain().drive("vda", "top").run(|stage| async move {
        let own = stage.own("commit");
        let bytes = own.read_proven(0, at(2)).await.expect("a read");
        stage.write("vda", 2, 8).await.expect("a write");
        stage.clear().await;
        let refused = own.write_proven(1, &bytes).await.expect_err("stale");
        assert_eq!(refused.kind(), ErrorKind::Stale);
        assert_eq!(stage.dirty(), BTreeMap::new(), "nothing was written");
        assert_eq!(stage.byte("vda", 2).await, 8);
        let fresh = own.read_proven(0, at(2)).await.expect("a read");
        // Elsewhere is no matter.
        stage.write("vda", 4, 1).await.expect("a write");
        stage.clear().await;
        own.write_proven(1, &fresh).await.expect("it still shows them");
        let two: &[u64] = &[2];
        assert_eq!(stage.dirty(), dirty(&["base", "mid", "other"].map(|name| (name, two))));
        let outcomes = stage.outcomes("commit");
        assert_eq!((outcomes.proven, outcomes.stale), (1, 1));
    });
}

/// A write that was under way when the bytes were read may land before or after.
#[test]
fn a_change_in_flight_at_the_read_makes_it_stale() {
    let control = Arc::new(Control::default());
    let held = Arc::clone(&control);
    let scene = Scene::default()
        .base("base")
        .overlay("top", "base")
        .node("turnstile", Turnstile(held), vec![ChildDecl::filtered("top")])
        .job("commit", "turnstile", "base")
        .drive("vda", "turnstile");
    scene.run(|stage| async move {
        control.holds_writes.store(true, Ordering::Relaxed);
        let writer = stage.clone();
        let ended = start(async move { writer.write("vda", 2, 8).await.expect("a write") });
        quiet().await;
        assert!(!ended.get() && control.writes.load(Ordering::Relaxed) == 1);
        let own = stage.own("commit");
        let bytes = own.read_proven(0, at(2)).await.expect("a read");
        let refused = own.write_proven(1, &bytes).await.expect_err("stale");
        assert_eq!(refused.kind(), ErrorKind::Stale);
        assert!(!ended.get(), "what is stale does not wait for a guard to be refused");
        control.holds_writes.store(false, Ordering::Relaxed);
        quiet().await;
        assert!(ended.get());
        let refused = own.write_proven(1, &bytes).await.expect_err("stale");
        assert_eq!(refused.kind(), ErrorKind::Stale);
    });
}

#[test]
fn what_is_not_above_the_node_written_proves_nothing() {
    let scene = Scene::default().base("base").base("else").overlay("top", "base");
    scene.job("job", "else", "base").run(|stage| async move {
        let own = stage.own("job");
        let refused = own.copy(0, 1, at(0), UNCHANGED).await.expect_err("not proven");
        assert_eq!(refused.kind(), ErrorKind::NotPermitted);
        let bytes = own.read_proven(0, at(0)).await.expect("a read");
        own.write_proven(1, &bytes).await.expect_err("not proven");
        assert_eq!(stage.dirty(), BTreeMap::new());
        assert_eq!(stage.outcomes("job").not_proven, 2);
    });
}

#[test]
fn a_proven_write_that_fails_marks_what_it_exempted() {
    let control = Arc::new(Control::default());
    let failing = Arc::clone(&control);
    let scene = Scene::default()
        .node("base", MemoryNode::new(SIZE, 512).expect("a disk"), vec![])
        .node("turnstile", Turnstile(failing), vec![ChildDecl::filtered("base")])
        .overlay("top", "turnstile")
        .job("commit", "top", "turnstile")
        .drive("vda", "top");
    scene.run(|stage| async move {
        stage.write("vda", 6, 3).await.expect("a write");
        stage.clear().await;
        let own = stage.own("commit");
        let before = own.read_proven(0, at(6)).await.expect("a read");
        control.fail_writes.store(1, Ordering::Relaxed);
        own.copy(0, 1, at(6), UNCHANGED).await.expect_err("the write fails");
        let six: &[u64] = &[6];
        let all = ["base", "top", "turnstile", "vda"].map(|name| (name, six));
        assert_eq!(stage.dirty(), dirty(&all));
        let stale = own.write_proven(1, &before).await.expect_err("overlapping watches are stale");
        assert_eq!(stale.kind(), ErrorKind::Stale);
        assert_eq!(stage.outcomes("commit").voided, 1);
    });
}

/// A driver that fills what it writes from its second child, as an overlay does a block of which it has nothing.
struct Fills;

impl Filter for Fills {
    fn driver(&self) -> &'static str {
        "fills"
    }

    async fn write(&self, cx: Cx<'_>, at: u64, buf: Buf, flags: WriteFlags) -> Result<()> {
        cx.child(1)?.read(at, BufMut::new(buf.len())).await?;
        cx.child(0)?.write(at, buf, flags).await
    }
}

/// A copy to a node that reads, on the way, through a copy-on-read within what is copied: that has a proven write
/// made to what the copy has read. If it fails, what was read may have changed: the granule is not done.
#[test]
fn a_copy_that_spoils_what_it_has_read_is_made_again_or_is_stale() {
    for (lost, copied) in [(0, true), (1, true), (COPY_TRIES - 1, true), (COPY_TRIES, false)] {
        let control = Arc::new(Control::default());
        let turnstile = Turnstile(Arc::clone(&control));
        let filled_from =
            ChildDecl { name: "fill".into(), role: Role::Source, ..ChildDecl::filtered("cor") };
        let scene = Scene::default()
            .base("base")
            .overlay("disk", "base")
            .node("turnstile", turnstile, vec![ChildDecl::filtered("disk")])
            .node("cor", CopyOnReadNode::default(), vec![CopyOnReadNode::child("turnstile")])
            .base("bytes")
            .node("target", Fills, vec![ChildDecl::filtered("bytes"), filled_from])
            .actor("keep", "turnstile", "target", None);
        scene.run(move |stage| async move {
            let todo = Granularity::from_bytes(BLOCK).and_then(|it| Granules::new(SIZE, it));
            let todo = Arc::new(todo.expect("a set"));
            todo.mark(0, BLOCK);
            control.lose_writes.store(lost, Ordering::Relaxed);
            let ground = stage.own("keep").on_behalf().await.expect("an open gate");
            let copy = ground.copy_set(0, 1, at(0), CHANGED, Arc::clone(&todo)).await;
            assert_eq!(copy.is_ok(), copied, "{lost} lost: {copy:?}");
            assert_eq!(todo.next_dirty(0).is_none(), copied, "{lost} lost");
            if let Err(error) = copy {
                assert_eq!(error.kind(), ErrorKind::Stale);
            }
            assert_eq!(stage.outcomes("cor").voided, u64::from(lost));
        });
    }
}

/// Of any view in which little pieces are allocated, no more is listed than is asked for.
#[test]
fn block_status_above_a_node_stops_at_so_many_extents() {
    chain().drive("vda", "top").run(|stage| async move {
        for block in [1, 3, 4, 8] {
            stage.write("vda", block, 1).await.expect("a write");
        }
        let mut all = Vec::new();
        for most in [1, 3, 64] {
            let (mut at, mut found) = (0, Vec::new());
            while at < SIZE {
                let ground = stage.own("commit").on_behalf().await.expect("an open gate");
                let some = ground.block_status(0, Some(1), at..SIZE, most).await.expect("a status");
                assert!((1..=most).contains(&some.len()), "{} of {most}", some.len());
                assert_eq!(some[0].offset, at);
                at = some.last().map_or(SIZE, |last| last.offset + last.len);
                found.extend(some.into_iter().map(|extent| (extent.offset, extent.kind)));
            }
            all.push(found);
        }
        let offsets: Vec<u64> = all[2].iter().map(|(offset, _)| offset / BLOCK).collect();
        assert_eq!(offsets, [0, 1, 2, 3, 5, 8, 9]);
        assert!(all.iter().all(|found| *found == all[2]), "{all:?}");
    });
}

/// However much one node keeps of what it has read, others can prove what they read.
#[test]
fn a_node_that_keeps_what_it_reads_leaves_watches_to_others() {
    let scene = Scene::default().base("base").overlay("top", "base");
    let scene = scene.job("greedy", "top", "base").job("commit", "top", "base");
    scene.run(|stage| async move {
        let (greedy, commit) = (stage.own("greedy"), stage.own("commit"));
        let mut kept = Vec::new();
        for _ in 0..WATCHES_MAX + 1 {
            kept.push(greedy.read_proven(0, at(0)).await.expect("a read"));
        }
        let is_watched = |bytes: &&super::ProvenBuf| bytes.is_watched();
        assert_eq!(kept.iter().filter(is_watched).count(), WATCHES_OF_NODE_MAX);
        let bytes = commit.read_proven(0, at(1)).await.expect("a read");
        commit.write_proven(1, &bytes).await.expect("a proof");
        let last = kept.pop().expect("one");
        let refused = greedy.write_proven(1, &last).await.expect_err("nobody watched it");
        assert_eq!(refused.kind(), ErrorKind::NotPermitted);
        drop(kept);
        let again = greedy.read_proven(0, at(0)).await.expect("a read");
        greedy.write_proven(1, &again).await.expect("a proof");
    });
}

#[test]
fn without_grants_a_node_does_nothing_of_its_own_accord() {
    let scene = Scene::default().base("base").pass("pass", "base").drive("vda", "pass");
    scene.run(|stage| async move {
        let refused = OwnAccord::open(&stage.graph, "pass").err().map(|error| error.kind());
        assert_eq!(refused, Some(ErrorKind::NotPermitted));
        let unknown = OwnAccord::open(&stage.graph, "none").err().map(|error| error.kind());
        assert_eq!(unknown, Some(ErrorKind::NotFound));
    });
}
