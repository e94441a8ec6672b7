//! Checkpoints: all bitmaps are frozen at one instant, whatever two workers write meanwhile.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::scene::*;
use crate::bitmap::{Bitmap, BitmapState, Use};
use crate::error::ErrorKind;
use crate::graph::testing::turn;
use crate::graph::transaction::{Action, BitmapAction, BitmapRef, Event, Transaction};
use crate::graph::{BitmapDecl, DriveDecl, LocalDrive, LocalGraph, NodeDecl};
use crate::io::{Buf, WorkerHandle, WorkerOptions, Workers, spawn};
use crate::node::WriteFlags;

/// Small, so that the blocks are written over and over while checkpoints come and go.
const BLOCKS: u64 = SIZE / BLOCK as u64;
const ROUNDS: usize = 200;

fn workers() -> Workers {
    let options = WorkerOptions { workers: 2, ..WorkerOptions::default() };
    Workers::start(&options).expect("workers")
}

/// A drive over a filter that takes its time over a disk; a bitmap of either.
fn disk(number: u64) -> (Vec<NodeDecl>, DriveDecl, Vec<BitmapDecl>) {
    let (disk, slow, id) = (format!("disk{number}"), format!("slow{number}"), format!("d{number}"));
    let bitmaps = vec![bitmap(of_drive(&id), "b"), bitmap(of_node(&disk), "n")];
    (vec![lag(&slow, &disk, 20), memory(&disk)], drive(&id, &slow), bitmaps)
}

/// Two of these, and a drive that shows each disk as it is.
fn two_disks() -> Scene {
    let (mut nodes, mut drives, mut bitmaps) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..2 {
        let (of_disk, drive, own) = disk(number);
        nodes.extend(of_disk);
        let shows = super::scene::drive(&format!("shows{number}"), &format!("disk{number}"));
        drives.extend([drive, DriveDecl { writable: false, only_shows: true, ..shows }]);
        bitmaps.extend(own);
    }
    Scene::new(nodes, drives, bitmaps)
}

fn every_bitmap() -> Vec<BitmapRef> {
    let of = |number: u64| {
        let (drive, node) = (format!("d{number}"), format!("disk{number}"));
        [BitmapRef::of_drive(&drive, "b"), BitmapRef::of_node(&node, "n")]
    };
    [of(0), of(1)].concat()
}

fn checkpoint() -> Transaction {
    Transaction::new().with(Action::Checkpoint { bitmaps: every_bitmap() })
}

fn ended(action: BitmapAction) -> Transaction {
    every_bitmap().into_iter().fold(Transaction::new(), |all, it| all.with(action.clone().of(it)))
}

/// What is frozen of a drive: all its bitmaps must agree about it.
fn frozen(scene: &Scene, number: u64) -> BTreeSet<u64> {
    let (drive, node) = (of_drive(&format!("d{number}")), of_node(&format!("disk{number}")));
    let still = |bitmap: Arc<Bitmap>| -> BTreeSet<u64> {
        let still = bitmap.read().still().expect("it is frozen");
        still
            .ranges(0..u64::MAX)
            .flat_map(|it| it.start / BLOCK as u64..it.end / BLOCK as u64)
            .collect()
    };
    let of_drive = still(scene.bitmap(&drive, "b"));
    let of_node = still(scene.bitmap(&node, "n"));
    assert_eq!(of_drive, of_node, "a write in flight was cut in two");
    of_drive
}

/// Ends the load, also if the rounds fail.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Runs `rounds` on the first worker while `writer` runs on both.
fn under_load<W>(
    scene: &Scene,
    writer: impl Fn(usize, LocalDrive, LocalDrive, Arc<AtomicBool>) -> W + Clone + Send + 'static,
    rounds: impl AsyncFnOnce(Scene) + Send + 'static,
) where
    W: Future<Output = ()> + 'static,
{
    let (workers, over) = (workers(), Arc::new(AtomicBool::new(false)));
    let (sender, end) = mpsc::channel();
    let post = |worker: &WorkerHandle, task: Box<dyn FnOnce() + Send>| {
        worker.post(task).expect("a worker");
    };
    for (number, worker) in workers.handles().iter().enumerate() {
        let (cell, over, sender, writer) =
            (Arc::clone(&scene.cell), Arc::clone(&over), sender.clone(), writer.clone());
        post(
            worker,
            Box::new(move || {
                spawn(async move {
                    let graph = LocalGraph::of(&cell);
                    let open = |id: &str| LocalDrive::open(&graph, id).expect("a drive");
                    writer(number, open("d0"), open("d1"), over).await;
                    sender.send(()).expect("the test waits");
                });
            }),
        );
    }
    let (cell, finished) = (Arc::clone(&scene.cell), Arc::clone(&over));
    post(
        &workers.handles()[0],
        Box::new(move || {
            spawn(async move {
                let over = Over(finished);
                rounds(Scene { cell }).await;
                drop(over);
                sender.send(()).expect("the test waits");
            });
        }),
    );
    for _ in 0..3 {
        end.recv_timeout(Duration::from_secs(60)).expect("nothing has failed");
    }
    workers.stop();
}

async fn write(drive: &LocalDrive, block: u64) {
    let data = Buf::copy_of(&[1; BLOCK]);
    drive.write(block * BLOCK as u64, data, WriteFlags::NONE).await.expect("a write");
}

