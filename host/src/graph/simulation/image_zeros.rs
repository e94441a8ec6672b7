//! What a guest zeroed in an image stays zero, whatever becomes of what is below.

use std::time::Duration;

use blockloom_qcow2::testing::{Container, MemoryStorage, block_on};

use super::image::{self, Geometry, file_name};
use crate::io::sim::Simulation;
use crate::node::WriteFlags;

const SIZE: u64 = 64 << 10;
const CLUSTER: u64 = 4096;

/// A part of a cluster that no backing reaches shows zeros, and is written all the same: the backing may get
/// longer.
#[test]
fn zeros_past_the_end_of_a_backing_stay() {
    let simulation = Simulation::new(1);
    let geometry = Geometry { cluster_bits: 12, ..Geometry::PLAIN };
    image::add(&simulation, "base", || image::fresh("base", &geometry, CLUSTER, None, &[]));
    image::add(&simulation, "top", || image::fresh("top", &geometry, SIZE, Some("base"), &[]));
    let zeroed = [3 * CLUSTER + 512..3 * CLUSTER + 1536, 5 * CLUSTER - 512..7 * CLUSTER + 512];
    let (inner, ranges) = (simulation.clone(), zeroed.clone());
    let ran = simulation.run(async move {
        let mut nodes = image::nodes(&inner, "base", &geometry, None).expect("an image");
        nodes.extend(image::nodes(&inner, "top", &geometry, Some("base")).expect("an image"));
        let (cell, drive) = image::drive(nodes, "top");
        for range in ranges {
            let zeroed = drive.zero(range.start, range.end - range.start, WriteFlags::NONE);
            zeroed.await.expect("zeros");
        }
        cell.close_nodes(Duration::ZERO).await.expect("an end in order");
    });
    ran.expect("an end");
    let file = MemoryStorage::new(simulation.bytes(&file_name("top")));
    let longer = Some(vec![0xff; SIZE as usize]);
    let disk = image::open_disk(Container { file, data: None }, longer).expect("an image");
    for range in zeroed {
        let mut bytes = vec![1; (range.end - range.start) as usize];
        block_on(disk.read(range.start, &mut bytes)).expect("reads");
        assert!(bytes.iter().all(|&byte| byte == 0), "{range:?}: the backing shows");
    }
}
