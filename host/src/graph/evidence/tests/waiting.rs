//! Who waits for whose copy, and for what has been given up.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use super::super::super::mutation::{Mutation, set};
use super::super::super::{BitmapAction, BitmapScope, ChildDecl, Cx, PermissionSet, Transaction};
use super::scene::{BLOCK, Control, Scene, Turnstile, UNCHANGED, at, quiet, start};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::{self, ChangeKind, CopyOnReadNode, Filter};
use crate::graph::testing::turn;
use crate::node::WriteFlags;

/// A write that comes while the copy is between its read and its write waits, and wins.
#[test]
fn a_guest_write_waits_for_the_copy_of_its_range_and_no_other() {
    let control = Arc::new(Control::default());
    let slow = Arc::clone(&control);
    let scene = Scene::default()
        .base("base")
        .node("turnstile", Turnstile(slow), vec![ChildDecl::filtered("base")])
        .overlay("top", "turnstile")
        .job("commit", "top", "turnstile")
        .drive("vda", "top");
    scene.run(|stage| async move {
        stage.write("vda", 2, 5).await.expect("a write");
        control.holds_writes.store(true, Ordering::Relaxed);
        let own = stage.own("commit");
        let copied = start(async move {
            own.copy(0, 1, at(2), UNCHANGED).await.expect("a copy");
        });
        quiet().await;
        assert_eq!(control.writes.load(Ordering::Relaxed), 1, "the copy is writing");
        let writer = stage.clone();
        let same = start(async move { writer.write("vda", 2, 6).await.expect("a write") });
        let writer = stage.clone();
        let other = start(async move { writer.write("vda", 7, 6).await.expect("a write") });
        quiet().await;
        assert!(!copied.get() && !same.get() && other.get());
        control.holds_writes.store(false, Ordering::Relaxed);
        quiet().await;
        assert!(copied.get() && same.get());
        assert_eq!(stage.byte("vda", 2).await, 6);
    });
}

/// (b) copy-on-read over copy-on-read, on one range.
#[test]
fn copy_on_read_over_copy_on_read_ends() {
    let scene = Scene::default()
        .base("base")
        .overlay("mid", "base")
        .node("lower", CopyOnReadNode::default(), vec![CopyOnReadNode::child("mid")])
        .overlay("top", "lower")
        .node("upper", CopyOnReadNode::default(), vec![CopyOnReadNode::child("top")])
        .drive("vda", "upper");
    scene.run(|stage| async move {
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let stage = stage.clone();
                start(async move {
                    for block in 0..8 {
                        assert_eq!(stage.byte("vda", block).await, 0);
                    }
                })
            })
            .collect();
        quiet().await;
        while !readers.iter().all(|ended| ended.get()) {
            turn().await;
        }
        assert_eq!(stage.dirty(), BTreeMap::new());
        assert!(stage.outcomes("lower").proven > 0 && stage.outcomes("upper").proven > 0);
    });
}

/// (c) a background copy, while a guest's write to the range is parked in the filter that copies.
#[test]
fn a_background_copy_does_not_wait_for_a_write_that_is_parked_above() {
    let control = Arc::new(Control::default());
    let parked = Arc::clone(&control);
    let grants = PermissionSet::HARMLESS;
    let child = ChildDecl { grants, ..ChildDecl::filtered("top") };
    let scene = Scene::default()
        .base("base")
        .overlay("top", "base")
        .node("filter", Turnstile(parked), vec![child])
        .drive("vda", "filter");
    scene.run(|stage| async move {
        control.holds_writes.store(true, Ordering::Relaxed);
        let writer = stage.clone();
        let written = start(async move { writer.write("vda", 2, 5).await.expect("a write") });
        quiet().await;
        let before = stage.dirty();
        let copied = stage.own("filter").copy(0, 0, at(2), UNCHANGED).await;
        assert_eq!(copied.expect("it does not wait").bytes, BLOCK);
        assert!(!written.get());
        assert_eq!((stage.dirty(), stage.outcomes("filter").proven), (before, 1));
        control.holds_writes.store(false, Ordering::Relaxed);
        quiet().await;
        assert!(written.get());
        assert_eq!(stage.byte("vda", 2).await, 5);
    });
}

/// Shows its child. One begins zeros and writes there, and does not wait for them; the others never end the
/// ones or the others.
#[derive(PartialEq)]
enum Zeroing {
    Hasty,
    Endless,
    EndlessWrites,
}