/// Four tasks a worker write blocks at random: each write is in what is frozen of all bitmaps that see it,
/// or of none; and none is lost between two checkpoints.
#[test]
fn a_checkpoint_cuts_every_write_the_same_way() {
    let scene = two_disks();
    let writer = |number: usize, one: LocalDrive, other: LocalDrive, over: Arc<AtomicBool>| async move {
        let running = std::rc::Rc::new(std::cell::Cell::new(4));
        for task in 0..4_u64 {
            let (one, other, over) = (one.clone(), other.clone(), Arc::clone(&over));
            let running = std::rc::Rc::clone(&running);
            spawn(async move {
                let mut random =
                    0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(task + 4 * number as u64 + 1);
                while !over.load(Ordering::SeqCst) {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let drive = if random.is_multiple_of(2) { &one } else { &other };
                    write(drive, (random >> 8) % BLOCKS).await;
                }
                running.set(running.get() - 1);
            });
        }
        while running.get() > 0 {
            turn().await;
        }
    };
    under_load(&scene, writer, async |scene: Scene| {
        let mut some = 0;
        for round in 0..ROUNDS {
            let applied = scene.all(checkpoint()).await;
            let paused =
                |event: &Event| matches!(event, Event::Paused { drives, .. } if drives.len() == 4);
            assert!(applied.events.iter().any(paused), "{:?}", applied.events);
            let before = [frozen(&scene, 0), frozen(&scene, 1)];
            turns(20).await;
            assert_eq!(
                [frozen(&scene, 0), frozen(&scene, 1)],
                before,
                "what is frozen stands still"
            );
            some += before[0].len() + before[1].len();
            let end = if round % 3 == 0 { BitmapAction::MergeBack } else { BitmapAction::Abdicate };
            scene.all(ended(end)).await;
        }
        assert!(some > ROUNDS, "there was a load: {some} blocks");
    });
}

/// A client that writes one drive, and after the reply the other: nothing frozen has the second write
/// without the first.
#[test]
fn the_bitmaps_of_two_drives_are_of_one_instant() {
    let scene = two_disks();
    // Each worker has half of the blocks, and writes each of its blocks once, on one drive and then on
    // the other.
    let writer = |number: usize, one: LocalDrive, other: LocalDrive, over: Arc<AtomicBool>| async move {
        let (first, second) = if number == 0 { (&one, &other) } else { (&other, &one) };
        let start = BLOCKS / 2 * number as u64;
        for block in start..start + BLOCKS / 2 {
            write(first, block).await;
            write(second, block).await;
        }
        while !over.load(Ordering::SeqCst) {
            turn().await;
        }
    };
    under_load(&scene, writer, async |scene: Scene| {
        let mut seen = [BTreeSet::new(), BTreeSet::new()];
        let (mut halves, mut cut) = (0, 0);
        while halves < 2 * BLOCKS as usize {
            scene.all(checkpoint()).await;
            for number in 0..2 {
                let now = frozen(&scene, number);
                assert!(seen[number as usize].is_disjoint(&now), "a block was written twice");
                // A copy that begins now takes what was written: nothing frozen is still in flight.
                for block in &now {
                    assert_eq!(scene.read(&format!("shows{number}"), *block).await, 1);
                }
                seen[number as usize].extend(now);
            }
            let [one, other] = &seen;
            let is_of = |worker: u64| move |block: &&u64| **block / (BLOCKS / 2) == worker;
            let missing: Vec<&u64> = other.difference(one).filter(is_of(0)).collect();
            assert!(missing.is_empty(), "blocks {missing:?} of the first drive came later");
            let missing: Vec<&u64> = one.difference(other).filter(is_of(1)).collect();
            assert!(missing.is_empty(), "blocks {missing:?} of the second drive came later");
            cut += one.symmetric_difference(other).count();
            halves = one.len() + other.len();
            scene.all(ended(BitmapAction::Abdicate)).await;
            // Without a pause those who wait at the gates would never get in.
            turns(5).await;
        }
        assert!(cut > 0, "no checkpoint ever came between two writes");
    });
}

/// One bitmap that cannot be frozen: none is, and requests go on.
#[test]
fn a_checkpoint_that_fails_freezes_none() {
    run(async {
        let scene = two_disks();
        let load = super::load::Load::start(&scene, "d0", BLOCKS);
        load.goes_on(10).await;
        let job = scene.bitmap(&of_node("disk1"), "n").use_by("job `j`".into(), Use::Exclusive);
        let error = scene.cell.transact(checkpoint()).await.expect_err("one is in use");
        let message = error.to_string();
        assert!(
            message.contains("checkpoint of bitmap `b` of drive `d0`, bitmap `n` of node `disk0`"),
            "{message}"
        );
        assert!(message.ends_with("bitmap `n` is in use by job `j`: end that first"), "{message}");
        let graph = scene.cell.load();
        assert!(graph.bitmaps().all(|(_, bitmap)| bitmap.state() == BitmapState::Recording));
        drop(job);
        // And one that fails for want of time, with requests in flight.
        let soon = checkpoint().within(Duration::ZERO);
        let error = scene.cell.transact(soon).await.expect_err("requests are in flight");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(graph.bitmaps().all(|(_, bitmap)| bitmap.state() == BitmapState::Recording));
        load.goes_on(10).await;
        scene.all(checkpoint()).await;
        let written = load.end().await;
        scene.all(ended(BitmapAction::MergeBack)).await;
        assert_eq!(dirty_blocks(&scene.bitmap(&of_drive("d0"), "b")), written);
    });
}
