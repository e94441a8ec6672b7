//! Two real workers write one drive while its graph changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel;

use super::load::Load;
use super::scene::*;
use crate::graph::transaction::{Action, Transaction, Which};
use crate::graph::{LocalDrive, LocalGraph};
use crate::io::{WorkerOptions, Workers, sleep_until, spawn, turn_now};

const BLOCKS: u64 = SIZE / BLOCK as u64;

#[test]
fn changes_lose_nothing_of_what_two_workers_write() {
    let scene = Scene::new(
        vec![lag("slow", "disk", 20), memory("disk")],
        vec![drive("d", "slow")],
        vec![bitmap(of_drive("d"), "b")],
    );
    let options = WorkerOptions { workers: 2, ..WorkerOptions::default() };
    let workers = Workers::start(&options).expect("workers");
    let ended = Arc::new(AtomicBool::new(false));
    let (sender, written) = channel::unbounded();
    for (number, worker) in workers.handles().iter().enumerate() {
        let (cell, ended, sender) = (Arc::clone(&scene.cell), Arc::clone(&ended), sender.clone());
        let share = BLOCKS / 2 * number as u64..BLOCKS / 2 * (number as u64 + 1);
        let posted = worker.post(move || {
            spawn(async move {
                let drive = LocalDrive::open(&LocalGraph::of(&cell), "d").expect("a drive");
                let load = Load::start_on(drive, share);
                while !ended.load(Ordering::Relaxed) {
                    sleep_until(turn_now() + Duration::from_millis(1)).await;
                }
                sender.send(load.end().await).expect("the test waits");
            });
        });
        posted.expect("a worker");
    }
    let (cell, finished) = (Arc::clone(&scene.cell), Arc::clone(&ended));
    let changes = workers.handles()[0].post(move || {
        spawn(async move {
            let scene = Scene { cell };
            for number in 0..200 {
                let (below, overlay_name) = ("slow", format!("o{number}"));
                let users = || Which::All;
                let insert = |node: &str, filter: &str| Action::InsertAbove {
                    node: node.into(),
                    filter: pass(filter, node),
                    users: users(),
                };
                scene.act(insert(below, "f")).await;
                sleep_until(turn_now() + Duration::from_micros(200)).await;
                scene.act(insert("disk", "g")).await;
                let remove = |node: &str| Action::RemoveFilter { node: node.into() };
                scene.all(Transaction::new().with(remove("f")).with(remove("g"))).await;
                if number % 40 == 0 {
                    let graph = scene.cell.load();
                    let root = graph.drives()[0].root().expect("a root").child();
                    let overlay = overlay(&overlay_name, graph.nodes()[root].name());
                    scene.act(Action::Snapshot { drive: "d".into(), overlay }).await;
                }
            }
            finished.store(true, Ordering::Relaxed);
        });
    });
    changes.expect("a worker");
    let mut expected: Vec<u64> = Vec::new();
    for _ in 0..2 {
        expected.extend(written.recv_timeout(Duration::from_secs(60)).expect("both loads end"));
    }
    expected.sort_unstable();
    assert_eq!(scene.dirty("d"), expected);
    workers.stop();
}
