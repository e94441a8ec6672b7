//! A compressed write that fails may spoil all sectors that it touches: those of other clusters are not among them.

use super::image::{self, Geometry};
use crate::io::sim::{Faults, Simulation};
use crate::io::{Buf, BufMut};
use crate::node::WriteFlags;

const CLUSTER: usize = 64 << 10;
const CLUSTERS: usize = 16;

/// Bytes that get smaller, by so much that several clusters go into one.
fn bytes(index: usize) -> Vec<u8> {
    (0..CLUSTER).map(|at| ((at / 300) as u8).wrapping_mul(index as u8 + 1)).collect()
}

fn fails(index: usize) -> bool {
    index % 4 == 2
}

#[test]
fn writes_that_fail_spoil_no_other_cluster() {
    for seed in 0..60 {
        let geometry = Geometry { cluster_bits: 16, direct: seed % 2 == 0, ..Geometry::PLAIN };
        let simulation = Simulation::new(seed);
        let size_bytes = (CLUSTERS * CLUSTER) as u64;
        image::add(&simulation, "disk", || image::fresh("disk", &geometry, size_bytes, None, &[]));
        let inner = simulation.clone();
        let ran = simulation.run(async move {
            let nodes = image::nodes(&inner, "disk", &geometry, None).expect("an image");
            let (_graph, drive) = image::drive(nodes, "disk");
            for index in 0..CLUSTERS {
                // What fails is to be this write alone.
                drive.flush().await.expect("a flush");
                let write = if fails(index) { 1 } else { 0 };
                inner.set_faults(Faults { write, ..Faults::NONE });
                let (at, buf) = ((index * CLUSTER) as u64, Buf::copy_of(&bytes(index)));
                let written = drive.write(at, buf, WriteFlags::COMPRESSED).await;
                inner.set_faults(Faults::NONE);
                assert_eq!(written.is_err(), fails(index), "seed {seed}, cluster {index}");
            }
            for index in 0..CLUSTERS {
                let read = drive.read((index * CLUSTER) as u64, BufMut::new(CLUSTER)).await;
                let expect = if fails(index) { vec![0; CLUSTER] } else { bytes(index) };
                let read = read.unwrap_or_else(|error| panic!("seed {seed}, {index}: {error}"));
                assert!(*read == *expect, "seed {seed}: cluster {index} is another");
            }
        });
        ran.expect("an end");
    }
}
