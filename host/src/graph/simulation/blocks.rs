//! Images that do not fit the blocks of their files, which are written past the page cache: several clusters in a block,
//! and a raw data file that does not end with one.

use std::rc::Rc;
use std::sync::Arc;

use super::image::{self, Data, Geometry};
use crate::bitmap::{BitmapName, Change, Granularity};
use crate::error::ErrorKind;
use crate::graph::{
    Action, BitmapDecl, BitmapScope, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph,
    Transaction,
};
use crate::io::sim::{Faults, SECTOR, Simulation};
use crate::io::{Buf, BufMut, next_turn, spawn};
use crate::node::WriteFlags;

const BLOCK: u64 = 4096;
const SIZE: u64 = 8 * BLOCK;

/// Drive `vda` on image `disk`, with a bitmap of sectors.
fn drive(simulation: &Simulation, geometry: &Geometry, size: u64) -> (Arc<GraphCell>, LocalDrive) {
    image::add(simulation, "disk", || image::fresh("disk", geometry, size, None, &[]));
    let nodes = image::nodes(simulation, "disk", geometry, None).expect("an image");
    let (id, root) = ("vda".to_owned(), Some("disk".into()));
    let drives = vec![DriveDecl { id, root, writable: true, only_shows: false }];
    let (scope, name) = (BitmapScope::Drive("vda".into()), BitmapName::new("b").expect("a name"));
    let granularity = Granularity::MIN;
    let bitmaps = vec![BitmapDecl { scope, name, granularity, enabled: true }];
    let graph = GraphDecl { nodes, drives, bitmaps }.build().expect("a graph");
    let cell = Arc::new(GraphCell::new(graph));
    let drive = LocalDrive::open(&LocalGraph::of(&cell), "vda").expect("a drive");
    (cell, drive)
}

/// Writes a cluster each, at once; whether each write went well.
async fn write_all(drive: &Rc<LocalDrive>, clusters: &[(u64, Vec<u8>)]) -> Vec<bool> {
    let results: Rc<[std::cell::Cell<Option<bool>>]> =
        clusters.iter().map(|_| std::cell::Cell::new(None)).collect();
    for (index, (offset, bytes)) in clusters.iter().cloned().enumerate() {
        let (drive, results) = (Rc::clone(drive), Rc::clone(&results));
        spawn(async move {
            let written = drive.write(offset, Buf::copy_of(&bytes), WriteFlags::NONE).await;
            results[index].set(Some(written.is_ok()));
        });
    }
    while results.iter().any(|result| result.get().is_none()) {
        next_turn().await;
    }
    results.iter().filter_map(std::cell::Cell::get).collect()
}

fn geometry(seed: u64) -> Geometry {
    Geometry { cluster_bits: 9 + (seed % 3) as u32, direct: true, ..Geometry::PLAIN }
}

/// Clusters of `values`, which lie beside each other.
fn clusters(geometry: &Geometry, values: std::ops::Range<u8>) -> Vec<(u64, Vec<u8>)> {
    let cluster = 1_u64 << geometry.cluster_bits;
    let bytes = |value| vec![value; cluster as usize];
    values.clone().map(|value| (u64::from(value - values.start) * cluster, bytes(value))).collect()
}

/// Clusters that share a block are written at once, in whatever order: none puts back what another one was.
#[test]
fn neighbours_in_a_block_are_written_at_once() {
    for seed in 0..60 {
        let geometry = geometry(seed);
        let simulation = Simulation::new(seed);
        simulation.set_faults(Faults::HARMLESS);
        let inner = simulation.clone();
        let ran = simulation.run(async move {
            let (_cell, drive) = drive(&inner, &geometry, SIZE);
            let drive = Rc::new(drive);
            // New clusters at first, then in place.
            for round in 0..6 {
                let written = clusters(&geometry, 1 + 20 * round..9 + 20 * round);
                assert!(write_all(&drive, &written).await.into_iter().all(|ok| ok));
                let expect: Vec<u8> = written.into_iter().flat_map(|(_, bytes)| bytes).collect();
                let shown = drive.read(0, BufMut::new(expect.len())).await.expect("a read");
                assert!(shown[..] == expect[..], "seed {seed}, round {round}");
            }
            drive.flush().await.expect("a flush");
        });
        ran.unwrap_or_else(|stop| panic!("seed {seed}: {stop}"));
    }
}

