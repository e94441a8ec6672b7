//! The active L1 table, and the L2 tables that it refers to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Image;
use super::allocator::Run;
use super::cache::Inserted;
use crate::error::{Error, Result};
use crate::format::{Cluster, HostOffset, L1Entry, L2Entry};
use crate::storage::Storage;

/// The active L1 table in memory.
pub(super) struct L1 {
    pub(super) offset: HostOffset,
    entries: Box<[AtomicU64]>,
    /// Entries that the container does not have, with the generation of their last change.
    dirty: Mutex<BTreeMap<u64, u64>>,
}

/// An L1 entry to be written.
pub(super) struct DirtyL1Entry {
    pub(super) index: u64,
    pub(super) generation: u64,
    pub(super) value: u64,
}

impl L1 {
    pub(super) fn new(offset: HostOffset, entries: impl Iterator<Item = u64>) -> Self {
        let entries = entries.map(AtomicU64::new).collect();
        Self { offset, entries, dirty: Mutex::default() }
    }

    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Past the end nothing is allocated.
    pub(super) fn get(&self, index: u64) -> L1Entry {
        let entry = self.entries.get(index as usize);
        L1Entry(entry.map_or(0, |entry| entry.load(Ordering::Acquire)))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = u64> + '_ {
        self.entries.iter().map(|entry| entry.load(Ordering::Acquire))
    }

    pub(super) fn set(&self, index: u64, entry: L1Entry, generation: u64) {
        if let Some(place) = self.entries.get(index as usize) {
            place.store(entry.0, Ordering::Release);
            self.dirty().insert(index, generation);
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty().is_empty()
    }

    pub(super) fn copy_dirty(&self) -> Vec<DirtyL1Entry> {
        let dirty = self.dirty();
        let entry = |(&index, &generation): (&u64, &u64)| DirtyL1Entry {
            index,
            generation,
            value: self.get(index).0,
        };
        dirty.iter().map(entry).collect()
    }

    pub(super) fn written(&self, entries: &[DirtyL1Entry]) {
        let mut dirty = self.dirty();
        for entry in entries {
            if dirty.get(&entry.index) == Some(&entry.generation) {
                dirty.remove(&entry.index);
            }
        }
    }

    fn dirty(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the mapping of a guest offset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) l1_index: u64,
    /// Number of the slice.
    pub(super) slice: u64,
    /// Of the entry in its slice.
    pub(super) index: usize,
}

impl Image {
    pub(super) fn slot(&self, offset: u64) -> Slot {
        let cluster = self.format.cluster_size.index_of(offset);
        Slot {
            l1_index: cluster >> self.table_bits,
            slice: cluster >> self.slice_bits,
            index: (cluster & ((1 << self.slice_bits) - 1)) as usize,
        }
    }

    /// L2 entries of a slice.
    pub(super) fn slice_entries(&self) -> u64 {
        1 << self.slice_bits
    }

    /// The entry at an index of a slice.
    pub(super) fn entry_at(&self, words: &[AtomicU64], index: usize) -> L2Entry {
        let at = |index: usize| words.get(index).map_or(0, |word| word.load(Ordering::Relaxed));
        if self.format.extended {
            L2Entry { descriptor: at(2 * index), bitmap: at(2 * index + 1) }
        } else {
            L2Entry { descriptor: at(index), bitmap: 0 }
        }
    }

    pub(super) fn set_entry(&self, words: &[AtomicU64], index: usize, entry: L2Entry) {
        let put = |index: usize, value: u64| {
            if let Some(word) = words.get(index) {
                word.store(value, Ordering::Relaxed);
            }
        };
        if self.format.extended {
            put(2 * index, entry.descriptor);
            put(2 * index + 1, entry.bitmap);
        } else {
            put(index, entry.descriptor);
        }
    }

    /// Where a slice is in the container; `None` if its table is not there.
    pub(super) fn slice_offset(&self, slot: Slot) -> Result<Option<u64>> {
        let entry = self.l1.load().get(slot.l1_index);
        let slice_bytes = self.cache.slice_words() as u64 * 8;
        let table = entry.table(self.format.cluster_size)?;
        let table_bytes = self.format.cluster_size.bytes();
        Ok(table.map(|table| table.0 + slot.slice * slice_bytes % table_bytes))
    }

