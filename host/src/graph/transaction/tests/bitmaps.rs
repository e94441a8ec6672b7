//! Bitmap actions, with graph changes and each other, wholly or not at all.

use std::sync::Arc;

use super::load::Load;
use super::scene::*;
use crate::bitmap::{BitmapName, BitmapState, Granularity, Use};
use crate::graph::transaction::{
    Action, BitmapAction, BitmapRef, Event, Transaction, Unproven, Which,
};
use crate::graph::{BitmapDecl, BitmapScope};

const BLOCKS: u64 = SIZE / BLOCK as u64;

/// Drive `d` with bitmap `b` over `disk` with `n`; drive `e` with `b` and `c` over `spare`.
fn scene() -> Scene {
    Scene::new(
        vec![memory("disk"), memory("spare")],
        vec![drive("d", "disk"), drive("e", "spare")],
        vec![
            bitmap(of_drive("d"), "b"),
            bitmap(of_node("disk"), "n"),
            bitmap(of_drive("e"), "b"),
            bitmap(of_drive("e"), "c"),
        ],
    )
}

fn d(name: &str) -> BitmapRef {
    BitmapRef::of_drive("d", name)
}

fn e(name: &str) -> BitmapRef {
    BitmapRef::of_drive("e", name)
}

fn name(name: &str) -> BitmapName {
    BitmapName::new(name).expect("a name")
}

fn add(scope: BitmapScope, name: &str) -> Action {
    Action::AddBitmap(bitmap(scope, name))
}

fn disabled(scope: BitmapScope, name: &str) -> Action {
    Action::AddBitmap(BitmapDecl { enabled: false, ..bitmap(scope, name) })
}

fn all(actions: impl IntoIterator<Item = Action>) -> Transaction {
    actions.into_iter().fold(Transaction::new(), Transaction::with)
}

fn snapshot(drive: &str, name: &str, on: &str) -> Action {
    Action::Snapshot { drive: drive.into(), overlay: overlay(name, on) }
}

fn dirty(scene: &Scene, drive: &str, name: &str) -> Vec<u64> {
    dirty_blocks(&scene.bitmap(&of_drive(drive), name))
}

/// What QEMU's users do before a backup, with a snapshot: none of it is seen without the rest.
#[test]
fn a_snapshot_and_bitmaps_are_one_instant() {
    run(async {
        let nodes = vec![lag("slow", "disk", 50), memory("disk")];
        let scene = Scene::new(nodes, vec![drive("d", "slow")], vec![bitmap(of_drive("d"), "b")]);
        let load = Load::start(&scene, "d", BLOCKS);
        load.goes_on(20).await;
        let transaction = all([
            snapshot("d", "top", "slow"),
            add(of_drive("d"), "since"),
            add(of_node("top"), "own"),
            BitmapAction::Disable.of(d("b")),
        ]);
        let applied = scene.all(transaction).await;
        assert!(!marked_whole(&applied.events));
        let added: Vec<_> = applied.added.iter().map(|bitmap| bitmap.name().to_string()).collect();
        assert_eq!(added, ["since", "own"]);
        let before = dirty(&scene, "d", "b");
        load.goes_on(40).await;
        load.end().await;
        assert_eq!(dirty(&scene, "d", "b"), before, "it records no more");
        // What the overlay has is what was written since; and the two bitmaps know the same.
        let since = dirty(&scene, "d", "since");
        assert_eq!(dirty_blocks(&scene.bitmap(&of_node("top"), "own")), since);
        let extents = scene.drive("d").block_status(0, SIZE).await.expect("a status");
        let blocks = |extent: &crate::node::Extent| {
            extent.offset / BLOCK as u64..(extent.offset + extent.len) / BLOCK as u64
        };
        let data = |extent: &&crate::node::Extent| extent.kind == crate::node::ExtentKind::Data;
        let written: Vec<u64> = extents.iter().filter(data).flat_map(blocks).collect();
        assert_eq!(written, since);
    });
}

