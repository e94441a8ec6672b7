//! Writers that never pause, and what they know: every byte that they wrote, and every block.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use super::scene::{BLOCK, Scene, Stop};
use crate::graph::LocalDrive;
use crate::graph::testing::turn;
use crate::io::{Buf, BufMut, spawn};
use crate::node::WriteFlags;

#[derive(Default)]
struct Known {
    /// Byte with which each block is filled.
    bytes: Vec<u8>,
    /// Blocks written since the load began, or since [`Load::forget`].
    written: BTreeSet<u64>,
    writes: u64,
    running: usize,
}

/// Tasks that write blocks of one drive, each its own, and check now and then what they read.
pub(super) struct Load {
    known: Rc<RefCell<Known>>,
    stop: Stop,
    drive: LocalDrive,
}

const TASKS: u64 = 4;

impl Load {
    /// Writes the first `blocks` blocks of a drive that is zero there.
    pub(super) fn start(scene: &Scene, id: &str, blocks: u64) -> Self {
        Self::start_on(scene.drive(id), 0..blocks)
    }

    pub(super) fn start_on(drive: LocalDrive, blocks: std::ops::Range<u64>) -> Self {
        let end = usize::try_from(blocks.end).expect("few blocks");
        let known = Known { bytes: vec![0; end], running: TASKS as usize, ..Known::default() };
        let load = Self { known: Rc::new(RefCell::new(known)), stop: Stop::default(), drive };
        for task in 0..TASKS {
            let (known, stop) = (Rc::clone(&load.known), Rc::clone(&load.stop));
            let (drive, blocks) = (load.drive.clone(), blocks.clone());
            spawn(async move {
                let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(task + 1);
                let own = (blocks.end - blocks.start) / TASKS;
                while !stop.get() {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let block = blocks.start + random % own * TASKS + task;
                    step(&drive, &known, block, (random >> 32) as u8 | 1).await;
                    turn().await;
                }
                known.borrow_mut().running -= 1;
            });
        }
        load
    }

    /// Writes done.
    pub(super) fn writes(&self) -> u64 {
        self.known.borrow().writes
    }

    /// Waits for `count` more writes.
    pub(super) async fn goes_on(&self, count: u64) {
        let end = self.writes() + count;
        while self.writes() < end {
            turn().await;
        }
    }

    /// Ends it, and checks all bytes. Returns the blocks that were written.
    pub(super) async fn end(self) -> Vec<u64> {
        self.stop.set(true);
        while self.known.borrow().running > 0 {
            turn().await;
        }
        let bytes = self.known.borrow().bytes.len() * BLOCK;
        let buf = self.drive.read(0, BufMut::new(bytes)).await.expect("a read");
        let known = self.known.borrow();
        for block in &known.written {
            let at = usize::try_from(*block).expect("few blocks");
            let expect = known.bytes[at];
            let found = &buf[at * BLOCK..(at + 1) * BLOCK];
            assert!(found.iter().all(|byte| *byte == expect), "block {block} lost its bytes");
        }
        known.written.iter().copied().collect()
    }
}

async fn step(drive: &LocalDrive, known: &RefCell<Known>, block: u64, byte: u8) {
    let (offset, at) = (block * BLOCK as u64, usize::try_from(block).expect("few blocks"));
    let data = Buf::copy_of(&vec![byte; BLOCK]);
    known.borrow_mut().written.insert(block);
    drive.write(offset, data, WriteFlags::NONE).await.expect("a write");
    known.borrow_mut().bytes[at] = byte;
    known.borrow_mut().writes += 1;
    if byte % 8 == 1 {
        let read = drive.read(offset, BufMut::new(BLOCK)).await.expect("a read");
        assert!(read.iter().all(|read| *read == byte), "block {block} reads something else");
    }
}
