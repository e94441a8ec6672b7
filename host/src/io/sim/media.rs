//! What a simulated file holds: what reads see, and what a crash may leave.
//!
//! Truth is kept apart from faults. `cache` is what the operating system shows. `durable` is what is
//! on the medium for sure. `pending` has, sector by sector, every content that may be there instead: a crash
//! chooses any of them, sector by sector, so unflushed writes are lost, torn and reordered.

use std::collections::BTreeMap;

use super::random::Random;

/// A sector is on the medium whole or not at all.
pub(crate) const SECTOR: usize = 512;

type Sector = Box<[u8]>;

/// A content of one sector that the medium may have.
#[derive(Clone, Debug)]
struct Version {
    op: u64,
    bytes: Sector,
    /// Reads see it, or have seen it.
    is_applied: bool,
    /// When its operation ended, in the count of [`Media::ended`].
    ended: Option<u64>,
    /// No sync makes it durable: its write failed before it came into the cache, or a sync of it failed.
    is_lost: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Media {
    cache: Vec<u8>,
    durable: Vec<u8>,
    /// Contents in the order in which reads saw them; those that nobody has seen are anywhere.
    pending: BTreeMap<u64, Vec<Version>>,
    /// By sector: it is no hole.
    is_data: Vec<bool>,
    /// Operations that have ended.
    ended: u64,
}

/// What becomes of one sector of a write.
#[derive(Clone, Debug)]
pub(crate) enum Landing {
    Old,
    New,
    /// Bytes that nobody wrote.
    Damaged(Sector),
}

impl Media {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let is_data = bytes.chunks(SECTOR).map(|sector| sector.iter().any(|b| *b != 0)).collect();
        let (cache, pending) = (bytes.clone(), BTreeMap::new());
        Self { cache, durable: bytes, pending, is_data, ended: 0 }
    }

    pub(crate) fn len(&self) -> u64 {
        self.cache.len() as u64
    }