#[test]
fn actions_on_one_bitmap_take_effect_in_order() {
    run(async {
        let scene = scene();
        scene.write("d", 1, 1).await;
        scene.write("e", 2, 1).await;
        // Dirty in one, merged before it is cleared; the other's clear comes before the merge.
        let transaction = all([
            BitmapAction::merge([d("b"), e("b")]).of(e("c")),
            BitmapAction::Clear.of(e("b")),
            BitmapAction::merge([e("b")]).of(d("b")),
            BitmapAction::Clear.of(d("b")),
            BitmapAction::CopyOf(e("c")).of(d("b")),
            BitmapAction::Freeze.of(d("b")),
            BitmapAction::Rename(name("kept")).of(d("b")),
            BitmapAction::Disable.of(e("c")),
            BitmapAction::Clear.of(e("c")),
            BitmapAction::Enable.of(e("c")),
        ]);
        scene.all(transaction).await;
        assert_eq!((dirty(&scene, "e", "b"), dirty(&scene, "e", "c")), (vec![], vec![]));
        assert_eq!(dirty(&scene, "d", "kept"), [1, 2]);
        let kept = scene.bitmap(&of_drive("d"), "kept");
        assert_eq!((kept.state(), kept.read().is_recording()), (BitmapState::Frozen, true));
        scene.write("d", 3, 1).await;
        scene.write("e", 4, 1).await;
        scene.all(all([BitmapAction::Abdicate.of(&kept), BitmapAction::Disable.of(&kept)])).await;
        assert_eq!((dirty(&scene, "d", "kept"), dirty(&scene, "e", "c")), (vec![3], vec![4]));
        scene.all(all([BitmapAction::Freeze.of(&kept), BitmapAction::MergeBack.of(&kept)])).await;
        assert_eq!((kept.state(), kept.count()), (BitmapState::Disabled, 1));
    });
}

/// Drives, nodes and bitmaps that an earlier action of the same transaction makes, renames or removes.
#[test]
fn actions_see_what_those_before_them_have_done() {
    run(async {
        let scene = scene();
        scene.write("d", 5, 1).await;
        let coarse = Granularity::from_bytes(4096).expect("a granularity");
        let transaction = all([
            Action::AddNode(memory("new")),
            Action::AddDrive(drive("f", "new")),
            Action::AddBitmap(BitmapDecl { granularity: coarse, ..bitmap(of_drive("f"), "x") }),
            BitmapAction::merge([d("b")]).of(BitmapRef::of_drive("f", "x")),
            // Names change hands.
            BitmapAction::Rename(name("b2")).of(e("b")),
            BitmapAction::Rename(name("b")).of(e("c")),
            add(of_drive("e"), "c"),
            // A filter's bitmap goes with its view, and is found there.
            Action::InsertAbove {
                node: "disk".into(),
                filter: pass("g", "disk"),
                users: Which::All,
            },
            add(of_node("g"), "mine"),
            Action::RemoveFilter { node: "g".into() },
            BitmapAction::Disable.of(BitmapRef::of_node("disk", "mine")),
            // Here and gone.
            add(of_drive("d"), "short"),
            BitmapAction::merge([d("short")]).of(d("b")),
            BitmapAction::Remove.of(d("short")),
            BitmapAction::Remove.of(BitmapRef::of_node("disk", "n")),
        ]);
        let old = (scene.bitmap(&of_drive("e"), "b"), scene.bitmap(&of_drive("e"), "c"));
        let applied = scene.all(transaction).await;
        assert_eq!(dirty(&scene, "f", "x"), (0..8).collect::<Vec<u64>>());
        scene.write("f", 20, 1).await;
        assert_eq!(
            dirty(&scene, "f", "x"),
            [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23]
        );
        let new = (scene.bitmap(&of_drive("e"), "b2"), scene.bitmap(&of_drive("e"), "b"));
        assert!(Arc::ptr_eq(&old.0, &new.0) && Arc::ptr_eq(&old.1, &new.1));
        scene.write("e", 1, 1).await;
        assert_eq!(dirty(&scene, "e", "c"), [1]);
        let mine = scene.bitmap(&of_node("disk"), "mine");
        assert_eq!(
            (mine.state(), mine.size_bytes(), mine.count()),
            (BitmapState::Disabled, SIZE, 0)
        );
        let graph = scene.cell.load();
        assert!(graph.find_bitmap(&of_drive("d"), "short").is_none());
        assert!(graph.find_bitmap(&of_node("disk"), "n").is_none());
        let added: Vec<_> = applied.added.iter().map(|bitmap| bitmap.name().to_string()).collect();
        assert_eq!(added, ["x", "c", "mine"]);
    });
}

