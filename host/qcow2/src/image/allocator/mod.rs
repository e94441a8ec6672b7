//! Reference counts in memory, and the search for free clusters.
//!
//! Nothing here does I/O. An operation that needs a refcount block which is not in memory says so and
//! has changed nothing yet; its caller loads the block and asks again. New blocks, and a longer refcount
//! table, are made in memory (`grow`): [`super::write_back`] writes them in an order in which the container never
//! refers to what is not there.

mod dirty;
mod grow;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{ClusterSize, HostOffset, RefcountTableEntry, RefcountWidth};
use crate::limits;
pub(super) use dirty::DirtyTable;

/// A run of host clusters, by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Run {
    pub(super) fn new(first: u64, count: u64) -> Self {
        Self { first, count }
    }

    /// The clusters that hold any of these bytes.
    pub(super) fn of_bytes(cluster_size: ClusterSize, offset: u64, len_bytes: u64) -> Self {
        let first = cluster_size.index_of(offset);
        let end = cluster_size.clusters_of(offset.saturating_add(len_bytes));
        Self { first, count: end.saturating_sub(first) }
    }

    fn indices(&self) -> Range<u64> {
        self.first..self.first + self.count
    }
}

/// The outcome of an operation that may need I/O first.
#[derive(Debug)]
pub(super) enum Outcome<T> {
    Done(T),
    /// Needs this refcount block, by its index in the refcount table.
    NeedsBlock(usize),
}

/// Clusters that were found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) run: Run,
    /// Whether they lie past what the container ever held, so that they read as zeros.
    pub(super) reads_zero: bool,
}

/// A refcount block in memory, as on disk.
struct Block {
    bytes: Vec<u8>,
    /// Bytes that the container does not have, empty if there are none.
    dirty: Range<usize>,
    /// Of the last change.
    generation: u64,
    used: bool,
}

/// The refcounts of an image.
pub(super) struct Allocator {
    cluster_size: ClusterSize,
    width: RefcountWidth,
    table: Vec<u64>,
    table_offset: u64,
    table_clusters: u64,
    table_dirty: BTreeSet<usize>,
    /// Where the table was: what the header may still name, until it names [`Self::table_offset`].
    tables_before: Vec<Run>,
    growing: bool,
    blocks: HashMap<usize, Block>,
    blocks_max: usize,
    generation: u64,
    /// Where the search goes on.
    rover: u64,
    /// The lowest cluster that became free since the search last began anew.
    lowest_freed: Option<u64>,
    /// No cluster from here on is in use, as far as is known.
    end: u64,
    /// Where the container, or the format, ends.
    limit: u64,
    /// Whether that is exact: a container may be longer than what is used of it.
    end_is_exact: bool,
    /// Where the container ended, in clusters, and what was handed out past it since.
    virgin: u64,
    /// Where the blocks end that were last found by [`Self::allocate_bytes`], if their cluster goes on.
    bytes_end: Option<u64>,
    /// Clusters with metadata: never handed out, never guest data.
    metadata: HashSet<u64>,
}

impl Allocator {
    /// For a table as read from the container, which is `len_bytes` long.
    pub(super) fn new(
        cluster_size: ClusterSize,
        width: RefcountWidth,
        table_offset: u64,
        table: Vec<u64>,
        len_bytes: u64,
    ) -> Self {
        let end = cluster_size.clusters_of(len_bytes).max(1);
        let table_clusters = cluster_size.clusters_of(table.len() as u64 * 8);
        let blocks_max = (limits::REFCOUNT_CACHE_BYTES / cluster_size.bytes()).max(4) as usize;
        Self {
            cluster_size,
            width,
            table,
            table_offset,
            table_clusters,
            table_dirty: BTreeSet::new(),
            tables_before: Vec::new(),
            growing: false,
            blocks: HashMap::new(),
            blocks_max,
            generation: 0,
            rover: 0,
            lowest_freed: None,
            end,
            limit: limits::HOST_BYTES_MAX >> cluster_size.bits(),
            end_is_exact: false,
            virgin: end,
            bytes_end: None,
            metadata: HashSet::new(),
        }
    }