    /// The bytes as the operating system shows them.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.cache
    }

    /// Fills `buf` from `offset`, as far as the file goes; returns how far.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let from = self.cache.get(to_usize(offset)..).unwrap_or_default();
        let count = from.len().min(buf.len());
        buf[..count].copy_from_slice(&from[..count]);
        count
    }

    /// An operation that is to write `bytes` begins: from now on a crash may leave them.
    pub(crate) fn begin(&mut self, op: u64, offset: u64, bytes: &[u8]) {
        let end = to_usize(offset) + bytes.len();
        if !bytes.is_empty() && end > self.cache.len() {
            self.set_len(end as u64);
        }
        for sector in sectors(offset, bytes.len()) {
            let start = to_usize(sector) * SECTOR;
            let mut new = self.sector(sector).to_vec();
            // The file may end within it, and be longer by the time this is seen.
            new.resize(SECTOR, 0);
            let from = start.max(to_usize(offset));
            let to = (start + SECTOR).min(end);
            new[from - start..to - start]
                .copy_from_slice(&bytes[from - to_usize(offset)..to - to_usize(offset)]);
            let version =
                Version { op, bytes: new.into(), is_applied: false, ended: None, is_lost: false };
            self.pending.entry(sector).or_default().push(version);
        }
    }

    fn sector(&self, sector: u64) -> &[u8] {
        let start = to_usize(sector) * SECTOR;
        &self.cache[start..(start + SECTOR).min(self.cache.len())]
    }

    fn show(&mut self, sector: u64, bytes: &[u8]) {
        let start = to_usize(sector) * SECTOR;
        let end = (start + SECTOR).min(self.cache.len());
        self.cache[start..end].copy_from_slice(&bytes[..end - start]);
    }

    /// Reads see the sectors of an operation that `is_chosen` names.
    pub(crate) fn apply(
        &mut self,
        (op, sectors): (u64, &[u64]),
        is_hole: bool,
        mut is_chosen: impl FnMut(u64) -> bool,
    ) {
        for sector in sectors {
            let Some(versions) = self.pending.get_mut(sector) else { continue };
            let is_new = |version: &Version| version.op == op && !version.is_applied;
            let Some(at) = versions.iter().position(is_new) else { continue };
            if !is_chosen(*sector) {
                continue;
            }
            let mut version = versions.remove(at);
            version.is_applied = true;
            let bytes = version.bytes.clone();
            versions.push(version);
            self.show(*sector, &bytes);
            self.is_data[to_usize(*sector)] = !is_hole;
        }
    }

    /// An operation ends well: all of it is seen.
    pub(crate) fn complete(&mut self, op: u64, sectors: &[u64], is_hole: bool) {
        self.apply((op, sectors), is_hole, |_| true);
        self.end(op, sectors);
    }

    /// An operation fails: what has been seen stays, of the rest nobody knows.
    pub(crate) fn fail(
        &mut self,
        op: u64,
        sectors: &[u64],
        mut landing: impl FnMut(u64) -> Landing,
    ) {
        for sector in sectors {
            let Some(versions) = self.pending.get_mut(sector) else { continue };
            let Some(at) = versions.iter().position(|version| version.op == op) else { continue };
            match landing(*sector) {
                Landing::Old if !versions[at].is_applied => versions[at].is_lost = true,
                Landing::Old => {}
                Landing::New => self.apply((op, &[*sector]), false, |_| true),
                Landing::Damaged(bytes) => {
                    let mut version = versions.remove(at);
                    (version.bytes, version.is_applied) = (bytes.clone(), true);
                    versions.push(version);
                    self.show(*sector, &bytes);
                    self.is_data[to_usize(*sector)] = true;
                }
            }
        }
        self.end(op, sectors);
    }

    fn end(&mut self, op: u64, sectors: &[u64]) {
        self.ended += 1;
        for sector in sectors {
            let versions = self.pending.get_mut(sector).into_iter().flatten();
            versions.filter(|version| version.op == op).for_each(|it| it.ended = Some(self.ended));
        }
    }

    /// A sync begins: it covers what has ended by now.
    pub(crate) fn sync_mark(&self) -> u64 {
        self.ended
    }

    /// A sync has ended well.
    pub(crate) fn synced(&mut self, mark: u64) {
        for (sector, versions) in &mut self.pending {
            let is_covered = |version: &Version| {
                version.is_applied && !version.is_lost && version.ended.is_some_and(|at| at <= mark)
            };
            let Some(last) = versions.iter().rposition(is_covered) else { continue };
            let start = to_usize(*sector) * SECTOR;
            let end = (start + SECTOR).min(self.durable.len());
            self.durable[start..end].copy_from_slice(&versions[last].bytes[..end - start]);
            let mut at = 0;
            versions.retain(|version| {
                at += 1;
                at > last + 1 || !(version.is_applied || version.is_lost)
            });
        }
        self.pending.retain(|_, versions| !versions.is_empty());
    }

    /// A sync has failed: the operating system forgets to write some of what it covers.
    pub(crate) fn sync_failed(&mut self, mark: u64, random: &mut Random) {
        for version in self.pending.values_mut().flatten() {
            if version.ended.is_some_and(|at| at <= mark) && random.one_in(2) {
                version.is_lost = true;
            }
        }
    }

    /// Everything stops: of each sector the medium has one of the contents that it may have.
    pub(crate) fn crash(&mut self, random: &mut Random) {
        // Some crashes lose all, some nothing, most this and that.
        let mood = random.below(4);
        for (sector, versions) in std::mem::take(&mut self.pending) {
            let choice = match mood {
                0 => None,
                1 => versions.iter().rev().find(|version| version.is_applied),
                _ => match random.below(versions.len() as u64 + 1) {
                    0 => None,
                    at => Some(&versions[to_usize(at - 1)]),
                },
            };
            if let Some(version) = choice {
                let start = to_usize(sector) * SECTOR;
                let end = (start + SECTOR).min(self.durable.len());
                self.durable[start..end].copy_from_slice(&version.bytes[..end - start]);
            }
        }
        *self = Self::new(std::mem::take(&mut self.durable));
    }

    /// Sets the length; that is durable at once.
    pub(crate) fn set_len(&mut self, len: u64) {
        let len = to_usize(len);
        self.cache.resize(len, 0);
        self.durable.resize(len, 0);
        let count = len.div_ceil(SECTOR);
        self.is_data.resize(count, false);
        self.pending.retain(|sector, _| to_usize(*sector) < count);
    }

    /// The file ends no earlier than there.
    pub(crate) fn extend(&mut self, end: u64) {
        if end > self.len() {
            self.set_len(end);
        }
    }

    /// The next byte at or after `offset` that is, or is not, in a hole.
    pub(crate) fn seek(&self, offset: u64, wants_data: bool) -> Option<u64> {
        if offset >= self.len() {
            return None;
        }
        let first = to_usize(offset) / SECTOR;
        let found = (first..self.is_data.len()).find(|at| self.is_data[*at] == wants_data);
        match found {
            Some(at) => Some(offset.max((at * SECTOR) as u64)),
            None if wants_data => None,
            None => Some(self.len()),
        }
    }
}