/// A node with bitmaps stays, a node whose bitmaps go first does not.
#[test]
fn bitmaps_go_before_what_they_are_of() {
    run(async {
        let scene = scene();
        let removal = |scene: &Scene| {
            let bitmaps = [e("b"), BitmapRef::This(scene.bitmap(&of_drive("e"), "c"))];
            bitmaps.map(|bitmap| BitmapAction::Remove.of(bitmap))
        };
        let gone = || {
            [Action::RemoveDrive { drive: "e".into() }, Action::RemoveNode { node: "spare".into() }]
        };
        let message = scene.fails(all(gone())).await;
        assert!(
            message.contains("drive `e` has the bitmaps `b`, `c`: remove them first"),
            "{message}"
        );
        let added =
            all([add(of_node("spare"), "new")].into_iter().chain(removal(&scene)).chain(gone()));
        let message = scene.fails(added).await;
        assert!(message.contains("node `spare` has the bitmaps `new`"), "{message}");
        let reader = scene.bitmap(&of_drive("e"), "b").use_by("export `x`".into(), Use::Read);
        let reader = reader.expect("a use");
        let message = scene.fails(all(removal(&scene).into_iter().chain(gone()))).await;
        assert_eq!(
            message,
            "action 1 (remove bitmap `b` of drive `e`): bitmap `b` is in use by export `x`: end that first"
        );
        drop(reader);
        scene.all(all(removal(&scene).into_iter().chain(gone()))).await;
        assert_eq!(scene.cell.load().drives().len(), 1);
    });
}

#[test]
fn what_cannot_be_done_undoes_all_of_it() {
    run(async {
        let scene = scene();
        scene.write("d", 1, 1).await;
        scene.write("e", 2, 1).await;
        scene.cell.add_bitmap(bitmap(of_drive("e"), "frozen")).await.expect("a bitmap");
        scene.all(all([BitmapAction::Freeze.of(e("frozen"))])).await;
        scene.all(all([disabled(of_drive("e"), "off")])).await;
        let removed = scene.cell.add_bitmap(bitmap(of_drive("e"), "gone")).await.expect("a bitmap");
        scene.all(all([BitmapAction::Remove.of(&removed)])).await;
        let check = async |bad: Action, parts: &[&str]| {
            let good = [
                snapshot("d", "top", "disk"),
                add(of_node("top"), "t"),
                Action::Checkpoint { bitmaps: vec![d("b"), e("b")] },
                BitmapAction::Clear.of(e("c")),
                BitmapAction::Rename(name("other")).of(e("c")),
            ];
            let message = scene.fails(all(good).with(bad)).await;
            for part in parts {
                assert!(message.contains(part), "`{part}` is not in: {message}");
            }
        };
        check(
            BitmapAction::Clear.of(d("x")),
            &[
                "action 6 (clear bitmap `x` of drive `d`)",
                "drive `d` has no bitmap `x`; it has: `b`",
            ],
        )
        .await;
        let message = scene
            .fails(all([BitmapAction::Clear.of(d("x")), BitmapAction::Clear.of(d("b"))]))
            .await;
        assert!(message.starts_with("action 1 (clear bitmap `x` of drive `d`): "), "{message}");
        let message = scene.fails(all([BitmapAction::Clear.of(d("x"))])).await;
        assert!(message.starts_with("clear bitmap `x` of drive `d`: drive `d` has"), "{message}");
        check(BitmapAction::Clear.of(BitmapRef::of_node("d", "b")), &["there is no node `d`"])
            .await;
        check(
            BitmapAction::Clear.of(BitmapRef::of_node("spare", "b")),
            &["node `spare` has no bitmap `b`; it has: none"],
        )
        .await;
        check(
            BitmapAction::Clear.of(e("c")),
            &["drive `e` has no bitmap `c`; it has: `b`, `other`"],
        )
        .await;
        check(BitmapAction::Clear.of(&removed), &["bitmap `gone` has been removed"]).await;
        check(
            BitmapAction::Clear.of(d("b")),
            &["(clear bitmap `b` of drive `d`): bitmap `b` is frozen: merge it back"],
        )
        .await;
        check(BitmapAction::MergeBack.of(e("other")), &["bitmap `other` is not frozen"]).await;
        check(add(of_drive("d"), "b"), &["there is a bitmap `b` of drive `d` already"]).await;
        check(add(of_drive("x"), "b"), &["bitmap `b`: there is no drive `x`"]).await;
        check(BitmapAction::Rename(name("b")).of(e("other")), &["(rename bitmap `other` of drive `e` to `b`): there is a bitmap `b` of drive `e` already"]).await;
        check(Action::Checkpoint { bitmaps: vec![e("other"), e("frozen")] }, &["action 6 (checkpoint of bitmap `other` of drive `e`, bitmap `frozen` of drive `e`): bitmap `frozen` is frozen"]).await;
        check(
            Action::Checkpoint { bitmaps: vec![e("off")] },
            &["bitmap `off` is disabled", "enable it first"],
        )
        .await;
        let small = Action::AddNode(node(
            "small",
            crate::node::MemoryNode::new(512, 512).expect("a size"),
            vec![],
        ));
        scene.all(all([small, add(of_node("small"), "s")])).await;
        check(
            BitmapAction::merge([BitmapRef::of_node("small", "s")]).of(e("other")),
            &[
                "merge bitmap `s` of node `small` into bitmap `other` of drive `e`",
                "512 bytes into one of 65536",
            ],
        )
        .await;
        let insert = Action::InsertMedium { drive: "e".into(), node: "spare".into() };
        check(insert, &["drive `e` has the medium `spare`"]).await;
    });
}