    /// Says that the container cannot be longer.
    pub(super) fn limit_to(&mut self, end_bytes: u64) {
        self.limit = self.limit.min(self.cluster_size.index_of(end_bytes));
    }

    /// Says that a run holds metadata.
    pub(super) fn protect(&mut self, run: &Run) {
        self.metadata.extend(run.indices());
    }

    /// Says that a run does not hold metadata any more.
    pub(super) fn unprotect(&mut self, run: &Run) {
        for cluster in run.indices() {
            self.metadata.remove(&cluster);
        }
    }

    /// Whether any cluster of a run holds metadata.
    pub(super) fn is_metadata(&self, run: &Run) -> bool {
        run.indices().any(|cluster| self.metadata.contains(&cluster))
    }

    /// Clusters up to the end of the container, or of what was handed out past it.
    pub(super) fn reached(&self) -> u64 {
        self.virgin
    }

    /// Where the block of this index is, for [`Self::insert_block`].
    pub(super) fn block_offset(&self, index: usize) -> Result<Option<HostOffset>> {
        let entry = self.table.get(index).copied().unwrap_or(0);
        RefcountTableEntry(entry).block(self.cluster_size)
    }

    /// Whether the block is in memory.
    pub(super) fn has_block(&self, index: usize) -> bool {
        self.blocks.contains_key(&index)
    }

    /// Adds a block as read from the container; `false` if there is no place because all are dirty.
    pub(super) fn insert_block(&mut self, index: usize, bytes: Vec<u8>) -> bool {
        if self.blocks.contains_key(&index) {
            return true;
        }
        while self.blocks.len() >= self.blocks_max {
            if !self.evict() {
                return false;
            }
        }
        self.blocks.insert(index, Block { bytes, dirty: 0..0, generation: 0, used: true });
        true
    }

    fn evict(&mut self) -> bool {
        let clean = || self.blocks.iter().filter(|(_, block)| block.dirty.is_empty());
        let victim = clean().find(|(_, block)| !block.used).or_else(|| clean().next());
        let Some(victim) = victim.map(|(&index, _)| index) else { return false };
        self.blocks.remove(&victim);
        self.blocks.values_mut().for_each(|block| block.used = false);
        true
    }

    /// Finds up to `wanted` contiguous clusters and counts one reference for each.
    ///
    /// # Errors
    /// `ENOSPC` at the format's limits; `Corrupt` if free clusters hold metadata.
    pub(super) fn allocate(&mut self, wanted: u64) -> Result<Outcome<Found>> {
        loop {
            if self.rover >= self.end.min(self.limit)
                && let Some(lowest) = self.lowest_freed.take()
            {
                self.rover = lowest;
            }
            if self.rover >= self.limit {
                return Err(no_space("there is no free cluster up to the container's end"));
            }
            let (block_index, index) = self.place(self.rover);
            if !self.has_block(block_index) {
                if block_index >= self.table.len() {
                    if let Outcome::NeedsBlock(needed) = self.grow_table(block_index)? {
                        return Ok(Outcome::NeedsBlock(needed));
                    }
                } else if self.table[block_index] == 0 {
                    self.create_block(block_index, self.rover)?;
                } else {
                    return Ok(Outcome::NeedsBlock(block_index));
                }
                continue;
            }
            let Some(block) = self.blocks.get_mut(&block_index) else { continue };
            block.used = true;
            let Some(free) = self.width.find_zero(&block.bytes, index) else {
                self.rover += self.width.block_entries(self.cluster_size) - index as u64;
                continue;
            };
            let first = self.rover + (free - index) as u64;
            let count = self.width.zeros_from(&block.bytes, free, wanted.max(1) as usize) as u64;
            let mut run = Run::new(first, count);
            if self.rover < self.end && first >= self.end && self.lowest_freed.is_some() {
                // Nothing is free up to the end: what was freed behind the search comes first.
                self.rover = self.end;
                continue;
            }
            if first >= self.limit {
                self.rover = self.limit;
                continue;
            }
            run.count = run.count.min(self.limit - first);
            if first < self.virgin && run.indices().end > self.virgin {
                run.count = self.virgin - first;
            }
            let reads_zero = first >= self.virgin;
            self.take(&run)?;
            self.rover = run.indices().end;
            return Ok(Outcome::Done(Found { run, reads_zero }));
        }
    }