    /// Brings a slice into the cache; `false` if its table is not there.
    pub(super) async fn load_slice<S: Storage>(&self, s: &S, slot: Slot) -> Result<bool> {
        if self.cache.contains(slot.slice) {
            return Ok(true);
        }
        let _loading = self.slice_loads.lock(slot.slice..slot.slice + 1).await;
        // While this is held nobody else brings the slice in, so that it cannot change behind the read.
        if self.cache.contains(slot.slice) {
            return Ok(true);
        }
        let Some(offset) = self.slice_offset(slot)? else { return Ok(false) };
        self.check_table_place(offset)?;
        let mut bytes = vec![0; self.cache.slice_words() * 8];
        s.read(offset, &mut bytes).await?;
        let words: Vec<u64> = words_of(&bytes).collect();
        let suspect = self.has_suspect(slot, &words);
        while self.cache.insert(slot.slice, &words, suspect) == Inserted::AllDirty {
            self.write_back(s).await?;
        }
        Ok(true)
    }

    fn check_table_place(&self, offset: u64) -> Result<()> {
        let end = self.allocator().reached();
        if self.format.cluster_size.index_of(offset) >= end {
            let message = format!("the L2 table at {offset:#x} lies past the end of the container");
            return Err(Error::corrupt(message));
        }
        Ok(())
    }

    /// Whether lookups in a slice have to check what they find.
    fn has_suspect(&self, slot: Slot, words: &[u64]) -> bool {
        let entry_words = self.format.entry_words();
        let first = slot.slice * self.slice_entries();
        words.chunks_exact(entry_words).zip(first..).any(|(entry, cluster)| {
            let entry =
                L2Entry { descriptor: entry[0], bitmap: entry.get(1).copied().unwrap_or(0) };
            self.check_entry(cluster << self.format.cluster_size.bits(), entry).is_err()
        })
    }

    /// Decodes an entry and checks that what it refers to can be guest data.
    pub(super) fn check_entry(&self, guest: u64, entry: L2Entry) -> Result<Cluster> {
        let cluster = self.format.decode(entry)?;
        let cluster_size = self.format.cluster_size;
        let guest = cluster_size.floor(guest);
        let run = match &cluster {
            Cluster::Standard(standard) => match standard.host {
                None => return Ok(cluster),
                Some(host) if self.format.external_data => {
                    if host.0 == guest {
                        return Ok(cluster);
                    }
                    let message = format!(
                        "guest offset {guest:#x} is at {:#x} in the external data file, not at its own",
                        host.0
                    );
                    return Err(Error::corrupt(message));
                }
                Some(host) => Run::new(cluster_size.index_of(host.0), 1),
            },
            Cluster::Compressed(data) => Run::of_bytes(cluster_size, data.host.0, data.len_bytes),
        };
        let allocator = self.allocator();
        // The last sectors of compressed data may lie past the end.
        if run.first >= allocator.reached() {
            let message =
                format!("guest offset {guest:#x} is mapped past the end of the container");
            return Err(Error::corrupt(message));
        }
        if allocator.is_metadata(&run) {
            let message = format!("guest offset {guest:#x} is mapped to metadata");
            return Err(Error::corrupt(message));
        }
        Ok(cluster)
    }

    /// Makes an L1 entry refer to a table that may be changed: a new one if there is none, a copy if it
    /// is shared with a snapshot.
    pub(super) async fn ensure_table<S: Storage>(&self, s: &S, l1_index: u64) -> Result<()> {
        let entry = self.l1.load().get(l1_index);
        if entry.copied() && entry.table(self.format.cluster_size)?.is_some() {
            return Ok(());
        }
        let _changing = self.table_changes.lock(l1_index..l1_index + 1).await;
        let entry = self.l1.load().get(l1_index);
        let old = entry.table(self.format.cluster_size)?;
        if entry.copied() && old.is_some() {
            return Ok(());
        }
        let reserved = self.allocate(s, 1).await?;
        let offset = reserved.first() << self.format.cluster_size.bits();
        // The whole table is in the container before anything refers to it; nothing of an old one is
        // dirty, because it was not to be changed.
        match old {
            Some(old) => {
                self.check_table_place(old.0)?;
                let mut bytes = vec![0; self.format.cluster_size.bytes() as usize];
                s.read(old.0, &mut bytes).await?;
                s.write(offset, &bytes).await?;
            }
            None => s.zero(offset, self.format.cluster_size.bytes()).await?,
        }
        let run = reserved.keep();
        self.allocator().protect(&run);
        let entry = L1Entry::new(HostOffset(offset), true);
        self.l1.load().set(l1_index, entry, self.next_generation());
        if let Some(old) = old {
            let old = Run::new(self.format.cluster_size.index_of(old.0), 1);
            self.frees.push([old]);
        }
        Ok(())
    }
}

/// Big-endian words of bytes.
pub(super) fn words_of(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(8).map(|chunk| {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        u64::from_be_bytes(word)
    })
}

/// Big-endian bytes of words.
pub(super) fn bytes_of(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_be_bytes).collect()
}