/// A user who has a bitmap to itself decides about it, and nobody else.
#[test]
fn an_exclusive_user_acts_on_its_own() {
    run(async {
        let scene = scene();
        let bitmap = scene.bitmap(&of_drive("d"), "b");
        let job = Arc::new(bitmap.use_by("job `backup`".into(), Use::Exclusive).expect("a use"));
        let message = scene.fails(all([BitmapAction::Freeze.of(d("b"))])).await;
        assert!(message.contains("in use by job `backup`"), "{message}");
        scene.write("d", 1, 1).await;
        scene.all(all([Action::Checkpoint { bitmaps: vec![(&job).into(), e("b")] }])).await;
        scene.write("d", 2, 1).await;
        scene.all(all([BitmapAction::Abdicate.of(&job), BitmapAction::MergeBack.of(e("b"))])).await;
        assert_eq!(dirty(&scene, "d", "b"), [2]);
    });
}

/// What the graph alters is marked in its turn among the changes of bitmaps.
#[test]
fn marks_of_graph_changes_keep_their_place() {
    run(async {
        let scene = scene();
        let whole: Vec<u64> = (0..BLOCKS).collect();
        scene.act(Action::AddNode(memory("other"))).await;
        let pivot = || Action::SetRoot { drive: "d".into(), node: "other".into() };
        let transaction = Transaction::new()
            .with(add(of_drive("d"), "early"))
            .with(BitmapAction::merge([d("b")]).of(e("b")))
            .with_unproven(pivot(), Unproven::MarkWhole)
            .with(BitmapAction::merge([d("b")]).of(e("c")))
            .with(BitmapAction::Clear.of(d("b")))
            .with(add(of_drive("d"), "late"));
        let applied = scene.all(transaction).await;
        assert!(marked_whole(&applied.events));
        assert_eq!(
            (dirty(&scene, "d", "early"), dirty(&scene, "d", "late")),
            (whole.clone(), vec![])
        );
        assert_eq!((dirty(&scene, "e", "b"), dirty(&scene, "e", "c")), (vec![], whole.clone()));
        assert!(dirty(&scene, "d", "b").is_empty());

        // The other way round nothing is hidden; a frozen set is of before.
        let back = Action::SetRoot { drive: "d".into(), node: "disk".into() };
        let transaction = Transaction::new()
            .with(BitmapAction::Clear.of(d("b")))
            .with(BitmapAction::Clear.of(d("late")))
            .with(Action::Checkpoint { bitmaps: vec![d("late")] })
            .with_unproven(back, Unproven::MarkWhole);
        scene.all(transaction).await;
        assert_eq!(dirty(&scene, "d", "b"), whole);
        let late = scene.bitmap(&of_drive("d"), "late").read();
        assert_eq!((late.count(), late.still().map(|still| still.count())), (BLOCKS, Some(0)));
    });
}