    /// How many parts of these lengths, from the first on, lie in one free cluster.
    pub(super) fn fitting(&self, lens: &[u64]) -> usize {
        fitting(lens, self.cluster_size.bytes(), self.width.max()).0
    }

    /// Finds bytes within one cluster for parts of these lengths, which lie there one after the other, and counts a
    /// reference for each: for as many, from the first on, as there is room for behind the last bytes found so; if that is
    /// none, in a new cluster. Returns where they begin, and how many they are. They have whole blocks for themselves. A
    /// block is a power of two and, as each part, no more than a cluster.
    ///
    /// # Errors
    /// As for [`Self::allocate`].
    pub(super) fn allocate_bytes(
        &mut self,
        lens: &[u64],
        block_bytes: u64,
    ) -> Result<Outcome<(u64, usize)>> {
        let next = self.bytes_end.map(|end| end.next_multiple_of(block_bytes));
        if let Some(at) = next.filter(|at| !self.cluster_size.is_aligned(*at)) {
            let cluster = self.cluster_size.index_of(at);
            let Outcome::Done(count) = self.refcount(cluster) else {
                return Ok(Outcome::NeedsBlock(self.place(cluster).0));
            };
            let room = self.cluster_size.bytes() - self.cluster_size.offset_in(at);
            let references = if count == 0 { 0 } else { self.width.max() - count };
            let (parts, len) = fitting(lens, room, references);
            if parts > 0 {
                self.set_count(cluster, count + parts as u64)?;
                self.leave_rest((at + len).next_multiple_of(block_bytes));
                return Ok(Outcome::Done((at, parts)));
            }
        }
        match self.allocate(1)? {
            Outcome::NeedsBlock(needed) => Ok(Outcome::NeedsBlock(needed)),
            Outcome::Done(found) => {
                let (parts, len) = fitting(lens, self.cluster_size.bytes(), self.width.max());
                self.set_count(found.run.first, parts as u64)?;
                let at = found.run.first << self.cluster_size.bits();
                self.leave_rest((at + len).next_multiple_of(block_bytes));
                Ok(Outcome::Done((at, parts)))
            }
        }
    }

    /// No more bytes are found in a cluster: its last reference is about to go, or something else may be wrong with
    /// it.
    pub(super) fn seal(&mut self, cluster: u64) {
        self.bytes_end = self.bytes_end.filter(|at| self.cluster_size.index_of(*at) != cluster);
    }

    /// The search for free clusters goes on there.
    #[cfg(test)]
    pub(super) fn search_from(&mut self, cluster: u64) {
        (self.rover, self.bytes_end) = (cluster, None);
    }

    fn leave_rest(&mut self, end: u64) {
        self.bytes_end = (!self.cluster_size.is_aligned(end)).then_some(end);
    }

    /// Counts one reference less for each cluster of a run; says which became free.
    ///
    /// # Errors
    /// `Corrupt` if there is no reference to a cluster; nothing has changed then.
    pub(super) fn decrement(&mut self, run: &Run) -> Result<Outcome<Vec<Run>>> {
        for cluster in run.indices() {
            let (block, _) = self.place(cluster);
            if self.table.get(block).is_none_or(|&entry| entry == 0) {
                return Err(no_reference(self.cluster_size, cluster));
            }
            if !self.has_block(block) {
                return Ok(Outcome::NeedsBlock(block));
            }
            if self.count_of(cluster) == 0 {
                return Err(no_reference(self.cluster_size, cluster));
            }
        }
        let mut free: Vec<Run> = Vec::new();
        for cluster in run.indices() {
            let count = self.count_of(cluster) - 1;
            self.set_count(cluster, count)?;
            if count > 0 {
                continue;
            }
            // An L2 table may be freed that was flagged as shared and was not.
            self.metadata.remove(&cluster);
            // Its next user has it for itself.
            self.seal(cluster);
            self.lowest_freed = Some(self.lowest_freed.map_or(cluster, |low| low.min(cluster)));
            match free.last_mut() {
                Some(last) if last.indices().end == cluster => last.count += 1,
                _ => free.push(Run::new(cluster, 1)),
            }
        }
        Ok(Outcome::Done(free))
    }

