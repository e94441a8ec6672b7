//! Children that hold bytes.

use std::ops::Range;

use blockloom_abi::{Errno, ExtentFlags, Kind, Kinds};

/// Bytes for which a disk knows whether it holds them itself.
const BLOCK_BYTES: u64 = 512;

/// A child in memory: its bytes, which of them are its own, and which requests of it are to fail.
///
/// ```
/// use blockloom_sdk::testing::Disk;
///
/// let mut disk = Disk::overlay(vec![7; 4096]);
/// assert_eq!(disk.allocated(), []);
/// disk.write(512, &[1; 512]);
/// assert_eq!(disk.allocated(), [512..1024]);
/// assert_eq!(disk.bytes()[511..513], [7, 1]);
/// ```
#[derive(Clone, Debug)]
pub struct Disk {
    bytes: Vec<u8>,
    own: Vec<bool>,
    faults: Vec<Fault>,
    /// Ranges that were changed, in order.
    changes: Vec<Range<u64>>,
}

#[derive(Clone, Debug)]
struct Fault {
    kinds: Kinds,
    range: Range<u64>,
    errno: Errno,
    times: u32,
}

impl Disk {
    /// A disk that holds these bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self::of(bytes, true)
    }

    /// A disk that holds nothing itself, and shows these bytes of what is below it.
    #[must_use]
    pub fn overlay(bytes: Vec<u8>) -> Self {
        Self::of(bytes, false)
    }

    fn of(bytes: Vec<u8>, is_own: bool) -> Self {
        let own = vec![is_own; bytes.len().div_ceil(BLOCK_BYTES as usize)];
        Self { bytes, own, faults: Vec::new(), changes: Vec::new() }
    }

    /// What it shows.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its size, bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The ranges that it holds itself, by blocks of 512 bytes.
    #[must_use]
    pub fn allocated(&self) -> Vec<Range<u64>> {
        let runs = self.status(0..self.size_bytes());
        runs.into_iter().filter(|run| run.1).map(|run| run.0).collect()
    }

    /// Writes beside any filter: what it watched there is stale then.
    ///
    /// # Panics
    ///
    /// Past the end.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let range = offset..offset + bytes.len() as u64;
        self.change(&range).copy_from_slice(bytes);
    }

    /// Fails so many requests and operations of these kinds that touch a range.
    pub fn fail(&mut self, kinds: Kinds, range: Range<u64>, errno: Errno, times: u32) {
        self.faults.push(Fault { kinds, range, errno, times });
    }

    /// Nothing fails any more.
    pub fn heal(&mut self) {
        self.faults.clear();
    }

    /// Whether a request is in order.
    pub(super) fn check(&mut self, kind: Kind, range: &Range<u64>) -> Result<(), Errno> {
        let has_range = !matches!(kind, Kind::Flush | Kind::Resize);
        let hit = self.faults.iter_mut().find(|fault| {
            let touches = fault.range.start < range.end && range.start < fault.range.end;
            fault.times > 0 && fault.kinds.contains(kind) && (touches || !has_range)
        });
        if let Some(fault) = hit {
            fault.times -= 1;
            return Err(fault.errno);
        }
        match kind {
            _ if !has_range || range.end <= self.size_bytes() => Ok(()),
            Kind::Read => Err(Errno::EINVAL),
            _ => Err(Errno::ENOSPC),
        }
    }

    pub(super) fn shown(&self, range: &Range<u64>) -> &[u8] {
        &self.bytes[range.start as usize..range.end as usize]
    }

    /// The bytes of a range, to be written.
    pub(super) fn change(&mut self, range: &Range<u64>) -> &mut [u8] {
        self.changes.push(range.clone());
        self.own(range);
        &mut self.bytes[range.start as usize..range.end as usize]
    }

    /// Holds a range itself from now on, with the bytes that it shows.
    pub(super) fn own(&mut self, range: &Range<u64>) {
        if range.start < range.end {
            let last = (range.end - 1) / BLOCK_BYTES;
            self.own[(range.start / BLOCK_BYTES) as usize..=last as usize].fill(true);
        }
    }

    pub(super) fn resize(&mut self, size_bytes: u64) {
        self.bytes.resize(size_bytes as usize, 0);
        self.own.resize(size_bytes.div_ceil(BLOCK_BYTES) as usize, true);
        self.changes.push(0..u64::MAX);
    }

    /// How many changes there were: for [`is_changed`](Self::is_changed).
    pub(super) fn changes(&self) -> usize {
        self.changes.len()
    }

    /// Whether a range was changed after so many changes.
    pub(super) fn is_changed(&self, range: &Range<u64>, after: usize) -> bool {
        let later = self.changes.iter().skip(after);
        later.into_iter().any(|change| change.start < range.end && range.start < change.end)
    }

    /// Runs of a range, and whether each is its own.
    pub(super) fn status(&self, range: Range<u64>) -> Vec<(Range<u64>, bool)> {
        let mut runs: Vec<(Range<u64>, bool)> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let block = at / BLOCK_BYTES;
            let end = range.end.min((block + 1) * BLOCK_BYTES);
            let is_own = self.own[block as usize];
            match runs.last_mut() {
                Some((run, kind)) if *kind == is_own => run.end = end,
                _ => runs.push((at..end, is_own)),
            }
            at = end;
        }
        runs
    }
}

pub(super) fn flags(is_own: bool) -> ExtentFlags {
    if is_own { ExtentFlags::ALLOCATED } else { ExtentFlags::NONE }
}
