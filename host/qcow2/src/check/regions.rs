//! Ranges of clusters that must have one user each.

use std::collections::BTreeMap;

/// Clusters from `first` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) first: u64,
    pub(super) end: u64,
    /// The user, for messages.
    pub(super) what: &'static str,
}

/// Regions that do not overlap.
#[derive(Debug, Default)]
pub(super) struct Regions {
    by_end: BTreeMap<u64, Region>,
}

impl Regions {
    /// Adds a region that is not empty.
    ///
    /// # Errors
    /// The region that has some of the clusters already.
    pub(super) fn claim(&mut self, region: Region) -> Result<(), Region> {
        match self.overlapping(region.first, region.end) {
            Some(taken) => Err(taken),
            None => {
                self.by_end.insert(region.end, region);
                Ok(())
            }
        }
    }

    /// A region that has one of these clusters.
    pub(super) fn overlapping(&self, first: u64, end: u64) -> Option<Region> {
        let (_, candidate) = self.by_end.range(first + 1..).next()?;
        (candidate.first < end).then_some(*candidate)
    }

    /// All, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = Region> + '_ {
        self.by_end.values().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_claimed_twice() {
        let mut regions = Regions::default();
        let mut claim = |first, end| {
            let region = Region { first, end, what: "" };
            regions.claim(region).map_err(|taken| taken.first)
        };
        assert_eq!(claim(10, 20), Ok(()));
        assert_eq!(claim(20, 21), Ok(()));
        assert_eq!(claim(9, 10), Ok(()));
        assert_eq!(claim(0, 1), Ok(()));
        assert_eq!(claim(19, 20), Err(10));
        assert_eq!(claim(5, 100), Err(9));
        assert_eq!(claim(12, 13), Err(10));
        assert_eq!(claim(21, 22), Ok(()));
    }
}
