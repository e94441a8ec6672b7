//! A count for every cluster of a container, few of them not zero.

use std::collections::{BTreeMap, HashMap};

use crate::error::{Error, ErrorKind, Result};

/// Clusters of a page: 8 KiB of counts.
const PAGE_CLUSTERS: u64 = 4096;
/// Counts from here on are in [`Counts::large`].
const LARGE: u16 = u16::MAX;
/// Bytes that one entry of a map is taken to cost.
const MAP_ENTRY_BYTES: u64 = 48;

/// Bytes that a check may still allocate.
#[derive(Debug)]
pub(super) struct Budget {
    left_bytes: u64,
}

impl Budget {
    pub(super) fn new(bytes: u64) -> Self {
        Self { left_bytes: bytes }
    }

    /// Accounts for an allocation to come.
    ///
    /// # Errors
    /// `ENOSPC` if the bound of the check does not allow it.
    pub(super) fn take(&mut self, bytes: u64) -> Result<()> {
        let message = "the image needs more memory to be checked than is allowed";
        let left = self.left_bytes.checked_sub(bytes);
        self.left_bytes = left.ok_or_else(|| Error::new(ErrorKind::NoSpace, message))?;
        Ok(())
    }

    /// Accounts for one more entry of a map or list.
    pub(super) fn take_entry(&mut self) -> Result<()> {
        self.take(MAP_ENTRY_BYTES)
    }

    /// Returns what is not allocated any more.
    pub(super) fn give_back(&mut self, bytes: u64) {
        self.left_bytes += bytes;
    }
}

/// Two bytes a cluster, in pages that exist where a count is not zero; counts saturate at 2^64 − 1.
#[derive(Debug, Default)]
pub(super) struct Counts {
    slots: HashMap<u64, usize>,
    pages: Vec<Box<[u16]>>,
    large: BTreeMap<u64, u64>,
    /// The page used last and its slot: neighbours are counted one after the other.
    last: Option<(u64, usize)>,
}

impl Counts {
    fn slot(&mut self, page: u64) -> Option<usize> {
        if let Some((last, slot)) = self.last
            && last == page
        {
            return Some(slot);
        }
        let slot = *self.slots.get(&page)?;
        self.last = Some((page, slot));
        Some(slot)
    }

    /// The count of a cluster.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let page = cluster / PAGE_CLUSTERS;
        let slot = match self.last {
            Some((last, slot)) if last == page => slot,
            _ => match self.slots.get(&page) {
                Some(&slot) => slot,
                None => return 0,
            },
        };
        match self.pages[slot][(cluster % PAGE_CLUSTERS) as usize] {
            LARGE => self.large.get(&cluster).copied().unwrap_or_else(|| LARGE.into()),
            count => count.into(),
        }
    }

    /// Sets the count of a cluster.
    ///
    /// # Errors
    /// `ENOSPC` past the budget.
    pub(super) fn set(&mut self, cluster: u64, count: u64, budget: &mut Budget) -> Result<()> {
        let page = cluster / PAGE_CLUSTERS;
        let slot = match self.slot(page) {
            Some(slot) => slot,
            None if count == 0 => return Ok(()),
            None => {
                budget.take(2 * PAGE_CLUSTERS)?;
                budget.take_entry()?;
                self.pages.push(vec![0; PAGE_CLUSTERS as usize].into());
                let slot = self.pages.len() - 1;
                self.slots.insert(page, slot);
                self.last = Some((page, slot));
                slot
            }
        };
        let small = u16::try_from(count).unwrap_or(LARGE);
        let place = &mut self.pages[slot][(cluster % PAGE_CLUSTERS) as usize];
        if small == LARGE {
            budget.take_entry()?;
            self.large.insert(cluster, count);
        } else if *place == LARGE {
            self.large.remove(&cluster);
        }
        *place = small;
        Ok(())
    }

    /// Adds to the counts of `clusters` clusters from `first` on.
    ///
    /// # Errors
    /// `ENOSPC` past the budget.
    pub(super) fn add(
        &mut self,
        first: u64,
        clusters: u64,
        count: u64,
        budget: &mut Budget,
    ) -> Result<()> {
        for cluster in first..first.saturating_add(clusters) {
            let sum = self.get(cluster).saturating_add(count);
            self.set(cluster, sum, budget)?;
        }
        Ok(())
    }

    /// Takes one from the counts of `clusters` clusters from `first` on, which were added before.
    pub(super) fn remove(&mut self, first: u64, clusters: u64, budget: &mut Budget) -> Result<()> {
        for cluster in first..first.saturating_add(clusters) {
            self.set(cluster, self.get(cluster).saturating_sub(1), budget)?;
        }
        Ok(())
    }

    /// First clusters of the pages that have counts, in ascending order, and the clusters of a page.
    pub(super) fn page_starts(&self) -> (Vec<u64>, u64) {
        let mut starts: Vec<u64> = self.slots.keys().map(|page| page * PAGE_CLUSTERS).collect();
        starts.sort_unstable();
        (starts, PAGE_CLUSTERS)
    }
}