/// A write that fails may spoil all of its block: what is in it beside the cluster may be anywhere on the disk, so all of
/// that is marked.
#[test]
fn what_a_failed_write_spoils_beside_it_is_dirty() {
    let (mut failures, mut spoiled) = (0, 0);
    for seed in 0..120 {
        let geometry = geometry(seed);
        let simulation = Simulation::new(seed);
        let inner = simulation.clone();
        let ran = simulation.run(async move {
            let (cell, drive) = drive(&inner, &geometry, SIZE);
            let drive = Rc::new(drive);
            let before: Vec<u8> = (0..SIZE as usize).map(|at| (at / SECTOR) as u8 + 100).collect();
            drive.write(0, Buf::copy_of(&before), WriteFlags::NONE).await.expect("a write");
            drive.flush().await.expect("a flush");
            let scope = BitmapScope::Drive("vda".into());
            let bitmap = Arc::clone(cell.load().find_bitmap(&scope, "b").expect("a bitmap"));
            cell.change_bitmap(&bitmap, &[Change::Clear]).await.expect("a clear");
            inner.set_faults(Faults { write: 2, ..Faults::NONE });
            let ok = write_all(&drive, &clusters(&geometry, 1..5)).await;
            inner.set_faults(Faults::NONE);
            let mut spoiled = 0;
            for (sector, before) in before.chunks(SECTOR).enumerate() {
                let at = (sector * SECTOR) as u64;
                let is_dirty = bitmap.ranges(at..at + 1).next().is_some();
                // What cannot be read has not changed unseen.
                let Ok(shown) = drive.read(at, BufMut::new(SECTOR)).await else { continue };
                assert!(is_dirty || shown[..] == *before, "seed {seed}: sector {sector} is clean");
                let is_written = at < 4 << geometry.cluster_bits;
                spoiled += u64::from(!is_written && shown[..] != *before);
            }
            (ok.into_iter().filter(|ok| !ok).count(), spoiled)
        });
        let (failed, others) = ran.unwrap_or_else(|stop| panic!("seed {seed}: {stop}"));
        failures += failed;
        spoiled += others;
    }
    assert!(
        failures > 20 && spoiled > 5,
        "{failures} writes failed, and spoiled {spoiled} sectors"
    );
}

/// A disk is as long as it is to be, as QEMU has it, and so is its raw data file, whatever blocks that was written in.
#[test]
fn a_raw_data_file_ends_with_any_sector() {
    let simulation = Simulation::new(3);
    simulation.set_faults(Faults::HARMLESS);
    let inner = simulation.clone();
    let ran = simulation.run(async move {
        let geometry =
            Geometry { cluster_bits: 12, data: Data::Raw, direct: true, ..Geometry::PLAIN };
        let (cell, drive) = drive(&inner, &geometry, SIZE);
        let resize = async |size_bytes| {
            let action = Action::Resize { node: "disk".into(), size_bytes };
            cell.transact(Transaction::new().with(action)).await.map(drop)
        };
        let sector = SECTOR as u64;
        for size in [SIZE + sector, SIZE + 3 * sector, SIZE - sector, 2 * SIZE, SIZE - 5 * sector] {
            resize(size).await.unwrap_or_else(|error| panic!("{size}: {error}"));
            assert_eq!(inner.bytes(&image::data_name("disk")).len() as u64, size);
            let last = size - sector;
            let bytes = Buf::copy_of(&[7; SECTOR]);
            drive.write(last, bytes, WriteFlags::NONE).await.expect("a write");
            let shown = drive.read(last - sector, BufMut::new(2 * SECTOR)).await.expect("a read");
            assert!(shown[SECTOR..] == [7; SECTOR] && shown[..SECTOR].iter().all(|it| *it != 9));
            drive.write(0, Buf::copy_of(&[9; 100]), WriteFlags::NONE).await.expect("a write");
            assert_eq!(inner.bytes(&image::data_name("disk")).len() as u64, size);
            let past = drive.write(size, Buf::zeros(512), WriteFlags::NONE).await;
            assert_eq!(past.map_err(|error| error.kind()), Err(ErrorKind::NoSpace));
        }
        let error = resize(SIZE + 100).await.expect_err("no sector");
        assert!(error.to_string().contains("512"), "{error}");
    });
    ran.unwrap_or_else(|stop| panic!("{stop}"));
}