/// What goes is marked until then: others may have merged it.
#[test]
fn marks_reach_what_was_merged_from_a_bitmap_that_goes() {
    run(async {
        let whole: Vec<u64> = (0..BLOCKS).collect();
        let pivot = |all: Transaction| {
            let pivot = Action::SetRoot { drive: "d".into(), node: "other".into() };
            all.with(Action::AddNode(memory("other"))).with_unproven(pivot, Unproven::MarkWhole)
        };
        let take = |all: Transaction| {
            all.with(BitmapAction::merge([d("b")]).of(e("b")))
                .with(BitmapAction::Remove.of(d("b")))
                .with(BitmapAction::CopyOf(e("b")).of(e("c")))
        };
        let gone = |all: Transaction| all.with(Action::RemoveDrive { drive: "d".into() });
        let check = async |all: Transaction, expect: &[u64]| {
            let scene = scene();
            scene.write("d", 3, 1).await;
            let applied = scene.all(all).await;
            assert!(
                !marked_whole(&applied.events),
                "of those that are left none: {:?}",
                applied.events
            );
            assert_eq!(dirty(&scene, "e", "c"), expect);
        };
        check(take(pivot(Transaction::new())), &whole).await;
        check(gone(take(pivot(Transaction::new()))), &whole).await;
        // Another drive of that name is another view.
        let another = |all: Transaction| all.with(Action::AddDrive(drive("d", "other")));
        check(another(gone(take(pivot(Transaction::new())))), &whole).await;
        let large = crate::node::MemoryNode::new(2 * SIZE, 512).expect("a size");
        let larger = gone(take(Transaction::new()))
            .with(Action::AddNode(node("large", large, vec![])))
            .with(Action::AddDrive(drive("d", "large")));
        check(larger, &[3]).await;
        check(pivot(take(Transaction::new())), &[3]).await;
        check(gone(take(Transaction::new())), &[3]).await;
        let resize = Action::Resize { node: "disk".into(), size_bytes: SIZE / 2 };
        let spare = Action::Resize { node: "spare".into(), size_bytes: SIZE * 2 };
        let message = scene().fails(take(Transaction::new().with(resize))).await;
        assert!(message.contains("view of 32768 bytes into one of 65536"), "{message}");
        let disk = Action::Resize { node: "disk".into(), size_bytes: SIZE * 2 };
        let mut expect: Vec<u64> = vec![3];
        expect.extend(BLOCKS..2 * BLOCKS);
        check(take(Transaction::new().with(disk).with(spare)), &expect).await;
    });
}

/// A base that shrinks is a change for an overlay that keeps its size, also right after a clear.
#[test]
fn sizes_have_their_place_too() {
    run(async {
        let nodes = vec![memory("base"), overlay("top", "base")];
        let bitmaps = vec![bitmap(of_drive("d"), "b"), bitmap(of_node("base"), "n")];
        let scene = Scene::new(nodes, vec![drive("d", "top")], bitmaps);
        let resize =
            |blocks: u64| Action::Resize { node: "base".into(), size_bytes: blocks * BLOCK as u64 };
        let n = || BitmapRef::of_node("base", "n");
        scene.all(all([BitmapAction::Clear.of(d("b")), resize(100)])).await;
        assert_eq!(dirty(&scene, "d", "b"), (100..BLOCKS).collect::<Vec<u64>>());
        scene
            .all(all([resize(90), BitmapAction::Clear.of(d("b")), add(of_node("base"), "m")]))
            .await;
        assert!(dirty(&scene, "d", "b").is_empty());
        let m = scene.bitmap(&of_node("base"), "m");
        assert_eq!((m.size_bytes(), m.count()), (90 * BLOCK as u64, 0));
        // New sizes come first for all: what is merged has them, too.
        let grow = [
            BitmapAction::Clear.of(n()),
            resize(95),
            BitmapAction::merge([n()]).of(BitmapRef::of_node("base", "m")),
        ];
        let applied = scene.all(all(grow)).await;
        assert_eq!(dirty_blocks(&m), (90..95).collect::<Vec<u64>>());
        let resized = |event: &&Event| matches!(event, Event::BitmapResized { .. });
        assert_eq!(applied.events.iter().filter(resized).count(), 2);
        let marked = |event: &&Event| matches!(event, Event::BitmapMarked { .. });
        assert_eq!(
            applied.events.iter().filter(marked).count(),
            1,
            "the overlay's: {:?}",
            applied.events
        );
    });
}