impl Zeroing {
    /// Passes a change on, or begins it and does not wait.
    async fn pass(&self, change: impl Future<Output = Result<()>>) -> Result<()> {
        if *self != Self::Hasty {
            return change.await;
        }
        let mut change = Box::pin(change);
        let polled = poll_fn(|cx| Poll::Ready(change.as_mut().poll(cx))).await;
        assert!(polled.is_pending());
        Err(Error::new(ErrorKind::TimedOut, "it did not wait"))
    }
}

impl Filter for Zeroing {
    fn driver(&self) -> &'static str {
        "zeroing"
    }

    async fn change(
        &self,
        _: Cx<'_>,
        change: filter::Change,
        pass: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        match (self, change.kind) {
            (Self::EndlessWrites, ChangeKind::Write) | (Self::Endless, ChangeKind::Zero) => {
                std::future::pending().await
            }
            (_, ChangeKind::Write | ChangeKind::Zero) => self.pass(pass()).await,
            (_, ChangeKind::Discard | ChangeKind::SetLen) => pass().await,
        }
    }
}

/// What a transaction that needs a moment with nothing in flight says, while zeros or a write are under way
/// that nobody waits for any more.
fn abandoned_change_and_a_drain(is_write: bool) -> Result<String> {
    let endless = if is_write { Zeroing::EndlessWrites } else { Zeroing::Endless };
    let scene = Scene::default()
        .base("base")
        .node("endless", endless, vec![ChildDecl::filtered("base")])
        .node("hasty", Zeroing::Hasty, vec![ChildDecl::filtered("endless")])
        .drive("vda", "hasty");
    let (tell, told) = std::sync::mpsc::channel();
    scene.run(move |stage| async move {
        let changed = match is_write {
            true => stage.write("vda", 2, 1).await,
            false => stage.drive("vda").zero(2 * BLOCK, BLOCK, WriteFlags::NONE).await,
        };
        changed.expect_err("it did not wait");
        let graph = stage.graph.current();
        let scope = BitmapScope::Drive("vda".into());
        let clear = BitmapAction::Clear.of(graph.find_bitmap(&scope, "b").expect("a bitmap"));
        let clear = Transaction::new().with(clear).within(Duration::from_millis(20));
        let applied = stage.graph.cell().transact(clear).await;
        tell.send(applied.map(|_| stage.dirty().len().to_string())).expect("a test");
    });
    told.recv().expect("an end")
}

/// Cleared before the zeros land, a bitmap would never learn of them.
#[test]
fn a_change_that_was_abandoned_holds_up_a_drain() {
    let expect = "1 requests of `vda` have not ended in 20ms (1 of them a driver gave up before they had \
                  ended): nothing was changed";
    for is_write in [false, true] {
        let error = abandoned_change_and_a_drain(is_write).expect_err("it may still be under way");
        assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::TimedOut, expect));
        set(Some(Mutation::GuardsEndWithFutures));
        let drained = abandoned_change_and_a_drain(is_write);
        set(None);
        drained.expect("the broken rule is noticed");
    }
}

/// Whether a copy of where zeros are under way that nobody waits for any more comes to its end.
fn abandoned_zeros_and_a_copy() -> bool {
    let has_ended = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&has_ended);
    let scene = Scene::default()
        .base("base")
        .node("endless", Zeroing::Endless, vec![ChildDecl::filtered("base")])
        .node("hasty", Zeroing::Hasty, vec![ChildDecl::filtered("endless")])
        .node("copier", CopyOnReadNode::default(), vec![CopyOnReadNode::child("endless")])
        .drive("vda", "hasty");
    scene.run(|stage| async move {
        let failed = stage.drive("vda").zero(2 * BLOCK, BLOCK, WriteFlags::NONE).await;
        assert_eq!(failed.expect_err("it did not wait").kind(), ErrorKind::TimedOut);
        let own = stage.own("copier");
        let ended = start(async move { drop(own.copy(0, 0, at(2), UNCHANGED).await) });
        quiet().await;
        told.store(ended.get(), Ordering::Relaxed);
    });
    has_ended.load(Ordering::Relaxed)
}

/// A driver may still be at it, whoever has stopped waiting.
#[test]
fn a_change_that_was_abandoned_is_waited_for() {
    assert!(!abandoned_zeros_and_a_copy());
    set(Some(Mutation::GuardsEndWithFutures));
    let has_ended = abandoned_zeros_and_a_copy();
    set(None);
    assert!(has_ended, "the broken rule is noticed");
}
