//! The simulator itself: schedules, files, faults, deadlocks.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::*;
use crate::io::{
    AllocateMode, Buf, BufMut, File, FileOp, OpenOptions, SeekTarget, current, sleep_until, spawn,
    turn_now,
};

fn open(name: &str) -> Arc<File> {
    Arc::new(File::open(name.as_ref(), &OpenOptions::default()).expect("a simulated file"))
}

/// Four tasks on one file; the order in which they end.
fn race(seed: u64) -> (Vec<u64>, Trace) {
    let simulation = Simulation::new(seed);
    simulation.add_file("disk", vec![0; 16 * SECTOR]);
    let order = Rc::new(RefCell::new(Vec::new()));
    let ended = Rc::clone(&order);
    let run = simulation.run(async move {
        for task in 0..4 {
            let (file, ended) = (open("disk"), Rc::clone(&ended));
            spawn(async move {
                for sector in 0..4_u64 {
                    let bytes = Buf::copy_of(&[task as u8; SECTOR]);
                    file.write_at(sector * SECTOR as u64, bytes).await.expect("a write");
                }
                ended.borrow_mut().push(task);
            });
        }
        while ended.borrow().len() < 4 {
            sleep_until(turn_now() + Duration::from_millis(1)).await;
        }
    });
    assert_eq!(run, Ok(()));
    (order.take(), simulation.trace())
}

#[test]
fn the_same_seed_is_the_same_run_and_another_one_is_not() {
    let mut orders: Vec<Vec<u64>> = (0..60)
        .map(|seed| {
            let ((order, trace), (_, again)) = (race(seed), race(seed));
            assert_eq!(trace.first_difference(&again), None);
            order
        })
        .collect();
    orders.sort();
    orders.dedup();
    assert!(orders.len() > 15, "few of the 24 orders: {orders:?}");
}

#[test]
fn files_are_files() {
    let simulation = Simulation::new(7);
    simulation.set_faults(Faults::HARMLESS);
    let create_bytes = Some(8 * SECTOR as u64);
    let run = simulation.run(async move {
        let missing = File::open("none".as_ref(), &OpenOptions::default());
        assert_eq!(missing.expect_err("no such file").kind(), std::io::ErrorKind::NotFound);
        let options = OpenOptions { create_bytes, write: true, ..OpenOptions::default() };
        let file = Arc::new(File::open("disk".as_ref(), &options).expect("a file"));
        assert_eq!(file.len_bytes().expect("a length"), 8 * SECTOR as u64);
        file.write_at(700, Buf::copy_of(&[3; 600])).await.expect("a write");
        let (read, bytes) = file.read_at(600, BufMut::new(10_000)).await;
        assert_eq!(read.expect("a read"), 8 * SECTOR - 600, "to the end of the file");
        assert!(bytes[..100].iter().chain(&bytes[700..8 * SECTOR - 600]).all(|byte| *byte == 0));
        assert!(bytes[100..700].iter().all(|byte| *byte == 3));
        let seek = |offset, target| file.run_op(FileOp::Seek { offset, target });
        assert_eq!(seek(0, SeekTarget::Data).await.expect("data"), 512);
        assert_eq!(seek(600, SeekTarget::Hole).await.expect("a hole"), 1536);
        let mode = AllocateMode::PunchHole;
        file.run_op(FileOp::Allocate { mode, offset: 512, len: 1024 }).await.expect("a hole");
        assert!(seek(0, SeekTarget::Data).await.is_err(), "all of it is a hole");
        file.run_op(FileOp::Sync { data_only: true }).await.expect("a sync");
    });
    assert_eq!(run, Ok(()));
    assert_eq!(simulation.bytes("disk"), vec![0; 8 * SECTOR]);
}

#[test]
fn time_goes_from_event_to_event() {
    let simulation = Simulation::new(1);
    let began = std::time::Instant::now();
    let run = simulation.run(async {
        let start = turn_now();
        sleep_until(start + Duration::from_secs(3600)).await;
        turn_now().since(start)
    });
    assert_eq!(run, Ok(Duration::from_secs(3600)));
    assert!(began.elapsed() < Duration::from_secs(60), "simulated hours cost no real ones");
}

#[test]
fn what_cannot_go_on_is_told() {
    let simulation = Simulation::new(1);
    assert_eq!(simulation.run(poll_fn(|_| Poll::<()>::Pending)), Err(Stop::Deadlock));
    let wakes_itself = poll_fn(|cx| {
        cx.waker().wake_by_ref();
        Poll::<()>::Pending
    });
    assert_eq!(simulation.run(wakes_itself), Err(Stop::Endless));
    assert_eq!(simulation.run(async { 5 }), Ok(5), "it can be used again");
    assert!(current().is_none());
}

