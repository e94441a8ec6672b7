//! Flushes of an image that nobody waits for to their end.

use std::time::Duration;

use blockloom_qcow2::testing::{Container, MemoryStorage, block_on};

use super::image::{self, Geometry, file_name};
use super::seeds;
use crate::graph::LocalDrive;
use crate::io::sim::{Random, Simulation};
use crate::io::{Buf, turn_now, until};
use crate::node::WriteFlags;

const CLUSTER: u64 = 4096;
const CLUSTERS: u64 = 16;
const ROUNDS: u64 = 12;
/// Room for all writes to be still under way.
const CLOSE_TIME: Duration = Duration::from_secs(10);

/// Writes whole clusters, and drops flushes in between; what it has written at last, by cluster.
async fn write_and_drop(drive: &LocalDrive, mut random: Random) -> Vec<u8> {
    let mut written = vec![0; CLUSTERS as usize];
    for round in 1..=ROUNDS {
        let (at, value) = (random.below(CLUSTERS), round as u8);
        let bytes = Buf::copy_of(&[value; CLUSTER as usize]);
        drive.write(at * CLUSTER, bytes, WriteFlags::NONE).await.expect("a write");
        written[at as usize] = value;
        let time = Duration::from_micros(random.below(1500));
        let _ = until(turn_now() + time, drive.flush()).await;
    }
    drive.flush().await.expect("a flush");
    written
}

/// What a flush writes lands though its future was dropped, and never over what is newer.
#[test]
fn a_dropped_flush_overtakes_nothing() {
    for seed in seeds(200) {
        let simulation = Simulation::new(seed);
        let geometry = Geometry { cluster_bits: 12, ..Geometry::PLAIN };
        let size = CLUSTERS * CLUSTER;
        image::add(&simulation, "disk", || image::fresh("disk", &geometry, size, None, &[]));
        let (inner, random) = (simulation.clone(), simulation.random());
        let ran = simulation.run(async move {
            let nodes = image::nodes(&inner, "disk", &geometry, None).expect("an image");
            let (cell, drive) = image::drive(nodes, "disk");
            let written = write_and_drop(&drive, random).await;
            let closed = cell.close_nodes(CLOSE_TIME).await;
            closed.map(|()| written)
        });
        let written = ran.expect("an end").unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let file = MemoryStorage::new(simulation.bytes(&file_name("disk")));
        let disk = image::open_disk(Container { file, data: None }, None).expect("an image");
        for (at, value) in (0..).zip(written) {
            let mut bytes = vec![0; CLUSTER as usize];
            block_on(disk.read(at * CLUSTER, &mut bytes)).expect("reads");
            let is_it = bytes.iter().all(|byte| *byte == value);
            assert!(is_it, "seed {seed}: cluster {at} shows {}, not {value}", bytes[0]);
        }
    }
}