    /// The references to a cluster; `None` if its block is not in memory.
    pub(super) fn refcount(&self, cluster: u64) -> Outcome<u64> {
        let (block, _) = self.place(cluster);
        if self.table.get(block).is_none_or(|&entry| entry == 0) {
            return Outcome::Done(0);
        }
        if !self.has_block(block) {
            return Outcome::NeedsBlock(block);
        }
        Outcome::Done(self.count_of(cluster))
    }

    /// The end of the clusters in use, searched backwards; new ones past the end come there next.
    pub(super) fn used_end(&mut self) -> Outcome<u64> {
        while self.end > 0 {
            let (block, index) = self.place(self.end - 1);
            if self.table.get(block).is_none_or(|&entry| entry == 0) {
                self.end -= index as u64 + 1;
                continue;
            }
            match self.refcount(self.end - 1) {
                Outcome::Done(0) => self.end -= 1,
                Outcome::Done(_) => break,
                Outcome::NeedsBlock(needed) => return Outcome::NeedsBlock(needed),
            }
        }
        self.rover = self.rover.min(self.end);
        self.lowest_freed = self.lowest_freed.filter(|lowest| *lowest < self.end);
        Outcome::Done(self.end)
    }

    fn place(&self, cluster: u64) -> (usize, usize) {
        let entries = self.width.block_entries(self.cluster_size);
        ((cluster / entries) as usize, (cluster % entries) as usize)
    }

    /// Of a cluster whose block is in memory; others count as free.
    fn count_of(&self, cluster: u64) -> u64 {
        let (block, index) = self.place(cluster);
        self.blocks.get(&block).map_or(0, |block| self.width.get(&block.bytes, index))
    }

    fn set_count(&mut self, cluster: u64, count: u64) -> Result<()> {
        let (block, index) = self.place(cluster);
        let Some(block) = self.blocks.get_mut(&block) else {
            return Err(Error::corrupt("a refcount block that is not in memory was to be changed"));
        };
        self.width.set(&mut block.bytes, index, count)?;
        let bit = index << self.width.order();
        let bytes = bit / 8..(bit + self.width.bits() as usize).div_ceil(8);
        block.dirty = if block.dirty.is_empty() {
            bytes
        } else {
            block.dirty.start.min(bytes.start)..block.dirty.end.max(bytes.end)
        };
        self.generation += 1;
        block.generation = self.generation;
        block.used = true;
        Ok(())
    }

    /// Takes clusters whose counts are zero and whose blocks are in memory.
    fn take(&mut self, run: &Run) -> Result<()> {
        if let Some(cluster) = run.indices().find(|cluster| self.metadata.contains(cluster)) {
            let offset = cluster << self.cluster_size.bits();
            let message = format!("the cluster at {offset:#x} holds metadata and counts as free");
            return Err(Error::corrupt(message));
        }
        if run.indices().end > self.limit {
            return Err(no_space("the container, or the format, has no room for more clusters"));
        }
        for cluster in run.indices() {
            self.set_count(cluster, 1)?;
        }
        self.end = self.end.max(run.indices().end);
        self.virgin = self.virgin.max(self.end);
        Ok(())
    }
}

/// How many parts of these lengths, from the first on, fit, with a reference for each; and how long they are together.
fn fitting(lens: &[u64], room_bytes: u64, references: u64) -> (usize, u64) {
    let (mut parts, mut sum) = (0, 0);
    for len in lens {
        if parts as u64 == references || *len > room_bytes - sum {
            break;
        }
        (parts, sum) = (parts + 1, sum + len);
    }
    (parts, sum)
}

fn no_reference(cluster_size: ClusterSize, cluster: u64) -> Error {
    let offset = cluster << cluster_size.bits();
    Error::corrupt(format!("the cluster at {offset:#x} is in use and counts as free"))
}

fn no_space(message: &'static str) -> Error {
    Error::new(ErrorKind::NoSpace, message)
}