#[test]
fn a_crash_ends_the_run_and_leaves_what_was_synced() {
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..50 {
        let simulation = Simulation::new(seed);
        simulation.add_file("disk", vec![0; 4 * SECTOR]);
        simulation.crash_after(2 + seed % 40);
        let synced = Rc::new(Cell::new(0));
        let told = Rc::clone(&synced);
        let run: Result<(), Stop> = simulation.run(async move {
            let file = open("disk");
            for byte in 1..=255 {
                file.write_at(0, Buf::copy_of(&[byte; 4 * SECTOR])).await.expect("a write");
                file.run_op(FileOp::Sync { data_only: true }).await.expect("a sync");
                told.set(byte);
            }
        });
        assert_eq!(run, Err(Stop::Crashed));
        let left = simulation.bytes("disk");
        let may_be = [synced.get(), synced.get() + 1];
        assert!(left.iter().all(|byte| may_be.contains(byte)), "seed {seed}: {may_be:?}");
        if left.iter().all(|byte| *byte == synced.get()) { lost += 1 } else { kept += 1 }
    }
    assert!(kept > 5 && lost > 5, "of what was not synced, {kept} kept some, {lost} nothing");
}

#[test]
fn faults_come_and_damage_is_nobodys() {
    let simulation = Simulation::new(3);
    simulation.add_file("disk", vec![7; 64 * SECTOR]);
    simulation.set_faults(Faults { write: 2, read: 3, sync: 2, ..Faults::HARMLESS });
    let counts = simulation.run(async {
        let file = open("disk");
        let mut failed = [0; 3];
        for _ in 0..50 {
            let written = file.write_at(0, Buf::copy_of(&[8; 64 * SECTOR])).await;
            failed[0] += u32::from(written.is_err());
            failed[1] += u32::from(file.read_at(0, BufMut::new(SECTOR)).await.0.is_err());
            let sync = file.run_op(FileOp::Sync { data_only: true }).await;
            failed[2] += u32::from(sync.is_err());
        }
        failed
    });
    let counts = counts.expect("a run to the end");
    assert!(counts.iter().all(|count| (5..45).contains(count)), "{counts:?}");
    let bytes = simulation.bytes("disk");
    for sector in bytes.chunks(SECTOR) {
        let is_damaged = sector[6..8] == [0xad, 0xde] && sector[..8] == sector[504..];
        assert!(is_damaged || sector.iter().all(|byte| [7, 8].contains(byte)));
    }
}

/// What is made longer keeps its bytes, and those that are written meanwhile; where there is no room it stays as it is.
#[test]
fn a_file_is_extended() {
    for seed in 0..40 {
        let simulation = Simulation::new(seed);
        simulation.add_file("disk", vec![1; 2 * SECTOR]);
        let inner = simulation.clone();
        let run = simulation.run(async move {
            let file = open("disk");
            let extend = |end: usize| {
                let (mode, len) = (AllocateMode::Extend, SECTOR as u64);
                file.run_op(FileOp::Allocate { mode, offset: end as u64 - len, len })
            };
            inner.set_faults(Faults { space: 1, ..Faults::NONE });
            let full = extend(8 * SECTOR).await.expect_err("no room");
            assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
            assert_eq!(file.len_bytes().expect("a length"), 2 * SECTOR as u64);
            inner.set_faults(Faults::NONE);
            let writer = Rc::new(Cell::new(false));
            let (done, beside) = (Rc::clone(&writer), Arc::clone(&file));
            spawn(async move {
                let bytes = Buf::copy_of(&[2; SECTOR]);
                beside.write_at(5 * SECTOR as u64, bytes).await.expect("a write");
                done.set(true);
            });
            extend(8 * SECTOR).await.expect("room");
            while !writer.get() {
                sleep_until(turn_now() + Duration::from_millis(1)).await;
            }
            extend(4 * SECTOR).await.expect("it is longer already");
        });
        assert_eq!(run, Ok(()));
        let sectors: Vec<u8> = simulation.bytes("disk").chunks(SECTOR).map(|it| it[0]).collect();
        assert_eq!(sectors, [1, 1, 0, 0, 0, 2, 0, 0], "seed {seed}");
    }
}
