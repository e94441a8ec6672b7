//! Who a node or a drive is, whatever its name: numbers that one graph never gives twice.
//!
//! A node that is removed and added again under its old name is another node. What is kept from one
//! snapshot to the next (counters, gates, serializers) and what evidence rests on goes by these numbers.

/// A node, for as long as the graph has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeGeneration(u64);

/// A drive, for as long as the graph has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct DriveGeneration(u64);

/// Gives the numbers. Snapshots hand it on.
#[derive(Clone, Debug, Default)]
pub(super) struct Generations(u64);

impl Generations {
    pub(super) fn node(&mut self) -> NodeGeneration {
        NodeGeneration(self.next())
    }

    pub(super) fn drive(&mut self) -> DriveGeneration {
        DriveGeneration(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}