/// The sectors that a range lies in.
pub(crate) fn sectors(offset: u64, len: usize) -> std::ops::Range<u64> {
    offset / SECTOR as u64..(offset + len as u64).div_ceil(SECTOR as u64)
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(media: &mut Media, op: u64, sector: u64, byte: u8) {
        media.begin(op, sector * SECTOR as u64, &[byte; SECTOR]);
        media.complete(op, &[sector], false);
    }

    /// The bytes that crashes leave of a sector.
    fn leaves(make: impl Fn() -> Media, sector: usize) -> Vec<u8> {
        let mut left: Vec<u8> = (0..200)
            .map(|seed| {
                let mut media = make();
                media.crash(&mut Random::new(seed));
                media.bytes()[sector * SECTOR]
            })
            .collect();
        left.sort_unstable();
        left.dedup();
        left
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_any_of_what_was_not() {
        let make = || {
            let mut media = Media::new(vec![1; 4 * SECTOR]);
            write(&mut media, 1, 0, 2);
            write(&mut media, 2, 1, 2);
            let mark = media.sync_mark();
            write(&mut media, 3, 1, 3);
            media.synced(mark);
            write(&mut media, 4, 2, 2);
            write(&mut media, 5, 2, 3);
            media.begin(6, 3 * SECTOR as u64, &[2; SECTOR]);
            media
        };
        assert_eq!(leaves(make, 0), [2], "synced");
        assert_eq!(leaves(make, 1), [2, 3], "written while it was synced");
        assert_eq!(leaves(make, 2), [1, 2, 3], "not synced");
        assert_eq!(leaves(make, 3), [1, 2], "under way");
    }

    #[test]
    fn what_a_failed_sync_has_lost_a_later_one_does_not_save() {
        let make = || {
            let mut media = Media::new(vec![1; 8 * SECTOR]);
            (0..8).for_each(|sector| write(&mut media, sector, sector, 2));
            let mark = media.sync_mark();
            media.sync_failed(mark, &mut Random::new(1));
            media.synced(mark);
            media
        };
        let all: Vec<Vec<u8>> = (0..8).map(|sector| leaves(make, sector)).collect();
        assert!(all.contains(&vec![2]) && all.contains(&vec![1, 2]), "{all:?}");
        assert!(make().bytes().iter().all(|byte| *byte == 2), "it is read all the same");
    }

    #[test]
    fn a_failed_write_leaves_old_new_or_damaged_sectors() {
        let make = || {
            let mut media = Media::new(vec![1; 3 * SECTOR]);
            media.begin(1, 0, &[2; 3 * SECTOR]);
            media.fail(1, &[0, 1, 2], |sector| match sector {
                0 => Landing::Old,
                1 => Landing::New,
                _ => Landing::Damaged(vec![9; SECTOR].into()),
            });
            media
        };
        let shown: Vec<u8> = make().bytes().chunks(SECTOR).map(|sector| sector[0]).collect();
        assert_eq!(shown, [1, 2, 9]);
        assert_eq!([leaves(make, 0), leaves(make, 1), leaves(make, 2)], [[1, 2], [1, 2], [1, 9]]);
    }
}