/// Clusters for which one of two counts may not be zero, ascending, each once.
pub(super) fn clusters_of_both(left: &Counts, right: &Counts) -> impl Iterator<Item = u64> + use<> {
    let (mut starts, page_clusters) = left.page_starts();
    starts.extend(right.page_starts().0);
    starts.sort_unstable();
    starts.dedup();
    starts.into_iter().flat_map(move |start| start..start.saturating_add(page_clusters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_what_was_added() {
        let mut budget = Budget::new(1 << 20);
        let mut counts = Counts::default();
        counts.add(4090, 12, 1, &mut budget).unwrap();
        counts.add(4095, 2, 3, &mut budget).unwrap();
        counts.add(1 << 50, 1, 65_534, &mut budget).unwrap();
        let read = |counts: &Counts| {
            [4089, 4090, 4095, 4096, 4101, 4102, 1 << 50].map(|cluster| counts.get(cluster))
        };
        assert_eq!(read(&counts), [0, 1, 4, 4, 1, 0, 65_534]);
        counts.add(1 << 50, 1, 1, &mut budget).unwrap();
        assert_eq!(counts.get(1 << 50), 65_535);
        counts.add(1 << 50, 1, u64::MAX - 5, &mut budget).unwrap();
        assert_eq!(counts.get(1 << 50), u64::MAX);
        counts.set(1 << 50, 65_536, &mut budget).unwrap();
        counts.remove(1 << 50, 1, &mut budget).unwrap();
        counts.remove(1 << 50, 1, &mut budget).unwrap();
        assert_eq!((counts.get(1 << 50), counts.large.len()), (65_534, 0));
    }

    #[test]
    fn both_are_walked_in_order() {
        let mut budget = Budget::new(1 << 20);
        let (mut left, mut right) = (Counts::default(), Counts::default());
        left.add(9000, 1, 1, &mut budget).unwrap();
        right.add(3, 1, 1, &mut budget).unwrap();
        right.add(9001, 1, 1, &mut budget).unwrap();
        let all: Vec<u64> = clusters_of_both(&left, &right).collect();
        assert_eq!((all.len(), all[0], all[4096]), (8192, 0, 8192));
        assert!(all.is_sorted());
    }

    #[test]
    fn memory_is_bounded() {
        let mut budget = Budget::new(100_000);
        let mut counts = Counts::default();
        let far = (0..20).map(|page| counts.add(page * PAGE_CLUSTERS, 1, 1, &mut budget));
        let outcomes: Vec<bool> = far.map(|outcome| outcome.is_ok()).collect();
        assert_eq!(outcomes.iter().filter(|&&ok| ok).count(), 12);
        assert_eq!(counts.pages.len(), 12);
    }
}