/// A bitmap of a drive needs a medium to have a size, at the latest when the transaction ends.
#[test]
fn a_bitmap_has_the_size_of_its_medium() {
    run(async {
        let scene = scene();
        let eject = || Action::EjectMedium { drive: "e".into() };
        let message = scene.fails(all([eject(), add(of_drive("e"), "x")])).await;
        assert!(
            message.contains("bitmap `x`: drive `e` has no medium: insert one first"),
            "{message}"
        );
        let small = crate::node::MemoryNode::new(2 * BLOCK as u64, 512).expect("a size");
        let insert = Action::InsertMedium { drive: "e".into(), node: "small".into() };
        let transaction = all([
            eject(),
            add(of_drive("e"), "x"),
            Action::AddNode(node("small", small, vec![])),
            insert,
        ]);
        scene.all(transaction).await;
        let x = scene.bitmap(&of_drive("e"), "x");
        assert_eq!(x.size_bytes(), 2 * BLOCK as u64);
        assert_eq!(dirty_blocks(&x), [0, 1], "the medium came after it");
    });
}

/// A node's bitmap can go to who shows the same, before its node goes; to others it goes all dirty, if at all.
#[test]
fn bitmaps_move_to_other_nodes_and_drives() {
    run(async {
        let bitmaps = vec![bitmap(of_node("top"), "b"), bitmap(of_node("disk"), "c")];
        let nodes = vec![memory("disk"), memory("spare"), pass("top", "disk")];
        let scene = Scene::new(nodes, vec![drive("d", "top")], bitmaps);
        scene.write("d", 3, 1).await;
        let moved = |to: BitmapScope| BitmapAction::MoveTo(to).of(BitmapRef::of_node("top", "b"));
        let message = scene.fails(all([moved(of_node("none"))])).await;
        assert!(message.contains("there is no node `none`"), "{message}");
        let rename = BitmapAction::Rename(name("b")).of(BitmapRef::of_node("disk", "c"));
        let message = scene.fails(all([rename, moved(of_node("disk"))])).await;
        assert!(message.contains("which has one of that name"), "{message}");
        let message = scene.fails(all([moved(of_node("spare"))])).await;
        assert!(message.contains("nothing proves that they show the same"), "{message}");
        assert_eq!(dirty_blocks(&scene.bitmap(&of_node("top"), "b")), [3]);

        // As one transaction with the end of its node.
        let away = Action::SetRoot { drive: "d".into(), node: "disk".into() };
        let gone = Action::RemoveNode { node: "top".into() };
        let applied = scene.all(all([moved(of_drive("d")), away, gone])).await;
        assert!(!marked_whole(&applied.events), "{:?}", applied.events);
        let is_told = |event: &Event| {
            matches!(event, Event::BitmapMoved { from, to, name } if *from == of_node("top")
                && *to == of_drive("d") && name == "b")
        };
        assert!(applied.events.iter().any(is_told), "{:?}", applied.events);
        scene.write("d", 5, 1).await;
        assert_eq!(dirty(&scene, "d", "b"), [3, 5]);

        let other = BitmapAction::MoveTo(of_node("spare")).of(d("b"));
        let marked = Transaction::new().with_unproven(other, Unproven::MarkWhole);
        let applied = scene.all(marked).await;
        assert!(marked_whole(&applied.events), "{:?}", applied.events);
        let all_of_it: Vec<u64> = (0..BLOCKS).collect();
        assert_eq!(dirty_blocks(&scene.bitmap(&of_node("spare"), "b")), all_of_it);
    });
}
