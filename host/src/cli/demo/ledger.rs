//! What a guest has changed, and what dirty bitmaps by QEMU's rules would say of it: a bitmap belongs to one node,
//! and records what is written to that node, whoever writes it.

use std::collections::BTreeSet;

/// Bytes of a granule, and of a cluster of all images.
pub(super) const GRANULE: u64 = 64 << 10;

/// Numbers of granules.
pub(super) type Granules = BTreeSet<u64>;

/// See the module.
#[derive(Default)]
pub(super) struct Ledger {
    /// What was changed since the last backup.
    changed: Granules,
    /// What the bitmap of the first overlay would have recorded since.
    recorded: Granules,
    /// What was changed since, and is in no bitmap.
    unseen: Granules,
    /// What the image on top has itself.
    own: Granules,
    /// What the images below have, of which something can be copied up.
    below: Granules,
    /// The image on top is another one than that which has the bitmap.
    is_over_snapshot: bool,
}

/// Between two backups.
pub(super) struct Changes {
    pub(super) changed: Granules,
    pub(super) recorded: Granules,
    pub(super) unseen: Granules,
}

impl Ledger {
    /// An empty image on top of one that has these.
    pub(super) fn over(below: Granules) -> Self {
        Self { below, ..Self::default() }
    }

    /// A guest has written there.
    pub(super) fn write(&mut self, granule: u64) {
        self.changed.insert(granule);
        self.put(granule, true);
    }

    /// A guest has read there, through copy-on-read with a filter below it.
    pub(super) fn read(&mut self, granule: u64) {
        if self.below.contains(&granule) && !self.own.contains(&granule) {
            self.put(granule, false);
        }
    }

    fn put(&mut self, granule: u64, is_change: bool) {
        self.own.insert(granule);
        if !self.is_over_snapshot {
            self.recorded.insert(granule);
        } else if is_change {
            self.unseen.insert(granule);
        }
    }

    /// Another image has come on top: the bitmap stays where it is.
    pub(super) fn snapshot(&mut self) {
        self.below.append(&mut self.own);
        self.is_over_snapshot = true;
    }

    /// What is on top has gone to the image below it, as writes to that.
    pub(super) fn commit(&mut self) {
        for granule in &self.own {
            self.recorded.insert(*granule);
            self.unseen.remove(granule);
        }
        self.is_over_snapshot = false;
        // It has been streamed to before: it stands alone, and has all that there is.
        self.own.append(&mut self.below);
    }

    /// A backup begins.
    pub(super) fn cut(&mut self) -> Changes {
        let take = std::mem::take::<Granules>;
        let (changed, recorded) = (take(&mut self.changed), take(&mut self.recorded));
        Changes { changed, recorded, unseen: take(&mut self.unseen) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<const N: usize>(granules: [u64; N]) -> Granules {
        granules.into_iter().collect()
    }

    #[test]
    fn what_qemu_would_say() {
        let mut ledger = Ledger::over(of([1, 2, 3]));
        ledger.read(1);
        ledger.read(9);
        ledger.write(2);
        let first = ledger.cut();
        assert_eq!((first.changed, first.recorded), (of([2]), of([1, 2])), "copied up");
        ledger.snapshot();
        ledger.write(5);
        ledger.read(3);
        let second = ledger.cut();
        assert_eq!((second.recorded, second.unseen), (of([]), of([5])), "missed");
        ledger.write(6);
        ledger.commit();
        ledger.write(7);
        ledger.read(1);
        let third = ledger.cut();
        assert_eq!(third.changed, of([6, 7]));
        assert_eq!((third.recorded, third.unseen), (of([3, 5, 6, 7]), of([])), "committed");
    }
}
