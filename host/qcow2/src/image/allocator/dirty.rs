//! What of the refcounts the container does not have: what [`crate::image`]'s write-back asks for.

use super::{Allocator, Run};

/// Dirty bytes of a block, to be written.
pub(in crate::image) struct DirtyBlock {
    pub(in crate::image) generation: u64,
    pub(in crate::image) offset: u64,
    pub(in crate::image) bytes: Vec<u8>,
}

/// The refcount table's entries to be written.
pub(in crate::image) struct DirtyTable {
    /// Where the table is, or will be once the header says so.
    pub(in crate::image) offset: u64,
    pub(in crate::image) clusters: u32,
    /// Whether the header does not say so yet: all entries are to be written.
    pub(in crate::image) moved: bool,
    /// Index and value.
    pub(in crate::image) entries: Vec<(usize, u64)>,
}

impl Allocator {
    /// Blocks that the container does not have as they are.
    pub(in crate::image) fn dirty_blocks(&self) -> Vec<usize> {
        let dirty = self.blocks.iter().filter(|(_, block)| !block.dirty.is_empty());
        let mut dirty: Vec<usize> = dirty.map(|(&index, _)| index).collect();
        // In an order that is the same in every run.
        dirty.sort_unstable();
        dirty
    }

    /// The dirty bytes of a block, rounded to sectors.
    pub(in crate::image) fn copy_dirty(&self, index: usize) -> Option<DirtyBlock> {
        let block = self.blocks.get(&index).filter(|block| !block.dirty.is_empty())?;
        let start = block.dirty.start & !511;
        let end = block.dirty.end.next_multiple_of(512).min(block.bytes.len());
        Some(DirtyBlock {
            generation: block.generation,
            offset: self.table.get(index)? + start as u64,
            bytes: block.bytes.get(start..end)?.to_vec(),
        })
    }

    /// The block has been written as it was in `generation`.
    pub(in crate::image) fn block_written(&mut self, index: usize, generation: u64) {
        if let Some(block) = self.blocks.get_mut(&index)
            && block.generation == generation
        {
            block.dirty = 0..0;
        }
    }

    /// The table's entries and place, if the container does not have them. The blocks that they name have
    /// to be durable before they are written.
    pub(in crate::image) fn dirty_table(&self) -> Option<DirtyTable> {
        let moved = !self.tables_before.is_empty();
        if !moved && self.table_dirty.is_empty() {
            return None;
        }
        let entry = |index: usize| (index, self.table[index]);
        let entries = if moved {
            (0..self.table.len()).map(entry).collect()
        } else {
            self.table_dirty.iter().copied().map(entry).collect()
        };
        let clusters = self.table_clusters as u32;
        Some(DirtyTable { offset: self.table_offset, clusters, moved, entries })
    }

    /// Entries have been written, and the header names this place; what earlier places took is free.
    pub(in crate::image) fn table_written(&mut self, table: &DirtyTable) -> Vec<Run> {
        if table.offset != self.table_offset {
            return Vec::new();
        }
        for &(index, value) in &table.entries {
            if self.table.get(index) == Some(&value) {
                self.table_dirty.remove(&index);
            }
        }
        let old = if table.moved { std::mem::take(&mut self.tables_before) } else { Vec::new() };
        for run in &old {
            self.unprotect(run);
        }
        old
    }
}
