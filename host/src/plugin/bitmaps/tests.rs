use super::*;
use crate::error::ErrorKind;

#[test]
fn a_nodes_own_bitmap_is_found_again() {
    let bitmaps = PluginBitmaps::default();
    let node = NodeIndex(3);
    bitmaps.own(node, "todo", 4096).expect_err("an unknown node");
    bitmaps.add_node(node, 1 << 20);
    let Owned { index, is_new: true } = bitmaps.own(node, "todo", 4096).expect("a bitmap") else {
        panic!("it was there")
    };
    bitmaps.set(index, 5000, 1, true).expect("its own");
    assert_eq!(bitmaps.next(index, 0), Some((4096, 4096)));
    assert_eq!(bitmaps.own(node, "todo", 4096), Ok(Owned { index, is_new: false }));
    assert_eq!(bitmaps.next(index, 0), Some((4096, 4096)), "as it was left");
    bitmaps.own(node, "todo", 8192).expect_err("other granules");
    bitmaps.set(index, 4096, 4095, false).expect("its own");
    assert!(bitmaps.probe(index).expect("a probe").any_set(8000, 10), "not covered");
    bitmaps.set(index, 4096, 4096, false).expect("its own");
    assert_eq!(bitmaps.next(index, 0), None);
}

#[test]
fn the_memory_of_an_instances_bitmaps_is_bounded() {
    let bitmaps = PluginBitmaps::default();
    for node in 0..9 {
        bitmaps.add_node(NodeIndex(node), 1 << 42);
    }
    let own = |node, name, granularity| {
        bitmaps.own(NodeIndex(node), name, granularity).map(|owned| owned.index)
    };
    let error = own(0, "a", 1 << 15).expect_err("16 MiB");
    assert!(error.contains("choose larger ones"), "{error}");
    let index = own(0, "a", 1 << 16).expect("8 MiB");
    for node in 1..8 {
        own(node, "a", 1 << 16).expect("8 MiB more");
    }
    let error = own(8, "a", 1 << 30).expect_err("64 MiB are there");
    assert!(error.contains("of its instance"), "{error}");
    assert_eq!(own(0, "a", 1 << 16), Ok(index), "what is there is found all the same");
    assert_eq!(bitmaps.words(index), 1 << 20);
}

#[test]
fn bitmaps_of_different_granules_are_merged() {
    let bitmaps = PluginBitmaps::default();
    let node = NodeIndex(0);
    bitmaps.add_node(node, 1 << 30);
    let own = |name, granularity| bitmaps.own(node, name, granularity).expect("a bitmap").index;
    let (fine, middle, coarse) = (own("f", 512), own("m", 4096), own("c", 1 << 20));
    for at in [0, 5000, 70_000, (1 << 20) - 1, (1 << 30) - 1] {
        bitmaps.set(fine, at, 1, true).expect("its own");
    }
    bitmaps.merge(middle, fine).expect("merged");
    bitmaps.merge(coarse, fine).expect("merged");
    assert_eq!(bitmaps.next(middle, 0), Some((0, 8192)));
    assert_eq!(bitmaps.next(middle, 8192), Some((69_632, 4096)));
    assert_eq!((bitmaps.count(middle), bitmaps.count(coarse)), (5 * 4096, 2 << 20));
    bitmaps.merge(fine, coarse).expect("merged");
    assert_eq!(bitmaps.next(fine, 0), Some((0, 1 << 20)));
    assert_eq!(bitmaps.count(fine), 2 << 20);
}

#[test]
fn what_a_guest_asks_for_is_bounded() {
    let bitmaps = PluginBitmaps::default();
    let node = NodeIndex(0);
    bitmaps.add_node(node, 1 << 50);
    for (name, granularity) in [("", 4096), ("b", 4095), ("b", 0), ("b", 512), ("b", 1 << 40)] {
        bitmaps.own(node, name, granularity).expect_err("refused");
    }
    bitmaps.own(node, &"n".repeat(256), 1 << 31).expect_err("a long name");
    for index in 0..16 {
        bitmaps.own(node, &index.to_string(), 1 << 31).expect("a bitmap");
    }
    bitmaps.own(node, "more", 1 << 31).expect_err("too many");
    let lent = bitmaps.lend(NodeIndex(1), "lent").expect("a place");
    assert_eq!(bitmaps.next(lent, 0), None, "not there yet");
    bitmaps.set(lent, 0, 1, true).expect_err("not its own");
    assert!(bitmaps.owned_by(NodeIndex(1), lent).is_none(), "lent");
    assert!(bitmaps.owned_by(node, 0).is_some());
    assert!(bitmaps.owned_by(NodeIndex(1), 0).is_none(), "another node's");
    bitmaps.set(99, 0, 1, true).expect_err("none");
}

