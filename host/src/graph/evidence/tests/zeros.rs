//! Zeros that are proven by block status.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::super::ChildDecl;
use super::super::super::mutation::{Mutation, set};
use super::scene::{
    BLOCK, Control, Scene, Turnstile, UNCHANGED, at, below, chain, dirty, quiet, start,
};
use crate::error::{ErrorKind, Result};
use crate::io::Buf;
use crate::limits::ZERO_PROVEN_MAX_BYTES;
use crate::node::MemoryNode;

#[test]
fn zeros_by_block_status_are_proven_and_data_is_not() {
    let scene = Scene::default().base("base").overlay("mid", "base");
    scene.actor("fill", "mid", "mid", None).run(|stage| async move {
        let own = stage.own("fill");
        let zeros = Buf::copy_of(&[0; BLOCK as usize]);
        own.write_changed(1, BLOCK, zeros).await.expect("a write");
        stage.clear().await;
        own.zero_proven(0, 1, at(9)).await.expect("nothing anywhere");
        let refused = own.zero_proven(0, 1, at(1)).await.expect_err("written zeros are data");
        assert_eq!(refused.kind(), ErrorKind::NotPermitted);
        assert_eq!(stage.dirty(), dirty(&[]), "what shows zeros still does");
    });
}

/// A guard for each piece, however long the range: others wait for one of them, not for all.
#[test]
fn a_long_range_is_zeroed_in_pieces() {
    const PIECE: u64 = ZERO_PROVEN_MAX_BYTES;
    let disk = |overlay: fn(u64, u32) -> Result<MemoryNode>| overlay(3 * PIECE, 512);
    let scene = Scene::default()
        .node("base", disk(MemoryNode::new).expect("a disk"), vec![])
        .node("mid", disk(MemoryNode::overlay).expect("a disk"), vec![below("base")])
        .actor("fill", "mid", "mid", None);
    scene.run(|stage| async move {
        let own = stage.own("fill");
        own.write_changed(1, 3 * PIECE - BLOCK, Buf::zeros(BLOCK as usize)).await.expect("a write");
        let refused = own.zero_proven(0, 1, 0..3 * PIECE).await.expect_err("data at the end");
        assert_eq!(refused.kind(), ErrorKind::NotPermitted);
        assert_eq!(stage.outcomes("fill").proven, 2);
        own.zero_proven(0, 1, 0..0).await.expect("nothing to do");
    });
}

/// What `mid` shows in the end when a commit into it comes between the answer that it shows zeros and
/// their writing.
fn zeros_and_a_commit() -> u8 {
    let control = Arc::new(Control::default());
    let shown = Arc::new(AtomicU32::new(0));
    let (slow, told) = (Arc::clone(&control), Arc::clone(&shown));
    let scene = Scene::default()
        .base("base")
        .overlay("mid", "base")
        .node("turnstile", Turnstile(slow), vec![ChildDecl::filtered("mid")])
        .overlay("top", "turnstile")
        .job("fill", "turnstile", "turnstile")
        .job("commit", "top", "turnstile")
        .drive("vda", "top");
    scene.run(|stage| async move {
        stage.write("vda", 3, 5).await.expect("a write");
        let (fill, commit) = (stage.own("fill"), stage.own("commit"));
        control.holds_status.store(true, Ordering::Relaxed);
        let zeroed = start(async move {
            fill.zero_proven(0, 1, at(3)).await.expect("nothing is there");
        });
        quiet().await;
        let copied = start(async move {
            commit.copy(0, 1, at(3), UNCHANGED).await.expect("a copy");
        });
        quiet().await;
        assert!(!zeroed.get());
        control.holds_status.store(false, Ordering::Relaxed);
        quiet().await;
        assert!(zeroed.get() && copied.get());
        let bytes = stage.own("fill").read_proven(0, at(3)).await.expect("a read");
        told.store(bytes.bytes()[0].into(), Ordering::Relaxed);
    });
    shown.load(Ordering::Relaxed) as u8
}

#[test]
fn a_commit_waits_for_zeros_that_are_being_proven() {
    assert_eq!(zeros_and_a_commit(), 5);
}

/// The model has no two jobs that write one node by chance often enough: this notices the broken rule.
#[test]
fn zeros_without_a_guard_are_noticed() {
    set(Some(Mutation::ZeroesUnguarded));
    let shown = zeros_and_a_commit();
    set(None);
    assert_eq!(shown, 0, "what was committed is lost");
}

/// Zeros are evidence for the view that is written, not for one above it.
#[test]
fn zeros_of_a_view_above_prove_nothing() {
    chain().drive("vda", "top").run(|stage| async move {
        let own = stage.own("commit");
        let refused = own.zero_proven(0, 1, at(9)).await.expect_err("another view");
        assert_eq!(refused.kind(), ErrorKind::NotPermitted);
        assert_eq!(stage.outcomes("commit").not_proven, 1);
        assert_eq!(stage.dirty(), dirty(&[]));
    });
}
