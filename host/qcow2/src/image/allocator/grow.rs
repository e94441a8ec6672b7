//! Refcount blocks that are not there yet, and a longer table for them.

use super::{Allocator, Block, Outcome, Run, no_space};
use crate::error::Result;
use crate::limits;

impl Allocator {
    /// Finds exactly so many contiguous clusters, past the end of all others.
    ///
    /// # Errors
    /// As for [`Self::allocate`].
    pub(in crate::image) fn allocate_contiguous(&mut self, count: u64) -> Result<Outcome<Run>> {
        if !self.end_is_exact {
            match self.used_end() {
                Outcome::Done(_) => {}
                Outcome::NeedsBlock(needed) => return Ok(Outcome::NeedsBlock(needed)),
            }
            self.end_is_exact = true;
        }
        loop {
            let run = Run::new(self.end, count);
            let blocks = self.place(run.first).0..=self.place(run.first + count - 1).0;
            let absent = |index: &usize| self.table.get(*index).is_none_or(|&entry| entry == 0);
            if let Some(index) = blocks.clone().find(absent) {
                if let Outcome::NeedsBlock(needed) = self.create_block_past_end(index)? {
                    return Ok(Outcome::NeedsBlock(needed));
                }
                continue;
            }
            // A block may be displaced by the next one while a very long run is looked at.
            if let Some(needed) = blocks.clone().find(|index| !self.has_block(*index)) {
                return Ok(Outcome::NeedsBlock(needed));
            }
            if let Some(used) = run.indices().rev().find(|&cluster| self.count_of(cluster) != 0) {
                self.end = used + 1;
                continue;
            }
            self.take(&run)?;
            return Ok(Outcome::Done(run));
        }
    }

    /// Makes the block of this index, which is not there, in a cluster that is free and whose count is
    /// in memory or in the new block itself.
    pub(super) fn create_block(&mut self, index: usize, cluster: u64) -> Result<()> {
        let bytes = vec![0; self.cluster_size.bytes() as usize];
        let dirty = 0..bytes.len();
        self.generation += 1;
        let block = Block { bytes, dirty, generation: self.generation, used: true };
        self.blocks.insert(index, block);
        if let Err(error) = self.take(&Run::new(cluster, 1)) {
            self.blocks.remove(&index);
            return Err(error);
        }
        self.metadata.insert(cluster);
        self.table[index] = cluster << self.cluster_size.bits();
        self.table_dirty.insert(index);
        Ok(())
    }

    /// Makes the block of this index, the lowest that is missing from the end on, at the end: a run that
    /// needs several new blocks stays in one piece behind them.
    fn create_block_past_end(&mut self, index: usize) -> Result<Outcome<()>> {
        if index >= self.table.len() {
            return self.grow_table(index);
        }
        let (counted_by, _) = self.place(self.end);
        if counted_by != index && !self.has_block(counted_by) {
            return Ok(Outcome::NeedsBlock(counted_by));
        }
        if counted_by != index && self.count_of(self.end) != 0 {
            self.end += 1;
        } else {
            self.create_block(index, self.end)?;
        }
        Ok(Outcome::Done(()))
    }

    /// Makes the table long enough for a block of this index, half as long again, at a new place.
    pub(super) fn grow_table(&mut self, index: usize) -> Result<Outcome<()>> {
        if self.growing {
            return Err(no_space("there is no place for a longer refcount table"));
        }
        let clusters = self.table_clusters_for(index)?;
        let old_len = self.table.len();
        let cluster_entries = self.cluster_size.bytes() / 8;
        self.table.resize((clusters * cluster_entries) as usize, 0);
        self.growing = true;
        let outcome = self.allocate_contiguous(clusters);
        self.growing = false;
        let run = match outcome {
            Ok(Outcome::Done(run)) => run,
            Ok(Outcome::NeedsBlock(needed)) => {
                self.shrink_table(old_len);
                return Ok(Outcome::NeedsBlock(needed));
            }
            Err(error) => {
                self.shrink_table(old_len);
                return Err(error);
            }
        };
        let old = Run::new(self.cluster_size.index_of(self.table_offset), self.table_clusters);
        self.tables_before.push(old);
        self.protect(&run);
        self.table_offset = run.first << self.cluster_size.bits();
        self.table_clusters = run.count;
        Ok(Outcome::Done(()))
    }

    /// Clusters of a table that has a block of this index, and blocks for itself past the end.
    fn table_clusters_for(&self, index: usize) -> Result<u64> {
        let cluster_entries = self.cluster_size.bytes() / 8;
        let max = limits::REFCOUNT_TABLE_MAX_BYTES >> self.cluster_size.bits();
        let mut clusters = (index as u64 + 1).div_ceil(cluster_entries);
        for _ in 0..2 {
            // Its own clusters, and those of the blocks that count them: one in 64 at most.
            let end = self.end + clusters + clusters / 32 + 8;
            let needed = (index as u64 + 1).max(self.place(end).0 as u64 + 2);
            let needed = needed.div_ceil(cluster_entries);
            clusters = needed + needed / 2 + 1;
        }
        let clusters = clusters.min(max);
        if index as u64 >= clusters * cluster_entries {
            return Err(no_space("the refcount table cannot grow any more"));
        }
        Ok(clusters)
    }

    /// Takes back a table that found no place, with the blocks made for it.
    fn shrink_table(&mut self, len: usize) {
        for index in len..self.table.len() {
            if self.table[index] != 0 {
                let cluster = self.cluster_size.index_of(self.table[index]);
                self.metadata.remove(&cluster);
                self.blocks.remove(&index);
                self.table_dirty.remove(&index);
                let _ = self.set_count(cluster, 0);
            }
        }
        self.table.truncate(len);
    }
}