/// What makes a view of node 0, begun.
fn begun() -> (PluginBitmaps, [u32; 4]) {
    let bitmaps = PluginBitmaps::with_views(true);
    let node = NodeIndex(0);
    bitmaps.add_node(node, 1 << 20);
    let all = ["todo", "covered", "begun", "broken"]
        .map(|name| bitmaps.own(node, name, 65536).expect("a bitmap").index);
    for index in &all[..3] {
        bitmaps.set(*index, 0, 1 << 20, true).expect("not begun");
    }
    (bitmaps, all)
}

#[test]
fn what_makes_a_view_that_has_begun_is_not_altered() {
    let (bitmaps, [todo, covered, begun, broken]) = begun();
    let other = bitmaps.own(NodeIndex(0), "other", 65536).expect("a bitmap").index;
    for (index, value) in [(todo, false), (todo, true), (covered, true), (covered, false)] {
        let refused = bitmaps.set(index, 0, 65536, value).expect_err("it has begun");
        assert!(refused.contains("copies alone"), "{refused}");
    }
    bitmaps.merge(todo, other).expect_err("it has begun");
    bitmaps.set(begun, 0, 1 << 20, false).expect_err("taken back");
    bitmaps.set(other, 0, 65536, true).expect("another one");
    bitmaps.set(broken, 0, 1, true).expect("broken");
    bitmaps.set(broken, 0, 1 << 20, false).expect_err("taken back");
    let free = PluginBitmaps::default();
    free.add_node(NodeIndex(0), 1 << 20);
    let begun = free.own(NodeIndex(0), "begun", 65536).expect("a bitmap").index;
    for value in [true, false] {
        free.set(begun, 0, 1 << 20, value).expect("it makes no view");
    }
}

/// Whatever becomes of the node's size: who shows the view keeps what it has found.
#[test]
fn what_makes_a_view_keeps_its_size() {
    let bitmaps = PluginBitmaps::with_views(true);
    let node = NodeIndex(0);
    bitmaps.add_node(node, 0);
    assert_eq!(bitmaps.view_bytes(node), None, "it has not come yet");
    bitmaps.add_node(node, 1 << 20);
    bitmaps.begin_view(node);
    let own = |name| bitmaps.own(node, name, 65536).expect("a bitmap").index;
    let (todo, other) = (own("todo"), own("other"));
    let former = bitmaps.owned(todo).expect("its own");
    bitmaps.resize(node, 2 << 20);
    let covered = own("covered");
    for (index, expect) in [(todo, 1 << 20), (covered, 1 << 20), (other, 2 << 20)] {
        bitmaps.set(index, 0, u64::MAX, true).expect("not begun");
        assert_eq!(bitmaps.count(index), expect);
    }
    assert!(Arc::ptr_eq(&former, &bitmaps.owned(todo).expect("its own")));
    assert_eq!(bitmaps.view_bytes(node), Some(1 << 20));
    // What is larger, or smaller, is merged as far as it goes.
    bitmaps.set(todo, 0, u64::MAX, false).expect("not begun");
    bitmaps.set(other, 0, (1 << 20) - 65536, false).expect("its own");
    bitmaps.merge(todo, other).expect("merged");
    assert_eq!(bitmaps.next(todo, 0), Some(((1 << 20) - 65536, 65536)));
    bitmaps.set(other, 0, u64::MAX, false).expect("its own");
    bitmaps.merge(other, covered).expect("merged");
    assert_eq!(bitmaps.next(other, 0), Some((0, 1 << 20)));
}

#[test]
fn a_view_that_is_lost_stays_lost() {
    let (bitmaps, _) = begun();
    let node = NodeIndex(0);
    let view = bitmaps.point_in_time(node).expect("not lost").expect("all of it");
    assert!(!view.is_broken());
    assert!(bitmaps.lose_view(node), "for the first time");
    assert!(!bitmaps.lose_view(node));
    assert!(view.is_broken());
    let early = PluginBitmaps::with_views(true);
    early.add_node(node, 1 << 20);
    assert!(early.point_in_time(node).expect("it may come").is_none());
    early.lose_view(node);
    let error = early.point_in_time(node).err().expect("it never comes");
    assert_eq!(error.kind(), ErrorKind::Io);
    let broken = early.own(node, "broken", 65536).expect("a bitmap").index;
    assert_eq!(early.count(broken), 1 << 20, "from its beginning");
}
